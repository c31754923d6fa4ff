//! Bytes → the list of filesystems: checked, opened with the replay of the log, then everything there is to see.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_formats::check::Report;
use racker_fuzz::base::Kind;
use racker_fuzz::{Clock, Input, walk};

fuzz_target!(|input: &[u8]| {
    let Some(Input { disk, base, other_way }) = Input::new(Kind::Filesystem, input) else { return };
    let clock = Clock::start();
    if let Some(driver) = walk::driver(&disk, base) {
        let _ = driver.check(disk.read_only(), &mut Report::default());
    }
    match walk::open(disk, base) {
        Some(fs) if other_way => walk::tar(fs, clock),
        Some(fs) => walk::filesystem(fs, clock),
        None => {}
    }
});
