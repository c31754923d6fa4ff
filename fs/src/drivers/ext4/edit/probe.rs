//! Indexed directories (htree) read: the way to the block of entries that a name's hash leads to.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, part};

use super::super::fault::Ext4Fault;
use super::super::features::{Compat, Incompat};
use super::super::inode::Inode;
use super::super::layout::{DIR_TAIL_BYTES, inode_flags};
use super::super::map::Mapping;
use super::super::volume::Ext4;
use super::bytes::{get16, get32};
use super::dir::DirBlock;
use super::dirblock::{Place, find};
use super::hash::Hasher;

/// Where the description of the index is in the first block.
pub(in super::super) const INFO_AT: usize = 24;
/// Where the table is in the first block, and in the others.
pub(in super::super) const ROOT_TABLE: usize = 32;
pub(in super::super) const NODE_TABLE: usize = 8;
/// Bytes of an entry of a table.
pub(in super::super) const ENTRY: usize = 8;
/// Bits of an entry's block number.
pub(in super::super) const BLOCK_MASK: u32 = 0x0fff_ffff;
/// `s_flags`: characters count as unsigned in hashes.
pub(super) const UNSIGNED_HASH: u32 = 2;

/// A block of the index, and the entry that the way leads through.
pub(super) struct Table {
    pub(super) block: DirBlock,
    pub(super) at: usize,
    pub(super) slot: usize,
}

impl Table {
    pub(super) fn count(&self) -> Result<usize> {
        get16(&self.block.bytes, self.at.saturating_add(2)).map(usize::from)
    }

    pub(super) fn limit(&self) -> Result<usize> {
        get16(&self.block.bytes, self.at).map(usize::from)
    }

    pub(super) fn is_full(&self) -> Result<bool> {
        Ok(self.count()? >= self.limit()?)
    }

    pub(super) fn entry(&self, slot: usize) -> usize {
        self.at.saturating_add(slot.saturating_mul(ENTRY))
    }

    /// The smallest hash of an entry; that of the first is not stored.
    pub(super) fn hash(&self, slot: usize) -> Result<u32> {
        if slot == 0 { Ok(0) } else { get32(&self.block.bytes, self.entry(slot)) }
    }

    pub(super) fn child(&self, slot: usize) -> Result<u64> {
        let stored = get32(&self.block.bytes, self.entry(slot).saturating_add(4))?;
        Ok((stored & BLOCK_MASK).into())
    }

    /// Goes through the entry that holds a hash.
    pub(super) fn seek(&mut self, hash: u32) -> Result<()> {
        let (mut low, mut high) = (0, self.count()?);
        while high.saturating_sub(low) > 1 {
            let middle = low.midpoint(high);
            if self.hash(middle)? <= hash { low = middle } else { high = middle }
        }
        self.slot = low;
        Ok(())
    }
}

impl Ext4 {
    /// How names are hashed in a directory with these flags.
    pub(in super::super) fn hasher(&self, version: u8, flags: u32) -> Result<Hasher> {
        let raw = &self.sb.raw;
        let signed = raw.flags.get() & UNSIGNED_HASH == 0;
        Hasher::new(version, signed, self.sb.folds(flags), raw.hash_seed.map(|word| word.get()))
    }

    /// Whether new indexes can be made.
    pub(super) fn hash_is_known(&self) -> bool {
        self.hasher(self.sb.raw.def_hash_version, 0).is_ok()
    }

    /// Entries of a table that begins at byte `at` of a block.
    pub(in super::super) fn table_limit(&self, at: usize) -> Result<usize> {
        let tail = if self.sb.features.has_metadata_csum() { 8 } else { 0 };
        Ok(self.block_len()?.saturating_sub(at).saturating_sub(tail).wrapping_div(ENTRY))
    }

    /// Levels of tables that there can be.
    pub(in super::super) fn levels_max(&self) -> usize {
        if self.sb.features.incompat.contains(Incompat::LARGEDIR) { 3 } else { 2 }
    }

    pub(super) fn table(&self, dir: &Inode, number: u64) -> Result<Table> {
        let block = self.dir_block(dir, number)?;
        let at = if number == 0 { ROOT_TABLE } else { NODE_TABLE };
        if self.index_table(dir, number, &block.bytes)? != Some(at) {
            return Err(Ext4Fault::Directory("the index leads to a block that is none of it").into());
        }
        let table = Table { block, at, slot: 0 };
        let (count, limit) = (table.count()?, table.limit()?);
        if limit != self.table_limit(at)? || count == 0 || count > limit {
            return Err(Ext4Fault::Directory("counts of an index block are wrong").into());
        }
        Ok(table)
    }

    /// The tables on the way to the block that holds a name's hash, and the hash.
    pub(super) fn probe(&self, dir: &Inode, name: &[u8]) -> Result<(Vec<Table>, u32)> {
        let mut root = self.table(dir, 0)?;
        let info = part(&root.block.bytes, INFO_AT, 8, "directory index")?;
        let [_, _, _, _, version, length, levels, flags] = *info else {
            return Err(Ext4Fault::Directory("no description of the index").into());
        };
        if length != 8 || flags & 1 != 0 || usize::from(levels) >= self.levels_max() {
            return Err(Ext4Fault::Directory("the description of the index is wrong").into());
        }
        let hash = self.hasher(version, dir.raw.flags.get())?.hash(name);
        root.seek(hash)?;
        let mut tables = vec![root];
        for _ in 0..levels {
            let Some(above) = tables.last() else { break };
            let mut table = self.table(dir, above.child(above.slot)?)?;
            table.seek(hash)?;
            tables.push(table);
        }
        Ok((tables, hash))
    }

    /// The block of entries that the tables lead to.
    pub(super) fn leaf(&self, dir: &Inode, tables: &[Table]) -> Result<DirBlock> {
        let Some(last) = tables.last() else { return Err(Ext4Fault::Directory("no index").into()) };
        let number = last.child(last.slot)?;
        let block = self.dir_block(dir, number)?;
        // Without checksums a block whose names are all gone looks like one of the index.
        let sums = self.sb.features.has_metadata_csum();
        if number == 0 || (sums && self.index_table(dir, number, &block.bytes)?.is_some()) {
            return Err(Ext4Fault::Directory("the index leads to itself").into());
        }
        Ok(block)
    }

    /// The entry of a name, and its block.
    pub(super) fn find_indexed(&self, dir: &Inode, name: &[u8]) -> Result<Option<(DirBlock, Place)>> {
        let (mut tables, hash) = self.probe(dir, name)?;
        let usable = self.usable()?;
        let wanted = self.sb.wanted(dir.raw.flags.get(), name);
        // Names of one hash may fill several blocks; each step goes forward in a table, to a block of its own.
        for _ in 0..=self.dir_blocks(dir)? {
            let block = self.leaf(dir, &tables)?;
            if let Some(place) = find(&block.bytes, usable, &wanted)? {
                return Ok(Some((block, place)));
            }
            if !self.advance(dir, &mut tables, hash)? {
                return Ok(None);
            }
        }
        Err(Ext4Fault::Directory("its index leads to more blocks than it has").into())
    }

    /// Goes on to the next block, if names of the same hash go on there.
    fn advance(&self, dir: &Inode, tables: &mut Vec<Table>, hash: u32) -> Result<bool> {
        let depth = tables.len();
        while let Some(table) = tables.last_mut() {
            let next = table.slot.saturating_add(1);
            if next >= table.count()? {
                tables.pop();
                continue;
            }
            if table.hash(next)? & !1 != hash {
                return Ok(false);
            }
            table.slot = next;
            break;
        }
        while let Some(above) = tables.last().filter(|_| tables.len() < depth) {
            let child = above.child(above.slot)?;
            let table = self.table(dir, child)?;
            tables.push(table);
        }
        Ok(!tables.is_empty())
    }

    /// Whether a directory has an index that can be followed.
    pub(in super::super) fn is_indexed(&self, dir: &Inode) -> bool {
        let has = dir.has(inode_flags::INDEX) && !dir.has(inode_flags::INLINE_DATA);
        has && self.sb.features.compat.contains(Compat::DIR_INDEX)
    }

    /// Blocks of a directory, as its size says.
    pub(super) fn dir_blocks(&self, dir: &Inode) -> Result<u64> {
        let blocks = self.sb.block_size.count(dir.size);
        if blocks > self.sb.blocks {
            return Err(Ext4Fault::TooManyBlocks { what: "the directory" }.into());
        }
        Ok(blocks)
    }

    /// Bytes of a block, as a length in memory.
    pub(in super::super) fn block_len(&self) -> Result<usize> {
        index(self.sb.block_size.bytes())
    }

    /// Bytes of a directory block that hold entries: all but the checksum.
    pub(in super::super) fn usable(&self) -> Result<usize> {
        let len = self.block_len()?;
        Ok(if self.sb.features.has_metadata_csum() { len.saturating_sub(DIR_TAIL_BYTES) } else { len })
    }

    /// Reads a block of a directory.
    pub(super) fn dir_block(&self, dir: &Inode, number: u64) -> Result<DirBlock> {
        let place = || format!("block {number}");
        let Mapping::Data(at) = self.map(dir, number)?.to else {
            return Err(Ext4Fault::DirHole(number).into());
        };
        let bytes = self.block("a directory", at)?;
        self.check_dir_block(dir, number, &bytes).within(place)?;
        Ok(DirBlock { number, at, bytes: bytes.to_vec() })
    }

    /// The node that a name has in a directory.
    pub(super) fn find_entry(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let place = || format!("directory inode {}", dir.number);
        if self.is_indexed(dir) {
            let found = self.find_indexed(dir, name).within(place)?;
            return Ok(found.map(|(_, place)| place.inode));
        }
        self.find_stored(dir, name).within(place)
    }
}
