//! GUID partition tables (UEFI Specification 2.10, chapter 5).
//!
//! Both headers are read and both checksums of each are verified. The primary one counts; when it is damaged the
//! backup is taken, with a warning. The entry array is where the header says, with entries of the size it says.
//! An image file does not tell its sector size: the header is looked for at byte 512 and at byte 4096.
//! Partitions that do not lie on the disk are left out with a warning, as the kernel leaves them out.

mod edit;
mod settle;

use crc32fast::Hasher;
use racker_formats::block::{Disk, Span};
use racker_formats::error::{Fault, Kind, Result};
use racker_formats::limits::{KIB, MIB};
use racker_formats::wire::{bytes, index, part, sum_holds, view};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::mbr::Record;
use super::types::gpt_type_name;
use super::{PARTITIONS_MAX, Partition, Table};

pub(super) use edit::{Edit, protect};
pub(super) use settle::settle;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Sector sizes that disks of today have.
const SECTOR_SIZES: [u64; 2] = [512, 4096];
/// Bytes of an entry: the specification asks for 128 times a power of two; nobody has seen more than 256.
const ENTRY_BYTES_MAX: u32 = 4096;
/// Bytes of an entry array: the kernel takes no larger one either, 128 entries are 16 KiB.
const ARRAY_BYTES_MAX: u64 = 4 * MIB;

/// Attribute bit 2.
const LEGACY_BOOTABLE: u64 = 1 << 2;

/// Table 5-5, GPT header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    header_crc32: U32,
    reserved: U32,
    my_lba: U64,
    alternate_lba: U64,
    first_usable_lba: U64,
    last_usable_lba: U64,
    disk_guid: [u8; 16],
    partition_entry_lba: U64,
    number_of_partition_entries: U32,
    size_of_partition_entry: U32,
    partition_entry_array_crc32: U32,
}
const _: () = assert!(size_of::<RawHeader>() == 92);

/// Table 5-6, GPT partition entry.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    partition_type_guid: [u8; 16],
    unique_partition_guid: [u8; 16],
    starting_lba: U64,
    ending_lba: U64,
    attributes: U64,
    partition_name: [U16; 36],
}
const _: () = assert!(size_of::<RawEntry>() == 128);

/// What can be wrong with a GPT.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GptFault {
    /// Not a header at all.
    #[error("no GPT header at byte {at}")]
    Signature {
        /// Byte offset on the disk.
        at: u64,
    },
    /// The header's length is impossible.
    #[error("the header at byte {at} gives its size as {found} bytes, expected 92 to {max}")]
    HeaderSize {
        /// Byte offset on the disk.
        at: u64,
        /// As stored.
        found: u32,
        /// The sector's size.
        max: u64,
    },
    /// The header's checksum.
    #[error("the header at byte {at} has checksum {found:08x}, it adds up to {computed:08x}")]
    HeaderCrc {
        /// Byte offset on the disk.
        at: u64,
        /// As stored.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The header belongs elsewhere.
    #[error("the header at sector {at} says that it is at sector {found}")]
    Misplaced {
        /// Where it was read, in sectors.
        at: u64,
        /// As stored.
        found: u64,
    },
    /// The usable sectors are none.
    #[error("the usable sectors {first} to {last} are no range")]
    Usable {
        /// First usable sector.
        first: u64,
        /// Last usable sector.
        last: u64,
    },
    /// Size of an entry.
    #[error("entries of {0} bytes, expected a multiple of 8 from 128 to {ENTRY_BYTES_MAX}")]
    EntrySize(u32),
    /// Size of the entry array.
    #[error("{count} entries of {each} bytes, expected 1 to {ARRAY_BYTES_MAX} bytes in all")]
    EntryCount {
        /// Number of entries.
        count: u32,
        /// Bytes of one.
        each: u32,
    },
    /// The entry array is not on the disk.
    #[error("the entry array at sector {lba} is not on the disk")]
    ArrayPlace {
        /// As stored.
        lba: u64,
    },
    /// The entry array's checksum.
    #[error("the entry array at sector {lba} has checksum {found:08x}, it adds up to {computed:08x}")]
    ArrayCrc {
        /// Where it is.
        lba: u64,
        /// As stored in the header.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Neither header can be used.
    #[error("the protective MBR announces a GPT, but neither header is sound ({primary}; {backup})")]
    NoHeader {
        /// What is wrong with the primary one.
        primary: String,
        /// What is wrong with the backup.
        backup: String,
    },
}

impl Fault for GptFault {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }
}

/// A header whose fields and checksums were found good, with its entries.
#[derive(Debug)]
struct Header {
    sector: u64,
    my_lba: u64,
    alternate_lba: u64,
    first_usable: u64,
    last_usable: u64,
    disk_guid: Uuid,
    entry_bytes: usize,
    array_lba: u64,
    array: Vec<u8>,
    /// The sector as it lies on the disk.
    raw: Vec<u8>,
}

/// Whether the signature of a primary header is there, for any sector size.
pub(super) fn has_signature(disk: &Disk) -> bool {
    SECTOR_SIZES.iter().any(|at| bytes(disk, *at, 8, 8, "gpt signature").is_ok_and(|s| s == SIGNATURE))
}

/// Reads the table of a disk whose first sector holds a protective MBR.
pub(super) fn read(disk: &Disk, record: &Record) -> Result<Table> {
    let mut primary_fault = None;
    for sector in SECTOR_SIZES {
        match Header::read(disk, 1, sector) {
            Ok(header) => return table(disk, record, header, None),
            // A header that is there but damaged says more than one that is not there.
            Err(e) => match e.fault() {
                Some(GptFault::Signature { .. }) if primary_fault.is_some() => {}
                _ => primary_fault = Some(e.to_string()),
            },
        }
    }
    let primary = primary_fault.unwrap_or_default();
    match find_backup(disk, record) {
        Ok(header) => table(disk, record, header, Some(primary)),
        Err(e) => Err(GptFault::NoHeader { primary, backup: e.to_string() }.into()),
    }
}

/// Looks for the backup header without help of the primary one: at the end of the disk, where a damaged primary
/// header points, and at the end of the disk as the protective MBR knows it (before the disk grew).
fn find_backup(disk: &Disk, record: &Record) -> Result<Header> {
    let mut first = None;
    for sector in SECTOR_SIZES {
        let last = last_lba(disk, sector);
        let pointed = bytes(disk, sector, 92, 92, "gpt header")
            .ok()
            .and_then(|b| {
                view::<RawHeader>(&b, "gpt header").ok().map(|h| (h.signature, h.alternate_lba.get()))
            })
            .and_then(|(signature, lba)| (signature == *SIGNATURE).then_some(lba));
        for lba in [Some(last), pointed, record.protective_end()].into_iter().flatten() {
            if lba < 2 || lba > last {
                continue;
            }
            match Header::read(disk, lba, sector) {
                Ok(header) => return Ok(header),
                Err(e) => drop(first.get_or_insert(e)),
            }
        }
    }
    Err(first.unwrap_or_else(|| GptFault::Signature { at: disk.size() }.into()))
}

fn last_lba(disk: &Disk, sector: u64) -> u64 {
    (disk.size().checked_div(sector).unwrap_or(0)).saturating_sub(1)
}

impl Header {
    /// Reads the header at sector `lba` and its entry array, and checks both.
    fn read(disk: &Disk, lba: u64, sector: u64) -> Result<Self> {
        let at = lba.saturating_mul(sector);
        let Ok(raw) = bytes(disk, at, sector, 4 * KIB, "gpt header") else {
            return Err(GptFault::Signature { at }.into());
        };
        let h = view::<RawHeader>(&raw, "gpt header")?;
        if h.signature != *SIGNATURE {
            return Err(GptFault::Signature { at }.into());
        }
        let size = h.header_size.get();
        if size < 92 || u64::from(size) > sector {
            return Err(GptFault::HeaderSize { at, found: size, max: sector }.into());
        }
        let mut crc = Hasher::new();
        crc.update(part(&raw, 0, 16, "gpt header")?);
        crc.update(&[0; 4]);
        let behind = index(u64::from(size))?.saturating_sub(20);
        crc.update(part(&raw, 20, behind, "gpt header")?);
        let (found, computed) = (h.header_crc32.get(), crc.finalize());
        if !sum_holds(found, computed) {
            return Err(GptFault::HeaderCrc { at, found, computed }.into());
        }
        let header = Self::check(disk, h, lba, sector)?;
        Ok(Self { raw, ..header })
    }

    /// Judges the fields of a header whose checksum is right, and reads the entries.
    fn check(disk: &Disk, h: &RawHeader, lba: u64, sector: u64) -> Result<Self> {
        if h.my_lba.get() != lba {
            return Err(GptFault::Misplaced { at: lba, found: h.my_lba.get() }.into());
        }
        let (first_usable, last_usable) = (h.first_usable_lba.get(), h.last_usable_lba.get());
        // A disk that is full of tables has an empty range, and `last` one below `first`.
        if first_usable > last_usable.saturating_add(1) {
            return Err(GptFault::Usable { first: first_usable, last: last_usable }.into());
        }
        let each = h.size_of_partition_entry.get();
        if !(128..=ENTRY_BYTES_MAX).contains(&each) || !each.is_multiple_of(8) {
            return Err(GptFault::EntrySize(each).into());
        }
        let count = h.number_of_partition_entries.get();
        let len = u64::from(count).saturating_mul(u64::from(each));
        if count == 0 || len > ARRAY_BYTES_MAX {
            return Err(GptFault::EntryCount { count, each }.into());
        }
        let array_lba = h.partition_entry_lba.get();
        let array_at = array_lba.checked_mul(sector).filter(|at| disk.check(*at, len).is_ok());
        let Some(array_at) = array_at else {
            return Err(GptFault::ArrayPlace { lba: array_lba }.into());
        };
        let array = bytes(disk, array_at, len, ARRAY_BYTES_MAX, "gpt entry array")?;
        let (found, computed) = (h.partition_entry_array_crc32.get(), crc32fast::hash(&array));
        if !sum_holds(found, computed) {
            return Err(GptFault::ArrayCrc { lba: array_lba, found, computed }.into());
        }
        Ok(Self {
            sector,
            my_lba: lba,
            alternate_lba: h.alternate_lba.get(),
            first_usable,
            last_usable,
            disk_guid: Uuid::from_bytes_le(h.disk_guid),
            entry_bytes: index(u64::from(each))?,
            array_lba,
            array,
            raw: Vec::new(),
        })
    }

    /// Whether the other header says the same about the partitions.
    fn agrees(&self, other: &Self) -> bool {
        self.disk_guid == other.disk_guid
            && self.first_usable == other.first_usable
            && self.last_usable == other.last_usable
            && self.entry_bytes == other.entry_bytes
            && self.array == other.array
    }
}

/// The table of `header`, with everything that is odd about it. `primary` says why the primary header was not
/// taken, if it was not.
fn table(disk: &Disk, record: &Record, header: Header, primary: Option<String>) -> Result<Table> {
    let mut table = Table {
        scheme: "gpt",
        sector_size: u32::try_from(header.sector).unwrap_or(512),
        id: Some(header.disk_guid.to_string()),
        partitions: Vec::new(),
        warnings: Vec::new(),
    };
    if record.is_hybrid() {
        table.warn("hybrid MBR: the MBR names partitions too, the GPT is used");
    }
    match primary {
        Some(why) => table.warn(format!("the primary GPT is damaged ({why}): the backup is used")),
        None => warn_of_backup(disk, &header, &mut table),
    }
    if header.last_usable > last_lba(disk, header.sector) {
        table.warn("the GPT was made for a larger disk: this one may be cut short");
    }
    for (slot, raw) in header.array.chunks_exact(header.entry_bytes).enumerate() {
        let number = u32::try_from(slot).unwrap_or(u32::MAX).saturating_add(1);
        let entry = view::<RawEntry>(raw, "gpt entry")?;
        if entry.partition_type_guid == [0; 16] {
            continue;
        }
        if table.partitions.len() == PARTITIONS_MAX {
            table.warn(format!("more than {PARTITIONS_MAX} partitions: those from {number} on are left out"));
            break;
        }
        match locate(disk, &header, entry) {
            Ok(span) => {
                let (first, last) = (entry.starting_lba.get(), entry.ending_lba.get());
                if first < header.first_usable || last > header.last_usable {
                    table.warn(format!("partition {number} is outside the usable sectors"));
                }
                table.partitions.push(partition(number, span, entry, raw));
            }
            Err(why) => table.warn(format!("partition {number} is left out: {why}")),
        }
    }
    table.warn_of_overlaps();
    Ok(table)
}

/// Compares the backup header with the primary one.
fn warn_of_backup(disk: &Disk, primary: &Header, table: &mut Table) {
    let last = last_lba(disk, primary.sector);
    let place = primary.alternate_lba;
    if place > last {
        table.warn("the backup GPT is past the end of the disk");
        return;
    }
    match Header::read(disk, place, primary.sector) {
        Err(e) => table.warn(format!("the backup GPT is damaged: {e}")),
        Ok(backup) => {
            if !primary.agrees(&backup) {
                table.warn("the backup GPT differs from the primary one, which is used");
            }
            if backup.alternate_lba != primary.my_lba || backup.array_lba == primary.array_lba {
                table.warn("the backup GPT does not name the primary one as its other half");
            }
            if place != last {
                table.warn("the backup GPT is not at the end of the disk: the disk has grown");
            }
        }
    }
}

/// The bytes of an entry's partition, if they are on the disk.
fn locate(disk: &Disk, header: &Header, entry: &RawEntry) -> std::result::Result<Span, String> {
    let (first, last) = (entry.starting_lba.get(), entry.ending_lba.get());
    if first > last {
        return Err(format!("it starts at sector {first} and ends at {last}"));
    }
    let count = last.saturating_sub(first).checked_add(1);
    let span = first
        .checked_mul(header.sector)
        .zip(count.and_then(|c| c.checked_mul(header.sector)))
        .and_then(|(start, len)| disk.check(start, len).ok());
    span.ok_or_else(|| format!("its sectors {first} to {last} are not on the disk"))
}

fn partition(number: u32, span: Span, entry: &RawEntry, raw: &[u8]) -> Partition {
    let type_guid = Uuid::from_bytes_le(entry.partition_type_guid);
    let units: Vec<u16> = entry.partition_name.iter().map(|u| u.get()).take_while(|u| *u != 0).collect();
    let attributes = entry.attributes.get();
    Partition {
        number,
        span,
        type_id: type_guid.to_string(),
        type_name: gpt_type_name(&type_guid),
        label: (!units.is_empty()).then(|| String::from_utf16_lossy(&units)),
        id: Some(Uuid::from_bytes_le(entry.unique_partition_guid).to_string()),
        bootable: attributes & LEGACY_BOOTABLE != 0,
        attributes,
        container: false,
        raw: raw.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use racker_formats::block::MemDevice;

    use super::super::read;
    use super::*;

    struct Plan {
        sector: usize,
        size: usize,
        entry: usize,
        count: usize,
    }

    /// A disk with partitions in slots 1 and 127, made after the specification's text.
    fn image(plan: &Plan) -> Vec<u8> {
        let Plan { sector, size, entry, count } = *plan;
        let mut disk = vec![0u8; size];
        disk[446 + 4] = 0xee;
        disk[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&u32::try_from(size / sector - 1).unwrap().to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let mut array = vec![0u8; entry * count];
        for (slot, first, last) in [(0usize, 128u64, 135u64), (126, 140, 140)] {
            let e = &mut array[slot * entry..][..128];
            e[..16].copy_from_slice(
                &Uuid::parse_str("0fc63daf-8483-4772-8e79-3d69d8477de4").unwrap().to_bytes_le(),
            );
            e[16..32].fill(slot as u8 + 1);
            e[32..40].copy_from_slice(&first.to_le_bytes());
            e[40..48].copy_from_slice(&last.to_le_bytes());
            e[56..60].copy_from_slice(&[b'r', 0, 0x00, 0xd8]);
        }
        let array_sectors = array.len().div_ceil(sector);
        let last = size / sector - 1;
        for (mine, other, array_lba) in [(1, last, 2), (last, 1, last - array_sectors)] {
            disk[array_lba * sector..][..array.len()].copy_from_slice(&array);
            let h = &mut disk[mine * sector..][..92];
            h[..8].copy_from_slice(SIGNATURE);
            h[8..12].copy_from_slice(&0x1_0000u32.to_le_bytes());
            h[12..16].copy_from_slice(&92u32.to_le_bytes());
            for (at, value) in [
                (24, mine),
                (32, other),
                (40, 2 + array_sectors),
                (48, last - array_sectors - 1),
                (72, array_lba),
            ] {
                h[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
            }
            h[56..72].fill(7);
            h[80..84].copy_from_slice(&(count as u32).to_le_bytes());
            h[84..88].copy_from_slice(&(entry as u32).to_le_bytes());
            h[88..92].copy_from_slice(&crc32fast::hash(&array).to_le_bytes());
            let crc = crc32fast::hash(h);
            h[16..20].copy_from_slice(&crc.to_le_bytes());
        }
        disk
    }

    fn parse(bytes: Vec<u8>) -> Result<Table> {
        read(&Disk::new(MemDevice::from_bytes(bytes)))
    }

    #[test]
    fn any_entry_and_sector_size_keeps_the_numbers() {
        for (sector, entry, count) in [(512, 128, 128), (4096, 128, 128), (512, 256, 200), (512, 136, 127)] {
            let plan = Plan { sector, size: 4 << 20, entry, count };
            let table = parse(image(&plan)).unwrap();
            assert_eq!(table.warnings, Vec::<String>::new());
            assert_eq!((table.scheme, table.sector_size as usize), ("gpt", sector));
            let [a, b] = &table.partitions[..] else { panic!("{table:?}") };
            assert_eq!((a.number, b.number), (1, 127));
            assert_eq!(a.span, Span::new(128 * sector as u64, 8 * sector as u64).unwrap());
            assert_eq!(a.label.as_deref(), Some("r\u{fffd}"));
            assert_eq!(a.type_name, Some("Linux filesystem"));
            assert_eq!(a.raw.len(), entry);
        }
    }

    #[test]
    fn one_damaged_header_is_a_warning_and_two_are_an_error() {
        let plan = Plan { sector: 512, size: 1 << 20, entry: 128, count: 128 };
        for damage in [512 + 40, 1024 + 56, 512] {
            let mut disk = image(&plan);
            disk[damage] ^= 1;
            let table = parse(disk.clone()).unwrap();
            assert_eq!(table.partitions.len(), 2);
            assert_eq!(table.warnings.len(), 1, "{table:?}");
            assert!(table.warnings[0].contains("the backup is used"), "{table:?}");
            let end = disk.len();
            disk[end - 512 + 50] ^= 1;
            let e = parse(disk).unwrap_err();
            assert!(matches!(e.fault(), Some(GptFault::NoHeader { .. })), "{e}");
        }
        let mut disk = image(&plan);
        let end = disk.len();
        disk[end - 512 + 50] ^= 1;
        let table = parse(disk).unwrap();
        assert!(table.warnings[0].contains("backup GPT is damaged"), "{table:?}");
    }

    #[test]
    fn a_grown_disk_is_read_from_either_header() {
        let plan = Plan { sector: 512, size: 1 << 20, entry: 128, count: 128 };
        let mut disk = image(&plan);
        disk.resize(2 << 20, 0);
        let table = parse(disk.clone()).unwrap();
        assert!(table.warnings[0].contains("not at the end"), "{table:?}");
        disk[520] ^= 1;
        assert_eq!(parse(disk.clone()).unwrap().partitions.len(), 2);
        disk[512..1024].fill(0);
        assert_eq!(parse(disk).unwrap().partitions.len(), 2);
    }

    #[test]
    fn sizes_that_choose_our_memory_are_refused() {
        let plan = Plan { sector: 512, size: 1 << 20, entry: 128, count: 128 };
        for (at, value) in [(80, u32::MAX), (84, u32::MAX), (84, 0), (84, 130), (80, 0), (12, 4096), (12, 0)]
        {
            let mut disk = image(&plan);
            disk.truncate(1 << 19);
            let h = &mut disk[512..1024];
            h[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            h[16..20].fill(0);
            let crc = crc32fast::hash(&h[..92]);
            h[16..20].copy_from_slice(&crc.to_le_bytes());
            let e = parse(disk).unwrap_err();
            assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        }
    }
}
