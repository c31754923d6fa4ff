//! `racker disk umount`

use std::path::PathBuf;

use clap::Args;

use super::mount::kernel::{folder, is_ours, line, unmount};
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::progress::ProgressArgs;

/// Unmount what `mount` has mounted, and wait until all changes are in the image
///
/// Returns when they are on stable storage; fails if they are not, or if the filesystem is in use.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mkdir boot\n  racker disk mount boot.qcow2 boot -p 2\n  \
    touch boot/.autorelabel\n  racker disk umount boot")]
pub(crate) struct Umount {
    /// The folders
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
}

impl Umount {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        for dir in &self.dirs {
            let at = folder(dir)?;
            if !is_ours(&at)? {
                return Err(Failure::new("`racker disk mount` has mounted nothing there")).about(dir);
            }
            let Some(line) = line(&at)? else {
                unmount(&at, false)?;
                let gone =
                    "unmounted, but the mount's process was gone: changes since the last landing are lost";
                return Err(Failure::new(gone)).about(dir);
            };
            unmount(&at, false)?;
            let unknown = "the mount's process ended without a word: changes since the last landing are lost";
            progress.note(&line.end(unknown)?);
        }
        Ok(Exit::Done)
    }
}
