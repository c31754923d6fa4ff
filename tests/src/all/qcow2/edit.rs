//! Atomic edits: `qemu-img check` finds neither errors nor leaks afterwards, and the bytes are those asked for.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{Disk, Span, Staged};
use racker_formats::registry::Image;
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::make::Recipe;
use super::read::as_qemu_reads;
use super::{content, disk, open, runs_agree};

const MIB: u64 = 1 << 20;

/// Makes random changes on `image` and on `mirror` alike.
pub(super) fn edit(image: &Arc<dyn Image>, mirror: &mut [u8], rng: &mut Rng, count: u64) {
    let staged = Arc::new(Staged::new(disk(image)));
    let top = Disk::from_arc(staged.clone());
    for _ in 0..count {
        let most = [100, 4096, 70_000, 700_000][rng.below(4) as usize].min(top.size() / 4);
        let len = 1 + rng.below(most);
        let at = rng.below(top.size() - len + 1);
        let range = at as usize..(at + len) as usize;
        if rng.below(4) == 0 {
            top.write_zeroes(Span::new(at, len).unwrap()).unwrap();
            mirror[range].fill(0);
        } else {
            rng.fill(&mut mirror[range.clone()]);
            top.write_at(at, &mirror[range]).unwrap();
        }
    }
    image.apply(&top, &staged.changes().unwrap()).unwrap();
}

/// What racker reads, what QEMU reads and what was asked for are the same, and the counts are right.
pub(super) fn sound(path: &Path, mirror: &[u8]) {
    let found = disk(&open(path, false).unwrap());
    assert!(content(&found) == mirror, "racker reads something else");
    runs_agree(&found, mirror);
    assert!(as_qemu_reads(path) == mirror, "qemu-img reads something else");
    qemu::check(path);
}

fn edits(recipe: &Recipe) {
    println!("{recipe:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = recipe.make(dir.path());
    let mut mirror = as_qemu_reads(&path);
    let snapshots = snapshots(&path, recipe.snapshots);
    let mut rng = Rng::new(recipe.seed + 1);
    for round in 0..3 {
        let image = open(&path, true).unwrap();
        // Several edits in one opening, and one in each.
        for _ in 0..3 - round {
            edit(&image, &mut mirror, &mut rng, 6);
        }
        drop(image);
        sound(&path, &mirror);
    }
    // QEMU can go on with it.
    qemu::io("qcow2", &path, &super::make::writes(&mut rng, recipe.size, 8));
    qemu::check(&path);
    let mut mirror = as_qemu_reads(&path);
    edit(&open(&path, true).unwrap(), &mut mirror, &mut rng, 6);
    sound(&path, &mirror);
    assert!(self::snapshots(&path, recipe.snapshots) == snapshots, "a snapshot changed");
}

/// The content of every snapshot.
pub(super) fn snapshots(path: &Path, count: u32) -> Vec<Vec<u8>> {
    let raw = path.with_extension("snapshot");
    (0..count)
        .map(|number| {
            let (name, from, to) =
                (format!("s{number}"), path.display().to_string(), raw.display().to_string());
            qemu::img(&["convert", "-q", "-l", &name, "-O", "raw", &from, &to]);
            std::fs::read(&raw).unwrap()
        })
        .collect()
}

#[test]
fn every_cluster_size_and_refcount_width() {
    for cluster_bits in 9..=21 {
        for order in 0..=6 {
            let refcount_bits = 1 << order;
            edits(&Recipe { cluster_bits, refcount_bits, size: 5 * MIB + 512, ..Recipe::default() });
        }
    }
}

#[test]
fn every_shape() {
    for cluster_bits in [9, 12, 14, 16, 18, 21] {
        let base = Recipe { cluster_bits, refcount_bits: 16, size: 5 * MIB + 512, ..Recipe::default() };
        let narrow = Recipe { refcount_bits: 1, ..base.clone() };
        let snapshots = Recipe { snapshots: 2, ..base.clone() };
        edits(&Recipe { version2: true, ..base.clone() });
        edits(&Recipe { version2: true, backing: true, ..snapshots.clone() });
        edits(&Recipe { backing: true, lazy: true, ..narrow.clone() });
        edits(&Recipe { packed: Some("zlib"), ..base.clone() });
        edits(&Recipe { packed: Some("zlib"), ..narrow });
        edits(&Recipe { packed: Some("zstd"), ..snapshots.clone() });
        edits(&Recipe { packed: Some("zlib"), version2: true, ..snapshots.clone() });
        if cluster_bits >= 14 {
            edits(&Recipe { extended: true, ..base.clone() });
            edits(&Recipe { extended: true, backing: true, ..snapshots.clone() });
            edits(&Recipe { extended: true, packed: Some("zlib"), ..snapshots });
        }
    }
}

#[test]
fn an_image_that_was_not_closed_is_counted_first() {
    for cluster_bits in [9, 12, 16, 21] {
        for refcount_bits in [2, 16, 64] {
            let dir = tempfile::tempdir().unwrap();
            let recipe = Recipe {
                cluster_bits,
                refcount_bits,
                lazy: true,
                snapshots: 1,
                size: 5 * MIB + 512,
                ..Recipe::default()
            };
            let path = recipe.make(dir.path());
            let mut commands = super::make::writes(&mut Rng::new(9), recipe.size, 9);
            // What is allocated anew makes it dirty.
            commands.extend(["discard 0 4M".into(), "write -P 77 1M 2M".into()]);
            qemu::leave_open(&path, &commands);
            let image = open(&path, true).unwrap();
            assert!(image.facts().dirty);
            let mut mirror = content(&disk(&image));
            edit(&image, &mut mirror, &mut Rng::new(2), 4);
            assert!(!image.facts().dirty);
            edit(&image, &mut mirror, &mut Rng::new(4), 4);
            drop(image);
            sound(&path, &mirror);
        }
    }
}

#[test]
fn a_thousand_edits_reuse_what_they_free() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        cluster_bits: 16,
        refcount_bits: 16,
        size: 64 * MIB,
        packed: Some("zlib"),
        ..Recipe::default()
    };
    let path = recipe.make(dir.path());
    let mut mirror = as_qemu_reads(&path);
    let before = path.metadata().unwrap().len();
    let mut rng = Rng::new(3);
    for round in 0..1000 {
        let image = open(&path, true).unwrap();
        let staged = Arc::new(Staged::new(disk(&image)));
        let top = Disk::from_arc(staged.clone());
        for _ in 0..4 {
            let at = rng.below(1000) * 4096;
            let range = at as usize..at as usize + 4096;
            rng.fill(&mut mirror[range.clone()]);
            top.write_at(at, &mirror[range]).unwrap();
        }
        image.apply(&top, &staged.changes().unwrap()).unwrap();
        if round % 250 == 0 {
            qemu::check(&path);
        }
    }
    sound(&path, &mirror);
    // All of the 4 MB that were written to, and twice what one edit takes.
    let after = path.metadata().unwrap().len();
    assert!(after < before + 6 * MIB, "{before} to {after}");
}

#[test]
fn images_that_must_not_be_written_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let full = path.display().to_string();
    let refused = |word: &str| {
        let before = std::fs::read(&path).unwrap();
        let image = open(&path, true).unwrap();
        let staged = Arc::new(Staged::new(disk(&image)));
        let top = Disk::from_arc(staged.clone());
        top.write_at(5000, &[1; 10]).unwrap();
        let e = image.apply(&top, &staged.changes().unwrap()).unwrap_err();
        assert!(e.to_string().contains(word), "{e}");
        drop((top, staged, image));
        assert!(std::fs::read(&path).unwrap() == before, "the file changed");
    };
    qemu::img(&["create", "-q", "-f", "qcow2", &full, "1M"]);
    qemu::io("qcow2", &path, &["write -P 1 0 128k".into()]);
    let good = std::fs::read(&path).unwrap();
    let mut bytes = good.clone();
    bytes[79] |= 2;
    std::fs::write(&path, &bytes).unwrap();
    refused("marked as corrupt");
    // The counts of everything become zero: the header would be handed out.
    bytes = good.clone();
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap()) as usize;
    bytes[block..block + 65536].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    refused("is 0, but");
    let options = "data_file=data";
    qemu::img_in(dir.path(), &["create", "-q", "-f", "qcow2", "-o", options, &full, "1M"]);
    refused("external file");
}
