//! Fast commits: single changes that were logged behind the last full transaction.
//!
//! The kernel carries them out when it recovers. A reader needs not: what they change is kept beside the
//! filesystem and consulted wherever an inode, a block mapping or a directory is read. An incomplete last commit
//! counts as not made, as nobody was told that it was.
//!
//! The area is a row of tags (type, length, value) in blocks of the journal; a tail tag with the right checksum
//! closes a commit. All numbers in it are little-endian.

use std::collections::BTreeMap;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{len64, part, take};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::csum::crc32c;
use super::dir::Entry;
use super::fault::Ext4Fault;
use super::inode::Inode;
use super::journal::Journal;
use super::layout::{
    EXTENT_BYTES, EXTENT_MAGIC, INODE_BLOCK_AT, INODE_GENERATION_AT, OLD_INODE_BYTES, RawExtent,
    RawExtentHeader, inode_flags,
};
use super::map::{Mapping, Run};
use super::volume::Ext4;
use crate::filesystem::NodeKind;

/// Bytes of tags that are kept: the area has 256 blocks unless the user asks for more, 1 MiB with the usual ones.
const TAG_BYTES_MAX: usize = 4 << 20;

/// Kinds of tags.
mod tag {
    pub(super) const ADD_RANGE: u16 = 1;
    pub(super) const DEL_RANGE: u16 = 2;
    pub(super) const CREAT: u16 = 3;
    pub(super) const LINK: u16 = 4;
    pub(super) const UNLINK: u16 = 5;
    pub(super) const INODE: u16 = 6;
    pub(super) const PAD: u16 = 7;
    pub(super) const TAIL: u16 = 8;
    pub(super) const HEAD: u16 = 9;
}

/// Head of a tag.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTag {
    kind: U16,
    len: U16,
}

/// Two numbers, of which every kind of value begins with one or two.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPair {
    first: U32,
    second: U32,
}

/// What fast commits change.
#[derive(Debug, Default)]
pub(super) struct FastCommits {
    /// Inodes as they are now.
    inodes: BTreeMap<u32, Vec<u8>>,
    /// By inode, by first block: blocks that are mapped differently now.
    maps: BTreeMap<u32, BTreeMap<u64, Run>>,
    dirs: BTreeMap<u32, DirChanges>,
}

/// What is different in a directory.
#[derive(Debug, Default)]
pub(super) struct DirChanges {
    /// It was made by a fast commit: nothing of what is stored counts.
    pub(super) is_new: bool,
    /// The inode that a name has now, or that it is gone.
    pub(super) names: BTreeMap<Vec<u8>, Option<u32>>,
}

/// One tag that changes something.
struct Tag {
    kind: u16,
    value: Vec<u8>,
}

impl FastCommits {
    /// Whether nothing is different.
    pub(super) fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.maps.is_empty() && self.dirs.is_empty()
    }

    pub(super) fn inode(&self, number: u32) -> Option<&[u8]> {
        self.inodes.get(&number).map(Vec::as_slice)
    }

    pub(super) fn dir(&self, number: u32) -> Option<&DirChanges> {
        self.dirs.get(&number)
    }

    /// Where block `at` of an inode is, if `below` says where it was.
    pub(super) fn map(&self, number: u32, at: u64, below: impl FnOnce() -> Result<Run>) -> Result<Run> {
        let Some(pieces) = self.maps.get(&number) else { return below() };
        if let Some((first, run)) = pieces.range(..=at).next_back()
            && let Some(rest) = rest_of(*run, at.saturating_sub(*first))
        {
            return Ok(rest);
        }
        let run = below()?;
        let next = pieces.range(at..).next().map_or(u64::MAX, |(first, _)| *first);
        Ok(Run { len: run.len.min(next.saturating_sub(at)), ..run })
    }

    /// Maps the blocks of `number` from `first` on as `run` says.
    fn set_map(&mut self, number: u32, first: u64, run: Run) {
        let pieces = self.maps.entry(number).or_default();
        let end = first.saturating_add(run.len);
        // What begins before and reaches into the new piece is cut, what it covers goes, what reaches beyond stays.
        let touched: Vec<(u64, Run)> = pieces
            .range(..end)
            .rev()
            .take_while(|(start, old)| start.saturating_add(old.len) > first)
            .map(|(start, old)| (*start, *old))
            .collect();
        for (start, old) in touched {
            pieces.remove(&start);
            if start < first {
                pieces.insert(start, Run { len: first.saturating_sub(start), ..old });
            }
            if let Some(behind) = rest_of(old, end.saturating_sub(start)) {
                pieces.insert(end, behind);
            }
        }
        pieces.insert(first, run);
    }
}

/// What remains of a run behind its first `skip` blocks.
fn rest_of(run: Run, skip: u64) -> Option<Run> {
    let len = run.len.checked_sub(skip).filter(|len| *len > 0)?;
    let to = match run.to {
        Mapping::Data(block) => Mapping::Data(block.saturating_add(skip)),
        Mapping::Unwritten(block) => Mapping::Unwritten(block.saturating_add(skip)),
        Mapping::Hole => Mapping::Hole,
    };
    Some(Run { len, to, ..run })
}

/// Reads the fast commits that follow transaction `expected - 1` and keeps what they change in `fs`.
pub(super) fn recover(journal: &Journal<'_>, expected: u32, fs: &mut Ext4) -> Result<()> {
    let tags = completed(journal, expected, fs.sb.inode_bytes)?;
    let stored = stored_names(fs, &tags)?;
    for tag in &tags {
        apply(fs, tag, &stored).within(|| "fast commit")?;
    }
    Ok(())
}

/// The tags of all completed commits, in order.
fn completed(journal: &Journal<'_>, expected: u32, inode_bytes: usize) -> Result<Vec<Tag>> {
    let (mut done, mut pending) = (Vec::new(), Vec::new());
    let mut crc = 0u32;
    let mut kept = 0usize;
    for number in journal.fast.clone() {
        let block = journal.block(number)?;
        let mut at = 0usize;
        while let Some((kind, value)) = next_tag(&block, at, inode_bytes) {
            let whole = part(&block, at, value.len().saturating_add(4), "fast commit tag")?;
            // Head and tail are only as good as the transaction they name.
            let pair = take::<RawPair>(value, 0, "fast commit tag").ok();
            match (kind, pair) {
                (tag::HEAD, Some(head)) => {
                    let features = head.first.get();
                    if head.second.get() != expected {
                        return Ok(done);
                    }
                    if features != 0 {
                        return Err(Ext4Fault::Features(format!("fast commit {features:#x}")).into());
                    }
                    crc = crc32c(crc, whole);
                }
                (tag::TAIL, Some(tail)) => {
                    crc = crc32c(crc, part(whole, 0, 8, "fast commit tail")?);
                    if tail.first.get() != expected || tail.second.get() != crc {
                        return Ok(done);
                    }
                    done.append(&mut pending);
                    crc = 0;
                }
                _ => {
                    crc = crc32c(crc, whole);
                    if kind != tag::PAD {
                        pending.push(Tag { kind, value: value.to_vec() });
                    }
                }
            }
            at = at.saturating_add(whole.len());
            // The first tag of all must be a head.
            if number == journal.fast.start && at == whole.len() && kind != tag::HEAD {
                return Ok(done);
            }
            kept = kept.saturating_add(whole.len());
            if kept > TAG_BYTES_MAX {
                let (found, max) = (len64(kept), len64(TAG_BYTES_MAX));
                return Err(Ext4Fault::Limit { what: "bytes of fast commits", found, max }.into());
            }
        }
        // A tag that is none ends the area; a block that was used up does not.
        if at.saturating_add(4) <= block.len() {
            break;
        }
    }
    Ok(done)
}

/// The tag at byte `at` of a block; `None` at the block's end and for what is no tag.
fn next_tag(block: &[u8], at: usize, inode_bytes: usize) -> Option<(u16, &[u8])> {
    let head = take::<RawTag>(block, at, "fast commit tag").ok()?;
    let len = usize::from(head.len.get());
    let value = part(block, at.checked_add(4)?, len, "fast commit tag").ok()?;
    let fits = match head.kind.get() {
        tag::ADD_RANGE => len == 16,
        tag::DEL_RANGE => len == 12,
        tag::CREAT | tag::LINK | tag::UNLINK => (9..=8 + 255).contains(&len),
        tag::INODE => len >= 4 + OLD_INODE_BYTES && len <= inode_bytes.saturating_add(4),
        tag::PAD => true,
        tag::TAIL => len >= 8,
        tag::HEAD => len == 8,
        _ => false,
    };
    fits.then_some((head.kind.get(), value))
}

/// The inodes that the names in the tags have in the filesystem as stored, each directory read once.
fn stored_names(fs: &Ext4, tags: &[Tag]) -> Result<BTreeMap<(u32, Vec<u8>), u32>> {
    let mut wanted: BTreeMap<u32, BTreeMap<&[u8], Option<u32>>> = BTreeMap::new();
    for tag in tags.iter().filter(|t| matches!(t.kind, tag::CREAT | tag::LINK | tag::UNLINK)) {
        let (dir, _, name) = dentry(tag)?;
        wanted.entry(dir).or_default().insert(name, None);
    }
    // Directories that share blocks are no directories.
    let mut budget = fs.sb.blocks;
    let mut found = BTreeMap::new();
    for (number, names) in &mut wanted {
        // One that only a fast commit has made is no directory yet, or no longer.
        let Ok(dir) = fs.inode((*number).into()) else { continue };
        if dir.kind != Some(NodeKind::Dir) {
            continue;
        }
        budget = budget
            .checked_sub(fs.sb.block_size.count(dir.size))
            .ok_or(Ext4Fault::TooManyBlocks { what: "a fast commit" })?;
        fs.stored_entries(&dir, &mut |entry: Entry<'_>| {
            if let Some(slot) = names.get_mut(entry.name) {
                *slot = Some(entry.inode);
            }
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        for (name, inode) in names {
            if let Some(inode) = inode {
                found.insert((*number, name.to_vec()), *inode);
            }
        }
    }
    Ok(found)
}

/// The directory, the inode and the name of a tag about a directory entry.
fn dentry(tag: &Tag) -> Result<(u32, u32, &[u8])> {
    let pair = take::<RawPair>(&tag.value, 0, "fast commit entry")?;
    Ok((pair.first.get(), pair.second.get(), tag.value.get(8..).unwrap_or_default()))
}

fn apply(fs: &mut Ext4, tag: &Tag, stored: &BTreeMap<(u32, Vec<u8>), u32>) -> Result<()> {
    match tag.kind {
        tag::INODE => set_inode(fs, &tag.value),
        tag::ADD_RANGE | tag::DEL_RANGE => set_range(fs, tag),
        _ => set_name(fs, tag, stored),
    }
}

/// Takes over an inode, all but its block map, which the ranges bring up to date.
fn set_inode(fs: &mut Ext4, value: &[u8]) -> Result<()> {
    let number = u32::from_le_bytes(take::<[u8; 4]>(value, 0, "fast commit inode")?);
    let new = value.get(4..).unwrap_or_default();
    let mut bytes = match fs.fast.inodes.get(&number) {
        Some(bytes) => bytes.clone(),
        None => fs.inode_bytes(number)?,
    };
    let flags = Inode::parse_unchecked(&fs.sb, number, new.to_vec()).map(|i| (i.flags, i.kind));
    let (flags, kind) = flags.unwrap_or_default();
    let is_mapped = flags & inode_flags::EXTENTS != 0;
    let has_blocks = matches!(kind, Some(NodeKind::File | NodeKind::Dir));
    let copied = if is_mapped || (has_blocks && flags & inode_flags::INLINE_DATA == 0) {
        [0..INODE_BLOCK_AT, INODE_GENERATION_AT..new.len()]
    } else {
        // Inline data, a short link's target, a device's number.
        [0..new.len(), 0..0]
    };
    for range in copied {
        if let (Some(to), Some(from)) = (bytes.get_mut(range.clone()), new.get(range)) {
            to.copy_from_slice(from);
        }
    }
    let root = bytes.get_mut(INODE_BLOCK_AT..INODE_GENERATION_AT).unwrap_or_default();
    if is_mapped && take::<RawExtentHeader>(root, 0, "extent root")?.magic.get() != EXTENT_MAGIC {
        // No entries, room for four, no levels.
        let [lo, hi] = EXTENT_MAGIC.to_le_bytes();
        let empty: [u8; EXTENT_BYTES] = [lo, hi, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        if let Some(head) = root.first_chunk_mut::<EXTENT_BYTES>() {
            *head = empty;
        }
    }
    fs.fast.inodes.insert(number, bytes);
    Ok(())
}

fn set_range(fs: &mut Ext4, tag: &Tag) -> Result<()> {
    let number = u32::from_le_bytes(take::<[u8; 4]>(&tag.value, 0, "fast commit range")?);
    if tag.kind == tag::DEL_RANGE {
        let range = take::<RawPair>(&tag.value, 4, "fast commit range")?;
        let run = Run::new(range.second.get().into(), Mapping::Hole);
        if run.len > 0 {
            fs.fast.set_map(number, range.first.get().into(), run);
        }
        return Ok(());
    }
    let raw = take::<RawExtent>(&tag.value, 4, "fast commit range")?;
    let extent = super::extent::Extent::of(&raw)?;
    fs.sb.check_blocks("a fast commit", extent.start, extent.len)?;
    let to = if extent.unwritten { Mapping::Unwritten(extent.start) } else { Mapping::Data(extent.start) };
    fs.fast.set_map(number, extent.first, Run::new(extent.len, to));
    Ok(())
}

fn set_name(fs: &mut Ext4, tag: &Tag, stored: &BTreeMap<(u32, Vec<u8>), u32>) -> Result<()> {
    let (number, inode, name) = dentry(tag)?;
    let key = (number, name.to_vec());
    if tag.kind == tag::CREAT && fs.any_inode(inode)?.kind == Some(NodeKind::Dir) {
        // If the directory was made before the crash after all, what is in it now comes from this log too.
        let is_there = stored.get(&key) == Some(&inode);
        fs.fast.dirs.entry(inode).or_default().is_new |= !is_there;
    }
    let dir = fs.fast.dirs.entry(number).or_default();
    let before = if dir.is_new { None } else { stored.get(&key).copied() };
    let now = dir.names.get(name).copied().unwrap_or(before);
    match tag.kind {
        // A name that is taken stays with what has it, one that went to another inode is not removed.
        tag::UNLINK if now == Some(inode) => drop(dir.names.insert(key.1, None)),
        tag::CREAT | tag::LINK if now.is_none() => drop(dir.names.insert(key.1, Some(inode))),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(len: u64, block: u64) -> Run {
        Run::new(len, Mapping::Data(block))
    }

    #[test]
    fn later_ranges_cover_earlier_ones() {
        let mut fast = FastCommits::default();
        fast.set_map(12, 10, data(10, 100));
        fast.set_map(12, 14, Run::new(2, Mapping::Hole));
        fast.set_map(12, 18, data(10, 500));
        let all: Vec<(u64, Run)> = fast.maps[&12].iter().map(|(a, r)| (*a, *r)).collect();
        let hole = Run::new(2, Mapping::Hole);
        assert_eq!(all, [(10, data(4, 100)), (14, hole), (16, data(2, 106)), (18, data(10, 500))]);
        let below = || Ok(data(1000, 9000));
        assert_eq!(fast.map(12, 3, below).unwrap(), data(7, 9000));
        assert_eq!(fast.map(12, 17, below).unwrap(), data(1, 107));
        assert_eq!(fast.map(12, 28, below).unwrap(), data(1000, 9000));
        assert_eq!(fast.map(13, 17, below).unwrap(), data(1000, 9000));
        fast.set_map(12, 0, data(100, 1));
        assert_eq!(fast.maps[&12].len(), 1);
    }
}
