//! Locks on image files that `qemu` and racker both respect.
//!
//! QEMU marks what a process does with an image by shared OFD locks on single bytes (`block/file-posix.c`
//! describes them): byte 100 + n says "I use permission n", byte 200 + n says "nobody else may use
//! permission n". A conflict is found by asking whether a write lock on the opposite byte would be granted.

use std::fs::File;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::error::{Fault, Kind, Result};

const PERM_BASE: i64 = 100;
const SHARED_BASE: i64 = 200;
/// Consistent read, write, write unchanged, resize: QEMU's permission bits 0 to 3.
const READ: i64 = 0;
const WRITE: i64 = 1;
const WRITE_UNCHANGED: i64 = 2;
const RESIZE: i64 = 3;

/// What the holder means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Read while nobody writes.
    Read,
    /// Write while nobody else reads consistently or writes.
    Write,
}

/// The file is in use by somebody else.
#[derive(Debug, thiserror::Error)]
#[error("another program {} this image", match .0 { LockMode::Read => "is writing", LockMode::Write => "is using" })]
pub struct Locked(LockMode);

impl Fault for Locked {
    fn kind(&self) -> Kind {
        Kind::Busy
    }

    fn hint(&self) -> Option<String> {
        Some("a virtual machine or another racker may have it open: stop that first".into())
    }
}

/// Locks an open file until it is closed, or says that somebody else is in the way. Filesystems without locks let
/// everyone through.
pub fn lock(file: &File, mode: LockMode) -> Result<()> {
    let (uses, forbids): (&[i64], &[i64]) = match mode {
        LockMode::Read => (&[READ], &[WRITE, RESIZE]),
        LockMode::Write => (&[READ, WRITE, RESIZE], &[WRITE, WRITE_UNCHANGED, RESIZE]),
    };
    let marks = uses.iter().map(|p| PERM_BASE.saturating_add(*p));
    let marks = marks.chain(forbids.iter().map(|p| SHARED_BASE.saturating_add(*p)));
    for byte in marks {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte))) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Err(Locked(mode).into()),
            // Network filesystems may have no locks: QEMU carries on there as well.
            Err(_) => return Ok(()),
        }
    }
    let rivals = uses.iter().map(|p| SHARED_BASE.saturating_add(*p));
    for byte in rivals.chain(forbids.iter().map(|p| PERM_BASE.saturating_add(*p))) {
        let mut probe = range(libc::F_WRLCK, byte);
        if fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK
        {
            return Err(Locked(mode).into());
        }
    }
    Ok(())
}

fn range(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        // The three constants fit: F_RDLCK 0, F_WRLCK 1, F_UNLCK 2.
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0, // SEEK_SET
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_and_readers_share() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (a, b, c) = (open(), open(), open());
        lock(&a, LockMode::Read).unwrap();
        lock(&b, LockMode::Read).unwrap();
        assert_eq!(lock(&c, LockMode::Write).unwrap_err().kind(), Kind::Busy);
        drop((a, b, c));
        let (a, b) = (open(), open());
        lock(&a, LockMode::Write).unwrap();
        assert_eq!(lock(&b, LockMode::Write).unwrap_err().kind(), Kind::Busy);
        drop(b);
        assert_eq!(lock(&open(), LockMode::Read).unwrap_err().kind(), Kind::Busy);
    }
}
