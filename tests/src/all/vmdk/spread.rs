//! Edits of disks that lie in several files beside their descriptor.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, FileDevice, Staged, redo};
use racker_formats::open::{OpenOptions, open};
use racker_formats::transaction::redo_path;
use racker_tests::image::scratch;
use racker_tests::qemu;
use racker_tests::tool::{racker, tool};

const SPREAD: [&str; 3] = ["twoGbMaxExtentSparse", "monolithicFlat", "twoGbMaxExtentFlat"];

/// An image that `qemu-img` made of the filesystem at `raw`.
fn image(raw: &Path, subformat: &str) -> PathBuf {
    let dir = raw.parent().unwrap().join(subformat);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("disk.vmdk");
    let option = format!("subformat={subformat}");
    let (from, to) = (raw.display().to_string(), path.display().to_string());
    qemu::img(&["convert", "-f", "raw", "-O", "vmdk", "-o", &option, &from, &to]);
    path
}

/// A filesystem that holds a file of its own size in bytes.
fn filesystem(dir: &Path, mkfs: &str) -> PathBuf {
    let (raw, words) = (dir.join("fs.raw"), mkfs.split(' ').collect::<Vec<_>>());
    tool("truncate").args(["-s", "320M"]).arg(&raw).ok();
    tool(words[0]).args(&words[1..]).arg(&raw).ok();
    raw
}

#[test]
fn edits_land_in_all_their_files() {
    let dir = scratch();
    for (mkfs, check) in [("mke2fs -q -F -t ext4", "e2fsck -fn"), ("mkfs.xfs -q -f", "xfs_repair -n")] {
        let raw = filesystem(dir.path(), mkfs);
        for subformat in SPREAD {
            let path = image(&raw, subformat);
            racker().args(["disk", "write"]).arg(&path).arg("/hello").input("from racker\n").ok();
            racker().args(["disk", "mkdir"]).arg(&path).arg("/folder").ok();
            let seen = dir.path().join("seen.raw");
            let (from, to) = (path.display().to_string(), seen.display().to_string());
            qemu::img(&["convert", "-f", "vmdk", "-O", "raw", &from, &to]);
            let words: Vec<&str> = check.split(' ').collect();
            tool(words[0]).args(&words[1..]).arg(&seen).ok();
            assert_eq!(racker().args(["disk", "cat"]).arg(&seen).arg("/hello").ok(), "from racker\n");
            let beside: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
            assert_eq!(beside.len(), 2, "{subformat}: {beside:?}");
        }
    }
}

#[test]
fn an_edit_that_was_interrupted_is_shown_and_finished() {
    let dir = scratch();
    let raw = filesystem(dir.path(), "mkfs.xfs -q -f");
    for subformat in SPREAD {
        let path = image(&raw, subformat);
        let options = OpenOptions::default();
        // Decided, and not applied.
        let opened = open(&path, &OpenOptions { write: true, ..options }).unwrap();
        let staged = Arc::new(Staged::new(opened.disk.clone()));
        let top = Disk::from_arc(staged.clone() as Arc<dyn BlockDevice>);
        top.write_at(200 << 20, &[9; 10_000]).unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(redo_path(&path)).unwrap();
        let file = Disk::new(FileDevice::new(file, true).unwrap());
        let changes = staged.changes().unwrap();
        redo::seal(&file, (&opened.disk, redo::Scope::Disk), &top, &changes, &[]).unwrap();
        drop((opened, top, staged));
        let byte = |options: &OpenOptions<'_>| {
            let mut byte = [0];
            open(&path, options).unwrap().disk.read_at((200 << 20) + 9999, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!(byte(&options), 9, "{subformat}");
        assert!(redo_path(&path).exists());
        assert_eq!(byte(&OpenOptions { write: true, ..options }), 9, "{subformat}");
        assert!(!redo_path(&path).exists());
        assert_eq!(byte(&options), 9, "{subformat}");
    }
}
