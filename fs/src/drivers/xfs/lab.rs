//! Checks against images too large for fixtures: run by hand with `XFS_IMAGE` set.

use std::fs::File;

use racker_formats::block::{Disk, FileDevice};

use super::FORMAT;
use crate::filesystem::Driver;

/// Opens the image `XFS_IMAGE` for writing, which replays its log for good and ends it. The image is changed.
#[test]
#[ignore = "needs an image with a dirty log in XFS_IMAGE"]
fn recover() {
    let path = std::env::var("XFS_IMAGE").unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let disk = Disk::new(FileDevice::new(file, true).unwrap());
    let writer = FORMAT.open_mut(disk.clone()).unwrap();
    println!("{:?}", writer.facts().unwrap());
    writer.close().unwrap();
    disk.flush().unwrap();
}
