//! The filesystem as one that can be changed.

use std::sync::Arc;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Result, Within};

use crate::filesystem::{
    Change, Content, DirEntry, Extent, Filesystem, FilesystemMut, FsFacts, Name, New, NewUuid, NodeId, Stat,
    Time, Visit, VisitXattr,
};

use super::super::fault::Fault;
use super::super::log::Log;
use super::super::units::InodeNo;
use super::super::volume::Volume;
use super::super::{Xfs, facts};
use super::Edit;
use super::dir::NAME_MAX;

/// An open filesystem that can be changed.
#[derive(Debug)]
pub(in super::super) struct Writer {
    /// Sees what was written: of what it reads nothing is cached above the volume between operations.
    reader: Xfs,
    edit: Edit,
}

impl Writer {
    /// Opens the filesystem on `disk`. A log that is not clean is replayed, and all it promised is done, first.
    pub(in super::super) fn open(disk: Disk) -> Result<Self> {
        let mut volume = Volume::open(disk)?;
        if let Some(fault) = volume.sb.unwritable() {
            return Err(fault.into());
        }
        let mut log = Log::open(&volume)?;
        let replayed = !log.is_clean();
        if replayed {
            let recovery = log.replay(&mut volume)?;
            let mut edit = Edit::new(Arc::new(volume.clone()))?;
            edit.recover(&recovery.intents)?;
            log.end(&mut volume)?;
        }
        let mut edit = Edit::new(Arc::new(volume.clone()))?;
        if !replayed {
            edit.trust_free_space();
        }
        Ok(Self { reader: Xfs { volume, replayed }, edit })
    }
}

impl Filesystem for Writer {
    fn facts(&self) -> Result<FsFacts> {
        Ok(facts::facts(&self.edit.superblock(), self.reader.replayed))
    }

    fn root(&self) -> NodeId {
        self.reader.root()
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.reader.stat(node)
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        self.reader.lookup(dir, name)
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        self.reader.read_dir(dir, visit)
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.reader.read(file, at, buf)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        self.reader.extents(file, visit)
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.reader.read_link(link)
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        self.reader.xattrs(node, visit)
    }
}

impl FilesystemMut for Writer {
    fn check_name(&self, name: &Name) -> Result<()> {
        if name.as_bytes().len() > NAME_MAX {
            return Err(Fault::Unsupported { what: "a name of more than 255 bytes" }.into());
        }
        Ok(())
    }

    fn parent(&self, dir: NodeId) -> Result<NodeId> {
        let dir = self.reader.volume.inode(InodeNo(dir.0))?;
        let up = self.edit.parent(&dir).within(|| format!("directory {}", dir.ino.0))?;
        Ok(NodeId(up.0))
    }

    fn create(&mut self, dir: NodeId, name: &Name, new: &New<'_>, now: Time) -> Result<NodeId> {
        Ok(NodeId(self.edit.create(InodeNo(dir.0), name, new, now)?.0))
    }

    fn write(&mut self, file: NodeId, at: u64, data: &[u8], now: Time) -> Result<()> {
        self.edit.write(InodeNo(file.0), at, data, now)
    }

    fn truncate(&mut self, file: NodeId, size: u64, now: Time) -> Result<()> {
        self.edit.truncate(InodeNo(file.0), size, now)
    }

    fn punch(&mut self, file: NodeId, span: Span, now: Time) -> Result<()> {
        self.edit.punch(InodeNo(file.0), span, now)
    }

    fn link(&mut self, node: NodeId, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        self.edit.link(InodeNo(node.0), InodeNo(dir.0), name, now)
    }

    fn unlink(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        self.edit.unlink(InodeNo(dir.0), name, now)
    }

    fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), now: Time) -> Result<()> {
        self.edit.rename((InodeNo(from.0.0), from.1), (InodeNo(to.0.0), to.1), now)
    }

    fn exchange(&mut self, one: (NodeId, &Name), other: (NodeId, &Name), now: Time) -> Result<()> {
        self.edit.exchange((InodeNo(one.0.0), one.1), (InodeNo(other.0.0), other.1), now)
    }

    fn set_attributes(&mut self, node: NodeId, change: &Change, now: Time) -> Result<()> {
        self.edit.set_attributes(InodeNo(node.0), change, now)
    }

    fn set_xattr(&mut self, node: NodeId, name: &[u8], value: Option<&[u8]>, now: Time) -> Result<()> {
        self.edit.set_xattr(InodeNo(node.0), name, value, now)
    }

    fn replace(&mut self, file: NodeId, content: Content<'_>, now: Time) -> Result<()> {
        self.edit.replace(InodeNo(file.0), content, now)
    }

    fn separate(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<NodeId> {
        Ok(NodeId(self.edit.separate(InodeNo(dir.0), name, now)?.0))
    }

    fn set_label(&mut self, label: &str, _now: Time) -> Result<()> {
        self.edit.set_label(label)?;
        self.reader.volume.sb = self.edit.geometry().clone();
        Ok(())
    }

    fn grow(&mut self, size: u64) -> Result<()> {
        self.edit.grow_filesystem(size)?;
        self.reader.volume.sb = self.edit.geometry().clone();
        Ok(())
    }

    fn set_uuid(&mut self, new: &NewUuid) -> Result<()> {
        self.edit.set_uuid(new)?;
        self.reader.volume.sb = self.edit.geometry().clone();
        Ok(())
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        self.edit.finish()
    }
}
