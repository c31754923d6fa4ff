//! What the kernel's words mean here and ours to the kernel: numbers of nodes and devices, times, attributes, errors.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use racker_formats::error::{Error, Kind};
use racker_fs::edit::EditFault;
use racker_fs::filesystem::{Name, NodeId, NodeKind, Stat, Time};

/// What the kernel calls the root.
const ROOT: u64 = 1;
/// Bytes of the longest name that the filesystems here store.
const NAME_MAX: usize = 255;

/// The result of an operation, as the kernel hears it.
pub(super) type Answer<T> = Result<T, Errno>;

/// The numbers of nodes: those of the filesystem, but that the kernel's root is 1. The two change places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    root: u64,
}

impl Numbers {
    /// For a filesystem whose root is this node.
    pub(super) const fn new(root: NodeId) -> Self {
        Self { root: root.0 }
    }

    /// The node of a number of the kernel's.
    pub(super) const fn node(self, number: INodeNo) -> NodeId {
        NodeId(self.turn(number.0))
    }

    /// The number for a node.
    pub(super) const fn number(self, node: NodeId) -> INodeNo {
        INodeNo(self.turn(node.0))
    }

    const fn turn(self, number: u64) -> u64 {
        if number == ROOT {
            self.root
        } else if number == self.root {
            ROOT
        } else {
            number
        }
    }
}

/// Whose the files are shown to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    /// User and group that all files are shown to belong to, instead of those that the image has.
    pub(super) shown: Option<(u32, u32)>,
    /// What is made belongs to who makes it, else to the owner of the directory.
    pub(super) makers: bool,
}

/// Attributes as `stat` shows them.
pub(super) fn attributes(number: INodeNo, stat: &Stat, owner: Owner) -> FileAttr {
    let (uid, gid) = owner.shown.unwrap_or((stat.uid, stat.gid));
    FileAttr {
        ino: number,
        size: stat.size,
        blocks: stat.allocated.div_ceil(512),
        atime: to_system(stat.atime),
        mtime: to_system(stat.mtime),
        ctime: to_system(stat.ctime),
        crtime: stat.crtime.map_or(UNIX_EPOCH, to_system),
        kind: file_type(stat.kind),
        perm: u16::try_from(stat.mode & 0o7777).unwrap_or_default(),
        nlink: u32::try_from(stat.links).unwrap_or(u32::MAX),
        uid,
        gid,
        rdev: device(stat.rdev),
        blksize: 4096,
        flags: 0,
    }
}

/// A kind of node.
pub(super) const fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Dir => FileType::Directory,
        NodeKind::Link => FileType::Symlink,
        NodeKind::Char => FileType::CharDevice,
        NodeKind::Block => FileType::BlockDevice,
        NodeKind::Fifo => FileType::NamedPipe,
        NodeKind::Socket => FileType::Socket,
    }
}

/// A device's number in 32 bits, as the kernel packs it.
const fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// Major and minor number of such a number.
pub(super) const fn device_parts(packed: u32) -> (u32, u32) {
    ((packed >> 8) & 0xfff, (packed & 0xff) | ((packed >> 12) & 0xf_ff00))
}

fn to_system(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let exact = second.and_then(|s| s.checked_add(Duration::from_nanos(u64::from(time.nsec))));
    exact.unwrap_or(UNIX_EPOCH)
}

/// A time of the kernel's.
pub(super) fn from_system(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Time { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() }
        }
        Err(e) => {
            let before = e.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX).wrapping_neg();
            match before.subsec_nanos() {
                0 => Time { sec: whole, nsec: 0 },
                n => Time { sec: whole.saturating_sub(1), nsec: 1_000_000_000_u32.saturating_sub(n) },
            }
        }
    }
}

/// A name that the kernel asks for.
pub(super) fn name(text: &OsStr) -> Answer<Name> {
    if text.len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    Name::new(text.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// The number of an error.
pub(super) fn errno(e: &Error) -> Errno {
    match e.fault::<EditFault>() {
        Some(EditFault::Failed | EditFault::Closed) => return Errno::EIO,
        Some(EditFault::Encrypted | EditFault::Verity) => return Errno::EPERM,
        Some(EditFault::List(_) | EditFault::NoList) => return Errno::EINVAL,
        Some(EditFault::XattrName(_)) => return Errno::EOPNOTSUPP,
        Some(EditFault::UserXattr) => return Errno::EPERM,
        Some(EditFault::XattrValue(_)) => return Errno::E2BIG,
        _ => {}
    }
    match e.kind() {
        // What filesystems of the kernel say.
        Kind::Corrupt => Errno::from_i32(nix::libc::EUCLEAN),
        Kind::Unsupported => Errno::EOPNOTSUPP,
        Kind::Invalid => Errno::EINVAL,
        Kind::Denied => Errno::EPERM,
        Kind::OutOfRange => Errno::EFBIG,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::ReadOnly => Errno::EROFS,
        Kind::NotFound => Errno::ENOENT,
        Kind::Exists => Errno::EEXIST,
        Kind::NotDir => Errno::ENOTDIR,
        Kind::IsDir => Errno::EISDIR,
        Kind::NotEmpty => Errno::ENOTEMPTY,
        Kind::Busy => Errno::EBUSY,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_one() {
        let numbers = Numbers::new(NodeId(128));
        assert_eq!(numbers.node(INodeNo(1)), NodeId(128));
        for node in [1, 2, 128, u64::MAX] {
            assert_eq!(numbers.node(numbers.number(NodeId(node))), NodeId(node));
        }
    }

    #[test]
    fn times_and_devices_come_back() {
        for (sec, nsec) in [(0, 0), (-1, 999_999_999), (-5, 0), (1 << 33, 7)] {
            let time = Time { sec, nsec };
            assert_eq!(from_system(to_system(time)), time);
        }
        for parts in [(8, 1), (0xfff, 0xf_ffff), (1, 300)] {
            assert_eq!(device_parts(device(parts)), parts);
        }
    }
}
