//! Bits of a bitmap: found, set and cleared by words.

/// Bits of a word.
const WORD: usize = 64;

/// The first bit from `from` on, and before `end`, that is set, or clear; `end` if there is none.
fn find(bits: &[u8], from: usize, end: usize, set: bool) -> usize {
    let mut at = from;
    while at < end {
        let start = at & !(WORD.saturating_sub(1));
        let Some(bytes) = bits.get(start >> 3..).and_then(|b| b.first_chunk::<8>()) else { return end };
        let word = u64::from_le_bytes(*bytes) ^ if set { 0 } else { u64::MAX };
        let skip = u32::try_from(at.saturating_sub(start)).unwrap_or(0);
        let masked = word & u64::MAX.wrapping_shl(skip);
        if masked != 0 {
            let found = start.saturating_add(usize::try_from(masked.trailing_zeros()).unwrap_or(0));
            return found.min(end);
        }
        at = start.saturating_add(WORD);
    }
    end
}

/// The first clear bit of `from..end`, or `end`.
pub(in super::super) fn next_clear(bits: &[u8], from: usize, end: usize) -> usize {
    find(bits, from, end, false)
}

/// The first set bit of `from..end`, or `end`.
pub(in super::super) fn next_set(bits: &[u8], from: usize, end: usize) -> usize {
    find(bits, from, end, true)
}

/// Sets or clears the bits `from..end`.
pub(in super::super) fn fill(bits: &mut [u8], from: usize, end: usize, set: bool) {
    let mut at = from;
    while at < end {
        let first = at & 7;
        let count = 8usize.saturating_sub(first).min(end.saturating_sub(at));
        let ones = u8::MAX.checked_shr(u32::try_from(8usize.saturating_sub(count)).unwrap_or(0)).unwrap_or(0);
        let mask = ones.wrapping_shl(u32::try_from(first).unwrap_or(0));
        if let Some(byte) = bits.get_mut(at >> 3) {
            *byte = if set { *byte | mask } else { *byte & !mask };
        }
        at = at.saturating_add(count);
    }
}

/// How many of the bits `0..end` are clear.
pub(in super::super) fn count_clear(bits: &[u8], end: usize) -> usize {
    let (whole, rest) = (end >> 3, end & 7);
    let ones: usize = bits
        .get(..whole)
        .unwrap_or_default()
        .iter()
        .map(|b| usize::try_from(b.count_zeros()).unwrap_or(0))
        .fold(0, usize::saturating_add);
    let last = (0..rest).filter(|bit| bits.get(whole).is_some_and(|b| b >> bit & 1 == 0)).count();
    ones.saturating_add(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_across_words() {
        let mut bits = vec![0u8; 32];
        fill(&mut bits, 3, 131, true);
        assert_eq!(next_clear(&bits, 3, 256), 131);
        assert_eq!(next_set(&bits, 0, 256), 3);
        assert_eq!(next_set(&bits, 131, 256), 256);
        assert_eq!(next_clear(&bits, 3, 100), 100);
        assert_eq!(count_clear(&bits, 256), 128);
        assert_eq!(count_clear(&bits, 5), 3);
        fill(&mut bits, 60, 70, false);
        assert_eq!((next_clear(&bits, 3, 256), next_set(&bits, 60, 256)), (60, 70));
        fill(&mut bits, 7, 8, false);
        assert_eq!(next_clear(&bits, 3, 256), 7);
    }
}
