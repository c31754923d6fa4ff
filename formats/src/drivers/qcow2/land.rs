//! How an edit reaches the image: what it prepared becomes the disk by one write of the header's sector.

use super::alloc::Allocator;
use super::edit::Edit;
use super::fault::Fault;
use super::header::{Header, Incompatible};
use super::image::Qcow2;
use super::owners::Owners;
use super::refcount::Refcounts;
use crate::block::Disk;
use crate::error::{Common, Result, Within};

impl Qcow2 {
    /// Lands what `stage` prepares, or nothing of it. The bytes come from `source`.
    pub(super) fn land(&self, source: &Disk, stage: impl FnOnce(&mut Edit<'_>) -> Result<()>) -> Result<()> {
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let (mut header, mut l1) = self.header_and_l1()?;
        writable(&header)?;
        if header.incompatible.contains(Incompatible::DIRTY) {
            // Its writer meant to write the counts later, and did not come to it.
            *slot = None;
            self.renew_counts().within(|| "image that was not closed cleanly")?;
            (header, l1) = self.header_and_l1()?;
        }
        // An error leaves it out of the slot: the next edit reads the counts anew.
        let mut alloc = match slot.take() {
            Some(mut alloc) => {
                let owners = Owners::new(&header, &l1, &self.snapshots, &alloc.refcounts);
                alloc.protect(owners);
                alloc
            }
            None => self.open_allocator(&header, &l1)?,
        };
        let mut edit = Edit::new(self, source, &mut alloc, header.clone(), l1);
        let sealed = stage(&mut edit).and_then(|()| edit.seal());
        let (mut new, l1, freed) = (edit.header, edit.l1, edit.freed);
        match sealed {
            Ok(true) => {}
            Ok(false) => {
                *slot = Some(alloc);
                return Ok(());
            }
            Err(e) => {
                self.roll_back(&header, &alloc);
                return Err(e);
            }
        }
        new.autoclear = 0;
        self.turn_header(&new)?;
        self.turn_to(new, l1)?;
        alloc.committed();
        // The edit is done. What fails from here on leaves clusters that are counted and not used, nothing worse.
        let given_back = alloc.release(&freed).and_then(|()| alloc.refcounts.store());
        match given_back.and_then(|()| self.file.flush()) {
            Ok(()) => *slot = Some(alloc),
            Err(e) => tracing::warn!("clusters that an edit replaced could not be given back: {e}"),
        }
        Ok(())
    }

    /// Writes the header's first sector: the commit.
    pub(super) fn turn_header(&self, header: &Header) -> Result<()> {
        let sector = header.to_sector()?;
        self.file.write_at(0, &sector).within(|| "header")?;
        self.file.flush()
    }

    fn open_allocator(&self, header: &Header, l1: &[u64]) -> Result<Allocator> {
        let refcounts = Refcounts::read(&self.file, header).within(|| "refcount table")?;
        let owners = Owners::new(header, l1, &self.snapshots, &refcounts);
        Ok(Allocator::new(&self.file, header.geometry.cluster, refcounts, owners))
    }

    /// Takes back what an edit that does not land left in the file; that it can't is no reason to say anything else
    /// than why the edit failed.
    fn roll_back(&self, header: &Header, alloc: &Allocator) {
        let (taken, file_size) = alloc.uncommitted();
        let lowered = if alloc.refcounts.stored() { self.set_free(header, taken) } else { Ok(()) };
        let cut = match lowered {
            Ok(()) if file_size < self.file.size() => self.file.resize(file_size),
            other => other,
        };
        if let Err(e) = cut {
            tracing::warn!("clusters of an edit that failed stay behind: {e}");
        }
    }

    fn set_free(&self, header: &Header, taken: &[super::refcount::Clusters]) -> Result<()> {
        let mut counts = Refcounts::read(&self.file, header)?;
        for cluster in taken.iter().flat_map(|run| run.numbers()) {
            if counts.get(cluster)? != 0 {
                counts.set(cluster, 0)?;
            }
        }
        counts.store()
    }
}

/// Whether an image may be written to at all.
fn writable(header: &Header) -> Result<()> {
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Fault::MarkedCorrupt.into());
    }
    if let Some(file) = &header.data_file {
        return Err(Fault::DataFileWrite(file.path.clone()).into());
    }
    Ok(())
}
