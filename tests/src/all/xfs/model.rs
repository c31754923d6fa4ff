//! A filesystem in memory: what the one on disk has to be after the same operations.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use racker_fs::filesystem::{Change, ExtentKind, Filesystem, Flags, Name, NewKind, NodeId, NodeKind, Time};
use racker_tests::rng::Rng;

/// Bytes of the pieces that content is kept in.
const CHUNK: u64 = 4096;
/// Content up to this size is compared as a whole.
const WHOLE_MAX: u64 = 2 << 20;

/// A node of the model, under the number that the filesystem gave it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime: Time,
    pub(super) size: u64,
    /// Pieces that are not all holes.
    chunks: BTreeMap<u64, Vec<u8>>,
    target: Vec<u8>,
    rdev: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) entries: BTreeMap<Vec<u8>, u64>,
    pub(super) parent: u64,
    pub(super) links: u64,
    project: u32,
    flags: Flags,
}

/// All nodes.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) root: u64,
}

impl Model {
    /// An empty filesystem.
    pub(super) fn new(fs: &dyn Filesystem) -> Self {
        let root = fs.root();
        let stat = fs.stat(root).unwrap();
        let mut node = Node::new(NewKind::Dir, stat.mode, (stat.uid, stat.gid), stat.mtime, root.0);
        node.links = 2;
        Self { nodes: BTreeMap::from([(root.0, node)]), root: root.0 }
    }

    /// All that is there.
    pub(super) fn load(fs: &dyn Filesystem) -> Self {
        let mut model = Self { nodes: BTreeMap::new(), root: fs.root().0 };
        let mut todo = vec![(model.root, model.root)];
        while let Some((id, parent)) = todo.pop() {
            if model.nodes.contains_key(&id) {
                continue;
            }
            let node = Node::load(fs, NodeId(id), parent);
            todo.extend(node.entries.values().map(|child| (*child, id)));
            model.nodes.insert(id, node);
        }
        model
    }

    pub(super) fn get(&self, node: u64) -> &Node {
        &self.nodes[&node]
    }

    pub(super) fn get_mut(&mut self, node: u64) -> &mut Node {
        self.nodes.get_mut(&node).unwrap()
    }

    pub(super) fn add(&mut self, dir: u64, name: &Name, id: u64, node: Node, now: Time) {
        let is_dir = node.kind == NodeKind::Dir;
        let mut node = node;
        if is_dir || node.kind == NodeKind::File {
            // Directories hand these down.
            node.flags |= self.get(dir).flags & (Flags::SYNC | Flags::NOATIME | Flags::NODUMP);
        }
        if self.get(dir).flags.contains(Flags::PROJINHERIT) {
            node.project = self.get(dir).project;
            node.flags.set(Flags::PROJINHERIT, is_dir);
        }
        assert!(self.nodes.insert(id, node).is_none(), "inode {id} is in use");
        let dir = self.get_mut(dir);
        dir.entries.insert(name.as_bytes().to_vec(), id);
        dir.mtime = now;
        dir.links += u64::from(is_dir);
    }

    pub(super) fn separate(&mut self, dir: u64, name: &Name, id: u64, twin: Node, now: Time) {
        let old = self.get_mut(dir).entries.insert(name.as_bytes().to_vec(), id).unwrap();
        self.get_mut(dir).mtime = now;
        self.get_mut(old).links -= 1;
        assert!(self.nodes.insert(id, twin).is_none(), "inode {id} is in use");
    }

    pub(super) fn link(&mut self, node: u64, dir: u64, name: &Name, now: Time) {
        self.get_mut(node).links += 1;
        let dir = self.get_mut(dir);
        dir.entries.insert(name.as_bytes().to_vec(), node);
        dir.mtime = now;
    }

    pub(super) fn unlink(&mut self, dir: u64, name: &Name, now: Time) {
        let parent = self.get_mut(dir);
        let node = parent.entries.remove(name.as_bytes()).unwrap();
        parent.mtime = now;
        self.release(dir, node);
    }

    fn release(&mut self, dir: u64, id: u64) {
        let node = self.get_mut(id);
        node.links -= 1;
        if node.kind == NodeKind::Dir {
            self.get_mut(dir).links -= 1;
            self.nodes.remove(&id);
        } else if node.links == 0 {
            self.nodes.remove(&id);
        }
    }

    pub(super) fn rename(&mut self, from: (u64, &Name), to: (u64, &Name), now: Time) {
        if let Some(old) = self.get(to.0).entries.get(to.1.as_bytes()).copied() {
            self.release(to.0, old);
        }
        let node = self.get_mut(from.0).entries.remove(from.1.as_bytes()).unwrap();
        self.get_mut(to.0).entries.insert(to.1.as_bytes().to_vec(), node);
        (self.get_mut(from.0).mtime, self.get_mut(to.0).mtime) = (now, now);
        self.moved(node, from.0, to.0);
    }

    pub(super) fn exchange(&mut self, one: (u64, &Name), other: (u64, &Name), now: Time) {
        let (a, b) =
            (self.get(one.0).entries[one.1.as_bytes()], self.get(other.0).entries[other.1.as_bytes()]);
        self.get_mut(one.0).entries.insert(one.1.as_bytes().to_vec(), b);
        self.get_mut(other.0).entries.insert(other.1.as_bytes().to_vec(), a);
        (self.get_mut(one.0).mtime, self.get_mut(other.0).mtime) = (now, now);
        self.moved(a, one.0, other.0);
        self.moved(b, other.0, one.0);
    }

    fn moved(&mut self, node: u64, from: u64, to: u64) {
        if self.get(node).kind == NodeKind::Dir {
            self.get_mut(from).links -= 1;
            self.get_mut(to).links += 1;
            self.get_mut(node).parent = to;
        }
    }

    /// Whether `node` is `dir` or above it.
    pub(super) fn is_above(&self, node: u64, mut dir: u64) -> bool {
        while dir != node && dir != self.root {
            dir = self.get(dir).parent;
        }
        dir == node
    }

    /// Fails unless the filesystem is this.
    pub(super) fn assert_is(&self, fs: &dyn Filesystem, rng: &mut Rng) {
        let mut seen = 0;
        let mut todo = vec![self.root];
        while let Some(id) = todo.pop() {
            seen += 1;
            let node = self.get(id);
            let mut found = BTreeMap::new();
            fs.read_dir(NodeId(id), &mut |entry| {
                let kind = entry.kind.unwrap();
                assert!(found.insert(entry.name.as_bytes().to_vec(), (entry.node.0, kind)).is_none());
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            let expected: BTreeMap<_, _> =
                node.entries.iter().map(|(name, id)| (name.clone(), (*id, self.get(*id).kind))).collect();
            assert!(found == expected, "directory {id}: {} entries, not {}", found.len(), expected.len());
            for (name, child) in &node.entries {
                let looked = fs.lookup(NodeId(id), &Name::new(name).unwrap()).unwrap();
                assert_eq!(looked, Some(NodeId(*child)), "{:?}", String::from_utf8_lossy(name));
                if self.get(*child).kind == NodeKind::Dir {
                    todo.push(*child);
                }
            }
        }
        assert_eq!(seen, self.nodes.values().filter(|n| n.kind == NodeKind::Dir).count());
        for (id, node) in &self.nodes {
            node.assert_is(fs, NodeId(*id), rng);
        }
    }
}

impl Node {
    pub(super) fn new(kind: NewKind<'_>, mode: u32, owner: (u32, u32), now: Time, parent: u64) -> Self {
        let (mut target, mut rdev, mut mode) = (Vec::new(), (0, 0), mode);
        match kind {
            NewKind::Link(to) => (target, mode) = (to.to_vec(), 0o777),
            NewKind::Char(major, minor) | NewKind::Block(major, minor) => rdev = (major, minor),
            _ => {}
        }
        Self {
            kind: kind.kind(),
            mode,
            owner,
            mtime: now,
            size: target.len() as u64,
            chunks: BTreeMap::new(),
            target,
            rdev,
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            parent,
            links: if kind.kind() == NodeKind::Dir { 2 } else { 1 },
            project: 0,
            flags: Flags::empty(),
        }
    }

    fn load(fs: &dyn Filesystem, id: NodeId, parent: u64) -> Self {
        let stat = fs.stat(id).unwrap();
        let mut node = Self::new(NewKind::File, stat.mode, (stat.uid, stat.gid), stat.mtime, parent);
        (node.kind, node.links, node.rdev) = (stat.kind, stat.links, stat.rdev);
        (node.project, node.flags) = (stat.project, stat.flags);
        fs.xattrs(id, &mut |(name, value)| {
            node.xattrs.insert(name.to_vec(), value.to_vec());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        match stat.kind {
            NodeKind::Dir => fs
                .read_dir(id, &mut |entry| {
                    node.entries.insert(entry.name.as_bytes().to_vec(), entry.node.0);
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap(),
            NodeKind::Link => node.target = fs.read_link(id).unwrap(),
            NodeKind::File => {
                let mut extents = Vec::new();
                fs.extents(id, &mut |extent| {
                    extents.push(extent);
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
                for extent in extents.iter().filter(|e| matches!(e.kind, ExtentKind::Data(_))) {
                    let mut bytes = vec![0; extent.len as usize];
                    fs.read(id, extent.at, &mut bytes).unwrap();
                    node.write(extent.at, &bytes);
                }
                node.size = stat.size;
            }
            _ => {}
        }
        node
    }

    /// What `separate` makes: an empty file like this one.
    pub(super) fn twin(&self, now: Time) -> Self {
        Self { links: 1, size: 0, chunks: BTreeMap::new(), mtime: now, ..self.clone() }
    }

    pub(super) fn change(&mut self, change: &Change) {
        self.mode = change.mode.unwrap_or(self.mode);
        self.owner = (change.uid.unwrap_or(self.owner.0), change.gid.unwrap_or(self.owner.1));
        self.mtime = change.mtime.unwrap_or(self.mtime);
        self.project = change.project.unwrap_or(self.project);
        self.flags = change.flags.unwrap_or(self.flags);
    }

    pub(super) fn write(&mut self, at: u64, mut data: &[u8]) {
        self.size = self.size.max(at + data.len() as u64);
        let mut at = at;
        while !data.is_empty() {
            let (chunk, within) = (at / CHUNK, (at % CHUNK) as usize);
            let len = data.len().min(CHUNK as usize - within);
            let bytes = self.chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK as usize]);
            bytes[within..within + len].copy_from_slice(&data[..len]);
            data = &data[len..];
            at += len as u64;
        }
    }

    pub(super) fn zero(&mut self, from: u64, to: u64) {
        let touched: Vec<u64> =
            self.chunks.range(from / CHUNK..to.div_ceil(CHUNK)).map(|(n, _)| *n).collect();
        for chunk in touched {
            let first = chunk * CHUNK;
            let bytes = self.chunks.get_mut(&chunk).unwrap();
            let (a, b) = (from.max(first) - first, to.min(first + CHUNK) - first);
            bytes[a as usize..b as usize].fill(0);
            if bytes.iter().all(|b| *b == 0) {
                self.chunks.remove(&chunk);
            }
        }
    }

    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.zero(size, self.size);
        }
        self.size = size;
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        for (chunk, bytes) in self.chunks.range(at / CHUNK..(at + len as u64).div_ceil(CHUNK)) {
            let first = chunk * CHUNK;
            let (from, to) = (first.max(at), (first + CHUNK).min(at + len as u64));
            out[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&bytes[(from - first) as usize..(to - first) as usize]);
        }
        out
    }

    fn assert_is(&self, fs: &dyn Filesystem, id: NodeId, rng: &mut Rng) {
        let stat = fs.stat(id).unwrap();
        let own = (self.kind, self.mode, self.owner, self.links, self.rdev, self.project, self.flags);
        let found =
            (stat.kind, stat.mode, (stat.uid, stat.gid), stat.links, stat.rdev, stat.project, stat.flags);
        assert_eq!(found, own, "inode {}", id.0);
        assert_eq!(stat.mtime, self.mtime, "inode {}", id.0);
        let mut xattrs = BTreeMap::new();
        fs.xattrs(id, &mut |(name, value)| {
            xattrs.insert(name.to_vec(), value.to_vec());
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert!(xattrs == self.xattrs, "attributes of inode {}", id.0);
        match self.kind {
            NodeKind::Link => assert_eq!(fs.read_link(id).unwrap(), self.target),
            NodeKind::File => self.assert_content(fs, id, stat.size, rng),
            _ => {}
        }
    }

    fn assert_content(&self, fs: &dyn Filesystem, id: NodeId, size: u64, rng: &mut Rng) {
        assert_eq!(size, self.size, "inode {}", id.0);
        let same = |at: u64, len: u64| {
            let len = len.min(size - at) as usize;
            let mut buf = vec![0xa5; len];
            assert_eq!(fs.read(id, at, &mut buf).unwrap(), len);
            assert!(buf == self.read(at, len), "inode {}: bytes from {at} on", id.0);
        };
        if size <= WHOLE_MAX {
            return same(0, size);
        }
        for chunk in self.chunks.keys().filter(|chunk| **chunk * CHUNK < size) {
            same(chunk * CHUNK, CHUNK);
        }
        for _ in 0..20 {
            same(rng.below(size), 3 * CHUNK);
        }
        let mut end = 0;
        fs.extents(id, &mut |extent| {
            assert_eq!(extent.at, end);
            end = extent.at + extent.len;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(end, size);
    }
}
