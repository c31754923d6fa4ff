//! Inodes of groups that go: each gets a number in a group that stays, and everything that named it names that.
//!
//! Checksums of an inode's own metadata start from its number, so those of extent blocks and directory blocks are made
//! anew. Blocks of extended attributes know only their own place.

use std::collections::HashSet;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64};

use super::super::super::fault::Ext4Fault;
use super::super::super::features::Incompat;
use super::super::super::inode::Inode;
use super::super::super::layout::{RawXattrHeader, XATTR_MAGIC, inode_flags};
use super::super::super::map::Mapping;
use super::super::Edit;
use super::super::bits::next_set;
use super::super::bytes::{get32, low32, put32};
use super::super::dir::DirBlock;
use super::super::dirblock::places;
use super::super::groups::{INODE_UNINIT, Which};
use super::super::node::Node;
use super::super::tree::TreeNode;
use crate::filesystem::NodeKind;

/// Stretches of numbers that change in one go: 12 bytes each.
const RUNS_MAX: usize = 16 << 20;
/// Where the two entries that each directory begins with name their inodes.
const DOTS: [usize; 2] = [0, 12];

/// Which number an inode has now: stretches of old number, length, new number.
#[derive(Debug, Default)]
pub(super) struct Numbers(Vec<(u32, u32, u32)>);

impl Numbers {
    fn push(&mut self, old: u32, new: u32) -> Result<()> {
        match self.0.last_mut() {
            Some((from, len, to))
                if from.checked_add(*len) == Some(old) && to.checked_add(*len) == Some(new) =>
            {
                *len = len.saturating_add(1);
            }
            _ => self.0.push((old, 1, new)),
        }
        if self.0.len() > RUNS_MAX {
            let (found, max) = (len64(self.0.len()), len64(RUNS_MAX));
            return Err(Ext4Fault::Limit { what: "stretches of inodes to move", found, max }.into());
        }
        Ok(())
    }

    fn of(&self, number: u32) -> Option<u32> {
        let next = self.0.partition_point(|(from, ..)| *from <= number);
        let (from, len, to) = next.checked_sub(1).and_then(|n| self.0.get(n)).copied()?;
        let past = number.checked_sub(from).filter(|past| *past < len)?;
        to.checked_add(past)
    }

    /// Puts the new number where an old one is; tells whether it was.
    fn put(&self, bytes: &mut [u8], at: usize) -> Result<bool> {
        match self.of(get32(bytes, at)?) {
            Some(new) => put32(bytes, at, new).map(|()| true),
            None => Ok(false),
        }
    }
}

impl Edit {
    /// Moves all inodes out of the groups from `groups` on.
    pub(super) fn renumber(&mut self, groups: u64) -> Result<()> {
        let numbers = self.move_inodes(groups)?;
        if numbers.0.is_empty() {
            return Ok(());
        }
        self.forget_read()?;
        self.renumber_superblock(&numbers);
        let in_inodes = self.fs.sb.features.incompat.contains(Incompat::EA_INODE);
        let mut seen = HashSet::new();
        self.each_inode(groups, &mut |edit, number| {
            let Some(inode) = edit.used_inode(number)? else { return Ok(()) };
            let is_dir = inode.kind == Some(NodeKind::Dir);
            let mut node = Node::of(inode)?;
            let mut changed = is_dir && edit.renumber_dir(&mut node, &numbers)?;
            if in_inodes {
                changed |= edit.renumber_values(&mut node, &numbers, &mut seen)?;
            }
            if changed { edit.store(&mut node, false) } else { Ok(()) }
        })
    }

    fn move_inodes(&mut self, groups: u64) -> Result<Numbers> {
        let per_group = self.fs.sb.inodes_per_group;
        let count = index(per_group.into())?;
        let mut numbers = Numbers::default();
        let mut free = 0u32;
        for group in low32(groups)..low32(self.fs.sb.groups) {
            let desc = *self.desc(group)?;
            if desc.flags & INODE_UNINIT != 0 || desc.free_inodes == per_group {
                continue;
            }
            let map = self.bits(group, Which::Inodes)?;
            let mut slot = next_set(&map, 0, count);
            while slot < count {
                let short = u32::try_from(slot).unwrap_or(u32::MAX);
                let old = group.saturating_mul(per_group).saturating_add(short).saturating_add(1);
                slot = next_set(&map, slot.saturating_add(1), count);
                let Some(inode) = self.used_inode(old).within(|| format!("inode {old}"))? else { continue };
                while u64::from(free) < groups && self.desc(free)?.free_inodes == 0 {
                    free = free.saturating_add(1);
                }
                if u64::from(free) >= groups {
                    let what = "the filesystem cannot become that small: its inodes do not fit";
                    return Err(Ext4Fault::Cannot(what.into()).into());
                }
                let new = self.take_inode(free, inode.kind == Some(NodeKind::Dir))?;
                self.move_inode(inode, new).within(|| format!("inode {old}"))?;
                numbers.push(old, new)?;
                self.shed_if_large()?;
            }
        }
        Ok(numbers)
    }

    /// Gives an inode another number.
    fn move_inode(&mut self, inode: Inode, number: u32) -> Result<()> {
        let has_map = inode.has_map(self);
        let orphans = inode.number == self.fs.sb.raw.orphan_file_inum.get();
        let old = Node::of(inode)?;
        let mut new = Node { number, ..old.clone() };
        if self.fs.sb.features.has_metadata_csum() && has_map {
            if old.has(inode_flags::EXTENTS) {
                let root = TreeNode::root(&old)?;
                let end = super::super::super::extent::END;
                self.stamp_tree(&old, &mut new, &root, end)?;
            }
            if old.kind == NodeKind::Dir {
                self.stamp_dir(&old, &new)?;
            }
            if orphans {
                self.sum_orphans(&new)?;
            }
        }
        self.store(&mut new, false)
    }

    fn stamp_tree(&mut self, old: &Node, new: &mut Node, tree: &TreeNode, end: u64) -> Result<()> {
        if tree.depth == 0 {
            return Ok(());
        }
        let depth = tree.depth.saturating_sub(1);
        for (slot, item) in tree.items.iter().enumerate() {
            let stop = tree.items.get(slot.saturating_add(1)).map_or(end, |next| next.first);
            let child = self.tree_node(old, item.start, depth, (item.first, stop))?;
            // Its children, whose checksums are still the old ones, are read by their places.
            self.stamp_tree(old, new, &child, stop)?;
            self.put_tree_node(new, &child)?;
        }
        Ok(())
    }

    /// The tree has its new checksums already.
    fn stamp_dir(&mut self, old: &Node, new: &Node) -> Result<()> {
        let (was, is) = (old.view(&self.fs.sb)?, new.view(&self.fs.sb)?);
        for number in 0..self.fs.dir_blocks(&was)? {
            let Mapping::Data(at) = self.fs.map(&is, number)?.to else {
                return Err(Ext4Fault::DirHole(number).into());
            };
            let bytes = self.fs.block("a directory", at)?;
            self.fs.check_dir_block(&was, number, &bytes).within(|| format!("block {number}"))?;
            self.put_dir_block(new, DirBlock { number, at, bytes: bytes.to_vec() })?;
        }
        Ok(())
    }

    /// Stores a block of a directory, of whichever kind it is.
    pub(in super::super) fn put_dir_block(&mut self, dir: &Node, block: DirBlock) -> Result<()> {
        let view = dir.view(&self.fs.sb)?;
        match self.fs.index_table(&view, block.number, &block.bytes)? {
            Some(_) if self.fs.sb.features.has_metadata_csum() => self.put_index(dir, block),
            _ => self.put_leaf(dir, block),
        }
    }

    /// Makes a directory's entries name the new numbers; tells whether the inode itself changed.
    fn renumber_dir(&mut self, dir: &mut Node, numbers: &Numbers) -> Result<bool> {
        if dir.is_inline() {
            return self.renumber_inline(dir, numbers);
        }
        let view = dir.view(&self.fs.sb)?;
        let sums = self.fs.sb.features.has_metadata_csum();
        let usable = self.fs.usable()?;
        for number in 0..self.fs.dir_blocks(&view)? {
            let mut block = self.dir_block(dir, number)?;
            let mut changed = false;
            match self.fs.index_table(&view, number, &block.bytes)? {
                Some(_) if sums => {
                    if number == 0 {
                        for at in DOTS {
                            changed |= numbers.put(&mut block.bytes, at)?;
                        }
                    }
                }
                _ => changed = renumber_entries(&mut block.bytes, usable, numbers)?,
            }
            if changed {
                self.put_dir_block(dir, block)?;
            }
            self.shed_if_large()?;
        }
        Ok(false)
    }

    fn renumber_inline(&mut self, dir: &mut Node, numbers: &Numbers) -> Result<bool> {
        let mut changed = numbers.put(&mut dir.raw.block, 0)?;
        let (mut first, mut second) = self.inline_stretches(dir)?;
        for stretch in [&mut first, &mut second] {
            let usable = stretch.len();
            changed |= renumber_entries(stretch, usable, numbers)?;
        }
        if changed {
            self.put_stretches(dir, &first, &second)?;
        }
        Ok(changed)
    }

    /// Makes attributes name the new numbers of inodes that hold values; tells whether the inode itself changed.
    fn renumber_values(
        &mut self,
        node: &mut Node,
        numbers: &Numbers,
        seen: &mut HashSet<u64>,
    ) -> Result<bool> {
        let block = node.xattr_block();
        if block != 0 && seen.insert(block) {
            self.check_owned("the inode", block, 1)?;
            let mut bytes = self.fs.block("extended attributes", block)?.to_vec();
            self.fs.check_xattr_block(block, &bytes)?;
            if renumber_attrs(&mut bytes, size_of::<RawXattrHeader>(), numbers)? {
                self.sum_xattr_block(block, &mut bytes)?;
                self.put_block(block, bytes)?;
            }
        }
        let fixed = node.fixed;
        let Some(room) = node.bytes.get_mut(fixed..).filter(|room| room.len() > 4) else { return Ok(false) };
        if fixed <= 128 || get32(room, 0)? != XATTR_MAGIC {
            return Ok(false);
        }
        renumber_attrs(room, 4, numbers)
    }

    /// Files that the superblock names.
    fn renumber_superblock(&mut self, numbers: &Numbers) {
        let raw = &mut self.fs.sb.raw;
        for field in [
            &mut raw.journal_inum,
            &mut raw.usr_quota_inum,
            &mut raw.grp_quota_inum,
            &mut raw.prj_quota_inum,
            &mut raw.orphan_file_inum,
            &mut raw.lpf_ino,
        ] {
            if let Some(new) = numbers.of(field.get()) {
                *field = new.into();
            }
        }
    }
}

fn renumber_entries(bytes: &mut [u8], usable: usize, numbers: &Numbers) -> Result<bool> {
    let mut changed = false;
    for place in places(bytes, usable)? {
        if place.inode != 0 {
            changed |= numbers.put(bytes, place.at)?;
        }
    }
    Ok(changed)
}

/// Goes through the entries from `first` on; four zero bytes end them.
fn renumber_attrs(room: &mut [u8], first: usize, numbers: &Numbers) -> Result<bool> {
    const ENTRY: usize = 16;
    let (mut at, mut changed) = (first, false);
    while room.get(at..).and_then(|r| r.first_chunk::<4>()).is_some_and(|word| *word != [0; 4]) {
        let name_len = usize::from(room.get(at).copied().unwrap_or(0));
        let inode_at = at.saturating_add(4);
        if get32(room, inode_at)? != 0 {
            changed |= numbers.put(room, inode_at)?;
        }
        at = at.saturating_add(ENTRY).saturating_add(name_len.saturating_add(3) & !3);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_as_stretches() {
        let mut numbers = Numbers::default();
        for (old, new) in [(100, 12), (101, 13), (103, 15), (104, 17)] {
            numbers.push(old, new).unwrap();
        }
        assert_eq!(numbers.0.len(), 3);
        assert_eq!(numbers.of(101), Some(13));
        assert_eq!((numbers.of(102), numbers.of(99), numbers.of(105)), (None, None, None));
        assert_eq!(numbers.of(104), Some(17));
    }
}
