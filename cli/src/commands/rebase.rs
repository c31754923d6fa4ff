//! `racker disk rebase`

use clap::Args;
use racker_formats::open::OpenOptions;
use racker_formats::opening::{Reference, Role};
use racker_formats::rebase::rebase;

use crate::backing::open_backing;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::remote::open;
use crate::target::ImageArgs;

/// Give an image another backing file, or none, and keep what it holds
///
/// What the old and the new backing file hold differently is written into the image first. The image shows the same
/// at any time, whenever the power fails.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racker disk create -q -f qcow2 -b boot.qcow2 -F qcow2 overlay.qcow2\n  \
    racker disk rebase -b \"\" overlay.qcow2\n  racker disk rebase -b boot.qcow2 -F qcow2 overlay.qcow2"
)]
pub(crate) struct Rebase {
    #[command(flatten)]
    image: ImageArgs,
    /// New backing file, relative to the image's folder; "" for none
    #[arg(short = 'b', long, value_name = "FILE")]
    backing: String,
    /// Format of the new backing file
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Change the name only, without a look at either file: for a backing file that was renamed, or holds the same
    #[arg(short = 'u', long = "unsafe")]
    name_only: bool,
    /// Compress what is written into the image
    #[arg(short = 'c', long, conflicts_with = "name_only")]
    compress: bool,
    /// Accepted for qemu-img's sake
    #[arg(short = 't', value_name = "CACHE", hide = true)]
    cache: Option<String>,
    /// Accepted for qemu-img's sake
    #[arg(short = 'T', value_name = "CACHE", hide = true)]
    backing_cache: Option<String>,
    /// Show progress (it is shown on a terminal anyway)
    #[arg(short = 'p')]
    show_progress: bool,
}

impl Rebase {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let path = &self.image.image;
        let options = self.image.how.options(true);
        if self.name_only {
            let opened = open(path, &OpenOptions { alone: true, ..options }).about(path)?;
            let reference = self.reference()?;
            // Who records the identity of its parent takes that of the new one, if it is there; what it holds is
            // nobody's business here.
            let external = self.image.how.allow_external;
            let backing = reference
                .as_ref()
                .filter(|_| opened.format != "qcow2")
                .and_then(|r| open_backing(path, &r.path, r.format.as_deref(), external).ok());
            opened.image.name_parent(reference.as_ref(), backing.as_ref()).about(path)?;
            return Ok(Exit::Done);
        }
        let opened = open(path, &options).about(path)?;
        let external = self.image.how.allow_external;
        let backing = match self.backing.as_str() {
            "" => None,
            name => Some(open_backing(path, name, self.backing_format.as_deref(), external)?),
        };
        if !opened.image.facts().snapshots.is_empty() {
            progress.note("what the snapshots inside the image show through its backing file may change");
        }
        let mut bar = progress.start("rebasing", opened.disk.size());
        let done = rebase(&opened.image, backing.as_ref(), self.compress, &mut |n| bar.at(n));
        bar.finish();
        done.about(path)?;
        Ok(Exit::Done)
    }

    /// What was typed, unseen.
    fn reference(&self) -> Outcome<Option<Reference>> {
        if self.backing.is_empty() {
            return Ok(None);
        }
        let Some(format) = self.backing_format.clone() else {
            let failure = Failure::new("the format of the new backing file is not known");
            return Err(failure.hint("name it with -F FORMAT").exit(Exit::Failed)).about(&self.image.image);
        };
        racker_formats::registry::by_name(&format)?;
        Ok(Some(Reference { path: self.backing.clone(), format: Some(format), role: Role::Backing }))
    }
}
