//! The tree over hashes of names that large directories and attribute forks have: every block of it.

use racker_formats::error::Result;
use racker_formats::wire::{index, take};

use super::super::da::{DaBlock, DaFork, NODE};
use super::super::fault::Fault;
use super::super::layout::{RawDaInfo, RawDaInfo4, RawDaNodeEntry, RawDaNodeTail};
use super::super::units::FileBlock;
use super::super::volume::BlockKind;
use super::Checker;

/// The deepest tree there can be.
const LEVELS_MAX: u16 = 5;

/// Called for each leaf, with its kind. Returns the hash of its last entry.
pub(super) type EachLeaf<'a, 'r> = dyn FnMut(&mut Checker<'r>, &BlockKind, &DaBlock) -> Result<u32> + 'a;

/// A walk on its way.
struct Course<'k> {
    kinds: &'k [BlockKind],
    /// The last block of each level, and the one it names behind it.
    rows: [Option<(u64, u64)>; 6],
    budget: u64,
    blocks: u64,
}

fn structure<T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: "hash tree", why }.into())
}

/// Where entries of a block begin, whose fixed part behind the info has `tail` bytes.
pub(super) fn entries_at(v5: bool, tail: usize) -> (usize, usize) {
    if v5 {
        let head = size_of::<RawDaInfo>();
        (head, head.saturating_add(tail).saturating_add(4))
    } else {
        let head = size_of::<RawDaInfo4>();
        (head, head.saturating_add(tail))
    }
}

impl<'r> Checker<'r> {
    /// Goes through the tree whose root is at `root`. Returns how many blocks of the fork's own size it has.
    pub(super) fn da_tree(
        &mut self,
        fork: &DaFork<'_>,
        root: FileBlock,
        leaves: &[BlockKind],
        each: &mut EachLeaf<'_, 'r>,
    ) -> Result<u64> {
        let kinds: Vec<BlockKind> = leaves.iter().copied().chain([NODE]).collect();
        let budget = self.volume.da_budget(fork)?;
        let mut course = Course { kinds: &kinds, rows: [None; 6], budget, blocks: 0 };
        self.da_descend(&mut course, fork, root, None, each)?;
        if course.rows.iter().flatten().any(|(_, next)| *next != 0) {
            return structure("the last block of a level has one behind it");
        }
        Ok(course.blocks)
    }

    fn da_descend(
        &mut self,
        course: &mut Course<'_>,
        fork: &DaFork<'_>,
        at: FileBlock,
        level: Option<u16>,
        each: &mut EachLeaf<'_, 'r>,
    ) -> Result<u32> {
        course.budget = course.budget.checked_sub(1).ok_or(Fault::Circle { what: "a hash tree" })?;
        course.blocks = course.blocks.saturating_add(1);
        let volume = std::sync::Arc::clone(&self.volume);
        let (kind, block) = volume.da_block(fork, at, course.kinds)?;
        self.stamped(kind, &block.bytes)?;
        let info: RawDaInfo4 = take(&block.bytes, 0, kind.what)?;
        let (head, first) = entries_at(volume.sb.v5, size_of::<RawDaNodeTail>());
        let tail: RawDaNodeTail = take(&block.bytes, head, kind.what)?;
        let inner = kind.what == NODE.what;
        let found = if inner { tail.level.get() } else { 0 };
        if found != level.unwrap_or(found) || inner && (found == 0 || found > LEVELS_MAX) {
            let (found, expected) = (found.into(), level.unwrap_or(1).into());
            return Err(Fault::TreeLevel { what: "hash tree", found, expected }.into());
        }
        if let Some(row) = course.rows.get_mut(usize::from(found)) {
            let (back, expected) = row.map_or((0, at.0), |(last, next)| (last, next));
            if u64::from(info.back.get()) != back || expected != at.0 {
                return structure("siblings do not name each other");
            }
            *row = Some((at.0, info.forw.get().into()));
        }
        if !inner {
            return each(self, kind, &block);
        }
        let count = usize::from(tail.count.get());
        let mut last = None;
        for i in 0..count {
            let place = first.saturating_add(i.saturating_mul(size_of::<RawDaNodeEntry>()));
            let entry: RawDaNodeEntry = take(&block.bytes, place, NODE.what)?;
            let hash = entry.hashval.get();
            if last.is_some_and(|last| last > hash) {
                return structure("hashes are out of order");
            }
            last = Some(hash);
            let child = FileBlock(index(entry.before.get().into()).map_or(0, racker_formats::wire::len64));
            if self.da_descend(course, fork, child, found.checked_sub(1), each)? != hash {
                return structure("a block's last hash is not the one its parent has");
            }
        }
        match last {
            Some(last) => Ok(last),
            None => structure("an inner block has no entry"),
        }
    }
}
