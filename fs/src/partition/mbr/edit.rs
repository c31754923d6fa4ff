//! Changes an MBR and the chain of its logical partitions in memory.
//!
//! A new logical partition goes to the end of the chain, whatever its place, so the others keep their numbers. When
//! one is removed, those behind it count anew, as the kernel counts them. A chain that is not as `fdisk` makes it
//! (two partitions in one link, several chains, a link that leads nowhere) is not changed.

use std::ops::Range;

use racker_formats::block::Disk;
use racker_formats::error::Result;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::super::PARTITIONS_MAX;
use super::super::edit::area::Area;
use super::super::edit::{Change, Edited, NewPartition, NewTable, TableFault};
use super::super::words::mbr_type;
use super::chain::{Chain, Link};
use super::{FIRST_LOGICAL, RawEntry, RawRecord, Record, SECTOR, mbr_is_extended};

/// The type of a link in the chain.
const LINK: u8 = 0x05;
/// What a new partition is if nothing is said of it.
const LINUX: u8 = 0x83;
/// Sectors that an entry can count.
const SECTORS_MAX: u64 = 1 << 32;

/// An MBR in memory.
#[derive(Debug)]
pub(in super::super) struct Edit {
    boot: RawRecord,
    /// Sectors of the disk.
    sectors: u64,
    chain: Chain,
}

impl Edit {
    /// Takes the table whose first sector is `boot`.
    pub(in super::super) fn open(disk: &Disk, boot: Vec<u8>, record: &Record) -> Result<Self> {
        let raw = RawRecord::read_from_bytes(&boot).map_err(|_| TableFault::NoTable)?;
        let sectors = disk.size().checked_div(SECTOR).unwrap_or(0);
        let starts: Vec<u64> =
            record.entries.iter().filter(|e| mbr_is_extended(e.kind)).map(|e| e.first).collect();
        let chain = match starts.as_slice() {
            [] => Chain::Sound(Vec::new()),
            [start] => match Chain::read(disk, *start)? {
                Ok(links) => Chain::Sound(links),
                Err(why) => Chain::odd(disk, record, why)?,
            },
            _ => Chain::odd(disk, record, "there are several extended partitions".into())?,
        };
        Ok(Self { boot: raw, sectors, chain })
    }

    /// Makes an empty table for a disk whose first sector is `boot`; its code stays.
    pub(in super::super) fn new(disk: &Disk, boot: &[u8], new: &NewTable) -> Result<Self> {
        let mut raw =
            RawRecord::read_from_bytes(boot).map_err(|_| TableFault::Small { size: disk.size() })?;
        raw.entries = [RawEntry::default(); 4];
        raw.signature = [0x55, 0xaa];
        let sectors = disk.size().checked_div(SECTOR).unwrap_or(0);
        let mut edit = Self { boot: raw, sectors, chain: Chain::Sound(Vec::new()) };
        edit.set_id(new.id.as_deref().unwrap_or("random"))?;
        Ok(edit)
    }

    /// The slot and the sectors of the extended partition.
    fn extended(&self) -> Option<(usize, Range<u64>)> {
        let mut entries = self.boot.entries.iter().enumerate();
        entries.find(|(_, e)| e.is_used() && mbr_is_extended(e.kind)).map(|(slot, e)| (slot, e.range(0)))
    }

    fn links(&self) -> Result<&Vec<Link>> {
        match &self.chain {
            Chain::Sound(links) => Ok(links),
            Chain::Odd(why, _) => Err(TableFault::Chain(why.clone()).into()),
        }
    }

    fn links_mut(&mut self) -> Result<&mut Vec<Link>> {
        match &mut self.chain {
            Chain::Sound(links) => Ok(links),
            Chain::Odd(why, _) => Err(TableFault::Chain(why.clone()).into()),
        }
    }

    /// The link of a logical partition.
    fn link(&self, number: u32) -> Result<usize> {
        let nth = usize::try_from(number.saturating_sub(FIRST_LOGICAL)).unwrap_or(usize::MAX);
        let mut held = self.links()?.iter().enumerate().filter(|(_, l)| l.data.is_some());
        held.nth(nth)
            .map(|(index, _)| index)
            .ok_or_else(|| TableFault::NoSuch { number, there: String::new() }.into())
    }

    fn entry(&mut self, number: u32) -> Result<&mut RawEntry> {
        let missing = || TableFault::NoSuch { number, there: String::new() };
        if number < FIRST_LOGICAL {
            let slot = number.checked_sub(1).and_then(|n| usize::try_from(n).ok()).ok_or_else(missing)?;
            return self.boot.entries.get_mut(slot).ok_or_else(|| missing().into());
        }
        let index = self.link(number)?;
        let link = self.links_mut()?.get_mut(index).ok_or_else(missing)?;
        let slot = link.data.ok_or_else(missing)?;
        link.raw.entries.get_mut(slot).ok_or_else(|| missing().into())
    }

    /// The number of a new primary partition.
    fn primary_number(&self, asked: Option<u32>) -> Result<u32> {
        let Some(number) = asked else {
            let free = self.boot.entries.iter().position(|e| !e.is_used());
            return free.map(number_of).ok_or_else(|| TableFault::Full(4).into());
        };
        let slot = number.checked_sub(1).and_then(|n| usize::try_from(n).ok());
        match slot.and_then(|slot| self.boot.entries.get(slot)) {
            Some(entry) if entry.is_used() => Err(TableFault::Exists(number).into()),
            Some(_) => Ok(number),
            None => Err(TableFault::Number { number, last: 4 }.into()),
        }
    }

    /// The number of a new logical partition: the chain's next.
    fn logical_number(&self, asked: Option<u32>) -> Result<u32> {
        let held = self.links()?.iter().filter(|l| l.data.is_some()).count();
        let next = u32::try_from(held).unwrap_or(u32::MAX).saturating_add(FIRST_LOGICAL);
        if held >= PARTITIONS_MAX {
            return Err(TableFault::Full(next.saturating_sub(1)).into());
        }
        match asked {
            Some(number) if number < next => Err(TableFault::Exists(number).into()),
            Some(number) if number > next => Err(TableFault::Number { number, last: next }.into()),
            _ => Ok(next),
        }
    }

    fn add_primary(&mut self, number: u32, kind: u8, at: &Range<u64>) -> Result<()> {
        if mbr_is_extended(kind) {
            self.links()?;
            if let Some((slot, _)) = self.extended() {
                return Err(TableFault::SecondExtended(number_of(slot)).into());
            }
            self.links_mut()?.push(Link::empty(at.start));
        }
        *self.entry(number)? = RawEntry::new(kind, 0, at)?;
        Ok(())
    }

    fn add_logical(&mut self, align: u64, kind: u8, at: &Range<u64>, gap: u64) -> Result<()> {
        let (slot, Range { start, .. }) = self.extended().ok_or(TableFault::NoExtended)?;
        if mbr_is_extended(kind) {
            return Err(TableFault::SecondExtended(number_of(slot)).into());
        }
        let links = self.links_mut()?;
        // The link of an extended partition without logical ones waits for the first of them.
        if let [only] = links.as_mut_slice()
            && only.data.is_none()
        {
            return only.put(kind, at);
        }
        // As far in front of its partition as partitions are aligned: then the next one can be aligned too.
        let align = align.checked_div(SECTOR).unwrap_or(1).max(1);
        let mut link = Link::empty(at.start.saturating_sub(align).max(gap));
        link.put(kind, at)?;
        let (place, next) = (link.at, RawEntry::new(LINK, start, &(link.at..at.end))?);
        match links.last_mut() {
            Some(last) => last.set_next(next),
            None => return Err(TableFault::Taken { at: place.saturating_mul(SECTOR) }.into()),
        }
        links.push(link);
        Ok(())
    }

    /// A partition that holds others keeps them all.
    fn may_end(&self, end: u64) -> Result<()> {
        let links = self.links()?;
        let ends = links.iter().map(|l| l.range().map_or(0, |r| r.end).max(l.at.saturating_add(1)));
        match ends.max() {
            Some(last) if last > end => {
                Err(TableFault::Holds(self.extended().map_or(0, |(slot, _)| number_of(slot))).into())
            }
            _ => Ok(()),
        }
    }
}

fn number_of(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX).saturating_add(1)
}

impl Edited for Edit {
    fn sector(&self) -> u64 {
        SECTOR
    }

    fn partitions(&self) -> Vec<(u32, Range<u64>)> {
        let primary = self.boot.entries.iter().enumerate().filter(|(_, e)| e.is_used());
        let mut all: Vec<_> = primary.map(|(slot, e)| (number_of(slot), e.range(0))).collect();
        match &self.chain {
            Chain::Sound(links) => all.extend((FIRST_LOGICAL..).zip(links.iter().filter_map(Link::range))),
            Chain::Odd(_, there) => all.extend(there.iter().cloned()),
        }
        all
    }

    fn area(&self, logical: bool) -> Result<Area> {
        if !logical {
            let taken = self.boot.entries.iter().filter(|e| e.is_used()).map(|e| e.range(0)).collect();
            let room = 1..self.sectors.min(SECTORS_MAX);
            return Ok(Area { room, taken, ahead: 0, sector: SECTOR });
        }
        let links = self.links()?;
        let (_, room) = self.extended().ok_or(TableFault::NoExtended)?;
        let own = links.iter().map(|l| l.at..l.at.saturating_add(1));
        let taken: Vec<_> = own.chain(links.iter().filter_map(Link::range)).collect();
        let waits = matches!(links.as_slice(), [only] if only.data.is_none());
        let room = room.start..room.end.min(self.sectors);
        Ok(Area { room, taken, ahead: u64::from(!waits), sector: SECTOR })
    }

    fn is_logical(&self, number: u32) -> bool {
        number >= FIRST_LOGICAL
    }

    fn number(&self, new: &NewPartition) -> Result<u32> {
        if new.logical { self.logical_number(new.number) } else { self.primary_number(new.number) }
    }

    fn add(&mut self, number: u32, new: &NewPartition, at: Range<u64>, gap: u64) -> Result<()> {
        let kind = new.change.kind.as_deref().map(kind).transpose()?.unwrap_or(LINUX);
        let change = Change { kind: None, ..new.change.clone() };
        lacks(&change)?;
        match new.logical {
            true => self.add_logical(new.want.align, kind, &at, gap)?,
            false => self.add_primary(number, kind, &at)?,
        }
        self.change(number, &change)
    }

    fn remove(&mut self, number: u32) -> Result<()> {
        if number < FIRST_LOGICAL {
            if mbr_is_extended(self.entry(number)?.kind) {
                if self.links()?.iter().any(|l| l.data.is_some()) {
                    return Err(TableFault::Holds(number).into());
                }
                self.links_mut()?.clear();
            }
            *self.entry(number)? = RawEntry::default();
            return Ok(());
        }
        let index = self.link(number)?;
        let links = self.links_mut()?;
        let Some(before) = index.checked_sub(1) else {
            // The first link stays: it is where the extended partition begins.
            if let Some(first) = links.first_mut() {
                first.clear();
            }
            return Ok(());
        };
        let gone = links.remove(index);
        let next = gone.raw.entries.get(gone.next).copied().unwrap_or_default();
        if let Some(before) = links.get_mut(before) {
            before.set_next(next);
        }
        Ok(())
    }

    fn set_end(&mut self, number: u32, end: u64) -> Result<()> {
        if number < FIRST_LOGICAL {
            if mbr_is_extended(self.entry(number)?.kind) {
                self.may_end(end)?;
            }
            let entry = self.entry(number)?;
            let at = entry.range(0).start..end;
            return entry.set_range(0, &at);
        }
        let start = self.extended().ok_or(TableFault::NoExtended)?.1.start;
        let index = self.link(number)?;
        let links = self.links_mut()?;
        let Some(link) = links.get_mut(index) else { return Ok(()) };
        let base = link.at;
        if let Some(entry) = link.data.and_then(|slot| link.raw.entries.get_mut(slot)) {
            let at = entry.range(base).start..end;
            entry.set_range(base, &at)?;
        }
        // The link that leads here counts the sectors as well.
        if let Some(before) = index.checked_sub(1).and_then(|n| links.get_mut(n)) {
            let slot = before.next;
            if let Some(entry) = before.raw.entries.get_mut(slot) {
                entry.set_range(start, &(base..end))?;
            }
        }
        Ok(())
    }

    fn change(&mut self, number: u32, change: &Change) -> Result<()> {
        lacks(change)?;
        if let Some(word) = change.kind.as_deref() {
            let kind = kind(word)?;
            let entry = self.entry(number)?;
            if mbr_is_extended(kind) != mbr_is_extended(entry.kind) {
                return Err(TableFault::Container(number).into());
            }
            entry.kind = kind;
        }
        match change.bootable {
            // Boot code looks for the one that is active.
            Some(true) => {
                self.boot.entries.iter_mut().for_each(|e| e.status &= 0x7f);
                if let Chain::Sound(links) = &mut self.chain {
                    let data = links.iter_mut().filter_map(|l| l.raw.entries.get_mut(l.data?));
                    data.for_each(|e| e.status &= 0x7f);
                }
                self.entry(number)?.status |= 0x80;
            }
            Some(false) => self.entry(number)?.status &= 0x7f,
            None => {}
        }
        Ok(())
    }

    fn set_id(&mut self, id: &str) -> Result<()> {
        let number = match id {
            "random" => uuid::Uuid::new_v4().as_fields().0.max(1),
            typed => {
                let digits = typed.strip_prefix("0x").unwrap_or(typed);
                let sound = digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit());
                let number = u32::from_str_radix(digits, 16).ok().filter(|n| sound && *n != 0);
                number.ok_or_else(|| TableFault::Id(typed.into()))?
            }
        };
        self.boot.disk_signature = U32::new(number);
        Ok(())
    }

    fn write(&self, disk: &Disk) -> Result<()> {
        // Nothing leads to a link before the link is there.
        if let Chain::Sound(links) = &self.chain {
            for link in links.iter().rev().filter(|l| l.is_changed()) {
                disk.write_at(link.at.saturating_mul(SECTOR), link.raw.as_bytes())?;
            }
        }
        disk.write_at(0, self.boot.as_bytes())
    }
}

/// What entries of an MBR have no room for.
fn lacks(change: &Change) -> Result<()> {
    let what = match change {
        Change { label: Some(_), .. } => "a name",
        Change { id: Some(_), .. } => "an identifier of a partition",
        Change { attributes, .. } if !attributes.is_empty() => "attributes",
        _ => return Ok(()),
    };
    Err(TableFault::Lacks { what, scheme: "dos" }.into())
}

fn kind(word: &str) -> Result<u8> {
    mbr_type(word).ok_or_else(|| TableFault::Type { word: word.into(), scheme: "dos" }.into())
}
