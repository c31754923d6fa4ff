//! Indexes of directories: every block of entries is reached once, through tables whose hashes ascend.

use std::collections::HashMap;

use racker_formats::error::Result;
use racker_formats::wire::{part, take};

use super::super::edit::bytes::{get16, get32};
use super::super::edit::hash::Hasher;
use super::super::edit::probe::{BLOCK_MASK, ENTRY, INFO_AT, NODE_TABLE, ROOT_TABLE};
use super::super::fault::Ext4Fault;
use super::super::inode::Inode;
use super::super::layout::{RawDirEntry, inode_flags};
use super::super::map::Mapping;
use super::Checker;

/// The hash that needs a key, where names are encrypted and case does not count.
const SIPHASH: u8 = 6;

/// What an index says of its directory's blocks.
pub(super) struct Leaves {
    /// Lowest and highest hash of a block of entries; `None` for a block of the index.
    blocks: HashMap<u64, Option<(u32, u32)>>,
    hasher: Option<Hasher>,
}

impl Leaves {
    /// Whether a block is one of the index.
    pub(super) fn is_inner(&self, block: u64) -> bool {
        self.blocks.get(&block).is_some_and(Option::is_none)
    }

    /// The hashes of a block's names.
    pub(super) fn range(&self, block: u64) -> Option<(u32, u32)> {
        self.blocks.get(&block).copied().flatten()
    }

    /// The hash of a name, if it can be computed.
    pub(super) fn hash(&self, name: &[u8]) -> Option<u32> {
        self.hasher.map(|hasher| hasher.hash(name))
    }
}

/// A table of the index.
struct Table {
    block: u64,
    at: usize,
    /// Levels of tables below.
    below: u8,
    range: (u32, u32),
}

fn wrong<T>(what: &'static str) -> Result<T> {
    Err(Ext4Fault::Directory(what).into())
}

impl Checker<'_> {
    /// Goes through the index of a directory. No block is gone through twice, so this ends.
    pub(super) fn check_index(&mut self, dir: &Inode) -> Result<Leaves> {
        let root = self.index_block(dir, 0)?;
        let info = part(&root, INFO_AT, 8, "directory index")?;
        let [0, 0, 0, 0, version, 8, levels, flags] = *info else {
            return wrong("the description of the index is wrong");
        };
        if flags & 1 != 0 || usize::from(levels) >= self.fs.levels_max() {
            return wrong("the description of the index is wrong");
        }
        let has_own = version == SIPHASH && dir.has(inode_flags::CASEFOLD) && dir.has(inode_flags::ENCRYPT);
        let hasher = if has_own { None } else { Some(self.fs.hasher(version, dir.raw.flags.get())?) };
        let blocks = self.fs.sb.block_size.count(dir.size).min(self.fs.sb.blocks);
        let mut leaves = Leaves { blocks: HashMap::new(), hasher };
        leaves.blocks.insert(0, None);
        let mut waiting = vec![Table { block: 0, at: ROOT_TABLE, below: levels, range: (0, u32::MAX) }];
        while let Some(table) = waiting.pop() {
            self.check_table(dir, &table, blocks, &mut leaves, &mut waiting)?;
        }
        if (0..blocks).any(|block| !leaves.blocks.contains_key(&block)) {
            return wrong("the index does not lead to all of its blocks");
        }
        Ok(leaves)
    }

    fn index_block(&self, dir: &Inode, number: u64) -> Result<std::sync::Arc<[u8]>> {
        let Mapping::Data(at) = self.fs.map(dir, number)?.to else {
            return Err(Ext4Fault::DirHole(number).into());
        };
        self.fs.block("a directory", at)
    }

    fn check_table(
        &self,
        dir: &Inode,
        table: &Table,
        blocks: u64,
        leaves: &mut Leaves,
        waiting: &mut Vec<Table>,
    ) -> Result<()> {
        let block = self.index_block(dir, table.block)?;
        let first = take::<RawDirEntry>(&block, 0, "directory entry")?;
        if table.block != 0
            && (first.inode.get() != 0 || self.fs.entry_len(first.rec_len.get()) != block.len())
        {
            return wrong("the index leads to a block that is none of it");
        }
        let limit = usize::from(get16(&block, table.at)?);
        let count = usize::from(get16(&block, table.at.saturating_add(2))?);
        if limit != self.fs.table_limit(table.at)? || count == 0 || count > limit {
            return wrong("counts of an index block are wrong");
        }
        let (mut low, high) = table.range;
        for slot in 0..count {
            let at = |slot: usize| table.at.saturating_add(slot.saturating_mul(ENTRY));
            let next = slot.saturating_add(1);
            let end = if next < count { get32(&block, at(next))? } else { high };
            if end < low || end > high {
                return wrong("hashes of the index do not ascend");
            }
            let child = u64::from(get32(&block, at(slot).saturating_add(4))? & BLOCK_MASK);
            let is_leaf = table.below == 0;
            let range = (low & !1, end | 1);
            if child >= blocks || leaves.blocks.insert(child, is_leaf.then_some(range)).is_some() {
                return wrong("the index leads to a block twice, or to one behind its end");
            }
            if !is_leaf {
                let below = table.below.saturating_sub(1);
                waiting.push(Table { block: child, at: NODE_TABLE, below, range: (low, end) });
            }
            low = end;
        }
        Ok(())
    }
}
