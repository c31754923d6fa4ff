//! The power fails, or the host does, in the middle of an edit.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, MemDevice};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::{CrashDisk, FaultDisk};

use super::edit::edit;
use super::make::Recipe;
use super::read::as_qemu_reads;
use super::{content, disk, open_disk};

const KIB: u64 = 1 << 10;

fn recipes() -> Vec<Recipe> {
    let base = Recipe { refcount_bits: 16, size: 1500 * KIB + 512, ..Recipe::default() };
    vec![
        Recipe { cluster_bits: 9, refcount_bits: 64, ..base.clone() },
        Recipe { cluster_bits: 9, version2: true, ..base.clone() },
        Recipe { cluster_bits: 12, refcount_bits: 1, packed: Some("zlib"), ..base.clone() },
        Recipe { cluster_bits: 14, extended: true, ..base.clone() },
        Recipe { cluster_bits: 16, snapshots: 2, packed: Some("zstd"), ..base.clone() },
        Recipe { cluster_bits: 16, lazy: true, ..base },
    ]
}

/// What racker reads from the image in `bytes`.
fn racker_reads(bytes: &[u8]) -> Vec<u8> {
    let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
    content(&disk(&image))
}

fn is_one_of(found: &[u8], old: &[u8], new: &[u8], when: &str) {
    assert!(found == old || found == new, "neither the old nor the new disk {when}");
}

#[test]
fn a_power_cut_leaves_the_old_disk_or_the_new_one() {
    for recipe in recipes() {
        println!("{recipe:?}");
        let dir = tempfile::tempdir().unwrap();
        let path = recipe.make(dir.path());
        let old = as_qemu_reads(&path);
        let mut rng = Rng::new(11);
        let crash = Arc::new(CrashDisk::new(std::fs::read(&path).unwrap()));
        let image = open_disk(Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>), true).unwrap();
        let mut new = old.clone();
        edit(&image, &mut new, &mut rng, 6);
        let (mut number, count) = (0, crash.len());
        crash.cuts(&mut Rng::new(5), 3, |cut, bytes| {
            let when = format!("after {cut} of {count} operations");
            is_one_of(&racker_reads(bytes), &old, &new, &when);
            number += 1;
            // QEMU takes a hundred times as long.
            if number % 7 == 0 || cut == count {
                std::fs::write(&path, bytes).unwrap();
                qemu::check_leaks_only(&path);
                is_one_of(&as_qemu_reads(&path), &old, &new, &when);
                if number % 3 == 0 {
                    goes_on(&path, &mut rng);
                }
            }
        });
        std::fs::write(&path, crash.bytes()).unwrap();
        qemu::check(&path);
    }
}

/// An image that was cut off can be edited again, and nothing gets worse.
fn goes_on(path: &Path, rng: &mut Rng) {
    let mut mirror = as_qemu_reads(path);
    let image = super::open(path, true).unwrap();
    edit(&image, &mut mirror, rng, 2);
    drop(image);
    qemu::check_leaks_only(path);
    assert!(as_qemu_reads(path) == mirror);
}

#[test]
fn an_edit_that_fails_leaves_the_image_as_it_was() {
    for recipe in recipes() {
        let dir = tempfile::tempdir().unwrap();
        let path = recipe.make(dir.path());
        let (before, old) = (std::fs::read(&path).unwrap(), as_qemu_reads(&path));
        for (good, forever) in (0..).flat_map(|n| [(n, false), (n, true)]) {
            let below = Disk::new(MemDevice::from_bytes(before.clone()));
            let fault = Arc::new(FaultDisk::new(below.clone(), good, forever));
            let opened = open_disk(Disk::from_arc(fault.clone() as Arc<dyn BlockDevice>), true);
            let mut new = old.clone();
            let result = opened.and_then(|image| try_edit(&image, &mut new));
            let mut after = vec![0; below.size() as usize];
            below.read_at(0, &mut after).unwrap();
            let when = format!("{recipe:?}: operation {good} fails");
            let found = racker_reads(&after);
            match &result {
                Ok(()) => assert!(found == new, "{when}"),
                Err(_) => is_one_of(&found, &old, &new, &when),
            }
            if good % 32 == 0 || !fault.failed() {
                std::fs::write(&path, &after).unwrap();
                match forever || (result.is_ok() && fault.failed()) {
                    true => qemu::check_leaks_only(&path),
                    // One failure, and everything that came before it was taken back.
                    false => qemu::check(&path),
                }
            }
            if !fault.failed() {
                assert!(result.is_ok());
                break;
            }
        }
    }
}

fn try_edit(image: &Arc<dyn racker_formats::registry::Image>, new: &mut [u8]) -> racker_formats::Result<()> {
    let staged = Arc::new(racker_formats::block::Staged::new(disk(image)));
    let top = Disk::from_arc(staged.clone());
    for at in [3usize, 70_000, 200_000, 1_280_000] {
        new[at..at + 9000].fill(0xa5);
        top.write_at(at as u64, &new[at..at + 9000])?;
    }
    image.apply(&top, &staged.changes()?)
}
