//! Reading the log: finding the sequence of entries that has to be replayed, and replaying it.
//!
//! The log is a ring. An entry that carries the header's `LogGuid` and whose checksum is right is valid. Valid entries
//! that follow each other with consecutive numbers, from where the last of them says that its sequence begins, are a
//! sequence; the one that ends with the highest number is the active one (2.3.2, 2.3.3).

use std::collections::BTreeMap;

use uuid::Uuid;

use super::fault::VhdxFault;
use super::layout::{
    LOG_DATA, LOG_DESC, LOG_ENTRY, LOG_ZERO, LOGGED_FROM, PAGE, PAGE_LEN, RawDescriptor, RawLogData,
    RawLogEntry,
};
use crate::block::{Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{GIB, KIB, MIB, TIB};
use crate::wire::{index, len64, part_mut, take};

/// Bytes that a replay may zero in memory: a page of 4 KiB is remembered for each.
const ZERO_IN_MEMORY_MAX: u64 = GIB;
/// A file with a disk of 64 TiB is not twice as long.
const FILE_MAX: u64 = 128 * TIB;
/// What is read at a time to compute a checksum.
const PIECE: u64 = 256 * KIB;
/// Bytes of entries whose checksums are computed, for each byte of the log. Entries that were overwritten in part may
/// still have their heads; a log where they overlap by the thousand is made to keep us busy.
const CHECKED_TIMES: u64 = 4;

/// A valid entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// From the beginning of the log.
    at: u64,
    raw: RawLogEntry,
}

/// Entries to be replayed, in order.
#[derive(Debug)]
pub(super) struct Sequence<'a> {
    ring: Ring<'a>,
    entries: Vec<Entry>,
}

/// The bytes of the log.
#[derive(Clone, Copy, Debug)]
struct Ring<'a> {
    file: &'a Disk,
    log: Span,
}

impl Ring<'_> {
    /// Fills `out` with the bytes from `at` on, over the end and on from the beginning. `at` lies in the log.
    fn read(self, at: u64, out: &mut [u8]) -> Result<()> {
        let to_end = index(self.log.len().saturating_sub(at).min(len64(out.len())))?;
        let (first, rest) = out.split_at_mut(to_end);
        self.file.read_at(self.log.start().saturating_add(at), first)?;
        if rest.is_empty() { Ok(()) } else { self.file.read_at(self.log.start(), rest) }
    }

    fn forward(self, at: u64, by: u64) -> u64 {
        at.saturating_add(by).checked_rem(self.log.len()).unwrap_or(0)
    }

    /// The head of an entry, if one is there that may be valid.
    fn head(self, at: u64, id: Uuid) -> Result<Option<RawLogEntry>> {
        let mut bytes = [0; size_of::<RawLogEntry>()];
        self.read(at, &mut bytes)?;
        let raw: RawLogEntry = take(&bytes, 0, "log entry")?;
        let len = u64::from(raw.entry_length.get());
        let room = u64::from(raw.descriptor_count.get()).saturating_add(2).saturating_mul(32);
        let plausible = raw.signature == LOG_ENTRY
            && Uuid::from_bytes_le(raw.log_guid) == id
            && raw.sequence_number.get() != 0
            && PAGE.aligned(len)
            && len <= self.log.len()
            && room <= len
            && PAGE.aligned(raw.tail.get().into())
            && u64::from(raw.tail.get()) < self.log.len();
        Ok(plausible.then_some(raw))
    }

    fn checksum_agrees(self, at: u64, raw: &RawLogEntry) -> Result<bool> {
        let len = u64::from(raw.entry_length.get());
        let mut buf = vec![0; index(PIECE.min(len))?];
        let (mut sum, mut done) = (0, 0);
        while done < len {
            let now = index(PIECE.min(len.saturating_sub(done)))?;
            let piece = part_mut(&mut buf, 0, now, "log entry")?;
            self.read(self.forward(at, done), piece)?;
            if done == 0 {
                part_mut(piece, 4, 4, "log entry")?.fill(0);
            }
            sum = crc32c::crc32c_append(sum, piece);
            done = done.saturating_add(len64(now));
        }
        Ok(sum == raw.checksum.get())
    }
}

/// Finds the active sequence of the log that belongs to `id`; none if no entry is valid. That is so after a crash
/// between the header that began the log and its first entry, which QEMU writes in this order.
pub(super) fn find(file: &Disk, log: Span, id: Uuid) -> Result<Option<Sequence<'_>>> {
    let ring = Ring { file, log };
    let mut valid: BTreeMap<u64, RawLogEntry> = BTreeMap::new();
    let mut budget = log.len().saturating_mul(CHECKED_TIMES);
    for page in 0..PAGE.count(log.len()) {
        let at = PAGE.start_of(page).ok_or(Common::Index(page))?;
        let Some(raw) = ring.head(at, id)? else { continue };
        budget = budget
            .checked_sub(raw.entry_length.get().into())
            .ok_or(VhdxFault::Log("its entries lie over one another"))?;
        if ring.checksum_agrees(at, &raw)? {
            valid.insert(at, raw);
        }
    }
    let mut heads: Vec<(u64, u64)> = valid.iter().map(|(at, raw)| (raw.sequence_number.get(), *at)).collect();
    heads.sort_unstable();
    for (_, head) in heads.into_iter().rev() {
        if let Some(entries) = chain(ring, &valid, head) {
            return Ok(Some(Sequence { ring, entries }));
        }
    }
    Ok(None)
}

/// The entries from the tail of the one at `head` to itself, if they follow each other.
fn chain(ring: Ring<'_>, valid: &BTreeMap<u64, RawLogEntry>, head: u64) -> Option<Vec<Entry>> {
    let mut at = u64::from(valid.get(&head)?.tail.get());
    let mut entries: Vec<Entry> = Vec::new();
    // Numbers rise by one from entry to entry, so none comes twice.
    while entries.len() <= valid.len() {
        let raw = *valid.get(&at)?;
        let number = raw.sequence_number.get();
        if entries.last().is_some_and(|last| last.raw.sequence_number.get().checked_add(1) != Some(number)) {
            return None;
        }
        entries.push(Entry { at, raw });
        if at == head {
            return Some(entries);
        }
        at = ring.forward(at, raw.entry_length.get().into());
    }
    None
}

impl Sequence<'_> {
    /// Carries out all entries on `target`, which shows the same bytes as the file that the log was found in.
    pub(super) fn replay(&self, target: &Disk, in_memory: bool) -> Result<()> {
        let size = self.ring.file.size();
        let mut zeroes = if in_memory { ZERO_IN_MEMORY_MAX } else { u64::MAX };
        for entry in &self.entries {
            let (flushed, last) = (entry.raw.flushed_file_offset.get(), entry.raw.last_file_offset.get());
            if flushed > size {
                return Err(VhdxFault::Truncated { found: size, expected: flushed }.into());
            }
            if last > FILE_MAX {
                return Err(VhdxFault::Log("it wants a file of more than 128 TiB").into());
            }
            if last > target.size() {
                target.resize(last.next_multiple_of(MIB))?;
            }
            let place = || format!("log entry {}", entry.raw.sequence_number.get());
            self.replay_entry(*entry, target, &mut zeroes).within(place)?;
        }
        Ok(())
    }

    fn replay_entry(&self, entry: Entry, target: &Disk, zeroes: &mut u64) -> Result<()> {
        let count = u64::from(entry.raw.descriptor_count.get());
        // Data begin behind the page that the last descriptor is in.
        let mut data = PAGE.count(count.saturating_add(2).saturating_mul(32));
        let pages = u64::from(entry.raw.entry_length.get()) >> PAGE.shift();
        let sequence = entry.raw.sequence_number.get();
        for number in 0..count {
            let mut bytes = [0; size_of::<RawDescriptor>()];
            let skip = number.saturating_add(2).saturating_mul(32);
            self.ring.read(self.ring.forward(entry.at, skip), &mut bytes)?;
            let raw: RawDescriptor = take(&bytes, 0, "log descriptor")?;
            if raw.sequence_number.get() != sequence {
                return Err(VhdxFault::Log("a descriptor is of another entry").into());
            }
            let at = raw.file_offset.get();
            match raw.signature {
                LOG_ZERO => {
                    let span = self.place(at, u64::from_le_bytes(raw.leading_bytes), target.size())?;
                    *zeroes = zeroes.checked_sub(span.len()).ok_or(VhdxFault::Log(
                        "it zeroes more than racker keeps in memory; open the image for writing once",
                    ))?;
                    target.write_zeroes(span)?;
                }
                LOG_DESC if data < pages => {
                    let span = self.place(at, PAGE.bytes(), target.size())?;
                    let skip = PAGE.start_of(data).ok_or(Common::Index(data))?;
                    let page = self.page(self.ring.forward(entry.at, skip), &raw)?;
                    target.write_at(span.start(), &page)?;
                    data = data.saturating_add(1);
                }
                LOG_DESC => return Err(VhdxFault::Log("an entry has less data than descriptors").into()),
                _ => return Err(VhdxFault::Log("a descriptor is neither data nor zeroes").into()),
            }
        }
        Ok(())
    }

    /// The page that a data descriptor and its data sector make together.
    fn page(&self, at: u64, descriptor: &RawDescriptor) -> Result<[u8; PAGE_LEN]> {
        let mut sector = [0; PAGE_LEN];
        self.ring.read(at, &mut sector)?;
        let raw: RawLogData = take(&sector, 0, "log data")?;
        let sequence = u64::from(raw.sequence_high.get()) << 32 | u64::from(raw.sequence_low.get());
        if raw.signature != LOG_DATA || sequence != descriptor.sequence_number.get() {
            return Err(VhdxFault::Log("a data sector is of another entry").into());
        }
        part_mut(&mut sector, 0, 8, "log data")?.copy_from_slice(&descriptor.leading_bytes);
        part_mut(&mut sector, PAGE_LEN - 4, 4, "log data")?.copy_from_slice(&descriptor.trailing_bytes);
        Ok(sector)
    }

    /// What a descriptor may change: nothing in the headers, nothing in the log, nothing behind the file.
    fn place(&self, at: u64, len: u64, size: u64) -> Result<Span> {
        let span = Span::new(at, len)?;
        let aligned = PAGE.aligned(at) && PAGE.aligned(len);
        if !aligned || at < LOGGED_FROM || span.end() > size || span.intersect(self.ring.log).is_some() {
            return Err(VhdxFault::Log("a descriptor names a place that it cannot change").into());
        }
        Ok(span)
    }
}
