//! Structures as they lie on disk. All numbers are big endian.
//!
//! Field names are those of the specification (`docs/interop/qcow2.rst` in QEMU), which each section cites.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `QFI\xfb`.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// "Header": the 72 bytes that versions 2 and 3 share.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 4],
    pub(super) version: U32,
    /// Where the backing file's name stands in the first cluster; 0 means that there is none.
    pub(super) backing_file_offset: U64,
    pub(super) backing_file_size: U32,
    pub(super) cluster_bits: U32,
    /// Virtual size in bytes.
    pub(super) size: U64,
    /// 0 none, 1 AES, 2 LUKS.
    pub(super) crypt_method: U32,
    /// Entries of the active L1 table.
    pub(super) l1_size: U32,
    pub(super) l1_table_offset: U64,
    pub(super) refcount_table_offset: U64,
    pub(super) refcount_table_clusters: U32,
    pub(super) nb_snapshots: U32,
    pub(super) snapshots_offset: U64,
}
const _: () = assert!(size_of::<RawHeader>() == 72);

/// "Header": what version 3 adds behind [`RawHeader`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeaderV3 {
    pub(super) incompatible_features: U64,
    pub(super) compatible_features: U64,
    pub(super) autoclear_features: U64,
    /// Width of a reference count is `1 << refcount_order` bits.
    pub(super) refcount_order: U32,
    pub(super) header_length: U32,
}
const _: () = assert!(size_of::<RawHeader>() + size_of::<RawHeaderV3>() == 104);

/// Byte of the additional field `compression_type`.
pub(super) const COMPRESSION_TYPE_AT: usize = 104;

/// "Header extensions": what stands before each one's data, which are padded to a multiple of 8.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawExtension {
    pub(super) kind: U32,
    pub(super) length: U32,
}

/// End of the header extension area.
pub(super) const EXT_END: u32 = 0;
/// Backing file format name string.
pub(super) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Feature name table.
pub(super) const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
/// Bitmaps extension.
pub(super) const EXT_BITMAPS: u32 = 0x2385_2875;
/// Full disk encryption header pointer.
pub(super) const EXT_ENCRYPTION: u32 = 0x0537_be77;
/// External data file name string.
pub(super) const EXT_DATA_FILE: u32 = 0x4441_5441;

/// "Feature name table": one entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawFeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub(super) kind: u8,
    pub(super) bit: u8,
    /// Padded with zeroes.
    pub(super) name: [u8; 46],
}
const _: () = assert!(size_of::<RawFeatureName>() == 48);

/// "Bitmaps extension".
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawBitmaps {
    pub(super) nb_bitmaps: U32,
    pub(super) reserved: U32,
    pub(super) bitmap_directory_size: U64,
    pub(super) bitmap_directory_offset: U64,
}
const _: () = assert!(size_of::<RawBitmaps>() == 24);

/// "Bitmap directory": the fixed part of an entry; extra data, name and padding to 8 follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawBitmap {
    pub(super) bitmap_table_offset: U64,
    /// In entries.
    pub(super) bitmap_table_size: U32,
    /// Bit 0 in_use, 1 auto, 2 extra_data_compatible.
    pub(super) flags: U32,
    pub(super) kind: u8,
    pub(super) granularity_bits: u8,
    pub(super) name_size: U16,
    pub(super) extra_data_size: U32,
}
const _: () = assert!(size_of::<RawBitmap>() == 24);

/// "Snapshots": the fixed part of an entry; extra data, id, name and padding to 8 follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawSnapshot {
    pub(super) l1_table_offset: U64,
    pub(super) l1_size: U32,
    pub(super) id_size: U16,
    pub(super) name_size: U16,
    pub(super) date_sec: U32,
    pub(super) date_nsec: U32,
    pub(super) vm_clock_nsec: U64,
    pub(super) vm_state_size: U32,
    pub(super) extra_data_size: U32,
}
const _: () = assert!(size_of::<RawSnapshot>() == 40);

/// "Snapshots": the extra data that version 3 asks for.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawSnapshotExtra {
    pub(super) vm_state_size: U64,
    pub(super) disk_size: U64,
}

/// Bits 9 to 55 of L1 and L2 entries: a host offset.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63 of L1 and L2 entries: the reference count of what it names is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry: compressed.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry (version 3, without extended L2): reads as zeroes.
pub(super) const READS_ZERO: u64 = 1;
/// Bits 9 to 63 of a refcount table entry.
pub(super) const REFCOUNT_OFFSET_MASK: u64 = 0xffff_ffff_ffff_fe00;
