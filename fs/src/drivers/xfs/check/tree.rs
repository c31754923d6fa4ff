//! A tree of a group, gone through from its root: every block, every key, every record.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{part, take};
use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::super::described::SHORT_SELF;
use super::super::edit::btree::Shape;
use super::super::edit::ground::Ground;
use super::super::edit::records::Run;
use super::super::fault::Fault;
use super::super::layout::{RawShortBlock, RawShortBlock4};
use super::super::units::NULL_AG_BLOCK;
use super::super::volume::BlockKind;
use super::Checker;
use super::holder::Holder;

/// Levels of the highest tree there can be.
const LEVELS_MAX: u32 = 9;

/// What a walk over a tree came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Walked {
    /// Blocks of the tree.
    pub(super) blocks: u32,
    /// Records.
    pub(super) records: u64,
    /// Nothing of it was damaged.
    pub(super) whole: bool,
}

/// Called for each record.
pub(super) type Each<'a, 'r, R> = dyn FnMut(&mut Checker<'r>, R) -> Result<()> + 'a;

/// A walk on its way.
struct Course<S: Shape> {
    ground: Ground,
    holder: Holder,
    /// The last block of each level, and the one it names as its right sibling.
    rows: Vec<Option<(u32, u32)>>,
    last: Option<S::Record>,
    walked: Walked,
}

/// A child as its parent has it, and the key of the next one.
#[derive(Clone, Copy)]
struct Place<K> {
    low: K,
    high: K,
    after: Option<K>,
}

/// A block, taken apart.
struct Block<S: Shape> {
    left: u32,
    right: u32,
    records: Vec<S::Record>,
    children: Vec<(S::Key, S::Key, u32)>,
}

fn structure<S: Shape, T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: S::NAME, why }.into())
}

impl<'r> Checker<'r> {
    /// Goes through the tree whose root is `root`, and speaks of its blocks as `holder`'s.
    pub(super) fn tree<S: Shape>(
        &mut self,
        ground: &Ground,
        (root, levels): (u32, u32),
        holder: Holder,
        each: &mut Each<'_, 'r, S::Record>,
    ) -> Result<Walked> {
        let place = || format!("group {}: {}", ground.ag.0, S::NAME);
        let good = if levels == 0 || levels > LEVELS_MAX {
            let why = "a tree has one to nine levels";
            Err(Fault::Field { what: "levels", found: levels.into(), why }.into())
        } else {
            ground.check(root, 1).within(|| "root")
        };
        if self.notes.look(good.within(place))?.is_none() {
            return Ok(Walked::default());
        }
        let top = u16::try_from(levels.saturating_sub(1)).unwrap_or(0);
        let mut course = Course::<S> {
            ground: ground.clone(),
            holder,
            rows: vec![None; usize::from(top).saturating_add(1)],
            last: None,
            walked: Walked { whole: true, ..Walked::default() },
        };
        self.descend(&mut course, root, top, None, each)?;
        if course.walked.whole && course.rows.iter().flatten().any(|(_, right)| *right != NULL_AG_BLOCK) {
            course.walked.whole = false;
            self.notes.corrupt(format!("{}: the last block of a level has a right sibling", place()))?;
        }
        Ok(course.walked)
    }

    fn descend<S: Shape>(
        &mut self,
        course: &mut Course<S>,
        number: u32,
        level: u16,
        from: Option<Place<S::Key>>,
        each: &mut Each<'_, 'r, S::Record>,
    ) -> Result<()> {
        let ag = course.ground.ag;
        let name = || format!("group {}: {}: block {number}", ag.0, S::NAME);
        course.walked.blocks = course.walked.blocks.saturating_add(1);
        if course.walked.blocks > course.ground.blocks {
            course.walked.whole = false;
            return self.notes.corrupt(format!("{}: the tree runs in a circle", name()));
        }
        let holder = course.holder;
        if !self.claim(ag, Run { start: number, len: 1 }, holder)? {
            course.walked.whole = false;
            return Ok(());
        }
        let read = self.tree_block::<S>(&course.ground, number, level, from.is_none()).within(name);
        let Some(block) = self.notes.look(read)? else {
            course.walked.whole = false;
            return Ok(());
        };
        let mut faults = vec![order_of::<S>(&block, course.last.as_ref())];
        if let Some(place) = from {
            faults.push(keys_of::<S>(&block, place));
        }
        let row = course.rows.get_mut(usize::from(level));
        if let Some(row) = row {
            let (left, expected) = row.map_or((NULL_AG_BLOCK, number), |(block, right)| (block, right));
            *row = Some((number, block.right));
            if block.left != left || expected != number {
                faults.push(Some("siblings do not name each other"));
            }
        }
        let mut bad = false;
        for fault in faults.into_iter().flatten() {
            bad = true;
            self.notes.corrupt(format!("{}: {fault}", name()))?;
        }
        if bad {
            // What lies below may be met twice.
            course.walked.whole = false;
            return Ok(());
        }
        for record in block.records {
            course.last = Some(record);
            course.walked.records = course.walked.records.saturating_add(1);
            each(self, record)?;
        }
        let follow: Vec<_> = block.children.iter().skip(1).map(|c| Some(c.0)).collect();
        let after = from.and_then(|p| p.after);
        for ((low, high, child), next) in block.children.into_iter().zip(follow.into_iter().chain([after])) {
            let place = Place { low, high, after: next };
            self.descend(course, child, level.saturating_sub(1), Some(place), each)?;
        }
        Ok(())
    }

    fn tree_block<S: Shape>(
        &mut self,
        ground: &Ground,
        number: u32,
        level: u16,
        root: bool,
    ) -> Result<Block<S>> {
        let kind = BlockKind::new(S::NAME, [S::PLAIN_MAGIC, S::MAGIC], SHORT_SELF);
        let bytes = ground.volume.block(&kind, ground.span(number)?, ground.ag.0.into())?;
        self.stamped(&kind, &bytes)?;
        let v5 = self.volume.sb.v5;
        let raw: RawShortBlock4 = take(&bytes, 0, S::NAME)?;
        let found = raw.head.bb_level.get();
        if found != level {
            let (found, expected) = (found.into(), level.into());
            return Err(Fault::TreeLevel { what: S::NAME, found, expected }.into());
        }
        let head = if v5 { size_of::<RawShortBlock>() } else { size_of::<RawShortBlock4>() };
        let keys = if S::RANGES { 2 } else { 1 };
        let room = bytes.len().saturating_sub(head);
        let key_bytes = size_of::<S::RawKey>().saturating_mul(keys);
        let entry =
            if level == 0 { size_of::<S::RawRecord>() } else { key_bytes.saturating_add(size_of::<U32>()) };
        let most = room.checked_div(entry).unwrap_or(0);
        let count = usize::from(raw.head.bb_numrecs.get());
        let fewest = match (root, level) {
            (true, 0) => 0,
            (true, _) => 1,
            (false, _) => most >> 1,
        };
        if count > most || count < fewest {
            let (found, why) = (raw.head.bb_numrecs.get().into(), "more than fit, or less than half of that");
            return Err(Fault::Field { what: "bb_numrecs", found, why }.into());
        }
        let mut block = Block {
            left: raw.bb_leftsib.get(),
            right: raw.bb_rightsib.get(),
            records: Vec::new(),
            children: Vec::new(),
        };
        if level == 0 {
            let len = count.saturating_mul(size_of::<S::RawRecord>());
            let raw = <[S::RawRecord]>::ref_from_bytes(part(&bytes, head, len, S::NAME)?);
            for raw in raw.map_err(|_| Fault::Structure { what: S::NAME, why: "cut short" })? {
                block.records.push(S::parse(raw, ground)?);
            }
            return Ok(block);
        }
        let pointers = head.saturating_add(key_bytes.saturating_mul(most));
        for i in 0..count {
            let at = head.saturating_add(key_bytes.saturating_mul(i));
            let low = S::parse_key(&take(&bytes, at, S::NAME)?);
            let high = match S::RANGES {
                true => S::parse_key(&take(&bytes, at.saturating_add(size_of::<S::RawKey>()), S::NAME)?),
                false => low,
            };
            let pointer: U32 =
                take(&bytes, pointers.saturating_add(size_of::<U32>().saturating_mul(i)), S::NAME)?;
            ground.check(pointer.get(), 1)?;
            block.children.push((low, high, pointer.get()));
        }
        if block.children.is_empty() {
            return structure::<S, _>("an inner block without children");
        }
        Ok(block)
    }
}

/// Whether what a block holds is in order, and behind `last`.
fn order_of<S: Shape>(block: &Block<S>, last: Option<&S::Record>) -> Option<&'static str> {
    let records = last.into_iter().chain(block.records.iter());
    let sorted = records.clone().zip(records.skip(1)).all(|(a, b)| S::follows(a, b));
    if !sorted {
        return Some("records overlap, or are out of order");
    }
    let children = block.children.iter();
    let sorted = children.clone().zip(children.skip(1)).all(|(a, b)| a.0 < b.0);
    (!sorted).then_some("keys are out of order")
}

/// Whether a block is what its parent says.
fn keys_of<S: Shape>(block: &Block<S>, place: Place<S::Key>) -> Option<&'static str> {
    let lows = block.records.iter().map(S::low).chain(block.children.iter().map(|c| c.0));
    let highs = block.records.iter().map(S::high).chain(block.children.iter().map(|c| c.1));
    if lows.clone().next() != Some(place.low) {
        return Some("its first key is not the one its parent has");
    }
    if lows.last().zip(place.after).is_some_and(|(last, after)| last >= after) {
        return Some("its keys reach into those of the next block");
    }
    if S::RANGES && highs.max() != Some(place.high) {
        return Some("its highest key is not the one its parent has");
    }
    None
}
