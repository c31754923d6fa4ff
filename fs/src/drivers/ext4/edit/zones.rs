//! Blocks of the filesystem's own tables: copies of the superblock and the descriptors, bitmaps, inode tables, the
//! journal. No file ever gets or gives back one of them, whatever a bitmap or an extent says.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;

use super::super::fault::Ext4Fault;
use super::super::features::Incompat;
use super::super::map::Mapping;
use super::super::superblock::Superblock;
use super::super::volume::Ext4;
use super::groups::Desc;

/// Stretches of blocks, in order, none touching the next.
#[derive(Debug, Default)]
pub(super) struct Zones(Vec<(u64, u64)>);

impl Zones {
    /// Collects them. Tables that overlap are damage.
    pub(super) fn new(fs: &Ext4, groups: &[Desc]) -> Result<Self> {
        let sb = &fs.sb;
        let mut all = tables(sb, groups);
        let journal = sb.raw.journal_inum.get();
        if fs.has_journal() && journal != 0 {
            let inode = fs.any_inode(journal)?;
            fs.runs(&inode, &mut |_, run| {
                if let Mapping::Data(start) | Mapping::Unwritten(start) = run.to {
                    all.push((start, start.saturating_add(run.len)));
                }
                Ok(ControlFlow::Continue(()))
            })
            .within(|| "journal")?;
        }
        Self::joined(all)
    }

    /// The same without the journal, whose blocks are those of a file.
    pub(super) fn without_journal(sb: &Superblock, groups: &[Desc]) -> Result<Self> {
        Self::joined(tables(sb, groups))
    }

    pub(super) fn joined(mut all: Vec<(u64, u64)>) -> Result<Self> {
        all.retain(|(start, end)| start < end);
        all.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(all.len().min(1024));
        for (start, end) in all {
            match joined.last_mut() {
                Some((_, last)) if start < *last => {
                    return Err(Ext4Fault::SystemBlock { what: "a table", block: start }.into());
                }
                Some((_, last)) if start == *last => *last = end,
                _ => joined.push((start, end)),
            }
        }
        Ok(Self(joined))
    }

    /// The first block of `len` from `start` that is one of them.
    pub(super) fn overlap(&self, start: u64, len: u64) -> Option<u64> {
        let end = start.saturating_add(len);
        let next = self.0.partition_point(|(_, zone_end)| *zone_end <= start);
        self.0.get(next).filter(|(zone, _)| *zone < end).map(|(zone, _)| (*zone).max(start))
    }

    /// The stretch that holds `block`.
    pub(super) fn around(&self, block: u64) -> Option<(u64, u64)> {
        let next = self.0.partition_point(|(_, end)| *end <= block);
        self.0.get(next).copied().filter(|(start, _)| *start <= block)
    }

    /// Calls `left` with each piece of a stretch that is none of them.
    pub(super) fn outside(&self, stretch: (u64, u64), left: &mut dyn FnMut(u64, u64)) {
        let (mut at, end) = stretch;
        while at < end {
            let next = self.overlap(at, end.saturating_sub(at)).and_then(|block| self.around(block));
            let Some((start, stop)) = next else { return left(at, end) };
            if at < start {
                left(at, start);
            }
            at = stop;
        }
    }

    /// All stretches, in order.
    pub(super) fn all(&self) -> &[(u64, u64)] {
        &self.0
    }
}

/// Stretches of all tables.
fn tables(sb: &Superblock, groups: &[Desc]) -> Vec<(u64, u64)> {
    let table = sb.table_blocks();
    let mut all = Vec::new();
    for (number, desc) in (0u64..).zip(groups) {
        let (start, len) = sb.base_blocks(number);
        all.push((start, start.saturating_add(len)));
        all.push((desc.block_bitmap, desc.block_bitmap.saturating_add(1)));
        all.push((desc.inode_bitmap, desc.inode_bitmap.saturating_add(1)));
        all.push((desc.inode_table, desc.inode_table.saturating_add(table)));
    }
    if sb.features.incompat.contains(Incompat::MMP) {
        let block = sb.raw.mmp_block.get();
        all.push((block, block.saturating_add(1)));
    }
    all
}

impl Superblock {
    /// Blocks of one group's inode table.
    pub(in super::super) fn table_blocks(&self) -> u64 {
        self.block_size.count(u64::from(self.inodes_per_group).saturating_mul(len64(self.inode_bytes)))
    }

    /// Where a group's copies of superblock and descriptors are, with the room to grow: first block and number.
    pub(in super::super) fn base_blocks(&self, group: u64) -> (u64, u64) {
        let first = self.first_block(group);
        let copy = u64::from(self.has_superblock(group));
        let per_block = self.block_size.bytes().checked_div(len64(self.group_bytes)).unwrap_or(1).max(1);
        let all = self.groups.div_ceil(per_block);
        let meta_bg = self.features.incompat.contains(Incompat::META_BG);
        let first_meta = if meta_bg { u64::from(self.raw.first_meta_bg.get()).min(all) } else { all };
        // With blocks of 1024 bytes there may be a boot block before the first superblock.
        let boot = u64::from(group == 0 && self.block_size.bytes() == 1024 && self.first_data_block == 0);
        let number = group.checked_div(per_block).unwrap_or(0);
        let rest = if !meta_bg || number < first_meta {
            let reserved = u64::from(self.raw.reserved_gdt_blocks.get());
            if copy == 1 { first_meta.saturating_add(reserved) } else { 0 }
        } else {
            let within = group.checked_rem(per_block).unwrap_or(0);
            u64::from(within == 0 || within == 1 || within == per_block.saturating_sub(1))
        };
        (first, copy.saturating_add(boot).saturating_add(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_found_at_every_edge() {
        let zones = Zones::joined(vec![(10, 12), (30, 40), (12, 15), (5, 5)]).unwrap();
        assert_eq!(zones.0, [(10, 15), (30, 40)]);
        assert_eq!(zones.overlap(0, 10), None);
        assert_eq!(zones.overlap(0, 11), Some(10));
        assert_eq!(zones.overlap(14, 1), Some(14));
        assert_eq!(zones.overlap(15, 15), None);
        assert_eq!(zones.overlap(35, 100), Some(35));
        assert_eq!(zones.overlap(40, 100), None);
        assert!(Zones::joined(vec![(1, 3), (2, 4)]).is_err());
    }
}
