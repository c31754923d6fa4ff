//! Pieces of tables in memory, and the changes to them that wait for a flush.
//!
//! A driver changes its tables here. [`land`](Sheets::land) brings what has changed to the file, behind the data
//! that the tables name: after a power cut no table names bytes that were never written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use super::Slices;
use crate::block::{Disk, Span};
use crate::error::{Common, Result};
use crate::wire::{bytes, len64};

/// The largest piece of a table that is kept as one.
pub(crate) const SHEET_BYTES_MAX: u64 = 1 << 20;

/// A piece that changed: its place in the file, and what shall be there.
pub(crate) type Changed = (u64, Arc<Vec<u8>>);

/// Pieces of tables by their place in the file. The same place must always be asked for with the same length.
#[derive(Debug)]
pub(crate) struct Sheets {
    file: Disk,
    /// As they are on disk.
    clean: Slices<Vec<u8>>,
    changes: RwLock<Changes>,
    /// One landing after the other.
    landing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Changes {
    waiting: BTreeMap<u64, Arc<Vec<u8>>>,
    /// On the way to the file.
    landing: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Changes {
    fn get(&self, at: u64) -> Option<&Arc<Vec<u8>>> {
        self.waiting.get(&at).or_else(|| self.landing.get(&at))
    }
}

impl Sheets {
    /// Tables of `file`; `count` unchanged pieces are kept at most.
    pub(crate) fn new(file: Disk, count: usize) -> Self {
        let (changes, landing) = (RwLock::default(), Mutex::default());
        Self { file, clean: Slices::new(count), changes, landing }
    }

    /// The piece at `sheet`.
    pub(crate) fn get(&self, sheet: Span) -> Result<Arc<Vec<u8>>> {
        // Held while a piece is read, so that what is read cannot be older than what lands meanwhile.
        let changes = self.changes.read().map_err(|_| Common::Poisoned)?;
        match changes.get(sheet.start()) {
            Some(hit) => Ok(Arc::clone(hit)),
            None => self.load(sheet),
        }
    }

    /// Changes the piece at `sheet`.
    pub(crate) fn change(&self, sheet: Span, edit: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let mut changes = self.changes.write().map_err(|_| Common::Poisoned)?;
        let mut now = match changes.waiting.remove(&sheet.start()) {
            Some(waiting) => waiting,
            None => match changes.landing.get(&sheet.start()) {
                Some(landing) => Arc::clone(landing),
                None => self.load(sheet)?,
            },
        };
        let piece: &mut Vec<u8> = Arc::make_mut(&mut now);
        let edited = edit(piece);
        changes.waiting.insert(sheet.start(), now);
        edited
    }

    /// Puts a whole piece in place of what is at `at`.
    pub(crate) fn put(&self, at: u64, piece: Vec<u8>) -> Result<()> {
        let mut changes = self.changes.write().map_err(|_| Common::Poisoned)?;
        changes.waiting.insert(at, Arc::new(piece));
        Ok(())
    }

    /// How many pieces wait.
    pub(crate) fn waiting(&self) -> Result<usize> {
        Ok(self.changes.read().map_err(|_| Common::Poisoned)?.waiting.len())
    }

    /// Forgets all pieces; nothing may be waiting that is still wanted.
    pub(crate) fn clear(&self) -> Result<()> {
        let mut changes = self.changes.write().map_err(|_| Common::Poisoned)?;
        *changes = Changes::default();
        self.clean.clear()
    }

    /// Brings data and changed tables to stable storage: `write` is given the pieces in order of their place. It
    /// flushes before it writes them, and returns when they are on stable storage. It is not called if nothing
    /// changed.
    pub(crate) fn land(&self, write: impl FnOnce(&[Changed]) -> Result<()>) -> Result<()> {
        let _one = self.landing.lock().map_err(|_| Common::Poisoned)?;
        let pieces: Vec<Changed> = {
            let mut changes = self.changes.write().map_err(|_| Common::Poisoned)?;
            changes.landing = std::mem::take(&mut changes.waiting);
            changes.landing.iter().map(|(at, piece)| (*at, Arc::clone(piece))).collect()
        };
        // What these tables name was written before they were changed, so a flush from now on covers it.
        let written = if pieces.is_empty() { self.file.flush() } else { write(&pieces) };
        let mut changes = self.changes.write().map_err(|_| Common::Poisoned)?;
        let landed = std::mem::take(&mut changes.landing);
        for (at, piece) in landed {
            if written.is_ok() {
                self.clean.put(at, piece)?;
            } else {
                changes.waiting.entry(at).or_insert(piece);
            }
        }
        written
    }

    /// Writes pieces to their places, behind the data: what [`land`](Self::land) does where the format has no log.
    pub(crate) fn write_home(&self, pieces: &[Changed]) -> Result<()> {
        self.file.flush()?;
        for (at, piece) in pieces {
            self.file.write_at(*at, piece)?;
        }
        self.file.flush()
    }

    fn load(&self, sheet: Span) -> Result<Arc<Vec<u8>>> {
        self.clean.get(sheet.start(), || {
            let piece = bytes(&self.file, sheet.start(), sheet.len(), SHEET_BYTES_MAX, "piece of a table")?;
            debug_assert_eq!(len64(piece.len()), sheet.len());
            Ok(Arc::new(piece))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    fn sheet() -> Span {
        Span::new(512, 512).unwrap()
    }

    #[test]
    fn changes_are_seen_at_once_and_written_when_they_land() {
        let file = Disk::new(MemDevice::new(4096));
        let sheets = Sheets::new(file.clone(), 4);
        assert_eq!(sheets.get(sheet()).unwrap()[0], 0);
        sheets
            .change(sheet(), |b| {
                b[0] = 7;
                Ok(())
            })
            .unwrap();
        assert_eq!(sheets.get(sheet()).unwrap()[0], 7);
        let mut byte = [0];
        file.read_at(512, &mut byte).unwrap();
        assert_eq!((byte, sheets.waiting().unwrap()), ([0], 1));
        let failed = sheets.land(|_| Err(Common::ReadOnly.into()));
        assert!(failed.is_err());
        assert_eq!((sheets.get(sheet()).unwrap()[0], sheets.waiting().unwrap()), (7, 1));
        sheets.land(|pieces| sheets.write_home(pieces)).unwrap();
        file.read_at(512, &mut byte).unwrap();
        assert_eq!((byte, sheets.waiting().unwrap()), ([7], 0));
        assert_eq!(sheets.get(sheet()).unwrap()[0], 7);
    }
}
