//! What a filesystem is: nodes, names, attributes; one trait to read it and one to change it.

use std::fmt::{self, Debug};
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use racker_formats::block::{Disk, Span};
use racker_formats::check::Report;
use racker_formats::error::{Common, Fault, Kind, Result};
use racker_formats::registry::{Guess, Head};
use racker_formats::transaction::Journal;

pub(crate) use crate::identity::label_bytes;
pub use crate::identity::{BadIdentity, NewUuid};

/// The number of a node: an inode number, or whatever a filesystem without inodes uses in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// One component of a path: bytes, not empty, no slash, no NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<[u8]>);

/// A name that cannot stand in a directory.
#[derive(Debug, thiserror::Error)]
#[error("{:?} is no name for a directory entry", String::from_utf8_lossy(.0))]
pub struct BadName(Vec<u8>);

impl Fault for BadName {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }
}

impl Name {
    /// The longest name of every filesystem here, in bytes (FAT's 255 UTF-16 units are at most 765 bytes).
    pub const MAX: usize = 765;

    /// Checks the bytes.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        let bad = bytes.is_empty()
            || bytes.len() > Self::MAX
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|b| *b == b'/' || *b == 0);
        if bad {
            let shown = bytes.get(..bytes.len().min(64)).unwrap_or_default();
            return Err(BadName(shown.to_vec()).into());
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Link,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl NodeKind {
    /// The kind that the `S_IFMT` bits of a mode name.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Dir,
            0o120_000 => Self::Link,
            0o020_000 => Self::Char,
            0o060_000 => Self::Block,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            _ => return None,
        })
    }

    /// The number that directory entries of ext4 and XFS have for it.
    pub const fn entry_type(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Dir => 2,
            Self::Char => 3,
            Self::Block => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Link => 7,
        }
    }

    /// The kind that such a number means.
    pub const fn from_entry_type(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::File,
            2 => Self::Dir,
            3 => Self::Char,
            4 => Self::Block,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Link,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Dir => 0o040_000,
            Self::Link => 0o120_000,
            Self::Char => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }
}

/// A point in time: seconds since 1970 (before it: negative) and nanoseconds from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

bitflags::bitflags! {
    /// Inode flags under the names of `chattr`, with `FS_IOC_GETFLAGS`'s values.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// `S`: written synchronously.
        const SYNC = 0x8;
        /// `i`: cannot be changed.
        const IMMUTABLE = 0x10;
        /// `a`: only appended to.
        const APPEND = 0x20;
        /// `d`: left out by dump.
        const NODUMP = 0x40;
        /// `A`: access times are not kept.
        const NOATIME = 0x80;
        /// `P`: children inherit the project id.
        const PROJINHERIT = 0x2000_0000;
        /// `V`: protected by fs-verity.
        const VERITY = 0x0010_0000;
        /// `E`: encrypted.
        const ENCRYPT = 0x800;
    }
}

/// Everything about a node but its content and its extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits: the lower twelve.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that it takes on the volume.
    pub allocated: u64,
    /// Directory entries that name it.
    pub links: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the node.
    pub ctime: Time,
    /// Birth, where the filesystem records it.
    pub crtime: Option<Time>,
    /// Major and minor number of a device node.
    pub rdev: (u32, u32),
    /// `chattr` flags.
    pub flags: Flags,
    /// Project id for quotas.
    pub project: u32,
    /// Generation number.
    pub generation: u32,
}

/// One entry of a directory; `.` and `..` are never among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// The node it names.
    pub node: NodeId,
    /// The node's kind, where the directory says it.
    pub kind: Option<NodeKind>,
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// What a stretch of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes stored at this offset of the volume.
    Data(u64),
    /// Bytes stored in some other way: inside the inode, compressed.
    Inline,
    /// Allocated, never written: reads as zeroes. The offset on the volume.
    Unwritten(u64),
    /// Nothing: reads as zeroes.
    Hole,
}

/// What a filesystem says about itself.
#[derive(Clone, Debug, Default)]
pub struct FsFacts {
    /// The driver's name: `xfs`, `ext4`, `vfat`.
    pub kind: &'static str,
    /// Label, if there is one.
    pub label: Option<String>,
    /// UUID (or FAT's volume id) as `blkid` prints it.
    pub uuid: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Free bytes.
    pub free: u64,
    /// Block or cluster size in bytes.
    pub block_size: u32,
    /// Features by their usual names.
    pub features: Vec<String>,
    /// The journal or log held changes that were replayed (in memory when read-only).
    pub replayed: bool,
    /// Why racker will not write to it, if so.
    pub read_only: Option<String>,
}

/// Called for each thing; answers whether to go on.
pub type Visit<'a, T> = dyn FnMut(T) -> Result<ControlFlow<()>> + 'a;

/// Called for each extended attribute with its name and value, which live only for the call.
pub type VisitXattr<'a> = dyn FnMut((&[u8], &[u8])) -> Result<ControlFlow<()>> + 'a;

/// A filesystem that can be read.
///
/// Every name and number in it is hostile; whatever a method returns has been checked.
pub trait Filesystem: Debug + Send + Sync {
    /// What it says about itself.
    fn facts(&self) -> Result<FsFacts>;
    /// The root directory.
    fn root(&self) -> NodeId;
    /// Everything about a node.
    fn stat(&self, node: NodeId) -> Result<Stat>;
    /// The node that `name` names in `dir`.
    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>>;
    /// All entries of a directory.
    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()>;
    /// Reads from `at`; returns how many bytes there were, less than asked for only at the end.
    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize>;
    /// The extents of a file in order, holes included, from 0 to its size.
    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()>;
    /// The stretches of the volume that are free, in bytes and in order, where the filesystem was closed cleanly and
    /// can tell; `false` if it cannot. Checksums and counts are compared: what contradicts itself is an error.
    fn free_space(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        let _ = visit;
        Ok(false)
    }
    /// The target of a symbolic link, as stored.
    fn read_link(&self, link: NodeId) -> Result<Vec<u8>>;
    /// All extended attributes, under the names that the kernel shows (`user.x`, `system.posix_acl_access`).
    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()>;
}

/// New content of a file: exactly `size` bytes from `reader`.
pub struct Content<'a> {
    /// Where the bytes come from.
    pub reader: &'a mut dyn Read,
    /// How many there are.
    pub size: u64,
}

impl Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.size)
    }
}

/// What a new node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKind<'a> {
    /// An empty regular file.
    File,
    /// An empty directory.
    Dir,
    /// A symbolic link with this target: 1 to [`LINK_MAX`] bytes without a zero byte.
    Link(&'a [u8]),
    /// A character device with these major and minor numbers.
    Char(u32, u32),
    /// A block device with these major and minor numbers.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Bytes of the longest target of a symbolic link: the kernel's `PATH_MAX` without the zero at its end.
pub const LINK_MAX: usize = 4095;

impl NewKind<'_> {
    /// The kind of node that it makes.
    pub const fn kind(self) -> NodeKind {
        match self {
            Self::File => NodeKind::File,
            Self::Dir => NodeKind::Dir,
            Self::Link(_) => NodeKind::Link,
            Self::Char(..) => NodeKind::Char,
            Self::Block(..) => NodeKind::Block,
            Self::Fifo => NodeKind::Fifo,
            Self::Socket => NodeKind::Socket,
        }
    }
}

/// A node to be made. All its times are the time of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct New<'a> {
    /// What it is.
    pub kind: NewKind<'a>,
    /// Permission bits: the lower twelve. A symbolic link always has 0o777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What changes about a node; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Permission bits: the lower twelve.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the content.
    pub mtime: Option<Time>,
    /// `chattr` flags that are settable: all of [`Flags`] but VERITY and ENCRYPT, which stay as they are.
    pub flags: Option<Flags>,
    /// Project id for quotas.
    pub project: Option<u32>,
}

bitflags::bitflags! {
    /// What a filesystem records about nodes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Keeps: u32 {
        /// Owners and groups.
        const OWNERS = 1;
        /// All twelve permission bits; without it, whether the owner may write.
        const MODES = 2;
        /// Several entries for one file.
        const HARD_LINKS = 4;
        /// Symbolic links.
        const SYMLINKS = 8;
        /// Devices, pipes and sockets.
        const SPECIAL = 0x10;
        /// Extended attributes, and access control lists among them.
        const XATTRS = 0x20;
        /// `chattr` flags and project ids.
        const FLAGS = 0x40;
        /// Holes in files.
        const HOLES = 0x80;
    }
}

/// For a filesystem without something, which nobody should have asked for.
fn not_kept(what: &'static str) -> Result<()> {
    Err(Common::Unsupported { what, by: "this filesystem".into() }.into())
}

/// A filesystem that can be changed. Nothing lands before the transaction under it commits.
///
/// Requests arrive checked; [`Writer`](crate::edit::Writer) is the only caller. Nodes exist and are of the kind that
/// the operation needs, new names are free and [allowed](Self::check_name), old ones are there. What a filesystem
/// does not [keep](Self::keeps) is not asked of it.
///
/// An operation that fails for want of space, inodes or room in a structure ([`Kind::NoSpace`]) or because the
/// filesystem cannot hold what is asked ([`Kind::Unsupported`], [`Kind::Invalid`]) has changed nothing, and others
/// may follow. After any other error each operation fails, and so does `close`.
pub trait FilesystemMut: Filesystem {
    /// What it records about nodes.
    fn keeps(&self) -> Keeps {
        Keeps::all()
    }

    /// Whether a new entry may have this name.
    fn check_name(&self, name: &Name) -> Result<()>;

    /// The directory that holds the directory `dir`; the root's is the root.
    fn parent(&self, dir: NodeId) -> Result<NodeId>;

    /// Makes a node and the entry `name` of `dir` for it. The directory's times of content and node become `now`
    /// here and wherever entries change.
    fn create(&mut self, dir: NodeId, name: &Name, new: &New<'_>, now: Time) -> Result<NodeId>;

    /// Writes bytes to a file, which grows if they reach past its end. Calls come in order and in pieces of 64 KiB
    /// and more where a file is written from front to end. Blocks that others share are left to them. The times of
    /// content and node become `now`.
    fn write(&mut self, file: NodeId, at: u64, data: &[u8], now: Time) -> Result<()>;

    /// Gives a file another size: cut off, or with a hole at its end.
    fn truncate(&mut self, file: NodeId, size: u64, now: Time) -> Result<()>;

    /// Makes a stretch of a file, inside its size, read as zeroes; whole blocks of it become a hole.
    fn punch(&mut self, file: NodeId, span: Span, now: Time) -> Result<()>;

    /// Makes the entry `name` of `dir` for a node that has others; not for a directory.
    fn link(&mut self, node: NodeId, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        let _ = (node, dir, name, now);
        not_kept("hard links")
    }

    /// Removes the entry `name` of `dir`, and its node if that was the last one. A directory is empty.
    fn unlink(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<()>;

    /// Moves an entry. What `to` names is replaced, and its node freed if that was the last entry; a directory that
    /// is replaced is empty, and only a directory replaces one. `from` and `to` name different nodes, or, where case
    /// does not matter, one node by names that differ in it. No directory moves below itself.
    fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), now: Time) -> Result<()>;

    /// Exchanges the nodes that two entries name. Neither is a directory above the other.
    fn exchange(&mut self, one: (NodeId, &Name), other: (NodeId, &Name), now: Time) -> Result<()>;

    /// Changes attributes of a node; its own time becomes `now`.
    fn set_attributes(&mut self, node: NodeId, change: &Change, now: Time) -> Result<()>;

    /// Sets, or with `None` removes, an extended attribute, under the name and with the value that the kernel shows
    /// ([`Filesystem::xattrs`]). The value of an access control list was checked. Removing what is not there changes
    /// nothing.
    fn set_xattr(&mut self, node: NodeId, name: &[u8], value: Option<&[u8]>, now: Time) -> Result<()> {
        let _ = (node, name, value, now);
        not_kept("extended attributes")
    }

    /// Replaces all of a file's content. Owner, mode, extended attributes, flags and birth stay; the times of
    /// content and node become `now`. Blocks that others share are left to them.
    fn replace(&mut self, file: NodeId, content: Content<'_>, now: Time) -> Result<()>;

    /// Gives the entry `name` of `dir` a node of its own if it shares its node with other entries: an empty
    /// file with the same owner, mode, extended attributes, flags. Returns the node that `name` names now.
    fn separate(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<NodeId>;

    /// Gives the filesystem another label, or with an empty one none. What cannot be one has changed nothing.
    fn set_label(&mut self, label: &str, now: Time) -> Result<()>;

    /// Makes the filesystem as large as it can be in the first `size` bytes of its volume; never smaller.
    fn grow(&mut self, size: u64) -> Result<()> {
        let _ = size;
        not_kept("growing")
    }

    /// Whether it can be made smaller.
    fn shrinks(&self) -> bool {
        false
    }

    /// Makes the filesystem as large as it can be in the first `size` bytes of its volume, which are fewer than it
    /// has: what lies behind moves. Refused, with nothing changed, if that is not enough for what is in it.
    fn shrink(&mut self, size: u64) -> Result<()> {
        let _ = size;
        not_kept("shrinking")
    }

    /// Gives the filesystem another identifier, in all places that it stands in.
    fn set_uuid(&mut self, new: &NewUuid) -> Result<()>;

    /// Writes back what is cached. A writer that was dropped instead must not be committed.
    fn close(self: Box<Self>) -> Result<()>;
}

/// One kind of filesystem.
pub trait Driver: Sync {
    /// The name that `blkid` prints: `xfs`, `ext4`, `vfat`.
    fn name(&self) -> &'static str;
    /// Its kinds, as the field calls them, and whether files in them are written.
    fn kinds(&self) -> &'static [(&'static str, bool)];
    /// Looks at the first 68 KiB of a volume; opens nothing, cannot fail.
    fn probe(&self, head: &Head<'_>) -> Guess;
    /// Opens it for reading. An unclean journal or log is replayed in memory.
    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>>;
    /// Opens it for writing, on a volume that stages its writes. An unclean journal or log is replayed first.
    fn open_mut(&self, volume: Disk) -> Result<Box<dyn FilesystemMut>> {
        let _ = volume;
        Err(Common::Unsupported { what: "writing", by: self.name().into() }.into())
    }
    /// Where the sector begins by which programs recognise it, in bytes.
    fn gate(&self) -> u64 {
        0
    }
    /// How it lands an edit by a journal of its own, which others replay.
    fn journal(&self) -> Option<Box<dyn Journal>> {
        None
    }
    /// Goes through all metadata and reports what contradicts itself; an unclean journal or log is replayed first.
    ///
    /// With `report.repair` the volume stages its writes, and what is safe to mend is mended: space that nothing
    /// refers to, counts, summaries. Whatever would have to be guessed stays as it is. Damage is a finding; an error
    /// means that the volume cannot be read or is no filesystem of this driver.
    fn check(&self, volume: Disk, report: &mut Report) -> Result<()> {
        let _ = (volume, report);
        Err(Common::Unsupported { what: "checking", by: self.name().into() }.into())
    }
}
