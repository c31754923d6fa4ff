//! Looks for footers that are damaged, for blocks outside the file, and for blocks that share bytes.

use super::fault::VhdFault;
use super::footer::Footers;
use super::layout::UNUSED;
use super::space::{FAULTS_MAX, Survey};
use super::sparse::{Block, SparseVhd, State};
use crate::check::{Finding, Report, Severity};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::{Room, WriteMap};
use crate::wire::index;

/// Bytes copied at a time.
const PIECE: u64 = MIB;

/// Checks the image, and mends what can be mended if the report says so. The caller holds the gate.
pub(super) fn check(image: &SparseVhd, report: &mut Report) -> Result<()> {
    image.sync()?;
    let state = image.state()?.clone();
    let repair = report.repair && image.file.writable();
    footers(image, &state, repair, report)?;
    let survey = Survey::of(image)?;
    let unused = survey.unused(&state.header);
    if unused > 0 {
        report.add(Severity::Leak, format!("{unused} bytes between blocks are in no block"));
    }
    if survey.faults.len() >= FAULTS_MAX {
        report.add(
            Severity::Corruption,
            format!("{FAULTS_MAX} blocks or more are damaged: only some are listed"),
        );
    }
    let too_many = survey.faults.len() >= FAULTS_MAX;
    for (number, fault) in survey.faults {
        let what = fault.to_string();
        let repaired = repair && !too_many && mend(image, &state, number, &fault)?;
        report.findings.push(Finding { count: 1, what, severity: Severity::Corruption, repaired });
    }
    if repair {
        image.sync()?;
    }
    Ok(())
}

/// Both footers must be there and say the same.
fn footers(image: &SparseVhd, state: &State, repair: bool, report: &mut Report) -> Result<()> {
    let found = Footers::read(&image.file)?;
    let mut wrong = Vec::new();
    for (place, footer) in [("the footer's copy at the beginning", found.first), ("the footer", found.last)] {
        match footer {
            Ok(footer) if footer.bytes() == state.footer.bytes() => {}
            Ok(_) => wrong.push(format!("{place} differs from the other one")),
            Err(e) if e.fault::<VhdFault>().is_some() => wrong.push(format!("{place}: {e}")),
            Err(e) => return Err(e),
        }
    }
    if repair && !wrong.is_empty() {
        image.write_footers(state)?;
    }
    for what in wrong {
        report.findings.push(Finding { count: 1, what, severity: Severity::Corruption, repaired: repair });
    }
    Ok(())
}

/// Mends one block: a shared one gets a copy of its own; one that is not there, or is no block, is given up.
fn mend(image: &SparseVhd, state: &State, number: u64, fault: &VhdFault) -> Result<bool> {
    let header = &state.header;
    let old = Block::at(header, image.entry(header, number)?);
    image.set_entry(header, number, UNUSED)?;
    if !matches!(fault, VhdFault::Shared { .. }) {
        return Ok(true);
    }
    {
        let mut space = image.space.lock().map_err(|_| Common::Poisoned)?;
        let end = image.file.size().next_multiple_of(super::layout::SECTOR);
        space.get_or_insert(super::space::Space::behind(end));
    }
    let room: Room = image.reserve(number)?;
    let mut rest = old.data;
    while !rest.is_empty() {
        let piece = rest.truncate(PIECE);
        let mut bytes = vec![0; index(piece.len())?];
        image.file.read_at(piece.start(), &mut bytes)?;
        let within = piece.start().saturating_sub(old.data.start());
        image.file.write_at(room.host.0.saturating_add(within), &bytes)?;
        rest = rest.skip(piece.len());
    }
    let bits = image.sheets.get(old.bitmap)?;
    image.publish_new(header, room, &bits)?;
    Ok(true)
}
