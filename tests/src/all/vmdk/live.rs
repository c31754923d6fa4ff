//! A random workload on every kind that is written in place, by other programs' judgement.

use std::path::Path;

use racker_tests::image::{findings, read_by_7zip, read_by_qemu, scratch};
use racker_tests::qemu;

use super::super::live::workload;
use super::{make, text};

const MIB: u64 = 1 << 20;

/// Kinds that are written in place, as options.
const LIVE: [&str; 5] = [
    "subformat=monolithicSparse",
    "subformat=monolithicSparse,zeroed_grain=on",
    "subformat=monolithicFlat",
    "subformat=twoGbMaxExtentSparse",
    "subformat=twoGbMaxExtentFlat",
];

/// An image of racker's as others see it.
fn agreed(path: &Path, mirror: &[u8]) {
    assert!(read_by_qemu("vmdk", path) == mirror, "qemu-img reads something else");
    let (status, said) = qemu::img_status(&["check", "-f", "vmdk", &text(path)]);
    assert!(status == 0 || said.contains("does not support"), "{said}");
    assert_eq!(findings("vmdk", path, false), Vec::<String>::new());
}

/// 7-Zip knows no zeroed grains.
fn agreed_with_7_zip(path: &Path, mirror: &[u8]) {
    if !text(path).contains("zeroed") {
        assert!(read_by_7zip(path) == mirror, "7-Zip reads something else");
    }
}

fn live(steps: u32, points: u32) {
    for (number, options) in LIVE.into_iter().enumerate() {
        let dir = scratch();
        let zeroed = if options.contains("zeroed") { "zeroed" } else { "plain" };
        let path = dir.path().join(format!("{zeroed}.vmdk"));
        make(&path, 12 * MIB + 512, options, None).unwrap();
        let mirror = workload("vmdk", &path, steps, points, number as u64, |m| agreed(&path, m));
        agreed_with_7_zip(&path, &mirror);
    }
}

fn live_child(steps: u32, points: u32) {
    for (number, options) in ["", "zeroed_grain=on", "subformat=twoGbMaxExtentSparse"].into_iter().enumerate()
    {
        let dir = scratch();
        let (base, path) = (dir.path().join("base.vmdk"), dir.path().join("zeroed.vmdk"));
        make(&base, 10 * MIB, "", None).unwrap();
        qemu::io("vmdk", &base, &["write -q -P 7 100k 5M".into(), "write -q -P 9 8M 1M".into()]);
        make(&path, 10 * MIB, options, Some(&base)).unwrap();
        workload("vmdk", &path, steps, points, 100 + number as u64, |m| agreed(&path, m));
    }
}

#[test]
fn a_random_workload_leaves_what_was_written() {
    live(300, 3);
}

#[test]
fn a_random_workload_on_a_child_leaves_what_was_written() {
    live_child(300, 3);
}

/// `cargo test -p racker-tests --test all vmdk::live -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_long_random_workload_leaves_what_was_written() {
    live(20_000, 100);
    live_child(20_000, 100);
}
