//! Every form of XFS: files of every form replaced by content of every size.

use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::{Patient, only_content_changed, only_separated};

/// Bytes that do not compress, the same for one length every time.
fn bytes(len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    Rng::new(len as u64).fill(&mut data);
    data
}

/// Replaces the content of many kinds of files, one after the other, and looks at the whole after each.
fn edits(name: &str) {
    let patient = Patient::new(name);
    let before = contents(&patient);
    links(&patient, before);
}

/// Files with one name. Returns the tree after all edits.
fn contents(patient: &Patient) -> Manifest {
    let mut before = patient.trees().remove(&0).unwrap();
    for (path, size) in [
        ("files/empty", 3),
        ("files/4097", 200_000),
        ("files/59", 60), // immutable: that is about programs on the running system
        ("extents/fragmented", 10),
        ("reflink/fragmented", 3_000_000),
        ("reflink/copy1", 150_000),
        ("reflink/copy2", 0),
        ("extents/sparse", 5000),
        ("extents/preallocated", 4096),
        ("extents/preallocated-past-end", 70_000),
        ("files/1M", 0),
        ("xattr/large", 70_000),
        ("xattr/capable", 1),
        ("times/before-1970", 2_500_000),
    ] {
        if !before.paths().any(|p| p == path) {
            continue; // reflinks are not everywhere
        }
        let content = bytes(size);
        patient.put(path, &content, &[]);
        let after = patient.trees_after(0).remove(&0).unwrap();
        only_content_changed(&before, &after, path, &content);
        before = after;
    }
    before
}

/// Files with several names: the one that is edited gets a node of its own.
fn links(patient: &Patient, mut before: Manifest) {
    for (path, size) in
        [("links/a", 5000), ("dirs/d3/entry-00001-x", 10), ("dirs/d700/entry-00345-", 100_000)]
    {
        let content = bytes(size);
        patient.put(path, &content, &[]);
        let after = patient.trees_after(0).remove(&0).unwrap();
        only_separated(&before, &after, path, &content);
        before = after;
    }
}

#[test]
fn default() {
    edits("xfs/default");
}

#[test]
fn rmapbt() {
    edits("xfs/rmapbt");
}

#[test]
fn nrext64() {
    edits("xfs/nrext64");
}

#[test]
fn small_blocks() {
    edits("xfs/small-blocks");
}

#[test]
fn large_sectors() {
    edits("xfs/large-sectors");
}

#[test]
fn large_directory_blocks() {
    edits("xfs/large-dir-blocks");
}

#[test]
fn features_of_old() {
    edits("xfs/old");
}

#[test]
fn stripes() {
    edits("xfs/stripes");
}

#[test]
fn log_to_replay() {
    edits("xfs/dirty");
}

#[test]
fn meta_uuid() {
    edits("xfs/meta-uuid");
}

#[test]
fn features_of_today() {
    edits("xfs/today");
}

/// Hard links to files with attributes in every form that a fork has: each is written anew for the link that is
/// separated, and on filesystems with parent pointers for the others.
fn attributes(name: &str) {
    let patient = Patient::new(name);
    let forms =
        [("none", 0, 0), ("inode", 1, 10), ("leaf", 12, 40), ("value", 2, 60_000), ("tree", 150, 800)];
    let root = Mounted::writable(&patient.image, WHOLE);
    std::fs::create_dir(root.join("forms")).unwrap();
    for (form, count, size) in forms {
        let file = root.join(&format!("forms/{form}"));
        std::fs::write(&file, form).unwrap();
        for i in 0..count {
            let value = "v".repeat(size + i);
            // The length of an argument is limited, that of a list of attributes is not.
            let list = format!("# file: {}\nuser.{i}={value:?}\n", file.display());
            tool("setfattr").arg("--restore=-").input(list).ok();
        }
        for i in 0..3 {
            std::fs::hard_link(&file, root.join(&format!("forms/{form}-{i}"))).unwrap();
        }
    }
    drop(root);
    let mut before = patient.trees().remove(&0).unwrap();
    let count = |form: &str| before.field(&format!("forms/{form}"), "xattrs").as_object().unwrap().len();
    assert_eq!((count("value"), count("tree")), (2, 150));
    for (form, ..) in forms {
        let (path, content) = (format!("forms/{form}-1"), bytes(10_000));
        patient.put(&path, &content, &[]);
        let after = patient.trees_after(0).remove(&0).unwrap();
        only_separated(&before, &after, &path, &content);
        before = after;
    }
    // The kernel finds every parent pointer that it has to take away.
    let root = Mounted::writable(&patient.image, WHOLE);
    tool("rm").arg("-r").arg(root.join("forms")).ok();
    drop(root);
    patient.trees_after(0);
}

#[test]
fn attributes_written_anew() {
    attributes("xfs/rmapbt");
}

#[test]
fn attributes_in_small_blocks() {
    attributes("xfs/small-blocks");
}

#[test]
fn attributes_with_parent_pointers() {
    attributes("xfs/today");
}
