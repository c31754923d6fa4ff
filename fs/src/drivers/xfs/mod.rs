//! XFS, versions 4 and 5.

mod attr;
mod bmap;
mod crc;
mod da;
mod dir;
mod edit;
mod facts;
mod fault;
mod file;
mod inode;
mod layout;
mod log;
mod superblock;
mod units;
mod volume;

use std::sync::Arc;

use racker_formats::block::{Disk, Staged};
use racker_formats::error::Result;
use racker_formats::registry::{Guess, Head};

use crate::filesystem::{
    DirEntry, Driver, Extent, Filesystem, FilesystemMut, FsFacts, Name, NodeId, Stat, Visit, VisitXattr,
};
use log::Log;
use superblock::Superblock;
use units::InodeNo;
use volume::Volume;

/// The driver.
pub(super) static FORMAT: Format = Format;

/// XFS.
#[derive(Debug)]
pub(super) struct Format;

/// An open filesystem.
#[derive(Debug)]
struct Xfs {
    volume: Volume,
    /// The log held changes that were replayed.
    replayed: bool,
}

impl Xfs {
    /// Opens a volume for reading. What its log holds is replayed in memory.
    fn open(disk: Disk) -> Result<Self> {
        let sb = Superblock::read(&disk)?;
        let mut volume = Volume { disk: disk.read_only(), sb };
        let log = Log::open(&volume)?;
        if log.is_clean() {
            return Ok(Self { volume, replayed: false });
        }
        volume.disk = Disk::new(Staged::new(volume.disk));
        let log = Log::open(&volume)?;
        log.replay(&mut volume)?;
        Ok(Self { volume, replayed: true })
    }
}

impl Driver for Format {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if head.at::<4>(0) == Some(layout::SB_MAGIC.to_be_bytes()) { Guess::Strong } else { Guess::No }
    }

    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>> {
        Ok(Arc::new(Xfs::open(volume)?))
    }

    fn open_mut(&self, volume: Disk) -> Result<Box<dyn FilesystemMut>> {
        Ok(Box::new(edit::Writer::open(volume)?))
    }
}

impl Filesystem for Xfs {
    fn facts(&self) -> Result<FsFacts> {
        Ok(facts::facts(&self.volume.sb, self.replayed))
    }

    fn root(&self) -> NodeId {
        NodeId(self.volume.sb.root.0)
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.volume.inode(InodeNo(node.0))?.stat(&self.volume.sb)
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let dir = self.volume.inode(InodeNo(dir.0))?;
        let found = self.volume.find_entry(&dir, name.as_bytes())?;
        Ok(found.map(|entry| NodeId(entry.ino.0)))
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        self.volume.read_dir(&self.volume.inode(InodeNo(dir.0))?, visit)
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.volume.read_file(&self.volume.inode(InodeNo(file.0))?, at, buf)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        self.volume.file_extents(&self.volume.inode(InodeNo(file.0))?, visit)
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.volume.link_target(&self.volume.inode(InodeNo(link.0))?)
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        self.volume.read_xattrs(&self.volume.inode(InodeNo(node.0))?, visit)
    }
}

#[cfg(test)]
mod lab;
