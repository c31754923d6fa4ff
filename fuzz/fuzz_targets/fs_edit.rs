//! Bytes → the list of filesystems: open for writing with the replay of the log, then every operation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use racker_fuzz::base::Kind;
use racker_fuzz::{Clock, Input, edit};

fuzz_target!(|input: &[u8]| {
    let Some(Input { disk, base, .. }) = Input::new(Kind::Edit, input) else { return };
    edit::filesystem(disk, base, Clock::start());
});
