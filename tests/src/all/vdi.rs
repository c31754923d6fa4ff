//! VDI against `qemu-img`, 7-Zip and images written by hand.

use std::path::{Path, PathBuf};

use racker_formats::block::{Disk, MemDevice};
use racker_formats::error::Kind;
use racker_formats::opening::{Opening, Policy};
use racker_formats::registry::by_name;
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
/// Where racker's images have their map.
const MAP_AT: usize = 1 << 20;

/// An image of racker's as others see it.
fn agreed(path: &Path, mirror: &[u8]) {
    assert!(read_by_qemu("vdi", path) == mirror, "qemu-img reads something else");
    assert!(read_by_7zip(path) == mirror, "7-Zip reads something else");
    sound(path);
}

/// Nobody finds anything.
fn sound(path: &Path) {
    qemu::check_as("vdi", path);
    assert_eq!(findings("vdi", path, false), Vec::<String>::new());
}

#[test]
fn what_qemu_writes_is_read() {
    let dir = scratch();
    let mut rng = Rng::new(3);
    for (i, options) in ["static=off", "static=on"].into_iter().enumerate() {
        for size in [5_000_192u64, 11 * MIB, 40 * MIB + 512] {
            let path = dir.path().join(format!("{i}.vdi"));
            let at = path.display().to_string();
            qemu::img(&["create", "-q", "-f", "vdi", "-o", options, &at, &size.to_string()]);
            qemu::io("vdi", &path, &qemu::random_writes(&mut rng, size, 12));
            let image = open("vdi", &path, false).unwrap();
            let found = disk(&image);
            let bytes = content(&found);
            assert!(bytes == read_by_qemu("vdi", &path), "{options} {size}");
            assert!(bytes == read_by_7zip(&path), "{options} {size}");
            runs_agree(&found, &bytes);
            assert_eq!(findings("vdi", &path, false), Vec::<String>::new());
            let kind = if options == "static=on" { "static" } else { "dynamic" };
            assert_eq!(image.facts().subformat.as_deref(), Some(kind));
            assert_eq!(image.facts().cluster_size, Some(MIB));
        }
    }
}

#[test]
fn chains_are_read_whatever_the_size_of_their_blocks() {
    for (block, size) in [(MIB, 10 * MIB), (4096, 3 * MIB), (512 << 10, 5 * MIB + 512), (512, MIB)] {
        let dir = scratch();
        let want = chain("vdi", dir.path(), size, block, block);
        let path = dir.path().join("image.vdi");
        let image = open("vdi", &path, false).unwrap();
        let found = disk(&image);
        assert!(content(&found) == want, "blocks of {block}");
        runs_agree(&found, &want);
        assert_eq!(findings("vdi", &path, false), Vec::<String>::new());
        let facts = image.facts();
        assert_eq!(facts.backing.unwrap().path, "middle.vdi");
        assert_eq!(facts.subformat.as_deref(), Some("differencing"));
        if block == MIB {
            let base = dir.path().join("base.vdi");
            assert!(read("vdi", &base) == read_by_qemu("vdi", &base));
            assert!(read("vdi", &base) == read_by_7zip(&base));
        }
    }
}

#[test]
fn a_parent_must_be_the_one_that_was_meant() {
    let dir = scratch();
    chain("vdi", dir.path(), MIB, 4096, 1);
    let [base, image, middle] = ["base", "image", "middle"].map(|n| dir.path().join(n).with_extension("vdi"));
    let failure = || open("vdi", &image, false).unwrap_err();
    // Under another name it is found all the same; a copy of it leaves the choice to the user.
    let other = dir.path().join("{other name}.vdi");
    std::fs::rename(&middle, &other).unwrap();
    open("vdi", &image, false).unwrap();
    std::fs::copy(&other, &middle).unwrap();
    assert_eq!(failure().kind(), Kind::Invalid, "{}", failure());
    std::fs::remove_file(&other).unwrap();
    // The parent was changed since.
    let sound = std::fs::read(&middle).unwrap();
    disk(&open("vdi", &middle, true).unwrap()).write_at(0, &[1]).unwrap();
    assert!(failure().to_string().contains("was changed after"), "{}", failure());
    std::fs::write(&middle, sound).unwrap();
    open("vdi", &image, false).unwrap();
    // It is not there.
    std::fs::remove_file(&base).unwrap();
    assert_eq!(failure().kind(), Kind::NotFound, "{}", failure());
    // Beyond the folder nobody looks.
    let bytes = std::fs::read(&image).unwrap();
    let e = open_disk("vdi", Disk::new(MemDevice::from_bytes(bytes)), false).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
    assert_eq!(create("vdi", &base, MIB, "", Some(&middle)).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn an_image_that_is_its_own_parent_is_no_loop() {
    let dir = scratch();
    chain("vdi", dir.path(), MIB, 4096, 1);
    let middle = dir.path().join("middle.vdi");
    let mut bytes = std::fs::read(&middle).unwrap();
    bytes.copy_within(392..424, 424);
    std::fs::write(&middle, bytes).unwrap();
    // Itself is not beside itself, and a hard link to it is itself.
    std::fs::hard_link(&middle, dir.path().join("again.vdi")).unwrap();
    assert_eq!(open("vdi", &middle, false).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn sizes_are_kept() {
    let dir = scratch();
    let path = dir.path().join("a.vdi");
    for size in [0, 512, 1000, MIB, 5 * MIB + 512, (1 << 40) + 3072] {
        drop(create("vdi", &path, size, "", None).unwrap());
        let told = qemu::img(&["info", "--output=json", &path.display().to_string()]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["virtual-size"], size.next_multiple_of(512));
        sound(&path);
    }
    let e = create("vdi", &path, 1 << 50, "", None).unwrap_err();
    assert_eq!(e.kind(), Kind::Invalid, "{e}");
}

#[test]
fn a_random_workload_is_kept_by_new_images() {
    for (options, size) in [("", 9 * MIB), ("static=on", 5 * MIB + 1024)] {
        let dir = scratch();
        let path = dir.path().join("image.vdi");
        drop(create("vdi", &path, size, options, None).unwrap());
        workload("vdi", &path, 1500, 10, 1, |mirror| agreed(&path, mirror));
    }
}

#[test]
fn a_random_workload_is_kept_by_images_of_qemu() {
    let dir = scratch();
    let path = dir.path().join("image.vdi");
    qemu::img(&["create", "-q", "-f", "vdi", &path.display().to_string(), "9M"]);
    qemu::io("vdi", &path, &qemu::random_writes(&mut Rng::new(9), 9 * MIB, 8));
    workload("vdi", &path, 800, 5, 2, |mirror| agreed(&path, mirror));
    // QEMU can go on with it.
    qemu::io("vdi", &path, &qemu::random_writes(&mut Rng::new(10), 9 * MIB, 8));
    assert!(read("vdi", &path) == read_by_qemu("vdi", &path));
    sound(&path);
}

#[test]
fn a_random_workload_is_kept_by_differences() {
    for (block, size) in [(MIB, 9 * MIB), (4096, 2 * MIB), (64 << 10, 5 * MIB)] {
        let dir = scratch();
        chain("vdi", dir.path(), size, block, 5);
        let path = dir.path().join("image.vdi");
        let parents = ["base", "middle"].map(|n| dir.path().join(n).with_extension("vdi"));
        let before = parents.each_ref().map(|p| std::fs::read(p).unwrap());
        let judge = |_: &[u8]| assert_eq!(findings("vdi", &path, false), Vec::<String>::new());
        workload("vdi", &path, 800, 5, 3, judge);
        assert!(before == parents.each_ref().map(|p| std::fs::read(p).unwrap()), "a parent changed");
    }
}

/// `cargo test -p racker-tests --test all -- --ignored vdi::volume`
#[test]
#[ignore = "takes minutes"]
fn volume() {
    let dir = scratch();
    let path = dir.path().join("image.vdi");
    drop(create("vdi", &path, 24 * MIB, "", None).unwrap());
    workload("vdi", &path, 20_000, 100, 1, |mirror| agreed(&path, mirror));
    (100..110).for_each(cuts);
}

#[test]
fn another_size_keeps_the_bytes() {
    for options in ["", "static=on"] {
        let dir = scratch();
        let path = dir.path().join("image.vdi");
        drop(create("vdi", &path, 9 * MIB, options, None).unwrap());
        let mut mirror = workload("vdi", &path, 300, 1, 6, |_| ());
        let sizes = [30 * MIB, 9 * MIB + 512, 12 * MIB, 5 * MIB, 4096, 3 * MIB, 8 * MIB, 0, 4 * MIB];
        for (seed, size) in (7..).zip(sizes) {
            let image = open("vdi", &path, true).unwrap();
            disk(&image).resize(size).unwrap();
            mirror.resize(size as usize, 0);
            assert!(content(&disk(&image)) == mirror, "{size}");
            drop(image);
            agreed(&path, &mirror);
            if size > 0 {
                mirror = workload("vdi", &path, 100, 1, seed, |_| ());
            }
        }
        agreed(&path, &mirror);
    }
}

/// The map of an image of QEMU's has no room: it goes where the first blocks were.
#[test]
fn a_map_that_grows_moves_blocks() {
    let dir = scratch();
    let path = dir.path().join("image.vdi");
    qemu::img(&["create", "-q", "-f", "vdi", &path.display().to_string(), "9M"]);
    let mirror = workload("vdi", &path, 300, 1, 6, |_| ());
    for size in [600 * MIB, 3 << 30, 1 << 40] {
        let image = open("vdi", &path, true).unwrap();
        disk(&image).resize(size).unwrap();
        drop(image);
        let image = open("vdi", &path, false).unwrap();
        assert_eq!(image.size(), size);
        let mut found = vec![0; mirror.len()];
        disk(&image).read_at(0, &mut found).unwrap();
        assert!(found == mirror, "{size}");
        sound(&path);
        if size == 600 * MIB {
            assert!(read_by_qemu("vdi", &path)[..mirror.len()] == mirror);
        }
    }
}

#[test]
fn damage_is_found_and_mended() {
    let dir = scratch();
    let path: PathBuf = dir.path().join("image.vdi");
    drop(create("vdi", &path, 9 * MIB, "", None).unwrap());
    let mirror = workload("vdi", &path, 300, 1, 6, |_| ());
    let good = std::fs::read(&path).unwrap();
    let damaged = |damage: &dyn Fn(&mut Vec<u8>), words: &str| {
        let mut bytes = good.clone();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let found = findings("vdi", &path, false);
        assert!(found.iter().any(|f| f.contains(words)), "{words}: {found:?}");
        findings("vdi", &path, true);
        sound(&path);
        read("vdi", &path)
    };
    let mib = MIB as usize;
    // Two entries for one block: each has a copy of its own afterwards.
    let both = damaged(&|b| b.copy_within(MAP_AT..MAP_AT + 4, MAP_AT + 4), "block 1 is kept in place");
    assert!(
        both[..2 * mib] == [&mirror[..mib], &mirror[..mib]].concat() && both[2 * mib..] == mirror[2 * mib..]
    );
    // An entry behind the end of the file.
    let lost = damaged(&|b| b[MAP_AT..MAP_AT + 4].copy_from_slice(&[0, 0, 0, 1]), "past the end of the file");
    assert!(lost[mib..] == mirror[mib..] && lost[..mib].iter().all(|b| *b == 0));
    // A wrong count, and bytes that belong to nobody.
    assert!(damaged(&|b| b[388] = 3, "are said to be allocated") == mirror);
    assert!(damaged(&|b| b.extend([7; 4096]), "bytes behind the last block") == mirror);
    // Nothing is written while the map is wrong.
    let mut bytes = good.clone();
    bytes.copy_within(MAP_AT..MAP_AT + 4, MAP_AT + 4);
    std::fs::write(&path, &bytes).unwrap();
    let e = disk(&open("vdi", &path, true).unwrap()).write_at(0, &[1]).unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let dir = scratch();
    let path = dir.path().join("image.vdi");
    drop(create("vdi", &path, 9 * MIB, "", None).unwrap());
    let good = std::fs::read(&path).unwrap();
    let refused = |at: usize, bytes: &[u8], words: &str| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let e = open_disk("vdi", Disk::new(MemDevice::from_bytes(image)), false).unwrap_err();
        assert!(e.to_string().contains(words), "{words}: {e}");
    };
    refused(64, &[0], "signature");
    refused(68, &[2], "version 1.2");
    refused(76, &[3], "image type 3");
    refused(80, &[4], "flags 0x4");
    refused(340, &[1], "place of the map");
    refused(342, &[0x20], "block map at");
    refused(360, &[0, 1], "sector size");
    refused(368, &[0xff; 8], "");
    refused(368, &[0, 0, 0, 0, 0, 1], "a disk of 1099");
    refused(376, &[1], "block size");
    refused(380, &[1], "what precedes a block");
    refused(384, &[3], "a disk of 9437184 bytes needs 9");
    refused(384, &[0xff; 4], "block map");
}

/// Bytes of header and map are turned over, and everything is asked of what still opens.
#[test]
fn noise_does_no_harm() {
    let dir = scratch();
    chain("vdi", dir.path(), 2 * MIB, 4096, 5);
    let (base, image) = (dir.path().join("base.vdi"), dir.path().join("image.vdi"));
    let mut rng = Rng::new(77);
    let mut opened = 0;
    for path in [&base, &image] {
        let good = std::fs::read(path).unwrap();
        for round in 0..600 {
            let mut bytes = good.clone();
            for _ in 0..1 + rng.below(4) {
                let at = if round % 2 == 0 { 330 + rng.below(70) } else { rng.below(4000) };
                bytes[at as usize] = rng.number() as u8;
            }
            if round % 7 == 0 {
                bytes.truncate(rng.below(good.len() as u64) as usize);
            }
            opened += u32::from(survives("vdi", bytes, path));
        }
    }
    assert!(opened > 200, "{opened}");
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed() {
    cuts(21);
}

/// The power fails behind every operation of a session.
fn cuts(seed: u64) {
    let dir = scratch();
    let path = dir.path().join("cut.vdi");
    drop(create("vdi", &path, 3 * MIB, "", None).unwrap());
    let new = std::fs::read(&path).unwrap();
    chain("vdi", dir.path(), 300 << 10, 4096, 5);
    let base = std::fs::read(dir.path().join("base.vdi")).unwrap();
    let child = std::fs::read(dir.path().join("image.vdi")).unwrap();
    let format = by_name("vdi").unwrap();
    // As the file of this name: its parent lies beside it.
    let open = |disk: Disk, write: bool| {
        format.open(disk, &mut Opening::new(Some(&path), Policy::SameFolder, write))
    };
    for (bytes, steps, others_read) in [(new, 40, true), (base, 120, false), (child, 120, false)] {
        power_cuts(bytes, &open, steps, seed, |bytes, judge| {
            std::fs::write(&path, bytes).unwrap();
            if others_read {
                judge(&read_by_qemu("vdi", &path));
                judge(&read_by_7zip(&path));
            }
        });
    }
}
