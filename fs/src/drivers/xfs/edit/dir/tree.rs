//! The tree over the hashes of a directory's names: its root stays at the first block of the leaves.

use racker_formats::error::Result;

use super::super::super::fault::Fault;
use super::super::super::inode::{ForkKind, Inode};
use super::super::super::units::FileBlock;
use super::super::Edit;
use super::Geometry;
use super::node::DaNode;

/// Levels above the leaves that the kernel goes.
const LEVELS_MAX: u16 = 4;

/// A step of the way from the root to a leaf.
#[derive(Debug)]
struct Step {
    node: DaNode,
    index: usize,
}

fn damaged(why: &'static str) -> Fault {
    Fault::Structure { what: "directory tree", why }
}

/// A block of the tree as its neighbours name it.
fn number(at: FileBlock) -> Result<u32> {
    Ok(u32::try_from(at.0).map_err(|_| damaged("a block too far behind"))?)
}

/// Where a block that is too full is best cut: near its middle, and where two hashes meet that are not the same.
/// (`xfs_repair` takes it for damage if the highest hashes of two neighbours are.)
fn between_hashes(items: &[(u32, u32)]) -> usize {
    let middle = items.len().div_ceil(2);
    let differ = |at: &usize| {
        let pair = at.checked_sub(1).and_then(|before| items.get(before)).zip(items.get(*at));
        pair.is_some_and(|(before, behind)| before.0 != behind.0)
    };
    (0..middle)
        .flat_map(|off| [middle.saturating_sub(off), middle.saturating_add(off)])
        .find(differ)
        .unwrap_or(middle)
}

impl Edit {
    /// Adds a hash with an address.
    pub(super) fn tree_add(&mut self, dir: &mut Inode, item: (u32, u32)) -> Result<()> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let mut path = self.way(dir, item.0)?;
        if let Some(step) = path.last_mut() {
            let first = step.node.items.first().is_none_or(|(hash, _)| *hash > item.0);
            if first && step.node.back != 0 && self.child(dir, step.node.back, 0)?.highest() > item.0 {
                return Err(damaged("a block has hashes beyond those its parent knows").into());
            }
            step.node.insert(item);
        }
        let most = DaNode::most(&geometry);
        let mut depth = path.len().saturating_sub(1);
        while let Some(step) = path.get_mut(depth) {
            if step.node.items.len() <= most {
                break;
            }
            let half = between_hashes(&step.node.items);
            let items = step.node.items.split_off(half);
            if depth == 0 {
                let left = std::mem::take(&mut step.node.items);
                return self.split_root(dir, path, left, items);
            }
            let at = self.unused(dir)?;
            let place = self.grow(dir, at)?;
            let Some(step) = path.get_mut(depth) else { break };
            let mut new = DaNode::new(at, place, step.node.level, items);
            (new.back, new.forw) = (number(step.node.at)?, step.node.forw);
            step.node.forw = number(at)?;
            let (low, level) = (step.node.highest(), step.node.level);
            self.turn(dir, new.forw, level, |node, to| node.back = to, number(at)?)?;
            self.put_node(dir, &new)?;
            depth = depth.saturating_sub(1);
            let Some(parent) = path.get_mut(depth) else { break };
            if let Some(child) = parent.node.items.get_mut(parent.index) {
                child.0 = low;
            }
            let behind = parent.index.saturating_add(1);
            parent.node.items.insert(behind, (new.highest(), number(at)?));
        }
        self.put_way(dir, path)
    }

    /// Moves what the root has into two blocks below it.
    fn split_root(
        &mut self,
        dir: &mut Inode,
        mut path: Vec<Step>,
        left: Vec<(u32, u32)>,
        right: Vec<(u32, u32)>,
    ) -> Result<()> {
        let level = path.first().map_or(0, |s| s.node.level);
        if level >= LEVELS_MAX {
            return Err(Fault::NoSpace.into());
        }
        let first = self.unused(dir)?;
        let place = self.grow(dir, first)?;
        let mut left = DaNode::new(first, place, level, left);
        let second = self.unused(dir)?;
        let place = self.grow(dir, second)?;
        let mut right = DaNode::new(second, place, level, right);
        left.forw = number(second)?;
        right.back = number(first)?;
        if let Some(root) = path.first_mut() {
            root.node.level = level.saturating_add(1);
            root.node.items = vec![(left.highest(), number(first)?), (right.highest(), number(second)?)];
        }
        self.put_node(dir, &left)?;
        self.put_node(dir, &right)?;
        // The blocks below the old root are no way through the new one.
        for step in &path {
            self.put_node(dir, &step.node)?;
        }
        Ok(())
    }

    /// Takes a hash with an address away. Returns the root if it is a leaf.
    pub(super) fn tree_remove(&mut self, dir: &mut Inode, item: (u32, u32)) -> Result<Option<DaNode>> {
        let mut path = self.way(dir, item.0)?;
        let mut steps = self.volume.sb.blocks;
        loop {
            let Some(step) = path.last() else { return Err(damaged("no root").into()) };
            if let Some(found) = step.node.position(item) {
                if let Some(step) = path.last_mut() {
                    step.node.items.remove(found);
                }
                break;
            }
            steps = steps.checked_sub(1).ok_or(Fault::Circle { what: "a directory's leaves" })?;
            if step.node.highest() > item.0 || !self.next(dir, &mut path)? {
                return Err(damaged("an entry has no leaf entry").into());
            }
        }
        let most = DaNode::most(&Geometry::of(&self.volume.sb)?);
        let mut depth = path.len().saturating_sub(1);
        while depth > 0 {
            let few = path.get(depth).is_some_and(|s| s.node.items.len() <= most >> 1);
            if !few || !self.mend(dir, &mut path, depth, most)? {
                break;
            }
            depth = depth.saturating_sub(1);
        }
        self.put_way(dir, path)?;
        self.pull_up(dir)
    }

    /// Merges the block at `depth` with a neighbour below the same parent if both fill three quarters of a block at
    /// most; one without entries goes. Says whether the parent lost a child.
    fn mend(&mut self, dir: &mut Inode, path: &mut Vec<Step>, depth: usize, most: usize) -> Result<bool> {
        let above = depth.saturating_sub(1);
        let (Some(parent), Some(step)) = (path.get(above), path.get(depth)) else { return Ok(false) };
        let (place, own, level) = (parent.index, step.node.clone(), step.node.level);
        let fits = most.saturating_sub(most >> 2);
        for left in [true, false] {
            let sibling = if left { place.checked_sub(1) } else { place.checked_add(1) };
            let child = sibling.and_then(|s| parent.node.items.get(s)).copied();
            let Some((_, child)) = child else { continue };
            let other = self.child(dir, child, level)?;
            if own.items.len().saturating_add(other.items.len()) > fits {
                continue;
            }
            let (mut first, mut second) = if left { (other, own) } else { (own, other) };
            if first.forw != number(second.at)? || second.back != number(first.at)? {
                return Err(damaged("neighbours do not name each other").into());
            }
            first.items.append(&mut second.items);
            first.forw = second.forw;
            self.turn(dir, second.forw, level, |node, to| node.back = to, number(first.at)?)?;
            self.put_node(dir, &first)?;
            self.shrink(dir, second.at)?;
            path.truncate(depth);
            if let Some(parent) = path.get_mut(above) {
                let keep = if left { place.saturating_sub(1) } else { place };
                parent.node.items.remove(keep.saturating_add(1));
                if let Some(item) = parent.node.items.get_mut(keep) {
                    item.0 = first.highest();
                }
                parent.index = keep;
            }
            return Ok(true);
        }
        if !own.items.is_empty() {
            return Ok(false);
        }
        self.turn(dir, own.back, level, |node, to| node.forw = to, own.forw)?;
        self.turn(dir, own.forw, level, |node, to| node.back = to, own.back)?;
        self.shrink(dir, own.at)?;
        path.truncate(depth);
        if let Some(parent) = path.get_mut(above) {
            parent.node.items.remove(place);
            parent.index = place.min(parent.node.items.len().saturating_sub(1));
        }
        Ok(true)
    }

    /// Puts an only child into the root's place.
    fn pull_up(&mut self, dir: &mut Inode) -> Result<Option<DaNode>> {
        let root = Geometry::of(&self.volume.sb)?.leaf;
        loop {
            let mut node = self.node(dir, root)?;
            if node.level == 0 {
                return Ok(Some(node));
            }
            let [(_, only)] = node.items.as_slice() else { return Ok(None) };
            let level = node.level.saturating_sub(1);
            let child = self.child(dir, *only, level)?;
            node.items = child.items;
            node.level = level;
            self.shrink(dir, child.at)?;
            self.put_node(dir, &node)?;
        }
    }

    /// The way to the first leaf that may have `hash`.
    fn way(&self, dir: &Inode, hash: u32) -> Result<Vec<Step>> {
        let mut node = self.node(dir, Geometry::of(&self.volume.sb)?.leaf)?;
        if node.level > LEVELS_MAX {
            return Err(damaged("it is too deep").into());
        }
        let mut path = Vec::new();
        loop {
            let last = node.items.len().saturating_sub(1);
            let index = node.items.partition_point(|(high, _)| *high < hash).min(last);
            let (level, child) = (node.level, node.items.get(index).copied());
            path.push(Step { node, index });
            if level == 0 {
                return Ok(path);
            }
            let (highest, child) = child.ok_or_else(|| damaged("an inner block has no entry"))?;
            node = self.child(dir, child, level.saturating_sub(1))?;
            // Of removed entries at a leaf's end the parent still knows.
            if node.highest() > highest {
                return Err(damaged("a block has hashes beyond those its parent knows").into());
            }
        }
    }

    /// Goes on to the next leaf.
    fn next(&self, dir: &Inode, path: &mut Vec<Step>) -> Result<bool> {
        path.pop();
        while let Some(mut step) = path.pop() {
            step.index = step.index.saturating_add(1);
            let Some((_, child)) = step.node.items.get(step.index).copied() else { continue };
            let mut node = self.child(dir, child, step.node.level.saturating_sub(1))?;
            path.push(step);
            while node.level > 0 {
                let (_, child) = *node.items.first().ok_or_else(|| damaged("an inner block has no entry"))?;
                let below = self.child(dir, child, node.level.saturating_sub(1))?;
                path.push(Step { node, index: 0 });
                node = below;
            }
            path.push(Step { node, index: 0 });
            return Ok(true);
        }
        Ok(false)
    }

    fn child(&self, dir: &Inode, at: u32, level: u16) -> Result<DaNode> {
        let node = self.node(dir, FileBlock(at.into()))?;
        if node.level != level {
            let (found, expected) = (node.level.into(), level.into());
            return Err(Fault::TreeLevel { what: "hash tree", found, expected }.into());
        }
        Ok(node)
    }

    /// Changes what the block `at`, if it is one, says of a neighbour.
    fn turn(
        &mut self,
        dir: &Inode,
        at: u32,
        level: u16,
        change: impl FnOnce(&mut DaNode, u32),
        to: u32,
    ) -> Result<()> {
        if at == 0 {
            return Ok(());
        }
        let mut node = self.child(dir, at, level)?;
        change(&mut node, to);
        self.put_node(dir, &node)
    }

    /// Writes all blocks of a way, each with its highest hash known to its parent.
    fn put_way(&mut self, dir: &Inode, mut path: Vec<Step>) -> Result<()> {
        for depth in (1..path.len()).rev() {
            let highest = path.get(depth).map_or(0, |s| s.node.highest());
            if let Some(parent) = path.get_mut(depth.saturating_sub(1))
                && let Some(child) = parent.node.items.get_mut(parent.index)
            {
                child.0 = highest;
            }
        }
        for step in &path {
            self.put_node(dir, &step.node)?;
        }
        Ok(())
    }

    /// The first block of the leaves that is not in use.
    fn unused(&self, dir: &Inode) -> Result<FileBlock> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let mut next = geometry.leaf;
        for mapping in self.volume.mappings(dir, ForkKind::Data, next)? {
            let mapping = mapping?;
            if mapping.at.0 >= next.0.saturating_add(geometry.step) {
                break;
            }
            let on = mapping.end().0.saturating_sub(geometry.leaf.0).next_multiple_of(geometry.step);
            next = FileBlock(geometry.leaf.0.saturating_add(on));
        }
        if next >= geometry.free {
            return Err(Fault::NoSpace.into());
        }
        Ok(next)
    }
}
