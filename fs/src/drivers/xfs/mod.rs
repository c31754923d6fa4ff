//! XFS, versions 4 and 5: read in every form, version 5 written.
//!
//! Specification: "XFS Algorithms & Data Structures", 3rd edition, with the additions of Linux up to 6.12.
//!
//! Read: every form of directories, extents, attributes and links; `crc`, `finobt`, `sparse`, `rmapbt`, `reflink`,
//! `bigtime`, `inobtcount`, `nrext64`, exchange-range, parent pointers (hidden), `META_UUID`, names without regard
//! to case, version 4 without checksums. On version 5 each block's checksum, UUID, place and owner are checked.
//! Read and not written: version 4, a metadata directory beside that of the files, unknown read-only compatible
//! features. Refused by name: zones, a filesystem marked as in need of repair, an external log (what it holds cannot be
//! known), content on a realtime device, unknown incompatible features.
//!
//! A log that is not empty is replayed before anything is read: in memory for a reader. What the log promised and
//! nobody did (intents) matters to a reader only for mappings, which it sees as if made; an exchange of contents
//! that was cut short is refused. A directory block in several extents is replayed as a whole, which the kernel
//! (6.18) does not do: it refuses to mount.
//!
//! Written: all of version 5, in every form that the kernel makes. Refused: content on a realtime device, times,
//! targets and device numbers that inodes cannot hold.
//!
//! # Writing, and the log
//!
//! Nothing is logged: the transaction under the volume makes an edit whole. So the log must hold nothing when the
//! edit lands. The order for a writer: [`Log::open`](log::Log::open); if it is not clean,
//! [`replay`](log::Log::replay) into the volume, carry out the intents, free the [`unlinked`](log::unlinked)
//! inodes, and [`end`](log::Log::end) the log.
//!
//! No block may carry a log sequence number ahead of the log's head: the kernel refuses to mount, and would take
//! such a block for newer than changes it logs later. A changed block keeps its number, a new one has 0.
//!
//! # Map
//!
//! | file | holds |
//! | --- | --- |
//! | `layout`, `described` | structures as they lie on disk; where blocks say what they are |
//! | `superblock`, `units` | the checked superblock; the ways XFS counts places |
//! | `volume`, `crc` | metadata blocks and what they say of themselves |
//! | `inode`, `sound` | inodes; what those that are changed have to be |
//! | `bmap`, `pending` | which blocks a fork has; those only promised |
//! | `da`, `dir`, `attr` | trees over hashes of names; directories; extended attributes |
//! | `file` | content and link targets |
//! | `log` | the log: replay and end |
//! | `edit` | writing |
//! | `check` | the check, and what it mends |
//! | `facts`, `fault` | what is said to users, and what can be wrong |

mod attr;
mod bmap;
mod check;
mod crc;
mod da;
mod described;
mod dir;
mod edit;
mod facts;
mod fault;
mod file;
mod inode;
mod layout;
mod log;
mod pending;
mod sound;
mod superblock;
mod units;
mod volume;

use std::sync::Arc;

use racker_formats::block::{Disk, Span, Staged};
use racker_formats::check::Report;
use racker_formats::error::Result;
use racker_formats::registry::{Guess, Head};

use crate::filesystem::{
    DirEntry, Driver, Extent, Filesystem, FilesystemMut, FsFacts, Name, NodeId, Stat, Visit, VisitXattr,
};
use log::Log;
use pending::Pending;
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
        let mut volume = Volume::open(disk.read_only())?;
        if Log::open(&volume)?.is_clean() {
            return Ok(Self { volume, replayed: false });
        }
        volume.disk = Disk::new(Staged::new(volume.disk));
        let recovery = Log::open(&volume)?.replay(&mut volume)?;
        volume.pending = Arc::new(Pending::new(recovery.intents)?);
        Ok(Self { volume, replayed: true })
    }
}

impl Driver for Format {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn kinds(&self) -> &'static [(&'static str, bool)] {
        &[("v5: log replayed", true), ("v4: log replayed", false)]
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if head.at::<4>(0) == Some(layout::SB_MAGIC.to_be_bytes()) { Guess::Strong } else { Guess::No }
    }

    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>> {
        Ok(Arc::new(Xfs::open(volume)?))
    }

    fn open_mut(&self, volume: Disk) -> Result<Box<dyn FilesystemMut>> {
        check::refuse_unsound(&volume)?;
        Ok(Box::new(edit::Writer::open(volume)?))
    }

    fn check(&self, volume: Disk, report: &mut Report) -> Result<()> {
        check::check(volume, report)
    }
}

impl Filesystem for Xfs {
    fn facts(&self) -> Result<FsFacts> {
        Ok(facts::facts(&self.volume.sb, self.replayed))
    }

    fn free_space(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        if self.replayed || self.volume.sb.unwritable().is_some() {
            return Ok(false);
        }
        edit::visit_free(&self.volume, visit)?;
        Ok(true)
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
