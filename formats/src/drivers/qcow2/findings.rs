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
    listed: u64,
    /// What is not listed.
    more: Vec<(Severity, u64)>,
}

impl<'a> Findings<'a> {
    /// For findings that are all mended, or none of them.
    pub(super) fn new(report: &'a mut Report, repaired: bool) -> Self {
        let more = vec![(Severity::Leak, 0), (Severity::Corruption, 0)];
        Self { report, repaired, worst: None, listed: 0, more }
    }

    /// Notes a finding.
    pub(super) fn add(&mut self, severity: Severity, what: impl FnOnce() -> String) {
        self.add_many(severity, 1, what);
    }

    /// Notes the same of `count` clusters.
    pub(super) fn add_many(&mut self, severity: Severity, count: u64, what: impl FnOnce() -> String) {
        self.worst = self.worst.max(Some(severity));
        if self.listed < LISTED_MAX {
            self.listed = self.listed.saturating_add(1);
            let repaired = self.repaired;
            self.report.findings.push(Finding { what: what(), severity, repaired, count });
        } else if let Some((_, more)) = self.more.iter_mut().find(|(of, _)| *of == severity) {
            *more = more.saturating_add(count);
        }
    }

    /// The worst of these findings, mended or not.
    pub(super) fn worst(&self) -> Option<Severity> {
        self.worst
    }
}

impl Drop for Findings<'_> {
    fn drop(&mut self) {
        for (severity, count) in self.more.iter().copied().filter(|(_, count)| *count > 0) {
            let what = format!("{count} more like these");
            self.report.findings.push(Finding { what, severity, repaired: self.repaired, count });
        }
    }
}
