//! Group descriptors.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part, sum_holds, take};

use super::csum::{crc16, crc32c};
use super::fault::Ext4Fault;
use super::features::RoCompat;
use super::layout::{GROUP_CHECKSUM_AT, RawGroup};
use super::superblock::Superblock;
use zerocopy::IntoBytes;

/// What a reader needs of a group descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// First block of the inode table.
    pub(super) inode_table: u64,
    /// Free blocks (clusters with `bigalloc`).
    pub(super) free: u64,
    /// Where the block bitmap is.
    pub(super) block_bitmap: u64,
    /// Its checksum; 16 bits with short descriptors.
    pub(super) bitmap_csum: u32,
    /// The bitmap was never written: only the group's own tables are in use.
    pub(super) no_bitmap: bool,
}

/// `bg_flags`: the block bitmap was never written.
const BLOCK_UNINIT: u16 = 2;

impl Group {
    /// Checks the bytes of descriptor number `group`.
    pub(super) fn parse(sb: &Superblock, group: u64, raw: &[u8]) -> Result<Self> {
        check(sb, group, raw)?;
        let g = long(raw)?;
        let inode_table = u64::from(g.inode_table_hi.get()) << 32 | u64::from(g.inode_table_lo.get());
        let table_bytes = u64::from(sb.inodes_per_group).saturating_mul(len64(sb.inode_bytes));
        sb.check_blocks("the inode table", inode_table, sb.block_size.count(table_bytes))?;
        let free = u64::from(g.free_blocks_count_hi.get()) << 16 | u64::from(g.free_blocks_count_lo.get());
        let block_bitmap = u64::from(g.block_bitmap_hi.get()) << 32 | u64::from(g.block_bitmap_lo.get());
        let bitmap_csum =
            u32::from(g.block_bitmap_csum_hi.get()) << 16 | u32::from(g.block_bitmap_csum_lo.get());
        // The flag means something only where descriptors have checksums.
        let flags_hold =
            sb.features.has_metadata_csum() || sb.features.ro_compat.contains(RoCompat::GDT_CSUM);
        let no_bitmap = flags_hold && g.flags.get() & BLOCK_UNINIT != 0;
        Ok(Self { inode_table, free, block_bitmap, bitmap_csum, no_bitmap })
    }
}

/// A descriptor in full length: a short one has zeroes behind.
pub(super) fn long(raw: &[u8]) -> Result<RawGroup> {
    let mut long = [0u8; 64];
    let have = raw.len().min(long.len());
    if let (Some(to), Some(from)) = (long.get_mut(..have), raw.get(..have)) {
        to.copy_from_slice(from);
    }
    take::<RawGroup>(&long, 0, "group descriptor")
}

/// Puts as much of a descriptor into `raw` as there is room for.
pub(super) fn put_long(raw: &mut [u8], long: &RawGroup) {
    for (to, from) in raw.iter_mut().zip(long.as_bytes()) {
        *to = *from;
    }
}

/// The descriptor's checksum, of whichever kind the filesystem has.
pub(super) fn checksum(sb: &Superblock, group: u64, raw: &[u8]) -> Result<Option<u16>> {
    let number = u32::try_from(group).unwrap_or(u32::MAX).to_le_bytes();
    let before = part(raw, 0, GROUP_CHECKSUM_AT, WHAT)?;
    let behind = raw.get(GROUP_CHECKSUM_AT.saturating_add(2)..).unwrap_or_default();
    Ok(if sb.features.has_metadata_csum() {
        let crc = [&number[..], before, &[0, 0], behind].iter().fold(sb.csum_seed, |c, b| crc32c(c, b));
        Some(u16::try_from(crc & 0xffff).unwrap_or_default())
    } else if sb.features.ro_compat.contains(RoCompat::GDT_CSUM) {
        Some([&sb.raw.uuid[..], &number, before, behind].iter().fold(0xffff, |c, b| crc16(c, b)))
    } else {
        None
    })
}

const WHAT: &str = "the group descriptor";

/// Verifies the descriptor's checksum.
fn check(sb: &Superblock, group: u64, raw: &[u8]) -> Result<()> {
    let found = u16::from_le_bytes(take::<[u8; 2]>(raw, GROUP_CHECKSUM_AT, WHAT)?);
    match checksum(sb, group, raw)? {
        Some(computed) if !sum_holds(found, computed) => {
            Err(Ext4Fault::Checksum { what: WHAT, found: found.into(), computed: computed.into() }.into())
        }
        _ => Ok(()),
    }
}
