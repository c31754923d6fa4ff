//! Another parent: another locator in the metadata, by one sequence of the log.

use super::bat::Entry;
use super::fault::VhdxFault;
use super::image::{State, Vhdx};
use super::layout::MEGABYTE;
use super::metadata::Metadata;
use super::parent::{LINKAGE, LINKAGE_2, linkage, pairs};
use crate::block::Span;
use crate::error::Result;
use crate::mapped::{self, InPlace};
use crate::opening::Reference;
use crate::registry::{Backing, Image};

impl Vhdx {
    /// Refuses a parent that the disk cannot have.
    pub(super) fn may_have(&self, next: Option<&Backing>) -> Result<()> {
        let state = self.state()?;
        if state.metadata.parent.is_none() {
            return Err(VhdxFault::NoChild.into());
        }
        let Some(next) = next else { return Ok(()) };
        linkage(next.image.as_ref())?;
        let (size, found) = (state.metadata.sector.bytes(), next.image.facts());
        let found = found.specific.get("logical-sector-size").and_then(serde_json::Value::as_u64);
        match found {
            Some(found) if found != size => {
                let expected = "that of the child";
                Err(VhdxFault::Value { what: "the parent's sector size", found, expected }.into())
            }
            _ => Ok(()),
        }
    }

    /// Records which data the same parent has now. The caller holds the gate.
    pub(super) fn follow(&self, parent: &dyn Image) -> Result<()> {
        self.prepare_space()?;
        let state = self.state()?.clone();
        let mut all = state.metadata.parent.clone().ok_or(VhdxFault::NoChild)?;
        all.insert(LINKAGE.into(), linkage(parent)?);
        all.remove(LINKAGE_2);
        self.land_locator(&state, Some(all))
    }

    /// Names another parent, or none. The caller holds the gate.
    pub(super) fn turn_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        self.may_have(opened)?;
        self.prepare_space()?;
        let state = self.state()?.clone();
        let Some(parent) = parent else {
            self.hold_everything(&state)?;
            return self.land_locator(&state, None);
        };
        let all = match opened {
            Some(backing) => pairs(backing.image.as_ref(), &parent.path)?,
            None => {
                // The same parent by another name.
                let old = state.metadata.parent.clone().ok_or(VhdxFault::NoChild)?;
                let kept = old.into_iter().filter(|(key, _)| [LINKAGE, LINKAGE_2].contains(&key.as_str()));
                let path = super::parent::relative(&parent.path);
                kept.chain([path]).collect()
            }
        };
        self.land_locator(&state, Some(all))
    }

    /// Covers what is not there with zeroes, and gives up the sector bitmaps: a disk without a parent has none.
    fn hold_everything(&self, state: &State) -> Result<()> {
        let mut rest = Span::first(state.metadata.size);
        while !rest.is_empty() {
            let mapping = mapped::BlockMap::lookup(self, rest)?;
            let here = rest.truncate(mapping.len.max(1));
            if mapping.place == mapped::Place::Absent {
                mapped::write_zeroes(self, here)?;
                self.limit_waiting()?;
            }
            rest = rest.skip(here.len());
        }
        self.sync()?;
        for chunk in 0..state.geometry.chunks() {
            let number = state.geometry.bitmap_entry_of(chunk);
            if number < state.geometry.entries()
                && let Some(host) = self.bitmap(state, chunk)?
            {
                self.set_raw_entry(state, number, Entry::Absent.raw())?;
                self.give_up(host, MEGABYTE.bytes())?;
            }
        }
        Ok(())
    }

    /// Lands the locator, with what waits.
    fn land_locator(
        &self,
        state: &State,
        pairs: Option<std::collections::BTreeMap<String, String>>,
    ) -> Result<()> {
        let region = state.regions.metadata;
        for (at, page) in Metadata::pages_with_parent(&self.file, region, pairs.as_ref())? {
            self.sheets.put(at, page)?;
        }
        self.sync()?;
        let mut new = state.clone();
        new.metadata = Metadata::read(&self.file, region)?;
        self.turn_to(new)?;
        self.use_freed_alone()
    }
}
