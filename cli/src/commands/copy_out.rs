//! `racker disk copy-out`

use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::Name;
use racker_fs::tree::Tree;
use racker_fs::tree::copy_out::copy_out;
use racker_fs::tree::extract::ExtractOptions;

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Copy files and folders of an image to the host
///
/// As `cp -a` does: modes, times, links, extended attributes, holes; owners as root.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker disk copy-out boot.qcow2 /loader/entries .")]
pub(crate) struct CopyOut {
    #[command(flatten)]
    image: ImageArgs,
    /// Files or folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folder of the host, which exists
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    which: PartitionArgs,
}

impl CopyOut {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let target = Target::open(&self.image)?;
        for path in &self.paths {
            let (place, view) = target.place(&self.which, path, false)?;
            let Some(name) = place.path.last().cloned().or_else(|| Name::new(b"root").ok()) else {
                return Err(Failure::new(format!("{}: has no name", path.display())));
            };
            let tree = Tree::from_place(&view, &place);
            let done = copy_out(&tree, &name, &self.dir, ExtractOptions::default());
            let done = done.about(&self.image.image)?;
            if !done.lost.is_empty() || !done.notes.is_empty() {
                super::extract::report(&done, progress);
            }
        }
        Ok(Exit::Done)
    }
}
