//! New reference counts from scratch: for images that were not closed cleanly, and for those whose counts are wrong.
//!
//! The new table and blocks go behind everything that is in use, the old ones included; the header's sector turns
//! to them, and clears the dirty bit in the same write. A power cut leaves the image as it was, or mended.

use std::collections::BTreeSet;

use super::alloc::Allocator;
use super::census::Census;
use super::check::Lists;
use super::fault::Fault;
use super::findings::Findings;
use super::header::{Header, Incompatible, TablePlace};
use super::image::Qcow2;
use super::refcount::{Clusters, Refcounts};
use crate::check::{Report, Severity};
use crate::error::{Common, Result};
use crate::wire::len64;

/// Where the new structures go.
struct Layout {
    /// Numbers of the blocks; they lie in this order, the table behind them.
    blocks: BTreeSet<u64>,
    /// All clusters of the structures.
    all: Clusters,
    table_clusters: u64,
}

impl Qcow2 {
    /// Counts all references and writes them to new blocks. The allocator's lock is held.
    pub(super) fn renew_counts(&self) -> Result<()> {
        let (mut header, l1) = self.header_and_l1()?;
        let lists = self.lists()?;
        let place = self.write_new_counts(&header, &l1, &lists, None)?;
        header.refcount_table = place;
        header.incompatible.remove(Incompatible::DIRTY);
        self.turn_header(&header)?;
        self.turn_to(header, l1)
    }

    /// Puts new counts on stable storage, where nothing refers to them yet; says where the table is. They go where
    /// `alloc` finds room, or without one behind everything.
    pub(super) fn write_new_counts(
        &self,
        header: &Header,
        l1: &[u64],
        lists: &Lists,
        alloc: Option<&mut Allocator>,
    ) -> Result<TablePlace> {
        let mut report = Report::default();
        let census = Census::take(self.scope(header, l1, lists), &mut Findings::new(&mut report, false))?;
        if let Some(found) = report.findings.iter().find(|f| f.severity == Severity::Corruption) {
            return Err(Fault::CannotCount(found.what.clone()).into());
        }
        let mut counts = Refcounts::empty(&self.file, &header.geometry)?;
        let reach = counts.per_block();
        let numbers = |run: Clusters| reach.split(run.first).0..=reach.split(run.end().saturating_sub(1)).0;
        let blocks: BTreeSet<u64> = census.tally().used().flat_map(|(run, _)| numbers(run)).collect();
        let per_cluster = self.rules.geometry.cluster.bytes() / 8;
        let layout = match alloc {
            None => plan(&counts, blocks, self.behind_counts(header, &census), per_cluster),
            Some(alloc) => {
                let mut room = Clusters { first: 0, count: 0 };
                loop {
                    let layout = plan(&counts, blocks.clone(), room.first, per_cluster);
                    if layout.all.count <= room.count {
                        break layout;
                    }
                    // Another place may need another block.
                    room = alloc.all(layout.all.count.max(room.count.saturating_add(1)))?;
                }
            }
        };
        self.extend(layout.all.end())?;
        let place = self.fill_counts(&mut counts, &census, &layout)?;
        counts.store()?;
        counts.store_table(place)?;
        self.file.flush()?;
        Ok(place)
    }

    /// The first cluster behind all that is used, and behind the old counts, which are in use until the header turns.
    fn behind_counts(&self, header: &Header, census: &Census<'_>) -> u64 {
        // Where they are cannot always be told.
        let Ok(old) = Refcounts::read(&self.file, header) else { return census.tally().len() };
        let cluster = self.rules.geometry.cluster;
        let table = header.refcount_table;
        let table = Clusters::of(cluster, table.at, table.entries.saturating_mul(8)).end();
        let ends = old.block_places().map(|at| cluster.split(at).0.saturating_add(1));
        // A block that seems to lie behind the file is nothing to be careful with.
        let last = ends.filter(|end| *end <= census.tally().len()).max().unwrap_or_default();
        last.max(table).max(census.tally().end())
    }

    /// Makes the new blocks, one after the other; says where the table goes.
    fn fill_counts(
        &self,
        counts: &mut Refcounts,
        census: &Census<'_>,
        layout: &Layout,
    ) -> Result<TablePlace> {
        let mut at = layout.all.first;
        for number in &layout.blocks {
            counts.add_block(*number, at)?;
            at = at.saturating_add(1);
            let reach = counts.per_block();
            let first = reach.start_of(*number).ok_or(Common::Index(*number))?;
            let end = layout.all.end().max(census.tally().end());
            for cluster in first..first.saturating_add(reach.bytes()).min(end) {
                let new = u64::from(layout.all.numbers().contains(&cluster));
                if let count @ 1.. = census.count(cluster).saturating_add(new) {
                    counts.set(cluster, count)?;
                }
            }
        }
        let cluster = self.rules.geometry.cluster;
        let entries = layout.table_clusters.saturating_mul(cluster.bytes() / 8);
        Ok(TablePlace { at: cluster.start_of(at).ok_or(Common::Index(at))?, entries })
    }

    /// Makes the file at least `clusters` long.
    fn extend(&self, clusters: u64) -> Result<()> {
        let size = self.rules.geometry.cluster.start_of(clusters).ok_or(Common::Index(clusters))?;
        if size > self.file.size() { self.file.resize(size) } else { Ok(()) }
    }
}

/// Finds room for structures that count themselves: their number grows until it is enough.
fn plan(counts: &Refcounts, mut blocks: BTreeSet<u64>, start: u64, per_cluster: u64) -> Layout {
    let mut table_clusters = 1u64;
    loop {
        let all = Clusters { first: start, count: len64(blocks.len()).saturating_add(table_clusters) };
        let before = blocks.len();
        let (first, _) = counts.per_block().split(all.first);
        let (last, _) = counts.per_block().split(all.end().saturating_sub(1));
        blocks.extend(first..=last);
        let entries = blocks.last().map_or(0, |last| last.saturating_add(1));
        let need = entries.div_ceil(per_cluster).max(1);
        if blocks.len() == before && need <= table_clusters {
            return Layout { blocks, all, table_clusters };
        }
        table_clusters = table_clusters.max(need);
    }
}
