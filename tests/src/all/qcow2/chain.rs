//! Other backing files under the same content, and content that moves down the chain.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk};
use racker_formats::commit::commit;
use racker_formats::convert::Pace;
use racker_formats::opening::{Opening, Policy, Reference, Role};
use racker_formats::rebase::rebase;
use racker_formats::registry::Backing;
use racker_formats::registry::{Image, by_name};
use racker_tests::image::{read, read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;
use racker_tests::tool::{Ran, racker};
use serde_json::Value;

use super::make::writes;
use super::{content, disk};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn run(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

/// Makes an image with random content; `rest` are further arguments of `qemu-img create`, its options among them.
fn make(dir: &Path, name: &str, size: u64, rest: &[&str], rng: &mut Rng) {
    let size_text = size.to_string();
    qemu::img_in(dir, &[&["create", "-q", "-f", "qcow2"], rest, &[name, &size_text]].concat());
    qemu::io("qcow2", &dir.join(name), &writes(rng, size, 24));
}

fn backing(dir: &Path, name: &str) -> Option<String> {
    let said = qemu::img_in(dir, &["info", "--output=json", name]);
    let said: Value = serde_json::from_str(&said).unwrap();
    said["backing-filename"].as_str().map(String::from)
}

/// No cluster of the image is its own.
fn is_empty(dir: &Path, name: &str) -> bool {
    let said: Value = serde_json::from_str(&qemu::img_in(dir, &["map", "--output=json", name])).unwrap();
    said.as_array().unwrap().iter().all(|e| e["depth"] != 0 || e["present"] == false)
}

/// Options of overlays.
const SHAPES: [&str; 5] = [
    "cluster_size=512",
    "cluster_size=4k,compat=0.10",
    "cluster_size=64k",
    "cluster_size=64k,extended_l2=on",
    "cluster_size=2M",
];

#[test]
fn rebase_keeps_the_content() {
    for (number, shape) in SHAPES.into_iter().enumerate() {
        println!("{shape}");
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(number as u64);
        let size = if number == 0 { 700 * KIB } else { 3 * MIB + 512 };
        make(at, "a.qcow2", size / 2, &["-o", "cluster_size=64k"], rng);
        make(at, "b.qcow2", size + MIB, &["-o", "cluster_size=4k"], rng);
        make(at, "c.qcow2", (size / 3) & !511, &["-b", "b.qcow2", "-F", "qcow2"], rng);
        make(at, "top.qcow2", size, &["-o", shape, "-b", "a.qcow2", "-F", "qcow2"], rng);
        let top = at.join("top.qcow2");
        let before = read_by_qemu("qcow2", &top);
        // A name that no sector has room for, and back to one that has.
        let long = format!("{}b.qcow2", "./".repeat(if number == 0 { 20 } else { 450 }));
        for new in ["b.qcow2", "c.qcow2", &long, "", "a.qcow2", &long, "a.qcow2"] {
            let format = if new.is_empty() { vec![] } else { vec!["-F", "qcow2"] };
            run(at, &[&["rebase", "-b", new], &format[..], &["top.qcow2"]].concat()).ok();
            qemu::check(&top);
            assert_eq!(backing(at, "top.qcow2").unwrap_or_default(), new);
            assert!(read_by_qemu("qcow2", &top) == before && read("qcow2", &top) == before, "{new}");
        }
        let said = qemu::img_in(at, &["info", "top.qcow2"]);
        assert!(said.contains("backing file format: qcow2"), "{said}");
    }
}

#[test]
fn rebase_writes_no_more_than_it_must() {
    let dir = scratch();
    let at = dir.path();
    let rng = &mut Rng::new(1);
    make(at, "a.qcow2", 4 * MIB, &[], rng);
    std::fs::copy(at.join("a.qcow2"), at.join("b.qcow2")).unwrap();
    qemu::io("qcow2", &at.join("b.qcow2"), &["write -P 77 1M 3k".into()]);
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "top.qcow2"]);
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "theirs.qcow2"]);
    let before = read_by_qemu("qcow2", &at.join("top.qcow2"));
    run(at, &["rebase", "-b", "b.qcow2", "top.qcow2"]).ok();
    qemu::img_in(at, &["rebase", "-b", "b.qcow2", "-F", "qcow2", "theirs.qcow2"]);
    let map = |name: &str| -> Value {
        serde_json::from_str(&qemu::img_in(at, &["map", "--output=json", name])).unwrap()
    };
    let own = |name: &str| {
        let all = map(name).as_array().unwrap().clone();
        all.iter().filter(|e| e["depth"] == 0).map(|e| e["length"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(own("top.qcow2"), own("theirs.qcow2"));
    assert!(read_by_qemu("qcow2", &at.join("top.qcow2")) == before);
}

#[test]
fn an_unsafe_rebase_looks_at_nothing() {
    let dir = scratch();
    let at = dir.path();
    let rng = &mut Rng::new(1);
    make(at, "a.qcow2", MIB, &[], rng);
    make(at, "top.qcow2", MIB, &["-b", "a.qcow2", "-F", "qcow2"], rng);
    let before = read_by_qemu("qcow2", &at.join("top.qcow2"));
    std::fs::rename(at.join("a.qcow2"), at.join("moved.qcow2")).unwrap();
    assert!(run(at, &["rebase", "-b", "moved.qcow2", "top.qcow2"]).failed().contains("a.qcow2"));
    assert!(run(at, &["rebase", "-u", "-b", "moved.qcow2", "top.qcow2"]).failed().contains("-F"));
    run(at, &["rebase", "-u", "-b", "moved.qcow2", "-F", "qcow2", "top.qcow2"]).ok();
    assert!(read_by_qemu("qcow2", &at.join("top.qcow2")) == before);
    assert!(read("qcow2", &at.join("top.qcow2")) == before);
    run(at, &["rebase", "-u", "-b", "", "top.qcow2"]).ok();
    assert_eq!(backing(at, "top.qcow2"), None);
    qemu::check(&at.join("top.qcow2"));
    // Neither an image on itself, nor one on what is not there.
    run(at, &["rebase", "-b", "top.qcow2", "-F", "qcow2", "top.qcow2"]).failed();
    run(at, &["rebase", "-b", "gone.qcow2", "-F", "qcow2", "top.qcow2"]).failed();
    assert_eq!(backing(at, "top.qcow2"), None);
}

#[test]
fn commit_moves_the_content_down() {
    for (number, shape) in SHAPES.into_iter().enumerate() {
        println!("{shape}");
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(100 + number as u64);
        let size = if number == 0 { 700 * KIB } else { 3 * MIB + 512 };
        // The base is smaller, and has something below it that is larger.
        make(at, "root.qcow2", size + MIB, &[], rng);
        make(at, "base.qcow2", size / 2, &["-b", "root.qcow2", "-F", "qcow2"], rng);
        make(at, "top.qcow2", size, &["-o", shape, "-b", "base.qcow2", "-F", "qcow2"], rng);
        let (base, top) = (at.join("base.qcow2"), at.join("top.qcow2"));
        let want = read_by_qemu("qcow2", &top);
        run(at, &["commit", "-d", "top.qcow2"]).ok();
        assert!(!is_empty(at, "top.qcow2"));
        for _ in 0..2 {
            for path in [&base, &top] {
                qemu::check(path);
                assert!(read_by_qemu("qcow2", path) == want, "{}", path.display());
            }
            run(at, &["commit", "top.qcow2"]).ok();
            assert!(is_empty(at, "top.qcow2"));
        }
        // It goes on as the overlay that it was.
        qemu::io("qcow2", &top, &writes(rng, size, 10));
        qemu::check(&top);
        let want = read_by_qemu("qcow2", &top);
        run(at, &["commit", "-b", "root.qcow2", "top.qcow2"]).ok();
        assert!(!is_empty(at, "top.qcow2"));
        let root = read_by_qemu("qcow2", &at.join("root.qcow2"));
        assert!(root[..want.len()] == want[..] && read_by_qemu("qcow2", &top) == want);
        qemu::check(&at.join("root.qcow2"));
        assert!(run(at, &["commit", "-b", "gone.qcow2", "top.qcow2"]).failed().contains("chain"));
        assert!(run(at, &["commit", "root.qcow2"]).failed().contains("no backing file"));
    }
}

#[test]
fn an_emptied_image_gives_its_space_back() {
    let dir = scratch();
    let at = dir.path();
    qemu::img_in(at, &["create", "-q", "-f", "raw", "base.raw", "64M"]);
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2"]);
    qemu::io("qcow2", &at.join("top.qcow2"), &["write -P 5 1M 32M".into()]);
    run(at, &["snapshot", "-c", "kept", "top.qcow2"]).ok();
    qemu::io("qcow2", &at.join("top.qcow2"), &["write -P 6 2M 40M".into()]);
    run(at, &["commit", "top.qcow2"]).ok();
    let stored = || std::os::unix::fs::MetadataExt::blocks(&at.join("top.qcow2").metadata().unwrap()) * 512;
    assert!(stored() < 34 * MIB && stored() > 32 * MIB, "{}", stored());
    run(at, &["snapshot", "-d", "kept", "top.qcow2"]).ok();
    assert!(stored() < MIB, "{}", stored());
    qemu::check(&at.join("top.qcow2"));
    let raw = std::fs::read(at.join("base.raw")).unwrap();
    assert!(raw[MIB as usize..2 * MIB as usize].iter().all(|b| *b == 5));
    assert!(raw[2 * MIB as usize..42 * MIB as usize].iter().all(|b| *b == 6));
}

/// Opens an image whose bytes are in `disk`, and which names files of `dir`.
fn open_in(dir: &Path, disk: Disk, write: bool) -> Arc<dyn Image> {
    let opening = &mut Opening::new(Some(&dir.join("no-such-file")), Policy::SameFolder, write);
    by_name("qcow2").unwrap().open(disk, opening).unwrap()
}

fn crashable(path: &Path) -> (Arc<CrashDisk>, Disk) {
    let crash = Arc::new(CrashDisk::new(std::fs::read(path).unwrap()));
    let disk = Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>);
    (crash, disk)
}

#[test]
fn a_power_cut_never_changes_what_a_rebased_image_shows() {
    for (number, options) in
        ["cluster_size=512", "cluster_size=4k", "cluster_size=16k,extended_l2=on"].into_iter().enumerate()
    {
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(200 + number as u64);
        let size = 300 * KIB;
        make(at, "a.qcow2", size / 2, &[], rng);
        make(at, "b.qcow2", size, &[], rng);
        make(at, "top.qcow2", size, &["-o", options, "-b", "a.qcow2", "-F", "qcow2"], rng);
        let top = at.join("top.qcow2");
        let want = read_by_qemu("qcow2", &top);
        let good = std::fs::read(&top).unwrap();
        let long = format!("{}b.qcow2", "./".repeat(if number == 0 { 20 } else { 400 }));
        for (name, compress) in [(long.as_str(), false), ("b.qcow2", false), ("b.qcow2", true), ("", true)] {
            std::fs::write(&top, &good).unwrap();
            let (crash, file) = crashable(&top);
            let image = open_in(at, file, true);
            let reference =
                Reference { path: name.into(), format: Some("qcow2".into()), role: Role::Backing };
            let opened = super::open(&at.join("b.qcow2"), false).unwrap();
            let target = Backing { reference, image: opened, modified: 0 };
            rebase(&image, (!name.is_empty()).then_some(&target), compress, &mut |_| ()).unwrap();
            let mut count = 0;
            crash.cuts(&mut Rng::new(3), 3, |_, bytes| {
                std::fs::write(&top, bytes).unwrap();
                assert!(read("qcow2", &top) == want);
                count += 1;
                if count % 40 == 0 {
                    qemu::check_leaks_only(&top);
                    assert!(read_by_qemu("qcow2", &top) == want);
                }
            });
            std::fs::write(&top, crash.bytes()).unwrap();
            qemu::check(&top);
            assert_eq!(backing(at, "top.qcow2").unwrap_or_default(), name);
        }
    }
}

#[test]
fn a_power_cut_never_changes_what_a_committed_image_shows() {
    for (number, options) in ["cluster_size=512", "cluster_size=4k"].into_iter().enumerate() {
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(300 + number as u64);
        let size = 300 * KIB;
        make(at, "base.qcow2", size / 2, &[], rng);
        make(at, "top.qcow2", size, &["-o", options, "-b", "base.qcow2", "-F", "qcow2"], rng);
        let (base, top) = (at.join("base.qcow2"), at.join("top.qcow2"));
        let want = read_by_qemu("qcow2", &top);
        let (crash, file) = crashable(&base);
        let layer = super::open(&top, false).unwrap();
        commit(&[layer], &open_in(at, file, true), Pace::new(0), &mut |_| ()).unwrap();
        crash.cuts(&mut Rng::new(3), 3, |_, bytes| {
            std::fs::write(&base, bytes).unwrap();
            assert!(read("qcow2", &top) == want);
        });
        std::fs::write(&base, crash.bytes()).unwrap();
        qemu::check(&base);
        let (crash, file) = crashable(&top);
        open_in(at, file, true).empty().unwrap();
        crash.cuts(&mut Rng::new(3), 3, |_, bytes| {
            let image =
                open_in(at, Disk::new(racker_formats::block::MemDevice::from_bytes(bytes.to_vec())), false);
            assert!(content(&disk(&image)) == want);
        });
        std::fs::write(&top, crash.bytes()).unwrap();
        qemu::check(&top);
        assert!(is_empty(at, "top.qcow2") && read_by_qemu("qcow2", &top) == want);
    }
}
