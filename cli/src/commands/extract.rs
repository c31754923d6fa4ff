//! `racker disk extract`

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use racker_fs::tree::Notes;
use racker_fs::tree::extract::{ExtractOptions, Extracted, extract};

use crate::exit::Exit;
use crate::fault::{About, Outcome};
use crate::output::human;
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Take the whole tree of an image out into a folder
///
/// As root everything is kept: owners, modes, times, links, devices, extended attributes, ACLs, capabilities, holes.
/// As another user, what the kernel does not allow is listed in DIR.racker-manifest.jsonl; `tar-out` loses nothing either
/// way. Where the disk holds an operating system, its own mounts are part of the tree; -p takes one filesystem.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk extract debian.box rootfs/")]
pub(crate) struct Extract {
    #[command(flatten)]
    image: ImageArgs,
    /// Folder of the host: new, or empty
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    which: PartitionArgs,
    /// Set immutable and append-only flags (`chattr +i`, `+a`), which keep files from being removed; else they are listed
    #[arg(long)]
    flags: bool,
}

impl Extract {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        let tree = target.whole_tree(&self.which)?;
        let mut bar = progress.start("extracting", target.used());
        let tell = Box::new(|p: racker_fs::tree::Progress| {
            bar.at(p.bytes);
            ControlFlow::Continue(())
        });
        let options =
            ExtractOptions { progress: Some(tell), locking: self.flags, ..ExtractOptions::default() };
        let done = extract(&tree, &self.dir, options);
        bar.finish();
        report(&done.about(&self.image.image)?, progress);
        Ok(Exit::Done)
    }
}

/// Says what was done, and what could not be kept.
pub(crate) fn report(done: &Extracted, progress: ProgressArgs) {
    progress.note(&format!("{} files and folders, {}", done.done.nodes, human(done.done.bytes)));
    for (what, lost) in &done.lost {
        progress.note(&format!(
            "{what} could not be kept for {} of them ({}): first {}",
            lost.count, lost.why, lost.first
        ));
    }
    notes(&done.notes, progress);
    if let Some(manifest) = &done.manifest {
        progress.note(&format!("what could not be kept is listed in {}", manifest.display()));
    }
}

/// Prints remarks.
pub(super) fn notes(notes: &Notes, progress: ProgressArgs) {
    for line in &notes.lines {
        progress.note(line);
    }
    if notes.more > 0 {
        progress.note(&format!("and {} more", notes.more));
    }
}
