//! Directories in all their forms: entries, hashes, the index of free room.

use std::collections::BTreeMap;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, take};
use zerocopy::big_endian::{U16, U32};

use super::super::da::{DaFork, da_kind};
use super::super::described::DIR_SELF;
use super::super::dir::{FREE_SPACE, LEAF_SPACE};
use super::super::edit::shortdir::ShortDir;
use super::super::fault::Fault;
use super::super::inode::{ForkFormat, ForkKind, Inode};
use super::super::layout::{
    DIR_FREE_MAGIC, DIR_LEAF1_MAGIC, DIR_LEAFN_MAGIC, RawDirFreeHead, RawDirLeafEntry, RawDirLeafTail,
};
use super::super::units::{FileBlock, InodeNo};
use super::super::volume::BlockKind;
use super::Checker;
use super::datree::entries_at;
use super::dirblock::{DirBlock, leaf_entries};
use super::hashes::Pairs;

/// Leaves: the only one, which has the index of free room at its end, and one of several.
const LEAVES: [BlockKind; 2] =
    [da_kind("directory leaf", DIR_LEAF1_MAGIC), da_kind("directory leaf of several", DIR_LEAFN_MAGIC)];
/// A block of the index of free room.
const FREE: [BlockKind; 1] = [BlockKind::new("free index of a directory", DIR_FREE_MAGIC, DIR_SELF)];
/// What the index of free room has for a block that is not there.
const NO_BLOCK: u16 = 0xffff;
/// Bytes of the head of a block of the index of free room without checksums.
const FREE_HEAD4: usize = 16;
/// Units in which leaves count the places of entries.
const PLACE_SHIFT: u32 = 3;

/// What was found in a directory.
#[derive(Debug, Default)]
struct Found {
    /// Hash and address of each entry.
    pairs: Pairs,
    /// The longest free stretch of each block of entries; none for one that is not there.
    bests: BTreeMap<u64, u16>,
    own: bool,
    up: bool,
}

fn damaged<T>(what: &'static str, why: &'static str) -> Result<T> {
    Err(Fault::Structure { what, why }.into())
}

impl Checker<'_> {
    /// Goes through all directories.
    pub(super) fn directories(&mut self) -> Result<()> {
        for at in 0..self.table.len() {
            for ino in self.table.used(at) {
                if !self.table.dirs.contains_key(&ino.0) {
                    continue;
                }
                let read = self.volume.inode(ino);
                if let Some(dir) = self.notes.look(read)? {
                    let good = self.directory(&dir).within(|| format!("directory {}", ino.0));
                    self.notes.look(good)?;
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, dir: &Inode) -> Result<()> {
        if dir.data.format == ForkFormat::Local {
            return self.short(dir);
        }
        let volume = std::sync::Arc::clone(&self.volume);
        let sb = &volume.sb;
        let fork = volume.dir_fork(dir);
        let step = sb.block_size.count(sb.dir_block_size.bytes()).max(1);
        let [leaf, free] = [LEAF_SPACE, FREE_SPACE].map(|at| FileBlock(sb.block_size.count(at)));
        let mut budget = volume.da_budget(&fork)?;
        let (mut found, mut only, mut next, mut past) = (Found::default(), None, FileBlock(0), 0u64);
        let mut others = 0u64;
        for mapping in volume.mappings(dir, ForkKind::Data, FileBlock(0))? {
            let mapping = mapping?;
            let own = mapping.end().0.saturating_sub(mapping.at.0.max(leaf.0));
            others = others.saturating_add(own);
            next = next.max(FileBlock(mapping.at.0.next_multiple_of(step)));
            while next < mapping.end() && next < leaf {
                budget = budget.checked_sub(1).ok_or(Fault::Circle { what: "a directory" })?;
                let block = self.dir_block(&fork, next).within(|| format!("block {}", next.0))?;
                let number = next.0.checked_div(step).unwrap_or(0);
                self.block_entries(dir, number, &block, &mut found)?;
                found.bests.insert(number, block.best);
                only = block.leaves.or(only);
                next = FileBlock(next.0.saturating_add(step));
                past = next.0;
            }
        }
        let size = sb.block_size.start_of(past).unwrap_or(u64::MAX);
        if dir.size != size {
            let why = "not the end of its last block";
            return Err(Fault::Field { what: "di_size", found: dir.size, why }.into());
        }
        if !found.own || !found.up {
            return damaged("directory", "has no . or no ..");
        }
        if let Some(leaves) = only {
            if found.bests.len() != 1 || others > 0 {
                return damaged("directory", "its only block is not the only one");
            }
            let mut compared = found.pairs.leaves(&volume, &fork);
            leaves.into_iter().try_for_each(|pair| compared.add(pair))?;
            return compared.end();
        }
        let blocks = self.leaves(&fork, (leaf, free), &found)?;
        if blocks.saturating_mul(step) != others {
            return damaged("directory", "has blocks that neither its tree nor its index has");
        }
        Ok(())
    }

    /// Inside the inode.
    fn short(&mut self, dir: &Inode) -> Result<()> {
        let short = ShortDir::parse(dir, &self.volume.sb)?;
        for entry in &short.entries {
            self.entry(dir, &entry.name, entry.ino.0, entry.ftype)?;
        }
        self.table.found_link(dir.ino.0);
        self.parent(dir, short.parent.0)
    }

    fn block_entries(&mut self, dir: &Inode, number: u64, block: &DirBlock, found: &mut Found) -> Result<()> {
        let volume = std::sync::Arc::clone(&self.volume);
        let base = volume.sb.dir_block_size.start_of(number).unwrap_or(u64::MAX);
        for entry in &block.entries {
            let address = base.saturating_add(len64(entry.at)) >> PLACE_SHIFT;
            let hash = volume.sb.name_hash(&entry.name);
            found.pairs.add((hash, u32::try_from(address).unwrap_or(u32::MAX)));
            match entry.name.as_slice() {
                b"." => {
                    if found.own || number != 0 {
                        return damaged("directory", "has . twice, or not at its beginning");
                    }
                    found.own = true;
                    if entry.ino != dir.ino.0 {
                        return damaged("directory", ". is not the directory itself");
                    }
                    self.table.found_link(entry.ino);
                }
                b".." => {
                    if found.up || number != 0 {
                        return damaged("directory", "has .. twice, or not at its beginning");
                    }
                    found.up = true;
                    self.parent(dir, entry.ino)?;
                }
                name => self.entry(dir, name, entry.ino, entry.ftype)?,
            }
        }
        Ok(())
    }

    /// The leaves and the index of free room of a larger directory. Returns how many directory blocks they have.
    fn leaves(
        &mut self,
        fork: &DaFork<'_>,
        (leaf, free): (FileBlock, FileBlock),
        found: &Found,
    ) -> Result<u64> {
        let volume = std::sync::Arc::clone(&self.volume);
        let (mut compared, mut bests) = (found.pairs.leaves(&volume, fork), None);
        let v5 = volume.sb.v5;
        let blocks = self.da_tree(fork, leaf, &LEAVES, &mut |_, kind, block| {
            let (head, first) = entries_at(v5, size_of::<RawDirLeafTail>());
            let tail: RawDirLeafTail = take(&block.bytes, head, kind.what)?;
            let count = usize::from(tail.count.get());
            let entries = leaf_entries(&block.bytes, first, count, tail.stale.get().into())?;
            entries.into_iter().try_for_each(|pair| compared.add(pair))?;
            let end = first.saturating_add(count.saturating_mul(size_of::<RawDirLeafEntry>()));
            if kind.magic == LEAVES.first().map_or([0; 2], |k| k.magic) {
                bests = Some(leaf_bests(&block.bytes, end)?);
            }
            let last = end.saturating_sub(size_of::<RawDirLeafEntry>());
            if count == 0 {
                Ok(0)
            } else {
                Ok(take::<RawDirLeafEntry>(&block.bytes, last, kind.what)?.hashval.get())
            }
        })?;
        compared.end()?;
        let (bests, more) = match bests {
            Some(bests) if blocks == 1 => (bests, 0),
            Some(_) => return damaged("directory leaf", "one of several says that it is the only one"),
            None => self.free_index(fork, free, found.bests.last_key_value().map_or(0, |(last, _)| *last))?,
        };
        for (number, best) in (0u64..).zip(&bests) {
            if found.bests.get(&number).copied().unwrap_or(NO_BLOCK) != *best {
                return damaged("directory", "the index of free room is not what its blocks have");
            }
        }
        if found.bests.keys().any(|number| *number >= len64(bests.len())) {
            return damaged("directory", "the index of free room does not reach its last block");
        }
        Ok(blocks.saturating_add(more))
    }

    /// The index of free room of a directory whose last block is number `last`, and how many blocks it has.
    fn free_index(&mut self, fork: &DaFork<'_>, from: FileBlock, last: u64) -> Result<(Vec<u16>, u64)> {
        const WHAT: &str = "free index of a directory";
        let volume = std::sync::Arc::clone(&self.volume);
        let sb = &volume.sb;
        let step = sb.block_size.count(sb.dir_block_size.bytes()).max(1);
        let (mut all, mut blocks, mut next) = (Vec::new(), 0u64, from);
        let mut budget = volume.da_budget(fork)?;
        for mapping in volume.mappings(fork.inode, ForkKind::Data, from)? {
            let mapping = mapping?;
            next = next.max(FileBlock(mapping.at.0.next_multiple_of(step)));
            while next < mapping.end() {
                budget = budget.checked_sub(1).ok_or(Fault::Circle { what: "a directory" })?;
                let (kind, block) = volume.da_block(fork, next, &FREE)?;
                self.stamped(kind, &block.bytes)?;
                let (head, at) = if sb.v5 {
                    (size_of::<RawDirFreeHead>().saturating_sub(16), size_of::<RawDirFreeHead>())
                } else {
                    (4, FREE_HEAD4)
                };
                let number = |i: usize| -> Result<u32> {
                    Ok(take::<U32>(&block.bytes, head.saturating_add(i), WHAT)?.get())
                };
                let (first, valid, used) = (number(0)?, number(4)?, number(8)?);
                let most = block.bytes.len().saturating_sub(at) >> 1;
                let place = next.0.saturating_sub(from.0).checked_div(step).unwrap_or(0);
                if u64::from(first) != place.saturating_mul(len64(most)) || index(valid.into())? > most {
                    return damaged(WHAT, "not where its first block asks for, or more than fit");
                }
                // A block that speaks of none, behind the last one, is one that could not be freed.
                if u64::from(first) <= last {
                    all.resize(index(first.into())?, NO_BLOCK);
                }
                let mut there = 0u32;
                for i in 0..index(valid.into())? {
                    let best = take::<U16>(&block.bytes, at.saturating_add(i << 1), WHAT)?.get();
                    there = there.saturating_add((best != NO_BLOCK).into());
                    if u64::from(first) <= last {
                        all.push(best);
                    }
                }
                if there != used {
                    let why = "not as many as there are";
                    return Err(Fault::Field { what: "nused", found: used.into(), why }.into());
                }
                if u64::from(first) > last && there > 0 {
                    return damaged(WHAT, "speaks of blocks behind the last one");
                }
                blocks = blocks.saturating_add(1);
                next = FileBlock(next.0.saturating_add(step));
            }
        }
        Ok((all, blocks))
    }

    /// A directory says that `up` is its parent.
    fn parent(&mut self, dir: &Inode, up: u64) -> Result<()> {
        self.table.found_link(up);
        if let Some(known) = self.table.dirs.get_mut(&dir.ino.0) {
            known.up = up;
        }
        self.volume.sb.inode_offset(InodeNo(up)).map(drop).within(|| "..")
    }
}

/// The index of free room at the end of a directory's only leaf, whose entries end at `end`.
fn leaf_bests(bytes: &[u8], end: usize) -> Result<Vec<u16>> {
    let tail_at = bytes.len().saturating_sub(size_of::<U32>());
    let count = index(take::<U32>(bytes, tail_at, "directory leaf")?.get().into())?;
    let from = count.checked_mul(2).and_then(|len| tail_at.checked_sub(len)).filter(|from| *from >= end);
    let Some(from) = from else {
        return damaged("directory leaf", "its index of free room reaches into entries");
    };
    (0..count).map(|i| Ok(take::<U16>(bytes, from.saturating_add(i << 1), "directory leaf")?.get())).collect()
}
