//! Which blocks of the filesystem a file has, whichever way its inode maps them.

use racker_formats::error::Result;
use racker_formats::wire::len64;

use super::super::fault::Ext4Fault;
use super::super::layout::inode_flags;
use super::super::map::{Mapping, Run};
use super::Edit;
use super::node::Node;
use super::space::Want;
use super::tree::Item;

/// Blocks of one extent that is written.
const EXTENT_MAX: u64 = 32768;

impl Edit {
    /// Where block `at` of a file is, and how many blocks go on so.
    pub(super) fn map(&self, node: &Node, at: u64) -> Result<Run> {
        self.fs.map(&node.view(&self.fs.sb)?, at)
    }

    /// Blocks that a file can have.
    pub(super) fn blocks_max(&self, node: &Node) -> u64 {
        let all = u64::from(u32::MAX);
        if node.has(inode_flags::EXTENTS) { all } else { all.min(self.map_blocks_max()) }
    }

    /// Takes a block for metadata of a node: a whole cluster.
    pub(super) fn take_meta(&mut self, node: &mut Node) -> Result<u64> {
        let goal = self.group_goal(node.number);
        let limit = if node.has(inode_flags::EXTENTS) { u64::MAX } else { 1 << 32 };
        let (block, _) = self.allocate(Want { goal, clusters: 1, limit })?;
        let ratio = self.ratio();
        node.add_blocks(&self.fs.sb, ratio.cast_signed())?;
        Ok(block)
    }

    /// Gives back a block of metadata.
    pub(super) fn give_meta(&mut self, node: &mut Node, block: u64) -> Result<()> {
        let ratio = self.ratio();
        node.add_blocks(&self.fs.sb, ratio.cast_signed().saturating_neg())?;
        self.release(block, 1)
    }

    /// The first block of an inode's group.
    pub(super) fn group_goal(&self, number: u32) -> u64 {
        self.fs.sb.first_block(self.group_of(number).into())
    }

    /// Where the best place for block `at` of a file is: behind the block before it.
    fn goal(&self, node: &Node, at: u64) -> Result<u64> {
        let before = match at.checked_sub(1) {
            Some(before) => self.map(node, before)?.to,
            None => Mapping::Hole,
        };
        let ratio = self.ratio();
        Ok(match before {
            Mapping::Data(block) | Mapping::Unwritten(block) => {
                block.saturating_add(ratio) & !ratio.saturating_sub(1)
            }
            Mapping::Hole => self.group_goal(node.number),
        })
    }

    /// Sees to it that the blocks `from..to` of a file are there and count as written.
    pub(super) fn fill(&mut self, node: &mut Node, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let run = self.map(node, at)?;
            let len = run.len.min(to.saturating_sub(at));
            let end = at.saturating_add(len);
            match run.to {
                Mapping::Data(start) => self.check_owned("a file", start, len)?,
                Mapping::Unwritten(start) => {
                    self.check_owned("a file", start, len)?;
                    self.remove_extents(node, at, end, &mut |_, _, _| Ok(()))?;
                    self.insert_pieces(node, at, start, len)?;
                }
                Mapping::Hole => self.fill_hole(node, at, end)?,
            }
            at = end;
        }
        Ok(())
    }

    /// Takes blocks for a hole.
    fn fill_hole(&mut self, node: &mut Node, from: u64, to: u64) -> Result<()> {
        let shift = self.fs.sb.cluster_shift;
        let limit = if node.has(inode_flags::EXTENTS) { u64::MAX } else { 1 << 32 };
        let mut at = from;
        while at < to {
            let (first, last) = (at >> shift, to.saturating_sub(1) >> shift);
            let within = at.saturating_sub(first << shift);
            if let Some(start) = self.cluster_home(node, first)? {
                let end = to.min(first.saturating_add(1) << shift);
                self.insert_pieces(node, at, start.saturating_add(within), end.saturating_sub(at))?;
                at = end;
                continue;
            }
            let mut clusters = last.saturating_sub(first).saturating_add(1);
            if clusters > 1 && self.cluster_home(node, last)?.is_some() {
                clusters = clusters.saturating_sub(1);
            }
            let goal = self.goal(node, at)?;
            let (start, got) = self.allocate(Want { goal, clusters, limit })?;
            node.add_blocks(&self.fs.sb, (got << shift).cast_signed())?;
            let end = to.min(first.saturating_add(got) << shift);
            self.insert_pieces(node, at, start.saturating_add(within), end.saturating_sub(at))?;
            at = end;
        }
        Ok(())
    }

    /// The first block of the cluster that holds some block of the file's cluster number `cluster`.
    fn cluster_home(&self, node: &Node, cluster: u64) -> Result<Option<u64>> {
        let shift = self.fs.sb.cluster_shift;
        if shift == 0 {
            return Ok(None);
        }
        let (mut at, end) = (cluster << shift, cluster.saturating_add(1) << shift);
        while at < end {
            let run = self.map(node, at)?;
            if let Mapping::Data(block) | Mapping::Unwritten(block) = run.to {
                return Ok(Some(block & !self.ratio().saturating_sub(1)));
            }
            at = at.saturating_add(run.len);
        }
        Ok(None)
    }

    /// Maps a row of blocks.
    fn insert_pieces(&mut self, node: &mut Node, first: u64, start: u64, len: u64) -> Result<()> {
        if !node.has(inode_flags::EXTENTS) {
            return self.map_blocks(node, first, start, len);
        }
        let mut done = 0;
        while done < len {
            let piece = len.saturating_sub(done).min(EXTENT_MAX);
            let (first, start) = (first.saturating_add(done), start.saturating_add(done));
            self.insert_extent(node, Item { first, len: piece, start, unwritten: false })?;
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Makes the blocks `from..to` of a file a hole, and gives them back.
    pub(super) fn unmap(&mut self, node: &mut Node, from: u64, to: u64) -> Result<()> {
        // The last cluster that was given back: its blocks may be in several extents.
        let mut freed = None;
        let mut gone = |edit: &mut Self, node: &mut Node, item: Item| edit.give_item(node, item, &mut freed);
        if node.has(inode_flags::EXTENTS) {
            self.remove_extents(node, from, to, &mut gone)
        } else if self.fs.sb.cluster_shift > 0 {
            Err(Ext4Fault::Cannot("files with block maps do not go with clusters".into()).into())
        } else {
            self.unmap_blocks(node, from, to, &mut gone)
        }
    }

    /// Gives back the blocks of an extent that is out of the tree; not clusters that others of the file are in.
    fn give_item(&mut self, node: &mut Node, item: Item, freed: &mut Option<u64>) -> Result<()> {
        let shift = self.fs.sb.cluster_shift;
        if shift == 0 {
            node.add_blocks(&self.fs.sb, item.len.cast_signed().saturating_neg())?;
            return self.release(item.start, item.len);
        }
        let (mut first, mut end) = (item.first >> shift, item.end().saturating_sub(1) >> shift);
        end = end.saturating_add(1);
        let base = item.start & !self.ratio().saturating_sub(1);
        let origin = first;
        if *freed == Some(first) || self.cluster_home(node, first)?.is_some() {
            first = first.saturating_add(1);
        }
        if end > first && self.cluster_home(node, end.saturating_sub(1))?.is_some() {
            end = end.saturating_sub(1);
        }
        if end <= first {
            return Ok(());
        }
        *freed = Some(end.saturating_sub(1));
        let clusters = end.saturating_sub(first);
        let blocks = clusters << shift;
        node.add_blocks(&self.fs.sb, blocks.cast_signed().saturating_neg())?;
        let start = base.saturating_add(first.saturating_sub(origin) << shift);
        self.release(start, blocks.min(self.fs.sb.blocks.saturating_sub(start)))
    }

    /// Writes bytes to blocks that are there.
    pub(super) fn write_mapped(&mut self, node: &Node, at: u64, data: &[u8]) -> Result<()> {
        let view = node.view(&self.fs.sb)?;
        let mut rest = data;
        let mut at = at;
        while !rest.is_empty() {
            let (block, within) = self.fs.sb.block_size.split(at);
            let run = self.fs.map(&view, block)?;
            let Mapping::Data(start) = run.to else {
                return Err(Ext4Fault::Unsound("has lost a block that was just taken").into());
            };
            let there = self.fs.sb.block_size.start_of(run.len).unwrap_or(u64::MAX).saturating_sub(within);
            let take = usize::try_from(there).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_checked(take).unwrap_or((rest, &[]));
            let place = self.fs.byte_of(start)?.saturating_add(within);
            self.fresh.write(&self.fs.disk, place, now)?;
            rest = later;
            at = at.saturating_add(len64(now.len()));
        }
        Ok(())
    }
}
