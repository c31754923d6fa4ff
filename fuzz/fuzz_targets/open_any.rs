//! Bytes → the lists of containers and formats: probe, open, facts, runs, reads, check; or writes, repair, resize.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_fuzz::base::Kind;
use racker_fuzz::{Clock, Input, walk};

fuzz_target!(|input: &[u8]| {
    if let Some(input) = Input::new(Kind::Image, input) {
        if input.other_way {
            walk::changed(input.disk, Clock::start());
        } else {
            walk::image(input.disk, Clock::start());
        }
    }
});
