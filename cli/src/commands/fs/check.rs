//! Whether a filesystem contradicts itself.

use clap::Args;
use racker_formats::check::{Report, Severity};
use racker_formats::error::{Kind, Result};
use serde_json::{Map, Value};

use super::On;
use crate::commands::check::{exit, put_findings, summary};
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{self, OutputArgs};

/// Look for inconsistencies in a filesystem, and mend what is safe to mend if asked
///
/// All metadata are gone through, as the filesystem's own checker does; a journal or log that is not empty is replayed
/// first, in memory without --repair. What is mended is what nobody has to guess: counts, marks, space that nothing
/// refers to. The rest is for that checker, and until then racker does not write to the filesystem.
///
/// Exit status: 0 if all is well (or was mended), 1 if the check failed, 2 if something is corrupt, 3 if only space is
/// lost, 63 if racker has no check for this filesystem.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racker disk fs boot.qcow2 check -p 1\n  racker disk fs boot.qcow2 check -p 1 --json\n  \
    racker disk fs boot.qcow2 check -p 1 --repair"
)]
pub(super) struct Check {
    /// Mend what is safe to mend
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Check {
    pub(super) fn writes(&self) -> bool {
        self.repair
    }

    pub(super) fn run(self, on: On<'_>) -> Outcome<Exit> {
        let path = &on.target.path;
        let mut report = Report { repair: self.repair, ..Report::default() };
        if self.repair {
            let transaction = on.target.opened.begin().about(path)?;
            let checked = on.volume.repair(&transaction.disk(), &mut report);
            let whole = found(checked, &mut report).map_err(no_check).about(path)?;
            // Where nothing could be mended nothing changes, not even by a journal that was replayed.
            let mended = report.findings.is_empty() || report.findings.iter().any(|f| f.repaired);
            if whole && mended {
                transaction.commit().about(path)?;
            }
        } else {
            let checked = on.volume.check(&mut report);
            found(checked, &mut report).map_err(no_check).about(path)?;
        }
        let kind = on.volume.driver().map_or("", |driver| driver.name());
        if self.output.is_json() {
            let mut all = Map::new();
            all.insert("filename".into(), path.display().to_string().into());
            all.insert("volume".into(), on.volume.name().into());
            all.insert("filesystem".into(), kind.into());
            put_findings(&report, &mut all);
            output::json(&Value::Object(all))?;
        } else {
            summary(&report, "filesystem", checker(kind))?;
        }
        Ok(exit(&report))
    }
}

/// Takes an error that says that something is damaged for one more finding: the check went no further than there.
fn found(checked: Result<()>, report: &mut Report) -> Result<bool> {
    match checked {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == Kind::Corrupt => {
            // Nothing of this is kept.
            for finding in &mut report.findings {
                finding.repaired = false;
            }
            report.add(Severity::Corruption, e.to_string());
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

fn no_check(e: racker_formats::Error) -> Failure {
    let unsupported = e.kind() == Kind::Unsupported;
    let failure = Failure::from(e);
    if unsupported { failure.exit(Exit::Unsupported) } else { failure }
}

/// The program that decides what racker does not.
fn checker(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "ext4" => "e2fsck",
        "xfs" => "xfs_repair",
        "vfat" => "fsck.vfat",
        _ => return None,
    })
}
