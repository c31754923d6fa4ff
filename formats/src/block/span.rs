//! Ranges whose end is known not to overflow, and block sizes known to be powers of two.

use std::fmt;

use crate::error::{Common, Result};

/// An exact range of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    start: u64,
    len: u64,
}

impl Span {
    /// The range of `len` bytes at `start`; an error if its end does not fit into 64 bits.
    pub fn new(start: u64, len: u64) -> Result<Self> {
        match start.checked_add(len) {
            Some(_) => Ok(Self { start, len }),
            None => Err(Common::RangeWraps { start, len }.into()),
        }
    }

    /// The range from 0 to `len`.
    pub const fn first(len: u64) -> Self {
        Self { start: 0, len }
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The byte behind the last one.
    pub const fn end(self) -> u64 {
        // Proven by the constructors.
        self.start.saturating_add(self.len)
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether all of `inner` lies in it.
    pub const fn contains(self, inner: Self) -> bool {
        inner.start >= self.start && inner.end() <= self.end()
    }

    /// What both have in common, if anything.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end().min(other.end()));
        (start < end).then(|| Self { start, len: end.saturating_sub(start) })
    }

    /// The first `len` bytes at most.
    pub fn truncate(self, len: u64) -> Self {
        Self { start: self.start, len: self.len.min(len) }
    }

    /// What remains behind the first `len` bytes.
    pub fn skip(self, len: u64) -> Self {
        let len = len.min(self.len);
        Self { start: self.start.saturating_add(len), len: self.len.saturating_sub(len) }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start, self.len)
    }
}

/// The size of a block in bytes, a power of two.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSize {
    shift: u32,
}

impl BlockSize {
    /// `1 << shift` bytes; `None` from 2^63 on.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        if shift < 63 { Some(Self { shift }) } else { None }
    }

    /// `bytes`, if that is a power of two below 2^63.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() { Self::from_shift(bytes.trailing_zeros()) } else { None }
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Binary logarithm of the size.
    pub const fn shift(self) -> u32 {
        self.shift
    }

    /// The number of the block that holds byte `at`, and the byte's place within it.
    pub const fn split(self, at: u64) -> (u64, u64) {
        (at >> self.shift, at & self.mask())
    }

    /// The first byte of block `index`; `None` if that does not fit into 64 bits.
    pub const fn start_of(self, index: u64) -> Option<u64> {
        index.checked_mul(self.bytes())
    }

    /// `at` rounded down to a whole block.
    pub const fn floor(self, at: u64) -> u64 {
        at & !self.mask()
    }

    /// `at` rounded up to a whole block; `None` if that does not fit into 64 bits.
    pub const fn ceil(self, at: u64) -> Option<u64> {
        match at.checked_add(self.mask()) {
            Some(n) => Some(n & !self.mask()),
            None => None,
        }
    }

    /// How many blocks hold `bytes`.
    pub const fn count(self, bytes: u64) -> u64 {
        let whole = bytes >> self.shift;
        if bytes & self.mask() == 0 { whole } else { whole.saturating_add(1) }
    }

    /// Whether `at` is a multiple of the size.
    pub const fn aligned(self, at: u64) -> bool {
        at & self.mask() == 0
    }

    const fn mask(self) -> u64 {
        self.bytes().wrapping_sub(1)
    }
}

impl fmt::Debug for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_never_wrap() {
        assert!(Span::new(u64::MAX, 1).is_err());
        assert_eq!(Span::new(u64::MAX, 0).unwrap().end(), u64::MAX);
    }

    #[test]
    fn blocks_split_and_round() {
        let b = BlockSize::from_bytes(512).unwrap();
        assert_eq!(b.split(1025), (2, 1));
        assert_eq!((b.floor(1025), b.ceil(1025), b.count(1025)), (1024, Some(1536), 3));
        assert_eq!(b.ceil(u64::MAX), None);
        assert_eq!(BlockSize::from_bytes(513), None);
    }
}
