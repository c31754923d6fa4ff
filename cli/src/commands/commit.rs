//! `racker disk commit`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use racker_formats::commit::commit;
use racker_formats::convert::Pace;
use racker_formats::error::Kind;
use racker_formats::limits::CHAIN_DEPTH_MAX;
use racker_formats::open::{OpenOptions, Opened};
use racker_formats::opening::Policy;
use racker_formats::registry::Image;

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output::{self, line};
use crate::progress::ProgressArgs;
use crate::remote::open;
use crate::target::ImageArgs;

/// Move what an image holds into its backing file, and empty the image
///
/// The image shows the same at any time, whenever the power fails. Other images on the same backing file change.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racker disk create -q -f qcow2 -b boot.qcow2 -F qcow2 overlay.qcow2\n  \
    racker disk commit overlay.qcow2"
)]
pub(crate) struct Commit {
    #[command(flatten)]
    image: ImageArgs,
    /// Which file of the backing chain takes it; all in between are passed over, and the image is not emptied
    #[arg(short = 'b', long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Do not empty the image, which is to be deleted anyway
    #[arg(short = 'd', long)]
    drop: bool,
    /// Bytes to write in a second at most
    #[arg(short = 'r', value_name = "RATE", value_parser = output::size)]
    rate: Option<u64>,
    /// Accepted for qemu-img's sake
    #[arg(short = 't', value_name = "CACHE", hide = true)]
    cache: Option<String>,
    /// Show progress (it is shown on a terminal anyway)
    #[arg(short = 'p')]
    show_progress: bool,
}

impl Commit {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let path = &self.image.image;
        self.knows_parent(path)?;
        let top = open(path, &OpenOptions { alone: true, ..self.image.how.options(true) }).about(path)?;
        let mut layers = vec![(path.clone(), top)];
        let base = loop {
            let (above, opened) = layers.last().ok_or_else(|| Failure::new("no image"))?;
            let Some((reference, file)) = opened.parent_file().about(above)? else {
                return Err(self.no_base(layers.len())).about(path);
            };
            if self.base.as_deref().is_none_or(|base| is_same(base, &file, &reference.path)) {
                let base = self.open(&file, reference.format.as_deref(), true, false)?;
                break base;
            }
            if layers.len() > CHAIN_DEPTH_MAX {
                return Err(Failure::new(format!("the chain is longer than {CHAIN_DEPTH_MAX}"))).about(path);
            }
            // Such as record what their parent is like have to be written to.
            let write = reference.format.as_deref() != Some("qcow2");
            let opened = self.open(&file, reference.format.as_deref(), write, true)?;
            layers.push((file, opened));
        };
        let images: Vec<Arc<dyn Image>> = layers.iter().map(|(_, o)| Arc::clone(&o.image)).collect();
        let mut bar = progress.start("committing", images.first().map_or(0, |image| image.size()));
        let done = commit(&images, &base.image, Pace::new(self.rate.unwrap_or(0)), &mut |n| bar.at(n));
        bar.finish();
        done.about(path)?;
        if !self.drop && self.base.is_none() {
            let top = images.first().ok_or_else(|| Failure::new("no image"))?;
            match top.empty() {
                Err(e) if e.kind() == Kind::Unsupported => {
                    progress.note(&format!("{}: it keeps what was committed: {e}", path.display()));
                }
                done => done.about(path)?,
            }
        }
        if !progress.quiet {
            line("Image committed.")?;
        }
        Ok(Exit::Done)
    }

    /// Images that record what their parent is like are not committed to one that has become another.
    fn knows_parent(&self, path: &Path) -> Outcome<()> {
        let options = self.image.how.options(false);
        let format = open(path, &OpenOptions { alone: true, ..options }).about(path)?.format;
        if format != "qcow2" {
            open(path, &options).about(path)?;
        }
        Ok(())
    }

    fn no_base(&self, depth: usize) -> Failure {
        match &self.base {
            Some(base) if depth > 0 => {
                Failure::new(format!("{} is not in the backing chain", base.display()))
            }
            _ => Failure::new("the image has no backing file"),
        }
    }

    /// Opens a file of the chain as the image above names it.
    fn open(&self, path: &Path, format: Option<&str>, write: bool, alone: bool) -> Outcome<Opened> {
        let policy = if self.image.how.allow_external { Policy::Any } else { Policy::SameFolder };
        let options = OpenOptions { format, policy, write, alone, ..OpenOptions::default() };
        let opened = open(path, &options).about(path)?;
        if format.is_none() && opened.format != "raw" {
            let failure = Failure::new(format!(
                "looks like {}, but the image above does not record the format of its backing file",
                opened.format
            ));
            let hint = format!("record it with: racker disk rebase -u -F {} -b BACKING IMAGE", opened.format);
            return Err(failure.hint(hint)).about(path);
        }
        Ok(opened)
    }
}

/// Whether what was typed means this file of the chain.
fn is_same(typed: &Path, file: &Path, named: &str) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    typed == Path::new(named) || real(typed).is_some_and(|typed| real(file) == Some(typed))
}
