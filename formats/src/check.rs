//! What `check` and `repair` speak of.

/// One thing that is wrong, or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, in one line.
    pub what: String,
    /// How bad it is.
    pub severity: Severity,
    /// Whether it was mended.
    pub repaired: bool,
    /// How many units of allocation it is about: one line may speak of a whole stretch.
    pub count: u64,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space is lost, data are safe.
    Leak,
    /// The image contradicts itself.
    Corruption,
}

/// What an image's allocation looks like, in units of allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Units of the whole disk.
    pub total: u64,
    /// Units that hold data.
    pub allocated: u64,
    /// Of those, units that do not lie behind their predecessor.
    pub fragmented: u64,
    /// Of those, compressed ones.
    pub compressed: u64,
    /// End of what is in use in the file, in bytes.
    pub end: u64,
}

/// All findings of one check.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Whether findings shall be mended.
    pub repair: bool,
    /// What the driver counted on the way.
    pub statistics: Option<Statistics>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What is there and was not looked at, each in a few words.
    pub left_out: Vec<&'static str>,
}

impl Report {
    /// Notes a finding.
    pub fn add(&mut self, severity: Severity, what: impl Into<String>) {
        self.findings.push(Finding { what: what.into(), severity, repaired: false, count: 1 });
    }

    /// How many things of this kind were found, as the image's own tools count them.
    pub fn count(&self, severity: Severity, repaired: bool) -> u64 {
        let these = self.findings.iter().filter(|f| (f.severity, f.repaired) == (severity, repaired));
        these.fold(0, |all, finding| all.saturating_add(finding.count))
    }

    /// The worst finding that is not repaired.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().filter(|f| !f.repaired).map(|f| f.severity).max()
    }
}
