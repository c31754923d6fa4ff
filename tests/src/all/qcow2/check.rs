//! `check` finds what `qemu-img check` finds, and what it mends `qemu-img check` finds clean.

use std::path::Path;

use racker_formats::check::{Report, Severity};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::make::Recipe;
use super::read::as_qemu_reads;
use super::{content, disk, open};

const MIB: u64 = 1 << 20;

fn check(path: &Path, repair: bool) -> Report {
    let mut report = Report { repair, ..Report::default() };
    open(path, repair).unwrap().check(&mut report).unwrap();
    report
}

#[test]
fn sound_images_of_every_shape_are_clean() {
    for cluster_bits in [9, 13, 16, 21] {
        let base = Recipe { cluster_bits, refcount_bits: 16, size: 5 * MIB + 512, ..Recipe::default() };
        let mut all = vec![
            Recipe { snapshots: 2, packed: Some("zlib"), ..base.clone() },
            Recipe { version2: true, ..base.clone() },
            Recipe { refcount_bits: 1, packed: Some("zstd"), ..base.clone() },
            Recipe { refcount_bits: 64, ..base.clone() },
        ];
        if cluster_bits >= 14 {
            all.push(Recipe { extended: true, snapshots: 1, ..base });
        }
        for recipe in all {
            let dir = tempfile::tempdir().unwrap();
            let path = recipe.make(dir.path());
            let full = path.display().to_string();
            if !recipe.version2 {
                qemu::img(&["bitmap", "--add", &full, "b0"]);
                qemu::io("qcow2", &path, &["write -P 3 1M 1M".into()]);
            }
            assert_eq!(check(&path, false).findings, [], "{recipe:?}");
        }
    }
}

#[test]
fn wrong_counts_and_marks_are_found_and_mended() {
    let mut rng = Rng::new(1);
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            cluster_bits: [9, 12, 16][round % 3],
            refcount_bits: [1, 8, 16, 64][round % 4],
            lazy: round % 2 == 0,
            size: 3 * MIB,
            seed: round as u64,
            ..Recipe::default()
        };
        let path = recipe.make(dir.path());
        let before = as_qemu_reads(&path);
        damage_counts(&path, &recipe, &mut rng);
        let found = check(&path, false);
        let (status, said) = qemu::img_status(&["check", &path.display().to_string()]);
        let worst = match found.worst() {
            None => 0,
            Some(Severity::Leak) => 3,
            Some(Severity::Corruption) => 2,
        };
        assert_eq!(worst, status, "{recipe:?}: {said}\n{found:?}");
        let mended = check(&path, true);
        assert_eq!(mended.worst(), None, "{mended:?}");
        qemu::check(&path);
        assert!(content(&disk(&open(&path, false).unwrap())) == before);
    }
}

/// Changes bytes of the first refcount block, and sometimes the table.
fn damage_counts(path: &Path, recipe: &Recipe, rng: &mut Rng) {
    let mut bytes = std::fs::read(path).unwrap();
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let table = number(&bytes, 48);
    let block = number(&bytes, table);
    // As many as the file has clusters, as wide as they are.
    let used = (bytes.len() >> recipe.cluster_bits) * recipe.refcount_bits as usize / 8;
    let reach = used.clamp(1, 1 << recipe.cluster_bits) as u64;
    for _ in 0..1 + rng.below(3) {
        let at = block + rng.below(reach) as usize;
        bytes[at] = if rng.below(2) == 0 { 0 } else { rng.below(256) as u8 };
    }
    if rng.below(8) == 0 {
        bytes[table..table + 8].copy_from_slice(&(1u64 << 50).to_be_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}
