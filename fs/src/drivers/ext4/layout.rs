//! ext2/3/4 structures as they lie on disk; nothing else.
//!
//! Field names are those of the kernel's documentation (`Documentation/filesystems/ext4`). All numbers of the
//! filesystem are little-endian, all numbers of the journal are big-endian.

use zerocopy::big_endian as big;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the superblock starts, in bytes, whatever the block size.
pub(super) const SUPERBLOCK_AT: u64 = 1024;
/// Bytes of a superblock.
pub(super) const SUPERBLOCK_BYTES: usize = 1024;
/// `s_magic`.
pub(super) const MAGIC: u16 = 0xef53;

/// The superblock.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSuperblock {
    pub(super) inodes_count: U32,
    pub(super) blocks_count_lo: U32,
    pub(super) r_blocks_count_lo: U32,
    pub(super) free_blocks_count_lo: U32,
    pub(super) free_inodes_count: U32,
    pub(super) first_data_block: U32,
    pub(super) log_block_size: U32,
    pub(super) log_cluster_size: U32,
    pub(super) blocks_per_group: U32,
    pub(super) clusters_per_group: U32,
    pub(super) inodes_per_group: U32,
    pub(super) mtime: U32,
    pub(super) wtime: U32,
    pub(super) mnt_count: U16,
    pub(super) max_mnt_count: U16,
    pub(super) magic: U16,
    pub(super) state: U16,
    pub(super) errors: U16,
    pub(super) minor_rev_level: U16,
    pub(super) lastcheck: U32,
    pub(super) checkinterval: U32,
    pub(super) creator_os: U32,
    pub(super) rev_level: U32,
    pub(super) def_resuid: U16,
    pub(super) def_resgid: U16,
    pub(super) first_ino: U32,
    pub(super) inode_size: U16,
    pub(super) block_group_nr: U16,
    pub(super) feature_compat: U32,
    pub(super) feature_incompat: U32,
    pub(super) feature_ro_compat: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) last_mounted: [u8; 64],
    pub(super) algorithm_usage_bitmap: U32,
    pub(super) prealloc_blocks: u8,
    pub(super) prealloc_dir_blocks: u8,
    pub(super) reserved_gdt_blocks: U16,
    pub(super) journal_uuid: [u8; 16],
    pub(super) journal_inum: U32,
    pub(super) journal_dev: U32,
    pub(super) last_orphan: U32,
    pub(super) hash_seed: [U32; 4],
    pub(super) def_hash_version: u8,
    pub(super) jnl_backup_type: u8,
    pub(super) desc_size: U16,
    pub(super) default_mount_opts: U32,
    pub(super) first_meta_bg: U32,
    pub(super) mkfs_time: U32,
    pub(super) jnl_blocks: [U32; 17],
    pub(super) blocks_count_hi: U32,
    pub(super) r_blocks_count_hi: U32,
    pub(super) free_blocks_count_hi: U32,
    pub(super) min_extra_isize: U16,
    pub(super) want_extra_isize: U16,
    pub(super) flags: U32,
    pub(super) raid_stride: U16,
    pub(super) mmp_interval: U16,
    pub(super) mmp_block: U64,
    pub(super) raid_stripe_width: U32,
    pub(super) log_groups_per_flex: u8,
    pub(super) checksum_type: u8,
    pub(super) reserved_pad: U16,
    pub(super) kbytes_written: U64,
    pub(super) snapshot: [u8; 20],
    pub(super) error_info: [u8; 108],
    pub(super) mount_opts: [u8; 64],
    pub(super) usr_quota_inum: U32,
    pub(super) grp_quota_inum: U32,
    pub(super) overhead_blocks: U32,
    pub(super) backup_bgs: [U32; 2],
    pub(super) encrypt_algos: [u8; 4],
    pub(super) encrypt_pw_salt: [u8; 16],
    pub(super) lpf_ino: U32,
    pub(super) prj_quota_inum: U32,
    pub(super) checksum_seed: U32,
    pub(super) times_hi: [u8; 8],
    pub(super) encoding: U16,
    pub(super) encoding_flags: U16,
    pub(super) orphan_file_inum: U32,
    pub(super) reserved: [U32; 94],
    pub(super) checksum: U32,
}
const _: () = assert!(size_of::<RawSuperblock>() == SUPERBLOCK_BYTES);

/// A group descriptor; the second half is there with the `64bit` feature only.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawGroup {
    pub(super) block_bitmap_lo: U32,
    pub(super) inode_bitmap_lo: U32,
    pub(super) inode_table_lo: U32,
    pub(super) free_blocks_count_lo: U16,
    pub(super) free_inodes_count_lo: U16,
    pub(super) used_dirs_count_lo: U16,
    pub(super) flags: U16,
    pub(super) exclude_bitmap_lo: U32,
    pub(super) block_bitmap_csum_lo: U16,
    pub(super) inode_bitmap_csum_lo: U16,
    pub(super) itable_unused_lo: U16,
    pub(super) checksum: U16,
    pub(super) block_bitmap_hi: U32,
    pub(super) inode_bitmap_hi: U32,
    pub(super) inode_table_hi: U32,
    pub(super) free_blocks_count_hi: U16,
    pub(super) free_inodes_count_hi: U16,
    pub(super) used_dirs_count_hi: U16,
    pub(super) itable_unused_hi: U16,
    pub(super) exclude_bitmap_hi: U32,
    pub(super) block_bitmap_csum_hi: U16,
    pub(super) inode_bitmap_csum_hi: U16,
    pub(super) reserved: U32,
}
const _: () = assert!(size_of::<RawGroup>() == 64);

/// Where `checksum` is in a group descriptor.
pub(super) const GROUP_CHECKSUM_AT: usize = 30;

/// An inode. What lies behind the first 128 bytes is there as far as `extra_isize` says.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawInode {
    pub(super) mode: U16,
    pub(super) uid: U16,
    pub(super) size_lo: U32,
    pub(super) atime: U32,
    pub(super) ctime: U32,
    pub(super) mtime: U32,
    pub(super) dtime: U32,
    pub(super) gid: U16,
    pub(super) links_count: U16,
    pub(super) blocks_lo: U32,
    pub(super) flags: U32,
    pub(super) version: U32,
    pub(super) block: [u8; 60],
    pub(super) generation: U32,
    pub(super) file_acl_lo: U32,
    pub(super) size_hi: U32,
    pub(super) obso_faddr: U32,
    pub(super) blocks_hi: U16,
    pub(super) file_acl_hi: U16,
    pub(super) uid_hi: U16,
    pub(super) gid_hi: U16,
    pub(super) checksum_lo: U16,
    pub(super) reserved: U16,
    pub(super) extra_isize: U16,
    pub(super) checksum_hi: U16,
    pub(super) ctime_extra: U32,
    pub(super) mtime_extra: U32,
    pub(super) atime_extra: U32,
    pub(super) crtime: U32,
    pub(super) crtime_extra: U32,
    pub(super) version_hi: U32,
    pub(super) projid: U32,
}
const _: () = assert!(size_of::<RawInode>() == 160);

/// Bytes of the inode that every revision has.
pub(super) const OLD_INODE_BYTES: usize = 128;
/// Where `checksum_lo` is in an inode.
pub(super) const INODE_CHECKSUM_LO_AT: usize = 124;
/// Where `checksum_hi` is in an inode.
pub(super) const INODE_CHECKSUM_HI_AT: usize = 130;
/// Where `block` is in an inode.
pub(super) const INODE_BLOCK_AT: usize = 40;
/// Where `generation` is in an inode, right behind `block`.
pub(super) const INODE_GENERATION_AT: usize = 100;

/// Inode flags that change how an inode is read.
pub(super) mod inode_flags {
    pub(in super::super) const ENCRYPT: u32 = 0x800;
    pub(in super::super) const INDEX: u32 = 0x1000;
    pub(in super::super) const HUGE_FILE: u32 = 0x4_0000;
    pub(in super::super) const EXTENTS: u32 = 0x8_0000;
    pub(in super::super) const EA_INODE: u32 = 0x20_0000;
    pub(in super::super) const INLINE_DATA: u32 = 0x1000_0000;
    pub(in super::super) const CASEFOLD: u32 = 0x4000_0000;
}

/// Head of every block of an extent tree, and of the root in the inode.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawExtentHeader {
    pub(super) magic: U16,
    pub(super) entries: U16,
    pub(super) max: U16,
    pub(super) depth: U16,
    pub(super) generation: U32,
}

/// `RawExtentHeader::magic`.
pub(super) const EXTENT_MAGIC: u16 = 0xf30a;
/// Bytes of the head, of an index and of a leaf entry.
pub(super) const EXTENT_BYTES: usize = 12;
const _: () = assert!(size_of::<RawExtentHeader>() == EXTENT_BYTES);

/// An entry of an index block.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawExtentIndex {
    pub(super) block: U32,
    pub(super) leaf_lo: U32,
    pub(super) leaf_hi: U16,
    pub(super) unused: U16,
}
const _: () = assert!(size_of::<RawExtentIndex>() == EXTENT_BYTES);

/// An entry of a leaf block. More than 32768 blocks mean `len - 32768` unwritten ones.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawExtent {
    pub(super) block: U32,
    pub(super) len: U16,
    pub(super) start_hi: U16,
    pub(super) start_lo: U32,
}
const _: () = assert!(size_of::<RawExtent>() == EXTENT_BYTES);

/// Head of a directory entry; the name follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawDirEntry {
    pub(super) inode: U32,
    pub(super) rec_len: U16,
    pub(super) name_len: u8,
    /// The kind of the node with the `filetype` feature, the high byte of the name's length without it.
    pub(super) file_type: u8,
}
const _: () = assert!(size_of::<RawDirEntry>() == 8);

/// `file_type` of the entry that is no entry but holds a directory block's checksum.
pub(super) const DIR_TAIL_TYPE: u8 = 0xde;
/// Bytes of that entry.
pub(super) const DIR_TAIL_BYTES: usize = 12;

/// Head of a block of extended attributes.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawXattrHeader {
    pub(super) magic: U32,
    pub(super) refcount: U32,
    pub(super) blocks: U32,
    pub(super) hash: U32,
    pub(super) checksum: U32,
    pub(super) reserved: [U32; 3],
}
const _: () = assert!(size_of::<RawXattrHeader>() == 32);

/// First four bytes of extended attributes, in a block and in an inode.
pub(super) const XATTR_MAGIC: u32 = 0xea02_0000;
/// Where `checksum` is in the head of a block of extended attributes.
pub(super) const XATTR_CHECKSUM_AT: usize = 16;

/// An extended attribute; the name follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawXattr {
    pub(super) name_len: u8,
    pub(super) name_index: u8,
    pub(super) value_offs: U16,
    pub(super) value_inum: U32,
    pub(super) value_size: U32,
    pub(super) hash: U32,
}
const _: () = assert!(size_of::<RawXattr>() == 16);

/// First four bytes of every control block of a journal.
pub(super) const JOURNAL_MAGIC: u32 = 0xc03b_3998;

/// Head of every control block of a journal.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawJournalHeader {
    pub(super) magic: big::U32,
    pub(super) blocktype: big::U32,
    pub(super) sequence: big::U32,
}
const _: () = assert!(size_of::<RawJournalHeader>() == 12);

/// `RawJournalHeader::blocktype`.
pub(super) mod journal_block {
    pub(in super::super) const DESCRIPTOR: u32 = 1;
    pub(in super::super) const COMMIT: u32 = 2;
    pub(in super::super) const SUPERBLOCK_V1: u32 = 3;
    pub(in super::super) const SUPERBLOCK_V2: u32 = 4;
    pub(in super::super) const REVOKE: u32 = 5;
}

/// The first block of a journal. What is behind `errno` is there in version 2 only.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawJournalSuperblock {
    pub(super) header: RawJournalHeader,
    pub(super) blocksize: big::U32,
    pub(super) maxlen: big::U32,
    pub(super) first: big::U32,
    pub(super) sequence: big::U32,
    pub(super) start: big::U32,
    pub(super) errno: big::U32,
    pub(super) feature_compat: big::U32,
    pub(super) feature_incompat: big::U32,
    pub(super) feature_ro_compat: big::U32,
    pub(super) uuid: [u8; 16],
    pub(super) nr_users: big::U32,
    pub(super) dynsuper: big::U32,
    pub(super) max_transaction: big::U32,
    pub(super) max_trans_data: big::U32,
    pub(super) checksum_type: u8,
    pub(super) padding2: [u8; 3],
    pub(super) num_fc_blks: big::U32,
    pub(super) head: big::U32,
    pub(super) padding: [big::U32; 40],
    pub(super) checksum: big::U32,
    pub(super) users: [u8; 768],
}
const _: () = assert!(size_of::<RawJournalSuperblock>() == 1024);

/// Where `checksum` is in a journal's superblock.
pub(super) const JOURNAL_CHECKSUM_AT: usize = 0xfc;

/// The part of a commit block that is used.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawCommit {
    pub(super) header: RawJournalHeader,
    pub(super) chksum_type: u8,
    pub(super) chksum_size: u8,
    pub(super) padding: [u8; 2],
    pub(super) chksum: [big::U32; 8],
    pub(super) commit_sec: big::U64,
    pub(super) commit_nsec: big::U32,
}
const _: () = assert!(size_of::<RawCommit>() == 60);

/// Where the checksum is in a commit block.
pub(super) const COMMIT_CHECKSUM_AT: usize = 16;

/// What a descriptor block says of one block, with checksums of version 3.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawTag3 {
    pub(super) blocknr: big::U32,
    pub(super) flags: big::U32,
    pub(super) blocknr_high: big::U32,
    pub(super) checksum: big::U32,
}
const _: () = assert!(size_of::<RawTag3>() == 16);

/// The same with any other checksum; `blocknr_high` is there with 64-bit block numbers only.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawTag {
    pub(super) blocknr: big::U32,
    pub(super) checksum: big::U16,
    pub(super) flags: big::U16,
    pub(super) blocknr_high: big::U32,
}
const _: () = assert!(size_of::<RawTag>() == 12);

/// `RawTag::flags`.
pub(super) mod tag_flags {
    /// The first four bytes were the journal's magic and are stored as zeroes.
    pub(in super::super) const ESCAPE: u32 = 1;
    /// No UUID follows.
    pub(in super::super) const SAME_UUID: u32 = 2;
    pub(in super::super) const LAST: u32 = 8;
}

/// Head of a revoke block; block numbers of 4 or 8 bytes follow, up to byte `count`.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawRevoke {
    pub(super) header: RawJournalHeader,
    pub(super) count: big::U32,
}
const _: () = assert!(size_of::<RawRevoke>() == 16);
