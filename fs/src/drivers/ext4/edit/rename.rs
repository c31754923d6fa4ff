//! Entries moved and exchanged.

use racker_formats::error::Result;

use super::super::fault::Ext4Fault;
use super::Edit;
use super::node::Node;
use crate::filesystem::{Name, NodeKind, Time};

/// An entry, with its directory and its node in memory.
struct End<'a> {
    dir: Node,
    name: &'a [u8],
    node: Node,
}

impl Edit {
    fn end<'a>(&mut self, dir: u64, name: &'a Name) -> Result<End<'a>> {
        let dir = self.node(dir)?;
        let found = self.find_entry(&dir, name.as_bytes())?;
        let number = found.ok_or(Ext4Fault::Directory("an entry is gone"))?;
        Ok(End { dir, name: name.as_bytes(), node: self.node(number.into())? })
    }

    /// Moves an entry over what is there.
    pub(super) fn rename(&mut self, from: (u64, &Name), to: (u64, &Name), now: Time) -> Result<()> {
        let End { dir: mut source, name: old_name, node: mut moved } = self.end(from.0, from.1)?;
        let new_name = to.1.as_bytes();
        let mut target = if from.0 == to.0 { None } else { Some(self.node(to.0)?) };
        let into = target.as_mut().unwrap_or(&mut source);
        let there = self.find_entry(into, new_name)?;
        if there == Some(moved.number) {
            return self.respell(source, (from, to), moved, now);
        }
        let mut victim = there.map(|number| self.node(number.into())).transpose()?;
        match &victim {
            Some(_) => self.point_entry(into, new_name, moved.number, moved.kind)?,
            None => self.add_entry(into, new_name, moved.number, moved.kind)?,
        }
        if victim.as_ref().is_some_and(|v| v.kind == NodeKind::Dir) {
            Self::drop_dir_link(into);
        }
        if let Some(into) = &mut target {
            if moved.kind == NodeKind::Dir {
                self.add_link(into)?;
                Self::drop_dir_link(&mut source);
                self.set_parent(&mut moved, into.number)?;
            }
            into.touch(now);
            self.save(into)?;
        }
        self.remove_entry(&mut source, old_name)?;
        source.touch(now);
        self.save(&mut source)?;
        moved.set_ctime(now);
        self.save(&mut moved)?;
        match &mut victim {
            Some(victim) => self.lose_link(victim, now),
            None => Ok(()),
        }
    }

    /// Gives an entry the same name in another case. Two entries of one node stay as they are.
    fn respell(
        &mut self,
        mut dir: Node,
        (from, to): ((u64, &Name), (u64, &Name)),
        mut node: Node,
        now: Time,
    ) -> Result<()> {
        let wanted = self.fs.sb.wanted(dir.raw.flags.get(), from.1.as_bytes());
        if from.0 != to.0 || !wanted.is(to.1.as_bytes()) {
            return Ok(());
        }
        self.remove_entry(&mut dir, from.1.as_bytes())?;
        self.add_entry(&mut dir, to.1.as_bytes(), node.number, node.kind)?;
        dir.touch(now);
        self.save(&mut dir)?;
        node.set_ctime(now);
        self.save(&mut node)
    }

    /// Exchanges what two entries name.
    pub(super) fn exchange(&mut self, one: (u64, &Name), other: (u64, &Name), now: Time) -> Result<()> {
        let mut a = self.end(one.0, one.1)?;
        let mut b = self.end(other.0, other.1)?;
        if one.0 == other.0 {
            self.point_entry(&mut a.dir, a.name, b.node.number, b.node.kind)?;
            self.point_entry(&mut a.dir, b.name, a.node.number, a.node.kind)?;
            a.dir.touch(now);
            self.save(&mut a.dir)?;
        } else {
            self.point_entry(&mut a.dir, a.name, b.node.number, b.node.kind)?;
            self.point_entry(&mut b.dir, b.name, a.node.number, a.node.kind)?;
            let kinds = (a.node.kind == NodeKind::Dir, b.node.kind == NodeKind::Dir);
            match kinds {
                (true, false) => {
                    self.add_link(&mut b.dir)?;
                    Self::drop_dir_link(&mut a.dir);
                }
                (false, true) => {
                    self.add_link(&mut a.dir)?;
                    Self::drop_dir_link(&mut b.dir);
                }
                _ => {}
            }
            if kinds.0 {
                self.set_parent(&mut a.node, b.dir.number)?;
            }
            if kinds.1 {
                self.set_parent(&mut b.node, a.dir.number)?;
            }
            a.dir.touch(now);
            b.dir.touch(now);
            self.save(&mut a.dir)?;
            self.save(&mut b.dir)?;
        }
        a.node.set_ctime(now);
        b.node.set_ctime(now);
        self.save(&mut a.node)?;
        self.save(&mut b.node)
    }
}
