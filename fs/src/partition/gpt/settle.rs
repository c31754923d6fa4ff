//! Writes both halves of a table anew for a disk of another size: the backup lies at the end of the disk.
//!
//! The new backup is written first, in bytes that no partition has; then the primary header, which is one sector;
//! then the protective MBR; the old backup goes last. Whenever the power fails, one half is sound.

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

/// Puts the table of `disk` in order for a size of `size` bytes, which is at most that of `disk`.
///
/// # Errors
/// A partition that a disk of `size` bytes has no room for is [`CutOff`]; nothing was written then.
pub(in super::super) fn settle(disk: &Disk, record: &Record, size: u64) -> Result<()> {
    let primary = SECTOR_SIZES.iter().find_map(|sector| Header::read(disk, 1, *sector).ok());
    let sound = primary.is_some();
    let header = match primary {
        Some(header) => header,
        None => find_backup(disk, record)?,
    };
    let sector = header.sector;
    let array_sectors = len64(header.array.len()).div_ceil(sector);
    let last = (size.checked_div(sector).unwrap_or(0)).saturating_sub(1);
    let backup_array = last.saturating_sub(array_sectors);
    let last_usable = backup_array.saturating_sub(1);
    fits(&header, last_usable, size)?;
    let primary_array = if sound { header.array_lba } else { ARRAY_LBA };
    let halves = |my: u64, alternate: u64, array: u64| Half { my, alternate, array, last_usable };
    let old_backup = if sound { header.alternate_lba } else { header.my_lba };

    write_array(disk, &header, backup_array)?;
    halves(last, 1, backup_array).write(disk, &header)?;
    disk.flush()?;
    if !sound {
        write_array(disk, &header, primary_array)?;
    }
    halves(1, last, primary_array).write(disk, &header)?;
    write_protective(disk, last)?;
    disk.flush()?;
    // Whoever looks for a table at the old end must not find one.
    if old_backup > 1 && !(backup_array..=last).contains(&old_backup) && is_free(&header, old_backup) {
        wipe(disk, old_backup, sector)?;
    }
    disk.flush()
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
struct Half {
    my: u64,
    alternate: u64,
    array: u64,
    last_usable: u64,
}

impl Half {
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
    fn entries(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        (1u32..).zip(self.array.chunks_exact(self.entry_bytes)).filter_map(|(number, raw)| {
            let entry = view::<RawEntry>(raw, "gpt entry").ok()?;
            let used = entry.partition_type_guid != [0; 16];
            used.then(|| (number, entry.starting_lba.get(), entry.ending_lba.get()))
        })
    }
}
