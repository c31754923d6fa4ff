//! Bytes → the list of filesystems: open with the replay of the log, then everything there is to see; and the check.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_fuzz::base::Kind;
use racker_fuzz::{Clock, Input, walk};

fuzz_target!(|input: &[u8]| {
    let Some(Input { disk, base, other_way }) = Input::new(Kind::Filesystem, input) else { return };
    if !other_way {
        walk::check(&disk, base);
    }
    let clock = Clock::start();
    match walk::open(disk, base) {
        Some(fs) if other_way => walk::tar(fs, clock),
        Some(fs) => walk::filesystem(fs, clock),
        None => {}
    }
});
