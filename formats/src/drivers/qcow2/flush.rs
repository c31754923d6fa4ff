//! Brings what was written to stable storage, in an order that a power cut cannot turn against the data: data and
//! counts, then L2 tables, then the L1 table. What nobody names any more is given back behind all of them.
//!
//! So a table on disk never names a cluster that is counted zero times, or one whose bytes are not there. What a
//! power cut leaves at worst is clusters that are counted and not used.

use std::sync::Arc;

use super::alloc::Allocator;
use super::header::TablePlace;
use super::image::Qcow2;
use super::refcount::{Clusters, push};
use crate::block::{Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::mapped::{Changed, Sheets};
use crate::wire::len64;

/// Bytes of changed L2 tables that may wait for a flush.
const WAITING_BYTES: u64 = 4 * MIB;
/// Runs of clusters that may wait to be given back.
const FREED_MAX: usize = 16 << 10;
/// Runs of this many bytes are given back to the host as well.
const HOLE_BYTES: u64 = 64 * KIB;

impl Qcow2 {
    /// Brings everything that was written before to stable storage.
    pub(super) fn sync(&self) -> Result<()> {
        if !self.file.writable() {
            return self.file.flush();
        }
        let _one = self.landing.lock().map_err(|_| Common::Poisoned)?;
        // What went before now went out of tables that land now, or did before.
        let freed = std::mem::take(&mut *self.freed.lock().map_err(|_| Common::Poisoned)?);
        if let Err(e) = self.land_tables() {
            self.freed.lock().map_err(|_| Common::Poisoned)?.extend(freed);
            return Err(e);
        }
        if freed.is_empty() {
            return Ok(());
        }
        self.wait_for_movers()?;
        if let Err(e) = self.give_back(&freed) {
            tracing::warn!("clusters that are not in use any more could not be given back: {e}");
        }
        Ok(())
    }

    /// Keeps the memory for what waits bounded.
    pub(super) fn limit_waiting(&self) -> Result<()> {
        let (waiting, each) = {
            let state = self.state()?;
            (len64(state.tables.sheets.waiting()?), state.tables.sheet_bytes())
        };
        let freed = self.freed.lock().map_err(|_| Common::Poisoned)?.len();
        if waiting.saturating_mul(each) < WAITING_BYTES && freed < FREED_MAX {
            return Ok(());
        }
        self.sync()
    }

    fn land_tables(&self) -> Result<()> {
        let (l1, place, sheets) = {
            let state = self.state()?;
            // The tables that these entries name were put among the sheets before.
            (state.tables.l1_waiting(), state.header.l1, Arc::clone(&state.tables.sheets))
        };
        // Nothing is locked meanwhile but other flushes.
        sheets.land(|pieces| self.land_sheets(&sheets, pieces))?;
        if l1.is_empty() {
            return self.flush_data();
        }
        for (sector, bytes) in &l1 {
            let at = place.at.saturating_add(len64(*sector).saturating_mul(512));
            self.file.write_at(at, bytes).within(|| "L1 table")?;
        }
        self.file.flush()?;
        self.state_mut()?.tables.l1_landed(&l1);
        self.flush_data()
    }

    fn flush_data(&self) -> Result<()> {
        self.data_file.as_ref().map_or(Ok(()), Disk::flush)
    }

    fn land_sheets(&self, sheets: &Sheets, pieces: &[Changed]) -> Result<()> {
        self.land_counts()?;
        self.flush_data()?;
        sheets.write_home(pieces).within(|| "L2 tables")
    }

    /// Writes counts; behind the next flush they are on stable storage.
    fn land_counts(&self) -> Result<()> {
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let Some(alloc) = &mut *slot else { return Ok(()) };
        alloc.refcounts.store()?;
        if !alloc.refcounts.table_changed() {
            return Ok(());
        }
        let old = self.state()?.header.refcount_table;
        if alloc.refcounts.table_entries() <= old.entries {
            // No entry may name a block that is not there.
            self.file.flush()?;
            return alloc.refcounts.store_entries(old).within(|| "refcount table");
        }
        self.move_counts(alloc, old)
    }

    /// Turns to a larger refcount table.
    fn move_counts(&self, alloc: &mut Allocator, old: TablePlace) -> Result<()> {
        let Some(place) = alloc.move_table()? else { return Ok(()) };
        alloc.refcounts.store()?;
        alloc.committed();
        self.file.flush()?;
        let mut header = self.state()?.header.clone();
        header.refcount_table = place;
        self.turn_header(&header)?;
        self.state_mut()?.header = header;
        let gone = Clusters::of(self.rules.geometry.cluster, old.at, old.entries.saturating_mul(8));
        self.owners.write().map_err(|_| Common::Poisoned)?.remove(gone.first);
        alloc.release(&[gone])?;
        // There may be no other flush that writes it: the old table would be counted for ever.
        alloc.refcounts.store()
    }

    /// Takes one off the counts of these clusters; what is free then goes back to the host as well.
    fn give_back(&self, freed: &[Clusters]) -> Result<()> {
        let mut sorted: Vec<Clusters> = freed.to_vec();
        sorted.sort_unstable_by_key(|run| run.first);
        let mut free = Vec::new();
        self.with_allocator(|alloc| {
            let mut owners = self.owners.write().map_err(|_| Common::Poisoned)?;
            for cluster in sorted.iter().flat_map(|run| run.numbers()) {
                let one = Clusters { first: cluster, count: 1 };
                if alloc.refcounts.get(cluster)? == 0 {
                    tracing::warn!("host cluster {cluster} was in use and counted zero times");
                    continue;
                }
                alloc.release(&[one])?;
                if alloc.refcounts.get(cluster)? == 0 {
                    owners.remove(cluster);
                    push(&mut free, one);
                }
            }
            drop(owners);
            for run in free {
                self.dig(run)?;
            }
            alloc.refcounts.store()
        })
    }

    /// Makes holes of those of `runs` that nobody uses. The caller keeps everybody away.
    pub(super) fn dig_free(&self, alloc: &mut Allocator, mut runs: Vec<Clusters>) -> Result<()> {
        runs.sort_unstable_by_key(|run| run.first);
        let mut free: Vec<Clusters> = Vec::new();
        for number in runs.iter().flat_map(|run| run.numbers()) {
            let again = free.last().is_some_and(|last| last.end() > number);
            if !again && alloc.refcounts.get(number)? == 0 {
                push(&mut free, Clusters { first: number, count: 1 });
            }
        }
        free.into_iter().try_for_each(|run| self.dig(run))
    }

    /// Makes a hole in the file. Nobody can be handed the clusters meanwhile.
    fn dig(&self, run: Clusters) -> Result<()> {
        let cluster = self.rules.geometry.cluster;
        let (Some(start), Some(end)) = (cluster.start_of(run.first), cluster.start_of(run.end())) else {
            return Ok(());
        };
        let end = end.min(self.file.size());
        let len = end.saturating_sub(start);
        if len < HOLE_BYTES { Ok(()) } else { self.file.discard(Span::new(start, len)?) }
    }
}
