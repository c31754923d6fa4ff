//! Filesystems that others have made and used: unclean journals, every form of the fixtures.

use racker_fixtures::group;
use racker_tests::image::scratch;
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;

use super::model::Model;
use super::ops::Player;
use super::{PLAY, Patient, Play, value_of};

fn fixture(case: &racker_fixtures::Case) -> Patient {
    let dir = scratch();
    case.unpack(dir.path());
    let path = dir.path().join(&case.images()[0]);
    Patient { _dir: dir, path }
}

#[test]
fn fixtures_are_edited_and_stay_sound() {
    for case in ["ext2", "ext3", "ext4"].into_iter().flat_map(group) {
        let patient = fixture(&case);
        let fs = patient.read();
        let fine = fs.stat(fs.root()).unwrap().crtime.is_some();
        let mut model = Model::read(fs.as_ref());
        drop(fs);
        let (mut rng, mut clock) = (Rng::new(4), 1_700_000_000);
        let value = if case.name.ends_with("ea-inode") { value_of("ea_inode") } else { PLAY.value };
        let play = Play { fine, value, reach: 8 << 20, nodes: 100_000, ..PLAY };
        // The first edit finds the journal as it was left, the second what the first has made of it.
        for round in 0..2 {
            patient.edit(|fs| {
                let mut player =
                    Player { fs, model: &mut model, rng: &mut rng, play, clock: &mut clock, refused: 0 };
                (0..round * 100).for_each(|_| player.step());
            });
            patient.is_clean(&case.name);
        }
        model.check(patient.read().as_ref());
        if case.name != "ext4/dirty" {
            continue;
        }
        let ours = Manifest::of_filesystem(patient.read().as_ref());
        let theirs = Manifest::of_folder(Mounted::read_only(&patient.path, WHOLE).path());
        theirs.assert_same(&ours, &case.name);
    }
}

/// Nodes that were deleted while open, and a journal that was never replayed: what a crashed machine leaves.
#[test]
fn orphans_are_given_back() {
    use std::io::Write;
    for options in ["-t ext4 -b 4096", "-t ext4 -b 4096 -O orphan_file", "-t ext3 -b 1024"] {
        let patient = Patient::make("32M", options);
        let left = Patient::make("32M", options);
        {
            let mounted = Mounted::writable(&patient.path, WHOLE);
            let mut open = Vec::new();
            for i in 0..5 {
                let path = mounted.join(&format!("f{i}"));
                let mut file = std::fs::File::create(&path).unwrap();
                file.write_all(&vec![i; 300_000]).unwrap();
                std::fs::write(mounted.join(&format!("kept{i}")), vec![i; 3000]).unwrap();
                file.sync_all().unwrap();
                std::fs::remove_file(&path).unwrap();
                open.push(file);
            }
            let folder = std::fs::File::open(mounted.path()).unwrap();
            folder.sync_all().unwrap();
            // What the disk holds at this moment is what a power cut would leave.
            racker_tests::tool::tool("sync").ok();
            std::fs::copy(&patient.path, &left.path).unwrap();
        }
        assert!(left.read().facts().unwrap().features.contains(&"needs_recovery".into()), "{options}");
        let model = Model::read(left.read().as_ref());
        let free = left.read().facts().unwrap().free;
        left.edit(|fs| model.check(fs.filesystem().as_ref()));
        left.is_clean(options);
        model.check(left.read().as_ref());
        let facts = left.read().facts().unwrap();
        assert!(facts.free >= free + 5 * 300_000, "{options}: {} after {free}", facts.free);
        assert!(!facts.features.iter().any(|f| f == "needs_recovery" || f == "orphan_present"));
    }
}

/// Runs debugfs on a filesystem.
fn debugfs(patient: &Patient, request: &str) {
    racker_tests::tool::tool("debugfs").args(["-w", "-R", request]).arg(&patient.path).ok();
}

/// Why a filesystem is not opened for writing.
fn refusal(patient: &Patient) -> String {
    let transaction = racker_formats::transaction::Transaction::overlay(patient.disk(false));
    let disk = transaction.disk();
    let opened = racker_fs::edit::Writer::open(super::driver(), &disk);
    opened.err().map_or_else(|| "opened".into(), |e| e.to_string())
}

#[test]
fn unsound_filesystems_are_not_written() {
    let damage = [
        ("-t ext4", "set_super_value state 3", "errors"),
        ("-t ext2", "set_super_value state 0", "not closed"),
        ("-t ext4", "feature shared_blocks", "shared_blocks"),
    ];
    for (options, request, why) in damage {
        let patient = Patient::make("16M", options);
        debugfs(&patient, request);
        let told = refusal(&patient);
        assert!(told.contains(why), "{request}: {told}");
    }
    // debugfs keeps out of the way of multiple mount protection: its block is changed by hand.
    let patient = Patient::make("16M", "-t ext4 -b 1024 -O mmp,^metadata_csum");
    let mut bytes = std::fs::read(&patient.path).unwrap();
    let block = u32::from_le_bytes(bytes[1024 + 0x168..][..4].try_into().unwrap()) as usize;
    bytes[block * 1024 + 4..][..4].copy_from_slice(&17u32.to_le_bytes());
    std::fs::write(&patient.path, bytes).unwrap();
    let told = refusal(&patient);
    assert!(told.contains("mounted somewhere"), "{told}");
}

/// Directories that ignore case, in a block or in the inode, and then with an index: the same name in another case is
/// found, not made again, and spelled anew by a rename. e2fsck computes the hashes of the folded names too.
#[test]
fn directories_ignore_case() {
    use racker_fs::filesystem::{Name, New, NewKind, NodeId, Time};
    let now = Time { sec: 1_700_000_000, nsec: 0 };
    let name = |text: &str| Name::new(text.as_bytes()).unwrap();
    let new = |kind| New { kind, mode: 0o755, uid: 0, gid: 0 };
    for (options, flags) in [
        ("-t ext4 -b 1024 -O casefold", "0x40080000"),
        ("-t ext4 -b 1024 -O casefold,inline_data", "0x50000000"),
        ("-t ext4 -b 1024 -O casefold -E encoding=utf8-12.1,encoding_flags=strict", "0x40080000"),
    ] {
        let patient = Patient::make("32M", options);
        debugfs(&patient, "mkdir cf");
        debugfs(&patient, &format!("set_inode_field cf flags {flags}"));
        let fs = patient.read();
        let dir: NodeId = fs.lookup(fs.root(), &name("cf")).unwrap().unwrap();
        for count in [4, 700] {
            patient.edit(|fs| {
                for number in 0..count {
                    let text = format!("Stra\u{df}e \u{c9}\u{3a3} {number}");
                    if fs.filesystem().lookup(dir, &name(&text)).unwrap().is_none() {
                        fs.create(dir, &name(&text), &new(NewKind::File), now).unwrap();
                    }
                    let other = format!("STRASSE e\u{301}\u{3c2} {number}");
                    let e = fs.create(dir, &name(&other), &new(NewKind::File), now).unwrap_err();
                    assert_eq!(e.kind(), racker_formats::error::Kind::Exists, "{e}");
                }
                let node = fs.filesystem().lookup(dir, &name("strasse \u{e9}\u{3c3} 0")).unwrap().unwrap();
                fs.rename(
                    (dir, &name("STRASSE E\u{301}\u{3c3} 0")),
                    (dir, &name("strasse \u{e9}\u{3c3} 0")),
                    now,
                )
                .unwrap();
                fs.link(node, dir, &name("Link"), now).unwrap();
                fs.rename((dir, &name("LINK")), (dir, &name("STRASSE \u{e9}\u{3c3} 0")), now).unwrap();
                assert_eq!(fs.filesystem().lookup(dir, &name("lINK")).unwrap(), Some(node));
                fs.unlink(dir, &name("LINK"), now).unwrap();
                fs.rename(
                    (dir, &name("STRASSE \u{c9}\u{3c3} 1")),
                    (dir, &name("STRASSE \u{c9}\u{3c3} 2")),
                    now,
                )
                .unwrap();
                let strict = fs.create(dir, &Name::new(b"caf\xe9").unwrap(), &new(NewKind::File), now);
                assert_eq!(strict.is_err(), options.contains("strict"), "{strict:?}");
                if strict.is_ok() {
                    fs.unlink(dir, &Name::new(b"caf\xe9").unwrap(), now).unwrap();
                }
            });
            patient.is_clean(options);
            let mut names = Vec::new();
            let fs = patient.read();
            fs.read_dir(dir, &mut |entry| {
                names.push(entry.name);
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
            assert_eq!(names.len(), count - 1);
            assert!(names.contains(&name("strasse \u{e9}\u{3c3} 0")), "{names:?}");
            // The name of what was replaced stays, as with the kernel.
            assert!(names.contains(&name("Stra\u{df}e \u{c9}\u{3a3} 2")), "{names:?}");
        }
    }
}
