//! The trees of an allocation group: one generic B+tree over blocks of the group.
//!
//! Specification: "XFS Algorithms & Data Structures", part "Fixed Length Record B+trees", short form. A tree is
//! known by its root and its number of levels, which a group header holds. Blocks are read and checked on first
//! use and stay in memory, decoded; [`Tree::write_back`] writes the changed ones.
//!
//! Every descent asks each block for the level of its parent minus one and for keys within its parent's, so that
//! no walk runs in a circle or meets a block twice.
//!
//! - `shape.rs`: what distinguishes the kinds of trees
//! - `node.rs`: one block, bytes to entries and back
//! - `mod.rs`: lookup and ranges
//! - `change.rs`: insert, remove, replace; splits and merges

mod change;
mod node;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::units::NULL_AG_BLOCK;
use super::ground::Ground;
use node::{Capacity, Entries, Node};
pub(in crate::drivers::xfs) use shape::Shape;

/// Levels of the highest tree there can be: an allocation group has less than 2^31 blocks, and blocks of the
/// smallest size with the largest records still have eleven children.
const LEVELS_MAX: u32 = 9;

/// Where a tree gets new blocks, and gives back those it no longer needs.
pub(super) trait Pool {
    /// A block for the tree.
    fn take(&mut self) -> Result<u32>;
    /// Takes a block back.
    fn give(&mut self, block: u32) -> Result<()>;
}

/// A tree of one group.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct Tree<S: Shape> {
    ground: Ground,
    root: u32,
    levels: u16,
    capacity: Capacity,
    nodes: BTreeMap<u32, Node<S>>,
}

/// One step of a way down: a block, and the place in it.
#[derive(Clone, Copy, Debug)]
struct Step {
    block: u32,
    index: usize,
}

/// The way from the root to a leaf.
type Path = Vec<Step>;

/// Which records lie left of a cut through the tree.
#[derive(Clone, Copy, Debug)]
enum Cut<K> {
    /// Those below the key.
    Before(K),
    /// Those below the key, and the one with this key.
    Behind(K),
}

impl<K: Ord> Cut<K> {
    fn is_right_of(&self, key: &K) -> bool {
        match self {
            Self::Before(cut) => key < cut,
            Self::Behind(cut) => key <= cut,
        }
    }
}

/// Called for each record; answers whether to go on.
pub(in crate::drivers::xfs) type Each<'a, R> = dyn FnMut(R) -> Result<ControlFlow<()>> + 'a;

fn structure<S: Shape, T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: S::NAME, why }.into())
}

/// The bytes of block `block` as the root of a tree without records.
pub(super) fn empty<S: Shape>(ground: &Ground, block: u32) -> Result<Vec<u8>> {
    let records = Entries::Records(Vec::new());
    Node::<S>::new(0, NULL_AG_BLOCK, NULL_AG_BLOCK, records).bytes(ground, block)
}

impl<S: Shape> Tree<S> {
    /// The tree of group `ground` whose root is `root`, with `levels` levels.
    pub(in crate::drivers::xfs) fn new(ground: &Ground, root: u32, levels: u32) -> Result<Self> {
        if levels == 0 || levels > LEVELS_MAX {
            let why = "a tree has one to nine levels";
            return Err(Fault::Field { what: S::NAME, found: levels.into(), why }.into());
        }
        ground.check(root, 1).within(|| format!("root of the {}", S::NAME))?;
        let capacity = Capacity::of::<S>(ground.block_bytes()?);
        let levels = u16::try_from(levels).unwrap_or(u16::MAX);
        Ok(Self { ground: ground.clone(), root, levels, capacity, nodes: BTreeMap::new() })
    }

    /// The root block, as the group's header has to have it.
    pub(super) fn root(&self) -> u32 {
        self.root
    }

    /// The levels, as the group's header has to have them.
    pub(super) fn levels(&self) -> u32 {
        self.levels.into()
    }

    fn top(&self) -> u16 {
        self.levels.saturating_sub(1)
    }

    /// Block `block`, which has to stand at `level`.
    fn node(&mut self, block: u32, level: u16) -> Result<&mut Node<S>> {
        let root = block == self.root;
        if root != (level == self.top()) {
            return structure::<S, _>("the root is its own descendant");
        }
        let node = match self.nodes.entry(block) {
            std::collections::btree_map::Entry::Occupied(held) => held.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let node = Node::read(&self.ground, block, level, root)
                    .within(|| format!("group {}, block {block}", self.ground.ag.0))?;
                place.insert(node)
            }
        };
        if node.level != level {
            let (found, expected) = (node.level.into(), level.into());
            return Err(Fault::TreeLevel { what: S::NAME, found, expected }.into());
        }
        Ok(node)
    }

    /// Block `block` at `level`, to be changed.
    fn node_mut(&mut self, block: u32, level: u16) -> Result<&mut Node<S>> {
        let node = self.node(block, level)?;
        node.dirty = true;
        Ok(node)
    }

    /// The level of the block at `depth` steps from the root.
    fn level_at(&self, depth: usize) -> u16 {
        self.top().saturating_sub(u16::try_from(depth).unwrap_or(u16::MAX))
    }

    /// Goes down to where `cut` parts a leaf: the last step's index counts the records left of it there.
    fn find(&mut self, cut: Cut<S::Key>) -> Result<Path> {
        let mut path = Path::new();
        let (mut block, mut level) = (self.root, self.top());
        let mut bounds: Option<(S::Key, Option<S::Key>)> = None;
        loop {
            let node = self.node(block, level)?;
            Self::check_bounds(node, block, bounds)?;
            if level == 0 {
                let index = node.leaf()?.partition_point(|r| cut.is_right_of(&S::low(r)));
                path.push(Step { block, index });
                return Ok(path);
            }
            let children = node.inner()?;
            let index = children.partition_point(|c| cut.is_right_of(&c.low)).saturating_sub(1);
            let Some(child) = children.get(index) else {
                return structure::<S, _>("an inner block without children");
            };
            let next = children.get(index.saturating_add(1)).map(|c| c.low);
            let after = next.or(bounds.and_then(|(_, after)| after));
            bounds = Some((child.low, after));
            path.push(Step { block, index });
            block = child.block;
            level = level.saturating_sub(1);
        }
    }

    /// Checks that a block's keys are within what its parent says of it.
    fn check_bounds(node: &Node<S>, block: u32, bounds: Option<(S::Key, Option<S::Key>)>) -> Result<()> {
        let Some((low, after)) = bounds else { return Ok(()) };
        let first = node.summary(block).map(|s| s.low);
        let last = match &node.entries {
            Entries::Records(records) => records.last().map(S::low),
            Entries::Children(children) => children.last().map(|c| c.low),
        };
        if first.is_none_or(|k| k < low) || last.is_none_or(|k| after.is_some_and(|after| k >= after)) {
            return structure::<S, _>("a block has keys outside of its parent's");
        }
        Ok(())
    }

    /// The way to the leaf left (`forward` is false) or right of the one that `path` leads to.
    fn neighbour(&mut self, path: &Path, forward: bool) -> Result<Option<Path>> {
        let mut up = path.clone();
        up.pop();
        while let Some(step) = up.pop() {
            let level = self.level_at(up.len());
            let children = self.node(step.block, level)?.inner()?;
            let index = if forward { step.index.checked_add(1) } else { step.index.checked_sub(1) };
            let Some((index, child)) = index.and_then(|i| children.get(i).map(|c| (i, *c))) else { continue };
            let mut bound = children.get(index.saturating_add(1)).map(|c| c.low);
            up.push(Step { block: step.block, index });
            let (mut block, mut low) = (child.block, child.low);
            loop {
                let level = self.level_at(up.len());
                let node = self.node(block, level)?;
                Self::check_bounds(node, block, Some((low, bound)))?;
                let index = if forward { 0 } else { node.len().saturating_sub(1) };
                up.push(Step { block, index });
                if level == 0 {
                    return Ok(Some(up));
                }
                let children = node.inner()?;
                let Some(child) = children.get(index) else {
                    return structure::<S, _>("an inner block without children");
                };
                bound = children.get(index.saturating_add(1)).map(|c| c.low).or(bound);
                (block, low) = (child.block, child.low);
            }
        }
        Ok(None)
    }

    /// The record just left of where `path` points to.
    fn left_of(&mut self, path: &Path) -> Result<Option<S::Record>> {
        let Some(step) = path.last() else { return Ok(None) };
        if let Some(index) = step.index.checked_sub(1) {
            return Ok(self.node(step.block, 0)?.leaf()?.get(index).copied());
        }
        match self.neighbour(path, false)?.as_ref().and_then(|p| p.last()) {
            Some(step) => Ok(self.node(step.block, 0)?.leaf()?.last().copied()),
            None => Ok(None),
        }
    }

    /// The record just right of where `path` points to.
    fn right_of(&mut self, path: &Path) -> Result<Option<S::Record>> {
        let Some(step) = path.last() else { return Ok(None) };
        if let Some(found) = self.node(step.block, 0)?.leaf()?.get(step.index) {
            return Ok(Some(*found));
        }
        match self.neighbour(path, true)?.as_ref().and_then(|p| p.last()) {
            Some(step) => Ok(self.node(step.block, 0)?.leaf()?.first().copied()),
            None => Ok(None),
        }
    }

    /// The last record whose key is not above `key`.
    pub(in crate::drivers::xfs) fn at_or_before(&mut self, key: S::Key) -> Result<Option<S::Record>> {
        let path = self.find(Cut::Behind(key))?;
        self.left_of(&path)
    }

    /// The last record whose key is below `key`.
    pub(super) fn before(&mut self, key: S::Key) -> Result<Option<S::Record>> {
        let path = self.find(Cut::Before(key))?;
        self.left_of(&path)
    }

    /// The first record whose key is not below `key`.
    pub(super) fn at_or_after(&mut self, key: S::Key) -> Result<Option<S::Record>> {
        let path = self.find(Cut::Before(key))?;
        self.right_of(&path)
    }

    /// The first record whose key is above `key`.
    pub(super) fn after(&mut self, key: S::Key) -> Result<Option<S::Record>> {
        let path = self.find(Cut::Behind(key))?;
        self.right_of(&path)
    }

    /// The record with exactly this key.
    pub(super) fn at(&mut self, key: S::Key) -> Result<Option<S::Record>> {
        Ok(self.at_or_before(key)?.filter(|r| S::low(r) == key))
    }

    /// The last record.
    pub(super) fn last(&mut self) -> Result<Option<S::Record>> {
        let (mut block, mut level) = (self.root, self.top());
        while level > 0 {
            let Some(child) = self.node(block, level)?.inner()?.last().copied() else {
                return structure::<S, _>("an inner block without children");
            };
            (block, level) = (child.block, level.saturating_sub(1));
        }
        Ok(self.node(block, 0)?.leaf()?.last().copied())
    }

    /// Visits in order the records that cover any key from `from` to `to`.
    pub(in crate::drivers::xfs) fn scan(
        &mut self,
        from: S::Key,
        to: S::Key,
        each: &mut Each<'_, S::Record>,
    ) -> Result<()> {
        let (root, top) = (self.root, self.top());
        self.scan_below(root, top, (from, to), None, each).map(|_| ())
    }

    fn scan_below(
        &mut self,
        block: u32,
        level: u16,
        (from, to): (S::Key, S::Key),
        bounds: Option<(S::Key, Option<S::Key>)>,
        each: &mut Each<'_, S::Record>,
    ) -> Result<ControlFlow<()>> {
        let node = self.node(block, level)?;
        Self::check_bounds(node, block, bounds)?;
        if level == 0 {
            let wanted = node.leaf()?.iter().filter(|r| S::low(r) <= to && S::high(r) >= from);
            for record in wanted.copied().collect::<Vec<_>>() {
                if each(record)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        let after = bounds.and_then(|(_, after)| after);
        let children = node.inner()?;
        let follow = children.iter().skip(1).map(|c| Some(c.low)).chain([after]);
        let wanted: Vec<_> = children
            .iter()
            .zip(follow)
            .filter(|(child, next)| {
                let ends_before =
                    if S::RANGES { child.high < from } else { next.is_some_and(|next| next <= from) };
                child.low <= to && !ends_before
            })
            .map(|(child, next)| (*child, next))
            .collect();
        for (child, next) in wanted {
            let below = level.saturating_sub(1);
            if self.scan_below(child.block, below, (from, to), Some((child.low, next)), each)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Counts the blocks of the tree without reading its leaves.
    pub(super) fn count_blocks(&mut self) -> Result<u32> {
        let mut count = 1u32;
        let mut row = vec![self.root];
        for level in (1..=self.top()).rev() {
            let mut next = Vec::new();
            for block in row {
                next.extend(self.node(block, level)?.inner()?.iter().map(|c| c.block));
                if next.len() > racker_formats::wire::index(self.ground.blocks.into())? {
                    return Err(Fault::Circle { what: S::NAME }.into());
                }
            }
            count = count.saturating_add(u32::try_from(next.len()).unwrap_or(u32::MAX));
            row = next;
        }
        Ok(count)
    }

    /// Writes the changed blocks to the volume.
    pub(super) fn write_back(&mut self) -> Result<()> {
        for (block, node) in self.nodes.iter_mut().filter(|(_, n)| n.dirty) {
            let at = self.ground.span(*block)?.start();
            self.ground.volume.disk.write_at(at, &node.bytes(&self.ground, *block)?)?;
            node.dirty = false;
        }
        Ok(())
    }

    /// Blocks in memory.
    pub(in crate::drivers::xfs) fn held(&self) -> usize {
        self.nodes.len()
    }
}

/// Fewest entries of a leaf and of an inner block, roots aside.
pub(super) fn fewest_entries<S: Shape>(block_bytes: usize) -> (u64, u64) {
    let capacity = Capacity::of::<S>(block_bytes);
    let wide = |n: usize| racker_formats::wire::len64(n);
    (wide(capacity.min(0)), wide(capacity.min(1)))
}
