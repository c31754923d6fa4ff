//! An edit of a disk with all its filesystems: each is opened for writing when something on it changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use racker_formats::error::Result;
use racker_formats::transaction::EditDisk;

use super::Writer;
use crate::inspect::{Inspection, VolumeFault};

/// The writers of one transaction.
#[derive(Debug)]
pub struct Session<'t> {
    inspection: &'t Inspection,
    disk: EditDisk<'t>,
    writers: BTreeMap<usize, Writer<'t>>,
}

impl<'t> Session<'t> {
    /// An edit of `disk`, which is the one that was taken apart.
    pub fn new(inspection: &'t Inspection, disk: EditDisk<'t>) -> Self {
        Self { inspection, disk, writers: BTreeMap::new() }
    }

    /// The writer of a volume (an index of [`Inspection::volumes`]). From then on everybody who reads that volume
    /// sees what the writer does.
    pub fn writer(&mut self, volume: usize) -> Result<&mut Writer<'t>> {
        match self.writers.entry(volume) {
            Entry::Occupied(held) => Ok(held.into_mut()),
            Entry::Vacant(place) => {
                let there = self.inspection.volumes.get(volume).ok_or(VolumeFault::WholeDisk)?;
                Ok(place.insert(there.edit(&self.disk)?))
            }
        }
    }

    /// Closes all writers. One that is left open spoils the transaction.
    pub fn close(self) -> Result<()> {
        self.writers.into_values().try_for_each(Writer::close)
    }
}
