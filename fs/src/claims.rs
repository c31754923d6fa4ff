//! Which directory a block belongs to, and where in it: directories that share blocks are damage or a trap, as a
//! few blocks shared by thousands of directories keep a walk busy for hours.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Mutex;

use racker_formats::error::{Common, Fault, Kind, Result};

/// A block that is part of two directories, or twice of one.
#[derive(Debug, thiserror::Error)]
#[error("block {block} is part of this directory and of the one in node {other} too")]
pub(crate) struct Shared {
    block: u64,
    other: u64,
}

impl Fault for Shared {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }
}

/// Blocks of directories that were read so far: node and place in it.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<HashMap<u64, (u64, u64)>>);

impl Claims {
    /// Notes that `block` is number `place` of the directory `node`; an error if it is anything else already.
    pub(crate) fn claim(&self, block: u64, node: u64, place: u64) -> Result<()> {
        match self.0.lock().map_err(|_| Common::Poisoned)?.entry(block) {
            Entry::Vacant(free) => {
                free.insert((node, place));
                Ok(())
            }
            Entry::Occupied(taken) if *taken.get() == (node, place) => Ok(()),
            Entry::Occupied(taken) => Err(Shared { block, other: taken.get().0 }.into()),
        }
    }
}

impl Claims {
    /// Forgets blocks that belong to no directory any more.
    pub(crate) fn forget(&self, start: u64, len: u64) -> Result<()> {
        let mut claims = self.0.lock().map_err(|_| Common::Poisoned)?;
        if u64::try_from(claims.len()).is_ok_and(|count| count < len) {
            claims.retain(|block, _| block.checked_sub(start).is_none_or(|past| past >= len));
        } else {
            (start..start.saturating_add(len)).for_each(|block| {
                claims.remove(&block);
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_one_place() {
        let claims = Claims::default();
        claims.claim(7, 2, 0).unwrap();
        claims.claim(7, 2, 0).unwrap();
        assert!(claims.claim(7, 2, 1).is_err());
        assert!(claims.claim(7, 3, 0).unwrap_err().to_string().contains("node 2"));
        claims.forget(0, 7).unwrap();
        assert!(claims.claim(7, 3, 0).is_err());
        claims.forget(7, 1).unwrap();
        claims.claim(7, 3, 0).unwrap();
    }
}
