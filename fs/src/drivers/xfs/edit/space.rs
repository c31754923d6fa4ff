//! Free space of an allocation group: two trees over the same records, by place and by length, and spare blocks
//! for the trees themselves. Each change is made in both; one that only one of them allows is a contradiction.

use std::collections::{BTreeMap, BTreeSet};

use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::layout::RawAgf;
use super::super::superblock::RoCompat;
use super::btree::{Pool, Tree};
use super::ground::Ground;
use super::header::Header;
use super::owner::Owner;
use super::records::{ByLength, ByPlace, Owners, PlaceKey, Run};
use super::spare::{Spare, SparePool};

/// `agf_versionnum` of every AGF.
const AGF_VERSION: u32 = 1;
/// Rounds of filling up the spare blocks: each can use some of them up again, in ever fewer splits.
const TOP_UP_ROUNDS: u32 = 512;
/// Spare blocks beyond their number that are left alone.
const SPARE_SLACK: u32 = 8;

/// The space of a group.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) ground: Ground,
    pub(super) agf: Header<RawAgf>,
    spare: Spare,
    by_place: Tree<ByPlace>,
    by_length: Tree<ByLength>,
    /// The reverse map, with the feature.
    owners: Option<Tree<Owners>>,
    /// Free blocks, without the spare ones.
    free: u32,
    /// Length of the longest free run.
    longest: u32,
    tree_blocks: u32,
    map_blocks: u32,
    /// What can never be free nor a file's: the log, and inodes. Start and end of each stretch, once they are known.
    taken: BTreeMap<u32, u32>,
    /// Blocks that became free, less those that were allocated, since the last write-back.
    pub(super) gained: i64,
    /// Changed since it was read.
    pub(super) dirty: bool,
}

fn contradiction<T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: "free space", why }.into())
}

impl Space {
    /// Reads what group `ground` says of its space.
    pub(super) fn read(ground: &Ground) -> Result<Self> {
        let agf: Header<RawAgf> = Header::read(ground)?;
        let raw = &agf.raw;
        let place = || format!("AGF of group {}", ground.ag.0);
        check(raw, ground).within(place)?;
        let map = ground.volume.sb.ro_compat.contains(RoCompat::RMAPBT);
        let owners = if map {
            Some(Tree::new(ground, raw.agf_rmap_root.get(), raw.agf_rmap_level.get()).within(place)?)
        } else {
            None
        };
        Ok(Self {
            ground: ground.clone(),
            spare: Spare::read(ground, raw).within(place)?,
            by_place: Tree::new(ground, raw.agf_bno_root.get(), raw.agf_bno_level.get()).within(place)?,
            by_length: Tree::new(ground, raw.agf_cnt_root.get(), raw.agf_cnt_level.get()).within(place)?,
            owners,
            free: raw.agf_freeblks.get(),
            longest: raw.agf_longest.get(),
            tree_blocks: raw.agf_btreeblks.get(),
            map_blocks: raw.agf_rmap_blocks.get(),
            taken: BTreeMap::new(),
            gained: 0,
            dirty: false,
            agf,
        })
    }

    /// Free blocks that can be allocated once the spare blocks are at their minimum.
    pub(super) fn allocatable(&self) -> u32 {
        let need = self.spare_need();
        self.free.saturating_add(self.spare.count().min(need)).saturating_sub(need)
    }

    /// Blocks of the free space trees, roots aside.
    pub(super) fn free_tree_blocks(&self) -> u32 {
        self.tree_blocks.saturating_sub(self.map_blocks)
    }

    /// Length of the longest free run.
    pub(super) fn longest(&self) -> u32 {
        self.longest
    }

    /// Blocks of the reverse map.
    pub(super) fn map_blocks(&self) -> u32 {
        self.map_blocks
    }

    /// The reverse map and where it gets its blocks, if the filesystem has one.
    pub(super) fn owners(&mut self) -> Option<(&mut Tree<Owners>, SparePool<'_>)> {
        self.dirty = true;
        let pool = SparePool {
            spare: &mut self.spare,
            tree_blocks: &mut self.tree_blocks,
            map_blocks: Some(&mut self.map_blocks),
        };
        self.owners.as_mut().map(|owners| (owners, pool))
    }

    /// Whether the filesystem has a reverse map.
    pub(super) fn has_owners(&self) -> bool {
        self.owners.is_some()
    }

    /// Whether a block of `run` is free.
    pub(super) fn free_within(&mut self, run: Run) -> Result<bool> {
        let near = self.by_place.at_or_before(PlaceKey::at(run.last()))?;
        Ok(near.is_some_and(|free| free.intersect(run).is_some()))
    }

    /// Spare blocks that a change may take: each tree may be split from leaf to root, and once more below the
    /// root while the spare blocks are filled up again. (The kernel keeps as many.)
    fn spare_need(&self) -> u32 {
        let map = self.owners.as_ref().map_or(0, Tree::levels);
        [self.by_place.levels(), self.by_length.levels(), map]
            .into_iter()
            .fold(0, |sum, levels| sum.saturating_add(levels.saturating_mul(2)))
    }

    /// Makes sure that there are enough spare blocks, and not far too many. Has to stand before every change of the
    /// group's space. Both directions change the trees, which take and give spare blocks themselves: so it comes
    /// down only from well above the number, and then up, but never back and forth.
    pub(super) fn top_up(&mut self) -> Result<()> {
        for _ in 0..TOP_UP_ROUNDS {
            if self.spare.count() <= self.spare_need().saturating_add(SPARE_SLACK) {
                break;
            }
            let block = Run { start: self.spare.take()?, len: 1 };
            self.unmap(block, Owner::GROUP)?;
            self.put_back(block)?;
        }
        for _ in 0..TOP_UP_ROUNDS {
            let want = self.spare_need().saturating_sub(self.spare.count());
            if want == 0 {
                return Ok(());
            }
            // A group without free space makes do with what it has.
            let Some(run) = self.best(want)? else { return Ok(()) };
            self.carve(run)?;
            self.check_unowned(run)?;
            for block in run.start..run.end() {
                self.spare.put(block)?;
            }
            self.map(run, Owner::GROUP)?;
        }
        contradiction("the spare blocks never reach their number")
    }

    /// The smallest free run of at least `want` blocks, cut to them, or else the longest one.
    pub(super) fn best(&mut self, want: u32) -> Result<Option<Run>> {
        let found = match self.by_length.at_or_after((want, 0))? {
            Some(run) => Some(run),
            None => self.by_length.last()?,
        };
        Ok(found.map(|run| Run { start: run.start, len: run.len.min(want) }))
    }

    /// The shortest free run of at least `len` blocks.
    pub(super) fn free_by_length(&mut self, len: u32) -> Result<Option<Run>> {
        self.by_length.at_or_after((len, 0))
    }

    /// The free run behind `run` in the order of lengths.
    pub(super) fn next_by_length(&mut self, run: Run) -> Result<Option<Run>> {
        self.by_length.after((run.len, run.start))
    }

    /// How many runs the tree by length has, and how many blocks they are.
    pub(super) fn by_length_total(&mut self) -> Result<(u64, u64)> {
        let (mut count, mut blocks) = (0u64, 0u64);
        self.by_length.scan((0, 0), (u32::MAX, u32::MAX), &mut |run| {
            count = count.saturating_add(1);
            blocks = blocks.saturating_add(run.len.into());
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        Ok((count, blocks))
    }

    /// Free blocks, without the spare ones.
    pub(super) fn free_blocks(&self) -> u32 {
        self.free
    }

    /// The first free run of the group.
    pub(super) fn first_free(&mut self) -> Result<Option<Run>> {
        self.by_place.at_or_after(PlaceKey::at(0))
    }

    /// The free run behind `run`.
    pub(super) fn next_free(&mut self, run: Run) -> Result<Option<Run>> {
        self.by_place.after(PlaceKey::at(run.start))
    }

    /// The free run that `block` is part of, from `block` on.
    pub(super) fn free_from(&mut self, block: u32) -> Result<Option<Run>> {
        let found = self.by_place.at_or_before(PlaceKey::at(block))?;
        Ok(found.and_then(|run| Run::between(block, run.end())))
    }

    /// Allocates a run that is free, for `owner`. The counts of the superblock follow.
    pub(super) fn allocate(&mut self, run: Run, owner: Owner) -> Result<()> {
        self.carve(run)?;
        self.check_unowned(run)?;
        self.gained = self.gained.saturating_sub(run.len.into());
        if owner == Owner::INODE_CHUNK {
            self.take_up(run);
        }
        self.map(run, owner)
    }

    /// From now on blocks of `run` are neither free nor a file's.
    pub(super) fn take_up(&mut self, run: Run) {
        let (mut start, mut end) = (run.start, run.end());
        if let Some((before, _)) = self.taken.range(..=start).next_back().filter(|(_, e)| **e >= start) {
            start = *before;
        }
        if let Some(behind) = self.taken.remove(&end) {
            end = behind;
        }
        let old = self.taken.get(&start).copied().unwrap_or(end);
        self.taken.insert(start, end.max(old));
    }

    /// Blocks of `run` may be free again.
    fn give_up(&mut self, run: Run) {
        let Some((start, end)) = self.taken.range(..=run.start).next_back().map(|(s, e)| (*s, *e)) else {
            return;
        };
        if end < run.end() {
            return;
        }
        self.taken.remove(&start);
        for rest in [Run::between(start, run.start), Run::between(run.end(), end)].into_iter().flatten() {
            self.taken.insert(rest.start, rest.end());
        }
    }

    /// Checks that blocks are neither the log's nor inodes.
    pub(super) fn check_taken(&self, run: Run) -> Result<()> {
        let near = self.taken.range(..run.end()).next_back();
        if near.is_some_and(|(_, end)| *end > run.start) {
            return contradiction("blocks of inodes or of the log are free, or a file's");
        }
        Ok(())
    }

    /// What is known to be the log's or inodes.
    pub(super) fn taken(&self) -> Vec<Run> {
        self.taken.iter().filter_map(|(start, end)| Run::between(*start, *end)).collect()
    }

    /// The spare blocks, each of which has to be in the group and is there once.
    pub(super) fn spares(&mut self) -> Result<BTreeSet<u32>> {
        self.spare.blocks()
    }

    /// The roots of the trees.
    pub(super) fn roots(&self) -> Vec<u32> {
        let map = self.owners.as_ref().map(Tree::root);
        [Some(self.by_place.root()), Some(self.by_length.root()), map].into_iter().flatten().collect()
    }

    /// Allocates one block for a part of the filesystem itself.
    pub(super) fn take_block(&mut self, owner: Owner) -> Result<u32> {
        self.top_up()?;
        let run = self.best(1)?.ok_or(Fault::NoSpace)?;
        self.allocate(run, owner)?;
        Ok(run.start)
    }

    /// Frees a run that has no owner any more.
    pub(super) fn free(&mut self, run: Run) -> Result<()> {
        self.top_up()?;
        self.put_back(run)?;
        self.gained = self.gained.saturating_add(run.len.into());
        Ok(())
    }

    /// Frees a run that belongs to `owner`, and to nobody else.
    pub(super) fn release(&mut self, run: Run, owner: Owner) -> Result<()> {
        self.top_up()?;
        self.unmap(run, owner)?;
        self.check_unowned(run)?;
        if owner == Owner::INODE_CHUNK {
            self.give_up(run);
        }
        self.put_back(run)?;
        self.gained = self.gained.saturating_add(run.len.into());
        Ok(())
    }

    /// Takes a run out of the free space.
    fn carve(&mut self, run: Run) -> Result<()> {
        self.check_taken(run)?;
        let found = self.by_place.at_or_before(PlaceKey::at(run.start))?;
        let Some(whole) = found.filter(|f| f.intersect(run) == Some(run)) else {
            return contradiction("blocks to be allocated are not free");
        };
        let (head, tail) = (Run::between(whole.start, run.start), Run::between(run.end(), whole.end()));
        match (head, tail) {
            (None, None) => self.change_place(|tree, pool| tree.remove(&whole, pool))?,
            (Some(head), None) => self.by_place.replace(&whole, head)?,
            (None, Some(tail)) => self.by_place.replace(&whole, tail)?,
            (Some(head), Some(tail)) => {
                self.by_place.replace(&whole, head)?;
                self.change_place(|tree, pool| tree.insert(tail, pool))?;
            }
        }
        self.change_length(|tree, pool| tree.remove(&whole, pool))?;
        for part in [head, tail].into_iter().flatten() {
            self.change_length(|tree, pool| tree.insert(part, pool))?;
        }
        let Some(free) = self.free.checked_sub(run.len) else {
            return contradiction("more blocks are free than the group counts");
        };
        self.free = free;
        self.changed()
    }

    /// Puts a run back to the free space, merged with its neighbours.
    fn put_back(&mut self, run: Run) -> Result<()> {
        self.ground.check(run.start, run.len)?;
        self.check_taken(run)?;
        let left = self.by_place.at_or_before(PlaceKey::at(run.start))?;
        let right = self.by_place.after(PlaceKey::at(run.start))?;
        if left.is_some_and(|l| l.end() > run.start) || right.is_some_and(|r| r.start < run.end()) {
            return contradiction("blocks to be freed are free already");
        }
        let left = left.filter(|l| l.end() == run.start);
        let right = right.filter(|r| r.start == run.end());
        for part in [left, right].into_iter().flatten() {
            self.change_length(|tree, pool| tree.remove(&part, pool))?;
        }
        let start = left.map_or(run.start, |l| l.start);
        let end = right.map_or(run.end(), Run::end);
        let whole = Run { start, len: end.saturating_sub(start) };
        match (left, right) {
            (None, None) => self.change_place(|tree, pool| tree.insert(whole, pool))?,
            (Some(left), None) => self.by_place.replace(&left, whole)?,
            (None, Some(right)) => self.by_place.replace(&right, whole)?,
            (Some(left), Some(right)) => {
                self.change_place(|tree, pool| tree.remove(&right, pool))?;
                self.by_place.replace(&left, whole)?;
            }
        }
        self.change_length(|tree, pool| tree.insert(whole, pool))?;
        self.free = self.free.saturating_add(run.len);
        self.changed()
    }

    fn changed(&mut self) -> Result<()> {
        self.longest = self.by_length.last()?.map_or(0, |run| run.len);
        self.dirty = true;
        Ok(())
    }

    fn change_place(
        &mut self,
        change: impl FnOnce(&mut Tree<ByPlace>, &mut dyn Pool) -> Result<()>,
    ) -> Result<()> {
        let (spare, tree_blocks) = (&mut self.spare, &mut self.tree_blocks);
        change(&mut self.by_place, &mut SparePool { spare, tree_blocks, map_blocks: None })
    }

    fn change_length(
        &mut self,
        change: impl FnOnce(&mut Tree<ByLength>, &mut dyn Pool) -> Result<()>,
    ) -> Result<()> {
        let (spare, tree_blocks) = (&mut self.spare, &mut self.tree_blocks);
        change(&mut self.by_length, &mut SparePool { spare, tree_blocks, map_blocks: None })
    }

    /// Writes all that changed.
    pub(super) fn write_back(&mut self) -> Result<()> {
        self.by_place.write_back()?;
        self.by_length.write_back()?;
        if let Some(owners) = self.owners.as_mut() {
            owners.write_back()?;
            self.agf.raw.agf_rmap_root = owners.root().into();
            self.agf.raw.agf_rmap_level = owners.levels().into();
            self.agf.raw.agf_rmap_blocks = self.map_blocks.into();
        }
        if !self.dirty {
            return Ok(());
        }
        let raw = &mut self.agf.raw;
        raw.agf_bno_root = self.by_place.root().into();
        raw.agf_bno_level = self.by_place.levels().into();
        raw.agf_cnt_root = self.by_length.root().into();
        raw.agf_cnt_level = self.by_length.levels().into();
        raw.agf_freeblks = self.free.into();
        raw.agf_longest = self.longest.into();
        raw.agf_btreeblks = self.tree_blocks.into();
        self.spare.write_back(raw)?;
        self.agf.write(&self.ground)?;
        self.dirty = false;
        Ok(())
    }

    /// Tree blocks in memory.
    pub(super) fn held(&self) -> usize {
        let map = self.owners.as_ref().map_or(0, Tree::held);
        self.by_place.held().saturating_add(self.by_length.held()).saturating_add(map)
    }
}

/// Checks the numbers of an AGF.
fn check(raw: &RawAgf, ground: &Ground) -> Result<()> {
    let length = ground.blocks;
    let rules: [(&'static str, u32, bool, &'static str); 5] = [
        ("agf_versionnum", raw.agf_versionnum.get(), raw.agf_versionnum.get() == AGF_VERSION, "not 1"),
        ("agf_length", raw.agf_length.get(), raw.agf_length.get() == length, "not the group's length"),
        ("agf_freeblks", raw.agf_freeblks.get(), raw.agf_freeblks.get() <= length, "more than the group has"),
        (
            "agf_longest",
            raw.agf_longest.get(),
            raw.agf_longest.get() <= raw.agf_freeblks.get(),
            "more than are free",
        ),
        (
            "agf_btreeblks",
            raw.agf_btreeblks.get(),
            raw.agf_btreeblks.get() <= length,
            "more than the group has",
        ),
    ];
    for (what, found, good, why) in rules {
        if !good {
            return Err(Fault::Field { what, found: found.into(), why }.into());
        }
    }
    Ok(())
}
