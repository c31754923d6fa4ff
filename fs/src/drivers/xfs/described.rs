//! Where every block with checksums says what it is: checksum, last change, filesystem, place and owner.

use core::mem::offset_of;

use super::layout::{
    RawAgf, RawAgfl, RawAgi, RawDaInfo, RawDirHead, RawLongBlock, RawShortBlock, RawSuperblock, RawSymlink,
};

/// Where the fields of one kind of block lie that every block with checksums has.
#[derive(Clone, Copy, Debug)]
pub(super) struct SelfDescription {
    /// Offset of the checksum.
    pub(super) crc: usize,
    /// Offset of the log sequence number of the last change.
    pub(super) lsn: usize,
    /// Offset of the filesystem's UUID; none in the superblock, which has two.
    pub(super) uuid: Option<usize>,
    /// Offset of the block's own place in 512-byte units; none in structures at fixed places.
    pub(super) blkno: Option<usize>,
    /// The inode or group it belongs to.
    pub(super) owner: OwnerField,
}

/// Where a block names its owner.
#[derive(Clone, Copy, Debug)]
pub(super) enum OwnerField {
    /// Nowhere.
    None,
    /// Four bytes at this offset: an allocation group.
    Group(usize),
    /// Eight bytes at this offset: an inode.
    Inode(usize),
}

macro_rules! description {
    ($raw:ty, $crc:tt, $lsn:tt, $uuid:expr, $blkno:expr, $owner:expr) => {
        SelfDescription {
            crc: offset_of!($raw, $crc),
            lsn: offset_of!($raw, $lsn),
            uuid: $uuid,
            blkno: $blkno,
            owner: $owner,
        }
    };
}

/// Of a superblock.
pub(super) const SB_SELF: SelfDescription =
    description!(RawSuperblock, sb_crc, sb_lsn, None, None, OwnerField::None);
/// Of an AGF.
pub(super) const AGF_SELF: SelfDescription =
    description!(RawAgf, agf_crc, agf_lsn, Some(offset_of!(RawAgf, agf_uuid)), None, OwnerField::None);
/// Of an AGI.
pub(super) const AGI_SELF: SelfDescription =
    description!(RawAgi, agi_crc, agi_lsn, Some(offset_of!(RawAgi, agi_uuid)), None, OwnerField::None);
/// Of an AGFL.
pub(super) const AGFL_SELF: SelfDescription =
    description!(RawAgfl, agfl_crc, agfl_lsn, Some(offset_of!(RawAgfl, agfl_uuid)), None, OwnerField::None);
/// Of a btree block within a group.
pub(super) const SHORT_SELF: SelfDescription = description!(
    RawShortBlock,
    bb_crc,
    bb_lsn,
    Some(offset_of!(RawShortBlock, bb_uuid)),
    Some(offset_of!(RawShortBlock, bb_blkno)),
    OwnerField::Group(offset_of!(RawShortBlock, bb_owner))
);
/// Of a block of an extent tree.
pub(super) const LONG_SELF: SelfDescription = description!(
    RawLongBlock,
    bb_crc,
    bb_lsn,
    Some(offset_of!(RawLongBlock, bb_uuid)),
    Some(offset_of!(RawLongBlock, bb_blkno)),
    OwnerField::Inode(offset_of!(RawLongBlock, bb_owner))
);
/// Of a block of a hash tree.
pub(super) const DA_SELF: SelfDescription = description!(
    RawDaInfo,
    crc,
    lsn,
    Some(offset_of!(RawDaInfo, uuid)),
    Some(offset_of!(RawDaInfo, blkno)),
    OwnerField::Inode(offset_of!(RawDaInfo, owner))
);
/// Of a directory data or free block.
pub(super) const DIR_SELF: SelfDescription = description!(
    RawDirHead,
    crc,
    lsn,
    Some(offset_of!(RawDirHead, uuid)),
    Some(offset_of!(RawDirHead, blkno)),
    OwnerField::Inode(offset_of!(RawDirHead, owner))
);
/// Of a block of a symbolic link or of an attribute's value, which are alike.
pub(super) const REMOTE_SELF: SelfDescription = description!(
    RawSymlink,
    sl_crc,
    sl_lsn,
    Some(offset_of!(RawSymlink, sl_uuid)),
    Some(offset_of!(RawSymlink, sl_blkno)),
    OwnerField::Inode(offset_of!(RawSymlink, sl_owner))
);
