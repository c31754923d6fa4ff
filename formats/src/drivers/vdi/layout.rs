//! Structures as they lie on disk. All numbers are little endian.
//!
//! There is no specification: field names are those that VirtualBox gives them in conversation, spelled out. The
//! layout is that of version 1.1, which every VirtualBox since 2007 writes.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit that everything begins at a multiple of.
pub(super) const SECTOR: u64 = 512;
/// Behind the text at the beginning.
pub(super) const SIGNATURE_AT: usize = 64;
/// The four bytes that tell a VDI.
pub(super) const SIGNATURE: u32 = 0xbeda_107f;
/// Version 1.1.
pub(super) const VERSION: u32 = 0x0001_0001;
/// A block that was never written: the parent shows through.
pub(super) const FREE: u32 = u32::MAX;
/// A block that reads as zeroes.
pub(super) const ZERO: u32 = u32::MAX - 1;
/// "Fill new blocks with zeroes", the only known flag; it means nothing once the image is there.
pub(super) const FLAG_ZERO_EXPAND: u32 = 1;

/// Text, signature and header: all that can change lies in the first sector.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// For eyes only.
    pub(super) text: [u8; 64],
    pub(super) signature: U32,
    pub(super) version: U32,
    /// Size of what follows from here on in bytes: 384 or 400.
    pub(super) header_size: U32,
    /// 1 dynamic, 2 fixed, 3 undo, 4 differencing.
    pub(super) image_type: U32,
    pub(super) flags: U32,
    pub(super) comment: [u8; 256],
    /// Where the block map begins.
    pub(super) offset_blocks: U32,
    /// Where block 0 of the file begins.
    pub(super) offset_data: U32,
    /// Cylinders, heads, sectors; not used.
    pub(super) legacy_geometry: [U32; 3],
    pub(super) sector_size: U32,
    pub(super) unused: U32,
    /// In bytes.
    pub(super) disk_size: U64,
    /// Data in a block, in bytes.
    pub(super) block_size: U32,
    /// Bytes in the file before the data of each block.
    pub(super) block_extra: U32,
    pub(super) blocks: U32,
    pub(super) blocks_allocated: U32,
    pub(super) uuid_create: [u8; 16],
    /// Another one after each session that changes the disk.
    pub(super) uuid_modify: [u8; 16],
    /// The parent's `uuid_create`.
    pub(super) uuid_linkage: [u8; 16],
    /// The parent's `uuid_modify` when the difference was begun.
    pub(super) uuid_parent_modify: [u8; 16],
    /// Cylinders, heads, sectors, bytes in a sector; there where `header_size` says so.
    pub(super) geometry: [U32; 4],
    pub(super) rest: [u8; 40],
}
const _: () = assert!(size_of::<RawHeader>() == 512);
