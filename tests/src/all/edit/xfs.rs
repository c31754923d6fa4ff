//! Every form of XFS: files of every form replaced by content of every size.

use racker_tests::manifest::Manifest;
use racker_tests::rng::Rng;

use super::{CONTENT, Patient, only_content_changed, only_separated};

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
    let patient = Patient::new("xfs/today");
    let before = contents(&patient);
    // Parent pointers would have to move with the name: refused, and nothing is written.
    let image = std::fs::read(&patient.image).unwrap();
    let ran = patient.edit("links/a", &["--replace", "linked", "x"]);
    assert!(ran.status == 1 && ran.err.contains("parent pointers"), "{ran}");
    assert!(std::fs::read(&patient.image).unwrap() == image);
    patient.put("links/a", b"all four", &["--keep-links"]);
    let after = patient.trees_after(0).remove(&0).unwrap();
    let links = ["links/a", "links/hard0", "links/hard1", "links/hard2"];
    let rest = |m: &Manifest| links.iter().fold(m.clone(), |m, link| m.drop_fields_of(link, &CONTENT));
    rest(&before).assert_same(&rest(&after), "before / after");
    assert_eq!(after.field("links/hard2", "size"), 8);
}
