//! Tar archives as disks: headers in memory, contents where they are.
//!
//! POSIX ustar headers, as OVF asks for; a member of 8 GiB or more has its size in GNU's binary form, which every
//! reader of such files understands. Sparse members are those of the old GNU format, which is what Google Compute
//! Engine imports.

use crate::block::{Disk, MemDevice, Span};
use crate::convert::Concat;
use crate::error::{Common, Result};
use crate::limits::KIB;
use crate::wire::{len64, part_mut};

/// Bytes of a header, and unit of everything.
const BLOCK: u64 = 512;
/// Archives end with zeroes up to a multiple of this.
const RECORD: u64 = 20 * BLOCK;
/// Digits of octal numbers of twelve bytes reach this far.
const OCTAL_END: u64 = 1 << 33;
/// Sparse entries in a header, and in a block that extends it.
const ENTRIES: usize = 4;
const MORE_ENTRIES: usize = 21;
/// Data of sparse members begin and end at multiples of this.
const PAGE: u64 = 4 * KIB;
/// Holes shorter than this are stored as data.
const HOLE_MIN: u64 = 64 * KIB;
/// Holes that one member may have: a quarter of what racker reads.
const HOLES_MAX: u64 = 1 << 18;

/// A regular file of an archive.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) content: Disk,
}

/// The archive of `members`, whose files are of `time`.
pub(super) fn archive(members: Vec<Member>, time: u64) -> Result<Disk> {
    let mut parts = Vec::new();
    for member in members {
        let header = header(&member.name, member.content.size(), time, *b"ustar\x0000")?;
        parts.push(memory(header));
        parts.push(member.content);
    }
    end(parts)
}

/// An archive of one sparse file, which holds what is not hole in `content`.
pub fn sparse_member(name: &str, content: &Disk, time: u64) -> Result<Disk> {
    let regions = regions(content)?;
    let stored: u64 = regions.iter().map(|r| r.len()).sum();
    let mut first = header(name, stored, time, *b"ustar  \0")?;
    // The map ends with the file: a region without bytes marks an end behind a hole.
    let mut entries: Vec<(u64, u64)> = regions.iter().map(|r| (r.start(), r.len())).collect();
    if regions.last().is_none_or(|r| r.end() < content.size()) {
        entries.push((content.size(), 0));
    }
    put(&mut first, 156, b"S")?;
    let (here, mut rest) = entries.split_at(entries.len().min(ENTRIES));
    put_entries(&mut first, 386, here)?;
    put(&mut first, 482, &[u8::from(!rest.is_empty())])?;
    put(&mut first, 483, &number(content.size()))?;
    seal(&mut first)?;
    let mut map = first;
    while !rest.is_empty() {
        let (here, later) = rest.split_at(rest.len().min(MORE_ENTRIES));
        let mut block = vec![0; 512];
        put_entries(&mut block, 0, here)?;
        put(&mut block, 504, &[u8::from(!later.is_empty())])?;
        map.extend_from_slice(&block);
        rest = later;
    }
    let mut parts = vec![memory(map)];
    for region in regions {
        parts.push(content.slice(region)?);
    }
    end(parts)
}

/// Parts in blocks, and what ends an archive.
fn end(mut parts: Vec<Disk>) -> Result<Disk> {
    let used: u64 = parts.iter().map(|p| p.size().next_multiple_of(BLOCK)).sum();
    let rest = used.saturating_add(2 * BLOCK).next_multiple_of(RECORD).saturating_sub(used);
    parts.push(memory(vec![0; crate::wire::index(rest)?]));
    Ok(Disk::new(Concat::new(parts, BLOCK)?))
}

fn memory(bytes: Vec<u8>) -> Disk {
    Disk::new(MemDevice::from_bytes(bytes))
}

/// What is not hole, in order.
fn regions(disk: &Disk) -> Result<Vec<Span>> {
    let hole_min = HOLE_MIN.max(disk.size() / HOLES_MAX).next_multiple_of(PAGE);
    let mut found: Vec<Span> = Vec::new();
    for run in disk.runs(Span::first(disk.size())) {
        let (span, kind) = run?;
        if kind.is_zero() {
            continue;
        }
        let start = (span.start() / PAGE).saturating_mul(PAGE);
        let end = span.end().next_multiple_of(PAGE).min(disk.size());
        match found.last_mut() {
            Some(last) if start.saturating_sub(last.end()) < hole_min => {
                *last = Span::new(last.start(), end.max(last.end()).saturating_sub(last.start()))?;
            }
            _ => found.push(Span::new(start, end.saturating_sub(start))?),
        }
    }
    Ok(found)
}

/// The header of a regular file.
fn header(name: &str, size: u64, time: u64, magic: [u8; 8]) -> Result<Vec<u8>> {
    let mut raw = vec![0; 512];
    // 100 bytes, which need not end with a zero.
    put(&mut raw, 0, name.as_bytes().get(..name.len().min(100)).unwrap_or_default())?;
    put(&mut raw, 100, b"0000644\0")?;
    put(&mut raw, 108, b"0000000\0")?;
    put(&mut raw, 116, b"0000000\0")?;
    put(&mut raw, 124, &number(size))?;
    put(&mut raw, 136, &number(time))?;
    put(&mut raw, 156, b"0")?;
    put(&mut raw, 257, &magic)?;
    put(&mut raw, 265, b"root")?;
    put(&mut raw, 297, b"root")?;
    seal(&mut raw)?;
    Ok(raw)
}

/// Writes the checksum, which is computed with spaces in its place.
fn seal(raw: &mut [u8]) -> Result<()> {
    put(raw, 148, b"        ")?;
    let sum: u32 = raw.iter().map(|b| u32::from(*b)).sum();
    put(raw, 148, format!("{sum:06o}\0 ").as_bytes())
}

/// A number of twelve bytes: octal digits, or binary behind a set bit where they do not reach.
fn number(n: u64) -> [u8; 12] {
    let mut raw = [0; 12];
    if n < OCTAL_END {
        let digits = format!("{n:011o}");
        raw.iter_mut().zip(digits.bytes()).for_each(|(to, from)| *to = from);
    } else {
        raw.iter_mut().rev().zip(n.to_le_bytes()).for_each(|(to, from)| *to = from);
        raw[0] = 0x80;
    }
    raw
}

fn put_entries(raw: &mut [u8], at: usize, entries: &[(u64, u64)]) -> Result<()> {
    let mut at = at;
    for (start, len) in entries {
        put(raw, at, &[number(*start), number(*len)].concat())?;
        at = at.saturating_add(24);
    }
    Ok(())
}

fn put(raw: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    if len64(bytes.len()) > BLOCK {
        return Err(Common::Index(len64(bytes.len())).into());
    }
    part_mut(raw, at, bytes.len(), "tar header")?.copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_as_long_as_that_reaches() {
        assert_eq!(&number(8), b"00000000010\0");
        assert_eq!(&number(OCTAL_END - 1), b"77777777777\0");
        assert_eq!(number(OCTAL_END), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }
}
