//! The indexes of an .xz file: where its blocks are and what they expand to (.xz file format 1.2, sections 2 and 4).
//!
//! They are found from the end: a stream's footer says how long its index is, the index says how long its blocks are,
//! and so where the stream begins; before it ends another one, or stream padding.

use super::super::spool::SpoolFault;
use crate::block::{Disk, Span};
use crate::error::Result;
use crate::limits::{KIB, MIB};
use crate::wire::{bytes, len64, sum_holds};

/// Bytes of a stream's header, and of its footer.
pub(super) const EDGE: u64 = 12;
/// What a stream begins with.
pub(super) const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// What a stream ends with.
pub(super) const END_MAGIC: [u8; 2] = *b"YZ";
/// Blocks of all streams: `xz -T0` makes them of 24 MiB, and at 1 MiB each these are 1 TiB.
const BLOCKS_MAX: usize = 1 << 20;
/// Bytes of one index: two numbers of nine bytes for each block.
const INDEX_BYTES_MAX: u64 = 18 * MIB + 16;
/// Bytes that are looked at in one go for stream padding.
const PIECE: u64 = 64 * KIB;

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it lies in the file, padding included.
    pub(super) span: Span,
    /// Its bytes without the padding.
    pub(super) unpadded: u64,
    /// Where its content begins in what the file expands to.
    pub(super) at: u64,
    /// Bytes of its content.
    pub(super) size: u64,
    /// The stream's flags: which check its blocks have.
    pub(super) flags: [u8; 2],
}

/// Reads all indexes.
pub(super) fn read(file: &Disk) -> Result<Vec<Block>> {
    let mut streams: Vec<Vec<Block>> = Vec::new();
    let mut count = 0usize;
    let mut end = before_padding(file, file.size())?;
    while end > 0 {
        let (start, blocks) = stream(file, end)?;
        count = count.saturating_add(blocks.len());
        if count > BLOCKS_MAX {
            return Err(damaged(format!("more than {BLOCKS_MAX} blocks")));
        }
        streams.push(blocks);
        end = before_padding(file, start)?;
    }
    let mut at = 0u64;
    let mut all = Vec::with_capacity(count);
    for block in streams.into_iter().rev().flatten() {
        all.push(Block { at, ..block });
        at = at
            .checked_add(block.size)
            .ok_or_else(|| damaged("its blocks expand to more than 2^64 bytes".into()))?;
    }
    Ok(all)
}

pub(super) fn damaged(why: String) -> crate::error::Error {
    SpoolFault::Damaged { what: "xz", why: std::io::Error::other(why) }.into()
}

/// Where the stream ends behind which there is nothing but padding up to `end`.
fn before_padding(file: &Disk, mut end: u64) -> Result<u64> {
    while end > 0 {
        let len = end.min(PIECE);
        let start = end.saturating_sub(len);
        let piece = bytes(file, start, len, PIECE, "xz stream padding")?;
        if let Some(last) = piece.iter().rposition(|b| *b != 0) {
            // Padding is in units of four bytes, and a stream ends in a letter.
            let found = start.saturating_add(len64(last)).saturating_add(1);
            let padding = end.saturating_sub(found);
            return if padding.is_multiple_of(4) {
                Ok(found)
            } else {
                Err(damaged(format!("{padding} bytes of stream padding")))
            };
        }
        end = start;
    }
    Ok(0)
}

/// The blocks of the stream that ends at `end`, with no place in the whole yet, and where it begins.
fn stream(file: &Disk, end: u64) -> Result<(u64, Vec<Block>)> {
    let cut = || SpoolFault::Truncated("xz");
    let footer_at = end.checked_sub(EDGE).ok_or_else(cut)?;
    let footer: [u8; 12] = edge(file, footer_at)?;
    let [c0, c1, c2, c3, b0, b1, b2, b3, f0, f1, y, z] = footer;
    if [y, z] != END_MAGIC {
        // Nothing behind the stream is the rule; an end that is no end is a file that was cut.
        return Err(cut().into());
    }
    let flags = [f0, f1];
    let sum = crc32fast::hash(&[b0, b1, b2, b3, f0, f1]);
    if !sum_holds(u32::from_le_bytes([c0, c1, c2, c3]), sum) {
        return Err(damaged("the stream footer's checksum is wrong".into()));
    }
    let index_len = u64::from(u32::from_le_bytes([b0, b1, b2, b3])).saturating_add(1).saturating_mul(4);
    let index_at = footer_at
        .checked_sub(index_len)
        .ok_or_else(|| damaged("its index is longer than the file".into()))?;
    let index = bytes(file, index_at, index_len, INDEX_BYTES_MAX, "xz index")?;
    let records = records(&index)?;
    let body = records.iter().try_fold(0u64, |sum, (unpadded, _)| sum.checked_add(padded(*unpadded)?));
    let start = body.and_then(|body| index_at.checked_sub(body)?.checked_sub(EDGE));
    let start = start.ok_or_else(|| damaged("its index names more than the file has".into()))?;
    let header: [u8; 12] = edge(file, start)?;
    if !header.starts_with(&MAGIC) || header.get(6..8) != Some(&flags) {
        return Err(damaged("a stream's header is not where its index says".into()));
    }
    if !sum_holds(header.last_chunk::<4>().copied(), Some(crc32fast::hash(&flags).to_le_bytes())) {
        return Err(damaged("the stream header's checksum is wrong".into()));
    }
    let mut at = start.saturating_add(EDGE);
    let mut blocks = Vec::with_capacity(records.len());
    for (unpadded, size) in records {
        let len = padded(unpadded).unwrap_or_default();
        let span = Span::new(at, len).map_err(|_| damaged("a block ends past 2^64".into()))?;
        blocks.push(Block { span, unpadded, at: 0, size, flags });
        at = span.end();
    }
    Ok((start, blocks))
}

fn edge(file: &Disk, at: u64) -> Result<[u8; 12]> {
    let mut edge = [0; 12];
    file.read_at(at, &mut edge)?;
    Ok(edge)
}

/// Length with padding to four bytes.
fn padded(unpadded: u64) -> Option<u64> {
    unpadded.checked_next_multiple_of(4)
}

/// The unpadded and the uncompressed sizes that an index lists (section 4.3).
fn records(index: &[u8]) -> Result<Vec<(u64, u64)>> {
    let broken = |why: &str| damaged(format!("its index {why}"));
    let Some((body, stored)) = index.split_last_chunk::<4>() else { return Err(broken("is too short")) };
    if !sum_holds(u32::from_le_bytes(*stored), crc32fast::hash(body)) {
        return Err(broken("has a wrong checksum"));
    }
    let Some((0, mut rest)) = body.split_first().map(|(b, rest)| (*b, rest)) else {
        return Err(broken("has no indicator"));
    };
    let mut number = || multibyte(&mut rest).ok_or_else(|| broken("has a damaged number"));
    let count = number()?;
    // Each record takes two bytes at least.
    if count > len64(index.len()) {
        return Err(broken("says that it has more records than it can hold"));
    }
    let mut all = Vec::new();
    for _ in 0..count {
        let (unpadded, size) = (number()?, number()?);
        if unpadded < 5 {
            return Err(broken("has a block of less than five bytes"));
        }
        all.push((unpadded, size));
    }
    if rest.len() > 3 || rest.iter().any(|b| *b != 0) {
        return Err(broken("has something behind its records"));
    }
    Ok(all)
}

/// An integer of variable length (section 1.2): seven bits a byte, nine bytes at most, the lowest first.
fn multibyte(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            // The shortest form only.
            return (*byte != 0 || shift == 0).then_some(value);
        }
    }
    None
}

/// The same the other way.
pub(super) fn put_multibyte(mut value: u64, to: &mut Vec<u8>) {
    loop {
        let low = value.to_le_bytes().first().copied().unwrap_or_default() & 0x7f;
        value >>= 7;
        if value == 0 {
            return to.push(low);
        }
        to.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 127, 128, 16383, 16384, u64::MAX >> 1] {
            let mut bytes = Vec::new();
            put_multibyte(value, &mut bytes);
            assert_eq!(multibyte(&mut bytes.as_slice()), Some(value));
        }
        assert_eq!(multibyte(&mut [0x80, 0].as_slice()), None);
        assert_eq!(multibyte(&mut [0xff; 10].as_slice()), None);
        assert_eq!(multibyte(&mut [0x80].as_slice()), None);
    }
}
