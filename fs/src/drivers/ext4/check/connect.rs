//! Whether every directory is reached from the root, and every inode has as many names as it counts.

use racker_formats::error::Result;

use super::super::features::RoCompat;
use super::super::volume::ROOT_INODE;
use super::Checker;
use crate::filesystem::NodeKind;

/// What is known of the way from a directory to the root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Unknown,
    Walked,
    Leads,
    Lost,
}

impl Checker<'_> {
    /// Compares names and counts.
    pub(super) fn check_names(&mut self) -> Result<()> {
        let root = self.notes.get(ROOT_INODE);
        if !root.is_used() || root.kind() != Some(NodeKind::Dir) {
            return self.finds.corrupt("there is no root directory");
        }
        self.check_ways()?;
        for group in 0..self.fs.sb.groups {
            let Some(numbers) = self.notes.of_group(group) else { continue };
            for number in numbers {
                self.check_links(number)?;
            }
        }
        Ok(())
    }

    /// Follows every directory up to the root, each step once.
    fn check_ways(&mut self) -> Result<()> {
        let mut ways = vec![Way::Unknown; self.dirs.len()];
        let place =
            |dirs: &[super::Dir], number: u32| dirs.binary_search_by_key(&number, |dir| dir.number).ok();
        for start in 0..self.dirs.len() {
            let mut path = Vec::new();
            let mut at = Some(start);
            let mut end = Way::Lost;
            while let Some(here) = at {
                let Some(dir) = self.dirs.get(here) else { break };
                match ways.get(here) {
                    _ if dir.number == ROOT_INODE => {
                        end = Way::Leads;
                        break;
                    }
                    Some(Way::Unknown) => {}
                    Some(Way::Walked) | None => break,
                    Some(known) => {
                        end = *known;
                        break;
                    }
                }
                if let Some(way) = ways.get_mut(here) {
                    *way = Way::Walked;
                }
                path.push(here);
                at = if dir.parent == 0 { None } else { place(&self.dirs, dir.parent) };
            }
            for here in path {
                if let Some(way) = ways.get_mut(here) {
                    *way = end;
                }
            }
        }
        for (dir, way) in self.dirs.clone().into_iter().zip(ways) {
            let number = dir.number;
            if self.orphans.contains(&number) {
                continue;
            }
            if number != ROOT_INODE && way != Way::Leads {
                self.finds.corrupt(format!("directory inode {number} is not reached from the root"))?;
            }
            let parent = if number == ROOT_INODE { ROOT_INODE } else { dir.parent };
            if dir.up != parent && parent != 0 && !self.notes.get(number).is_bad() {
                let up = dir.up;
                self.finds.corrupt(format!(
                    "directory inode {number} is in inode {parent}, its \"..\" says {up}"
                ))?;
            }
        }
        Ok(())
    }

    fn check_links(&mut self, number: u32) -> Result<()> {
        let note = self.notes.get(number);
        if !note.is_used() || self.is_nameless(number) || (self.orphans.contains(&number) && note.links == 0)
        {
            return Ok(());
        }
        if note.is_value() {
            if !note.is_named() {
                self.finds.corrupt(format!("attribute inode {number} holds a value that nothing names"))?;
            }
            return Ok(());
        }
        let is_dir = note.kind() == Some(NodeKind::Dir);
        if number != ROOT_INODE && !note.is_named() {
            return if is_dir { Ok(()) } else { self.finds.corrupt(format!("inode {number} has no name")) };
        }
        // One that has had too many counts 1, and goes on with that.
        let gave_up =
            is_dir && note.links == 1 && self.fs.sb.features.ro_compat.contains(RoCompat::DIR_NLINK);
        if note.links != note.names && !(gave_up && note.names > 2) {
            let (links, names) = (note.links, note.names);
            self.finds.corrupt(format!("inode {number} counts {links} names, and has {names}"))?;
        }
        Ok(())
    }
}
