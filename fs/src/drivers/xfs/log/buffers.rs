//! Blocks that are being replayed.
//!
//! A block is replayed only if it is older than the transaction, by its log sequence number; and one transaction,
//! or several of one number, may change a block more than once. So a block keeps its number until all of the
//! transactions with the same number are done, and only then gets theirs and its checksum. When too many wait,
//! they go to the disk as they are, and get both later.

use std::collections::BTreeMap;

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::wire::{self, len64};

use super::super::described::SelfDescription;
use super::super::fault::Fault;
use super::super::units::{BASIC_BLOCK_SHIFT, Daddr, Lsn};
use super::super::volume::Volume;

/// The largest buffer: a directory block, or a cluster of inodes.
const BUFFER_BYTES_MAX: u64 = 64 << 10;
/// Bytes of blocks that wait in memory.
const WAITING_BYTES_MAX: u64 = 32 << 20;

/// A block that waits.
#[derive(Debug)]
pub(super) struct Buffer {
    /// Empty while it is on the disk.
    pub(super) bytes: Vec<u8>,
    /// Length in units of 512 bytes.
    count: u64,
    /// How it takes the number and its checksum; none for kinds that do not have them as a whole.
    pub(super) itself: Option<SelfDescription>,
    changed: bool,
}

impl Buffer {
    /// Marks it as to be written.
    pub(super) fn change(&mut self) -> &mut Vec<u8> {
        self.changed = true;
        &mut self.bytes
    }
}

/// The blocks that were changed under one sequence number.
#[derive(Debug)]
pub(super) struct Buffers<'v> {
    volume: &'v Volume,
    lsn: Lsn,
    waiting: BTreeMap<Daddr, Buffer>,
    bytes: u64,
}

impl<'v> Buffers<'v> {
    pub(super) fn new(volume: &'v Volume) -> Self {
        Self { volume, lsn: Lsn(0), waiting: BTreeMap::new(), bytes: 0 }
    }

    /// Goes over to transactions of number `lsn`; if it is another one, the blocks before are written.
    pub(super) fn advance(&mut self, lsn: Lsn) -> Result<()> {
        if lsn != self.lsn {
            self.write_all()?;
            self.lsn = lsn;
        }
        Ok(())
    }

    /// The `count` units of 512 bytes at `at`, read at first use.
    pub(super) fn get(&mut self, at: Daddr, count: u64) -> Result<&mut Buffer> {
        let len = count.saturating_mul(1 << BASIC_BLOCK_SHIFT);
        if len == 0 || len > BUFFER_BYTES_MAX {
            let why = "empty, or longer than 64 KiB";
            return Err(Fault::Field { what: "length of a buffer", found: count, why }.into());
        }
        self.settle_overlaps(at, count)?;
        if self.bytes.saturating_add(len) > WAITING_BYTES_MAX {
            self.spill()?;
        }
        let disk = &self.volume.disk;
        let buffer = self.waiting.entry(at).or_insert(Buffer {
            bytes: Vec::new(),
            count,
            itself: None,
            changed: false,
        });
        if buffer.bytes.is_empty() {
            buffer.bytes = read(disk, at, count)?;
            self.bytes = self.bytes.saturating_add(len);
        }
        Ok(buffer)
    }

    /// Writes what waits, without number and checksum, and keeps in mind what lacks them.
    fn spill(&mut self) -> Result<()> {
        for (at, buffer) in &mut self.waiting {
            if buffer.changed && !buffer.bytes.is_empty() {
                self.volume.disk.write_at(at.0 << BASIC_BLOCK_SHIFT, &buffer.bytes)?;
            }
            buffer.bytes = Vec::new();
        }
        self.waiting.retain(|_, buffer| buffer.changed && buffer.itself.is_some());
        self.bytes = 0;
        Ok(())
    }

    /// Writes the blocks that share bytes with a request without being just that request.
    fn settle_overlaps(&mut self, at: Daddr, count: u64) -> Result<()> {
        let end = at.0.saturating_add(count);
        // No buffer is longer than this.
        let from = Daddr(at.0.saturating_sub(BUFFER_BYTES_MAX >> BASIC_BLOCK_SHIFT));
        let shared = self.waiting.range(from..Daddr(end)).filter(|(place, buffer)| {
            let same = **place == at && buffer.count == count;
            !same && place.0.saturating_add(buffer.count) > at.0
        });
        let shared: Vec<Daddr> = shared.map(|(place, _)| *place).collect();
        for place in shared {
            if let Some(buffer) = self.waiting.remove(&place) {
                self.bytes = self.bytes.saturating_sub(len64(buffer.bytes.len()));
                self.write(place, buffer)?;
            }
        }
        Ok(())
    }

    /// Writes all blocks that were changed.
    pub(super) fn write_all(&mut self) -> Result<()> {
        self.bytes = 0;
        for (place, buffer) in std::mem::take(&mut self.waiting) {
            self.write(place, buffer)?;
        }
        Ok(())
    }

    fn write(&self, at: Daddr, mut buffer: Buffer) -> Result<()> {
        if !buffer.changed {
            return Ok(());
        }
        if buffer.bytes.is_empty() {
            buffer.bytes = read(&self.volume.disk, at, buffer.count)?;
        }
        if let Some(itself) = buffer.itself.filter(|_| self.volume.sb.v5) {
            itself.stamp(&mut buffer.bytes, self.lsn)?;
        }
        self.volume.disk.write_at(at.0 << BASIC_BLOCK_SHIFT, &buffer.bytes)
    }
}

fn read(disk: &Disk, at: Daddr, count: u64) -> Result<Vec<u8>> {
    let start = at.0.checked_mul(1 << BASIC_BLOCK_SHIFT).ok_or(Fault::Field {
        what: "place of a buffer",
        found: at.0,
        why: "outside of the volume",
    })?;
    wire::bytes(disk, start, count << BASIC_BLOCK_SHIFT, BUFFER_BYTES_MAX, "buffer in the log")
}
