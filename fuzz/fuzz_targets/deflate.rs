//! Bytes → deflate and back, by decoders that are not ours and take no distance over 4096.
#![no_main]

use flate2::{Decompress, FlushDecompress, Status};
use libfuzzer_sys::fuzz_target;
use racker_formats::deflate::Encoder;

/// Bits of the window that QEMU inflates with.
const WINDOW_BITS: u8 = 12;

fuzz_target!(|input: &[u8]| {
    // The first two bytes let a small input stand for a large one: it is repeated, each time a little differently.
    let Some(([times, change], seed)) = input.split_first_chunk() else { return };
    let mut data = Vec::new();
    for round in 0..=*times {
        data.extend(seed.iter().map(|byte| byte ^ (round & change)));
    }
    let mut encoder = Encoder::default();
    let packed = encoder.deflate(&data, data.len() * 2 + 1000).expect("there is always room");
    let mut back = vec![0; data.len() + 1];
    let mut decoder = Decompress::new_with_window_bits(false, WINDOW_BITS);
    let status = decoder.decompress(&packed, &mut back, FlushDecompress::Finish);
    assert_eq!(status.ok(), Some(Status::StreamEnd));
    assert_eq!(decoder.total_in(), packed.len() as u64);
    assert!(decoder.total_out() == data.len() as u64 && back.starts_with(&data));
    assert_eq!(encoder.deflate(&data, packed.len()), Some(packed));
});
