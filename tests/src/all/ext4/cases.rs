//! What random operations do not come by: full filesystems, large directories, deep trees, what only kernels make.

use std::os::unix::fs::{FileExt, MetadataExt};

use racker_formats::block::Span;
use racker_formats::error::Kind;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Name, New, NewKind, NodeId, Time};
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::model::Model;
use super::ops::{Play, Player};
use super::{PLAY, Patient};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

fn file() -> New<'static> {
    New { kind: NewKind::File, mode: 0o600, uid: 0, gid: 0 }
}

fn dir() -> New<'static> {
    New { kind: NewKind::Dir, ..file() }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// Plays on a filesystem that is full all the time, or has no inodes left.
fn crowd(size: &str, options: &str, play: Play) {
    let patient = Patient::make(size, options);
    let mut model = Model::read(patient.read().as_ref());
    let (mut rng, mut clock) = (Rng::new(9), 1_700_000_000);
    let mut refused = 0;
    for _ in 0..3 {
        patient.edit(|fs| {
            let mut player =
                Player { fs, model: &mut model, rng: &mut rng, play, clock: &mut clock, refused: 0 };
            for _ in 0..300 {
                player.step();
                player.create();
            }
            refused += player.refused;
            model.check(fs.filesystem().as_ref());
        });
        patient.is_clean(options);
        model.check(patient.read().as_ref());
    }
    assert!(refused > 40, "{options}: only {refused} refused");
}

#[test]
fn full_filesystems_stay_sound() {
    let play = Play { fine: false, reach: 1 << 28, write: 400_000, ..PLAY };
    let extents = "-t ext4 -b 1024 -I 128 -N 2000 -O ^has_journal";
    crowd("2M", extents, play);
    crowd("2M", "-t ext2 -b 1024 -I 128 -N 1000", play);
    crowd("4M", "-t ext4 -I 128 -O bigalloc,^has_journal -C 16384 -N 600", Play { reach: 1 << 24, ..play });
    crowd("8M", "-t ext4 -I 128 -N 64 -O ^has_journal", Play { write: 2000, ..play });
}

/// Fills a directory and takes names out again.
fn large_directory(size: &str, options: &str, count: u32, kind: New<'_>) -> Patient {
    let patient = Patient::make(size, options);
    let long = "n".repeat(200);
    let wanted = |i: u32| if i.is_multiple_of(3) { format!("{long}{i}") } else { format!("{i}") };
    let folder = patient.edit(|fs| {
        let folder = fs.create(fs.filesystem().root(), &name("large"), &dir(), NOW).unwrap();
        for i in 0..count {
            fs.create(folder, &name(&wanted(i)), &kind, NOW).unwrap_or_else(|e| panic!("{i}: {e}"));
        }
        folder
    });
    patient.is_clean(&format!("{options}: {count} names"));
    patient.edit(|fs| {
        for i in (0..count).filter(|i| i % 5 > 1) {
            fs.unlink(folder, &name(&wanted(i)), NOW).unwrap();
        }
        for i in (0..count).filter(|i| i % 5 == 2) {
            fs.create(folder, &name(&format!("again-{i}")), &kind, NOW).unwrap();
        }
        let found = |text: &str| fs.filesystem().lookup(folder, &name(text)).unwrap();
        assert!(found(&wanted(5)).is_some() && found(&wanted(4)).is_none() && found("again-7").is_some());
    });
    patient.is_clean(&format!("{options}: after names were removed"));
    patient
}

#[test]
fn large_directories_are_indexed() {
    for options in
        ["-t ext4 -b 1024 -N 6000", "-t ext3 -b 1024 -N 6000", "-t ext4 -b 1024 -N 6000 -O ^metadata_csum"]
    {
        let patient = large_directory("32M", options, 2500, file());
        let ours = Manifest::of_filesystem(patient.read().as_ref());
        let mounted = Mounted::read_only(&patient.path, WHOLE);
        Manifest::of_folder(mounted.path()).assert_same(&ours, options);
        assert_eq!(mounted.path().join("large/again-7").metadata().unwrap().nlink(), 1);
    }
}

/// The other hashes: e2fsck hashes all names again.
#[test]
fn every_hash_is_the_one_of_e2fsck() {
    for hash in ["legacy", "half_md4", "tea"] {
        for signed in ["signed_hash", "unsigned_hash"] {
            let patient = Patient::make("16M", "-t ext4 -b 1024 -N 3000");
            let set = format!("set_super_value def_hash_version {hash}");
            tool("debugfs").args(["-w", "-R", &set]).arg(&patient.path).ok();
            let flags = if signed == "signed_hash" { "1" } else { "2" };
            let set = format!("set_super_value flags {flags}");
            tool("debugfs").args(["-w", "-R", &set]).arg(&patient.path).ok();
            patient.edit(|fs| {
                let root = fs.filesystem().root();
                for i in 0..900u32 {
                    let text: String = format!("naïve-{i}-é{}", "ü".repeat(i as usize % 30));
                    fs.create(root, &name(&text), &file(), NOW).unwrap();
                }
            });
            patient.is_clean(&format!("{hash} {signed}"));
        }
    }
}

/// 70,000 directories in one, and 100,000 names in another, under three levels of index:
/// `cargo test --release -p racker-tests ext4::cases::huge -- --ignored`
#[test]
#[ignore = "a minute"]
fn huge_directories() {
    let patient = large_directory("1G", "-t ext4 -b 1024 -N 200000 -O large_dir", 130_000, file());
    let root = patient.read().root();
    patient.edit(|fs| {
        let many = fs.create(root, &name("many"), &dir(), NOW).unwrap();
        for i in 0..66_000u32 {
            fs.create(many, &name(&i.to_string()), &dir(), NOW).unwrap();
        }
        assert_eq!(fs.filesystem().stat(many).unwrap().links, 1);
    });
    patient.is_clean("66,000 directories");
}

fn write(fs: &mut Writer<'_>, node: NodeId, at: u64, data: &[u8]) {
    fs.write(node, at, data, NOW).unwrap();
}

/// Trees of three levels: every second block, then some of the rest, then holes, then the end cut off.
fn deep_tree(options: &str) {
    let patient = Patient::make("64M", options);
    let fs = patient.read();
    let fine = fs.stat(fs.root()).unwrap().crtime.is_some();
    let mut model = Model::read(fs.as_ref());
    drop(fs);
    let (mut rng, mut clock) = (Rng::new(3), 1_700_000_000);
    let play = Play { fine, ..PLAY };
    patient.edit(|fs| {
        let mut player = Player { fs, model: &mut model, rng: &mut rng, play, clock: &mut clock, refused: 0 };
        let number = player.make(0, b"deep", NewKind::File).unwrap();
        let node = player.model.get(number).node;
        let step = |i: u64| i * 2048;
        for i in (0..2500).chain((0..2500).rev().map(|i| i + 2500)) {
            let data = [i as u8 | 1; 700];
            write(fs, node, step(i), &data);
            model.at(number).bytes.write(step(i), &data);
        }
        for i in (0..2500).step_by(7) {
            fs.punch(node, Span::new(step(i), 5000).unwrap(), NOW).unwrap();
            model.at(number).bytes.zero(step(i), 5000);
        }
        fs.truncate(node, step(2000) + 100, NOW).unwrap();
        model.at(number).bytes.truncate(step(2000) + 100);
        for i in (0..2000).step_by(3) {
            write(fs, node, step(i) + 1024, &[9; 1024]);
            model.at(number).bytes.write(step(i) + 1024, &[9; 1024]);
        }
        model.at(number).mtime = NOW;
        model.check(fs.filesystem().as_ref());
    });
    patient.is_clean(options);
    let ours = Manifest::of_filesystem(patient.read().as_ref());
    Manifest::of_folder(Mounted::read_only(&patient.path, WHOLE).path()).assert_same(&ours, options);
    patient.edit(|fs| fs.unlink(fs.filesystem().root(), &name("deep"), NOW).unwrap());
    patient.is_clean(options);
}

#[test]
fn deep_trees_grow_and_shrink() {
    deep_tree("-t ext4 -b 1024");
    deep_tree("-t ext2 -b 1024");
}

/// The last block of the largest file, behind three indirect blocks, and what is larger still.
#[test]
fn the_largest_files() {
    for (options, max) in
        [("-t ext2 -b 1024", (12 + 256 + 65536 + (1 << 24)) * 1024u64), ("-t ext4 -b 4096", (1 << 44) - 4096)]
    {
        let patient = Patient::make("16M", options);
        patient.edit(|fs| {
            let node = fs.create(fs.filesystem().root(), &name("f"), &file(), NOW).unwrap();
            write(fs, node, max - 5, b"hello");
            let e = fs.write(node, max - 4, b"hello", NOW).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported, "{e}");
            let e = fs.truncate(node, max + 1, NOW).unwrap_err();
            assert_eq!(e.kind(), Kind::Unsupported, "{e}");
        });
        patient.is_clean(options);
        let mounted = Mounted::read_only(&patient.path, WHOLE);
        let f = std::fs::File::open(mounted.join("f")).unwrap();
        let mut end = [0; 5];
        f.read_exact_at(&mut end, max - 5).unwrap();
        assert_eq!(&end, b"hello");
        drop((f, mounted));
        patient.edit(|fs| fs.unlink(fs.filesystem().root(), &name("f"), NOW).unwrap());
        patient.is_clean(options);
    }
}

/// What kernels make: unwritten extents, blocks beyond the end, attribute blocks that several files share.
#[test]
fn what_only_kernels_make_is_changed() {
    let patient = Patient::make("32M", "-t ext4 -I 128");
    {
        let mounted = Mounted::writable(&patient.path, WHOLE);
        for (i, extra) in [("a", ""), ("b", "--keep-size")] {
            let path = mounted.join(i);
            std::fs::write(&path, b"").unwrap();
            let command = tool("fallocate").args(["-l", "1000000"]);
            let command = if extra.is_empty() { command } else { command.arg(extra) };
            command.arg(&path).ok();
        }
        for i in 0..5 {
            let path = mounted.join(&format!("x{i}"));
            std::fs::write(&path, b"x").unwrap();
            tool("setfattr").args(["-n", "user.k", "-v", "one value"]).arg(&path).ok();
        }
    }
    patient.is_clean("the kernel");
    let mut model = Model::read(patient.read().as_ref());
    patient.edit(|fs| {
        let root = fs.filesystem().root();
        let node = |fs: &Writer<'_>, text: &str| fs.filesystem().lookup(root, &name(text)).unwrap().unwrap();
        let number = |model: &Model, id: NodeId| model.all(|n| n.node == id)[0];
        for text in ["a", "b"] {
            let id = node(fs, text);
            let at = number(&model, id);
            for start in [5000, 300_000, 990_000, 1_100_000] {
                write(fs, id, start, &[7; 5000]);
                model.at(at).bytes.write(start, &[7; 5000]);
            }
            model.at(at).mtime = NOW;
        }
        for (text, value) in [("x0", Some(&b"other"[..])), ("x1", None), ("x2", Some(b"one value"))] {
            let id = node(fs, text);
            fs.set_xattr(id, b"user.k", value, NOW).unwrap();
            let xattrs = &mut number(&model, id);
            let xattrs = &mut model.at(*xattrs).xattrs;
            xattrs.remove(&b"user.k"[..]);
            xattrs.extend(value.map(|v| (b"user.k".to_vec(), v.to_vec())));
        }
        fs.unlink(root, &name("x3"), NOW).unwrap();
        let gone = number(&model, node_of(&model, "x3"));
        model.nodes.remove(&gone);
        model.at(0).entries.remove(&b"x3"[..]);
        model.at(0).mtime = NOW;
    });
    patient.is_clean("shared blocks");
    model.check(patient.read().as_ref());
}

fn node_of(model: &Model, text: &str) -> NodeId {
    model.get(model.get(0).entries[text.as_bytes()]).node
}
