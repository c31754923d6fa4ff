//! Finds host clusters that nobody uses.

use std::sync::{Arc, RwLock};

use super::fault::Fault;
use super::header::TablePlace;
use super::layout::OFFSET_MASK;
use super::owners::Owners;
use super::refcount::{Clusters, Refcounts, push};
use crate::block::{BlockSize, Disk};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::len64;

/// Bytes of refcount blocks that a search reads from the beginning of the file before it goes on near the end:
/// looking through all of a full image would cost more than the edit. What earlier edits gave back is found at
/// either end.
const SEARCH_BYTES: u64 = 2 * MIB;

/// Hands out clusters; their counts are one from then on.
#[derive(Debug)]
pub(super) struct Allocator {
    pub(super) refcounts: Refcounts,
    file: Disk,
    cluster: BlockSize,
    /// No cluster before this one is free, as far as was looked.
    low: u64,
    /// Whether the search has jumped to the end.
    jumped: bool,
    /// What must never be handed out, whatever its count says.
    owners: Arc<RwLock<Owners>>,
    /// From this cluster on the file was made longer and never written to: all is zeroes there.
    blank: u64,
    /// What was handed out since the last commit.
    taken: Vec<Clusters>,
    /// Size of the file in bytes at the last commit.
    file_size: u64,
}

impl Allocator {
    /// Over the counts of an image whose structures belong to `owners`.
    pub(super) fn new(
        file: &Disk,
        cluster: BlockSize,
        refcounts: Refcounts,
        owners: Arc<RwLock<Owners>>,
    ) -> Self {
        Self {
            refcounts,
            file: file.clone(),
            cluster,
            low: 0,
            jumped: false,
            owners,
            blank: cluster.count(file.size()),
            taken: Vec::new(),
            file_size: file.size(),
        }
    }

    /// One cluster or more in a row, `most` at most.
    pub(super) fn some(&mut self, most: u64) -> Result<Clusters> {
        self.take(1, most.max(1))
    }

    /// `count` clusters in a row.
    pub(super) fn all(&mut self, count: u64) -> Result<Clusters> {
        self.take(count.max(1), count.max(1))
    }

    /// The offset of a cluster.
    pub(super) fn offset(&self, cluster: u64) -> Result<u64> {
        Ok(self.cluster.start_of(cluster).ok_or(Common::Index(cluster))?)
    }

    /// Takes one off the count of each cluster, for good.
    pub(super) fn release(&mut self, runs: &[Clusters]) -> Result<()> {
        for cluster in runs.iter().flat_map(|run| run.numbers()) {
            if self.refcounts.lower(cluster)? == 0 {
                self.low = self.low.min(cluster);
            }
        }
        Ok(())
    }

    /// Whether a cluster that is about to be handed out reads as zeroes.
    pub(super) fn blank(&self) -> u64 {
        self.blank
    }

    /// Whether all of these clusters are counted: what is in use and counted zero times must not be given back.
    pub(super) fn check_counted(&mut self, run: Clusters) -> Result<()> {
        for cluster in run.numbers() {
            if self.refcounts.get(cluster)? == 0 {
                return Err(Fault::CountZero { cluster }.into());
            }
        }
        Ok(())
    }

    /// A new place for the refcount table, if the one on disk does not do any more; the table is written there.
    pub(super) fn move_table(&mut self) -> Result<Option<TablePlace>> {
        let per_cluster = self.cluster.bytes() / 8;
        while self.refcounts.table_changed() {
            let entries = self.refcounts.table_entries();
            // Some room to grow: a larger table has to move again.
            let clusters = entries.saturating_add(entries / 4).div_ceil(per_cluster).max(1);
            let run = self.all(clusters)?;
            let room = clusters.saturating_mul(per_cluster);
            if self.refcounts.table_entries() <= room {
                let place = TablePlace { at: self.offset(run.first)?, entries: room };
                self.refcounts.store_table(place)?;
                let mut owners = self.owners.write().map_err(|_| Common::Poisoned)?;
                owners.add(run, "the refcount table");
                return Ok(Some(place));
            }
            // Making room for the table took a block that it has no room for.
            self.release(&[run])?;
        }
        Ok(None)
    }

    /// What was handed out is in use now.
    pub(super) fn committed(&mut self) {
        self.taken.clear();
        self.file_size = self.file.size();
    }

    /// What was handed out since the last commit, and the size the file had then.
    pub(super) fn uncommitted(&self) -> (&[Clusters], u64) {
        (&self.taken, self.file_size)
    }

    fn take(&mut self, least: u64, most: u64) -> Result<Clusters> {
        let mut for_blocks = 0u64;
        let (found, missing) = loop {
            let found = self.find(least.saturating_add(for_blocks), most.saturating_add(for_blocks))?;
            let missing = self.missing_blocks(found)?;
            // Refcount blocks that are not there yet take the first clusters of the run.
            if found.count >= least.saturating_add(len64(missing.len())) {
                break (found, missing);
            }
            for_blocks = len64(missing.len());
        };
        let mut at = found.first;
        {
            let mut owners = self.owners.write().map_err(|_| Common::Poisoned)?;
            owners.check_free(found)?;
            for number in 0..len64(missing.len()) {
                let first = at.saturating_add(number);
                owners.add(Clusters { first, count: 1 }, "a refcount block");
            }
        }
        for number in missing {
            self.refcounts.add_block(number, at)?;
            at = at.saturating_add(1);
        }
        let run = Clusters { first: at, count: found.end().saturating_sub(at).min(most) };
        let used = Clusters { first: found.first, count: run.end().saturating_sub(found.first) };
        self.grow_file(used)?;
        for cluster in used.numbers() {
            self.refcounts.set(cluster, 1)?;
        }
        push(&mut self.taken, used);
        self.blank = self.blank.max(used.end());
        if least == 1 && self.low == found.first {
            self.low = run.end();
        }
        Ok(run)
    }

    /// The first `least` free clusters in a row, and those behind them up to `most`.
    fn find(&mut self, least: u64, most: u64) -> Result<Clusters> {
        let per_block = self.refcounts.per_block();
        let mut run = Clusters { first: self.low, count: 0 };
        loop {
            let (number, within) = per_block.split(run.end());
            let (start, block_end) =
                (run.end(), run.end().saturating_add(per_block.bytes().saturating_sub(within)));
            let Some(counts) = self.refcounts.block(number)? else {
                // Without a block all are free.
                run.count = run.count.saturating_add(block_end.saturating_sub(start)).min(most);
                if run.count >= least {
                    return self.reachable(run, least);
                }
                continue;
            };
            let mut within = usize::try_from(within).map_err(|_| Common::Index(within))?;
            for cluster in start..block_end {
                if counts.get(within) == 0 {
                    run.count = run.count.saturating_add(1);
                } else if run.count >= least {
                    break;
                } else {
                    run = Clusters { first: cluster.saturating_add(1), count: 0 };
                    if least == 1 {
                        self.low = run.first;
                    }
                }
                if run.count >= most {
                    break;
                }
                within = within.saturating_add(1);
            }
            if run.count >= least {
                return self.reachable(run, least);
            }
            if let Some(near_end) = self.jump(number) {
                run = Clusters { first: near_end, count: 0 };
                self.low = near_end;
            }
        }
    }

    /// Where to go on after too much was read: near the end of the file, once.
    fn jump(&mut self, number: u64) -> Option<u64> {
        if self.jumped || self.refcounts.loaded() < SEARCH_BYTES {
            return None;
        }
        self.jumped = true;
        let blocks = SEARCH_BYTES >> self.cluster.shift();
        let near_end = self.refcounts.table_entries().saturating_sub(blocks);
        (near_end > number.saturating_add(1)).then(|| self.refcounts.per_block().start_of(near_end))?
    }

    /// Tables have room for offsets of 56 bits.
    fn reachable(&self, run: Clusters, least: u64) -> Result<Clusters> {
        let end = (OFFSET_MASK >> self.cluster.shift()).saturating_add(1);
        let count = run.count.min(end.saturating_sub(run.first));
        if count < least {
            return Err(Fault::NoCluster.into());
        }
        Ok(Clusters { first: run.first, count })
    }

    fn missing_blocks(&mut self, run: Clusters) -> Result<Vec<u64>> {
        let per_block = self.refcounts.per_block();
        let (first, _) = per_block.split(run.first);
        let (last, _) = per_block.split(run.end().saturating_sub(1));
        let mut missing = Vec::new();
        for number in first..=last {
            if self.refcounts.block(number)?.is_none() {
                missing.push(number);
            }
        }
        Ok(missing)
    }

    fn grow_file(&mut self, run: Clusters) -> Result<()> {
        let end = self.offset(run.end())?;
        if end > self.file.size() {
            self.file.resize(end)?;
        }
        Ok(())
    }
}
