//! Allocation over all groups: which group, how much, and what has to stay free.

use racker_formats::error::Result;

use super::super::fault::Fault;
use super::super::units::{AgNo, FsBlock};
use super::Edit;
use super::owner::Owner;
use super::records::Run;

/// Blocks that the kernel keeps for itself at most, beside a twentieth of all.
const POOL_BLOCKS_MAX: u64 = 8192;
/// Blocks of each group that the kernel never counts on: for the spare blocks.
const ASIDE_BLOCKS: u64 = 8;
/// What all groups keep for their trees is less than an eighth of the filesystem: with blocks of 1 KiB half full
/// the reverse map takes 1/18, the counts of shared blocks 1/38, the free space trees 1/60.
const KEPT_SHIFT_MAX: u32 = 3;

/// A run of blocks in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ag: AgNo,
    pub(super) run: Run,
}

/// What to allocate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// Blocks that are to lie in a row at best; never 0.
    pub(super) whole: u64,
    /// Most blocks to take now; never 0.
    pub(super) take: u32,
    /// The group to look in first.
    pub(super) near: AgNo,
    /// The block it would be best to begin at: behind what was allocated before.
    pub(super) behind: Option<u32>,
}

impl Edit {
    /// The filesystem's number of the first block.
    pub(super) fn fs_block(&self, found: Found) -> Result<FsBlock> {
        self.volume.sb.fs_block(found.ag, super::super::units::AgBlock(found.run.start))
    }

    /// Allocates between 1 and `want.take` blocks in a row. `owner` says who gets them.
    pub(super) fn allocate(&mut self, want: Want, owner: Owner) -> Result<Found> {
        let ag = self.choose(&want)?;
        let left = u32::try_from(self.budget).unwrap_or(u32::MAX);
        let group = self.group(ag)?;
        group.space.top_up()?;
        let most = group.available()?.min(want.take).min(left);
        let behind = match want.behind.filter(|_| ag == want.near) {
            Some(block) => group.space.free_from(block)?,
            None => None,
        };
        let whole = u32::try_from(want.whole).unwrap_or(u32::MAX);
        let run = match behind {
            Some(run) => Some(run),
            None => group.space.best(whole)?,
        };
        let run = run.and_then(|run| Run::between(run.start, run.start.saturating_add(run.len.min(most))));
        let run = run.ok_or(Fault::NoSpace)?;
        if let Some(sharing) = group.sharing.as_mut()
            && sharing.knows(run)?
        {
            return Err(Fault::Structure { what: "refcountbt", why: "a free block is shared" }.into());
        }
        group.space.allocate(run, owner)?;
        self.budget = self.budget.saturating_sub(run.len.into());
        Ok(Found { ag, run })
    }

    /// The group to allocate in: where the last blocks can be continued; else where all fit in a row, the nearest
    /// first; else the one with the longest run.
    fn choose(&mut self, want: &Want) -> Result<AgNo> {
        let near = self.group(want.near)?;
        if near.available()? > 0 {
            if let Some(block) = want.behind
                && near.space.free_from(block)?.is_some()
            {
                return Ok(want.near);
            }
            if u64::from(near.space.longest()) >= want.whole {
                return Ok(want.near);
            }
        }
        let mut best: Option<(u32, AgNo)> = None;
        for ag in 0..self.volume.sb.ag_count {
            let group = self.group(AgNo(ag))?;
            let longest = group.space.longest().min(group.available()?);
            if u64::from(longest) >= want.whole {
                return Ok(AgNo(ag));
            }
            if longest > 0 && best.is_none_or(|(length, _)| longest > length) {
                best = Some((longest, AgNo(ag)));
            }
        }
        best.map(|(_, ag)| ag).ok_or_else(|| Fault::NoSpace.into())
    }

    /// Finds out how many blocks an operation that wants `want` may allocate, and holds it to them: as many as the
    /// kernel would give to files. If there is plenty, not all groups are looked at, and the answer is a part of it.
    pub(super) fn budget_for(&mut self, want: u64) -> Result<u64> {
        let sb = &self.volume.sb;
        let pool = sb.blocks.checked_div(20).unwrap_or(0).min(POOL_BLOCKS_MAX);
        let gained = self.groups.values().map(|g| g.space.gained).fold(0i64, i64::saturating_add);
        let free = self.totals.free_blocks.saturating_add_signed(gained);
        let certain = free.saturating_sub(pool).saturating_sub(sb.blocks >> KEPT_SHIFT_MAX);
        self.budget = if certain >= want {
            certain
        } else {
            let aside = u64::from(sb.ag_count).saturating_mul(ASIDE_BLOCKS);
            let mut kept = pool.saturating_add(aside);
            for ag in 0..self.volume.sb.ag_count {
                let group = self.group(AgNo(ag))?;
                let hidden = u64::from(group.reserve()?.hidden);
                kept = kept.saturating_add(hidden).saturating_add(group.space.free_tree_blocks().into());
            }
            free.saturating_sub(kept)
        };
        Ok(self.budget)
    }
}
