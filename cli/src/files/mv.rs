//! `mv`

use std::path::{Path, PathBuf};

use clap::Args;

use super::Act;
use super::editing::Editing;
use super::mkdir::need_dir;
use crate::fault::Outcome;

/// Move or rename files and folders
///
/// What is at DST is replaced; if DST is a folder the sources go into it. Across filesystems nothing is moved.
#[derive(Args, Debug)]
pub(crate) struct Mv {
    /// Files or folders inside the image
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    /// New name, or the folder that they go into
    #[arg(value_name = "DST")]
    target: PathBuf,
    /// Never replace anything
    #[arg(long)]
    no_clobber: bool,
    /// Exchange the two names
    #[arg(long, conflicts_with = "no_clobber")]
    exchange: bool,
    /// DST is a name, even if a folder has it
    #[arg(short = 'T', long)]
    no_target_directory: bool,
}

impl Act for Mv {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        let into = !self.exchange && !self.no_target_directory && editing.is_dir(&self.target)?;
        if self.sources.len() > 1 && !into {
            need_dir(&self.target, editing)?;
        }
        self.sources.iter().try_for_each(|source| {
            let target = match (into, source.file_name()) {
                (true, Some(name)) => self.target.join(name),
                _ => self.target.clone(),
            };
            self.one(source, &target, editing)
        })
    }
}

impl Mv {
    fn one(&self, source: &Path, target: &Path, editing: &mut Editing<'_>) -> Outcome<()> {
        let (from, _) = editing.entry(source)?;
        if from.found.is_none() {
            return Err(editing.failure(source, "no such file or directory"));
        }
        let (to, _) = editing.entry(target)?;
        if from.dir.volume != to.dir.volume {
            let failure = editing.failure(source, &format!("{} is on another filesystem", target.display()));
            return Err(failure.hint("copy-out and copy-in copy it; rm -r removes it then"));
        }
        if self.no_clobber && to.found.is_some() {
            return Ok(());
        }
        editing.change(target, from.dir.volume, |writer, now| {
            let (one, other) = ((from.dir.node, &from.name), (to.dir.node, &to.name));
            if self.exchange { writer.exchange(one, other, now) } else { writer.rename(one, other, now) }
        })
    }
}
