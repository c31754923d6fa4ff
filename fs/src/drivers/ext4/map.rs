//! What a file's blocks are, whichever way the inode maps them; reading through it.

use std::collections::HashSet;
use std::ops::ControlFlow;

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part_mut};

use super::fault::Ext4Fault;
use super::inode::Inode;
use super::layout::inode_flags;
use super::volume::Ext4;
use super::{block_map, extent};
use crate::filesystem::{Extent, ExtentKind, Visit};

/// Where a block of a file is: a block number of the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    Data(u64),
    /// Allocated, reads as zeroes.
    Unwritten(u64),
    Hole,
}

/// Blocks that go on in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// How many, from the block asked about.
    pub(super) len: u64,
    pub(super) to: Mapping,
    /// The last indirect block on the way there; 0 where there is none.
    pub(super) via: u64,
}

impl Run {
    pub(super) fn new(len: u64, to: Mapping) -> Self {
        Self { len, to, via: 0 }
    }
}

impl Ext4 {
    /// Where block `at` of a file is.
    pub(super) fn map(&self, inode: &Inode, at: u64) -> Result<Run> {
        let below = || self.map_below(inode, at);
        let run = self.fast.map(inode.number, at, below)?;
        Ok(Run { len: run.len.max(1), ..run })
    }

    fn map_below(&self, inode: &Inode, at: u64) -> Result<Run> {
        if inode.has(inode_flags::EXTENTS) {
            extent::lookup(self, inode, at)
        } else {
            block_map::lookup(self, inode, at)
        }
    }

    /// Calls `visit(first block, run)` for all blocks of a file up to its size, in order. A tree that leads to the
    /// same blocks again and again ends as an error: no file has more runs than the filesystem has blocks, each
    /// with a hole before it, and no indirect block stands in two places. (Blocks of an extent tree cannot, as each
    /// names the first block that it answers for.)
    pub(super) fn runs(
        &self,
        inode: &Inode,
        visit: &mut dyn FnMut(u64, Run) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let end = self.sb.block_size.count(inode.size);
        let mut steps = self.sb.blocks.saturating_mul(2).saturating_add(2);
        let mut blocks = self.sb.blocks;
        let mut passed = HashSet::new();
        let mut via = 0;
        let mut at = 0;
        while at < end {
            let run = self.map(inode, at)?;
            let run = Run { len: run.len.min(end.saturating_sub(at)), ..run };
            let taken = if run.to == Mapping::Hole { 0 } else { run.len };
            match (steps.checked_sub(1), blocks.checked_sub(taken)) {
                (Some(s), Some(b)) => (steps, blocks) = (s, b),
                _ => return Err(Ext4Fault::TooManyBlocks { what: "the inode" }.into()),
            }
            if run.via != via && run.via != 0 && !passed.insert(run.via) {
                return Err(Ext4Fault::SharedBlock(run.via).into());
            }
            via = run.via;
            if visit(at, run)?.is_break() {
                return Ok(());
            }
            at = at.saturating_add(run.len);
        }
        Ok(())
    }

    /// Reads stored content from `at`, which ends at the inode's size.
    pub(super) fn read_blocks(&self, inode: &Inode, at: u64, buf: &mut [u8]) -> Result<usize> {
        let len = index(inode.size.saturating_sub(at).min(len64(buf.len())))?;
        let mut done = 0usize;
        while done < len {
            let now = at.saturating_add(len64(done));
            let (block, within) = self.sb.block_size.split(now);
            let run = self.map(inode, block)?;
            let there = self.sb.block_size.start_of(run.len).unwrap_or(u64::MAX).saturating_sub(within);
            let take = index(there.min(len64(len.saturating_sub(done))))?;
            let target = part_mut(buf, done, take, "read")?;
            match run.to {
                Mapping::Data(start) => {
                    self.disk.read_at(self.byte_of(start)?.saturating_add(within), target)?;
                }
                Mapping::Unwritten(_) | Mapping::Hole => target.fill(0),
            }
            done = done.saturating_add(take);
        }
        Ok(done)
    }

    /// The extents of a file in bytes, neighbours joined.
    pub(super) fn extents_of(&self, inode: &Inode, visit: &mut Visit<'_, Extent>) -> Result<()> {
        let mut pending: Option<Extent> = None;
        let mut stopped = false;
        self.runs(inode, &mut |first, run| {
            let at = self.byte_of(first)?;
            let len = self.byte_of(run.len)?.min(inode.size.saturating_sub(at));
            let kind = match run.to {
                Mapping::Data(block) => ExtentKind::Data(self.byte_of(block)?),
                Mapping::Unwritten(block) => ExtentKind::Unwritten(self.byte_of(block)?),
                Mapping::Hole => ExtentKind::Hole,
            };
            if let Some(last) = &mut pending
                && goes_on(last, kind)
            {
                last.len = last.len.saturating_add(len);
                return Ok(ControlFlow::Continue(()));
            }
            if let Some(done) = pending.replace(Extent { at, len, kind })
                && visit(done)?.is_break()
            {
                stopped = true;
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(last) = pending.filter(|_| !stopped) {
            let _ = visit(last)?;
        }
        Ok(())
    }
}

/// Whether what follows `last` is of one piece with it.
fn goes_on(last: &Extent, next: ExtentKind) -> bool {
    match (last.kind, next) {
        (ExtentKind::Hole, ExtentKind::Hole) => true,
        (ExtentKind::Data(a), ExtentKind::Data(b)) | (ExtentKind::Unwritten(a), ExtentKind::Unwritten(b)) => {
            a.checked_add(last.len) == Some(b)
        }
        _ => false,
    }
}
