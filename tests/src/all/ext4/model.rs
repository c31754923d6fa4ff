//! A filesystem in memory, which changes as the one under test has to.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use racker_fs::filesystem::{Filesystem, Name, NodeId, NodeKind, Time};

/// Bytes of a piece of content.
const PIECE: u64 = 4096;

/// Content of a file: its size, and the pieces that are not all zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bytes {
    pub(super) size: u64,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl Bytes {
    pub(super) fn write(&mut self, at: u64, data: &[u8]) {
        self.size = self.size.max(at + data.len() as u64);
        let mut done = 0;
        while done < data.len() {
            let now = at + done as u64;
            let within = (now % PIECE) as usize;
            let len = (PIECE as usize - within).min(data.len() - done);
            let piece = self.pieces.entry(now / PIECE).or_insert_with(|| vec![0; PIECE as usize]);
            piece[within..within + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
    }

    pub(super) fn zero(&mut self, at: u64, len: u64) {
        let end = (at + len).min(self.size);
        let touched: Vec<u64> = self.pieces.range(at / PIECE..=end / PIECE).map(|(n, _)| *n).collect();
        for number in touched {
            let start = number * PIECE;
            let (from, to) = (at.max(start), end.min(start + PIECE));
            if from < to {
                let piece = self.pieces.get_mut(&number).unwrap();
                piece[(from - start) as usize..(to - start) as usize].fill(0);
            }
        }
    }

    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size - size);
            self.pieces.retain(|n, _| n * PIECE < size);
        }
        self.size = size;
    }

    /// Compares with a file: all pieces, and what lies between them as far as it is stored.
    fn check(&self, fs: &dyn Filesystem, node: NodeId, what: &str) {
        let mut stored = Vec::new();
        fs.extents(node, &mut |extent| {
            if extent.kind != racker_fs::filesystem::ExtentKind::Hole {
                stored.push((extent.at, extent.len));
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap_or_else(|e| panic!("{what}: {e}"));
        let mut wanted: Vec<u64> = self.pieces.keys().copied().collect();
        wanted.extend(stored.iter().flat_map(|(at, len)| at / PIECE..(at + len).div_ceil(PIECE)));
        wanted.sort_unstable();
        wanted.dedup();
        let mut buf = vec![0; PIECE as usize];
        for number in wanted {
            let at = number * PIECE;
            let len = self.size.saturating_sub(at).min(PIECE) as usize;
            let got = fs.read(node, at, &mut buf).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(got, len, "{what}: at {at}");
            let zero = [0; PIECE as usize];
            let piece = self.pieces.get(&number).map_or(&zero[..], Vec::as_slice);
            if piece[..len] != buf[..len] {
                let place = (0..len).find(|i| piece[*i] != buf[*i]).unwrap();
                panic!("{what}: byte {} is {}, not {}", at + place as u64, buf[place], piece[place]);
            }
        }
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) node: NodeId,
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) rdev: (u32, u32),
    pub(super) links: u64,
    pub(super) bytes: Bytes,
    pub(super) target: Vec<u8>,
    pub(super) flags: u32,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) entries: BTreeMap<Vec<u8>, usize>,
    pub(super) parent: usize,
}

/// All nodes by a number of the model's own; 0 is the root.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<usize, Node>,
    next: usize,
}

impl Model {
    /// The model of a filesystem as it is.
    pub(super) fn read(fs: &dyn Filesystem) -> Self {
        let mut model = Self::default();
        let mut known = BTreeMap::new();
        model.visit(fs, fs.root(), 0, &mut known);
        model
    }

    pub(super) fn add(&mut self, node: Node) -> usize {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        number
    }

    pub(super) fn get(&self, number: usize) -> &Node {
        &self.nodes[&number]
    }

    pub(super) fn at(&mut self, number: usize) -> &mut Node {
        self.nodes.get_mut(&number).unwrap()
    }

    /// Numbers of all nodes that are such.
    pub(super) fn all(&self, is: impl Fn(&Node) -> bool) -> Vec<usize> {
        self.nodes.iter().filter(|(_, n)| is(n)).map(|(number, _)| *number).collect()
    }

    /// Whether `dir` lies in `node` or is it.
    pub(super) fn is_above(&self, node: usize, dir: usize) -> bool {
        let mut at = dir;
        loop {
            if at == node {
                return true;
            }
            if at == 0 {
                return false;
            }
            at = self.get(at).parent;
        }
    }

    fn visit(
        &mut self,
        fs: &dyn Filesystem,
        id: NodeId,
        parent: usize,
        known: &mut BTreeMap<NodeId, usize>,
    ) -> usize {
        if let Some(number) = known.get(&id) {
            return *number;
        }
        let stat = fs.stat(id).unwrap();
        let mut xattrs = BTreeMap::new();
        fs.xattrs(id, &mut |(name, value)| {
            xattrs.insert(name.to_vec(), value.to_vec());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        let mut bytes = Bytes::default();
        if stat.kind == NodeKind::File {
            fs.extents(id, &mut |extent| {
                if extent.kind != racker_fs::filesystem::ExtentKind::Hole {
                    let mut buf = vec![0; extent.len as usize];
                    fs.read(id, extent.at, &mut buf)?;
                    bytes.write(extent.at, &buf);
                }
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            bytes.size = stat.size;
        }
        let target = if stat.kind == NodeKind::Link { fs.read_link(id).unwrap() } else { Vec::new() };
        let number = self.add(Node {
            node: id,
            kind: stat.kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            atime: stat.atime,
            mtime: stat.mtime,
            rdev: stat.rdev,
            links: stat.links,
            bytes,
            target,
            flags: stat.flags.bits(),
            xattrs,
            entries: BTreeMap::new(),
            parent,
        });
        known.insert(id, number);
        if stat.kind == NodeKind::Dir {
            let mut list = Vec::new();
            fs.read_dir(id, &mut |entry| {
                list.push((entry.name.as_bytes().to_vec(), entry.node));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            for (name, child) in list {
                let child = self.visit(fs, child, number, known);
                self.at(number).entries.insert(name, child);
            }
        }
        number
    }

    /// Compares everything.
    pub(super) fn check(&self, fs: &dyn Filesystem) {
        for (number, node) in &self.nodes {
            let what = format!("{number} {:?} (inode {})", node.kind, node.node.0);
            let stat = fs.stat(node.node).unwrap_or_else(|e| panic!("{what}: {e}"));
            let want =
                (node.kind, node.mode, node.uid, node.gid, node.links, node.rdev, node.mtime, node.atime);
            let got =
                (stat.kind, stat.mode, stat.uid, stat.gid, stat.links, stat.rdev, stat.mtime, stat.atime);
            assert_eq!(got, want, "{what}");
            assert_eq!(stat.flags.bits(), node.flags, "{what}");
            let mut xattrs = BTreeMap::new();
            let read = fs.xattrs(node.node, &mut |(name, value)| {
                xattrs.insert(name.to_vec(), value.to_vec());
                Ok(ControlFlow::Continue(()))
            });
            read.unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(
                xattrs == node.xattrs,
                "{what}: attributes {:?}, not {:?}",
                xattrs.keys(),
                node.xattrs.keys()
            );
            match node.kind {
                NodeKind::File => {
                    assert_eq!(stat.size, node.bytes.size, "{what}");
                    node.bytes.check(fs, node.node, &what);
                }
                NodeKind::Link => {
                    assert!(fs.read_link(node.node).unwrap() == node.target, "{what}: target");
                }
                NodeKind::Dir => self.check_dir(fs, node, &what),
                _ => {}
            }
        }
    }

    fn check_dir(&self, fs: &dyn Filesystem, node: &Node, what: &str) {
        let mut got = BTreeMap::new();
        let read = fs.read_dir(node.node, &mut |entry| {
            let before = got.insert(entry.name.as_bytes().to_vec(), entry.node);
            assert_eq!(before, None, "{what}: {:?} is there twice", entry.name);
            Ok(ControlFlow::Continue(()))
        });
        read.unwrap_or_else(|e| panic!("{what}: {e}"));
        let want: BTreeMap<_, _> =
            node.entries.iter().map(|(name, n)| (name.clone(), self.get(*n).node)).collect();
        assert!(got == want, "{what}: {} entries, not {}", got.len(), want.len());
        for (name, child) in want.iter().step_by(want.len() / 50 + 1) {
            let found = fs.lookup(node.node, &Name::new(name).unwrap());
            assert_eq!(found.unwrap_or_else(|e| panic!("{what}: {e}")), Some(*child), "{what}: {name:?}");
        }
    }
}
