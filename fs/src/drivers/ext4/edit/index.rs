//! Indexed directories (htree): blocks of entries ordered by the hashes of the names, under one to three levels of
//! tables.

use racker_formats::error::Result;
use racker_formats::wire::part;

use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::layout::inode_flags;
use super::Edit;
use super::bytes::{put, put16, put32};
use super::dir::DirBlock;
use super::dirblock::{New, insert, need, pack, places};
use super::node::Node;
use super::probe::{ENTRY, INFO_AT, NODE_TABLE, ROOT_TABLE, Table};

impl Table {
    /// Puts an entry behind the one that the way leads through.
    fn insert(&mut self, hash: u32, child: u64) -> Result<()> {
        let (count, to) = (self.count()?, self.slot.saturating_add(1));
        let (from, end) = (self.entry(to), self.entry(count));
        let bytes = &mut self.block.bytes;
        if end.saturating_add(ENTRY) > bytes.len() {
            return Err(Ext4Fault::Directory("an index block is too full").into());
        }
        bytes.copy_within(from..end, from.saturating_add(ENTRY));
        put32(bytes, from, hash)?;
        put32(bytes, from.saturating_add(4), super::bytes::low32(child))?;
        let more = u16::try_from(count.saturating_add(1)).unwrap_or(u16::MAX);
        put16(bytes, self.at.saturating_add(2), more)
    }

    /// Makes the entries the ones in `entries`, which are at most the limit.
    fn fill(&mut self, limit: usize, entries: &[u8]) -> Result<()> {
        let count = entries.len().wrapping_div(ENTRY);
        let at = self.at;
        let bytes = &mut self.block.bytes;
        bytes.get_mut(at..).unwrap_or_default().fill(0);
        put(bytes, at, entries)?;
        put16(bytes, at, u16::try_from(limit).unwrap_or(u16::MAX))?;
        put16(bytes, at.saturating_add(2), u16::try_from(count).unwrap_or(u16::MAX))
    }
}

impl Edit {
    /// Puts an entry into an indexed directory.
    pub(super) fn add_indexed(&mut self, dir: &mut Node, new: New<'_>) -> Result<()> {
        let usable = self.fs.usable()?;
        // Each round makes room in one level, or adds one.
        for _ in 0..8 {
            let (mut tables, hash) = self.fs.probe(&dir.view(&self.fs.sb)?, new.name)?;
            let mut leaf = self.fs.leaf(&dir.view(&self.fs.sb)?, &tables)?;
            if insert(&mut leaf.bytes, usable, new)? {
                return self.put_leaf(dir, leaf);
            }
            let Some(last) = tables.last() else { break };
            if last.is_full()? {
                self.widen(dir, &mut tables)?;
                continue;
            }
            return self.split_leaf(dir, tables, leaf, (new, hash));
        }
        Err(Ext4Fault::Directory("its index gets no room").into())
    }

    /// Makes room in the lowest table that is full under one that is not.
    fn widen(&mut self, dir: &mut Node, tables: &mut Vec<Table>) -> Result<()> {
        let mut full = Vec::new();
        while let Some(table) = tables.pop() {
            if table.is_full()? {
                full.push(table);
                continue;
            }
            let Some(child) = full.pop() else { return Ok(()) };
            return self.split_table(dir, table, child);
        }
        let levels = full.len();
        let Some(mut root) = full.pop() else { return Ok(()) };
        if levels >= self.fs.levels_max() {
            return Err(Ext4Fault::NoRoom("the index of the directory").into());
        }
        let entries = entries_of(&root, 0)?;
        let below = self.new_table(dir, &entries)?;
        let mut one = [0; ENTRY];
        put32(&mut one, 4, super::bytes::low32(below))?;
        let limit = self.fs.table_limit(ROOT_TABLE)?;
        root.fill(limit, &one)?;
        let levels = u8::try_from(levels).unwrap_or(u8::MAX);
        put(&mut root.block.bytes, INFO_AT.saturating_add(6), &[levels])?;
        self.put_index(dir, root.block)
    }

    /// Moves the second half of a full table to a new one.
    fn split_table(&mut self, dir: &mut Node, mut above: Table, mut full: Table) -> Result<()> {
        let half = full.count()? >> 1;
        let (hash, right) = (full.hash(half)?, entries_of(&full, half)?);
        let left = part(&entries_of(&full, 0)?, 0, half.saturating_mul(ENTRY), "index")?.to_vec();
        let block = self.new_table(dir, &right)?;
        let limit = self.fs.table_limit(NODE_TABLE)?;
        full.fill(limit, &left)?;
        self.put_index(dir, full.block)?;
        above.insert(hash, block)?;
        self.put_index(dir, above.block)
    }

    /// A new block of the index with these entries.
    fn new_table(&mut self, dir: &mut Node, entries: &[u8]) -> Result<u64> {
        let mut block = self.append(dir)?;
        let number = block.number;
        let len = block.bytes.len();
        pack(&mut block.bytes, len, &[])?;
        let mut table = Table { block, at: NODE_TABLE, slot: 0 };
        let limit = self.fs.table_limit(NODE_TABLE)?;
        table.fill(limit, entries)?;
        self.put_index(dir, table.block)?;
        Ok(number)
    }

    /// Moves the half of a block with the larger hashes to a new one, and puts the new entry into one of them.
    fn split_leaf(
        &mut self,
        dir: &mut Node,
        mut tables: Vec<Table>,
        full: DirBlock,
        new: (New<'_>, u32),
    ) -> Result<()> {
        let usable = self.fs.usable()?;
        let root = match tables.first() {
            Some(root) => part(&root.block.bytes, INFO_AT, 8, "index")?.get(4).copied().unwrap_or(0),
            None => 0,
        };
        let hasher = self.fs.hasher(root, dir.raw.flags.get())?;
        let DirBlock { number, at, bytes: old } = full;
        let mut all = Vec::new();
        for place in places(&old, usable)?.iter().filter(|p| p.inode != 0) {
            let name = place.name(&old)?;
            all.push((hasher.hash(name), New { inode: place.inode, file_type: place.file_type, name }));
        }
        let (new, hash) = new;
        let used = all.iter().fold(0usize, |sum, (_, e)| sum.saturating_add(need(e.name.len())));
        let mut left = DirBlock { number, at, bytes: vec![0; old.len()] };
        if used.saturating_add(need(new.name.len())) <= usable {
            // The room was there in pieces.
            let kept: Vec<New<'_>> = all.iter().map(|(_, e)| *e).chain([new]).collect();
            pack(&mut left.bytes, usable, &kept)?;
            return self.put_leaf(dir, left);
        }
        all.sort_by_key(|(hash, _)| *hash);
        let split = middle(&all, usable);
        let (low, high) = all.split_at_checked(split).unwrap_or((&all, &[]));
        let (Some((last, _)), Some((first, _))) = (low.last(), high.first()) else {
            return Err(Ext4Fault::Directory("a full block has one entry").into());
        };
        let continued = u32::from(last == first);
        let mut right = self.append(dir)?;
        let goes_right = hash >= *first;
        for (block, half, gets) in [(&mut left, low, !goes_right), (&mut right, high, goes_right)] {
            let kept: Vec<New<'_>> = half.iter().map(|(_, e)| *e).chain(gets.then_some(new)).collect();
            pack(&mut block.bytes, usable, &kept)?;
        }
        let Some(mut table) = tables.pop() else { return Err(Ext4Fault::Directory("no index").into()) };
        table.insert(first.saturating_add(continued), right.number)?;
        self.put_leaf(dir, left)?;
        self.put_leaf(dir, right)?;
        self.put_index(dir, table.block)
    }

    /// Stores a block of the index.
    pub(super) fn put_index(&mut self, dir: &Node, mut block: DirBlock) -> Result<()> {
        if self.fs.sb.features.has_metadata_csum() {
            let at = if block.number == 0 { ROOT_TABLE } else { NODE_TABLE };
            let table = Table { block, at, slot: 0 };
            let (used, tail) = (table.entry(table.count()?), table.entry(table.limit()?));
            block = table.block;
            let bytes = &mut block.bytes;
            let sum = crc32c(dir.seed(&self.fs.sb), part(bytes, 0, used, "directory index")?);
            let sum = crc32c(crc32c(sum, part(bytes, tail, 4, "directory index")?), &[0; 4]);
            put32(bytes, tail.saturating_add(4), sum)?;
        }
        self.check_owned("a directory", block.at, 1)?;
        self.put_block(block.at, block.bytes)
    }

    /// Gives a directory of one block an index: its entries move to a second one.
    pub(super) fn make_index(&mut self, dir: &mut Node) -> Result<()> {
        let usable = self.fs.usable()?;
        let first = self.fs.dir_block(&dir.view(&self.fs.sb)?, 0)?;
        let old = first.bytes.clone();
        let all = places(&old, usable)?;
        let [one, two, rest @ ..] = all.as_slice() else {
            return Err(Ext4Fault::Directory("it does not begin with . and ..").into());
        };
        if one.name(&old)? != b"." || two.name(&old)? != b".." || two.at != 12 {
            return Err(Ext4Fault::Directory("it does not begin with . and ..").into());
        }
        let mut moved = Vec::new();
        for place in rest.iter().filter(|p| p.inode != 0) {
            moved.push(New { inode: place.inode, file_type: place.file_type, name: place.name(&old)? });
        }
        let mut leaf = self.append(dir)?;
        pack(&mut leaf.bytes, usable, &moved)?;
        let dot = New { inode: one.inode, file_type: one.file_type, name: b"." };
        let dots = New { inode: two.inode, file_type: two.file_type, name: b".." };
        let mut root = first;
        let len = root.bytes.len();
        pack(&mut root.bytes, len, &[dot, dots])?;
        let version = self.fs.sb.raw.def_hash_version;
        put(&mut root.bytes, INFO_AT, &[0, 0, 0, 0, version, 8, 0, 0])?;
        let mut one = [0; ENTRY];
        put32(&mut one, 4, super::bytes::low32(leaf.number))?;
        let mut table = Table { block: root, at: ROOT_TABLE, slot: 0 };
        let limit = self.fs.table_limit(ROOT_TABLE)?;
        table.fill(limit, &one)?;
        dir.set_flag(inode_flags::INDEX, true);
        self.put_leaf(dir, leaf)?;
        self.put_index(dir, table.block)
    }
}

/// The entries of a table from `slot` on, as bytes.
fn entries_of(table: &Table, slot: usize) -> Result<Vec<u8>> {
    let (from, end) = (table.entry(slot), table.entry(table.count()?));
    Ok(part(&table.block.bytes, from, end.saturating_sub(from), "directory index")?.to_vec())
}

/// Where to split entries so that both halves have about the same number of bytes.
fn middle(all: &[(u32, New<'_>)], usable: usize) -> usize {
    let mut size = 0usize;
    let mut split = all.len();
    for (_, entry) in all.iter().rev() {
        let bytes = need(entry.name.len());
        if size.saturating_add(bytes >> 1) > usable >> 1 {
            break;
        }
        size = size.saturating_add(bytes);
        split = split.saturating_sub(1);
    }
    if split == 0 || split >= all.len() { all.len() >> 1 } else { split }
}
