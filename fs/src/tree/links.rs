//! Which nodes were met under another name before.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use racker_formats::error::Result;
use racker_formats::wire::len64;

use super::{Entry, TreeFault};
use crate::filesystem::{NodeId, NodeKind};

/// Bytes of memory for the names of nodes with several hard links: about 5 million names of 150 bytes. An ostree
/// repository has some hundred thousand; only an image made to hurt has more.
const LINKS_BYTES_MAX: u64 = 1 << 30;

/// What one entry of the table takes beside its value.
const SLOT_BYTES: u64 = 64;

/// The first place of every node that has several names, until the last of them was met.
#[derive(Debug, Default)]
pub(super) struct Links {
    seen: HashMap<(usize, NodeId), Seen>,
    bytes: u64,
}

#[derive(Debug)]
struct Seen {
    path: Vec<u8>,
    /// Names that are still to come, if the image counts them right.
    left: u64,
}

impl Links {
    /// The path under which `entry`'s node was met before; remembers this one otherwise.
    pub(super) fn first_path(&mut self, entry: &Entry<'_>) -> Result<Option<Vec<u8>>> {
        if entry.stat.links < 2 || entry.stat.kind == NodeKind::Dir {
            return Ok(None);
        }
        match self.seen.entry((entry.volume, entry.node)) {
            Slot::Occupied(mut slot) => {
                let seen = slot.get_mut();
                seen.left = seen.left.saturating_sub(1);
                if seen.left > 0 {
                    return Ok(Some(seen.path.clone()));
                }
                let path = slot.remove().path;
                self.bytes = self.bytes.saturating_sub(cost(&path));
                Ok(Some(path))
            }
            Slot::Vacant(slot) => {
                slot.insert(Seen { path: entry.path.to_vec(), left: entry.stat.links.saturating_sub(1) });
                self.bytes = self.bytes.saturating_add(cost(entry.path));
                if self.bytes > LINKS_BYTES_MAX {
                    return Err(TreeFault::LinksLarge { max: LINKS_BYTES_MAX }.into());
                }
                Ok(None)
            }
        }
    }

    /// Forgets what was remembered of `entry`'s node and remembers this name instead.
    pub(super) fn replace(&mut self, entry: &Entry<'_>) {
        if let Some(seen) = self.seen.get_mut(&(entry.volume, entry.node)) {
            self.bytes = self.bytes.saturating_sub(cost(&seen.path)).saturating_add(cost(entry.path));
            seen.path = entry.path.to_vec();
        }
    }
}

fn cost(path: &[u8]) -> u64 {
    len64(path.len()).saturating_add(SLOT_BYTES)
}
