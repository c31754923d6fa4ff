//! Extent trees: extents put in and taken out.

use racker_formats::error::Result;

use super::super::extent::{DEPTH_MAX, wrong};
use super::super::fault::Ext4Fault;
use super::Edit;
use super::node::Node;
use super::tree::{Item, ROOT_ITEMS, TreeNode};

impl Edit {
    /// Maps blocks of a file, none of which is mapped.
    pub(super) fn insert_extent(&mut self, node: &mut Node, new: Item) -> Result<()> {
        let mut path = self.path(node, new.first)?;
        let Some(leaf) = path.last_mut() else { return Err(wrong("depth", 0, 0)) };
        let at = leaf.items.partition_point(|item| item.first < new.first);
        let before = at.checked_sub(1).and_then(|b| leaf.items.get(b)).copied();
        let behind = leaf.items.get(at).copied();
        if before.is_some_and(|b| b.end() > new.first) || behind.is_some_and(|b| new.end() > b.first) {
            return Err(wrong("block that is mapped twice", new.first, 0));
        }
        match before.and_then(|b| b.joined(&new)) {
            Some(joined) => {
                let all = behind.and_then(|b| joined.joined(&b));
                if all.is_some() {
                    leaf.items.remove(at);
                }
                if let Some(slot) = leaf.items.get_mut(at.saturating_sub(1)) {
                    *slot = all.unwrap_or(joined);
                }
            }
            None => match (behind.and_then(|b| new.joined(&b)), leaf.items.get_mut(at)) {
                (Some(joined), Some(slot)) => *slot = joined,
                _ => leaf.items.insert(at, new),
            },
        }
        self.put_path(node, path, at)
    }

    /// Stores a path whose leaf has changed at entry `at`: nodes that are too full are split, first blocks in the
    /// nodes above corrected.
    fn put_path(&mut self, node: &mut Node, mut path: Vec<TreeNode>, at: usize) -> Result<()> {
        let mut at = at;
        while let Some(mut child) = path.pop() {
            let first = child.items.first().map_or(0, |item| item.first);
            if child.items.len() <= child.max {
                self.put_tree_node(node, &child)?;
                let Some(parent) = path.last_mut() else { return Ok(()) };
                let slot = parent.slot;
                match parent.items.get_mut(slot) {
                    Some(item) if item.first != first => item.first = first,
                    _ => return Ok(()),
                }
                at = slot;
                continue;
            }
            let Some(parent) = path.last_mut() else {
                return self.grow(node, child, at);
            };
            let right = self.split_off(node, &mut child, at)?;
            self.put_tree_node(node, &child)?;
            self.put_tree_node(node, &right)?;
            let slot = parent.slot;
            if let Some(item) = parent.items.get_mut(slot) {
                item.first = first;
            }
            at = slot.saturating_add(1);
            parent.items.insert(at, child_item(&right));
        }
        Ok(())
    }

    /// Moves the second half of a node to a new one; only the last entry if that is the new one, as files grow at
    /// their end.
    fn split_off(&mut self, node: &mut Node, full: &mut TreeNode, at: usize) -> Result<TreeNode> {
        let len = full.items.len();
        let keep = if at.saturating_add(1) >= len { len.saturating_sub(1) } else { len >> 1 };
        let items = full.items.split_off(keep);
        let (block, max) = (self.new_tree_block(node)?, self.block_items()?);
        Ok(TreeNode { block, depth: full.depth, items, max, slot: 0 })
    }

    /// Moves the entries of a root that is too full to a block below it.
    fn grow(&mut self, node: &mut Node, mut root: TreeNode, at: usize) -> Result<()> {
        if root.depth >= DEPTH_MAX {
            return Err(Ext4Fault::NoRoom("the extent tree").into());
        }
        let (block, max) = (self.new_tree_block(node)?, self.block_items()?);
        let items = std::mem::take(&mut root.items);
        let below = TreeNode { block, depth: root.depth, items, max, slot: at };
        self.put_tree_node(node, &below)?;
        root.items.push(child_item(&below));
        root.depth = root.depth.saturating_add(1);
        self.put_tree_node(node, &root)
    }

    /// Takes out what the blocks `from..to` of a file are mapped to; calls `gone` with each piece.
    pub(super) fn remove_extents(
        &mut self,
        node: &mut Node,
        from: u64,
        to: u64,
        gone: &mut dyn FnMut(&mut Self, &mut Node, Item) -> Result<()>,
    ) -> Result<()> {
        let mut at = from;
        while at < to {
            let mut path = self.path(node, at)?;
            // Where the next leaf begins, before this one may vanish.
            let next = path
                .iter()
                .filter(|n| n.depth > 0)
                .filter_map(|n| n.items.get(n.slot.saturating_add(1)))
                .map(|item| item.first)
                .min();
            let Some(leaf) = path.last_mut() else { break };
            let mut kept = Vec::with_capacity(leaf.items.len().saturating_add(1));
            let mut removed = Vec::new();
            for item in &leaf.items {
                kept.extend(item.between(0, from));
                removed.extend(item.between(from, to));
                kept.extend(item.between(to, u64::MAX));
            }
            if !removed.is_empty() {
                let first_changed = kept.iter().position(|item| item.first >= to).unwrap_or(kept.len());
                leaf.items = kept;
                if leaf.items.is_empty() {
                    self.drop_leaf(node, path)?;
                } else {
                    // The half behind a hole may be one entry too many.
                    self.put_path(node, path, first_changed.min(usize::MAX.saturating_sub(1)))?;
                }
                for item in removed {
                    gone(self, node, item)?;
                }
            }
            match next {
                Some(next) if next > at => at = next,
                _ => break,
            }
        }
        self.collapse(node)
    }

    /// Takes out an empty leaf, and what is empty above it then.
    fn drop_leaf(&mut self, node: &mut Node, mut path: Vec<TreeNode>) -> Result<()> {
        while let Some(mut empty) = path.pop() {
            let Some(parent) = path.last_mut() else {
                empty.depth = 0;
                empty.items.clear();
                return self.put_tree_node(node, &empty);
            };
            self.give_meta(node, empty.block)?;
            if parent.slot < parent.items.len() {
                parent.items.remove(parent.slot);
            }
            if !parent.items.is_empty() {
                let slot = parent.slot;
                return self.put_path(node, path, slot);
            }
        }
        Ok(())
    }

    /// Takes levels out of a tree whose root has one child with few entries.
    fn collapse(&mut self, node: &mut Node) -> Result<()> {
        loop {
            let path = self.path(node, 0)?;
            let (Some(root), Some(child)) = (path.first(), path.get(1)) else { return Ok(()) };
            if root.items.len() != 1 || child.items.len() > ROOT_ITEMS {
                return Ok(());
            }
            let lifted =
                TreeNode { block: 0, depth: child.depth, items: child.items.clone(), max: root.max, slot: 0 };
            self.give_meta(node, child.block)?;
            self.put_tree_node(node, &lifted)?;
        }
    }
}

fn child_item(child: &TreeNode) -> Item {
    let first = child.items.first().map_or(0, |item| item.first);
    Item { first, len: 0, start: child.block, unwritten: false }
}
