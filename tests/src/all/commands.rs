//! The commands taken from `qemu-img`, with `qemu-img` and the partitioning tools as judges.

use std::path::Path;

use racker_fixtures::case;
use racker_tests::tool::{Ran, racker, tool};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn disk(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

fn boot() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    case("ock/boot").unpack(dir.path());
    dir
}

#[test]
fn compare_agrees_with_qemu_img() {
    let dir = boot();
    let at = dir.path();
    tool("qemu-img").args(["convert", "-O", "raw", "boot.qcow2", "same.raw"]).dir(at).ok();
    tool("cp").args(["--sparse=always", "same.raw", "other.raw"]).dir(at).ok();
    tool("qemu-io").args(["-f", "raw", "-c", "write -P 9 4999680 3", "other.raw"]).dir(at).ok();
    tool("cp").args(["--sparse=always", "same.raw", "longer.raw"]).dir(at).ok();
    tool("truncate").args(["-s", "+1M", "longer.raw"]).dir(at).ok();
    for (other, extra) in
        [("same.raw", ""), ("other.raw", ""), ("longer.raw", ""), ("longer.raw", "-s"), ("absent", "")]
    {
        let args: Vec<&str> =
            ["compare", extra, "boot.qcow2", other].into_iter().filter(|a| !a.is_empty()).collect();
        let theirs = tool("qemu-img").args(&args).dir(at).run();
        let ours = disk(at, &args);
        assert_eq!(ours.status, theirs.status, "{args:?}: {ours}{theirs}");
        let last = |ran: &Ran| ran.text().lines().last().unwrap_or_default().to_string();
        assert_eq!(last(&ours), last(&theirs), "{args:?}");
    }
    let json: Value =
        serde_json::from_str(&disk(at, &["compare", "--json", "same.raw", "other.raw"]).text()).unwrap();
    assert_eq!((&json["identical"], &json["offset"]), (&Value::Bool(false), &Value::from(4_999_680)));
}

#[test]
fn the_backup_table_moves_with_the_end_of_the_disk() {
    let dir = boot();
    let at = dir.path();
    tool("qemu-img").args(["convert", "-O", "raw", "boot.qcow2", "disk.raw"]).dir(at).ok();
    let size = at.join("disk.raw").metadata().unwrap().len();
    let sound = || {
        let said = tool("sgdisk").args(["-v", "disk.raw"]).dir(at).ok();
        assert!(said.contains("No problems found"), "{said}");
        tool("sgdisk").args(["-p", "disk.raw"]).dir(at).ok()
    };
    let parts = |said: String| said.split("Number").nth(1).unwrap().to_string();
    let before = parts(sound());
    disk(at, &["resize", "disk.raw", "+7M"]).ok();
    assert_eq!(at.join("disk.raw").metadata().unwrap().len(), size + 7 * MIB);
    assert_eq!(parts(sound()), before);
    // Smaller only when asked, and never through a partition.
    disk(at, &["resize", "disk.raw", "-1M"]).failed();
    disk(at, &["resize", "--shrink", "disk.raw", "-6M"]).ok();
    assert_eq!(parts(sound()), before);
    let bytes = std::fs::read(at.join("disk.raw")).unwrap();
    assert!(disk(at, &["resize", "--shrink", "disk.raw", "3M"]).failed().contains("partition"));
    assert!(std::fs::read(at.join("disk.raw")).unwrap() == bytes);
    // By less than the table itself takes, where old and new overlap.
    for by in ["+512", "+8k", "+16k", "+512"] {
        disk(at, &["resize", "disk.raw", by]).ok();
        assert_eq!(parts(sound()), before);
    }
    assert_eq!(disk(at, &["check", "disk.raw"]).status, 0);
}

#[test]
fn check_mends_either_half_of_a_gpt() {
    let dir = boot();
    let at = dir.path();
    tool("qemu-img").args(["convert", "-O", "raw", "boot.qcow2", "disk.raw"]).dir(at).ok();
    let sectors = at.join("disk.raw").metadata().unwrap().len() / 512;
    for lba in [1, 2, sectors - 1, sectors - 33] {
        let seek = format!("seek={lba}");
        tool("dd")
            .args(["if=/dev/urandom", "of=disk.raw", "bs=512", "count=1", "conv=notrunc", &seek])
            .dir(at)
            .ok();
        assert_eq!(disk(at, &["check", "disk.raw"]).status, 2);
        disk(at, &["check", "--repair", "-f", "raw", "disk.raw"]).ok();
        assert_eq!(disk(at, &["check", "disk.raw"]).status, 0);
        let said = tool("sgdisk").args(["-v", "disk.raw"]).dir(at).ok();
        assert!(said.contains("No problems found"), "{said}");
    }
}

#[test]
fn measure_says_what_convert_writes() {
    let dir = boot();
    let at = dir.path();
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "-c"),
        ("vmdk", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("vhd", ""),
        ("vdi", ""),
        ("vhdx", ""),
    ] {
        let extra: Vec<&str> = match options {
            "" => vec![],
            "-c" => vec!["-c"],
            o => vec!["-o", o],
        };
        let json =
            disk(at, &[&["measure", "--json", "-O", format], &extra[..], &["boot.qcow2"]].concat()).ok();
        let json: Value = serde_json::from_str(&json).unwrap();
        disk(at, &[&["convert", "-O", format], &extra[..], &["boot.qcow2", "new"]].concat()).ok();
        let size = at.join("new").metadata().unwrap().len();
        assert_eq!(json["required"], Value::from(size), "{format} {options}");
        assert!(json["fully-allocated"].as_u64().unwrap() >= size);
    }
}

#[test]
fn new_images_are_what_qemu_img_takes_them_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for format in ["raw", "qcow2", "vmdk", "vpc", "vdi", "vhdx"] {
        disk(at, &["create", "-f", format, "new", "16M"]).ok();
        let info = tool("qemu-img").args(["info", "--output=json", "new"]).dir(at).ok();
        let info: Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["format"], format);
        assert!(info["virtual-size"].as_u64().unwrap() >= 16 * MIB);
        let mapped: Value = serde_json::from_str(&disk(at, &["map", "--json", "new"]).ok()).unwrap();
        assert!(mapped.as_array().unwrap().iter().all(|e| e["data"] == false), "{format}: {mapped}");
    }
    assert!(disk(at, &["create", "-f", "qcow2", "none"]).failed().contains("size"));
    assert!(!at.join("none").exists());
}

#[test]
fn snapshots_are_what_qemu_img_takes_them_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    tool("qemu-img").args(["create", "-q", "-f", "qcow2", "d.qcow2", "8M"]).dir(at).ok();
    let put = |byte: u8| {
        let write = format!("write -q -P {byte} 64k 300k");
        tool("qemu-io").args(["-f", "qcow2", "-c", &write, "d.qcow2"]).dir(at).ok();
    };
    let is = |byte: u8| {
        let read = format!("read -q -P {byte} 64k 300k");
        let ran = tool("qemu-io").args(["-f", "qcow2", "-c", &read, "d.qcow2"]).dir(at).run();
        ran.status == 0 && !ran.text().contains("failed")
    };
    put(1);
    disk(at, &["snapshot", "-c", "one", "d.qcow2"]).ok();
    put(2);
    tool("qemu-img").args(["snapshot", "-c", "two", "d.qcow2"]).dir(at).ok();
    put(3);
    // The same rows but for the time zone, which is UTC here.
    let theirs = tool("qemu-img").args(["snapshot", "-l", "d.qcow2"]).dir(at).ok();
    let ours = disk(at, &["snapshot", "d.qcow2"]).ok();
    let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(&ours), words(&theirs));
    let info: Value =
        serde_json::from_str(&tool("qemu-img").args(["info", "--output=json", "d.qcow2"]).dir(at).ok())
            .unwrap();
    let ours: Value = serde_json::from_str(&disk(at, &["snapshot", "-l", "--json", "d.qcow2"]).ok()).unwrap();
    for (theirs, ours) in info["snapshots"].as_array().unwrap().iter().zip(ours.as_array().unwrap()) {
        for (field, value) in theirs.as_object().unwrap() {
            assert_eq!(&ours[field], value, "{field}");
        }
    }
    disk(at, &["snapshot", "-a", "one", "d.qcow2"]).ok();
    assert!(is(1));
    disk(at, &["snapshot", "-a", "2", "d.qcow2"]).ok();
    assert!(is(2));
    disk(at, &["snapshot", "-d", "one", "d.qcow2"]).ok();
    assert!(disk(at, &["snapshot", "-d", "one", "d.qcow2"]).failed().contains("no snapshot"));
    assert_eq!(disk(at, &["snapshot", "-d", "two", "-c", "x", "d.qcow2"]).status, 2);
    tool("qemu-img").args(["check", "-q", "d.qcow2"]).dir(at).ok();
    tool("qemu-img").args(["create", "-q", "d.raw", "1M"]).dir(at).ok();
    assert_eq!(disk(at, &["snapshot", "-f", "raw", "d.raw"]).ok(), "");
    assert!(disk(at, &["snapshot", "-f", "raw", "-c", "x", "d.raw"]).failed().contains("hold no snapshots"));
}
