//! Where what a stream expands to is zero, as found on the way through it.

use crate::block::Span;
use crate::wire::{is_zero, len64};

/// Zeroes are looked for in blocks of this many bytes: the block of common filesystems.
const BLOCK: u64 = 4096;
/// Stretches that are kept: 1 MiB of memory. When there are more, the shorter ones count as data.
const KEPT_MAX: usize = 64 << 10;

/// Stretches of whole blocks that are zero.
#[derive(Debug)]
pub(in super::super) struct Zeroes {
    /// Start and end, in order; none touches the next one.
    stretches: Vec<(u64, u64)>,
    /// The shortest that is kept.
    least: u64,
    /// Bytes seen so far.
    at: u64,
    /// Where the stretch at hand begins: nothing but zeroes from here to the last whole block.
    from: u64,
    /// The block at hand has something in it.
    dirty: bool,
}

impl Zeroes {
    /// Before the first byte.
    pub(in super::super) fn new() -> Self {
        Self { stretches: Vec::new(), least: BLOCK, at: 0, from: 0, dirty: false }
    }

    /// Bytes seen so far.
    pub(in super::super) fn seen(&self) -> u64 {
        self.at
    }

    /// Looks at the next bytes.
    pub(in super::super) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let into = self.at.checked_rem(BLOCK).unwrap_or_default();
            let left = usize::try_from(BLOCK.saturating_sub(into)).unwrap_or(bytes.len());
            let (now, rest) = bytes.split_at(left.min(bytes.len()));
            self.dirty = self.dirty || !is_zero(now);
            self.at = self.at.saturating_add(len64(now.len()));
            if now.len() == left {
                self.close(self.at.saturating_sub(BLOCK));
            }
            bytes = rest;
        }
    }

    /// Sees the end.
    pub(in super::super) fn finish(&mut self) {
        let into = self.at.checked_rem(BLOCK).unwrap_or_default();
        self.close(self.at.saturating_sub(into));
        self.keep(self.at);
    }

    /// Ends the block that begins at `start`.
    fn close(&mut self, start: u64) {
        if self.dirty {
            self.keep(start);
            self.from = self.at;
            self.dirty = false;
        }
    }

    /// Keeps the stretch at hand, which ends at `end`.
    fn keep(&mut self, end: u64) {
        if end.saturating_sub(self.from) < self.least {
            return;
        }
        self.stretches.push((self.from, end));
        while self.stretches.len() > KEPT_MAX {
            self.least = self.least.saturating_mul(2);
            let least = self.least;
            self.stretches.retain(|(start, end)| end.saturating_sub(*start) >= least);
        }
    }

    /// Whether the beginning of `span` is known to be zero, and for how many of its bytes that answer holds.
    pub(in super::super) fn first(&self, span: Span) -> (bool, u64) {
        let next = self.stretches.partition_point(|(_, end)| *end <= span.start());
        let (zero, until) = match self.stretches.get(next) {
            Some((start, end)) if *start <= span.start() => (true, *end),
            Some((start, _)) => (false, *start),
            None => (false, u64::MAX),
        };
        (zero, until.min(span.end()).saturating_sub(span.start()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_do_not_depend_on_how_the_bytes_come() {
        let mut bytes = vec![0; 10 * 4096 + 100];
        for at in [0, 3 * 4096 - 1, 3 * 4096, 8 * 4096 + 17] {
            bytes[at] = 1;
        }
        for step in [1, 7, 4095, 4096, 4097, bytes.len()] {
            let mut zeroes = Zeroes::new();
            bytes.chunks(step).for_each(|c| zeroes.add(c));
            zeroes.finish();
            let want = [(4096, 2 * 4096), (4 * 4096, 8 * 4096), (9 * 4096, 10 * 4096 + 100)];
            assert_eq!(zeroes.stretches, want, "{step}");
            let first = |at, len| zeroes.first(Span::new(at, len).unwrap());
            assert_eq!(first(0, 9000), (false, 4096));
            assert_eq!(first(5000, 10), (true, 10));
            assert_eq!(first(5000, 9000), (true, 2 * 4096 - 5000));
            assert_eq!(first(8 * 4096, 1), (false, 1));
            assert_eq!(first(10 * 4096 + 99, 1), (true, 1));
        }
    }

    #[test]
    fn too_many_stretches_cost_the_short_ones() {
        let mut zeroes = Zeroes::new();
        let mut block = [0; 8192];
        block[8191] = 1;
        for _ in 0..KEPT_MAX + 1 {
            zeroes.add(&block);
        }
        zeroes.add(&[0; 65536]);
        zeroes.finish();
        assert_eq!(zeroes.stretches.len(), 1);
        assert_eq!(zeroes.first(Span::first(8)), (false, 8));
    }
}
