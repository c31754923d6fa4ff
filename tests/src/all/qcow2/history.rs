//! Snapshots inside an image, made and used by racker and by QEMU.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{Disk, MemDevice};
use racker_formats::error::Kind;
use racker_formats::registry::{Image, Moment};
use racker_tests::image::{read, read_by_qemu, scratch};
use racker_tests::qemu;

use super::super::live::workload;
use super::make::Recipe;
use super::{content, cut_step, disk, open, open_disk};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const THEN: Moment = Moment { date_sec: 1_700_000_000, date_nsec: 5, vm_clock_nsec: 7_000_000_001 };

/// One change of an image's history.
type Step = fn(&Arc<dyn Image>);

fn by_qemu(path: &Path, name: &str) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let (from, to) = (path.display().to_string(), raw.display().to_string());
    qemu::img(&["convert", "-q", "-l", name, "-O", "raw", &from, &to]);
    std::fs::read(raw).unwrap()
}

fn shown(image: &Arc<dyn Image>, name: &str) -> Vec<u8> {
    content(&image.snapshots().unwrap().disk(name).unwrap())
}

/// A history in which racker and QEMU take turns.
fn history(recipe: &Recipe) {
    println!("{recipe:?}");
    let dir = scratch();
    let path = recipe.make(dir.path());
    let full = path.display().to_string();
    let snapshot = |args: &[&str]| qemu::img(&[&["snapshot"], args, &[&full]].concat());
    let mut kept = vec![("a", read("qcow2", &path))];
    let made = open(&path, true).unwrap().snapshots().unwrap().create("a", THEN).unwrap();
    assert_eq!((made.id.as_str(), made.virtual_size), ("1", recipe.size));
    qemu::check(&path);
    kept.push(("b", workload("qcow2", &path, 30, 1, 1, |_| qemu::check(&path))));
    snapshot(&["-c", "b"]);
    kept.push(("c", workload("qcow2", &path, 30, 1, 2, |_| qemu::check(&path))));
    {
        // In one opening with writes before and behind.
        let image = open(&path, true).unwrap();
        image.snapshots().unwrap().create("c", THEN).unwrap();
        disk(&image).write_at(100, &[9; 200_000]).unwrap();
        assert!(shown(&image, "c") == kept[2].1);
        disk(&image).flush().unwrap();
    }
    qemu::check(&path);
    for (name, bytes) in &kept {
        assert!(by_qemu(&path, name) == *bytes, "{name}");
        assert!(shown(&open(&path, false).unwrap(), name) == *bytes, "{name}");
    }
    // Back to the second, then to the first by QEMU.
    open(&path, true).unwrap().snapshots().unwrap().apply("b").unwrap();
    qemu::check(&path);
    assert!(read("qcow2", &path) == kept[1].1 && read_by_qemu("qcow2", &path) == kept[1].1);
    workload("qcow2", &path, 30, 1, 3, |_| qemu::check(&path));
    snapshot(&["-a", "a"]);
    assert!(read("qcow2", &path) == kept[0].1);
    let now = workload("qcow2", &path, 30, 1, 4, |_| qemu::check(&path));
    for name in ["b", "a", "c"] {
        if name == "a" {
            snapshot(&["-d", "a"]);
        } else {
            let image = open(&path, true).unwrap();
            image.snapshots().unwrap().delete(name).unwrap();
            assert!(content(&disk(&image)) == now);
            assert_eq!(image.snapshots().unwrap().delete(name).unwrap_err().kind(), Kind::NotFound);
        }
        qemu::check(&path);
        kept.retain(|(n, _)| *n != name);
        for (name, bytes) in &kept {
            assert!(by_qemu(&path, name) == *bytes, "{name}");
        }
    }
    workload("qcow2", &path, 30, 1, 5, |mirror| {
        qemu::check(&path);
        assert!(read_by_qemu("qcow2", &path) == mirror);
    });
}

#[test]
fn racker_and_qemu_take_turns() {
    for cluster_bits in [9, 12, 16, 21] {
        let base = Recipe { cluster_bits, refcount_bits: 16, size: 2 * MIB + 512, ..Recipe::default() };
        history(&base);
        history(&Recipe { version2: true, backing: true, ..base.clone() });
        history(&Recipe { packed: Some("zlib"), refcount_bits: 64, ..base.clone() });
        history(&Recipe { backing: true, refcount_bits: 8, ..base.clone() });
        if cluster_bits >= 14 {
            history(&Recipe { extended: true, backing: true, ..base });
        }
    }
}

#[test]
fn a_list_is_as_qemu_prints_it() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 16, refcount_bits: 16, size: MIB, snapshots: 1, ..Recipe::default() };
    let path = recipe.make(dir.path());
    open(&path, true).unwrap().snapshots().unwrap().create("mine \u{fc}", THEN).unwrap();
    let said = qemu::img(&["info", "--output=json", &path.display().to_string()]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let facts = open(&path, false).unwrap().facts();
    let theirs = said["snapshots"].as_array().unwrap();
    assert_eq!(theirs.len(), facts.snapshots.len());
    for (theirs, ours) in theirs.iter().zip(&facts.snapshots) {
        assert_eq!(theirs["id"], ours.id);
        assert_eq!(theirs["name"], ours.name);
        assert_eq!(theirs["date-sec"], ours.date_sec);
        assert_eq!(theirs["date-nsec"], ours.date_nsec);
        assert_eq!(theirs["vm-clock-sec"], ours.vm_clock_nsec / 1_000_000_000);
        assert_eq!(theirs["vm-clock-nsec"], ours.vm_clock_nsec % 1_000_000_000);
        assert_eq!(theirs["vm-state-size"], ours.vm_state_size);
    }
    assert_eq!(facts.snapshots[1].name, "mine \u{fc}");
}

#[test]
fn a_snapshot_keeps_its_size() {
    for cluster_bits in [9, 16] {
        let dir = scratch();
        let recipe = Recipe { cluster_bits, refcount_bits: 16, size: MIB + 512, ..Recipe::default() };
        let path = recipe.make(dir.path());
        let small = read("qcow2", &path);
        let image = open(&path, true).unwrap();
        let history = image.snapshots().unwrap();
        history.create("small", THEN).unwrap();
        disk(&image).resize(40 * MIB).unwrap();
        disk(&image).write_at(30 * MIB, &[8; 100_000]).unwrap();
        let large = content(&disk(&image));
        history.create("large", THEN).unwrap();
        assert!(shown(&image, "small") == small && shown(&image, "large") == large);
        history.apply("small").unwrap();
        assert!(content(&disk(&image)) == small);
        qemu::check(&path);
        history.apply("large").unwrap();
        assert!(content(&disk(&image)) == large);
        drop(image);
        qemu::check(&path);
        assert!(read_by_qemu("qcow2", &path) == large);
    }
}

#[test]
fn the_state_of_a_machine_comes_back_with_its_disk() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 16, refcount_bits: 16, size: MIB, ..Recipe::default() };
    let path = recipe.make(dir.path());
    let full = path.display().to_string();
    qemu::io("qcow2", &path, &["write -b -P 17 1T 4k".into()]);
    qemu::img(&["snapshot", "-c", "theirs", &full]);
    qemu::io("qcow2", &path, &["write -b -P 18 1T 4k".into()]);
    open(&path, true).unwrap().snapshots().unwrap().create("ours", THEN).unwrap();
    for (name, byte) in [("theirs", 17), ("ours", 18)] {
        open(&path, true).unwrap().snapshots().unwrap().apply(name).unwrap();
        qemu::check(&path);
        qemu::io("qcow2", &path, &[format!("read -b -P {byte} 1T 4k")]);
        // It goes on, with or without what lies behind its end.
        let mirror = workload("qcow2", &path, 20, 1, 6, |_| qemu::check(&path));
        assert!(read_by_qemu("qcow2", &path) == mirror);
    }
}

#[test]
fn a_disk_that_grows_does_not_grow_into_the_state_of_a_machine() {
    let dir = scratch();
    let recipe = Recipe { cluster_bits: 9, refcount_bits: 16, size: MIB, ..Recipe::default() };
    let path = recipe.make(dir.path());
    let mut want = read("qcow2", &path);
    qemu::io("qcow2", &path, &["write -b -P 17 0 400k".into()]);
    qemu::img(&["snapshot", "-c", "kept", &path.display().to_string()]);
    open(&path, true).unwrap().snapshots().unwrap().apply("kept").unwrap();
    disk(&open(&path, true).unwrap()).resize(2 * MIB).unwrap();
    want.resize(want.len() * 2, 0);
    qemu::check(&path);
    assert!(read("qcow2", &path) == want && read_by_qemu("qcow2", &path) == want);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let dir = scratch();
    let base = Recipe { cluster_bits: 16, refcount_bits: 16, size: MIB, snapshots: 1, ..Recipe::default() };
    let path = base.make(dir.path());
    let before = std::fs::read(&path).unwrap();
    let image = open(&path, true).unwrap();
    let history = image.snapshots().unwrap();
    assert_eq!(history.create("s0", THEN).unwrap_err().kind(), Kind::Exists);
    assert_eq!(history.apply("s7").unwrap_err().kind(), Kind::NotFound);
    assert_eq!(history.disk("").unwrap_err().kind(), Kind::NotFound);
    assert!(history.create(&"x".repeat(70_000), THEN).is_err());
    assert!(std::fs::read(&path).unwrap() == before);
    drop(image);
    // A count of one bit cannot say two.
    let path = Recipe { refcount_bits: 1, snapshots: 0, ..base }.make(dir.path());
    let mirror = read("qcow2", &path);
    assert!(open(&path, true).unwrap().snapshots().unwrap().create("s", THEN).is_err());
    qemu::check(&path);
    assert!(read("qcow2", &path) == mirror);
    workload("qcow2", &path, 30, 1, 5, |_| qemu::check(&path));
}

#[test]
fn a_power_cut_leaves_the_old_history_or_the_new_one() {
    for (cluster_bits, packed) in [(9, None), (12, Some("zlib")), (16, None)] {
        let dir = scratch();
        let recipe = Recipe {
            cluster_bits,
            packed,
            refcount_bits: 16,
            size: 300 * KIB,
            snapshots: 2,
            ..Recipe::default()
        };
        let path = recipe.make(dir.path());
        let good = std::fs::read(&path).unwrap();
        let steps: [Step; 3] = [
            |image| drop(image.snapshots().unwrap().create("new", THEN).unwrap()),
            |image| image.snapshots().unwrap().apply("s0").unwrap(),
            |image| image.snapshots().unwrap().delete("s0").unwrap(),
        ];
        for step in steps {
            let states = |bytes: &[u8]| {
                let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
                let names: Vec<String> = image.facts().snapshots.into_iter().map(|s| s.name).collect();
                let mut all: Vec<Vec<u8>> = names.iter().map(|name| shown(&image, name)).collect();
                all.push(content(&disk(&image)));
                (names, all)
            };
            cut_step(&path, &good, step, states);
        }
    }
}
