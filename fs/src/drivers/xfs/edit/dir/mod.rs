//! Directories changed: entries added, removed and pointed elsewhere, in every form, each form becoming the next
//! larger one when it is full and the next smaller one when its content fits there.
//!
//! - `data.rs`: blocks of entries; `node.rs`: blocks of the tree over hashes, and the only leaf
//! - `tree.rs`: the tree changed; `index.rs`: where blocks have room
//! - `form.rs`: one form turned into another; `mod.rs`: the entries
//!
//! Entries that were removed leave nothing behind in leaves: what others left there goes when a leaf is written.

mod data;
mod form;
mod index;
mod node;
mod tree;

use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, len64};

use crate::filesystem::{Name, NodeKind, Time};

use super::super::bmap::Mapping;
use super::super::dir::{Entry, FREE_SPACE, LEAF_SPACE};
use super::super::fault::Fault;
use super::super::inode::{ForkFormat, ForkKind, Inode};
use super::super::superblock::Superblock;
use super::super::units::{Daddr, FileBlock, InodeNo};
use super::Edit;
use super::alloc::Want;
use super::owner::Owner;
use super::shortdir::{ShortDir, ShortEntry};
use data::DataBlock;
pub(in crate::drivers::xfs) use data::entry_bytes;
pub(super) use index::DirIndex;
use node::DaNode;

/// Units of entries' places.
const PLACE_SHIFT: u32 = 3;
/// Longest name.
pub(super) const NAME_MAX: usize = 255;
/// Directory blocks that adding one entry may take: one of entries, one of the index, and a leaf and a node of each
/// level.
const BLOCKS_PER_ENTRY: u64 = 8;
/// Blocks of the extent tree that go with them.
const TREE_BLOCKS: u64 = 12;

/// A directory's blocks of one size within its fork.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Bytes of a directory block.
    pub(super) bytes: usize,
    /// Filesystem blocks of one.
    pub(super) step: u64,
    /// First block of the leaves.
    pub(super) leaf: FileBlock,
    /// First block of the index of free room.
    pub(super) free: FileBlock,
}

impl Geometry {
    fn of(sb: &Superblock) -> Result<Self> {
        Ok(Self {
            bytes: wire::index(sb.dir_block_size.bytes())?,
            step: sb.block_size.count(sb.dir_block_size.bytes()).max(1),
            leaf: FileBlock(sb.block_size.count(LEAF_SPACE)),
            free: FileBlock(sb.block_size.count(FREE_SPACE)),
        })
    }

    /// The first fork block of data block `number`.
    fn data(&self, number: usize) -> FileBlock {
        FileBlock(len64(number).saturating_mul(self.step))
    }

    /// Where byte `at` of data block `number` is, as leaves count.
    fn address(&self, number: usize, at: usize) -> Result<u32> {
        let byte = number.checked_mul(self.bytes).and_then(|b| b.checked_add(at));
        let address = byte.and_then(|b| u32::try_from(b >> PLACE_SHIFT).ok());
        address.ok_or_else(|| Fault::NoSpace.into())
    }
}

/// An entry to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) ino: InodeNo,
    pub(super) kind: NodeKind,
}

/// How a directory that is not inside its inode lies.
enum Form {
    /// One block with all.
    Block,
    /// Blocks of entries and one leaf.
    Leaf,
    /// Blocks of entries, a tree of leaves and an index of free room.
    Node,
}

impl Edit {
    /// Blocks that adding entries may take at most.
    pub(super) fn blocks_for_entries(&self, entries: u64) -> u64 {
        let step = self.volume.sb.block_size.count(self.volume.sb.dir_block_size.bytes()).max(1);
        step.saturating_mul(BLOCKS_PER_ENTRY).saturating_add(TREE_BLOCKS).saturating_mul(entries)
    }

    /// The entry `name` of a directory.
    pub(super) fn entry(&self, dir: &Inode, name: &Name) -> Result<Entry> {
        let found = self.volume.find_entry(dir, name.as_bytes())?;
        found.ok_or_else(|| Fault::NoEntry { dir: dir.ino.0 }.into())
    }

    /// The directory that a directory lies in.
    pub(super) fn parent(&self, dir: &Inode) -> Result<InodeNo> {
        if dir.data.format == ForkFormat::Local {
            return Ok(ShortDir::parse(dir, &self.volume.sb)?.parent);
        }
        let up = self.volume.find_entry(dir, b"..")?;
        let why = "it has no entry `..`";
        up.map(|e| e.ino).ok_or_else(|| Fault::Structure { what: "directory", why }.into())
    }

    /// Adds an entry, whose name is not there yet. The directory is written, but for its times.
    pub(super) fn add_entry(&mut self, dir: &mut Inode, new: NewEntry<'_>) -> Result<()> {
        let number = dir.ino.0;
        self.add(dir, new).within(|| format!("directory {number}"))
    }

    fn add(&mut self, dir: &mut Inode, new: NewEntry<'_>) -> Result<()> {
        if dir.data.format == ForkFormat::Local {
            let mut short = ShortDir::parse(dir, &self.volume.sb)?;
            let ftype = self.volume.sb.ftype().then(|| new.kind.entry_type());
            let entry = ShortEntry { name: new.name.to_vec(), offset: 0, ftype, ino: new.ino };
            if short.add(entry, &self.volume.sb) {
                let bytes = short.pack()?;
                if bytes.len() <= dir.data.room {
                    return self.set_local(dir, &bytes);
                }
            }
            self.short_to_block(dir, &ShortDir::parse(dir, &self.volume.sb)?)?;
        }
        if let Form::Block = self.form(dir)? {
            let mut block = self.data_block(dir, 0)?;
            if let Some(at) = block.add(&self.volume.sb, new)? {
                let address = Geometry::of(&self.volume.sb)?.address(0, at)?;
                block.leaves.push((self.volume.sb.name_hash(new.name), address));
                return self.put_data(dir, block);
            }
            self.block_to_leaf(dir, block)?;
        }
        if let Form::Leaf = self.form(dir)? {
            let leaf = self.leaf(dir)?;
            let (number, more) = self.room_in(&leaf.bests, new.name.len());
            let geometry = Geometry::of(&self.volume.sb)?;
            if leaf.fits(&geometry, 1, more) {
                return self.add_beside_leaf(dir, leaf, number, new);
            }
            self.leaf_to_node(dir, leaf)?;
        }
        self.add_to_node(dir, new)
    }

    /// The data block that an entry of a name of this length goes to, and whether it is a new one at the end.
    fn room_in(&self, bests: &[u16], name: usize) -> (usize, bool) {
        let need = entry_bytes(&self.volume.sb, name);
        let fits = |best: &u16| *best != index::NO_BLOCK && usize::from(*best) >= need;
        // The last block is the one that was filled last.
        if bests.last().is_some_and(fits) {
            return (bests.len().saturating_sub(1), false);
        }
        if let Some(number) = bests.iter().position(fits) {
            return (number, false);
        }
        match bests.iter().position(|best| *best == index::NO_BLOCK) {
            Some(number) => (number, false),
            None => (bests.len(), true),
        }
    }

    fn add_beside_leaf(
        &mut self,
        dir: &mut Inode,
        mut leaf: DaNode,
        number: usize,
        new: NewEntry<'_>,
    ) -> Result<()> {
        let known = leaf.bests.get(number).copied().unwrap_or(index::NO_BLOCK);
        let (address, best) = self.add_to_data(dir, number, known, new)?;
        if number >= leaf.bests.len() {
            leaf.bests.resize(number.saturating_add(1), index::NO_BLOCK);
        }
        if let Some(place) = leaf.bests.get_mut(number) {
            *place = best;
        }
        leaf.insert((self.volume.sb.name_hash(new.name), address));
        self.put_node(dir, &leaf)
    }

    /// Puts an entry into data block `number`, which is made if `known` says that it is not there. Returns its
    /// address, and the block's longest free stretch.
    fn add_to_data(
        &mut self,
        dir: &mut Inode,
        number: usize,
        known: u16,
        new: NewEntry<'_>,
    ) -> Result<(u32, u16)> {
        let geometry = Geometry::of(&self.volume.sb)?;
        geometry.address(number, geometry.bytes.saturating_sub(1))?;
        let mut block = if known == index::NO_BLOCK {
            let place = self.grow(dir, geometry.data(number))?;
            let end = len64(number).saturating_add(1).saturating_mul(len64(geometry.bytes));
            if end > dir.size {
                dir.core()?.di_size = end.into();
                let volume = Arc::clone(&self.volume);
                dir.reparse(&volume)?;
            }
            DataBlock::empty(&self.volume.sb, dir.ino, geometry.data(number), place)?
        } else {
            self.data_block(dir, number)?
        };
        let why = "a block has less room than the index says";
        let at = block.add(&self.volume.sb, new)?.ok_or(Fault::Structure { what: "directory", why })?;
        let best = block.best();
        self.put_data(dir, block)?;
        Ok((geometry.address(number, at)?, best))
    }

    /// Removes an entry. The directory is written, but for its times.
    pub(super) fn remove_entry(&mut self, dir: &mut Inode, name: &[u8]) -> Result<()> {
        let number = dir.ino.0;
        self.remove(dir, name).within(|| format!("directory {number}"))
    }

    fn remove(&mut self, dir: &mut Inode, name: &[u8]) -> Result<()> {
        let found = self.volume.find_entry(dir, name)?.ok_or(Fault::NoEntry { dir: dir.ino.0 })?;
        let geometry = Geometry::of(&self.volume.sb)?;
        let (block, at) = match found.place {
            super::super::dir::Place::Inode { .. } => {
                let mut short = ShortDir::parse(dir, &self.volume.sb)?;
                short.entries.retain(|e| e.name != found.name);
                return self.set_local(dir, &short.pack()?);
            }
            super::super::dir::Place::Block { block, at } => (block, at),
        };
        let number = wire::index(block.0.checked_div(geometry.step).unwrap_or(0))?;
        let address = geometry.address(number, at)?;
        let gone = (self.volume.sb.name_hash(name), address);
        let mut data = self.data_block(dir, number)?;
        data.remove(at)?;
        if let Form::Block = self.form(dir)? {
            data.forget(gone)?;
            return self.put_small_block(dir, data);
        }
        let best = if number > 0 && data.is_empty() {
            self.shrink(dir, geometry.data(number))?;
            index::NO_BLOCK
        } else {
            let best = data.best();
            self.put_data(dir, data)?;
            best
        };
        if let Form::Leaf = self.form(dir)? {
            let mut leaf = self.leaf(dir)?;
            leaf.forget(gone)?;
            let Some(place) = leaf.bests.get_mut(number) else { return index::missing() };
            *place = best;
            self.trim(dir, &mut leaf.bests)?;
            return self.put_small_leaf(dir, leaf);
        }
        self.remove_from_node(dir, number, best, gone)
    }

    /// Makes the entry `name` name the node `ino` of kind `kind`. The directory is written, but for its times.
    pub(super) fn point_entry(&mut self, dir: &mut Inode, new: NewEntry<'_>) -> Result<()> {
        let number = dir.ino.0;
        self.point(dir, new).within(|| format!("directory {number}"))
    }

    fn point(&mut self, dir: &mut Inode, new: NewEntry<'_>) -> Result<()> {
        if dir.data.format == ForkFormat::Local {
            let mut short = ShortDir::parse(dir, &self.volume.sb)?;
            if new.name == b".." {
                short.parent = new.ino;
            } else {
                let found =
                    self.volume.find_entry(dir, new.name)?.ok_or(Fault::NoEntry { dir: dir.ino.0 })?;
                short.set(&found.name, new.ino, new.kind.entry_type())?;
            }
            let bytes = short.pack()?;
            if bytes.len() <= dir.data.room {
                return self.set_local(dir, &bytes);
            }
            return self.short_to_block(dir, &short);
        }
        let found = self.volume.find_entry(dir, new.name)?.ok_or(Fault::NoEntry { dir: dir.ino.0 })?;
        let super::super::dir::Place::Block { block, at } = found.place else { return index::missing() };
        let geometry = Geometry::of(&self.volume.sb)?;
        let number = wire::index(block.0.checked_div(geometry.step).unwrap_or(0))?;
        let mut data = self.data_block(dir, number)?;
        data.point(&self.volume.sb, at, new)?;
        self.put_data(dir, data)
    }

    /// Writes a directory inode whose entries changed.
    pub(super) fn store_dir(&mut self, mut dir: Inode, now: Time) -> Result<()> {
        dir.touch(&self.volume, true, now)?;
        dir.store(&self.volume).map(drop)
    }

    fn form(&self, dir: &Inode) -> Result<Form> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let leaf = self.volume.mapping_at(dir, ForkKind::Data, geometry.leaf)?;
        if leaf.is_none_or(|m| m.at > geometry.leaf) {
            return Ok(Form::Block);
        }
        Ok(if self.is_only_leaf(dir)? { Form::Leaf } else { Form::Node })
    }

    /// Allocates the directory block at `at` of the fork. Returns where it begins.
    fn grow(&mut self, dir: &mut Inode, at: FileBlock) -> Result<Daddr> {
        let volume = Arc::clone(&self.volume);
        let sb = &volume.sb;
        let geometry = Geometry::of(sb)?;
        let (mut near, _, _) = sb.split_inode(dir.ino)?;
        let mut behind = None;
        if let Some(before) = at.0.checked_sub(1)
            && let Some(last) = volume.mapping_at(dir, ForkKind::Data, FileBlock(before))?
            && last.at.0 <= before
        {
            let (ag, block) = sb.split(last.start)?;
            near = ag;
            behind = u32::try_from(last.len).ok().and_then(|len| block.0.checked_add(len));
        }
        let (mut done, mut first) = (0u64, None);
        while let Some(left) = geometry.step.checked_sub(done).filter(|l| *l > 0) {
            let take = u32::try_from(left).unwrap_or(u32::MAX);
            let place = FileBlock(at.0.saturating_add(done));
            let owner = Owner::content(dir.ino, ForkKind::Data, place.0, false);
            let found = self.allocate(Want { whole: left, take, near, behind }, owner)?;
            let (start, len) = (self.fs_block(found)?, u64::from(found.run.len));
            first = first.or(Some(start));
            self.map_add(dir, ForkKind::Data, Mapping { at: place, start, len, unwritten: false })?;
            dir.count_blocks(len, 0)?;
            dir.reparse(&volume)?;
            done = done.saturating_add(len);
            behind = None;
        }
        let why = "blocks of no size";
        sb.daddr(first.ok_or(Fault::Structure { what: "directory", why })?)
    }

    /// Frees the directory block at `at` of the fork.
    fn shrink(&mut self, dir: &mut Inode, at: FileBlock) -> Result<()> {
        let step = Geometry::of(&self.volume.sb)?.step;
        self.release_range(dir, ForkKind::Data, at.0, at.0.saturating_add(step))
    }

    /// Takes blocks that are not there off the end of the index, and off the directory's size.
    fn trim(&mut self, dir: &mut Inode, bests: &mut Vec<u16>) -> Result<()> {
        let last = bests.iter().rposition(|best| *best != index::NO_BLOCK);
        let count = last.map_or(0, |last| last.saturating_add(1));
        if count == bests.len() {
            return Ok(());
        }
        bests.truncate(count);
        let bytes = Geometry::of(&self.volume.sb)?.bytes;
        dir.core()?.di_size = len64(count.saturating_mul(bytes)).into();
        let volume = Arc::clone(&self.volume);
        dir.reparse(&volume)
    }

    /// Writes a directory block, which may lie in several extents.
    fn write_fork_block(&self, dir: &Inode, block: FileBlock, bytes: &[u8]) -> Result<()> {
        let size = self.volume.sb.block_size;
        let mut rest = bytes;
        let mut next = block;
        for mapping in self.volume.mappings(dir, ForkKind::Data, block)? {
            let mapping = mapping?;
            let Some(skip) = next.0.checked_sub(mapping.at.0) else { break };
            let span: Span = self.volume.sb.span(mapping.start, mapping.len)?;
            let span = span.skip(size.start_of(skip).unwrap_or(u64::MAX)).truncate(len64(rest.len()));
            let (now, later) = rest.split_at_checked(wire::index(span.len())?).unwrap_or((rest, &[]));
            self.volume.disk.write_at(span.start(), now)?;
            next = FileBlock(next.0.saturating_add(size.count(span.len())));
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
        let why = "a block that was read is a hole";
        Err(Fault::Fork { ino: dir.ino.0, fork: "data", why }.into())
    }
}
