//! What operations change of what is there.

use racker_fs::filesystem::NodeKind;

use super::super::op::{Data, Make, Op, Outcome, Place, split};
use super::{Node, Plan};

impl Plan {
    fn resolve(&self, place: &[Vec<u8>]) -> usize {
        place.iter().fold(0, |dir, name| self.child(dir, name).unwrap())
    }

    fn add(&mut self, dir: usize, name: &[u8], node: usize) {
        let to = self.nodes.get_mut(&dir).unwrap();
        to.index.insert(name.to_vec(), to.entries.len());
        to.entries.push((name.to_vec(), node));
        let node = self.nodes.get_mut(&node).unwrap();
        if node.kind == NodeKind::Dir {
            (node.up, node.name) = (dir, name.to_vec());
        }
    }

    fn take(&mut self, dir: usize, name: &[u8]) -> usize {
        let from = self.nodes.get_mut(&dir).unwrap();
        let at = from.index.remove(name).unwrap();
        let (_, node) = from.entries.swap_remove(at);
        if let Some((moved, _)) = from.entries.get(at) {
            from.index.insert(moved.clone(), at);
        }
        node
    }

    fn make(&mut self, dir: usize, name: &[u8], kind: NodeKind) {
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node::new(kind, dir, name));
        if kind == NodeKind::Dir {
            self.dirs.push(number);
        }
        self.add(dir, name, number);
    }

    fn remove_entry(&mut self, dir: usize, name: &[u8]) {
        let number = self.take(dir, name);
        let node = self.nodes.get_mut(&number).unwrap();
        node.links -= 1;
        if node.links == 0 {
            let kind = self.nodes.remove(&number).unwrap().kind;
            if kind == NodeKind::Dir {
                self.dirs.retain(|dir| *dir != number);
            }
        }
    }

    /// Notes what became of an operation.
    pub(in super::super) fn done(&mut self, op: &Op, outcome: Outcome) {
        let at = |plan: &Self, place: &Place| {
            let (dir, name) = split(place);
            (plan.resolve(dir), name.to_vec())
        };
        match op {
            // Metadata takes more of it than was thought.
            Op::Ballast { .. } if outcome == Outcome::Refused => self.free -= self.free / 100,
            _ if outcome == Outcome::Refused => {}
            Op::Create { at: place, make, .. } => {
                let (dir, name) = at(self, place);
                let kind = match make {
                    Make::File => NodeKind::File,
                    Make::Dir => NodeKind::Dir,
                    Make::Link(_) => NodeKind::Link,
                    _ => NodeKind::Fifo,
                };
                self.make(dir, &name, kind);
            }
            Op::Write { file, at, data } => {
                let node = self.resolve(file);
                let node = self.nodes.get_mut(&node).unwrap();
                node.size = node.size.max(at + data.len);
            }
            Op::Truncate { file, size }
            | Op::Replace { file, data: Data { len: size, .. } }
            | Op::Ballast { file, data: Data { len: size, .. } } => {
                let node = self.resolve(file);
                self.nodes.get_mut(&node).unwrap().size = *size;
            }
            Op::Link { node, at: place } => {
                let ((dir, name), node) = (at(self, place), self.resolve(node));
                self.nodes.get_mut(&node).unwrap().links += 1;
                self.add(dir, &name, node);
            }
            Op::Remove { at: place } => {
                let (dir, name) = at(self, place);
                self.remove_entry(dir, &name);
            }
            Op::Rename { from, to } => {
                let (from, to) = (at(self, from), at(self, to));
                if self.child(to.0, &to.1).is_some() {
                    self.remove_entry(to.0, &to.1);
                }
                let node = self.take(from.0, &from.1);
                self.add(to.0, &to.1, node);
            }
            Op::Exchange { one, other } => {
                let (one, other) = (at(self, one), at(self, other));
                let (a, b) = (self.take(one.0, &one.1), self.take(other.0, &other.1));
                self.add(one.0, &one.1, b);
                self.add(other.0, &other.1, a);
            }
            Op::Many { dir, names, node } => {
                let (dir, node) = (self.resolve(dir), node.as_ref().map(|node| self.resolve(node)));
                let count = if let Outcome::Part(count) = outcome { count } else { names.len() };
                for name in &names[..count] {
                    match node {
                        Some(node) => {
                            self.nodes.get_mut(&node).unwrap().links += 1;
                            self.add(dir, name, node);
                        }
                        None => self.make(dir, name, NodeKind::File),
                    }
                }
            }
            Op::Few { dir, names } => {
                let dir = self.resolve(dir);
                names.iter().for_each(|name| self.remove_entry(dir, name));
            }
            _ => {}
        }
    }
}
