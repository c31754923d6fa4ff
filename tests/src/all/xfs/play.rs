//! Random operations, on the filesystem and on the model alike.

use racker_formats::block::Span;
use racker_formats::error::{Error, Kind, Result};
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Flags, Name, New, NewKind, NodeId, NodeKind, Time};
use racker_tests::rng::Rng;

use super::model::{Model, Node};

/// A second of the past that all times are counted from.
const START: i64 = 1_700_000_000;

/// What is played, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Nodes that a filesystem may have before more is removed than made.
    pub(super) nodes: usize,
    /// Bytes of the longest single write.
    pub(super) write: u64,
    /// Where the furthest write begins.
    pub(super) reach: u64,
}

/// A player.
#[derive(Debug)]
pub(super) struct Player {
    pub(super) rng: Rng,
    pub(super) model: Model,
    pub(super) style: Style,
    /// Operations that found no space.
    pub(super) full: usize,
    tick: i64,
}

impl Player {
    pub(super) fn new(seed: u64, model: Model, style: Style) -> Self {
        Self { rng: Rng::new(seed), model, style, full: 0, tick: 0 }
    }

    fn now(&mut self) -> Time {
        self.tick += 1;
        Time { sec: START + self.tick, nsec: (self.tick % 1000) as u32 * 1_000_000 }
    }

    fn pick(&mut self, want: impl Fn(&Node) -> bool) -> Option<u64> {
        let start = self.rng.number();
        let keys: Vec<u64> = self.model.nodes.iter().filter(|(_, n)| want(n)).map(|(id, _)| *id).collect();
        (!keys.is_empty()).then(|| keys[(start % keys.len() as u64) as usize])
    }

    fn dir(&mut self) -> u64 {
        self.pick(|n| n.kind == NodeKind::Dir).unwrap()
    }

    fn name(&mut self) -> Name {
        let len = match self.rng.below(20) {
            0 => 255,
            1..4 => 20 + self.rng.below(200),
            _ => 1 + self.rng.below(14),
        };
        self.name_of(len)
    }

    fn name_of(&mut self, len: u64) -> Name {
        let mut bytes: Vec<u8> = (0..len).map(|_| b'a' + self.rng.below(26) as u8).collect();
        if self.rng.below(10) == 0 {
            bytes[0] = 0x80 + self.rng.below(100) as u8;
        }
        Name::new(&bytes).unwrap()
    }

    /// A name that is not taken.
    fn new_name(&mut self, dir: u64) -> Name {
        loop {
            let name = self.name();
            if !self.model.get(dir).entries.contains_key(name.as_bytes()) {
                return name;
            }
        }
    }

    /// An entry of some directory.
    fn entry(&mut self) -> Option<(u64, Name, u64)> {
        let dir = self.pick(|n| !n.entries.is_empty())?;
        let entries = &self.model.get(dir).entries;
        let skip = self.rng.below(entries.len() as u64) as usize;
        let (name, node) = entries.iter().nth(skip).unwrap();
        Some((dir, Name::new(name).unwrap(), *node))
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.rng.fill(&mut data);
        data
    }

    fn length(&mut self, most: u64) -> u64 {
        let bits = 1 + self.rng.below(u64::from(most.max(2).ilog2()));
        1 + self.rng.below((1 << bits).min(most))
    }

    /// Whether an operation was done: it is not where there is no space.
    fn done<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) if e.kind() == Kind::NoSpace => {
                self.full += 1;
                None
            }
            Err(e) => panic!("{}", whole(&e)),
        }
    }

    /// One operation.
    pub(super) fn step(&mut self, fs: &mut Writer<'_>) {
        let crowded = self.model.nodes.len() > self.style.nodes;
        match self.rng.below(100) {
            0..18 if !crowded => self.create(fs),
            0..34 => self.unlink(fs),
            34..56 => self.write(fs),
            56..61 => self.truncate(fs),
            61..66 => self.punch(fs),
            66..71 => self.link(fs),
            71..78 => self.rename(fs),
            78..81 => self.exchange(fs),
            81..87 => self.attributes(fs),
            87..94 => self.xattr(fs),
            94..96 => self.replace(fs),
            96..97 => self.separate(fs),
            97..99 if !crowded => self.many(fs),
            _ => self.few(fs),
        }
    }

    fn create(&mut self, fs: &mut Writer<'_>) {
        let dir = self.dir();
        let name = self.new_name(dir);
        self.create_in(fs, dir, &name);
    }

    fn create_in(&mut self, fs: &mut Writer<'_>, dir: u64, name: &Name) {
        let now = self.now();
        let target = {
            let len = self.length(1024);
            let mut target = self.bytes(len);
            target.iter_mut().for_each(|b| *b = (*b).max(1));
            target
        };
        let (major, minor) = (self.rng.below(1 << 9) as u32, self.rng.below(1 << 18) as u32);
        let kind = match self.rng.below(20) {
            0..4 => NewKind::Dir,
            4..6 => NewKind::Link(&target),
            6 => NewKind::Char(major, minor),
            7 => NewKind::Block(major, minor),
            8 => NewKind::Fifo,
            9 => NewKind::Socket,
            _ => NewKind::File,
        };
        let mode = self.rng.below(0o10000) as u32;
        let owner = (self.rng.below(70000) as u32, self.rng.below(70000) as u32);
        let new = New { kind, mode, uid: owner.0, gid: owner.1 };
        let made = fs.create(NodeId(dir), name, &new, now);
        if let Some(id) = self.done(made) {
            self.model.add(dir, name, id.0, Node::new(kind, mode, owner, now, dir), now);
        }
    }

    fn unlink(&mut self, fs: &mut Writer<'_>) {
        let Some((dir, name, node)) = self.entry() else { return };
        let now = self.now();
        let gone = fs.unlink(NodeId(dir), &name, now);
        if self.model.get(node).entries.is_empty() {
            // Room is always found for less.
            gone.unwrap_or_else(|e| panic!("{}", whole(&e)));
            self.model.unlink(dir, &name, now);
        } else {
            assert_eq!(gone.unwrap_err().kind(), Kind::NotEmpty);
        }
    }

    fn file(&mut self) -> Option<u64> {
        self.pick(|n| n.kind == NodeKind::File)
    }

    fn write(&mut self, fs: &mut Writer<'_>) {
        let Some(file) = self.file() else { return };
        let size = self.model.get(file).size;
        let at = match self.rng.below(10) {
            0..4 => size,
            4..8 => self.rng.below(size + 1),
            8 => size + self.length(1 << 20),
            _ => self.length(self.style.reach),
        };
        let len = self.length(self.style.write);
        let pieces = if self.rng.below(8) == 0 { 6 } else { 1 };
        let mut at = at;
        for _ in 0..pieces {
            let (now, data) = (self.now(), self.bytes(len));
            let written = fs.write(NodeId(file), at, &data, now);
            if self.done(written).is_none() {
                return;
            }
            let node = self.model.get_mut(file);
            node.write(at, &data);
            node.mtime = now;
            at += len;
        }
    }

    fn truncate(&mut self, fs: &mut Writer<'_>) {
        let Some(file) = self.file() else { return };
        let size = match self.rng.below(4) {
            0 => 0,
            1 => self.length(self.style.reach),
            _ => self.rng.below(self.model.get(file).size + 1),
        };
        let now = self.now();
        let cut = fs.truncate(NodeId(file), size, now);
        if self.done(cut).is_some() {
            let node = self.model.get_mut(file);
            node.truncate(size);
            node.mtime = now;
        }
    }

    fn punch(&mut self, fs: &mut Writer<'_>) {
        let Some(file) = self.pick(|n| n.kind == NodeKind::File && n.size > 0) else { return };
        let size = self.model.get(file).size;
        let from = self.rng.below(size);
        let len = self.length(size - from);
        let now = self.now();
        let cut = fs.punch(NodeId(file), Span::new(from, len).unwrap(), now);
        if self.done(cut).is_some() {
            let node = self.model.get_mut(file);
            node.zero(from, from + len);
            node.mtime = now;
        }
    }

    fn link(&mut self, fs: &mut Writer<'_>) {
        let Some(node) = self.pick(|n| n.kind != NodeKind::Dir) else { return };
        let dir = self.dir();
        let (name, now) = (self.new_name(dir), self.now());
        let made = fs.link(NodeId(node), NodeId(dir), &name, now);
        if self.done(made).is_some() {
            self.model.link(node, dir, &name, now);
        }
    }

    fn rename(&mut self, fs: &mut Writer<'_>) {
        let Some((from, name, node)) = self.entry() else { return };
        let (to, new_name) = match self.rng.below(3) {
            0 => self.entry().map(|(dir, name, _)| (dir, name)).unwrap(),
            1 => (from, self.name()),
            _ => {
                let dir = self.dir();
                (dir, self.name())
            }
        };
        let now = self.now();
        let moved = fs.rename((NodeId(from), &name), (NodeId(to), &new_name), now);
        let old = self.model.get(to).entries.get(new_name.as_bytes()).copied();
        let kind = |id| self.model.get(id).kind;
        let expected = match old {
            Some(old) if old == node => return assert!(moved.is_ok()),
            Some(old) if kind(node) == NodeKind::Dir && kind(old) != NodeKind::Dir => Some(Kind::NotDir),
            Some(old) if kind(node) != NodeKind::Dir && kind(old) == NodeKind::Dir => Some(Kind::IsDir),
            Some(old) if !self.model.get(old).entries.is_empty() => Some(Kind::NotEmpty),
            _ if kind(node) == NodeKind::Dir && self.model.is_above(node, to) => Some(Kind::Invalid),
            _ => None,
        };
        match expected {
            Some(kind) => assert_eq!(moved.unwrap_err().kind(), kind),
            None => {
                if self.done(moved).is_some() {
                    self.model.rename((from, &name), (to, &new_name), now);
                }
            }
        }
    }

    fn exchange(&mut self, fs: &mut Writer<'_>) {
        let (Some(one), Some(other)) = (self.entry(), self.entry()) else { return };
        let now = self.now();
        let done = fs.exchange((NodeId(one.0), &one.1), (NodeId(other.0), &other.1), now);
        let above = |node, dir| self.model.get(node).kind == NodeKind::Dir && self.model.is_above(node, dir);
        if one.2 == other.2 {
            assert!(done.is_ok());
        } else if above(one.2, other.0) || above(other.2, one.0) {
            assert_eq!(done.unwrap_err().kind(), Kind::Invalid);
        } else if self.done(done).is_some() {
            self.model.exchange((one.0, &one.1), (other.0, &other.1), now);
        }
    }

    fn attributes(&mut self, fs: &mut Writer<'_>) {
        let Some(node) = self.pick(|_| true) else { return };
        let now = self.now();
        let mut some = |n: u64| (self.rng.below(2) == 0).then(|| self.rng.below(n) as u32);
        let (uid, gid, project) = (some(1 << 31), some(1 << 31), some(1 << 31));
        let mode = if self.model.get(node).kind == NodeKind::Link { None } else { some(0o10000) };
        let mtime = some(1 << 31).map(|sec| Time { sec: sec.into(), nsec: 7 });
        let flags = some(2).map(|bit| if bit == 0 { Flags::empty() } else { Flags::NOATIME | Flags::NODUMP });
        let change = Change { mode, uid, gid, mtime, flags, project, ..Change::default() };
        let done = fs.set_attributes(NodeId(node), &change, now);
        if self.done(done).is_some() {
            self.model.get_mut(node).change(&change);
        }
    }

    fn xattr(&mut self, fs: &mut Writer<'_>) {
        let Some(node) = self.pick(|_| true) else { return };
        let now = self.now();
        let kind = self.model.get(node).kind;
        let user = matches!(kind, NodeKind::File | NodeKind::Dir);
        let prefix = ["user.", "trusted.", "security."][self.rng.below(3) as usize];
        let prefix = if user { prefix } else { "trusted." };
        let len = if self.rng.below(10) == 0 { 200 } else { 1 + self.rng.below(3) };
        let tail = "x".repeat(len as usize);
        let name = format!("{prefix}{}{tail}", self.rng.below(30)).into_bytes();
        let value = (self.rng.below(4) > 0).then(|| {
            let most = if self.rng.below(10) == 0 { 65536 } else { 400 };
            let len = self.length(most);
            self.bytes(len)
        });
        let done = fs.set_xattr(NodeId(node), &name, value.as_deref(), now);
        if self.done(done).is_some() {
            let xattrs = &mut self.model.get_mut(node).xattrs;
            match value {
                Some(value) => drop(xattrs.insert(name, value)),
                None => drop(xattrs.remove(&name)),
            }
        }
    }

    fn replace(&mut self, fs: &mut Writer<'_>) {
        let Some(file) = self.file() else { return };
        let len = self.length(self.style.write * 4);
        let (now, data) = (self.now(), self.bytes(len));
        let content = Content { reader: &mut data.as_slice(), size: len };
        let done = fs.replace(NodeId(file), content, now);
        if self.done(done).is_some() {
            let node = self.model.get_mut(file);
            node.truncate(0);
            node.write(0, &data);
            node.mtime = now;
        }
    }

    fn separate(&mut self, fs: &mut Writer<'_>) {
        let linked = self.pick(|n| n.kind == NodeKind::File && n.links > 1);
        let Some(file) = linked else { return };
        let holds = |n: &Node| n.entries.values().any(|id| *id == file);
        let dir = self.pick(holds).unwrap();
        let name = self.model.get(dir).entries.iter().find(|(_, id)| **id == file).unwrap().0.clone();
        let name = Name::new(&name).unwrap();
        let now = self.now();
        let made = fs.separate(NodeId(dir), &name, now);
        if let Some(id) = self.done(made) {
            let twin = self.model.get(file).twin(now);
            self.model.separate(dir, &name, id.0, twin, now);
        }
    }

    /// Many entries in one directory: it takes another form.
    fn many(&mut self, fs: &mut Writer<'_>) {
        let dir = self.dir();
        let len = 1 + self.rng.below(40);
        for _ in 0..self.length(400) {
            let name = self.name_of(len.max(3));
            if self.model.get(dir).entries.contains_key(name.as_bytes()) {
                continue;
            }
            let (now, file) = (self.now(), self.pick(|n| n.kind == NodeKind::File));
            match file.filter(|_| self.rng.below(4) > 0) {
                Some(node) => {
                    let made = fs.link(NodeId(node), NodeId(dir), &name, now);
                    if self.done(made).is_some() {
                        self.model.link(node, dir, &name, now);
                    }
                }
                None => self.create_in(fs, dir, &name),
            }
        }
    }

    /// Most entries of a directory go.
    fn few(&mut self, fs: &mut Writer<'_>) {
        let Some(dir) = self.pick(|n| n.entries.len() > 3) else { return };
        let keep = self.rng.below(5);
        let entries: Vec<(Vec<u8>, u64)> =
            self.model.get(dir).entries.iter().map(|(n, i)| (n.clone(), *i)).collect();
        for (name, node) in entries {
            let go = self.rng.below(12) >= keep;
            if go && self.model.get(node).entries.is_empty() {
                let (name, now) = (Name::new(&name).unwrap(), self.now());
                fs.unlink(NodeId(dir), &name, now).unwrap_or_else(|e| panic!("{}", whole(&e)));
                self.model.unlink(dir, &name, now);
            }
        }
    }
}

/// An error with all of its places.
pub(super) fn whole(e: &Error) -> String {
    format!("{e:?}: {e:#}")
}
