//! Everything about a tree, quickly: holes of files are not read.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use racker_fs::filesystem::{ExtentKind, Filesystem, NodeId, NodeKind, Time};
use rustix::fs::{SeekFrom, major, minor};
use rustix::io::Errno;

/// Bytes of a piece of content.
const PIECE: u64 = 16 << 10;
/// The flags of nodes that are played with.
pub(super) const FLAGS: u32 = 0xc8;

/// What a node is and says.
#[derive(Clone, Debug, PartialEq)]
struct Facts {
    kind: NodeKind,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    rdev: (u32, u32),
    /// Of files.
    size: u64,
    times: Option<(Time, Time)>,
    flags: u32,
}

#[derive(Clone, Debug, PartialEq)]
struct Node {
    place: Vec<u8>,
    facts: Facts,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Numbers and checksums of the pieces that are not all zero.
    pieces: Vec<(u64, u32)>,
    target: Vec<u8>,
    entries: Vec<(Vec<u8>, usize)>,
}

/// Nodes in the order in which a walk by name comes to them.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    known: BTreeMap<u64, usize>,
    full: bool,
}

impl Tree {
    /// As racker reads it. Without `full`, only what FAT has.
    pub(super) fn ours(fs: &dyn Filesystem, full: bool) -> Self {
        let mut tree = Self { nodes: Vec::new(), known: BTreeMap::new(), full };
        tree.visit(fs, fs.root(), Vec::new());
        tree
    }

    /// As the kernel shows it.
    pub(super) fn of_folder(folder: &Path, full: bool) -> Self {
        let mut tree = Self { nodes: Vec::new(), known: BTreeMap::new(), full };
        let inode = folder.symlink_metadata().unwrap().ino();
        tree.walk(folder, inode, Vec::new());
        tree
    }

    /// Nodes, and entries of the largest directory.
    pub(super) fn extent(&self) -> (usize, usize) {
        (self.nodes.len(), self.nodes.iter().map(|node| node.entries.len()).max().unwrap_or(0))
    }

    /// Fails with the first node that differs.
    pub(super) fn assert_same(&self, other: &Self, what: &str) {
        for (a, b) in self.nodes.iter().zip(&other.nodes) {
            let place = String::from_utf8_lossy(&a.place);
            let differ = a.entries.iter().zip(&b.entries).find(|(a, b)| a != b);
            if let Some((a, b)) = differ {
                panic!("{what}: {place}: {:?} / {:?}", latin1(&a.0), latin1(&b.0));
            }
            assert_eq!(a.entries.len(), b.entries.len(), "{what}: entries of {place}");
            assert_eq!(a.facts, b.facts, "{what}: {place}");
            assert!(a.xattrs == b.xattrs, "{what}: {place}: {:?} / {:?}", a.xattrs.keys(), b.xattrs.keys());
            assert!(
                a.pieces == b.pieces,
                "{what}: {place}: {} and {} pieces, {:?}, {:?}",
                a.pieces.len(),
                b.pieces.len(),
                first(&a.pieces, &b.pieces),
                a.facts
            );
            assert!(a.target == b.target && a.place == b.place, "{what}: {place}");
        }
        assert_eq!(self.nodes.len(), other.nodes.len(), "{what}");
    }

    fn number(&mut self, id: u64, place: Vec<u8>, mut facts: Facts) -> usize {
        if !self.full {
            facts.mode = if facts.kind == NodeKind::File { facts.mode & 0o200 } else { 0 };
            // The root directory of FAT has no times, and no node has that of an access to the second.
            facts.times = facts.times.filter(|_| !place.is_empty()).map(|(_, mtime)| (mtime, mtime));
            facts = Facts { owner: (0, 0), links: 0, flags: 0, ..facts };
        }
        let number = self.nodes.len();
        self.known.insert(id, number);
        let (xattrs, pieces, target, entries) = Default::default();
        self.nodes.push(Node { place, facts, xattrs, pieces, target, entries });
        number
    }

    fn visit(&mut self, fs: &dyn Filesystem, id: NodeId, place: Vec<u8>) -> usize {
        if let Some(number) = self.known.get(&id.0) {
            return *number;
        }
        let stat = fs.stat(id).unwrap();
        let plain = matches!(stat.kind, NodeKind::File | NodeKind::Dir);
        let facts = Facts {
            kind: stat.kind,
            mode: stat.mode,
            owner: (stat.uid, stat.gid),
            links: stat.links,
            rdev: stat.rdev,
            size: if stat.kind == NodeKind::File { stat.size } else { 0 },
            times: Some((stat.atime, stat.mtime)),
            // Of other nodes the kernel does not tell.
            flags: if plain { stat.flags.bits() & FLAGS } else { 0 },
        };
        let number = self.number(id.0, place.clone(), facts);
        if self.full {
            fs.xattrs(id, &mut |(name, value)| {
                self.nodes[number].xattrs.insert(name.to_vec(), value.to_vec());
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        match stat.kind {
            NodeKind::Link => self.nodes[number].target = fs.read_link(id).unwrap(),
            NodeKind::File => self.nodes[number].pieces = content(fs, id, stat.size),
            NodeKind::Dir => {
                let mut list = Vec::new();
                fs.read_dir(id, &mut |entry| {
                    list.push((entry.name.as_bytes().to_vec(), entry.node));
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
                list.retain(|(name, _)| !(place.is_empty() && name == b"lost+found"));
                list.sort();
                for (name, node) in list {
                    let child = self.visit(fs, node, below(&place, &name));
                    self.nodes[number].entries.push((name, child));
                }
            }
            _ => {}
        }
        number
    }

    fn walk(&mut self, path: &Path, inode: u64, place: Vec<u8>) -> usize {
        if let Some(number) = self.known.get(&inode) {
            return *number;
        }
        let meta = path.symlink_metadata().unwrap();
        let kind = kind_of(meta.file_type());
        let time = |sec, nsec| Time { sec, nsec: u32::try_from(nsec).unwrap() };
        let device = matches!(kind, NodeKind::Char | NodeKind::Block);
        let plain = matches!(kind, NodeKind::File | NodeKind::Dir);
        let flags = || rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap().bits() & FLAGS;
        let facts = Facts {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            links: meta.nlink(),
            rdev: if device { (major(meta.rdev()), minor(meta.rdev())) } else { (0, 0) },
            size: if kind == NodeKind::File { meta.size() } else { 0 },
            times: Some((time(meta.atime(), meta.atime_nsec()), time(meta.mtime(), meta.mtime_nsec()))),
            flags: if plain && self.full { flags() } else { 0 },
        };
        let number = self.number(inode, place.clone(), facts);
        if self.full {
            self.nodes[number].xattrs = xattrs(path);
        }
        match kind {
            NodeKind::Link => {
                self.nodes[number].target = std::fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec();
            }
            NodeKind::File => self.nodes[number].pieces = stored(path, meta.size()),
            NodeKind::Dir => {
                let mut list: Vec<(Vec<u8>, u64)> = std::fs::read_dir(path)
                    .unwrap()
                    .map(Result::unwrap)
                    .map(|entry| (entry.file_name().as_bytes().to_vec(), entry.ino()))
                    .filter(|(name, _)| !(place.is_empty() && name == b"lost+found"))
                    .collect();
                list.sort();
                for (name, inode) in list {
                    let path = path.join(std::ffi::OsStr::from_bytes(&name));
                    let child = self.walk(&path, inode, below(&place, &name));
                    self.nodes[number].entries.push((name, child));
                }
            }
            _ => {}
        }
        number
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

fn first(a: &[(u64, u32)], b: &[(u64, u32)]) -> Option<(u64, u64)> {
    a.iter().zip(b).find(|(a, b)| a != b).map(|(a, b)| (a.0 * PIECE, b.0 * PIECE))
}

fn below(place: &[u8], name: &[u8]) -> Vec<u8> {
    if place.is_empty() { name.to_vec() } else { [place, b"/", name].concat() }
}

fn kind_of(kind: std::fs::FileType) -> NodeKind {
    match kind {
        kind if kind.is_dir() => NodeKind::Dir,
        kind if kind.is_symlink() => NodeKind::Link,
        kind if kind.is_char_device() => NodeKind::Char,
        kind if kind.is_block_device() => NodeKind::Block,
        kind if kind.is_fifo() => NodeKind::Fifo,
        kind if kind.is_socket() => NodeKind::Socket,
        _ => NodeKind::File,
    }
}

/// Pieces that lie in stretches with content, each read once by `read`.
struct Pieces<'a> {
    size: u64,
    read: &'a mut dyn FnMut(u64, &mut [u8]),
    buf: Vec<u8>,
    next: u64,
    out: Vec<(u64, u32)>,
}

impl<'a> Pieces<'a> {
    fn new(size: u64, read: &'a mut dyn FnMut(u64, &mut [u8])) -> Self {
        Self { size, read, buf: vec![0; size.min(64 * PIECE) as usize], next: 0, out: Vec::new() }
    }

    fn stretch(&mut self, from: u64, to: u64) {
        let (first, end) = ((from / PIECE).max(self.next), to.min(self.size).div_ceil(PIECE));
        let mut at = first;
        while at < end {
            let count = (end - at).min(64);
            let len = (count * PIECE).min(self.size - at * PIECE) as usize;
            (self.read)(at * PIECE, &mut self.buf[..len]);
            for (piece, number) in self.buf[..len].chunks(PIECE as usize).zip(at..) {
                if piece.iter().any(|b| *b != 0) {
                    self.out.push((number, crc32fast::hash(piece)));
                }
            }
            at += count;
        }
        self.next = self.next.max(end);
    }
}

fn content(fs: &dyn Filesystem, id: NodeId, size: u64) -> Vec<(u64, u32)> {
    let mut stretches = Vec::new();
    let mut end = 0;
    fs.extents(id, &mut |extent| {
        assert_eq!(extent.at, end);
        end = extent.at + extent.len;
        if !matches!(extent.kind, ExtentKind::Hole) {
            stretches.push((extent.at, end));
        }
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(end, size, "extents reach to the end");
    let mut read = |at: u64, buf: &mut [u8]| assert_eq!(fs.read(id, at, buf).unwrap(), buf.len());
    let mut pieces = Pieces::new(size, &mut read);
    stretches.into_iter().for_each(|(from, to)| pieces.stretch(from, to));
    pieces.out
}

fn stored(path: &Path, size: u64) -> Vec<(u64, u32)> {
    let file = File::open(path).unwrap();
    let mut read = |at: u64, buf: &mut [u8]| file.read_exact_at(buf, at).unwrap();
    let mut pieces = Pieces::new(size, &mut read);
    let mut at = if size <= PIECE { size } else { 0 };
    pieces.stretch(0, at);
    loop {
        let data = rustix::fs::seek(&file, SeekFrom::Data(at));
        if data == Err(Errno::NXIO) {
            break;
        }
        // ext4 cannot tell where the data are of a file that lies, or lay, inside its inode: all of it is read.
        let hole = data.and_then(|from| rustix::fs::seek(&file, SeekFrom::Hole(from)));
        pieces.stretch(data.unwrap_or(at), hole.unwrap_or(size));
        at = hole.unwrap_or(size);
    }
    pieces.out
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = [0; 4096];
    let mut long = Vec::new();
    let names = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(len) => &list[..len],
        Err(_) => {
            long.resize(64 << 10, 0);
            let len = rustix::fs::llistxattr(path, &mut long[..]).unwrap();
            &long[..len]
        }
    };
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        value
    };
    let names = names.split(|b| *b == 0).filter(|name| !name.is_empty());
    names.map(|name| (name.to_vec(), value(name))).collect()
}
