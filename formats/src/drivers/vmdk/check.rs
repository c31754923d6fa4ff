//! Looks for tables and grains outside the file, for places that two entries name, for differences between the two
//! sets of tables and for space that nobody uses; and mends all that.
//!
//! Mending loses nothing that can be read: a table outside the file is taken from its second copy, a grain outside
//! the file from the second copy of its entry, and who shares a place gets a copy of it.

use super::census::Census;
use super::fault::VmdkFault;
use super::grains::SparseExtent;
use super::header::UNCLEAN_AT;
use super::layout::SECTOR;
use crate::block::{Disk, RunKind};
use crate::check::{Finding, Report, Severity};
use crate::error::{Error, Result};
use crate::wire::{bytes, index, len64};

/// Findings that are listed for one extent: a file cut in the middle has millions.
const FINDINGS_MAX: usize = 100;

/// Checks one extent and adds what it finds, with `name` before it.
pub(super) fn extent(extent: &SparseExtent, name: &str, report: &mut Report) -> Result<()> {
    let mend = report.repair && extent.file.writable() && extent.refuse_writes().is_ok();
    // Nothing waits that is newer than the file.
    if extent.file.writable() {
        extent.sync()?;
    }
    extent.learn_redundant()?;
    let mut check = Check { extent, name, mend, found: Vec::new(), more: 0, changed: false };
    if mend {
        extent.prepare_to_mend()?;
    }
    check.directory()?;
    check.copies()?;
    check.entries_inside()?;
    let census = check.places()?;
    check.leaks(&census)?;
    if check.changed {
        extent.sync()?;
    }
    if mend && (check.changed || extent.header.unclean) {
        extent.file.write_at(UNCLEAN_AT, &[0])?;
        extent.file.flush()?;
    }
    if mend {
        extent.forget_space()?;
    }
    if check.more > 0 {
        check.found.push(Finding {
            what: format!("{name}: {} findings more", check.more),
            severity: Severity::Corruption,
            repaired: mend,
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
    /// Findings that are not listed.
    more: u64,
    changed: bool,
}

/// What a fault of the image is in words; errors of another kind end the check.
fn in_words(e: Error) -> Result<String> {
    if e.fault::<VmdkFault>().is_some() { Ok(e.to_string()) } else { Err(e) }
}

impl Check<'_> {
    fn note(&mut self, severity: Severity, what: &str) {
        if self.found.len() >= FINDINGS_MAX {
            self.more = self.more.saturating_add(1);
            return;
        }
        let what = format!("{}: {what}", self.name);
        self.found.push(Finding { what, severity, repaired: self.mend });
    }

    fn tables(&self) -> u64 {
        self.extent.header.gd_entries()
    }

    /// Entries of both directories: inside the file, and each table by itself.
    fn directory(&mut self) -> Result<()> {
        let (homes, copies) = {
            let state = self.extent.shared()?;
            (state.directory.clone(), state.redundant.clone())
        };
        let mut sorted: Vec<u32> = homes.iter().copied().filter(|s| *s != 0).collect();
        sorted.sort_unstable();
        let table_sectors = u64::from(self.extent.header.gt_entries).saturating_mul(4).div_ceil(SECTOR);
        for (number, home) in (0u64..).zip(homes.iter().copied()).filter(|(_, s)| *s != 0) {
            let copy = copies.get(index(number)?).copied().unwrap_or(0);
            let entries = match self.extent.read_table(number, home.into()) {
                Ok(_) => {
                    // The first of several that overlap keeps its place; this one is not the first if another
                    // begins in the sectors before it, or here and with a lower number.
                    let at = sorted.partition_point(|s| *s < home);
                    let before = at.checked_sub(1).and_then(|i| sorted.get(i));
                    let across = before.is_some_and(|s| u64::from(home.saturating_sub(*s)) < table_sectors);
                    let twice = sorted.get(at.saturating_add(1)) == Some(&home)
                        && homes.iter().position(|s| *s == home) != Some(index(number)?);
                    if !across && !twice {
                        continue;
                    }
                    let sector = home;
                    let fault = if twice {
                        VmdkFault::SharedTable { sector }
                    } else {
                        VmdkFault::TablesOverlap { sector: sector.into() }
                    };
                    self.note(Severity::Corruption, &fault.to_string());
                    self.second_copy(number, copy).or(self.extent.read_table(number, home.into()).ok())
                }
                Err(e) => {
                    let what = in_words(e)?;
                    self.note(Severity::Corruption, &what);
                    self.second_copy(number, copy)
                }
            };
            if self.mend {
                self.renew(number, entries)?;
            }
        }
        Ok(())
    }

    /// The second copy of a table, where it can be read.
    fn second_copy(&self, number: u64, copy: u32) -> Option<Vec<u32>> {
        if copy == 0 { None } else { self.extent.read_table(number, copy.into()).ok() }
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
                Err(e) => {
                    let what = in_words(e)?;
                    self.note(Severity::Corruption, &format!("second copy: {what}"));
                    if self.mend {
                        self.renew(table, Some(entries))?;
                        continue;
                    }
                }
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
