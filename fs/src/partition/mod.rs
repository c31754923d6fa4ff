//! Partition tables: what they are, the list of schemes, and how they are [changed](edit).
//!
//! A disk is GPT if its first sector holds a protective MBR and one of the two headers is sound; else it is MBR if
//! its first sector is one and no filesystem's boot sector; else it has no table. The kernel and `blkid` decide in
//! the same order.

pub mod edit;
mod gpt;
mod mbr;
mod types;
mod words;

use std::fmt::Debug;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Fault, Kind, Result, Within};
use racker_formats::wire::bytes;

pub use gpt::GptFault;
pub use mbr::MbrFault;

/// The sector with the master boot record, in bytes; it starts every disk whatever its sector size.
const BOOT_SECTOR: u64 = 512;

/// Warnings about one table: a damaged table of thousands of entries needs no thousands of lines.
const WARNINGS_MAX: usize = 16;

/// Partitions that are taken of one table: the kernel has no more device numbers for a disk.
const PARTITIONS_MAX: usize = 255;

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: slot + 1 on GPT, 1 to 4 and 5 on for logical ones on MBR.
    pub number: u32,
    /// Its bytes on the disk.
    pub span: Span,
    /// GPT: the type GUID in lower case; MBR: `0x83`.
    pub type_id: String,
    /// A word for the type, where it is a known one: `EFI System`, `Linux filesystem`.
    pub type_name: Option<&'static str>,
    /// GPT: the partition's name; units that are no UTF-16 are replaced.
    pub label: Option<String>,
    /// The PARTUUID as `blkid` prints it.
    pub id: Option<String>,
    /// MBR: the active flag; GPT: legacy BIOS bootable.
    pub bootable: bool,
    /// GPT: the attribute bits.
    pub attributes: u64,
    /// MBR: an extended partition, which holds others and no filesystem.
    pub container: bool,
    /// The entry as it lies on the disk.
    pub raw: Vec<u8>,
}

/// A table as it was read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `gpt`, `dos`, or `none` for a filesystem on the whole disk.
    pub scheme: &'static str,
    /// Sector size in bytes that the table counts in.
    pub sector_size: u32,
    /// The disk's GUID (gpt) or signature (dos) as `blkid` prints it.
    pub id: Option<String>,
    /// In order of their numbers.
    pub partitions: Vec<Partition>,
    /// What is wrong but can be lived with: a damaged backup header, a table that was read from its backup.
    pub warnings: Vec<String>,
}

impl Table {
    fn none() -> Self {
        Self { scheme: "none", sector_size: 512, id: None, partitions: Vec::new(), warnings: Vec::new() }
    }

    fn warn(&mut self, what: impl Into<String>) {
        match self.warnings.len() {
            n if n < WARNINGS_MAX => self.warnings.push(what.into()),
            WARNINGS_MAX => self.warnings.push("more of the kind".into()),
            _ => {}
        }
    }

    /// Notes partitions that share bytes; the kernel and `sgdisk` take them as they are.
    fn warn_of_overlaps(&mut self) {
        let mut spans: Vec<(Span, u32)> =
            self.partitions.iter().filter(|p| !p.container).map(|p| (p.span, p.number)).collect();
        spans.sort_unstable();
        let mut widest: Option<(Span, u32)> = None;
        for (span, number) in spans {
            match widest {
                Some((before, other)) if before.end() > span.start() => {
                    self.warn(format!("partitions {other} and {number} overlap"));
                    if span.end() > before.end() {
                        widest = Some((span, number));
                    }
                }
                _ => widest = Some((span, number)),
            }
        }
    }
}

/// A smaller disk would cut a partition off.
#[derive(Debug, thiserror::Error)]
#[error("partition {number} ends at byte {end}; on a disk of {size} bytes partitions end at {room}")]
pub struct CutOff {
    /// The partition.
    pub number: u32,
    /// First byte behind it.
    pub end: u64,
    /// The disk's size in bytes.
    pub size: u64,
    /// First byte that no partition can have.
    pub room: u64,
}

impl Fault for CutOff {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }

    fn hint(&self) -> Option<String> {
        Some("shrink the filesystem and its partition first".into())
    }
}

/// Reads the partition table of a disk; a disk without one is `none` without partitions.
///
/// An empty `dos` table says little: boot loaders leave its signature on a filesystem that fills the disk.
pub fn read(disk: &Disk) -> Result<Table> {
    if disk.size() < BOOT_SECTOR {
        return Ok(Table::none());
    }
    let boot = bytes(disk, 0, BOOT_SECTOR, BOOT_SECTOR, "boot sector")?;
    let Some(record) = mbr::Record::parse(&boot) else {
        let mut table = Table::none();
        if gpt::has_signature(disk) {
            table.warn("a GPT header without the protective MBR that makes it count: not used");
        }
        return Ok(table);
    };
    if record.is_protective() {
        return gpt::read(disk, &record).within(|| "gpt");
    }
    mbr::read(disk, &record).within(|| "dos partition table")
}

/// Puts the table in order for a disk of `size` bytes: the backup of a GPT moves to the end, and a damaged half is
/// written anew from the sound one. `disk` has at least `size` bytes: a disk grows before, and shrinks after.
/// Other tables lie at the beginning and stay as they are.
///
/// # Errors
/// A partition that would be cut off is an error, and nothing is written.
pub fn settle(disk: &Disk, size: u64) -> Result<()> {
    if disk.size() < BOOT_SECTOR {
        return Ok(());
    }
    let boot = bytes(disk, 0, BOOT_SECTOR, BOOT_SECTOR, "boot sector")?;
    match mbr::Record::parse(&boot) {
        Some(record) if record.is_protective() => gpt::settle(disk, &record, size).within(|| "gpt"),
        Some(_) => match read(disk)?.partitions.iter().find(|p| p.span.end() > size) {
            Some(p) => Err(CutOff { number: p.number, end: p.span.end(), size, room: size }.into()),
            None => Ok(()),
        },
        None => Ok(()),
    }
}
