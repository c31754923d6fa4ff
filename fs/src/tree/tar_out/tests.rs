use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::Arc;

use super::super::mem::{MemFs, TIME};
use super::*;

/// What another reader, the `tar` crate, finds in the stream: path, type, link, pax records, content.
struct Member {
    kind: tar::EntryType,
    link: Option<Vec<u8>>,
    pax: BTreeMap<String, Vec<u8>>,
    header: tar::Header,
    content: Vec<u8>,
}

fn stream(fs: MemFs, options: TarOptions<'_>) -> (Vec<u8>, TarSummary) {
    let mut out = Vec::new();
    let summary = tar_out(&Tree::new(Arc::new(fs)), &mut out, options).unwrap();
    (out, summary)
}

fn members(bytes: &[u8]) -> BTreeMap<Vec<u8>, Member> {
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    let mut all = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let mut pax = BTreeMap::new();
        if let Some(records) = entry.pax_extensions().unwrap() {
            for record in records.map(|r| r.unwrap()) {
                pax.insert(record.key().unwrap().to_string(), record.value_bytes().to_vec());
            }
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header().clone();
        let link = entry.link_name_bytes().map(|l| l.into_owned());
        all.insert(path, Member { kind: header.entry_type(), link, pax, header, content });
    }
    all
}

#[test]
fn another_reader_finds_everything() {
    let mut fs = MemFs::new();
    let etc = fs.dir(0, b"etc");
    let file = fs.file(etc, b"shadow", b"secret");
    fs.at(file).stat.mode = 0o4640;
    fs.at(file).stat.gid = 3_000_000;
    fs.at(file).xattrs = vec![(b"user.a=b%".to_vec(), vec![0, 255, b'=']), (b"security.x".to_vec(), vec![])];
    fs.at(file).stat.flags = Flags::IMMUTABLE | Flags::NODUMP;
    fs.link(0, b"zz", file);
    let long = [b"d".repeat(200), b"e".repeat(60)];
    fs.symlink(0, &long[0], &long.concat());
    let device = fs.node(NodeKind::Char, 0o600);
    fs.link(0, b"dev", device);
    fs.at(device).stat.rdev = (5, 1);
    let socket = fs.node(NodeKind::Socket, 0o600);
    fs.link(0, b"sock", socket);
    let (bytes, summary) = stream(fs, TarOptions::default());
    assert_eq!(bytes.len() % 10240, 0);
    assert_eq!(summary.notes.lines, ["/sock: a socket, which tar cannot hold"]);
    assert_eq!(summary.done, Progress { nodes: 6, bytes: 6 });
    let all = members(&bytes);
    let shadow = &all[b"./etc/shadow".as_slice()];
    assert_eq!(shadow.content, b"secret");
    assert_eq!(shadow.header.mode().unwrap(), 0o4640);
    assert_eq!(shadow.header.gid().unwrap(), 3_000_000);
    assert_eq!(shadow.pax["gid"], b"3000000");
    assert_eq!(shadow.pax["mtime"], b"1600000000.123456789");
    assert_eq!(shadow.pax["SCHILY.xattr.user.a%3Db%25"], [0, 255, b'=']);
    assert_eq!(shadow.pax["SCHILY.xattr.security.x"], b"");
    assert_eq!(shadow.pax["SCHILY.fflags"], b"schg,nodump");
    let link = &all[b"./zz".as_slice()];
    assert_eq!((link.kind, link.link.as_deref()), (tar::EntryType::Link, Some(b"./etc/shadow".as_slice())));
    let symlink = &all[[b"./".as_slice(), &long[0]].concat().as_slice()];
    assert_eq!(symlink.link.as_deref(), Some(long.concat().as_slice()));
    let device = &all[b"./dev".as_slice()];
    assert_eq!(device.header.device_major().unwrap(), Some(5));
    assert_eq!(device.header.device_minor().unwrap(), Some(1));
    assert!(!all.contains_key(b"./sock".as_slice()));
    assert_eq!(all[b"./".as_slice()].kind, tar::EntryType::Directory);
}

#[test]
fn holes_are_gnu_sparse_1_0() {
    let mut fs = MemFs::new();
    let file = fs.file(0, b"holes", b"");
    fs.at(file).stat.size = 1 << 20;
    fs.at(file).data.insert(4096, b"a".repeat(4096));
    fs.at(file).data.insert(65536, b"b".repeat(100));
    fs.at(file).data.insert(65636, b"c".repeat(100));
    let empty = fs.file(0, b"only a hole", b"");
    fs.at(empty).stat.size = 5000;
    let all = members(&stream(fs, TarOptions::default()).0);
    let holes = &all[b"./GNUSparseFile.0/holes".as_slice()];
    assert_eq!(holes.pax["GNU.sparse.name"], b"./holes");
    assert_eq!(holes.pax["GNU.sparse.realsize"], b"1048576");
    let map = b"3\n4096\n4096\n65536\n200\n1048576\n0\n";
    assert_eq!(&holes.content[..map.len()], map);
    assert_eq!(holes.content.len(), 512 + 4096 + 200);
    assert_eq!(&holes.content[512 + 4095..512 + 4097], b"ab");
    let hole = &all[b"./GNUSparseFile.0/only a hole".as_slice()];
    assert_eq!(&hole.content[..9], b"1\n5000\n0\n");
    assert_eq!(hole.content.len(), 512);
}

#[test]
fn names_that_are_no_text_are_kept() {
    let mut fs = MemFs::new();
    fs.file(0, b"short\xff", b"");
    fs.file(0, &[b"l".repeat(120), b"\xff".to_vec()].concat(), b"");
    fs.file(0, "\u{e4}".as_bytes(), b"");
    let all = members(&stream(fs, TarOptions::default()).0);
    assert!(!all[b"./short\xff".as_slice()].pax.contains_key("hdrcharset"));
    let long = [b"./".to_vec(), b"l".repeat(120), b"\xff".to_vec()].concat();
    assert_eq!(all[&long].pax["hdrcharset"], b"BINARY");
    assert!(!all["./\u{e4}".as_bytes()].pax.contains_key("path"));
}

#[test]
fn odd_times_and_large_files_have_records() {
    let mut fs = MemFs::new();
    let old = fs.file(0, b"old", b"");
    fs.at(old).stat.mtime = Time { sec: -2, nsec: 500_000_000 };
    let whole = fs.file(0, b"whole", b"");
    fs.at(whole).stat.mtime = Time { sec: 17, nsec: 0 };
    let all = members(&stream(fs.clone(), TarOptions::default()).0);
    assert_eq!(all[b"./old".as_slice()].pax["mtime"], b"-1.5");
    assert!(all[b"./whole".as_slice()].pax.is_empty());
    let all = members(&stream(fs, TarOptions { all_times: true, ..TarOptions::default() }).0);
    assert_eq!(all[b"./whole".as_slice()].pax["atime"], b"1600000000.123456789");
    assert_eq!(TIME.nsec, 123_456_789);
}

#[test]
fn owners_get_the_image_s_own_names() {
    let mut fs = MemFs::new();
    let etc = fs.dir(0, b"etc");
    fs.file(etc, b"passwd", b"root:x:0:0::/:/bin/sh\nwww:x:33:33::/:\n");
    fs.file(etc, b"group", b"root:x:0:\nstaff:x:50:www\n");
    let file = fs.file(0, b"f", b"");
    (fs.at(file).stat.uid, fs.at(file).stat.gid) = (33, 51);
    let names = OwnerNames::of(&Tree::new(Arc::new(fs.clone()))).unwrap();
    let all = members(&stream(fs.clone(), TarOptions { names: Some(names), ..TarOptions::default() }).0);
    let header = &all[b"./f".as_slice()].header;
    assert_eq!(header.username().unwrap(), Some("www"));
    assert_eq!(header.groupname().unwrap(), Some(""));
    let all = members(&stream(fs, TarOptions::default()).0);
    assert_eq!(all[b"./f".as_slice()].header.username().unwrap(), Some(""));
}

#[test]
fn an_interruption_is_an_error() {
    let mut fs = MemFs::new();
    for i in 0..10 {
        fs.file(0, format!("{i}").as_bytes(), b"");
    }
    let stop = |p: Progress| {
        if p.nodes == 3 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    };
    let options = TarOptions { progress: Some(Box::new(stop)), ..TarOptions::default() };
    let e = tar_out(&Tree::new(Arc::new(fs)), &mut Vec::new(), options).unwrap_err();
    assert_eq!(e.to_string(), "/1: interrupted after 3 entries");
}

#[test]
fn a_stream_that_breaks_is_not_the_image_s_fault() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut fs = MemFs::new();
    fs.file(0, b"large", &vec![1; 3 << 20]);
    let e = tar_out(&Tree::new(Arc::new(fs)), &mut Full, TarOptions::default()).unwrap_err();
    assert_eq!(e.to_string(), "no storage space");
}
