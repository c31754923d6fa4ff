//! `racker disk map` beside `qemu-img map`, on images that QEMU made.

use std::path::Path;

use racker_tests::qemu;
use racker_tests::tool::{racker, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn qemu_img(at: &Path, args: &[&str]) -> String {
    tool("qemu-img").args(args).dir(at).ok()
}

fn write(at: &Path, format: &str, name: &str, commands: &[&str]) {
    let commands = commands.iter().flat_map(|c| ["-c", c]);
    tool("qemu-io").args(["-f", format]).args(commands).arg(name).dir(at).ok();
}

/// Some data, zeroes that take space and zeroes that may not, a discarded stretch, and the last sector.
fn fill(at: &Path, format: &str, name: &str) {
    let commands = [
        "write -P 1 1M 300k",
        "write -z 8M 2M",
        "write -P 3 20M 64k",
        "discard 20M 64k",
        "write -P 4 30M 512",
        "write -P 5 41942528 512",
    ];
    write(at, format, name, &commands);
}

fn make(at: &Path, format: &str, name: &str, options: &str) {
    let mut args = vec!["create", "-q", "-f", format];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([name, "40M"]);
    qemu_img(at, &args);
    fill(at, format, name);
}

fn json(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

/// Both say the same of the image, in both languages.
fn agree(at: &Path, format: &str, name: &str) {
    let ours = |args: &[&str]| racker().args(["disk", "map"]).args(args).args([name]).dir(at).ok();
    let theirs = json(&qemu_img(at, &["map", "-f", format, "--output=json", name]));
    let told = json(&ours(&["--output", "json"]));
    let is_packed = told.as_array().unwrap().iter().any(|e| e["compressed"] == true);
    assert_eq!(qemu::as_told(told), theirs, "{name}");
    if !is_packed {
        assert_eq!(ours(&[]), qemu_img(at, &["map", "-f", format, name]), "{name}");
    }
    // Any stretch of it.
    let part = ["-s", "1000000", "-l", "30000000"];
    let theirs = qemu_img(at, &[&["map", "-f", format, "--output=json"], &part[..], &[name]].concat());
    assert_eq!(qemu::as_told(json(&ours(&[&["--json"], &part[..]].concat()))), json(&theirs), "{name}");
}

#[test]
fn images_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (format, name, options) in [
        ("raw", "a.raw", ""),
        ("qcow2", "a.qcow2", ""),
        ("vdi", "a.vdi", ""),
        ("vdi", "static.vdi", "static=on"),
        ("vpc", "a.vhd", ""),
        ("vpc", "fixed.vhd", "subformat=fixed"),
        ("vmdk", "a.vmdk", ""),
        ("vmdk", "zeroed.vmdk", "zeroed_grain=on"),
        ("vmdk", "flat.vmdk", "subformat=monolithicFlat"),
    ] {
        make(at, format, name, options);
        agree(at, format, name);
    }
    for (name, format, options) in
        [("packed.vmdk", "vmdk", "subformat=streamOptimized"), ("packed.qcow2", "qcow2", "compat=1.1")]
    {
        qemu_img(at, &["convert", "-c", "-O", format, "-o", options, "a.raw", name]);
        agree(at, format, name);
    }
}

#[test]
fn extents_in_several_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let (name, options) = (format!("{subformat}.vmdk"), format!("subformat={subformat}"));
        qemu_img(at, &["create", "-q", "-f", "vmdk", "-o", &options, &name, "4097M"]);
        let commands = ["write -P 1 0 64k", "write -P 1 2047M 2M", "write -P 2 4096M 1M"];
        write(at, "vmdk", &name, &commands);
        agree(at, "vmdk", &name);
    }
}

#[test]
fn chains() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (format, options) in [("vmdk", ""), ("vmdk", "zeroed_grain=on"), ("qcow2", "compat=1.1")] {
        let name = |n: u32| format!("{n}{options}.{format}");
        make(at, format, &name(0), options);
        // The child is larger than its parent, the next smaller than its own.
        for (n, size, commands) in [
            (1, "60M", ["write -P 1 1500k 3M", "write -P 9 50M 1M", "write -z 30M 64k"]),
            (2, "45M", ["write -P 1 9M 70k", "write -P 9 44M 1M", "write -z 1M 128k"]),
        ] {
            let mut args = vec!["create", "-q", "-f", format, "-F", format];
            if !options.is_empty() {
                args.extend(["-o", options]);
            }
            let (parent, child) = (name(n - 1), name(n));
            args.extend(["-b", &parent, &child, size]);
            qemu_img(at, &args);
            write(at, format, &child, &commands);
            agree(at, format, &child);
        }
    }
}

/// QEMU says of a VHDX that all of it is data, somewhere.
#[test]
fn blocks_of_vhdx_are_where_the_map_says() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (name, options) in [("a.vhdx", "block_size=1M"), ("fixed.vhdx", "subformat=fixed")] {
        make(at, "vhdx", name, options);
        qemu_img(at, &["convert", "-f", "vhdx", "-O", "raw", name, "raw"]);
        let (image, raw) =
            (std::fs::File::open(at.join(name)).unwrap(), std::fs::File::open(at.join("raw")).unwrap());
        let map = json(&racker().args(["disk", "map", "--json", name]).dir(at).ok());
        let mut end = 0;
        for extent in map.as_array().unwrap() {
            let number = |field: &str| extent[field].as_u64();
            let (start, len) = (number("start").unwrap(), number("length").unwrap());
            assert_eq!(start, end);
            end = start + len;
            let mut expected = vec![0; len as usize];
            raw.read_exact_at(&mut expected, start).unwrap();
            if let Some(offset) = number("offset") {
                let mut found = vec![1; len as usize];
                image.read_exact_at(&mut found, offset).unwrap();
                assert!(found == expected, "{name}: {extent}");
            }
            assert_eq!(extent["data"] == true, number("offset").is_some(), "{extent}");
            assert!(extent["zero"] == false || expected.iter().all(|b| *b == 0), "{name}: {extent}");
        }
        assert_eq!(end, 40 * MIB);
    }
}
