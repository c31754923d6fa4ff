//! Looks for copies that differ, entries that mean nothing, and places outside the file or in use twice.

use super::bat::Entry;
use super::fault::VhdxFault;
use super::image::{State, Vhdx};
use super::layout::{MEGABYTE, REGION_TABLES_AT};
use super::metadata::DiskType;
use super::space::{FAULTS_MAX, Space, Survey, stretch};
use crate::block::Span;
use crate::check::{Finding, Report, Severity};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::index;

/// Bytes copied at a time.
const PIECE: u64 = MIB;

/// Checks the image, and mends what can be mended if the report says so. The caller holds the gate.
pub(super) fn check(image: &Vhdx, report: &mut Report) -> Result<()> {
    image.sync()?;
    let state = image.state()?.clone();
    let repair = report.repair && image.file.writable();
    if image.marks.dirty.load(std::sync::atomic::Ordering::Relaxed) {
        let (what, repaired) = ("the log had to be replayed".to_string(), image.file.writable());
        // A log that was replayed for good counts as QEMU counts it; one that waits is no harm.
        let severity = if repaired { Severity::Corruption } else { Severity::Leak };
        report.findings.push(Finding { count: 1, what, severity, repaired });
    }
    copies(image, &state, repair, report)?;
    // The space of a fixed disk is set aside on purpose, also where no block has it yet, as in QEMU's.
    let fixed = state.metadata.disk_type == DiskType::Fixed;
    let survey = Survey::of(image)?;
    let (unused, too_many) = (unused(image, &survey.space)?, survey.faults.len() >= FAULTS_MAX);
    if too_many {
        report.add(
            Severity::Corruption,
            format!("{FAULTS_MAX} entries or more are damaged: only some are listed"),
        );
    }
    let mends = repair && !too_many;
    if mends {
        *image.space.lock().map_err(|_| Common::Poisoned)? = Some(survey.space);
        image.mark(false)?;
    }
    for (number, fault) in survey.faults {
        let what = fault.to_string();
        let repaired = mends && mend(image, &state, number, &fault)?;
        report.findings.push(Finding { count: 1, what, severity: Severity::Corruption, repaired });
    }
    let cleaned = mends && {
        image.sync()?;
        fixed || give_back(image)?
    };
    // QEMU leaves five megabytes for what is to come.
    let bytes = unused.into_iter().map(|span| span.len()).fold(0, u64::saturating_add);
    if bytes > 8 * MIB && !fixed {
        let what = format!("{bytes} bytes of the file are in no block");
        report.findings.push(Finding { count: 1, what, severity: Severity::Leak, repaired: cleaned });
    }
    Ok(())
}

/// Gives back what nobody has, if everything is mended; says whether it is.
fn give_back(image: &Vhdx) -> Result<bool> {
    image.use_freed_alone()?;
    let survey = Survey::of(image)?;
    if !survey.faults.is_empty() {
        return Ok(false);
    }
    image.cut_file(0)?;
    unused(image, &survey.space)?.into_iter().try_for_each(|span| image.file.discard(span))?;
    image.file.flush()?;
    Ok(true)
}

/// What the file keeps for nobody. Holes of it cost nothing, and new blocks are put there first.
fn unused(image: &Vhdx, space: &Space) -> Result<Vec<Span>> {
    let size = image.file.size();
    let behind = MEGABYTE.start_of(space.end().into()).unwrap_or(u64::MAX).min(size);
    let mut free = vec![Span::new(behind, size.saturating_sub(behind))?];
    for (first, count) in space.gaps() {
        free.extend(Span::first(size).intersect(stretch(first, count)?));
    }
    let mut stored = Vec::new();
    for span in free {
        for run in image.file.runs(span) {
            let (span, kind) = run?;
            if !kind.is_zero() {
                stored.push(span);
            }
        }
    }
    Ok(stored)
}

/// Headers and region tables are there twice.
fn copies(image: &Vhdx, state: &State, repair: bool, report: &mut Report) -> Result<()> {
    let mut headers = image.headers.lock().map_err(|_| Common::Poisoned)?;
    let mut add = |what: &str| {
        let (what, severity) = (what.to_string(), Severity::Corruption);
        report.findings.push(Finding { count: 1, what, severity, repaired: repair });
    };
    if !headers.both {
        add("one of the two headers is damaged");
        if repair {
            headers.turn(&image.file, |_| ())?;
        }
    }
    if !state.regions.both {
        add("the two region tables are not the same");
        if repair {
            for at in REGION_TABLES_AT {
                image.file.write_at(at, state.regions.table())?;
                image.file.flush()?;
            }
            let mut state = state.clone();
            state.regions.both = true;
            image.turn_to(state)?;
        }
    }
    Ok(())
}

/// Mends one entry: a block that lies over something else gets a copy of its own; what is not there, or means
/// nothing, is given up.
fn mend(image: &Vhdx, state: &State, number: Option<u64>, fault: &VhdxFault) -> Result<bool> {
    let Some(number) = number else { return Ok(false) };
    let raw = image.raw_entry(state, number)?;
    let is_block = matches!(
        fault,
        VhdxFault::Shared { what: "block", .. }
            | VhdxFault::PastEnd { what: "block", .. }
            | VhdxFault::Entry { what: "block", .. }
    );
    if !is_block {
        // Blocks that are there in part are found without their bitmap next time.
        image.set_raw_entry(state, number, 0)?;
        return Ok(true);
    }
    if !matches!(fault, VhdxFault::Shared { .. }) {
        let entry = if image.parent.is_some() { Entry::Absent } else { Entry::Zero };
        image.set_raw_entry(state, number, entry.raw())?;
        return Ok(true);
    }
    let len = state.geometry.block.bytes();
    let old = Span::new(MEGABYTE.floor(raw), len)?;
    let new = image.take_space(len)?;
    let there = Span::first(image.file.size()).intersect(old).unwrap_or(Span::first(0));
    let mut rest = there;
    while !rest.is_empty() {
        let piece = rest.truncate(PIECE);
        let mut bytes = vec![0; index(piece.len())?];
        image.file.read_at(piece.start(), &mut bytes)?;
        image.file.write_at(new.saturating_add(piece.start().saturating_sub(old.start())), &bytes)?;
        rest = rest.skip(piece.len());
    }
    image.set_raw_entry(state, number, raw.wrapping_sub(old.start()) | new)?;
    Ok(true)
}
