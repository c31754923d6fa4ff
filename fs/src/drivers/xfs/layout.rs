//! XFS structures as they lie on disk. Specification: "XFS Algorithms & Data Structures", 3rd edition, and the
//! additions of Linux 5.10 (bigtime, inobtcount), 5.19 (nrext64), 6.10 (exchange-range, parent pointers).
//!
//! Everything is big-endian but the checksums. Field names are the specification's. The log's own structures are in
//! `log/layout.rs`.

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
pub(super) use layouts;

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
/// `DQ`
pub(super) const DQUOT_MAGIC: u16 = 0x4451;

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
}
