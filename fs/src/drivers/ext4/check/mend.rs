//! What follows from everything else is put right: bitmaps, the counts of groups and of the superblock, its state,
//! fields of an empty journal that say nothing.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64};
use zerocopy::IntoBytes;

use super::super::csum::crc32c;
use super::super::edit::bits;
use super::super::edit::bytes::low32;
use super::super::edit::groups::{BLOCK_UNINIT, INODE_UNINIT, Which};
use super::super::fault::Ext4Fault;
use super::super::features::Incompat;
use super::super::journal::Journal;
use super::super::layout::SUPERBLOCK_AT;
use super::Checker;

/// `s_state` of a filesystem that was closed.
const STATE_VALID: u16 = 1;

impl Checker<'_> {
    /// Mends what was found. Nothing of it was in doubt.
    pub(super) fn mend(&mut self) -> Result<()> {
        for group in std::mem::take(&mut self.to_mend) {
            self.mend_group(group)?;
        }
        if self.mend_journal {
            let (block, head) = Journal::open(self.fs)?.reduced()?;
            self.fs.disk.write_at(self.fs.byte_of(block)?, &head)?;
        }
        self.mend_superblock()
    }

    fn mend_group(&mut self, group: u64) -> Result<()> {
        let sb = &self.fs.sb;
        let found = self.in_use(group)?;
        let missing = || Ext4Fault::Unsound("has fewer groups than it needs");
        let place = index(group)?;
        let mut desc = *self.descs.get(place).ok_or_else(missing)?;
        let all = index(sb.block_size.bytes())?;
        let counts = [index(sb.clusters_of(group))?, index(sb.inodes_per_group.into())?];
        let [blocks, inodes] = [found.blocks, found.inodes].map(|mut map| {
            map.resize(all, 0);
            map
        });
        for ((mut map, count), which) in
            [blocks, inodes].into_iter().zip(counts).zip([Which::Blocks, Which::Inodes])
        {
            bits::fill(&mut map, count, all.saturating_mul(8), true);
            let (block, sum) = (
                if which == Which::Blocks { desc.block_bitmap } else { desc.inode_bitmap },
                if sb.features.has_metadata_csum() { sb.bitmap_sum(which, &map)? } else { 0 },
            );
            match which {
                Which::Blocks => desc.block_csum = sum,
                Which::Inodes => desc.inode_csum = sum,
            }
            self.fs.disk.write_at(self.fs.byte_of(block)?, &map)?;
        }
        if desc.flags & INODE_UNINIT != 0 {
            desc.unused = sb.inodes_per_group;
        }
        desc.flags &= !(BLOCK_UNINIT | INODE_UNINIT);
        (desc.free, desc.free_inodes, desc.dirs) = (found.free, found.free_inodes, found.dirs);
        let per_block = sb.block_size.bytes().checked_div(len64(sb.group_bytes)).unwrap_or(1).max(1);
        let number = sb.descriptor_block(group.checked_div(per_block).unwrap_or(0));
        let at = self.fs.byte_of(number)?;
        let mut block = vec![0; all];
        self.fs.disk.read_at(at, &mut block)?;
        let start = index(group.checked_rem(per_block).unwrap_or(0))?.saturating_mul(sb.group_bytes);
        let raw = block.get_mut(start..start.saturating_add(sb.group_bytes)).ok_or_else(missing)?;
        desc.store(sb, group, raw)?;
        self.fs.disk.write_at(at, &block)?;
        if let Some(held) = self.descs.get_mut(place) {
            *held = desc;
        }
        Ok(())
    }

    fn mend_superblock(&mut self) -> Result<()> {
        let mut sb = self.fs.sb.clone();
        let sum = |count: fn(&super::Desc) -> u32| {
            self.descs.iter().fold(0u64, |all, desc| all.saturating_add(count(desc).into()))
        };
        let free = sum(|desc| desc.free).checked_shl(sb.cluster_shift).unwrap_or(u64::MAX);
        sb.raw.free_blocks_count_lo = low32(free).into();
        if sb.features.incompat.contains(Incompat::BIT64) {
            sb.raw.free_blocks_count_hi = low32(free >> 32).into();
        }
        sb.raw.free_inodes_count = low32(sum(|desc| desc.free_inodes)).into();
        sb.raw.state = STATE_VALID.into();
        if sb.raw.rev_level.get() != 0 {
            // The journal was replayed.
            sb.features.incompat.remove(Incompat::RECOVER);
            sb.raw.feature_incompat = sb.features.incompat.bits().into();
        }
        if sb.features.has_metadata_csum() {
            let sum = crc32c(!0, sb.raw.as_bytes().get(..1020).unwrap_or_default());
            sb.raw.checksum = sum.into();
        }
        self.fs.disk.write_at(SUPERBLOCK_AT, sb.raw.as_bytes())
    }
}
