//! The structures of a tar as they lie in the file: POSIX ustar (IEEE Std 1003.1, pax) and GNU's tail of it.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Everything in a tar starts at a multiple of this many bytes.
pub(super) const BLOCK: u64 = 512;

/// One header. Numbers are octal digits, or big-endian binary where the first bit is set (GNU).
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) name: [u8; 100],
    pub(super) mode: [u8; 8],
    pub(super) uid: [u8; 8],
    pub(super) gid: [u8; 8],
    /// Bytes that follow the header in the archive (less than the member's size where it is sparse).
    pub(super) size: [u8; 12],
    pub(super) mtime: [u8; 12],
    /// Sum of all bytes of the header, these eight counted as spaces.
    pub(super) chksum: [u8; 8],
    pub(super) typeflag: u8,
    pub(super) linkname: [u8; 100],
    /// `ustar` and a zero byte, or `ustar ` (GNU).
    pub(super) magic: [u8; 6],
    pub(super) version: [u8; 2],
    pub(super) uname: [u8; 32],
    pub(super) gname: [u8; 32],
    pub(super) devmajor: [u8; 8],
    pub(super) devminor: [u8; 8],
    /// POSIX: 155 bytes that go before the name with a slash. GNU: [`RawGnuTail`].
    pub(super) tail: [u8; 167],
}

/// GNU's use of the header's tail.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawGnuTail {
    pub(super) atime: [u8; 12],
    pub(super) ctime: [u8; 12],
    pub(super) offset: [u8; 12],
    pub(super) longnames: [u8; 4],
    pub(super) unused: u8,
    /// The first regions of a sparse member; an empty one ends the list.
    pub(super) sparse: [RawRegion; 4],
    /// 1 when a [`RawSparseBlock`] follows the header.
    pub(super) isextended: u8,
    /// Size of a sparse member, holes included.
    pub(super) realsize: [u8; 12],
    pub(super) pad: [u8; 17],
}

/// One region of data in a sparse member.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawRegion {
    /// Where it begins in the member.
    pub(super) offset: [u8; 12],
    pub(super) numbytes: [u8; 12],
}

/// More regions, in a block of their own.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSparseBlock {
    pub(super) sparse: [RawRegion; 21],
    /// 1 when another one follows.
    pub(super) isextended: u8,
    pub(super) pad: [u8; 7],
}

const _: () = assert!(size_of::<RawHeader>() == 512);
const _: () = assert!(size_of::<RawGnuTail>() == 167);
const _: () = assert!(size_of::<RawSparseBlock>() == 512);
