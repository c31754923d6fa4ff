//! Directory blocks: entries and free stretches one behind the other; the only block of a small directory also
//! has the leaf entries at its end.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part, take};
use zerocopy::big_endian::U16;

use super::super::da::{DaBlock, DaFork};
use super::super::described::DIR_SELF;
use super::super::fault::Fault;
use super::super::layout::{
    DIR_BLOCK_MAGIC, DIR_DATA_MAGIC, RawDirBlockTail, RawDirData, RawDirData4, RawDirEntry, RawDirLeafEntry,
    RawDirUnused,
};
use super::super::units::{FileBlock, InodeNo};
use super::super::volume::{BlockKind, Volume};
use super::{Entry, PLACE_SHIFT, Place, VisitEntry, Wanted, places_of};
use crate::filesystem::NodeKind;

/// Blocks with entries: the only one, and one of several.
pub(in super::super) const BLOCKS: [BlockKind; 2] = [
    BlockKind::new(WHAT, DIR_BLOCK_MAGIC, DIR_SELF),
    BlockKind::new("directory data block", DIR_DATA_MAGIC, DIR_SELF),
];
const WHAT: &str = "directory block";
/// What a free stretch begins with where an entry has the highest bits of its inode number.
const FREE_TAG: u16 = 0xffff;
/// Bytes of the offset that every entry and every free stretch ends with.
const TAG: usize = 2;

/// A directory block and where its entries end.
#[derive(Debug)]
pub(in super::super) struct Data {
    block: DaBlock,
    start: usize,
    end: usize,
    /// Leaf entries between `end` and the block's tail.
    leaf_count: Option<usize>,
}

impl Volume {
    /// Calls `visit` for the entries of the directory block at `at`.
    pub(super) fn block_entries(
        &self,
        fork: &DaFork<'_>,
        at: FileBlock,
        visit: &mut VisitEntry<'_>,
    ) -> Result<ControlFlow<()>> {
        let data = self.dir_data(fork, at)?;
        let mut next = data.start;
        while next < data.end {
            let tag: U16 = take(&data.block.bytes, next, WHAT)?;
            if tag.get() == FREE_TAG {
                next = next.saturating_add(free_len(&data, next)?);
                continue;
            }
            let (entry, len) = self.entry(&data, next).within(|| format!("entry at {next}"))?;
            if visit(entry)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            next = next.saturating_add(len);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The block with byte `at` of the fork, and the byte's place in it.
    fn data_at<'d>(
        &self,
        fork: &DaFork<'_>,
        at: u64,
        last: &'d mut Option<Data>,
    ) -> Result<(&'d Data, usize)> {
        let (block, within) = self.sb.dir_block_size.split(at);
        let first = self.sb.dir_block_size.start_of(block).unwrap_or(u64::MAX);
        let first = FileBlock(self.sb.block_size.count(first));
        let data = match last.take().filter(|data| data.block.at == first) {
            Some(data) => data,
            None => self.dir_data(fork, first)?,
        };
        let data = last.insert(data);
        let within = index(within)?;
        if within < data.start || within >= data.end {
            let why = "a leaf points outside of the entries";
            return Err(Fault::Structure { what: WHAT, why }.into());
        }
        Ok((data, within))
    }

    /// The entry at byte `at` of the fork. `last` keeps the block for the next call.
    pub(in super::super) fn entry_of(
        &self,
        fork: &DaFork<'_>,
        at: u64,
        last: &mut Option<Data>,
    ) -> Result<Entry> {
        let (data, within) = self.data_at(fork, at, last)?;
        Ok(self.entry(data, within).within(|| format!("entry at {within}"))?.0)
    }

    /// The entry `name` of a directory of one block.
    pub(super) fn find_in_block(&self, fork: &DaFork<'_>, name: &[u8]) -> Result<Option<Entry>> {
        let data = self.dir_data(fork, FileBlock(0))?;
        let Some(count) = data.leaf_count else {
            let why = "a larger directory without leaves";
            return Err(Fault::Structure { what: WHAT, why }.into());
        };
        let mut wanted = Wanted::new(&self.sb, name);
        let hash = self.sb.name_hash(name);
        for place in places_of(&data.block.bytes, data.end, count, hash, &mut None)? {
            let at = index(u64::from(place) << PLACE_SHIFT)?;
            if at < data.start || at >= data.end {
                let why = "a leaf entry points outside of the entries";
                return Err(Fault::Structure { what: WHAT, why }.into());
            }
            let (entry, _) = self.entry(&data, at).within(|| format!("entry at {at}"))?;
            if wanted.meets(entry) {
                break;
            }
        }
        Ok(wanted.found())
    }

    fn dir_data(&self, fork: &DaFork<'_>, at: FileBlock) -> Result<Data> {
        let (kind, block) = self.da_block(fork, at, &BLOCKS)?;
        let start = if self.sb.v5 { size_of::<RawDirData>() } else { size_of::<RawDirData4>() };
        let mut end = block.bytes.len();
        let mut leaf_count = None;
        if kind.what == WHAT {
            end = end.saturating_sub(size_of::<RawDirBlockTail>());
            let tail: RawDirBlockTail = take(&block.bytes, end, WHAT)?;
            let count = index(tail.count.get().into())?;
            let leaves = count.checked_mul(size_of::<RawDirLeafEntry>());
            let left = leaves.and_then(|l| end.checked_sub(l)).filter(|left| *left >= start);
            end = left.ok_or(Fault::Field {
                what: "count",
                found: tail.count.get().into(),
                why: "more leaf entries than fit into the directory's block",
            })?;
            leaf_count = Some(count);
        }
        Ok(Data { block, start, end, leaf_count })
    }

    /// The entry at `at`, and its length.
    fn entry(&self, data: &Data, at: usize) -> Result<(Entry, usize)> {
        let bytes = part(&data.block.bytes, 0, data.end, WHAT)?;
        let raw: RawDirEntry = take(bytes, at, WHAT)?;
        let name_at = at.saturating_add(size_of::<RawDirEntry>());
        let name = part(bytes, name_at, raw.namelen.into(), WHAT)?;
        let behind = name_at.saturating_add(name.len());
        let ftype = usize::from(self.sb.ftype());
        let len = behind.saturating_add(ftype).saturating_add(TAG).saturating_sub(at).next_multiple_of(8);
        let tag: U16 = take(bytes, at.saturating_add(len).saturating_sub(TAG), WHAT)?;
        if name.is_empty() || u64::from(tag.get()) != len64(at) {
            return Err(Fault::Structure { what: WHAT, why: "no entry begins here" }.into());
        }
        let kind = if ftype == 1 { NodeKind::from_entry_type(take(bytes, behind, WHAT)?) } else { None };
        let ino = InodeNo(raw.inumber.get());
        self.sb.inode_offset(ino)?;
        let place = Place::Block { block: data.block.at, at };
        Ok((Entry { name: name.to_vec(), ino, kind, place }, len))
    }
}

/// The length of the free stretch at `at`.
fn free_len(data: &Data, at: usize) -> Result<usize> {
    let raw: RawDirUnused = take(&data.block.bytes, at, WHAT)?;
    let len = usize::from(raw.length.get());
    let end = at.saturating_add(len);
    if len == 0 || !len.is_multiple_of(8) || end > data.end {
        let found = raw.length.get().into();
        return Err(Fault::Field { what: "length", found, why: "no length of a free stretch" }.into());
    }
    let tag: U16 = take(&data.block.bytes, end.saturating_sub(TAG), WHAT)?;
    if u64::from(tag.get()) != len64(at) {
        return Err(Fault::Structure { what: WHAT, why: "no free stretch begins here" }.into());
    }
    Ok(len)
}
