//! A block of directory entries: every entry, every free stretch, and the table of the longest of them.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part, take};
use zerocopy::big_endian::U16;

use super::super::da::DaFork;
use super::super::dir::DATA_BLOCKS;
use super::super::edit::dir::entry_bytes;
use super::super::fault::Fault;
use super::super::layout::{
    RawDirBlockTail, RawDirData, RawDirData4, RawDirEntry, RawDirFree, RawDirHead, RawDirLeafEntry,
    RawDirUnused,
};
use super::super::units::FileBlock;
use super::Checker;

const WHAT: &str = "directory block";
/// What a free stretch begins with.
const FREE_TAG: u16 = 0xffff;
/// Bytes of the offset that every entry and every free stretch ends with.
const TAG: usize = size_of::<U16>();
/// Entries begin at multiples of this.
const ALIGN: usize = 8;

/// An entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) ino: u64,
    pub(super) ftype: Option<u8>,
    /// Where it is in the block.
    pub(super) at: usize,
}

/// A block of entries, taken apart.
#[derive(Debug, Default)]
pub(super) struct DirBlock {
    pub(super) entries: Vec<Entry>,
    /// Length of the longest free stretch.
    pub(super) best: u16,
    /// Hash and address of each entry, where it is the only block.
    pub(super) leaves: Option<Vec<(u32, u32)>>,
}

fn damaged<T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: WHAT, why }.into())
}

impl Checker<'_> {
    /// Reads the directory block at `at`.
    pub(super) fn dir_block(&mut self, fork: &DaFork<'_>, at: FileBlock) -> Result<DirBlock> {
        let volume = std::sync::Arc::clone(&self.volume);
        let (kind, block) = volume.da_block(fork, at, &DATA_BLOCKS)?;
        self.stamped(kind, &block.bytes)?;
        let bytes = block.bytes.as_slice();
        let mut found = DirBlock::default();
        let v5 = volume.sb.v5;
        let start = if v5 { size_of::<RawDirData>() } else { size_of::<RawDirData4>() };
        let mut end = bytes.len();
        if kind.what == WHAT {
            let (leaves, from) = leaves_of(bytes, start)?;
            found.leaves = Some(leaves);
            end = from;
        }
        let (mut next, mut free) = (start, Vec::new());
        while next < end {
            let tag: U16 = take(bytes, next, WHAT)?;
            let len = if tag.get() == FREE_TAG {
                let raw: RawDirUnused = take(bytes, next, WHAT)?;
                if free.last().is_some_and(|(_, _, behind)| *behind == next) {
                    return damaged("two free stretches, one behind the other");
                }
                let len = usize::from(raw.length.get());
                free.push((raw.length.get(), next, next.saturating_add(len)));
                len
            } else {
                let raw: RawDirEntry = take(bytes, next, WHAT)?;
                let name_at = next.saturating_add(size_of::<RawDirEntry>());
                let name = part(bytes, name_at, raw.namelen.into(), WHAT)?;
                let type_at = name_at.saturating_add(name.len());
                let ftype = if volume.sb.ftype() { Some(take::<u8>(bytes, type_at, WHAT)?) } else { None };
                found.entries.push(Entry { name: name.to_vec(), ino: raw.inumber.get(), ftype, at: next });
                entry_bytes(&volume.sb, name.len())
            };
            let behind = next.saturating_add(len);
            if len == 0 || !len.is_multiple_of(ALIGN) || behind > end {
                return damaged("no length of an entry or of a free stretch")
                    .within(|| format!("byte {next}"));
            }
            let tag: U16 = take(bytes, behind.saturating_sub(TAG), WHAT)?;
            if u64::from(tag.get()) != len64(next) {
                return damaged("an entry or a free stretch does not say where it is")
                    .within(|| format!("byte {next}"));
            }
            next = behind;
        }
        let free: Vec<(u16, usize)> = free.into_iter().map(|(len, at, _)| (len, at)).collect();
        let table_at = if v5 { size_of::<RawDirHead>() } else { size_of::<u32>() };
        found.best = bests(bytes, table_at, &free)?;
        Ok(found)
    }
}

/// The leaf entries of the only block of a directory, and where they begin.
fn leaves_of(bytes: &[u8], start: usize) -> Result<(Vec<(u32, u32)>, usize)> {
    let tail_at = bytes.len().saturating_sub(size_of::<RawDirBlockTail>());
    let tail: RawDirBlockTail = take(bytes, tail_at, WHAT)?;
    let count = index(tail.count.get().into())?;
    let from = count.checked_mul(size_of::<RawDirLeafEntry>()).and_then(|len| tail_at.checked_sub(len));
    let Some(from) = from.filter(|from| *from >= start) else { return damaged("more leaf entries than fit") };
    let leaves = leaf_entries(bytes, from, count, tail.stale.get())?;
    Ok((leaves, from))
}

/// `count` leaf entries at `from`, of which `stale` are of entries that were removed. Hash and address of the others.
pub(super) fn leaf_entries(bytes: &[u8], from: usize, count: usize, stale: u32) -> Result<Vec<(u32, u32)>> {
    let (mut all, mut last, mut gone) = (Vec::new(), 0, 0u32);
    for i in 0..count {
        let at = from.saturating_add(i.saturating_mul(size_of::<RawDirLeafEntry>()));
        let raw: RawDirLeafEntry = take(bytes, at, "directory leaf")?;
        if raw.hashval.get() < last {
            return Err(Fault::Structure { what: "directory leaf", why: "hashes are out of order" }.into());
        }
        last = raw.hashval.get();
        if raw.address.get() == 0 {
            gone = gone.saturating_add(1);
        } else {
            all.push((last, raw.address.get()));
        }
    }
    if gone != stale {
        let why = "not as many as there are";
        return Err(Fault::Field { what: "stale", found: stale.into(), why }.into());
    }
    Ok(all)
}

/// Compares the table of the longest free stretches. Returns the longest one's length.
fn bests(bytes: &[u8], table_at: usize, free: &[(u16, usize)]) -> Result<u16> {
    let mut lengths: Vec<u16> = free.iter().map(|(len, _)| *len).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    for i in 0..3usize {
        let at = table_at.saturating_add(i.saturating_mul(size_of::<RawDirFree>()));
        let raw: RawDirFree = take(bytes, at, WHAT)?;
        let (len, place) = (raw.length.get(), usize::from(raw.offset.get()));
        let expected = lengths.get(i).copied().unwrap_or(0);
        let there = if len == 0 { place == 0 } else { free.contains(&(len, place)) };
        if len != expected || !there {
            return damaged("the table of free stretches is not that of the longest ones");
        }
    }
    Ok(lengths.first().copied().unwrap_or(0))
}
