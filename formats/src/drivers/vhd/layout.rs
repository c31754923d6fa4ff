//! Structures as they lie on disk. All numbers are big endian; names are those of the "Virtual Hard Disk Image
//! Format Specification" (Microsoft, version 1.0, October 2006).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of everything.
pub(super) const SECTOR: u64 = 512;

/// `conectix`.
pub(super) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// `cxsparse`.
pub(super) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// Version 1.0 of both structures.
pub(super) const VERSION: u32 = 0x0001_0000;
/// Bit 1 of the features is reserved and always set.
pub(super) const FEATURE_RESERVED: u32 = 2;
/// Where there is no next structure. The text says 0xFFFFFFFF, every program writes 64 ones.
pub(super) const NOWHERE: u64 = u64::MAX;
/// A BAT entry without a block.
pub(super) const UNUSED: u32 = u32::MAX;
/// Time stamps count from the first second of 2000.
pub(super) const EPOCH: u64 = 946_684_800;

/// Size of the footer in bytes.
pub(super) const FOOTER_BYTES: usize = 512;
/// Size of the dynamic disk header in bytes.
pub(super) const HEADER_BYTES: usize = 1024;

/// "Hard Disk Footer Format": at the end of every image, and at the beginning of those that are not fixed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawFooter {
    pub(super) cookie: [u8; 8],
    pub(super) features: U32,
    pub(super) file_format_version: U32,
    /// Where the dynamic disk header is.
    pub(super) data_offset: U64,
    pub(super) time_stamp: U32,
    pub(super) creator_application: [u8; 4],
    pub(super) creator_version: U32,
    pub(super) creator_host_os: [u8; 4],
    /// Bytes when the image was made.
    pub(super) original_size: U64,
    /// Bytes now.
    pub(super) current_size: U64,
    pub(super) cylinders: U16,
    pub(super) heads: u8,
    pub(super) sectors_per_track: u8,
    pub(super) disk_type: U32,
    /// One's complement of the sum of all other bytes.
    pub(super) checksum: U32,
    pub(super) unique_id: [u8; 16],
    pub(super) saved_state: u8,
    pub(super) reserved: [u8; 427],
}
const _: () = assert!(size_of::<RawFooter>() == FOOTER_BYTES);

/// "Dynamic Disk Header Format".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) cookie: [u8; 8],
    pub(super) data_offset: U64,
    /// Where the BAT is.
    pub(super) table_offset: U64,
    pub(super) header_version: U32,
    pub(super) max_table_entries: U32,
    /// Bytes of data in a block.
    pub(super) block_size: U32,
    pub(super) checksum: U32,
    pub(super) parent_unique_id: [u8; 16],
    pub(super) parent_time_stamp: U32,
    pub(super) reserved: U32,
    /// UTF-16, big endian.
    pub(super) parent_unicode_name: [u8; 512],
    pub(super) parent_locators: [RawLocator; 8],
    pub(super) reserved_2: [u8; 256],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// "Parent Locator Entry".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLocator {
    pub(super) platform_code: [u8; 4],
    /// Room for the locator; in sectors by the text, in bytes as Microsoft's programs write it.
    pub(super) platform_data_space: U32,
    /// Bytes in use.
    pub(super) platform_data_length: U32,
    pub(super) reserved: U32,
    pub(super) platform_data_offset: U64,
}
const _: () = assert!(size_of::<RawLocator>() == 24);

/// A path relative to the image, in UTF-16, little endian.
pub(super) const W2RU: [u8; 4] = *b"W2ru";
/// An absolute path, in UTF-16, little endian.
pub(super) const W2KU: [u8; 4] = *b"W2ku";
/// A file URL, in UTF-8.
pub(super) const MACX: [u8; 4] = *b"MacX";
