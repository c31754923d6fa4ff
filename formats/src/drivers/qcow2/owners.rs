//! Which clusters hold the image's own structures: they are never handed out, even if a count says that they are free.

use super::fault::Fault;
use super::header::Header;
use super::layout::OFFSET_MASK;
use super::refcount::{Clusters, Refcounts};
use super::snapshot::Snapshots;
use crate::error::Result;

/// Structures and their clusters, sorted by the first one.
#[derive(Debug, Default)]
pub(super) struct Owners {
    list: Vec<(Clusters, &'static str)>,
}

impl Owners {
    /// Those of an image as it is opened.
    pub(super) fn new(header: &Header, l1: &[u64], snapshots: &Snapshots, refcounts: &Refcounts) -> Self {
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
        Self { list }
    }

    /// Refuses if anything of `run`, whose counts are zero, is in use.
    pub(super) fn check_free(&self, run: Clusters) -> Result<()> {
        let from = self.list.partition_point(|(owned, _)| owned.first < run.first);
        let near = self.list.get(from.saturating_sub(1)..).unwrap_or_default();
        let hit = near
            .iter()
            .take_while(|(owned, _)| owned.first < run.end())
            .find(|(owned, _)| owned.end() > run.first);
        match hit {
            Some((owned, what)) => Err(Fault::FreeButUsed { cluster: owned.first, what }.into()),
            None => Ok(()),
        }
    }
}
