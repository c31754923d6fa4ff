//! Filesystems that the kernel or mtools filled: racker reads what they read.

use std::path::Path;

use racker_fixtures::{Case, case, group};
use racker_formats::open::{OpenOptions, open};
use racker_fs::inspect::Inspection;
use racker_tests::manifest::Manifest;

/// What racker reads of one volume of an image (0: there is only one).
fn read(path: &Path, number: u32) -> Manifest {
    let opened = open(path, &OpenOptions::default()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let inspection = Inspection::of(&opened.disk).unwrap();
    let volume = inspection.volumes.iter().find(|v| number == 0 || v.name() == number.to_string()).unwrap();
    let fs = volume.filesystem().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Manifest::of_filesystem(fs.as_ref())
}

fn image(case: &Case, dir: &Path) -> std::path::PathBuf {
    case.unpack(dir);
    dir.join(&case.images()[0])
}

/// Compares every case of a group with what the kernel showed.
fn same_as_the_kernel(cases: Vec<Case>) {
    let mut compared = 0;
    for case in cases {
        let Some(tree) = case.text("tree.json") else { continue };
        let dir = tempfile::tempdir().unwrap();
        let found = read(&image(&case, dir.path()), 0);
        Manifest::parse(&tree).assert_same(&found, &format!("{}: kernel / racker", case.name));
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn xfs() {
    same_as_the_kernel(group("xfs"));
}

#[test]
fn ext4() {
    same_as_the_kernel(group("ext4"));
}

#[test]
fn ext2_and_ext3() {
    same_as_the_kernel(vec![case("ext2/default"), case("ext3/default")]);
}

#[test]
fn xfs_version_4() {
    let case = case("xfs/v4");
    let dir = tempfile::tempdir().unwrap();
    let found = read(&image(&case, dir.path()), 0);
    let expected = Manifest::parse(&case.text("tree-partial.json").unwrap());
    // mkfs.xfs does not say what times it gave.
    let times = ["atime", "mtime", "ctime", "nlink"];
    let found = found.without(&["."]).drop_fields(&times).drop_fields_of("sub", &["size"]);
    expected.assert_same(&drop_sizes(found), "mkfs.xfs / racker");
}

/// The sizes of what is no file are not part of the expectation.
fn drop_sizes(mut manifest: Manifest) -> Manifest {
    for path in ["fifo", "null"] {
        manifest = manifest.drop_fields_of(path, &["size"]);
    }
    manifest
}

#[test]
fn fat() {
    for case in group("fat") {
        let dir = tempfile::tempdir().unwrap();
        let found = read(&image(&case, dir.path()), 0);
        let expected = Manifest::parse(&case.text("tree-partial.json").unwrap());
        // FAT has neither owners nor modes, and mtools makes folders anew.
        let host = ["mode", "uid", "gid", "nlink", "atime", "ctime"];
        let plain = |mut m: Manifest| {
            m = m.drop_fields(&host);
            let dirs: Vec<String> = m.paths().filter(|p| m.field(p, "type") == "dir").cloned().collect();
            dirs.iter().fold(m, |m, d| m.drop_fields_of(d, &["size", "mtime"]))
        };
        plain(expected).assert_same(&plain(found), &format!("{}: mtools / racker", case.name));
    }
}

#[test]
fn ock() {
    for case in group("ock") {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&case, dir.path());
        for number in [2, 3] {
            let tree = case.text(&format!("tree-p{number}.json")).unwrap();
            let what = format!("{} partition {number}: kernel / racker", case.name);
            Manifest::parse(&tree).assert_same(&read(&path, number), &what);
        }
    }
}

#[test]
fn vagrant() {
    for case in group("vagrant") {
        let Some(tree) = case.text("tree-p1.json") else { continue };
        let dir = tempfile::tempdir().unwrap();
        let path = image(&case, dir.path());
        if case.name == "vagrant/libvirt-v2" {
            continue; // two disks: the command line's tests choose one
        }
        let what = format!("{}: kernel / racker", case.name);
        Manifest::parse(&tree).assert_same(&read(&path, 1), &what);
    }
}
