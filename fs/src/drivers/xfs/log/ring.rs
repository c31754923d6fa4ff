//! The log as a ring of 512-byte blocks, each of which tells in which round it was written.

use racker_formats::block::{Disk, Span};
use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part, take};
use zerocopy::big_endian::U32;

use super::super::fault::Fault;
use super::super::layout::RawUuid;
use super::super::superblock::LogPlace;
use super::super::units::{BASIC_BLOCK, BASIC_BLOCK_SHIFT};
use super::super::volume::Volume;
use super::layout::LOG_MAGIC;

/// The most bytes that are read at once: what can be under way to the log at one time.
const READ_BYTES_MAX: u64 = 4 << 20;

/// The log of a volume.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    disk: Disk,
    span: Span,
    /// Length in 512-byte blocks.
    pub(super) blocks: u32,
    pub(super) place: LogPlace,
    /// The UUID in every record: the one users see.
    pub(super) uuid: RawUuid,
    pub(super) v5: bool,
}

/// In which round a block was written. A record's header has it in its second word.
pub(super) fn cycle_of(block: &[u8]) -> Result<u32> {
    let first: U32 = take(block, 0, "log block")?;
    let at = if first.get() == LOG_MAGIC { 4 } else { 0 };
    Ok(take::<U32>(block, at, "log block")?.get())
}

/// Whether a record begins with this block.
pub(super) fn is_header(block: &[u8]) -> bool {
    block.first_chunk() == Some(&LOG_MAGIC.to_be_bytes())
}

impl Ring {
    pub(super) fn new(volume: &Volume) -> Result<Self> {
        let place = volume.sb.log;
        let span = volume.sb.span(place.start, place.blocks.into())?;
        let blocks = u32::try_from(span.len() >> BASIC_BLOCK_SHIFT);
        let blocks = blocks.map_err(|_| Fault::Structure { what: "log", why: "too long" })?;
        let disk = volume.disk.clone();
        Ok(Self { disk, span, blocks, place, uuid: volume.sb.uuid, v5: volume.sb.v5 })
    }

    /// The block `count` blocks behind `at`.
    pub(super) fn after(&self, at: u32, count: u32) -> u32 {
        let sum = u64::from(at).saturating_add(count.into());
        let wrapped = sum.checked_rem(self.blocks.into()).unwrap_or(0);
        u32::try_from(wrapped).unwrap_or(0)
    }

    /// How many blocks lie from `from` to `to`, going forward; 0 if they are the same.
    pub(super) fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to.saturating_sub(from) } else { self.blocks.saturating_sub(from).saturating_add(to) }
    }

    /// Calls `each` for the one or two stretches of the disk that `count` blocks from `at` on are.
    fn stretches(&self, at: u32, count: u32, mut each: impl FnMut(u64, usize) -> Result<()>) -> Result<()> {
        let what = "blocks of the log";
        let len = u64::from(count) << BASIC_BLOCK_SHIFT;
        if at >= self.blocks || count > self.blocks || len > READ_BYTES_MAX {
            return Err(Fault::Field { what, found: count.into(), why: "more than there are" }.into());
        }
        let first = count.min(self.blocks.saturating_sub(at));
        let start = self.span.start().saturating_add(u64::from(at) << BASIC_BLOCK_SHIFT);
        each(start, index(u64::from(first) << BASIC_BLOCK_SHIFT)?)?;
        let rest = count.saturating_sub(first);
        if rest > 0 {
            each(self.span.start(), index(u64::from(rest) << BASIC_BLOCK_SHIFT)?)?;
        }
        Ok(())
    }

    /// Reads `count` blocks from `at` on, from the end of the log over to its beginning.
    pub(super) fn read(&self, at: u32, count: u32) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        self.stretches(at, count, |start, len| {
            let have = all.len();
            all.resize(have.saturating_add(len), 0);
            self.disk.read_at(start, all.get_mut(have..).unwrap_or_default())
        })?;
        Ok(all)
    }

    /// Writes whole blocks from `at` on, from the end of the log over to its beginning.
    pub(super) fn write(&self, at: u32, bytes: &[u8]) -> Result<()> {
        let count = u32::try_from(len64(bytes.len()) >> BASIC_BLOCK_SHIFT).unwrap_or(u32::MAX);
        let mut done = 0usize;
        self.stretches(at, count, |start, len| {
            self.disk.write_at(start, part(bytes, done, len, "log blocks")?)?;
            done = done.saturating_add(len);
            Ok(())
        })
    }

    /// In which round block `at` was written.
    pub(super) fn cycle(&self, at: u32) -> Result<u32> {
        cycle_of(&self.read(at, 1)?)
    }

    /// The first of `count` blocks from `at` on that was written in round `cycle`.
    pub(super) fn find_cycle(&self, at: u32, count: u32, cycle: u32) -> Result<Option<u32>> {
        let bytes = self.read(at, count)?;
        for (i, block) in (0u32..).zip(bytes.chunks_exact(BASIC_BLOCK)) {
            if cycle_of(block)? == cycle {
                return Ok(Some(self.after(at, i)));
            }
        }
        Ok(None)
    }
}
