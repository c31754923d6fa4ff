//! Bytes → the list of filesystems: opened for writing, then everything is changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_fuzz::base::Kind;
use racker_fuzz::{Clock, Input, chance, edit, walk};

fuzz_target!(|input: &[u8]| {
    let Some(Input { disk, base, other_way }) = Input::new(Kind::Editable, input) else { return };
    match walk::driver(&disk, base) {
        Some(driver) if other_way => chance::edit(disk, driver, chance::Dice::of(input), Clock::start()),
        Some(driver) => edit::edit(disk, driver, Clock::start()),
        None => {}
    }
});
