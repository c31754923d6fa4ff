//! Bitmaps and counts, against all that was found in use.

use racker_formats::error::Result;
use racker_formats::wire::{bytes, index, len64, sum_holds};

use super::super::edit::bits::{self, next_set};
use super::super::edit::groups::{BLOCK_UNINIT, Desc, INODE_UNINIT, Which};
use super::super::features::Incompat;
use super::Checker;
use crate::filesystem::NodeKind;

/// What a group has in use, as bitmaps have it, and its counts.
#[derive(Debug)]
pub(super) struct InUse {
    pub(super) blocks: Vec<u8>,
    pub(super) inodes: Vec<u8>,
    pub(super) free: u32,
    pub(super) free_inodes: u32,
    pub(super) dirs: u32,
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Bits that are set here and not there: the first, and how many.
fn only_in(here: &[u8], there: &[u8]) -> Option<(usize, u64)> {
    let mut count = 0u64;
    let mut first = None;
    for (at, (here, there)) in here.iter().zip(there).enumerate() {
        let only = here & !there;
        if only != 0 {
            let bit = usize::try_from(only.trailing_zeros()).unwrap_or(0);
            first = first.or(Some(at.saturating_mul(8).saturating_add(bit)));
            count = count.saturating_add(only.count_ones().into());
        }
    }
    first.map(|first| (first, count))
}

impl Checker<'_> {
    /// What was found in use of a group.
    pub(super) fn in_use(&self, group: u64) -> Result<InUse> {
        let sb = &self.fs.sb;
        let count = index(sb.clusters_of(group))?;
        let per_group = sb.blocks_per_group >> sb.cluster_shift;
        let blocks = self.used.bytes(group.saturating_mul(per_group), count);
        let per_group = index(sb.inodes_per_group.into())?;
        let mut inodes = vec![0u8; per_group.div_ceil(8)];
        let mut dirs = 0u32;
        if let Some(numbers) = self.notes.of_group(group) {
            for (slot, number) in numbers.enumerate() {
                let note = self.notes.get(number);
                if note.is_used() {
                    bits::fill(&mut inodes, slot, slot.saturating_add(1), true);
                    let is_dir = note.kind() == Some(NodeKind::Dir) && !self.is_nameless(number);
                    dirs = dirs.saturating_add(u32::from(is_dir));
                }
            }
        }
        // Small groups leave some of the reserved ones to the next.
        let before = group.saturating_mul(sb.inodes_per_group.into());
        let reserved = u64::from(sb.first_inode.saturating_sub(1)).saturating_sub(before);
        bits::fill(&mut inodes, 0, index(reserved)?.min(per_group), true);
        let free = narrow(bits::count_clear(&blocks, count));
        let free_inodes = narrow(bits::count_clear(&inodes, per_group));
        Ok(InUse { blocks, inodes, free, free_inodes, dirs })
    }

    /// Compares all bitmaps and counts.
    pub(super) fn check_bitmaps(&mut self) -> Result<()> {
        let (mut free, mut free_inodes) = (0u64, 0u64);
        for (number, desc) in (0u64..).zip(self.descs.clone()) {
            let found = self.in_use(number)?;
            let mut wrong = self.check_map(number, &desc, Which::Inodes, &found.inodes)?;
            // Blocks whose owner is not known would look lost.
            if self.all_known {
                wrong |= self.check_map(number, &desc, Which::Blocks, &found.blocks)?;
                wrong |= self.check_count(number, "clusters are free", found.free, desc.free)?;
            }
            let is_last = number.saturating_add(1) == self.fs.sb.groups;
            if is_last && desc.flags & BLOCK_UNINIT != 0 {
                wrong = true;
                self.finds
                    .mendable(format!("group {number}: it is the last one, and has no block bitmap"))?;
            }
            wrong |= self.check_count(number, "inodes are free", found.free_inodes, desc.free_inodes)?;
            wrong |= self.check_count(number, "directories are there", found.dirs, desc.dirs)?;
            if wrong {
                self.to_mend.push(number);
            }
            free = free.saturating_add(found.free.into());
            free_inodes = free_inodes.saturating_add(found.free_inodes.into());
        }
        self.check_state()?;
        // While it is in use these two are not kept up to date.
        let sb = &self.fs.sb;
        if self.fs.replayed || sb.features.incompat.contains(Incompat::RECOVER) {
            self.mend_totals = true;
            return Ok(());
        }
        let wide = sb.features.incompat.contains(Incompat::BIT64);
        let hi = if wide { u64::from(sb.raw.free_blocks_count_hi.get()) << 32 } else { 0 };
        let counted = hi | u64::from(sb.raw.free_blocks_count_lo.get());
        let found = free.checked_shl(sb.cluster_shift).unwrap_or(u64::MAX);
        if self.all_known && counted != found {
            self.mend_totals = true;
            self.finds.mendable(format!("the superblock counts {counted} free blocks, {found} are"))?;
        }
        let counted = u64::from(self.fs.sb.raw.free_inodes_count.get());
        if counted != free_inodes {
            self.mend_totals = true;
            self.finds.mendable(format!("the superblock counts {counted} free inodes, {free_inodes} are"))?;
        }
        Ok(())
    }

    fn check_count(&mut self, group: u64, what: &str, found: u32, counted: u32) -> Result<bool> {
        if found == counted {
            return Ok(false);
        }
        self.finds.mendable(format!("group {group}: {found} {what}, {counted} are counted"))?;
        Ok(true)
    }

    /// Compares one bitmap; tells whether it is wrong.
    fn check_map(&mut self, group: u64, desc: &Desc, which: Which, found: &[u8]) -> Result<bool> {
        let sb = &self.fs.sb;
        let size = sb.block_size.bytes();
        let (count, flag, at, sum, what) = match which {
            Which::Blocks => {
                (sb.clusters_of(group), BLOCK_UNINIT, desc.block_bitmap, desc.block_csum, "block bitmap")
            }
            Which::Inodes => {
                let count = sb.inodes_per_group.into();
                (count, INODE_UNINIT, desc.inode_bitmap, desc.inode_csum, "inode bitmap")
            }
        };
        let (count, all) = (index(count)?, index(size.saturating_mul(8))?);
        let mut wrong = false;
        let mut map = vec![0; index(size)?];
        if desc.flags & flag != 0 {
            if which == Which::Blocks {
                sb.own_blocks(group, desc, &mut map)?;
            }
        } else {
            map = bytes(&self.fs.disk, self.fs.byte_of(at)?, size, size, "a bitmap")?;
            let computed = sb.bitmap_sum(which, &map)?;
            if sb.features.has_metadata_csum() && !sum_holds(sum, computed) {
                wrong = true;
                let what =
                    format!("group {group}: its {what} has checksum {sum:#x}, it adds up to {computed:#x}");
                self.finds.mendable(what)?;
            }
            if bits::next_clear(&map, count, all) < all {
                wrong = true;
                self.finds.mendable(format!("group {group}: bits behind the end of its {what} are clear"))?;
            }
        }
        bits::fill(&mut map, count, all, false);
        let name = |bit: usize| match which {
            Which::Blocks => {
                let block =
                    (len64(bit) << self.fs.sb.cluster_shift).saturating_add(self.fs.sb.first_block(group));
                format!("block {block}")
            }
            Which::Inodes => {
                let first = group.saturating_mul(self.fs.sb.inodes_per_group.into());
                format!("inode {}", first.saturating_add(len64(bit)).saturating_add(1))
            }
        };
        if let Some((first, n)) = only_in(found, &map) {
            let place = name(first);
            self.finds
                .mendable(format!("group {group}: its {what} has {n} in use as free, from {place} on"))?;
            wrong = true;
        }
        if let Some((first, n)) = only_in(&map, found) {
            let place = name(first);
            let what = format!(
                "group {group}: its {what} has {n} as in use to which nothing refers, from {place} on"
            );
            self.finds.leak(n, what);
            wrong = true;
        }
        // What lies in the part of the table that was never used was not looked at.
        let seen = index(self.fs.sb.inodes_per_group.saturating_sub(desc.unused).into())?;
        if which == Which::Inodes && next_set(&map, seen, count) < count {
            self.finds
                .corrupt(format!("group {group}: its inode bitmap has inodes in use that were never used"))?;
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_one_way() {
        assert_eq!(only_in(&[0, 0b1010], &[0xff, 0b0010]), Some((11, 1)));
        assert_eq!(only_in(&[0, 0b0010], &[0xff, 0b1010]), None);
    }
}
