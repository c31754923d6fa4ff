//! Insert, remove and replace records. A block that overflows is split in two; one that falls below half borrows
//! from its sibling or is merged with it; the tree grows and shrinks at the root.

use racker_formats::error::Result;

use super::super::super::units::NULL_AG_BLOCK;
use super::node::{Child, Entries, Node};
use super::{Cut, LEVELS_MAX, Path, Pool, Shape, Step, Tree, structure};

/// Takes the last step off a path.
fn pop<S: Shape>(path: &mut Path) -> Result<Step> {
    match path.pop() {
        Some(step) => Ok(step),
        None => structure::<S, _>("a way through the tree ends early"),
    }
}

impl<S: Shape> Tree<S> {
    /// Adds a record between its neighbours; one that does not fit between them is a contradiction.
    pub(in super::super) fn insert(&mut self, record: S::Record, pool: &mut dyn Pool) -> Result<()> {
        let mut path = self.find(Cut::Behind(S::low(&record)))?;
        let (left, right) = (self.left_of(&path)?, self.right_of(&path)?);
        let fits =
            left.is_none_or(|l| S::follows(&l, &record)) && right.is_none_or(|r| S::follows(&record, &r));
        if !fits {
            return structure::<S, _>("a new record overlaps one that is there");
        }
        let step = pop::<S>(&mut path)?;
        self.node_mut(step.block, 0)?.leaf_mut()?.insert(step.index, record);
        let mut block = step.block;
        let mut level = 0u16;
        loop {
            let new = self.split_if_full(block, level, pool)?;
            let Some(step) = path.pop() else {
                return match new {
                    Some(new) => self.grow(new, pool),
                    None => Ok(()),
                };
            };
            level = level.saturating_add(1);
            self.refresh(step, level)?;
            if let Some(new) = new {
                let at = step.index.saturating_add(1);
                self.node_mut(step.block, level)?.inner_mut()?.insert(at, new);
            }
            block = step.block;
        }
    }

    /// Removes exactly this record; one that is not there is a contradiction.
    pub(in super::super) fn remove(&mut self, record: &S::Record, pool: &mut dyn Pool) -> Result<()> {
        let mut path = self.find_exact(record)?;
        let step = pop::<S>(&mut path)?;
        self.node_mut(step.block, 0)?.leaf_mut()?.remove(step.index);
        let (mut block, mut level) = (step.block, 0u16);
        while let Some(step) = path.pop() {
            let above = level.saturating_add(1);
            if self.node(block, level)?.len() < self.capacity.min(level) {
                self.mend(step, level, pool)?;
            } else {
                self.refresh(step, above)?;
            }
            (block, level) = (step.block, above);
        }
        self.shrink(pool)
    }

    /// Puts `new` in the place of `old`, which must be there; the order stays.
    pub(in super::super) fn replace(&mut self, old: &S::Record, new: S::Record) -> Result<()> {
        let mut path = self.find_exact(old)?;
        let left = self.left_of(&path)?;
        if let Some(step) = path.last_mut() {
            step.index = step.index.saturating_add(1);
        }
        let right = self.right_of(&path)?;
        let fits = left.is_none_or(|l| S::follows(&l, &new)) && right.is_none_or(|r| S::follows(&new, &r));
        if !fits {
            return structure::<S, _>("a changed record overlaps its neighbour");
        }
        let step = pop::<S>(&mut path)?;
        let at = step.index.saturating_sub(1);
        if let Some(place) = self.node_mut(step.block, 0)?.leaf_mut()?.get_mut(at) {
            *place = new;
        }
        let mut level = 0u16;
        while let Some(step) = path.pop() {
            level = level.saturating_add(1);
            self.refresh(step, level)?;
        }
        Ok(())
    }

    /// The way to exactly this record: the last step's index is its own.
    fn find_exact(&mut self, record: &S::Record) -> Result<Path> {
        let path = self.find(Cut::Before(S::low(record)))?;
        if self.right_of(&path)? != Some(*record) {
            return structure::<S, _>("a record that another structure asks for is missing");
        }
        let Some(step) = path.last() else { return structure::<S, _>("no root") };
        if step.index < self.node(step.block, 0)?.len() {
            return Ok(path);
        }
        match self.neighbour(&path, true)? {
            Some(path) => Ok(path),
            None => structure::<S, _>("a record that another structure asks for is missing"),
        }
    }

    /// Splits an overfull block; returns the new one at its right.
    fn split_if_full(
        &mut self,
        block: u32,
        level: u16,
        pool: &mut dyn Pool,
    ) -> Result<Option<Child<S::Key>>> {
        let max = self.capacity.max(level);
        let node = self.node(block, level)?;
        if node.len() <= max {
            return Ok(None);
        }
        let middle = node.len().div_ceil(2);
        let new = pool.take()?;
        self.ground.check(new, 1)?;
        if self.nodes.contains_key(&new) {
            return structure::<S, _>("a block of the tree is also free");
        }
        let node = self.node_mut(block, level)?;
        let right = node.right;
        node.right = new;
        let entries = node.split_off(middle);
        let split = Node::new(level, block, right, entries);
        let summary = split.summary(new);
        self.nodes.insert(new, split);
        if right != NULL_AG_BLOCK {
            self.sibling_mut(right, level)?.left = new;
        }
        Ok(summary)
    }

    /// A block that a sibling names: it is no root.
    fn sibling_mut(&mut self, block: u32, level: u16) -> Result<&mut Node<S>> {
        self.ground.check(block, 1)?;
        self.node_mut(block, level)
    }

    /// Puts a new root over the old one and the block that was split off it.
    fn grow(&mut self, new: Child<S::Key>, pool: &mut dyn Pool) -> Result<()> {
        if self.levels() >= LEVELS_MAX {
            return structure::<S, _>("the tree cannot grow any higher");
        }
        let (root, top) = (self.root, self.top());
        let Some(old) = self.node(root, top)?.summary(root) else {
            return structure::<S, _>("an empty root was split");
        };
        let block = pool.take()?;
        self.ground.check(block, 1)?;
        if self.nodes.contains_key(&block) {
            return structure::<S, _>("a block of the tree is also free");
        }
        let entries = Entries::Children(vec![old, new]);
        let level = top.saturating_add(1);
        self.nodes.insert(block, Node::new(level, NULL_AG_BLOCK, NULL_AG_BLOCK, entries));
        (self.root, self.levels) = (block, level.saturating_add(1));
        Ok(())
    }

    /// Takes away a root that has a single child.
    fn shrink(&mut self, pool: &mut dyn Pool) -> Result<()> {
        while self.levels > 1 {
            let (root, top) = (self.root, self.top());
            let [only] = self.node(root, top)?.inner()? else { return Ok(()) };
            let only = only.block;
            self.nodes.remove(&root);
            (self.root, self.levels) = (only, self.levels.saturating_sub(1));
            pool.give(root)?;
        }
        Ok(())
    }

    /// Writes anew what the block at `step` (at `level`) says of its child there.
    fn refresh(&mut self, step: Step, level: u16) -> Result<()> {
        let below = level.saturating_sub(1);
        let Some(child) = self.node(step.block, level)?.inner()?.get(step.index).copied() else {
            return structure::<S, _>("a way through the tree leads past a block's end");
        };
        let Some(now) = self.node(child.block, below)?.summary(child.block) else {
            return structure::<S, _>("an empty block");
        };
        if !now.same_bytes::<S>(&child)
            && let Some(place) = self.node_mut(step.block, level)?.inner_mut()?.get_mut(step.index)
        {
            *place = now;
        }
        Ok(())
    }

    /// Brings the child at `step`, which stands at `level` and has too few entries, back to half full.
    fn mend(&mut self, step: Step, level: u16, pool: &mut dyn Pool) -> Result<()> {
        let above = level.saturating_add(1);
        // A child always has a sibling under the same parent: only the root may have a single child, and then
        // the child is the next root.
        let first = step.index.saturating_sub(1);
        let second = first.saturating_add(1);
        let children = self.node(step.block, above)?.inner()?;
        let (Some(left), Some(right)) = (children.get(first).copied(), children.get(second).copied()) else {
            return if children.len() == 1 && step.block == self.root {
                self.refresh(step, above)
            } else {
                structure::<S, _>("an inner block with a single child")
            };
        };
        let left_len = self.node(left.block, level)?.len();
        let right_node = self.node_mut(right.block, level)?;
        if right_node.left != left.block {
            return structure::<S, _>("siblings do not name each other");
        }
        let right_len = right_node.len();
        let total = left_len.saturating_add(right_len);
        if total <= self.capacity.max(level) {
            self.merge(step.block, second, (left.block, right.block), level, pool)?;
        } else {
            let keep = total.div_ceil(2);
            self.balance((left.block, right.block), level, keep)?;
            self.refresh(Step { block: step.block, index: second }, above)?;
        }
        self.refresh(Step { block: step.block, index: first }, above)
    }

    /// Moves all entries of the right block into the left one and takes the right one out of the tree.
    fn merge(
        &mut self,
        parent: u32,
        second: usize,
        (left, right): (u32, u32),
        level: u16,
        pool: &mut dyn Pool,
    ) -> Result<()> {
        let Some(gone) = self.nodes.remove(&right) else { return structure::<S, _>("no right sibling") };
        let node = self.node_mut(left, level)?;
        node.append(gone.entries)?;
        node.right = gone.right;
        if gone.right != NULL_AG_BLOCK {
            self.sibling_mut(gone.right, level)?.left = left;
        }
        self.node_mut(parent, level.saturating_add(1))?.inner_mut()?.remove(second);
        pool.give(right)
    }

    /// Moves entries between two siblings until the left one has `keep`.
    fn balance(&mut self, (left, right): (u32, u32), level: u16, keep: usize) -> Result<()> {
        let node = self.node_mut(right, level)?;
        let moved = node.split_off(0);
        let node = self.node_mut(left, level)?;
        node.append(moved)?;
        let rest = node.split_off(keep);
        self.node_mut(right, level)?.append(rest)
    }
}
