//! Checks against images too large for fixtures: run by hand with `XFS_IMAGE` set.

use std::fs::File;

use racker_formats::block::{Disk, FileDevice};

use super::log::Log;
use super::volume::Volume;

/// Replays the log of the image `XFS_IMAGE` for good and ends it. The image is changed.
#[test]
#[ignore = "needs an image with a dirty log in XFS_IMAGE"]
fn recover() {
    let path = std::env::var("XFS_IMAGE").unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let disk = Disk::new(FileDevice::new(file, true).unwrap());
    let mut volume = Volume::open(disk).unwrap();
    let mut log = Log::open(&volume).unwrap();
    println!("{log:?}");
    let recovery = log.replay(&mut volume).unwrap();
    println!("{recovery:?}");
    log.end(&mut volume).unwrap();
    assert!(log.is_clean());
    volume.disk.flush().unwrap();
}
