//! One form of a directory turned into another, and entries of directories with a tree.

use std::sync::Arc;

use racker_formats::error::Result;
use racker_formats::wire::len64;

use super::super::super::inode::{ForkKind, Inode};
use super::super::super::units::{FileBlock, InodeNo};
use super::super::Edit;
use super::super::dirblock;
use super::super::shortdir::ShortDir;
use super::data::DataBlock;
use super::node::DaNode;
use super::{Geometry, NewEntry, index};

impl Edit {
    /// Writes a directory inside its inode.
    pub(super) fn set_local(&mut self, dir: &mut Inode, bytes: &[u8]) -> Result<()> {
        dir.put_local(bytes)?;
        let volume = Arc::clone(&self.volume);
        dir.reparse(&volume)
    }

    /// Moves a directory out of its inode, into a block of its own.
    pub(in super::super) fn short_to_block(&mut self, dir: &mut Inode, short: &ShortDir) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let sb = &volume.sb;
        dir.put_nothing()?;
        dir.core()?.di_size = sb.dir_block_size.bytes().into();
        dir.reparse(&volume)?;
        let place = self.grow(dir, FileBlock(0))?;
        let bytes = dirblock::build(sb, dir.ino, place, short)?;
        self.write_fork_block(dir, FileBlock(0), &bytes)
    }

    /// Writes the only block of a directory, or moves it into the inode if it fits there.
    pub(super) fn put_small_block(&mut self, dir: &mut Inode, block: DataBlock) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let mut short = ShortDir { parent: InodeNo(0), entries: Vec::new() };
        for entry in block.entries(&volume.sb)? {
            match entry.name.as_slice() {
                b"." => {}
                b".." => short.parent = entry.ino,
                _ => short.entries.push(entry),
            }
        }
        if let Some(bytes) = short.pack().ok().filter(|bytes| bytes.len() <= dir.data.room) {
            volume.sb.inode_offset(short.parent)?;
            self.release_range(dir, ForkKind::Data, 0, u64::MAX)?;
            return self.set_local(dir, &bytes);
        }
        self.put_data(dir, block)
    }

    /// Gives the leaf entries of the only block a leaf of their own.
    pub(super) fn block_to_leaf(&mut self, dir: &mut Inode, mut block: DataBlock) -> Result<()> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let mut items = std::mem::take(&mut block.leaves);
        items.sort_unstable();
        block.only = false;
        let bests = vec![block.best()];
        self.put_data(dir, block)?;
        let place = self.grow(dir, geometry.leaf)?;
        let mut leaf = DaNode::new(geometry.leaf, place, 0, items);
        leaf.only = true;
        leaf.bests = bests;
        self.put_node(dir, &leaf)
    }

    /// Writes the only leaf of a directory, or puts it into the only block if it fits there.
    pub(super) fn put_small_leaf(&mut self, dir: &mut Inode, leaf: DaNode) -> Result<()> {
        if leaf.bests.len() == 1 {
            let mut block = self.data_block(dir, 0)?;
            if !block.only && block.has_room_for(leaf.items.len()) {
                self.shrink(dir, leaf.at)?;
                block.only = true;
                block.leaves = leaf.items;
                return self.put_small_block(dir, block);
            }
        }
        self.put_node(dir, &leaf)
    }

    /// Makes the only leaf the root of a tree, beside an index of free room.
    pub(super) fn leaf_to_node(&mut self, dir: &mut Inode, mut leaf: DaNode) -> Result<()> {
        let bests = std::mem::take(&mut leaf.bests);
        leaf.only = false;
        self.put_node(dir, &leaf)?;
        // One block of the index has room for more than a leaf.
        self.put_best(dir, &bests, 0)?;
        self.keep_bests(dir, bests);
        Ok(())
    }

    /// Adds an entry to a directory with a tree.
    pub(super) fn add_to_node(&mut self, dir: &mut Inode, new: NewEntry<'_>) -> Result<()> {
        let mut bests = self.bests(dir)?;
        let (number, _) = self.room_in(&bests, new.name.len());
        let known = bests.get(number).copied().unwrap_or(index::NO_BLOCK);
        let (address, best) = self.add_to_data(dir, number, known, new)?;
        if number >= bests.len() {
            bests.resize(number.saturating_add(1), index::NO_BLOCK);
        }
        if let Some(place) = bests.get_mut(number) {
            *place = best;
        }
        if best != known {
            self.put_best(dir, &bests, number)?;
        }
        self.keep_bests(dir, bests);
        self.tree_add(dir, (self.volume.sb.name_hash(new.name), address))
    }

    /// Removes what leads to an entry from a directory with a tree; data block `number` has `best` now.
    pub(super) fn remove_from_node(
        &mut self,
        dir: &mut Inode,
        number: usize,
        best: u16,
        gone: (u32, u32),
    ) -> Result<()> {
        let mut bests = self.bests(dir)?;
        let Some(place) = bests.get_mut(number) else { return index::missing() };
        let known = std::mem::replace(place, best);
        let count = bests.len();
        self.trim(dir, &mut bests)?;
        if best != known {
            self.put_best(dir, &bests, number)?;
        }
        if count != bests.len() {
            self.put_best(dir, &bests, bests.len().saturating_sub(1))?;
        }
        let root = self.tree_remove(dir, gone)?;
        let geometry = Geometry::of(&self.volume.sb)?;
        if let Some(mut root) = root {
            root.bests = bests;
            // Some room is left, so that the next entry does not undo it.
            if root.fits(&geometry, root.items.len() >> 2, false) && len64(root.bests.len()) > 0 {
                self.drop_index(dir)?;
                root.only = true;
                return self.put_small_leaf(dir, root);
            }
            bests = root.bests;
        }
        self.keep_bests(dir, bests);
        Ok(())
    }
}
