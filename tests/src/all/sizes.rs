//! ext2/3/4 and FAT filesystems made larger and smaller, with the tools of others as makers and judges.

use std::fs::File;
use std::path::{Path, PathBuf};

use racker_formats::block::{Disk, FileDevice};
use racker_formats::transaction::Transaction;
use racker_fs::filesystem::NewUuid;
use racker_fs::inspect::Inspection;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker, tool};
use tempfile::TempDir;

/// How filesystems are made: what changes where tables are, or which checksums there are.
const EXT: &[(&str, &str)] = &[
    ("default", "-t ext4"),
    ("without checksums", "-t ext4 -O ^metadata_csum"),
    ("old checksums", "-t ext4 -O ^metadata_csum,uninit_bg,^64bit"),
    ("ext2", "-t ext2 -b 1024"),
    ("ext3", "-t ext3"),
    ("copies everywhere", "-t ext2 -b 1024 -O ^sparse_super,^resize_inode"),
    ("no room for descriptors", "-t ext4 -b 1024 -O ^resize_inode"),
    ("meta_bg", "-t ext4 -b 1024 -O meta_bg,^resize_inode"),
    ("two copies", "-t ext4 -b 1024 -O sparse_super2,^resize_inode"),
    ("own tables", "-t ext4 -b 1024 -O ^flex_bg -g 2048"),
    ("inline data", "-t ext4 -b 1024 -O inline_data -I 256"),
    ("values in inodes", "-t ext4 -b 1024 -O ea_inode"),
    ("orphan file", "-t ext4 -O orphan_file,metadata_csum_seed"),
    ("clusters", "-t ext4 -O bigalloc -C 16384"),
    ("large blocks", "-t ext2 -b 65536 -g 512 -N 2048"),
];

/// A filesystem in a file, with a tree in it.
struct Patient {
    dir: TempDir,
    name: String,
}

impl Patient {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for number in 0..12u8 {
            let sub = tree.join(format!("dir{number}/below"));
            std::fs::create_dir_all(&sub).unwrap();
            for size in [0usize, 50, 2000, 30_000, 150_000] {
                std::fs::write(sub.join(format!("file of {size}")), vec![number + 1; size]).unwrap();
            }
        }
        for number in 0..300 {
            std::fs::write(tree.join(format!("dir3/name of some length {number:04}")), b"x").unwrap();
        }
        Self { dir, name: name.into() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image.raw")
    }

    fn set_len(&self, size: u64) {
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path())
            .unwrap()
            .set_len(size)
            .unwrap();
    }

    fn fs(&self, args: &[&str]) -> Ran {
        racker().args(["disk", "fs"]).arg(self.path()).args(args).run()
    }

    fn sound(&self) {
        let said = tool("e2fsck").arg("-fn").arg(self.path()).run();
        assert_eq!(said.status, 0, "{}: {said}", self.name);
    }

    /// All names and bytes, as others read them.
    fn tree(&self, by: &str) -> String {
        let out = self.dir.path().join("out");
        let _ = std::fs::remove_dir_all(&out);
        std::fs::create_dir(&out).unwrap();
        if by == "debugfs" {
            let command = format!("rdump / {}", out.display());
            tool("debugfs").args(["-R", &command]).arg(self.path()).ok();
        } else {
            tool("mcopy").args(["-s", "-n", "-i"]).arg(self.path()).arg("::/*").arg(&out).ok();
        }
        let list = "find . -type f ! -path './lost+found*' -exec sha1sum {} + | sort; find . | sort";
        tool("sh").args(["-c", list]).dir(&out).ok()
    }
}

#[test]
fn ext_grows_and_becomes_smaller() {
    for (name, options) in EXT {
        let p = Patient::new(name);
        p.set_len(40 << 20);
        let tree = p.dir.path().join("tree");
        tool("mke2fs").args(["-q", "-F", "-d"]).arg(&tree).args(options.split(' ')).arg(p.path()).ok();
        let before = p.tree("debugfs");
        // Up, far up, and down to less than it was.
        for size in [70u64, 600, 100, 30] {
            if size > 40 {
                let len = p.path().metadata().unwrap().len();
                p.set_len(len.max(size << 20));
            }
            let said = p.fs(&["resize", &format!("{size}M"), "--json"]).ok();
            let said: serde_json::Value = serde_json::from_str(&said).unwrap();
            let now = said["filesystem-size"].as_u64().unwrap();
            assert!(now <= size << 20 && now + (4 << 20) > size << 20, "{name}: {said}");
            p.sound();
            assert_eq!(p.tree("debugfs"), before, "{name}");
        }
        // What is in it does not fit into that.
        p.set_len(30 << 20);
        let bytes = std::fs::read(p.path()).unwrap();
        assert!(p.fs(&["resize", "2M"]).failed().contains("cannot"), "{name}");
        assert_eq!(std::fs::read(p.path()).unwrap(), bytes, "{name}");
        // It goes on to be written.
        p.fs(&["uuid", "--random"]).ok();
        racker().args(["disk", "copy-in"]).arg(p.path()).arg(tree.join("dir1")).arg("/more").ok();
        p.sound();
    }
}

/// The filesystem, then its partition.
#[test]
fn a_partition_is_cut_behind_its_filesystem() {
    let p = Patient::new("partition");
    p.set_len(100 << 20);
    let on = |args: &[&str]| racker().arg("disk").args(args).dir(p.dir.path()).run();
    on(&["part", "image.raw", "init", "gpt"]).ok();
    on(&["part", "image.raw", "add", "--size", "90M"]).ok();
    tool("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-E", "offset=1048576", "image.raw", "90M"])
        .dir(p.dir.path())
        .ok();
    assert_ne!(on(&["part", "image.raw", "resize", "1", "40M"]).status, 0);
    on(&["fs", "image.raw", "-p", "1", "resize", "40M"]).ok();
    on(&["part", "image.raw", "resize", "1", "40M"]).ok();
    let cut = ["if=image.raw", "of=part.raw", "bs=1M", "skip=1", "count=40"];
    tool("dd").args(cut).dir(p.dir.path()).ok();
    let said = tool("e2fsck").args(["-fn", "part.raw"]).dir(p.dir.path()).run();
    assert_eq!(said.status, 0, "{said}");
}

/// A FAT filesystem: its name, what `mkfs.vfat` is told, kilobytes at first and later, and whether the type has that
/// many.
type Fat = (&'static str, &'static str, u64, &'static [(u64, bool)]);

#[test]
fn fat_grows() {
    let cases: [Fat; 4] = [
        ("fat12", "-F 12 -s 8", 6_000, &[(12_000, true), (16_368, true), (40_000, false)]),
        ("fat16", "-F 16", 20_000, &[(60_000, true), (131_000, true), (200_000, false)]),
        ("fat32", "-F 32 -s 1", 40_000, &[(41_000, true), (90_000, true), (300_000, true)]),
        ("large sectors", "-F 32 -S 4096", 300_000, &[(500_000, true)]),
    ];
    for (name, options, from, sizes) in cases {
        let p = Patient::new(name);
        p.set_len(from << 10);
        tool("mkfs.vfat").args(options.split(' ')).arg(p.path()).ok();
        tool("mcopy").args(["-s", "-i"]).arg(p.path()).arg(p.dir.path().join("tree")).arg("::/").ok();
        let before = p.tree("mcopy");
        for (size, fits) in sizes {
            p.set_len(size << 10);
            let said = p.fs(&["resize"]);
            if !fits {
                assert!(said.failed().contains("has no room"), "{name}");
                continue;
            }
            said.ok();
            let said = tool("fsck.vfat").arg("-n").arg(p.path()).run();
            assert_eq!(said.status, 0, "{name}: {said}");
            assert_eq!(p.tree("mcopy"), before, "{name}");
        }
        assert!(p.fs(&["resize", "2M"]).failed().contains("does not make it smaller"), "{name}");
    }
}

/// Damaged filesystems are refused or changed, never more.
#[test]
fn noise_does_no_harm_to_sizes() {
    noise(20);
}

/// The same for long: `cargo test --release -p racker-tests --test all noise_for_long -- --ignored`.
#[test]
#[ignore = "takes minutes"]
fn noise_for_long() {
    noise(1000);
}

fn noise(rounds: u32) {
    let mut rng = Rng::new(29);
    let sets = [
        "-t ext4",
        "-t ext4 -O ^metadata_csum -b 1024",
        "-t ext2 -b 1024 -O ^resize_inode",
        "-t ext3",
        "fat",
    ];
    for options in sets {
        let p = Patient::new(options);
        p.set_len(24 << 20);
        let tree = p.dir.path().join("tree");
        if options == "fat" {
            tool("mkfs.vfat").args(["-F", "16"]).arg(p.path()).ok();
            tool("mcopy").args(["-s", "-i"]).arg(p.path()).arg(tree).arg("::/").ok();
        } else {
            tool("mke2fs").args(["-q", "-F", "-d"]).arg(tree).args(options.split(' ')).arg(p.path()).ok();
        }
        p.set_len(300 << 20);
        let (mut done, mut refused) = (0, 0);
        for _ in 0..rounds {
            if change(&p.path(), &mut rng).is_ok() { done += 1 } else { refused += 1 }
        }
        println!("{options}: {done} done, {refused} refused");
        assert!(done > 0 && refused > 0, "{options}: {done} done, {refused} refused");
    }
}

/// Damages a filesystem in memory and gives it other sizes and another name.
fn change(image: &Path, rng: &mut Rng) -> racker_formats::Result<()> {
    let file = Disk::new(FileDevice::new(File::open(image).unwrap(), false).unwrap());
    let damage = Transaction::overlay(file);
    let edit = damage.disk();
    for _ in 0..1 + rng.below(4) {
        let at = match rng.below(4) {
            0 => rng.below(4096),
            1 => rng.below(64 << 10),
            _ => rng.below(1 << 20),
        };
        let value = [0, 0xff, rng.below(256) as u8][rng.below(3) as usize];
        edit.disk().write_at(at, &[value])?;
    }
    drop(edit);
    let mut below = damage.finish()?;
    for size in [rng.below(260 << 20) + (24 << 20), rng.below(30 << 20)] {
        let transaction = Transaction::overlay(below);
        let inspection = Inspection::of(transaction.disk().disk())?;
        let Some(volume) = inspection.volumes.first() else { return Ok(()) };
        let mut writer = volume.edit(&transaction.disk())?;
        let facts = writer.facts()?;
        // FAT only grows.
        let size = if facts.kind == "vfat" { size.max(facts.size) } else { size };
        writer.resize(size)?;
        if rng.below(2) == 0 {
            writer.set_uuid(&NewUuid { value: None, keep_checksums: false })?;
        }
        writer.close()?;
        below = transaction.finish()?;
    }
    Ok(())
}
