//! What a check found, on its way into the report.

use racker_formats::check::{Report, Severity};
use racker_formats::error::{Error, Kind, Result};

use super::super::fault::Fault;

/// Findings after which a check gives up: a damaged structure can cause one for each of a billion blocks.
pub(super) const FINDINGS_MAX: usize = 1000;

/// Findings that can be mended without a guess, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mend {
    /// A count in a group's header.
    GroupCount,
    /// A counter of the superblock.
    Counter,
    /// A copy of the superblock in another group.
    Copy,
    /// Inodes that were deleted while somebody had them open.
    Unlinked,
    /// Copies in the making that nobody finished.
    Leftover,
}

/// The report, and what is to be done about it.
#[derive(Debug)]
pub(super) struct Notes<'r> {
    report: &'r mut Report,
    /// A later round over the same structures: what they say of themselves was said.
    pub(super) muted: bool,
    /// What can be mended, with the place of its finding in the report.
    pub(super) mends: Vec<(Mend, usize)>,
    first: usize,
}

impl<'r> Notes<'r> {
    pub(super) fn new(report: &'r mut Report) -> Self {
        let first = report.findings.len();
        Self { report, muted: false, mends: Vec::new(), first }
    }

    /// Whether findings shall be mended.
    pub(super) fn repair(&self) -> bool {
        self.report.repair
    }

    /// Findings so far.
    pub(super) fn count(&self) -> usize {
        self.report.findings.len().saturating_sub(self.first)
    }

    /// A structure that contradicts itself or another one.
    pub(super) fn corrupt(&mut self, what: impl Into<String>) -> Result<()> {
        if self.muted { Ok(()) } else { self.always(Severity::Corruption, what, 1) }
    }

    /// The same, of something that is looked at once only, whatever the round.
    pub(super) fn always(&mut self, severity: Severity, what: impl Into<String>, count: u64) -> Result<()> {
        self.report.add(severity, what);
        if let Some(last) = self.report.findings.last_mut() {
            last.count = count.max(1);
        }
        if self.count() >= FINDINGS_MAX {
            return Err(Fault::TooMuch.into());
        }
        Ok(())
    }

    /// Something that can be mended.
    pub(super) fn mendable(&mut self, mend: Mend, severity: Severity, what: impl Into<String>) -> Result<()> {
        if self.muted {
            return Ok(());
        }
        self.mends.push((mend, self.report.findings.len()));
        self.always(severity, what, 1)
    }

    /// A count that is `found` and has to be `right`.
    pub(super) fn count_of(&mut self, mend: Mend, what: &str, found: u64, right: u64) -> Result<()> {
        if found == right {
            return Ok(());
        }
        // What is free and not counted is only not used.
        let all = what.ends_with("icount") || what.ends_with("agi_count");
        let severity = if found < right && !all { Severity::Leak } else { Severity::Corruption };
        self.mendable(mend, severity, format!("{what} is {found}, counted {right}"))
    }

    /// What was read, unless it is damaged: then that is a finding.
    pub(super) fn look<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(e) if is_damage(&e) => self.corrupt(e.to_string()).map(|()| None),
            Err(e) => Err(e),
        }
    }

    /// Something that is there and is not looked at.
    pub(super) fn leave_out(&mut self, what: &'static str) {
        self.report.left_out.push(what);
    }

    /// The finding that ends the check.
    pub(super) fn last(&mut self, what: String) {
        self.report.add(Severity::Corruption, what);
    }

    /// Whether nothing was found that cannot be mended.
    pub(super) fn all_mendable(&self) -> bool {
        self.mends.len() == self.count()
    }

    /// Marks all that can be mended as mended.
    pub(super) fn mended(&mut self) {
        for (_, place) in &self.mends {
            if let Some(finding) = self.report.findings.get_mut(*place) {
                finding.repaired = true;
            }
        }
    }
}

/// Whether an error says that the filesystem is damaged, not that it cannot be read or that racker cannot go on.
pub(super) fn is_damage(e: &Error) -> bool {
    let stop = e.fault::<Fault>().is_some_and(|f| matches!(f, Fault::TooMuch));
    !stop && !matches!(e.kind(), Kind::Io | Kind::Denied | Kind::Busy)
}
