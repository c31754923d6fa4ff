//! The structures of a VMDK as they lie on disk (VMware Virtual Disk Format 5.0; all little-endian).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offsets and sizes in headers and tables count sectors of this many bytes.
pub(super) const SECTOR: u64 = 512;
/// The magic of hosted sparse extents, as the bytes stand in the file.
pub(super) const MAGIC: [u8; 4] = *b"KDMV";
/// The magic of ESX Server sparse extents.
pub(super) const COWD_MAGIC: [u8; 4] = *b"COWD";
/// `gdOffset` of a stream whose header was written before its grain directory: see the footer.
pub(super) const GD_AT_END: u64 = u64::MAX;
/// The line that a descriptor file begins with.
pub(super) const DESCRIPTOR_MARK: &[u8] = b"# Disk DescriptorFile";

/// Flags of the header.
pub(super) mod flags {
    /// The four end-of-line characters are there to be checked.
    pub(crate) const NEWLINES: u32 = 1 << 0;
    /// A second grain directory with tables of its own exists.
    pub(crate) const REDUNDANT: u32 = 1 << 1;
    /// An entry of 1 in a grain table is a grain of zeroes.
    pub(crate) const ZEROED_GRAINS: u32 = 1 << 2;
    /// Grains are compressed.
    pub(crate) const COMPRESSED: u32 = 1 << 16;
    /// Markers say what follows in the stream.
    pub(crate) const MARKERS: u32 = 1 << 17;
}

/// Header of a hosted sparse extent ("SparseExtentHeader").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSparseHeader {
    pub(super) magic: [u8; 4],
    pub(super) version: U32,
    pub(super) flags: U32,
    /// Sectors of the guest's disk in this extent.
    pub(super) capacity: U64,
    /// Sectors in a grain: a power of two.
    pub(super) grain_size: U64,
    /// Sector of the embedded descriptor; 0 if there is none.
    pub(super) descriptor_offset: U64,
    pub(super) descriptor_size: U64,
    pub(super) num_gtes_per_gt: U32,
    /// Sector of the redundant grain directory.
    pub(super) rgd_offset: U64,
    pub(super) gd_offset: U64,
    /// Sectors that metadata take before the first grain.
    pub(super) over_head: U64,
    /// Not zero while the extent is open for writing.
    pub(super) unclean_shutdown: u8,
    /// `\n`, a space, `\r`, `\n`: what a text-mode transfer breaks.
    pub(super) newlines: [u8; 4],
    /// 0 is none, 1 is deflate (zlib).
    pub(super) compress_algorithm: U16,
    pub(super) pad: [u8; 433],
}

/// Header of an ESX Server sparse extent ("COWDisk_Header"); what follows is of no use here.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawCowdHeader {
    pub(super) magic: [u8; 4],
    pub(super) version: U32,
    pub(super) flags: U32,
    pub(super) num_sectors: U32,
    pub(super) grain_size: U32,
    /// Sector of the grain directory.
    pub(super) gd_offset: U32,
    pub(super) num_gd_entries: U32,
    /// First sector that is not allocated.
    pub(super) free_sector: U32,
}

/// What stands before a compressed grain.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawGrainMarker {
    /// First sector of the grain in the guest's disk.
    pub(super) lba: U64,
    /// Bytes of compressed data.
    pub(super) size: U32,
}

/// What stands before metadata in a stream.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawMarker {
    /// Sectors of metadata that follow.
    pub(super) num_sectors: U64,
    /// 0 tells a marker of metadata from a grain.
    pub(super) size: U32,
    /// See [`marker`].
    pub(super) kind: U32,
    pub(super) pad: [u8; 496],
}

/// Kinds of markers.
pub(super) mod marker {
    /// Nothing follows.
    pub(crate) const END_OF_STREAM: u32 = 0;
    /// A grain table follows.
    pub(crate) const GRAIN_TABLE: u32 = 1;
    /// The grain directory follows.
    pub(crate) const GRAIN_DIRECTORY: u32 = 2;
    /// The footer follows: the header again, with the place of the grain directory.
    pub(crate) const FOOTER: u32 = 3;
}

const _: () = assert!(size_of::<RawSparseHeader>() == 512);
const _: () = assert!(size_of::<RawMarker>() == 512);
const _: () = assert!(size_of::<RawGrainMarker>() == 12);
const _: () = assert!(size_of::<RawCowdHeader>() == 32);
