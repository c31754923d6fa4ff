//! Marks for numbers from a large range, which take memory only where there are any: a bit for each block or inode.

/// Bits of a word, and words of a chunk.
const WORD: u64 = 64;
const WORDS: usize = 512;
/// Bits of a chunk: 4 KiB.
const CHUNK: u64 = 32768;

/// Bits by number.
#[derive(Debug, Default)]
pub(super) struct Bits {
    chunks: Vec<Option<Box<[u64; WORDS]>>>,
}

/// The word of a chunk that holds a bit, and the bit's mask.
fn place(bit: u64) -> (usize, usize, u64) {
    let chunk = usize::try_from(bit >> 15).unwrap_or(usize::MAX);
    let word = usize::try_from((bit & 0x7fff) >> 6).unwrap_or(0);
    (chunk, word, 1u64.wrapping_shl(u32::try_from(bit & 63).unwrap_or(0)))
}

impl Bits {
    /// Whether a bit is set.
    pub(super) fn get(&self, bit: u64) -> bool {
        let (chunk, word, mask) = place(bit);
        let held = self.chunks.get(chunk).and_then(Option::as_ref).and_then(|c| c.get(word));
        held.is_some_and(|word| word & mask != 0)
    }

    fn word_mut(&mut self, bit: u64) -> Option<&mut u64> {
        let (chunk, word, _) = place(bit);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk.checked_add(1)?, || None);
        }
        let chunk = self.chunks.get_mut(chunk)?.get_or_insert_with(|| Box::new([0; WORDS]));
        chunk.get_mut(word)
    }

    /// Sets a bit; tells whether it was clear.
    pub(super) fn set(&mut self, bit: u64) -> bool {
        self.set_run(bit, 1).is_none()
    }

    /// Sets `len` bits from `start` on; returns the first of them that was set already.
    pub(super) fn set_run(&mut self, start: u64, len: u64) -> Option<u64> {
        let end = start.saturating_add(len);
        let (mut at, mut found) = (start, None);
        while at < end {
            let first = at & 63;
            let count = WORD.saturating_sub(first).min(end.saturating_sub(at));
            let ones = u64::MAX.wrapping_shr(u32::try_from(WORD.saturating_sub(count)).unwrap_or(0));
            let mask = ones.wrapping_shl(u32::try_from(first).unwrap_or(0));
            if let Some(word) = self.word_mut(at) {
                let both = *word & mask;
                if both != 0 && found.is_none() {
                    let bit = at.saturating_sub(first).saturating_add(both.trailing_zeros().into());
                    found = Some(bit);
                }
                *word |= mask;
            }
            at = at.saturating_add(count);
        }
        found
    }

    /// The first bit that is set among `len` from `start` on.
    pub(super) fn first_set(&self, start: u64, len: u64) -> Option<u64> {
        let end = start.saturating_add(len);
        let mut at = start;
        while at < end {
            let (chunk, word, _) = place(at);
            let Some(held) = self.chunks.get(chunk).and_then(Option::as_ref) else {
                at = (at | CHUNK.saturating_sub(1)).saturating_add(1);
                continue;
            };
            let first = at & 63;
            let found = held.get(word).copied().unwrap_or(0)
                & u64::MAX.wrapping_shl(u32::try_from(first).unwrap_or(0));
            let base = at.saturating_sub(first);
            if found != 0 {
                let bit = base.saturating_add(found.trailing_zeros().into());
                return Some(bit).filter(|bit| *bit < end);
            }
            at = base.saturating_add(WORD);
        }
        None
    }

    /// The bits `start..start + len` as a bitmap on disk has them.
    pub(super) fn bytes(&self, start: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0u8; len.div_ceil(8)];
        let (mut at, end) = (start, start.saturating_add(u64::try_from(len).unwrap_or(0)));
        let mut put = 0usize;
        while at < end {
            let (chunk, word, _) = place(at);
            let Some(held) = self.chunks.get(chunk).and_then(Option::as_ref) else {
                let next = (at | CHUNK.saturating_sub(1)).saturating_add(1).min(end);
                put = put.saturating_add(usize::try_from(next.saturating_sub(at)).unwrap_or(0));
                at = next;
                continue;
            };
            // Whole words where both sides agree, and bits at the edges.
            if at & 63 == 0 && put & 7 == 0 && end.saturating_sub(at) >= WORD {
                let bytes = held.get(word).copied().unwrap_or(0).to_le_bytes();
                for (to, from) in out.iter_mut().skip(put >> 3).zip(bytes) {
                    *to = from;
                }
                (at, put) = (at.saturating_add(WORD), put.saturating_add(64));
                continue;
            }
            if self.get(at)
                && let Some(byte) = out.get_mut(put >> 3)
            {
                *byte |= 1u8.wrapping_shl(u32::try_from(put & 7).unwrap_or(0));
            }
            (at, put) = (at.saturating_add(1), put.saturating_add(1));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_say_what_was_taken_and_come_out_as_bytes() {
        let mut bits = Bits::default();
        assert_eq!(bits.set_run(60, 40_000), None);
        assert_eq!(bits.set_run(10, 50), None);
        assert_eq!(bits.set_run(5, 10), Some(10));
        assert_eq!(bits.set_run(40_060, 1), None);
        assert!(!bits.set(40_060) && bits.set(4));
        assert!(bits.get(59) && !bits.get(3) && !bits.get(1 << 40));
        assert_eq!((bits.first_set(0, 100), bits.first_set(0, 4)), (Some(4), None));
        assert_eq!((bits.first_set(40_061, 1 << 30), bits.first_set(100, 5)), (None, Some(100)));
        assert_eq!(bits.bytes(0, 16), [0xf0, 0xff]);
        assert_eq!(bits.bytes(2, 5), [0b1_1100]);
        assert_eq!(bits.bytes(40_056, 64), [0x1f, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bits.bytes(1 << 30, 9), [0, 0]);
    }
}
