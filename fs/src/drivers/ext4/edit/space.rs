//! Blocks taken and given back, in clusters: single blocks unless the filesystem has `bigalloc`.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64};

use super::super::fault::Ext4Fault;
use super::Edit;
use super::bits::{next_clear, next_set};
use super::bytes::low32;
use super::groups::Which;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    /// The best block to start at.
    pub(super) goal: u64,
    /// Clusters; at least one, and what is found may be fewer.
    pub(super) clusters: u64,
    /// All blocks lie before this one: block maps have 32 bits for a number.
    pub(super) limit: u64,
}

impl Edit {
    /// Blocks in a cluster.
    pub(super) fn ratio(&self) -> u64 {
        1u64.checked_shl(self.fs.sb.cluster_shift).unwrap_or(1)
    }

    /// The group of a block, and the bit of its cluster there.
    pub(super) fn locate(&self, block: u64) -> (u32, usize) {
        let sb = &self.fs.sb;
        let past = block.saturating_sub(sb.first_data_block);
        let group = past.checked_div(sb.blocks_per_group).unwrap_or(0);
        let within = past.checked_rem(sb.blocks_per_group).unwrap_or(0);
        (low32(group), index(within >> sb.cluster_shift).unwrap_or(0))
    }

    fn no_space(&self) -> racker_formats::Error {
        let free = self.totals.free.checked_shl(self.fs.sb.cluster_shift).unwrap_or(0);
        Ext4Fault::NoSpace { free, blocks: self.fs.sb.blocks }.into()
    }

    /// Takes a run of clusters, the longest up to what is wanted; returns its first block and its clusters.
    pub(super) fn allocate(&mut self, want: Want) -> Result<(u64, u64)> {
        if self.totals.free == 0 {
            return Err(self.no_space());
        }
        let limit = want.limit.min(self.fs.sb.blocks);
        let goal = if want.goal < limit { want.goal } else { self.fs.sb.first_data_block };
        let (home, bit) = self.locate(goal);
        let clusters = index(want.clusters.max(1))?;
        if let Some(run) = self.run_at(home, bit, clusters)? {
            return self.take(home, run);
        }
        if let Some(run) = self.search(home, bit, clusters)? {
            return self.take(home, run);
        }
        if let Some((group, run)) = self.search_all(home, clusters, limit)? {
            self.last_group = group;
            return self.take(group, run);
        }
        Err(self.no_space())
    }

    /// The run at exactly this place, if it is worth taking: what continues a file may be shorter than wanted.
    fn run_at(&mut self, group: u32, bit: usize, clusters: usize) -> Result<Option<(usize, usize)>> {
        const ENOUGH: usize = 64;
        if self.desc(group)?.free == 0 {
            return Ok(None);
        }
        let map = self.bits(group, Which::Blocks)?;
        let count = index(self.fs.sb.clusters_of(group.into()))?;
        if bit >= count || next_clear(&map, bit, count) != bit {
            return Ok(None);
        }
        let end = next_set(&map, bit, count.min(bit.saturating_add(clusters)));
        let len = end.saturating_sub(bit);
        Ok((len >= clusters.min(ENOUGH)).then_some((bit, end)))
    }

    /// A run of that length in a group from `from` on, then from its beginning.
    fn search(&mut self, group: u32, from: usize, clusters: usize) -> Result<Option<(usize, usize)>> {
        let desc = *self.desc(group)?;
        if desc.free == 0 || index(desc.longest.into())? < clusters {
            return Ok(None);
        }
        let count = index(self.fs.sb.clusters_of(group.into()))?;
        let map = self.bits(group, Which::Blocks)?;
        let first = index(desc.first_free.into())?;
        let start = if from > first { from } else { first };
        for (start, end) in [(start, count), (first, count)] {
            let (best, begin) = longest_run(&map, start, end, clusters);
            if best.1.saturating_sub(best.0) >= clusters {
                return Ok(Some(best));
            }
            if start == first {
                // All of it was seen now.
                let longest = u32::try_from(best.1.saturating_sub(best.0)).unwrap_or(u32::MAX);
                self.learn(group, longest, u32::try_from(begin).unwrap_or(0));
                break;
            }
        }
        Ok(None)
    }

    /// A run of that length in any group, or else the longest there is.
    fn search_all(
        &mut self,
        home: u32,
        clusters: usize,
        limit: u64,
    ) -> Result<Option<(u32, (usize, usize))>> {
        let groups = low32(self.fs.sb.groups);
        let fits = |edit: &Self, group: u32| {
            let first = edit.fs.sb.first_block(group.into());
            first.saturating_add(edit.fs.sb.blocks_of(group.into())) <= limit
        };
        let from = if self.last_group > home { self.last_group } else { home };
        for group in (from..groups).chain(0..from) {
            if !fits(self, group) {
                continue;
            }
            if let Some(run) = self.search(group, 0, clusters)? {
                return Ok(Some((group, run)));
            }
        }
        // Every group has been seen, or is known to have no such run. How long theirs are is only a bound, which a
        // search in vain makes exact, so this ends.
        loop {
            let mut best: Option<(u32, u32)> = None;
            for group in (from..groups).chain(0..from) {
                let desc = *self.desc(group)?;
                let longest = desc.longest.min(desc.free);
                if longest > best.map_or(0, |(_, len)| len) && fits(self, group) {
                    best = Some((group, longest));
                }
            }
            let Some((group, len)) = best else { return Ok(None) };
            if let Some(run) = self.search(group, 0, index(len.into())?)? {
                return Ok(Some((group, run)));
            }
            if self.desc(group)?.longest >= len {
                return Ok(None);
            }
        }
    }

    /// Marks the clusters of a run as taken.
    fn take(&mut self, group: u32, run: (usize, usize)) -> Result<(u64, u64)> {
        let sb = &self.fs.sb;
        let count = len64(run.1.saturating_sub(run.0));
        let start = sb.first_block(group.into()).saturating_add(len64(run.0) << sb.cluster_shift);
        let blocks = (count << sb.cluster_shift).min(sb.blocks.saturating_sub(start));
        if let Some(block) = self.zones.overlap(start, blocks) {
            return Err(Ext4Fault::SystemBlock { what: "the free space", block }.into());
        }
        self.mark(group, Which::Blocks, run, true)?;
        let desc = self.desc_mut(group)?;
        desc.free = desc.free.saturating_sub(low32(count));
        if u32::try_from(run.0).is_ok_and(|bit| bit <= desc.first_free) {
            desc.first_free = u32::try_from(run.1).unwrap_or(desc.first_free);
        }
        self.totals.free = self.totals.free.saturating_sub(count);
        Ok((start, count))
    }

    /// Gives back blocks when the operation has succeeded; whole clusters.
    pub(super) fn release(&mut self, start: u64, blocks: u64) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        if self.undo.is_none() {
            return self.free_blocks(start, blocks);
        }
        match self.released.last_mut() {
            Some((first, len)) if first.saturating_add(*len) == start => *len = len.saturating_add(blocks),
            _ => self.released.push((start, blocks)),
        }
        Ok(())
    }

    /// Marks blocks as free, whole clusters.
    pub(super) fn free_blocks(&mut self, start: u64, blocks: u64) -> Result<()> {
        self.fs.sb.check_blocks("a file", start, blocks)?;
        if let Some(block) = self.zones.overlap(start, blocks) {
            return Err(Ext4Fault::SystemBlock { what: "a file", block }.into());
        }
        self.fs.claims.forget(start, blocks)?;
        for number in self.fs.held.among(start, blocks)? {
            drop(self.fs.held.take(number)?);
        }
        let (mut at, end) = (start, start.saturating_add(blocks));
        while at < end {
            let (group, bit) = self.locate(at);
            let stop = self.fs.sb.first_block(u64::from(group).saturating_add(1)).min(end);
            let (_, last) = self.locate(stop.saturating_sub(1));
            let run = (bit, last.saturating_add(1));
            self.mark(group, Which::Blocks, run, false)?;
            let count = low32(len64(run.1.saturating_sub(run.0)));
            let desc = self.desc_mut(group)?;
            desc.free = desc.free.saturating_add(count);
            desc.longest = desc.free;
            desc.first_free = desc.first_free.min(u32::try_from(bit).unwrap_or(0));
            self.totals.free = self.totals.free.saturating_add(count.into());
            at = stop;
        }
        Ok(())
    }

    /// Checks that blocks which a node names are in use, and not the filesystem's own.
    pub(super) fn check_owned(&mut self, what: &'static str, start: u64, blocks: u64) -> Result<()> {
        self.fs.sb.check_blocks(what, start, blocks)?;
        if let Some(block) = self.zones.overlap(start, blocks) {
            return Err(Ext4Fault::SystemBlock { what, block }.into());
        }
        let (mut at, end) = (start, start.saturating_add(blocks));
        while at < end {
            let (group, bit) = self.locate(at);
            let stop = self.fs.sb.first_block(u64::from(group).saturating_add(1)).min(end);
            let (_, last) = self.locate(stop.saturating_sub(1));
            let map = self.bits(group, Which::Blocks)?;
            let free = next_clear(&map, bit, last.saturating_add(1));
            if free <= last {
                let number = at.saturating_add(len64(free.saturating_sub(bit)) << self.fs.sb.cluster_shift);
                return Err(Ext4Fault::Bitmap {
                    what,
                    bitmap: "block",
                    number,
                    found: "free, though in use",
                }
                .into());
            }
            at = stop;
        }
        Ok(())
    }
}

/// The first run of `want` clear bits in `from..end`, or the longest; and where the first clear bit is.
fn longest_run(map: &[u8], from: usize, end: usize, want: usize) -> ((usize, usize), usize) {
    let mut best = (from, from);
    let mut at = next_clear(map, from, end);
    let begin = at;
    while at < end {
        let stop = next_set(map, at, end.min(at.saturating_add(want)));
        if stop.saturating_sub(at) > best.1.saturating_sub(best.0) {
            best = (at, stop);
            if best.1.saturating_sub(best.0) >= want {
                break;
            }
        }
        at = next_clear(map, stop, end);
    }
    (best, begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_that_fits_is_found_or_else_the_longest() {
        let map = [0b1100_1001u8, 0b1111_0000, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(longest_run(&map, 0, 64, 1), ((1, 2), 1));
        assert_eq!(longest_run(&map, 0, 64, 2), ((1, 3), 1));
        assert_eq!(longest_run(&map, 0, 64, 3), ((8, 11), 1));
        assert_eq!(longest_run(&map, 0, 64, 9), ((8, 12), 1));
    }
}
