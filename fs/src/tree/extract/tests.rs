use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::Arc;

use super::super::copy_out::copy_out;
use super::super::mem::{MemFs, TIME};
use super::*;
use crate::filesystem::{Flags, Name, Time};

/// The owner of everything that the tests make: whoever runs them.
fn mine(mut fs: MemFs) -> Tree {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    for node in &mut fs.nodes {
        (node.stat.uid, node.stat.gid) = me;
    }
    Tree::new(Arc::new(fs))
}

fn out(tree: &Tree) -> (tempfile::TempDir, PathBuf, Extracted) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("out");
    let done = extract(tree, &dir, ExtractOptions::default()).unwrap();
    (home, dir, done)
}

#[test]
fn everything_is_on_the_host() {
    let mut fs = MemFs::new();
    fs.at(0).stat.mode = 0o711;
    let d = fs.dir(0, b"d");
    fs.at(d).stat.mode = 0o1750;
    let f = fs.file(d, b"f\xff", b"hello");
    fs.at(f).stat.mode = 0o4711;
    fs.at(f).stat.mtime = Time { sec: -3, nsec: 7 };
    fs.link(0, b"again", f);
    let l = fs.symlink(d, b"l", b"../../../../etc/passwd");
    fs.link(d, b"l2", l);
    for (name, kind) in [(b"fifo".as_slice(), NodeKind::Fifo), (b"sock", NodeKind::Socket)] {
        let n = fs.node(kind, 0o640);
        fs.link(0, name, n);
    }
    let (_home, dir, done) = out(&mine(fs));
    assert_eq!((done.lost.len(), done.manifest, done.notes.is_empty()), (0, None, true));
    assert_eq!(done.done, Progress { nodes: 8, bytes: 5 });
    let meta = |p: &[u8]| dir.join(std::ffi::OsStr::from_bytes(p)).symlink_metadata().unwrap();
    let f = meta(b"d/f\xff");
    assert_eq!((f.permissions().mode() & 0o7777, f.len()), (0o4711, 5));
    assert_eq!((f.mtime(), f.mtime_nsec()), (-3, 7));
    assert_eq!(meta(b"again").ino(), f.ino());
    assert_eq!(std::fs::read(dir.join("again")).unwrap(), b"hello");
    assert_eq!(meta(b"d").permissions().mode() & 0o7777, 0o1750);
    assert_eq!(meta(b"").permissions().mode() & 0o7777, 0o711);
    for p in [b"".as_slice(), b"d", b"d/l", b"fifo"] {
        assert_eq!((meta(p).mtime(), meta(p).mtime_nsec()), (TIME.sec, i64::from(TIME.nsec)));
    }
    assert_eq!(std::fs::read_link(dir.join("d/l")).unwrap(), Path::new("../../../../etc/passwd"));
    assert_eq!(meta(b"d/l2").ino(), meta(b"d/l").ino());
    assert!(meta(b"fifo").file_type().is_fifo());
    assert!(meta(b"sock").file_type().is_socket());
}

#[test]
fn holes_stay_holes() {
    let mut fs = MemFs::new();
    let f = fs.file(0, b"f", b"");
    fs.at(f).stat.size = 8 << 20;
    fs.at(f).data.insert(4 << 20, b"data".to_vec());
    let (_home, dir, _) = out(&mine(fs));
    let meta = dir.join("f").metadata().unwrap();
    assert_eq!(meta.len(), 8 << 20);
    assert!(meta.blocks() * 512 <= 256 << 10);
    let bytes = std::fs::read(dir.join("f")).unwrap();
    assert_eq!(&bytes[4 << 20..(4 << 20) + 5], b"data\0");
}

#[test]
fn what_the_host_refuses_is_in_the_manifest() {
    let mut fs = MemFs::new();
    let f = fs.file(0, b"f\xfe", b"");
    // No host has such a namespace, or such a user.
    fs.at(f).xattrs = vec![(b"nonsense.x".to_vec(), vec![1, 0xab])];
    fs.at(f).stat.project = 7;
    let tree = {
        let Tree { .. } = mine(fs.clone());
        let me = rustix::process::getegid().as_raw();
        (fs.at(f).stat.uid, fs.at(f).stat.gid) = (u32::MAX, me);
        (fs.at(0).stat.uid, fs.at(0).stat.gid) = (rustix::process::geteuid().as_raw(), me);
        fs.at(f).stat.mode = 0o6755;
        Tree::new(Arc::new(fs))
    };
    let (_home, dir, done) = out(&tree);
    let keys: Vec<_> = done.lost.keys().map(String::as_str).collect();
    assert_eq!(keys, ["mode", "owner", "project id", "xattr nonsense"]);
    assert_eq!(done.lost["owner"].count, 1);
    let mode = dir.join(std::ffi::OsStr::from_bytes(b"f\xfe")).metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o2755);
    let path = done.manifest.unwrap();
    assert_eq!(path.file_name().unwrap(), "out.racker-manifest.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["racker-manifest"], 1);
    assert_eq!(lines[1]["path_hex"], "66fe");
    assert_eq!(lines[1]["uid"], u32::MAX);
    assert_eq!(lines[1]["mode"], "6755");
    assert_eq!(lines[1]["project"], 7);
    assert_eq!(lines[1]["xattrs"]["nonsense.x"], "01ab");
    assert!(lines[1].get("mtime").is_none());
    assert_eq!(lines[2], serde_json::json!({"entries": 1, "complete": true}));
    std::fs::remove_dir_all(&dir).unwrap();
    let e = extract(&tree, &dir, ExtractOptions::default()).unwrap_err();
    assert!(matches!(e.fault(), Some(TreeFault::ManifestExists(_))), "{e}");
}

#[test]
fn files_are_locked_only_when_asked_for() {
    let mut fs = MemFs::new();
    let f = fs.file(0, b"f", b"x");
    fs.at(f).stat.flags = Flags::IMMUTABLE.union(Flags::NODUMP);
    let tree = mine(fs);
    let (_home, dir, done) = out(&tree);
    assert_eq!(done.lost.keys().collect::<Vec<_>>(), ["flags"]);
    let text = std::fs::read_to_string(done.manifest.unwrap()).unwrap();
    assert!(text.contains(r#""flags":"id""#), "{text}");
    std::fs::remove_file(dir.join("f")).unwrap();
}

#[test]
fn closed_directories_do_not_stop_hard_links() {
    let mut fs = MemFs::new();
    let a = fs.dir(0, b"a");
    fs.at(a).stat.mode = 0;
    let f = fs.file(a, b"f", b"x");
    fs.link(0, b"b", f);
    let (_home, dir, done) = out(&mine(fs));
    assert_eq!(done.lost.len(), 0);
    assert_eq!(dir.join("b").metadata().unwrap().nlink(), 2);
    assert_eq!(dir.join("a").metadata().unwrap().permissions().mode() & 0o7777, 0);
    std::fs::set_permissions(dir.join("a"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn deep_trees_need_few_handles() {
    let mut fs = MemFs::new();
    let mut dir = 0;
    let mut path = PathBuf::new();
    for _ in 0..300 {
        dir = fs.dir(dir, b"deep");
        path.push("deep");
    }
    fs.file(dir, b"bottom", b"here");
    let (_home, dir, done) = out(&mine(fs));
    assert_eq!(done.done.nodes, 302);
    assert_eq!(std::fs::read(dir.join(path).join("bottom")).unwrap(), b"here");
}

#[test]
fn a_folder_in_use_is_refused() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("mine"), b"").unwrap();
    let tree = mine(MemFs::new());
    let e = extract(&tree, home.path(), ExtractOptions::default()).unwrap_err();
    assert!(matches!(e.fault(), Some(TreeFault::NotEmpty(_))), "{e}");
    let e = extract(&tree, &home.path().join("mine"), ExtractOptions::default()).unwrap_err();
    assert_eq!(e.kind(), racker_formats::error::Kind::NotDir, "{e}");
    let e = extract(&tree, &home.path().join("no/where"), ExtractOptions::default()).unwrap_err();
    assert_eq!(e.kind(), racker_formats::error::Kind::NotFound, "{e}");
}

#[test]
fn a_failure_says_what_is_there() {
    let mut fs = MemFs::new();
    fs.file(0, b"a", b"");
    let b = fs.file(0, b"b", b"xyz");
    fs.at(b).stat.size = 10;
    fs.at(b).data.insert(3, b"overlap".to_vec());
    let bad = fs.symlink(0, b"c", b"");
    assert_eq!(fs.at(bad).target, b"");
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("out");
    let e = extract(&mine(fs), &dir, ExtractOptions::default()).unwrap_err();
    assert!(e.to_string().ends_with("/c: the symbolic link's target of 0 bytes is empty"), "{e}");
    assert!(e.hint().unwrap().contains("is incomplete: it holds 2 entries"), "{:?}", e.hint());
}

#[test]
fn single_nodes_go_where_cp_would_put_them() {
    let mut fs = MemFs::new();
    let d = fs.dir(0, b"d");
    let f = fs.file(d, b"f", b"new");
    fs.link(d, b"g", f);
    let tree = |node| {
        let Tree { layers } = mine(fs.clone());
        Tree::from_node(layers[0].fs.clone(), crate::filesystem::NodeId(node))
    };
    let home = tempfile::tempdir().unwrap();
    let copy = |node, name: &[u8]| {
        copy_out(&tree(node), &Name::new(name).unwrap(), home.path(), ExtractOptions::default())
    };
    copy(d, b"d").unwrap();
    assert_eq!(home.path().join("d/g").metadata().unwrap().nlink(), 2);
    let e = copy(d, b"d").unwrap_err();
    assert!(matches!(e.fault(), Some(TreeFault::Occupied)), "{e}");
    // A link that stands there is replaced, not followed.
    let target = home.path().join("target");
    std::fs::write(&target, b"old").unwrap();
    std::os::unix::fs::symlink(&target, home.path().join("f")).unwrap();
    copy(f, b"f").unwrap();
    assert_eq!(std::fs::read(home.path().join("f")).unwrap(), b"new");
    assert!(home.path().join("f").symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
    assert_eq!(home.path().read_dir().unwrap().count(), 3);
}
