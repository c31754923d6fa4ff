//! Extent trees: from a block of a file to a block of the filesystem.
//!
//! A node is checked as a whole each time it is read: its depth is its parent's minus one, its entries ascend, do
//! not overlap, and stay inside the range that the parent gives it. So a lookup ends, and finds the only answer.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{part, sum_holds, take};

use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::inode::Inode;
use super::layout::{EXTENT_BYTES, EXTENT_MAGIC, RawExtent, RawExtentHeader, RawExtentIndex};
use super::map::{Mapping, Run};
use super::volume::Ext4;

/// Depth of a tree of 2^32 blocks with 1024-byte nodes.
pub(super) const DEPTH_MAX: u16 = 5;
/// Blocks that one extent can hold; more in `len` mark it as unwritten.
pub(super) const EXTENT_LEN_MAX: u64 = 32768;
/// The first block behind the largest file.
pub(super) const END: u64 = 1 << 32;

/// A checked leaf entry.
pub(super) struct Extent {
    /// First block in the file.
    pub(super) first: u64,
    /// Number of blocks, at least one.
    pub(super) len: u64,
    /// First block in the filesystem.
    pub(super) start: u64,
    pub(super) unwritten: bool,
}

impl Extent {
    pub(super) fn of(raw: &RawExtent) -> Result<Self> {
        let len = u64::from(raw.len.get());
        let unwritten = len > EXTENT_LEN_MAX;
        let len = if unwritten { len.saturating_sub(EXTENT_LEN_MAX) } else { len };
        if len == 0 {
            return Err(wrong("length of an extent", 0, 1));
        }
        let start = u64::from(raw.start_hi.get()) << 32 | u64::from(raw.start_lo.get());
        Ok(Self { first: raw.block.get().into(), len, start, unwritten })
    }
}

/// A node of the tree, and the blocks of the file that it answers for.
struct Node<'a> {
    bytes: &'a [u8],
    entries: usize,
    depth: u16,
    first: u64,
    end: u64,
}

pub(super) fn wrong(what: &'static str, found: u64, expected: u64) -> racker_formats::Error {
    Ext4Fault::ExtentTree { what, found, expected }.into()
}

impl<'a> Node<'a> {
    /// Checks the head of a node. `depth` is the one expected, `first` its smallest block if the parent says it.
    fn parse(bytes: &'a [u8], depth: Option<u16>, first: u64, end: u64) -> Result<Self> {
        let head = take::<RawExtentHeader>(bytes, 0, "extent node")?;
        if head.magic.get() != EXTENT_MAGIC {
            return Err(wrong("magic", head.magic.get().into(), EXTENT_MAGIC.into()));
        }
        let found = head.depth.get();
        match depth {
            Some(expected) if found != expected => return Err(wrong("depth", found.into(), expected.into())),
            None if found > DEPTH_MAX => return Err(wrong("depth", found.into(), DEPTH_MAX.into())),
            _ => {}
        }
        let room = bytes.len().saturating_sub(EXTENT_BYTES).wrapping_div(EXTENT_BYTES);
        let (entries, max) = (usize::from(head.entries.get()), usize::from(head.max.get()));
        if max > room || entries > max {
            return Err(wrong("number of entries", head.entries.get().into(), head.max.get().into()));
        }
        if found > 0 && entries == 0 {
            return Err(wrong("number of entries of an index", 0, 1));
        }
        Ok(Self { bytes, entries, depth: found, first, end })
    }

    fn entry<T: racker_formats::wire::Layout>(&self, number: usize) -> Result<T> {
        let at = number.saturating_add(1).saturating_mul(EXTENT_BYTES);
        take(self.bytes, at, "extent entry")
    }

    /// The leaf's extent that holds block `at` or the hole around it.
    fn find_extent(&self, fs: &Ext4, inner: bool, at: u64) -> Result<Run> {
        let mut from = self.first;
        let mut found = None;
        let mut hole_end = self.end;
        for number in 0..self.entries {
            let extent = Extent::of(&self.entry(number)?)?;
            let starts_right = !inner || number > 0 || extent.first == self.first;
            let end = extent.first.saturating_add(extent.len);
            if extent.first < from || !starts_right || end > self.end {
                return Err(wrong("block of an extent", extent.first, from));
            }
            from = end;
            fs.sb.check_blocks("an extent", extent.start, extent.len)?;
            if extent.first > at {
                hole_end = hole_end.min(extent.first);
            } else if end > at {
                found = Some(extent);
            }
        }
        let Some(extent) = found else {
            return Ok(Run::new(hole_end.saturating_sub(at), Mapping::Hole));
        };
        let skip = at.saturating_sub(extent.first);
        let start = extent.start.saturating_add(skip);
        let to = if extent.unwritten { Mapping::Unwritten(start) } else { Mapping::Data(start) };
        Ok(Run::new(extent.len.saturating_sub(skip), to))
    }

    /// The child that answers for block `at`: its block and its range; `None` before the first child.
    fn find_child(&self, inner: bool, at: u64) -> Result<(Option<u64>, u64, u64)> {
        let mut last = None;
        let mut found = (None, self.first, self.end);
        for number in 0..self.entries {
            let raw = self.entry::<RawExtentIndex>(number)?;
            let first = u64::from(raw.block.get());
            let starts_right = !inner || number > 0 || first == self.first;
            let ascends = last.is_none_or(|l| first > l);
            if first < self.first || first >= self.end || !ascends || !starts_right {
                return Err(wrong("block of an index", first, last.unwrap_or(self.first)));
            }
            last = Some(first);
            if first <= at {
                let block = u64::from(raw.leaf_hi.get()) << 32 | u64::from(raw.leaf_lo.get());
                found = (Some(block), first, self.end);
            } else {
                found.2 = found.2.min(first);
            }
        }
        Ok(found)
    }
}

/// Where block `at` of a file with an extent tree is, and how many blocks go on in the same way.
pub(super) fn lookup(fs: &Ext4, inode: &Inode, at: u64) -> Result<Run> {
    let mut holder;
    let mut node = Node::parse(inode.block(), None, 0, END)?;
    let mut inner = false;
    while node.depth > 0 {
        let depth = node.depth.saturating_sub(1);
        let (child, first, end) = node.find_child(inner, at)?;
        let Some(block) = child else {
            return Ok(Run::new(end.saturating_sub(at), Mapping::Hole));
        };
        let place = || format!("extent block {block}");
        fs.sb.check_blocks("an extent index", block, 1)?;
        holder = fs.block("an extent index", block).within(place)?;
        node = Node::parse(&holder, Some(depth), first, end).within(place)?;
        check_sum(fs, inode, &holder).within(place)?;
        inner = true;
    }
    node.find_extent(fs, inner, at)
}

/// Verifies the checksum of a tree block, which follows the room for entries.
pub(super) fn check_sum(fs: &Ext4, inode: &Inode, block: &[u8]) -> Result<()> {
    if !fs.sb.features.has_metadata_csum() {
        return Ok(());
    }
    let max = take::<RawExtentHeader>(block, 0, "extent node")?.max.get();
    let tail = EXTENT_BYTES.saturating_mul(usize::from(max).saturating_add(1));
    let found = u32::from_le_bytes(take::<[u8; 4]>(block, tail, "checksum of an extent node")?);
    let computed = crc32c(inode.csum_seed, part(block, 0, tail, "extent node")?);
    if !sum_holds(found, computed) {
        return Err(Ext4Fault::Checksum { what: "the extent block", found, computed }.into());
    }
    Ok(())
}
