//! Bits to bytes, the lowest first.

/// Bytes that a stretch of bits is written with.
const WORD: usize = size_of::<u64>();

/// A stream of bits that must not get longer than it pays.
#[derive(Debug)]
pub(super) struct Bits {
    out: Vec<u8>,
    /// Whole bytes in `out`; what lies behind them is overwritten.
    len: usize,
    /// The last bits, fewer than eight.
    held: u64,
    count: u32,
    /// Most bytes of all.
    room: usize,
}

impl Bits {
    /// For a stream of at most `room` bytes.
    pub(super) fn new(room: usize) -> Self {
        Self { out: Vec::new(), len: 0, held: 0, count: 0, room }
    }

    /// Makes place for so many bits; `None` if that is more than there is room for.
    pub(super) fn reserve(&mut self, bits: u64) -> Option<()> {
        let bytes = usize::try_from(bits.saturating_add(u64::from(self.count)).div_ceil(8)).ok()?;
        let end = self.len.saturating_add(bytes);
        if end > self.room {
            return None;
        }
        self.out.resize(end.saturating_add(WORD), 0);
        Some(())
    }

    /// Adds the lowest `count` bits, at most 56, and the others must be zero. There must be place for them.
    #[inline(always)]
    pub(super) fn put(&mut self, bits: u64, count: u32) {
        self.held |= bits.wrapping_shl(self.count);
        self.count = self.count.wrapping_add(count);
        let end = self.len.wrapping_add(WORD);
        if let Some(place) = self.out.get_mut(self.len..end) {
            place.copy_from_slice(&self.held.to_le_bytes());
        }
        self.held = self.held.wrapping_shr(self.count & !7);
        self.len = self.len.wrapping_add(usize::try_from(self.count >> 3).unwrap_or_default());
        self.count &= 7;
    }

    /// The bytes; zero bits fill the last one.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        let len = self.len.saturating_add(usize::from(self.count > 0));
        self.out.truncate(len);
        (self.out.len() == len && len <= self.room).then_some(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_comes_first() {
        let mut bits = Bits::new(9);
        bits.reserve(66).unwrap();
        bits.put(1, 1);
        bits.put(0, 7);
        bits.put(0x11_2233_4455_6677, 56);
        bits.put(3, 2);
        assert_eq!(bits.finish().unwrap(), [1, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 3]);
        assert!(Bits::new(9).reserve(73).is_none());
    }
}
