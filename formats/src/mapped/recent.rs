//! The compressed blocks that were unpacked last: filesystem drivers read 4 KiB here and 4 KiB next to it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::Packed;
use crate::block::BlockSize;
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::{index, part};

/// Bytes of unpacked blocks kept per image.
const KEPT_BYTES: u64 = 4 * MIB;
/// Blocks kept at most, so that looking through them stays cheap.
const KEPT_BLOCKS_MAX: u64 = 64;

/// Unpacked blocks, the latest first.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    blocks: Mutex<VecDeque<(Packed, Arc<Vec<u8>>)>>,
}

impl Recent {
    /// Fills `out` with the bytes from `within` on of the block that `unpack` makes out of `packed`.
    pub(crate) fn read(
        &self,
        packed: Packed,
        block: BlockSize,
        within: u64,
        out: &mut [u8],
        unpack: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let size = index(block.bytes())?;
        let kept = self.find(packed)?;
        let whole = match kept {
            Some(whole) => whole,
            // A caller who wants all of it is not likely to come back.
            None if out.len() == size => return unpack(out),
            None => {
                let mut fresh = vec![0; size];
                unpack(&mut fresh)?;
                let fresh = Arc::new(fresh);
                self.keep(packed, Arc::clone(&fresh), block)?;
                fresh
            }
        };
        out.copy_from_slice(part(&whole, index(within)?, out.len(), "unpacked block")?);
        Ok(())
    }

    /// Forgets everything; the places may be used for something else now.
    pub(crate) fn clear(&self) -> Result<()> {
        self.blocks.lock().map_err(|_| Common::Poisoned)?.clear();
        Ok(())
    }

    fn find(&self, packed: Packed) -> Result<Option<Arc<Vec<u8>>>> {
        let mut blocks = self.blocks.lock().map_err(|_| Common::Poisoned)?;
        let Some(at) = blocks.iter().position(|(p, _)| *p == packed) else { return Ok(None) };
        if let Some(hit) = blocks.remove(at) {
            blocks.push_front(hit);
        }
        Ok(blocks.front().map(|(_, whole)| Arc::clone(whole)))
    }

    fn keep(&self, packed: Packed, whole: Arc<Vec<u8>>, block: BlockSize) -> Result<()> {
        let most = (KEPT_BYTES >> block.shift()).clamp(2, KEPT_BLOCKS_MAX);
        let mut blocks = self.blocks.lock().map_err(|_| Common::Poisoned)?;
        blocks.push_front((packed, whole));
        blocks.truncate(index(most)?);
        Ok(())
    }
}
