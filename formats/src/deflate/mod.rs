//! Compresses to raw deflate (RFC 1951) under a window of 4 KiB.
//!
//! QEMU inflates the compressed clusters of qcow2 with window bits 12: a distance over 4096 is an error to it. No
//! encoder at hand is fast under that window: libdeflate and its like always use 32 KiB, and zlib keeps its chains
//! of 32 KiB and throws most of what it finds away. This one is made for the small window:
//!
//! * [`matches`](mod@matches): a bucket of the last few places for each hash of four bytes instead of chains, compared without
//!   branches, and the next byte's match is looked at while the first is short
//! * [`blocks`]: neighbouring stretches of alike statistics become one block with Huffman codes of its own
//! * [`huffman`]: the codes; [`bits`]: the way out; [`symbol`]: what lies between matches and codes
//!
//! Supported: dynamic blocks. Not written: stored and fixed blocks, for whoever asks names the room that is worth
//! it and keeps the plain bytes otherwise. The output depends on the input only.

mod bits;
mod blocks;
mod huffman;
mod matches;
mod symbol;

use bits::Bits;
use blocks::write;
use matches::{Finder, SEGMENT};
use symbol::Symbol;

/// No distance is longer: the window, in bytes.
pub const WINDOW: usize = 4096;

/// An encoder that can be used again and again: making one costs more than compressing a small cluster.
#[derive(Debug)]
pub struct Encoder {
    finder: Finder,
    symbols: Box<[Symbol; SEGMENT]>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { finder: Finder::default(), symbols: Box::new([Symbol::default(); SEGMENT]) }
    }
}

impl Encoder {
    /// Compresses `data` into one stream of at most `room` bytes; `None` if it would be longer.
    pub fn deflate(&mut self, data: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut out = Bits::new(room);
        let (first, rest) = data.split_at(data.len().min(SEGMENT));
        let mut rest = rest.chunks(SEGMENT.saturating_sub(WINDOW));
        let (mut segment, mut goes_on) = (first, false);
        loop {
            let next = rest.next();
            let count = self.finder.find(segment, goes_on, &mut self.symbols);
            write(&mut out, self.symbols.get(..count).unwrap_or_default(), next.is_none())?;
            let Some(next) = next else { return out.finish() };
            (segment, goes_on) = (next, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Decompress, FlushDecompress, Status};

    use super::*;

    /// Noise.
    fn noise(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    /// Compresses and expands with a decoder that takes no distance over 4096, as QEMU's.
    fn round_trip(encoder: &mut Encoder, data: &[u8]) -> usize {
        let packed = encoder.deflate(data, data.len() * 2 + 1000).unwrap();
        let mut back = vec![0; data.len() + 1];
        let mut decoder = Decompress::new_with_window_bits(false, 12);
        let status = decoder.decompress(&packed, &mut back, FlushDecompress::Finish).unwrap();
        assert_eq!((status, decoder.total_in()), (Status::StreamEnd, packed.len() as u64));
        assert!(decoder.total_out() == data.len() as u64 && back.starts_with(data));
        // The room is what it takes, to the byte.
        assert_eq!(encoder.deflate(data, packed.len()).as_ref(), Some(&packed));
        assert_eq!(encoder.deflate(data, packed.len() - 1), None);
        packed.len()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut encoder = Encoder::default();
        for len in [0, 1, 2, 3, 4, 7, 8, 511, 512, 65535, 65536, 65537, 126_976, 126_977, 1 << 21] {
            assert!(round_trip(&mut encoder, &vec![0; len]) < 100 + len / 200);
            let mut next = noise(len as u64);
            round_trip(&mut encoder, &(0..len).map(|_| next() as u8).collect::<Vec<_>>());
            // Two symbols, few symbols, and numbers as in a table.
            round_trip(&mut encoder, &(0..len).map(|_| next() as u8 & 1).collect::<Vec<_>>());
            round_trip(
                &mut encoder,
                &(0..len).map(|_| (next() as u8).leading_zeros() as u8).collect::<Vec<_>>(),
            );
            round_trip(&mut encoder, &(0..len).map(|i| (i.wrapping_mul(i) >> 9) as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn repetitions_of_every_distance_and_length() {
        let mut encoder = Encoder::default();
        let mut next = noise(7);
        for distance in [1, 2, 3, 4, 5, 8, 100, 255, 256, 257, 511, 2048, 4094, 4095, 4096, 4097, 4098, 8192]
        {
            let seed: Vec<u8> = (0..distance).map(|_| next() as u8).collect();
            for unlike in [3, 4, 5, 9, 257, 258, 259, 300, 5000] {
                let mut data: Vec<u8> = seed.iter().copied().cycle().take(70_000).collect();
                for at in (unlike..data.len()).step_by(unlike) {
                    data[at] = next() as u8;
                }
                round_trip(&mut encoder, &data);
            }
        }
    }

    #[test]
    fn the_window_reaches_as_far_as_it_may() {
        let mut next = noise(3);
        let seed: Vec<u8> = (0..WINDOW).map(|_| next() as u8).collect();
        let twice = [seed.clone(), seed].concat();
        assert!(round_trip(&mut Encoder::default(), &twice) < WINDOW + 300);
    }

    #[test]
    fn mixtures_are_cut_into_blocks() {
        let mut next = noise(5);
        let text: Vec<u8> = (0..32768).map(|_| b"etaoinsh"[next() as usize % 8]).collect();
        let other: Vec<u8> = (0..32768).map(|_| next() as u8).collect();
        let both = [text.clone(), other].concat();
        let len = round_trip(&mut Encoder::default(), &both);
        // Three bits for a letter and eight for a byte of noise make 45,056 bytes; one code for both 53,000.
        assert!(len < 49_000, "{len}");
    }

    #[test]
    fn an_encoder_forgets_what_it_saw() {
        let mut used = Encoder::default();
        let data: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(i) >> 11) as u8).collect();
        let fresh = Encoder::default().deflate(&data[1000..], 1 << 20);
        assert!(used.deflate(&data, 1 << 20).is_some());
        assert_eq!(used.deflate(&data[1000..], 1 << 20), fresh);
    }
}
