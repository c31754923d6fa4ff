//! The log as it lies on disk: records, and the items of transactions in them. Specification: "XFS Algorithms & Data
//! Structures", 3rd edition, chapter "Journaling Log", and the additions of Linux 6.10.
//!
//! Records are big-endian; items are in the byte order of the host that wrote them, which on every machine that makes
//! images is little-endian.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::little_endian as le;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::layout::{RawUuid, layouts};

/// First word of a log record; no block of a log may otherwise start with it.
pub(super) const LOG_MAGIC: u32 = 0xfeed_babe;
/// `TRAN` as a little-endian host writes it.
pub(super) const TRANS_MAGIC: u32 = 0x5452_414e;

layouts! {
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

    /// The inode in a log item: [`RawDinode`](super::super::layout::RawDinode) in host order. The times keep their halves in host order too.
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
