//! Bitmaps made, emptied, joined, removed.
//!
//! What is new goes to clusters that nobody uses, the directory included; one sector of the header turns to it. So a
//! power cut leaves the bitmaps as they were or as they shall be. Only whether writes are noted is said in place: four
//! bytes of a sector.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::area::Draft;
use super::bitmap::{BITMAPS_MAX, Bitmap, Bits, data_clusters, directory_bytes, read_bitmaps};
use super::edit::Edit;
use super::extensions::BitmapDirectory;
use super::fault::Fault;
use super::header::{AUTOCLEAR_BITMAPS, TablePlace};
use super::image::Qcow2;
use crate::block::{Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::registry::{BitmapChange, BitmapFacts, BitmapSource, Bitmaps};
use crate::wire::{index, is_zero, len64, part_mut};

/// QEMU's limit for the bytes of a name.
const NAME_MAX: usize = 1023;
/// QEMU's limits for the bytes of disk that a bit stands for.
const GRANULARITY_MIN: u64 = 512;
const GRANULARITY_MAX: u64 = 2 << 30;
/// QEMU's limit for the bytes of a bitmap.
const BYTES_MAX: u64 = 512 * MIB;
/// What a bit stands for where nobody says so: a cluster, but no less and no more than this, as QEMU has it.
const DEFAULTS: std::ops::RangeInclusive<u64> = 4 * KIB..=64 * KIB;
/// Bytes of another bitmap that are read at once.
const PIECE: usize = 64 << 10;

impl Bitmaps for Qcow2 {
    fn list(&self) -> Result<Vec<BitmapFacts>> {
        Ok(self.lists()?.1.iter().map(Bitmap::public).collect())
    }

    fn bits(&self, name: &str) -> Result<Disk> {
        let (_, list) = self.lists()?;
        let bitmap = list.get(good(&list, name)?).ok_or(Common::Index(0))?;
        Ok(Disk::new(self.open_bits(bitmap)?))
    }

    fn change(&self, name: &str, change: BitmapChange<'_>) -> Result<()> {
        let _gate = self.alone()?;
        self.ready()?;
        if self.state()?.header.version < 3 {
            return Err(Fault::NeedsVersion3("a bitmap").into());
        }
        let (_, list) = self.lists()?;
        let mut new = list.to_vec();
        match change {
            BitmapChange::Add { granularity, enabled } => {
                new.push(self.new_bitmap(&list, name, granularity, enabled)?);
                self.turn_bitmaps(new, |edit, new| {
                    let added = new.last_mut().ok_or(Common::Index(0))?;
                    added.table = edit.write_table(&vec![0; index(self.table_len(added)?)?])?;
                    Ok(())
                })
            }
            BitmapChange::Remove => {
                let gone = new.remove(find(&list, name)?);
                self.turn_bitmaps(new, |edit, _| edit.free_bitmap(&gone))
            }
            BitmapChange::Clear => {
                let number = good(&list, name)?;
                self.turn_bitmaps(new, |edit, new| {
                    let bitmap = new.get_mut(number).ok_or(Common::Index(0))?;
                    edit.free_bitmap(bitmap)?;
                    bitmap.table = edit.write_table(&vec![0; index(self.table_len(bitmap)?)?])?;
                    Ok(())
                })
            }
            BitmapChange::Enable(enabled) => {
                let bitmap = new.get_mut(good(&list, name)?).ok_or(Common::Index(0))?;
                bitmap.set_enabled(&self.file, enabled)?;
                self.turned(new)
            }
            BitmapChange::Merge(source) => {
                let number = good(&list, name)?;
                let size = self.state()?.header.size;
                if source.disk_size != size {
                    return Err(Fault::BitmapSize { found: source.disk_size, size }.into());
                }
                let old = self.open_bits(list.get(number).ok_or(Common::Index(0))?)?;
                self.turn_bitmaps(new, |edit, new| {
                    let bitmap = new.get_mut(number).ok_or(Common::Index(0))?;
                    edit.free_bitmap(bitmap)?;
                    bitmap.table = edit.write_joined(bitmap, &Disk::new(old), source)?;
                    Ok(())
                })
            }
        }
    }
}

/// Where the bitmap of this name is.
fn find(list: &[Bitmap], name: &str) -> Result<usize> {
    let found = list.iter().position(|bitmap| bitmap.name == name);
    Ok(found.ok_or_else(|| Fault::NoBitmap(name.into()))?)
}

/// The same, if it can be relied on.
fn good(list: &[Bitmap], name: &str) -> Result<usize> {
    let number = find(list, name)?;
    match list.get(number) {
        Some(bitmap) if bitmap.is_consistent() => Ok(number),
        _ => Err(Fault::BitmapInUse(name.into()).into()),
    }
}

impl Qcow2 {
    fn open_bits(&self, bitmap: &Bitmap) -> Result<Bits> {
        let size = self.state()?.header.size;
        Bits::open(&self.file, self.rules.geometry.cluster, bitmap, size)
            .within(|| format!("bitmap {:?}", bitmap.name))
    }

    /// Entries of a bitmap's table.
    fn table_len(&self, bitmap: &Bitmap) -> Result<u64> {
        Ok(self.rules.geometry.cluster.count(bitmap.bytes(self.state()?.header.size)))
    }

    /// An empty bitmap, if there may be one like this.
    fn new_bitmap(
        &self,
        list: &[Bitmap],
        name: &str,
        granularity: Option<u64>,
        enabled: bool,
    ) -> Result<Bitmap> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Fault::BitmapName(name.len()).into());
        }
        if list.iter().any(|bitmap| bitmap.name == name) {
            return Err(Fault::BitmapExists(name.into()).into());
        }
        let found = len64(list.len());
        if found >= BITMAPS_MAX {
            return Err(Fault::Many { what: "bitmaps", found, max: BITMAPS_MAX }.into());
        }
        let cluster = self.rules.geometry.cluster.bytes();
        let granularity = granularity.unwrap_or(cluster.clamp(*DEFAULTS.start(), *DEFAULTS.end()));
        if !granularity.is_power_of_two() || !(GRANULARITY_MIN..=GRANULARITY_MAX).contains(&granularity) {
            return Err(Fault::BitmapGranularity(granularity).into());
        }
        let bits = u8::try_from(granularity.trailing_zeros()).map_err(|_| Common::Index(granularity))?;
        let new = Bitmap::new(name, bits, enabled);
        let bytes = new.bytes(self.state()?.header.size);
        if bytes > BYTES_MAX {
            let what = "bytes of a bitmap (a larger granularity needs less)";
            return Err(Fault::Many { what, found: bytes, max: BYTES_MAX }.into());
        }
        Ok(new)
    }

    /// The file has these bitmaps now; whoever writes to the disk next has to give up those that note writes.
    fn turned(&self, bitmaps: Vec<Bitmap>) -> Result<()> {
        self.state_mut()?.bitmaps = Arc::new(bitmaps);
        self.prepared.store(false, Ordering::Release);
        Ok(())
    }

    /// Turns to the bitmaps `new` once `write` has put what is new among them into the file. The caller keeps writers
    /// away.
    fn turn_bitmaps(
        &self,
        mut new: Vec<Bitmap>,
        write: impl FnOnce(&mut Edit<'_>, &mut Vec<Bitmap>) -> Result<()>,
    ) -> Result<()> {
        let mut draft = None;
        self.land_ready(&self.file, |edit| {
            write(edit, &mut new)?;
            if let Some(old) = edit.header.extensions.bitmaps
                && edit.header.autoclear & AUTOCLEAR_BITMAPS != 0
            {
                edit.free(old.at, old.len);
            }
            let bytes = directory_bytes(&new)?;
            let directory = match new.is_empty() {
                true => None,
                false => {
                    let (count, len) = (len64(new.len()), len64(bytes.len()));
                    Some(BitmapDirectory { count, at: edit.write_new(&bytes)?, len })
                }
            };
            let made = Draft::new(self, &edit.header, edit.header.backing.as_ref(), directory)?;
            made.write_apart(self)?;
            edit.header = made.header(&edit.header);
            edit.header.autoclear &= !AUTOCLEAR_BITMAPS;
            edit.header.autoclear |= if new.is_empty() { 0 } else { AUTOCLEAR_BITMAPS };
            edit.header_changed = true;
            draft = Some(made);
            Ok(())
        })?;
        let bitmaps = read_bitmaps(&self.file, &self.state()?.header)?;
        self.turned(bitmaps)?;
        draft.map_or(Ok(()), |draft| self.complete(&draft))
    }
}

impl Edit<'_> {
    fn write_table(&mut self, entries: &[u64]) -> Result<TablePlace> {
        if entries.is_empty() {
            return Ok(TablePlace { at: 0, entries: 0 });
        }
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        Ok(TablePlace { at: self.write_new(&bytes)?, entries: len64(entries.len()) })
    }

    /// Notes that nobody needs a bitmap's table and data any more.
    fn free_bitmap(&mut self, bitmap: &Bitmap) -> Result<()> {
        for at in data_clusters(&self.image.file, bitmap)? {
            self.free(at, 1);
        }
        self.free(bitmap.table.at, bitmap.table.entries.saturating_mul(8));
        Ok(())
    }

    /// Writes a bitmap that has what `old`, its bits so far, and another one have together; says where the table is.
    fn write_joined(&mut self, bitmap: &Bitmap, old: &Disk, other: BitmapSource<'_>) -> Result<TablePlace> {
        let cluster = self.header.geometry.cluster;
        let unit = 1u64.wrapping_shl(bitmap.granularity_bits.into());
        let mut table = Vec::new();
        let mut rest = Span::first(old.size());
        while !rest.is_empty() {
            let now = rest.truncate(cluster.bytes());
            rest = rest.skip(now.len());
            let mut bytes = vec![0u8; index(cluster.bytes())?];
            old.read_at(now.start(), part_mut(&mut bytes, 0, index(now.len())?, "bitmap")?)?;
            let first = now.start().saturating_mul(8);
            let mut mark = |from: u64, end: u64| {
                set_bits(&mut bytes, from.saturating_sub(first), end.saturating_sub(first));
            };
            let end = now.end().saturating_mul(8).min(self.header.size.div_ceil(unit));
            each_run(other, unit, first..end, &mut mark)?;
            table.push(if is_zero(&bytes) { 0 } else { self.write_new(&bytes)? });
        }
        self.write_table(&table)
    }
}

/// Calls `mark` with those bits of `range`, each of which stands for `unit` bytes of disk, that hold anything that
/// `source` has.
fn each_run(
    source: BitmapSource<'_>,
    unit: u64,
    range: std::ops::Range<u64>,
    mark: &mut impl FnMut(u64, u64),
) -> Result<()> {
    let BitmapSource { bits, granularity, .. } = source;
    let from = range.start.saturating_mul(unit).checked_div(granularity).unwrap_or_default() / 8;
    let end = range.end.saturating_mul(unit).div_ceil(granularity.max(1)).div_ceil(8).min(bits.size());
    let mut rest = Span::new(from, end.saturating_sub(from))?;
    let mut buf = vec![0u8; PIECE];
    while !rest.is_empty() {
        let run = bits.first_run(rest)?;
        let now = rest.truncate(run.len.max(1));
        rest = rest.skip(now.len());
        if run.kind.is_zero() {
            continue;
        }
        let mut left = now;
        while !left.is_empty() {
            let piece = left.truncate(len64(PIECE));
            left = left.skip(piece.len());
            let bytes = part_mut(&mut buf, 0, index(piece.len())?, "bitmap")?;
            bits.read_at(piece.start(), bytes)?;
            for (number, byte) in (piece.start()..).zip(bytes.iter()).filter(|(_, byte)| **byte != 0) {
                for bit in (0..8u64).filter(|bit| byte >> bit & 1 != 0) {
                    let at = number.saturating_mul(8).saturating_add(bit).saturating_mul(granularity);
                    let first = at.checked_div(unit).unwrap_or_default().max(range.start);
                    let last = at.saturating_add(granularity).div_ceil(unit.max(1)).min(range.end);
                    mark(first, last);
                }
            }
        }
    }
    Ok(())
}

/// Sets the bits from `from` up to `end`, the lowest of each byte first.
fn set_bits(bytes: &mut [u8], from: u64, end: u64) {
    for bit in from..end {
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|at| bytes.get_mut(at)) {
            *byte |= 1u8.wrapping_shl(u32::try_from(bit & 7).unwrap_or_default());
        }
    }
}
