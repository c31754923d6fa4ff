//! A list of findings that stays short: a hostile table has a mistake in every entry.

use crate::check::{Finding, Report, Severity};

/// Findings that are listed one by one.
const LISTED_MAX: u64 = 100;

/// Adds findings to a report; past a limit they are only counted.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    report: &'a mut Report,
    repaired: bool,
    worst: Option<Severity>,
    count: u64,
}

impl<'a> Findings<'a> {
    /// For findings that are all mended, or none of them.
    pub(super) fn new(report: &'a mut Report, repaired: bool) -> Self {
        Self { report, repaired, worst: None, count: 0 }
    }

    /// Notes a finding.
    pub(super) fn add(&mut self, severity: Severity, what: impl FnOnce() -> String) {
        self.worst = self.worst.max(Some(severity));
        self.count = self.count.saturating_add(1);
        if self.count <= LISTED_MAX {
            self.report.findings.push(Finding { what: what(), severity, repaired: self.repaired });
        }
    }

    /// The worst of these findings, mended or not.
    pub(super) fn worst(&self) -> Option<Severity> {
        self.worst
    }
}

impl Drop for Findings<'_> {
    fn drop(&mut self) {
        if let (1.., Some(severity)) = (self.count.saturating_sub(LISTED_MAX), self.worst) {
            let what = format!("{} more like these", self.count.saturating_sub(LISTED_MAX));
            self.report.findings.push(Finding { what, severity, repaired: self.repaired });
        }
    }
}
