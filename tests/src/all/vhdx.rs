//! VHDX against `qemu-img`, 7-Zip and images written by hand.

use std::path::{Path, PathBuf};

use racker_formats::block::{Disk, MemDevice, Span};
use racker_formats::error::Kind;
use racker_formats::opening::{Opening, Policy};
use racker_formats::registry::by_name;
use racker_tests::image::{
    chain, chain_of_sectors, content, create, disk, findings, open, open_disk, read, read_by_7zip,
    read_by_qemu, runs_agree, scratch,
};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::live::workload;
use super::noise::survives;
use super::power::power_cuts;

const MIB: u64 = 1 << 20;
/// Where racker's images have their BAT.
const BAT_AT: usize = 2 << 20;

/// An image of racker's as others see it.
fn agreed(path: &Path, mirror: &[u8]) {
    assert!(read_by_qemu("vhdx", path) == mirror, "qemu-img reads something else");
    assert!(read_by_7zip(path) == mirror, "7-Zip reads something else");
    sound(path);
}

/// Nobody finds anything.
fn sound(path: &Path) {
    qemu::check_as("vhdx", path);
    assert_eq!(findings("vhdx", path, false), Vec::<String>::new());
}

#[test]
fn what_qemu_writes_is_read() {
    let dir = scratch();
    let mut rng = Rng::new(3);
    let path = dir.path().join("image.vhdx");
    let at = path.display().to_string();
    for (options, kind, block) in [
        ("subformat=dynamic", "dynamic", 8 * MIB),
        ("subformat=fixed", "fixed", 8 * MIB),
        ("block_size=1M", "dynamic", MIB),
        ("block_size=2M,subformat=fixed", "fixed", 2 * MIB),
        ("block_size=32M,log_size=4M", "dynamic", 32 * MIB),
        ("block_size=256M", "dynamic", 256 * MIB),
        ("block_size=1M,block_state_zero=off", "dynamic", MIB),
    ] {
        for size in [5_000_192u64, 11 * MIB, 20 * MIB + 1024] {
            qemu::img(&["create", "-q", "-f", "vhdx", "-o", options, &at, &size.to_string()]);
            qemu::io("vhdx", &path, &qemu::random_writes(&mut rng, size, 12));
            let image = open("vhdx", &path, false).unwrap();
            let found = disk(&image);
            let bytes = content(&found);
            assert!(bytes == read_by_qemu("vhdx", &path), "{options} {size}");
            assert!(bytes == read_by_7zip(&path), "{options} {size}");
            runs_agree(&found, &bytes);
            assert_eq!(findings("vhdx", &path, false), Vec::<String>::new());
            assert_eq!(image.facts().subformat.as_deref(), Some(kind));
            assert_eq!(image.facts().cluster_size, Some(block));
        }
    }
}

#[test]
fn chains_agree_with_the_specification_and_with_7_zip() {
    for (block, size, sector) in [
        (MIB, 10 * MIB, 512),
        (2 * MIB, 5 * MIB + 1024, 512),
        (MIB, 6 * MIB, 4096),
        (8 * MIB, 12 * MIB, 4096),
    ] {
        let dir = scratch();
        let want = chain_of_sectors("vhdx", dir.path(), size, block, block, sector);
        let path = dir.path().join("image.vhdx");
        let image = open("vhdx", &path, false).unwrap();
        let found = disk(&image);
        assert!(content(&found) == want, "blocks of {block}, sectors of {sector}");
        assert!(read_by_7zip(&path) == want, "blocks of {block}, sectors of {sector}");
        runs_agree(&found, &want);
        assert_eq!(findings("vhdx", &path, false), Vec::<String>::new());
        let facts = image.facts();
        assert_eq!(facts.backing.unwrap().path, "./middle.vhdx");
        assert_eq!(facts.subformat.as_deref(), Some("differencing"));
        assert_eq!(facts.specific["logical-sector-size"], sector);
        let told = tool("vhdiinfo").arg(&path).ok();
        let line = |key: &str, value: &str| {
            let said = told.lines().find(|l| l.trim().starts_with(key)).unwrap_or_default();
            assert!(said.contains(value), "{told}");
        };
        line("Disk type", "Differential");
        line("Media size", &format!("({size} bytes)"));
        line("Bytes per sector", &format!("{sector} bytes"));
        line(
            "Parent identifier",
            facts.specific["parent-linkage"].as_str().unwrap().trim_matches(['{', '}']),
        );
    }
}

#[test]
fn a_parent_must_be_the_one_that_was_meant() {
    let dir = scratch();
    chain("vhdx", dir.path(), 2 * MIB, MIB, 1);
    let [base, image, middle] =
        ["base", "image", "middle"].map(|n| dir.path().join(n).with_extension("vhdx"));
    let failure = || open("vhdx", &image, false).unwrap_err();
    let kept = std::fs::read(&middle).unwrap();
    // Another disk, and the same one after a change.
    std::fs::copy(&base, &middle).unwrap();
    assert!(failure().to_string().contains("this is a difference to"), "{}", failure());
    std::fs::write(&middle, &kept).unwrap();
    disk(&open("vhdx", &middle, true).unwrap()).write_at(0, &[1]).unwrap();
    assert!(failure().to_string().contains("this is a difference to"), "{}", failure());
    std::fs::remove_file(&middle).unwrap();
    assert_eq!(failure().kind(), Kind::NotFound);
    // A parent that is the image itself.
    std::fs::hard_link(&image, &middle).unwrap();
    assert!(failure().to_string().contains("loop"), "{}", failure());
    std::fs::remove_file(&middle).unwrap();
    std::fs::write(&middle, &kept).unwrap();
    open("vhdx", &image, false).unwrap();
    // Only the absolute path of another machine is left.
    let mut bytes = std::fs::read(&image).unwrap();
    let key: Vec<u8> = "relative_path".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    bytes[at] = b'R';
    std::fs::write(&image, &bytes).unwrap();
    let e = open("vhdx", &image, false).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.to_string().contains("C:/nowhere/middle.vhdx"), "{e}");
    bytes[at] = b'r';
    let e = open_disk("vhdx", Disk::new(MemDevice::from_bytes(bytes)), false).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}

#[test]
fn a_random_workload_is_kept_by_new_images() {
    for (options, size) in [
        ("", 9 * MIB),
        ("subformat=fixed,block_size=1M", 4 * MIB + 1024),
        ("block_size=1M", 9 * MIB),
        ("block_size=2M,block_state_zero=off", 7 * MIB),
        ("block_size=256M,log_size=2M", 9 * MIB),
    ] {
        let dir = scratch();
        let path = dir.path().join("image.vhdx");
        drop(create("vhdx", &path, size, options, None).unwrap());
        workload("vhdx", &path, 600, 4, 1, |mirror| agreed(&path, mirror));
    }
}

#[test]
fn a_random_workload_is_kept_by_images_of_qemu() {
    let dir = scratch();
    let path = dir.path().join("image.vhdx");
    let at = path.display().to_string();
    qemu::img(&["create", "-q", "-f", "vhdx", "-o", "block_size=1M", &at, "9M"]);
    qemu::io("vhdx", &path, &qemu::random_writes(&mut Rng::new(9), 9 * MIB, 8));
    workload("vhdx", &path, 800, 5, 2, |mirror| agreed(&path, mirror));
    // QEMU can go on with it.
    qemu::io("vhdx", &path, &qemu::random_writes(&mut Rng::new(10), 9 * MIB, 8));
    agreed(&path, &read("vhdx", &path));
}

#[test]
fn a_random_workload_is_kept_by_differences() {
    for (block, size, sector) in [(MIB, 5 * MIB, 512), (2 * MIB, 5 * MIB + 8192, 4096)] {
        let dir = scratch();
        chain_of_sectors("vhdx", dir.path(), size, block, 5, sector);
        let path = dir.path().join("image.vhdx");
        let parents = ["base", "middle"].map(|n| dir.path().join(n).with_extension("vhdx"));
        let before = parents.each_ref().map(|p| std::fs::read(p).unwrap());
        let judge = |mirror: &[u8]| {
            assert!(read_by_7zip(&path) == mirror, "7-Zip reads something else");
            assert_eq!(findings("vhdx", &path, false), Vec::<String>::new());
        };
        workload("vhdx", &path, 600, 4, 3, judge);
        // A new child on top of it.
        let child = dir.path().join("child.vhdx");
        drop(create("vhdx", &child, size, "block_size=1M", Some(&path)).unwrap());
        assert!(read("vhdx", &child) == read("vhdx", &path));
        let judge = |mirror: &[u8]| assert!(read_by_7zip(&child) == mirror, "7-Zip reads something else");
        workload("vhdx", &child, 400, 3, 4, judge);
        assert!(before == parents.each_ref().map(|p| std::fs::read(p).unwrap()), "a parent changed");
    }
}

/// `cargo test -p racker-tests --test all -- --ignored vhdx::volume`
#[test]
#[ignore = "takes minutes"]
fn volume() {
    let dir = scratch();
    let path = dir.path().join("image.vhdx");
    drop(create("vhdx", &path, 24 * MIB, "block_size=1M", None).unwrap());
    workload("vhdx", &path, 20_000, 100, 1, |mirror| agreed(&path, mirror));
    (100..110).for_each(cuts);
}

#[test]
fn another_size_keeps_the_bytes() {
    for options in ["block_size=1M", "subformat=fixed,block_size=1M"] {
        let dir = scratch();
        let path = dir.path().join("image.vhdx");
        drop(create("vhdx", &path, 9 * MIB, options, None).unwrap());
        let mut mirror = workload("vhdx", &path, 200, 1, 6, |_| ());
        let sizes = [20 * MIB, 9 * MIB + 512, 12 * MIB, 5 * MIB, 4096, 3 * MIB, 8 * MIB, 4 * MIB];
        for (seed, size) in (7..).zip(sizes) {
            let image = open("vhdx", &path, true).unwrap();
            disk(&image).resize(size).unwrap();
            mirror.resize(size as usize, 0);
            assert!(content(&disk(&image)) == mirror, "{size}");
            drop(image);
            if size % 1024 == 0 {
                agreed(&path, &mirror);
            } else {
                // 7-Zip wants an even number of sectors.
                assert!(read_by_qemu("vhdx", &path) == mirror);
                sound(&path);
            }
            mirror = workload("vhdx", &path, 60, 1, seed, |_| ());
        }
        agreed(&path, &mirror);
    }
}

/// A BAT of a megabyte serves 128 GiB in blocks of 1 MiB; past that it moves.
#[test]
fn a_bat_that_grows_moves() {
    let dir = scratch();
    let path = dir.path().join("image.vhdx");
    drop(create("vhdx", &path, 3 * MIB, "block_size=1M", None).unwrap());
    let mirror = workload("vhdx", &path, 100, 1, 6, |_| ());
    for size in [200 << 30, 1 << 40, 3 * MIB] {
        let image = open("vhdx", &path, true).unwrap();
        disk(&image).resize(size).unwrap();
        if size > MIB << 20 {
            disk(&image).write_at(size - 512, &[7; 512]).unwrap();
            disk(&image).flush().unwrap();
        }
        drop(image);
        let image = open("vhdx", &path, false).unwrap();
        assert_eq!(image.size(), size);
        let mut found = vec![0; mirror.len()];
        disk(&image).read_at(0, &mut found).unwrap();
        assert!(found == mirror, "{size}");
        drop(image);
        qemu::check_as("vhdx", &path);
        let read = format!("read -v {} 512", size - 512);
        let last = qemu::io("vhdx", &path, &[read]);
        assert_eq!(size > MIB << 20, last.contains("07 07 07 07"), "{last}");
    }
    agreed(&path, &mirror);
}

/// QEMU's own log: its last change of the BAT is in the log only.
#[test]
fn a_log_of_qemu_is_replayed() {
    let dir = scratch();
    let [before, after, dirty] =
        ["before", "after", "dirty"].map(|n| dir.path().join(n).with_extension("vhdx"));
    let at = after.display().to_string();
    qemu::img(&["create", "-q", "-f", "vhdx", "-o", "block_size=1M", &at, "9M"]);
    qemu::io("vhdx", &after, &["write -P 5 100k 1M".into()]);
    std::fs::copy(&after, &before).unwrap();
    qemu::leave_open_as("vhdx", &after, &["write -P 7 2900k 3M".into(), "write -P 8 8M 4k".into()]);
    let script = racker_fixtures::root().join("mk/vhdx-dirty.py");
    tool("python3").arg(script).args([&before, &after, &dirty]).ok();
    let want = read_by_qemu("vhdx", &after);
    let left = std::fs::read(&dirty).unwrap();

    // Whoever only reads sees it replayed, and changes nothing.
    let image = open("vhdx", &dirty, false).unwrap();
    assert!(content(&disk(&image)) == want);
    assert!(image.facts().dirty);
    assert_eq!(findings("vhdx", &dirty, false), ["the log had to be replayed"]);
    drop(image);
    assert!(std::fs::read(&dirty).unwrap() == left);
    // Whoever writes has it replayed for good.
    drop(open("vhdx", &dirty, true).unwrap());
    agreed(&dirty, &want);
    // QEMU comes to the same.
    std::fs::write(&dirty, &left).unwrap();
    qemu::img(&["check", "-q", "-r", "all", "-f", "vhdx", &dirty.display().to_string()]);
    assert!(read_by_qemu("vhdx", &dirty) == want);
    // A file that lost its end since.
    std::fs::write(&dirty, &left[..left.len() - 2 * MIB as usize]).unwrap();
    let e = open("vhdx", &dirty, false).unwrap_err();
    assert!(e.to_string().contains("it was truncated"), "{e}");
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    cuts(21);
}

/// The power fails behind every operation of a session.
fn cuts(seed: u64) {
    let dir = scratch();
    let path = dir.path().join("cut.vhdx");
    drop(create("vhdx", &path, 3 * MIB, "block_size=1M", None).unwrap());
    let new = std::fs::read(&path).unwrap();
    chain("vhdx", dir.path(), 2 * MIB, MIB, 5);
    let child = std::fs::read(dir.path().join("image.vhdx")).unwrap();
    let format = by_name("vhdx").unwrap();
    // As the file of this name: its parent lies beside it.
    let open = |disk: Disk, write: bool| {
        format.open(disk, &mut Opening::new(Some(&path), Policy::SameFolder, write))
    };
    let mut replayed = 0;
    for (bytes, steps, qemu_reads) in [(new, 60, true), (child, 60, false)] {
        power_cuts(bytes, &open, steps, seed, |bytes, judge| {
            std::fs::write(&path, bytes).unwrap();
            let image = open(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
            let dirty = image.facts().dirty;
            if qemu_reads {
                qemu::img(&["check", "-q", "-r", "all", "-f", "vhdx", &path.display().to_string()]);
                let found = read_by_qemu("vhdx", &path);
                judge(&found);
                assert!(found == content(&disk(&image)), "QEMU replays something else");
                replayed += u32::from(dirty);
            }
            if qemu_reads || !dirty {
                judge(&read_by_7zip(&path));
            }
        });
    }
    assert!(replayed > 3, "{replayed}");
}

#[test]
fn damage_is_found_and_mended() {
    let dir = scratch();
    let path: PathBuf = dir.path().join("image.vhdx");
    drop(create("vhdx", &path, 9 * MIB, "block_size=1M", None).unwrap());
    let mirror = workload("vhdx", &path, 300, 1, 6, |_| ());
    let good = std::fs::read(&path).unwrap();
    let damaged = |damage: &dyn Fn(&mut Vec<u8>), words: &str| {
        let mut bytes = good.clone();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let found = findings("vhdx", &path, false);
        assert!(found.iter().any(|f| f.contains(words)), "{words}: {found:?}");
        findings("vhdx", &path, true);
        sound(&path);
        read("vhdx", &path)
    };
    let entry = |b: &mut Vec<u8>, number: usize, entry: u64| {
        b[BAT_AT + 8 * number..][..8].copy_from_slice(&entry.to_le_bytes());
    };
    let mib = MIB as usize;
    for header in [64 << 10, 128 << 10] {
        assert!(damaged(&|b| b[header + 100] = 1, "one of the two headers is damaged") == mirror);
    }
    for table in [192 << 10, 256 << 10] {
        assert!(damaged(&|b| b[table + 100] = 1, "the two region tables are not the same") == mirror);
    }
    // Two entries for one block: each has a copy of its own afterwards.
    let both = damaged(&|b| b.copy_within(BAT_AT..BAT_AT + 8, BAT_AT + 8), "lies over something else");
    assert!(
        both[..2 * mib] == [&mirror[..mib], &mirror[..mib]].concat() && both[2 * mib..] == mirror[2 * mib..]
    );
    // An entry that names the BAT, one behind the end of the file, states that there are not.
    damaged(&|b| entry(b, 0, 2 << 20 | 6), "block 0 at 0x200000 lies over something else");
    for (bad, words) in [
        (1 << 40 | 6, "past the end of the file"),
        (u64::MAX << 20 | 6, "past the end of the file"),
        (5 << 20 | 7, "only a block of a difference can be there in part"),
        (5 << 20 | 4, "there is no such state"),
        (6, "it names no place"),
        (9 << 20 | 1 << 10 | 6, "reserved bits are set"),
    ] {
        let found = damaged(&|b| entry(b, 0, bad), words);
        assert!(found[mib..] == mirror[mib..] && found[..mib].iter().all(|b| *b == 0), "{words}");
    }
    // Nothing is written while the BAT is wrong.
    let mut bytes = good.clone();
    bytes.copy_within(BAT_AT..BAT_AT + 8, BAT_AT + 8);
    std::fs::write(&path, &bytes).unwrap();
    let e = disk(&open("vhdx", &path, true).unwrap()).write_at(0, &[1]).unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// CRC-32C.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8)
            .fold(crc ^ u32::from(*b), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Puts the right checksum over a structure.
fn seal(bytes: &mut [u8], at: usize, len: usize) {
    let Some(part) = bytes.get_mut(at..at + len) else { return };
    part[4..8].fill(0);
    let sum = crc(part);
    part[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// An image with one log entry that counts, as `change` makes it: descriptors begin at byte 64 of the entry.
fn with_log(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let dir = scratch();
    let path = dir.path().join("image.vhdx");
    drop(create("vhdx", &path, 3 * MIB, "block_size=1M", None).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    let mut entry = vec![0u8; 8192];
    entry[..4].copy_from_slice(b"loge");
    entry[8..12].copy_from_slice(&8192u32.to_le_bytes());
    entry[16] = 1;
    entry[24] = 1;
    entry[32..48].fill(0x77);
    entry[48..56].copy_from_slice(&(4 * MIB).to_le_bytes());
    entry[56..64].copy_from_slice(&(4 * MIB).to_le_bytes());
    entry[64..68].copy_from_slice(b"desc");
    entry[80..88].copy_from_slice(&(BAT_AT as u64).to_le_bytes());
    entry[88] = 1;
    entry[4096..4100].copy_from_slice(b"data");
    entry[8188] = 1;
    change(&mut entry);
    seal(&mut entry, 0, 8192);
    bytes[MIB as usize..][..8192].copy_from_slice(&entry);
    for at in [64 << 10, 128 << 10] {
        bytes[at + 48..at + 64].fill(0x77);
        seal(&mut bytes, at, 4096);
    }
    bytes
}

#[test]
fn a_log_can_change_only_what_it_may() {
    let open = |bytes: Vec<u8>| open_disk("vhdx", Disk::new(MemDevice::from_bytes(bytes)).read_only(), false);
    assert!(open(with_log(|_| ())).unwrap().facts().dirty);
    let refused = |change: &dyn Fn(&mut [u8]), words: &str| {
        let e = open(with_log(change)).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        assert!(e.to_string().contains(words), "{words}: {e}");
    };
    let place = |at: u64| move |e: &mut [u8]| e[80..88].copy_from_slice(&at.to_le_bytes());
    for at in [0, 64 << 10, MIB, BAT_AT as u64 + 1, 4 * MIB, u64::MAX - 8191] {
        refused(&place(at), "a place that it cannot change");
    }
    refused(&|e| e[64..68].copy_from_slice(b"what"), "neither data nor zeroes");
    refused(&|e| e[88] = 2, "a descriptor is of another entry");
    refused(&|e| e[8188] = 2, "a data sector is of another entry");
    refused(&|e| e[4096] = 0, "a data sector is of another entry");
    refused(&|e| e[48..56].fill(0x7f), "it was truncated");
    refused(&|e| e[56..64].fill(0x7f), "more than 128 TiB");
    let zero = |len: u64| {
        move |e: &mut [u8]| {
            e[64..68].copy_from_slice(b"zero");
            e[72..80].copy_from_slice(&len.to_le_bytes());
        }
    };
    refused(&zero(1 << 40), "a place that it cannot change");
    refused(&zero(u64::MAX), "");
    // A terabyte of zeroes in a file that is to be as long: not in memory.
    let large = |e: &mut [u8]| {
        zero(1 << 40)(e);
        e[56..64].copy_from_slice(&(2u64 << 40).to_le_bytes());
    };
    refused(&large, "more than racker keeps in memory");
    // More descriptors than there are data; more than fit; a tail that leads round and round.
    refused(&|e| (e[24], _) = (2, e.copy_within(64..96, 96)), "less data than descriptors");
    for change in [
        (|e: &mut [u8]| e[24..28].fill(0xff)) as fn(&mut [u8]),
        |e| e[12..16].copy_from_slice(&4096u32.to_le_bytes()),
        |e| e[12..16].copy_from_slice(&(1u32 << 20).to_le_bytes()),
        |e| e[8..12].fill(0xff),
        |e| e[16] = 0,
    ] {
        // Not valid, so the log is empty.
        assert!(!open(with_log(change)).unwrap().facts().dirty);
    }
}

/// Entries that follow each other all around the log, and whose tails lead from one to the next.
#[test]
fn a_log_without_an_end_is_left() {
    let mut bytes = with_log(|_| ());
    for number in 0..256usize {
        let mut entry = vec![0u8; 4096];
        entry[..4].copy_from_slice(b"loge");
        entry[8..12].copy_from_slice(&4096u32.to_le_bytes());
        entry[12..16].copy_from_slice(&((number as u32 + 1) % 256 * 4096).to_le_bytes());
        entry[16] = 1 + (number % 200) as u8;
        entry[32..48].fill(0x77);
        seal(&mut entry, 0, 4096);
        bytes[MIB as usize + 4096 * number..][..4096].copy_from_slice(&entry);
    }
    let image = open_disk("vhdx", Disk::new(MemDevice::from_bytes(bytes)).read_only(), false).unwrap();
    assert!(!image.facts().dirty);
}

#[test]
fn values_that_cannot_be_are_refused() {
    let dir = scratch();
    let path = dir.path().join("image.vhdx");
    drop(create("vhdx", &path, 9 * MIB, "block_size=1M", None).unwrap());
    let good = std::fs::read(&path).unwrap();
    let refused = |at: usize, value: &[u8], words: &str| {
        let mut image = good.clone();
        image[at..at + value.len()].copy_from_slice(value);
        for at in [64 << 10, 128 << 10] {
            seal(&mut image, at, 4096);
        }
        for at in [192 << 10, 256 << 10] {
            seal(&mut image, at, 65536);
        }
        // The same in both copies.
        image.copy_within((64 << 10)..(68 << 10), 128 << 10);
        image.copy_within((192 << 10)..(256 << 10), 256 << 10);
        let e = open_disk("vhdx", Disk::new(MemDevice::from_bytes(image)), false).unwrap_err();
        assert!(e.to_string().contains(words), "{words}: {e}");
    };
    let (head, regions, items) = (64 << 10, 192 << 10, (3 << 20) + 65536);
    refused(0, b"V", "signature");
    refused(head + 66, &[2], "file version 2");
    refused(head + 64, &[1], "log version 1");
    refused(head + 68, &[1], "log at");
    refused(head + 72, &[0; 8], "log at");
    refused(head + 77, &[1], "log at");
    refused(regions + 8, &[0xff, 0xff], "region table has 65535 entries");
    refused(regions + 16, &[1], "the image needs the region");
    refused(regions + 16 + 16, &[0; 8], "BAT at");
    refused(regions + 16 + 21, &[1], "BAT at");
    refused(regions + 16 + 24, &[0xff; 4], "BAT at");
    refused(regions + 8, &[1], "metadata region is missing");
    refused(items - 65536, b"M", "metadata table");
    refused(items - 65536 + 10, &[0xff, 0xff], "metadata table has 65535 entries");
    refused(items - 65536 + 32 + 16, &[0xff; 4], "is outside its region");
    refused(items, &[0, 0, 0x18], "block size");
    refused(items, &[0, 0, 8], "block size");
    refused(items + 4, &[4], "flags of the file parameters");
    refused(items + 4, &[2], "parent locator");
    refused(items + 8, &[1], "in whole sectors");
    refused(items + 14, &[1], "at most");
    refused(items + 8, &[0, 0, 0, 0, 0, 0x20], "the BAT has room for");
    refused(items + 32, &[0, 4], "logical sector size");
    refused(items + 36, &[0, 4], "physical sector size");
}

/// Bytes of headers, tables and the log are turned over, and everything is asked of what still opens.
#[test]
fn noise_does_no_harm() {
    let dir = scratch();
    chain("vhdx", dir.path(), 2 * MIB, MIB, 5);
    let (base, image) = (dir.path().join("base.vhdx"), dir.path().join("image.vhdx"));
    let logged = dir.path().join("logged.vhdx");
    std::fs::write(&logged, with_log(|_| ())).unwrap();
    let mut rng = Rng::new(77);
    let mut opened = 0;
    for (path, tables) in [(&base, [1, 2]), (&image, [1, 2]), (&logged, [2, 3])] {
        let good = std::fs::read(path).unwrap();
        let log = (path == &logged).then_some(MIB);
        for round in 0..150 {
            let mut bytes = good.clone();
            for _ in 0..1 + rng.below(4) {
                let table = tables[rng.below(2) as usize] * MIB;
                let at = match rng.below(5) {
                    0 => (64 << 10) + rng.below(80),
                    1 => (192 << 10) + rng.below(80),
                    2 => table + rng.below(200),
                    3 => table + (64 << 10) + rng.below(200),
                    _ => log.unwrap_or(table) + rng.below(100),
                };
                bytes[at as usize] = rng.number() as u8;
            }
            if round % 7 == 0 {
                bytes.truncate(rng.below(good.len() as u64) as usize);
            }
            // The second copies stay as they are, and are not looked at.
            if round % 3 != 0 {
                seal(&mut bytes, 64 << 10, 4096);
                if round % 2 == 0 {
                    seal(&mut bytes, 192 << 10, 65536);
                }
                if log.is_some() {
                    seal(&mut bytes, MIB as usize, 8192);
                }
                if let Some(second) = bytes.get_mut(128 << 10..132 << 10) {
                    second.fill(0);
                }
            }
            opened += u32::from(survives("vhdx", bytes, path));
        }
    }
    assert!(opened > 100, "{opened}");
}

/// What a read-only open replays must not depend on how the disk is read.
#[test]
fn a_replay_in_memory_is_seen_by_runs() {
    let bytes = with_log(|e| {
        // Block 0 is at 4 MiB, where the file is to end then.
        e[72..80].copy_from_slice(&((4 * MIB) | 6).to_le_bytes());
        e[56..64].copy_from_slice(&(5 * MIB).to_le_bytes());
    });
    let image = open_disk("vhdx", Disk::new(MemDevice::from_bytes(bytes)).read_only(), false).unwrap();
    let found = disk(&image);
    let bytes = content(&found);
    assert!(bytes.iter().all(|b| *b == 0));
    runs_agree(&found, &bytes);
    assert!(found.runs(Span::first(3 * MIB)).all(|run| run.unwrap().1.is_zero()));
}
