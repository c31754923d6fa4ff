//! Nodes of an extent tree while it changes: read with all checks, written with their checksums.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, part, take};
use zerocopy::IntoBytes;

use super::super::csum::crc32c;
use super::super::extent::{DEPTH_MAX, END, EXTENT_LEN_MAX, check_sum, wrong};
use super::super::layout::{EXTENT_BYTES, EXTENT_MAGIC, RawExtent, RawExtentHeader, RawExtentIndex};
use super::Edit;
use super::bytes::{low16, low32, put, put32};
use super::node::Node;

/// Entries of the root, in the inode.
pub(super) const ROOT_ITEMS: usize = 4;

/// An entry: an extent in a leaf, a child elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// First block in the file.
    pub(super) first: u64,
    /// Blocks; 0 for a child.
    pub(super) len: u64,
    /// First block in the filesystem, or the child's.
    pub(super) start: u64,
    pub(super) unwritten: bool,
}

impl Item {
    pub(super) fn end(&self) -> u64 {
        self.first.saturating_add(self.len)
    }

    /// What is left of an extent between two blocks of the file.
    pub(super) fn between(&self, from: u64, to: u64) -> Option<Self> {
        let (first, end) = (self.first.max(from), self.end().min(to));
        let len = end.checked_sub(first).filter(|len| *len > 0)?;
        let start = self.start.saturating_add(first.saturating_sub(self.first));
        Some(Self { first, len, start, ..*self })
    }

    /// Both extents as one, if `next` goes on where this one ends.
    pub(super) fn joined(&self, next: &Self) -> Option<Self> {
        let max = if self.unwritten { EXTENT_LEN_MAX.saturating_sub(1) } else { EXTENT_LEN_MAX };
        let len = self.len.saturating_add(next.len);
        let goes_on = self.end() == next.first
            && self.start.saturating_add(self.len) == next.start
            && self.unwritten == next.unwritten
            && len <= max;
        goes_on.then_some(Self { len, ..*self })
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct TreeNode {
    /// Its block; 0 for the root.
    pub(super) block: u64,
    pub(super) depth: u16,
    pub(super) items: Vec<Item>,
    /// Entries that it has room for.
    pub(super) max: usize,
    /// The entry that the path goes through.
    pub(super) slot: usize,
}

/// Reads a node that answers for the blocks `first..end`; an inner one begins with `first`.
fn parse(bytes: &[u8], block: u64, depth: Option<u16>, first: u64, end: u64) -> Result<TreeNode> {
    let head = take::<RawExtentHeader>(bytes, 0, "extent node")?;
    if head.magic.get() != EXTENT_MAGIC {
        return Err(wrong("magic", head.magic.get().into(), EXTENT_MAGIC.into()));
    }
    let found = head.depth.get();
    let fits = depth.map_or(found <= DEPTH_MAX, |depth| depth == found);
    if !fits {
        return Err(wrong("depth", found.into(), depth.unwrap_or(DEPTH_MAX).into()));
    }
    let room = bytes.len().saturating_sub(EXTENT_BYTES).wrapping_div(EXTENT_BYTES);
    let (entries, max) = (usize::from(head.entries.get()), usize::from(head.max.get()));
    if max > room || entries > max || (found > 0 && entries == 0) {
        return Err(wrong("number of entries", head.entries.get().into(), head.max.get().into()));
    }
    let mut items = Vec::with_capacity(entries.saturating_add(1));
    let mut from = first;
    for number in 0..entries {
        let at = number.saturating_add(1).saturating_mul(EXTENT_BYTES);
        let item = if found > 0 { child_at(bytes, at)? } else { extent_at(bytes, at)? };
        let starts_right = number > 0 || block == 0 || item.first == first;
        if item.first < from || item.end() > end || item.first >= end || !starts_right {
            return Err(wrong("block of an entry", item.first, from));
        }
        from = item.end().max(item.first.saturating_add(1));
        items.push(item);
    }
    Ok(TreeNode { block, depth: found, items, max, slot: 0 })
}

fn child_at(bytes: &[u8], at: usize) -> Result<Item> {
    let raw = take::<RawExtentIndex>(bytes, at, "extent entry")?;
    let start = u64::from(raw.leaf_hi.get()) << 32 | u64::from(raw.leaf_lo.get());
    Ok(Item { first: raw.block.get().into(), len: 0, start, unwritten: false })
}

fn extent_at(bytes: &[u8], at: usize) -> Result<Item> {
    let raw = take::<RawExtent>(bytes, at, "extent entry")?;
    let extent = super::super::extent::Extent::of(&raw)?;
    Ok(Item { first: extent.first, len: extent.len, start: extent.start, unwritten: extent.unwritten })
}

impl TreeNode {
    /// The root of a node's tree.
    pub(super) fn root(node: &Node) -> Result<Self> {
        parse(&node.raw.block, 0, None, 0, END)
    }

    /// Puts head and entries into the bytes of the node.
    fn store(&self, bytes: &mut [u8]) -> Result<()> {
        let head = RawExtentHeader {
            magic: EXTENT_MAGIC.into(),
            entries: u16::try_from(self.items.len()).unwrap_or(u16::MAX).into(),
            max: u16::try_from(self.max).unwrap_or(u16::MAX).into(),
            depth: self.depth.into(),
            generation: take::<RawExtentHeader>(bytes, 0, "extent node")?.generation,
        };
        put(bytes, 0, head.as_bytes())?;
        for (number, item) in (1usize..).zip(&self.items) {
            let at = number.saturating_mul(EXTENT_BYTES);
            let (hi, lo) = (low16(item.start >> 32), low32(item.start));
            if self.depth > 0 {
                let raw = RawExtentIndex {
                    block: low32(item.first).into(),
                    leaf_lo: lo.into(),
                    leaf_hi: hi.into(),
                    unused: 0.into(),
                };
                put(bytes, at, raw.as_bytes())?;
            } else {
                let mark = if item.unwritten { EXTENT_LEN_MAX } else { 0 };
                let raw = RawExtent {
                    block: low32(item.first).into(),
                    len: low16(item.len.saturating_add(mark)).into(),
                    start_hi: hi.into(),
                    start_lo: lo.into(),
                };
                put(bytes, at, raw.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// The root of an empty tree.
pub(super) fn empty_root() -> Result<[u8; 60]> {
    let mut root = [0; 60];
    TreeNode { block: 0, depth: 0, items: Vec::new(), max: ROOT_ITEMS, slot: 0 }.store(&mut root)?;
    Ok(root)
}

impl Edit {
    /// The nodes from the root to the leaf that answers for block `at`. Before the first entry the path goes through
    /// the first one.
    pub(super) fn path(&mut self, node: &Node, at: u64) -> Result<Vec<TreeNode>> {
        let mut path = vec![TreeNode::root(node)?];
        let mut end = END;
        while let Some(parent) = path.last_mut().filter(|n| n.depth > 0) {
            let slot = parent.items.partition_point(|item| item.first <= at).saturating_sub(1);
            parent.slot = slot;
            let depth = parent.depth.saturating_sub(1);
            let Some(child) = parent.items.get(slot).copied() else {
                return Err(wrong("number of entries of an index", 0, 1));
            };
            end = parent.items.get(slot.saturating_add(1)).map_or(end, |next| next.first);
            path.push(self.tree_node(node, child.start, depth, (child.first, end))?);
        }
        Ok(path)
    }

    pub(super) fn tree_node(
        &mut self,
        node: &Node,
        block: u64,
        depth: u16,
        range: (u64, u64),
    ) -> Result<TreeNode> {
        let place = || format!("extent block {block}");
        self.check_owned("an extent index", block, 1).within(place)?;
        let bytes = self.fs.block("an extent index", block).within(place)?;
        let read = parse(&bytes, block, Some(depth), range.0, range.1).within(place)?;
        if self.fs.sb.features.has_metadata_csum() {
            check_sum(&self.fs, &node.view(&self.fs.sb)?, &bytes).within(place)?;
        }
        Ok(read)
    }

    /// Entries of a node that is a block.
    pub(super) fn block_items(&self) -> Result<usize> {
        let size = index(self.fs.sb.block_size.bytes())?;
        Ok(size.saturating_sub(EXTENT_BYTES).wrapping_div(EXTENT_BYTES))
    }

    /// Stores a node: the root in the inode, another in its block.
    pub(super) fn put_tree_node(&mut self, node: &mut Node, tree: &TreeNode) -> Result<()> {
        if tree.block == 0 {
            return tree.store(&mut node.raw.block);
        }
        let (seed, sums) = (node.seed(&self.fs.sb), self.fs.sb.features.has_metadata_csum());
        self.change("an extent block", tree.block, |bytes| {
            tree.store(bytes)?;
            if sums {
                let tail = tree.max.saturating_add(1).saturating_mul(EXTENT_BYTES);
                let sum = crc32c(seed, part(bytes, 0, tail, "extent node")?);
                put32(bytes, tail, sum)?;
            }
            Ok(())
        })
    }

    /// Takes a block for a new node of a tree.
    pub(super) fn new_tree_block(&mut self, node: &mut Node) -> Result<u64> {
        let block = self.take_meta(node)?;
        self.put_block(block, vec![0; index(self.fs.sb.block_size.bytes())?])?;
        Ok(block)
    }
}
