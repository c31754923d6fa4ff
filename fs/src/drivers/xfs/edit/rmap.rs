//! The reverse map of a group: who owns each block. Blocks of files that share them have several owners.

use std::ops::ControlFlow;

use racker_formats::error::Result;

use super::super::fault::Fault;
use super::btree::Shape;
use super::owner::Owner;
use super::records::{MapKey, Mapped, Owners, Run};
use super::space::Space;

impl Space {
    /// Records that `owner` has `run`, merged with its records on both sides.
    pub(super) fn map(&mut self, run: Run, owner: Owner) -> Result<()> {
        let before = match run.start.checked_sub(1) {
            Some(block) => self.owner_of(block, |m| m.run.last() == block && leads(m, run.start, owner))?,
            None => None,
        };
        let Some((owners, mut pool)) = self.owners() else { return Ok(()) };
        let behind = Mapped { run: Run { start: run.end(), len: 1 }, owner: owner.advanced(run.len.into()) };
        let behind = owners.at(Owners::low(&behind))?.filter(|m| m.owner == behind.owner);
        if let Some(behind) = behind {
            owners.remove(&behind, &mut pool)?;
        }
        let len = run.len.saturating_add(behind.map_or(0, |m| m.run.len));
        match before {
            Some(before) => {
                let len = len.saturating_add(before.run.len);
                let run = Run { start: before.run.start, len };
                owners.replace(&before, Mapped { run, owner: before.owner })
            }
            None => owners.insert(Mapped { run: Run { start: run.start, len }, owner }, &mut pool),
        }
    }

    /// Records that `owner` does not have `run` any more; it must have all of it.
    pub(super) fn unmap(&mut self, run: Run, owner: Owner) -> Result<()> {
        if !self.has_owners() {
            return Ok(());
        }
        let mut done = 0;
        while let Some(rest) = Run::between(run.start.saturating_add(done), run.end()) {
            let owner = owner.advanced(done.into());
            let found = self.record_of(rest.start, owner)?;
            let part =
                Run { start: rest.start, len: rest.len.min(found.run.end().saturating_sub(rest.start)) };
            self.cut(&found, part)?;
            done = done.saturating_add(part.len);
        }
        Ok(())
    }

    /// Checks that nobody owns a block of `run`, which was free.
    pub(super) fn check_unowned(&mut self, run: Run) -> Result<()> {
        let Some((owners, _)) = self.owners() else { return Ok(()) };
        owners.scan(MapKey::first(run.start), MapKey::last(run.last()), &mut |_| {
            Err(Fault::Structure { what: Owners::NAME, why: "a free block has an owner" }.into())
        })
    }

    /// Checks that `run` is not free and, where owners are recorded, that it is all of `owner`.
    pub(super) fn confirm(&mut self, run: Run, owner: Owner) -> Result<()> {
        self.ground.check(run.start, run.len)?;
        self.check_taken(run)?;
        if self.free_within(run)? {
            let why = "blocks of a file are free";
            return Err(Fault::Structure { what: "free space", why }.into());
        }
        if !self.has_owners() {
            return Ok(());
        }
        let mut done = 0;
        while let Some(rest) = Run::between(run.start.saturating_add(done), run.end()) {
            let found = self.record_of(rest.start, owner.advanced(done.into()))?;
            done = found.run.end().saturating_sub(run.start);
        }
        Ok(())
    }

    /// Takes away the only owner of `run`, if it has one.
    pub(super) fn unmap_anybodys(&mut self, run: Run) -> Result<()> {
        let mut found = Vec::new();
        let Some((owners, _)) = self.owners() else { return Ok(()) };
        owners.scan(MapKey::first(run.start), MapKey::last(run.last()), &mut |map| {
            found.push(map);
            Ok(if found.len() > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        match found.as_slice() {
            [] => Ok(()),
            [only] if only.run.intersect(run) == Some(run) => self.cut(only, run),
            _ => {
                Err(Fault::Structure { what: Owners::NAME, why: "blocks to be freed have several owners" }
                    .into())
            }
        }
    }

    /// The record that says that `owner` has `block`.
    fn record_of(&mut self, block: u32, owner: Owner) -> Result<Mapped> {
        let wanted = Mapped { run: Run { start: block, len: 1 }, owner };
        if let Some((owners, _)) = self.owners() {
            // Without sharing it is the only candidate.
            let near = owners.at_or_before(Owners::low(&wanted))?;
            if let Some(near) = near.filter(|m| m.run.end() > block && leads(m, block, owner)) {
                return Ok(near);
            }
        }
        let found = self.owner_of(block, |m| leads(m, block, owner))?;
        let why = "blocks do not belong to the file that has them";
        found.ok_or_else(|| Fault::Structure { what: Owners::NAME, why }.into())
    }

    /// The first record of `block` that passes.
    fn owner_of(&mut self, block: u32, passes: impl Fn(&Mapped) -> bool) -> Result<Option<Mapped>> {
        let mut found = None;
        let Some((owners, _)) = self.owners() else { return Ok(None) };
        owners.scan(MapKey::first(block), MapKey::last(block), &mut |map| {
            if passes(&map) {
                found = Some(map);
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Takes `part` out of a record.
    fn cut(&mut self, whole: &Mapped, part: Run) -> Result<()> {
        let Some((owners, mut pool)) = self.owners() else { return Ok(()) };
        let run = whole.run;
        let head = Run::between(run.start, part.start).map(|run| Mapped { run, owner: whole.owner });
        let tail = Run::between(part.end(), run.end()).map(|tail| Mapped {
            run: tail,
            owner: whole.owner.advanced(tail.start.saturating_sub(run.start).into()),
        });
        match head {
            Some(head) => owners.replace(whole, head)?,
            None => owners.remove(whole, &mut pool)?,
        }
        match tail {
            Some(tail) => owners.insert(tail, &mut pool),
            None => Ok(()),
        }
    }
}

/// Whether `map`, followed on to `block`, says that `owner` is there.
fn leads(map: &Mapped, block: u32, owner: Owner) -> bool {
    block.checked_sub(map.run.start).is_some_and(|on| map.owner.advanced(on.into()) == owner)
}
