//! What is known of every inode: five bytes each, and thirty for a directory.

use std::collections::BTreeMap;

use super::super::edit::records::{CHUNK_INODES, Chunk};
use super::super::units::InodeNo;
use crate::filesystem::NodeKind;

/// The kinds by number.
const KINDS: [NodeKind; 7] = [
    NodeKind::File,
    NodeKind::Dir,
    NodeKind::Link,
    NodeKind::Char,
    NodeKind::Block,
    NodeKind::Fifo,
    NodeKind::Socket,
];
/// The number of an inode that is damaged, or was not looked at.
const UNKNOWN: u8 = 0xf;

/// A chunk of inodes.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) first: InodeNo,
    /// As the inobt has it.
    pub(super) chunk: Chunk,
    /// Four bits each.
    kinds: [u8; 32],
    /// Links that the inode says it has, less entries that were found.
    links: [u32; 64],
}

/// All chunks, in order.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Row>,
    /// Some are missing.
    pub(super) incomplete: bool,
    pub(super) dirs: BTreeMap<u64, Dir>,
}

/// A directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dir {
    /// What it calls its parent.
    pub(super) up: u64,
    /// The directory with an entry for it; 0 if there is none.
    pub(super) named_by: u64,
    /// The root can be reached from it: known, or being looked at.
    pub(super) reached: bool,
}

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// No chunk has it, or it is free.
    Absent,
    /// In use, but damaged.
    Damaged,
    /// In use.
    Kind(NodeKind),
}

impl Table {
    /// Adds a chunk; they come in order.
    pub(super) fn push(&mut self, first: InodeNo, chunk: Chunk) {
        if self.rows.last().is_none_or(|last| last.first < first) {
            self.rows.push(Row { first, chunk, kinds: [0xff; 32], links: [0; 64] });
        }
    }

    /// Chunks that there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The chunk at `index`.
    pub(super) fn row(&self, index: usize) -> Option<(InodeNo, Chunk)> {
        self.rows.get(index).map(|row| (row.first, row.chunk))
    }

    /// Whether the inobt has exactly this chunk.
    pub(super) fn has(&self, first: InodeNo, chunk: &Chunk) -> bool {
        self.rows
            .binary_search_by_key(&first, |r| r.first)
            .is_ok_and(|i| self.rows.get(i).is_some_and(|r| r.chunk == *chunk))
    }

    fn find(&self, ino: u64) -> Option<(usize, usize)> {
        let row = self.rows.partition_point(|r| r.first.0 <= ino).checked_sub(1)?;
        let place = ino.checked_sub(self.rows.get(row)?.first.0)?;
        (place < u64::from(CHUNK_INODES)).then_some(())?;
        Some((row, usize::try_from(place).ok()?))
    }

    /// What an inode is.
    pub(super) fn known(&self, ino: u64) -> Known {
        let Some((row, place)) = self.find(ino) else { return Known::Absent };
        let Some(row) = self.rows.get(row) else { return Known::Absent };
        let bit = 1u64.checked_shl(u32::try_from(place).unwrap_or(0)).unwrap_or(0);
        if row.chunk.present() & bit == 0 || row.chunk.free & bit != 0 {
            return Known::Absent;
        }
        let pair = row.kinds.get(place >> 1).copied().unwrap_or(0xff);
        let number = if place & 1 == 0 { pair & 0xf } else { pair >> 4 };
        KINDS.get(usize::from(number)).map_or(Known::Damaged, |kind| Known::Kind(*kind))
    }

    /// An inode was read: its kind, and the links that it says it has.
    pub(super) fn set(&mut self, ino: InodeNo, kind: NodeKind, links: u32) {
        let Some((row, place)) = self.find(ino.0) else { return };
        let Some(row) = self.rows.get_mut(row) else { return };
        let number =
            KINDS.iter().position(|k| *k == kind).and_then(|n| u8::try_from(n).ok()).unwrap_or(UNKNOWN);
        if let Some(pair) = row.kinds.get_mut(place >> 1) {
            *pair = if place & 1 == 0 { *pair & 0xf0 | number } else { *pair & 0xf | number << 4 };
        }
        if let Some(left) = row.links.get_mut(place) {
            *left = left.wrapping_add(links);
        }
        if kind == NodeKind::Dir {
            self.dirs.entry(ino.0).or_default();
        }
    }

    /// An entry names the inode.
    pub(super) fn found_link(&mut self, ino: u64) {
        let Some((row, place)) = self.find(ino) else { return };
        if let Some(left) = self.rows.get_mut(row).and_then(|row| row.links.get_mut(place)) {
            *left = left.wrapping_sub(1);
        }
    }

    /// Links that the inode says it has, less those that were found; as a number that wraps around.
    pub(super) fn links_left(&self, ino: u64) -> u32 {
        let Some((row, place)) = self.find(ino) else { return 0 };
        self.rows.get(row).and_then(|row| row.links.get(place)).copied().unwrap_or(0)
    }

    /// The inodes in use of the chunk at `index`.
    pub(super) fn used(&self, index: usize) -> Vec<InodeNo> {
        let Some(row) = self.rows.get(index) else { return Vec::new() };
        let used = row.chunk.present() & !row.chunk.free;
        let bits = (0u32..64).filter(|bit| used.checked_shr(*bit).unwrap_or(0) & 1 == 1);
        bits.map(|bit| InodeNo(row.first.0.saturating_add(bit.into()))).collect()
    }
}
