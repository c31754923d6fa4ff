//! The filesystem as one that can be changed.

use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::error::Result;

use crate::filesystem::{
    Content, DirEntry, Extent, Filesystem, FilesystemMut, FsFacts, Name, NodeId, Stat, Time, Visit,
    VisitXattr,
};

use super::super::Xfs;
use super::super::log::Log;
use super::super::units::InodeNo;
use super::super::volume::Volume;
use super::Edit;

/// An open filesystem that can be changed.
#[derive(Debug)]
pub(in super::super) struct Writer {
    /// Sees what was written: nothing is cached above the volume between operations.
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
        let edit = Edit::new(Arc::new(volume.clone()))?;
        Ok(Self { reader: Xfs { volume, replayed }, edit })
    }
}

impl Filesystem for Writer {
    fn facts(&self) -> Result<FsFacts> {
        // The counters of the superblock changed since it was read.
        let volume = Volume::open(self.reader.volume.disk.clone())?;
        Xfs { volume, replayed: self.reader.replayed }.facts()
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
    fn replace(&mut self, file: NodeId, content: Content<'_>, now: Time) -> Result<()> {
        self.edit.replace(InodeNo(file.0), content, now)
    }

    fn separate(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<NodeId> {
        Ok(NodeId(self.edit.separate(InodeNo(dir.0), name, now)?.0))
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        self.edit.finish()
    }
}
