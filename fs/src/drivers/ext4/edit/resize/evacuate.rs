//! Blocks of files that are in the way: found, given new places, copied.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64};

use super::super::super::fault::Ext4Fault;
use super::super::Edit;
use super::super::bits::{next_clear, next_set};
use super::super::bytes::low32;
use super::super::groups::{BLOCK_UNINIT, Which};
use super::super::zones::Zones;
use super::plan::Plan;

/// Stretches of blocks that move in one go: 24 bytes each.
const RUNS_MAX: u64 = 4 << 20;
/// Bytes that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// Where blocks went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    from: u64,
    len: u64,
    to: u64,
}

/// Where all blocks went, in order of where they were.
#[derive(Debug, Default)]
pub(super) struct Moves(Vec<Run>);

impl Moves {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a block is now, and how many behind it went along; for one that stayed, how many follow that stayed.
    pub(super) fn find(&self, block: u64) -> (u64, u64) {
        let next = self.0.partition_point(|run| run.from <= block);
        if let Some(run) = next.checked_sub(1).and_then(|n| self.0.get(n)) {
            let past = block.saturating_sub(run.from);
            if past < run.len {
                return (run.to.saturating_add(past), run.len.saturating_sub(past));
            }
        }
        let stays = self.0.get(next).map_or(u64::MAX, |run| run.from.saturating_sub(block));
        (block, stays)
    }

    /// Where a block is now.
    pub(super) fn of(&self, block: u64) -> u64 {
        self.find(block).0
    }

    /// Whether any of `len` blocks has moved.
    pub(super) fn touch(&self, start: u64, len: u64) -> bool {
        let (to, run) = self.find(start);
        to != start || run < len
    }
}

impl Edit {
    /// Moves what files have in the blocks that are wanted. Nobody gets a block of them from here on.
    pub(super) fn evacuate(&mut self, plan: &Plan) -> Result<Moves> {
        let tables = self.whole_clusters()?;
        let mut sources = Vec::new();
        for (start, end) in plan.wanted.all() {
            self.bar(*start, *end, plan, &tables, &mut sources)?;
        }
        let moves = Moves(self.targets(&sources)?);
        if moves.is_empty() {
            return Ok(moves);
        }
        self.write_back(true)?;
        for run in &moves.0 {
            self.copy(run)?;
        }
        self.forget_read()?;
        Ok(moves)
    }

    /// All tables, the rest of clusters that they begin or end in included.
    fn whole_clusters(&self) -> Result<Zones> {
        let rest = self.ratio().saturating_sub(1);
        let mut all: Vec<(u64, u64)> = Vec::new();
        for (start, end) in self.zones.all() {
            let (start, end) = (start & !rest, end.saturating_add(rest) & !rest);
            match all.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => all.push((start, end)),
            }
        }
        Zones::joined(all)
    }

    /// Marks what is free of `start..end` as taken, and notes what files have of it.
    fn bar(
        &mut self,
        start: u64,
        end: u64,
        plan: &Plan,
        tables: &Zones,
        sources: &mut Vec<(u64, u64)>,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            let (group, first) = self.locate(at);
            let stop = self.fs.sb.first_block(u64::from(group).saturating_add(1)).min(end);
            let (_, last) = self.locate(stop.saturating_sub(1));
            at = stop;
            if u64::from(group) >= plan.new.groups && self.desc(group)?.flags & BLOCK_UNINIT != 0 {
                // All of it goes, and none of it is in use.
                let free = u64::from(self.desc(group)?.free);
                self.totals.free = self.totals.free.saturating_sub(free);
                let desc = self.desc_mut(group)?;
                (desc.free, desc.longest) = (0, 0);
                continue;
            }
            self.bar_in(group, (first, last.saturating_add(1)), tables, sources)?;
            self.shed_if_large()?;
        }
        Ok(())
    }

    fn bar_in(
        &mut self,
        group: u32,
        span: (usize, usize),
        tables: &Zones,
        sources: &mut Vec<(u64, u64)>,
    ) -> Result<()> {
        let sb = &self.fs.sb;
        let (origin, shift, end_of_all) = (sb.first_block(group.into()), sb.cluster_shift, sb.blocks);
        let block = |bit: usize| origin.saturating_add(len64(bit) << shift).min(end_of_all);
        let map = self.bits(group, Which::Blocks)?;
        let mut at = span.0;
        while at < span.1 {
            let used = next_set(&map, at, span.1);
            if used > at {
                self.take_bits(group, (at, used))?;
            }
            let stop = next_clear(&map, used, span.1);
            tables.outside((block(used), block(stop)), &mut |start, end| sources.push((start, end)));
            if len64(sources.len()) > RUNS_MAX {
                let found = len64(sources.len());
                return Err(
                    Ext4Fault::Limit { what: "stretches of blocks to move", found, max: RUNS_MAX }.into()
                );
            }
            at = stop;
        }
        Ok(())
    }

    /// Marks clusters as taken, with all counts.
    fn take_bits(&mut self, group: u32, run: (usize, usize)) -> Result<()> {
        self.mark(group, Which::Blocks, run, true)?;
        let count = len64(run.1.saturating_sub(run.0));
        let desc = self.desc_mut(group)?;
        desc.free = desc.free.saturating_sub(low32(count));
        self.totals.free = self.totals.free.saturating_sub(count);
        Ok(())
    }

    /// New places for the stretches, from the filesystem's beginning on.
    fn targets(&mut self, sources: &[(u64, u64)]) -> Result<Vec<Run>> {
        let shift = self.fs.sb.cluster_shift;
        let needed = sources.iter().fold(0u64, |sum, (start, end)| {
            sum.saturating_add(
                end.saturating_sub(*start).saturating_add(self.ratio().saturating_sub(1)) >> shift,
            )
        });
        if needed > self.totals.free {
            let what = format!(
                "the filesystem cannot become that small: {needed} clusters have to move, {} are free",
                self.totals.free
            );
            return Err(Ext4Fault::Cannot(what).into());
        }
        let mut runs = Vec::new();
        let mut cursor = (0u32, 0usize);
        for (start, end) in sources {
            let mut at = *start;
            while at < *end {
                let clusters = end.saturating_sub(at).saturating_add(self.ratio().saturating_sub(1)) >> shift;
                let (to, got) = self.next_free(&mut cursor, index(clusters)?)?;
                let len = (got << shift).min(end.saturating_sub(at));
                runs.push(Run { from: at, len, to });
                at = at.saturating_add(len);
            }
            if len64(runs.len()) > RUNS_MAX {
                let found = len64(runs.len());
                return Err(
                    Ext4Fault::Limit { what: "stretches of blocks to move", found, max: RUNS_MAX }.into()
                );
            }
        }
        Ok(runs)
    }

    /// Takes the next free clusters behind the cursor; returns the first block and their number.
    fn next_free(&mut self, cursor: &mut (u32, usize), want: usize) -> Result<(u64, u64)> {
        let groups = low32(self.fs.sb.groups);
        while cursor.0 < groups {
            let group = cursor.0;
            let count = index(self.fs.sb.clusters_of(group.into()))?;
            if self.desc(group)?.free > 0 {
                let map = self.bits(group, Which::Blocks)?;
                let start = next_clear(&map, cursor.1, count);
                if start < count {
                    let end = next_set(&map, start, count.min(start.saturating_add(want)));
                    drop(map);
                    let sb = &self.fs.sb;
                    let block = sb.first_block(group.into()).saturating_add(len64(start) << sb.cluster_shift);
                    let got = len64(end.saturating_sub(start));
                    if let Some(block) = self.zones.overlap(block, got << sb.cluster_shift) {
                        return Err(Ext4Fault::SystemBlock { what: "the free space", block }.into());
                    }
                    self.take_bits(group, (start, end))?;
                    cursor.1 = end;
                    return Ok((block, got));
                }
            }
            *cursor = (group.saturating_add(1), 0);
            self.shed_if_large()?;
        }
        Err(Ext4Fault::Cannot("the filesystem cannot become that small: its blocks do not fit".into()).into())
    }

    fn copy(&self, run: &Run) -> Result<()> {
        let block = self.fs.sb.block_size;
        let piece = (COPY_BYTES >> block.shift()).max(1);
        let mut buf = vec![0; index(block.start_of(piece.min(run.len)).unwrap_or(0))?];
        let mut done = 0;
        while done < run.len {
            let count = piece.min(run.len.saturating_sub(done));
            let bytes = index(block.start_of(count).unwrap_or(0))?;
            let buf = buf.get_mut(..bytes).unwrap_or_default();
            self.fs.disk.read_at(self.fs.byte_of(run.from.saturating_add(done))?, buf)?;
            self.fresh.write(&self.fs.disk, self.fs.byte_of(run.to.saturating_add(done))?, buf)?;
            done = done.saturating_add(count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_where_they_went() {
        let moves = Moves(vec![Run { from: 10, len: 5, to: 100 }, Run { from: 20, len: 1, to: 3 }]);
        assert_eq!(moves.find(9), (9, 1));
        assert_eq!(moves.find(12), (102, 3));
        assert_eq!(moves.find(15), (15, 5));
        assert_eq!(moves.find(20), (3, 1));
        assert_eq!(moves.find(21), (21, u64::MAX));
        assert!(moves.touch(5, 6) && !moves.touch(5, 5) && !moves.touch(15, 5) && moves.touch(15, 6));
    }
}
