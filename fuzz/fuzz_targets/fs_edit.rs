//! Bytes → the list of filesystems: opened for writing, then everything is changed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_fuzz::base::Kind;
use racker_fuzz::{Clock, Input, edit, walk};

fuzz_target!(|input: &[u8]| {
    let Some(Input { disk, base, .. }) = Input::new(Kind::Editable, input) else { return };
    if let Some(driver) = walk::driver(&disk, base) {
        edit::edit(disk, driver, Clock::start());
    }
});
