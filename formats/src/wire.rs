//! Fields out of untrusted bytes, and back. Nothing here panics.

use std::ops::Range;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::block::Disk;
use crate::error::{Common, Result};

/// Bytes that can be seen as a structure, wherever they lie.
pub trait Layout: FromBytes + KnownLayout + Immutable + Unaligned {}
impl<T: FromBytes + KnownLayout + Immutable + Unaligned> Layout for T {}

/// Sees the first bytes as a `T`; `what` names it in the error.
pub fn view<'a, T: Layout>(bytes: &'a [u8], what: &'static str) -> Result<&'a T> {
    match T::ref_from_prefix(bytes) {
        Ok((t, _)) => Ok(t),
        Err(_) => Err(Common::Short { what, need: size_of::<T>(), have: bytes.len() }.into()),
    }
}

/// Copies a `T` out of the bytes at `at`.
pub fn take<T: Layout>(bytes: &[u8], at: usize, what: &'static str) -> Result<T> {
    let rest = bytes.get(at..).unwrap_or_default();
    match T::read_from_prefix(rest) {
        Ok((t, _)) => Ok(t),
        Err(_) => Err(Common::Short { what, need: size_of::<T>(), have: rest.len() }.into()),
    }
}

/// The `len` bytes at `at`, or an error that names `what`.
pub fn part<'a>(bytes: &'a [u8], at: usize, len: usize, what: &'static str) -> Result<&'a [u8]> {
    at.checked_add(len)
        .and_then(|end| bytes.get(at..end))
        .ok_or_else(|| Common::Short { what, need: at.saturating_add(len), have: bytes.len() }.into())
}

/// The `len` bytes at `at`, to be changed.
pub fn part_mut<'a>(bytes: &'a mut [u8], at: usize, len: usize, what: &'static str) -> Result<&'a mut [u8]> {
    let have = bytes.len();
    at.checked_add(len)
        .and_then(|end| bytes.get_mut(at..end))
        .ok_or_else(|| Common::Short { what, need: at.saturating_add(len), have }.into())
}

/// Reads `len` bytes at `at` of a disk into fresh memory; `len` meets `max` first.
pub fn bytes(disk: &Disk, at: u64, len: u64, max: u64, what: &'static str) -> Result<Vec<u8>> {
    if len > max {
        return Err(Common::TooLarge { what, need: len, max }.into());
    }
    disk.check(at, len)?;
    let mut buf = vec![0; index(len)?];
    disk.read_at(at, &mut buf)?;
    Ok(buf)
}

/// Reads one `T` at `at` of a disk.
pub fn read<T: Layout>(disk: &Disk, at: u64, what: &'static str) -> Result<T> {
    let len = u64::try_from(size_of::<T>()).map_err(|_| Common::Index(u64::MAX))?;
    take(&bytes(disk, at, len, len, what)?, 0, what)
}

/// Reads `count` entries of `T` at `at` of a disk; their size in bytes meets `max` first.
pub fn table<T: Layout + Copy>(
    disk: &Disk,
    at: u64,
    count: u64,
    max: u64,
    what: &'static str,
) -> Result<Vec<T>> {
    let each = u64::try_from(size_of::<T>()).map_err(|_| Common::Index(u64::MAX))?;
    let len = count.checked_mul(each).ok_or(Common::TooLarge { what, need: u64::MAX, max })?;
    let raw = bytes(disk, at, len, max, what)?;
    match <[T]>::ref_from_bytes(&raw) {
        Ok(all) => Ok(all.to_vec()),
        Err(_) => Err(Common::Short { what, need: raw.len(), have: raw.len() }.into()),
    }
}

/// A number as an index into memory.
pub fn index(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| Common::Index(n).into())
}

/// A length in memory as a number of bytes.
pub fn len64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Whether all bytes are zero, at memory speed.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folding whole blocks lets the compiler use vectors; a block at a time ends early on data.
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks.iter().all(|b| {
        let (words, _) = b.as_chunks::<8>();
        words.iter().fold(0u64, |acc, w| acc | u64::from_ne_bytes(*w)) == 0
    }) && rest.iter().fold(0u8, |acc, b| acc | b) == 0
}

/// The runs of blocks of `block` bytes that are not all zero, in order, neighbours joined. The last block may be
/// shorter.
pub fn data_runs(bytes: &[u8], block: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = 0usize;
    std::iter::from_fn(move || {
        let mut start = None;
        while let Some(rest) = bytes.get(at..).filter(|r| !r.is_empty()) {
            let (this, _) = rest.split_at(block.clamp(1, rest.len()));
            match (is_zero(this), start) {
                (true, Some(start)) => return Some(start..at),
                (true, None) => {}
                (false, None) => start = Some(at),
                (false, Some(_)) => {}
            }
            at = at.saturating_add(this.len());
        }
        start.map(|start| start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_found_whatever_the_length() {
        for len in [0usize, 1, 7, 255, 256, 257, 4096, 5000] {
            let mut v = vec![0u8; len];
            assert!(is_zero(&v));
            if let Some(last) = v.last_mut() {
                *last = 1;
                assert!(!is_zero(&v));
            }
        }
    }

    #[test]
    fn runs_of_data_are_whole_blocks() {
        let mut v = vec![0u8; 4 * 16 + 5];
        let runs = |v: &[u8]| data_runs(v, 16).collect::<Vec<_>>();
        assert_eq!(runs(&v), []);
        v[17] = 1;
        v[47] = 1;
        v[68] = 1;
        assert_eq!(runs(&v), [16..48, 64..69]);
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[1, 0]).first(), Some(&(0..2)));
    }

    #[test]
    fn short_structures_are_errors() {
        assert!(view::<[u8; 4]>(&[1, 2, 3], "x").is_err());
        assert!(take::<[u8; 4]>(&[1, 2, 3, 4], 1, "x").is_err());
        assert!(part(&[1, 2, 3], usize::MAX, 2, "x").is_err());
    }
}
