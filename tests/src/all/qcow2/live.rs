//! Writes while the disk is in use: `qemu-img check` finds neither errors nor leaks, and all read the same.

use std::path::Path;

use racker_formats::block::Disk;
use racker_formats::registry::{Opening, Policy, by_name};
use racker_tests::image::{read_by_qemu, scratch};
use racker_tests::qemu;

use super::super::live::workload;
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
    qemu::io("qcow2", &path, &super::make::writes(&mut racker_tests::rng::Rng::new(1), recipe.size, 6));
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
