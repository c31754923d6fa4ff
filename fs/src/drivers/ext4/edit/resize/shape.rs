//! What the filesystem looks like with another number of blocks: its superblock, judged before anything changes.

use racker_formats::error::Result;
use racker_formats::wire::len64;

use super::super::super::fault::Ext4Fault;
use super::super::super::features::{Compat, Incompat};
use super::super::super::layout::RawSuperblock;
use super::super::super::superblock::Superblock;
use super::super::bytes::{low16, low32};
use super::super::groups::GROUPS_MAX;

/// Blocks that the last group needs besides its own tables; a shorter one is left out, as mke2fs does it.
const LAST_GROUP_MIN: u64 = 50;

impl Superblock {
    /// Descriptors in a block.
    pub(in super::super) fn descs_per_block(&self) -> u64 {
        self.block_size.bytes().checked_div(len64(self.group_bytes)).unwrap_or(1).max(1)
    }

    /// Blocks that all descriptors take.
    pub(in super::super) fn desc_blocks(&self) -> u64 {
        self.groups.div_ceil(self.descs_per_block())
    }

    /// Blocks of the filesystem that the owner's reserve has.
    fn reserve(&self) -> u64 {
        let wide = self.features.incompat.contains(Incompat::BIT64);
        let hi = if wide { u64::from(self.raw.r_blocks_count_hi.get()) << 32 } else { 0 };
        (hi | u64::from(self.raw.r_blocks_count_lo.get())).min(self.blocks)
    }

    /// The same filesystem in the first `size` bytes.
    pub(super) fn resized(&self, size: u64) -> Result<Self> {
        let ratio = 1u64.checked_shl(self.cluster_shift).unwrap_or(1);
        let mut blocks = size >> self.block_size.shift();
        if !self.features.incompat.contains(Incompat::BIT64) {
            blocks = blocks.min(u32::MAX.into());
        }
        blocks &= !ratio.saturating_sub(1);
        let per_group = self.blocks_per_group.max(1);
        let most = u64::from(u32::MAX).checked_div(self.inodes_per_group.into()).unwrap_or(0);
        blocks = blocks.min(self.first_data_block.saturating_add(most.saturating_mul(per_group)));
        // Each round leaves out the last group, and the one before is whole.
        loop {
            let past = blocks.saturating_sub(self.first_data_block);
            let groups = past.div_ceil(per_group);
            if groups > GROUPS_MAX {
                return Err(Ext4Fault::Limit { what: "block groups", found: groups, max: GROUPS_MAX }.into());
            }
            let too_small =
                || Ext4Fault::Cannot(format!("{size} bytes do not hold this filesystem's tables"));
            if groups == 0 {
                return Err(too_small().into());
            }
            let new = self.with_blocks(blocks, groups)?;
            let rest = past.checked_rem(per_group).unwrap_or(0);
            let own = 2u64
                .saturating_add(new.table_blocks())
                .saturating_add(new.base_blocks(groups.saturating_sub(1)).1);
            let need = if groups == 1 { own } else { own.saturating_add(LAST_GROUP_MIN) };
            if rest == 0 || rest >= need {
                new.check_bases()?;
                return Ok(new);
            }
            if groups == 1 {
                return Err(too_small().into());
            }
            blocks = blocks.saturating_sub(rest);
        }
    }

    /// Every group has room for its copies of superblock and descriptors.
    fn check_bases(&self) -> Result<()> {
        const LEFT: u64 = 8;
        let fits = |group| self.base_blocks(group).1.saturating_add(LEFT) < self.blocks_of(group);
        if (0..self.groups).all(fits) {
            return Ok(());
        }
        let what = "the descriptors of so many groups do not fit into a group (without meta_bg)";
        Err(Ext4Fault::Cannot(what.into()).into())
    }

    pub(super) fn with_blocks(&self, blocks: u64, groups: u64) -> Result<Self> {
        let mut raw: RawSuperblock = self.raw;
        let mut features = self.features;
        let wide = features.incompat.contains(Incompat::BIT64);
        raw.blocks_count_lo = low32(blocks).into();
        let inodes = groups.saturating_mul(self.inodes_per_group.into());
        raw.inodes_count = u32::try_from(inodes).unwrap_or(u32::MAX).into();
        let reserve = u128::from(self.reserve()).saturating_mul(u128::from(blocks));
        let reserve = reserve.checked_div(u128::from(self.blocks)).unwrap_or(0);
        let reserve = u64::try_from(reserve).unwrap_or(0);
        raw.r_blocks_count_lo = low32(reserve).into();
        if wide {
            raw.blocks_count_hi = low32(blocks >> 32).into();
            raw.r_blocks_count_hi = low32(reserve >> 32).into();
        }
        // The kernel counts it when it finds none.
        raw.overhead_blocks = 0.into();
        let (old_descs, descs) = (self.desc_blocks(), groups.div_ceil(self.descs_per_block()));
        if features.compat.contains(Compat::RESIZE_INODE) && old_descs != descs {
            let room = u64::from(raw.reserved_gdt_blocks.get()).saturating_add(old_descs);
            let reserved = room.saturating_sub(descs).min(self.block_size.bytes() >> 2);
            raw.reserved_gdt_blocks = low16(reserved).into();
        }
        if features.incompat.contains(Incompat::META_BG) && u64::from(raw.first_meta_bg.get()) > descs {
            features.incompat.remove(Incompat::META_BG);
            raw.first_meta_bg = 0.into();
        }
        if features.compat.contains(Compat::SPARSE_SUPER2) {
            raw.backup_bgs = self.backups(groups).map(Into::into);
        }
        Self::sizes(raw, features)
    }

    /// The two groups with copies (`sparse_super2`): the second one moves along with the end.
    fn backups(&self, groups: u64) -> [u32; 2] {
        let [mut first, mut second] = self.raw.backup_bgs.map(|g| g.get());
        let (last, old_last) = (low32(groups).saturating_sub(1), low32(self.groups).saturating_sub(1));
        if last > old_last {
            if old_last == 0 {
                first = 1;
            }
            if (old_last < 2 && last >= 2) || second != 0 {
                second = last;
            }
        } else if last < old_last {
            let was_last = second == old_last;
            first = if first > last { 0 } else { first };
            second = if second > last { 0 } else { second };
            if last > 1 && was_last {
                second = last;
            }
        }
        [first, second]
    }
}
