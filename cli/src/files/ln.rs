//! `ln`

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use racker_fs::filesystem::{New, NewKind, NodeKind};

use super::Act;
use super::editing::Editing;
use crate::fault::Outcome;

/// Make hard links, or with -s symbolic ones
#[derive(Args, Debug)]
pub(crate) struct Ln {
    /// What the link leads to; with -s any text
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// The new name, or the folder that it goes into
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// A symbolic link
    #[arg(short = 's', long)]
    symbolic: bool,
    /// Replace what has the name
    #[arg(long)]
    force: bool,
    /// PATH is a name, even if a folder has it
    #[arg(short = 'T', long)]
    no_target_directory: bool,
}

impl Act for Ln {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let into = !self.no_target_directory && editing.is_dir(&self.path)?;
        let place = match into {
            true => editing.below(&self.path, &self.target)?,
            false => editing.entry(&self.path)?,
        };
        let entry = &place.0;
        let old = if self.symbolic { None } else { Some(editing.place(&self.target, false)?) };
        if let Some(old) = &old
            && old.volume != entry.dir.volume
        {
            let failure = editing.failure(&self.path, "a hard link stays on the filesystem of its file");
            return Err(failure.hint("-s makes a symbolic one"));
        }
        if let (Some(found), true) = (&entry.found, self.force) {
            if old.as_ref().is_some_and(|old| (old.volume, old.node) == (found.volume, found.node)) {
                return Ok(());
            }
            if editing.stat(found)?.kind == NodeKind::Dir {
                return Err(editing.failure(&self.path, "is a directory"));
            }
            editing.change(&self.path, entry.dir.volume, |writer, now| {
                writer.unlink(entry.dir.node, &entry.name, now)
            })?;
        }
        match &old {
            Some(old) => editing.change(&self.path, entry.dir.volume, |writer, now| {
                writer.link(old.node, entry.dir.node, &entry.name, now)
            }),
            None => {
                let kind = NewKind::Link(self.target.as_os_str().as_bytes());
                editing.create(&self.path, &place, &New { kind, mode: 0o777, uid: 0, gid: 0 }).map(drop)
            }
        }
    }
}
