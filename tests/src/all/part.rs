//! Partition tables changed by racker, on tables of sgdisk and sfdisk, with these two as judges.

use std::path::Path;

use racker_fixtures::{case, group};
use racker_formats::block::{Disk, FileDevice, MemDevice};
use racker_fs::partition::edit::{Change, NewPartition, Size, TableEdit, Want};
use racker_fs::partition::{self, Table};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker, tool};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Bench(TempDir);

impl Bench {
    fn new(size: u64) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        std::fs::File::create(bench.0.path().join("disk.raw")).unwrap().set_len(size).unwrap();
        bench
    }

    /// A disk that `sfdisk` has partitioned.
    fn sfdisk(size: u64, script: &str) -> Self {
        let bench = Self::new(size);
        tool("sfdisk").args(["--quiet", "disk.raw"]).dir(bench.dir()).input(script).ok();
        bench
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn part(&self, args: &[&str]) -> Ran {
        racker().args(["disk", "part", "disk.raw"]).args(args).dir(self.dir()).run()
    }

    fn ls(&self) -> Value {
        serde_json::from_str(&self.part(&["ls", "--json"]).ok()).unwrap()
    }

    /// The table as `sfdisk` dumps it, without the lines that name the disk.
    fn dump(&self) -> Vec<String> {
        let said = tool("sfdisk").args(["-d", "disk.raw"]).dir(self.dir()).ok();
        said.lines().filter(|l| l.starts_with("disk.raw")).map(squeeze).collect()
    }

    fn verify(&self) {
        let said = tool("sfdisk").args(["--verify", "disk.raw"]).dir(self.dir()).run();
        assert!(said.status == 0 && said.to_string().contains("No errors detected"), "{said}");
        if self.ls()["type"] == "gpt" {
            let said = tool("sgdisk").args(["-v", "disk.raw"]).dir(self.dir()).ok();
            assert!(said.contains("No problems found"), "{said}");
        }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.dir().join("disk.raw")).unwrap()
    }
}

fn squeeze(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_table_made_and_filled_is_as_sgdisk_would_have_it() {
    let bench = Bench::new(300 * MIB);
    bench.part(&["init", "gpt", "--disk-uuid", "11111111-2222-4333-8444-555555555555"]).ok();
    bench.verify();
    assert!(bench.part(&["add", "--type", "rot"]).failed().contains("is no type"));
    bench.part(&["add", "--type", "bios-boot", "--start", "1M", "--end", "2M", "--number", "14"]).ok();
    let added = bench.part(&["add", "--type", "esp", "--size", "64M", "--label", "EFI wörld", "--json"]).ok();
    let added: Value = serde_json::from_str(&added).unwrap();
    assert_eq!((&added["partition"], &added["start"]), (&Value::from(1), &Value::from(2 * MIB)));
    bench.part(&["add", "--type", "root-x86-64", "--attribute", "growfs", "--attribute", "60"]).ok();
    bench.verify();
    let info = |n: &str| tool("sgdisk").args(["-i", n, "disk.raw"]).dir(bench.dir()).ok();
    assert!(
        info("1").contains("C12A7328-F81F-11D2-BA4B-00A0C93EC93B (EFI system partition)"),
        "{}",
        info("1")
    );
    assert!(info("1").contains("'EFI wörld'"), "{}", info("1"));
    assert!(info("2").contains("Linux x86-64 root (/)"), "{}", info("2"));
    assert!(info("2").contains("Attribute flags: 1800000000000000"), "{}", info("2"));
    assert!(info("14").contains("First sector: 2048 ") && info("14").contains("Last sector: 4095 "));
    bench
        .part(&["set", "2", "--attribute", "growfs=off", "--bootable", "--label", "root", "--type", "8300"])
        .ok();
    let guid = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";
    bench.part(&["set", "2", "--uuid", guid, "--disk-uuid", "random"]).ok();
    bench.verify();
    assert!(info("2").contains("Attribute flags: 1000000000000004"), "{}", info("2"));
    assert!(info("2").to_ascii_lowercase().contains(guid), "{}", info("2"));
    assert!(bench.part(&["set", "1", "--uuid", guid]).failed().contains("has this identifier"));
    bench.part(&["rm", "1"]).ok();
    assert!(bench.part(&["rm", "1"]).failed().contains("there is no partition 1"));
    bench.verify();
    let ls = bench.ls();
    let numbers: Vec<u64> =
        ls["partitions"].as_array().unwrap().iter().map(|p| p["partition"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 14]);
    assert!(ls["gaps"].as_array().unwrap().iter().any(|g| g["start"] == 2 * MIB && g["size"] == 64 * MIB));
}

#[test]
fn words_for_types_are_those_of_sgdisk() {
    let bench = Bench::new(100 * MIB);
    bench.part(&["init", "gpt"]).ok();
    let codes = [
        "ef00", "ea00", "ef02", "ef01", "4100", "8300", "8200", "8302", "8306", "8310", "8311", "8312",
        "8301", "8303", "8304", "8305", "8307", "8309", "fd00", "8e00", "0c01", "0700", "2700", "a501",
        "a502", "a503", "a504", "af00", "af0a", "bf01", "fb00",
    ];
    let file = std::fs::File::options().read(true).write(true).open(bench.dir().join("disk.raw")).unwrap();
    let disk = Disk::new(FileDevice::new(file, true).unwrap());
    let mut edit = TableEdit::open(&disk).unwrap();
    for code in codes {
        let want = Want { start: None, end: None, size: Some(MIB), align: MIB };
        let change = Change { kind: Some(code.into()), ..Change::default() };
        edit.add(&NewPartition { want, number: None, logical: false, change }).unwrap();
    }
    edit.write(&disk).unwrap();
    drop((edit, disk));
    let ours = bench.dump();
    let typed = (1..).zip(codes).flat_map(|(number, code)| ["-t".into(), format!("{number}:{code}")]);
    tool("sgdisk").args(typed).arg("disk.raw").dir(bench.dir()).ok();
    assert_eq!(bench.dump(), ours);
}

#[test]
fn a_table_or_filesystem_is_not_replaced_unasked() {
    let bench = Bench::sfdisk(64 * MIB, "label: dos\nlabel-id: 0x12345678\n1M,,83\n");
    let before = bench.bytes();
    assert!(bench.part(&["init", "gpt"]).failed().contains("an MBR partition table"));
    assert!(bench.bytes() == before);
    bench.part(&["init", "gpt", "--force"]).ok();
    bench.verify();
    assert_eq!(bench.dump().len(), 0);
    assert!(bench.part(&["init", "mbr"]).failed().contains("a GPT"));
    bench.part(&["init", "mbr", "--force", "--disk-uuid", "cafe0001"]).ok();
    bench.verify();
    let said = tool("sgdisk").args(["-p", "disk.raw"]).dir(bench.dir()).run();
    assert!(!said.to_string().contains("GPT fdisk") || said.to_string().contains("MBR only"), "{said}");
    for (mkfs, args) in [("mkfs.ext4", ["-q", "-F"]), ("mkfs.vfat", ["-F", "16"]), ("mkswap", ["-q", "-f"])] {
        let bench = Bench::new(64 * MIB);
        tool(mkfs).args(args).arg("disk.raw").dir(bench.dir()).ok();
        assert!(bench.part(&["init", "gpt"]).failed().contains("already"), "{mkfs}");
        for table in ["gpt", "mbr"] {
            bench.part(&["init", table, "--force"]).ok();
            bench.verify();
            let said = tool("blkid").args(["-p", "disk.raw"]).dir(bench.dir()).ok();
            assert!(said.contains("PTTYPE") && !said.contains(" TYPE"), "{mkfs}: {said}");
        }
    }
    let bench = Bench::new(64 * MIB);
    assert!(bench.part(&["add"]).failed().contains("init gpt"));
    assert!(bench.part(&["init", "mbr", "--sector-size", "4096"]).failed().contains("4096"));
}

#[test]
fn sectors_of_4096_bytes() {
    let bench = Bench::new(64 * MIB);
    bench.part(&["init", "gpt", "--sector-size", "4096"]).ok();
    bench.part(&["add", "--size", "10M", "--type", "esp"]).ok();
    bench.part(&["add"]).ok();
    bench.part(&["resize", "1", "5M"]).ok();
    let ls = bench.ls();
    assert_eq!((&ls["sector-size"], &ls["partitions"][0]["size"]), (&4096.into(), &(5 * MIB).into()));
    let table = table(&bench.dir().join("disk.raw"));
    assert_eq!(table.warnings, Vec::<String>::new());
    assert!(bench.part(&["set", "1", "--label", &"x".repeat(37)]).failed().contains("36"));
}

#[test]
fn an_mbr_with_logical_partitions() {
    let script = "label: dos\nlabel-id: 0x12345678\n1M,10M,c,*\n11M,50M,5\n\
        disk.raw5: size=8M,type=83\ndisk.raw6: size=8M,type=82\ndisk.raw7: size=8M,type=8e\n";
    let bench = Bench::sfdisk(100 * MIB, script);
    let before = bench.dump();
    assert_eq!(before.len(), 5);
    bench.part(&["add", "--logical", "--size", "4M", "--type", "lvm"]).ok();
    bench.verify();
    let with = bench.dump();
    assert_eq!((with.len(), &with[..5]), (6, &before[..]));
    assert!(with[5].starts_with("disk.raw8") && with[5].contains("type=8e"), "{with:?}");
    // Those behind a removed one count anew.
    bench.part(&["rm", "6"]).ok();
    bench.verify();
    let less = bench.dump();
    assert_eq!(less.len(), 5);
    assert!(less[3].starts_with("disk.raw6") && less[3].contains("type=8e"), "{less:?}");
    // The first link stays where it is.
    bench.part(&["rm", "5"]).ok();
    bench.verify();
    let starts: Vec<u64> =
        bench.ls()["partitions"].as_array().unwrap().iter().map(|p| p["start"].as_u64().unwrap()).collect();
    assert_eq!(bench.dump().len(), 4, "{:?}", bench.dump());
    for (line, start) in bench.dump().iter().zip(starts) {
        assert!(line.contains(&format!("start= {},", start / 512)), "{line}");
    }
    bench.part(&["add", "--logical", "--type", "83"]).ok();
    bench.verify();
    bench.part(&["resize", "5", "5M"]).ok();
    bench.part(&["resize", "5", "--max"]).ok();
    bench.verify();
    assert!(bench.part(&["rm", "2"]).failed().contains("holds logical"));
    assert!(bench.part(&["resize", "2", "20M"]).failed().contains("holds logical"));
    bench.part(&["resize", "2", "+10M"]).ok();
    bench.part(&["set", "5", "--bootable", "--type", "swap"]).ok();
    bench.verify();
    let dump = bench.dump();
    assert_eq!(dump.iter().filter(|l| l.contains("bootable")).count(), 1, "{dump:?}");
    assert!(bench.part(&["set", "1", "--label", "x"]).failed().contains("dos tables have none"));
    assert!(bench.part(&["set", "1", "--type", "extended"]).failed().contains("extended"));
    bench.part(&["set", "--disk-uuid", "cafe0001"]).ok();
    assert_eq!(bench.ls()["id"], "cafe0001");
    // From nothing: an extended partition, and logical ones in it.
    let bench = Bench::new(100 * MIB);
    bench.part(&["init", "mbr"]).ok();
    for n in 1..=3 {
        bench.part(&["add", "--size", &format!("{n}M")]).ok();
    }
    assert!(bench.part(&["add", "--logical"]).failed().contains("add --type extended"));
    bench.part(&["add", "--type", "extended"]).ok();
    assert!(bench.part(&["add"]).failed().contains("all 4 entries"));
    for _ in 0..5 {
        bench.part(&["add", "--logical", "--size", "3M"]).ok();
    }
    bench.part(&["add", "--logical"]).ok();
    bench.verify();
    assert_eq!(bench.dump().len(), 10);
    for n in [10, 7, 5, 7, 5, 5] {
        bench.part(&["rm", &n.to_string()]).ok();
        bench.verify();
    }
    bench.part(&["rm", "4"]).ok();
    bench.verify();
    assert_eq!(bench.dump().len(), 3);
}

#[test]
fn no_partition_is_cut_through_its_filesystem() {
    for (mkfs, args) in [
        ("mkfs.ext4", ["-q", "-F"].as_slice()),
        ("mkfs.vfat", &["-F", "16"]),
        ("mkswap", &["-q", "-f"]),
        ("data", &[]),
    ] {
        let bench = Bench::sfdisk(64 * MIB, "label: gpt\nstart=2048,size=65536\n");
        std::fs::File::create(bench.dir().join("fs")).unwrap().set_len(20 * MIB).unwrap();
        if mkfs == "data" {
            tool("dd")
                .args(["if=/dev/urandom", "of=fs", "bs=512", "seek=40000", "count=1"])
                .dir(bench.dir())
                .ok();
        } else {
            tool(mkfs).args(args).arg("fs").dir(bench.dir()).ok();
        }
        tool("dd").args(["if=fs", "of=disk.raw", "bs=1M", "seek=1", "conv=notrunc"]).dir(bench.dir()).ok();
        let before = bench.bytes();
        assert!(bench.part(&["resize", "1", "19M"]).failed().contains("--force"), "{mkfs}");
        assert!(bench.bytes() == before);
        bench.part(&["resize", "1", "+1M"]).ok();
        if mkfs != "mkswap" {
            bench.part(&["resize", "1", "20M"]).ok();
            assert_eq!(bench.ls()["partitions"][0]["size"], 20 * MIB);
        }
        bench.part(&["resize", "1", "19M", "--force"]).ok();
        bench.part(&["resize", "1", "--max"]).ok();
        bench.verify();
        assert_eq!(bench.ls()["partitions"][0]["size"], 62 * MIB);
    }
}

/// A table with its entries as they lie on the disk.
fn table(path: &Path) -> Table {
    let disk = Disk::new(FileDevice::new(std::fs::File::open(path).unwrap(), false).unwrap());
    partition::read(&disk).unwrap()
}

#[test]
fn a_change_leaves_all_else_as_it_was() {
    for case in group("partition") {
        let dir = tempfile::tempdir().unwrap();
        case.unpack(dir.path());
        let image = dir.path().join("image.raw");
        let before = table(&image);
        let first = before.partitions[0].number.to_string();
        let part = |args: &[&str]| racker().args(["disk", "part"]).arg(&image).args(args).run();
        let ran = part(&["set", &first, "--type", "lvm"]);
        ran.clone().ok();
        let after = table(&image);
        assert_eq!(after.warnings, Vec::<String>::new(), "{}: both halves are sound now", case.name);
        assert_eq!((after.id, after.sector_size), (before.id, before.sector_size));
        for (old, new) in before.partitions.iter().zip(&after.partitions).skip(1) {
            assert_eq!(old, new, "{}", case.name);
        }
        assert_eq!(after.partitions.len(), before.partitions.len());
        let (old, new) = (&before.partitions[0], &after.partitions[0]);
        assert_eq!(new.type_name, Some("Linux LVM"));
        assert_eq!((old.span, &old.label, old.attributes), (new.span, &new.label, new.attributes));
        if after.scheme == "gpt" && after.sector_size == 512 {
            let said = tool("sgdisk").arg("-v").arg(&image).ok();
            assert!(said.contains("No problems found"), "{}: {said}", case.name);
        }
    }
}

#[test]
fn a_grown_disk_gives_its_new_room() {
    let dir = tempfile::tempdir().unwrap();
    case("ock/boot").unpack(dir.path());
    let disk = |args: &[&str]| racker().arg("disk").args(args).dir(dir.path()).run();
    let tree = |name: &str| disk(&["ls", "-lR", name, "/"]).ok();
    let before = tree("boot.qcow2");
    tool("qemu-img").args(["resize", "-q", "boot.qcow2", "+50M"]).dir(dir.path()).ok();
    let ls =
        |name: &str| -> Value { serde_json::from_str(&disk(&["part", name, "ls", "--json"]).ok()).unwrap() };
    let last = ls("boot.qcow2")["partitions"].as_array().unwrap().last().unwrap()["partition"].to_string();
    let size =
        |name: &str| ls(name)["partitions"].as_array().unwrap().last().unwrap()["size"].as_u64().unwrap();
    let was = size("boot.qcow2");
    disk(&["part", "boot.qcow2", "resize", &last, "--max"]).ok();
    disk(&["part", "boot.qcow2", "set", &last, "--label", "grown"]).ok();
    assert!(size("boot.qcow2") >= was + 48 * MIB);
    assert_eq!(tree("boot.qcow2"), before);
    qemu::check(&dir.path().join("boot.qcow2"));
    tool("qemu-img").args(["convert", "-O", "raw", "boot.qcow2", "disk.raw"]).dir(dir.path()).ok();
    let said = tool("sgdisk").args(["-v", "disk.raw"]).dir(dir.path()).ok();
    assert!(said.contains("No problems found"), "{said}");
}

#[test]
fn a_hybrid_mbr_is_kept() {
    let bench = Bench::sfdisk(64 * MIB, "label: gpt\nstart=2048,size=20480\nstart=40960,size=20480\n");
    tool("sgdisk").args(["-h", "1", "disk.raw"]).dir(bench.dir()).ok();
    let boot = bench.bytes()[..512].to_vec();
    bench.part(&["set", "1", "--label", "one"]).ok();
    bench.part(&["resize", "2", "+1M"]).ok();
    bench.part(&["add", "--size", "1M"]).ok();
    assert!(bench.part(&["resize", "1", "+1M"]).failed().contains("hybrid"));
    assert!(bench.part(&["rm", "1"]).failed().contains("hybrid"));
    assert!(bench.bytes()[..512] == boot);
    let said = tool("sgdisk").args(["-v", "disk.raw"]).dir(bench.dir()).ok();
    assert!(said.contains("No problems found"), "{said}");
}

/// Damaged tables: an error or a change, never a panic; and a change never touches what partitions hold.
#[test]
fn damaged_tables_are_refused_or_mended() {
    let mut rng = Rng::new(11);
    let scripts = [
        "label: gpt\nstart=2048,size=2048\nstart=6144,size=1024\n",
        "label: dos\n1M,1M,83\n2M,5M,5\ndisk.raw5: size=512K,type=83\ndisk.raw6: size=512K,type=83\n",
    ];
    for script in scripts {
        let bench = Bench::sfdisk(8 * MIB, script);
        let sound = bench.bytes();
        let (mut done, mut refused) = (0, 0);
        for _ in 0..400 {
            let mut bytes = sound.clone();
            for _ in 0..1 + rng.below(3) {
                let at = match rng.below(4) {
                    0 => 440 + rng.below(72),
                    1 => 512 + rng.below(92),
                    2 => 1024 + rng.below(256),
                    _ => 2 * MIB + 440 + rng.below(72),
                };
                bytes[at as usize] = rng.below(256) as u8;
            }
            if script.contains("gpt") && rng.below(2) == 0 {
                // A header that is made to fool has a sound checksum.
                let array = crc32fast::hash(&bytes[1024..1024 + 128 * 128]);
                bytes[512 + 88..512 + 92].copy_from_slice(&array.to_le_bytes());
                bytes[512 + 16..512 + 20].fill(0);
                let sum = crc32fast::hash(&bytes[512..512 + 92]);
                bytes[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
            }
            let disk = Disk::new(MemDevice::from_bytes(bytes));
            let want = Want { start: None, end: None, size: Some(1 << 16), align: 512 };
            let change = Change { bootable: Some(true), ..Change::default() };
            let new = NewPartition { want, number: None, logical: rng.below(2) == 0, change: change.clone() };
            let result = TableEdit::open(&disk).and_then(|mut table| {
                match rng.below(4) {
                    0 => drop(table.add(&new)?),
                    1 => table.remove(1 + rng.below(6) as u32)?,
                    2 => drop(table.resize(1 + rng.below(6) as u32, Size::Max(512))?),
                    _ => table.change(1 + rng.below(6) as u32, &change)?,
                }
                table.write(&disk)
            });
            match result {
                Ok(()) => {
                    done += 1;
                    partition::read(&disk).unwrap();
                }
                Err(_) => refused += 1,
            }
        }
        assert!(done > 20 && refused > 20, "{done} {refused}");
    }
}
