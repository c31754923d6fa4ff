//! `racker disk check`

use clap::{Args, ValueEnum};
use racker_formats::check::{Finding, Report, Severity, Statistics};
use racker_formats::error::Kind;
use racker_fs::partition;
use serde_json::{Map, Value, json};

use crate::clean::clean;
use crate::exit::Exit;
use crate::fault::{About, Outcome};
use crate::output::{self, OutputArgs, line};
use crate::remote::open;
use crate::target::ImageArgs;

/// Look for inconsistencies in an image's tables and in its partition table, and mend them if asked
///
/// Exit status: 0 if all is well (or was mended), 1 if the check failed, 2 if something is corrupt, 3 if only space is
/// lost, 63 if there is nothing to check in this format.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk check boot.qcow2\n  racker disk check --repair boot.qcow2")]
pub(crate) struct Check {
    #[command(flatten)]
    image: ImageArgs,
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// The same as `qemu-img` spells it
    #[arg(short = 'r', value_name = "WHAT", conflicts_with = "repair")]
    mend: Option<Mend>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mend {
    /// Lost space
    Leaks,
    /// Everything
    All,
}

impl Check {
    pub(super) fn run(self) -> Outcome<Exit> {
        let path = &self.image.image;
        let mend = if self.repair { Some(Mend::All) } else { self.mend };
        let opened = open(path, &self.image.how.options(mend.is_some())).about(path)?;
        let mut report = Report { repair: mend.is_some(), ..Report::default() };
        if mend == Some(Mend::Leaks) {
            // What is corrupt is left alone: a look first tells whether there is anything but leaks.
            let mut look = Report::default();
            opened.image.check(&mut look).about(path)?;
            report.repair = look.worst() == Some(Severity::Leak);
        }
        let checked = match opened.image.check(&mut report) {
            Ok(()) => true,
            Err(e) if e.kind() == Kind::Unsupported => false,
            Err(e) => return Err(e).about(path),
        };
        let table = self.partition_table(&opened.disk, mend == Some(Mend::All), &mut report)?;
        if !checked && !table {
            if !self.output.is_json() {
                line("This image format does not support checks")?;
            }
            return Ok(Exit::Unsupported);
        }
        if self.output.is_json() {
            output::json(&self.object(opened.format, &report))?;
        } else {
            text(&report)?;
        }
        Ok(exit(&report))
    }

    /// Judges the partition table; says whether there is one.
    fn partition_table(
        &self,
        disk: &racker_formats::block::Disk,
        repair: bool,
        report: &mut Report,
    ) -> Outcome<bool> {
        let path = &self.image.image;
        let table = match partition::read(disk) {
            Ok(table) => table,
            Err(e) if e.kind() == Kind::Corrupt => {
                report.add(Severity::Corruption, format!("partition table: {e}"));
                return Ok(true);
            }
            Err(e) => return Err(e).about(path),
        };
        if table.scheme == "none" {
            return Ok(false);
        }
        if repair && table.scheme == "gpt" && !table.warnings.is_empty() {
            partition::settle(disk, disk.size()).about(path)?;
            let left = partition::read(disk).about(path)?.warnings;
            for warning in &table.warnings {
                let what = format!("partition table: {warning}");
                let repaired = !left.contains(warning);
                report.findings.push(Finding { count: 1, what, severity: Severity::Corruption, repaired });
            }
            return Ok(true);
        }
        for warning in &table.warnings {
            report.add(Severity::Corruption, format!("partition table: {warning}"));
        }
        Ok(true)
    }

    /// The fields of `qemu-img check`, and the findings in words.
    fn object(&self, format: &str, report: &Report) -> Value {
        let mut all = Map::new();
        let mut put = |name: &str, n: u64| {
            if n > 0 {
                all.insert(name.into(), n.into());
            }
        };
        if let Some(Statistics { total, allocated, fragmented, compressed, end }) = report.statistics {
            put("image-end-offset", end);
            put("total-clusters", total);
            put("allocated-clusters", allocated);
            put("fragmented-clusters", fragmented);
            put("compressed-clusters", compressed);
        }
        put_findings(report, &mut all);
        all.insert("filename".into(), self.image.image.display().to_string().into());
        all.insert("format".into(), format.into());
        Value::Object(all)
    }
}

/// Prints the findings one a line, and what they come to; `what` was checked, and `else_by` mends the rest.
pub(super) fn summary(report: &Report, what: &str, else_by: Option<&str>) -> Outcome<()> {
    for finding in &report.findings {
        let word = match (finding.repaired, finding.severity) {
            (true, _) => "repaired",
            (false, Severity::Leak) => "leaked",
            (false, Severity::Corruption) => "corrupt",
        };
        line(&format!("{word}: {}", clean(&finding.what)))?;
    }
    if !report.left_out.is_empty() {
        line(&format!("Not looked at: {}.", report.left_out.join("; ")))?;
    }
    let mended = report.count(Severity::Leak, true).saturating_add(report.count(Severity::Corruption, true));
    match report.worst() {
        None if report.findings.is_empty() => line(&format!("No errors were found on the {what}.")),
        None => line(&format!("All that was found has been repaired ({mended} in all).")),
        Some(Severity::Leak) => {
            let leaks = report.count(Severity::Leak, false);
            line(&format!("Space is lost ({leaks} in all), data are safe; --repair gives it back."))
        }
        Some(Severity::Corruption) => {
            let errors = report.count(Severity::Corruption, false);
            let leaks = match report.count(Severity::Leak, false) {
                0 => String::new(),
                leaks => format!(", {leaks} leaked"),
            };
            let next = match else_by {
                Some(program) if report.repair => format!("{program} may mend what is left"),
                _ => "make a copy before you try --repair".into(),
            };
            line(&format!("The {what} is corrupt ({errors} in all{leaks}); {next}."))
        }
    }
}

/// What `check` ends with.
pub(super) fn exit(report: &Report) -> Exit {
    match report.worst() {
        None => Exit::Done,
        Some(Severity::Corruption) => Exit::Corrupt,
        Some(Severity::Leak) => Exit::Leaks,
    }
}

/// Puts the counts and the findings into an object.
pub(super) fn put_findings(report: &Report, all: &mut Map<String, Value>) {
    for (name, severity, repaired) in [
        ("leaks", Severity::Leak, false),
        ("corruptions", Severity::Corruption, false),
        ("leaks-fixed", Severity::Leak, true),
        ("corruptions-fixed", Severity::Corruption, true),
    ] {
        let count = report.count(severity, repaired);
        if count > 0 {
            all.insert(name.into(), count.into());
        }
    }
    all.insert("check-errors".into(), 0.into());
    let finding = |f: &Finding| {
        let severity = if f.severity == Severity::Leak { "leak" } else { "corruption" };
        json!({ "what": f.what, "severity": severity, "repaired": f.repaired, "count": f.count })
    };
    all.insert("findings".into(), report.findings.iter().map(finding).collect());
    if !report.left_out.is_empty() {
        all.insert("left-out".into(), json!(report.left_out));
    }
}

fn text(report: &Report) -> Outcome<()> {
    summary(report, "image", None)?;
    if let Some(s) = report.statistics {
        let percent = |n: u64, of: u64| match of {
            0 => "0.00%".to_string(),
            of => {
                let n = u128::from(n).saturating_mul(10_000).checked_div(u128::from(of)).unwrap_or(0);
                format!("{}.{:02}%", n / 100, n % 100)
            }
        };
        line(&format!(
            "{}/{} = {} allocated, {} fragmented, {} compressed clusters",
            s.allocated,
            s.total,
            percent(s.allocated, s.total),
            percent(s.fragmented, s.allocated),
            percent(s.compressed, s.allocated)
        ))?;
        line(&format!("Image end offset: {}", s.end))?;
    }
    Ok(())
}
