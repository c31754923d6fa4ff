//! MBR partition tables, with logical partitions.
//!
//! Four entries in the first sector; one of them may be an extended partition, which begins a chain of sectors of
//! the same shape (EBR), each with one logical partition and a link to the next. Logical partitions count from 5.
//! A boot sector of FAT, NTFS or exFAT carries the same signature and is not taken for a table. The chain may go
//! back and forth (old `fdisk` wrote it so), but no sector may come up twice.

mod chain;
mod edit;

use std::collections::BTreeSet;
use std::ops::Range;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Fault, Kind, Result};
use racker_formats::wire::{bytes, view};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) use self::edit::Edit;
use super::types::{MBR_GPT, mbr_is_extended, mbr_type_name};
use super::{BOOT_SECTOR, PARTITIONS_MAX, Partition, Table};
use crate::drivers::is_fat_boot_sector;

/// MBR counts in sectors; those of a disk with 4096-byte sectors cannot be told from a file.
const SECTOR: u64 = 512;
/// Number of the first logical partition, as Linux counts.
const FIRST_LOGICAL: u32 = 5;

/// Classical generic MBR; the disk signature is where Windows and Linux keep it.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    code: [u8; 440],
    disk_signature: U32,
    reserved: [u8; 2],
    entries: [RawEntry; 4],
    signature: [u8; 2],
}
const _: () = assert!(size_of::<RawRecord>() == 512);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    status: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    first_lba: U32,
    sectors: U32,
}
const _: () = assert!(size_of::<RawEntry>() == 16);

/// What can be wrong with an MBR table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MbrFault {
    /// The chain comes back to itself.
    #[error("the chain of logical partitions comes back to sector {0}")]
    Loop(u64),
    /// The chain is too long.
    #[error("more than {PARTITIONS_MAX} logical partitions")]
    Long,
}

impl Fault for MbrFault {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }
}

/// One entry that is in use.
#[derive(Clone, Debug)]
struct Entry {
    slot: u32,
    active: bool,
    kind: u8,
    first: u64,
    sectors: u64,
    raw: [u8; 16],
}

/// A first sector that is a partition table.
#[derive(Debug)]
pub(super) struct Record {
    signature: u32,
    entries: Vec<Entry>,
}

impl Record {
    /// The table in a disk's first sector, unless that is something else.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        let raw = view::<RawRecord>(sector, "master boot record").ok()?;
        if raw.signature != [0x55, 0xaa] || is_filesystem(sector) {
            return None;
        }
        // Anything but 0 and 0x80 is code of a boot sector, not an entry.
        if raw.entries.iter().any(|e| e.status & 0x7f != 0) {
            return None;
        }
        Some(Self { signature: raw.disk_signature.get(), entries: entries(raw, sector) })
    }

    /// Whether it only guards a GPT.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|e| e.kind == MBR_GPT)
    }

    /// Whether it guards a GPT and names partitions as well.
    pub(super) fn is_hybrid(&self) -> bool {
        self.is_protective() && self.entries.iter().any(|e| e.kind != MBR_GPT)
    }

    /// The sectors of the partitions that it names beside a GPT.
    pub(super) fn beside_protective(&self) -> Vec<Range<u64>> {
        let named = self.entries.iter().filter(|e| e.kind != MBR_GPT);
        named.map(|e| e.first..e.first.saturating_add(e.sectors)).collect()
    }

    /// The last sector of the disk as the protective entry has it; `None` when it only says "large".
    pub(super) fn protective_end(&self) -> Option<u64> {
        let entry = self.entries.iter().find(|e| e.kind == MBR_GPT)?;
        let end = entry.first.checked_add(entry.sectors)?.checked_sub(1)?;
        (entry.sectors != u64::from(u32::MAX)).then_some(end)
    }
}

/// The entries in use of a record or of a link in the chain.
fn entries(record: &RawRecord, sector: &[u8]) -> Vec<Entry> {
    let raw_entries = sector.get(446..510).unwrap_or_default().as_chunks::<16>().0;
    let used = |e: &RawEntry| e.kind != 0 && e.sectors.get() != 0;
    (0u32..)
        .zip(record.entries.iter().zip(raw_entries))
        .filter(|(_, (e, _))| used(e))
        .map(|(slot, (e, raw))| Entry {
            slot,
            active: e.status & 0x80 != 0,
            kind: e.kind,
            first: u64::from(e.first_lba.get()),
            sectors: u64::from(e.sectors.get()),
            raw: *raw,
        })
        .collect()
}

/// Whether a sector that ends in 55 AA is the boot sector of a filesystem.
fn is_filesystem(sector: &[u8]) -> bool {
    let starts = |at: usize, what: &[u8]| sector.get(at..).is_some_and(|b| b.starts_with(what));
    starts(3, b"NTFS    ") || starts(3, b"EXFAT   ") || starts(0, b"XFSB") || is_fat_boot_sector(sector)
}

/// Reads the partitions that `record` names, and the logical ones behind it.
pub(super) fn read(disk: &Disk, record: &Record) -> Result<Table> {
    let mut table = Table {
        scheme: "dos",
        sector_size: 512,
        id: (record.signature != 0).then(|| format!("{:08x}", record.signature)),
        partitions: Vec::new(),
        warnings: Vec::new(),
    };
    let mut chains = Vec::new();
    for entry in &record.entries {
        let container = mbr_is_extended(entry.kind);
        if container {
            chains.push(entry.first);
        }
        let number = entry.slot.saturating_add(1);
        add(disk, &mut table, number, record.signature, entry, entry.first, container);
    }
    // The kernel goes through every extended partition; more than one is not usual, but there.
    let mut number = FIRST_LOGICAL;
    let mut seen = BTreeSet::new();
    for start in chains {
        walk(disk, &mut table, record.signature, start, &mut number, &mut seen)?;
    }
    table.warn_of_overlaps();
    Ok(table)
}

/// Adds the logical partitions of one extended partition that starts at sector `start`.
fn walk(
    disk: &Disk,
    table: &mut Table,
    signature: u32,
    start: u64,
    number: &mut u32,
    seen: &mut BTreeSet<u64>,
) -> Result<()> {
    let mut at = start;
    loop {
        if !seen.insert(at) {
            return Err(MbrFault::Loop(at).into());
        }
        if seen.len() > PARTITIONS_MAX {
            return Err(MbrFault::Long.into());
        }
        let Ok(sector) = bytes(disk, at.saturating_mul(SECTOR), BOOT_SECTOR, BOOT_SECTOR, "EBR") else {
            table.warn(format!("the chain of logical partitions leaves the disk at sector {at}"));
            return Ok(());
        };
        let raw = view::<RawRecord>(&sector, "EBR")?;
        if raw.signature != [0x55, 0xaa] {
            // An extended partition without logical ones may have never been written.
            if at != start {
                table.warn(format!("the chain of logical partitions breaks at sector {at}"));
            }
            return Ok(());
        }
        let entries = entries(raw, &sector);
        // The first two slots are the partition and the link; OS/2 left other things in the rest.
        let mine = entries.iter().take_while(|e| e.slot < 2);
        for entry in mine.clone().filter(|e| !mbr_is_extended(e.kind)) {
            add(disk, table, *number, signature, entry, at.saturating_add(entry.first), false);
            *number = number.saturating_add(1);
        }
        match entries.iter().find(|e| mbr_is_extended(e.kind)) {
            // Links count from the start of the extended partition.
            Some(link) => at = start.saturating_add(link.first),
            None => return Ok(()),
        }
    }
}

/// Adds one partition that starts at sector `first`, unless it does not lie on the disk.
fn add(
    disk: &Disk,
    table: &mut Table,
    number: u32,
    signature: u32,
    entry: &Entry,
    first: u64,
    container: bool,
) {
    let start = first.saturating_mul(SECTOR);
    let len = entry.sectors.saturating_mul(SECTOR);
    let room = disk.size().saturating_sub(start);
    if room == 0 {
        table.warn(format!("partition {number} is left out: it starts past the end of the disk"));
        return;
    }
    if len > room {
        table.warn(format!("partition {number} ends past the end of the disk and is cut there"));
    }
    let Ok(span) = Span::new(start, len.min(room)) else { return };
    table.partitions.push(Partition {
        number,
        span,
        type_id: format!("0x{:02x}", entry.kind),
        type_name: mbr_type_name(entry.kind),
        label: None,
        id: (signature != 0).then(|| format!("{signature:08x}-{number:02x}")),
        bootable: entry.active,
        attributes: 0,
        container,
        raw: entry.raw.to_vec(),
    });
}

#[cfg(test)]
mod tests {
    use racker_formats::block::MemDevice;

    use super::super::read;
    use super::*;

    fn put(disk: &mut [u8], sector: usize, slot: usize, kind: u8, first: u32, sectors: u32) {
        let s = &mut disk[sector * 512..][..512];
        s[510..].copy_from_slice(&[0x55, 0xaa]);
        let e = &mut s[446 + slot * 16..][..16];
        e[4] = kind;
        e[8..12].copy_from_slice(&first.to_le_bytes());
        e[12..16].copy_from_slice(&sectors.to_le_bytes());
    }

    fn parse(bytes: &[u8]) -> Result<Table> {
        read(&Disk::new(MemDevice::from_bytes(bytes.to_vec())))
    }

    fn image() -> Vec<u8> {
        let mut disk = vec![0u8; 1 << 20];
        disk[440..444].copy_from_slice(&0x7ace_d871_u32.to_le_bytes());
        put(&mut disk, 0, 0, 0x83, 64, 64);
        put(&mut disk, 0, 2, 0x05, 256, 1024);
        disk[446] = 0x80;
        // Out of order on purpose: 512 before 384.
        put(&mut disk, 256, 0, 0x83, 16, 32);
        put(&mut disk, 256, 1, 0x05, 256, 64);
        put(&mut disk, 512, 0, 0x82, 16, 32);
        put(&mut disk, 512, 1, 0x05, 128, 64);
        put(&mut disk, 384, 0, 0x8e, 16, 32);
        disk
    }

    #[test]
    fn logical_partitions_count_from_five() {
        let table = parse(&image()).unwrap();
        assert_eq!(table.warnings, Vec::<String>::new());
        assert_eq!(table.id.as_deref(), Some("7aced871"));
        let seen: Vec<_> =
            table.partitions.iter().map(|p| (p.number, p.span.start() / 512, p.type_id.as_str())).collect();
        assert_eq!(
            seen,
            [(1, 64, "0x83"), (3, 256, "0x05"), (5, 272, "0x83"), (6, 528, "0x82"), (7, 400, "0x8e")]
        );
        assert!(table.partitions[0].bootable && !table.partitions[1].bootable);
        assert!(table.partitions[1].container);
        assert_eq!(table.partitions[2].id.as_deref(), Some("7aced871-05"));
    }

    #[test]
    fn a_loop_is_found() {
        let mut disk = image();
        put(&mut disk, 384, 1, 0x05, 0, 64);
        assert!(matches!(parse(&disk).unwrap_err().fault(), Some(MbrFault::Loop(256))));
    }

    #[test]
    fn boot_sectors_are_no_tables() {
        let mut fat = vec![0u8; 8192];
        fat[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
        fat[11..24].copy_from_slice(&[0, 2, 4, 1, 0, 2, 0, 2, 64, 0, 0xf8, 1, 0]);
        fat[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(parse(&fat).unwrap().scheme, "none");
        let mut ntfs = fat.clone();
        ntfs[3..11].copy_from_slice(b"NTFS    ");
        ntfs[16] = 0;
        assert_eq!(parse(&ntfs).unwrap().scheme, "none");
        assert_eq!(parse(&[0; 100]).unwrap().scheme, "none");
        assert_eq!(parse(&[0; 512]).unwrap().scheme, "none");
    }

    #[test]
    fn partitions_past_the_end_are_cut_or_left_out() {
        let mut disk = vec![0u8; 1 << 20];
        put(&mut disk, 0, 0, 0x83, 2000, 1000);
        put(&mut disk, 0, 1, 0x83, 4000, 1000);
        let table = parse(&disk).unwrap();
        assert_eq!(table.warnings.len(), 2);
        assert_eq!(table.partitions.len(), 1);
        assert_eq!(table.partitions[0].span.len(), 48 * 512);
        assert_eq!(table.partitions[0].id, None);
    }
}
