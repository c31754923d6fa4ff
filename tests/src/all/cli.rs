//! The command line's own promises: exit statuses, one line of error, JSON, what an edit's options do, locks.

use std::io::{Read, Write};
use std::path::PathBuf;

use racker_fixtures::case;
use racker_tests::manifest::Manifest;
use racker_tests::qemu;
use racker_tests::tool::{Ran, racker, tool};
use serde_json::Value;
use tempfile::TempDir;

const ENTRY: &str = "/loader/entries/ostree-1-ock.conf";

/// A folder with the images that examples speak of.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        case("ock/boot").unpack(dir.path());
        case("vagrant/virtualbox").unpack(dir.path());
        std::fs::rename(dir.path().join("virtualbox.box"), dir.path().join("debian.box")).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `racker disk ARGS…` in this folder.
    fn disk(&self, args: &[&str]) -> Ran {
        racker().arg("disk").args(args).dir(self.0.path()).run()
    }

    /// `racker disk edit boot.qcow2 ENTRY ARGS…`
    fn edit(&self, args: &[&str]) -> Ran {
        self.disk(&[&["edit", "boot.qcow2", ENTRY], args].concat())
    }

    fn entry(&self, image: &str) -> String {
        self.disk(&["cat", image, ENTRY]).ok()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path("boot.qcow2")).unwrap()
    }
}

#[test]
fn examples_of_all_helps_run() {
    let list = |args: &[&str]| {
        let help = racker().args(args).arg("--help").ok();
        let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap().to_string();
        let commands = commands.split("Arguments:").next().unwrap().to_string();
        let words = commands.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
        let words =
            words.filter_map(|l| l.split_whitespace().next()).filter(|w| *w != "help" && *w != "disk");
        words.map(String::from).collect::<Vec<_>>()
    };
    let mut commands: Vec<Vec<String>> =
        list(&["disk"]).into_iter().map(|c| vec!["disk".into(), c]).collect();
    // Verbs of their own stand behind the image.
    for topic in ["part", "fs"] {
        let verbs = list(&["disk", topic]);
        commands.extend(verbs.into_iter().map(|v| vec!["disk".into(), topic.into(), "boot.qcow2".into(), v]));
    }
    commands.extend(list(&[]).into_iter().map(|c| vec![c]));
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands {
        let help = racker().args(&command).arg("--help").ok();
        let (_, examples) =
            help.split_once("Example").unwrap_or_else(|| panic!("{command:?} has no example"));
        let script: String = examples.lines().skip(1).map(|l| format!("{l}\n")).collect();
        let bench = Bench::new();
        let folder = racker_tests::tool::binary().parent().unwrap().display().to_string();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
        let shell = tool("bash").args(["-euo", "pipefail", "-c", &script]).dir(bench.0.path());
        let ran = shell.env("PATH", path).env("EDITOR", "true").env("VISUAL", "true").run();
        // Devices are for kernels that have them: tests/attach/run tries those.
        if ran.err.contains("the kernel has no NBD client") {
            continue;
        }
        assert_eq!(ran.status, 0, "{command:?}: {ran}");
    }
}

#[test]
fn the_readme_has_the_table_of_formats() {
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let table = racker().args(["formats", "--markdown"]).ok();
    assert!(std::fs::read_to_string(readme).unwrap().contains(&table), "{table}");
}

#[test]
fn statuses() {
    let bench = Bench::new();
    assert_eq!(bench.disk(&["info", "boot.qcow2"]).status, 0);
    assert_eq!(bench.disk(&["info"]).status, 2);
    assert_eq!(bench.disk(&["frobnicate"]).status, 2);
    for args in [
        ["info", "missing.qcow2"].as_slice(),
        &["cat", "boot.qcow2", "/no/such/file"],
        &["cat", "-p", "9", "boot.qcow2", "/x"],
    ] {
        let ran = bench.disk(args);
        assert!(ran.failed().contains(".qcow2: "), "{ran}");
    }
}

#[test]
fn info_agrees_with_qemu_img() {
    for name in [
        "ock/boot",
        "qcow2/v2",
        "qcow2/zeroes",
        "qcow2/backing",
        "qcow2/snapshots",
        "qcow2/cluster-2M",
        "qcow2/extended-l2",
        "qcow2/compressed-zstd",
        "vmdk/monolithicSparse",
    ] {
        let case = case(name);
        let dir = tempfile::tempdir().unwrap();
        case.unpack(dir.path());
        let image = dir
            .path()
            .join(case.images().iter().rfind(|n| n.starts_with("image.") || n.starts_with("boot.")).unwrap());
        let theirs: Value =
            serde_json::from_str(&qemu::img(&["info".as_ref(), "--output=json".as_ref(), image.as_os_str()]))
                .unwrap();
        let ours: Value =
            serde_json::from_str(&racker().args(["disk", "info", "--json"]).arg(&image).ok()).unwrap();
        for field in [
            "format",
            "virtual-size",
            "cluster-size",
            "dirty-flag",
            "backing-filename",
            "backing-filename-format",
        ] {
            assert_eq!(ours.get(field), theirs.get(field), "{name}: {field}");
        }
        if theirs["format"] == "qcow2" {
            for (key, value) in theirs["format-specific"]["data"].as_object().unwrap() {
                assert_eq!(&ours["format-specific"]["data"][key], value, "{name}: {key}");
            }
        }
        let count = |v: &Value| v.get("snapshots").and_then(Value::as_array).map_or(0, Vec::len);
        assert_eq!(count(&ours), count(&theirs), "{name}");
    }
}

#[test]
fn listings_agree_with_the_kernel() {
    let bench = Bench::new();
    let tree = Manifest::parse(&case("vagrant/virtualbox").text("tree-p1.json").unwrap());
    let list = bench.disk(&["ls", "debian.box", "/files"]).ok();
    let mut names: Vec<&str> = list.lines().collect();
    names.sort_unstable();
    let expected: Vec<&str> = tree.paths().filter_map(|p| p.strip_prefix("files/")).collect();
    assert_eq!(names, expected);
    let json: Value =
        serde_json::from_str(&bench.disk(&["ls", "--json", "-l", "debian.box", "/files"]).ok()).unwrap();
    assert_eq!(json.as_array().map(Vec::len), Some(expected.len()), "{json}");
    let one = bench.disk(&["cat", "debian.box", "/files/1M"]);
    assert_eq!(one.out.len(), 1 << 20);
    let stat = bench.disk(&["stat", "debian.box", "/xattr/capable"]).ok();
    assert!(stat.contains("security.capability"), "{stat}");
}

#[test]
fn names_do_not_drive_a_terminal() {
    let bench = Bench::new();
    let line = format!("{} disk ls -l debian.box /names", racker_tests::tool::binary().display());
    let shown = tool("script").args(["-qec", &line, "/dev/null"]).dir(bench.0.path()).run();
    assert_eq!(shown.status, 0, "{shown}");
    assert!(shown.text().contains("with space") && !shown.out.contains(&0x1b), "{shown}");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let bench = Bench::new();
    let racker = racker_tests::tool::binary().display();
    let line = format!("{racker} disk ls -laR boot.qcow2 / | head -n 1; exit ${{PIPESTATUS[0]}}");
    let ran = tool("bash").args(["-c", &line]).dir(bench.0.path()).run();
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran}");
}

#[test]
fn dry_run_prints_a_patch_and_writes_nothing() {
    let bench = Bench::new();
    let before = bench.bytes();
    let old = bench.entry("boot.qcow2");
    let diff = bench.edit(&["--replace", "console=ttyS0", "console=tty0", "--dry-run"]).ok();
    assert_eq!(bench.bytes(), before);
    std::fs::create_dir_all(bench.path("tree/loader/entries")).unwrap();
    let file = bench.path("tree").join(ENTRY.trim_start_matches('/'));
    std::fs::write(&file, &old).unwrap();
    // The diff may name the file by the link-free path; patch is told which file.
    tool("patch").arg("--quiet").arg(&file).input(diff).ok();
    assert_eq!(std::fs::read_to_string(file).unwrap(), old.replace("console=ttyS0", "console=tty0"));
}

#[test]
fn edits_by_literal_expression_and_content() {
    let bench = Bench::new();
    let old = bench.entry("boot.qcow2");
    // Every one is replaced; pairs and expressions follow one another.
    bench
        .edit(&[
            "--replace",
            "ock",
            "OCK",
            "--replace",
            "OCK",
            "KCO",
            "--regex",
            "s/ rd\\.(\\w+)=/ RD.\\1=/g",
        ])
        .ok();
    let new = bench.entry("boot.qcow2");
    assert_eq!(
        new,
        old.replace("ock", "KCO")
            .replace(" rd.neednet=", " RD.neednet=")
            .replace(" rd.timeout=", " RD.timeout=")
    );
    let from = racker().args(["disk", "edit", "boot.qcow2", ENTRY, "--from", "-"]).dir(bench.0.path());
    from.input("title x\n").ok();
    assert_eq!(bench.entry("boot.qcow2"), "title x\n");
    qemu::check(&bench.path("boot.qcow2"));
}

#[test]
fn a_replacement_that_matches_nothing_is_an_error() {
    let bench = Bench::new();
    let before = bench.bytes();
    let ran = bench.edit(&["--replace", "ignition.platform.id=qemu", "x", "--replace", "no such text", "y"]);
    assert!(ran.failed().contains("no such text"), "{ran}");
    assert_eq!(bench.bytes(), before, "all or nothing");
    bench.edit(&["--replace", "no such text", "y", "--allow-unchanged"]).ok();
    assert_eq!(bench.bytes(), before);
}

#[test]
fn output_leaves_the_image_alone() {
    let bench = Bench::new();
    let before = bench.bytes();
    for (format, name) in [("qcow2", "new.qcow2"), ("raw", "new.raw"), ("vmdk", "new.vmdk")] {
        let args = ["--replace", "id=qemu", "id=vmware", "--output", name, "-O", format];
        // The three edits stamp the same time, so that their disks can be compared.
        let edit = racker().args(["disk", "edit", "boot.qcow2", ENTRY]).args(args).dir(bench.0.path());
        edit.env("SOURCE_DATE_EPOCH", "1700000000").ok();
        assert_eq!(bench.bytes(), before);
        let image: Value = serde_json::from_str(&bench.disk(&["info", "--json", name]).ok()).unwrap();
        assert_eq!(image["format"], format);
        assert!(bench.entry(name).contains("id=vmware"), "{name}");
    }
    // All three hold the same disk.
    let compare = |other: &str| {
        qemu::img_in(bench.0.path(), &["compare", "new.raw", other]);
    };
    compare("new.qcow2");
    compare("new.vmdk");
}

#[test]
fn the_editor_edits_a_copy() {
    let bench = Bench::new();
    let editor = "sed -i s/id=qemu/id=vmware/";
    let edit = || racker().args(["disk", "edit", "boot.qcow2", ENTRY]).dir(bench.0.path());
    edit().env("VISUAL", editor).ok();
    assert!(bench.entry("boot.qcow2").contains("id=vmware"));
    // One that changes nothing writes nothing, one that fails changes nothing.
    let before = bench.bytes();
    edit().env("VISUAL", "true").ok();
    let ran = edit().env("VISUAL", "false").run();
    ran.failed();
    assert_eq!(bench.bytes(), before);
}

#[test]
fn an_image_in_use_is_not_written() {
    let bench = Bench::new();
    // qemu-io holds the image open for writing until its standard input ends.
    let mut user = tool("qemu-io").args(["-f", "qcow2", "boot.qcow2"]).dir(bench.0.path()).spawn();
    let mut input = user.stdin.take().unwrap();
    input.write_all(b"length\n").unwrap();
    // Its answer (behind a prompt without a line's end) says that it has it open.
    let mut answer = [0; 1];
    user.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    let ran = bench.edit(&["--replace", "id=qemu", "id=vmware"]);
    assert!(ran.failed().contains("another program is using this image"), "{ran}");
    drop(input);
    user.wait().unwrap();
    bench.edit(&["--replace", "id=qemu", "id=vmware"]).ok();
    qemu::check(&bench.path("boot.qcow2"));
}

#[test]
fn a_path_on_several_filesystems_is_a_question() {
    let bench = Bench::new();
    let raw = bench.path("two.raw");
    // Two filesystems without a system, each with the same file.
    tool("truncate").args(["-s", "64M"]).arg(&raw).ok();
    let table = "label: gpt\nstart=2048,size=40960\nstart=43008,size=40960\n";
    tool("sfdisk").arg("-q").arg(&raw).input(table).ok();
    for (at, content) in [("2048", "one"), ("43008", "two")] {
        let source = bench.path(content);
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("same"), content).unwrap();
        let part = bench.path("part");
        tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&source).arg(&part).arg("20m").ok();
        tool("dd")
            .args(["bs=512", "conv=notrunc,sparse", "status=none"])
            .arg(format!("if={}", part.display()))
            .arg(format!("of={}", raw.display()))
            .arg(format!("seek={at}"))
            .ok();
        std::fs::remove_file(part).unwrap();
    }
    let ran = bench.disk(&["cat", "two.raw", "/same"]);
    assert!(ran.failed().contains("-p 1") && ran.err.contains("-p 2"), "{ran}");
    assert_eq!(bench.disk(&["cat", "-p", "2", "two.raw", "/same"]).ok(), "two");
}

#[test]
fn archives_are_not_written() {
    let bench = Bench::new();
    let before = std::fs::read(bench.path("debian.box")).unwrap();
    bench.disk(&["edit", "debian.box", "/files/1k", "--from", "/dev/null"]).failed();
    assert_eq!(std::fs::read(bench.path("debian.box")).unwrap(), before);
}

#[test]
fn a_box_with_several_disks_asks_for_a_member() {
    let dir = tempfile::tempdir().unwrap();
    case("vagrant/two-disks").unpack(dir.path());
    let image = dir.path().join("two-disks.box");
    let ran = racker().args(["disk", "info"]).arg(&image).run();
    assert!(ran.failed().contains("box-disk001.vmdk") && ran.err.contains("box-disk002.vmdk"), "{ran}");
    let out = dir.path().join("out.raw");
    racker().args(["disk", "convert", "--member", "box-disk002.vmdk"]).args([&image, &out]).ok();
    assert!(std::fs::read(out).unwrap().starts_with(b"disk 2\0"));
}

/// What racker does not read it calls as `blkid` does; a copy of a mirror is read, and never changed alone.
#[test]
fn what_is_known_by_name_is_named_as_blkid_names_it() {
    let bench = Bench::new();
    std::fs::File::create(bench.path("swap.raw")).unwrap().set_len(8 << 20).unwrap();
    tool("mkswap").args(["-q", "-L", "tausch"]).arg(bench.path("swap.raw")).ok();
    std::fs::File::create(bench.path("mirror.raw")).unwrap().set_len(330 << 20).unwrap();
    let tree = "/\n0 0\nd--755 0 0\nf ---644 0 0 proto\n$\n";
    std::fs::write(bench.path("proto"), tree).unwrap();
    let args = ["-q", "-d", "size=329m", "-p", "proto"];
    tool("mkfs.xfs").args(args).dir(bench.0.path()).arg(bench.path("mirror.raw")).ok();
    let mut bytes = [0u8; 256];
    // md's superblock of version 1.0: magic, version, UUID, name, and its own sector.
    let sector = ((330u64 << 20) / 512 - 16) & !7;
    bytes[..4].copy_from_slice(&0xa92b_4efcu32.to_le_bytes());
    bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
    bytes[16..32].fill(7);
    bytes[32..37].copy_from_slice(b"any:0");
    bytes[80..88].copy_from_slice(&sector.to_le_bytes());
    bytes[144..152].copy_from_slice(&sector.to_le_bytes());
    // A sum of its 64 words, as md writes it.
    let sum = bytes.as_chunks::<4>().0.iter().map(|w| u64::from(u32::from_le_bytes(*w))).sum::<u64>();
    let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
    bytes[216..220].copy_from_slice(&sum.to_le_bytes());
    let file = std::fs::File::options().write(true).open(bench.path("mirror.raw")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, sector * 512).unwrap();
    let probe = |name: &str, field: &str| {
        let args = ["--probe", "--output", "value", "--match-tag", field];
        tool("blkid").args(args).arg(bench.path(name)).ok().trim().to_string()
    };
    let volume = |name: &str| {
        let told: Value = serde_json::from_str(&bench.disk(&["info", "--json", name]).ok()).unwrap();
        told["volumes"][0].clone()
    };
    let swap = volume("swap.raw");
    assert_eq!(swap["filesystem"], probe("swap.raw", "TYPE"));
    assert_eq!((&swap["label"], &swap["uuid"]), (&"tausch".into(), &probe("swap.raw", "UUID").into()));
    let listed = bench.disk(&["ls", "-p", "0", "swap.raw", "/"]);
    let e = listed.failed();
    assert!(e.contains("carries swap, which racker does not read"), "{e}");
    assert_eq!(probe("mirror.raw", "TYPE"), "linux_raid_member");
    let mirror = volume("mirror.raw");
    assert_eq!(mirror["filesystem"], "xfs");
    assert!(mirror["member"].as_str().unwrap().starts_with("linux_raid_member"), "{mirror}");
    bench.disk(&["ls", "mirror.raw", "/"]).ok();
    let before = std::fs::read(bench.path("mirror.raw")).unwrap();
    let edited = bench.disk(&["edit", "mirror.raw", "/f", "--from", "swap.raw"]);
    assert!(edited.failed().contains("member of a software array"), "{}", edited.failed());
    assert!(std::fs::read(bench.path("mirror.raw")).unwrap() == before);
}
