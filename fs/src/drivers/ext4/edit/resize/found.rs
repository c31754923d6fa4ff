//! New groups: where their bitmaps and inode tables are, and what is marked in them.
//!
//! With `flex_bg` the tables of all groups of a flexible group lie together behind the beginning of the first one
//! that is new; else each group has its own. Where descriptors have checksums a group without files has no bitmaps,
//! and the kernel clears its inode table after the first mount, unless it reads as zeroes already.

use racker_formats::block::{RunKind, Span};
use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64};

use super::super::super::fault::Ext4Fault;
use super::super::super::features::Incompat;
use super::super::super::superblock::Superblock;
use super::super::Edit;
use super::super::bits;
use super::super::bytes::low32;
use super::super::groups::{BLOCK_UNINIT, Desc, INODE_UNINIT, INODE_ZEROED, Which};
use super::super::zones::Zones;

/// Tables of one group: block bitmap, inode bitmap, inode table.
type Tables = [u64; 3];

/// The next free place for `len` blocks from `at` on, between the copies of superblock and descriptors.
fn place(sb: &Superblock, at: u64, len: u64) -> u64 {
    let group_of =
        |block: u64| block.saturating_sub(sb.first_data_block).checked_div(sb.blocks_per_group).unwrap_or(0);
    let mut at = at;
    loop {
        let last = group_of(at.saturating_add(len).saturating_sub(1));
        let busy = (group_of(at)..=last).map(|group| sb.base_blocks(group)).find(|(start, count)| {
            *count > 0 && *start < at.saturating_add(len) && at < start.saturating_add(*count)
        });
        match busy {
            Some((start, count)) => at = start.saturating_add(count),
            None => return at,
        }
    }
}

/// Places for the tables of the groups from `first` on.
fn layout(sb: &Superblock, first: u64) -> Result<Vec<Tables>> {
    let flexible = sb.features.incompat.contains(Incompat::FLEX_BG);
    let log = u32::from(sb.raw.log_groups_per_flex).min(31);
    let flex = if flexible { 1u64.checked_shl(log).unwrap_or(1) } else { 1 };
    let table = sb.table_blocks();
    let mut all: Vec<Tables> = Vec::new();
    let (mut group, mut cursor) = (first, 0);
    while group < sb.groups {
        let end = (group & !flex.saturating_sub(1)).saturating_add(flex).min(sb.groups);
        cursor = sb.first_block(group).max(cursor);
        let count = index(end.saturating_sub(group))?;
        let start = all.len();
        all.resize(start.saturating_add(count), [0; 3]);
        for (which, len) in [(0usize, 1), (1, 1), (2, table)] {
            for tables in all.get_mut(start..).unwrap_or_default() {
                let at = place(sb, cursor, len);
                cursor = at.saturating_add(len);
                if let Some(slot) = tables.get_mut(which) {
                    *slot = at;
                }
            }
        }
        let limit =
            if flexible { sb.blocks } else { sb.first_block(group).saturating_add(sb.blocks_of(group)) };
        if cursor > limit {
            let what = format!("there is no place for the tables of group {group}");
            return Err(Ext4Fault::Cannot(what).into());
        }
        group = end;
    }
    Ok(all)
}

/// Whether a larger filesystem has room for the tables of its new groups.
pub(super) fn check_layout(new: &Superblock, first: u64) -> Result<()> {
    layout(new, first).map(|_| ())
}

impl Edit {
    /// Makes the groups from `first` on, which the superblock has already.
    pub(super) fn found(&mut self, first: u64) -> Result<()> {
        let sb = self.fs.sb.clone();
        let places = layout(&sb, first)?;
        self.clear_descriptors(first)?;
        let mut taken = Vec::new();
        for (group, [block_bitmap, inode_bitmap, inode_table]) in (first..).zip(&places) {
            let (start, len) = sb.base_blocks(group);
            taken.push((start, start.saturating_add(len)));
            let lens = [(*block_bitmap, 1), (*inode_bitmap, 1), (*inode_table, sb.table_blocks())];
            taken.extend(lens.map(|(start, len)| (start, start.saturating_add(len))));
            let flags = if sb.features.has_group_csum() { INODE_UNINIT } else { INODE_ZEROED };
            let unused = if sb.features.has_group_csum() { sb.inodes_per_group } else { 0 };
            self.groups.list.push(Desc {
                block_bitmap: *block_bitmap,
                inode_bitmap: *inode_bitmap,
                inode_table: *inode_table,
                free_inodes: sb.inodes_per_group,
                flags,
                unused,
                ..Desc::new()
            });
        }
        let taken = Zones::joined(taken)?;
        for group in low32(first)..low32(sb.groups) {
            self.found_one(group, &taken).within(|| format!("group {group}"))?;
            self.shed_if_large()?;
        }
        Ok(())
    }

    /// Nothing of what was there before stays in new descriptors.
    fn clear_descriptors(&mut self, first: u64) -> Result<()> {
        let (per_block, len) = (self.fs.sb.descs_per_block(), self.fs.sb.group_bytes);
        let size = index(self.fs.sb.block_size.bytes())?;
        let (mut number, within) =
            (first.checked_div(per_block).unwrap_or(0), index(first.checked_rem(per_block).unwrap_or(0))?);
        if within > 0 {
            let block = self.fs.sb.descriptor_block(number);
            self.change_system("a group descriptor", block, |bytes| {
                bytes.get_mut(within.saturating_mul(len)..).unwrap_or_default().fill(0);
                Ok(())
            })?;
            number = number.saturating_add(1);
        }
        for number in number..self.fs.sb.desc_blocks() {
            self.put_block(self.fs.sb.descriptor_block(number), vec![0; size])?;
        }
        Ok(())
    }

    fn found_one(&mut self, group: u32, taken: &Zones) -> Result<()> {
        let sb = self.fs.sb.clone();
        let desc = *self.desc(group)?;
        let size = index(sb.block_size.bytes())?;
        let all = size.saturating_mul(8);
        let (first, clusters) = (sb.first_block(group.into()), index(sb.clusters_of(group.into()))?);
        let end = first.saturating_add(sb.blocks_of(group.into()));
        let mut map = vec![0u8; size];
        let mut at = first;
        while let Some(block) = taken.overlap(at, end.saturating_sub(at)).filter(|_| at < end) {
            let stop = taken.around(block).map_or(end, |(_, stop)| stop.min(end));
            let bit = |block: u64| index(block.saturating_sub(first) >> sb.cluster_shift);
            bits::fill(&mut map, bit(block)?, bit(stop.saturating_sub(1))?.saturating_add(1), true);
            at = stop;
        }
        let mut own = vec![0u8; size];
        sb.own_blocks(group.into(), &desc, &mut own)?;
        let plain =
            sb.features.has_group_csum() && own == map && u64::from(group) < sb.groups.saturating_sub(1);
        bits::fill(&mut map, clusters, all, true);
        let free = low32(len64(bits::count_clear(&map, clusters)));
        let table = self.table_span(desc.inode_table)?;
        let blank = self.reads_as_zeroes(table)?;
        if !plain {
            self.groups.put_map(group, Which::Blocks, map);
        }
        if !sb.features.has_group_csum() {
            let mut inodes = vec![0u8; size];
            bits::fill(&mut inodes, index(sb.inodes_per_group.into())?, all, true);
            self.groups.put_map(group, Which::Inodes, inodes);
            if !blank {
                self.fs.disk.write_zeroes(table)?;
            }
        }
        let desc = self.desc_mut(group)?;
        (desc.free, desc.longest) = (free, free);
        desc.flags |= if plain { BLOCK_UNINIT } else { 0 };
        desc.flags |= if blank { INODE_ZEROED } else { 0 };
        Ok(())
    }

    fn table_span(&self, table: u64) -> Result<Span> {
        let len = self.fs.sb.block_size.start_of(self.fs.sb.table_blocks()).unwrap_or(0);
        Span::new(self.fs.byte_of(table)?, len)
    }

    /// Whether a stretch of the volume is known to hold zeroes.
    fn reads_as_zeroes(&self, span: Span) -> Result<bool> {
        for run in self.fs.disk.runs(span) {
            if !matches!(run?.1, RunKind::Zero | RunKind::Hole) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
