//! The reverse map, against what was found.
//!
//! Whatever is found is looked up in it. Nothing is found twice, so if all was there, and as many blocks were found
//! as the map has, it has nothing else.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use racker_formats::error::Result;

use super::super::edit::btree::{Shape, Tree};
use super::super::edit::ground::Ground;
use super::super::edit::owner::Owner;
use super::super::edit::records::{MapKey, Mapped, Owners, Run};
use super::Checker;
use super::holder::Holder;

/// Groups whose map is held in parts, and blocks of it that are held of each.
const TREES_MAX: usize = 16;
const HELD_MAX: usize = 1024;

/// The reverse maps.
#[derive(Debug, Default)]
pub(super) struct Maps {
    /// Root and levels of each group's map that is whole.
    roots: BTreeMap<u32, (u32, u32)>,
    trees: BTreeMap<u32, Tree<Owners>>,
    sums: BTreeMap<u32, Sums>,
}

/// Blocks with an owner: as the map says, and as was found.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    mapped: u64,
    found: u64,
    missing: bool,
}

impl Maps {
    /// The map of a group has `mapped` blocks with an owner.
    pub(super) fn set(&mut self, ag: u32, root: (u32, u32), mapped: u64) {
        self.roots.insert(ag, root);
        self.sums.entry(ag).or_default().mapped = mapped;
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    fn tree(&mut self, ground: &Ground) -> Result<Option<&mut Tree<Owners>>> {
        let ag = ground.ag.0;
        let Some((root, levels)) = self.roots.get(&ag).copied() else { return Ok(None) };
        if self.trees.get(&ag).is_some_and(|t| t.held() > HELD_MAX) || self.trees.len() > TREES_MAX {
            self.trees.clear();
        }
        match self.trees.entry(ag) {
            std::collections::btree_map::Entry::Occupied(held) => Ok(Some(held.into_mut())),
            std::collections::btree_map::Entry::Vacant(place) => {
                Ok(Some(place.insert(Tree::new(ground, root, levels)?)))
            }
        }
    }

    /// The part of `run` from its beginning on that the map says is `owner`'s.
    fn covered(&mut self, ground: &Ground, run: Run, owner: Owner) -> Result<Option<u32>> {
        let Some(tree) = self.tree(ground)? else { return Ok(None) };
        let mut done = 0u32;
        while let Some(rest) = Run::between(run.start.saturating_add(done), run.end()) {
            let wanted = Mapped { run: rest, owner: owner.advanced(done.into()) };
            let leads = |m: &Mapped| {
                let on = rest.start.checked_sub(m.run.start);
                m.run.end() > rest.start && on.is_some_and(|on| m.owner.advanced(on.into()) == wanted.owner)
            };
            let mut found = tree.at_or_before(Owners::low(&wanted))?.filter(leads);
            if found.is_none() {
                let (from, to) = (MapKey::first(rest.start), MapKey::last(rest.start));
                tree.scan(from, to, &mut |map| {
                    found = Some(map).filter(leads);
                    Ok(if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                })?;
            }
            let Some(found) = found else { break };
            done = found.run.end().min(run.end()).saturating_sub(run.start);
        }
        Ok(Some(done))
    }
}

impl Checker<'_> {
    /// Looks up what was found.
    pub(super) fn owned(&mut self, ground: &Ground, run: Run, holder: Holder) -> Result<()> {
        let ag = ground.ag.0;
        if self.notes.muted || !self.maps.roots.contains_key(&ag) {
            return Ok(());
        }
        let covered = self.maps.covered(ground, run, holder.owner());
        let Some(covered) = self.notes.look(covered)?.flatten() else {
            self.maps.roots.remove(&ag);
            return Ok(());
        };
        let sums = self.maps.sums.entry(ag).or_default();
        sums.found = sums.found.saturating_add(covered.into());
        if let Some(rest) = Run::between(run.start.saturating_add(covered), run.end()) {
            sums.missing = true;
            let (start, last) = (rest.start, rest.last());
            self.notes.corrupt(format!(
                "group {ag}: the rmapbt does not say that blocks {start} to {last} belong to {holder}"
            ))?;
        }
        Ok(())
    }

    /// Compares how much was found with how much the maps have. Where they differ, says what is too much.
    pub(super) fn owners_end(&mut self) -> Result<()> {
        let sums = std::mem::take(&mut self.maps.sums);
        for (ag, sums) in sums {
            let Some(root) = self.maps.roots.get(&ag).copied() else { continue };
            if sums.mapped == sums.found || sums.missing {
                continue;
            }
            self.notes.corrupt(format!(
                "group {ag}: the rmapbt (root at block {}) gives an owner to {} blocks, {} were found to be as it says",
                root.0, sums.mapped, sums.found
            ))?;
        }
        Ok(())
    }
}
