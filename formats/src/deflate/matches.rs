//! Finds repetitions.
//!
//! For each hash of four bytes a bucket has the last four places where it was seen, for three bytes the last one.
//! Whether a place is any good shows when its bytes are compared: tables need no "nowhere", and old entries do no
//! harm. The comparison of all candidates is one straight line of code, for a wrong guess of the processor costs
//! more than comparing them all.

use super::WINDOW;
use super::symbol::{MATCH_MAX, MATCH_MIN, Symbol};

/// Bytes that are looked at together: a place fits in 16 bits.
pub(super) const SEGMENT: usize = 1 << 16;
/// Bytes that may be read behind them.
const PAD: usize = 512;

/// Candidates of a bucket that are compared.
const WAYS: usize = 4;
const BUCKETS: usize = 1 << 11;
const THREES: usize = 1 << 10;
/// A match this long is taken without a look at the next byte.
const LAZY_BELOW: usize = 8;
/// Bytes that the first comparison can tell alike.
const FIRST: usize = 7;
/// Inside a longer match only the last places are remembered.
const LONG: usize = 64;
const REMEMBERED: usize = 16;
/// After so many bytes without a match, more and more of them are passed over at a time.
const QUIET: usize = 512;

/// Goes through data segment by segment.
#[derive(Debug)]
pub(super) struct Finder {
    bytes: Box<[u8; SEGMENT + PAD]>,
    /// Bytes of the segment at hand.
    end: usize,
    tables: Tables,
}

/// Where something was seen, as places in the segment.
#[derive(Debug)]
struct Tables {
    /// Four places of 16 bits, the last one lowest.
    fours: Box<[u64; BUCKETS]>,
    threes: Box<[u16; THREES]>,
}

impl Default for Finder {
    fn default() -> Self {
        let tables = Tables { fours: Box::new([0; BUCKETS]), threes: Box::new([0; THREES]) };
        Self { bytes: Box::new([0; SEGMENT + PAD]), end: 0, tables }
    }
}

/// A repetition.
#[derive(Clone, Copy, Debug)]
struct Match {
    len: usize,
    distance: usize,
}

/// Eight bytes from a place on.
#[inline(always)]
fn word(bytes: &[u8; SEGMENT + PAD], at: usize) -> u64 {
    let eight = bytes.get(at..at.wrapping_add(8)).and_then(|b| b.first_chunk());
    eight.map_or(0, |b| u64::from_le_bytes(*b))
}

/// A place as it is kept in a table: all are below 2^16.
#[inline(always)]
fn place(at: usize) -> u16 {
    u16::try_from(at & 0xffff).unwrap_or_default()
}

/// The highest `bits` bits of a product that every bit of `word` has a part in.
#[inline(always)]
fn hash(word: u64, size: usize) -> usize {
    let low = u32::try_from(word & 0xffff_ffff).unwrap_or_default();
    let mixed = low.wrapping_mul(0x9e37_79b1);
    usize::try_from(mixed.wrapping_shr(32u32.wrapping_sub(size.trailing_zeros()))).unwrap_or_default()
}

impl Tables {
    /// Remembers a place where `word` begins; what was known of such words before.
    #[inline(always)]
    fn enter(&mut self, word: u64, at: usize) -> (u64, u16) {
        let four = self.fours.get_mut(hash(word, BUCKETS) & BUCKETS.wrapping_sub(1));
        let bucket = four.map_or(0, |slot| std::mem::replace(slot, *slot << 16 | u64::from(place(at))));
        let three = self.threes.get_mut(hash(word << 8, THREES) & THREES.wrapping_sub(1));
        (bucket, three.map_or(0, |slot| std::mem::replace(slot, place(at))))
    }

    /// The longest match at a place as far as [`FIRST`] bytes tell, and the nearest of those; remembers the place.
    #[inline(always)]
    fn search(&mut self, bytes: &[u8; SEGMENT + PAD], at: usize) -> Match {
        let here = word(bytes, at & 0xffff);
        let (mut bucket, three) = self.enter(here, at);
        let mut best = rate(bytes, here, at, usize::from(three));
        for _ in 0..WAYS {
            best = best.max(rate(bytes, here, at, usize::try_from(bucket & 0xffff).unwrap_or_default()));
            bucket >>= 16;
        }
        Match { len: best >> 16, distance: 0xffff & !best }
    }
}

/// How good a candidate is: the number of equal bytes, at most [`FIRST`], above how near it is; 0 if it is outside
/// the window.
#[inline(always)]
fn rate(bytes: &[u8; SEGMENT + PAD], here: u64, at: usize, candidate: usize) -> usize {
    let differ = (word(bytes, candidate) ^ here) | 1 << 63;
    let equal = usize::try_from(differ.trailing_zeros() >> 3).unwrap_or_default();
    let distance = at.wrapping_sub(candidate);
    let rating = equal << 16 | (0xffff & !distance);
    if distance.wrapping_sub(1) < WINDOW { rating } else { 0 }
}

impl Finder {
    /// Fills `symbols` with what says `fresh`, at most [`SEGMENT`] bytes, or less by [`WINDOW`] if it goes on after
    /// another segment; their number.
    pub(super) fn find(&mut self, fresh: &[u8], goes_on: bool, symbols: &mut [Symbol; SEGMENT]) -> usize {
        self.tables.fours.fill(0);
        self.tables.threes.fill(0);
        let old = if goes_on { self.end.min(WINDOW) } else { 0 };
        self.bytes.copy_within(self.end.saturating_sub(old)..self.end, 0);
        self.end = old.saturating_add(fresh.len()).min(SEGMENT);
        if let Some(place) = self.bytes.get_mut(old..self.end) {
            place.copy_from_slice(fresh.get(..place.len()).unwrap_or_default());
        }
        if let Some(behind) = self.bytes.get_mut(self.end..self.end.saturating_add(PAD)) {
            behind.fill(0);
        }
        for at in 0..old {
            self.tables.enter(word(&self.bytes, at), at);
        }
        self.go_through(old, symbols)
    }

    fn go_through(&mut self, start: usize, symbols: &mut [Symbol; SEGMENT]) -> usize {
        let Self { bytes, end, tables } = self;
        let (bytes, end) = (&**bytes, *end);
        let (mut at, mut count, mut last_match) = (start, 0usize, start);
        let mut put = |symbol: Symbol| {
            if let Some(slot) = symbols.get_mut(count) {
                *slot = symbol;
            }
            count = count.wrapping_add(1);
        };
        let literal = |at: usize| Symbol::literal(bytes.get(at & 0xffff).copied().unwrap_or_default());
        while at < end {
            let mut found = extend(bytes, at, end, tables.search(bytes, at));
            if found.len < MATCH_MIN {
                let quiet = at.wrapping_sub(last_match).div_euclid(QUIET);
                let next = at.wrapping_add(1).wrapping_add(quiet).min(end);
                while at < next {
                    put(literal(at));
                    at = at.wrapping_add(1);
                }
                continue;
            }
            let mut known = at.wrapping_add(1);
            while found.len < LAZY_BELOW && known < end {
                let other = extend(bytes, known, end, tables.search(bytes, known));
                known = known.wrapping_add(1);
                if other.len <= found.len {
                    break;
                }
                put(literal(at));
                at = at.wrapping_add(1);
                found = other;
            }
            put(Symbol::repeat(found.len, found.distance));
            at = at.wrapping_add(found.len);
            if found.len > LONG {
                known = known.max(at.wrapping_sub(REMEMBERED));
            }
            for place in known..at {
                tables.enter(word(bytes, place & 0xffff), place);
            }
            last_match = at;
        }
        count
    }
}

/// The match in its full length.
#[inline(always)]
fn extend(bytes: &[u8; SEGMENT + PAD], at: usize, end: usize, found: Match) -> Match {
    let Match { mut len, distance } = found;
    let from = at.wrapping_sub(distance);
    while (FIRST..MATCH_MAX).contains(&len) {
        let differ = word(bytes, at.wrapping_add(len)) ^ word(bytes, from.wrapping_add(len));
        if differ != 0 {
            len = len
                .wrapping_add(usize::try_from((differ | 1 << 63).trailing_zeros() >> 3).unwrap_or_default());
            break;
        }
        len = len.wrapping_add(8);
    }
    Match { len: len.min(MATCH_MAX).min(end.wrapping_sub(at)), distance }
}
