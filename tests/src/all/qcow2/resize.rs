//! Another size: nothing else changes, and what was cut off does not come back.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, MemDevice, Span, Staged};
use racker_tests::image::{read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;

use super::super::live::{Live, workload};
use super::make::Recipe;
use super::{content, disk, open, open_disk};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn agreed(path: &Path, mirror: &[u8]) {
    qemu::check(path);
    assert!(read_by_qemu("qcow2", path) == mirror, "qemu-img reads something else");
    assert!(content(&disk(&open(path, false).unwrap())) == mirror);
}

fn recipes() -> Vec<Recipe> {
    let mut all = Vec::new();
    for cluster_bits in [9, 12, 16, 21] {
        let base = Recipe { cluster_bits, refcount_bits: 16, size: 3 * MIB + 512, ..Recipe::default() };
        all.push(base.clone());
        all.push(Recipe { backing: true, ..base.clone() });
        all.push(Recipe { backing: true, version2: true, ..base.clone() });
        all.push(Recipe { packed: Some("zlib"), snapshots: 2, ..base.clone() });
        if cluster_bits >= 14 {
            all.push(Recipe { extended: true, backing: true, snapshots: 1, ..base });
        }
    }
    all
}

#[test]
fn another_size_keeps_the_bytes() {
    for recipe in recipes() {
        println!("{recipe:?}");
        let dir = scratch();
        let path = recipe.make(dir.path());
        let mut mirror = racker_tests::image::read("qcow2", &path);
        let before = super::edit::snapshots(&path, recipe.snapshots);
        let sizes = [70 * MIB, 5 * MIB + 1024, MIB + 512, 2 * MIB, 512, 7 * MIB, 0, 4 * MIB];
        for (seed, size) in (0..).zip(sizes) {
            let image = open(&path, true).unwrap();
            let mut live = Live::new(Arc::clone(&image), mirror, seed);
            if !live.mirror.is_empty() && live.mirror.len() < 9 << 20 {
                (0..8).for_each(|_| live.step());
            }
            mirror = std::mem::take(&mut live.mirror);
            disk(&image).resize(size).unwrap();
            mirror.resize(size as usize, 0);
            assert!(content(&disk(&image)) == mirror, "{size}");
            drop((live, image));
            agreed(&path, &mirror);
        }
        workload("qcow2", &path, 40, 1, 9, |mirror| agreed(&path, mirror));
        // QEMU shows a snapshot in the size that the disk has now.
        let after = super::edit::snapshots(&path, recipe.snapshots);
        assert!(
            after.iter().zip(&before).all(|(after, before)| after.starts_with(before)),
            "a snapshot changed"
        );
    }
}

#[test]
fn what_was_behind_the_end_of_a_child_does_not_show() {
    for (version2, cluster_bits) in [(false, 9), (true, 12), (false, 16)] {
        let dir = scratch();
        let base = dir.path().join("base.raw");
        let mut bytes = vec![0; 3 << 20];
        Rng::new(3).fill(&mut bytes);
        std::fs::write(&base, &bytes).unwrap();
        let path = dir.path().join("image.qcow2");
        let full = path.display().to_string();
        let compat = if version2 { "0.10" } else { "1.1" };
        let options = format!("compat={compat},cluster_size={}", 1 << cluster_bits);
        let backing = ["-b", "base.raw", "-F", "raw"];
        let size = (MIB + 3 * KIB + 512).to_string();
        let args = [&["create", "-q", "-f", "qcow2", "-o", &options], &backing[..], &[&full, &size]].concat();
        qemu::img(&args);
        bytes.truncate((MIB + 3 * KIB + 512) as usize);
        for size in [2 * MIB, 4 * MIB] {
            disk(&open(&path, true).unwrap()).resize(size).unwrap();
            bytes.resize(size as usize, 0);
            agreed(&path, &bytes);
        }
    }
}

#[test]
fn what_is_added_can_have_its_places_at_once() {
    use racker_formats::block::Span;
    for recipe in recipes() {
        println!("{recipe:?}");
        let dir = scratch();
        let path = recipe.make(dir.path());
        let mut mirror = racker_tests::image::read("qcow2", &path);
        for size in [3 * MIB + 5 * KIB, 7 * MIB + 512] {
            let (image, old) = (open(&path, true).unwrap(), mirror.len() as u64);
            disk(&image).resize(size).unwrap();
            assert!(disk(&image).allot(Span::new(old, size - old).unwrap()).unwrap());
            disk(&image).flush().unwrap();
            mirror.resize(size as usize, 0);
            assert!(content(&disk(&image)) == mirror);
            drop(image);
            agreed(&path, &mirror);
            let before = path.metadata().unwrap().len();
            qemu::io("qcow2", &path, &[format!("write -P 6 {old} {}", size - old)]);
            mirror[old as usize..].fill(6);
            agreed(&path, &mirror);
            assert_eq!(path.metadata().unwrap().len(), before, "new clusters were needed");
        }
    }
}

#[test]
fn places_given_at_once_change_nothing_that_is_there() {
    use racker_formats::block::Span;
    for recipe in recipes() {
        println!("{recipe:?}");
        let dir = scratch();
        let path = recipe.make(dir.path());
        let mirror = racker_tests::image::read("qcow2", &path);
        let image = open(&path, true).unwrap();
        assert!(disk(&image).allot(Span::new(0, mirror.len() as u64).unwrap()).unwrap());
        disk(&image).flush().unwrap();
        drop(image);
        agreed(&path, &mirror);
    }
}

#[test]
fn what_is_cut_off_goes_back_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    for (first, second) in [(0, 4), (4, 0)] {
        let dir = scratch();
        let path = dir.path().join("image.qcow2");
        qemu::img(&["create", "-q", "-f", "qcow2", &path.display().to_string(), "8M"]);
        for at in [first, second] {
            qemu::io("qcow2", &path, &[format!("write -P 5 {at}M 4M")]);
        }
        let before = path.metadata().unwrap();
        disk(&open(&path, true).unwrap()).resize(4 * MIB).unwrap();
        let after = path.metadata().unwrap();
        let given_back = (before.blocks() - after.blocks()) * 512;
        assert!(given_back > 4 * MIB - 200 * KIB, "{given_back}");
        agreed(&path, &vec![5; 4 << 20]);
    }
}

#[test]
fn an_edit_can_change_the_size() {
    for recipe in recipes() {
        let dir = scratch();
        let path = recipe.make(dir.path());
        let mut mirror = racker_tests::image::read("qcow2", &path);
        for size in [9 * MIB, 2 * MIB + 512, 6 * MIB] {
            let image = open(&path, true).unwrap();
            let staged = Arc::new(Staged::new(disk(&image)));
            let top = Disk::from_arc(staged.clone());
            top.write_at(300_000, &[5; 70_000]).unwrap();
            // Cut off, and back again: zeroes.
            top.resize(MIB).unwrap();
            top.resize(size).unwrap();
            top.write_at(size - 5000, &[6; 5000]).unwrap();
            mirror[300_000..370_000].fill(5);
            mirror.truncate(MIB as usize);
            mirror.resize(size as usize, 0);
            mirror[size as usize - 5000..].fill(6);
            image.apply(&top, &staged.changes().unwrap()).unwrap();
            assert!(content(&disk(&image)) == mirror);
            drop((top, staged, image));
            agreed(&path, &mirror);
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_size_or_the_new_one() {
    for (cluster_bits, to) in [(9, 400 * KIB), (9, MIB), (16, 300 * KIB), (16, 3 * MIB)] {
        let dir = scratch();
        let recipe = Recipe { cluster_bits, refcount_bits: 16, size: 700 * KIB, ..Recipe::default() };
        let path = recipe.make(dir.path());
        let old = racker_tests::image::read("qcow2", &path);
        let mut new = old.clone();
        new.resize(to as usize, 0);
        let crash = Arc::new(CrashDisk::new(std::fs::read(&path).unwrap()));
        let image = open_disk(Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>), true).unwrap();
        disk(&image).resize(to).unwrap();
        let mut number = 0;
        crash.cuts(&mut Rng::new(1), 3, |_, bytes| {
            let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
            let found = content(&disk(&image));
            assert!(found == old || found == new);
            number += 1;
            if number % 9 == 0 {
                std::fs::write(&path, bytes).unwrap();
                qemu::check_leaks_only(&path);
            }
        });
    }
}

/// `resize --preallocation=metadata`: the size, then the tables of what is new.
#[test]
fn a_power_cut_while_tables_are_made_ahead_leaves_a_disk_that_reads_the_same() {
    for (cluster_bits, to) in [(9, 900 * KIB), (16, 4 * MIB)] {
        let dir = scratch();
        let recipe = Recipe { cluster_bits, refcount_bits: 16, size: 700 * KIB, ..Recipe::default() };
        let path = recipe.make(dir.path());
        let old = racker_tests::image::read("qcow2", &path);
        let mut new = old.clone();
        new.resize(to as usize, 0);
        let crash = Arc::new(CrashDisk::new(std::fs::read(&path).unwrap()));
        let image = open_disk(Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>), true).unwrap();
        let top = disk(&image);
        let before = top.size();
        top.resize(to).unwrap();
        assert!(top.allot(Span::new(before, to - before).unwrap()).unwrap());
        top.flush().unwrap();
        let mut number = 0;
        crash.cuts(&mut Rng::new(1), 2, |cut, bytes| {
            let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
            let found = content(&disk(&image));
            assert!(found == old || found == new, "after {cut} operations");
            number += 1;
            if number % 15 == 0 {
                std::fs::write(&path, bytes).unwrap();
                qemu::check_leaks_only(&path);
            }
        });
        assert!(number > 10, "{number}");
        std::fs::write(&path, crash.bytes()).unwrap();
        agreed(&path, &new);
    }
}

#[test]
fn sizes_that_snapshots_and_bitmaps_forbid_are_refused() {
    let dir = scratch();
    let base = Recipe { cluster_bits: 16, refcount_bits: 16, size: 3 * MIB, ..Recipe::default() };
    let path = Recipe { version2: true, snapshots: 1, ..base.clone() }.make(dir.path());
    let refused = |path: &Path, word: &str| {
        let before = std::fs::read(path).unwrap();
        let e = disk(&open(path, true).unwrap()).resize(9 * MIB).unwrap_err();
        assert!(e.to_string().contains(word), "{e}");
        assert!(std::fs::read(path).unwrap() == before);
    };
    refused(&path, "the snapshot \"s0\"");
    let path = base.make(dir.path());
    qemu::img(&["bitmap", "--add", &path.display().to_string(), "b0"]);
    refused(&path, "the bitmap \"b0\"");
    let image = open(&path, true).unwrap();
    assert!(disk(&image).resize(1 << 62).is_err());
}

#[test]
fn a_data_file_has_the_size_of_its_disk() {
    let dir = scratch();
    let path = dir.path().join("image.qcow2");
    for raw in ["on", "off"] {
        let options = format!("data_file=data,data_file_raw={raw}");
        let full = path.display().to_string();
        qemu::img_in(dir.path(), &["create", "-q", "-f", "qcow2", "-o", &options, &full, "3M"]);
        qemu::io("qcow2", &path, &["write -P 7 0 3M".into()]);
        let mut mirror = vec![7; 3 << 20];
        for size in [2 * MIB + 512, 5 * MIB, 6 * MIB + 512] {
            disk(&open(&path, true).unwrap()).resize(size).unwrap();
            mirror.resize(size as usize, 0);
            assert_eq!(dir.path().join("data").metadata().unwrap().len(), size);
            assert!(content(&disk(&open(&path, false).unwrap())) == mirror);
            qemu::img_in(dir.path(), &["check", "-q", "image.qcow2"]);
            qemu::img_in(dir.path(), &["convert", "-q", "-O", "raw", "image.qcow2", "read.raw"]);
            assert!(std::fs::read(dir.path().join("read.raw")).unwrap() == mirror);
        }
    }
}
