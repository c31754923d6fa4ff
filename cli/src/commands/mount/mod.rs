//! `racker disk mount`
//!
//! * [`front`] and [`making`]: the kernel's requests; [`tree`]: what they do; [`landing`]: the thread that does it, and transactions
//! * [`meaning`]: numbers, attributes and errors in the kernel's words; [`kernel`]: mounts and their end

mod front;
pub(crate) mod kernel;
mod landing;
mod making;
mod meaning;
mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use clap::{Args, ValueEnum};
use fuser::{Config, MountOption, Session, SessionACL};
use racker_formats::error::Kind;
use racker_fs::inspect::Volume;

use self::front::{Front, Job};
use self::landing::Ended;
use self::meaning::Owner as Shown;
use self::tree::Memory;
use self::tree::labels::Labelling;
use crate::background;
use crate::control::Control;
use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::files::LabelArgs;
use crate::interrupt;
use crate::output::line;
use crate::progress::ProgressArgs;
use crate::remote::is_remote;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Requests that wait for the filesystem at most; more wait in the kernel.
const QUEUE: usize = 16;

/// Mount a filesystem of an image at a folder, without root
///
/// What is changed is held back, and lands in the image when the filesystem is unmounted: all of it, or nothing if the
/// program is killed before. `racker disk umount` waits until all is on stable storage, and says so; plain umount and
/// fusermount3 -u do not wait. Until it ends nobody else can use the image. Ctrl-C or SIGTERM unmount as well.
///
/// Owners and modes are those of the image. Mounted by root they decide who may do what; mounted by another user,
/// that user may do everything and nobody else anything, and what is made belongs to the owner of its folder. Programs
/// that need to own what they write (cp -a, setfacl) do with --owner me.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mkdir boot\n  racker disk mount --read-only boot.qcow2 boot -p 2\n  \
    ls boot\n  racker disk umount boot")]
pub(crate) struct Mount {
    #[command(flatten)]
    image: ImageArgs,
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    which: PartitionArgs,
    /// Change nothing; others may read the image meanwhile
    #[arg(short = 'r', long)]
    read_only: bool,
    /// Land changes every few seconds, and whenever a program asks for it (fsync)
    #[arg(long, conflicts_with = "read_only")]
    live: bool,
    /// Stay until it is unmounted
    #[arg(long)]
    foreground: bool,
    /// Whose the files are shown to be
    #[arg(long, value_enum, default_value = "image", value_name = "WHOSE")]
    owner: Owner,
    /// Let other users in, as far as owners and modes allow
    #[arg(long)]
    allow_other: bool,
    #[command(flatten)]
    labels: LabelArgs,
}

/// Whose the files are shown to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Owner {
    /// As the image has it
    Image,
    /// Yours
    Me,
}

impl Mount {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let dir = self.folder()?;
        let detached = !self.foreground;
        if detached && !background::is_this() {
            return Ok(background::start()?.map_or_else(|exit| exit, |_| Exit::Done));
        }
        if detached {
            background::enter()?;
        }
        let (jobs, queue) = sync_channel(QUEUE);
        // Before any other thread is there, which would not know of it.
        let (at, end) = (dir.clone(), jobs.clone());
        interrupt::hear(move || told_to_end(&at, &end));
        let (target, write) = self.open(progress)?;
        let volume = super::fs::chosen(&target, self.which.partition.as_deref())?;
        let live = self.live && write;
        if live && volume.driver().is_some_and(|d| d.name() == "vfat") {
            let failure = Failure::new("files of FAT have no numbers that last, which --live needs");
            return Err(failure.hint("without --live changes land when it is unmounted")).about(&target.path);
        }
        let control = Control::listen()?;
        let labelled = write && !self.labels.no_selinux;
        let labelling = labelled.then(|| Labelling::of(&target, &volume)).flatten();
        let memory = Memory::new(self.shown(), Some(kernel::attribute(&control)), labelling);
        let ready = || self.mount(&dir, write, jobs);
        let ended = serve(&target, &volume, write, live, memory, &queue, ready);
        let said = ended.map(|ended| said(&dir, &target.path, write, ended));
        let told = said.as_ref().map(String::clone).map_err(|e| e.report());
        if let (Err(text), true) = (&told, detached) {
            background::log(text);
        }
        control.tell(&told.map_err(|text| text.trim_start_matches("racker: ").to_string()));
        progress.note(&said?);
        Ok(Exit::Done)
    }

    /// The folder, which nothing of the image may lie below.
    fn folder(&self) -> Outcome<PathBuf> {
        let dir = kernel::folder(&self.dir)?;
        if !dir.is_dir() {
            return Err(Failure::new("not a folder")).about(&self.dir);
        }
        if kernel::is_ours(&dir)? {
            let failure = Failure::new("a filesystem of an image is mounted there");
            return Err(failure.hint("`racker disk umount` ends it")).about(&self.dir);
        }
        let image = &self.image.image;
        if !is_remote(image) && std::fs::canonicalize(image).is_ok_and(|image| image.starts_with(&dir)) {
            return Err(Failure::new("the image lies below the folder, which would hide it"))
                .about(&self.dir);
        }
        Ok(dir)
    }

    /// The image, and whether it can be changed.
    fn open(&self, progress: ProgressArgs) -> Outcome<(Target, bool)> {
        if self.read_only {
            return Ok((Target::open(&self.image)?, false));
        }
        match Target::open_for(&self.image, true) {
            Err(e) if e.kind() == Some(Kind::ReadOnly) => {
                let target = Target::open(&self.image)?;
                progress.note(&format!("{}: mounted read-only", target.path.display()));
                Ok((target, false))
            }
            target => Ok((target?, true)),
        }
    }

    /// Whether the kernel looks at owners and modes.
    fn checks(&self) -> bool {
        self.allow_other || rustix::process::geteuid().is_root()
    }

    fn shown(&self) -> Shown {
        let me = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Shown {
            shown: (self.owner == Owner::Me).then(me),
            makers: self.owner == Owner::Image && rustix::process::geteuid().is_root(),
        }
    }

    /// Mounts, and says so.
    fn mount(&self, dir: &Path, write: bool, jobs: SyncSender<Job>) -> Outcome<()> {
        // A comma would end the name.
        let name = self.image.image.to_string_lossy().replace([',', '\\'], "_");
        let mut options = vec![
            MountOption::FSName(name),
            MountOption::CUSTOM(format!("subtype={}", kernel::SUBTYPE)),
            if write { MountOption::RW } else { MountOption::RO },
        ];
        let checks = self.checks();
        options.extend(checks.then_some(MountOption::DefaultPermissions));
        let mut config = Config::default();
        config.mount_options = options;
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        let front = Front::new(jobs.clone(), checks);
        let session = Session::new(front, dir, &config).map_err(|e| kernel::no_mount(&e)).about(dir)?;
        let session = session.spawn()?;
        let watch = move || {
            let _ = session.join();
            let _ = jobs.send(Job::Unmounted);
        };
        thread::Builder::new().name("session".into()).spawn(watch)?;
        if !self.foreground {
            return background::ready("mounted");
        }
        line(&format!("{}: mounted", dir.display()))
    }
}

fn serve(
    target: &Target,
    volume: &Volume,
    write: bool,
    live: bool,
    memory: Memory,
    queue: &Receiver<Job>,
    ready: impl FnOnce() -> Outcome<()>,
) -> Outcome<Ended> {
    if write {
        return landing::write((target, volume), memory, live, queue, ready);
    }
    landing::read(volume, memory, queue, ready)
}

/// A signal: unmounts, and cuts off who still uses it, with all that was written until then.
fn told_to_end(dir: &Path, jobs: &SyncSender<Job>) {
    if kernel::unmount(dir, false).is_ok() {
        return;
    }
    if let Ok(root) = std::fs::File::open(dir) {
        // What programs have changed in memory that they share with files.
        let _ = rustix::fs::syncfs(&root);
    }
    let _ = kernel::unmount(dir, true);
    let _ = jobs.send(Job::CutOff);
}

fn said(dir: &Path, image: &Path, write: bool, ended: Ended) -> String {
    let image = OsStr::from_bytes(image.as_os_str().as_bytes()).to_string_lossy();
    let done = match (write, ended.changed) {
        (false, _) => "nothing could be changed".into(),
        (true, false) => "nothing was changed".into(),
        (true, true) => format!("all changes are in {image}, on stable storage"),
    };
    let cut = if ended.cut_off { "; it was in use, and what was open is cut off" } else { "" };
    format!("{}: unmounted; {done}{cut}", dir.display())
}
