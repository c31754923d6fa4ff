//! Structures as they lie on disk. All numbers are little endian; names are those of \[MS-VHDX\], sections are cited.

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::BlockSize;
use crate::limits::{KIB, MIB};

/// Unit of all places in the file: 1 MiB.
pub(super) const MEGABYTE: BlockSize = match BlockSize::from_shift(20) {
    Some(size) => size,
    None => panic!("20 is below 63"),
};
/// Unit of the log, and of what it changes: 4 KiB.
pub(super) const PAGE: BlockSize = match BlockSize::from_shift(12) {
    Some(size) => size,
    None => panic!("12 is below 63"),
};
/// `PAGE` as a length in memory.
pub(super) const PAGE_LEN: usize = 4096;

/// 2.2.1: `vhdxfile`.
pub(super) const FILE_SIGNATURE: [u8; 8] = *b"vhdxfile";
/// 2.2.2: where the two headers lie.
pub(super) const HEADERS_AT: [u64; 2] = [64 * KIB, 128 * KIB];
/// 2.2.2: bytes of a header that its checksum covers.
pub(super) const HEADER_BYTES: u64 = 4 * KIB;
/// 2.2.3: where the two region tables lie.
pub(super) const REGION_TABLES_AT: [u64; 2] = [192 * KIB, 256 * KIB];
/// 2.2.3: bytes of a region table, and of the table in the metadata region.
pub(super) const TABLE_BYTES: u64 = 64 * KIB;
/// 2.2: the header section.
pub(super) const HEADER_SECTION: u64 = MIB;
/// 2.3: the log changes nothing before this.
pub(super) const LOGGED_FROM: u64 = 192 * KIB;
/// 2.2.3.1, 2.6.1.1: entries of the tables.
pub(super) const ENTRIES_MAX: u32 = 2047;

/// 2.2.2 "Headers".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// `head`.
    pub(super) signature: [u8; 4],
    /// CRC-32C of the 4 KiB, this field as zero.
    pub(super) checksum: U32,
    pub(super) sequence_number: U64,
    pub(super) file_write_guid: [u8; 16],
    pub(super) data_write_guid: [u8; 16],
    /// Entries of the log count only if they carry this; zero is an empty log.
    pub(super) log_guid: [u8; 16],
    pub(super) log_version: U16,
    pub(super) version: U16,
    pub(super) log_length: U32,
    pub(super) log_offset: U64,
    pub(super) reserved: [u8; 4016],
}
const _: () = assert!(size_of::<RawHeader>() == PAGE_LEN);

/// 2.2.3.1 "Region Table Header".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRegionTable {
    /// `regi`.
    pub(super) signature: [u8; 4],
    /// CRC-32C of the 64 KiB, this field as zero.
    pub(super) checksum: U32,
    pub(super) entry_count: U32,
    pub(super) reserved: U32,
}
const _: () = assert!(size_of::<RawRegionTable>() == 16);

/// 2.2.3.2 "Region Table Entry".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRegion {
    pub(super) guid: [u8; 16],
    pub(super) file_offset: U64,
    pub(super) length: U32,
    /// Bit 0: who does not know the region must not open the file.
    pub(super) required: U32,
}
const _: () = assert!(size_of::<RawRegion>() == 32);

/// 2.3.1.1 "Entry Header".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLogEntry {
    /// `loge`.
    pub(super) signature: [u8; 4],
    /// CRC-32C of the whole entry, this field as zero.
    pub(super) checksum: U32,
    pub(super) entry_length: U32,
    /// Where in the log the sequence begins that this entry is the last of.
    pub(super) tail: U32,
    pub(super) sequence_number: U64,
    pub(super) descriptor_count: U32,
    pub(super) reserved: U32,
    pub(super) log_guid: [u8; 16],
    /// The file was at least this long, on stable storage, when the entry was written.
    pub(super) flushed_file_offset: U64,
    /// The file must be at least this long when the entry is replayed.
    pub(super) last_file_offset: U64,
}
const _: () = assert!(size_of::<RawLogEntry>() == 64);

/// 2.3.1.2 and 2.3.1.3: "Zero Descriptor" and "Data Descriptor".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawDescriptor {
    /// `zero` or `desc`.
    pub(super) signature: [u8; 4],
    /// The last 4 bytes of the page.
    pub(super) trailing_bytes: [u8; 4],
    /// The first 8 bytes of the page, or how many bytes are zeroed.
    pub(super) leading_bytes: [u8; 8],
    pub(super) file_offset: U64,
    pub(super) sequence_number: U64,
}
const _: () = assert!(size_of::<RawDescriptor>() == 32);

/// 2.3.1.4 "Data Sector": all of a page but what stands in its descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLogData {
    /// `data`.
    pub(super) signature: [u8; 4],
    pub(super) sequence_high: U32,
    pub(super) data: [u8; 4084],
    pub(super) sequence_low: U32,
}
const _: () = assert!(size_of::<RawLogData>() == PAGE_LEN);

pub(super) const HEADER: [u8; 4] = *b"head";
pub(super) const REGION: [u8; 4] = *b"regi";
pub(super) const LOG_ENTRY: [u8; 4] = *b"loge";
pub(super) const LOG_ZERO: [u8; 4] = *b"zero";
pub(super) const LOG_DESC: [u8; 4] = *b"desc";
pub(super) const LOG_DATA: [u8; 4] = *b"data";
pub(super) const METADATA: [u8; 8] = *b"metadata";

/// 2.6.1.1 "Metadata Table Header".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawMetadataTable {
    pub(super) signature: [u8; 8],
    pub(super) reserved: U16,
    pub(super) entry_count: U16,
    pub(super) reserved_2: [u8; 20],
}
const _: () = assert!(size_of::<RawMetadataTable>() == 32);

/// 2.6.1.2 "Metadata Table Entry".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawMetadata {
    pub(super) item_id: [u8; 16],
    /// From the beginning of the region.
    pub(super) offset: U32,
    pub(super) length: U32,
    /// Bit 0 user, 1 virtual disk, 2 required.
    pub(super) flags: U32,
    pub(super) reserved: U32,
}
const _: () = assert!(size_of::<RawMetadata>() == 32);

pub(super) const METADATA_USER: u32 = 1;
pub(super) const METADATA_DISK: u32 = 2;
pub(super) const METADATA_REQUIRED: u32 = 4;

/// 2.6.2.1 "File Parameters".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawFileParameters {
    pub(super) block_size: U32,
    /// Bit 0: blocks stay allocated (fixed); bit 1: there is a parent.
    pub(super) flags: U32,
}
const _: () = assert!(size_of::<RawFileParameters>() == 8);

pub(super) const LEAVE_ALLOCATED: u32 = 1;
pub(super) const HAS_PARENT: u32 = 2;

/// 2.6.2.6.1 "Parent Locator Header".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLocator {
    pub(super) locator_type: [u8; 16],
    pub(super) reserved: U16,
    pub(super) key_value_count: U16,
}
const _: () = assert!(size_of::<RawLocator>() == 20);

/// 2.6.2.6.2 "Parent Locator Entry": places of two texts in UTF-16, from the beginning of the item.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawPair {
    pub(super) key_offset: U32,
    pub(super) value_offset: U32,
    pub(super) key_length: U16,
    pub(super) value_length: U16,
}
const _: () = assert!(size_of::<RawPair>() == 12);

/// 2.2.3.2: known regions.
pub(super) const BAT_REGION: Uuid = Uuid::from_u128(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
pub(super) const METADATA_REGION: Uuid = Uuid::from_u128(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);
/// 2.6.2: known items of metadata.
pub(super) const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
pub(super) const VIRTUAL_DISK_SIZE: Uuid = Uuid::from_u128(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
pub(super) const VIRTUAL_DISK_ID: Uuid = Uuid::from_u128(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
pub(super) const LOGICAL_SECTOR_SIZE: Uuid = Uuid::from_u128(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
pub(super) const PHYSICAL_SECTOR_SIZE: Uuid = Uuid::from_u128(0xcda348c7_445d_4471_9cc9_e9885251c556);
pub(super) const PARENT_LOCATOR: Uuid = Uuid::from_u128(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);
/// 2.6.2.6.3: a parent that is a VHDX.
pub(super) const VHDX_LOCATOR: Uuid = Uuid::from_u128(0xb04aefb7_d19e_4a81_b789_25b8e9445913);
