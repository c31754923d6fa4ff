//! Writing into a sparse extent while a guest uses it.
//!
//! A new grain goes to the end of the file, its data first. Tables change in memory and go out when the disk is
//! flushed, behind a barrier, so that after a crash no entry names bytes that were never written: at worst some
//! space at the end of the file belongs to nobody. The mark "open for writing" is in the header while the tables
//! on disk change.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex};

use super::fault::VmdkFault;
use super::grains::{Mapping, SparseExtent};
use super::header::{SparseHeader, UNCLEAN_AT};
use super::layout::SECTOR;
use crate::block::{Disk, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::{index, len64, part, part_mut};

/// Grain tables that may wait for a flush: 2 KiB each.
const DIRTY_MAX: usize = 2048;
/// Grains are allocated for at most this many bytes at once.
const PIECE_MAX: u64 = 16 * MIB;

/// What writing needs besides the tables.
#[derive(Debug)]
pub(super) struct Writing {
    /// Byte offset where the next grain goes; the space is taken as it is reserved.
    next: Mutex<u64>,
    /// Bytes at the beginning of the file that hold no grain.
    tables_end: u64,
    /// Grains that are being allocated: a second writer waits for the first.
    busy: Mutex<BTreeSet<u64>>,
    done: Condvar,
    /// One flush after the other.
    syncing: Mutex<()>,
}

/// Fills the buffer with what the parent has at an offset of the extent.
pub(super) type Below<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<()>;

impl Writing {
    pub(super) fn new(file: &Disk, header: &SparseHeader, directory: &[u32]) -> Result<Self> {
        if file.writable() {
            let mut sorted: Vec<u32> = directory.iter().copied().filter(|s| *s != 0).collect();
            sorted.sort_unstable();
            if let Some((sector, _)) = sorted.iter().zip(sorted.iter().skip(1)).find(|(a, b)| a == b) {
                return Err(VmdkFault::SharedTable { sector: *sector }.into());
            }
        }
        let size = file.size();
        Ok(Self {
            next: Mutex::new(header.grain.ceil(size).ok_or(Common::Index(size))?),
            tables_end: header.overhead.min(size),
            busy: Mutex::default(),
            done: Condvar::new(),
            syncing: Mutex::default(),
        })
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

    /// Writes `data` at `at`; what a new grain needs around it comes from `below`, if there is a parent.
    pub(super) fn write(&self, at: u64, data: &[u8], below: Option<Below<'_>>) -> Result<()> {
        let mut done = 0usize;
        while done < data.len() {
            let rest = data.get(done..).unwrap_or_default();
            let here = at.saturating_add(len64(done));
            let (mapping, len) = self.map(here, len64(rest.len()).min(PIECE_MAX))?;
            let piece = part(rest, 0, index(len)?, "write")?;
            let written = match mapping {
                Mapping::Data { host } => {
                    self.check_home(here, host)?;
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
        let mut rest = span;
        while !rest.is_empty() {
            let (mapping, len) = self.map(rest.start(), rest.len().min(PIECE_MAX))?;
            match mapping {
                Mapping::Zero => {}
                Mapping::Absent if below.is_none() => {}
                Mapping::Data { host } => {
                    self.check_home(rest.start(), host)?;
                    self.file.write_zeroes(Span::new(host, len)?)?;
                }
                Mapping::Absent => self.write(rest.start(), &vec![0; index(len)?], below)?,
                Mapping::Packed { .. } => return Err(VmdkFault::ReadOnly("a streamOptimized image").into()),
            }
            rest = rest.skip(len);
        }
        Ok(())
    }

    /// A table entry of a hostile image may name the tables themselves: reading that is harmless, writing is not.
    fn check_home(&self, at: u64, host: u64) -> Result<()> {
        let end = self.writing.tables_end;
        if host < end {
            let (grain, _) = self.header.grain.split(at);
            let (sector, end) = (host.div_euclid(SECTOR), end.div_euclid(SECTOR));
            return Err(VmdkFault::GrainInTables { grain, sector, end }.into());
        }
        Ok(())
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
        let count = last.saturating_sub(first).saturating_add(1);
        let host = self.reserve(count)?;
        match below {
            Some(below) => self.write_with_surroundings(host, first, count, at, data, below)?,
            // Fresh space at the end of a file reads as zeroes.
            None => self.file.write_at(host.saturating_add(within), data)?,
        }
        self.publish(first, count, host)?;
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
            below(start, part_mut(&mut whole, 0, before, "grain")?)?;
        }
        if tail > 0 {
            below(start.saturating_add(len64(behind)), part_mut(&mut whole, behind, tail, "grain")?)?;
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

    /// Takes space for `count` grains at the end of the file.
    fn reserve(&self, count: u64) -> Result<u64> {
        let mut next = self.writing.next.lock().map_err(|_| Common::Poisoned)?;
        let host = *next;
        let len = count.saturating_mul(self.header.grain.bytes());
        let end = host.checked_add(len).ok_or(Common::RangeWraps { start: host, len })?;
        let last_sector = end.div_euclid(SECTOR);
        if u32::try_from(last_sector).is_err() {
            return Err(VmdkFault::Full(last_sector).into());
        }
        self.file.resize(end)?;
        *next = end;
        Ok(host)
    }

    /// Enters the grains into their table, in memory.
    fn publish(&self, first: u64, count: u64, host: u64) -> Result<()> {
        let (table, entry) = self.locate(first);
        let entries = usize::try_from(self.header.gt_entries).unwrap_or_default();
        let mut state = self.exclusive()?;
        let loaded = state.loaded.entry(table).or_insert_with(|| vec![0; entries]);
        let grain_sectors = self.header.grain.bytes().div_euclid(SECTOR);
        for i in 0..count {
            let sector = host.div_euclid(SECTOR).saturating_add(i.saturating_mul(grain_sectors));
            let slot = loaded.get_mut(index(entry.saturating_add(i))?).ok_or(Common::Index(entry))?;
            *slot = u32::try_from(sector).map_err(|_| VmdkFault::Full(sector))?;
        }
        state.dirty.insert(table);
        Ok(())
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
        let tables = {
            let mut state = self.exclusive()?;
            let numbers = std::mem::take(&mut state.dirty);
            let table =
                |n: &u64| Some((*n, state.loaded.get(n)?.iter().flat_map(|e| e.to_le_bytes()).collect()));
            let tables: Vec<(u64, Vec<u8>)> = numbers.iter().filter_map(table).collect();
            state.in_flight = numbers;
            tables
        };
        let written = if tables.is_empty() { self.file.flush() } else { self.write_tables(&tables) };
        let mut state = self.exclusive()?;
        let mut done = std::mem::take(&mut state.in_flight);
        if written.is_err() {
            state.dirty.append(&mut done);
        }
        written
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
        let host = self.reserve(self.header.grain.count(len64(bytes.len())))?;
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
