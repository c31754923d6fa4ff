//! `check` finds what `qemu-img check` finds, and what it mends `qemu-img check` finds clean.

use std::path::Path;

use racker_formats::check::{Report, Severity};
use racker_tests::image::scratch;
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::racker;
use serde_json::Value;

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

/// Makes an image of 4 MiB in clusters of 64 KiB, half of it written, and lets `change` have its bytes.
fn changed(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    qemu::img(&["create", "-q", "-f", "qcow2", &path.display().to_string(), "4M"]);
    qemu::io("qcow2", path, &["write -P 3 0 2M".into()]);
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn clusters_are_counted_one_by_one() {
    let dir = scratch();
    let path = dir.path().join("image.qcow2");
    // Counts of host clusters from, to, and their value.
    for (from, to, count) in [(40, 300, 1u8), (10, 13, 0), (10, 13, 2)] {
        changed(&path, |bytes| {
            let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let block = number(number(48));
            bytes.resize((to << 16).max(bytes.len()), 0);
            (from..to).for_each(|cluster| bytes[block + 2 * cluster + 1] = count);
        });
        let theirs = qemu::img_status(&["check", "--output=json", &path.display().to_string()]).1;
        // What goes to standard error comes behind it.
        let theirs =
            serde_json::Deserializer::from_str(&theirs).into_iter::<Value>().next().unwrap().unwrap();
        let check = |mend: &[&str]| -> Value {
            let ran =
                racker().args(["disk", "check", "--json", "image.qcow2"]).args(mend).dir(dir.path()).run();
            serde_json::from_str(&ran.text()).unwrap()
        };
        let ours = check(&[]);
        for field in ["leaks", "corruptions"] {
            assert_eq!(ours[field], theirs[field], "{from} to {to}, {count}: {field}");
        }
        let fixed = check(&["--repair"]);
        let sum = |field: &str| fixed[field].as_u64().unwrap_or(0);
        assert_eq!(sum("leaks-fixed") + sum("corruptions-fixed"), (to - from) as u64, "{fixed}");
        qemu::check(&path);
    }
}

#[test]
fn repair_clears_what_nobody_here_promises() {
    let dir = scratch();
    let path = dir.path().join("image.qcow2");
    changed(&path, |bytes| bytes[88] |= 0x80);
    assert_eq!(check(&path, false).findings, []);
    assert_eq!(std::fs::read(&path).unwrap()[88], 0x80, "a look changes nothing");
    assert_eq!(check(&path, true).findings, []);
    assert_eq!(std::fs::read(&path).unwrap()[88], 0);
}

/// Refcount blocks full of ones, which reach far behind the end of the file.
#[test]
fn what_is_counted_behind_the_end_of_the_file_takes_no_time() {
    let dir = scratch();
    let path = dir.path().join("image");
    let file = path.display().to_string();
    qemu::img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M,refcount_bits=1", &file, "3T"]);
    let handle = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    // Blocks of 2^24 counts each, full of ones, where the file ends.
    for number in 1..12u64 {
        let at = (10 + number) << 21;
        std::os::unix::fs::FileExt::write_all_at(&handle, &at.to_be_bytes(), (1 << 21) + 8 * number).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&handle, &vec![0xff; 2 << 20], at).unwrap();
    }
    let check = || {
        let theirs = qemu::img_status(&["check", "--output=json", &file]);
        let started = std::time::Instant::now();
        let ours = racker().args(["disk", "check", "--json", &file]).run();
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
        assert_eq!(ours.status, theirs.0, "{ours}");
    };
    check();
    // With its holes, the file has half a petabyte, and all of that is leaked.
    handle.set_len(1 << 49).unwrap();
    let started = std::time::Instant::now();
    let ours: Value =
        serde_json::from_str(&racker().args(["disk", "check", "--json", &file]).run().text()).unwrap();
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(ours["leaks"].as_u64() > Some(11 << 23), "{ours}");
}
