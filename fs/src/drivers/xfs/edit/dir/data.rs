//! A block of directory entries, taken apart: the entries stay where they are, the free stretches between them are
//! written anew.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part_mut, take};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U64};

use super::super::super::described::DIR_SELF;
use super::super::super::dir::DATA_BLOCKS;
use super::super::super::fault::Fault;
use super::super::super::inode::Inode;
use super::super::super::layout::{
    DIR_BLOCK_MAGIC, DIR_DATA_MAGIC, RawDirBlockTail, RawDirData, RawDirEntry, RawDirFree, RawDirHead,
    RawDirLeafEntry, RawDirUnused,
};
use super::super::super::superblock::Superblock;
use super::super::super::units::{Daddr, FileBlock, InodeNo, Lsn};
use super::super::Edit;
use super::super::shortdir::ShortEntry;
use super::{Geometry, NewEntry};

const WHAT: &str = "directory block";
const HEAD: usize = size_of::<RawDirData>();
const TAIL: usize = size_of::<RawDirBlockTail>();
const LEAF: usize = size_of::<RawDirLeafEntry>();
/// Bytes of the offset that every entry and every free stretch ends with.
const TAG: usize = size_of::<U16>();
/// What a free stretch begins with.
const FREE_TAG: u16 = 0xffff;
/// Entries begin at multiples of this.
const ALIGN: usize = 8;

fn damaged(why: &'static str) -> Fault {
    Fault::Structure { what: WHAT, why }
}

/// Bytes of an entry whose name has `name` bytes.
pub(in crate::drivers::xfs) fn entry_bytes(sb: &Superblock, name: usize) -> usize {
    let fixed = size_of::<RawDirEntry>().saturating_add(usize::from(sb.ftype())).saturating_add(TAG);
    fixed.saturating_add(name).next_multiple_of(ALIGN)
}

/// A block of entries.
#[derive(Debug)]
pub(super) struct DataBlock {
    at: FileBlock,
    bytes: Vec<u8>,
    /// Place and length of each entry, in order.
    used: Vec<(usize, usize)>,
    /// The only block of the directory: it has the leaf entries too.
    pub(super) only: bool,
    /// Hash and address of each entry, in the only block; in no order.
    pub(super) leaves: Vec<(u32, u32)>,
}

impl Edit {
    /// Reads data block `number` of a directory.
    pub(super) fn data_block(&self, dir: &Inode, number: usize) -> Result<DataBlock> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let at = geometry.data(number);
        let fork = self.volume.dir_fork(dir);
        let (kind, block) = self.volume.da_block(&fork, at, &DATA_BLOCKS)?;
        let only = kind.what == DATA_BLOCKS.first().map_or("", |k| k.what);
        DataBlock::parse(&self.volume.sb, at, block.bytes, only)
            .within(|| format!("block {number} of directory {}", dir.ino.0))
    }

    /// Writes a block of entries.
    pub(super) fn put_data(&mut self, dir: &Inode, mut block: DataBlock) -> Result<()> {
        block.finish()?;
        self.write_fork_block(dir, block.at, &block.bytes)
    }
}

impl DataBlock {
    /// A new block without entries, which will begin at `place`.
    pub(super) fn empty(sb: &Superblock, ino: InodeNo, at: FileBlock, place: Daddr) -> Result<Self> {
        let mut bytes = vec![0; index(sb.dir_block_size.bytes())?];
        let none = RawDirFree { offset: 0.into(), length: 0.into() };
        let head = RawDirData {
            hdr: RawDirHead {
                magic: DIR_DATA_MAGIC[1].into(),
                crc: 0.into(),
                blkno: U64::new(place.0),
                lsn: 0.into(),
                uuid: sb.meta_uuid,
                owner: ino.0.into(),
            },
            bestfree: [none; 3],
            pad: 0.into(),
        };
        part_mut(&mut bytes, 0, HEAD, WHAT)?.copy_from_slice(head.as_bytes());
        Ok(Self { at, bytes, used: Vec::new(), only: false, leaves: Vec::new() })
    }

    fn parse(sb: &Superblock, at: FileBlock, bytes: Vec<u8>, only: bool) -> Result<Self> {
        let mut block = Self { at, bytes, used: Vec::new(), only, leaves: Vec::new() };
        let mut end = block.bytes.len();
        if only {
            let tail_at = end.saturating_sub(TAIL);
            let tail: RawDirBlockTail = take(&block.bytes, tail_at, WHAT)?;
            let count = index(tail.count.get().into())?;
            let left = count.checked_mul(LEAF).and_then(|l| tail_at.checked_sub(l)).filter(|l| *l >= HEAD);
            end = left.ok_or_else(|| damaged("more leaf entries than fit"))?;
            for i in 0..count {
                let raw: RawDirLeafEntry =
                    take(&block.bytes, end.saturating_add(i.saturating_mul(LEAF)), WHAT)?;
                if raw.address.get() != 0 {
                    block.leaves.push((raw.hashval.get(), raw.address.get()));
                }
            }
        }
        let mut next = HEAD;
        while next < end {
            let tag: U16 = take(&block.bytes, next, WHAT)?;
            let free = tag.get() == FREE_TAG;
            let len = if free {
                usize::from(take::<RawDirUnused>(&block.bytes, next, WHAT)?.length.get())
            } else {
                let raw: RawDirEntry = take(&block.bytes, next, WHAT)?;
                entry_bytes(sb, raw.namelen.into())
            };
            let behind = next.saturating_add(len);
            if len < ALIGN || !len.is_multiple_of(ALIGN) || behind > end {
                return Err(damaged("an entry is longer than its block, or empty").into());
            }
            let tag: U16 = take(&block.bytes, behind.saturating_sub(TAG), WHAT)?;
            if u64::from(tag.get()) != len64(next) {
                return Err(damaged("an entry does not say where it begins").into());
            }
            if !free {
                block.used.push((next, len));
            }
            next = behind;
        }
        if only && block.leaves.len() != block.used.len() {
            return Err(damaged("not as many leaf entries as entries").into());
        }
        Ok(block)
    }

    /// Where entries have to end if the block has `leaves` leaf entries.
    fn end(&self, leaves: usize) -> usize {
        let behind = if self.only { leaves.saturating_mul(LEAF).saturating_add(TAIL) } else { 0 };
        self.bytes.len().saturating_sub(behind)
    }

    /// The free stretches before `end`: place and length.
    fn free(&self, end: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let starts = std::iter::once(HEAD).chain(self.used.iter().map(|(at, len)| at.saturating_add(*len)));
        let ends = self.used.iter().map(|(at, _)| *at).chain([end]);
        starts.zip(ends).map(|(from, to)| (from, to.saturating_sub(from))).filter(|(_, len)| *len > 0)
    }

    /// The longest free stretch, as the index has it.
    pub(super) fn best(&self) -> u16 {
        let longest = self.free(self.end(self.leaves.len())).map(|(_, len)| len).max().unwrap_or(0);
        u16::try_from(longest).unwrap_or(u16::MAX)
    }

    /// Whether it has no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    /// Whether the entries leave room for `leaves` leaf entries behind them.
    pub(super) fn has_room_for(&self, leaves: usize) -> bool {
        let behind = leaves.saturating_mul(LEAF).saturating_add(TAIL);
        let last = self.used.last().map_or(HEAD, |(at, len)| at.saturating_add(*len));
        last.saturating_add(behind) <= self.bytes.len()
    }

    /// The entries as they would be in the inode.
    pub(super) fn entries(&self, sb: &Superblock) -> Result<Vec<ShortEntry>> {
        let mut all = Vec::with_capacity(self.used.len());
        for (at, _) in &self.used {
            let raw: RawDirEntry = take(&self.bytes, *at, WHAT)?;
            let name_at = at.saturating_add(size_of::<RawDirEntry>());
            let name = racker_formats::wire::part(&self.bytes, name_at, raw.namelen.into(), WHAT)?;
            let behind = name_at.saturating_add(name.len());
            let ftype = if sb.ftype() { Some(take::<u8>(&self.bytes, behind, WHAT)?) } else { None };
            let offset = u16::try_from(*at).map_err(|_| damaged("too large"))?;
            all.push(ShortEntry { name: name.to_vec(), offset, ftype, ino: InodeNo(raw.inumber.get()) });
        }
        Ok(all)
    }

    /// Puts an entry where it fits, if it does. In the only block there is room for its leaf entry then.
    pub(super) fn add(&mut self, sb: &Superblock, new: NewEntry<'_>) -> Result<Option<usize>> {
        let len = entry_bytes(sb, new.name.len());
        let end = self.end(self.leaves.len().saturating_add(1));
        let last = self.used.last().map_or(HEAD, |(at, len)| at.saturating_add(*len));
        if last > end {
            return Ok(None);
        }
        let Some((at, _)) = self.free(end).find(|(_, room)| *room >= len) else { return Ok(None) };
        let namelen = u8::try_from(new.name.len()).map_err(|_| damaged("a name is too long"))?;
        let raw = RawDirEntry { inumber: new.ino.0.into(), namelen };
        let kind = sb.ftype().then(|| new.kind.entry_type());
        let bytes = [raw.as_bytes(), new.name, kind.as_slice()].concat();
        let place = part_mut(&mut self.bytes, at, len, WHAT)?;
        place.fill(0);
        part_mut(place, 0, bytes.len(), WHAT)?.copy_from_slice(&bytes);
        let tag = u16::try_from(at).map_err(|_| damaged("too large"))?;
        part_mut(place, len.saturating_sub(TAG), TAG, WHAT)?.copy_from_slice(&tag.to_be_bytes());
        let slot = self.used.partition_point(|(used, _)| *used < at);
        self.used.insert(slot, (at, len));
        Ok(Some(at))
    }

    /// Takes away the entry at `at`.
    pub(super) fn remove(&mut self, at: usize) -> Result<()> {
        let slot = self.used.binary_search_by_key(&at, |(used, _)| *used);
        self.used.remove(slot.map_err(|_| damaged("no entry begins here"))?);
        Ok(())
    }

    /// Takes away a leaf entry of the only block.
    pub(super) fn forget(&mut self, leaf: (u32, u32)) -> Result<()> {
        let slot = self.leaves.iter().position(|l| *l == leaf);
        self.leaves.swap_remove(slot.ok_or_else(|| damaged("an entry has no leaf entry"))?);
        Ok(())
    }

    /// Makes the entry at `at` name another node.
    pub(super) fn point(&mut self, sb: &Superblock, at: usize, new: NewEntry<'_>) -> Result<()> {
        if self.used.binary_search_by_key(&at, |(used, _)| *used).is_err() {
            return Err(damaged("no entry begins here").into());
        }
        part_mut(&mut self.bytes, at, 8, WHAT)?.copy_from_slice(&new.ino.0.to_be_bytes());
        if sb.ftype() {
            let raw: RawDirEntry = take(&self.bytes, at, WHAT)?;
            let behind = at.saturating_add(size_of::<RawDirEntry>()).saturating_add(raw.namelen.into());
            part_mut(&mut self.bytes, behind, 1, WHAT)?.copy_from_slice(&[new.kind.entry_type()]);
        }
        Ok(())
    }

    /// Writes what stands between the entries and behind them, and the checksum.
    fn finish(&mut self) -> Result<()> {
        let end = self.end(self.leaves.len());
        let mut free: Vec<(usize, usize)> = self.free(end).collect();
        let narrow = |n: usize| u16::try_from(n).map_err(|_| damaged("too large"));
        for (at, len) in &free {
            let raw = RawDirUnused { freetag: FREE_TAG.into(), length: narrow(*len)?.into() };
            part_mut(&mut self.bytes, *at, size_of::<RawDirUnused>(), WHAT)?.copy_from_slice(raw.as_bytes());
            let behind = at.saturating_add(*len).saturating_sub(TAG);
            part_mut(&mut self.bytes, behind, TAG, WHAT)?.copy_from_slice(&narrow(*at)?.to_be_bytes());
        }
        free.sort_unstable_by_key(|(_, len)| std::cmp::Reverse(*len));
        let mut head: RawDirData = take(&self.bytes, 0, WHAT)?;
        for (i, best) in head.bestfree.iter_mut().enumerate() {
            let (at, len) = free.get(i).copied().unwrap_or((0, 0));
            *best = RawDirFree { offset: narrow(at)?.into(), length: narrow(len)?.into() };
        }
        let magic = if self.only { DIR_BLOCK_MAGIC } else { DIR_DATA_MAGIC };
        head.hdr.magic = magic[1].into();
        part_mut(&mut self.bytes, 0, HEAD, WHAT)?.copy_from_slice(head.as_bytes());
        if self.only {
            self.leaves.sort_unstable();
            for (i, (hash, address)) in self.leaves.iter().enumerate() {
                let raw = RawDirLeafEntry { hashval: (*hash).into(), address: (*address).into() };
                let at = end.saturating_add(i.saturating_mul(LEAF));
                part_mut(&mut self.bytes, at, LEAF, WHAT)?.copy_from_slice(raw.as_bytes());
            }
            let count = u32::try_from(self.leaves.len()).unwrap_or(u32::MAX);
            let tail = RawDirBlockTail { count: count.into(), stale: 0.into() };
            let at = self.bytes.len().saturating_sub(TAIL);
            part_mut(&mut self.bytes, at, TAIL, WHAT)?.copy_from_slice(tail.as_bytes());
        }
        let lsn: Lsn = DIR_SELF.lsn(&self.bytes)?;
        DIR_SELF.stamp(&mut self.bytes, lsn)
    }
}
