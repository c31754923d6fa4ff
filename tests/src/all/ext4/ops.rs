//! Random operations on a filesystem and on its model.

use std::collections::BTreeMap;

use racker_formats::block::Span;
use racker_formats::error::{Kind, Result};
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Flags, Name, New, NewKind, NodeId, NodeKind, Time};
use racker_tests::rng::Rng;

use super::model::{Bytes, Model, Node};

/// What the operations are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Play {
    /// Bytes of the largest file.
    pub(super) reach: u64,
    /// Bytes of the longest write.
    pub(super) write: u64,
    /// Nodes above which more are removed than made.
    pub(super) nodes: usize,
    /// Bytes of the largest value of an attribute.
    pub(super) value: u64,
    pub(super) devices: bool,
    /// Times have nanoseconds.
    pub(super) fine: bool,
}

/// Both, and the numbers that decide.
pub(super) struct Player<'a, 't> {
    pub(super) fs: &'a mut Writer<'t>,
    pub(super) model: &'a mut Model,
    pub(super) rng: &'a mut Rng,
    pub(super) play: Play,
    pub(super) clock: &'a mut i64,
    /// Operations that were refused.
    pub(super) refused: u32,
}

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

impl Player<'_, '_> {
    fn now(&mut self) -> Time {
        *self.clock += 1;
        let nsec = if self.play.fine { (*self.clock % 1000) as u32 * 4 } else { 0 };
        Time { sec: *self.clock, nsec }
    }

    fn pick(&mut self, from: &[usize]) -> Option<usize> {
        if from.is_empty() { None } else { Some(from[self.rng.below(from.len() as u64) as usize]) }
    }

    fn pick_dir(&mut self) -> usize {
        let dirs = self.model.all(|n| n.kind == NodeKind::Dir);
        // The first directories get most entries, so that some grow large.
        let count = dirs.len() as u64;
        let end = self.rng.below(count) + 1;
        dirs[self.rng.below(end) as usize]
    }

    fn pick_entry(&mut self) -> Option<(usize, Vec<u8>, usize)> {
        for _ in 0..10 {
            let dir = self.pick_dir();
            let entries = &self.model.get(dir).entries;
            if !entries.is_empty() {
                let at = self.rng.below(entries.len() as u64) as usize;
                let (name, node) = entries.iter().nth(at).unwrap();
                return Some((dir, name.clone(), *node));
            }
        }
        None
    }

    fn pick_file(&mut self) -> Option<usize> {
        let files = self.model.all(|n| n.kind == NodeKind::File);
        self.pick(&files)
    }

    fn new_name(&mut self, dir: usize) -> Vec<u8> {
        loop {
            let len = match self.rng.below(10) {
                0 => 1 + self.rng.below(3),
                1 => 200 + self.rng.below(56),
                _ => 3 + self.rng.below(30),
            };
            let mut bytes = vec![0; len as usize];
            self.rng.fill(&mut bytes);
            let odd = self.rng.below(4) == 0;
            for b in &mut bytes {
                *b = if odd && *b > 128 { *b } else { b'a' + *b % 26 };
            }
            if !self.model.get(dir).entries.contains_key(&bytes) {
                return bytes;
            }
        }
    }

    fn data(&mut self, max: u64) -> Vec<u8> {
        let len = match self.rng.below(4) {
            0 => 1 + self.rng.below(100),
            1 => 1 + self.rng.below(5000),
            _ => 1 + self.rng.below(max),
        };
        let mut data = vec![0; len.min(max) as usize];
        self.rng.fill(&mut data);
        data
    }

    /// What was refused for want of room has changed nothing.
    fn done<T>(&mut self, result: Result<T>, what: &str) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::Unsupported) => {
                self.refused += 1;
                None
            }
            Err(e) => panic!("{what}: {e}"),
        }
    }

    fn id(&self, number: usize) -> NodeId {
        self.model.get(number).node
    }

    fn touch_dir(&mut self, dir: usize, now: Time) {
        self.model.at(dir).mtime = now;
    }

    /// One operation.
    pub(super) fn step(&mut self) {
        let full = self.model.nodes.len() > self.play.nodes;
        match self.rng.below(100) {
            0..=21 if !full => self.create(),
            0..=31 => self.unlink(),
            32..=51 => self.write(),
            52..=57 => self.truncate(),
            58..=63 => self.punch(),
            64..=67 => self.replace(),
            68..=71 => self.link(),
            72..=73 => self.separate(),
            74..=79 => self.rename(),
            80..=81 => self.exchange(),
            82..=89 => self.attributes(),
            _ => self.xattr(),
        }
    }

    pub(super) fn create(&mut self) {
        let dir = self.pick_dir();
        let name_bytes = self.new_name(dir);
        let target: Vec<u8> = match self.rng.below(2) {
            0 => vec![b'x'; 1 + self.rng.below(70) as usize],
            _ => vec![b'y'; 1 + self.rng.below(1000) as usize],
        };
        let kind = match self.rng.below(20) {
            0..=2 => NewKind::Dir,
            3..=4 => NewKind::Link(&target),
            5 if self.play.devices => NewKind::Char(self.rng.below(600) as u32, self.rng.below(70000) as u32),
            6 if self.play.devices => NewKind::Block(8, 1),
            7 if self.play.devices => NewKind::Fifo,
            8 if self.play.devices => NewKind::Socket,
            _ => NewKind::File,
        };
        self.make(dir, &name_bytes, kind);
    }

    pub(super) fn make(&mut self, dir: usize, name_bytes: &[u8], kind: NewKind<'_>) -> Option<usize> {
        let now = self.now();
        let uid = if self.rng.below(2) == 0 { 0 } else { self.rng.below(1 << 32) as u32 };
        let new = New { kind, mode: 0o644, uid, gid: 100_000 };
        let made = self.fs.create(self.id(dir), &name(name_bytes), &new, now);
        let node = self.done(made, "create")?;
        let is_dir = kind.kind() == NodeKind::Dir;
        let rdev = match kind {
            NewKind::Char(a, b) | NewKind::Block(a, b) => (a, b),
            _ => (0, 0),
        };
        let target = match kind {
            NewKind::Link(target) => target.to_vec(),
            _ => Vec::new(),
        };
        let mode = if kind.kind() == NodeKind::Link { 0o777 } else { 0o644 };
        let parent = self.model.get(dir);
        let inherits = match kind.kind() {
            NodeKind::Dir => 0x2000_00c8,
            NodeKind::File => 0xc8,
            _ => 0xc0,
        };
        let flags = parent.flags & inherits;
        let number = self.model.add(Node {
            node,
            kind: kind.kind(),
            mode,
            uid,
            gid: 100_000,
            atime: now,
            mtime: now,
            rdev,
            links: if is_dir { 2 } else { 1 },
            bytes: Bytes::default(),
            target,
            flags,
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            parent: dir,
        });
        self.model.at(dir).entries.insert(name_bytes.to_vec(), number);
        self.touch_dir(dir, now);
        if is_dir {
            self.gain_link(dir);
        }
        Some(number)
    }

    fn gain_link(&mut self, dir: usize) {
        let links = &mut self.model.at(dir).links;
        *links = if *links == 1 || *links >= 65_000 { 1 } else { *links + 1 };
    }

    fn lose_link(&mut self, dir: usize) {
        let links = &mut self.model.at(dir).links;
        *links = if *links > 2 { *links - 1 } else { *links };
    }

    /// A node has lost an entry.
    fn gone(&mut self, number: usize) {
        let node = self.model.at(number);
        if node.kind != NodeKind::Dir && node.links > 1 {
            node.links -= 1;
        } else {
            self.model.nodes.remove(&number);
        }
    }

    fn unlink(&mut self) {
        let Some((dir, entry, number)) = self.pick_entry() else { return };
        if !self.model.get(number).entries.is_empty() {
            return;
        }
        let now = self.now();
        let result = self.fs.unlink(self.id(dir), &name(&entry), now);
        if self.done(result, "unlink").is_some() {
            self.model.at(dir).entries.remove(&entry);
            self.touch_dir(dir, now);
            if self.model.get(number).kind == NodeKind::Dir {
                self.lose_link(dir);
            }
            self.gone(number);
        }
    }

    fn write(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let size = self.model.get(file).bytes.size;
        let at = match self.rng.below(6) {
            0 => self.rng.below(self.play.reach),
            1 => self.rng.below(size + 1),
            2 => self.rng.below(100_000),
            _ => size,
        };
        let data = self.data(self.play.write);
        if at + data.len() as u64 > self.play.reach {
            return;
        }
        let now = self.now();
        let result = self.fs.write(self.id(file), at, &data, now);
        if self.done(result, "write").is_some() {
            self.model.at(file).bytes.write(at, &data);
            self.model.at(file).mtime = now;
        }
    }

    fn truncate(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let size = match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(self.play.reach),
            _ => self.rng.below(self.model.get(file).bytes.size + 1),
        };
        let now = self.now();
        let result = self.fs.truncate(self.id(file), size, now);
        if self.done(result, "truncate").is_some() {
            self.model.at(file).bytes.truncate(size);
            self.model.at(file).mtime = now;
        }
    }

    fn punch(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let size = self.model.get(file).bytes.size;
        if size == 0 {
            return;
        }
        let at = self.rng.below(size);
        let len = (1 + self.rng.below(200_000)).min(size - at);
        let now = self.now();
        let result = self.fs.punch(self.id(file), Span::new(at, len).unwrap(), now);
        if self.done(result, "punch").is_some() {
            self.model.at(file).bytes.zero(at, len);
            self.model.at(file).mtime = now;
        }
    }

    fn replace(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let mut data = self.data(self.play.write);
        if self.rng.below(3) == 0 {
            let zeroes = self.rng.below(300_000) as usize;
            let at = data.len() / 2;
            data.splice(at..at, std::iter::repeat_n(0, zeroes));
        }
        let now = self.now();
        let content = Content { reader: &mut data.as_slice(), size: data.len() as u64 };
        let result = self.fs.replace(self.id(file), content, now);
        if self.done(result, "replace").is_some() {
            let node = self.model.at(file);
            node.bytes = Bytes::default();
            node.bytes.write(0, &data);
            node.mtime = now;
        }
    }

    fn link(&mut self) {
        let others = self.model.all(|n| n.kind != NodeKind::Dir);
        let Some(node) = self.pick(&others) else { return };
        let dir = self.pick_dir();
        let new = self.new_name(dir);
        let now = self.now();
        let result = self.fs.link(self.id(node), self.id(dir), &name(&new), now);
        if self.done(result, "link").is_some() {
            self.model.at(node).links += 1;
            self.model.at(dir).entries.insert(new, node);
            self.touch_dir(dir, now);
        }
    }

    fn separate(&mut self) {
        let Some((dir, entry, old)) = self.pick_entry() else { return };
        if self.model.get(old).kind != NodeKind::File || self.model.get(old).links < 2 {
            return;
        }
        let now = self.now();
        let result = self.fs.separate(self.id(dir), &name(&entry), now);
        if let Some(id) = self.done(result, "separate") {
            let mut node = self.model.get(old).clone();
            (node.node, node.links, node.bytes) = (id, 1, Bytes::default());
            (node.atime, node.mtime) = (now, now);
            self.model.at(old).links -= 1;
            let number = self.model.add(node);
            self.model.at(dir).entries.insert(entry, number);
            self.touch_dir(dir, now);
        }
    }

    fn rename(&mut self) {
        let Some((from, old_name, node)) = self.pick_entry() else { return };
        let (to, new_name, victim) = match self.rng.below(3) {
            0 => match self.pick_entry() {
                Some((to, entry, victim)) => (to, entry, Some(victim)),
                None => return,
            },
            _ => {
                let to = self.pick_dir();
                (to, self.new_name(to), None)
            }
        };
        let is_dir = self.model.get(node).kind == NodeKind::Dir;
        if (is_dir && self.model.is_above(node, to)) || victim == Some(node) {
            return;
        }
        if let Some(victim) = victim {
            let victim = self.model.get(victim);
            if (victim.kind == NodeKind::Dir) != is_dir || !victim.entries.is_empty() {
                return;
            }
        }
        let now = self.now();
        let ends = ((self.id(from), &name(&old_name)), (self.id(to), &name(&new_name)));
        let result = self.fs.rename(ends.0, ends.1, now);
        if self.done(result, "rename").is_none() {
            return;
        }
        self.model.at(from).entries.remove(&old_name);
        self.model.at(to).entries.insert(new_name, node);
        self.touch_dir(from, now);
        self.touch_dir(to, now);
        if is_dir {
            if victim.is_some() {
                self.lose_link(to);
            }
            if from != to {
                self.gain_link(to);
                self.lose_link(from);
            }
            self.model.at(node).parent = to;
        }
        if let Some(victim) = victim {
            self.gone(victim);
        }
    }

    fn exchange(&mut self) {
        let (Some(one), Some(other)) = (self.pick_entry(), self.pick_entry()) else { return };
        let is_dir = |this: &Self, n: usize| this.model.get(n).kind == NodeKind::Dir;
        let (a, b) = (is_dir(self, one.2), is_dir(self, other.2));
        let below = (a && self.model.is_above(one.2, other.0)) || (b && self.model.is_above(other.2, one.0));
        if one.2 == other.2 || below {
            return;
        }
        let now = self.now();
        let ends = ((self.id(one.0), &name(&one.1)), (self.id(other.0), &name(&other.1)));
        let result = self.fs.exchange(ends.0, ends.1, now);
        if self.done(result, "exchange").is_none() {
            return;
        }
        self.model.at(one.0).entries.insert(one.1, other.2);
        self.model.at(other.0).entries.insert(other.1, one.2);
        self.touch_dir(one.0, now);
        self.touch_dir(other.0, now);
        if one.0 != other.0 && a != b {
            let (gains, loses) = if a { (other.0, one.0) } else { (one.0, other.0) };
            self.gain_link(gains);
            self.lose_link(loses);
        }
        if a {
            self.model.at(one.2).parent = other.0;
        }
        if b {
            self.model.at(other.2).parent = one.0;
        }
    }

    fn attributes(&mut self) {
        let all = self.model.all(|_| true);
        let Some(node) = self.pick(&all) else { return };
        let kind = self.model.get(node).kind;
        let some = |rng: &mut Rng| rng.below(2) == 0;
        let time = |rng: &mut Rng| Time { sec: rng.below(1 << 31) as i64, nsec: 0 };
        let mut change = Change::default();
        if some(self.rng) && kind != NodeKind::Link {
            change.mode = Some(self.rng.below(0o10000) as u32);
        }
        change.uid = some(self.rng).then(|| self.rng.below(1 << 32) as u32);
        change.gid = some(self.rng).then(|| self.rng.below(1 << 32) as u32);
        change.atime = some(self.rng).then(|| time(self.rng));
        change.mtime = some(self.rng).then(|| time(self.rng));
        if some(self.rng) && matches!(kind, NodeKind::File | NodeKind::Dir) {
            change.flags = Some(Flags::from_bits_truncate(self.rng.below(256) as u32 & 0xc8));
        }
        let now = self.now();
        let result = self.fs.set_attributes(self.id(node), &change, now);
        if self.done(result, "attributes").is_some() {
            let node = self.model.at(node);
            node.mode = change.mode.unwrap_or(node.mode);
            node.uid = change.uid.unwrap_or(node.uid);
            node.gid = change.gid.unwrap_or(node.gid);
            node.atime = change.atime.unwrap_or(node.atime);
            node.mtime = change.mtime.unwrap_or(node.mtime);
            node.flags = change.flags.map_or(node.flags, |flags| flags.bits());
        }
    }

    fn xattr(&mut self) {
        let all = self.model.all(|n| matches!(n.kind, NodeKind::File | NodeKind::Dir));
        let Some(node) = self.pick(&all) else { return };
        let key = match self.rng.below(3) {
            0 => format!("user.a{}", self.rng.below(4)),
            1 => format!("security.{}", "s".repeat(1 + self.rng.below(40) as usize)),
            _ => format!("trusted.t{}", self.rng.below(3)),
        };
        let value = (self.rng.below(4) > 0).then(|| {
            let len = match self.rng.below(3) {
                0 => self.rng.below(self.play.value),
                _ => self.rng.below(60),
            };
            let mut value = vec![0; len as usize];
            self.rng.fill(&mut value);
            value
        });
        let now = self.now();
        let result = self.fs.set_xattr(self.id(node), key.as_bytes(), value.as_deref(), now);
        if self.done(result, "xattr").is_some() {
            let xattrs = &mut self.model.at(node).xattrs;
            match value {
                Some(value) => drop(xattrs.insert(key.into_bytes(), value)),
                None => drop(xattrs.remove(key.as_bytes())),
            }
        }
    }
}
