//! qcow2 against `qemu-img` and `qemu-io`.

mod bitmap;
mod chain;
mod check;
mod crash;
mod edit;
mod history;
mod live;
mod make;
mod map;
mod new;
mod packed;
mod read;
mod resize;

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{Disk, FileDevice, Span};
use racker_formats::opening::{Opening, Policy};
use racker_formats::registry::{Image, by_name};

/// Opens the image at `path`, for writing if asked.
fn open(path: &Path, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    let file = std::fs::File::options().read(true).write(write).open(path).unwrap();
    let disk = Disk::new(FileDevice::new(file, write).unwrap());
    by_name("qcow2").unwrap().open(disk, &mut Opening::new(Some(path), Policy::SameFolder, write))
}

/// Opens an image that names no other file.
fn open_disk(disk: Disk, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    by_name("qcow2").unwrap().open(disk, &mut Opening::new(None, Policy::Deny, write))
}

/// An opened image as a disk.
fn disk(image: &Arc<dyn Image>) -> Disk {
    Disk::from_arc(Arc::clone(image) as Arc<dyn racker_formats::block::BlockDevice>)
}

/// All bytes of a disk, read in one piece.
fn content(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read_at(0, &mut all).unwrap();
    all
}

/// Every run that says zero must read as zeroes, and the runs cover the disk.
fn runs_agree(disk: &Disk, content: &[u8]) {
    let mut at = 0;
    for run in disk.runs(Span::first(disk.size())) {
        let (span, kind) = run.unwrap();
        assert_eq!(span.start(), at);
        at = span.end();
        let part = &content[span.start() as usize..span.end() as usize];
        assert!(!kind.is_zero() || part.iter().all(|b| *b == 0), "{span:?} {kind:?}");
    }
    assert_eq!(at, disk.size());
}
