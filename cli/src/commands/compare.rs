//! `racker disk compare`

use std::path::PathBuf;

use clap::Args;
use racker_formats::compare::{Strictness, Verdict, compare};
use serde_json::json;

use crate::exit::Exit;
use crate::fault::{About, Outcome};
use crate::output::{self, line};
use crate::progress::ProgressArgs;
use crate::remote::open;
use crate::target::HowArgs;

/// Compare what two disks read as, whatever their formats
///
/// Exit status: 0 if they are the same, 1 if they differ, 2 if they could not be compared.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk compare boot.qcow2 boot.qcow2")]
pub(crate) struct Compare {
    /// One disk: an image, a block device, or the address of an NBD server's disk (nbd://HOST/EXPORT)
    #[arg(value_name = "IMAGE1")]
    first: PathBuf,
    /// The other
    #[arg(value_name = "IMAGE2")]
    second: PathBuf,
    #[command(flatten)]
    how: HowArgs,
    /// Format of the second image, instead of what its content looks like
    #[arg(short = 'F', value_name = "FORMAT", conflicts_with = "image_opts")]
    second_format: Option<String>,
    /// Sizes and allocation count too
    #[arg(short = 's', long)]
    strict: bool,
    /// Show progress (it is shown on a terminal anyway)
    #[arg(short = 'p')]
    show_progress: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        self.compare(progress).map_err(|e| e.exit(Exit::Corrupt))
    }

    fn compare(mut self, progress: ProgressArgs) -> Outcome<Exit> {
        let mut how = self.how.clone();
        (self.first, how.format) = self.how.described(self.first)?;
        let first = open(&self.first, &how.options(false)).about(&self.first)?;
        how.format = self.second_format.clone();
        (self.second, how.format) = how.described(self.second)?;
        let second = open(&self.second, &how.options(false)).about(&self.second)?;
        let strictness = if self.strict { Strictness::Allocation } else { Strictness::Content };
        let mut bar = progress.start("comparing", first.disk.size().max(second.disk.size()));
        let verdict = compare(&first.disk, &second.disk, strictness, &mut |n| bar.at(n));
        bar.finish();
        let verdict = verdict.about(&self.first)?;
        if self.json {
            self.print_json(verdict)?;
        } else if !progress.quiet {
            if matches!(verdict, Verdict::Same { sizes_differ: true }) {
                progress.note("the sizes differ; the longer disk goes on with zeroes");
            }
            line(&sentence(verdict))?;
        }
        Ok(match verdict {
            Verdict::Same { .. } => Exit::Done,
            _ => Exit::Failed,
        })
    }

    fn print_json(&self, verdict: Verdict) -> Outcome<()> {
        let (what, at) = match verdict {
            Verdict::Same { .. } => (None, None),
            Verdict::Size => (Some("size"), None),
            Verdict::Allocation { at } => (Some("allocation"), Some(at)),
            Verdict::Content { at } => (Some("content"), Some(at)),
        };
        output::json(&json!({
            "filename": self.first.display().to_string(),
            "other": self.second.display().to_string(),
            "identical": what.is_none(),
            "difference": what,
            "offset": at,
        }))
    }
}

/// What `qemu-img compare` says.
fn sentence(verdict: Verdict) -> String {
    match verdict {
        Verdict::Same { .. } => "Images are identical.".into(),
        Verdict::Size => "Strict mode: Image size mismatch!".into(),
        Verdict::Allocation { at } => format!("Strict mode: Offset {at} block status mismatch!"),
        Verdict::Content { at } => format!("Content mismatch at offset {at}!"),
    }
}
