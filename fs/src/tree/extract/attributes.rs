//! Owners, modes, times, extended attributes and flags of a new entry; and what the host did not take.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use racker_formats::error::Result;
use rustix::fs::{
    AtFlags, Gid, IFlags, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, fstat, futimens, ioctl_getflags, ioctl_setflags, lsetxattr, statat, utimensat,
};
use rustix::io::Errno;

use super::super::Entry;
use super::super::content::{Xattr, xattrs};
use super::place::io;
use crate::filesystem::{Flags, NodeKind, Stat, Time};

/// A new entry of the host.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// What cannot be opened: a name in an open directory, which only we can use.
    Name(BorrowedFd<'a>, &'a [u8]),
}

/// What the host did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Node,
    Link,
    Owner,
    Mode,
    Time,
    Flags,
    Project,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "entry",
            Self::Link => "hard link",
            Self::Owner => "owner",
            Self::Mode => "mode",
            Self::Time => "time",
            Self::Flags => "flags",
            Self::Project => "project id",
        })
    }
}

/// What is missing from one entry, and why.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) what: Vec<(What, String)>,
    pub(super) xattrs: Vec<(Xattr, String)>,
}

impl Left {
    pub(super) fn is_empty(&self) -> bool {
        self.what.is_empty() && self.xattrs.is_empty()
    }

    pub(super) fn add(&mut self, what: What, why: impl ToString) {
        self.what.push((what, why.to_string()));
    }

    pub(super) fn has(&self, what: What) -> bool {
        self.what.iter().any(|(w, _)| *w == what)
    }
}

/// Flags that keep a file from being changed, linked to or removed.
pub(super) const LOCKING: Flags = Flags::IMMUTABLE.union(Flags::APPEND);

/// What is kept of the image's attributes beside mode, times and extended attributes. What is not is not missed.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Keep {
    /// Owner and group; else everything becomes the caller's.
    pub(in super::super) owners: bool,
    /// `chattr` flags and project id.
    pub(in super::super) flags: bool,
    /// Of those, the ones that keep a file from being changed or removed.
    pub(in super::super) locking: bool,
}

impl Keep {
    /// Everything.
    pub(super) const ALL: Self = Self { owners: true, flags: true, locking: true };
}

/// How attributes are applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Apply {
    pub(super) keep: Keep,
    /// Bits that the mode shall have for now, whatever the image says.
    pub(super) extra_mode: u32,
}

/// Gives an entry everything that the image says about it, in the order that keeps it: a change of owner takes
/// capabilities and set-user-id away, content changes times.
pub(super) fn apply(at: At<'_>, entry: &Entry<'_>, how: Apply) -> Result<Left> {
    let stat = entry.stat;
    let mut left = Left::default();
    if how.keep.owners
        && let Err(e) = chown(at, stat.uid, stat.gid)
    {
        left.add(What::Owner, e);
    }
    let now = at.stat().map_err(io)?;
    let mode = (stat.mode & 0o7777 & !unsafe_bits(stat, &now)) | how.extra_mode;
    if stat.kind != NodeKind::Link
        && let Err(e) = at.chmod(mode)
    {
        left.add(What::Mode, e);
    }
    for (name, value) in xattrs(entry)? {
        if let Err(e) = at.set_xattr(&name, &value) {
            left.xattrs.push(((name, value), e.to_string()));
        }
    }
    if let Err(e) = at.set_times(stat.atime, stat.mtime) {
        left.add(What::Time, e);
    }
    compare(at, stat, how, &mut left)?;
    if how.keep.flags && !stat.flags.is_empty() && !stat.flags.intersects(LOCKING) {
        set_flags(at, stat.flags, &mut left);
    }
    if how.keep.flags && stat.project != 0 {
        left.add(What::Project, "there is no safe call for it");
    }
    Ok(left)
}

/// Set-user-id of somebody else than in the image would give away the rights of whoever extracts.
fn unsafe_bits(stat: &Stat, now: &rustix::fs::Stat) -> u32 {
    let user = if now.st_uid == stat.uid { 0 } else { 0o4000 };
    // On a directory, set-group-id gives nobody rights.
    let group = if now.st_gid == stat.gid || stat.kind == NodeKind::Dir { 0 } else { 0o2000 };
    user | group
}

fn chown(at: At<'_>, uid: u32, gid: u32) -> std::result::Result<(), Errno> {
    // -1 means "leave it": no system has such a user.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    let gid = Gid::from_raw(gid);
    at.chown(Some(Uid::from_raw(uid)), gid).inspect_err(|_| {
        // A plain user may give files to the groups he is in. What came of it is looked at afterwards.
        let _ = at.chown(None, gid);
    })
}

/// Hosts may take a call and do nothing, or round; what counts is what is there in the end.
fn compare(at: At<'_>, stat: &Stat, how: Apply, left: &mut Left) -> Result<()> {
    let now = at.stat().map_err(io)?;
    let mut differs = |what, is_same: bool, why: &str| {
        if is_same {
            left.what.retain(|(w, _)| *w != what);
        } else if !left.has(what) {
            left.add(what, why);
        }
    };
    let is_owned = now.st_uid == stat.uid && now.st_gid == stat.gid;
    differs(What::Owner, is_owned || !how.keep.owners, "the host keeps another one");
    let mode = (stat.mode & 0o7777) | how.extra_mode;
    let is_mode = stat.kind == NodeKind::Link || now.st_mode & 0o7777 == mode;
    let why = if is_owned { "the host keeps another one" } else { "not without the owner" };
    differs(What::Mode, is_mode, why);
    let nsec = u32::try_from(now.st_mtime_nsec).unwrap_or(u32::MAX);
    let is_time = now.st_mtime == stat.mtime.sec && nsec == stat.mtime.nsec;
    differs(What::Time, is_time, "the host's times are coarser or end earlier");
    Ok(())
}

/// Sets flags beside those that the host has for itself.
pub(super) fn set_flags(at: At<'_>, flags: Flags, left: &mut Left) {
    let known = [
        (Flags::SYNC, IFlags::SYNC),
        (Flags::IMMUTABLE, IFlags::IMMUTABLE),
        (Flags::APPEND, IFlags::APPEND),
        (Flags::NODUMP, IFlags::NODUMP),
        (Flags::NOATIME, IFlags::NOATIME),
        (Flags::PROJINHERIT, IFlags::PROJECT_INHERIT),
    ];
    let mut wanted = IFlags::empty();
    let mut rest = flags;
    for (ours, theirs) in known {
        if flags.contains(ours) {
            wanted |= theirs;
            rest.remove(ours);
        }
    }
    let At::Open(fd) = at else {
        return left.add(What::Flags, "only files and directories can have them");
    };
    let set = ioctl_getflags(fd).and_then(|old| ioctl_setflags(fd, old | wanted));
    if let Err(e) = set {
        left.add(What::Flags, e);
    } else if !rest.is_empty() {
        left.add(What::Flags, "verity and encryption cannot be set from outside");
    }
}

impl At<'_> {
    fn stat(self) -> rustix::io::Result<rustix::fs::Stat> {
        match self {
            Self::Open(fd) => fstat(fd),
            Self::Name(dir, name) => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn chown(self, uid: Option<Uid>, gid: Gid) -> rustix::io::Result<()> {
        match self {
            Self::Open(fd) => fchown(fd, uid, Some(gid)),
            Self::Name(dir, name) => chownat(dir, name, uid, Some(gid), AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    pub(super) fn chmod(self, mode: u32) -> rustix::io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        match self {
            Self::Open(fd) => fchmod(fd, mode),
            // Follows links, but this is none, and nobody else can reach the directory.
            Self::Name(dir, name) => chmodat(dir, name, mode, AtFlags::empty()),
        }
    }

    fn set_times(self, atime: Time, mtime: Time) -> rustix::io::Result<()> {
        let spec = |t: Time| Timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        match self {
            Self::Open(fd) => futimens(fd, &times),
            Self::Name(dir, name) => utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn set_xattr(self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Open(fd) => fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Name(dir, node) => {
                // There is no call relative to a handle; the kernel's own link to it is as good.
                let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
                path.extend_from_slice(node);
                lsetxattr(path, name, value, XattrFlags::empty())
            }
        }
    }
}
