//! The commands taken from `qemu-img`, with `qemu-img` and the partitioning tools as judges.

use std::path::Path;

use racker_fixtures::case;
use racker_tests::qemu;
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

/// What `measure --json` says: required and fully allocated bytes.
fn measured(at: &Path, args: &[&str]) -> (u64, u64) {
    let said = disk(at, &[&["measure", "--json"], args].concat()).ok();
    let json: Value = serde_json::from_str(&said).unwrap();
    (json["required"].as_u64().unwrap(), json["fully-allocated"].as_u64().unwrap())
}

#[test]
fn measure_says_what_convert_writes() {
    let dir = boot();
    let at = dir.path();
    // Every byte of it is data that no program can compress; its end fills no block.
    let mut noise = vec![0; (3 << 20) + 4096 + 512];
    racker_tests::rng::Rng::new(7).fill(&mut noise);
    std::fs::write(at.join("noise.raw"), &noise).unwrap();
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "-c"),
        ("vmdk", ""),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vmdk", "subformat=streamOptimized"),
        ("vhd", ""),
        ("vhd", "subformat=fixed"),
        ("vhd", "force_size=on"),
        ("vdi", ""),
        ("vdi", "static=on"),
        ("vhdx", ""),
        ("vhdx", "block_size=1M"),
        ("vhdx", "subformat=fixed,log_size=3M"),
    ] {
        let extra: Vec<&str> = match options {
            "" => vec![],
            "-c" => vec!["-c"],
            o => vec!["-o", o],
        };
        // An image of several files is as large as all of them.
        let made = |source: &str| {
            let out = at.join("out");
            std::fs::create_dir(&out).unwrap();
            disk(at, &[&["convert", "-O", format], &extra[..], &[source, "out/disk.vmdk"]].concat()).ok();
            let sizes = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
            let size: u64 = sizes.sum();
            std::fs::remove_dir_all(&out).unwrap();
            size
        };
        let (required, full) = measured(at, &[&["-O", format], &extra[..], &["boot.qcow2"]].concat());
        assert_eq!(required, made("boot.qcow2"), "{format} {options}");
        assert!(full >= required);
        let (required, full) = measured(at, &[&["-O", format], &extra[..], &["noise.raw"]].concat());
        let size = made("noise.raw");
        assert_eq!(required, size, "{format} {options}");
        // What fills up the last grain of a stream can be compressed.
        let less = if options.contains("stream") { 64 << 10 } else { 0 };
        assert!(options == "-c" || (size..=size + less).contains(&full), "{format} {options}: {size} {full}");
        let size = noise.len().to_string();
        let (empty, same) = measured(at, &[&["-O", format, "--size", &size], &extra[..]].concat());
        assert!(empty <= required && same == full, "{format} {options}");
    }
}

#[test]
fn a_large_disk_is_measured_in_no_time() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let file = std::fs::File::create(at.join("large.raw")).unwrap();
    file.set_len(2 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 4096], 1 << 40).unwrap();
    for format in ["raw", "vhd", "vdi", "vhdx"] {
        // What the tables of such a disk need would not fit.
        let limited = |args: &[&str]| {
            let racker = racker_tests::tool::binary().display().to_string();
            let line = format!("ulimit -v 400000; exec {racker} disk measure --json {}", args.join(" "));
            let said = tool("bash").args(["-c", &line]).dir(at).ok();
            serde_json::from_str::<Value>(&said).unwrap()["fully-allocated"].as_u64().unwrap()
        };
        let size = if format == "vhd" { "2040G" } else { "2T" };
        let full = limited(&["-O", format, "--size", size]);
        assert!(full >= 2040 << 30, "{format}");
        if format != "vhd" {
            assert_eq!(limited(&["-O", format, "large.raw"]), full, "{format}");
        }
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
fn create_says_what_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let said = disk(at, &["create", "-f", "vpc", "a.vhd", "5M"]).ok();
    assert_eq!(said, "Formatting 'a.vhd', fmt=vpc size=5242880\n");
    // A name by itself switches something on.
    disk(at, &["create", "-q", "-f", "vdi", "-o", "static", "a.vdi", "5M"]).ok();
    assert!(at.join("a.vdi").metadata().unwrap().len() > 5 * MIB);
    disk(at, &["create", "-q", "-f", "qcow2", "base", "3M"]).ok();
    let said = disk(at, &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"]).ok();
    assert_eq!(said, "Formatting 'top', fmt=qcow2 size=3145728 backing_file=base backing_fmt=qcow2\n");
    // A backing file that is not there yet.
    disk(at, &["create", "-f", "qcow2", "-b", "later", "-F", "raw", "above", "3M"]).failed();
    disk(at, &["create", "-f", "qcow2", "-u", "-b", "later", "-F", "raw", "above", "3M"]).ok();
    assert!(
        disk(at, &["create", "-f", "qcow2", "-u", "-b", "later", "-F", "raw", "none"])
            .failed()
            .contains("size")
    );
    std::fs::write(at.join("later"), [7; 512]).unwrap();
    let said =
        tool("qemu-io").args(["-c", "read -P 7 0 512", "-c", "read -P 0 512 1M", "above"]).dir(at).ok();
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn space_is_taken_when_that_is_asked_for() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let taken = |name: &str| at.join(name).metadata().unwrap().blocks() * 512;
    for how in ["falloc", "full"] {
        let option = format!("preallocation={how}");
        disk(at, &["create", "-o", &option, how, "4M"]).ok();
        assert!(taken(how) >= 4 * MIB, "{how}");
        for format in ["raw", "qcow2"] {
            let name = format!("{how}.{format}");
            disk(at, &["create", "-f", format, &name, "2M"]).ok();
            let before = taken(&name);
            disk(at, &["resize", "-f", format, "--preallocation", how, &name, "+3M"]).ok();
            assert!(taken(&name) >= before + 3 * MIB, "{name}");
            disk(at, &["resize", "-f", format, "--preallocation", how, "--shrink", &name, "1M"]).failed();
            disk(at, &["compare", &name, how]).ok();
        }
    }
    disk(at, &["create", "-f", "raw", "tables.raw", "2M"]).ok();
    disk(at, &["resize", "-f", "raw", "--preallocation=metadata", "tables.raw", "+1M"]).failed();
    assert_eq!(at.join("tables.raw").metadata().unwrap().len(), 2 * MIB);
}

#[test]
fn compare_is_quiet_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::write(at.join("a"), [0; 4096]).unwrap();
    std::fs::write(at.join("b"), [1; 4096]).unwrap();
    for (other, status) in [("a", 0), ("b", 1)] {
        let ran = disk(at, &["compare", "-q", "a", other]);
        assert_eq!((ran.status, ran.text().as_str(), ran.err.as_str()), (status, "", ""));
    }
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
    // The same rows but for the time zone, which is UTC here; older ones print other columns.
    let theirs = tool("qemu-img").args(["snapshot", "-l", "d.qcow2"]).dir(at).ok();
    let ours = disk(at, &["snapshot", "d.qcow2"]).ok();
    let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    if qemu::release() >= 10 {
        assert_eq!(words(&ours), words(&theirs));
    }
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
