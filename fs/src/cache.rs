//! A small cache of a filesystem's metadata blocks: one slot for all blocks whose numbers leave the same remainder.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex};

use racker_formats::block::BlockSize;
use racker_formats::error::{Common, Result};

/// Bytes of blocks that are kept: inode tables and extent trees of a walk in order, not the whole filesystem.
const CACHE_BYTES: u64 = 4 << 20;
/// Slots for the largest blocks, too.
const SLOTS_MIN: u64 = 64;

type Slot = Mutex<Option<(u64, Arc<[u8]>)>>;

/// Blocks by number.
pub(crate) struct BlockCache {
    slots: Vec<Slot>,
}

impl Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots", self.slots.len())
    }
}

impl BlockCache {
    pub(crate) fn new(block: BlockSize) -> Self {
        let count = (CACHE_BYTES >> block.shift()).max(SLOTS_MIN);
        Self { slots: (0..count).map(|_| Mutex::new(None)).collect() }
    }

    /// Takes a block that was changed.
    pub(crate) fn put(&self, number: u64, block: Arc<[u8]>) -> Result<()> {
        *self.slot(number)?.lock().map_err(|_| Common::Poisoned)? = Some((number, block));
        Ok(())
    }

    fn slot(&self, number: u64) -> Result<&Slot> {
        let count = u64::try_from(self.slots.len()).unwrap_or(SLOTS_MIN);
        let slot = number.checked_rem(count).and_then(|n| usize::try_from(n).ok());
        Ok(slot.and_then(|n| self.slots.get(n)).ok_or(Common::Index(number))?)
    }

    /// The block of that number, from the cache or from `load`, which runs without a lock.
    pub(crate) fn get(&self, number: u64, load: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<[u8]>> {
        let slot = self.slot(number)?;
        if let Some((found, block)) = slot.lock().map_err(|_| Common::Poisoned)?.as_ref()
            && *found == number
        {
            return Ok(Arc::clone(block));
        }
        let block: Arc<[u8]> = load()?.into();
        *slot.lock().map_err(|_| Common::Poisoned)? = Some((number, Arc::clone(&block)));
        Ok(block)
    }
}
