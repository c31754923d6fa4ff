//! Counts of shared blocks. A block without a record is used once; two or more uses have a record.

use std::ops::ControlFlow;

use racker_formats::error::Result;

use super::super::fault::Fault;
use super::btree::{Pool, Shape, Tree};
use super::owner::Owner;
use super::records::{Counted, Counts, Run, count_key};
use super::space::Space;

/// A count that stays: it has been too high to be exact.
const COUNT_STUCK: u32 = u32::MAX;

/// The counts of a group.
#[derive(Debug)]
pub(super) struct Sharing {
    tree: Tree<Counts>,
    blocks: u32,
}

/// The group's free space as the place where the tree of counts gets its blocks.
struct SpacePool<'a> {
    space: &'a mut Space,
    blocks: &'a mut u32,
}

impl Pool for SpacePool<'_> {
    fn take(&mut self) -> Result<u32> {
        *self.blocks = self.blocks.saturating_add(1);
        self.space.take_block(Owner::COUNT_TREE)
    }

    fn give(&mut self, block: u32) -> Result<()> {
        *self.blocks = self.blocks.saturating_sub(1);
        self.space.release(Run { start: block, len: 1 }, Owner::COUNT_TREE)
    }
}

impl Sharing {
    /// The tree that the group's AGF names.
    pub(super) fn read(space: &Space) -> Result<Self> {
        let raw = &space.agf.raw;
        let tree = Tree::new(&space.ground, raw.agf_refcount_root.get(), raw.agf_refcount_level.get())?;
        Ok(Self { tree, blocks: raw.agf_refcount_blocks.get() })
    }

    /// The root of the tree.
    pub(super) fn root(&self) -> u32 {
        self.tree.root()
    }

    /// Blocks of the tree.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Tree blocks in memory.
    pub(super) fn held(&self) -> usize {
        self.tree.held()
    }

    /// Whether any block of `run` is shared or a copy in the making.
    pub(super) fn knows(&mut self, run: Run) -> Result<bool> {
        Ok(!self.records(false, run)?.is_empty() || !self.records(true, run)?.is_empty())
    }

    /// Records of one kind with blocks of `run`.
    fn records(&mut self, staging: bool, run: Run) -> Result<Vec<Counted>> {
        let mut all = Vec::new();
        let (from, to) = (count_key(staging, run.start), count_key(staging, run.last()));
        self.tree.scan(from, to, &mut |counted| {
            all.push(counted);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// The parts of `run` that are shared, in order.
    pub(super) fn shared_parts(&mut self, run: Run) -> Result<Vec<Run>> {
        Ok(self.records(false, run)?.iter().filter_map(|c| c.run.intersect(run)).collect())
    }

    /// Uses all blocks of `run` once less. Returns the runs that nobody uses any more.
    pub(super) fn decrease(&mut self, run: Run, space: &mut Space) -> Result<Vec<Run>> {
        let mut unused = Vec::new();
        self.adjust(run, space, |run, count| match count {
            COUNT_STUCK => COUNT_STUCK,
            1 => {
                unused.push(run);
                1
            }
            more => more.saturating_sub(1),
        })?;
        Ok(unused)
    }

    /// Uses all blocks of `run` once more.
    pub(super) fn increase(&mut self, run: Run, space: &mut Space) -> Result<()> {
        self.adjust(run, space, |_, count| count.saturating_add(1))
    }

    /// Gives every stretch of `run` the count that `change` makes of the old one; neighbours with the same count
    /// become one record.
    fn adjust(&mut self, run: Run, space: &mut Space, mut change: impl FnMut(Run, u32) -> u32) -> Result<()> {
        // Neighbours may merge with what changes.
        let wide = Run {
            start: run.start.saturating_sub(1),
            len: run.end().saturating_add(1).saturating_sub(run.start.saturating_sub(1)),
        };
        let old = self.records(false, wide)?;
        let mut new: Vec<Counted> = Vec::with_capacity(old.len().saturating_add(2));
        let mut push = |part: Option<Run>, count: u32| {
            let Some(run) = part.filter(|_| count > 1) else { return };
            match new.last_mut() {
                Some(last) if last.run.end() == run.start && last.count == count => {
                    last.run.len = last.run.len.saturating_add(run.len);
                }
                _ => new.push(Counted { staging: false, run, count }),
            }
        };
        let mut done = run.start;
        for counted in &old {
            push(Run::between(counted.run.start, counted.run.end().min(run.start)), counted.count);
            if let Some(inside) = counted.run.intersect(run) {
                if let Some(gap) = Run::between(done, inside.start) {
                    push(Some(gap), change(gap, 1));
                }
                push(Some(inside), change(inside, counted.count));
                done = inside.end();
            } else if counted.run.start >= run.end() {
                if let Some(gap) = Run::between(done, run.end()) {
                    push(Some(gap), change(gap, 1));
                }
                done = run.end();
            }
            push(Run::between(counted.run.start.max(run.end()), counted.run.end()), counted.count);
        }
        if let Some(gap) = Run::between(done, run.end()) {
            push(Some(gap), change(gap, 1));
        }
        self.swap(&old, &new, space)
    }

    /// Puts the records `new` in the place of `old`; both are in order.
    fn swap(&mut self, old: &[Counted], new: &[Counted], space: &mut Space) -> Result<()> {
        let mut pool = SpacePool { space, blocks: &mut self.blocks };
        for gone in old.iter().filter(|o| new.binary_search_by_key(&Counts::low(o), Counts::low).is_err()) {
            self.tree.remove(gone, &mut pool)?;
        }
        // Those that shrink or stay have to make way before others grow.
        let kept = |n: &Counted| {
            let at = old.binary_search_by_key(&Counts::low(n), Counts::low).ok();
            at.and_then(|at| old.get(at)).copied()
        };
        for next in new {
            if let Some(before) = kept(next).filter(|b| b != next && b.run.len > next.run.len) {
                self.tree.replace(&before, *next)?;
            }
        }
        for next in new {
            match kept(next) {
                Some(before) if before == *next || before.run.len > next.run.len => {}
                Some(before) => self.tree.replace(&before, *next)?,
                None => self.tree.insert(*next, &mut pool)?,
            }
        }
        Ok(())
    }

    /// Records that `run` is a copy in the making.
    pub(super) fn stage(&mut self, run: Run, space: &mut Space) -> Result<()> {
        let mut pool = SpacePool { space, blocks: &mut self.blocks };
        self.tree.insert(Counted { staging: true, run, count: 1 }, &mut pool)
    }

    /// Forgets that `run` is a copy in the making.
    pub(super) fn unstage(&mut self, run: Run, space: &mut Space) -> Result<()> {
        let found = self.records(true, run)?;
        let [whole] = found.as_slice() else { return missing() };
        if whole.run.intersect(run) != Some(run) {
            return missing();
        }
        let mut pool = SpacePool { space, blocks: &mut self.blocks };
        let head = Run::between(whole.run.start, run.start);
        let tail = Run::between(run.end(), whole.run.end());
        let part = |run| Counted { staging: true, run, count: 1 };
        match head {
            Some(head) => self.tree.replace(whole, part(head))?,
            None => self.tree.remove(whole, &mut pool)?,
        }
        tail.map_or(Ok(()), |tail| self.tree.insert(part(tail), &mut pool))
    }

    /// Copies in the making that nobody finished.
    pub(super) fn leftovers(&mut self) -> Result<Vec<Run>> {
        let all = Run { start: 0, len: u32::MAX >> 1 };
        Ok(self.records(true, all)?.into_iter().map(|c| c.run).collect())
    }

    /// Writes the tree, and its root into the AGF.
    pub(super) fn write_back(&mut self, space: &mut Space) -> Result<()> {
        self.tree.write_back()?;
        let raw = &mut space.agf.raw;
        let now = [self.tree.root(), self.tree.levels(), self.blocks];
        let was = [raw.agf_refcount_root.get(), raw.agf_refcount_level.get(), raw.agf_refcount_blocks.get()];
        if now != was {
            raw.agf_refcount_root = self.tree.root().into();
            raw.agf_refcount_level = self.tree.levels().into();
            raw.agf_refcount_blocks = self.blocks.into();
            space.dirty = true;
        }
        Ok(())
    }
}

fn missing<T>() -> Result<T> {
    Err(Fault::Structure { what: Counts::NAME, why: "a copy in the making is missing" }.into())
}
