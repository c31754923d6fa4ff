//! Bytes → partition tables.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_fuzz::base::Kind;
use racker_fuzz::{Input, walk};

fuzz_target!(|input: &[u8]| {
    if let Some(input) = Input::new(Kind::Partition, input) {
        walk::partitions(&input.disk);
    }
});
