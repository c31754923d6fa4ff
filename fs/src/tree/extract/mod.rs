//! A tree into a folder of the host.
//!
//! As root everything is kept that the host's kernel and filesystem can hold: owners, modes, nanosecond times,
//! hard links, devices, pipes, sockets, extended attributes with ACLs and capabilities, `chattr` flags, holes.
//! As a plain user, what the kernel lets him. What is missing is counted for the caller and written to a manifest
//! next to the folder, so that nothing is lost. Set-user-id is left out where the owner could not be kept.
//! Project ids are always in the manifest: no safe call sets them. Space that was allocated but never written
//! becomes a hole.
//!
//! The image cannot reach out of the folder: each name is made with `O_EXCL` and `O_NOFOLLOW` relative to the
//! handle of a directory that we made ourselves and that nobody but us can use before it is finished. The folder
//! itself gets the mode and owner of the tree's root only at the end.

mod attributes;
mod manifest;
mod place;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use racker_formats::error::Result;
use racker_formats::wire::len64;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, makedev, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::content::{data_spans, link_target, read_span, xattrs};
use super::links::Links;
use super::report::Meter;
use super::{Entry, Go, Limits, Notes, Progress, ProgressFn, Step, Tree, TreeFault, walk};
use crate::filesystem::{NodeKind, Stat};
use attributes::{Apply, At, LOCKING, Left, What, apply, set_flags};

pub(super) use attributes::Keep;
use manifest::{Line, Manifest};
pub(super) use place::creating;
use place::{Place, io};

/// Bytes of memory for what must wait until all hard links are made: names of immutable files and the like.
const LATER_BYTES_MAX: u64 = 1 << 30;

/// How a tree is extracted.
#[derive(Default)]
pub struct ExtractOptions<'a> {
    /// What the walk may take.
    pub limits: Limits,
    /// Told how far it is.
    pub progress: Option<ProgressFn<'a>>,
    /// Files get their immutable and append-only flags, which then keep them from being removed; else the manifest does.
    pub locking: bool,
}

/// One kind of thing that the host did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Of how many entries.
    pub count: u64,
    /// The first of them.
    pub first: String,
    /// What the host said to that one.
    pub why: String,
}

/// What an extraction did.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// Entries and bytes of content that are on the host now.
    pub done: Progress,
    /// What could not be kept, by kind: `owner`, `mode`, `block`, `xattr security`, …
    pub lost: BTreeMap<String, Lost>,
    /// Where the details are, if anything could not be kept.
    pub manifest: Option<PathBuf>,
    /// Other remarks: mount points that the tree does not have.
    pub notes: Notes,
}

/// Extracts the tree into `dir`, which is made, or exists and is empty. The manifest, if one is needed, is
/// `dir` with `.racker-manifest.jsonl` at its end.
///
/// After an error, what was done so far stays; the error's hint says so.
pub fn extract(tree: &Tree, dir: &Path, options: ExtractOptions<'_>) -> Result<Extracted> {
    let (fs, root) = tree.root();
    if fs.stat(root)?.kind != NodeKind::Dir {
        return Err(TreeFault::RootKind.into());
    }
    let shown = dir.display().to_string();
    let folder = open_empty(dir).map_err(|e| e.within(&shown))?;
    let mut manifest = Manifest::beside(dir).map_err(|e| e.within(&shown))?;
    if !geteuid().is_root() {
        manifest.start().map_err(|e| e.within("manifest").within(&shown))?;
    }
    let keep = Keep { locking: options.locking, ..Keep::ALL };
    let mut out = Extractor::new(folder, None, keep, options.progress)?;
    out.manifest = Some(manifest);
    match out.run(tree, &options.limits) {
        Ok(()) => out.finish(true),
        Err(e) => {
            let nodes = out.meter.done().nodes;
            let hint =
                format!("{shown} is incomplete: it holds {nodes} entries; remove it before you try again");
            let hint = e.hint().map_or(hint.clone(), |h| format!("{h}; {hint}"));
            // The first error is the one to tell.
            let _ = out.finish(false);
            Err(e.with_hint(hint).within(shown))
        }
    }
}

/// Opens the folder, new or empty, and keeps everybody else out of it for the time being.
fn open_empty(dir: &Path) -> Result<OwnedFd> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
    if let Err(e) = made
        && e.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(e.into());
    }
    let fd = open_folder(dir)?;
    let mut list = rustix::fs::Dir::read_from(&fd).map_err(io)?;
    let is_used = |e: rustix::io::Result<rustix::fs::DirEntry>| {
        e.is_ok_and(|e| e.file_name() != c"." && e.file_name() != c"..")
    };
    if list.any(is_used) {
        return Err(TreeFault::NotEmpty(dir.to_path_buf()).into());
    }
    // Somebody else's folder that we may write to keeps its mode.
    let _ = rustix::fs::fchmod(&fd, Mode::RWXU);
    Ok(fd)
}

/// Opens a folder that the user named; a symbolic link to it is his own.
pub(super) fn open_folder(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty()).map_err(std::io::Error::from)?)
}

/// What waits for the end: it would keep hard links from being made.
#[derive(Debug)]
struct Later {
    path: Vec<u8>,
    stat: Stat,
    mode: bool,
    flags: bool,
}

/// The copying of one tree.
pub(super) struct Extractor<'a> {
    place: Place,
    /// The name that the tree's root gets in the folder; none: it is the folder.
    top: Option<Vec<u8>>,
    keep: Keep,
    is_root: bool,
    manifest: Option<Manifest>,
    links: Links,
    later: Vec<Later>,
    later_bytes: u64,
    lost: BTreeMap<String, Lost>,
    notes: Notes,
    meter: Meter<'a>,
    buf: Vec<u8>,
}

impl<'a> Extractor<'a> {
    pub(super) fn new(
        folder: OwnedFd,
        top: Option<Vec<u8>>,
        keep: Keep,
        progress: Option<ProgressFn<'a>>,
    ) -> Result<Self> {
        Ok(Self {
            place: Place::new(folder)?,
            top,
            keep,
            is_root: geteuid().is_root(),
            manifest: None,
            links: Links::default(),
            later: Vec::new(),
            later_bytes: 0,
            lost: BTreeMap::new(),
            notes: Notes::default(),
            meter: Meter::new(progress),
            buf: Vec::new(),
        })
    }

    pub(super) fn run(&mut self, tree: &Tree, limits: &Limits) -> Result<()> {
        let walked = walk(tree, limits, &mut |step| {
            match step {
                Step::Node(entry) => self.node(&entry)?,
                Step::Leave(entry) => self.leave(&entry)?,
            }
            Ok(Go::On)
        })?;
        for path in &walked.unused_mounts {
            self.notes.add(|| format!("/{}: no such directory to mount on", String::from_utf8_lossy(path)));
        }
        for later in std::mem::take(&mut self.later) {
            self.late(&later).map_err(|e| e.within(format!("/{}", String::from_utf8_lossy(&later.path))))?;
        }
        Ok(())
    }

    pub(super) fn finish(self, complete: bool) -> Result<Extracted> {
        let manifest = match self.manifest {
            Some(m) => m.finish(complete).map_err(|e| e.within("manifest"))?,
            None => None,
        };
        Ok(Extracted { done: self.meter.done(), lost: self.lost, manifest, notes: self.notes })
    }

    /// The name that an entry gets in the current directory; none: it is the folder itself.
    fn name(&self, entry: &Entry<'_>) -> Option<Vec<u8>> {
        if entry.path.is_empty() { self.top.clone() } else { Some(entry.name().to_vec()) }
    }

    /// The path that an entry gets in the folder.
    fn host_path(&self, path: &[u8]) -> Vec<u8> {
        match &self.top {
            None => path.to_vec(),
            Some(top) if path.is_empty() => top.clone(),
            Some(top) => [top.as_slice(), b"/", path].concat(),
        }
    }

    fn node(&mut self, entry: &Entry<'_>) -> Result<()> {
        let name = self.name(entry);
        if let Some(first) = self.links.first_path(entry)? {
            let name = name.as_deref().expect("the root is a directory or has a name");
            return self.hard_link(entry, name, &first);
        }
        match name {
            Some(name) => self.make(entry, &name),
            None => Ok(()),
        }
    }

    fn make(&mut self, entry: &Entry<'_>, name: &[u8]) -> Result<()> {
        match entry.stat.kind {
            NodeKind::Dir => self.place.enter_new(name)?,
            NodeKind::File => self.file(entry, name)?,
            NodeKind::Link => {
                let target = link_target(entry)?;
                let made = symlinkat(target.as_slice(), self.place.here(), name);
                self.special(entry, name, made, Some(&target))?;
            }
            _ => {
                let made = self.make_node(entry.stat, name);
                self.special(entry, name, made, None)?;
            }
        }
        self.meter.node()
    }

    fn leave(&mut self, entry: &Entry<'_>) -> Result<()> {
        // A directory that a plain user closes to himself would hide the first names of hard links.
        let mode_later = !self.is_root && entry.stat.mode & 0o100 == 0;
        let extra_mode = if mode_later { 0o700 & !entry.stat.mode } else { 0 };
        let how = Apply { keep: self.keep, extra_mode };
        let left = if self.name(entry).is_some() {
            let fd = self.place.leave()?;
            apply(At::Open(fd.as_fd()), entry, how)?
        } else {
            let left = apply(At::Open(self.place.folder()), entry, how)?;
            self.meter.node()?;
            left
        };
        self.record(entry, &left, None, None)?;
        self.postpone(entry, mode_later)
    }

    fn file(&mut self, entry: &Entry<'_>, name: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.place.here(), name, flags, Mode::RUSR | Mode::WUSR).map_err(creating)?;
        let file = File::from(fd);
        // Its size comes first: XFS would fill the holes behind data that makes a file grow.
        if entry.stat.size > 0 {
            file.set_len(entry.stat.size)?;
        }
        let Self { meter, buf, .. } = self;
        data_spans(entry, &mut |span| {
            read_span(entry, span, buf, &mut |at, bytes| {
                file.write_all_at(bytes, at)?;
                meter.bytes(len64(bytes.len()))
            })
        })?;
        let how = Apply { keep: self.keep, extra_mode: 0 };
        let left = apply(At::Open(file.as_fd()), entry, how)?;
        self.record(entry, &left, None, None)?;
        self.postpone(entry, false)
    }

    fn make_node(&self, stat: &Stat, name: &[u8]) -> rustix::io::Result<()> {
        let (kind, device) = match stat.kind {
            NodeKind::Char => (FileType::CharacterDevice, makedev(stat.rdev.0, stat.rdev.1)),
            NodeKind::Block => (FileType::BlockDevice, makedev(stat.rdev.0, stat.rdev.1)),
            NodeKind::Socket => (FileType::Socket, 0),
            _ => (FileType::Fifo, 0),
        };
        mknodat(self.place.here(), name, kind, Mode::RUSR | Mode::WUSR, device)
    }

    /// The rest of what was `made` and cannot be opened: a link, a device, a pipe, a socket.
    fn special(
        &mut self,
        entry: &Entry<'_>,
        name: &[u8],
        made: rustix::io::Result<()>,
        target: Option<&[u8]>,
    ) -> Result<()> {
        match made {
            Ok(()) => {
                let how = Apply { keep: self.keep, extra_mode: 0 };
                let mut left = apply(At::Name(self.place.here(), name), entry, how)?;
                if self.keep.flags && entry.stat.flags.intersects(LOCKING) {
                    left.add(What::Flags, "only files and directories can have them");
                }
                self.record(entry, &left, None, None)
            }
            // The user may not, or the host's filesystem has none.
            Err(e @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS)) => {
                let mut left = Left::default();
                left.add(What::Node, e);
                left.xattrs = xattrs(entry)?.into_iter().map(|x| (x, e.to_string())).collect();
                self.record(entry, &left, target, None)
            }
            Err(e) => Err(creating(e)),
        }
    }

    /// A further name of a node that has one in the folder already.
    fn hard_link(&mut self, entry: &Entry<'_>, name: &[u8], first: &[u8]) -> Result<()> {
        let source = self.host_path(first);
        let made = self
            .place
            .find(&source)
            .and_then(|(dir, base)| Ok(linkat(&dir, base, self.place.here(), name, AtFlags::empty())?));
        let Err(e) = made else { return self.meter.node() };
        let mut left = Left::default();
        match Errno::from_io_error(&e) {
            Some(e @ (Errno::EXIST | Errno::INVAL | Errno::ILSEQ | Errno::NAMETOOLONG)) => Err(creating(e)),
            // The first name could not be made, so neither can this.
            Some(Errno::NOENT) => {
                left.add(What::Node, "its first name is missing, too");
                self.record(entry, &left, None, Some(first))?;
                self.meter.node()
            }
            // The host counts no further, or has no hard links: a copy, and the next names are links to it.
            Some(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                left.add(What::Link, e);
                self.record(entry, &left, None, Some(first))?;
                self.links.replace(entry);
                self.make(entry, name)
            }
            _ => Err(e.into()),
        }
    }

    /// Remembers what has to wait until everything else is there.
    fn postpone(&mut self, entry: &Entry<'_>, mode: bool) -> Result<()> {
        let flags = self.keep.flags && entry.stat.flags.intersects(LOCKING);
        if !mode && !flags {
            return Ok(());
        }
        let cost = len64(entry.path.len()).saturating_add(len64(size_of::<Later>()));
        self.later_bytes = self.later_bytes.saturating_add(cost);
        if self.later_bytes > LATER_BYTES_MAX {
            return Err(TreeFault::LinksLarge { max: LATER_BYTES_MAX }.into());
        }
        self.later.push(Later { path: entry.path.to_vec(), stat: *entry.stat, mode, flags });
        Ok(())
    }

    fn late(&mut self, later: &Later) -> Result<()> {
        let Later { path, stat, mode, flags } = later;
        let host = self.host_path(path);
        let options = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = if host.is_empty() {
            openat(self.place.folder(), c".", options, Mode::empty()).map_err(std::io::Error::from)
        } else {
            let found = self.place.find(&host);
            found.and_then(|(dir, base)| Ok(openat(dir, base, options, Mode::empty())?))
        };
        let mut left = Left::default();
        match opened {
            Err(e) if *flags => left.add(What::Flags, e),
            Err(e) => left.add(What::Mode, e),
            Ok(fd) => {
                let at = At::Open(fd.as_fd());
                if *mode && let Err(e) = at.chmod(stat.mode & 0o7777) {
                    left.add(What::Mode, e);
                }
                if *flags {
                    let unlocked = stat.flags.difference(LOCKING);
                    let locking = self.keep.locking;
                    set_flags(at, if locking { stat.flags } else { unlocked }, &mut left);
                    if !locking {
                        left.add(What::Flags, "--flags sets them");
                    }
                }
            }
        }
        self.write_down(path, stat, &left, None, None)
    }

    fn record(
        &mut self,
        entry: &Entry<'_>,
        left: &Left,
        target: Option<&[u8]>,
        link: Option<&[u8]>,
    ) -> Result<()> {
        self.write_down(entry.path, entry.stat, left, target, link)
    }

    /// Counts what is missing, and writes it to the manifest.
    fn write_down(
        &mut self,
        path: &[u8],
        stat: &Stat,
        left: &Left,
        target: Option<&[u8]>,
        link: Option<&[u8]>,
    ) -> Result<()> {
        if left.is_empty() {
            return Ok(());
        }
        for (what, why) in &left.what {
            let key = if *what == What::Node { manifest::word(stat.kind).into() } else { what.to_string() };
            self.count(key, path, why);
        }
        for ((name, _), why) in &left.xattrs {
            let space = name.split(|b| *b == b'.').next().unwrap_or_default();
            let space: String = String::from_utf8_lossy(space).chars().take(32).collect();
            self.count(format!("xattr {space}"), path, why);
        }
        match &mut self.manifest {
            Some(m) => m.write(&Line { path, stat, left, target, link }).map_err(|e| e.within("manifest")),
            None => Ok(()),
        }
    }

    fn count(&mut self, key: String, path: &[u8], why: &str) {
        let first =
            || Lost { count: 0, first: format!("/{}", String::from_utf8_lossy(path)), why: why.into() };
        // Hostile names of attributes could be of any number.
        let key = if self.lost.len() < 64 || self.lost.contains_key(&key) { key } else { "other".into() };
        let lost = self.lost.entry(key).or_insert_with(first);
        lost.count = lost.count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests;
