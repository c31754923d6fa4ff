//! A whole L2 table in memory.

use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::entry::{Entry, EntryRules, RawEntry};
use crate::block::Disk;
use crate::error::{Common, Result};
use crate::mapped::HostOffset;
use crate::wire::{index, len64, table};

/// A whole L2 table in memory.
#[derive(Debug)]
pub(super) struct L2 {
    words: Vec<U64>,
    rules: EntryRules,
}

impl L2 {
    /// Reads the table at `at`, or makes an empty one.
    pub(super) fn read(file: &Disk, rules: EntryRules, at: Option<HostOffset>) -> Result<Self> {
        let cluster = rules.geometry.cluster.bytes();
        let words = match at {
            Some(HostOffset(at)) => table(file, at, cluster / 8, cluster, "L2 table")?,
            None => vec![U64::new(0); index(cluster / 8)?],
        };
        Ok(Self { words, rules })
    }

    /// Whether it maps nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| word.get() == 0)
    }

    /// What it says about cluster `slot`.
    pub(super) fn get(&self, slot: usize) -> Result<Entry> {
        self.rules.decode(self.raw(slot))
    }

    /// The entry of cluster `slot` as it lies on disk.
    pub(super) fn raw(&self, slot: usize) -> RawEntry {
        let (word, bitmap) = self.place(slot);
        let at = |n: usize| self.words.get(n).map_or(0, |w| w.get());
        RawEntry { word: at(word), bitmap: bitmap.map_or(0, at) }
    }

    /// Sets the entry of cluster `slot`.
    pub(super) fn set(&mut self, slot: usize, raw: RawEntry) -> Result<()> {
        let (word, bitmap) = self.place(slot);
        let short = || Common::Index(len64(slot));
        *self.words.get_mut(word).ok_or_else(short)? = raw.word.into();
        if let Some(bitmap) = bitmap {
            *self.words.get_mut(bitmap).ok_or_else(short)? = raw.bitmap.into();
        }
        Ok(())
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        if self.rules.geometry.extended() { self.words.len() / 2 } else { self.words.len() }
    }

    /// The table as it lies on disk.
    pub(super) fn bytes(&self) -> &[u8] {
        self.words.as_bytes()
    }

    fn place(&self, slot: usize) -> (usize, Option<usize>) {
        if self.rules.geometry.extended() {
            let at = slot.saturating_mul(2);
            (at, Some(at.saturating_add(1)))
        } else {
            (slot, None)
        }
    }
}
