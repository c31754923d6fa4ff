//! Writes while the disk is in use: `qemu-img check` finds neither errors nor leaks, and all read the same.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{Disk, Span};
use racker_formats::opening::{Opening, Policy};
use racker_formats::registry::by_name;
use racker_tests::image::{read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::super::live::{Live, workload};
use super::super::power::power_cuts;
use super::edit::snapshots;
use super::make::Recipe;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn agreed(path: &Path, mirror: &[u8]) {
    qemu::check(path);
    assert!(read_by_qemu("qcow2", path) == mirror, "qemu-img reads something else");
}

fn lives(recipe: &Recipe, steps: u32, points: u32) {
    println!("{recipe:?}");
    let dir = scratch();
    let path = recipe.make(dir.path());
    let before = snapshots(&path, recipe.snapshots);
    workload("qcow2", &path, steps, points, recipe.seed, |mirror| agreed(&path, mirror));
    assert!(snapshots(&path, recipe.snapshots) == before, "a snapshot changed");
    // QEMU can go on with it.
    qemu::io("qcow2", &path, &super::make::writes(&mut Rng::new(1), recipe.size, 6));
    qemu::check(&path);
}

/// Every shape by turns over the cluster sizes and the widths.
fn shapes(cluster_bits: u32, seed: u64) -> Vec<Recipe> {
    let size = (3 * MIB).max(5 << cluster_bits) + 512;
    let refcount_bits = 1 << ((u64::from(cluster_bits) + seed) % 7);
    let base = Recipe { cluster_bits, refcount_bits, size, seed, ..Recipe::default() };
    let shared = Recipe { refcount_bits: refcount_bits.max(8), snapshots: 2, ..base.clone() };
    let mut all = vec![
        base.clone(),
        Recipe { version2: true, ..base.clone() },
        Recipe { version2: true, backing: true, ..shared.clone() },
        Recipe { backing: true, lazy: true, ..base.clone() },
        Recipe { packed: Some("zlib"), ..base.clone() },
        Recipe { packed: Some("zstd"), ..shared.clone() },
        Recipe { backing: true, ..shared.clone() },
    ];
    if cluster_bits >= 14 {
        all.push(Recipe { extended: true, ..base.clone() });
        all.push(Recipe { extended: true, backing: true, ..shared.clone() });
        all.push(Recipe { extended: true, packed: Some("zlib"), ..shared });
    }
    all
}

#[test]
fn a_random_workload_is_kept_by_every_shape() {
    for cluster_bits in [9, 12, 14, 16, 18, 21] {
        for recipe in shapes(cluster_bits, 7) {
            lives(&recipe, 120, 3);
        }
    }
}

#[test]
fn a_random_workload_is_kept_at_every_width() {
    for order in 0..7 {
        for cluster_bits in [9, 16] {
            let recipe =
                Recipe { cluster_bits, refcount_bits: 1 << order, size: 2 * MIB, ..Recipe::default() };
            lives(&recipe, 100, 2);
        }
    }
}

/// `cargo test --release -p racker-tests -- --ignored twenty_thousand`
#[test]
#[ignore = "takes minutes"]
fn twenty_thousand_operations_with_a_hundred_looks() {
    for (number, cluster_bits) in (0..).zip([9, 12, 16, 21]) {
        for recipe in shapes(cluster_bits, 100 + number) {
            lives(&recipe, 20_000, 100);
        }
    }
}

#[test]
fn a_small_file_is_reused() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 12, refcount_bits: 16, size: 256 * KIB, ..Recipe::default() };
    let path = recipe.make(dir.path());
    workload("qcow2", &path, 3000, 3, 5, |mirror| agreed(&path, mirror));
    // What waits for a flush has to stay: some of these write the disk over and over.
    let size = path.metadata().unwrap().len();
    assert!(size < 1500 * KIB, "{size}");
}

fn cuts(recipe: &Recipe, steps: u32) {
    println!("{recipe:?}");
    let dir = scratch();
    let path = recipe.make(dir.path());
    // As the file of this name: its backing file lies beside it.
    let open = |disk: Disk, write: bool| {
        let mut opening = Opening::new(Some(&path), Policy::SameFolder, write);
        by_name("qcow2").unwrap().open(disk, &mut opening)
    };
    power_cuts(std::fs::read(&path).unwrap(), &open, steps, recipe.seed, |bytes, judge| {
        std::fs::write(&path, bytes).unwrap();
        qemu::check_leaks_only(&path);
        judge(&read_by_qemu("qcow2", &path));
    });
}

fn fragile() -> Vec<Recipe> {
    let base = Recipe { refcount_bits: 16, size: 500 * KIB + 512, seed: 3, ..Recipe::default() };
    vec![
        Recipe { cluster_bits: 9, refcount_bits: 64, ..base.clone() },
        Recipe { cluster_bits: 9, snapshots: 1, ..base.clone() },
        Recipe { cluster_bits: 12, refcount_bits: 1, packed: Some("zlib"), ..base.clone() },
        Recipe { cluster_bits: 12, version2: true, backing: true, ..base.clone() },
        Recipe { cluster_bits: 14, extended: true, backing: true, ..base.clone() },
        Recipe { cluster_bits: 16, snapshots: 2, packed: Some("zstd"), ..base.clone() },
        Recipe { cluster_bits: 16, lazy: true, ..base },
    ]
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    for recipe in fragile() {
        cuts(&recipe, 30);
    }
}

/// `cargo test --release -p racker-tests -- --ignored many_power_cuts`
#[test]
#[ignore = "takes minutes"]
fn many_power_cuts() {
    for seed in 0..8 {
        for recipe in fragile() {
            cuts(&Recipe { seed: 50 + seed, ..recipe }, 60);
        }
    }
}

/// Data in a file of their own: where the disk has them, in a file that `raw` readers understand if so wanted.
#[test]
fn an_external_data_file_is_written_to() {
    for (raw, cluster_bits) in [(false, 12), (true, 12), (false, 16), (true, 16)] {
        for extended in [false, true] {
            if extended && cluster_bits < 14 {
                continue;
            }
            let dir = scratch();
            let path = dir.path().join("image.qcow2");
            let on = |b: bool| if b { "on" } else { "off" };
            let options = format!(
                "data_file=data,data_file_raw={},cluster_size={},extended_l2={}",
                on(raw),
                1 << cluster_bits,
                on(extended)
            );
            let full = path.display().to_string();
            qemu::img_in(dir.path(), &["create", "-q", "-f", "qcow2", "-o", &options, &full, "2M"]);
            qemu::io("qcow2", &path, &super::make::writes(&mut Rng::new(4), 2 * MIB, 12));
            let image = read_in(dir.path());
            assert!(racker_tests::image::read("qcow2", &path) == image);
            let mut mirror = image;
            for seed in 0..5 {
                let opened = super::open(&path, true).unwrap();
                let mut live = Live::new(Arc::clone(&opened), mirror, seed);
                (0..60).for_each(|_| live.step());
                let top = super::disk(&opened);
                top.flush().unwrap();
                assert!(super::content(&top) == live.mirror);
                super::runs_agree(&top, &live.mirror);
                mirror = std::mem::take(&mut live.mirror);
                // The data file is locked as long as it is open.
                drop((live, top, opened));
                qemu::img_in(dir.path(), &["check", "-q", "image.qcow2"]);
                assert!(read_in(dir.path()) == mirror, "qemu-img reads something else");
                let data = std::fs::read(dir.path().join("data")).unwrap();
                assert!(!raw || data == mirror, "the data file is not the disk");
            }
            qemu::io("qcow2", &path, &["write -P 9 3k 200k".into()]);
            assert!(read_in(dir.path()).len() == mirror.len());
        }
    }
}

/// What `qemu-img` reads from `image.qcow2`, whose data file it looks for from where it runs.
fn read_in(dir: &Path) -> Vec<u8> {
    qemu::img_in(dir, &["convert", "-q", "-O", "raw", "image.qcow2", "read.raw"]);
    std::fs::read(dir.join("read.raw")).unwrap()
}

#[test]
fn bitmaps_that_miss_a_write_say_so_and_the_others_stay() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 16, refcount_bits: 16, size: 3 * MIB, ..Recipe::default() };
    for edit in [false, true] {
        let path = recipe.make(dir.path());
        let full = path.display().to_string();
        qemu::img(&["bitmap", "--add", &full, "old"]);
        qemu::io("qcow2", &path, &["write -P 3 1M 1M".into()]);
        qemu::img(&["bitmap", "--disable", &full, "old"]);
        qemu::img(&["bitmap", "--add", &full, "now"]);
        let mut mirror = racker_tests::image::read("qcow2", &path);
        if edit {
            let image = super::open(&path, true).unwrap();
            super::edit::edit(&image, &mut mirror, &mut Rng::new(1), 3);
        } else {
            mirror = workload("qcow2", &path, 20, 1, 1, |_| ());
        }
        agreed(&path, &mirror);
        let said = qemu::img(&["info", "--output=json", &full]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let mut flags: Vec<(String, String)> = said["format-specific"]["data"]["bitmaps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| (b["name"].as_str().unwrap().to_string(), b["flags"].to_string()))
            .collect();
        flags.sort();
        assert_eq!(flags[0], ("now".into(), "[\"in-use\",\"auto\"]".into()));
        assert_eq!(flags[1], ("old".into(), "[]".into()));
        qemu::img(&["bitmap", "--remove", &full, "now"]);
        qemu::check(&path);
    }
}

#[test]
fn an_image_marked_as_corrupt_is_not_written() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 16, refcount_bits: 16, size: 3 * MIB, ..Recipe::default() };
    let path = recipe.make(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[79] |= 2;
    std::fs::write(&path, &bytes).unwrap();
    let image = super::open(&path, true).unwrap();
    let top = super::disk(&image);
    assert!(top.write_at(0, &[1]).unwrap_err().to_string().contains("marked as corrupt"));
    assert!(top.write_zeroes(Span::first(MIB)).is_err() && top.discard(Span::first(MIB)).is_err());
    assert!(top.resize(MIB).is_err() && image.may_edit().is_err());
    top.flush().unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[test]
fn an_image_that_was_not_closed_is_counted_before_the_first_write() {
    for cluster_bits in [9, 16] {
        let dir = scratch();
        let recipe =
            Recipe { cluster_bits, refcount_bits: 16, lazy: true, size: 3 * MIB, ..Recipe::default() };
        let path = recipe.make(dir.path());
        qemu::leave_open(&path, &["discard 0 2M".into(), "write -P 77 1M 1M".into()]);
        workload("qcow2", &path, 40, 2, 3, |mirror| agreed(&path, mirror));
    }
}

/// Tables that say that the guest's data lie over tables: the guest shall not change them.
#[test]
fn data_over_tables_are_not_written() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 16, refcount_bits: 16, size: 3 * MIB, ..Recipe::default() };
    let path = recipe.make(dir.path());
    let good = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
    let l1 = number(40);
    let l2 = number(l1 as usize) & 0x00ff_ffff_ffff_fe00;
    for target in [l1, l2, number(48), number(number(48) as usize)] {
        let mut bytes = good.clone();
        bytes[l2 as usize..l2 as usize + 8].copy_from_slice(&(target | 1 << 63).to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let image = super::open(&path, true).unwrap();
        let e = super::disk(&image).write_at(5, &[1; 100]).unwrap_err();
        assert!(e.to_string().contains("a table says that data are"), "{e}");
        super::disk(&image).flush().unwrap();
        drop(image);
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}

/// Many threads, each with stripes of its own, over clusters that they share.
#[test]
fn threads_do_not_get_into_each_others_way() {
    for (cluster_bits, extended) in [(9, false), (12, false), (16, false), (16, true)] {
        let dir = scratch();
        let recipe = Recipe {
            cluster_bits,
            refcount_bits: 16,
            extended,
            backing: true,
            snapshots: 1,
            size: 3 * MIB,
            ..Recipe::default()
        };
        let path = recipe.make(dir.path());
        let mut mirror = racker_tests::image::read("qcow2", &path);
        let top = super::disk(&super::open(&path, true).unwrap());
        let stripes = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..6u64 {
                let (top, stripes) = (&top, &stripes);
                scope.spawn(move || {
                    let mut rng = Rng::new(thread);
                    let mut mine = std::collections::BTreeMap::new();
                    for step in 0..300 {
                        let at = (rng.below(1024) * 6 + thread) * 512;
                        let mut bytes = vec![0; 512];
                        match rng.below(6) {
                            0 => top.write_zeroes(Span::new(at, 512).unwrap()).unwrap(),
                            _ => {
                                rng.fill(&mut bytes);
                                top.write_at(at, &bytes).unwrap();
                            }
                        }
                        mine.insert(at, bytes);
                        if step % 60 == 0 {
                            top.flush().unwrap();
                        }
                        let (at, bytes) = mine.iter().nth(step % mine.len()).unwrap();
                        let mut found = vec![0; 512];
                        top.read_at(*at, &mut found).unwrap();
                        assert!(found == *bytes, "thread {thread}, step {step}, {at}");
                    }
                    stripes.lock().unwrap().extend(mine);
                });
            }
        });
        for (at, bytes) in stripes.into_inner().unwrap() {
            mirror[at as usize..at as usize + 512].copy_from_slice(&bytes);
        }
        top.flush().unwrap();
        agreed(&path, &mirror);
    }
}
