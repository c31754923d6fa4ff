//! Writing a sequence into the log.
//!
//! Each sequence has a `LogGuid` of its own and begins where the log does, so nothing that is in the log from before
//! can be taken for part of it. It counts from the moment when a header carries its GUID.

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{
    LOG_DATA, LOG_DESC, LOG_ENTRY, LOG_ZERO, MEGABYTE, PAGE, PAGE_LEN, RawDescriptor, RawLogData, RawLogEntry,
};
use crate::block::{Disk, Span};
use crate::error::{Common, Result};
use crate::wire::{len64, part, part_mut};

/// Descriptors of an entry: as many as fit into its first page.
const DESCRIPTORS: u64 = 126;

/// How many bytes of log a sequence takes.
pub(super) const fn sequence_bytes(pages: u64, zeroes: u64) -> u64 {
    let entries = pages.saturating_add(zeroes).div_ceil(DESCRIPTORS);
    entries.saturating_add(pages).saturating_mul(PAGE.bytes())
}

/// How many bytes of sequences a log takes: QEMU takes one that is filled to the last page for an empty one.
pub(super) const fn log_room(log: Span) -> u64 {
    log.len().saturating_sub(PAGE.bytes())
}

/// Appends to a sequence.
#[derive(Debug)]
pub(super) struct Appender<'a> {
    file: &'a Disk,
    log: Span,
    id: Uuid,
    /// Number of the entry that is being filled.
    sequence: u64,
    /// Where in the log it goes.
    at: u64,
    descriptors: Vec<RawDescriptor>,
    data: Vec<u8>,
}

impl<'a> Appender<'a> {
    /// A sequence at the beginning of the log at `log`.
    pub(super) fn new(file: &'a Disk, log: Span) -> Self {
        let id = Uuid::new_v4();
        Self { file, log, id, sequence: 1, at: 0, descriptors: Vec::new(), data: Vec::new() }
    }

    /// Adds a page that is to be written at `host`.
    pub(super) fn page(&mut self, host: u64, page: &[u8]) -> Result<()> {
        let mut raw = RawLogData::new_zeroed();
        raw.signature = LOG_DATA;
        raw.sequence_high = u32::try_from(self.sequence >> 32).unwrap_or_default().into();
        raw.sequence_low = u32::try_from(self.sequence & 0xffff_ffff).unwrap_or_default().into();
        let what = "page";
        let (leading, trailing) = (part(page, 0, 8, what)?, part(page, PAGE_LEN - 4, 4, what)?);
        raw.data.copy_from_slice(part(page, 8, PAGE_LEN - 12, what)?);
        let mut descriptor = self.descriptor(LOG_DESC, host);
        descriptor.leading_bytes.copy_from_slice(leading);
        descriptor.trailing_bytes.copy_from_slice(trailing);
        self.descriptors.push(descriptor);
        self.data.extend_from_slice(raw.as_bytes());
        self.limit()
    }

    /// Adds whole pages that are to be zeroed.
    pub(super) fn zeroes(&mut self, span: Span) -> Result<()> {
        let mut descriptor = self.descriptor(LOG_ZERO, span.start());
        descriptor.leading_bytes = span.len().to_le_bytes();
        self.descriptors.push(descriptor);
        self.limit()
    }

    /// Writes what is left; gives the GUID that makes the sequence count.
    pub(super) fn finish(mut self) -> Result<Uuid> {
        self.write()?;
        Ok(self.id)
    }

    fn descriptor(&self, signature: [u8; 4], host: u64) -> RawDescriptor {
        let mut raw = RawDescriptor::new_zeroed();
        raw.signature = signature;
        raw.file_offset = host.into();
        raw.sequence_number = self.sequence.into();
        raw
    }

    fn limit(&mut self) -> Result<()> {
        if len64(self.descriptors.len()) < DESCRIPTORS { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<()> {
        if self.descriptors.is_empty() {
            return Ok(());
        }
        let mut entry = vec![0; PAGE_LEN];
        entry.append(&mut self.data);
        let mut raw = RawLogEntry::new_zeroed();
        raw.signature = LOG_ENTRY;
        let narrow = |n: usize| u32::try_from(n).map_err(|_| Common::Index(len64(n)));
        raw.entry_length = narrow(entry.len())?.into();
        raw.sequence_number = self.sequence.into();
        raw.descriptor_count = narrow(self.descriptors.len())?.into();
        raw.log_guid = self.id.to_bytes_le();
        // All that was written before is flushed before a header makes this count.
        let size = self.file.size();
        raw.flushed_file_offset = MEGABYTE.floor(size).into();
        raw.last_file_offset = MEGABYTE.ceil(size).ok_or(Common::Index(size))?.into();
        part_mut(&mut entry, 0, size_of::<RawLogEntry>(), "log entry")?.copy_from_slice(raw.as_bytes());
        let descriptors = self.descriptors.as_bytes();
        part_mut(&mut entry, size_of::<RawLogEntry>(), descriptors.len(), "log entry")?
            .copy_from_slice(descriptors);
        let sum = crc32c::crc32c(&entry).to_le_bytes();
        part_mut(&mut entry, 4, 4, "log entry")?.copy_from_slice(&sum);
        let end = self.at.saturating_add(len64(entry.len()));
        if end > log_room(self.log) {
            return Err(Common::Index(end).into());
        }
        self.file.write_at(self.log.start().saturating_add(self.at), &entry)?;
        self.at = end;
        self.sequence = self.sequence.saturating_add(1);
        self.descriptors.clear();
        self.data.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::find;
    use super::*;
    use crate::block::MemDevice;
    use crate::limits::MIB;

    fn log() -> (Disk, Span) {
        (Disk::new(MemDevice::new(4 << 20)), Span::new(MIB, MIB).unwrap())
    }

    fn page(n: u64) -> Vec<u8> {
        (0..PAGE_LEN).map(|i| (i as u64 * 31 + n) as u8).collect()
    }

    /// A sequence that sets `count` pages from 2 MiB on and zeroes one at 3 MiB.
    fn sequence(file: &Disk, log: Span, count: u64) -> Uuid {
        let mut append = Appender::new(file, log);
        for n in 0..count {
            append.page(2 * MIB + n * 4096, &page(n)).unwrap();
        }
        append.zeroes(Span::new(3 * MIB, 8192).unwrap()).unwrap();
        append.finish().unwrap()
    }

    #[test]
    fn what_is_appended_is_replayed() {
        let (file, log) = log();
        file.write_at(3 * MIB, &[1; 12288]).unwrap();
        let id = sequence(&file, log, 200);
        assert!(find(&file, log, Uuid::new_v4()).unwrap().is_none());
        find(&file, log, id).unwrap().unwrap().replay(&file, true).unwrap();
        let mut found = vec![0; PAGE_LEN];
        for n in [0, 125, 126, 199] {
            file.read_at(2 * MIB + n * 4096, &mut found).unwrap();
            assert_eq!(found, page(n));
        }
        let mut zeroed = vec![9; 12288];
        file.read_at(3 * MIB, &mut zeroed).unwrap();
        assert!(zeroed[..8192].iter().all(|b| *b == 0) && zeroed[8192..].iter().all(|b| *b == 1));
    }

    #[test]
    fn a_sequence_that_is_not_whole_does_not_count() {
        let (file, log) = log();
        let id = sequence(&file, log, 200);
        // The second entry is torn: the first one is a sequence of its own, as its tail says.
        file.write_at(log.start() + 127 * 4096 + 5000, &[0xff; 100]).unwrap();
        find(&file, log, id).unwrap().unwrap().replay(&file, true).unwrap();
        let mut found = vec![0; PAGE_LEN];
        file.read_at(2 * MIB + 126 * 4096, &mut found).unwrap();
        assert!(found.iter().all(|b| *b == 0));
        file.write_at(log.start() + 5000, &[0xff; 100]).unwrap();
        assert!(find(&file, log, id).unwrap().is_none());
    }

    #[test]
    fn a_log_that_is_made_to_keep_us_busy_is_refused() {
        let (file, log) = log();
        let id = Uuid::new_v4();
        for n in 0..256u64 {
            let mut raw = RawLogEntry::new_zeroed();
            raw.signature = LOG_ENTRY;
            raw.entry_length = (1u32 << 20).into();
            raw.sequence_number = (n + 1).into();
            raw.log_guid = id.to_bytes_le();
            file.write_at(log.start() + n * 4096, raw.as_bytes()).unwrap();
        }
        assert!(find(&file, log, id).is_err());
    }
}
