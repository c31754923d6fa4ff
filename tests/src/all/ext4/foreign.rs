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
                model.check(fs.filesystem().as_ref());
                let mut player =
                    Player { fs, model: &mut model, rng: &mut rng, play, clock: &mut clock, refused: 0 };
                (0..round * 150).for_each(|_| player.step());
            });
            patient.is_clean(&case.name);
            model.check(patient.read().as_ref());
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
