//! Which clusters hold the image's own structures: they are never handed out, even if a count says that they are free.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::header::Header;
use super::layout::OFFSET_MASK;
use super::refcount::{Clusters, Refcounts};
use super::snapshot::SnapshotTable;
use crate::error::Result;

/// Structures by their first cluster; they lie apart.
#[derive(Debug, Default)]
pub(super) struct Owners {
    runs: BTreeMap<u64, (u64, &'static str)>,
}

impl Owners {
    /// Those of an image as it is opened.
    pub(super) fn new(header: &Header, l1: &[u64], snapshots: &SnapshotTable, refcounts: &Refcounts) -> Self {
        let cluster = header.geometry.cluster;
        let mut list = Vec::new();
        let mut add = |at: u64, len: u64, what| {
            if len > 0 {
                list.push((Clusters::of(cluster, at, len), what));
            }
        };
        add(0, 1, "the header");
        add(header.l1.at, header.l1.entries.saturating_mul(8), "the L1 table");
        let table = header.refcount_table;
        add(table.at, table.entries.saturating_mul(8), "the refcount table");
        add(header.snapshots.at, snapshots.table_bytes, "the snapshot table");
        for snapshot in &snapshots.list {
            add(snapshot.l1.at, snapshot.l1.entries.saturating_mul(8), "a snapshot's L1 table");
        }
        if let Some(bitmaps) = header.extensions.bitmaps {
            add(bitmaps.at, bitmaps.len, "the bitmap directory");
        }
        for at in refcounts.block_places() {
            add(at, 1, "a refcount block");
        }
        for at in l1.iter().map(|entry| entry & OFFSET_MASK).filter(|at| *at != 0) {
            add(at, 1, "an L2 table");
        }
        list.sort_unstable_by_key(|(run, _)| run.first);
        // Structures lie apart in a sound image; in another one they are joined, so that a search looks at one.
        list.dedup_by(|(next, _), (before, _)| {
            let overlap = next.first < before.end();
            if overlap {
                before.count = before.end().max(next.end()).saturating_sub(before.first);
            }
            overlap
        });
        Self { runs: list.into_iter().map(|(run, what)| (run.first, (run.count, what))).collect() }
    }

    /// Notes a new structure.
    pub(super) fn add(&mut self, run: Clusters, what: &'static str) {
        self.runs.insert(run.first, (run.count, what));
    }

    /// Forgets what begins with cluster `first`, which was given back.
    pub(super) fn remove(&mut self, first: u64) {
        self.runs.remove(&first);
    }

    /// The structure that lies in `run`, or in a part of it.
    fn hit(&self, run: Clusters) -> Option<(u64, &'static str)> {
        let (first, (count, what)) = self.runs.range(..run.end()).next_back()?;
        (first.saturating_add(*count) > run.first).then_some((*first, *what))
    }

    /// Refuses if anything of `run`, whose counts are zero, is in use.
    pub(super) fn check_free(&self, run: Clusters) -> Result<()> {
        self.hit(run).map_or(Ok(()), |(cluster, what)| Err(Fault::FreeButUsed { cluster, what }.into()))
    }

    /// Refuses if a table says that data are in `run` where a structure is.
    pub(super) fn check_data(&self, run: Clusters) -> Result<()> {
        self.hit(run).map_or(Ok(()), |(cluster, what)| Err(Fault::DataOverTable { cluster, what }.into()))
    }
}
