//! Log records: one write to the log, a header and up to 256 KiB of operations.
//!
//! The first word of every block is the round it was written in; the words that belong there are in the header,
//! for each 32 KiB of data in a further header block.

use core::mem::offset_of;

use racker_formats::error::Result;
use racker_formats::wire::{index, part, part_mut, sum_holds, take};

use super::super::fault::Fault;
use super::super::units::{BASIC_BLOCK, BASIC_BLOCK_SHIFT, Lsn};
use super::layout::{LOG_MAGIC, RawLogExtHeader, RawLogRecord};
use super::ring::Ring;

/// Bytes of data for each header block.
pub(super) const DATA_PER_HEADER: u32 = 32 << 10;
/// Bytes of the longest record.
pub(super) const RECORD_BYTES_MAX: u32 = 256 << 10;
/// Where the checksum is.
pub(super) const CRC_AT: usize = offset_of!(RawLogRecord, h_crc);
/// Bytes of the header that the checksum covers: hosts that align 64-bit numbers to 4 bytes leave out the padding.
const CRC_LENGTHS: [usize; 2] = [size_of::<RawLogRecord>(), offset_of!(RawLogRecord, h_pad0)];
/// Byte order of the log items: little-endian.
pub(super) const FORMAT_LE: u32 = 1;
const WHAT: &str = "log record";

/// A header that holds together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// The header's block.
    pub(super) block: u32,
    pub(super) raw: RawLogRecord,
    /// Blocks of headers.
    pub(super) head_blocks: u32,
    /// Blocks of data.
    pub(super) data_blocks: u32,
}

/// A record and its data.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) header: Header,
    heads: Vec<u8>,
    data: Vec<u8>,
}

impl Header {
    /// Takes a header apart that was read from `block`.
    pub(super) fn parse(ring: &Ring, block: u32, bytes: &[u8]) -> Result<Self> {
        let raw: RawLogRecord = take(bytes, 0, WHAT)?;
        if raw.h_magicno.get() != LOG_MAGIC {
            let found = raw.h_magicno.get();
            return Err(Fault::Magic { what: WHAT, found, expected: LOG_MAGIC }.into());
        }
        let version = raw.h_version.get();
        if version == 0 || version & !3 != 0 {
            return Err(Fault::Field { what: "h_version", found: version.into(), why: "unknown" }.into());
        }
        // Only version 2 has a size of its own. Some versions of mkfs give less than the stripe unit takes.
        let mut size = DATA_PER_HEADER;
        if ring.place.v2 && version & 2 != 0 {
            size = raw.h_size.get().max(DATA_PER_HEADER);
            let lone = raw.h_num_logops.get() == 1;
            if raw.h_len.get() > size && lone && raw.h_len.get() <= ring.place.sunit {
                size = ring.place.sunit;
            }
        }
        let (len, why) = (raw.h_len.get(), "longer than its buffer");
        if size > RECORD_BYTES_MAX || len > size {
            return Err(Fault::Field { what: "h_len", found: len.into(), why }.into());
        }
        let head_blocks = size.div_ceil(DATA_PER_HEADER);
        let data_blocks = len.div_ceil(1 << BASIC_BLOCK_SHIFT);
        if head_blocks.saturating_add(data_blocks) > ring.blocks {
            return Err(Fault::Field { what: "h_len", found: len.into(), why: "longer than the log" }.into());
        }
        Ok(Self { block, raw, head_blocks, data_blocks })
    }

    /// Blocks of headers and data.
    pub(super) fn blocks(&self) -> u32 {
        self.head_blocks.saturating_add(self.data_blocks)
    }

    pub(super) fn lsn(&self) -> Lsn {
        Lsn(self.raw.h_lsn.get())
    }

    pub(super) fn tail(&self) -> Lsn {
        Lsn(self.raw.h_tail_lsn.get())
    }

    /// Checks that the record is of this filesystem; a very old system left the UUID zero.
    pub(super) fn check_uuid(&self, ring: &Ring) -> Result<()> {
        if self.raw.h_fs_uuid != ring.uuid && self.raw.h_fs_uuid != [0; 16] {
            return Err(Fault::ForeignUuid { what: "the log" }.into());
        }
        Ok(())
    }
}

impl Record {
    /// Reads the record whose header is block `at`.
    pub(super) fn read(ring: &Ring, at: u32) -> Result<Self> {
        let header = Header::parse(ring, at, &ring.read(at, 1)?)?;
        if header.data_blocks == 0 {
            let found = header.raw.h_len.get().into();
            return Err(Fault::Field { what: "h_len", found, why: "a record without data" }.into());
        }
        let heads = ring.read(at, header.head_blocks)?;
        let data = ring.read(ring.after(at, header.head_blocks), header.data_blocks)?;
        Ok(Self { header, heads, data })
    }

    /// Checks the checksum; 0 is none, as mkfs writes it into its only record.
    pub(super) fn check(&self, ring: &Ring) -> Result<()> {
        if self.header.raw.h_crc.get() == 0 { Ok(()) } else { self.check_crc(ring) }
    }

    /// Checks the checksum of a record that is to be replayed.
    pub(super) fn check_replayed(&self, ring: &Ring) -> Result<()> {
        if ring.v5 { self.check_crc(ring) } else { Ok(()) }
    }

    fn check_crc(&self, ring: &Ring) -> Result<()> {
        let stored = self.header.raw.h_crc.get();
        let mut computed = 0;
        for len in CRC_LENGTHS {
            computed = checksum(&self.heads, len, self.payload()?, ring.place.v2)?;
            if sum_holds(stored, computed) {
                return Ok(());
            }
        }
        Err(Fault::Checksum { what: WHAT, stored, computed }.into())
    }

    fn payload(&self) -> Result<&[u8]> {
        part(&self.data, 0, index(self.header.raw.h_len.get().into())?, WHAT)
    }

    /// The data with the first words of its blocks put back.
    pub(super) fn unpack(mut self) -> Result<(Header, Vec<u8>)> {
        for (i, block) in self.data.chunks_exact_mut(BASIC_BLOCK).enumerate() {
            let word = part(&self.heads, cycle_data_at(i), 4, "cycle data")?;
            part_mut(block, 0, 4, WHAT)?.copy_from_slice(word);
        }
        let len = self.payload()?.len();
        self.data.truncate(len);
        Ok((self.header, self.data))
    }
}

/// Where the header blocks hold the first word of data block `i`.
pub(super) fn cycle_data_at(i: usize) -> usize {
    const PER_HEADER: usize = 64;
    let (head, within) = (i >> 6, i & (PER_HEADER - 1));
    let first = if head == 0 {
        offset_of!(RawLogRecord, h_cycle_data)
    } else {
        offset_of!(RawLogExtHeader, xh_cycle_data)
    };
    head.saturating_mul(BASIC_BLOCK).saturating_add(first).saturating_add(within.saturating_mul(4))
}

/// The checksum of a record: `header_len` bytes of the header, the further header blocks, the data as stored.
pub(super) fn checksum(heads: &[u8], header_len: usize, data: &[u8], v2: bool) -> Result<u32> {
    let header = part(heads, 0, header_len, WHAT)?;
    let mut crc = crc32c::crc32c(part(header, 0, CRC_AT, WHAT)?);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, header.get(CRC_AT.saturating_add(4)..).unwrap_or_default());
    if v2 {
        let used = data.len().div_ceil(index(DATA_PER_HEADER.into())?);
        for block in heads.chunks_exact(BASIC_BLOCK).take(used).skip(1) {
            crc = crc32c::crc32c_append(crc, part(block, 0, size_of::<RawLogExtHeader>(), WHAT)?);
        }
    }
    Ok(crc32c::crc32c_append(crc, data))
}
