//! Moving entries, exchanging them, and the way up.

use std::ops::ControlFlow;

use racker_formats::error::Result;

use super::boot_sector::Root;
use super::dir::{Dir, Item};
use super::fault::FatFault;
use super::layout::{RawEntry, attr};
use super::volume::ROOT;
use super::writer::FatMut;
use crate::filesystem::{Name, NodeId, Time};

impl FatMut {
    /// Moves an entry, over what `to` names.
    pub(super) fn move_entry(&mut self, from: (NodeId, &Name), to: (NodeId, &Name), now: Time) -> Result<()> {
        let (slot, place) = self.find(from.0, from.1)?;
        let raw = self.raw(place)?;
        let replaced = self.find_if_any(to.0, to.1)?.filter(|(_, old)| *old != place);
        let same_dir = from.0 == to.0;
        let own = same_dir.then_some(slot);
        let gone: Vec<usize> = own.into_iter().chain(replaced.map(|(slot, _)| slot)).collect();
        let plan = self.plan(to.0, to.1, &gone)?;
        self.need(plan.grow)?;
        let up = self.up(to.0)?;
        self.begin()?;
        if let Some((old_slot, old_place)) = replaced {
            let old = self.raw(old_place)?;
            self.leave(to.0, old_slot)?;
            self.free_node(old_place, &old)?;
        }
        self.leave(from.0, slot)?;
        let new_place = self.enter(to.0, &plan, &raw)?;
        self.fat.places.moved(place, new_place)?;
        if !same_dir && raw.attr & attr::DIRECTORY != 0 {
            self.point_up(&raw, up)?;
        }
        self.touch(from.0, now)?;
        self.touch(to.0, now)?;
        self.end();
        Ok(())
    }

    /// Exchanges the nodes of two entries; each name stays where it is.
    pub(super) fn exchange_entries(
        &mut self,
        one: (NodeId, &Name),
        other: (NodeId, &Name),
        now: Time,
    ) -> Result<()> {
        let ((_, a), (_, b)) = (self.find(one.0, one.1)?, self.find(other.0, other.1)?);
        let (first, second) = (self.raw(a)?, self.raw(b)?);
        let ups = [self.up(one.0)?, self.up(other.0)?];
        self.begin()?;
        let named = |node: &RawEntry, name: &RawEntry| {
            let mut raw = *node;
            (raw.name, raw.nt_res) = (name.name, name.nt_res);
            raw
        };
        self.put_raw(a, &named(&second, &first))?;
        self.put_raw(b, &named(&first, &second))?;
        self.fat.places.swapped(a, b)?;
        if one.0 != other.0 {
            for (raw, up) in [(&second, ups[0]), (&first, ups[1])] {
                if raw.attr & attr::DIRECTORY != 0 {
                    self.point_up(raw, up)?;
                }
            }
            let dirs = |raw: &RawEntry| u64::from(raw.attr & attr::DIRECTORY != 0);
            for (dir, came, went) in [(one.0, &second, &first), (other.0, &first, &second)] {
                let mut front = self.index(dir)?;
                let index = front.get()?;
                index.dirs = index.dirs.saturating_add(dirs(came)).saturating_sub(dirs(went));
            }
        }
        self.touch(one.0, now)?;
        self.touch(other.0, now)?;
        self.end();
        Ok(())
    }

    /// Lets `..` of a directory lead to the cluster `up`.
    fn point_up(&self, raw: &RawEntry, up: u32) -> Result<()> {
        let place = (self.fat.byte_of(self.fat.first_cluster(raw))? >> 5).saturating_add(1);
        let mut dots = self.raw(place)?;
        self.set_first(&mut dots, up);
        self.put_raw(place, &dots)
    }

    /// The directory that holds `dir`.
    pub(super) fn above(&self, dir: NodeId) -> Result<NodeId> {
        let up = |first: u32| -> Result<u32> {
            let place = (self.fat.byte_of(first)? >> 5).saturating_add(1);
            Ok(self.fat.first_cluster(&self.raw(place)?))
        };
        let is_root =
            |cluster: u32| cluster == 0 || matches!(self.fat.boot.root, Root::Chain(root) if root == cluster);
        let Dir { root: Root::Chain(first), .. } = self.fat.dir(dir)? else { return Ok(ROOT) };
        if dir == ROOT {
            return Ok(ROOT);
        }
        let parent = up(first)?;
        if is_root(parent) {
            return Ok(ROOT);
        }
        // The parent's entry is in the directory above it.
        let above = up(parent)?;
        let above =
            if is_root(above) { self.fat.root_dir() } else { Dir { node: ROOT, root: Root::Chain(above) } };
        let mut found = None;
        self.fat.items(above, &mut |item| {
            if let Item::Entry(entry) = item
                && entry.raw.attr & attr::DIRECTORY != 0
                && self.fat.first_cluster(&entry.raw) == parent
            {
                found = Some(self.fat.places.node(entry.at >> 5)?);
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        found.ok_or_else(|| FatFault::Node(dir.0).into())
    }
}
