//! Where on the host we are: a stack of directory handles that no symbolic link can lead astray.
//!
//! Every step is one name relative to an open directory, with `O_NOFOLLOW`; a path is never given to the kernel
//! as a whole. So it does not matter how long paths are or what others put into the folder meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use racker_formats::error::{Error, Result};
use rustix::fs::{Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;

use super::super::TreeFault;

/// Handles that stay open at a time, of the 1,024 that a process usually may have. The ones above are found
/// again through `..`.
const OPEN_MAX: usize = 64;

/// The handle of a directory on the way down, if it is open, and what it must be when it is opened again.
#[derive(Debug)]
struct Level {
    fd: Option<OwnedFd>,
    id: (u64, u64),
}

/// The folder that is written to, and the way down to the current directory.
#[derive(Debug)]
pub(super) struct Place {
    /// The first is the folder itself; it stays open.
    levels: Vec<Level>,
}

/// For looking at a directory on the way, not into it.
const PASS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Place {
    /// Starts at an open folder.
    pub(super) fn new(folder: OwnedFd) -> Result<Self> {
        let id = identity(folder.as_fd())?;
        Ok(Self { levels: vec![Level { fd: Some(folder), id }] })
    }

    /// The folder itself.
    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        let first = self.levels.first().and_then(|l| l.fd.as_ref());
        first.expect("the first level is never closed").as_fd()
    }

    /// The current directory.
    pub(super) fn here(&self) -> BorrowedFd<'_> {
        let last = self.levels.last().and_then(|l| l.fd.as_ref());
        last.expect("the last level is always open").as_fd()
    }

    /// Makes a directory that only we can use, and goes into it.
    pub(super) fn enter_new(&mut self, name: &[u8]) -> Result<()> {
        mkdirat(self.here(), name, Mode::RWXU).map_err(creating)?;
        let fd = openat(self.here(), name, OPEN_DIR, Mode::empty()).map_err(io)?;
        let id = identity(fd.as_fd())?;
        self.levels.push(Level { fd: Some(fd), id });
        let surplus = self.levels.len().saturating_sub(OPEN_MAX);
        if surplus > 0
            && let Some(level) = self.levels.get_mut(surplus)
        {
            level.fd = None;
        }
        Ok(())
    }

    /// Goes back to the directory above; returns the handle of the one that was left.
    pub(super) fn leave(&mut self) -> Result<OwnedFd> {
        let left = self.levels.pop().and_then(|l| l.fd).expect("the last level is always open");
        let above = self.levels.last_mut().expect("the folder itself is never left");
        if above.fd.is_none() {
            let fd = openat(&left, c"..", OPEN_DIR, Mode::empty()).map_err(io)?;
            if identity(fd.as_fd())? != above.id {
                return Err(TreeFault::HostMoved.into());
            }
            above.fd = Some(fd);
        }
        Ok(left)
    }

    /// Finds the directory that holds `path`, which counts from the folder, and the name in it.
    pub(super) fn find<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let mut dir = openat(self.folder(), c".", PASS, Mode::empty())?;
        let mut parts = path.split(|b| *b == b'/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return Ok((dir, part));
            }
            dir = openat(&dir, part, PASS, Mode::empty())?;
        }
        Ok((dir, path))
    }
}

fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    let stat = fstat(fd).map_err(io)?;
    Ok((stat.st_dev, stat.st_ino))
}

pub(super) fn io(e: Errno) -> Error {
    io::Error::from(e).into()
}

/// What the host says when it does not take a name.
pub(in super::super) fn creating(e: Errno) -> Error {
    match e {
        Errno::EXIST => TreeFault::HostExists.into(),
        Errno::INVAL | Errno::ILSEQ | Errno::NAMETOOLONG => TreeFault::HostName { source: e.into() }.into(),
        other => io(other),
    }
}
