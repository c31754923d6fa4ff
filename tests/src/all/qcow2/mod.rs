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

use racker_formats::block::{BlockDevice, Disk};
use racker_formats::registry::Image;
use racker_tests::image::{content, disk, runs_agree};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;

/// Opens the image at `path`, for writing if asked.
fn open(path: &Path, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    racker_tests::image::open("qcow2", path, write)
}

/// Opens an image that names no other file.
fn open_disk(disk: Disk, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    racker_tests::image::open_disk("qcow2", disk, write)
}

/// Does one step with the image at `path`, as it is in `good`, and cuts the power at each of its writes: `states`,
/// which tells what an image has, finds all as before or all as after it. The step stays done at `path`.
fn cut_step<T: PartialEq>(
    path: &Path,
    good: &[u8],
    step: impl FnOnce(&Arc<dyn Image>),
    states: impl Fn(&[u8]) -> T,
) {
    let crash = Arc::new(CrashDisk::new(good.to_vec()));
    let image = open_disk(Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>), true).unwrap();
    step(&image);
    let (old, new) = (states(good), states(&crash.bytes()));
    assert!(old != new);
    let mut number = 0;
    crash.cuts(&mut Rng::new(1), 3, |_, bytes| {
        let found = states(bytes);
        assert!(found == old || found == new);
        number += 1;
        // QEMU takes a hundred times as long.
        if number % 9 == 0 {
            std::fs::write(path, bytes).unwrap();
            qemu::check_leaks_only(path);
        }
    });
    std::fs::write(path, crash.bytes()).unwrap();
    qemu::check(path);
}
