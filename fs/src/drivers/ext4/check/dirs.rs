//! Directories: every block read, in order.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;

use racker_formats::error::Result;

use super::super::edit::bytes::get32;
use super::super::fault::Ext4Fault;
use super::super::features::Compat;
use super::super::inode::Inode;
use super::super::layout::inode_flags;
use super::super::map::Mapping;
use super::Checker;
use super::htree::Leaves;

/// Names of one directory that are compared with one another: 64 MiB.
const NAMES_MAX: usize = 1 << 22;

/// The names of a directory, as two hashes each.
pub(super) struct Names {
    keys: [RandomState; 2],
    seen: HashSet<(u64, u64)>,
}

impl Names {
    fn new() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()], seen: HashSet::new() }
    }

    /// Notes a name; tells whether it is new, as far as memory goes.
    pub(super) fn insert(&mut self, name: &[u8]) -> bool {
        let [a, b] = &self.keys;
        self.seen.len() >= NAMES_MAX || self.seen.insert((a.hash_one(name), b.hash_one(name)))
    }
}

/// A directory that is being read.
pub(super) struct Reading<'d> {
    pub(super) inode: &'d Inode,
    pub(super) names: Names,
    /// What `..` names.
    pub(super) up: u32,
    /// The first two entries are still to come, or one of them.
    pub(super) dots: u8,
}

impl Checker<'_> {
    /// Goes through all directories.
    pub(super) fn check_dirs(&mut self) -> Result<()> {
        let mut at = 0usize;
        while let Some(dir) = self.dirs.get(at).copied() {
            if !self.notes.get(dir.number).is_bad() {
                let read = self.check_dir(dir.number);
                let place = || format!("directory inode {}", dir.number);
                let up = self.finds.sound(place, read)?;
                if up.is_none() {
                    self.notes.get_mut(dir.number)?.spoil();
                }
                if let Some(dir) = self.dirs.get_mut(at) {
                    dir.up = up.unwrap_or(0);
                }
            }
            at = at.saturating_add(1);
        }
        Ok(())
    }

    /// Goes through one directory; returns what its `..` names.
    fn check_dir(&mut self, number: u32) -> Result<u32> {
        let inode = self.fs.any_inode(number)?;
        let mut dir = Reading { inode: &inode, names: Names::new(), up: 0, dots: 2 };
        if inode.has(inode_flags::INLINE_DATA) {
            dir.up = get32(inode.block(), 0)?;
            dir.dots = 0;
            self.notes.get_mut(number)?.name(true);
            self.count_up(number, dir.up)?;
            for (part, stretch) in (0u64..).zip(self.fs.inline_dir(&inode)?) {
                self.check_entries(&mut dir, part, &stretch, None)?;
            }
            return Ok(dir.up);
        }
        let has_index =
            inode.has(inode_flags::INDEX) && self.fs.sb.features.compat.contains(Compat::DIR_INDEX);
        let leaves = if has_index { Some(self.check_index(&inode)?) } else { None };
        self.check_stored(&mut dir, leaves.as_ref())?;
        Ok(dir.up)
    }

    fn check_stored(&mut self, dir: &mut Reading<'_>, leaves: Option<&Leaves>) -> Result<()> {
        let fs = self.fs;
        let inode = dir.inode;
        let usable = fs.usable()?;
        fs.runs(inode, &mut |first, run| {
            let Mapping::Data(start) = run.to else { return Err(Ext4Fault::DirHole(first).into()) };
            for step in 0..run.len {
                let (number, at) = (first.saturating_add(step), start.saturating_add(step));
                let block = fs.block("a directory", at)?;
                let checked = fs.check_dir_block(inode, number, &block);
                let place = || format!("directory inode {}: block {number}", inode.number);
                if self.finds.sound(place, checked)?.is_none() {
                    continue;
                }
                if leaves.is_some_and(|leaves| number != 0 && leaves.is_inner(number)) {
                    continue;
                }
                let entries = if number == 0 && leaves.is_some() { block.len() } else { usable };
                let Some(entries) = block.get(..entries) else { continue };
                let range = leaves.and_then(|leaves| leaves.range(number));
                let place = || format!("directory inode {}", inode.number);
                let checked = self.check_entries(dir, number, entries, range.zip(leaves));
                self.finds.sound(place, checked)?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}
