//! The power fails while an edit of a raw disk is sealed or applied.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, FileDevice, MemDevice, Span, Staged, redo};
use racker_formats::open::{OpenOptions, open};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;

fn content(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0; disk.size() as usize];
    disk.read_at(0, &mut all).unwrap();
    all
}

/// Random writes and zeroes, growing the disk.
fn edit(top: &Disk, rng: &mut Rng) {
    let size = top.size();
    top.resize(size + 5000).unwrap();
    for _ in 0..12 {
        let at = rng.below(size);
        let len = 1 + rng.below(20_000.min(size - at));
        if rng.below(4) == 0 {
            top.write_zeroes(Span::new(at, len).unwrap()).unwrap();
        } else {
            let data: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
            top.write_at(at, &data).unwrap();
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_raw_disk_or_the_new_one() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let old: Vec<u8> = (0..200_000 + rng.below(5000)).map(|_| rng.below(256) as u8).collect();
        let image = Arc::new(CrashDisk::new(old.clone()));
        let image_disk = Disk::from_arc(image.clone() as Arc<dyn BlockDevice>);
        let staged = Arc::new(Staged::new(image_disk.clone()));
        let top = Disk::from_arc(staged.clone() as Arc<dyn BlockDevice>);
        edit(&top, &mut rng);
        let new = content(&top);
        let journal = Arc::new(CrashDisk::new(Vec::new()));
        let journal_disk = Disk::from_arc(journal.clone() as Arc<dyn BlockDevice>);
        redo::seal(&journal_disk, (&image_disk, redo::Scope::File), &top, &staged.changes().unwrap(), &[])
            .unwrap();
        let sealed = redo::sealed(&journal_disk).unwrap().unwrap();
        redo::apply(&journal_disk, &image_disk, &sealed).unwrap();
        assert!(image.bytes() == new);

        // While it is sealed the image is untouched: whatever is left of the redo file decides between old and new.
        let (mut never, mut decided) = (0, 0);
        journal.cuts(&mut rng, 4, |cut, bytes| {
            let redo_file = Disk::new(MemDevice::from_bytes(bytes.to_vec()));
            let disk = Disk::new(MemDevice::from_bytes(old.clone()));
            match redo::sealed(&redo_file).unwrap() {
                None => never += 1,
                Some(sealed) => {
                    redo::apply(&redo_file, &disk, &sealed).unwrap();
                    assert!(content(&disk) == new, "seed {seed}, cut {cut}");
                    decided += 1;
                }
            }
        });
        assert!(never > 0 && decided > 0);

        // While it is applied the redo file is whole: any mixture becomes the new disk, and again after another cut.
        image.cuts(&mut rng, 4, |cut, bytes| {
            let disk = Disk::new(MemDevice::from_bytes(bytes.to_vec()));
            redo::apply(&journal_disk, &disk, &sealed).unwrap();
            assert!(content(&disk) == new, "seed {seed}, cut {cut}");
        });
    }
}

/// A parent whose edit was interrupted while it landed shows it through its children, too.
#[test]
fn an_interrupted_edit_of_a_parent_shows_through() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("base.raw");
    std::fs::write(&parent, vec![1; 1 << 20]).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2"];
    qemu::img_in(dir.path(), &args);
    let file = |path: &Path, new: bool| {
        let file = File::options().read(true).write(true).create_new(new).open(path).unwrap();
        Disk::new(FileDevice::new(file, true).unwrap())
    };
    let (host, journal) = (file(&parent, false), file(&dir.path().join("base.raw.racker-redo"), true));
    let staged = Arc::new(Staged::new(host.clone()));
    let top = Disk::from_arc(staged.clone() as Arc<dyn BlockDevice>);
    top.write_at(70_000, &[9; 100]).unwrap();
    redo::seal(&journal, (&host, redo::Scope::File), &top, &staged.changes().unwrap(), &[]).unwrap();
    let opened = open(&dir.path().join("top.qcow2"), &OpenOptions::default()).unwrap();
    let mut buf = [0; 2];
    opened.disk.read_at(69_999, &mut buf).unwrap();
    assert_eq!(buf, [1, 9]);
    assert!(std::fs::read(parent).unwrap().iter().all(|b| *b == 1), "a reader writes nothing");
}
