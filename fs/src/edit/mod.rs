//! A filesystem that is being edited: it lives no longer than its transaction, and must be closed.
//!
//! * [`Writer`]: the only caller of [`FilesystemMut`], and the only place of the rules that hold for every filesystem
//! * [`session`]: all filesystems of a disk in one edit
//! * [`live`]: the filesystem for all who look while it changes
//! * [`acl`]: access control lists, which change with a node's mode and change it

mod acl;
mod fault;
mod live;
mod session;

use std::ops::{ControlFlow, Deref};
use std::sync::{Arc, RwLock};

use racker_formats::block::Span;
use racker_formats::error::{Common, Error, Kind, Result};
use racker_formats::transaction::{EditDisk, OpenWriter};
use racker_formats::wire::len64;

pub use self::fault::EditFault;
use self::live::Core;
pub(crate) use self::live::Live;
pub use self::session::Session;
use crate::filesystem::{
    Change, Content, Driver, Filesystem, FilesystemMut, Flags, Keeps, LINK_MAX, Name, New, NewKind, NewUuid,
    NodeId, NodeKind, Stat, Time,
};

/// Directories between one and the root: as many as a path can name.
const DEPTH_MAX: usize = 2048;
/// Bytes of the longest name of an extended attribute, with its prefix.
const XATTR_NAME_MAX: usize = 255;
/// Bytes of the largest value of an extended attribute.
const XATTR_VALUE_MAX: usize = 64 << 10;
/// Permission bits.
const MODE: u32 = 0o7777;

/// A filesystem open for writing. One that is dropped without [`close`](Self::close) spoils the transaction.
#[derive(Debug)]
pub struct Writer<'t> {
    core: Arc<Core>,
    /// The same, for reading.
    fs: Arc<dyn Filesystem>,
    keeps: Keeps,
    open: OpenWriter,
    disk: EditDisk<'t>,
    /// An operation failed half-way: nothing of it may land.
    failed: bool,
}

impl<'t> Writer<'t> {
    /// Opens `volume` for writing.
    pub fn open(driver: &dyn Driver, volume: &EditDisk<'t>) -> Result<Self> {
        let open = volume.writer();
        let fs = driver.open_mut(volume.disk().clone())?;
        volume.own(driver.gate(), driver.journal())?;
        let keeps = fs.keeps();
        let core = Arc::new(RwLock::new(Some(fs)));
        let fs: Arc<dyn Filesystem> = Arc::new(Live::of(Arc::clone(&core)));
        Ok(Self { core, fs, keeps, open, disk: volume.clone(), failed: false })
    }

    /// The filesystem as it is now, for reading.
    pub fn filesystem(&self) -> &Arc<dyn Filesystem> {
        &self.fs
    }

    /// Lets those who hold `live` see what changes here.
    pub(crate) fn show(&self, live: &Live) -> Result<()> {
        live.follow(Arc::clone(&self.core))
    }

    /// Writes everything back to the transaction.
    pub fn close(self) -> Result<()> {
        if self.failed {
            return Err(EditFault::Failed.into());
        }
        let fs = self.core.write().map_err(|_| Common::Poisoned)?.take();
        fs.ok_or(EditFault::Closed)?.close()?;
        self.disk.disk().flush()?;
        self.open.close();
        Ok(())
    }

    /// What the filesystem records about nodes.
    pub fn keeps(&self) -> Keeps {
        self.keeps
    }

    /// Makes a node and the entry `name` of `dir` for it.
    pub fn create(&mut self, dir: NodeId, name: &Name, new: &New<'_>, now: Time) -> Result<NodeId> {
        self.room_for(dir, name)?;
        match new.kind {
            NewKind::File | NewKind::Dir => {}
            NewKind::Link(target) => {
                self.need(Keeps::SYMLINKS, "symbolic links")?;
                if target.is_empty() || target.len() > LINK_MAX || target.contains(&0) {
                    return Err(EditFault::Target(target.len()).into());
                }
            }
            NewKind::Char(..) | NewKind::Block(..) | NewKind::Fifo | NewKind::Socket => {
                self.need(Keeps::SPECIAL, "devices, pipes and sockets")?;
            }
        }
        let new = New { mode: new.mode & MODE, ..*new };
        self.run(|fs| fs.create(dir, name, &new, now))
    }

    /// Writes bytes to a file, which grows if they reach past its end.
    pub fn write(&mut self, file: NodeId, at: u64, data: &[u8], now: Time) -> Result<()> {
        self.content_of(file)?;
        Span::new(at, len64(data.len()))?;
        if data.is_empty() {
            return Ok(());
        }
        self.run(|fs| fs.write(file, at, data, now))
    }

    /// Gives a file another size: cut off, or with a hole at its end.
    pub fn truncate(&mut self, file: NodeId, size: u64, now: Time) -> Result<()> {
        self.content_of(file)?;
        self.run(|fs| fs.truncate(file, size, now))
    }

    /// Makes a stretch of a file read as zeroes, without blocks where it covers whole ones.
    pub fn punch(&mut self, file: NodeId, span: Span, now: Time) -> Result<()> {
        let stat = self.content_of(file)?;
        let span = span.truncate(stat.size.saturating_sub(span.start()));
        if span.is_empty() {
            return Ok(());
        }
        self.run(|fs| fs.punch(file, span, now))
    }

    /// Replaces all of a file's content; everything else about it but its times stays.
    pub fn replace(&mut self, file: NodeId, content: Content<'_>, now: Time) -> Result<()> {
        self.content_of(file)?;
        self.run(|fs| fs.replace(file, content, now))
    }

    /// Gives an entry a node of its own: an empty file like the one that it shares with other entries.
    pub fn separate(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<NodeId> {
        let node = self.entry(dir, name)?;
        if self.content_of(node)?.links <= 1 {
            return Ok(node);
        }
        self.run(|fs| fs.separate(dir, name, now))
    }

    /// Makes one more entry for a node.
    pub fn link(&mut self, node: NodeId, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        self.room_for(dir, name)?;
        self.need(Keeps::HARD_LINKS, "hard links")?;
        let stat = self.fs.stat(node)?;
        if stat.kind == NodeKind::Dir {
            return Err(EditFault::IsDir.into());
        }
        self.run(|fs| fs.link(node, dir, name, now))
    }

    /// Removes an entry; a directory must be empty.
    pub fn unlink(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        let node = self.entry(dir, name)?;
        self.may_go(node)?;
        self.run(|fs| fs.unlink(dir, name, now))
    }

    /// Moves an entry over what `to` names, if that is anything.
    pub fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), now: Time) -> Result<()> {
        let node = self.entry(from.0, from.1)?;
        self.directory(to.0)?;
        self.ask(|fs| fs.check_name(to.1))?;
        let moved = self.fs.stat(node)?;
        if let Some(old) = self.fs.lookup(to.0, to.1)? {
            if old == node {
                // Two hard links of one file stay both; the same entry by another case gets that name.
                if from == to || self.stands(to.0, to.1)? {
                    return Ok(());
                }
            } else {
                match (moved.kind, self.fs.stat(old)?.kind) {
                    (NodeKind::Dir, NodeKind::Dir) => self.may_go(old)?,
                    (NodeKind::Dir, _) => return Err(EditFault::NotDir.into()),
                    (_, NodeKind::Dir) => return Err(EditFault::IsDir.into()),
                    _ => {}
                }
            }
        }
        if moved.kind == NodeKind::Dir && from.0 != to.0 && self.is_above(node, to.0)? {
            return Err(EditFault::BelowItself.into());
        }
        self.run(|fs| fs.rename(from, to, now))
    }

    /// Exchanges what two entries name.
    pub fn exchange(&mut self, one: (NodeId, &Name), other: (NodeId, &Name), now: Time) -> Result<()> {
        let (a, b) = (self.entry(one.0, one.1)?, self.entry(other.0, other.1)?);
        if a == b {
            return Ok(());
        }
        for (node, dir) in [(a, other.0), (b, one.0)] {
            if self.fs.stat(node)?.kind == NodeKind::Dir && self.is_above(node, dir)? {
                return Err(EditFault::BelowItself.into());
            }
        }
        self.run(|fs| fs.exchange(one, other, now))
    }

    /// Changes attributes of a node. An access control list follows the mode, as `chmod` has it.
    pub fn set_attributes(&mut self, node: NodeId, change: &Change, now: Time) -> Result<()> {
        let stat = self.fs.stat(node)?;
        if change.uid.or(change.gid).is_some() {
            self.need(Keeps::OWNERS, "owners")?;
        }
        if change.flags.is_some() || change.project.is_some() {
            self.need(Keeps::FLAGS, "flags and project ids")?;
        }
        let fixed = Flags::VERITY | Flags::ENCRYPT;
        let change = Change {
            mode: change.mode.map(|mode| mode & MODE),
            flags: change.flags.map(|flags| flags.difference(fixed) | stat.flags.intersection(fixed)),
            ..*change
        };
        let list = match change.mode {
            Some(mode) if self.keeps.contains(Keeps::XATTRS) && stat.kind != NodeKind::Link => {
                let list = self.xattr(node, acl::ACCESS)?;
                list.map(|list| acl::with_mode(&list, mode)).transpose()?
            }
            _ => None,
        };
        self.run(|fs| fs.set_attributes(node, &change, now))?;
        match list {
            Some(list) => self.run(|fs| fs.set_xattr(node, acl::ACCESS, Some(&list), now)),
            None => Ok(()),
        }
    }

    /// Sets or removes an extended attribute. The mode follows an access control list, as `setfacl` has it; one that
    /// says no more than the mode is not stored.
    pub fn set_xattr(&mut self, node: NodeId, name: &[u8], value: Option<&[u8]>, now: Time) -> Result<()> {
        self.need(Keeps::XATTRS, "extended attributes")?;
        let stat = self.fs.stat(node)?;
        check_xattr(&stat, name, value)?;
        let mut value = value;
        if name == acl::ACCESS
            && let Some(list) = value
        {
            let (mode, more) = acl::mode_of(list, stat.mode)?;
            if mode != stat.mode {
                let change = Change { mode: Some(mode), ..Change::default() };
                self.run(|fs| fs.set_attributes(node, &change, now))?;
            }
            value = value.filter(|_| more);
        }
        self.run(|fs| fs.set_xattr(node, name, value, now))
    }

    /// Gives a new node of `dir` what the default list of the directory says, as the kernel does.
    pub fn inherit_list(&mut self, dir: NodeId, node: NodeId, now: Time) -> Result<()> {
        if !self.keeps.contains(Keeps::XATTRS) {
            return Ok(());
        }
        let stat = self.fs.stat(node)?;
        if stat.kind == NodeKind::Link {
            return Ok(());
        }
        let Some(default) = self.xattr(dir, acl::DEFAULT)? else { return Ok(()) };
        if stat.kind == NodeKind::Dir {
            self.set_xattr(node, acl::DEFAULT, Some(&default), now)?;
        }
        self.set_xattr(node, acl::ACCESS, Some(&acl::inherited(&default, stat.mode)?), now)
    }

    /// Gives a new node a label of SELinux, where the filesystem has room for one.
    pub fn give_label(&mut self, node: NodeId, label: &[u8], now: Time) -> Result<()> {
        if !self.keeps.contains(Keeps::XATTRS) {
            return Ok(());
        }
        match self.set_xattr(node, crate::selinux::ATTRIBUTE, Some(label), now) {
            Err(e) if e.kind() == Kind::NoSpace => Ok(()),
            done => done,
        }
    }

    /// Gives the filesystem another label; an empty one is none.
    pub fn set_label(&mut self, label: &str, now: Time) -> Result<()> {
        self.run(|fs| fs.set_label(label, now))
    }

    /// Makes the filesystem as large as it can be in the first `size` bytes of its volume, at most all of it.
    pub fn resize(&mut self, size: u64) -> Result<()> {
        let have = self.disk.disk().size();
        if size > have {
            return Err(EditFault::Room { size, have }.into());
        }
        let now = self.fs.facts()?.size;
        if size >= now {
            return self.run(|fs| fs.grow(size));
        }
        if !self.ask(|fs| Ok(fs.shrinks()))? {
            return Err(EditFault::Smaller { size, now }.into());
        }
        self.run(|fs| fs.shrink(size))
    }

    /// Gives the filesystem another identifier.
    pub fn set_uuid(&mut self, new: &NewUuid) -> Result<()> {
        self.run(|fs| fs.set_uuid(new))
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = None;
        self.fs.xattrs(node, &mut |(key, found)| {
            if key == name {
                value = Some(found.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(value)
    }

    /// Runs an operation. What failed half-way is remembered.
    fn run<T>(&mut self, operation: impl FnOnce(&mut dyn FilesystemMut) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(EditFault::Failed.into());
        }
        let mut core = self.core.write().map_err(|_| Common::Poisoned)?;
        let done = operation(core.as_mut().ok_or(EditFault::Closed)?.as_mut());
        drop(core);
        if let Err(e) = &done {
            self.failed = !changed_nothing(e);
        }
        done
    }

    /// Asks what only a filesystem that can be changed answers.
    fn ask<T>(&self, question: impl FnOnce(&dyn FilesystemMut) -> Result<T>) -> Result<T> {
        let core = self.core.read().map_err(|_| Common::Poisoned)?;
        question(core.as_deref().ok_or(EditFault::Closed)?)
    }

    fn need(&self, what: Keeps, name: &'static str) -> Result<()> {
        if self.keeps.contains(what) {
            return Ok(());
        }
        Err(EditFault::NotKept(name).into())
    }

    /// The attributes of a directory.
    fn directory(&self, dir: NodeId) -> Result<Stat> {
        let stat = self.fs.stat(dir)?;
        if stat.kind != NodeKind::Dir {
            return Err(EditFault::NotDir.into());
        }
        if stat.flags.contains(Flags::ENCRYPT) {
            return Err(EditFault::Encrypted.into());
        }
        Ok(stat)
    }

    /// Whether `dir` can have a new entry `name`.
    fn room_for(&self, dir: NodeId, name: &Name) -> Result<()> {
        self.directory(dir)?;
        self.ask(|fs| fs.check_name(name))?;
        match self.fs.lookup(dir, name)? {
            Some(_) => Err(EditFault::Exists(name.clone()).into()),
            None => Ok(()),
        }
    }

    /// The node of an entry that is to change.
    fn entry(&self, dir: NodeId, name: &Name) -> Result<NodeId> {
        self.directory(dir)?;
        self.fs.lookup(dir, name)?.ok_or_else(|| EditFault::NotFound(name.clone()).into())
    }

    /// Whether a directory has an entry of exactly this name.
    fn stands(&self, dir: NodeId, name: &Name) -> Result<bool> {
        let mut found = false;
        self.fs.read_dir(dir, &mut |entry| {
            found |= entry.name == *name;
            Ok(if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// A file whose content may change.
    fn content_of(&self, file: NodeId) -> Result<Stat> {
        let stat = self.fs.stat(file)?;
        match stat.kind {
            NodeKind::File => {}
            NodeKind::Dir => return Err(EditFault::IsDir.into()),
            _ => return Err(EditFault::NotFile.into()),
        }
        if stat.flags.contains(Flags::ENCRYPT) {
            return Err(EditFault::Encrypted.into());
        }
        if stat.flags.contains(Flags::VERITY) {
            return Err(EditFault::Verity.into());
        }
        Ok(stat)
    }

    /// Whether a node can lose its entry: a directory must be empty.
    fn may_go(&self, node: NodeId) -> Result<()> {
        if self.fs.stat(node)?.kind != NodeKind::Dir {
            return Ok(());
        }
        let mut empty = true;
        self.fs.read_dir(node, &mut |_| {
            empty = false;
            Ok(ControlFlow::Break(()))
        })?;
        if empty { Ok(()) } else { Err(EditFault::NotEmpty.into()) }
    }

    /// The first of `tops` that is the directory `dir` or lies above it, and the names that lead from there to `dir`;
    /// none if it lies below none of them.
    pub fn path_below(&self, tops: &[NodeId], dir: NodeId) -> Result<Option<(NodeId, Vec<Name>)>> {
        let mut names = Vec::new();
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if tops.contains(&at) {
                names.reverse();
                return Ok(Some((at, names)));
            }
            let up = self.ask(|fs| fs.parent(at))?;
            if up == at {
                return Ok(None);
            }
            let mut found = None;
            self.fs.read_dir(up, &mut |entry| {
                if entry.node != at {
                    return Ok(ControlFlow::Continue(()));
                }
                found = Some(entry.name);
                Ok(ControlFlow::Break(()))
            })?;
            let Some(name) = found else { return Ok(None) };
            names.push(name);
            at = up;
        }
        Err(EditFault::Depth.into())
    }

    /// Whether `dir` is the directory `node` or lies below it.
    fn is_above(&self, node: NodeId, dir: NodeId) -> Result<bool> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == node {
                return Ok(true);
            }
            let up = self.ask(|fs| fs.parent(at))?;
            if up == at {
                return Ok(false);
            }
            at = up;
        }
        Err(EditFault::Depth.into())
    }
}

/// Whether an operation that ended so has left everything as it was.
fn changed_nothing(e: &Error) -> bool {
    matches!(e.kind(), Kind::NoSpace | Kind::Unsupported | Kind::Invalid)
}

fn check_xattr(stat: &Stat, name: &[u8], value: Option<&[u8]>) -> Result<()> {
    let is_list = name == acl::ACCESS || name == acl::DEFAULT;
    let prefixed = [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|prefix| name.strip_prefix(*prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains(&0)));
    if !(is_list || prefixed) || name.len() > XATTR_NAME_MAX {
        return Err(EditFault::XattrName(String::from_utf8_lossy(name).into_owned()).into());
    }
    if name.starts_with(b"user.") && !matches!(stat.kind, NodeKind::File | NodeKind::Dir) {
        return Err(EditFault::UserXattr.into());
    }
    let Some(value) = value else { return Ok(()) };
    if value.len() > XATTR_VALUE_MAX {
        return Err(EditFault::XattrValue(value.len()).into());
    }
    if is_list {
        let no_place = stat.kind == NodeKind::Link || name == acl::DEFAULT && stat.kind != NodeKind::Dir;
        if no_place {
            return Err(EditFault::NoList.into());
        }
        acl::check(value)?;
    }
    Ok(())
}

impl Deref for Writer<'_> {
    type Target = dyn Filesystem;

    fn deref(&self) -> &Self::Target {
        self.fs.as_ref()
    }
}
