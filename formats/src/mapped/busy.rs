//! Blocks that somebody is finding a place for: a second writer waits for the first.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex};

use crate::error::{Common, Result};

/// The blocks at work.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    blocks: Mutex<BTreeSet<u64>>,
    done: Condvar,
}

/// A block that this thread alone works on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    busy: &'a Busy,
    block: u64,
}

impl Busy {
    /// Waits until nobody else works on `block`, and keeps others away from it.
    pub(crate) fn claim(&self, block: u64) -> Result<Claim<'_>> {
        let mut blocks = self.blocks.lock().map_err(|_| Common::Poisoned)?;
        while !blocks.insert(block) {
            blocks = self.done.wait(blocks).map_err(|_| Common::Poisoned)?;
        }
        Ok(Claim { busy: self, block })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Ok(mut blocks) = self.busy.blocks.lock() {
            blocks.remove(&self.block);
        }
        self.busy.done.notify_all();
    }
}
