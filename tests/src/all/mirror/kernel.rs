//! Operations as the kernel does them, in a folder.
//!
//! The kernel has times of its own: those that an operation changes are set afterwards.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use racker_fs::filesystem::Time;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, IFlags, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
    Uid, XattrFlags, makedev,
};
use rustix::io::{Errno, Result};

use super::op::{Make, Op, Outcome, split};

/// Bytes that no file has which is in its inode.
const IN_INODE: u64 = 512;

/// A folder of a mounted filesystem.
pub(super) struct Folder<'a> {
    pub(super) root: &'a Path,
    /// It has owners, flags and attributes, too.
    pub(super) full: bool,
}

fn stamp(time: Time) -> Timespec {
    Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() }
}

const OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };

impl Folder<'_> {
    fn path(&self, place: &[Vec<u8>]) -> PathBuf {
        let mut path = self.root.to_path_buf();
        path.extend(place.iter().map(|part| std::ffi::OsStr::from_bytes(part)));
        path
    }

    /// Sets the times that are `Some`.
    fn times(&self, place: &[Vec<u8>], atime: Option<Time>, mtime: Option<Time>) -> Result<()> {
        let times = Timestamps {
            last_access: atime.map_or(OMIT, stamp),
            last_modification: mtime.map_or(OMIT, stamp),
        };
        rustix::fs::utimensat(CWD, self.path(place), &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn file(&self, place: &[Vec<u8>]) -> File {
        File::options().read(true).write(true).open(self.path(place)).unwrap()
    }

    /// Whether the kernel forgets what it does, on a filesystem with `inline_data`: where a file that is in its inode
    /// gets a hole, or zeroes behind its end, only the page cache has them, and a mount later the file has what it had
    /// before (6.18, without racker: files of 2 to 400 bytes, every few hundred operations; none with all others).
    pub(super) fn forgets(&self, op: &Op) -> bool {
        let (file, size) = match op {
            Op::Truncate { file, size } => (file, *size),
            Op::Punch { file, .. } => (file, u64::MAX),
            _ => return false,
        };
        let now = self.path(file).symlink_metadata().unwrap().len();
        now < IN_INODE && size > now
    }

    /// Does an operation. What finds no room has changed nothing, but for the content of a file.
    pub(super) fn apply(&self, op: &Op, now: Time) -> Outcome {
        match self.run(op, now) {
            Ok(()) => Outcome::Done,
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::MLINK) => Outcome::Refused,
            Err(e) => panic!("the kernel: {e}: {op:?}"),
        }
    }

    fn run(&self, op: &Op, now: Time) -> Result<()> {
        let here = |place| split(place).0.to_vec();
        match op {
            Op::Create { at, make, mode, owner } => {
                self.create(at, make, *mode, *owner, now)?;
                self.times(&here(at), None, Some(now))
            }
            Op::Write { file, at, data } => self.write(file, *at, &data.bytes(), now),
            Op::Truncate { file, size } => {
                rustix::fs::ftruncate(self.file(file), *size)?;
                self.times(file, None, Some(now))
            }
            Op::Punch { file, at, len } => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.file(file), how, *at, *len)?;
                self.times(file, None, Some(now))
            }
            Op::Replace { file, data } | Op::Ballast { file, data } => {
                rustix::fs::ftruncate(self.file(file), 0)?;
                self.write(file, 0, &data.bytes(), now)
            }
            Op::Link { node, at } => {
                self.link(&self.path(node), at)?;
                self.times(&here(at), None, Some(now))
            }
            Op::Remove { at } => {
                self.remove(&self.path(at))?;
                self.times(&here(at), None, Some(now))
            }
            Op::Rename { from, to } => self.rename(from, to, RenameFlags::empty(), now),
            Op::Exchange { one, other } => self.rename(one, other, RenameFlags::EXCHANGE, now),
            Op::Many { dir, names, node } => {
                for name in names {
                    let at = [dir, std::slice::from_ref(name)].concat();
                    match node {
                        Some(node) => self.link(&self.path(node), &at)?,
                        None => self.create(&at, &Make::File, 0o644, (0, 0), now)?,
                    }
                }
                self.times(dir, None, Some(now))
            }
            Op::Few { dir, names } => {
                let path = self.path(dir);
                for name in names {
                    self.remove(&path.join(std::ffi::OsStr::from_bytes(name)))?;
                }
                self.times(dir, None, Some(now))
            }
            op => self.attributes(op),
        }
    }

    fn attributes(&self, op: &Op) -> Result<()> {
        match op {
            Op::Owner { node, owner, mode } => {
                self.owner(&self.path(node), *owner)?;
                mode.map_or(Ok(()), |mode| rustix::fs::chmod(self.path(node), Mode::from_raw_mode(mode)))
            }
            Op::Times { node, atime, mtime } => self.times(node, Some(*atime), Some(*mtime)),
            Op::Flags { node, flags } => {
                let file = File::open(self.path(node)).unwrap();
                let now = rustix::fs::ioctl_getflags(&file)?.bits() & !super::tree::FLAGS;
                rustix::fs::ioctl_setflags(&file, IFlags::from_bits_retain(now | *flags))
            }
            Op::Xattr { node, name, value: Some(value) } => {
                rustix::fs::lsetxattr(self.path(node), name.as_slice(), value, XattrFlags::empty())
            }
            Op::Xattr { node, name, value: None } => {
                match rustix::fs::lremovexattr(self.path(node), name.as_slice()) {
                    Err(Errno::NODATA) => Ok(()),
                    done => done,
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn create(&self, at: &[Vec<u8>], make: &Make, mode: u32, owner: (u32, u32), now: Time) -> Result<()> {
        let path = self.path(at);
        let first = Mode::from_raw_mode(0o600);
        let node = |kind, major, minor| rustix::fs::mknodat(CWD, &path, kind, first, makedev(major, minor));
        match make {
            Make::File => node(FileType::RegularFile, 0, 0)?,
            Make::Dir => rustix::fs::mkdir(&path, first)?,
            Make::Link(to) => rustix::fs::symlink(to.as_slice(), &path)?,
            Make::Char(a, b) => node(FileType::CharacterDevice, *a, *b)?,
            Make::Block(a, b) => node(FileType::BlockDevice, *a, *b)?,
            Make::Fifo => node(FileType::Fifo, 0, 0)?,
            Make::Socket => node(FileType::Socket, 0, 0)?,
        }
        self.owner(&path, owner)?;
        if !matches!(make, Make::Link(_)) {
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
        }
        self.times(at, Some(now), Some(now))
    }

    fn owner(&self, path: &Path, owner: (u32, u32)) -> Result<()> {
        if !self.full {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn write(&self, file: &[Vec<u8>], at: u64, bytes: &[u8], now: Time) -> Result<()> {
        self.file(file)
            .write_all_at(bytes, at)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or_else(|| panic!("{e}")))?;
        self.times(file, None, Some(now))
    }

    fn link(&self, node: &Path, at: &[Vec<u8>]) -> Result<()> {
        rustix::fs::linkat(CWD, node, CWD, self.path(at), AtFlags::empty())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match rustix::fs::unlink(path) {
            Err(Errno::ISDIR) => rustix::fs::rmdir(path),
            done => done,
        }
    }

    fn rename(&self, from: &[Vec<u8>], to: &[Vec<u8>], how: RenameFlags, now: Time) -> Result<()> {
        // XFS, alone, takes a directory that is exchanged for changed.
        let mtime =
            |place| rustix::fs::lstat(self.path(place)).map(|stat| (stat.st_mtime, stat.st_mtime_nsec));
        let before = (how == RenameFlags::EXCHANGE).then(|| (mtime(from), mtime(to)));
        rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), how)?;
        if let Some((one, other)) = before {
            for (place, (sec, nsec)) in [(to, one?), (from, other?)] {
                let nsec = u32::try_from(nsec).unwrap();
                self.times(place, None, Some(Time { sec, nsec }))?;
            }
        }
        for place in [from, to] {
            self.times(&place[..place.len() - 1], None, Some(now))?;
        }
        Ok(())
    }
}
