//! Writing into a sparse extent while a guest uses it.
//!
//! A new grain goes to a place that no table names, its data first. Tables change in memory and go out when the disk
//! is flushed, behind a barrier, so that after a crash no entry names bytes that were never written: at worst some
//! space of the file belongs to nobody. A grain that becomes zero as a whole leaves its place, if its entry can say
//! zero; the place is used again when no table on disk names it and nobody reads there any more. The mark "open for
//! writing" is in the header while the tables on disk change.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::census::Space;
use super::fault::VmdkFault;
use super::grains::{Mapping, SparseExtent, Tables};
use super::header::UNCLEAN_AT;
use super::layout::SECTOR;
use crate::block::{Disk, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::{parent_run, read_parent};
use crate::wire::{index, len64, part, part_mut};

/// Grain tables that may wait for a flush: 2 KiB each.
const DIRTY_MAX: usize = 2048;
/// Grains are allocated for at most this many bytes at once.
const PIECE_MAX: u64 = 16 * MIB;

/// What writing needs besides the tables.
#[derive(Debug, Default)]
pub(super) struct Writing {
    /// Where new grains go, once somebody writes.
    space: Mutex<Option<Space>>,
    /// Grains that are being allocated: a second writer waits for the first.
    busy: Mutex<BTreeSet<u64>>,
    done: Condvar,
    /// One flush after the other.
    syncing: Mutex<()>,
}

/// What shows through where an extent has nothing: the parent, and where in it the extent begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Below<'a> {
    pub(super) parent: &'a Disk,
    pub(super) start: u64,
    /// Zeroes have to be the image's own, for it is about to leave this parent.
    pub(super) leaving: bool,
}

impl Below<'_> {
    fn read(self, at: u64, buf: &mut [u8]) -> Result<()> {
        read_parent(Some(self.parent), self.start.saturating_add(at), buf)
    }

    /// How many bytes of `span` are of one kind, and whether they are zero.
    fn run(self, span: Span) -> Result<(u64, bool)> {
        let run =
            parent_run(Some(self.parent), Span::new(self.start.saturating_add(span.start()), span.len())?)?;
        Ok((run.len.clamp(1, span.len()), run.kind.is_zero()))
    }
}

/// Grains that this thread alone allocates, until it is dropped.
struct Claim<'a> {
    writing: &'a Writing,
    first: u64,
    last: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Ok(mut busy) = self.writing.busy.lock() {
            busy.retain(|g| *g < self.first || *g > self.last);
        }
        self.writing.done.notify_all();
    }
}

impl SparseExtent {
    /// Why the extent cannot be written, if so.
    pub(super) fn refuse_writes(&self) -> Result<()> {
        let what = match &self.header {
            h if h.is_cowd => "an ESX Server sparse extent",
            h if h.compressed => "a streamOptimized image",
            _ => return Ok(()),
        };
        Err(VmdkFault::ReadOnly(what).into())
    }

    /// Makes sure that writing is safe, and finds out where there is room.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.space()?.is_some() {
            return Ok(());
        }
        let _one = self.writing.syncing.lock().map_err(|_| Common::Poisoned)?;
        if self.space()?.is_none() {
            self.refuse_writes()?;
            let found = Space::new(&self.census()?, self)?;
            *self.space()? = Some(found);
        }
        Ok(())
    }

    /// Looks for room anew before the next change.
    pub(super) fn forget_space(&self) -> Result<()> {
        *self.space()? = None;
        Ok(())
    }

    /// Room at the end of the file only, without a look at the rest: for mending.
    pub(super) fn prepare_to_mend(&self) -> Result<()> {
        let size = self.file.size();
        let end = self.header.grain.ceil(size).ok_or(Common::Index(size))?;
        *self.space()? = Some(Space::behind(end));
        Ok(())
    }

    fn space(&self) -> Result<MutexGuard<'_, Option<Space>>> {
        self.writing.space.lock().map_err(|_| Common::Poisoned.into())
    }

    /// Writes `data` at `at`; what a new grain needs around it comes from `below`, if there is a parent.
    pub(super) fn write(&self, at: u64, data: &[u8], below: Option<Below<'_>>) -> Result<()> {
        self.prepare()?;
        let mut done = 0usize;
        while done < data.len() {
            let rest = data.get(done..).unwrap_or_default();
            let here = at.saturating_add(len64(done));
            let (mapping, len) = self.map(here, len64(rest.len()).min(PIECE_MAX))?;
            let piece = part(rest, 0, index(len)?, "write")?;
            let written = match mapping {
                Mapping::Data { host } => {
                    self.file.write_at(host, piece)?;
                    piece.len()
                }
                Mapping::Zero => self.allocate(here, piece, mapping, None)?,
                Mapping::Absent => self.allocate(here, piece, mapping, below)?,
                Mapping::Packed { .. } => return Err(VmdkFault::ReadOnly("a streamOptimized image").into()),
            };
            done = done.saturating_add(written);
        }
        Ok(())
    }

    /// Makes `span` read as zeroes. Grains that are not there stay so unless a parent would show through.
    pub(super) fn zero(&self, span: Span, below: Option<Below<'_>>) -> Result<()> {
        self.clear(span, below, true)
    }

    /// Gives the space of `span` back: what was stored reads as zeroes, what was not stays as it is.
    pub(super) fn discard(&self, span: Span, below: Option<Below<'_>>) -> Result<()> {
        self.clear(span, below, false)
    }

    fn clear(&self, span: Span, below: Option<Below<'_>>, cover: bool) -> Result<()> {
        self.prepare()?;
        let mut rest = span;
        while !rest.is_empty() {
            let (mapping, len) = self.map(rest.start(), rest.len().min(PIECE_MAX))?;
            let piece = rest.truncate(len);
            let done = match mapping {
                Mapping::Zero => len,
                Mapping::Absent => match below {
                    Some(below) if cover => self.cover(piece, below)?,
                    _ => len,
                },
                Mapping::Data { host } => match self.whole_grains(piece) {
                    Some((first, count, bytes)) if self.zero_entry(below).is_some() => {
                        self.leave(first, count, below)?;
                        bytes
                    }
                    _ => {
                        // Up to where whole grains begin.
                        let (_, within) = self.header.grain.split(rest.start());
                        let to_next = self.header.grain.bytes().saturating_sub(within);
                        let len = if self.zero_entry(below).is_some() { len.min(to_next) } else { len };
                        self.file.write_zeroes(Span::new(host, len)?)?;
                        len
                    }
                },
                Mapping::Packed { .. } => return Err(VmdkFault::ReadOnly("a streamOptimized image").into()),
            };
            rest = rest.skip(done);
        }
        self.limit_dirty()
    }

    /// Makes the beginning of an absent stretch read as zeroes where the parent has something; says how far.
    fn cover(&self, span: Span, below: Below<'_>) -> Result<u64> {
        let (len, is_zero) = below.run(span)?;
        if is_zero && !below.leaving {
            return Ok(len);
        }
        if let Some((first, count, bytes)) = self.whole_grains(span)
            && self.zero_entry(Some(below)).is_some()
        {
            self.leave(first, count, Some(below))?;
            return Ok(bytes);
        }
        let (_, within) = self.header.grain.split(span.start());
        let len = len.min(self.header.grain.bytes().saturating_sub(within));
        self.write(span.start(), &vec![0; index(len)?], Some(below))?;
        Ok(len)
    }

    /// The whole grains that `span` begins with, if it does: the first, how many, and their bytes.
    fn whole_grains(&self, span: Span) -> Option<(u64, u64, u64)> {
        let grain = self.header.grain;
        let (first, within) = grain.split(span.start());
        let count = if span.end() >= self.header.capacity {
            grain.count(span.len())
        } else {
            span.len().div_euclid(grain.bytes())
        };
        let bytes = count.saturating_mul(grain.bytes()).min(span.len());
        (within == 0 && count > 0).then_some((first, count, bytes))
    }

    /// The entry of a grain of zeroes, if there is one.
    fn zero_entry(&self, below: Option<Below<'_>>) -> Option<u32> {
        if self.header.zeroed_grains {
            Some(1)
        } else if below.is_none() {
            Some(0)
        } else {
            None
        }
    }

    /// Makes grains of one table zero by their entries.
    fn leave(&self, first: u64, count: u64, below: Option<Below<'_>>) -> Result<()> {
        let Some(zero) = self.zero_entry(below) else { return Ok(()) };
        let last = first.saturating_add(count).saturating_sub(1);
        let _claim = self.claim(first, last)?;
        let (table, entry) = self.locate(first);
        let mut left = Vec::new();
        self.change_table(table, |entries| {
            let from = index(entry)?;
            let slots = entries.get_mut(from..).unwrap_or_default().iter_mut().take(index(count)?);
            for slot in slots {
                if *slot > u32::from(self.header.zeroed_grains) {
                    left.push(u64::from(*slot).saturating_mul(SECTOR));
                }
                *slot = zero;
            }
            Ok(())
        })?;
        if let Some(space) = &mut *self.space()? {
            space.freed.append(&mut left);
        }
        Ok(())
    }

    /// Changes one table in memory.
    pub(super) fn change_table(
        &self,
        table: u64,
        change: impl FnOnce(&mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let count = usize::try_from(self.header.gt_entries).unwrap_or_default();
        loop {
            self.load(table)?;
            let mut state = self.exclusive()?;
            let Tables { directory, loaded, dirty, .. } = &mut *state;
            let is_new = directory.get(index(table)?).is_some_and(|s| *s == 0);
            let entries = if is_new {
                loaded.entry(table).or_insert_with(|| vec![0; count])
            } else {
                // Another reader may have put it out of memory meanwhile.
                let Some(entries) = loaded.get_mut(&table) else { continue };
                entries
            };
            change(entries)?;
            dirty.insert(table);
            return Ok(());
        }
    }

    /// Writes into grains that are not allocated; all of them were `seen` to be the same, in one table. Returns
    /// the bytes written: 0 if another writer was faster, and the caller looks again.
    fn allocate(&self, at: u64, data: &[u8], seen: Mapping, below: Option<Below<'_>>) -> Result<usize> {
        let grain = self.header.grain;
        let end = at.saturating_add(len64(data.len()));
        let (first, within) = grain.split(at);
        let (last, _) = grain.split(end.saturating_sub(1));
        let claim = self.claim(first, last)?;
        let (mapping, len) = self.map(at, len64(data.len()))?;
        if mapping != seen || len < len64(data.len()) {
            return Ok(0);
        }
        let place = self.reserve(last.saturating_sub(first).saturating_add(1))?;
        // There may be less room in one piece than was asked for.
        let data = data.get(..index(place.len().saturating_sub(within))?).unwrap_or(data);
        let count = grain.count(place.len());
        let written = match below {
            Some(below) => self.write_with_surroundings(place.start(), first, count, at, data, below),
            None => self.file.write_at(place.start().saturating_add(within), data),
        };
        if let Err(e) = written.and_then(|()| self.publish(first, count, place.start())) {
            if let Some(space) = &mut *self.space()? {
                space.give(place);
            }
            return Err(e);
        }
        drop(claim);
        self.limit_dirty()?;
        Ok(data.len())
    }

    /// Writes whole grains: `data`, and the parent's bytes before and behind it.
    fn write_with_surroundings(
        &self,
        host: u64,
        first: u64,
        count: u64,
        at: u64,
        data: &[u8],
        below: Below<'_>,
    ) -> Result<()> {
        let grain = self.header.grain;
        let start = grain.start_of(first).ok_or(Common::Index(first))?;
        let end = start.saturating_add(count.saturating_mul(grain.bytes())).min(self.header.capacity);
        let mut whole = vec![0; index(end.saturating_sub(start))?];
        let before = index(at.saturating_sub(start))?;
        let behind = before.saturating_add(data.len());
        let tail = whole.len().saturating_sub(behind);
        if before > 0 {
            below.read(start, part_mut(&mut whole, 0, before, "grain")?)?;
        }
        if tail > 0 {
            below.read(start.saturating_add(len64(behind)), part_mut(&mut whole, behind, tail, "grain")?)?;
        }
        part_mut(&mut whole, before, data.len(), "grain")?.copy_from_slice(data);
        self.file.write_at(host, &whole)
    }

    fn claim(&self, first: u64, last: u64) -> Result<Claim<'_>> {
        let mut busy = self.writing.busy.lock().map_err(|_| Common::Poisoned)?;
        while busy.range(first..=last).next().is_some() {
            busy = self.writing.done.wait(busy).map_err(|_| Common::Poisoned)?;
        }
        busy.extend(first..=last);
        Ok(Claim { writing: &self.writing, first, last })
    }

    /// Takes space for up to `count` grains, in one piece, which reads as zeroes.
    fn reserve(&self, count: u64) -> Result<Span> {
        let mut space = self.space()?;
        let space = space.as_mut().ok_or(Common::ReadOnly)?;
        let want = count.saturating_mul(self.header.grain.bytes());
        if let Some(place) = space.take(want) {
            self.file.write_zeroes(place)?;
            return Ok(place);
        }
        self.append(space, want)
    }

    /// Takes `len` bytes at the end of the file.
    fn append(&self, space: &mut Space, len: u64) -> Result<Span> {
        let place = Span::new(space.end, len)?;
        let last_sector = place.end().div_euclid(SECTOR);
        if u32::try_from(last_sector).is_err() {
            return Err(VmdkFault::Full(last_sector).into());
        }
        self.file.resize(place.end())?;
        space.end = place.end();
        Ok(place)
    }

    /// Takes whole grains for `len` bytes of tables, or of a grain that moves, at the end of the file.
    pub(super) fn reserve_behind(&self, len: u64) -> Result<u64> {
        let mut space = self.space()?;
        let space = space.as_mut().ok_or(Common::ReadOnly)?;
        let whole = self.header.grain.ceil(len).ok_or(Common::Index(len))?;
        Ok(self.append(space, whole)?.start())
    }

    /// Enters the grains into their table, in memory.
    fn publish(&self, first: u64, count: u64, host: u64) -> Result<()> {
        let (table, entry) = self.locate(first);
        let grain_sectors = self.header.grain.bytes().div_euclid(SECTOR);
        self.change_table(table, |entries| {
            for i in 0..count {
                let sector = host.div_euclid(SECTOR).saturating_add(i.saturating_mul(grain_sectors));
                let slot = entries.get_mut(index(entry.saturating_add(i))?).ok_or(Common::Index(entry))?;
                *slot = u32::try_from(sector).map_err(|_| VmdkFault::Full(sector))?;
            }
            Ok(())
        })
    }

    /// Keeps the memory for changed tables bounded.
    fn limit_dirty(&self) -> Result<()> {
        let many = self.shared()?.dirty.len() >= DIRTY_MAX;
        if many { self.sync() } else { Ok(()) }
    }

    /// Brings everything to stable storage: data, then tables, then the grain directory.
    pub(super) fn sync(&self) -> Result<()> {
        let _one = self.writing.syncing.lock().map_err(|_| Common::Poisoned)?;
        // The tables as they are now: what they name was written before, so that the flush below covers it.
        let (tables, freed) = {
            let mut state = self.exclusive()?;
            let numbers = std::mem::take(&mut state.dirty);
            let table =
                |n: &u64| Some((*n, state.loaded.get(n)?.iter().flat_map(|e| e.to_le_bytes()).collect()));
            let tables: Vec<(u64, Vec<u8>)> = numbers.iter().filter_map(table).collect();
            state.in_flight = numbers;
            let freed = self.space()?.as_mut().map(|s| std::mem::take(&mut s.freed));
            (tables, freed.unwrap_or_default())
        };
        let written = if tables.is_empty() { self.file.flush() } else { self.write_tables(&tables) };
        let mut state = self.exclusive()?;
        let mut done = std::mem::take(&mut state.in_flight);
        if let Some(space) = &mut *self.space()? {
            if written.is_ok() { space.landed.extend(freed) } else { space.freed.extend(freed) }
        }
        if written.is_err() {
            state.dirty.append(&mut done);
        }
        written
    }

    /// Whether [`collect`](Self::collect) has something to do.
    pub(super) fn has_landed(&self) -> Result<bool> {
        Ok(self.space()?.as_ref().is_some_and(Space::has_landed))
    }

    /// Gives the places back that no table names any more. Nobody else may be using the extent.
    pub(super) fn collect(&self) -> Result<()> {
        let mut space = self.space()?;
        let Some(space) = space.as_mut() else { return Ok(()) };
        for at in std::mem::take(&mut space.landed) {
            let place = Span::new(at, self.header.grain.bytes())?;
            // An old last grain may have been cut by the end of the file.
            if place.end() <= self.file.size() {
                self.file.discard(place)?;
                space.give(place);
            }
        }
        Ok(())
    }

    fn write_tables(&self, tables: &[(u64, Vec<u8>)]) -> Result<()> {
        if !self.header.unclean {
            self.file.write_at(UNCLEAN_AT, &[1])?;
        }
        self.file.flush()?;
        let mut new_tables = Vec::new();
        for (number, bytes) in tables {
            self.write_table(*number, bytes, &mut new_tables)?;
        }
        self.file.flush()?;
        if !new_tables.is_empty() {
            self.enter_tables(&new_tables)?;
            self.file.flush()?;
        }
        if !self.header.unclean {
            self.file.write_at(UNCLEAN_AT, &[0])?;
        }
        Ok(())
    }

    /// Writes one table, and its second copy, to their places, or to new ones that the directory does not name
    /// yet.
    fn write_table(&self, number: u64, bytes: &[u8], new_tables: &mut Vec<NewTable>) -> Result<()> {
        let (home, copy) = {
            let state = self.shared()?;
            let at = |directory: &[u32]| index(number).map(|i| directory.get(i).copied().unwrap_or(0));
            (at(&state.directory)?, at(&state.redundant)?)
        };
        if home != 0 {
            self.write_home(home, number, bytes)?;
            return if copy == 0 { Ok(()) } else { self.write_home(copy, number, bytes) };
        }
        let home = self.write_new(bytes)?;
        let copy = if self.header.rgd_at.is_some() { self.write_new(bytes)? } else { 0 };
        new_tables.push(NewTable { number, home, copy });
        Ok(())
    }

    fn write_home(&self, sector: u32, number: u64, bytes: &[u8]) -> Result<()> {
        let (sector, file_sectors) = (u64::from(sector), self.file.size().div_euclid(SECTOR));
        let at = sector.saturating_mul(SECTOR);
        if at.saturating_add(len64(bytes.len())) > self.file.size() {
            return Err(VmdkFault::GtPastEnd { index: number, sector, file_sectors }.into());
        }
        self.file.write_at(at, bytes)
    }

    /// Writes a table to new space and says at which sector.
    fn write_new(&self, bytes: &[u8]) -> Result<u32> {
        let host = self.reserve_behind(len64(bytes.len()))?;
        self.file.write_at(host, bytes)?;
        let sector = host.div_euclid(SECTOR);
        u32::try_from(sector).map_err(|_| VmdkFault::Full(sector).into())
    }

    /// Enters new tables into both directories.
    fn enter_tables(&self, new_tables: &[NewTable]) -> Result<()> {
        for new in new_tables {
            let entry = |at: u64| at.saturating_add(new.number.saturating_mul(4));
            if let Some(at) = self.header.rgd_at {
                self.file.write_at(entry(at), &new.copy.to_le_bytes())?;
            }
            self.file.write_at(entry(self.header.gd_at), &new.home.to_le_bytes())?;
            let mut state = self.exclusive()?;
            let i = index(new.number)?;
            if let Some(slot) = state.directory.get_mut(i) {
                *slot = new.home;
            }
            if let Some(slot) = state.redundant.get_mut(i) {
                *slot = new.copy;
            }
        }
        Ok(())
    }
}

/// A grain table that the directory does not name yet, and the sectors of its two copies.
struct NewTable {
    number: u64,
    home: u32,
    copy: u32,
}
