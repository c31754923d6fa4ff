//! The filesystem as one that can be changed.

use racker_formats::block::{Disk, Span};
use racker_formats::error::Result;

use super::super::fault::Ext4Fault;
use super::super::volume::Ext4;
use super::Edit;
use crate::filesystem::{
    Change, Content, DirEntry, Extent, Filesystem, FilesystemMut, FsFacts, Name, New, NewUuid, NodeId, Stat,
    Time, Visit, VisitXattr,
};

/// Bytes of the longest name.
const NAME_MAX: usize = 255;

/// An open filesystem that can be changed.
#[derive(Debug)]
pub(in super::super) struct Writer {
    edit: Edit,
}

impl Writer {
    /// Opens the filesystem on `volume`. What its journal holds is replayed for good first.
    pub(in super::super) fn open(volume: Disk) -> Result<Self> {
        let (mut edit, replayed) = Edit::open(volume)?;
        edit.fs.replayed = replayed;
        Ok(Self { edit })
    }

    fn fs(&self) -> &Ext4 {
        &self.edit.fs
    }
}

impl Filesystem for Writer {
    fn facts(&self) -> Result<FsFacts> {
        let mut facts = self.fs().facts()?;
        facts.free = self.edit.free_bytes();
        Ok(facts)
    }

    fn root(&self) -> NodeId {
        self.fs().root()
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.fs().stat(node)
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let found = self.fs().find_entry(&self.fs().dir(dir)?, name.as_bytes())?;
        Ok(found.map(|number| NodeId(number.into())))
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        self.fs().read_dir(dir, visit)
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.fs().read(file, at, buf)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        self.fs().extents(file, visit)
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.fs().read_link(link)
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        self.fs().xattrs(node, visit)
    }
}

impl FilesystemMut for Writer {
    fn check_name(&self, name: &Name) -> Result<()> {
        let len = name.as_bytes().len();
        if len > NAME_MAX {
            let what = format!("a name has {NAME_MAX} bytes at most, not {len}");
            return Err(Ext4Fault::Cannot(what).into());
        }
        Ok(())
    }

    fn parent(&self, dir: NodeId) -> Result<NodeId> {
        let dir = super::node::Node::of(self.fs().dir(dir)?)?;
        Ok(NodeId(self.edit.parent_of(&dir)?.into()))
    }

    fn create(&mut self, dir: NodeId, name: &Name, new: &New<'_>, now: Time) -> Result<NodeId> {
        let made = self.edit.run(now, |edit| edit.create(dir.0, name, new, now))?;
        Ok(NodeId(made.into()))
    }

    fn write(&mut self, file: NodeId, at: u64, data: &[u8], now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.write(file.0, at, data, now))
    }

    fn truncate(&mut self, file: NodeId, size: u64, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.truncate(file.0, size, now))
    }

    fn punch(&mut self, file: NodeId, span: Span, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.punch(file.0, span, now))
    }

    fn link(&mut self, node: NodeId, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.link(node.0, dir.0, name, now))
    }

    fn unlink(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.unlink(dir.0, name, now))
    }

    fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), now: Time) -> Result<()> {
        let (from, to) = ((from.0.0, from.1), (to.0.0, to.1));
        self.edit.run(now, |edit| edit.rename(from, to, now))
    }

    fn exchange(&mut self, one: (NodeId, &Name), other: (NodeId, &Name), now: Time) -> Result<()> {
        let (one, other) = ((one.0.0, one.1), (other.0.0, other.1));
        self.edit.run(now, |edit| edit.exchange(one, other, now))
    }

    fn set_attributes(&mut self, node: NodeId, change: &Change, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.set_attributes(node.0, change, now))
    }

    fn set_xattr(&mut self, node: NodeId, name: &[u8], value: Option<&[u8]>, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.set_xattr(node.0, name, value, now))
    }

    fn replace(&mut self, file: NodeId, content: Content<'_>, now: Time) -> Result<()> {
        self.edit.run(now, |edit| edit.replace(file.0, content, now))
    }

    fn separate(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<NodeId> {
        let made = self.edit.run(now, |edit| edit.separate(dir.0, name, now))?;
        Ok(NodeId(made.into()))
    }

    fn set_label(&mut self, label: &str, now: Time) -> Result<()> {
        self.edit.set_label(label, now)
    }

    fn grow(&mut self, size: u64) -> Result<()> {
        self.edit.resize_filesystem(size)
    }

    fn shrinks(&self) -> bool {
        true
    }

    fn shrink(&mut self, size: u64) -> Result<()> {
        self.edit.resize_filesystem(size)
    }

    fn set_uuid(&mut self, new: &NewUuid) -> Result<()> {
        self.edit.set_uuid(new)
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        self.edit.finish()
    }
}
