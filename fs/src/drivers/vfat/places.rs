//! Nodes keep their numbers while their entries move.
//!
//! A node's number is the place of its entry when it was first seen. A table holds those that have moved since.

use std::collections::HashMap;
use std::sync::RwLock;

use racker_formats::error::{Common, Result};

use super::fault::FatFault;
use crate::filesystem::NodeId;

/// Numbers that are no place on any volume: for entries whose place gave its number to a node that has left it.
const FRESH: u64 = 1 << 58;

/// Which node is where.
#[derive(Debug, Default)]
pub(super) struct Places(RwLock<Moved>);

#[derive(Debug, Default)]
struct Moved {
    place_of: HashMap<u64, u64>,
    node_at: HashMap<u64, u64>,
    fresh: u64,
}

impl Moved {
    fn node(&mut self, place: u64) -> u64 {
        if let Some(node) = self.node_at.get(&place) {
            return *node;
        }
        if !self.place_of.contains_key(&place) {
            return place;
        }
        let node = FRESH.saturating_add(self.fresh);
        self.fresh = self.fresh.saturating_add(1);
        self.put(node, place);
        node
    }

    fn put(&mut self, node: u64, place: u64) {
        if node == place {
            self.place_of.remove(&node);
            self.node_at.remove(&place);
        } else {
            self.place_of.insert(node, place);
            self.node_at.insert(place, node);
        }
    }
}

impl Places {
    /// Where a node's entry is, in units of 32 bytes.
    pub(super) fn place(&self, node: NodeId) -> Result<u64> {
        let moved = self.0.read().map_err(|_| Common::Poisoned)?;
        match moved.place_of.get(&node.0) {
            Some(place) => Ok(*place),
            // Another node is there by now: this one is gone.
            None if moved.node_at.contains_key(&node.0) => Err(FatFault::Node(node.0).into()),
            None => Ok(node.0),
        }
    }

    /// The node whose entry is at a place.
    pub(super) fn node(&self, place: u64) -> Result<NodeId> {
        {
            let moved = self.0.read().map_err(|_| Common::Poisoned)?;
            if moved.place_of.is_empty() {
                return Ok(NodeId(place));
            }
        }
        Ok(NodeId(self.0.write().map_err(|_| Common::Poisoned)?.node(place)))
    }

    /// The entry at `from` moves to `to`, where none is.
    pub(super) fn moved(&self, from: u64, to: u64) -> Result<()> {
        let mut moved = self.0.write().map_err(|_| Common::Poisoned)?;
        let node = moved.node(from);
        moved.node_at.remove(&from);
        moved.put(node, to);
        Ok(())
    }

    /// The nodes of two entries change places.
    pub(super) fn swapped(&self, one: u64, other: u64) -> Result<()> {
        let mut moved = self.0.write().map_err(|_| Common::Poisoned)?;
        let (a, b) = (moved.node(one), moved.node(other));
        moved.node_at.remove(&one);
        moved.node_at.remove(&other);
        moved.put(a, other);
        moved.put(b, one);
        Ok(())
    }

    /// The entry at a place goes, and its node.
    pub(super) fn gone(&self, place: u64) -> Result<()> {
        let mut moved = self.0.write().map_err(|_| Common::Poisoned)?;
        if let Some(node) = moved.node_at.remove(&place) {
            moved.place_of.remove(&node);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_keep_their_numbers() {
        let places = Places::default();
        let node = |place| places.node(place).unwrap().0;
        let place = |node| places.place(NodeId(node)).unwrap();
        places.moved(100, 200).unwrap();
        assert_eq!((node(200), place(100)), (100, 200));
        // A new entry in the place that was left is another node.
        let fresh = node(100);
        assert!(fresh >= FRESH);
        assert_eq!((place(fresh), node(100)), (100, fresh));
        places.swapped(100, 200).unwrap();
        assert_eq!((node(200), node(100), place(100)), (fresh, 100, 100));
        places.gone(200).unwrap();
        assert_eq!(node(200), 200);
        places.moved(7, 300).unwrap();
        places.gone(300).unwrap();
        assert_eq!(node(7), 7);
        // What is gone does not come back as something else.
        places.moved(100, 400).unwrap();
        assert!(places.place(NodeId(400)).is_err());
    }
}
