//! Entries added, removed, moved and exchanged, and what nodes count and say of the entries that name them.

use racker_formats::error::{Result, Within};

use crate::filesystem::{Name, NodeKind, Time};

use super::super::fault::Fault;
use super::super::inode::Inode;
use super::super::units::InodeNo;
use super::Edit;
use super::create::LINKS_MAX;
use super::dir::NewEntry;

/// Blocks of attributes that name parents.
const MORE_BLOCKS: u64 = 16;

fn refuse<T>(what: &'static str) -> Result<T> {
    Err(Fault::Unsupported { what }.into())
}

impl Edit {
    /// Makes one more entry for a node.
    pub(in super::super) fn link(
        &mut self,
        node: InodeNo,
        dir: InodeNo,
        name: &Name,
        now: Time,
    ) -> Result<()> {
        let (node, mut dir) = (self.inode(node)?, self.inode(dir)?);
        if node.links() >= LINKS_MAX {
            return refuse("so many entries for one file");
        }
        let attrs = self.parent_blocks(&node);
        self.reserve(self.blocks_for_entries(1).saturating_add(attrs).saturating_add(MORE_BLOCKS))?;
        let number = dir.ino.0;
        self.run(|edit| {
            let (ino, kind) = (node.ino, node.kind);
            edit.add_entry(&mut dir, NewEntry { name: name.as_bytes(), ino, kind })?;
            let mut node = edit.add_parent(node, &dir, name.as_bytes())?;
            edit.store_dir(dir, now)?;
            node.add_link()?;
            node.touch(&edit.volume, false, now)?;
            node.store(&edit.volume).map(drop)
        })
        .within(|| format!("linking {name:?} in directory {number}"))
    }

    /// Removes an entry, and its node if that was the last one.
    pub(in super::super) fn unlink(&mut self, dir: InodeNo, name: &Name, now: Time) -> Result<()> {
        let mut dir = self.inode(dir)?;
        let entry = self.entry(&dir, name)?;
        let node = self.inode(entry.ino)?;
        self.removable(&node)?;
        self.compare_space()?;
        if node.ino == dir.ino {
            let why = "it has an entry for itself";
            return Err(Fault::Structure { what: "directory", why }.into());
        }
        let number = dir.ino.0;
        self.run(|edit| {
            // What goes needs blocks at most for a while: those that are kept for such.
            edit.budget = u64::MAX;
            edit.remove_entry(&mut dir, &entry.name)?;
            if node.kind == NodeKind::Dir {
                dir.drop_link()?;
            }
            let node = edit.drop_parent(node, &dir, &entry.name)?;
            edit.store_dir(dir, now)?;
            edit.release_node(node, now)
        })
        .within(|| format!("removing {name:?} from directory {number}"))
    }

    /// Takes one entry off a node, and frees it if that was the last one: a directory has lost its only one.
    fn release_node(&mut self, mut node: Inode, now: Time) -> Result<()> {
        let left = node.drop_link()?;
        if left > 0 && node.kind != NodeKind::Dir {
            node.touch(&self.volume, false, now)?;
            return node.store(&self.volume).map(drop);
        }
        // The free inode keeps the time of its end.
        node.touch(&self.volume, false, now)?;
        let volume = std::sync::Arc::clone(&self.volume);
        node.reparse(&volume)?;
        if node.kind == NodeKind::Dir {
            self.last_dir = None;
        }
        self.free_inode(node)
    }

    /// Moves an entry over what `to` names, if that is anything.
    pub(in super::super) fn rename(
        &mut self,
        from: (InodeNo, &Name),
        to: (InodeNo, &Name),
        now: Time,
    ) -> Result<()> {
        let old_dir = self.inode(from.0)?;
        let old = self.entry(&old_dir, from.1)?;
        let node = self.inode(old.ino)?;
        let new_dir = self.inode(to.0)?;
        let there = match self.volume.find_entry(&new_dir, to.1.as_bytes())? {
            // The very entry, which gets its name in another case.
            Some(there) if (to.0, there.place) == (from.0, old.place) => None,
            // Two entries of one node stay.
            Some(there) if there.ino == old.ino => return Ok(()),
            there => there,
        };
        // What is replaced keeps the case of its name, as the kernel has it.
        let name = there.as_ref().map_or(to.1.as_bytes(), |there| there.name.as_slice());
        let target = there.as_ref().map(|there| self.inode(there.ino)).transpose()?;
        if let Some(target) = &target {
            self.removable(target)?;
        }
        let is_dir = node.kind == NodeKind::Dir;
        let moves = is_dir && from.0 != to.0;
        if moves && new_dir.links() >= LINKS_MAX {
            return refuse("so many directories in one");
        }
        let attrs = self.parent_blocks(&node);
        let blocks = self.blocks_for_entries(2);
        self.reserve(blocks.saturating_add(attrs).saturating_add(MORE_BLOCKS))?;
        self.run(|edit| {
            let new = NewEntry { name, ino: node.ino, kind: node.kind };
            let mut dir = new_dir;
            match target {
                Some(_) => edit.point_entry(&mut dir, new)?,
                None => edit.add_entry(&mut dir, new)?,
            }
            if moves {
                dir.add_link()?;
            }
            let replaced_dir = target.as_ref().is_some_and(|t| t.kind == NodeKind::Dir);
            if replaced_dir {
                dir.drop_link()?;
            }
            let node = edit.add_parent(node, &dir, name)?;
            let target = target.map(|t| edit.drop_parent(t, &dir, name)).transpose()?;
            edit.store_dir(dir, now)?;
            let mut dir = edit.volume.inode(from.0)?;
            edit.remove_entry(&mut dir, &old.name)?;
            if moves {
                dir.drop_link()?;
            }
            let mut node = edit.drop_parent(node, &dir, &old.name)?;
            edit.store_dir(dir, now)?;
            if moves {
                edit.set_parent(&mut node, to.0)?;
            }
            node.touch(&edit.volume, false, now)?;
            node.store(&edit.volume)?;
            target.map_or(Ok(()), |target| edit.release_node(target, now))
        })
        .within(|| format!("moving {:?} of directory {} to {:?}", from.1, from.0.0, to.1))
    }

    /// Exchanges the nodes that two entries name.
    pub(in super::super) fn exchange(
        &mut self,
        one: (InodeNo, &Name),
        other: (InodeNo, &Name),
        now: Time,
    ) -> Result<()> {
        let (dir_a, dir_b) = (self.inode(one.0)?, self.inode(other.0)?);
        let (entry_a, entry_b) = (self.entry(&dir_a, one.1)?, self.entry(&dir_b, other.1)?);
        let (a, b) = (self.inode(entry_a.ino)?, self.inode(entry_b.ino)?);
        let (a_dir, b_dir) = (a.kind == NodeKind::Dir, b.kind == NodeKind::Dir);
        let apart = one.0 != other.0;
        if apart && (a_dir && dir_b.links() >= LINKS_MAX || b_dir && dir_a.links() >= LINKS_MAX) {
            return refuse("so many directories in one");
        }
        let attrs = self.parent_blocks(&a).saturating_add(self.parent_blocks(&b));
        let blocks = self.blocks_for_entries(4);
        self.reserve(blocks.saturating_add(attrs).saturating_add(MORE_BLOCKS))?;
        self.run(|edit| {
            let (mut a, mut b) = (a, b);
            let sides = [
                ((one.0, &entry_a.name), b.ino, b.kind, a_dir, b_dir),
                ((other.0, &entry_b.name), a.ino, a.kind, b_dir, a_dir),
            ];
            for ((at, name), ino, kind, was_dir, is_dir) in sides {
                let mut dir = edit.volume.inode(at)?;
                edit.point_entry(&mut dir, NewEntry { name, ino, kind })?;
                if apart && was_dir != is_dir {
                    if is_dir { dir.add_link()? } else { dir.drop_link().map(drop)? }
                }
                let (gone, come) = if ino == b.ino { (&mut a, &mut b) } else { (&mut b, &mut a) };
                *gone = edit.drop_parent(gone.clone(), &dir, name)?;
                *come = edit.add_parent(come.clone(), &dir, name)?;
                edit.store_dir(dir, now)?;
            }
            for (mut node, is_dir, up) in [(a, a_dir, other.0), (b, b_dir, one.0)] {
                if apart && is_dir {
                    edit.set_parent(&mut node, up)?;
                }
                node.touch(&edit.volume, false, now)?;
                node.store(&edit.volume)?;
            }
            Ok(())
        })
        .within(|| format!("exchanging {:?} of directory {} and {:?}", one.1, one.0.0, other.1))
    }

    /// Makes `..` of a directory name another one.
    fn set_parent(&mut self, dir: &mut Inode, up: InodeNo) -> Result<()> {
        self.point_entry(dir, NewEntry { name: b"..", ino: up, kind: NodeKind::Dir })
    }
}
