//! XFS structures as they lie on disk. Specification: "XFS Algorithms & Data Structures", 3rd edition, and the
//! additions of Linux 5.10 (bigtime, inobtcount), 5.19 (nrext64), 6.10 (exchange-range, parent pointers).
//!
//! Everything is big-endian but the checksums; log items are in the byte order of the host that wrote them, which
//! on every machine that makes images is little-endian. Field names are the specification's.

use core::mem::offset_of;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::little_endian as le;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A UUID as bytes.
pub(super) type RawUuid = [u8; 16];

macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub(super) struct $name {
                $($(#[$fdoc])* pub(super) $field: $ty,)*
            }
            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

/// `XFSB`
pub(super) const SB_MAGIC: u32 = 0x5846_5342;
/// `XAGF`
pub(super) const AGF_MAGIC: u32 = 0x5841_4746;
/// `XAGI`
pub(super) const AGI_MAGIC: u32 = 0x5841_4749;
/// `XAFL`
pub(super) const AGFL_MAGIC: u32 = 0x5841_464c;
/// Free space by block: `ABTB`, with checksums `AB3B`.
pub(super) const BNOBT_MAGIC: [u32; 2] = [0x4142_5442, 0x4142_3342];
/// Free space by length: `ABTC`, `AB3C`.
pub(super) const CNTBT_MAGIC: [u32; 2] = [0x4142_5443, 0x4142_3343];
/// Inodes: `IABT`, `IAB3`.
pub(super) const INOBT_MAGIC: [u32; 2] = [0x4941_4254, 0x4941_4233];
/// Chunks with free inodes: `FIBT`, `FIB3`.
pub(super) const FINOBT_MAGIC: [u32; 2] = [0x4649_4254, 0x4649_4233];
/// Owners of blocks: `RMB3`.
pub(super) const RMAPBT_MAGIC: u32 = 0x524d_4233;
/// Shared blocks: `R3FC`.
pub(super) const REFCOUNTBT_MAGIC: u32 = 0x5233_4643;
/// Extents of a fork: `BMAP`, `BMA3`.
pub(super) const BMBT_MAGIC: [u32; 2] = [0x424d_4150, 0x424d_4133];
/// `IN`
pub(super) const DINODE_MAGIC: u16 = 0x494e;
/// `XSLM`
pub(super) const SYMLINK_MAGIC: u32 = 0x5853_4c4d;
/// `XARM`
pub(super) const ATTR_REMOTE_MAGIC: u32 = 0x5841_524d;
/// Inner block of a directory's or attribute fork's hash tree, without and with checksums.
pub(super) const DA_NODE_MAGIC: [u16; 2] = [0xfebe, 0x3ebe];
/// Attribute leaf.
pub(super) const ATTR_LEAF_MAGIC: [u16; 2] = [0xfbee, 0x3bee];
/// The only leaf of a directory.
pub(super) const DIR_LEAF1_MAGIC: [u16; 2] = [0xd2f1, 0x3df1];
/// One of several leaves of a directory.
pub(super) const DIR_LEAFN_MAGIC: [u16; 2] = [0xd2ff, 0x3dff];
/// Directory of one block: `XD2B`, `XDB3`.
pub(super) const DIR_BLOCK_MAGIC: [u32; 2] = [0x5844_3242, 0x5844_4233];
/// Data block of a larger directory: `XD2D`, `XDD3`.
pub(super) const DIR_DATA_MAGIC: [u32; 2] = [0x5844_3244, 0x5844_4433];
/// Free index of a directory: `XD2F`, `XDF3`.
pub(super) const DIR_FREE_MAGIC: [u32; 2] = [0x5844_3246, 0x5844_4633];
/// First word of a log record; no block of a log may otherwise start with it.
pub(super) const LOG_MAGIC: u32 = 0xfeed_babe;
/// `TRAN` as a little-endian host writes it.
pub(super) const TRANS_MAGIC: u32 = 0x5452_414e;
/// `DQ`
pub(super) const DQUOT_MAGIC: u16 = 0x4451;

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

layouts! {
    /// Superblock: sector 0 of every allocation group; the first is the one in use.
    RawSuperblock = 264 {
        sb_magicnum: U32,
        sb_blocksize: U32,
        sb_dblocks: U64,
        sb_rblocks: U64,
        sb_rextents: U64,
        sb_uuid: RawUuid,
        sb_logstart: U64,
        sb_rootino: U64,
        sb_rbmino: U64,
        sb_rsumino: U64,
        sb_rextsize: U32,
        sb_agblocks: U32,
        sb_agcount: U32,
        sb_rbmblocks: U32,
        sb_logblocks: U32,
        sb_versionnum: U16,
        sb_sectsize: U16,
        sb_inodesize: U16,
        sb_inopblock: U16,
        sb_fname: [u8; 12],
        sb_blocklog: u8,
        sb_sectlog: u8,
        sb_inodelog: u8,
        sb_inopblog: u8,
        sb_agblklog: u8,
        sb_rextslog: u8,
        sb_inprogress: u8,
        sb_imax_pct: u8,
        sb_icount: U64,
        sb_ifree: U64,
        sb_fdblocks: U64,
        sb_frextents: U64,
        sb_uquotino: U64,
        sb_gquotino: U64,
        sb_qflags: U16,
        sb_flags: u8,
        sb_shared_vn: u8,
        sb_inoalignmt: U32,
        sb_unit: U32,
        sb_width: U32,
        sb_dirblklog: u8,
        sb_logsectlog: u8,
        sb_logsectsize: U16,
        sb_logsunit: U32,
        sb_features2: U32,
        sb_bad_features2: U32,
        sb_features_compat: U32,
        sb_features_ro_compat: U32,
        sb_features_incompat: U32,
        sb_features_log_incompat: U32,
        sb_crc: le::U32,
        sb_spino_align: U32,
        sb_pquotino: U64,
        sb_lsn: U64,
        sb_meta_uuid: RawUuid,
    }

    /// Free space of an allocation group: its sector 1.
    RawAgf = 224 {
        agf_magicnum: U32,
        agf_versionnum: U32,
        agf_seqno: U32,
        agf_length: U32,
        agf_bno_root: U32,
        agf_cnt_root: U32,
        agf_rmap_root: U32,
        agf_bno_level: U32,
        agf_cnt_level: U32,
        agf_rmap_level: U32,
        agf_flfirst: U32,
        agf_fllast: U32,
        agf_flcount: U32,
        agf_freeblks: U32,
        agf_longest: U32,
        agf_btreeblks: U32,
        agf_uuid: RawUuid,
        agf_rmap_blocks: U32,
        agf_refcount_blocks: U32,
        agf_refcount_root: U32,
        agf_refcount_level: U32,
        agf_spare64: [U64; 14],
        agf_lsn: U64,
        agf_crc: le::U32,
        agf_spare2: U32,
    }

    /// Inodes of an allocation group: its sector 2.
    RawAgi = 344 {
        agi_magicnum: U32,
        agi_versionnum: U32,
        agi_seqno: U32,
        agi_length: U32,
        agi_count: U32,
        agi_root: U32,
        agi_level: U32,
        agi_freecount: U32,
        agi_newino: U32,
        agi_dirino: U32,
        agi_unlinked: [U32; 64],
        agi_uuid: RawUuid,
        agi_crc: le::U32,
        agi_pad32: U32,
        agi_lsn: U64,
        agi_free_root: U32,
        agi_free_level: U32,
        agi_iblocks: U32,
        agi_fblocks: U32,
    }

    /// Header of a group's list of spare blocks, its sector 3; without checksums the list has no header.
    RawAgfl = 36 {
        agfl_magicnum: U32,
        agfl_seqno: U32,
        agfl_uuid: RawUuid,
        agfl_lsn: U64,
        agfl_crc: le::U32,
    }

    /// What every btree block begins with.
    RawBtreeHead = 8 {
        bb_magic: U32,
        bb_level: U16,
        bb_numrecs: U16,
    }

    /// Block of a btree within a group, without checksums.
    RawShortBlock4 = 16 {
        head: RawBtreeHead,
        bb_leftsib: U32,
        bb_rightsib: U32,
    }

    /// Block of a btree within a group.
    RawShortBlock = 56 {
        head: RawBtreeHead,
        bb_leftsib: U32,
        bb_rightsib: U32,
        bb_blkno: U64,
        bb_lsn: U64,
        bb_uuid: RawUuid,
        bb_owner: U32,
        bb_crc: le::U32,
    }

    /// Block of a fork's extent tree, without checksums.
    RawLongBlock4 = 24 {
        head: RawBtreeHead,
        bb_leftsib: U64,
        bb_rightsib: U64,
    }

    /// Block of a fork's extent tree.
    RawLongBlock = 72 {
        head: RawBtreeHead,
        bb_leftsib: U64,
        bb_rightsib: U64,
        bb_blkno: U64,
        bb_lsn: U64,
        bb_uuid: RawUuid,
        bb_owner: U64,
        bb_crc: le::U32,
        bb_pad: U32,
    }

    /// Root of an extent tree, inside the inode.
    RawBmdrBlock = 4 {
        bb_level: U16,
        bb_numrecs: U16,
    }

    /// Record and key of both free space trees.
    RawAllocRec = 8 {
        ar_startblock: U32,
        ar_blockcount: U32,
    }

    /// Record of the inode trees. With sparse inodes `ir_holemask`, `ir_count` and `ir_freecount` hold what they
    /// say; without, the four bytes are one count of free inodes.
    RawInobtRec = 16 {
        ir_startino: U32,
        ir_holemask: U16,
        ir_count: u8,
        ir_freecount: u8,
        ir_free: U64,
    }

    /// Record of the reverse map.
    RawRmapRec = 24 {
        rm_startblock: U32,
        rm_blockcount: U32,
        rm_owner: U64,
        rm_offset: U64,
    }

    /// Key of the reverse map; inner blocks have two for each pointer, the lowest and the highest below it.
    RawRmapKey = 20 {
        rm_startblock: U32,
        rm_owner: U64,
        rm_offset: U64,
    }

    /// Record of the reference counts; the highest bit of `rc_startblock` marks copies in the making.
    RawRefcountRec = 12 {
        rc_startblock: U32,
        rc_blockcount: U32,
        rc_refcount: U32,
    }

    /// Extent of a fork: flag 1 bit, file offset 54, start block 52, length 21.
    RawBmbtRec = 16 {
        l0: U64,
        l1: U64,
    }

    /// Inode; without checksums it ends before `di_crc`.
    RawDinode = 176 {
        di_magic: U16,
        di_mode: U16,
        di_version: u8,
        di_format: u8,
        di_onlink: U16,
        di_uid: U32,
        di_gid: U32,
        di_nlink: U32,
        di_projid_lo: U16,
        di_projid_hi: U16,
        /// Extents of the data fork, if `NREXT64` is set.
        di_big_nextents: U64,
        di_atime: U64,
        di_mtime: U64,
        di_ctime: U64,
        di_size: U64,
        di_nblocks: U64,
        di_extsize: U32,
        /// With `NREXT64`: extents of the attribute fork.
        di_nextents: U32,
        di_anextents: U16,
        di_forkoff: u8,
        di_aformat: u8,
        di_dmevmask: U32,
        di_dmstate: U16,
        di_flags: U16,
        di_gen: U32,
        di_next_unlinked: U32,
        di_crc: le::U32,
        di_changecount: U64,
        di_lsn: U64,
        di_flags2: U64,
        di_cowextsize: U32,
        di_pad2: [u8; 12],
        di_crtime: U64,
        di_ino: U64,
        di_uuid: RawUuid,
    }

    /// Header of a symbolic link's target outside the inode; only with checksums.
    RawSymlink = 56 {
        sl_magic: U32,
        sl_offset: U32,
        sl_bytes: U32,
        sl_crc: le::U32,
        sl_uuid: RawUuid,
        sl_owner: U64,
        sl_blkno: U64,
        sl_lsn: U64,
    }

    /// Header of one block of an attribute's value outside the tree; only with checksums.
    RawAttrRemote = 56 {
        rm_magic: U32,
        rm_offset: U32,
        rm_bytes: U32,
        rm_crc: le::U32,
        rm_uuid: RawUuid,
        rm_owner: U64,
        rm_blkno: U64,
        rm_lsn: U64,
    }

    /// What blocks of a hash tree begin with, without checksums.
    RawDaInfo4 = 12 {
        forw: U32,
        back: U32,
        magic: U16,
        pad: U16,
    }

    /// What blocks of a hash tree begin with.
    RawDaInfo = 56 {
        hdr: RawDaInfo4,
        crc: le::U32,
        blkno: U64,
        lsn: U64,
        uuid: RawUuid,
        owner: U64,
    }

    /// Behind the info of an inner block; with checksums four more bytes of padding follow.
    RawDaNodeTail = 4 {
        count: U16,
        level: U16,
    }

    /// Entry of an inner block: the highest hash below, and the block.
    RawDaNodeEntry = 8 {
        hashval: U32,
        before: U32,
    }

    /// Behind the info of a directory leaf; with checksums four more bytes of padding follow.
    RawDirLeafTail = 4 {
        count: U16,
        stale: U16,
    }

    /// Entry of a directory leaf: hash of a name, and the entry's place in units of 8 bytes.
    RawDirLeafEntry = 8 {
        hashval: U32,
        address: U32,
    }

    /// One of the three largest free stretches of a directory data block.
    RawDirFree = 4 {
        offset: U16,
        length: U16,
    }

    /// Header of a directory data block, without checksums.
    RawDirData4 = 16 {
        magic: U32,
        bestfree: [RawDirFree; 3],
    }

    /// What directory data and free blocks begin with.
    RawDirHead = 48 {
        magic: U32,
        crc: le::U32,
        blkno: U64,
        lsn: U64,
        uuid: RawUuid,
        owner: U64,
    }

    /// Header of a directory data block.
    RawDirData = 64 {
        hdr: RawDirHead,
        bestfree: [RawDirFree; 3],
        pad: U32,
    }

    /// Header of a block of a directory's free index; two bytes for each data block from `firstdb` on follow.
    RawDirFreeHead = 64 {
        hdr: RawDirHead,
        firstdb: U32,
        nvalid: U32,
        nused: U32,
        pad: U32,
    }

    /// End of a directory of one block; the leaf entries lie before it.
    RawDirBlockTail = 8 {
        count: U32,
        stale: U32,
    }

    /// Start of a directory entry: the name, the kind of node (with `ftype`) and the entry's own offset follow,
    /// padded to 8 bytes in front of the offset.
    RawDirEntry = 9 {
        inumber: U64,
        namelen: u8,
    }

    /// Start of a free stretch of a directory data block; its own offset is its last two bytes.
    RawDirUnused = 4 {
        freetag: U16,
        length: U16,
    }

    /// Start of a directory inside the inode; with `i8count` the parent takes 8 bytes, otherwise 4.
    RawDirShort = 2 {
        count: u8,
        i8count: u8,
    }

    /// Start of an entry of a directory inside the inode; name, kind and inode number follow.
    RawDirShortEntry = 3 {
        namelen: u8,
        offset: U16,
    }

    /// Start of attributes inside the inode.
    RawAttrShort = 4 {
        totsize: U16,
        count: u8,
        padding: u8,
    }

    /// Start of one of them; name and value follow.
    RawAttrShortEntry = 3 {
        namelen: u8,
        valuelen: u8,
        flags: u8,
    }

    /// Free stretch of an attribute leaf.
    RawAttrFree = 4 {
        base: U16,
        size: U16,
    }

    /// Behind the info of an attribute leaf; with checksums four more bytes of padding follow.
    RawAttrLeafTail = 20 {
        count: U16,
        usedbytes: U16,
        firstused: U16,
        holes: u8,
        pad1: u8,
        freemap: [RawAttrFree; 3],
    }

    /// Entry of an attribute leaf.
    RawAttrLeafEntry = 8 {
        hashval: U32,
        nameidx: U16,
        flags: u8,
        pad2: u8,
    }

    /// Start of a name with its value in the leaf; both follow.
    RawAttrLocal = 3 {
        valuelen: U16,
        namelen: u8,
    }

    /// Start of a name whose value lies elsewhere in the fork; the name follows.
    RawAttrRemoteName = 9 {
        valueblk: U32,
        valuelen: U32,
        namelen: u8,
    }

    /// Value of an attribute that says which directory has an entry for the inode; the entry's name is the
    /// attribute's.
    RawParent = 12 {
        p_ino: U64,
        p_gen: U32,
    }

    /// A dquot as it lies in its block.
    RawDquot = 136 {
        d_magic: U16,
        d_version: u8,
        d_type: u8,
        d_id: U32,
        d_counts: [u8; 96],
        dd_fill: [u8; 4],
        dd_crc: le::U32,
        dd_lsn: U64,
        dd_uuid: RawUuid,
    }

    /// Header of a log record, at the start of a 512-byte block.
    RawLogRecord = 328 {
        h_magicno: U32,
        h_cycle: U32,
        h_version: U32,
        h_len: U32,
        h_lsn: U64,
        h_tail_lsn: U64,
        h_crc: le::U32,
        h_prev_block: U32,
        h_num_logops: U32,
        /// The first word of each block of the record, where the block itself has the cycle.
        h_cycle_data: [U32; 64],
        h_fmt: U32,
        h_fs_uuid: RawUuid,
        h_size: U32,
        h_pad0: U32,
    }

    /// Header blocks 1 and up of a record longer than 32 KiB.
    RawLogExtHeader = 260 {
        xh_cycle: U32,
        xh_cycle_data: [U32; 64],
    }

    /// Header of one operation in a record.
    RawLogOp = 12 {
        oh_tid: U32,
        oh_len: U32,
        oh_clientid: u8,
        oh_flags: u8,
        oh_res2: U16,
    }

    /// First region of a transaction.
    RawTransHeader = 16 {
        th_magic: le::U32,
        th_type: le::U32,
        th_tid: le::U32,
        th_num_items: le::U32,
    }

    /// What every log item begins with.
    RawItemHead = 4 {
        type_: le::U16,
        size: le::U16,
    }

    /// A changed buffer; the bitmap of changed 128-byte chunks follows.
    RawBufItem = 20 {
        blf_type: le::U16,
        blf_size: le::U16,
        blf_flags: le::U16,
        blf_len: le::U16,
        blf_blkno: le::U64,
        blf_map_size: le::U32,
    }

    /// A changed inode.
    RawInodeItem = 56 {
        ilf_type: le::U16,
        ilf_size: le::U16,
        ilf_fields: le::U32,
        ilf_asize: le::U16,
        ilf_dsize: le::U16,
        ilf_pad: le::U32,
        ilf_ino: le::U64,
        ilf_u: [u8; 16],
        ilf_blkno: le::U64,
        ilf_len: le::U32,
        ilf_boffset: le::U32,
    }

    /// A changed inode as 32-bit hosts log it: without padding.
    RawInodeItem32 = 52 {
        ilf_type: le::U16,
        ilf_size: le::U16,
        ilf_fields: le::U32,
        ilf_asize: le::U16,
        ilf_dsize: le::U16,
        ilf_ino: le::U64,
        ilf_u: [u8; 16],
        ilf_blkno: le::U64,
        ilf_len: le::U32,
        ilf_boffset: le::U32,
    }

    /// The inode in a log item: [`RawDinode`] in host order. The times keep their halves in host order too.
    RawLogDinode = 176 {
        di_magic: le::U16,
        di_mode: le::U16,
        di_version: u8,
        di_format: u8,
        di_pad3: [u8; 2],
        di_uid: le::U32,
        di_gid: le::U32,
        di_nlink: le::U32,
        di_projid_lo: le::U16,
        di_projid_hi: le::U16,
        di_big_nextents: le::U64,
        di_atime: le::U64,
        di_mtime: le::U64,
        di_ctime: le::U64,
        di_size: le::U64,
        di_nblocks: le::U64,
        di_extsize: le::U32,
        di_nextents: le::U32,
        di_anextents: le::U16,
        di_forkoff: u8,
        di_aformat: u8,
        di_dmevmask: le::U32,
        di_dmstate: le::U16,
        di_flags: le::U16,
        di_gen: le::U32,
        di_next_unlinked: le::U32,
        di_crc: le::U32,
        di_changecount: le::U64,
        di_lsn: le::U64,
        di_flags2: le::U64,
        di_cowextsize: le::U32,
        di_pad2: [u8; 12],
        di_crtime: le::U64,
        di_ino: le::U64,
        di_uuid: RawUuid,
    }

    /// A changed dquot.
    RawDquotItem = 24 {
        qlf_type: le::U16,
        qlf_size: le::U16,
        qlf_id: le::U32,
        qlf_blkno: le::U64,
        qlf_len: le::U32,
        qlf_boffset: le::U32,
    }

    /// A chunk of new inodes.
    RawIcreateItem = 28 {
        icl_type: le::U16,
        icl_size: le::U16,
        icl_ag: U32,
        icl_agbno: U32,
        icl_count: U32,
        icl_isize: U32,
        icl_length: U32,
        icl_gen: U32,
    }

    /// What intents (EFI, RUI, CUI, BUI) begin with; their extents follow.
    RawIntentItem = 16 {
        type_: le::U16,
        size: le::U16,
        nextents: le::U32,
        id: le::U64,
    }

    /// Extent of an EFI as 64-bit hosts log it; 32-bit hosts leave out the padding.
    RawFreeExtent = 16 {
        ext_start: le::U64,
        ext_len: le::U32,
        ext_pad: le::U32,
    }

    /// Extent of an RUI or BUI.
    RawMapExtent = 32 {
        me_owner: le::U64,
        me_startblock: le::U64,
        me_startoff: le::U64,
        me_len: le::U32,
        me_flags: le::U32,
    }

    /// Extent of a CUI.
    RawPhysExtent = 16 {
        pe_startblock: le::U64,
        pe_len: le::U32,
        pe_flags: le::U32,
    }

    /// Intent to change an attribute; the name and the value follow in regions of their own.
    RawAttrIntent = 40 {
        alfi_type: le::U16,
        alfi_size: le::U16,
        alfi_igen: le::U32,
        alfi_id: le::U64,
        alfi_ino: le::U64,
        alfi_op_flags: le::U32,
        /// With parent pointers: lengths of the old and the new name in 16 bits each.
        alfi_name_len: le::U32,
        alfi_value_len: le::U32,
        alfi_attr_filter: le::U32,
    }

    /// Intent to exchange the mappings of two files.
    RawExchangeIntent = 88 {
        xmi_type: le::U16,
        xmi_size: le::U16,
        pad: le::U32,
        xmi_id: le::U64,
        xmi_inode1: le::U64,
        xmi_inode2: le::U64,
        xmi_igen1: le::U32,
        xmi_igen2: le::U32,
        xmi_startoff1: le::U64,
        xmi_startoff2: le::U64,
        xmi_blockcount: le::U64,
        xmi_flags: le::U64,
        xmi_isize1: le::U64,
        xmi_isize2: le::U64,
    }
}
