//! The mounted filesystem, operation by operation, as the kernel asks for them.
//!
//! Nodes have their numbers as names, so nothing is remembered of nodes that the kernel has looked at. A file that
//! loses its last name while it is open moves to a hidden name in the root, and goes when nobody has it open any more.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use fuser::{Errno, FileAttr, FileHandle, Generation, INodeNo, RenameFlags, ReplyEmpty};
use racker_formats::block::Span;
use racker_formats::error::{Error, Kind};
use racker_fs::edit::{EditFault, Writer};
use racker_fs::filesystem::{
    Change, DirEntry, ExtentKind, Filesystem, FsFacts, Keeps, Name, New, NewKind, NodeId, NodeKind, Stat,
    Time,
};

use super::meaning::{Answer, Numbers, Owner, attributes, errno};
use crate::files::editing::now;

/// `fallocate`: the size stays.
const KEEP_SIZE: i32 = 1;
/// `fallocate`: a hole.
const PUNCH_HOLE: i32 = 2;
/// `fallocate`: zeroes.
const ZERO_RANGE: i32 = 0x10;
/// `setxattr`: only a new one.
const XATTR_CREATE: i32 = 1;
/// `setxattr`: only one that is there.
const XATTR_REPLACE: i32 = 2;
/// `lseek`: the next byte that is stored.
const SEEK_DATA: i32 = 3;
/// `lseek`: the next hole.
const SEEK_HOLE: i32 = 4;
/// The access control list that new nodes of a directory get.
const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";
/// What new nodes of a directory take its group by.
const SET_GID: u32 = 0o2000;
/// How the names begin that files have which are open and have no other.
const HIDDEN: &str = ".racker-open-";

/// What the mount remembers, from one transaction to the next.
#[derive(Debug)]
pub(super) struct Memory {
    owner: Owner,
    /// The extended attribute of the root that tells where the mount is spoken to, and its value.
    pub(super) told: Option<(Vec<u8>, Vec<u8>)>,
    /// How often each file is open.
    open: BTreeMap<NodeId, u64>,
    /// Files without a name of their own.
    hidden: BTreeMap<NodeId, Name>,
    /// Directories that are being read: their entries when that began.
    dirs: BTreeMap<u64, Arc<Vec<DirEntry>>>,
    next_dir: u64,
    /// Something changed since the last landing.
    pub(super) changed: bool,
    /// Changes have to land before these are answered.
    pub(super) waiting: Vec<ReplyEmpty>,
}

impl Memory {
    /// Of nothing.
    pub(super) fn empty() -> Self {
        Self::new(Owner { shown: None, makers: false }, None)
    }

    pub(super) fn new(owner: Owner, told: Option<(Vec<u8>, Vec<u8>)>) -> Self {
        Self {
            owner,
            told,
            open: BTreeMap::new(),
            hidden: BTreeMap::new(),
            dirs: BTreeMap::new(),
            next_dir: 1,
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

    /// A node that the kernel knows.
    pub(super) fn lookup_self(&self, node: INodeNo) -> Answer<Told> {
        self.tell(self.numbers.node(node))
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
        let node = self
            .change(|w, now| {
                let node = w.create(dir, name, &new, now)?;
                w.inherit_list(dir, node, now)?;
                Ok(node)
            })
            .map_err(not_kept)?;
        self.tell(node)
    }

    pub(super) fn remove(&mut self, dir: INodeNo, name: &Name, want_dir: bool) -> Answer<()> {
        let dir = self.numbers.node(dir);
        let node = self.find(dir, name)?;
        let stat = self.stat(node)?;
        match (stat.kind == NodeKind::Dir, want_dir) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        if self.is_last_name(node, &stat) {
            return self.hide((dir, name), node).map(drop);
        }
        self.change(|w, now| w.unlink(dir, name, now))
    }

    /// Whether an open file has one name only.
    fn is_last_name(&self, node: NodeId, stat: &Stat) -> bool {
        stat.kind != NodeKind::Dir && stat.links <= 1 && self.memory.open.contains_key(&node)
    }

    /// Gives a file a name in the root that nobody sees.
    fn hide(&mut self, from: (NodeId, &Name), node: NodeId) -> Answer<Name> {
        let root = self.fs.root();
        let hidden = self.free_name(root, node)?;
        self.changing_no_time_of(root, from.0, |tree| {
            tree.change(|w, now| w.rename(from, (root, &hidden), now))
        })?;
        self.memory.hidden.insert(node, hidden.clone());
        Ok(hidden)
    }

    /// A name that nothing has in the root.
    fn free_name(&self, root: NodeId, node: NodeId) -> Answer<Name> {
        for again in 0..100u32 {
            let text = format!("{HIDDEN}{:x}-{again}", node.0);
            let name = Name::new(text.as_bytes()).map_err(said)?;
            if self.fs.lookup(root, &name).map_err(said)?.is_none() {
                return Ok(name);
            }
        }
        Err(Errno::EBUSY)
    }

    /// Does something to the root's entries that nobody is to see by its times, unless it is `seen` to change.
    fn changing_no_time_of(
        &mut self,
        root: NodeId,
        seen: NodeId,
        work: impl FnOnce(&mut Self) -> Answer<()>,
    ) -> Answer<()> {
        let before = self.fs.stat(root).map_err(said)?;
        work(self)?;
        if root == seen {
            return Ok(());
        }
        let change = Change { mtime: Some(before.mtime), ..Change::default() };
        self.change(|w, _| w.set_attributes(root, &change, before.ctime))
    }

    pub(super) fn rename(
        &mut self,
        from: (INodeNo, &Name),
        to: (INodeNo, &Name),
        flags: RenameFlags,
    ) -> Answer<()> {
        let from = (self.numbers.node(from.0), from.1);
        let to = (self.numbers.node(to.0), to.1);
        let node = self.find(from.0, from.1)?;
        let old = match self.find(to.0, to.1) {
            Ok(old) => Some(old),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        if flags == RenameFlags::RENAME_EXCHANGE {
            return self.change(|w, now| w.exchange(from, to, now));
        }
        let keep = flags == RenameFlags::RENAME_NOREPLACE;
        if !keep && !flags.is_empty() {
            return Err(Errno::EINVAL);
        }
        let Some(old) = old.filter(|old| *old != node) else {
            if keep && old.is_some() {
                return Err(Errno::EEXIST);
            }
            return self.change(|w, now| w.rename(from, to, now));
        };
        if keep {
            return Err(Errno::EEXIST);
        }
        let stat = self.stat(old)?;
        if !self.is_last_name(old, &stat) {
            return self.change(|w, now| w.rename(from, to, now));
        }
        if self.stat(node)?.kind == NodeKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        let hidden = self.hide(to, old)?;
        let renamed = self.change(|w, now| w.rename(from, to, now));
        if renamed.is_err() {
            let root = self.fs.root();
            self.change(|w, now| w.rename((root, &hidden), to, now))?;
            self.memory.hidden.remove(&old);
        }
        renamed
    }

    pub(super) fn link(&mut self, node: INodeNo, dir: INodeNo, name: &Name) -> Answer<Told> {
        let (node, dir) = (self.numbers.node(node), self.numbers.node(dir));
        self.change(|w, now| w.link(node, dir, name, now)).map_err(not_kept)?;
        self.tell(node)
    }

    /// A file is open once more.
    pub(super) fn open(&mut self, node: INodeNo) {
        let count = self.memory.open.entry(self.numbers.node(node)).or_default();
        *count = count.saturating_add(1);
    }

    /// A file is open once less.
    pub(super) fn release(&mut self, node: INodeNo) -> Answer<()> {
        let node = self.numbers.node(node);
        if let Some(count) = self.memory.open.get_mut(&node) {
            *count = count.saturating_sub(1);
            if *count > 0 {
                return Ok(());
            }
        }
        self.memory.open.remove(&node);
        match self.memory.hidden.remove(&node) {
            Some(name) => self.forget(&name),
            None => Ok(()),
        }
    }

    fn forget(&mut self, hidden: &Name) -> Answer<()> {
        let root = self.fs.root();
        self.changing_no_time_of(root, NodeId(u64::MAX), |tree| {
            tree.change(|w, now| w.unlink(root, hidden, now))
        })
    }

    /// Removes the files that have no name, at the end.
    pub(super) fn forget_hidden(&mut self) -> Answer<()> {
        while let Some((_, name)) = self.memory.hidden.pop_first() {
            self.forget(&name)?;
        }
        Ok(())
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

    /// Begins to read a directory.
    pub(super) fn open_dir(&mut self, dir: INodeNo) -> Answer<FileHandle> {
        let entries = self.entries(dir)?;
        let handle = self.memory.next_dir;
        self.memory.next_dir = handle.wrapping_add(1);
        self.memory.dirs.insert(handle, entries);
        Ok(FileHandle(handle))
    }

    fn entries(&self, dir: INodeNo) -> Answer<Arc<Vec<DirEntry>>> {
        let node = self.numbers.node(dir);
        let is_root = node == self.fs.root();
        let mut all = Vec::new();
        self.fs
            .read_dir(node, &mut |entry| {
                if !is_root || !self.memory.hidden.values().any(|hidden| *hidden == entry.name) {
                    all.push(entry);
                }
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        Ok(Arc::new(all))
    }

    /// The entries of a directory as they were when its reading began; read anew if it begins `anew`.
    pub(super) fn read_dir(
        &mut self,
        dir: INodeNo,
        handle: FileHandle,
        anew: bool,
    ) -> Answer<Arc<Vec<DirEntry>>> {
        if anew {
            let entries = self.entries(dir)?;
            self.memory.dirs.insert(handle.0, entries);
        }
        self.memory.dirs.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// The kind of an entry's node.
    pub(super) fn kind(&self, entry: &DirEntry) -> NodeKind {
        let kind = entry.kind.or_else(|| Some(self.fs.stat(entry.node).ok()?.kind));
        kind.unwrap_or(NodeKind::File)
    }

    /// A node of an entry as it is told to the kernel.
    pub(super) fn told(&self, entry: &DirEntry) -> Answer<Told> {
        self.tell(entry.node)
    }

    pub(super) fn close_dir(&mut self, handle: FileHandle) {
        self.memory.dirs.remove(&handle.0);
    }

    pub(super) fn facts(&self) -> Answer<FsFacts> {
        self.fs.facts().map_err(said)
    }

    pub(super) fn xattr(&self, node: INodeNo, name: &[u8]) -> Answer<Vec<u8>> {
        let node = self.numbers.node(node);
        if let Some((told, value)) = &self.memory.told
            && node == self.fs.root()
            && name == told
        {
            return Ok(value.clone());
        }
        let mut value = None;
        self.fs
            .xattrs(node, &mut |(key, found)| {
                if key == name {
                    value = Some(found.to_vec());
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        value.ok_or(Errno::ENODATA)
    }

    /// The names of all extended attributes, each with a zero byte behind it.
    pub(super) fn xattr_names(&self, node: INodeNo) -> Answer<Vec<u8>> {
        let mut names = Vec::new();
        self.fs
            .xattrs(self.numbers.node(node), &mut |(key, _)| {
                names.extend_from_slice(key);
                names.push(0);
                Ok(ControlFlow::Continue(()))
            })
            .map_err(said)?;
        Ok(names)
    }

    pub(super) fn set_xattr(
        &mut self,
        node: INodeNo,
        name: &[u8],
        value: Option<&[u8]>,
        flags: i32,
    ) -> Answer<()> {
        let there = match self.xattr(node, name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(e) => return Err(e),
        };
        match (there, value, flags) {
            (true, Some(_), XATTR_CREATE) => return Err(Errno::EEXIST),
            (false, Some(_), XATTR_REPLACE) | (false, None, _) => return Err(Errno::ENODATA),
            _ => {}
        }
        let node = self.numbers.node(node);
        if node == self.fs.root() && self.memory.told.as_ref().is_some_and(|(told, _)| told == name) {
            return Err(Errno::EPERM);
        }
        self.change(|w, now| w.set_xattr(node, name, value, now))
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
