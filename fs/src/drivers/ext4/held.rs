//! Blocks of metadata that a writer has changed and not yet written back. A reader holds none.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use racker_formats::error::{Common, Result};

/// Changed blocks by number.
#[derive(Default)]
pub(super) struct Held {
    blocks: Mutex<HashMap<u64, Arc<[u8]>>>,
    /// Saves readers the lock.
    any: AtomicBool,
}

impl Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.len().unwrap_or(0))
    }
}

impl Held {
    fn lock(&self) -> Result<MutexGuard<'_, HashMap<u64, Arc<[u8]>>>> {
        self.blocks.lock().map_err(|_| Common::Poisoned.into())
    }

    /// A block, if it is held.
    pub(super) fn get(&self, number: u64) -> Result<Option<Arc<[u8]>>> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        Ok(self.lock()?.get(&number).cloned())
    }

    /// Takes a block out, to change it.
    pub(super) fn take(&self, number: u64) -> Result<Option<Arc<[u8]>>> {
        Ok(self.lock()?.remove(&number))
    }

    /// Holds a block from now on.
    pub(super) fn put(&self, number: u64, block: Arc<[u8]>) -> Result<()> {
        self.any.store(true, Ordering::Release);
        self.lock()?.insert(number, block);
        Ok(())
    }

    /// How many blocks are held.
    pub(super) fn len(&self) -> Result<usize> {
        Ok(self.lock()?.len())
    }

    /// The numbers of those that are held among `len` from `start`, in order.
    pub(super) fn among(&self, start: u64, len: u64) -> Result<Vec<u64>> {
        let held = self.lock()?;
        let end = start.saturating_add(len);
        if len < u64::try_from(held.len()).unwrap_or(u64::MAX) {
            return Ok((start..end).filter(|n| held.contains_key(n)).collect());
        }
        let mut found: Vec<u64> = held.keys().copied().filter(|n| (start..end).contains(n)).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// All blocks, in order of their numbers; none is held any more.
    pub(super) fn drain(&self) -> Result<Vec<(u64, Arc<[u8]>)>> {
        let mut all: Vec<_> = self.lock()?.drain().collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        Ok(all)
    }
}
