//! Another size, as an edit: new tables, and one sector of the header turns to them.

use std::collections::BTreeSet;

use super::edit::Edit;
use super::fault::Fault;
use super::header::{Header, L1_BYTES_MAX};
use super::image::Qcow2;
use super::l2::L2;
use crate::block::{Change, Span, with_zeroes};
use crate::error::{Common, Result, Within};
use crate::wire::{index, len64};

/// What a virtual size is a multiple of: QEMU cuts off the rest.
pub(super) const SIZE_UNIT: u64 = 512;

impl Qcow2 {
    /// Makes the disk `size` bytes long, rounded up to a sector. The caller keeps writers away.
    pub(super) fn change_size(&self, size: u64) -> Result<()> {
        let size = size.checked_next_multiple_of(SIZE_UNIT).ok_or(Fault::TooLarge(size))?;
        let old = self.state()?.tables.size;
        self.may_resize(size)?;
        if let Some(data) = self.data_file.as_ref().filter(|_| size > old) {
            // Old bytes behind the end must not come to light.
            let end = data.size().min(size);
            data.write_zeroes(Span::new(old.min(end), end.saturating_sub(old))?)?;
            if data.size() < size {
                data.resize(size)?;
            }
            data.flush()?;
        }
        self.land(&self.file, |edit| edit.resize(size).and_then(|()| edit.stage(&[])))?;
        match &self.data_file {
            Some(data) if size < old => data.resize(size),
            _ => Ok(()),
        }
    }

    /// Refuses sizes that the image cannot have.
    fn may_resize(&self, size: u64) -> Result<()> {
        let state = self.state()?;
        let header: &Header = &state.header;
        if size == header.size {
            return Ok(());
        }
        if header.geometry.l1_entries(size) > L1_BYTES_MAX / 8 {
            return Err(Fault::TooLarge(size).into());
        }
        let sized = |s: &super::snapshot::Snapshot| s.has_size && header.version > 2;
        if let Some(snapshot) = state.snapshots.list.iter().find(|s| !sized(s)) {
            return Err(Fault::ResizeSnapshot(snapshot.name.clone()).into());
        }
        if let Some(bitmap) = state.bitmaps.iter().find(|b| b.is_consistent()) {
            return Err(Fault::ResizeBitmap(bitmap.name.clone()).into());
        }
        let parent = self.parent.as_ref().map_or(0, |p| p.size());
        if self.rules.data_file && size > header.size && parent > header.size {
            return Err(Fault::ResizeOverParent { parent, size: header.size }.into());
        }
        Ok(())
    }
}

impl Edit<'_> {
    /// The disk shall have `size` bytes; what [`stage`](Self::stage) is given next belongs to that size.
    pub(super) fn resize(&mut self, size: u64) -> Result<()> {
        let size = size.checked_next_multiple_of(SIZE_UNIT).ok_or(Fault::TooLarge(size))?;
        if size == self.old_size {
            return Ok(());
        }
        self.image.may_resize(size)?;
        let entries = index(self.header.geometry.l1_entries(size))?;
        self.header.size = size;
        // What a virtual machine kept behind the old end must not become part of the disk.
        let kept = index(self.header.geometry.l1_entries(self.old_size))?.min(entries);
        for number in kept..self.l1.len() {
            self.drop_table(len64(number)).within(|| format!("L2 table {number}"))?;
        }
        self.l1.truncate(kept);
        self.l1.resize(entries.max(1), 0);
        Ok(())
    }

    /// Gives back an L2 table and all that it names.
    fn drop_table(&mut self, number: u64) -> Result<()> {
        let Some(at) = self.image.l2_at(number)? else { return Ok(()) };
        let mut l2 = L2::read(&self.image.file, self.image.rules, Some(at))?;
        self.drop_entries(&mut l2, 0)?;
        self.free(at.0, 1);
        Ok(())
    }

    /// Drops the entries from `first` on; says whether there were any.
    fn drop_entries(&mut self, l2: &mut L2, first: usize) -> Result<bool> {
        let mut changed = false;
        for slot in first..l2.len() {
            if l2.raw(slot) == Default::default() {
                continue;
            }
            let entry = l2.get(slot)?;
            self.free_entry(&entry);
            l2.set(slot, Default::default())?;
            changed = true;
        }
        Ok(changed)
    }

    /// Drops what lies behind the end of the disk in L2 table `number`; says whether there was anything.
    pub(super) fn cut_table(&mut self, number: u64, l2: &mut L2) -> Result<bool> {
        let geometry = self.header.geometry;
        let start = geometry.l2_reach.start_of(number).ok_or(Common::Index(number))?;
        let keep = geometry.cluster.count(self.header.size.saturating_sub(start));
        if self.header.size >= self.old_size || keep >= len64(l2.len()) {
            return Ok(false);
        }
        self.drop_entries(l2, index(keep)?)
    }

    /// The table that the disk ends in, if something behind its new end has to go from it.
    pub(super) fn last_table(&self, touched: &BTreeSet<u64>) -> Option<u64> {
        let (number, within) = self.header.geometry.l2_reach.split(self.header.size);
        let cut = self.header.size < self.old_size && within != 0;
        (cut && !touched.contains(&number)).then_some(number)
    }

    /// Adds to `changes` the zeroes that a larger disk begins with behind its old end: the rest of the last cluster
    /// may hold anything, and the backing file may be longer.
    pub(super) fn with_growth(&self, changes: &[Change]) -> Result<Vec<Change>> {
        let (old, size) = (self.old_size, self.header.size);
        if size <= old || self.image.rules.data_file {
            return Ok(changes.to_vec());
        }
        let last = self.header.geometry.cluster.ceil(old).unwrap_or(u64::MAX);
        let parent = self.image.parent.as_ref().map_or(0, |p| p.size());
        let end = last.max(parent).min(size);
        Ok(with_zeroes(changes.to_vec(), Span::new(old, end.saturating_sub(old))?))
    }
}
