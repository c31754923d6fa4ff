//! Every ordered pair of writable formats and subformats: from what `qemu-img` wrote to what racker writes, judged by
//! `qemu-img compare` and `check` and by 7-Zip; and from what racker wrote back to plain bytes.

use std::path::Path;

use racker_tests::image::{read_by_7zip, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::racker;

/// One kind of image.
struct Kind {
    /// The file's name, in a folder of its own.
    name: &'static str,
    /// QEMU's word for the format.
    format: &'static str,
    /// What follows `convert` to make one, the same for both programs.
    args: &'static [&'static str],
    /// 7-Zip reads it.
    in_7zip: bool,
}

const fn kind(name: &'static str, format: &'static str, args: &'static [&'static str]) -> Kind {
    Kind { name, format, args, in_7zip: false }
}

const fn judged(name: &'static str, format: &'static str, args: &'static [&'static str]) -> Kind {
    Kind { in_7zip: true, ..kind(name, format, args) }
}

const KINDS: [Kind; 20] = [
    kind("plain.raw", "raw", &[]),
    kind("v3.qcow2", "qcow2", &[]),
    kind("v2.qcow2", "qcow2", &["-o", "compat=0.10"]),
    kind("c512.qcow2", "qcow2", &["-o", "cluster_size=512,refcount_bits=64"]),
    kind("c2m.qcow2", "qcow2", &["-o", "cluster_size=2M,refcount_bits=1"]),
    kind("l2.qcow2", "qcow2", &["-o", "extended_l2=on"]),
    kind("full.qcow2", "qcow2", &["-o", "preallocation=metadata"]),
    kind("zlib.qcow2", "qcow2", &["-c"]),
    kind("zstd.qcow2", "qcow2", &["-c", "-o", "compression_type=zstd"]),
    judged("sparse.vmdk", "vmdk", &[]),
    judged("stream.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
    kind("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]),
    kind("split.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentSparse"]),
    kind("pieces.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
    judged("dynamic.vhd", "vpc", &["-o", "force_size=on"]),
    judged("fixed.vhd", "vpc", &["-o", "subformat=fixed,force_size=on"]),
    judged("dynamic.vhdx", "vhdx", &[]),
    kind("fixed.vhdx", "vhdx", &["-o", "subformat=fixed"]),
    judged("dynamic.vdi", "vdi", &[]),
    kind("static.vdi", "vdi", &["-o", "static=on"]),
];

/// Zeroes, noise, text and lonely sectors, in no order.
fn disk(len: usize) -> Vec<u8> {
    let mut rng = Rng::new(77);
    let mut all = vec![0u8; len];
    for piece in all.chunks_mut(48 << 10) {
        match rng.below(6) {
            0 => piece.iter_mut().for_each(|b| *b = rng.below(256) as u8),
            1 => piece.iter_mut().enumerate().for_each(|(n, b)| *b = b"all the king's horses "[n % 22]),
            2 => {
                let at = rng.below(piece.len() as u64 / 512) as usize * 512;
                piece[at] = 1;
            }
            3 => piece.fill(0xf6),
            _ => {}
        }
    }
    all
}

#[test]
fn every_ordered_pair_is_the_same_disk() {
    let dir = scratch();
    let plain = dir.path().join("disk");
    let bytes = disk((12 << 20) + (200 << 10));
    std::fs::write(&plain, &bytes).unwrap();
    let plain = plain.display().to_string();
    for from in &KINDS {
        let folder = dir.path().join("from");
        std::fs::create_dir(&folder).unwrap();
        let source = folder.join(from.name).display().to_string();
        qemu::img(&[&["convert", "-f", "raw", "-O", from.format], from.args, &[&plain, &source]].concat());
        for to in &KINDS {
            let folder = dir.path().join("to");
            std::fs::create_dir(&folder).unwrap();
            pair(&source, from, &folder.join(to.name), to, &bytes);
            std::fs::remove_dir_all(folder).unwrap();
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn pair(source: &str, from: &Kind, target: &Path, to: &Kind, bytes: &[u8]) {
    let what = format!("{} to {}", from.name, to.name);
    let convert = |args: &[&str]| {
        let ran = racker().args(["disk", "convert"]).args(args).run();
        assert_eq!(ran.status, 0, "{what}: {ran}");
    };
    let made = target.display().to_string();
    // A raw source is not guessed.
    let input: &[&str] = if from.format == "raw" { &["-f", "raw"] } else { &[] };
    convert(&[input, &["-O", to.format], to.args, &[source, &made]].concat());
    let args = ["compare", "-f", from.format, "-F", to.format, source, &made];
    assert!(qemu::img(&args).contains("identical"), "{what}");
    if to.format != "raw" {
        let (status, said) = qemu::img_status(&["check", "-f", to.format, &made]);
        // 63: QEMU checks no such image.
        assert!(matches!(status, 0 | 63), "{what}: {said}");
    }
    if to.in_7zip && from.format == "raw" {
        assert!(read_by_7zip(target).starts_with(bytes), "{what}");
    }
    let back = target.with_extension("back");
    let output: &[&str] = if to.format == "raw" { &["-f", "raw"] } else { &[] };
    convert(&[output, &["-O", "raw", &made, &back.display().to_string()]].concat());
    let back = std::fs::read(back).unwrap();
    assert!(back.starts_with(bytes) && back[bytes.len()..].iter().all(|b| *b == 0), "{what}");
}
