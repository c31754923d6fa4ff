//! Names of files: removed, moved, made; and files that have none any more while they are open.

use fuser::{Errno, INodeNo, RenameFlags};
use racker_fs::filesystem::{Change, Name, NodeId, NodeKind, Stat};

use super::super::meaning::Answer;
use super::{Told, Tree, not_kept, said};

/// How the names begin that files have which are open and have no other.
const HIDDEN: &str = ".racker-open-";

impl Tree<'_> {
    pub(in super::super) fn remove(&mut self, dir: INodeNo, name: &Name, want_dir: bool) -> Answer<()> {
        let dir = self.numbers.node(dir);
        let node = self.find(dir, name)?;
        self.memory.removals = self.memory.removals.wrapping_add(1);
        let stat = self.stat(node)?;
        match (stat.kind == NodeKind::Dir, want_dir) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            (true, true) => self.forget_paths(),
            (false, false) => {}
        }
        if self.is_last_name(node, &stat) {
            return self.hide((dir, name), node).map(drop);
        }
        self.change(|w, now| w.unlink(dir, name, now))
    }

    /// Directories go, or have other paths.
    fn forget_paths(&mut self) {
        if let Some(labelling) = &mut self.memory.labelling {
            labelling.forget_paths();
        }
    }

    /// Whether an open file has one name only.
    fn is_last_name(&self, node: NodeId, stat: &Stat) -> bool {
        stat.kind != NodeKind::Dir && stat.links <= 1 && self.memory.open.contains_key(&node)
    }

    /// Gives a file a name in the root that nobody sees.
    fn hide(&mut self, from: (NodeId, &Name), node: NodeId) -> Answer<Name> {
        let root = self.fs.root();
        let hidden = self.free_name(root, node)?;
        self.changing_no_time_of(root, from.0, |tree| {
            tree.change(|w, now| w.rename(from, (root, &hidden), now))
        })?;
        self.memory.hidden.insert(node, hidden.clone());
        Ok(hidden)
    }

    /// A name that nothing has in the root.
    fn free_name(&self, root: NodeId, node: NodeId) -> Answer<Name> {
        for again in 0..100u32 {
            let text = format!("{HIDDEN}{:x}-{again}", node.0);
            let name = Name::new(text.as_bytes()).map_err(said)?;
            if self.fs.lookup(root, &name).map_err(said)?.is_none() {
                return Ok(name);
            }
        }
        Err(Errno::EBUSY)
    }

    /// Does something to the root's entries that nobody is to see by its times, unless it is `seen` to change.
    fn changing_no_time_of(
        &mut self,
        root: NodeId,
        seen: NodeId,
        work: impl FnOnce(&mut Self) -> Answer<()>,
    ) -> Answer<()> {
        let before = self.fs.stat(root).map_err(said)?;
        work(self)?;
        if root == seen {
            return Ok(());
        }
        let change = Change { mtime: Some(before.mtime), ..Change::default() };
        self.change(|w, _| w.set_attributes(root, &change, before.ctime))
    }

    pub(in super::super) fn rename(
        &mut self,
        from: (INodeNo, &Name),
        to: (INodeNo, &Name),
        flags: RenameFlags,
    ) -> Answer<()> {
        let from = (self.numbers.node(from.0), from.1);
        let to = (self.numbers.node(to.0), to.1);
        let node = self.find(from.0, from.1)?;
        self.memory.removals = self.memory.removals.wrapping_add(1);
        if flags == RenameFlags::RENAME_EXCHANGE || self.stat(node)?.kind == NodeKind::Dir {
            self.forget_paths();
        }
        let old = match self.find(to.0, to.1) {
            Ok(old) => Some(old),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        if flags == RenameFlags::RENAME_EXCHANGE {
            return self.change(|w, now| w.exchange(from, to, now));
        }
        let keep = flags == RenameFlags::RENAME_NOREPLACE;
        if !keep && !flags.is_empty() {
            return Err(Errno::EINVAL);
        }
        let Some(old) = old.filter(|old| *old != node) else {
            if keep && old.is_some() {
                return Err(Errno::EEXIST);
            }
            return self.change(|w, now| w.rename(from, to, now));
        };
        if keep {
            return Err(Errno::EEXIST);
        }
        let stat = self.stat(old)?;
        if !self.is_last_name(old, &stat) {
            return self.change(|w, now| w.rename(from, to, now));
        }
        if self.stat(node)?.kind == NodeKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        let hidden = self.hide(to, old)?;
        let renamed = self.change(|w, now| w.rename(from, to, now));
        if renamed.is_err() {
            let root = self.fs.root();
            self.change(|w, now| w.rename((root, &hidden), to, now))?;
            self.memory.hidden.remove(&old);
        }
        renamed
    }

    pub(in super::super) fn link(&mut self, node: INodeNo, dir: INodeNo, name: &Name) -> Answer<Told> {
        let (node, dir) = (self.numbers.node(node), self.numbers.node(dir));
        self.change(|w, now| w.link(node, dir, name, now)).map_err(not_kept)?;
        self.tell(node)
    }

    /// A file is open once more.
    pub(in super::super) fn open(&mut self, node: INodeNo) {
        let count = self.memory.open.entry(self.numbers.node(node)).or_default();
        *count = count.saturating_add(1);
    }

    /// A file is open once less.
    pub(in super::super) fn release(&mut self, node: INodeNo) -> Answer<()> {
        let node = self.numbers.node(node);
        if let Some(count) = self.memory.open.get_mut(&node) {
            *count = count.saturating_sub(1);
            if *count > 0 {
                return Ok(());
            }
        }
        self.memory.open.remove(&node);
        match self.memory.hidden.remove(&node) {
            Some(name) => self.forget(&name),
            None => Ok(()),
        }
    }

    fn forget(&mut self, hidden: &Name) -> Answer<()> {
        let root = self.fs.root();
        self.changing_no_time_of(root, NodeId(u64::MAX), |tree| {
            tree.change(|w, now| w.unlink(root, hidden, now))
        })
    }

    /// Removes the files that have no name, at the end.
    pub(in super::super) fn forget_hidden(&mut self) -> Answer<()> {
        while let Some((_, name)) = self.memory.hidden.pop_first() {
            self.forget(&name)?;
        }
        Ok(())
    }
}
