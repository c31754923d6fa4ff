//! How an edit reaches the image: what it prepared becomes the disk by one write of the header's sector.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::alloc::Allocator;
use super::bitmap::give_up;
use super::edit::Edit;
use super::fault::Fault;
use super::header::{Header, Incompatible};
use super::image::Qcow2;
use super::owners::Owners;
use super::refcount::Refcounts;
use crate::block::Disk;
use crate::error::{Common, Error, Result, Within};

impl Qcow2 {
    /// Lands what `stage` prepares, or nothing of it. The bytes come from `source`. The caller keeps writers away.
    pub(super) fn land(&self, source: &Disk, stage: impl FnOnce(&mut Edit<'_>) -> Result<()>) -> Result<()> {
        self.prepare()?;
        self.land_ready(source, stage)
    }

    /// The same for an image that was made ready.
    pub(super) fn land_ready(
        &self,
        source: &Disk,
        stage: impl FnOnce(&mut Edit<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let (header, l1) = self.header_and_l1()?;
        // An error leaves it out of the slot: the next edit reads the counts anew.
        let mut alloc = match slot.take() {
            Some(alloc) => alloc,
            None => self.open_allocator()?,
        };
        let mut edit = Edit::new(self, source, &mut alloc, header.clone(), l1);
        let sealed = stage(&mut edit).and_then(|()| edit.seal());
        let (new, l1, freed) = (edit.header, edit.l1, edit.freed);
        match sealed {
            Ok(true) => {}
            Ok(false) => {
                // What was taken and not used is given back with the counts in memory.
                if alloc.uncommitted().0.is_empty() {
                    *slot = Some(alloc);
                }
                return Ok(());
            }
            Err(e) => {
                self.roll_back(&header, &alloc);
                return Err(e);
            }
        }
        self.turn_header(&new).map_err(Error::undecided)?;
        self.turn_to(new, l1)?;
        alloc.committed();
        // The edit is done. What fails from here on leaves clusters that are counted and not used, nothing worse.
        let given_back = alloc.release(&freed).and_then(|()| alloc.refcounts.store());
        self.protect(&alloc)?;
        match given_back.and_then(|()| self.file.flush()) {
            Ok(()) => {
                // Their counts are on stable storage, and nobody can be handed them meanwhile.
                if let Err(e) = self.dig_free(&mut alloc, freed) {
                    tracing::warn!("space that an edit left free could not be given back to the host: {e}");
                }
                *slot = Some(alloc);
            }
            Err(e) => tracing::warn!("clusters that an edit replaced could not be given back: {e}"),
        }
        Ok(())
    }

    /// Makes the image ready for its disk to be written to: its counts are right, and nothing in it claims to know
    /// what is written.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.ready()?;
        // Whoever comes second finds nothing to do.
        let _slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let (_, bitmaps) = self.lists()?;
        if let Some(new) = give_up(&self.file, &bitmaps)? {
            self.state_mut()?.bitmaps = Arc::new(new);
        }
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the image ready for changes that the disk does not show: its counts are right.
    pub(super) fn ready(&self) -> Result<()> {
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        let (mut header, _) = self.header_and_l1()?;
        writable(&header)?;
        if header.incompatible.contains(Incompatible::DIRTY) {
            // Its writer meant to write the counts later, and did not come to it.
            *slot = None;
            self.renew_counts().within(|| "image that was not closed cleanly")?;
            (header, _) = self.header_and_l1()?;
        }
        // What other features promise about the content does not hold any more.
        if header.autoclear != header.kept_promises() {
            header.autoclear = header.kept_promises();
            self.turn_header(&header)?;
            self.state_mut()?.header = header;
        }
        if slot.is_none() {
            // Where the image's own structures lie has to be known before anything is written in place.
            *slot = Some(self.open_allocator()?);
        }
        Ok(())
    }

    /// Writes the header's first sector: the commit.
    pub(super) fn turn_header(&self, header: &Header) -> Result<()> {
        let sector = header.to_sector()?;
        self.file.write_at(0, &sector).within(|| "header")?;
        self.file.flush()
    }

    /// Runs `with` on the allocator, which is opened if it is not.
    pub(super) fn with_allocator<T>(&self, with: impl FnOnce(&mut Allocator) -> Result<T>) -> Result<T> {
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let alloc = match &mut *slot {
            Some(alloc) => alloc,
            None => slot.insert(self.open_allocator()?),
        };
        with(alloc)
    }

    /// Reads the counts.
    pub(super) fn open_allocator(&self) -> Result<Allocator> {
        let cluster = self.rules.geometry.cluster;
        let refcounts = Refcounts::read(&self.file, &self.state()?.header).within(|| "refcount table")?;
        let alloc = Allocator::new(&self.file, cluster, refcounts, Arc::clone(&self.owners));
        self.protect(&alloc)?;
        Ok(alloc)
    }

    /// Notes where the image's own structures lie now.
    fn protect(&self, alloc: &Allocator) -> Result<()> {
        let state = self.state()?;
        let owners = Owners::new(&state.header, &state.tables.l1, &state.snapshots, &alloc.refcounts);
        *self.owners.write().map_err(|_| Common::Poisoned)? = owners;
        Ok(())
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
pub(super) fn writable(header: &Header) -> Result<()> {
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Fault::MarkedCorrupt.into());
    }
    Ok(())
}
