//! `racker disk edit`

use std::path::PathBuf;

use clap::Args;

use super::convert::NewImage;
use crate::exit::Exit;
use crate::fault::Outcome;
use crate::files::edit::Edit;
use crate::files::editing::{How, edit, edited};
use crate::files::{Act, On};
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Change one file of an image, all or nothing
///
/// Without an option, $VISUAL or $EDITOR opens a copy, which is written back only if it changed. The file keeps
/// owner, mode, extended attributes and SELinux label. One with several hard links gets a node of its own, as
/// `sed -i` does, unless --keep-links writes through.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk edit boot.qcow2 /loader/entries/ostree-1-ock.conf\n  \
    racker disk edit boot.qcow2 /loader/entries/ostree-1-ock.conf \\\n      \
    --replace ignition.platform.id=qemu ignition.platform.id=vmware\n  \
    racker disk edit boot.qcow2 /boot/loader/entries/ostree-1-ock.conf \\\n      \
    --regex 's/ console=\\S+//g' --dry-run")]
pub(crate) struct EditCommand {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    which: PartitionArgs,
    #[command(flatten)]
    verb: Edit,
    /// Print what would change as a unified diff, and write nothing
    #[arg(long, conflicts_with = "output")]
    dry_run: bool,
    /// Leave IMAGE alone and write the edited disk to NEW
    #[arg(long, value_name = "NEW")]
    output: Option<PathBuf>,
    /// Format of NEW, instead of IMAGE's
    #[arg(short = 'O', long, value_name = "FORMAT", requires = "output")]
    output_format: Option<String>,
}

impl EditCommand {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let in_place = !self.dry_run && self.output.is_none();
        let target = Target::open_for(&self.image, in_place)?;
        // No file is made that a policy would have to label.
        let how = How { progress, no_selinux: true };
        if self.dry_run {
            self.verb.diff(On { target: &target, which: &self.which, progress })?;
        } else if let Some(new) = &self.output {
            let disk = edited(&target, &self.which, how, |editing| self.verb.act(editing))?;
            let format = self.output_format.as_deref().unwrap_or(target.opened.format);
            super::convert::write_new(&disk, new, format, &NewImage::default(), progress)?;
        } else {
            edit(&target, &self.which, how, |editing| self.verb.act(editing))?;
        }
        Ok(Exit::Done)
    }
}
