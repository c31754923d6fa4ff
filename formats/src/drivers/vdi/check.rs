//! Looks for blocks outside the file, blocks that share a place, and a count that is wrong.

use super::fault::VdiFault;
use super::image::Vdi;
use super::layout::FREE;
use super::space::{FAULTS_MAX, Survey};
use crate::check::{Finding, Report, Severity};
use crate::error::{Common, Result};
use crate::mapped::InPlace;

/// Checks the image, and mends what can be mended if the report says so. The caller holds the gate.
pub(super) fn check(image: &Vdi, report: &mut Report) -> Result<()> {
    image.sync()?;
    let header = image.header()?.clone();
    let survey = Survey::of(image, &header)?;
    let too_many = survey.faults.len() >= FAULTS_MAX;
    let repair = report.repair && image.file.writable() && !too_many;
    if too_many {
        report.add(
            Severity::Corruption,
            format!("{FAULTS_MAX} blocks or more are damaged: only some are listed"),
        );
    }
    let mut wrong: Vec<(Severity, String)> = Vec::new();
    wrong.extend(survey.faults.iter().map(|(_, fault)| (Severity::Corruption, fault.to_string())));
    let (found, counted, next) = (header.allocated, survey.count, survey.space.next());
    if found != counted || next != counted {
        // Where the next program puts its first new block, one may be.
        let severity = if found < next { Severity::Corruption } else { Severity::Leak };
        wrong.push((severity, VdiFault::Count { found, counted }.to_string()));
    }
    let end = header.place(found.max(next))?.start().saturating_sub(header.extra);
    let behind = image.file.size().saturating_sub(end);
    if behind > 0 {
        wrong.push((Severity::Leak, format!("{behind} bytes behind the last block are in no block")));
    }
    if repair && !wrong.is_empty() {
        mend(image, survey)?;
    }
    for (severity, what) in wrong {
        report.findings.push(Finding { count: 1, what, severity, repaired: repair });
    }
    Ok(())
}

/// Gives blocks that share a place one each, gives up those that are not in the file, and closes all gaps.
fn mend(image: &Vdi, survey: Survey) -> Result<()> {
    let header = image.header()?.clone();
    *image.space.lock().map_err(|_| Common::Poisoned)? = Some(survey.space);
    for (block, fault) in survey.faults {
        match fault {
            VdiFault::Shared { place, .. } => image.move_block(&header, block, place)?,
            _ => image.set_entry(&header, block, FREE)?,
        }
        image.limit_waiting()?;
    }
    image.sync()?;
    image.compact()?;
    image.file.flush()
}
