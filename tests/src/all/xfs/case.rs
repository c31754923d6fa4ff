//! Names without regard to case (`mkfs.xfs -n version=ci`): found in any, kept in the one they were given.

use racker_fs::edit::Writer;
use racker_fs::filesystem::{Filesystem, Name, New, NewKind, NodeId, Time};

use super::check::findings;
use super::{Image, is_clean};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };
/// Entries of directories: inside the inode, one block, blocks and a leaf, and a tree of leaves.
const SIZES: [usize; 4] = [3, 40, 300, 900];

fn called(text: impl AsRef<[u8]>) -> Name {
    Name::new(text.as_ref()).unwrap()
}

fn make(fs: &mut Writer<'_>, dir: NodeId, name: impl AsRef<[u8]>, kind: NewKind<'_>) -> NodeId {
    fs.create(dir, &called(name), &New { kind, mode: 0o755, uid: 0, gid: 0 }, NOW).unwrap()
}

fn names(fs: &dyn Filesystem, dir: NodeId) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    fs.read_dir(dir, &mut |entry| {
        all.push(entry.name.as_bytes().to_vec());
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    all
}

fn find(fs: &dyn Filesystem, dir: NodeId, name: impl AsRef<[u8]>) -> Option<NodeId> {
    fs.lookup(dir, &called(name)).unwrap()
}

/// In every form of a directory an entry is made, found, refused a second time, renamed, replaced, exchanged and
/// removed by names in other cases.
#[test]
fn names_in_any_case_are_one() {
    let image = Image::new("400M", "-n version=ci");
    for (round, size) in SIZES.into_iter().enumerate() {
        let top = format!("Dir{round}");
        image.edit(|fs| {
            let root = fs.root();
            let dir = make(fs, root, &top, NewKind::Dir);
            for i in 0..size {
                make(fs, dir, format!("Entry-{i:05}-xxXX"), NewKind::File);
            }
            let again = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
            assert!(fs.create(dir, &called("ENTRY-00001-xxxx"), &again, NOW).is_err());
        });
        is_clean(&image.path);
        image.edit(|fs| {
            let root = fs.root();
            let dir = find(&**fs.filesystem(), root, top.to_uppercase()).unwrap();
            let node =
                |fs: &Writer<'_>, i: usize| find(&**fs.filesystem(), dir, format!("eNTRY-{i:05}-XXxx"));
            let [a, c] = [0, 2].map(|i| node(fs, i).unwrap());
            // Another case of its own name.
            fs.rename((dir, &called("entry-00000-xxxx")), (dir, &called("ENTRY-00000-XXXX")), NOW).unwrap();
            assert_eq!(node(fs, 0), Some(a));
            // Over another entry, which keeps its name; and two entries of one node, which stay.
            fs.link(c, dir, &called("Link"), NOW).unwrap();
            fs.rename((dir, &called("LINK")), (dir, &called("entry-00002-XXXX")), NOW).unwrap();
            assert!(find(&**fs.filesystem(), dir, "link").is_some());
            fs.rename((dir, &called("entry-00000-xxxx")), (dir, &called("entry-00001-xxxx")), NOW).unwrap();
            assert_eq!((node(fs, 0), node(fs, 1)), (None, Some(a)));
            fs.exchange((dir, &called("ENTRY-00001-XXXX")), (dir, &called("ENTRY-00002-XXXX")), NOW).unwrap();
            assert_eq!((node(fs, 1), node(fs, 2)), (Some(c), Some(a)));
            let own = fs.separate(dir, &called("LINK"), NOW).unwrap();
            assert!(own != c && find(&**fs.filesystem(), dir, "lInk") == Some(own));
            fs.unlink(dir, &called("lINK"), NOW).unwrap();
            fs.rename((root, &called(top.to_lowercase())), (root, &called(top.to_uppercase())), NOW).unwrap();
        });
        is_clean(&image.path);
        image.read(|fs| {
            let dir = find(fs, fs.root(), &top).unwrap();
            let mut left = names(fs, dir);
            left.sort();
            let expected: Vec<_> = (1..size).map(|i| format!("Entry-{i:05}-xxXX").into_bytes()).collect();
            assert_eq!(left, expected);
            assert!(names(fs, fs.root()).contains(&top.to_uppercase().into_bytes()));
        });
        image.edit(|fs| {
            let dir = find(&**fs.filesystem(), fs.root(), &top).unwrap();
            for i in 3..size {
                fs.unlink(dir, &called(format!("entry-{i:05}-XXxx")), NOW).unwrap();
            }
        });
        is_clean(&image.path);
        assert_eq!(findings(&image.path), []);
    }
}

/// Letters are ASCII's and Latin-1's, byte by byte. (`xfs_repair` before 6.4 does not know of the latter.)
#[test]
fn letters_of_latin_1_are_letters() {
    let image = Image::new("400M", "-n version=ci");
    image.edit(|fs| {
        let dir = make(fs, fs.root(), "many", NewKind::Dir);
        for i in 0..400 {
            make(fs, dir, format!("É-{i}"), NewKind::File);
            make(fs, dir, [b"\xd0-".as_slice(), i.to_string().as_bytes()].concat(), NewKind::File);
        }
    });
    assert_eq!(findings(&image.path), []);
    image.read(|fs| {
        let dir = find(fs, fs.root(), "MANY").unwrap();
        for i in 0..400 {
            let number = i.to_string();
            assert!(find(fs, dir, [b"\xf0-".as_slice(), number.as_bytes()].concat()).is_some());
            // 0xc3 0x89 has one letter, which is 0xe3 as a small one.
            assert!(find(fs, dir, [b"\xe3\x89-".as_slice(), number.as_bytes()].concat()).is_some());
            assert!(find(fs, dir, format!("é-{i}")).is_none());
        }
    });
}
