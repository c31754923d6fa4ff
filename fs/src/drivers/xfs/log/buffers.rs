//! Blocks that are being replayed.
//!
//! A block is replayed only if it is older than the transaction, by its log sequence number; and one transaction,
//! or several of one number, may change a block more than once. So a block keeps its number until all of the
//! transactions with the same number are done, and only then gets theirs, its checksum, and goes to the disk.

use std::collections::BTreeMap;

use racker_formats::error::Result;
use racker_formats::wire::{self, len64};

use super::super::fault::Fault;
use super::super::layout::SelfDescription;
use super::super::units::{BASIC_BLOCK_SHIFT, Daddr, Lsn};
use super::super::volume::Volume;

/// The largest buffer: a directory block, or a cluster of inodes.
const BUFFER_BYTES_MAX: u64 = 64 << 10;
/// Bytes that wait for their number. All of a log can be of one, but then it has that many bytes itself.
const WAITING_BYTES_MAX: u64 = 192 << 20;

/// A block in memory.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) bytes: Vec<u8>,
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

    /// Goes over to transactions of number `lsn`; says whether it is another one, and the blocks before are written.
    pub(super) fn advance(&mut self, lsn: Lsn) -> Result<bool> {
        if lsn == self.lsn {
            return Ok(false);
        }
        self.write_all()?;
        self.lsn = lsn;
        Ok(true)
    }

    /// The `count` units of 512 bytes at `at`, read at first use.
    pub(super) fn get(&mut self, at: Daddr, count: u64) -> Result<&mut Buffer> {
        let len = count.checked_shl(BASIC_BLOCK_SHIFT).filter(|len| *len > 0).ok_or(Fault::Field {
            what: "length of a buffer",
            found: count,
            why: "empty",
        })?;
        self.settle_overlaps(at, count)?;
        if !self.waiting.contains_key(&at) {
            let start = at.0.checked_mul(1 << BASIC_BLOCK_SHIFT).ok_or(Fault::Field {
                what: "place of a buffer",
                found: at.0,
                why: "outside of the volume",
            })?;
            let bytes = wire::bytes(&self.volume.disk, start, len, BUFFER_BYTES_MAX, "buffer in the log")?;
            self.bytes = self.bytes.saturating_add(len);
            if self.bytes > WAITING_BYTES_MAX {
                return Err(Fault::Structure { what: "log", why: "its transactions are too large" }.into());
            }
            self.waiting.insert(at, Buffer { bytes, itself: None, changed: false });
        }
        let gone = Fault::Structure { what: "log", why: "a buffer was lost" };
        self.waiting.get_mut(&at).ok_or_else(|| gone.into())
    }

    /// Writes the blocks that share bytes with a request without being just that request.
    fn settle_overlaps(&mut self, at: Daddr, count: u64) -> Result<()> {
        let end = at.0.saturating_add(count);
        // No buffer is longer than this.
        let from = Daddr(at.0.saturating_sub(BUFFER_BYTES_MAX >> BASIC_BLOCK_SHIFT));
        let units = |b: &Buffer| len64(b.bytes.len()) >> BASIC_BLOCK_SHIFT;
        let shared = self.waiting.range(from..Daddr(end)).filter(|(place, buffer)| {
            let same = **place == at && units(buffer) == count;
            !same && place.0.saturating_add(units(buffer)) > at.0
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
        if let Some(itself) = buffer.itself.filter(|_| self.volume.sb.v5) {
            itself.stamp(&mut buffer.bytes, self.lsn)?;
        }
        self.volume.disk.write_at(at.0 << BASIC_BLOCK_SHIFT, &buffer.bytes)
    }
}
