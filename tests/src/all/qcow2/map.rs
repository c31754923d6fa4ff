//! `map`, `check` and `measure` count as `qemu-img` counts.

use std::path::Path;

use racker_tests::image::scratch;
use racker_tests::qemu;
use racker_tests::tool::racker;
use serde_json::Value;

use super::make::Recipe;

const MIB: u64 = 1 << 20;

fn theirs(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&qemu::img_in(dir, &[args, &["--output=json"]].concat())).unwrap()
}

fn ours(dir: &Path, args: &[&str]) -> Value {
    let ran = racker().arg("disk").args(args).arg("--json").dir(dir).run();
    serde_json::from_str(&ran.text()).unwrap_or_else(|e| panic!("{e}: {ran}"))
}

/// Compares what both say of an image.
fn same(dir: &Path, name: &str) {
    let (a, b) = (theirs(dir, &["map", name]), qemu::as_told(ours(dir, &["map", name])));
    let count = a.as_array().unwrap().len();
    let first = a.as_array().unwrap().iter().zip(b.as_array().unwrap()).find(|(a, b)| a != b);
    assert!(first.is_none() && b.as_array().unwrap().len() == count, "{name}: {first:?}\n{a}\n{b}");
    let (a, b) = (theirs(dir, &["check", name]), ours(dir, &["check", name]));
    for field in [
        "image-end-offset",
        "total-clusters",
        "allocated-clusters",
        "fragmented-clusters",
        "compressed-clusters",
        "leaks",
        "corruptions",
        "check-errors",
    ] {
        assert_eq!(a[field], b[field], "{name}: {field}");
    }
}

#[test]
fn every_shape_is_mapped_and_counted_as_qemu_img_does() {
    for cluster_bits in [9, 16, 21] {
        let size = if cluster_bits < 16 { MIB / 2 } else { 5 * MIB } + 512;
        let base = Recipe { cluster_bits, refcount_bits: 16, size, ..Recipe::default() };
        let mut all = vec![
            Recipe { snapshots: 2, packed: Some("zlib"), ..base.clone() },
            Recipe { version2: true, backing: true, ..base.clone() },
            Recipe { backing: true, ..base.clone() },
        ];
        if cluster_bits >= 14 {
            all.push(Recipe { extended: true, backing: true, snapshots: 1, ..base.clone() });
            all.push(Recipe { extended: true, ..base });
        }
        for recipe in all {
            let dir = scratch();
            recipe.make(dir.path());
            println!("{recipe:?}");
            same(dir.path(), "image.qcow2");
        }
    }
}

#[test]
fn tables_without_data_and_data_without_tables() {
    let dir = scratch();
    let at = dir.path();
    let create = |options: &str, name: &str| {
        qemu::img_in(at, &["create", "-q", "-f", "qcow2", "-o", options, name, "5M"]);
    };
    create("preallocation=metadata", "metadata.qcow2");
    create("preallocation=falloc", "falloc.qcow2");
    create("data_file=far.raw", "far.qcow2");
    create("data_file=both.raw,data_file_raw=on", "both.qcow2");
    for name in ["metadata.qcow2", "falloc.qcow2", "far.qcow2", "both.qcow2"] {
        same(at, name);
        let commands = ["write -P 3 100k 300k", "write -z 200k 64k", "discard 1M 1M", "write -P 1 4M 1k"];
        qemu::io("qcow2", &at.join(name), &commands.map(String::from));
        same(at, name);
    }
    // Clusters in use that nobody counts, and counted that nobody uses.
    let mut bytes = std::fs::read(at.join("falloc.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    bytes[block + 2 * 5..block + 2 * 7].fill(0);
    bytes[block + 2 * 200 + 1] = 1;
    std::fs::write(at.join("falloc.qcow2"), bytes).unwrap();
    let (a, b) = (theirs_bad(at), ours(at, &["check", "falloc.qcow2"]));
    for field in ["image-end-offset", "total-clusters", "allocated-clusters", "fragmented-clusters"] {
        assert_eq!(a[field], b[field], "{field}");
    }
}

/// What `qemu-img check` says of a corrupt image.
fn theirs_bad(dir: &Path) -> Value {
    let path = dir.join("falloc.qcow2").display().to_string();
    let (status, said) = qemu::img_status(&["check", "--output=json", &path]);
    assert_eq!(status, 2);
    let from = said.find('{').unwrap();
    let to = said.rfind('}').unwrap();
    serde_json::from_str(&said[from..=to]).unwrap()
}

#[test]
fn a_raw_file_is_mapped_as_qemu_img_does() {
    let dir = scratch();
    qemu::img_in(dir.path(), &["create", "-q", "-f", "raw", "d.raw", "5M"]);
    qemu::io("raw", &dir.path().join("d.raw"), &["write 64k 8k".into(), "write 3M 1M".into()]);
    let both = [theirs, ours].map(|run| run(dir.path(), &["map", "-f", "raw", "d.raw"]));
    let [theirs, ours] = both;
    assert_eq!(theirs, qemu::as_told(ours));
}

#[test]
fn the_full_size_is_as_qemu_img_measures() {
    let dir = scratch();
    for options in [
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=2M,refcount_bits=1",
        "cluster_size=4k,refcount_bits=64",
        "extended_l2=on",
        "compat=0.10",
    ] {
        for size in ["512", "5M", "20G", "1T"] {
            if options == "cluster_size=512" && size.ends_with(['G', 'T']) {
                continue;
            }
            let args = ["measure", "-O", "qcow2", "-o", options, "--size", size];
            let (a, b) = (theirs(dir.path(), &args), ours(dir.path(), &args));
            assert_eq!(a["fully-allocated"], b["fully-allocated"], "{options} {size}");
        }
    }
}
