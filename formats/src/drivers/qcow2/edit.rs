//! An edit that lands whole or not at all.
//!
//! New data, new L2 tables and a new L1 table go to clusters that nothing refers to. Reference counts are raised
//! before, one sector of the header turns the image to the new tables, and only then the counts of what is no
//! longer in use are lowered. A power cut before the header leaves the old disk, one after it the new one; either
//! may leave clusters that are counted and not used, which `qemu-img check -r leaks` gives back.

use std::collections::BTreeSet;

use super::alloc::Allocator;
use super::entry::{Entry, Plain, RawEntry};
use super::header::{Header, TablePlace};
use super::image::Qcow2;
use super::l2::L2;
use super::layout::{COPIED, READS_ZERO};
use super::refcount::{Clusters, push};
use super::rewrite::{Outcome, Setting, by_cluster};
use crate::block::{Change, ChangeKind, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::mapped::{BlockMap, HostOffset, Packed};
use crate::wire::{index, len64, part, part_mut};

/// Bytes of new data written at a time; one cluster if that is larger.
const BATCH_BYTES: u64 = MIB;

/// An edit under way.
pub(super) struct Edit<'a> {
    pub(super) image: &'a Qcow2,
    /// Holds the bytes of the changes.
    source: &'a Disk,
    alloc: &'a mut Allocator,
    /// As it shall be.
    pub(super) header: Header,
    /// As it shall be.
    pub(super) l1: Vec<u64>,
    /// What nobody refers to any more after the edit, once for each reference that goes.
    pub(super) freed: Vec<Clusters>,
    /// Virtual size in bytes before the edit.
    pub(super) old_size: u64,
    l1_changed: bool,
    /// Something else in the header changes.
    pub(super) header_changed: bool,
}

/// A cluster that waits for its host cluster.
struct Pending {
    /// Its entry in the L2 table.
    slot: usize,
    span: Span,
    pieces: Vec<Change>,
    outcome: Outcome,
}

impl<'a> Edit<'a> {
    /// Begins an edit of an image in the state that `header` and `l1` describe.
    pub(super) fn new(
        image: &'a Qcow2,
        source: &'a Disk,
        alloc: &'a mut Allocator,
        header: Header,
        l1: Vec<u64>,
    ) -> Self {
        let old_size = header.size;
        Self {
            image,
            source,
            alloc,
            header,
            l1,
            freed: Vec::new(),
            old_size,
            l1_changed: false,
            header_changed: false,
        }
    }

    /// Puts all changes into new clusters and new L2 tables.
    pub(super) fn stage(&mut self, changes: &[Change]) -> Result<()> {
        let reach = self.header.geometry.l2_reach;
        let changes = self.with_growth(changes)?;
        let mut touched = BTreeSet::new();
        by_cluster(&changes, reach, |at, touching| {
            let (number, _) = reach.split(at);
            touched.insert(number);
            let whole = Span::new(at, reach.bytes())?;
            let pieces: Vec<Change> = touching
                .iter()
                .filter_map(|c| Some(Change { span: c.span.intersect(whole)?, kind: c.kind }))
                .collect();
            self.l2_table(number, &pieces).within(|| format!("L2 table {number}"))
        })?;
        match self.last_table(&touched) {
            Some(number) => self.l2_table(number, &[]).within(|| format!("L2 table {number}")),
            None => Ok(()),
        }
    }

    /// Writes the new L1 table and all counts; says whether there is anything to commit.
    pub(super) fn seal(&mut self) -> Result<bool> {
        let disk_changed = self.l1_changed || self.header.size != self.old_size;
        if !disk_changed && !self.header_changed {
            return Ok(false);
        }
        for cluster in self.freed.iter().flat_map(|run| run.numbers()) {
            if self.alloc.refcounts.get(cluster)? == 0 {
                return Err(super::fault::Fault::CountZero { cluster }.into());
            }
        }
        if disk_changed {
            self.write_l1()?;
        }
        self.write_counts()?;
        self.image.file.flush()?;
        Ok(true)
    }

    /// Counts on disk, and a refcount table that knows all blocks.
    fn write_counts(&mut self) -> Result<()> {
        let old = self.header.refcount_table;
        if let Some(place) = self.alloc.move_table()? {
            self.header.refcount_table = place;
            self.free(old.at, old.entries.saturating_mul(8));
        }
        self.alloc.refcounts.store()
    }

    fn write_l1(&mut self) -> Result<()> {
        let old = self.header.l1;
        self.free(old.at, old.entries.saturating_mul(8));
        let bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let entries = len64(self.l1.len());
        self.header.l1 = TablePlace { at: self.write_new(&bytes)?, entries };
        Ok(())
    }

    /// Writes `bytes` to clusters that nobody uses; says where.
    pub(super) fn write_new(&mut self, bytes: &[u8]) -> Result<u64> {
        let run = self.alloc.all(self.header.geometry.cluster.count(len64(bytes.len())))?;
        let at = self.alloc.offset(run.first)?;
        self.image.file.write_at(at, bytes)?;
        Ok(at)
    }

    /// Notes that nothing refers to these bytes any more.
    pub(super) fn free(&mut self, at: u64, len: u64) {
        if len > 0 {
            push(&mut self.freed, Clusters::of(self.header.geometry.cluster, at, len));
        }
    }

    /// Makes a changed copy of one L2 table.
    fn l2_table(&mut self, number: u64, pieces: &[Change]) -> Result<()> {
        let old = self.image.l2_at(number)?;
        let nothing_there = old.is_none() && self.image.parent().is_none();
        if nothing_there && pieces.iter().all(|p| p.kind == ChangeKind::Zero) {
            return Ok(());
        }
        let mut l2 = L2::read(&self.image.file, self.image.rules, old)?;
        let cut = self.cut_table(number, &mut l2)?;
        let changed = self.clusters(&mut l2, pieces)? || cut;
        if !changed {
            return Ok(());
        }
        if let Some(HostOffset(at)) = old {
            self.free(at, 1);
        }
        let entry = if l2.is_empty() { 0 } else { self.write_l2(&l2)? | COPIED };
        let slot = self.l1.get_mut(index(number)?).ok_or(Common::Index(number))?;
        *slot = entry;
        self.l1_changed = true;
        Ok(())
    }

    fn write_l2(&mut self, l2: &L2) -> Result<u64> {
        let at = self.alloc.some(1)?.first;
        let at = self.alloc.offset(at)?;
        self.image.file.write_at(at, l2.bytes())?;
        Ok(at)
    }

    /// Changes the entries of one L2 table; says whether any is another.
    fn clusters(&mut self, l2: &mut L2, pieces: &[Change]) -> Result<bool> {
        let (geometry, image) = (self.header.geometry, self.image);
        let setting = Setting { rules: image.rules, parent: image.parent(), size: self.header.size };
        let batch_max = index((BATCH_BYTES >> geometry.cluster.shift()).max(1))?;
        let mut batch: Vec<Pending> = Vec::new();
        let mut changed = false;
        by_cluster(pieces, geometry.cluster, |at, touching| {
            let (_, within) = geometry.l2_reach.split(at);
            let slot = index(geometry.cluster.split(within).0)?;
            let entry = l2.get(slot)?;
            let Some(outcome) = setting.outcome(&entry, at, touching)? else { return Ok(()) };
            changed = true;
            if outcome.fresh {
                self.free_entry(&entry);
                let len = geometry.cluster.bytes().min(self.header.size.saturating_sub(at));
                let span = Span::new(at, len)?;
                batch.push(Pending { slot, span, pieces: touching.to_vec(), outcome });
                if batch.len() >= batch_max {
                    self.write_batch(l2, &mut batch)?;
                }
                return Ok(());
            }
            let raw = self.without_new_bytes(&entry, outcome);
            l2.set(slot, raw)
        })?;
        self.write_batch(l2, &mut batch)?;
        Ok(changed)
    }

    /// The entry of a cluster that stores no byte that it did not store before.
    fn without_new_bytes(&mut self, entry: &Entry, outcome: Outcome) -> RawEntry {
        let extended = self.header.geometry.extended();
        let bitmap = if extended { bitmap(outcome) } else { 0 };
        match entry {
            Entry::Plain(Plain { host: Some(host), copied, .. }) if outcome.data != 0 => {
                RawEntry { word: host.0 | if *copied { COPIED } else { 0 }, bitmap }
            }
            _ => {
                self.free_entry(entry);
                let word = if !extended && outcome.zero != 0 { READS_ZERO } else { 0 };
                RawEntry { word, bitmap }
            }
        }
    }

    /// Notes that the entry does not refer to its host clusters any more.
    pub(super) fn free_entry(&mut self, entry: &Entry) {
        match entry {
            Entry::Packed(Packed { host, stored }) => self.free(host.0, *stored),
            // Nobody counts the clusters of an external data file.
            Entry::Plain(_) if self.image.rules.data_file => {}
            Entry::Plain(Plain { host: Some(host), .. }) => self.free(host.0, 1),
            Entry::Plain(_) => {}
        }
    }

    /// Finds host clusters for what waits, and writes them.
    fn write_batch(&mut self, l2: &mut L2, batch: &mut Vec<Pending>) -> Result<()> {
        let geometry = self.header.geometry;
        let cluster = index(geometry.cluster.bytes())?;
        while !batch.is_empty() {
            let run = self.alloc.some(len64(batch.len()))?;
            let now: Vec<Pending> = batch.drain(..index(run.count)?.min(batch.len())).collect();
            let mut bytes = vec![0u8; now.len().saturating_mul(cluster)];
            let mut host = self.alloc.offset(run.first)?;
            let start = host;
            for (pending, out) in now.iter().zip(bytes.chunks_mut(cluster)) {
                self.fill(pending, out)?;
                let bitmap = if geometry.extended() { bitmap(pending.outcome) } else { 0 };
                l2.set(pending.slot, RawEntry { word: host | COPIED, bitmap })?;
                host = host.saturating_add(geometry.cluster.bytes());
            }
            self.write_used(start, &bytes, &now)?;
        }
        Ok(())
    }

    /// Writes those subclusters that are in use, neighbours together.
    fn write_used(&self, start: u64, bytes: &[u8], batch: &[Pending]) -> Result<()> {
        let subcluster = self.header.geometry.subcluster;
        let per_cluster = self.header.geometry.cluster.bytes() >> subcluster.shift();
        let mut used: Option<Span> = None;
        let flush = |span: Span| {
            let data = part(bytes, index(span.start())?, index(span.len())?, "new clusters")?;
            self.image.file.write_at(start.saturating_add(span.start()), data)
        };
        for (number, pending) in (0u64..).zip(batch) {
            for sub in 0..per_cluster {
                if u64::from(pending.outcome.data) >> sub & 1 == 0 {
                    continue;
                }
                let at = subcluster.start_of(number.saturating_mul(per_cluster).saturating_add(sub));
                let now = Span::new(at.unwrap_or(u64::MAX), subcluster.bytes())?;
                used = match used {
                    Some(before) if before.end() == now.start() => {
                        Some(Span::new(before.start(), before.len().saturating_add(now.len()))?)
                    }
                    Some(before) => {
                        flush(before)?;
                        Some(now)
                    }
                    None => Some(now),
                };
            }
        }
        used.map_or(Ok(()), flush)
    }

    /// The new content of one cluster: what was there, and the changes over it.
    fn fill(&self, pending: &Pending, out: &mut [u8]) -> Result<()> {
        let span = pending.span;
        let data = |p: &&Change| p.kind == ChangeKind::Data;
        let mut new = pending.pieces.iter().filter(data).filter_map(|p| p.span.intersect(span));
        if new.next() != Some(span) {
            let old = index(span.len().min(self.old_size.saturating_sub(span.start())))?;
            self.image.read(span.start(), part_mut(out, 0, old, "cluster")?)?;
        }
        for piece in &pending.pieces {
            let Some(common) = piece.span.intersect(span) else { continue };
            let at = index(common.start().saturating_sub(span.start()))?;
            let to = part_mut(out, at, index(common.len())?, "cluster")?;
            match piece.kind {
                ChangeKind::Data => self.source.read_at(common.start(), to)?,
                ChangeKind::Zero => to.fill(0),
            }
        }
        Ok(())
    }
}

/// Subclusters in use below, those that read as zeroes above.
fn bitmap(outcome: Outcome) -> u64 {
    u64::from(outcome.data) | u64::from(outcome.zero) << 32
}
