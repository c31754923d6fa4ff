//! What a filesystem is to hold, in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use racker_fs::filesystem::{Filesystem, NodeId, NodeKind};

/// A file or directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its number in the filesystem, for as long as that is open.
    pub(super) id: NodeId,
    pub(super) body: Body,
    pub(super) mtime: i64,
    pub(super) read_only: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(Vec<u8>),
    /// Name and number of each entry, by what is the same in all names that are one.
    Dir(BTreeMap<String, (String, usize)>),
}

/// A tree; the root is number 0.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<usize, Node>,
    next: usize,
}

pub(super) fn fold(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).collect()
}

impl Model {
    pub(super) fn new(root: NodeId) -> Self {
        let root = Node { id: root, body: Body::Dir(BTreeMap::new()), mtime: 0, read_only: false };
        Self { nodes: [(0, root)].into(), next: 1 }
    }

    pub(super) fn dirs(&self) -> Vec<usize> {
        let is_dir = |(_, node): &(&usize, &Node)| matches!(node.body, Body::Dir(_));
        self.nodes.iter().filter(is_dir).map(|(number, _)| *number).collect()
    }

    pub(super) fn files(&self) -> Vec<usize> {
        let is_file = |(_, node): &(&usize, &Node)| matches!(node.body, Body::File(_));
        self.nodes.iter().filter(is_file).map(|(number, _)| *number).collect()
    }

    pub(super) fn id(&self, number: usize) -> NodeId {
        self.nodes[&number].id
    }

    pub(super) fn entries(&self, dir: usize) -> &BTreeMap<String, (String, usize)> {
        match &self.nodes[&dir].body {
            Body::Dir(entries) => entries,
            Body::File(_) => panic!("{dir} is a file"),
        }
    }

    fn entries_mut(&mut self, dir: usize, now: i64) -> &mut BTreeMap<String, (String, usize)> {
        let node = self.nodes.get_mut(&dir).unwrap();
        node.mtime = now;
        match &mut node.body {
            Body::Dir(entries) => entries,
            Body::File(_) => panic!("{dir} is a file"),
        }
    }

    pub(super) fn data(&mut self, file: usize, now: i64) -> &mut Vec<u8> {
        let node = self.nodes.get_mut(&file).unwrap();
        node.mtime = now;
        match &mut node.body {
            Body::File(data) => data,
            Body::Dir(_) => panic!("{file} is a directory"),
        }
    }

    pub(super) fn find(&self, dir: usize, name: &str) -> Option<usize> {
        self.entries(dir).get(&fold(name)).map(|(_, number)| *number)
    }

    pub(super) fn is_dir(&self, number: usize) -> bool {
        matches!(self.nodes[&number].body, Body::Dir(_))
    }

    pub(super) fn is_empty(&self, number: usize) -> bool {
        match &self.nodes[&number].body {
            Body::Dir(entries) => entries.is_empty(),
            Body::File(_) => true,
        }
    }

    /// Whether `dir` is `node` or below it.
    pub(super) fn is_below(&self, dir: usize, node: usize) -> bool {
        dir == node
            || !matches!(self.nodes[&node].body, Body::File(_))
                && self.entries(node).values().any(|(_, child)| self.is_below(dir, *child))
    }

    pub(super) fn add(&mut self, dir: usize, name: &str, node: Node, now: i64) {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, node);
        self.entries_mut(dir, now).insert(fold(name), (name.into(), number));
    }

    pub(super) fn remove(&mut self, dir: usize, name: &str, now: i64) {
        let (_, number) = self.entries_mut(dir, now).remove(&fold(name)).unwrap();
        self.nodes.remove(&number);
    }

    pub(super) fn rename(&mut self, from: (usize, &str), to: (usize, &str), now: i64) {
        let (_, number) = self.entries_mut(from.0, now).remove(&fold(from.1)).unwrap();
        let old = self.entries_mut(to.0, now).insert(fold(to.1), (to.1.into(), number));
        if let Some((_, old)) = old {
            self.nodes.remove(&old);
        }
    }

    pub(super) fn exchange(&mut self, one: (usize, &str), other: (usize, &str), now: i64) {
        let (a, b) = (self.find(one.0, one.1).unwrap(), self.find(other.0, other.1).unwrap());
        self.entries_mut(one.0, now).get_mut(&fold(one.1)).unwrap().1 = b;
        self.entries_mut(other.0, now).get_mut(&fold(other.1)).unwrap().1 = a;
    }

    /// The filesystem holds this and nothing else. `fresh` filesystems have given other numbers to their nodes.
    pub(super) fn agrees(&mut self, fs: &dyn Filesystem, fresh: bool, when: &str) {
        if fresh {
            self.nodes.get_mut(&0).unwrap().id = fs.root();
        }
        let mut seen = 0;
        let mut waiting = vec![0usize];
        while let Some(number) = waiting.pop() {
            seen += 1;
            let node = self.nodes[&number].clone();
            let stat = fs.stat(node.id).unwrap_or_else(|e| panic!("{when}: {node:?}: {e}"));
            if number != 0 {
                assert_eq!(stat.mtime.sec, node.mtime & !1, "{when}: {}", number);
                assert_eq!(stat.mode & 0o200 == 0, node.read_only, "{when}: {number}");
            }
            let entries = match &node.body {
                Body::File(data) => {
                    assert_eq!(stat.size, data.len() as u64, "{when}: {number}");
                    let mut found = vec![0; data.len() + 1];
                    let len = fs.read(node.id, 0, &mut found).unwrap();
                    assert!(len == data.len() && found[..len] == data[..], "{when}: {number}");
                    continue;
                }
                Body::Dir(entries) => entries,
            };
            let mut found = BTreeMap::new();
            fs.read_dir(node.id, &mut |entry| {
                let name = String::from_utf8(entry.name.as_bytes().to_vec()).unwrap();
                assert!(found.insert(name, (entry.node, entry.kind)).is_none());
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            let names: Vec<&String> = found.keys().collect();
            let mut want: Vec<&String> = entries.values().map(|(name, _)| name).collect();
            want.sort();
            assert_eq!(names, want, "{when}");
            let dirs = entries.values().filter(|(_, child)| self.is_dir(*child)).count() as u64;
            assert_eq!(stat.links, 2 + dirs, "{when}");
            for (name, child) in entries.values() {
                let (id, kind) = found[name];
                let is_dir = self.is_dir(*child);
                assert_eq!(kind, Some(if is_dir { NodeKind::Dir } else { NodeKind::File }));
                let node = self.nodes.get_mut(child).unwrap();
                if fresh {
                    node.id = id;
                }
                assert_eq!(node.id, id, "{when}: {name} has another number");
                waiting.push(*child);
            }
        }
        assert_eq!(seen, self.nodes.len(), "{when}");
    }
}
