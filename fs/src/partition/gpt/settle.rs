//! Writes both halves of a table anew, after a change or for a disk of another size: the backup lies at the end of
//! the disk.
//!
//! The new backup is written first, in bytes that no partition has; then the primary header, which is one sector;
//! then the protective MBR; the old backup goes last. Whenever the power fails, one half is sound.

use std::ops::Range;

use crc32fast::Hasher;
use racker_formats::block::{Disk, Span};
use racker_formats::error::Result;
use racker_formats::wire::{bytes, len64, part_mut};
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::super::CutOff;
use super::{GptFault, Header, RawEntry, RawHeader, Record, SECTOR_SIZES, find_backup, view};

/// The first sector of the primary entry array, where nothing else is known.
const ARRAY_LBA: u64 = 2;

/// The half of a table that counts, to be written to both halves.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) header: Header,
    /// It is the primary one, and the other half follows it.
    sound: bool,
}

/// Where the other half goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// The last sector of the disk, with the backup header.
    last: u64,
    /// The first sector of the backup's entry array.
    array: u64,
    /// The last sector that partitions can have.
    pub(super) last_usable: u64,
    /// Everything is where it was.
    same: bool,
}

/// Puts the table of `disk` in order for a size of `size` bytes, which is at most that of `disk`.
///
/// # Errors
/// A partition that a disk of `size` bytes has no room for is [`CutOff`]; nothing was written then.
pub(in super::super) fn settle(disk: &Disk, record: &Record, size: u64) -> Result<()> {
    let half = Half::find(disk, record)?;
    half.write(disk, size, record.is_hybrid())
}

impl Half {
    /// A table that is made now, for a disk without one.
    pub(super) fn new(header: Header) -> Self {
        Self { header, sound: true }
    }

    /// The primary half, or the backup if that is the one that is sound.
    pub(super) fn find(disk: &Disk, record: &Record) -> Result<Self> {
        match SECTOR_SIZES.iter().find_map(|sector| Header::read(disk, 1, *sector).ok()) {
            Some(header) => Ok(Self { header, sound: true }),
            None => Ok(Self { header: find_backup(disk, record)?, sound: false }),
        }
    }

    /// Sectors of the entry array.
    fn array_sectors(&self) -> u64 {
        len64(self.header.array.len()).div_ceil(self.header.sector)
    }

    /// The sectors that the table itself has on the disk.
    pub(super) fn own(&self, end: End) -> [Range<u64>; 3] {
        let array = if self.sound { self.header.array_lba } else { ARRAY_LBA };
        [0..2, array..array.saturating_add(self.array_sectors()), end.array..end.last.saturating_add(1)]
    }

    /// Where the backup goes on a disk of `size` bytes: where it is, if it is sound and at the end.
    pub(super) fn end(&self, disk: &Disk, size: u64) -> End {
        let sector = self.header.sector;
        let last = (size.checked_div(sector).unwrap_or(0)).saturating_sub(1);
        if self.sound
            && self.header.alternate_lba == last
            && let Ok(backup) = Header::read(disk, last, sector)
            && backup.array.len() == self.header.array.len()
            && backup.array_lba > self.header.last_usable
            && backup.array_lba.saturating_add(self.array_sectors()) <= last
        {
            let last_usable = self.header.last_usable;
            return End { last, array: backup.array_lba, last_usable, same: true };
        }
        let array = last.saturating_sub(self.array_sectors());
        End { last, array, last_usable: array.saturating_sub(1), same: false }
    }

    /// Writes both halves for a disk of `size` bytes, and the size into the protective MBR; a hybrid one is left
    /// alone.
    pub(super) fn write(&self, disk: &Disk, size: u64, hybrid: bool) -> Result<()> {
        let Self { header, sound } = self;
        let sector = header.sector;
        let end = self.end(disk, size);
        let End { last, array, last_usable, same } = end;
        if !same {
            fits(header, last_usable, size)?;
        }
        let primary_array = if *sound { header.array_lba } else { ARRAY_LBA };
        if !sound {
            let behind = primary_array.saturating_add(self.array_sectors());
            if header.entries().any(|(_, first, _)| first < behind) || behind > last_usable {
                return Err(GptFault::ArrayPlace { lba: primary_array }.into());
            }
        }
        let old_backup = if *sound { header.alternate_lba } else { header.my_lba };

        write_array(disk, header, array)?;
        Place { my: last, alternate: 1, array, last_usable }.write(disk, header)?;
        disk.flush()?;
        // An array that is to change is written in place: between the two headers' writes the backup counts.
        write_array(disk, header, primary_array)?;
        Place { my: 1, alternate: last, array: primary_array, last_usable }.write(disk, header)?;
        if !hybrid {
            write_protective(disk, last)?;
        }
        disk.flush()?;
        // Whoever looks for a table at the old end must not find one.
        if old_backup > 1 && !(array..=last).contains(&old_backup) && is_free(header, old_backup) {
            wipe(disk, old_backup, sector)?;
        }
        disk.flush()
    }
}

/// Whether no partition has this sector.
fn is_free(header: &Header, lba: u64) -> bool {
    header.entries().all(|(_, first, last)| lba < first || lba > last)
}

fn wipe(disk: &Disk, lba: u64, sector: u64) -> Result<()> {
    let at = lba.saturating_mul(sector);
    if disk.check(at, sector).is_ok() {
        disk.write_zeroes(Span::new(at, sector)?)?;
    }
    Ok(())
}

/// Every partition ends at or before the last usable sector.
fn fits(header: &Header, last_usable: u64, size: u64) -> Result<()> {
    for (number, _, last) in header.entries() {
        if last > last_usable {
            let end = last.saturating_add(1).saturating_mul(header.sector);
            let room = last_usable.saturating_add(1).saturating_mul(header.sector);
            return Err(CutOff { number, end, size, room }.into());
        }
    }
    if header.first_usable > last_usable {
        return Err(GptFault::Usable { first: header.first_usable, last: last_usable }.into());
    }
    Ok(())
}

fn write_array(disk: &Disk, header: &Header, lba: u64) -> Result<()> {
    disk.write_at(lba.saturating_mul(header.sector), &header.array)
}

/// The fields in which the two headers of a table differ.
struct Place {
    my: u64,
    alternate: u64,
    array: u64,
    last_usable: u64,
}

impl Place {
    fn write(&self, disk: &Disk, like: &Header) -> Result<()> {
        let mut raw = like.raw.clone();
        let size = {
            let (h, _) = RawHeader::mut_from_prefix(&mut raw).map_err(|_| GptFault::Signature { at: 0 })?;
            h.my_lba = U64::new(self.my);
            h.alternate_lba = U64::new(self.alternate);
            h.partition_entry_lba = U64::new(self.array);
            h.last_usable_lba = U64::new(self.last_usable);
            h.partition_entry_array_crc32 = U32::new(crc32fast::hash(&like.array));
            h.header_crc32 = U32::new(0);
            usize::try_from(h.header_size.get()).unwrap_or(0)
        };
        let mut crc = Hasher::new();
        crc.update(part_mut(&mut raw, 0, size, "gpt header")?);
        let sum = crc.finalize();
        let (h, _) = RawHeader::mut_from_prefix(&mut raw).map_err(|_| GptFault::Signature { at: 0 })?;
        h.header_crc32 = U32::new(sum);
        disk.write_at(self.my.saturating_mul(like.sector), &raw)
    }
}

/// The size in the protective MBR's one entry: all sectors but the first, as far as 32 bits count.
fn write_protective(disk: &Disk, last: u64) -> Result<()> {
    const ENTRIES: [usize; 4] = [446, 462, 478, 494];
    let mut boot = bytes(disk, 0, 512, 512, "boot sector")?;
    for at in ENTRIES {
        let entry = part_mut(&mut boot, at, 16, "boot sector")?;
        if entry.get(4) == Some(&0xee) && entry.get(8..12) == Some(&1u32.to_le_bytes()) {
            let count = u32::try_from(last).unwrap_or(u32::MAX);
            if let Some(field) = entry.get_mut(12..16) {
                field.copy_from_slice(&count.to_le_bytes());
            }
            return disk.write_at(0, &boot);
        }
    }
    Ok(())
}

impl Header {
    /// Number, first and last sector of each partition.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        (1u32..).zip(self.array.chunks_exact(self.entry_bytes)).filter_map(|(number, raw)| {
            let entry = view::<RawEntry>(raw, "gpt entry").ok()?;
            let used = entry.partition_type_guid != [0; 16];
            used.then(|| (number, entry.starting_lba.get(), entry.ending_lba.get()))
        })
    }

    /// Number and GUID of each partition.
    pub(super) fn guids(&self) -> impl Iterator<Item = (u32, uuid::Uuid)> + '_ {
        (1u32..).zip(self.array.chunks_exact(self.entry_bytes)).filter_map(|(number, raw)| {
            let entry = view::<RawEntry>(raw, "gpt entry").ok()?;
            let used = entry.partition_type_guid != [0; 16];
            used.then(|| (number, uuid::Uuid::from_bytes_le(entry.unique_partition_guid)))
        })
    }
}
