//! What was typed about an image, and the layers that it opens.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use racker_formats::block::Disk;
use racker_formats::open::{OpenOptions, Opened};
use racker_formats::opening::Policy;
use racker_fs::filesystem::Filesystem;
use racker_fs::guest::{Guest, locate};
use racker_fs::inspect::{Inspection, Volume};
use racker_fs::path::{Mount, Place, View};
use racker_fs::tree::Tree;

use crate::fault::{About, Failure, Outcome};
use crate::remote::open;
use crate::typed;

/// Which image, and how it is opened.
#[derive(Clone, Debug)]
pub(crate) struct ImageArgs {
    pub(crate) image: PathBuf,
    pub(crate) how: HowArgs,
}

/// The same as it is typed.
#[derive(Args, Debug)]
struct TypedImage {
    /// Disk image, compressed image, archive with a disk inside, block device, or the address of an NBD server's disk
    /// (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH, with TLS nbds:). A raw disk there is edited without a way
    /// back: should the connection be lost while an edit lands, part of it is on the disk
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    #[command(flatten)]
    how: HowArgs,
}

impl FromArgMatches for ImageArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let TypedImage { image, mut how } = TypedImage::from_arg_matches(matches)?;
        let wrong = |failure: Failure| {
            let said = failure.report();
            let said = said.strip_prefix("racker: ").unwrap_or(&said);
            clap::Error::raw(ErrorKind::ValueValidation, said)
        };
        let (image, format) = how.described(image).map_err(wrong)?;
        how.format = format;
        Ok(Self { image, how })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ImageArgs {
    fn augment_args(command: Command) -> Command {
        TypedImage::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        TypedImage::augment_args_for_update(command)
    }
}

/// How an image is opened.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct HowArgs {
    /// Format of the image, instead of what its content looks like
    #[arg(short = 'f', long = "format", value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Which disk of an archive with several
    #[arg(long, value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// Open backing, data and extent files that lie outside the image's folder
    #[arg(long)]
    pub(crate) allow_external: bool,
    /// What is typed as an image is qemu-img's description of one: driver=FORMAT,file.filename=PATH
    #[arg(long, conflicts_with = "format")]
    pub(crate) image_opts: bool,
}

/// Which filesystem.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PartitionArgs {
    /// Filesystem: partition number, label, UUID or PARTUUID; 0 is the whole disk
    #[arg(short = 'p', long = "partition", value_name = "PARTITION")]
    pub(crate) partition: Option<String>,
}

impl HowArgs {
    /// The path of what was typed as an image, and its format if that was typed.
    pub(crate) fn described(&self, image: PathBuf) -> Outcome<(PathBuf, Option<String>)> {
        if self.image_opts { typed::description(&image) } else { Ok((image, self.format.clone())) }
    }

    /// The same for the library.
    pub(crate) fn options(&self, write: bool) -> OpenOptions<'_> {
        OpenOptions {
            format: self.format.as_deref(),
            member: self.member.as_deref(),
            policy: if self.allow_external { Policy::Any } else { Policy::SameFolder },
            write,
            alone: false,
            expand_max: None,
        }
    }
}

/// An opened image, taken apart.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) path: PathBuf,
    pub(crate) opened: Opened,
    pub(crate) inspection: Inspection,
}

impl Target {
    /// Opens an image for reading.
    pub(crate) fn open(args: &ImageArgs) -> Outcome<Self> {
        Self::open_for(args, false)
    }

    /// Opens an image; `write` locks it against every other user.
    pub(crate) fn open_for(args: &ImageArgs, write: bool) -> Outcome<Self> {
        let opened = open(&args.image, &args.how.options(write)).about(&args.image)?;
        let inspection = Inspection::of(&opened.disk).about(&args.image)?;
        Ok(Self { path: args.image.clone(), opened, inspection })
    }

    /// The disk that the image holds.
    pub(crate) fn disk(&self) -> &Disk {
        &self.opened.disk
    }

    /// The place that `path` means, by `-p` or by itself, and the tree that it is in.
    pub(crate) fn place(&self, which: &PartitionArgs, path: &Path, follow: bool) -> Outcome<(Place, View)> {
        self.place_by(which, self.guest(which).as_ref(), path, follow)
    }

    /// The same, with the operating system that was found before.
    pub(crate) fn place_by(
        &self,
        which: &PartitionArgs,
        guest: Option<&Guest>,
        path: &Path,
        follow: bool,
    ) -> Outcome<(Place, View)> {
        let bytes = path.as_os_str().as_bytes();
        if let Some(name) = &which.partition {
            let view = self.view_of(name)?;
            return Ok((view.resolve(bytes, follow).about(&self.path)?, view));
        }
        locate(&self.inspection, guest, bytes, follow).about(&self.path)
    }

    /// The operating system whose mounts hold, where no filesystem is named.
    pub(crate) fn guest(&self, which: &PartitionArgs) -> Option<Guest> {
        if which.partition.is_some() { None } else { Guest::find(&self.inspection) }
    }

    /// The tree to copy from: of one filesystem by `-p`, of the operating system, or of the only filesystem.
    pub(crate) fn tree(&self, which: &PartitionArgs) -> Outcome<View> {
        if let Some(name) = &which.partition {
            return self.view_of(name);
        }
        if let Some(guest) = self.guest(which) {
            return Ok(guest.view);
        }
        let readable: Vec<(usize, &Volume)> =
            self.inspection.volumes.iter().enumerate().filter(|(_, v)| v.driver().is_some()).collect();
        match readable.as_slice() {
            [(index, volume)] => Ok(View::single(*index, volume.filesystem().about(&self.path)?)),
            [] => match self.inspection.volumes.iter().find_map(Volume::unknown) {
                Some(e) => Err(e).about(&self.path),
                None => {
                    Err(Failure::new("no filesystem that racker reads is on this disk")).about(&self.path)
                }
            },
            several => {
                let there: Vec<String> =
                    several.iter().map(|(_, v)| racker_fs::inspect::describe(v)).collect();
                let failure = Failure::new("no operating system, and more than one filesystem");
                Err(failure.hint(format!("choose with {}", there.join(" or ")))).about(&self.path)
            }
        }
    }

    /// Bytes that the readable filesystems hold, for progress.
    pub(crate) fn used(&self) -> u64 {
        let facts = self.inspection.volumes.iter().filter_map(Volume::facts);
        facts.map(|f| f.size.saturating_sub(f.free)).fold(0, u64::saturating_add)
    }

    /// What is at `path` and below it, mounts included.
    pub(crate) fn tree_at(&self, which: &PartitionArgs, path: &Path) -> Outcome<Tree> {
        let (place, view) = self.place(which, path, false)?;
        Ok(Tree::from_place(&view, &place))
    }

    /// The tree to take out whole. On an ostree system that is the deployment; the physical root, which the system
    /// sees at `/sysroot` and which holds the deployment once more, is left to `-p`.
    pub(crate) fn whole_tree(&self, which: &PartitionArgs) -> Outcome<Tree> {
        let view = self.tree(which)?;
        let is_sysroot = |m: &Mount| m.at.len() == 1 && m.at.iter().all(|n| n.as_bytes() == b"sysroot");
        let (first, rest) = view.mounts().split_first().ok_or_else(|| Failure::new("nothing is mounted"))?;
        let mut mounts = vec![first.clone()];
        mounts.extend(rest.iter().filter(|m| !(is_sysroot(m) && m.volume == first.volume)).cloned());
        let view = View::new(mounts);
        let root = view.root().about(&self.path)?;
        Ok(Tree::from_place(&view, &root))
    }

    /// The tree of one named filesystem.
    pub(crate) fn view_of(&self, name: &str) -> Outcome<View> {
        let found = self.inspection.find(self.disk(), name).about(&self.path)?;
        let fs: Arc<dyn Filesystem> = found.filesystem().about(&self.path)?;
        let listed = self.inspection.volumes.iter().position(|v| v.layout == found.layout);
        Ok(View::single(listed.unwrap_or(usize::MAX), fs))
    }

    /// The volume of a place; `-p 0` names none of the listed ones.
    pub(crate) fn volume(&self, place: &Place) -> Outcome<&Volume> {
        let missing = || Failure::new("the whole disk carries a partition table: name a partition");
        self.inspection.volumes.get(place.volume).ok_or_else(missing).about(&self.path)
    }
}
