//! Labels, UUIDs and sizes changed by racker, on filesystems that others made, with their own tools as judges.

use std::path::{Path, PathBuf};

use racker_fixtures::group;
use racker_formats::block::{Disk, FileDevice};
use racker_formats::transaction::Transaction;
use racker_fs::filesystem::{NewUuid, Time};
use racker_fs::inspect::Inspection;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker, tool};
use tempfile::TempDir;

const UUID: &str = "11111111-2222-4333-8444-555555555555";

/// A filesystem without a partition table around it.
struct Patient {
    name: String,
    dir: TempDir,
}

impl Patient {
    /// The fixtures of a group that are one file with a filesystem.
    fn all(of: &str) -> Vec<Self> {
        let cases = group(of).into_iter().map(|case| {
            let dir = tempfile::tempdir().unwrap();
            case.unpack(dir.path());
            Self { name: case.name.clone(), dir }
        });
        cases.filter(|p| p.path().exists()).collect()
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image.raw")
    }

    fn fs(&self, args: &[&str]) -> Ran {
        racker().args(["disk", "fs"]).arg(self.path()).args(args).run()
    }

    /// What `blkid` says of it.
    fn blkid(&self, what: &str) -> String {
        tool("blkid").args(["-p", "-o", "value", "-s", what]).arg(self.path()).run().text().trim().to_string()
    }

    fn tree(&self) -> String {
        racker().args(["disk", "ls", "-lR"]).arg(self.path()).arg("/").ok()
    }
}

#[test]
fn xfs_has_a_new_label_and_uuid_in_every_group() {
    for p in Patient::all("xfs") {
        let name = &p.name;
        if name.ends_with("v4") {
            assert!(p.fs(&["label", "x"]).failed().contains("version 4"), "{name}");
            continue;
        }
        let tree = p.tree();
        let sound = || tool("xfs_repair").arg("-n").arg(p.path()).run();
        // What is newer than xfs_repair it calls unsound, and a log that is not clean.
        let before = sound().status;
        let old = p.fs(&["uuid"]).ok().trim().to_string();
        let label = p.fs(&["label"]).ok();
        assert!(p.fs(&["label", "thirteen-long"]).failed().contains("room for 12"), "{name}");
        assert_eq!(p.fs(&["label"]).ok(), label);
        p.fs(&["label", "twelve-bytes"]).ok();
        let ours = p.fs(&["uuid", "--random"]).ok().trim().to_string();
        let said = tool("xfs_db").args(["-r", "-c", "sb 0", "-c", "p agcount"]).arg(p.path()).ok();
        let groups: u32 = said.rsplit(' ').next().unwrap().trim().parse().unwrap();
        for ag in 0..groups {
            let sb = format!("sb {ag}");
            let said = tool("xfs_db").args(["-r", "-c", &sb, "-c", "p uuid fname"]).arg(p.path()).ok();
            assert!(said.contains(&ours) && said.contains("\"twelve-bytes\""), "{name}: {said}");
        }
        assert!(sound().status <= before, "{name}: {}", sound());
        assert_eq!((p.blkid("UUID"), p.blkid("LABEL")), (ours, "twelve-bytes".into()), "{name}");
        assert_eq!(p.tree(), tree);
        // As users named it before: nothing is left of the two names.
        p.fs(&["uuid", &old]).ok();
        p.fs(&["label", ""]).ok();
        assert_eq!((p.blkid("UUID"), p.blkid("LABEL")), (old, String::new()), "{name}");
        assert!(sound().status <= before, "{name}: {}", sound());
        assert_eq!(p.tree(), tree);
    }
}

#[test]
fn ext_has_a_new_label_and_uuid_in_every_copy() {
    for p in ["ext2", "ext3", "ext4"].into_iter().flat_map(Patient::all) {
        let name = &p.name;
        let tree = p.tree();
        let dump = |args: &[&str]| tool("dumpe2fs").args(args).arg(p.path()).run().text();
        let features = dump(&["-h"]);
        p.fs(&["label", "sixteen-bytes-in"]).ok();
        assert!(p.fs(&["label", "seventeen-bytes-i"]).failed().contains("room for 16"), "{name}");
        let sums = features.contains("metadata_csum") && !features.contains("metadata_csum_seed");
        if sums {
            // All checksums anew, then as they are.
            p.fs(&["uuid", "--random"]).ok();
            let said = tool("e2fsck").arg("-fn").arg(p.path()).run();
            assert_eq!(said.status, 0, "{name}: {said}");
            assert!(!dump(&["-h"]).contains("metadata_csum_seed"), "{name}");
            assert_eq!(p.tree(), tree);
            p.fs(&["uuid", UUID, "--csum-seed"]).ok();
        } else {
            p.fs(&["uuid", UUID]).ok();
        }
        let sound = || tool("e2fsck").arg("-fn").arg(p.path()).run();
        assert_eq!(sound().status, 0, "{name}: {}", sound());
        assert_eq!((p.blkid("UUID"), p.blkid("LABEL")), (UUID.into(), "sixteen-bytes-in".into()), "{name}");
        let full = dump(&[]);
        let block = full.lines().find_map(|l| l.strip_prefix("Block size:")).unwrap().trim().to_string();
        let copies = full.lines().filter_map(|l| l.trim().strip_prefix("Backup superblock at "));
        for at in copies.map(|l| l.split(',').next().unwrap()) {
            let said = dump(&["-h", "-o", &format!("superblock={at}"), "-o", &format!("blocksize={block}")]);
            assert!(said.contains(UUID) && said.contains("sixteen-bytes-in"), "{name} at {at}: {said}");
        }
        assert_eq!(p.tree(), tree);
        p.fs(&["uuid", "--random"]).ok();
        p.fs(&["label", ""]).ok();
        assert_eq!(sound().status, 0, "{name}: {}", sound());
        assert_eq!(p.blkid("LABEL"), "", "{name}");
    }
}

#[test]
fn fat_has_a_new_label_and_serial_number() {
    for p in Patient::all("fat") {
        let name = &p.name;
        let tree = p.tree();
        let sound = || tool("fsck.vfat").arg("-n").arg(p.path()).run();
        for wrong in ["twelve bytes", "ümlaut", "a.b", " x"] {
            assert!(p.fs(&["label", wrong]).failed().contains("is no label for FAT"), "{name}");
        }
        p.fs(&["label", "My Disk"]).ok();
        assert_eq!(p.fs(&["label", "--json"]).ok().replace(['\n', ' '], ""), "{\"label\":\"MYDISK\"}");
        assert_eq!(
            (p.blkid("LABEL"), p.blkid("LABEL_FATBOOT")),
            ("MY DISK".into(), "MY DISK".into()),
            "{name}"
        );
        assert!(p.fs(&["uuid", UUID]).failed().contains("1234-ABCD"), "{name}");
        p.fs(&["uuid", "cafe-0001"]).ok();
        assert_eq!(p.blkid("UUID"), "CAFE-0001", "{name}");
        assert_eq!(sound().status, 0, "{name}: {}", sound());
        p.fs(&["label", ""]).ok();
        assert_eq!((p.blkid("LABEL"), sound().status), (String::new(), 0), "{name}");
        p.fs(&["label", "again"]).ok();
        p.fs(&["uuid", "--random"]).ok();
        assert_eq!((p.blkid("LABEL"), sound().status), ("AGAIN".into(), 0), "{name}: {}", sound());
        assert_eq!(p.tree(), tree);
    }
}

#[test]
fn the_filesystem_is_the_only_one_or_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let image =
        |name: &str, size: u64| std::fs::File::create(at.join(name)).unwrap().set_len(size << 20).unwrap();
    image("disk.raw", 64);
    image("fat", 20);
    image("ext", 20);
    tool("mkfs.vfat").args(["-n", "ONE", "fat"]).dir(at).ok();
    tool("mke2fs").args(["-q", "-L", "two", "ext"]).dir(at).ok();
    tool("sfdisk").args(["-q", "disk.raw"]).dir(at).input("label: gpt\n1M,20M\n21M,20M\n").ok();
    for (name, seek) in [("fat", "seek=1"), ("ext", "seek=21")] {
        let to = [&format!("if={name}"), "of=disk.raw", "bs=1M", seek, "conv=notrunc"];
        tool("dd").args(to).dir(at).ok();
    }
    tool("qemu-img").args(["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"]).dir(at).ok();
    let fs = |args: &[&str]| racker().args(["disk", "fs", "disk.qcow2"]).args(args).dir(at).run();
    assert!(fs(&["label"]).failed().contains("-p 1 (vfat, label ONE) or -p 2 (ext4, label two)"));
    assert_eq!(fs(&["-p", "2", "label"]).ok(), "two\n");
    fs(&["label", "-p", "two", "three"]).ok();
    fs(&["label", "-p", "1", "four"]).ok();
    assert_eq!(
        (fs(&["-p", "2", "label"]).ok(), fs(&["-p", "1", "label"]).ok()),
        ("three\n".into(), "FOUR\n".into())
    );
    tool("qemu-img").args(["convert", "-O", "raw", "disk.qcow2", "after.raw"]).dir(at).ok();
    let list = tool("sfdisk").args(["--verify", "after.raw"]).dir(at).run();
    assert_eq!(list.status, 0, "{list}");
}

#[test]
fn xfs_grows_with_its_volume() {
    for p in Patient::all("xfs").into_iter().filter(|p| !p.name.ends_with("v4")) {
        let name = &p.name;
        let tree = p.tree();
        let sound = || tool("xfs_repair").arg("-n").arg(p.path()).run();
        let before = sound().status;
        let size = || p.path().metadata().unwrap().len();
        let grow = |by: u64| {
            let file = std::fs::File::options().write(true).open(p.path()).unwrap();
            file.set_len(size() + by).unwrap();
        };
        // A part of the last group, less than a group, many groups.
        for by in [1 << 20, 7 << 20, 600 << 20] {
            grow(by);
            let said: serde_json::Value = serde_json::from_str(&p.fs(&["resize", "--json"]).ok()).unwrap();
            let now = said["filesystem-size"].as_u64().unwrap();
            assert!(now <= size() && now + (1 << 20) > size() - (by.min(7 << 20)), "{name}: {said}");
            assert!(sound().status <= before, "{name}: {}", sound());
            assert_eq!(p.tree(), tree, "{name}");
        }
        let bytes = std::fs::metadata(p.path()).unwrap().len();
        p.fs(&["resize"]).ok();
        assert!(p.fs(&["resize", "16M"]).failed().contains("does not make it smaller"), "{name}");
        assert!(p.fs(&["resize", &(bytes + 4096).to_string()]).failed().contains("more than the volume"));
        // What is new can be written to.
        let large = p.dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(1 << 20).unwrap();
        racker().args(["disk", "copy-in"]).arg(p.path()).arg(&large).arg("/").ok();
        assert!(sound().status <= before, "{name}: {}", sound());
    }
}

#[test]
fn a_disk_its_partition_and_its_filesystem_grow() {
    let dir = tempfile::tempdir().unwrap();
    racker_fixtures::case("ock/boot").unpack(dir.path());
    let disk = |args: &[&str]| racker().arg("disk").args(args).dir(dir.path()).run();
    disk(&["resize", "boot.qcow2", "+300M"]).ok();
    disk(&["part", "boot.qcow2", "resize", "3", "--max"]).ok();
    let tree = disk(&["ls", "-lR", "-p", "3", "boot.qcow2", "/"]).ok();
    disk(&["fs", "boot.qcow2", "-p", "3", "resize"]).ok();
    assert_eq!(disk(&["ls", "-lR", "-p", "3", "boot.qcow2", "/"]).ok(), tree);
    racker_tests::qemu::check(&dir.path().join("boot.qcow2"));
    tool("qemu-img").args(["convert", "-O", "raw", "boot.qcow2", "disk.raw"]).dir(dir.path()).ok();
    let parts = racker_tests::mount::partitions(&dir.path().join("disk.raw"));
    let (_, (start, len)) = *parts.last().unwrap();
    let (skip, count) = (format!("skip={}", start >> 20), format!("count={}", len >> 20));
    let cut = ["if=disk.raw", "of=root.raw", "bs=1M", "conv=sparse", &skip, &count];
    tool("dd").args(cut).dir(dir.path()).ok();
    let said = tool("xfs_repair").args(["-n", "root.raw"]).dir(dir.path()).run();
    assert_eq!(said.status, 0, "{said}");
    let said = tool("xfs_db").args(["-r", "-c", "sb 0", "-c", "p dblocks", "root.raw"]).dir(dir.path()).ok();
    let blocks: u64 = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(blocks * 4096 + (1 << 20) > len, "{said}");
}

/// Damaged filesystems are refused or changed, never more.
#[test]
fn noise_does_no_harm() {
    let mut rng = Rng::new(23);
    for name in [
        "xfs/default",
        "xfs/rmapbt",
        "ext4/default",
        "ext4/no-csum",
        "ext4/meta-bg",
        "fat/fat12",
        "fat/fat32",
    ] {
        let case = racker_fixtures::case(name);
        let dir = tempfile::tempdir().unwrap();
        case.unpack(dir.path());
        let file = std::fs::File::options().write(true).open(dir.path().join("image.raw")).unwrap();
        file.set_len(256 << 20).unwrap();
        let (mut done, mut refused) = (0, 0);
        for _ in 0..25 {
            let result = change(&dir.path().join("image.raw"), &mut rng);
            if result.is_ok() { done += 1 } else { refused += 1 }
        }
        assert!(done + refused == 25, "{name}");
    }
}

/// Damages the beginning of a filesystem in memory and gives it another name.
fn change(image: &Path, rng: &mut Rng) -> racker_formats::Result<()> {
    let file = Disk::new(FileDevice::new(std::fs::File::open(image).unwrap(), false).unwrap());
    let damage = Transaction::overlay(file);
    let edit = damage.disk();
    for _ in 0..1 + rng.below(3) {
        let at = if rng.below(2) == 0 { rng.below(4096) } else { rng.below(256 << 10) };
        edit.disk().write_at(at, &[rng.below(256) as u8])?;
    }
    drop(edit);
    let transaction = Transaction::overlay(damage.finish()?);
    let inspection = Inspection::of(transaction.disk().disk())?;
    let volume = inspection.volumes.first().unwrap();
    let mut writer = volume.edit(&transaction.disk())?;
    writer.set_label("name", Time::default())?;
    let uuid = NewUuid { value: None, keep_checksums: true };
    writer.set_uuid(&uuid)?;
    if writer.facts()?.kind == "xfs" {
        writer.resize(volume.disk.size())?;
    }
    writer.close()
}
