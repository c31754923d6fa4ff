//! The mounted filesystem, operation by operation, as the kernel asks for them.
//!
//! Nodes have their numbers as names, so nothing is remembered of nodes that the kernel has looked at. A file that
//! loses its last name while it is open moves to a hidden name in the root, and goes when nobody has it open any more.
//! With `--live` such a name may land; it stays if the program is killed.
//!
//! * [`names`]: what has which name; [`dirs`]: directories; [`xattrs`]: extended attributes; [`labels`]: SELinux

mod dirs;
pub(super) mod labels;
mod names;
mod xattrs;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use fuser::{Errno, FileAttr, Generation, INodeNo, ReplyEmpty};
use racker_formats::block::Span;
use racker_formats::error::{Error, Kind};
use racker_fs::edit::{EditFault, Writer};
use racker_fs::filesystem::{
    Change, DirEntry, ExtentKind, Filesystem, FsFacts, Keeps, Name, New, NewKind, NodeId, NodeKind, Stat,
    Time,
};

use self::labels::Labelling;
use super::meaning::{Answer, Numbers, Owner, attributes, errno};
use crate::files::editing::now;

/// `fallocate`: the size stays.
const KEEP_SIZE: i32 = 1;
/// `fallocate`: a hole.
const PUNCH_HOLE: i32 = 2;
/// `fallocate`: zeroes.
const ZERO_RANGE: i32 = 0x10;
/// `lseek`: the next byte that is stored.
const SEEK_DATA: i32 = 3;
/// `lseek`: the next hole.
const SEEK_HOLE: i32 = 4;
/// The access control list that new nodes of a directory get.
const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";
/// What new nodes of a directory take its group by.
const SET_GID: u32 = 0o2000;

/// A directory that is being read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// Its entries when that began.
    pub(super) entries: Arc<Vec<DirEntry>>,
    /// Names may have lost their nodes since.
    pub(super) is_old: bool,
    removals: u64,
}

/// What the mount remembers, from one transaction to the next.
#[derive(Debug)]
pub(super) struct Memory {
    owner: Owner,
    /// The extended attribute of the root that tells where the mount is spoken to, and its value.
    pub(super) told: Option<(Vec<u8>, Vec<u8>)>,
    labelling: Option<Labelling>,
    /// How often each file is open.
    open: BTreeMap<NodeId, u64>,
    /// Files without a name of their own.
    hidden: BTreeMap<NodeId, Name>,
    /// Directories that are being read.
    dirs: BTreeMap<u64, Reading>,
    next_dir: u64,
    /// Counts up whenever a name may have lost its node.
    removals: u64,
    /// Something changed since the last landing.
    pub(super) changed: bool,
    /// Changes have to land before these are answered.
    pub(super) waiting: Vec<ReplyEmpty>,
}

impl Memory {
    /// Of nothing.
    pub(super) fn empty() -> Self {
        Self::new(Owner { shown: None, makers: false }, None, None)
    }

    pub(super) fn new(owner: Owner, told: Option<(Vec<u8>, Vec<u8>)>, labelling: Option<Labelling>) -> Self {
        Self {
            owner,
            told,
            labelling,
            open: BTreeMap::new(),
            hidden: BTreeMap::new(),
            dirs: BTreeMap::new(),
            next_dir: 1,
            removals: 0,
            changed: false,
            waiting: Vec::new(),
        }
    }
}

/// The filesystem, and who writes to it if anybody may.
pub(super) struct Tree<'t> {
    fs: Arc<dyn Filesystem>,
    numbers: Numbers,
    writer: Option<Writer<'t>>,
    pub(super) memory: Memory,
    /// `fsync` waits until all is on stable storage.
    live: bool,
}

/// A new node as the kernel asks for it.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) kind: NewKind<'a>,
    pub(super) mode: u32,
    pub(super) umask: u32,
    /// Who asks: user and group.
    pub(super) by: (u32, u32),
}

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Set {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<Time>,
    pub(super) mtime: Option<Time>,
}

/// A node that is told to the kernel.
pub(super) type Told = (FileAttr, Generation);

impl<'t> Tree<'t> {
    /// A filesystem that is only read.
    pub(super) fn reading(fs: Arc<dyn Filesystem>, memory: Memory) -> Self {
        Self { numbers: Numbers::new(fs.root()), fs, writer: None, memory, live: false }
    }

    /// One that is changed.
    pub(super) fn writing(writer: Writer<'t>, memory: Memory, live: bool) -> Self {
        let fs = Arc::clone(writer.filesystem());
        Self { numbers: Numbers::new(fs.root()), fs, writer: Some(writer), memory, live }
    }

    /// The writer, and what is remembered.
    pub(super) fn into_parts(self) -> (Option<Writer<'t>>, Memory) {
        (self.writer, self.memory)
    }

    /// The numbers of its nodes.
    pub(super) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// Whether `fsync` has to wait for a landing.
    pub(super) fn must_land(&self) -> bool {
        self.live && self.memory.changed
    }

    /// Changes something.
    fn change<T>(
        &mut self,
        work: impl FnOnce(&mut Writer<'t>, Time) -> racker_formats::Result<T>,
    ) -> Answer<T> {
        let writer = self.writer.as_mut().ok_or(Errno::EROFS)?;
        self.memory.changed = true;
        work(writer, now()).map_err(said)
    }

    fn stat(&self, node: NodeId) -> Answer<Stat> {
        let mut stat = self.fs.stat(node).map_err(said)?;
        if self.memory.hidden.contains_key(&node) {
            stat.links = stat.links.saturating_sub(1);
        }
        Ok(stat)
    }

    fn find(&self, dir: NodeId, name: &Name) -> Answer<NodeId> {
        if dir == self.fs.root() && self.memory.hidden.values().any(|hidden| hidden == name) {
            return Err(Errno::ENOENT);
        }
        self.fs.lookup(dir, name).map_err(said)?.ok_or(Errno::ENOENT)
    }

    fn tell(&self, node: NodeId) -> Answer<Told> {
        let stat = self.stat(node)?;
        let attributes = attributes(self.numbers.number(node), &stat, self.memory.owner);
        Ok((attributes, Generation(u64::from(stat.generation))))
    }

    pub(super) fn lookup(&self, dir: INodeNo, name: &Name) -> Answer<Told> {
        self.tell(self.find(self.numbers.node(dir), name)?)
    }

    /// A node that the kernel knows. It was whole when the kernel was told of it: if it is not any more, it was removed.
    pub(super) fn lookup_self(&self, node: INodeNo) -> Answer<Told> {
        let node = self.numbers.node(node);
        match self.fs.stat(node) {
            Err(e) if e.kind() == Kind::Corrupt => Err(Errno::ESTALE),
            _ => self.tell(node),
        }
    }

    pub(super) fn attributes(&self, node: INodeNo) -> Answer<FileAttr> {
        Ok(self.lookup_self(node)?.0)
    }

    pub(super) fn set(&mut self, number: INodeNo, set: &Set) -> Answer<FileAttr> {
        let node = self.numbers.node(number);
        if let Some(size) = set.size {
            self.change(|w, now| w.truncate(node, size, now))?;
        }
        let stat = self.fs.stat(node).map_err(said)?;
        let (mut uid, mut gid) = (set.uid, set.gid);
        if let Some(me) = self.memory.owner.shown {
            // Files keep their owners, so nothing but what is shown can be asked for.
            if uid.is_some_and(|uid| uid != me.0) || gid.is_some_and(|gid| gid != me.1) {
                return Err(Errno::EPERM);
            }
            (uid, gid) = (None, None);
        }
        // What stays as it is may be asked of every filesystem.
        let mut change = Change {
            mode: set.mode.map(|mode| mode & 0o7777).filter(|mode| *mode != stat.mode),
            uid: uid.filter(|uid| *uid != stat.uid),
            gid: gid.filter(|gid| *gid != stat.gid),
            atime: set.atime,
            mtime: set.mtime,
            ..Change::default()
        };
        if stat.kind == NodeKind::Link {
            change.mode = None;
        }
        if change != Change::default() {
            self.change(|w, now| w.set_attributes(node, &change, now)).map_err(not_kept)?;
        }
        self.attributes(number)
    }

    pub(super) fn read_link(&self, node: INodeNo) -> Answer<Vec<u8>> {
        let node = self.numbers.node(node);
        if self.stat(node)?.kind != NodeKind::Link {
            return Err(Errno::EINVAL);
        }
        self.fs.read_link(node).map_err(said)
    }

    pub(super) fn make(&mut self, dir: INodeNo, name: &Name, wanted: &Wanted<'_>) -> Answer<Told> {
        let dir = self.numbers.node(dir);
        let above = self.fs.stat(dir).map_err(said)?;
        let keeps = self.writer.as_ref().ok_or(Errno::EROFS)?.keeps();
        let (uid, gid) = if self.memory.owner.makers { wanted.by } else { (above.uid, above.gid) };
        let takes_group = keeps.contains(Keeps::OWNERS) && above.mode & SET_GID != 0;
        let is_dir = wanted.kind == NewKind::Dir;
        let list = if keeps.contains(Keeps::XATTRS) {
            self.writer.as_ref().map(|w| w.xattr(dir, DEFAULT_LIST)).transpose().map_err(said)?.flatten()
        } else {
            None
        };
        let mut mode = wanted.mode & 0o7777;
        if list.is_none() {
            mode &= !wanted.umask;
        }
        if takes_group && is_dir {
            mode |= SET_GID;
        }
        let gid = if takes_group { above.gid } else { gid };
        let new = New { kind: wanted.kind, mode, uid, gid };
        let labelled = self.memory.labelling.as_mut().zip(self.writer.as_ref());
        let label = labelled.and_then(|(l, writer)| l.label(writer, dir, name, new.kind.kind()));
        let node = self
            .change(|w, now| {
                let node = w.create(dir, name, &new, now)?;
                w.inherit_list(dir, node, now)?;
                if let Some(label) = label {
                    w.give_label(node, &label, now)?;
                }
                Ok(node)
            })
            .map_err(not_kept)?;
        self.tell(node)
    }

    pub(super) fn read(&self, file: INodeNo, at: u64, size: u32) -> Answer<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::EINVAL)?];
        let mut have = 0usize;
        while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
            let from = u64::try_from(have).ok().and_then(|have| at.checked_add(have)).ok_or(Errno::EINVAL)?;
            match self.fs.read(self.numbers.node(file), from, rest).map_err(said)? {
                0 => break,
                n => have = have.saturating_add(n),
            }
        }
        bytes.truncate(have);
        Ok(bytes)
    }

    pub(super) fn write(&mut self, file: INodeNo, at: u64, data: &[u8]) -> Answer<u32> {
        let node = self.numbers.node(file);
        self.change(|w, now| w.write(node, at, data, now))?;
        u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
    }

    pub(super) fn allocate(&mut self, file: INodeNo, at: u64, len: u64, mode: i32) -> Answer<()> {
        let node = self.numbers.node(file);
        let span = Span::new(at, len).map_err(|_| Errno::EFBIG)?;
        let punches = mode == PUNCH_HOLE | KEEP_SIZE || mode & !KEEP_SIZE == ZERO_RANGE;
        if !punches {
            return Err(Errno::EOPNOTSUPP);
        }
        self.change(|w, now| w.punch(node, span, now))?;
        if mode == ZERO_RANGE && self.stat(node)?.size < span.end() {
            self.change(|w, now| w.truncate(node, span.end(), now))?;
        }
        Ok(())
    }

    pub(super) fn seek(&self, file: INodeNo, from: i64, whence: i32) -> Answer<i64> {
        let node = self.numbers.node(file);
        let size = self.stat(node)?.size;
        let from = u64::try_from(from).ok().filter(|from| *from < size).ok_or(Errno::ENXIO)?;
        let want_data = match whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let mut found = None;
        self.fs
            .extents(node, &mut |extent| {
                let is_data = matches!(extent.kind, ExtentKind::Data(_) | ExtentKind::Inline);
                if is_data == want_data && extent.at.saturating_add(extent.len) > from {
                    found = Some(extent.at.max(from));
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        // Behind the end of every file there is a hole.
        let found = found.or_else(|| (!want_data).then_some(size)).ok_or(Errno::ENXIO)?;
        i64::try_from(found.min(size)).map_err(|_| Errno::EOVERFLOW)
    }

    pub(super) fn facts(&self) -> Answer<FsFacts> {
        self.fs.facts().map_err(said)
    }
}

/// The number of an error; what should not be is told on standard error.
fn said(e: Error) -> Errno {
    if matches!(e.kind(), Kind::Corrupt | Kind::Io) && !matches!(e.fault(), Some(EditFault::Closed)) {
        eprintln!("note: {}", crate::clean::clean(&e.to_string()));
    }
    errno(&e)
}

/// What a filesystem has no place for is, to those who ask the kernel for it, not permitted.
fn not_kept(e: Errno) -> Errno {
    if e == Errno::EOPNOTSUPP { Errno::EPERM } else { e }
}
