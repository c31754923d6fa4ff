//! VHD against `qemu-img`, 7-Zip and images written by hand.

use std::path::{Path, PathBuf};

use racker_formats::block::{Disk, MemDevice};
use racker_formats::error::Kind;
use racker_tests::image::{
    chain, content, create, disk, findings, open, open_disk, read, read_by_7zip, read_by_qemu, runs_agree,
    scratch,
};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::live::workload;
use super::noise::survives;
use super::power::power_cuts;

const MIB: u64 = 1 << 20;

/// An image of racker's as others see it.
fn agreed(path: &Path, mirror: &[u8]) {
    assert!(read_by_qemu("vpc", path) == mirror, "qemu-img reads something else");
    assert!(read_by_7zip(path) == mirror, "7-Zip reads something else");
    assert_eq!(findings("vhd", path, false), Vec::<String>::new());
}

#[test]
fn what_qemu_writes_is_read() {
    let dir = scratch();
    let mut rng = Rng::new(3);
    for (i, options) in
        ["subformat=dynamic", "subformat=fixed", "force_size=on", "force_size=on,subformat=fixed"]
            .into_iter()
            .enumerate()
    {
        for size in [5_000_192u64, 11 * MIB, 40 * MIB + 512] {
            let path = dir.path().join(format!("{i}.vhd"));
            let at = path.display().to_string();
            qemu::img(&["create", "-q", "-f", "vpc", "-o", options, &at, &size.to_string()]);
            qemu::io("vpc", &path, &qemu::random_writes(&mut rng, size, 12));
            let found = disk(&open("vhd", &path, false).unwrap());
            let bytes = content(&found);
            assert!(bytes == read_by_qemu("vpc", &path), "{options} {size}");
            assert!(bytes == read_by_7zip(&path), "{options} {size}");
            runs_agree(&found, &bytes);
            assert_eq!(findings("vhd", &path, false), Vec::<String>::new());
        }
    }
}

#[test]
fn sizes_are_those_of_qemu() {
    let dir = scratch();
    let (ours, theirs) = (dir.path().join("ours.vhd"), dir.path().join("theirs.vhd"));
    let at = theirs.display().to_string();
    let mut rng = Rng::new(8);
    let odd: Vec<u64> = (0..20).map(|_| rng.number() >> (23 + rng.below(30))).collect();
    let round = [0, 1, 512, MIB, 1 << 30, 4 << 30, 127 << 30, 128 << 30, 2040 << 30];
    for size in odd.into_iter().chain(round) {
        for force in ["off", "on"] {
            let options = format!("force_size={force}");
            qemu::img(&["create", "-q", "-f", "vpc", "-o", &options, &at, &size.to_string()]);
            let expected = open("vhd", &theirs, false).unwrap().size();
            assert_eq!(
                create("vhd", &ours, size, &options, None).unwrap().size(),
                expected,
                "{size} {options}"
            );
            for path in [&ours, &theirs] {
                let told = qemu::img(&["info", "--output=json", "-f", "vpc", &path.display().to_string()]);
                let told: serde_json::Value = serde_json::from_str(&told).unwrap();
                assert_eq!(told["virtual-size"], expected, "{size} {options}");
            }
        }
    }
    let e = create("vhd", &ours, (2040 << 30) + 512, "", None).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
}

/// Virtual PC and QEMU go by the geometry, everybody else by the footer's size.
#[test]
fn the_creator_decides_which_size_counts() {
    let dir = scratch();
    let path = dir.path().join("a.vhd");
    let at = path.display().to_string();
    qemu::img(&["create", "-q", "-f", "vpc", "-o", "force_size=on", &at, "10000384"]);
    let made = std::fs::read(&path).unwrap();
    for creator in
        [b"vpc ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap\0", b"CTXS", b"vbox", b"vs  ", b"\0\0\0\0"]
    {
        for geometry in [[0, 100, 4, 17], [255, 255, 16, 255]] {
            let mut footer = made[..512].to_vec();
            footer[28..32].copy_from_slice(creator);
            footer[56..60].copy_from_slice(&geometry);
            footer[64..68].fill(0);
            let sum = footer.iter().fold(0u32, |sum, b| sum + u32::from(*b));
            footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
            let mut image = made.clone();
            let end = image.len() - 512;
            image[..512].copy_from_slice(&footer);
            image[end..].copy_from_slice(&footer);
            std::fs::write(&path, image).unwrap();
            let size = open("vhd", &path, false).unwrap().size();
            let by_geometry = [*b"vpc ", *b"qemu"].contains(creator) && geometry[0] == 0;
            assert_eq!(size, if by_geometry { 100 * 4 * 17 * 512 } else { 10_000_384 }, "{creator:?}");
            // Older ones go by the geometry of some more.
            if qemu::release() >= 10 {
                let told: serde_json::Value =
                    serde_json::from_str(&qemu::img(&["info", "--output=json", &at])).unwrap();
                assert_eq!(told["virtual-size"], size, "{creator:?}");
            }
        }
    }
}

#[test]
fn chains_agree_with_the_specification_and_with_7_zip() {
    for (block, size) in [(2 * MIB, 10 * MIB), (4096, 3 * MIB), (512 << 10, 5 * MIB + 512), (512, MIB)] {
        let dir = scratch();
        let want = chain("vhd", dir.path(), size, block, block);
        let path = dir.path().join("image.vhd");
        let image = open("vhd", &path, false).unwrap();
        let found = disk(&image);
        assert!(content(&found) == want, "blocks of {block}");
        assert!(read_by_7zip(&path) == want, "blocks of {block}");
        runs_agree(&found, &want);
        assert_eq!(findings("vhd", &path, false), Vec::<String>::new());
        let facts = image.facts();
        assert_eq!(facts.backing.unwrap().path, "./middle.vhd");
        assert_eq!(facts.subformat.as_deref(), Some("differencing"));
    }
}

#[test]
fn a_parent_must_be_the_one_that_was_meant() {
    let dir = scratch();
    chain("vhd", dir.path(), MIB, 4096, 1);
    let (image, middle) = (dir.path().join("image.vhd"), dir.path().join("middle.vhd"));
    let failure = || open("vhd", &image, false).unwrap_err();
    std::fs::copy(dir.path().join("base.vhd"), &middle).unwrap();
    assert!(failure().to_string().contains("this is a difference to disk"), "{}", failure());
    std::fs::remove_file(&middle).unwrap();
    assert_eq!(failure().kind(), Kind::NotFound);
    // A parent that is the image itself.
    std::fs::hard_link(&image, &middle).unwrap();
    assert!(failure().to_string().contains("loop"), "{}", failure());
    // Only the absolute path of another machine is left.
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[512 + 64..512 + 64 + 100].fill(0);
    bytes[512 + 600..512 + 624].fill(0);
    let sum = |b: &[u8]| !b.iter().fold(0u32, |sum, b| sum + u32::from(*b));
    bytes[512 + 36..512 + 40].fill(0);
    let sum = sum(&bytes[512..1536]);
    bytes[512 + 36..512 + 40].copy_from_slice(&sum.to_be_bytes());
    std::fs::write(&image, bytes).unwrap();
    let e = open("vhd", &image, false).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert!(e.to_string().contains("C:/nowhere/middle.vhd"), "{e}");
}

#[test]
fn a_random_workload_is_kept_by_new_images() {
    for (options, size) in [("", 9 * MIB), ("subformat=fixed", 5 * MIB), ("force_size=on", 7 * MIB + 1024)] {
        let dir = scratch();
        let path = dir.path().join("image.vhd");
        drop(create("vhd", &path, size, options, None).unwrap());
        workload("vhd", &path, 1500, 10, 1, |mirror| agreed(&path, mirror));
    }
}

#[test]
fn a_random_workload_is_kept_by_images_of_qemu() {
    let dir = scratch();
    let path = dir.path().join("image.vhd");
    qemu::img(&["create", "-q", "-f", "vpc", &path.display().to_string(), "9M"]);
    qemu::io("vpc", &path, &qemu::random_writes(&mut Rng::new(9), 9 * MIB, 8));
    workload("vhd", &path, 1000, 5, 2, |mirror| agreed(&path, mirror));
    // QEMU can go on with it.
    qemu::io("vpc", &path, &qemu::random_writes(&mut Rng::new(10), 9 * MIB, 8));
    assert!(read("vhd", &path) == read_by_qemu("vpc", &path));
}

#[test]
fn a_random_workload_is_kept_by_differences() {
    for (block, size) in [(2 * MIB, 9 * MIB), (4096, 2 * MIB), (64 << 10, 5 * MIB)] {
        let dir = scratch();
        chain("vhd", dir.path(), size, block, 5);
        let path = dir.path().join("image.vhd");
        let parents = ["base", "middle"].map(|n| dir.path().join(n).with_extension("vhd"));
        let before = parents.each_ref().map(|p| std::fs::read(p).unwrap());
        let judge = |mirror: &[u8]| {
            assert!(read_by_7zip(&path) == mirror, "7-Zip reads something else");
            assert_eq!(findings("vhd", &path, false), Vec::<String>::new());
        };
        workload("vhd", &path, 800, 5, 3, judge);
        // A new child on top of it.
        let child = dir.path().join("child.vhd");
        drop(create("vhd", &child, size, "", Some(&path)).unwrap());
        assert!(read("vhd", &child) == read("vhd", &path));
        let judge = |mirror: &[u8]| assert!(read_by_7zip(&child) == mirror, "7-Zip reads something else");
        workload("vhd", &child, 1000, 5, 4, judge);
        assert!(before == parents.each_ref().map(|p| std::fs::read(p).unwrap()), "a parent changed");
    }
}

/// `cargo test -p racker-tests --test all -- --ignored vhd::volume`
#[test]
#[ignore = "takes minutes"]
fn volume() {
    let dir = scratch();
    let path = dir.path().join("image.vhd");
    drop(create("vhd", &path, 24 * MIB, "", None).unwrap());
    workload("vhd", &path, 20_000, 100, 1, |mirror| agreed(&path, mirror));
    (100..110).for_each(cuts);
}

#[test]
fn another_size_keeps_the_bytes() {
    for options in ["", "subformat=fixed"] {
        let dir = scratch();
        let path = dir.path().join("image.vhd");
        drop(create("vhd", &path, 9 * MIB, options, None).unwrap());
        let mut mirror = workload("vhd", &path, 300, 1, 6, |_| ());
        let sizes = [300 * MIB, 9 * MIB + 512, 520 * MIB, 5 * MIB, 4096, 3 * MIB, 8 * MIB, 0, 4 * MIB];
        for (seed, size) in (7..).zip(sizes) {
            let image = open("vhd", &path, true).unwrap();
            disk(&image).resize(size).unwrap();
            if size > 100 * MIB {
                // The table has outgrown its sector.
                disk(&image).write_at(size - 1, &[9]).unwrap();
                disk(&image).flush().unwrap();
                drop(image);
                let image = open("vhd", &path, false).unwrap();
                let mut found = vec![0; mirror.len()];
                disk(&image).read_at(0, &mut found).unwrap();
                assert!(found == mirror, "{size}");
                assert_eq!(findings("vhd", &path, false), Vec::<String>::new());
                continue;
            }
            mirror.resize(size as usize, 0);
            assert!(content(&disk(&image)) == mirror, "{size}");
            drop(image);
            // For QEMU a fixed disk of no bytes is a broken dynamic one.
            if size > 0 {
                agreed(&path, &mirror);
                mirror = workload("vhd", &path, 100, 1, seed, |_| ());
            }
        }
        agreed(&path, &mirror);
    }
}

#[test]
fn damage_is_found_and_mended() {
    let dir = scratch();
    let path: PathBuf = dir.path().join("image.vhd");
    drop(create("vhd", &path, 9 * MIB, "force_size=on", None).unwrap());
    let mirror = workload("vhd", &path, 300, 1, 6, |_| ());
    let sound = std::fs::read(&path).unwrap();
    let end = sound.len() - 512;
    let damaged = |damage: &dyn Fn(&mut Vec<u8>), words: &str| {
        let mut bytes = sound.clone();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let found = findings("vhd", &path, false);
        assert!(found.iter().any(|f| f.contains(words)), "{words}: {found:?}");
        findings("vhd", &path, true);
        let left = findings("vhd", &path, false);
        assert!(left.iter().all(|f| f.contains("bytes between blocks are in no block")), "{words}: {left:?}");
        read("vhd", &path)
    };
    assert!(damaged(&|b| b[100] = 1, "the footer's copy at the beginning") == mirror);
    assert!(damaged(&|b| b[end + 100] = 1, "the footer: ") == mirror);
    assert!(damaged(&|b| b.truncate(end), "the footer: ") == mirror);
    // Two entries for one block: each has a copy of its own afterwards.
    let both = damaged(&|b| b.copy_within(1536..1540, 1540), "blocks 0 and 1 share");
    assert!(both[..4 << 20] == [&mirror[..2 << 20], &mirror[..2 << 20]].concat());
    // An entry that names the table itself, and one outside the file.
    for (entry, words) in
        [(3u32, "lies over the block allocation table"), (1 << 20, "past the end of the file")]
    {
        let found = damaged(&|b| b[1536..1540].copy_from_slice(&entry.to_be_bytes()), words);
        assert!(found[2 << 20..] == mirror[2 << 20..] && found[..2 << 20].iter().all(|b| *b == 0));
    }
    // Nothing is written while the table is wrong.
    let mut bytes = sound.clone();
    bytes.copy_within(1536..1540, 1540);
    std::fs::write(&path, &bytes).unwrap();
    let e = disk(&open("vhd", &path, true).unwrap()).write_at(0, &[1]).unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

/// Bytes of headers, tables and bitmaps are turned over, and everything is asked of what still opens.
#[test]
fn noise_does_no_harm() {
    let dir = scratch();
    let fixed = dir.path().join("fixed.vhd");
    drop(create("vhd", &fixed, MIB, "subformat=fixed", None).unwrap());
    chain("vhd", dir.path(), 2 * MIB, 4096, 5);
    let (base, image) = (dir.path().join("base.vhd"), dir.path().join("image.vhd"));
    let mut rng = Rng::new(77);
    let mut opened = 0;
    for path in [&base, &image, &fixed] {
        let sound = std::fs::read(path).unwrap();
        for round in 0..600 {
            let mut bytes = sound.clone();
            for _ in 0..1 + rng.below(4) {
                let end = bytes.len() as u64;
                let at = if round % 3 == 0 { end - 1 - rng.below(512) } else { rng.below(5000.min(end)) };
                bytes[at as usize] = rng.number() as u8;
            }
            if round % 7 == 0 {
                bytes.truncate(rng.below(sound.len() as u64) as usize);
            }
            if round % 2 == 0 {
                seal(&mut bytes);
            }
            opened += u32::from(survives("vhd", bytes, path));
        }
    }
    assert!(opened > 200, "{opened}");
}

/// Puts right checksums over what the noise made.
fn seal(bytes: &mut [u8]) {
    let end = bytes.len();
    for (from, to, at) in [(0, 512, 64), (512, 1536, 36), (end.wrapping_sub(512), end, 64)] {
        let Some(part) = bytes.get_mut(from..to) else { continue };
        part[at..at + 4].fill(0);
        let sum = part.iter().fold(0u32, |sum, b| sum + u32::from(*b));
        part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
}

#[test]
fn an_image_without_a_file_of_its_own_names_no_parent() {
    let dir = scratch();
    chain("vhd", dir.path(), MIB, 4096, 1);
    let bytes = std::fs::read(dir.path().join("image.vhd")).unwrap();
    let e = open_disk("vhd", Disk::new(MemDevice::from_bytes(bytes)), false).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    cuts(21);
}

/// The power fails behind every operation of a session.
fn cuts(seed: u64) {
    let dir = scratch();
    let path = dir.path().join("cut.vhd");
    drop(create("vhd", &path, 5 * MIB, "", None).unwrap());
    let new = std::fs::read(&path).unwrap();
    chain("vhd", dir.path(), 300 << 10, 4096, 5);
    let base = std::fs::read(dir.path().join("base.vhd")).unwrap();
    let child = std::fs::read(dir.path().join("image.vhd")).unwrap();
    let format = racker_formats::registry::by_name("vhd").unwrap();
    // As the file of this name: its parent lies beside it.
    let open = |disk: Disk, write: bool| {
        let policy = racker_formats::opening::Policy::SameFolder;
        format.open(disk, &mut racker_formats::opening::Opening::new(Some(&path), policy, write))
    };
    for (bytes, steps, qemu_reads) in [(new, 25, true), (base, 70, true), (child, 70, false)] {
        power_cuts(bytes, &open, steps, seed, |bytes, judge| {
            std::fs::write(&path, bytes).unwrap();
            if qemu_reads {
                judge(&read_by_qemu("vpc", &path));
            }
            judge(&read_by_7zip(&path));
        });
    }
}
