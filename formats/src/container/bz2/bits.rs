//! Bits of a bzip2 file: blocks begin and end at any of them.

use std::io::{self, BufRead, BufReader, Seek, SeekFrom};

use crate::block::{Disk, Reader};
use crate::wire::len64;

/// The digits of pi that begin a block, and those of its square root that end a stream.
pub(super) const BLOCK: u64 = 0x3141_5926_5359;
pub(super) const END: u64 = 0x1772_4538_5090;
/// Bits of these marks.
pub(super) const MARK_BITS: u64 = 48;
const MARK: u64 = (1 << MARK_BITS) - 1;
/// Bytes read at once from below.
const INPUT: usize = 64 << 10;

/// Whether these bytes are a mark.
pub(super) fn is_mark([a, b, c, d, e, f]: [u8; 6]) -> bool {
    matches!(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), BLOCK | END)
}

/// Reads bits, the highest of a byte first.
pub(super) struct Bits {
    from: BufReader<Reader>,
    /// What was read last, the latest bit lowest.
    last: u64,
    /// Bits read so far.
    at: u64,
    /// Bits of `last` that were given back, to be read again.
    left: u32,
}

impl Bits {
    /// At bit `at` of `file`.
    pub(super) fn new(file: Disk, at: u64) -> io::Result<Self> {
        let mut from = BufReader::with_capacity(INPUT, Reader::new(file));
        from.seek(SeekFrom::Start(at >> 3))?;
        let mut bits = Self { from, last: 0, at: at & !7, left: 0 };
        bits.number(u32::try_from(at & 7).unwrap_or_default())?;
        Ok(bits)
    }

    /// Bits read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// A number of so many bits, 56 at most.
    pub(super) fn number(&mut self, bits: u32) -> io::Result<u64> {
        while self.left < bits {
            let byte = self.byte()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.last = (self.last << 8) | u64::from(byte);
            self.left = self.left.saturating_add(8);
        }
        self.left = self.left.saturating_sub(bits);
        self.at = self.at.saturating_add(u64::from(bits));
        let mask = u64::MAX.checked_shr(64u32.saturating_sub(bits)).unwrap_or_default();
        Ok((self.last >> self.left) & mask)
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.from.fill_buf()?.first().copied();
        if byte.is_some() {
            self.from.consume(1);
        }
        Ok(byte)
    }

    /// The bit at which the next mark begins, from the byte on that is next to be read; what looks like a mark may be
    /// chance. `None` at the end of the file.
    pub(super) fn find(&mut self, marks: &Marks) -> io::Result<Option<u64>> {
        let begin = self.at;
        let mut last = self.last;
        loop {
            let ahead = self.from.fill_buf()?;
            if ahead.is_empty() {
                return Ok(None);
            }
            let (mut used, mut found) = (0usize, None);
            for byte in ahead {
                last = (last << 8) | u64::from(*byte);
                used = used.saturating_add(1);
                // The byte before the last is all in the mark, however that lies.
                let [.., before, _] = last.to_be_bytes();
                let shifts = marks.at(before);
                if shifts != 0 {
                    let end = self.at.saturating_add(len64(used).saturating_mul(8));
                    found = look(last, shifts, end).filter(|at| *at >= begin);
                    if found.is_some() {
                        break;
                    }
                }
            }
            self.from.consume(used);
            self.at = self.at.saturating_add(len64(used).saturating_mul(8));
            self.last = last;
            if found.is_some() {
                return Ok(found);
            }
        }
    }
}

/// Where a mark begins that ends in the last byte read, which ends at bit `end`.
fn look(last: u64, shifts: u8, end: u64) -> Option<u64> {
    (0..8u32).rev().filter(|s| shifts.checked_shr(*s).is_some_and(|b| b & 1 == 1)).find_map(|shift| {
        let mark = (last >> shift) & MARK;
        let at = end.checked_sub(u64::from(shift))?.checked_sub(MARK_BITS)?;
        (mark == BLOCK || mark == END).then_some(at)
    })
}

/// For each byte, whether it can be the last but one of a mark that ends so many bits before the end of the next byte.
pub(super) struct Marks([u8; 256]);

impl Marks {
    pub(super) fn new() -> Self {
        let mut table = [0u8; 256];
        for mark in [BLOCK, END] {
            for shift in 0..8u32 {
                // Seen `shift` bits before the end of a byte, bits 8 to 15 of the register are these of the mark.
                let byte = (mark.checked_shl(shift).unwrap_or_default() >> 8) & 0xff;
                if let Some(entry) = usize::try_from(byte).ok().and_then(|b| table.get_mut(b)) {
                    *entry |= 1u8.checked_shl(shift).unwrap_or_default();
                }
            }
        }
        Self(table)
    }

    fn at(&self, byte: u8) -> u8 {
        self.0.get(usize::from(byte)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    #[test]
    fn marks_are_found_at_every_bit() {
        let marks = Marks::new();
        for mark in [BLOCK, END] {
            for shift in 0..8u64 {
                let mut bytes = vec![0x5a; 5];
                bytes.extend(((mark << (16 - shift)) | (0xa5a5 >> shift & 0xff)).to_be_bytes());
                bytes.extend([0xff; 9]);
                let disk = Disk::new(MemDevice::from_bytes(bytes));
                let mut bits = Bits::new(disk.clone(), 8).unwrap();
                assert_eq!(bits.find(&marks).unwrap(), Some(40 + shift));
                assert_eq!(bits.find(&marks).unwrap(), None);
                let mut bits = Bits::new(disk, 40 + shift).unwrap();
                assert_eq!(bits.number(48).unwrap(), mark);
                assert_eq!(bits.at(), 88 + shift);
            }
        }
    }
}
