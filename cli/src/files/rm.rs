//! `rm`

use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::error::Kind;
use racker_fs::filesystem::NodeKind;
use racker_fs::tree::remove::remove;

use super::Act;
use super::editing::Editing;
use crate::fault::Outcome;

/// Remove files, and with -r folders and all below them
#[derive(Args, Debug)]
pub(crate) struct Rm {
    /// Files or folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folders and all below them
    #[arg(short = 'r', short_alias = 'R', long)]
    recursive: bool,
    /// What is not there is no error
    #[arg(long)]
    force: bool,
}

impl Act for Rm {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        self.paths.iter().try_for_each(|path| self.one(path, editing))
    }
}

impl Rm {
    fn one(&self, path: &Path, editing: &mut Editing<'_>) -> Outcome<()> {
        let (entry, _) = match editing.entry(path) {
            Err(e) if self.force && e.kind() == Some(Kind::NotFound) => return Ok(()),
            entry => entry?,
        };
        let Some(found) = &entry.found else {
            let missing = editing.failure(path, "no such file or directory");
            return if self.force { Ok(()) } else { Err(missing.of(Kind::NotFound)) };
        };
        if editing.stat(found)?.kind == NodeKind::Dir && !self.recursive {
            return Err(editing.failure(path, "is a directory").hint("-r removes it and all below it"));
        }
        editing
            .change(path, found.volume, |writer, now| remove(writer, entry.dir.node, &entry.name, now))
            .map(drop)
    }
}
