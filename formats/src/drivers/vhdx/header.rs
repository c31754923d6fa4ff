//! The two headers: which one holds, and how the other one takes its place.

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::fault::VhdxFault;
use super::layout::{FILE_SIGNATURE, HEADER, HEADER_BYTES, HEADER_SECTION, HEADERS_AT, MEGABYTE, RawHeader};
use crate::block::{Disk, Span};
use crate::error::{Result, Within};
use crate::wire::{bytes, take};

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    raw: RawHeader,
    pub(super) sequence: u64,
    pub(super) file_write: Uuid,
    pub(super) data_write: Uuid,
    /// Nil: the log is empty.
    pub(super) log_id: Uuid,
    /// Where the log lies; may be empty.
    pub(super) log: Span,
}

/// Both headers.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    /// The one that holds.
    pub(super) current: Header,
    /// Its place: 0 or 1.
    slot: usize,
    /// Whether the other one is valid as well.
    pub(super) both: bool,
}

/// CRC-32C of a structure whose bytes 4 to 7 are its checksum.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let head = crc32c::crc32c(bytes.get(..4).unwrap_or_default());
    let head = crc32c::crc32c_append(head, &[0; 4]);
    crc32c::crc32c_append(head, bytes.get(8..).unwrap_or_default())
}

impl Header {
    fn parse(page: &[u8]) -> Option<Self> {
        let raw: RawHeader = take(page, 0, "header").ok()?;
        if raw.signature != HEADER || raw.checksum.get() != checksum(raw.as_bytes()) {
            return None;
        }
        let log = Span::new(raw.log_offset.get(), raw.log_length.get().into()).ok()?;
        Some(Self {
            raw,
            sequence: raw.sequence_number.get(),
            file_write: Uuid::from_bytes_le(raw.file_write_guid),
            data_write: Uuid::from_bytes_le(raw.data_write_guid),
            log_id: Uuid::from_bytes_le(raw.log_guid),
            log,
        })
    }

    /// The first header of a new image whose log lies at `log`.
    pub(super) fn new(log: Span) -> Self {
        let mut raw = RawHeader::new_zeroed();
        raw.signature = HEADER;
        raw.version = 1.into();
        let (file_write, data_write) = (Uuid::new_v4(), Uuid::new_v4());
        Self { raw, sequence: 1, file_write, data_write, log_id: Uuid::nil(), log }
    }

    /// As it lies on disk.
    pub(super) fn to_page(&self) -> RawHeader {
        let mut raw = self.raw;
        raw.sequence_number = self.sequence.into();
        raw.file_write_guid = self.file_write.to_bytes_le();
        raw.data_write_guid = self.data_write.to_bytes_le();
        raw.log_guid = self.log_id.to_bytes_le();
        raw.log_offset = self.log.start().into();
        raw.log_length = u32::try_from(self.log.len()).unwrap_or_default().into();
        raw.checksum = checksum(raw.as_bytes()).into();
        raw
    }

    fn check(&self, file: u64) -> Result<()> {
        let (version, log_version) = (self.raw.version.get(), self.raw.log_version.get());
        if version != 1 {
            return Err(VhdxFault::Version { what: "file", found: version, known: 1 }.into());
        }
        if log_version != 0 {
            return Err(VhdxFault::Version { what: "log", found: log_version, known: 0 }.into());
        }
        let (at, len) = (self.log.start(), self.log.len());
        let region = |why| VhdxFault::Region { what: "log", at, len, why };
        if len == 0 {
            return Ok(());
        }
        if !MEGABYTE.aligned(at) || !MEGABYTE.aligned(len) || at < HEADER_SECTION {
            return Err(region("is not made of whole megabytes behind the first").into());
        }
        if self.log.end() > file {
            return Err(region("is outside the file").into());
        }
        Ok(())
    }
}

impl Headers {
    /// Reads both headers and finds the one that holds.
    pub(super) fn read(file: &Disk) -> Result<Self> {
        let signature = bytes(file, 0, 8.min(file.size()), 8, "file type identifier")?;
        if signature != FILE_SIGNATURE {
            return Err(VhdxFault::Signature.into());
        }
        let [first, second] = HEADERS_AT.map(|at| {
            let page = bytes(file, at, HEADER_BYTES, HEADER_BYTES, "header").ok()?;
            Header::parse(&page)
        });
        let both = first.is_some() && second.is_some();
        let (current, slot) = match (first, second) {
            (Some(first), Some(second)) => match first.sequence.cmp(&second.sequence) {
                std::cmp::Ordering::Less => (second, 1),
                std::cmp::Ordering::Greater => (first, 0),
                // Disk2vhd writes the same header twice.
                std::cmp::Ordering::Equal if first.to_page().as_bytes() == second.to_page().as_bytes() => {
                    (first, 0)
                }
                std::cmp::Ordering::Equal => return Err(VhdxFault::Headers(first.sequence).into()),
            },
            (Some(first), None) => (first, 0),
            (None, Some(second)) => (second, 1),
            (None, None) => return Err(VhdxFault::NoHeader.into()),
        };
        current.check(file.size()).within(|| "header")?;
        Ok(Self { current, slot, both })
    }

    /// Those of a new image.
    pub(super) fn new(current: Header) -> Self {
        Self { current, slot: 1, both: true }
    }

    /// Writes the header that `change` makes of the current one in the other one's place, from where on it holds, and
    /// brings it to stable storage.
    pub(super) fn turn(&mut self, file: &Disk, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.step(file, change).within(|| "header")?;
        file.flush()
    }

    /// Makes the header that does not hold the same as the one that does: should that be damaged one day, nothing is
    /// taken back. It is on stable storage with the next flush.
    pub(super) fn repeat(&mut self, file: &Disk) -> Result<()> {
        self.step(file, |_| ()).within(|| "header")
    }

    fn step(&mut self, file: &Disk, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut next = self.current.clone();
        change(&mut next);
        next.sequence = next.sequence.wrapping_add(1);
        let slot = 1usize.saturating_sub(self.slot);
        let at = HEADERS_AT.get(slot).copied().unwrap_or_default();
        file.write_at(at, next.to_page().as_bytes())?;
        *self = Self { current: next, slot, both: true };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;
    use crate::limits::MIB;

    #[test]
    fn the_newer_valid_header_holds() {
        let file = Disk::new(MemDevice::new(2 << 20));
        file.write_at(0, &FILE_SIGNATURE).unwrap();
        let mut headers = Headers::new(Header::new(Span::new(MIB, MIB).unwrap()));
        headers.turn(&file, |_| ()).unwrap();
        headers.turn(&file, |h| h.log_id = Uuid::max()).unwrap();
        let read = Headers::read(&file).unwrap();
        assert_eq!((read.current.sequence, read.current.log_id), (3, Uuid::max()));
        // The newer one is torn: the older one holds again.
        file.write_at(HEADERS_AT[1] + 600, &[1]).unwrap();
        let read = Headers::read(&file).unwrap();
        assert_eq!((read.current.sequence, read.current.log_id, read.both), (2, Uuid::nil(), false));
        file.write_at(HEADERS_AT[0] + 600, &[1]).unwrap();
        let e = Headers::read(&file).unwrap_err();
        assert!(matches!(e.fault(), Some(VhdxFault::NoHeader)), "{e}");
    }

    #[test]
    fn checksums_are_those_of_the_specification() {
        // "123456789" with bytes 4 to 7 as zeroes.
        assert_eq!(checksum(b"1234xxxx9"), crc32c::crc32c(b"1234\0\0\0\x009"));
    }
}
