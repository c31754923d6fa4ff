//! The blocks that an inode names, through its extent tree or its block map: each belongs to it alone.

use racker_formats::error::Result;
use racker_formats::wire::take;

use super::super::edit::bytes::get32;
use super::super::extent::{self, DEPTH_MAX, END, Extent, wrong};
use super::super::inode::Inode;
use super::super::layout::{
    EXTENT_BYTES, EXTENT_MAGIC, RawExtent, RawExtentHeader, RawExtentIndex, inode_flags,
};
use super::Checker;
use crate::filesystem::NodeKind;

/// Direct blocks of a block map.
const DIRECT: u64 = 12;

/// What a walk through the blocks of an inode has come to.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Clusters that it takes, its own metadata included.
    pub(super) clusters: u64,
    /// The block of the file behind the last one.
    pub(super) end: u64,
    /// The same of those that were written.
    pub(super) written_end: u64,
    /// The last cluster of content: of the file, and of the filesystem.
    last: Option<(u64, u64)>,
    /// Not all of it could be gone through.
    pub(super) is_cut: bool,
}

/// A node of an extent tree: what its parent says of it.
#[derive(Clone, Copy, Debug)]
struct Range {
    depth: Option<u16>,
    first: u64,
    end: u64,
    inner: bool,
}

impl Checker<'_> {
    /// Goes through all blocks of an inode.
    pub(super) fn walk_blocks(&mut self, inode: &Inode) -> Result<Walk> {
        let mut walk = Walk::default();
        let done = if inode.has(inode_flags::EXTENTS) {
            let all = Range { depth: None, first: 0, end: END, inner: false };
            self.extent_node(inode, inode.block(), all, &mut walk)
        } else {
            self.block_map(inode, &mut walk)
        };
        if let Err(e) = done {
            walk.is_cut = true;
            self.finds.damage(|| format!("inode {}", inode.number), e)?;
        }
        self.all_known &= !walk.is_cut;
        Ok(walk)
    }

    /// Takes a block that an inode has for metadata.
    fn claim_meta(&mut self, inode: &Inode, what: &'static str, block: u64, walk: &mut Walk) -> Result<bool> {
        self.fs.sb.check_blocks(what, block, 1)?;
        walk.clusters = walk.clusters.saturating_add(1);
        let (cluster, _) = self.clusters(block, 1);
        if self.used.set(cluster) {
            return Ok(true);
        }
        self.taken(inode, block)?;
        walk.is_cut = true;
        Ok(false)
    }

    /// Takes a block of attributes; tells whether nothing else has it.
    pub(super) fn claim_attributes(&mut self, block: u64) -> bool {
        let (cluster, _) = self.clusters(block, 1);
        self.used.set(cluster)
    }

    /// Says that somebody else has a block.
    pub(super) fn taken(&mut self, inode: &Inode, block: u64) -> Result<()> {
        let other = match self.own.get(block) {
            true => "is part of the filesystem's own tables",
            false => "belongs to something else as well",
        };
        self.finds.corrupt(format!("inode {}: block {block} {other}", inode.number))
    }

    /// Takes blocks of content: `len` from `start` on the volume, from `first` on in the file.
    fn claim(&mut self, inode: &Inode, (first, start, len): (u64, u64, u64), walk: &mut Walk) -> Result<()> {
        let sb = &self.fs.sb;
        let (shift, base) = (sb.cluster_shift, sb.first_data_block);
        walk.end = walk.end.max(first.saturating_add(len));
        if shift == 0 {
            walk.clusters = walk.clusters.saturating_add(len);
            return match self.used.set_run(start.saturating_sub(base), len) {
                None => Ok(()),
                Some(bit) => {
                    walk.is_cut = true;
                    self.taken(inode, bit.saturating_add(base))
                }
            };
        }
        let mask = (1u64 << shift).saturating_sub(1);
        if first & mask != start & mask {
            walk.is_cut = true;
            let what =
                format!("inode {}: block {first} is at another place of its cluster, {start}", inode.number);
            return self.finds.corrupt(what);
        }
        if let Some(block) = self.own.first_set(start, len) {
            walk.is_cut = true;
            return self.taken(inode, block);
        }
        let (cluster, count) = self.clusters(start, len);
        for step in 0..count {
            let place = ((first >> shift).saturating_add(step), cluster.saturating_add(step));
            if walk.last == Some(place) {
                continue;
            }
            walk.last = Some(place);
            walk.clusters = walk.clusters.saturating_add(1);
            if !self.used.set(place.1) {
                walk.is_cut = true;
                return self.taken(inode, (place.1 << shift).saturating_add(base));
            }
        }
        Ok(())
    }

    /// Goes through a node of an extent tree and what is below it. Depths descend, so this ends.
    fn extent_node(&mut self, inode: &Inode, bytes: &[u8], range: Range, walk: &mut Walk) -> Result<()> {
        let head = take::<RawExtentHeader>(bytes, 0, "extent node")?;
        if head.magic.get() != EXTENT_MAGIC {
            return Err(wrong("magic", head.magic.get().into(), EXTENT_MAGIC.into()));
        }
        let depth = head.depth.get();
        let expected = range.depth.unwrap_or(DEPTH_MAX);
        if depth > expected || (range.depth.is_some() && depth != expected) {
            return Err(wrong("depth", depth.into(), expected.into()));
        }
        let room = bytes.len().saturating_sub(EXTENT_BYTES).wrapping_div(EXTENT_BYTES);
        let (entries, max) = (usize::from(head.entries.get()), usize::from(head.max.get()));
        if max > room || max < room.saturating_sub(2) || entries > max {
            return Err(wrong("number of entries", head.entries.get().into(), head.max.get().into()));
        }
        if depth > 0 && entries == 0 {
            return Err(wrong("number of entries of an index", 0, 1));
        }
        if depth == 0 {
            self.leaf(inode, bytes, entries, range, walk)
        } else {
            self.index(inode, bytes, entries, (depth, range), walk)
        }
    }

    fn leaf(
        &mut self,
        inode: &Inode,
        bytes: &[u8],
        entries: usize,
        range: Range,
        walk: &mut Walk,
    ) -> Result<()> {
        let mut from = range.first;
        for number in 0..entries {
            let at = number.saturating_add(1).saturating_mul(EXTENT_BYTES);
            let extent = Extent::of(&take::<RawExtent>(bytes, at, "extent entry")?)?;
            let end = extent.first.saturating_add(extent.len);
            let starts_right = !range.inner || number > 0 || extent.first == range.first;
            if extent.first < from || !starts_right || end > range.end {
                return Err(wrong("block of an extent", extent.first, from));
            }
            from = end;
            self.fs.sb.check_blocks("an extent", extent.start, extent.len)?;
            if extent.unwritten && inode.kind == Some(NodeKind::Dir) {
                walk.is_cut = true;
                let what = format!(
                    "inode {}: block {} of a directory was never written",
                    inode.number, extent.first
                );
                self.finds.corrupt(what)?;
            }
            if !extent.unwritten {
                walk.written_end = walk.written_end.max(end);
            }
            self.claim(inode, (extent.first, extent.start, extent.len), walk)?;
        }
        Ok(())
    }

    fn index(
        &mut self,
        inode: &Inode,
        bytes: &[u8],
        entries: usize,
        (depth, range): (u16, Range),
        walk: &mut Walk,
    ) -> Result<()> {
        let entry = |number: usize| {
            let at = number.saturating_add(1).saturating_mul(EXTENT_BYTES);
            take::<RawExtentIndex>(bytes, at, "extent entry")
        };
        let mut last = None;
        for number in 0..entries {
            let raw = entry(number)?;
            let first = u64::from(raw.block.get());
            let next = number.saturating_add(1);
            let end =
                if next < entries { u64::from(entry(next)?.block.get()).min(range.end) } else { range.end };
            let starts_right = !range.inner || number > 0 || first == range.first;
            if first < range.first || first >= range.end || last.is_some_and(|l| first <= l) || !starts_right
            {
                return Err(wrong("block of an index", first, last.unwrap_or(range.first)));
            }
            last = Some(first);
            let block = u64::from(raw.leaf_hi.get()) << 32 | u64::from(raw.leaf_lo.get());
            if !self.claim_meta(inode, "an extent index", block, walk)? {
                continue;
            }
            let held = self.fs.block("an extent index", block)?;
            extent::check_sum(self.fs, inode, &held)?;
            let below = Range { depth: Some(depth.saturating_sub(1)), first, end, inner: true };
            self.extent_node(inode, &held, below, walk)?;
        }
        Ok(())
    }

    fn block_map(&mut self, inode: &Inode, walk: &mut Walk) -> Result<()> {
        for slot in 0..DIRECT {
            self.pointer(inode, inode.block(), slot, (0, slot), walk)?;
        }
        let shift = self.fs.sb.block_size.shift().saturating_sub(2);
        let mut first = DIRECT;
        for level in 1u32..=3 {
            let slot = DIRECT.saturating_add(u64::from(level)).saturating_sub(1);
            self.pointer(inode, inode.block(), slot, (level, first), walk)?;
            first = first.saturating_add(1u64.checked_shl(shift.saturating_mul(level)).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Follows a pointer of a block map, which leads through `level` more levels to block `first` of the file. Levels
    /// descend, and no block is gone through twice, so this ends.
    fn pointer(
        &mut self,
        inode: &Inode,
        bytes: &[u8],
        slot: u64,
        (level, first): (u32, u64),
        walk: &mut Walk,
    ) -> Result<()> {
        let at = usize::try_from(slot).unwrap_or(usize::MAX).saturating_mul(4);
        let block = u64::from(get32(bytes, at)?);
        if block == 0 {
            return Ok(());
        }
        if level == 0 {
            self.fs.sb.check_blocks("a block map", block, 1)?;
            walk.written_end = walk.written_end.max(first.saturating_add(1));
            return self.claim(inode, (first, block, 1), walk);
        }
        if !self.claim_meta(inode, "a block map", block, walk)? {
            return Ok(());
        }
        let held = self.fs.block("a block map", block)?;
        let shift = self.fs.sb.block_size.shift().saturating_sub(2);
        let below = level.saturating_sub(1);
        let covered = 1u64.checked_shl(shift.saturating_mul(below)).unwrap_or(u64::MAX);
        for slot in 0..1u64.checked_shl(shift).unwrap_or(0) {
            let first = first.saturating_add(slot.saturating_mul(covered));
            self.pointer(inode, &held, slot, (below, first), walk)?;
        }
        Ok(())
    }
}
