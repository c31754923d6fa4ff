//! Inodes made to name the blocks where they are now.

use std::collections::HashSet;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64};

use super::super::super::fault::Ext4Fault;
use super::super::super::inode::Inode;
use super::super::super::layout::inode_flags;
use super::super::super::map::Mapping;
use super::super::Edit;
use super::super::bits::next_set;
use super::super::bytes::{get32, low32, put32};
use super::super::groups::{INODE_UNINIT, Which};
use super::super::node::Node;
use super::super::tree::{Item, TreeNode};
use super::evacuate::Moves;
use crate::filesystem::NodeKind;

/// The inode whose blocks are those that the table of descriptors may grow into.
pub(super) const RESIZE_INODE: u32 = 7;
/// Pointers in the inode to blocks of the file.
const DIRECT: usize = 12;

impl Inode {
    /// Whether its 60 bytes lead to blocks.
    pub(in super::super) fn has_map(&self, edit: &Edit) -> bool {
        let inline = self.has(inode_flags::INLINE_DATA);
        match self.kind {
            Some(NodeKind::File | NodeKind::Dir) => !inline,
            Some(NodeKind::Link) => !inline && !self.is_fast_link(&edit.fs.sb),
            _ => false,
        }
    }
}

impl Edit {
    /// Calls `visit` with the number of every inode in use of the first `groups` groups.
    pub(in super::super) fn each_inode(
        &mut self,
        groups: u64,
        visit: &mut dyn FnMut(&mut Self, u32) -> Result<()>,
    ) -> Result<()> {
        let per_group = self.fs.sb.inodes_per_group;
        let count = index(per_group.into())?;
        for group in 0..low32(groups) {
            let desc = *self.desc(group)?;
            if desc.flags & INODE_UNINIT != 0 || desc.free_inodes == per_group {
                continue;
            }
            let map = self.bits(group, Which::Inodes)?;
            let mut slot = next_set(&map, 0, count);
            while slot < count {
                let short = u32::try_from(slot).unwrap_or(u32::MAX);
                let number = group.saturating_mul(per_group).saturating_add(short).saturating_add(1);
                visit(self, number).within(|| format!("inode {number}"))?;
                self.settle()?;
                self.shed_if_large()?;
                slot = next_set(&map, slot.saturating_add(1), count);
            }
        }
        Ok(())
    }

    /// An inode that is in use, or `None` for one that is only marked so.
    pub(in super::super) fn used_inode(&mut self, number: u32) -> Result<Option<Inode>> {
        let inode = self.fs.any_inode(number)?;
        let has_blocks = inode.raw.blocks_lo.get() != 0 || inode.xattr_block != 0;
        if inode.kind.is_none() && has_blocks {
            let what = format!("inode {number}, which is no file, has blocks (a list of bad blocks?)");
            return Err(Ext4Fault::Cannot(what).into());
        }
        Ok((inode.links != 0 && inode.kind.is_some()).then_some(inode))
    }

    /// Makes all inodes of the first `groups` groups name the blocks where they went.
    pub(super) fn repoint_all(&mut self, groups: u64, moves: &Moves) -> Result<()> {
        if moves.is_empty() {
            return Ok(());
        }
        // Blocks of attributes that are shared, and have their new checksum.
        let mut summed = HashSet::new();
        self.each_inode(groups, &mut |edit, number| edit.repoint(number, moves, &mut summed))
    }

    fn repoint(&mut self, number: u32, moves: &Moves, summed: &mut HashSet<u64>) -> Result<()> {
        let Some(inode) = self.used_inode(number)? else { return Ok(()) };
        let (has_map, xattrs) = (inode.has_map(self), inode.xattr_block);
        let mut node = Node::of(inode)?;
        let mut changed = false;
        if number == RESIZE_INODE {
            changed = repoint_slot(&mut node, DIRECT.saturating_add(1), moves)?;
        } else if has_map && node.has(inode_flags::EXTENTS) {
            changed = self.repoint_extents(&mut node, moves)?;
        } else if has_map {
            changed = self.repoint_map(&mut node, moves)?;
        }
        let to = moves.of(xattrs);
        if xattrs != 0 && to != xattrs {
            self.fs.sb.check_blocks("the inode", xattrs, 1)?;
            if summed.insert(to) {
                let mut block = self.fs.block("extended attributes", to)?.to_vec();
                self.fs.check_xattr_block(xattrs, &block)?;
                self.sum_xattr_block(to, &mut block)?;
                self.put_block(to, block)?;
            }
            node.set_xattr_block(to);
            changed = true;
        }
        if !changed {
            return Ok(());
        }
        self.save(&mut node)?;
        if number == self.fs.sb.raw.orphan_file_inum.get() {
            self.sum_orphans(&node)?;
        }
        Ok(())
    }

    /// Makes the checksums of the orphan file, which is empty, anew: they start from inode and block number.
    pub(in super::super) fn sum_orphans(&mut self, node: &Node) -> Result<()> {
        let blocks = self.fs.sb.block_size.count(node.size).min(self.fs.sb.blocks);
        for number in 0..blocks {
            let Mapping::Data(at) = self.map(node, number)?.to else {
                return Err(Ext4Fault::DirHole(number).into());
            };
            self.put_orphans(node.seed(&self.fs.sb), at)?;
        }
        Ok(())
    }

    fn repoint_extents(&mut self, node: &mut Node, moves: &Moves) -> Result<bool> {
        let root = TreeNode::root(node)?;
        let mut late = Vec::new();
        let before = node.raw.block;
        self.repoint_tree(node, root, super::super::super::extent::END, moves, &mut late)?;
        for items in &late {
            let (Some(first), Some(last)) = (items.first(), items.last()) else { continue };
            self.remove_extents(node, first.first, last.end(), &mut |_, _, _| Ok(()))?;
            for item in items {
                self.insert_extent(node, *item)?;
            }
        }
        Ok(!late.is_empty() || before != node.raw.block)
    }

    /// Goes down from `tree`. Leaves that have too many entries afterwards are left to the end.
    fn repoint_tree(
        &mut self,
        node: &mut Node,
        mut tree: TreeNode,
        end: u64,
        moves: &Moves,
        late: &mut Vec<Vec<Item>>,
    ) -> Result<()> {
        if tree.depth == 0 {
            let items = self.moved_items(&tree.items, moves)?;
            if items.len() > tree.max {
                late.push(items);
            } else if items != tree.items {
                tree.items = items;
                self.put_tree_node(node, &tree)?;
            }
            return Ok(());
        }
        let mut changed = false;
        for item in &mut tree.items {
            self.fs.sb.check_blocks("an extent index", item.start, 1)?;
            let to = moves.of(item.start);
            changed |= to != item.start;
            item.start = to;
        }
        if changed {
            self.put_tree_node(node, &tree)?;
        }
        let depth = tree.depth.saturating_sub(1);
        for (slot, item) in tree.items.iter().enumerate() {
            let stop = tree.items.get(slot.saturating_add(1)).map_or(end, |next| next.first);
            let child = self.tree_node(node, item.start, depth, (item.first, stop))?;
            self.repoint_tree(node, child, stop, moves, late)?;
            self.shed_if_large()?;
        }
        Ok(())
    }

    /// Extents as they are now.
    fn moved_items(&self, items: &[Item], moves: &Moves) -> Result<Vec<Item>> {
        let mut all: Vec<Item> = Vec::with_capacity(items.len());
        for item in items {
            self.fs.sb.check_blocks("an extent", item.start, item.len)?;
            if !moves.touch(item.start, item.len) {
                all.push(*item);
                continue;
            }
            let mut at = item.first;
            while let Some(rest) = item.between(at, item.end()) {
                let (to, run) = moves.find(rest.start);
                let piece = Item { start: to, len: rest.len.min(run.max(1)), ..rest };
                at = piece.end();
                match all.last_mut().and_then(|last| last.joined(&piece).map(|joined| (last, joined))) {
                    Some((last, joined)) => *last = joined,
                    None => all.push(piece),
                }
            }
        }
        Ok(all)
    }

    fn repoint_map(&mut self, node: &mut Node, moves: &Moves) -> Result<bool> {
        let mut changed = false;
        let mut seen = HashSet::new();
        for slot in 0..DIRECT.saturating_add(3) {
            let block = u64::from(get32(&node.raw.block, slot.saturating_mul(4))?);
            if block == 0 {
                continue;
            }
            self.fs.sb.check_blocks("a block map", block, 1)?;
            changed |= repoint_slot(node, slot, moves)?;
            if let Some(levels) = slot.checked_sub(DIRECT) {
                self.repoint_table(moves.of(block), levels, moves, &mut seen)?;
            }
        }
        Ok(changed)
    }

    /// Goes through a block of pointers with `levels` levels of them below.
    fn repoint_table(
        &mut self,
        block: u64,
        levels: usize,
        moves: &Moves,
        seen: &mut HashSet<u64>,
    ) -> Result<()> {
        // Each is there once, so this ends.
        if !seen.insert(block) {
            return Err(Ext4Fault::SharedBlock(block).into());
        }
        let mut bytes = self.fs.block("a block map", block)?.to_vec();
        let mut changed = false;
        for at in (0..bytes.len()).step_by(4) {
            let child = u64::from(get32(&bytes, at)?);
            if child == 0 {
                continue;
            }
            self.fs.sb.check_blocks("a block map", child, 1)?;
            let to = moves.of(child);
            if to != child {
                put32(&mut bytes, at, short(to)?)?;
                changed = true;
            }
            if let Some(below) = levels.checked_sub(1) {
                self.repoint_table(to, below, moves, seen)?;
            }
        }
        if changed {
            debug_assert_eq!(len64(bytes.len()), self.fs.sb.block_size.bytes());
            self.check_owned("a block map", block, 1)?;
            self.put_block(block, bytes)?;
        }
        self.shed_if_large()
    }
}

/// Block maps have 32 bits for a number.
fn short(block: u64) -> Result<u32> {
    u32::try_from(block)
        .map_err(|_| Ext4Fault::Cannot("a block map cannot name a block behind 2^32".into()).into())
}

fn repoint_slot(node: &mut Node, slot: usize, moves: &Moves) -> Result<bool> {
    let at = slot.saturating_mul(4);
    let block = u64::from(get32(&node.raw.block, at)?);
    let to = moves.of(block);
    if block == 0 || to == block {
        return Ok(false);
    }
    put32(&mut node.raw.block, at, short(to)?)?;
    Ok(true)
}
