//! Who really uses which host cluster: everything that is reachable from the header is counted.

use std::collections::BTreeMap;

use zerocopy::big_endian::U64;

use super::bitmap::{Bitmap, data_clusters};
use super::entry::{Entry, EntryRules, Plain};
use super::findings::Findings;
use super::header::{Header, L1_BYTES_MAX, TablePlace};
use super::l2::L2;
use super::layout::OFFSET_MASK;
use super::refcount::Clusters;
use super::snapshot::SnapshotTable;
use super::tally::Tally;
use crate::block::Disk;
use crate::check::{Severity, Statistics};
use crate::error::Result;
use crate::mapped::HostOffset;
use crate::wire::table;

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) file: &'a Disk,
    pub(super) header: &'a Header,
    pub(super) rules: EntryRules,
    pub(super) l1: &'a [u64],
    pub(super) snapshots: &'a SnapshotTable,
    pub(super) bitmaps: &'a [Bitmap],
}

/// References to each host cluster.
#[derive(Debug)]
pub(super) struct Census<'a> {
    scope: Scope<'a>,
    counts: Tally,
    /// How often each L2 table is referred to. It is read once, however many snapshots share it.
    l2: BTreeMap<u64, Users>,
    statistics: Statistics,
}

/// Who refers to an L2 table.
#[derive(Clone, Copy, Debug, Default)]
struct Users {
    /// All of them.
    times: u32,
    /// The disk as it is now is one.
    active: bool,
}

impl<'a> Census<'a> {
    /// Counts everything but the counts' own structures; what cannot be counted goes to `report`.
    pub(super) fn take(scope: Scope<'a>, report: &mut Findings<'_>) -> Result<Self> {
        let cluster = scope.header.geometry.cluster;
        let statistics = Statistics { total: cluster.count(scope.header.size), ..Statistics::default() };
        let counts = Tally::new(cluster.count(scope.file.size()));
        let mut all = Self { scope, counts, l2: BTreeMap::new(), statistics };
        all.add("the header", 0, 1, 1, report)?;
        all.tables(report)?;
        for (at, users) in std::mem::take(&mut all.l2) {
            all.l2_table(at, users, report)?;
        }
        if let Some(directory) = scope.header.extensions.bitmaps.filter(|_| !scope.bitmaps.is_empty()) {
            all.add("the bitmap directory", directory.at, directory.len, 1, report)?;
            for bitmap in scope.bitmaps {
                all.bitmap(bitmap, report)?;
            }
        }
        Ok(all)
    }

    /// Counts the refcount table and its blocks as well.
    pub(super) fn add_refcounts(
        &mut self,
        blocks: impl Iterator<Item = u64>,
        report: &mut Findings<'_>,
    ) -> Result<()> {
        let place = self.scope.header.refcount_table;
        self.add("the refcount table", place.at, place.entries.saturating_mul(8), 1, report)?;
        for at in blocks {
            self.add("a refcount block", at, 1, 1, report)?;
        }
        Ok(())
    }

    /// References to a host cluster.
    pub(super) fn count(&self, cluster: u64) -> u64 {
        self.counts.get(cluster).into()
    }

    /// What was seen of the disk as it is now.
    pub(super) fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The references to all clusters of the file.
    pub(super) fn tally(&self) -> &Tally {
        &self.counts
    }

    /// L1 tables, and the snapshot table that names most of them.
    fn tables(&mut self, report: &mut Findings<'_>) -> Result<()> {
        let Scope { file, header, l1, snapshots, .. } = self.scope;
        self.add("the L1 table", header.l1.at, header.l1.entries.saturating_mul(8), 1, report)?;
        self.l1_entries(l1.iter().copied(), true);
        self.add("the snapshot table", header.snapshots.at, snapshots.table_bytes, 1, report)?;
        // Tables do not overlap in a sound image, so together they are no longer than the file.
        let mut budget = file.size();
        for snapshot in &snapshots.list {
            let TablePlace { at, entries } = snapshot.l1;
            let len = entries.saturating_mul(8);
            let Some(left) = budget.checked_sub(len) else {
                report.add(Severity::Corruption, || "L1 tables of snapshots overlap".into());
                break;
            };
            budget = left;
            self.add("a snapshot's L1 table", at, len, 1, report)?;
            let raw: Vec<U64> = table(file, at, entries, L1_BYTES_MAX, "L1 table")?;
            self.l1_entries(raw.into_iter().map(U64::get), false);
        }
        Ok(())
    }

    fn l1_entries(&mut self, entries: impl Iterator<Item = u64>, active: bool) {
        for at in entries.map(|entry| entry & OFFSET_MASK).filter(|at| *at != 0) {
            let users = self.l2.entry(at).or_default();
            users.times = users.times.saturating_add(1);
            users.active |= active;
        }
    }

    fn l2_table(&mut self, at: u64, users: Users, report: &mut Findings<'_>) -> Result<()> {
        let times = users.times;
        let Scope { file, rules, .. } = self.scope;
        let what = || format!("L2 table at {at:#x}");
        if !rules.geometry.cluster.aligned(at) {
            report.add(Severity::Corruption, || format!("{} is not aligned to a cluster", what()));
            return Ok(());
        }
        self.add("an L2 table", at, 1, times, report)?;
        let l2 = match L2::read(file, rules, Some(HostOffset(at))) {
            Ok(l2) => l2,
            Err(e) => {
                report.add(Severity::Corruption, || format!("{}: {e}", what()));
                return Ok(());
            }
        };
        // Where the next cluster lies in a table without fragments.
        let mut next = None;
        for slot in 0..l2.len() {
            let entry = l2.get(slot);
            if let (true, Ok(entry)) = (users.active, &entry) {
                self.watch(entry, &mut next);
            }
            match entry {
                Ok(Entry::Packed(p)) => {
                    self.add("a compressed cluster", p.host.0, p.stored, times, report)?
                }
                Ok(Entry::Plain(Plain { host: Some(host), .. })) if !rules.data_file => {
                    self.add("a data cluster", host.0, 1, times, report)?;
                }
                Ok(Entry::Plain(_)) => {}
                Err(e) => report.add(Severity::Corruption, || format!("{}, entry {slot}: {e}", what())),
            }
        }
        Ok(())
    }

    /// Takes an entry of the disk as it is now into the statistics.
    fn watch(&mut self, entry: &Entry, next: &mut Option<u64>) {
        let count = |n: &mut u64| *n = n.saturating_add(1);
        match entry {
            Entry::Packed(_) => {
                count(&mut self.statistics.allocated);
                count(&mut self.statistics.compressed);
                // As QEMU sees it, such clusters are fragments by nature.
                count(&mut self.statistics.fragmented);
            }
            Entry::Plain(Plain { host: Some(host), .. }) => {
                count(&mut self.statistics.allocated);
                if next.is_some_and(|next| next != host.0) {
                    count(&mut self.statistics.fragmented);
                }
                *next = host.0.checked_add(self.scope.header.geometry.cluster.bytes());
            }
            Entry::Plain(_) => {}
        }
    }

    fn bitmap(&mut self, bitmap: &Bitmap, report: &mut Findings<'_>) -> Result<()> {
        let place = bitmap.table;
        self.add("a bitmap's table", place.at, place.entries.saturating_mul(8), 1, report)?;
        for at in data_clusters(self.scope.file, bitmap)? {
            self.add("bitmap data", at, 1, 1, report)?;
        }
        Ok(())
    }

    /// Counts the clusters that hold the `len` bytes at `at`.
    fn add(&mut self, what: &str, at: u64, len: u64, times: u32, report: &mut Findings<'_>) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let cluster = self.scope.header.geometry.cluster;
        let run = Clusters::of(cluster, at, len);
        // The last sectors of a compressed cluster may reach past the end of the file, but not a cluster far.
        let near = self.scope.file.size().saturating_add(cluster.bytes());
        let inside = at.checked_add(len).is_some_and(|end| end < near);
        if inside && run.first < self.counts.len() {
            return self.counts.add(run, times);
        }
        report.add(Severity::Corruption, || {
            format!("{what} at {at:#x} of {len} bytes is behind the end of the file")
        });
        Ok(())
    }
}
