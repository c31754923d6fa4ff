//! What deflate is made of: a literal byte, or "repeat so many bytes from so far back".

use super::WINDOW;

/// Shortest and longest match of deflate.
pub(super) const MATCH_MIN: usize = 3;
pub(super) const MATCH_MAX: usize = 258;
/// Symbols of the first alphabet: bytes, the end of a block, lengths.
pub(super) const LITERALS: usize = 286;
/// The symbol that ends a block.
pub(super) const END: usize = 256;
/// Symbols of the second alphabet: distances, as far as the window goes.
pub(super) const DISTANCES: usize = 24;
/// Stands for the distance of a literal: no bits at all.
pub(super) const NO_DISTANCE: usize = 31;
/// Literals and match lengths, each with an index of its own: 256 of either.
pub(super) const INDICES: usize = 512;
/// Index of the shortest match.
pub(super) const INDEX_MATCH: usize = 256;

/// First length of each length symbol.
const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195,
    227, 258,
];
/// First distance of each distance symbol.
const DISTANCE_BASE: [u16; DISTANCES] =
    [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073];

/// How a match length is said: a symbol, and bits behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) symbol: u16,
    pub(super) extra: u16,
    pub(super) extra_bits: u8,
}

/// How each index is said.
pub(super) static SAID: [Said; INDICES] = said();
/// Distance symbol of a distance less one: up to 256 by itself, above by its 128ths.
static SHORT: [u8; 256] = distance_symbols(1);
static LONG: [u8; 32] = distance_symbols(128);

const fn said() -> [Said; INDICES] {
    let mut table = [Said { symbol: 0, extra: 0, extra_bits: 0 }; INDICES];
    let (mut byte, mut slot) = (0u16, 0usize);
    let (mut literals, mut lengths) = table.split_at_mut(INDEX_MATCH);
    while let Some((first, rest)) = literals.split_first_mut() {
        first.symbol = byte;
        byte = byte.wrapping_add(1);
        literals = rest;
    }
    let mut length = 3u16;
    while let Some((first, rest)) = lengths.split_first_mut() {
        let mut bases = LENGTH_BASE.split_at(slot).1;
        if let [_, next, ..] = bases
            && length >= *next
        {
            slot = slot.wrapping_add(1);
            bases = LENGTH_BASE.split_at(slot).1;
        }
        if let [base, rest @ ..] = bases {
            let span = match rest {
                // The last but one ends a length early: the longest has a symbol of its own.
                [next, _, ..] => next.wrapping_sub(*base),
                [_] => 32,
                [] => 1,
            };
            *first = Said {
                symbol: 257u16.wrapping_add(slot_number(slot)),
                extra: length.wrapping_sub(*base),
                extra_bits: low_byte(span.trailing_zeros()),
            };
        }
        length = length.wrapping_add(1);
        lengths = rest;
    }
    table
}

const fn slot_number(slot: usize) -> u16 {
    let [low, high, ..] = slot.to_le_bytes();
    u16::from_le_bytes([low, high])
}

const fn low_byte(n: u32) -> u8 {
    let [low, ..] = n.to_le_bytes();
    low
}

const fn distance_symbols<const N: usize>(step: u16) -> [u8; N] {
    let mut table = [0; N];
    let mut rest: &mut [u8] = &mut table;
    let (mut distance, mut symbol, mut bases) = (1u16, 0u8, DISTANCE_BASE.as_slice());
    while let Some((first, others)) = rest.split_first_mut() {
        while let [_, next, ..] = bases {
            if *next > distance {
                break;
            }
            symbol = symbol.wrapping_add(1);
            bases = bases.split_at(1).1;
        }
        *first = symbol;
        distance = distance.wrapping_add(step);
        rest = others;
    }
    table
}

/// A literal or a match: 9 bits of index, 5 bits of distance symbol, 13 bits of distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Symbol(u32);

impl Symbol {
    /// One byte as it is.
    #[inline(always)]
    pub(super) fn literal(byte: u8) -> Self {
        const NONE: u32 = 31 << 9;
        Self(u32::from(byte) | NONE)
    }

    /// `len` bytes from `distance` back; both are within their limits.
    #[inline(always)]
    pub(super) fn repeat(len: usize, distance: usize) -> Self {
        let before = distance.wrapping_sub(1) & WINDOW.wrapping_sub(1);
        let short = SHORT.get(before & 255).copied().unwrap_or_default();
        let long = LONG.get((before >> 7) & 31).copied().unwrap_or_default();
        let symbol = if before < SHORT.len() { short } else { long };
        let index = INDEX_MATCH | (len.wrapping_sub(MATCH_MIN) & 255);
        let [index, distance] = [index, distance].map(|n| u32::try_from(n & 0x1fff).unwrap_or_default());
        Self(index | u32::from(symbol) << 9 | distance << 14)
    }

    /// The literal or length.
    #[inline(always)]
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0 & 511).unwrap_or_default()
    }

    /// The distance's symbol, or [`NO_DISTANCE`].
    #[inline(always)]
    pub(super) fn distance_symbol(self) -> usize {
        usize::try_from((self.0 >> 9) & 31).unwrap_or_default()
    }

    /// The distance in bytes; 0 for a literal.
    #[inline(always)]
    pub(super) fn distance(self) -> u64 {
        u64::from(self.0 >> 14)
    }
}

/// The first distance of a distance symbol, and how many bits say which one it is.
pub(super) fn distance_of(symbol: usize) -> (u64, u32) {
    let base = DISTANCE_BASE.get(symbol).copied().unwrap_or_default();
    let bits = u32::try_from((symbol >> 1).saturating_sub(1)).unwrap_or_default();
    (u64::from(base), if symbol < DISTANCES { bits } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_distances_are_said_as_the_rfc_says() {
        for (len, symbol, extra, bits) in [
            (3, 257, 0, 0),
            (10, 264, 0, 0),
            (12, 265, 1, 1),
            (18, 268, 1, 1),
            (130, 280, 15, 4),
            (257, 284, 30, 5),
            (258, 285, 0, 0),
        ] {
            let said = SAID[Symbol::repeat(len, 1).index()];
            assert_eq!(said, Said { symbol, extra, extra_bits: bits }, "{len}");
        }
        for distance in 1..=WINDOW {
            let symbol = Symbol::repeat(3, distance);
            assert_eq!(symbol.distance(), distance as u64);
            let (base, bits) = distance_of(symbol.distance_symbol());
            assert!(base <= distance as u64 && (distance as u64) < base + (1 << bits), "{distance}");
        }
        assert_eq!(SAID[usize::from(b'x')].symbol, u16::from(b'x'));
        assert_eq!((Symbol::literal(7).index(), Symbol::literal(7).distance_symbol()), (7, NO_DISTANCE));
    }
}
