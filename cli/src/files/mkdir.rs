//! `mkdir`

use std::path::{Path, PathBuf};

use clap::Args;
use racker_formats::error::Kind;
use racker_fs::filesystem::{Keeps, New, NewKind, NodeKind};

use super::editing::{Editing, How};
use super::mode::ModeChange;
use super::{Act, LabelArgs, run};
use crate::exit::Exit;
use crate::fault::{Failure, Outcome};
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs};

/// Make folders
#[derive(Args, Debug)]
pub(crate) struct Mkdir {
    /// Folders inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folders above them too, and no error if they are there
    #[arg(short = 'p', long)]
    parents: bool,
    /// Permissions of the new folders, as chmod takes them
    #[arg(short = 'm', long, value_name = "MODE", default_value = "0755", value_parser = ModeChange::parse)]
    mode: ModeChange,
}

/// `mkdir` with its image: `-p` means what it means to `mkdir`, and only `--partition` names the filesystem.
#[derive(Args, Debug)]
pub(crate) struct MkdirCommand {
    #[command(flatten)]
    image: ImageArgs,
    /// Filesystem: partition number, label, UUID or PARTUUID
    #[arg(long, value_name = "PARTITION")]
    partition: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    verb: Mkdir,
}

impl MkdirCommand {
    pub(crate) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let which = PartitionArgs { partition: self.partition };
        run(&self.image, &which, &self.verb, How { progress, no_selinux: self.labels.no_selinux })
    }
}

impl Act for Mkdir {
    fn act(&self, editing: &mut Editing<'_>) -> Outcome<()> {
        self.paths.iter().try_for_each(|path| {
            if !self.parents {
                return make(path, self.mode.apply(0o755, true), editing);
            }
            self.all(path, editing)
        })
    }
}

impl Mkdir {
    /// Makes a folder and those above it. The deepest one that is there says on which filesystem.
    fn all(&self, path: &Path, editing: &mut Editing<'_>) -> Outcome<()> {
        let mut missing = Vec::new();
        for above in path.ancestors().filter(|p| !p.as_os_str().is_empty()) {
            match editing.place(above, true) {
                Ok(place) if editing.stat(&place)?.kind == NodeKind::Dir => break,
                Ok(_) => return Err(editing.failure(above, "is there and not a directory")),
                Err(e) if e.kind() == Some(Kind::NotFound) => missing.push(above),
                Err(e) => return Err(e),
            }
        }
        let last = missing.first().copied();
        missing.iter().rev().try_for_each(|dir| {
            let mode = if Some(*dir) == last { self.mode.apply(0o755, true) } else { 0o755 };
            make(dir, mode, editing)
        })
    }
}

/// Makes one folder. It belongs to the group of a folder above it that says so, as with the kernel.
fn make(path: &Path, mode: u32, editing: &mut Editing<'_>) -> Outcome<()> {
    let place = editing.entry(path)?;
    let dir = &place.0.dir;
    let above = editing.stat(dir)?;
    let inherits = above.mode & 0o2000 != 0 && editing.writer(dir.volume)?.keeps().contains(Keeps::OWNERS);
    let (gid, mode) = if inherits { (above.gid, mode | 0o2000) } else { (0, mode) };
    editing.create(path, &place, &New { kind: NewKind::Dir, mode, uid: 0, gid }).map(drop)
}

/// A folder that has to be there.
pub(super) fn need_dir(path: &Path, editing: &Editing<'_>) -> Outcome<()> {
    if editing.is_dir(path)? {
        return Ok(());
    }
    let failure: Failure = editing.failure(path, "is no directory of the image");
    Err(failure.hint("`mkdir -p` makes it"))
}
