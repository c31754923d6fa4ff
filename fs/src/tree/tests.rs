use std::sync::Arc;

use super::mem::MemFs;
use super::*;
use crate::filesystem::NodeKind;

/// The paths of a walk; a directory that is left has a slash behind it.
fn paths(tree: &Tree, limits: &Limits) -> Result<(Vec<String>, Walked), racker_formats::error::Error> {
    let mut seen = Vec::new();
    let walked = walk(tree, limits, &mut |step| {
        seen.push(match step {
            Step::Node(e) => String::from_utf8_lossy(e.path).into_owned(),
            Step::Leave(e) => format!("{}/", String::from_utf8_lossy(e.path)),
        });
        Ok(Go::On)
    })?;
    Ok((seen, walked))
}

fn fault(fs: MemFs) -> String {
    let e = paths(&Tree::new(Arc::new(fs)), &Limits::default()).unwrap_err();
    assert!(e.fault::<TreeFault>().is_some(), "{e}");
    e.to_string()
}

fn names(path: &str) -> Vec<Name> {
    path.split('/').map(|n| Name::new(n.as_bytes()).unwrap()).collect()
}

#[test]
fn names_come_in_the_order_of_their_bytes() {
    let mut fs = MemFs::new();
    for name in ["b", "a-", "a", "\u{e4}"] {
        fs.file(0, name.as_bytes(), b"");
    }
    let dir = fs.dir(0, b"c");
    fs.file(dir, b"x", b"");
    let (seen, walked) = paths(&Tree::new(Arc::new(fs)), &Limits::default()).unwrap();
    assert_eq!(seen, ["", "a", "a-", "b", "c", "c/x", "c/", "\u{e4}", "/"]);
    assert_eq!(walked.nodes, 7);
}

#[test]
fn directories_that_contain_themselves_are_told() {
    let mut fs = MemFs::new();
    let a = fs.dir(0, b"a");
    let b = fs.dir(a, b"b");
    fs.link(b, b"loop", a);
    assert_eq!(fault(fs), "/a/b/loop: directory 1 is reached a second time: directories have one name");
}

#[test]
fn directories_with_two_names_are_told() {
    // Thirty levels of two names each would be a billion paths.
    let mut fs = MemFs::new();
    let mut above = 0;
    for _ in 0..30 {
        let dir = fs.dir(above, b"a");
        fs.link(above, b"b", dir);
        above = dir;
    }
    assert!(fault(fs).contains("reached a second time"));
}

#[test]
fn a_name_twice_is_told() {
    let mut fs = MemFs::new();
    fs.symlink(0, b"a", b"/etc");
    fs.file(0, b"b", b"");
    fs.dir(0, b"a");
    assert_eq!(fault(fs), "/: two entries have the name \"a\"");
}

#[test]
fn limits_hold() {
    let mut fs = MemFs::new();
    let mut dir = 0;
    for _ in 0..20 {
        dir = fs.dir(dir, b"deep");
    }
    let tree = Tree::new(Arc::new(fs));
    let fails = |limits: Limits| {
        let e = paths(&tree, &limits).unwrap_err();
        e.fault::<TreeFault>().unwrap().to_string()
    };
    let all = Limits::default();
    assert_eq!(fails(Limits { depth: 19, ..all }), "directories are nested deeper than 19");
    assert_eq!(fails(Limits { path: 30, ..all }), "the path is longer than 30 bytes");
    assert_eq!(fails(Limits { nodes: 10, ..all }), "there are more than 10 entries");
    assert!(fails(Limits { listings: 100, ..all }).contains("100 bytes"));
    assert!(paths(&tree, &Limits { depth: 21, path: 200, nodes: 21, listings: 1000 }).is_ok());
}

#[test]
fn mounts_hide_directories_and_nothing_else() {
    let mut root = MemFs::new();
    let boot = root.dir(0, b"boot");
    root.file(boot, b"hidden", b"");
    root.file(0, b"file", b"");
    let mut over = MemFs::new();
    over.dir(0, b"efi");
    let mut efi = MemFs::new();
    efi.file(0, b"x", b"");
    let (over, efi): (Arc<dyn Filesystem>, Arc<dyn Filesystem>) = (Arc::new(over), Arc::new(efi));
    let tree = Tree::new(Arc::new(root))
        .mount(&names("boot"), over.clone(), NodeId(0))
        .mount(&names("boot/efi"), efi.clone(), NodeId(0))
        .mount(&names("file"), efi.clone(), NodeId(0))
        .mount(&names("none"), efi, NodeId(0));
    let (seen, walked) = paths(&tree, &Limits::default()).unwrap();
    assert_eq!(seen, ["", "boot", "boot/efi", "boot/efi/x", "boot/efi/", "boot/", "file", "/"]);
    assert_eq!(walked.unused_mounts, [b"file".to_vec(), b"none".to_vec()]);
}

#[test]
fn a_visitor_may_skip_and_stop() {
    let mut fs = MemFs::new();
    let a = fs.dir(0, b"a");
    fs.file(a, b"x", b"");
    fs.file(0, b"b", b"");
    fs.file(0, b"c", b"");
    let mut seen = Vec::new();
    let walked = walk(&Tree::new(Arc::new(fs)), &Limits::default(), &mut |step| {
        let Step::Node(e) = step else { return Ok(Go::On) };
        seen.push(e.name().to_vec());
        Ok(match e.name() {
            b"a" => Go::Skip,
            b"b" => Go::Stop,
            _ => Go::On,
        })
    });
    assert_eq!(seen, [b"".to_vec(), b"a".to_vec(), b"b".to_vec()]);
    assert_eq!(walked.unwrap().nodes, 3);
}

#[test]
fn one_filesystem_in_two_places_is_one_volume() {
    let mut fs = MemFs::new();
    let a = fs.dir(0, b"a");
    fs.dir(0, b"m");
    let file = fs.file(a, b"x", b"");
    fs.link(a, b"y", file);
    let fs: Arc<dyn Filesystem> = Arc::new(fs);
    let tree = Tree::new(fs.clone()).mount(&names("m"), fs, NodeId(a));
    let mut nodes = std::collections::HashSet::new();
    walk(&tree, &Limits::default(), &mut |step| {
        if let Step::Node(e) = step
            && e.stat.kind == NodeKind::File
        {
            nodes.insert((e.volume, e.node));
        }
        Ok(Go::On)
    })
    .unwrap();
    assert_eq!(nodes.len(), 1);
}
