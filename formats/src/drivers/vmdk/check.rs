//! Looks for tables and grains outside the file, for places that two entries name, for differences between the two
//! sets of tables and for space that nobody uses; and mends all that.
//!
//! Mending loses nothing that can be read: a table outside the file is taken from its second copy, a grain outside
//! the file from the second copy of its entry, and who shares a place gets a copy of it.

use std::collections::BTreeMap;

use super::census::Census;
use super::fault::VmdkFault;
use super::grains::SparseExtent;
use super::header::UNCLEAN_AT;
use super::layout::SECTOR;
use crate::block::{Disk, RunKind};
use crate::check::{Finding, Report, Severity};
use crate::error::{Error, Result};
use crate::limits::MIB;
use crate::wire::{bytes, index, len64};

/// Findings that are listed for one extent: a file cut in the middle has millions.
const FINDINGS_MAX: usize = 100;

/// Bytes that a small file may grow by while it is mended; a larger one may double. What grows more is no image that
/// was damaged, but one that was made up.
const GROWTH_MAX: u64 = 64 * MIB;

/// Checks one extent and adds what it finds, with `name` before it.
pub(super) fn extent(extent: &SparseExtent, name: &str, report: &mut Report) -> Result<()> {
    let mend = report.repair && extent.file.writable() && extent.refuse_writes().is_ok();
    // Nothing waits that is newer than the file.
    if extent.file.writable() {
        extent.sync()?;
    }
    extent.learn_redundant()?;
    let mut check = Check::run(extent, name, false)?;
    let room = extent.file.size().max(GROWTH_MAX);
    if mend && (check.total > 0 || extent.header.unclean) && check.growth <= room {
        extent.prepare_to_mend()?;
        check = Check::run(extent, name, true)?;
        extent.sync()?;
        extent.file.write_at(UNCLEAN_AT, &[0])?;
        extent.file.flush()?;
        extent.forget_space()?;
    } else if mend && check.growth > room {
        let what = format!("{name}: so much is damaged that mending would take {} bytes", check.growth);
        check.found.insert(0, Finding { count: 1, what, severity: Severity::Corruption, repaired: false });
    }
    let more = check.total.saturating_sub(len64(check.found.len()));
    if more > 0 {
        check.found.push(Finding {
            count: more,
            what: format!("{name}: {more} findings more"),
            severity: Severity::Corruption,
            repaired: check.mend,
        });
    }
    report.findings.append(&mut check.found);
    Ok(())
}

/// One check.
struct Check<'a> {
    extent: &'a SparseExtent,
    name: &'a str,
    mend: bool,
    found: Vec<Finding>,
    /// Findings, with those that are not listed.
    total: u64,
    /// Bytes that mending takes, at most.
    growth: u64,
    changed: bool,
}

/// What a fault of the image is in words; errors of another kind end the check.
fn in_words(e: Error) -> Result<String> {
    if e.fault::<VmdkFault>().is_some() { Ok(e.to_string()) } else { Err(e) }
}

impl<'a> Check<'a> {
    /// Looks at everything, and mends it if asked.
    fn run(extent: &'a SparseExtent, name: &'a str, mend: bool) -> Result<Self> {
        let mut check = Self { extent, name, mend, found: Vec::new(), total: 0, growth: 0, changed: false };
        check.directory()?;
        check.copies()?;
        check.entries_inside()?;
        let census = check.places()?;
        check.leaks(&census)?;
        Ok(check)
    }

    /// Mending needs `count` grains of room.
    fn grow(&mut self, count: u64) {
        let bytes = self.extent.header.grain.bytes().saturating_mul(count);
        self.growth = self.growth.saturating_add(bytes);
    }

    fn note(&mut self, severity: Severity, what: &str) {
        self.total = self.total.saturating_add(1);
        if self.found.len() >= FINDINGS_MAX {
            return;
        }
        let what = format!("{}: {what}", self.name);
        self.found.push(Finding { count: 1, what, severity, repaired: self.mend });
    }

    fn tables(&self) -> u64 {
        self.extent.header.gd_entries()
    }

    /// Entries of both directories: inside the file, and each table by itself.
    fn directory(&mut self) -> Result<()> {
        let mut bad: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
        for displaced in self.extent.displaced()? {
            self.note(Severity::Corruption, &displaced.fault.to_string());
            let (home, copy) = bad.entry(displaced.number).or_default();
            *(if displaced.is_copy { copy } else { home }) = true;
        }
        for (number, (home_is_bad, copy_is_bad)) in bad {
            self.grow(2);
            if !self.mend {
                continue;
            }
            let (home, copy) = {
                let (state, i) = (self.extent.shared()?, index(number)?);
                let at = |list: &[u32]| list.get(i).copied().unwrap_or(0);
                (at(&state.directory), at(&state.redundant))
            };
            let read = |sector| if sector == 0 { None } else { self.readable(number, sector) };
            // One that lies by itself is trusted more than one that lies across another.
            let entries = match (home_is_bad, copy_is_bad) {
                (true, false) => read(copy).or_else(|| read(home)),
                _ => read(home).or_else(|| read(copy)),
            };
            self.renew(number, entries)?;
        }
        Ok(())
    }

    /// A table, where it can be read.
    fn readable(&self, number: u64, sector: u32) -> Option<Vec<u32>> {
        self.extent.read_table(number, sector.into()).ok()
    }

    /// The second copy of a table, where it can be read.
    fn second_copy(&self, number: u64, copy: u32) -> Option<Vec<u32>> {
        if copy == 0 { None } else { self.readable(number, copy) }
    }

    /// Gives a table a new place for both copies.
    fn renew(&mut self, number: u64, entries: Option<Vec<u32>>) -> Result<()> {
        let i = index(number)?;
        let empty =
            || usize::try_from(self.extent.header.gt_entries).map_or_else(|_| Vec::new(), |n| vec![0; n]);
        let mut state = self.extent.exclusive()?;
        if let Some(slot) = state.directory.get_mut(i) {
            *slot = 0;
        }
        if let Some(slot) = state.redundant.get_mut(i) {
            *slot = 0;
        }
        state.loaded.insert(number, entries.unwrap_or_else(empty));
        state.dirty.insert(number);
        self.changed = true;
        Ok(())
    }

    /// The two copies of each table are the same.
    fn copies(&mut self) -> Result<()> {
        for table in 0..self.tables() {
            let copy = self.extent.shared()?.redundant.get(index(table)?).copied().unwrap_or(0);
            if copy == 0 || self.extent.load(table).is_err() {
                continue;
            }
            let Some(entries) = self.extent.shared()?.loaded.get(&table).cloned() else { continue };
            match self.extent.read_table(table, copy.into()) {
                Ok(copy) if copy == entries => continue,
                Ok(_) => {
                    self.note(Severity::Corruption, &format!("the two copies of grain table {table} differ"))
                }
                // That it is outside the file was told already.
                Err(e) => drop(in_words(e)?),
            }
            if self.mend {
                self.extent.exclusive()?.dirty.insert(table);
                self.changed = true;
            }
        }
        Ok(())
    }

    /// Grains are inside the file.
    fn entries_inside(&mut self) -> Result<()> {
        let size = self.extent.file.size();
        for table in 0..self.tables() {
            if self.extent.load(table).is_err() {
                continue;
            }
            let mut outside = Vec::new();
            self.extent.each_grain_of(table, |grain, sector| {
                if self.extent.grain_place(grain, sector)?.end() > size {
                    outside.push((grain, sector));
                }
                Ok(())
            })?;
            let copy = self.extent.shared()?.redundant.get(index(table)?).copied().unwrap_or(0);
            let other = if outside.is_empty() { None } else { self.second_copy(table, copy) };
            for (grain, sector) in outside {
                let file_sectors = size.div_euclid(SECTOR);
                let what = VmdkFault::GrainPastEnd { grain, sector, file_sectors }.to_string();
                self.note(Severity::Corruption, &what);
                if self.mend {
                    let (_, entry) = self.extent.locate(grain);
                    let entry = index(entry)?;
                    let second = other.as_ref().and_then(|t| t.get(entry)).copied().unwrap_or(0);
                    let inside = self.extent.grain_place(grain, second.into())?.end() <= size;
                    self.set(table, entry, if inside { second } else { 0 })?;
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, table: u64, entry: usize, sector: u32) -> Result<()> {
        self.extent.change_table(table, |entries| {
            if let Some(slot) = entries.get_mut(entry) {
                *slot = sector;
            }
            Ok(())
        })?;
        self.changed = true;
        Ok(())
    }

    /// Every place belongs to one grain, and none to a grain and to tables.
    fn places(&mut self) -> Result<Census> {
        let size = self.extent.file.size();
        let mut odd = 0;
        for table in (0..self.tables()).filter(|t| self.extent.load(*t).is_ok()) {
            self.extent.each_grain_of(table, |_, sector| {
                odd |= sector;
                Ok(())
            })?;
        }
        let mut census = self.extent.structures(odd)?;
        for table in 0..self.tables() {
            if self.extent.load(table).is_err() {
                continue;
            }
            let mut shared = Vec::new();
            self.extent.each_grain_of(table, |grain, sector| {
                let place = self.extent.grain_place(grain, sector)?;
                if place.end() <= size && !census.claim(place) {
                    shared.push((grain, sector));
                }
                Ok(())
            })?;
            for (grain, sector) in shared {
                self.note(Severity::Corruption, &VmdkFault::Overlap { grain, sector }.to_string());
                self.grow(1);
                if self.mend {
                    self.copy_grain(table, grain, sector)?;
                }
            }
        }
        Ok(census)
    }

    /// Gives a grain a place of its own.
    fn copy_grain(&mut self, table: u64, grain: u64, sector: u64) -> Result<()> {
        let (file, max) = (&self.extent.file, self.extent.header.grain.bytes());
        let place = self.extent.grain_place(grain, sector)?;
        let held = bytes(file, place.start(), place.len(), max, "grain")?;
        let to = self.extent.reserve_behind(len64(held.len()))?;
        file.write_at(to, &held)?;
        let sector = to.div_euclid(SECTOR);
        let (_, entry) = self.extent.locate(grain);
        let sector = u32::try_from(sector).map_err(|_| VmdkFault::Full(sector))?;
        self.set(table, index(entry)?, sector)
    }

    /// Room for whole grains that nobody uses, and that takes space of the host.
    fn leaks(&mut self, census: &Census) -> Result<()> {
        let (header, file) = (&self.extent.header, &self.extent.file);
        if header.compressed || header.is_cowd {
            return Ok(());
        }
        let (mut places, mut lost) = (0u64, 0u64);
        let size = file.size();
        // What was appended while mending is in use.
        let end = if self.changed { header.overhead } else { size };
        census.each_free(header.overhead, end, |span| {
            if span.len() < header.grain.bytes() {
                return Ok(());
            }
            let stored: u64 = stored(file, span)?;
            if stored > 0 {
                places = places.saturating_add(1);
                lost = lost.saturating_add(stored);
                if self.mend {
                    file.discard(span)?;
                }
            }
            Ok(())
        })?;
        if places > 0 {
            self.note(Severity::Leak, &format!("{lost} bytes in {places} places belong to no grain"));
        }
        Ok(())
    }
}

/// Bytes of `span` that are not holes.
fn stored(file: &Disk, span: crate::block::Span) -> Result<u64> {
    let mut sum = 0u64;
    for run in file.runs(span) {
        let (run, kind) = run?;
        if kind == RunKind::Data {
            sum = sum.saturating_add(run.len());
        }
    }
    Ok(sum)
}
