//! What is found, and what becomes of it: a report, or the reason not to write.

use racker_formats::check::{Finding, Report, Severity};
use racker_formats::error::{Error, Kind, Result};

use super::super::fault::Ext4Fault;

/// Findings that are told one by one; the others are counted.
const TOLD_MAX: usize = 10_000;

/// Where findings go.
#[derive(Debug)]
pub(super) struct Finds {
    /// The first thing that is corrupt ends everything, as an error.
    strict: bool,
    told: Vec<Finding>,
    /// Findings that are not told.
    more: u64,
    /// Something was found that only a guess could mend.
    pub(super) doubtful: bool,
}

impl Finds {
    pub(super) fn new(strict: bool) -> Self {
        Self { strict, told: Vec::new(), more: 0, doubtful: false }
    }

    fn put(&mut self, severity: Severity, what: String, count: u64) {
        if self.told.len() < TOLD_MAX {
            self.told.push(Finding { what, severity, repaired: false, count });
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// Something contradicts itself, and nobody knows which side is right.
    pub(super) fn corrupt(&mut self, what: impl Into<String>) -> Result<()> {
        self.doubtful = true;
        self.mendable(what)
    }

    /// Something is wrong, and what would be right follows from the rest.
    pub(super) fn mendable(&mut self, what: impl Into<String>) -> Result<()> {
        if self.strict {
            return Err(Ext4Fault::Damaged(what.into()).into());
        }
        self.put(Severity::Corruption, what.into(), 1);
        Ok(())
    }

    /// It should not be there, is in nobody's way, and is not removed here.
    pub(super) fn needless(&mut self, what: &str) {
        if !self.strict {
            self.doubtful = true;
            self.put(Severity::Corruption, what.into(), 1);
        }
    }

    /// It is sound, and not for a writer.
    pub(super) fn refuse(&self, what: impl FnOnce() -> String) -> Result<()> {
        if self.strict { Err(Ext4Fault::Unwritable(what()).into()) } else { Ok(()) }
    }

    /// Space is lost, which does no harm.
    pub(super) fn leak(&mut self, count: u64, what: impl Into<String>) {
        self.put(Severity::Leak, what.into(), count);
    }

    /// Takes an error that tells of damage as a finding; any other stays one.
    pub(super) fn damage(&mut self, place: impl FnOnce() -> String, e: Error) -> Result<()> {
        match e.kind() {
            // It ends everything, and has its place.
            _ if matches!(e.fault(), Some(Ext4Fault::Damaged(_))) => Err(e),
            Kind::Corrupt => self.corrupt(format!("{}: {e}", place())),
            _ => Err(e),
        }
    }

    /// What a step has come to, or nothing if it met damage.
    pub(super) fn sound<T>(&mut self, place: impl FnOnce() -> String, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(e) => self.damage(place, e).map(|()| None),
        }
    }

    /// Whether anything was found.
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Puts everything into a report.
    pub(super) fn tell(self, report: &mut Report, repaired: bool) {
        let all = self.told.into_iter().map(|finding| Finding { repaired, ..finding });
        report.findings.extend(all);
        if self.more > 0 {
            let what = format!("{} more findings of the same kinds", self.more);
            let severity = Severity::Corruption;
            report.findings.push(Finding { what, severity, repaired, count: self.more });
        }
    }
}
