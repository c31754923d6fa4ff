//! The resize inode: blocks kept for descriptors of groups to come, in a map of two levels.

use racker_formats::error::Result;

use super::super::edit::bytes::get32;
use super::super::features::Incompat;
use super::super::volume::Ext4;
use super::Checker;
use racker_formats::wire::{index, len64};

/// The inode.
pub(super) const NUMBER: u32 = 7;
/// `resize_inode` in `s_feature_compat`.
const FEATURE: u32 = 0x10;
/// Where the block of two levels is in an inode's 60 bytes.
const DOUBLE_AT: usize = 52;

impl Ext4 {
    /// Whether the filesystem has a resize inode.
    pub(super) fn has_resize_inode(&self) -> bool {
        self.sb.raw.rev_level.get() != 0 && self.sb.raw.feature_compat.get() & FEATURE != 0
    }
}

impl Checker<'_> {
    /// Whether the inode names exactly the blocks kept.
    pub(super) fn check_resize_inode(&mut self) -> Result<()> {
        let (fs, sb) = (self.fs, &self.fs.sb);
        let reserved = u64::from(sb.raw.reserved_gdt_blocks.get());
        let read = fs.any_inode(NUMBER);
        let Some(inode) = self.finds.sound(|| "the resize inode".into(), read)? else { return Ok(()) };
        let double = u64::from(get32(inode.block(), DOUBLE_AT)?);
        if !fs.has_resize_inode() {
            if reserved != 0 && !sb.features.incompat.contains(Incompat::META_BG) {
                self.finds.corrupt("the superblock keeps blocks for descriptors, and has no resize inode")?;
            } else if double != 0 {
                self.finds.corrupt("the resize inode has blocks, and the superblock has no such inode")?;
            }
            return Ok(());
        }
        let wrong = "the resize inode does not name the blocks that the superblock keeps";
        let is_one = inode.links != 0 && inode.kind == Some(crate::filesystem::NodeKind::File);
        let others = inode.block().as_chunks::<4>().0.iter().enumerate();
        let is_one = is_one && others.filter(|(slot, _)| *slot != DOUBLE_AT >> 2).all(|(_, b)| *b == [0; 4]);
        if !is_one || sb.check_blocks("the resize inode", double, 1).is_err() {
            return self.finds.corrupt(wrong);
        }
        let per_block = sb.block_size.bytes().checked_div(len64(sb.group_bytes)).unwrap_or(1).max(1);
        let descriptors = sb.groups.div_ceil(per_block);
        let addresses = sb.block_size.bytes() >> 2;
        let map = fs.block("the resize inode", double)?;
        // With blocks of 1024 bytes the superblock is in block 1, whatever the first one is.
        let first = if sb.block_size.bytes() == 1024 { 2 } else { 1 };
        // As e2fsck does: not all that are kept need have been linked.
        for number in 0..(reserved >> 2).min(addresses) {
            let block = descriptors.saturating_add(first).saturating_add(number);
            let slot = descriptors.saturating_add(number).checked_rem(addresses).unwrap_or(0);
            if u64::from(get32(&map, index(slot)?.saturating_mul(4))?) != block {
                return self.finds.corrupt(wrong);
            }
            let copies = fs.block("the resize inode", block)?;
            let mut at = 0usize;
            for group in (1..sb.groups).filter(|group| sb.has_superblock(*group)) {
                let expected = block.saturating_add(group.saturating_mul(sb.blocks_per_group));
                if at.saturating_add(4) > copies.len() || u64::from(get32(&copies, at)?) != expected {
                    return self.finds.corrupt(wrong);
                }
                at = at.saturating_add(4);
            }
        }
        Ok(())
    }
}
