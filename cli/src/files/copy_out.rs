//! `copy-out`

use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::Name;
use racker_fs::tree::Tree;
use racker_fs::tree::copy_out::copy_out;
use racker_fs::tree::extract::ExtractOptions;

use super::{Look, On};
use crate::commands::extract::report;
use crate::fault::{About, Failure, Outcome};

/// Copy files and folders of an image to the host
///
/// As `cp -a` does: modes, times, links, extended attributes, holes; owners as root.
#[derive(Args, Debug)]
pub(crate) struct CopyOut {
    /// Files or folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folder of the host, which exists
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Look for CopyOut {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        for path in &self.paths {
            let (place, view) = on.target.place(on.which, path, false)?;
            let Some(name) = place.path.last().cloned().or_else(|| Name::new(b"root").ok()) else {
                return Err(Failure::new(format!("{}: has no name", path.display())));
            };
            let tree = Tree::from_place(&view, &place);
            let done = copy_out(&tree, &name, &self.dir, ExtractOptions::default());
            let done = done.about(&on.target.path)?;
            if !done.lost.is_empty() || !done.notes.is_empty() {
                report(&done, on.progress);
            }
        }
        Ok(())
    }
}
