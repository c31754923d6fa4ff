//! FAT structures as they lie on disk; nothing else. Names after Microsoft's specification of 2000 (fatgen103).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The boot sector with its BIOS parameter block, as FAT32 has it.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawBoot {
    pub(super) jmp_boot: [u8; 3],
    pub(super) oem_name: [u8; 8],
    pub(super) byts_per_sec: U16,
    pub(super) sec_per_clus: u8,
    pub(super) rsvd_sec_cnt: U16,
    pub(super) num_fats: u8,
    pub(super) root_ent_cnt: U16,
    pub(super) tot_sec16: U16,
    pub(super) media: u8,
    pub(super) fat_sz16: U16,
    pub(super) sec_per_trk: U16,
    pub(super) num_heads: U16,
    pub(super) hidd_sec: U32,
    pub(super) tot_sec32: U32,
    pub(super) fat_sz32: U32,
    pub(super) ext_flags: U16,
    pub(super) fs_ver: U16,
    pub(super) root_clus: U32,
    pub(super) fs_info: U16,
    pub(super) bk_boot_sec: U16,
    pub(super) reserved: [u8; 12],
    /// The same as [`RawExtended`] of FAT12 and FAT16, further behind.
    pub(super) extended: RawExtended,
}
const _: () = assert!(size_of::<RawBoot>() == 90);

/// What follows the parameter block.
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawExtended {
    pub(super) drv_num: u8,
    /// Bit 0: not cleanly unmounted.
    pub(super) state: u8,
    pub(super) boot_sig: u8,
    pub(super) vol_id: U32,
    pub(super) vol_lab: [u8; 11],
    pub(super) fil_sys_type: [u8; 8],
}
const _: () = assert!(size_of::<RawExtended>() == 26);

/// Where [`RawExtended`] is in a boot sector of FAT12 and FAT16.
pub(super) const EXTENDED16_AT: usize = 36;

/// The sector with hints about free space.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawInfo {
    pub(super) lead_sig: U32,
    pub(super) reserved1: [u8; 480],
    pub(super) struc_sig: U32,
    pub(super) free_count: U32,
    pub(super) nxt_free: U32,
    pub(super) reserved2: [u8; 12],
    pub(super) trail_sig: U32,
}
const _: () = assert!(size_of::<RawInfo>() == 512);

/// Bytes of a directory entry.
pub(super) const ENTRY_BYTES: usize = 32;

/// A directory entry with a short name.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawEntry {
    pub(super) name: [u8; 11],
    pub(super) attr: u8,
    /// Bits 3 and 4: show the name, the extension in lower case.
    pub(super) nt_res: u8,
    pub(super) crt_time_tenth: u8,
    pub(super) crt_time: U16,
    pub(super) crt_date: U16,
    pub(super) lst_acc_date: U16,
    pub(super) fst_clus_hi: U16,
    pub(super) wrt_time: U16,
    pub(super) wrt_date: U16,
    pub(super) fst_clus_lo: U16,
    pub(super) file_size: U32,
}
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);

/// A directory entry with thirteen units of a long name.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawLong {
    /// 1 and up from the name's beginning; 0x40 marks its end, which comes first.
    pub(super) ord: u8,
    pub(super) name1: [U16; 5],
    pub(super) attr: u8,
    pub(super) kind: u8,
    pub(super) chksum: u8,
    pub(super) name2: [U16; 6],
    pub(super) fst_clus_lo: U16,
    pub(super) name3: [U16; 2],
}
const _: () = assert!(size_of::<RawLong>() == ENTRY_BYTES);

/// `RawEntry::attr`.
pub(super) mod attr {
    pub(in super::super) const READ_ONLY: u8 = 0x01;
    /// Changed since the last backup.
    pub(in super::super) const ARCHIVE: u8 = 0x20;
    pub(in super::super) const VOLUME_ID: u8 = 0x08;
    pub(in super::super) const DIRECTORY: u8 = 0x10;
    /// All of a long name's entry, of the bits that mean something.
    pub(in super::super) const LONG_NAME: u8 = 0x0f;
    pub(in super::super) const MEANING: u8 = 0x3f;
}

/// The name of the entry for the directory itself.
pub(super) const DOT: [u8; 11] = *b".          ";
/// The name of the entry for the directory above.
pub(super) const DOT_DOT: [u8; 11] = *b"..         ";
/// First byte of a name: deleted.
pub(super) const DELETED: u8 = 0xe5;
/// First byte of a name: nothing from here to the directory's end.
pub(super) const END: u8 = 0;
