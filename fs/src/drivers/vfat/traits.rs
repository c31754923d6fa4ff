//! The writer as [`Writer`](crate::edit::Writer) sees it.

use racker_formats::block::Span;
use racker_formats::error::Result;

use super::layout::attr;
use super::short_name;
use super::time::stored;
use super::writer::FatMut;
use crate::filesystem::{
    Change, Content, DirEntry, Extent, Filesystem, FilesystemMut, FsFacts, Keeps, Name, New, NewUuid, NodeId,
    Stat, Time, Visit, VisitXattr,
};

/// Permission to write, for the owner.
const MAY_WRITE: u32 = 0o200;

impl Filesystem for FatMut {
    fn facts(&self) -> Result<FsFacts> {
        self.fat.facts_with(self.space.free)
    }

    fn root(&self) -> NodeId {
        self.fat.root()
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.fat.stat_with(node, |dir| {
            let mut front = self.index(dir.node)?;
            let index = front.get()?;
            Ok((index.bytes(), index.dirs.saturating_add(2)))
        })
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let found = self.find_if_any(dir, name)?;
        found.map(|(_, place)| self.fat.places.node(place)).transpose()
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        self.fat.read_dir(dir, visit)
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        self.fat.read(file, at, buf)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        self.fat.extents(file, visit)
    }

    fn free_space(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        self.fat.free_runs(visit)
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.fat.read_link(link)
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        self.fat.xattrs(node, visit)
    }
}

impl FilesystemMut for FatMut {
    fn keeps(&self) -> Keeps {
        Keeps::empty()
    }

    fn check_name(&self, name: &Name) -> Result<()> {
        short_name::check(name).map(drop)
    }

    fn parent(&self, dir: NodeId) -> Result<NodeId> {
        self.above(dir)
    }

    fn create(&mut self, dir: NodeId, name: &Name, new: &New<'_>, now: Time) -> Result<NodeId> {
        self.create_node(dir, name, new, now)
    }

    fn write(&mut self, file: NodeId, at: u64, data: &[u8], now: Time) -> Result<()> {
        self.write_file(file, at, data, now)
    }

    fn truncate(&mut self, file: NodeId, size: u64, now: Time) -> Result<()> {
        self.resize_file(file, size, now)
    }

    fn punch(&mut self, file: NodeId, span: Span, now: Time) -> Result<()> {
        self.zero_file(file, span, now)
    }

    fn unlink(&mut self, dir: NodeId, name: &Name, now: Time) -> Result<()> {
        self.remove(dir, name, now)
    }

    fn rename(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), now: Time) -> Result<()> {
        self.move_entry(from, to, now)
    }

    fn exchange(&mut self, one: (NodeId, &Name), other: (NodeId, &Name), now: Time) -> Result<()> {
        self.exchange_entries(one, other, now)
    }

    /// The node's own time is not recorded, and the root has no entry that could record anything.
    fn set_attributes(&mut self, node: NodeId, change: &Change, _: Time) -> Result<()> {
        if node == self.fat.root() {
            return Ok(());
        }
        let (place, mut raw) = self.own_entry(node)?;
        match change.mode.map(|mode| mode & MAY_WRITE != 0) {
            Some(true) => raw.attr &= !attr::READ_ONLY,
            Some(false) => raw.attr |= attr::READ_ONLY,
            None => {}
        }
        if let Some(atime) = change.atime {
            raw.lst_acc_date = stored(atime).0.into();
        }
        if let Some(mtime) = change.mtime {
            let (date, time, _) = stored(mtime);
            (raw.wrt_date, raw.wrt_time) = (date.into(), time.into());
        }
        self.begin()?;
        self.put_raw(place, &raw)?;
        self.end();
        Ok(())
    }

    fn replace(&mut self, file: NodeId, content: Content<'_>, now: Time) -> Result<()> {
        self.refill_file(file, content, now)
    }

    /// No entry shares its node.
    fn separate(&mut self, dir: NodeId, name: &Name, _: Time) -> Result<NodeId> {
        let (_, place) = self.find(dir, name)?;
        self.fat.places.node(place)
    }

    fn set_label(&mut self, label: &str, now: Time) -> Result<()> {
        self.rename_volume(label, now)
    }

    /// With a larger table all entries move: nodes from before are none any more.
    fn grow(&mut self, size: u64) -> Result<()> {
        self.grow_volume(size)
    }

    fn set_uuid(&mut self, new: &NewUuid) -> Result<()> {
        self.renumber_volume(new)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.finish()
    }
}
