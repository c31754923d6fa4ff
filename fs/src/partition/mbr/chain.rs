//! The chain of links that logical partitions hang on, as it is changed, and entries as they are written.

use std::collections::BTreeSet;
use std::ops::Range;

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::wire::{bytes, view};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::edit::TableFault;
use super::super::{BOOT_SECTOR, PARTITIONS_MAX};
use super::{FIRST_LOGICAL, RawEntry, RawRecord, Record, SECTOR, mbr_is_extended};

/// The links of an extended partition.
#[derive(Debug)]
pub(super) enum Chain {
    Sound(Vec<Link>),
    /// Why it is left alone; the numbers and sectors of what is in it.
    Odd(String, Vec<(u32, Range<u64>)>),
}

/// A sector with a logical partition and the way to the next.
#[derive(Debug)]
pub(super) struct Link {
    /// Its sector.
    pub(super) at: u64,
    pub(super) raw: RawRecord,
    /// The sector as it was.
    pub(super) was: Vec<u8>,
    /// The slot of its partition, if it has one.
    pub(super) data: Option<usize>,
    /// The slot that leads on; a free one if it is the last.
    pub(super) next: usize,
}

impl Chain {
    /// Reads the chain that begins at sector `start`, or says why it cannot be changed.
    pub(super) fn read(disk: &Disk, start: u64) -> Result<std::result::Result<Vec<Link>, String>> {
        let (mut links, mut seen, mut at) = (Vec::new(), BTreeSet::new(), start);
        loop {
            if !seen.insert(at) || seen.len() > PARTITIONS_MAX {
                return Ok(Err("the chain comes back to itself".into()));
            }
            let Ok(sector) = bytes(disk, at.saturating_mul(SECTOR), BOOT_SECTOR, BOOT_SECTOR, "EBR") else {
                return Ok(Err(format!("the chain leaves the disk at sector {at}")));
            };
            if view::<RawRecord>(&sector, "EBR")?.signature != [0x55, 0xaa] {
                // An extended partition that was never written to is empty.
                return Ok(if at == start {
                    Ok(vec![Link { was: sector, ..Link::empty(at) }])
                } else {
                    Err(format!("the chain breaks at sector {at}"))
                });
            }
            let link = match Link::parse(at, &sector)? {
                Ok(link) => link,
                Err(why) => return Ok(Err(why)),
            };
            let next = link.raw.entries.get(link.next).filter(|e| e.is_used()).map(|e| e.range(start).start);
            links.push(link);
            match next {
                Some(next) => at = next,
                None => return Ok(Ok(links)),
            }
        }
    }

    pub(super) fn odd(disk: &Disk, record: &Record, why: String) -> Result<Self> {
        let sector = |at: u64| at.checked_div(SECTOR).unwrap_or(0);
        // A chain that cannot be followed at all has no partitions that anybody could see.
        let table = super::read(disk, record).map(|table| table.partitions).unwrap_or_default();
        let logical = table.iter().filter(|p| p.number >= FIRST_LOGICAL);
        Ok(Self::Odd(
            why,
            logical.map(|p| (p.number, sector(p.span.start())..sector(p.span.end()))).collect(),
        ))
    }
}

impl Link {
    /// A link without a partition that leads nowhere.
    pub(super) fn empty(at: u64) -> Self {
        let raw = RawRecord { signature: [0x55, 0xaa], ..RawRecord::new_zeroed() };
        Self { at, raw, was: Vec::new(), data: None, next: 1 }
    }

    /// The link in a sector, or why it is not one as `fdisk` makes it.
    fn parse(at: u64, sector: &[u8]) -> Result<std::result::Result<Self, String>> {
        let raw = RawRecord::read_from_bytes(sector).map_err(|_| TableFault::NoTable)?;
        let used = |extended: bool| {
            let all = raw.entries.iter().enumerate();
            all.filter(move |(_, e)| e.is_used() && mbr_is_extended(e.kind) == extended).map(|(slot, _)| slot)
        };
        let (data, next): (Vec<usize>, Vec<usize>) = (used(false).collect(), used(true).collect());
        if data.len() > 1 || next.len() > 1 {
            return Ok(Err(format!("the link at sector {at} has more than one partition or successor")));
        }
        let (data, next) = (data.first().copied(), next.first().copied());
        if data.is_some_and(|slot| slot > 1) || next.is_some_and(|slot| slot > 1) {
            return Ok(Err(format!("the link at sector {at} uses its third or fourth entry")));
        }
        let free = next.unwrap_or(if data == Some(1) { 0 } else { 1 });
        Ok(Ok(Self { at, raw, was: sector.to_vec(), data, next: free }))
    }

    /// Whether it is to be written; one that was never there is, as soon as it says something.
    pub(super) fn is_changed(&self) -> bool {
        let said = self.data.is_some() || self.was.is_empty() || self.was.ends_with(&[0x55, 0xaa]);
        said && self.raw.as_bytes() != self.was
    }

    /// The sectors of its partition.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        Some(self.raw.entries.get(self.data?)?.range(self.at))
    }

    /// Gives it a partition.
    pub(super) fn put(&mut self, kind: u8, at: &Range<u64>) -> Result<()> {
        let slot = if self.next == 0 { 1 } else { 0 };
        if let Some(entry) = self.raw.entries.get_mut(slot) {
            *entry = RawEntry::new(kind, self.at, at)?;
            self.data = Some(slot);
        }
        Ok(())
    }

    /// Takes its partition away.
    pub(super) fn clear(&mut self) {
        if let Some(entry) = self.data.take().and_then(|slot| self.raw.entries.get_mut(slot)) {
            *entry = RawEntry::default();
        }
    }

    pub(super) fn set_next(&mut self, next: RawEntry) {
        if let Some(entry) = self.raw.entries.get_mut(self.next) {
            *entry = next;
        }
    }
}

impl RawEntry {
    pub(super) fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors.get() != 0
    }

    /// An entry for `at`, counted from `base`.
    pub(super) fn new(kind: u8, base: u64, at: &Range<u64>) -> Result<Self> {
        let mut entry = Self { kind, ..Self::default() };
        entry.set_range(base, at)?;
        Ok(entry)
    }

    /// Its sectors on the disk, if it counts from `base`.
    pub(super) fn range(&self, base: u64) -> Range<u64> {
        let first = base.saturating_add(u64::from(self.first_lba.get()));
        first..first.saturating_add(u64::from(self.sectors.get()))
    }

    pub(super) fn set_range(&mut self, base: u64, at: &Range<u64>) -> Result<()> {
        let number =
            |n: u64| u32::try_from(n).map_err(|_| TableFault::Taken { at: at.end.saturating_mul(SECTOR) });
        self.first_lba = U32::new(number(at.start.saturating_sub(base))?);
        self.sectors = U32::new(number(at.end.saturating_sub(at.start))?);
        self.first_chs = chs(at.start);
        self.last_chs = chs(at.end.saturating_sub(1));
        Ok(())
    }
}

/// Cylinder, head and sector of a disk with 255 heads and 63 sectors, as everybody has them since disks are larger
/// than that can say.
fn chs(lba: u64) -> [u8; 3] {
    const HEADS: u64 = 255;
    const SECTORS: u64 = 63;
    let (track, sector) = (lba / SECTORS, (lba % SECTORS).saturating_add(1));
    let (cylinder, head) = (track / HEADS, track % HEADS);
    if cylinder > 1023 {
        return [254, 255, 255];
    }
    let low = |n: u64| u8::try_from(n & 0xff).unwrap_or(0);
    [low(head), low(sector | (cylinder >> 2) & 0xc0), low(cylinder)]
}
