//! New entries, and entries that go.

use std::ops::Range;

use racker_formats::error::Result;
use racker_formats::wire::len64;
use zerocopy::FromZeros;

use super::boot_sector::Root;
use super::dir::Dir;
use super::fault::FatFault;
use super::layout::{DELETED, DOT, DOT_DOT, ENTRY_BYTES, RawEntry, attr};
use super::name::short;
use super::short_name::{Stored, check, stored};
use super::time;
use super::writer::{FatMut, set_times};
use crate::filesystem::{Name, New, NodeId, NodeKind, Time};

/// Permission to write, for the owner.
const MAY_WRITE: u32 = 0o200;

/// Where a new entry goes.
#[derive(Debug)]
pub(super) struct Plan {
    stored: Stored,
    text: String,
    /// The first of its slots.
    start: usize,
    /// Clusters that the directory grows by.
    pub(super) grow: u64,
}

impl FatMut {
    /// Looks for a place in `dir`, once the entries in the slots `gone` are no more. Changes nothing.
    pub(super) fn plan(&self, dir: NodeId, name: &Name, gone: &[usize]) -> Result<Plan> {
        let text = check(name)?.to_string();
        let mut front = self.index(dir)?;
        let index = front.get()?;
        let stored = stored(&text, |raw| index.is_free(raw, &short_text(raw), gone))?;
        let freed: Vec<Range<usize>> = gone.iter().map(|slot| index.slots_of(*slot)).collect();
        let (start, missing) = index.room(stored.slots(), &freed)?;
        let bytes = len64(missing).saturating_mul(len64(ENTRY_BYTES));
        Ok(Plan { stored, text, start, grow: self.fat.boot.cluster.count(bytes) })
    }

    /// Writes an entry where it was planned; returns its place.
    pub(super) fn enter(&mut self, dir: NodeId, plan: &Plan, raw: &RawEntry) -> Result<u64> {
        if plan.grow > 0 {
            self.grow_dir(dir, plan.grow)?;
        }
        let mut raw = *raw;
        (raw.name, raw.nt_res) = (plan.stored.short, plan.stored.case);
        let long = plan.stored.long();
        let slot = plan.start.saturating_add(long.len());
        let mut front = self.index(dir)?;
        let index = front.get()?;
        for (slot, piece) in (plan.start..slot).zip(&long) {
            self.put_raw(index.place(slot)?, piece)?;
        }
        let place = index.place(slot)?;
        self.put_raw(place, &raw)?;
        let text = (!long.is_empty()).then_some(plan.text.as_str());
        index.enter(slot, u8::try_from(long.len()).unwrap_or(0), &raw, text);
        index.settle();
        Ok(place)
    }

    pub(super) fn grow_dir(&mut self, dir: NodeId, count: u64) -> Result<()> {
        let Dir { root: Root::Chain(first), .. } = self.fat.dir(dir)? else {
            return Err(FatFault::DirFull.into());
        };
        let (_, last) = self.fat.table.end(first)?;
        let mut next = Some(self.allocate(Some(last), count)?);
        while let Some(cluster) = next {
            self.clear_cluster(cluster)?;
            let at = self.fat.byte_of(cluster)?;
            self.index(dir)?.get()?.grow(at, self.fat.boot.cluster.bytes())?;
            next = self.fat.table.next(cluster)?;
        }
        Ok(())
    }

    /// Removes the entry in `slot`, and no more.
    pub(super) fn leave(&mut self, dir: NodeId, slot: usize) -> Result<()> {
        let doubles = {
            let mut front = self.index(dir)?;
            let index = front.get()?;
            let is_dir = self.raw(index.place(slot)?)?.attr & attr::DIRECTORY != 0;
            for number in index.slots_of(slot) {
                let at = index.place(number)?.saturating_mul(len64(ENTRY_BYTES));
                self.fat.disk.write_at(at, &[DELETED])?;
            }
            index.forget(slot, is_dir);
            index.doubles
        };
        if doubles { self.drop_index(dir) } else { Ok(()) }
    }

    /// Frees what an entry that is gone led to.
    pub(super) fn free_node(&mut self, place: u64, raw: &RawEntry) -> Result<()> {
        let first = self.fat.first_cluster(raw);
        if first != 0 {
            self.release(first)?;
        }
        if raw.attr & attr::DIRECTORY != 0 {
            self.drop_index(self.fat.places.node(place)?)?;
        }
        self.fat.places.gone(place)
    }

    /// Makes a file or a directory.
    pub(super) fn create_node(
        &mut self,
        dir: NodeId,
        name: &Name,
        new: &New<'_>,
        now: Time,
    ) -> Result<NodeId> {
        let is_dir = new.kind.kind() == NodeKind::Dir;
        let plan = self.plan(dir, name, &[])?;
        let up = self.up(dir)?;
        self.need(plan.grow.saturating_add(u64::from(is_dir)))?;
        self.begin()?;
        let mut raw = RawEntry::new_zeroed();
        raw.attr = if is_dir { attr::DIRECTORY } else { attr::ARCHIVE };
        if new.mode & MAY_WRITE == 0 {
            raw.attr |= attr::READ_ONLY;
        }
        set_times(&mut raw, now);
        let (date, time, hundredths) = time::stored(now);
        (raw.crt_date, raw.crt_time, raw.crt_time_tenth) = (date.into(), time.into(), hundredths);
        if is_dir {
            let first = self.allocate(None, 1)?;
            self.set_first(&mut raw, first);
            self.clear_cluster(first)?;
            let mut dot = raw;
            dot.attr = attr::DIRECTORY;
            let place = self.fat.byte_of(first)? >> 5;
            dot.name = DOT;
            self.put_raw(place, &dot)?;
            dot.name = DOT_DOT;
            self.set_first(&mut dot, up);
            self.put_raw(place.saturating_add(1), &dot)?;
        }
        let place = self.enter(dir, &plan, &raw)?;
        self.touch(dir, now)?;
        self.end();
        self.fat.places.node(place)
    }

    /// Removes an entry and its node.
    pub(super) fn remove(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        let (slot, place) = self.find(dir, name)?;
        let raw = self.raw(place)?;
        self.begin()?;
        self.leave(dir, slot)?;
        self.free_node(place, &raw)?;
        self.touch(dir, now)?;
        self.end();
        Ok(())
    }

    /// The slot and the place of an entry that is there.
    pub(super) fn find(&self, dir: NodeId, name: &Name) -> Result<(usize, u64)> {
        self.find_if_any(dir, name)?.ok_or_else(|| FatFault::Node(dir.0).into())
    }

    /// The slot and the place of an entry.
    pub(super) fn find_if_any(&self, dir: NodeId, name: &Name) -> Result<Option<(usize, u64)>> {
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else { return Ok(None) };
        let mut front = self.index(dir)?;
        let index = front.get()?;
        let Some(mut slot) = index.find(name) else { return Ok(None) };
        if index.doubles
            && let Some(place) = self.fat.find(self.fat.dir(dir)?, name)?
        {
            slot = index.slot_at(place).unwrap_or(slot);
        }
        Ok(Some((slot, index.place(slot)?)))
    }
}

/// How a short name is shown.
fn short_text(name: &[u8; 11]) -> String {
    let mut raw = RawEntry::new_zeroed();
    raw.name = *name;
    short(&raw)
}
