//! Entries of a directory and what leaves have of them: the same hashes and addresses, each once, whatever their
//! number. Neither list is held: a directory may have a billion entries.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use racker_formats::error::Result;

use super::super::da::DaFork;
use super::super::fault::Fault;
use super::super::volume::Volume;

/// Names of one hash that are compared with each other.
const ALIKE_MAX: usize = 1 << 16;
/// Units in which leaves count the places of entries.
const PLACE_SHIFT: u32 = 3;

/// Hashes with addresses, in no order: how many there are, and the sum of their digests under a key that nobody
/// knows who makes images. Two lists of other pairs have the same sum once in 2^64 times.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    key: RandomState,
    count: u64,
    sum: u64,
}

impl Pairs {
    /// An entry whose name has this hash, at this address.
    pub(super) fn add(&mut self, pair: (u32, u32)) {
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.wrapping_add(self.key.hash_one(pair));
    }

    /// Compares them with what leaves have, which comes in order. No two of them name one name.
    pub(super) fn leaves<'p>(&'p self, volume: &'p Volume, fork: &'p DaFork<'p>) -> Leaves<'p> {
        let seen = Self { key: self.key.clone(), ..Self::default() };
        Leaves { volume, fork, entries: self, seen, hash: 0, alike: Vec::new() }
    }
}

/// Leaves on their way.
pub(super) struct Leaves<'p> {
    volume: &'p Volume,
    fork: &'p DaFork<'p>,
    entries: &'p Pairs,
    seen: Pairs,
    /// The hash of the last pair, and the addresses of all that have it.
    hash: u32,
    alike: Vec<u32>,
}

fn damaged<T>(what: &'static str, why: &'static str) -> Result<T> {
    Err(Fault::Structure { what, why }.into())
}

impl Leaves<'_> {
    /// The next pair.
    pub(super) fn add(&mut self, pair: (u32, u32)) -> Result<()> {
        if pair.0 < self.hash {
            return damaged("directory leaf", "hashes are out of order");
        }
        if pair.0 > self.hash {
            self.compare_names()?;
            self.hash = pair.0;
        }
        if self.alike.len() < ALIKE_MAX {
            self.alike.push(pair.1);
        }
        self.seen.add(pair);
        Ok(())
    }

    /// Compares the names that have one hash.
    fn compare_names(&mut self) -> Result<()> {
        let mut alike = std::mem::take(&mut self.alike);
        if alike.len() < 2 {
            return Ok(());
        }
        alike.sort_unstable();
        let (mut names, mut block) = (BTreeSet::new(), None);
        for address in alike {
            let at = u64::from(address) << PLACE_SHIFT;
            if !names.insert(self.volume.entry_of(self.fork, at, &mut block)?.name) {
                return damaged("directory", "two entries have the same name");
            }
        }
        Ok(())
    }

    /// There are no more.
    pub(super) fn end(mut self) -> Result<()> {
        self.compare_names()?;
        if (self.seen.count, self.seen.sum) == (self.entries.count, self.entries.sum) {
            Ok(())
        } else {
            damaged("directory", "leaves and entries are not the same")
        }
    }
}
