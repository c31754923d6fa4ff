//! Mappings of a fork added and taken away, whether they lie in the inode or in a tree.

use std::sync::Arc;

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;

use super::super::bmap::Mapping;
use super::super::crc;
use super::super::fault::Fault;
use super::super::inode::{CRC_AT, DiFlags2, ForkFormat, ForkKind, Inode};
use super::super::layout::RawBmbtRec;
use super::super::units::{FileBlock, FsBlock};
use super::super::volume::Volume;
use super::Edit;
use super::attrs::big_counts;
use super::bmbt::Bmbt;
use super::fork::Site;
use super::pour::EXTENT_BLOCKS_MAX;

fn fault<T>(inode: &Inode, kind: ForkKind, why: &'static str) -> Result<T> {
    Err(Fault::Fork { ino: inode.ino.0, fork: kind.name(), why }.into())
}

/// Whether `b` goes on where `a` ends.
fn joins(a: &Mapping, b: &Mapping) -> bool {
    a.end() == b.at
        && a.start.0.saturating_add(a.len) == b.start.0
        && a.unwritten == b.unwritten
        && a.len.saturating_add(b.len) <= EXTENT_BLOCKS_MAX
}

impl Edit {
    /// Adds a mapping where the fork has a hole, joined with its neighbours. Who owns the blocks is known already;
    /// the inode's count of blocks is not changed.
    pub(super) fn map_add(&mut self, inode: &mut Inode, kind: ForkKind, new: Mapping) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let from = FileBlock(new.at.0.saturating_sub(1));
        let near: Vec<Mapping> = volume.mappings(inode, kind, from)?.take(2).collect::<Result<_>>()?;
        if near.iter().any(|m| m.at < new.end() && new.at < m.end()) {
            return fault(inode, kind, "blocks are there already");
        }
        let before = near.iter().find(|m| m.at < new.at).filter(|m| joins(m, &new));
        let mut all = before.copied().unwrap_or(new);
        if before.is_some() {
            all.len = all.len.saturating_add(new.len);
        }
        let behind = near.iter().find(|m| m.at > new.at).filter(|m| joins(&all, m));
        all.len = all.len.saturating_add(behind.map_or(0, |m| m.len));
        let old: Vec<Mapping> = before.into_iter().chain(behind).copied().collect();
        self.splice(inode, kind, &old, &[all])
    }

    /// Takes `part` out of the mapping `whole`, which the fork has. The blocks and the inode's count of them stay.
    pub(super) fn map_cut(
        &mut self,
        inode: &mut Inode,
        kind: ForkKind,
        whole: &Mapping,
        part: &Mapping,
    ) -> Result<()> {
        let head = Mapping { len: part.at.0.saturating_sub(whole.at.0), ..*whole };
        let skip = part.end().0.saturating_sub(whole.at.0);
        let tail = Mapping {
            at: part.end(),
            start: FsBlock(whole.start.0.saturating_add(skip)),
            len: whole.len.saturating_sub(skip),
            ..*whole
        };
        let new: Vec<Mapping> = [head, tail].into_iter().filter(|m| m.len > 0).collect();
        self.splice(inode, kind, &[*whole], &new)
    }

    /// Puts `new` in the place of the records `old`, neighbours of each other.
    fn splice(&mut self, inode: &mut Inode, kind: ForkKind, old: &[Mapping], new: &[Mapping]) -> Result<()> {
        let place = inode.ino.0;
        self.splice_fork(inode, kind, old, new).within(|| format!("extents of inode {place}"))
    }

    fn splice_fork(
        &mut self,
        inode: &mut Inode,
        kind: ForkKind,
        old: &[Mapping],
        new: &[Mapping],
    ) -> Result<()> {
        let Some(fork) = inode.fork(kind).copied() else { return fault(inode, kind, "it is not there") };
        let extents = fork.extents.checked_sub(len64(old.len())).map(|n| n.saturating_add(len64(new.len())));
        let Some(extents) = extents else { return fault(inode, kind, "more extents than it counts") };
        let inside = len64(fork.room.checked_div(size_of::<RawBmbtRec>()).unwrap_or(0));
        if fork.format != ForkFormat::Btree || extents <= inside {
            let volume = Arc::clone(&self.volume);
            let mut all = Vec::new();
            for mapping in volume.mappings(inode, kind, FileBlock(0))? {
                all.push(mapping?);
                if len64(all.len()) > fork.extents {
                    return fault(inode, kind, "more extents than it counts");
                }
            }
            let at = old.first().or(new.first()).map_or(0, |first| all.partition_point(|m| m.at < first.at));
            let end = at.saturating_add(old.len());
            if all.get(at..end) != Some(old) {
                return fault(inode, kind, "an extent is not where it was found");
            }
            all.splice(at..end, new.iter().copied());
            let lost = self.release_tree(inode, kind)?;
            return self.put_extents(inode, kind, &all, lost);
        }
        let mut tree = Bmbt::open(self, inode, kind)?;
        let both = old.len().min(new.len());
        for (old, new) in old.iter().zip(new) {
            tree.update(old, new)?;
        }
        for old in old.iter().skip(both) {
            tree.remove(old)?;
        }
        for new in new.iter().skip(both) {
            tree.insert(new)?;
        }
        tree.close(inode, extents)
    }

    /// Builds the fork anew from all of its extents; the `lost` blocks of its old tree are gone.
    pub(super) fn put_extents(
        &mut self,
        inode: &mut Inode,
        kind: ForkKind,
        all: &[Mapping],
        lost: u64,
    ) -> Result<()> {
        let Some(room) = inode.fork(kind).map(|f| f.room) else {
            return fault(inode, kind, "it is not there");
        };
        let (near, _, _) = self.volume.sb.split_inode(inode.ino)?;
        let site = Site { ino: inode.ino, kind, room, big: big_counts(inode) };
        let built = self.build_fork(site, all, near)?;
        inode.set_fork(kind, &built)?;
        inode.count_blocks(built.tree_blocks, lost)?;
        let volume = Arc::clone(&self.volume);
        inode.reparse(&volume)
    }

    /// Frees what a fork has from block `from` to before `to`.
    pub(super) fn release_range(
        &mut self,
        inode: &mut Inode,
        kind: ForkKind,
        from: u64,
        to: u64,
    ) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let shared = kind == ForkKind::Data && inode.flags2.contains(DiFlags2::REFLINK);
        while let Some(whole) = volume.mapping_at(inode, kind, FileBlock(from))?.filter(|m| m.at.0 < to) {
            let part = whole.part(from, to);
            self.release_mapping(inode.ino, kind, &part, shared)?;
            self.map_cut(inode, kind, &whole, &part)?;
            inode.count_blocks(0, part.len)?;
            inode.reparse(&volume)?;
            self.breathe()?;
        }
        Ok(())
    }
}

impl Mapping {
    /// The part of it between two blocks of the file, of which it has at least one.
    pub(super) fn part(&self, from: u64, to: u64) -> Self {
        let at = self.at.0.max(from);
        let skip = at.saturating_sub(self.at.0);
        let len = self.end().0.min(to).saturating_sub(at);
        Self { at: FileBlock(at), start: FsBlock(self.start.0.saturating_add(skip)), len, ..*self }
    }
}

impl Inode {
    /// Sees the inode as its changed bytes have it.
    pub(super) fn reparse(&mut self, volume: &Volume) -> Result<()> {
        crc::stamp(&mut self.bytes, CRC_AT)?;
        let ino = self.ino;
        *self =
            volume.parse_inode(ino, std::mem::take(&mut self.bytes)).within(|| format!("inode {}", ino.0))?;
        Ok(())
    }

    /// Changes the count of blocks.
    pub(super) fn count_blocks(&mut self, more: u64, fewer: u64) -> Result<()> {
        let ino = self.ino.0;
        let core = self.core()?;
        let blocks = core.di_nblocks.get().saturating_add(more).checked_sub(fewer);
        let why = "the inode has more blocks than it counts";
        core.di_nblocks = blocks.ok_or(Fault::Fork { ino, fork: "data", why })?.into();
        Ok(())
    }

    /// Sets the count of extents, which was checked against what its field holds.
    pub(super) fn count_extents(&mut self, kind: ForkKind, extents: u64) -> Result<()> {
        let big = big_counts(self);
        let core = self.core()?;
        let narrow = u32::try_from(extents).unwrap_or(u32::MAX);
        match (kind, big) {
            (ForkKind::Data, true) => core.di_big_nextents = extents.into(),
            (ForkKind::Data, false) | (ForkKind::Attr, true) => core.di_nextents = narrow.into(),
            (ForkKind::Attr, false) => core.di_anextents = u16::try_from(extents).unwrap_or(u16::MAX).into(),
        }
        Ok(())
    }
}
