//! Directories: inside the inode, one block, or blocks of entries beside a tree over the hashes of their names.

mod data;
mod name;
mod short;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::take;

use crate::filesystem::{DirEntry, Name, NodeId, NodeKind, Visit};

use super::da::{DaFork, da_kind};
use super::fault::Fault;
use super::inode::{ForkFormat, ForkKind, Inode};
use super::layout::{
    DIR_LEAF1_MAGIC, DIR_LEAFN_MAGIC, RawDaInfo, RawDaInfo4, RawDirLeafEntry, RawDirLeafTail,
};
use super::units::{FileBlock, InodeNo};
use super::volume::{BlockKind, Volume};
pub(super) use data::BLOCKS as DATA_BLOCKS;
use name::Wanted;

/// Where the leaves begin in a directory's fork, in bytes: entries are before them.
pub(super) const LEAF_SPACE: u64 = 1 << 35;
/// Where the index of free room begins in a directory's fork, in bytes: leaves are before it.
pub(super) const FREE_SPACE: u64 = 1 << 36;
/// Units in which leaves count the places of entries.
const PLACE_SHIFT: u32 = 3;
/// Leaves.
const LEAVES: [BlockKind; 2] =
    [da_kind("directory leaf", DIR_LEAF1_MAGIC), da_kind("directory leaf", DIR_LEAFN_MAGIC)];

/// An entry as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) ino: InodeNo,
    /// As the directory says it, if it does.
    pub(super) kind: Option<NodeKind>,
    pub(super) place: Place,
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the inode: the offset of the inode number, and its width of 4 or 8 bytes.
    Inode {
        /// In bytes from the inode's beginning.
        at: usize,
        /// 4 or 8.
        width: usize,
    },
    /// In a directory block: the offset of the entry, which begins with its inode number of 8 bytes.
    Block {
        /// The block's place in the fork.
        block: FileBlock,
        /// In bytes from the block's beginning.
        at: usize,
    },
}

/// Called for each entry, `.` and `..` included where they are stored.
type VisitEntry<'a> = dyn FnMut(Entry) -> Result<ControlFlow<()>> + 'a;

impl Volume {
    /// Calls `visit` for all entries but `.` and `..`.
    pub(super) fn read_dir(&self, dir: &Inode, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        self.entries(dir, &mut |entry| {
            if entry.name == b"." || entry.name == b".." {
                return Ok(ControlFlow::Continue(()));
            }
            visit(DirEntry { name: Name::new(&entry.name)?, node: NodeId(entry.ino.0), kind: entry.kind })
        })
        .within(|| format!("directory {}", dir.ino.0))
    }

    fn entries(&self, dir: &Inode, visit: &mut VisitEntry<'_>) -> Result<()> {
        check_dir(dir)?;
        if dir.data.format == ForkFormat::Local {
            return self.short_entries(dir, visit).map(drop);
        }
        let fork = self.dir_fork(dir);
        let step = self.dir_step();
        let end = FileBlock(self.sb.block_size.count(LEAF_SPACE));
        let mut budget = self.da_budget(&fork)?;
        let mut next = FileBlock(0);
        for mapping in self.mappings(dir, ForkKind::Data, FileBlock(0))? {
            let mapping = mapping?;
            // A block may begin in the extent before.
            next = next.max(FileBlock(mapping.at.0.next_multiple_of(step)));
            while next < mapping.end() && next < end {
                budget = budget.checked_sub(1).ok_or(Fault::Circle { what: "a directory" })?;
                if self.block_entries(&fork, next, visit)?.is_break() {
                    return Ok(());
                }
                next = FileBlock(next.0.saturating_add(step));
            }
        }
        Ok(())
    }

    /// The entry `name` of a directory, which has it in another case perhaps, where that is the same.
    pub(super) fn find_entry(&self, dir: &Inode, name: &[u8]) -> Result<Option<Entry>> {
        check_dir(dir)?;
        let place = || format!("directory {}", dir.ino.0);
        if dir.data.format == ForkFormat::Local {
            return self.find_in_inode(dir, name).within(place);
        }
        let root = FileBlock(self.sb.block_size.count(LEAF_SPACE));
        let leaf = self.mapping_at(dir, ForkKind::Data, root)?;
        let found = if leaf.is_some_and(|m| m.at <= root) {
            self.find_by_tree(dir, root, name)
        } else {
            self.find_in_block(&self.dir_fork(dir), name)
        };
        found.within(place)
    }

    fn find_in_inode(&self, dir: &Inode, name: &[u8]) -> Result<Option<Entry>> {
        let mut wanted = Wanted::new(&self.sb, name);
        let _ = self.short_entries(dir, &mut |entry| {
            Ok(if wanted.meets(entry) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(wanted.found())
    }

    fn find_by_tree(&self, dir: &Inode, root: FileBlock, name: &[u8]) -> Result<Option<Entry>> {
        let fork = self.dir_fork(dir);
        let (mut wanted, hash) = (Wanted::new(&self.sb, name), self.sb.name_hash(name));
        let mut block = None;
        let mut seen = BTreeSet::new();
        let mut leaf = self.da_leaf(&fork, root, &LEAVES, hash)?;
        loop {
            let head = if self.sb.v5 { size_of::<RawDaInfo>() } else { size_of::<RawDaInfo4>() };
            let tail: RawDirLeafTail = take(&leaf.bytes, head, "directory leaf")?;
            let first = head.saturating_add(if self.sb.v5 { 8 } else { 4 });
            let count = tail.count.get().into();
            let mut last = None;
            for place in places_of(&leaf.bytes, first, count, hash, &mut last)? {
                let at = u64::from(place) << PLACE_SHIFT;
                if wanted.meets(self.entry_of(&fork, at, &mut block)?) {
                    return Ok(wanted.found());
                }
            }
            // Names with the same hash may go on in the next leaf.
            if last.is_some_and(|last| last > hash) {
                return Ok(wanted.found());
            }
            if !seen.insert(leaf.at) {
                return Err(Fault::Circle { what: "a directory's leaves" }.into());
            }
            match self.da_next(&fork, &leaf, &LEAVES)? {
                Some(next) => leaf = next,
                None => return Ok(wanted.found()),
            }
        }
    }

    /// A directory's fork, to be read in directory blocks.
    pub(super) fn dir_fork<'a>(&self, dir: &'a Inode) -> DaFork<'a> {
        DaFork { inode: dir, kind: ForkKind::Data, block_bytes: self.sb.dir_block_size.bytes() }
    }

    /// Filesystem blocks of a directory block.
    fn dir_step(&self) -> u64 {
        self.sb.block_size.count(self.sb.dir_block_size.bytes()).max(1)
    }
}

fn check_dir(dir: &Inode) -> Result<()> {
    if dir.kind != NodeKind::Dir {
        return Err(Fault::NotADirectory { ino: dir.ino.0 }.into());
    }
    Ok(())
}

/// The places of the entries with hash `wanted` among `count` sorted leaf entries at `first`; `last` becomes the
/// hash of the last entry of all.
fn places_of(
    block: &[u8],
    first: usize,
    count: usize,
    wanted: u32,
    last: &mut Option<u32>,
) -> Result<Vec<u32>> {
    let entry = |i: usize| -> Result<RawDirLeafEntry> {
        let at = first.saturating_add(i.saturating_mul(size_of::<RawDirLeafEntry>()));
        take(block, at, "directory leaf")
    };
    if let Some(i) = count.checked_sub(1) {
        *last = Some(entry(i)?.hashval.get());
    }
    let (mut low, mut high) = (0usize, count);
    while low < high {
        let middle = low.midpoint(high);
        if entry(middle)?.hashval.get() < wanted {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    let mut places = Vec::new();
    for i in low..count {
        let found = entry(i)?;
        if found.hashval.get() != wanted {
            break;
        }
        // Entries that were removed stay with place 0 until the leaf is packed.
        if found.address.get() != 0 {
            places.push(found.address.get());
        }
    }
    Ok(places)
}
