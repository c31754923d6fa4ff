//! Which operation comes next: what is there by name, and numbers that decide.

mod done;

use std::collections::HashMap;

use racker_fs::filesystem::{NodeKind, Time};
use racker_tests::rng::Rng;

use super::op::{Data, Make, Op, Place};

/// A second of the past that all times are counted from.
const START: i64 = 1_700_000_000;
/// Directories between the root and an entry: a path has at most 4096 bytes.
const DEPTH_MAX: usize = 8;
/// Entries of one node: fewer than ext4 allows.
const LINKS_MAX: u32 = 40_000;

/// What is played.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Owners, links, devices, attributes; else what FAT has.
    pub(super) full: bool,
    /// Nodes above which more are removed than made.
    pub(super) nodes: usize,
    /// Bytes of the longest write.
    pub(super) write: u64,
    /// Where the furthest write begins.
    pub(super) reach: u64,
    /// Bytes of the largest attribute.
    pub(super) value: u64,
    /// Times have nanoseconds.
    pub(super) fine: bool,
}

/// What a round leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Theme {
    /// A bit of everything.
    Mixed,
    /// One directory of so many entries.
    Crowd(usize),
    /// A filesystem without free blocks, or nearly so.
    Full,
    /// Files until there is no inode, or no room, for more.
    Files,
    /// No more than what changes no block of content: what is done where there may be no room.
    Light,
}

#[derive(Debug)]
struct Node {
    kind: NodeKind,
    links: u32,
    size: u64,
    /// Of a directory: where it is.
    up: usize,
    name: Vec<u8>,
    entries: Vec<(Vec<u8>, usize)>,
    index: HashMap<Vec<u8>, usize>,
}

impl Node {
    fn new(kind: NodeKind, up: usize, name: &[u8]) -> Self {
        let name = if kind == NodeKind::Dir { name.to_vec() } else { Vec::new() };
        Self { kind, links: 1, size: 0, up, name, entries: Vec::new(), index: HashMap::new() }
    }
}

/// What is there, and what comes next.
pub(super) struct Plan {
    nodes: HashMap<usize, Node>,
    dirs: Vec<usize>,
    next: usize,
    rng: Rng,
    tick: i64,
    pub(super) style: Style,
    pub(super) theme: Theme,
    /// Bytes that were free when the round began.
    pub(super) free: u64,
}

/// An entry: its directory, its name, its node.
type Found = (usize, Vec<u8>, usize);

impl Plan {
    pub(super) fn new(seed: u64, style: Style) -> Self {
        let root = Node::new(NodeKind::Dir, 0, b"");
        let (nodes, dirs) = (HashMap::from([(0, root)]), vec![0]);
        Self { nodes, dirs, next: 1, rng: Rng::new(seed), tick: 0, style, theme: Theme::Mixed, free: 0 }
    }

    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn now(&mut self) -> Time {
        self.tick += 2;
        let nsec = if self.style.fine { (self.tick % 1000) as u32 * 1_000_004 } else { 0 };
        Time { sec: START + self.tick, nsec }
    }

    /// Entries of the directory that is to be large.
    pub(super) fn crowd(&self) -> usize {
        self.child(0, b"crowd").map_or(0, |dir| self.nodes[&dir].entries.len())
    }

    fn child(&self, dir: usize, name: &[u8]) -> Option<usize> {
        let dir = &self.nodes[&dir];
        dir.index.get(name).map(|at| dir.entries[*at].1)
    }

    fn place(&self, dir: usize, name: &[u8]) -> Place {
        let mut place = vec![name.to_vec()];
        let mut at = dir;
        while at != 0 {
            place.push(self.nodes[&at].name.clone());
            at = self.nodes[&at].up;
        }
        place.reverse();
        place
    }

    /// Where a directory is; nothing for the root.
    fn place_of(&self, dir: usize) -> Place {
        if dir == 0 { Place::new() } else { self.place(self.nodes[&dir].up, &self.nodes[&dir].name) }
    }

    fn depth(&self, mut dir: usize) -> usize {
        let mut depth = 0;
        while dir != 0 {
            (dir, depth) = (self.nodes[&dir].up, depth + 1);
        }
        depth
    }

    fn height(&self, node: usize) -> usize {
        let node = &self.nodes[&node];
        node.entries
            .iter()
            .filter(|(_, child)| self.nodes[child].kind == NodeKind::Dir)
            .map(|(_, child)| 1 + self.height(*child))
            .max()
            .unwrap_or(0)
    }

    fn is_above(&self, node: usize, mut dir: usize) -> bool {
        while dir != node && dir != 0 {
            dir = self.nodes[&dir].up;
        }
        dir == node
    }

    fn pick_dir(&mut self) -> usize {
        // The first directories get most entries, so that some grow large.
        let end = self.rng.below(self.dirs.len() as u64) + 1;
        self.dirs[self.rng.below(end) as usize]
    }

    /// A directory that can have another below it, and then some.
    fn shallow_dir(&mut self, height: usize) -> usize {
        let dir = self.pick_dir();
        if self.depth(dir) + height < DEPTH_MAX { dir } else { 0 }
    }

    fn entry(&mut self, wanted: impl Fn(&Node) -> bool) -> Option<Found> {
        for _ in 0..30 {
            let dir = self.pick_dir();
            let entries = &self.nodes[&dir].entries;
            if entries.is_empty() {
                continue;
            }
            let (name, node) = &entries[self.rng.below(entries.len() as u64) as usize];
            let special = dir == 0 && matches!(name.as_slice(), b"crowd" | b"files" | b"ballast");
            if !special && wanted(&self.nodes[node]) {
                return Some((dir, name.clone(), *node));
            }
        }
        None
    }

    fn file(&mut self) -> Option<(Place, usize)> {
        let (dir, name, node) = self.entry(|node| node.kind == NodeKind::File)?;
        Some((self.place(dir, &name), node))
    }

    fn name(&mut self) -> Vec<u8> {
        let len = match self.rng.below(20) {
            0 => 255,
            1..4 => 20 + self.rng.below(200),
            _ => 3 + self.rng.below(14),
        };
        self.name_of(len)
    }

    fn name_of(&mut self, len: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|_| b'a' + self.rng.below(26) as u8).collect();
        if self.style.full && self.rng.below(8) == 0 {
            // Any byte but two is allowed, and no name consists of dots.
            for b in bytes.iter_mut().skip(1) {
                let any = self.rng.below(256) as u8;
                *b = if matches!(any, 0 | b'/') { b'_' } else { any };
            }
        }
        bytes
    }

    fn new_name(&mut self, dir: usize) -> Vec<u8> {
        loop {
            let name = self.name();
            if !self.nodes[&dir].index.contains_key(&name) {
                return name;
            }
        }
    }

    fn length(&mut self, most: u64) -> u64 {
        let bits = 1 + self.rng.below(u64::from(most.max(2).ilog2()));
        1 + self.rng.below((1 << bits).min(most))
    }

    fn data(&mut self, most: u64) -> Data {
        Data { seed: self.rng.number(), len: self.length(most) }
    }

    /// The next operation.
    pub(super) fn next(&mut self) -> Op {
        loop {
            match self.themed().or_else(|| self.any()) {
                None => {}
                Some(Op::Many { names, .. } | Op::Few { names, .. }) if names.is_empty() => {}
                Some(op) => return op,
            }
        }
    }

    fn themed(&mut self) -> Option<Op> {
        match self.theme {
            Theme::Crowd(goal) if self.rng.below(12) == 0 => self.crowd_towards(goal),
            Theme::Full => self.fill(),
            Theme::Files if self.rng.below(12) == 0 => {
                let Some(dir) = self.child(0, b"files") else { return Some(self.dir_in_root(b"files")) };
                Some(self.many(dir, 300, false))
            }
            // What filled it goes again.
            Theme::Mixed if self.rng.below(12) == 0 => match self.child(0, b"files") {
                Some(dir) if !self.nodes[&dir].entries.is_empty() => Some(self.few(dir, 600)),
                _ => self.child(0, b"ballast").map(|_| Op::Remove { at: vec![b"ballast".to_vec()] }),
            },
            _ => None,
        }
    }

    fn dir_in_root(&self, name: &[u8]) -> Op {
        Op::Create { at: vec![name.to_vec()], make: Make::Dir, mode: 0o755, owner: (0, 0) }
    }

    fn crowd_towards(&mut self, goal: usize) -> Option<Op> {
        let Some(dir) = self.child(0, b"crowd") else { return Some(self.dir_in_root(b"crowd")) };
        let have = self.nodes[&dir].entries.len();
        if have < goal {
            let links = self.style.full;
            Some(self.many(dir, (goal - have).min(900), links))
        } else if have > goal + goal / 10 {
            Some(self.few(dir, (have - goal).min(900)))
        } else {
            None
        }
    }

    /// Names for further links of a file, or for new files.
    fn many(&mut self, dir: usize, most: usize, links: bool) -> Op {
        let len = if self.style.full { 5 + self.rng.below(40) } else { 8 };
        let mut names = HashMap::new();
        for _ in 0..1 + self.rng.below(most as u64) {
            let len = if self.rng.below(200) == 0 { 255 } else { len };
            let name = self.name_of(len);
            if !self.nodes[&dir].index.contains_key(&name) {
                names.insert(name, ());
            }
        }
        let mut names: Vec<Vec<u8>> = names.into_keys().collect();
        // The order of a hash table is another each time.
        names.sort();
        for i in (1..names.len()).rev() {
            let other = self.rng.below(i as u64 + 1) as usize;
            names.swap(i, other);
        }
        let found = self.entry(|node| node.kind == NodeKind::File && node.links < LINKS_MAX);
        let node = found.filter(|_| links).map(|(dir, name, _)| self.place(dir, &name));
        Op::Many { dir: self.place_of(dir), names, node }
    }

    fn few(&mut self, dir: usize, most: usize) -> Op {
        let entries = &self.nodes[&dir].entries;
        let count = entries.len().min(1 + self.rng.below(most as u64) as usize);
        let start = self.rng.below((entries.len() - count) as u64 + 1) as usize;
        let all = entries.iter().skip(start).take(count);
        let gone = all.filter(|(_, node)| self.nodes[node].entries.is_empty()).map(|(name, _)| name.clone());
        Op::Few { dir: self.place_of(dir), names: gone.collect() }
    }

    /// First a file over nearly all that is free, then holes in it, then what finds no room.
    fn fill(&mut self) -> Option<Op> {
        let ballast = vec![b"ballast".to_vec()];
        let Some(node) = self.child(0, b"ballast") else {
            return Some(Op::Create { at: ballast, make: Make::File, mode: 0o600, owner: (0, 0) });
        };
        let size = self.nodes[&node].size;
        if size == 0 {
            let len = self.free.saturating_sub((self.free / 500).max(64 << 10));
            return (len > 0).then_some(Op::Ballast { file: ballast, data: Data { seed: 1, len } });
        }
        (self.rng.below(10) == 0).then(|| {
            let at = self.rng.below(size);
            let len = self.length((128 << 10).min(size - at));
            Op::Punch { file: ballast, at, len }
        })
    }

    fn any(&mut self) -> Option<Op> {
        let crowded = self.count() > self.style.nodes;
        let full = self.style.full;
        let choice = self.rng.below(100);
        if self.theme == Theme::Light && !matches!(choice, 20..34 | 68..87) {
            return None;
        }
        match choice {
            0..20 if !crowded => self.create(),
            0..34 => self.remove(),
            34..52 => self.write(),
            52..57 => self.truncate(),
            57..62 => self.punch(),
            62..68 if full => self.link(),
            62..65 => self.write(),
            68..76 => self.rename(),
            76..79 => self.exchange(),
            79..83 => self.owner(),
            83..85 => self.times(),
            85..87 if full => self.flags(),
            87..95 if full => self.xattr(),
            95..97 => self.replace(),
            97 if !crowded => {
                let dir = self.pick_dir();
                Some(self.many(dir, 200, full && choice.is_multiple_of(2)))
            }
            98 => {
                let dir = self.pick_dir();
                (dir != 0 && self.nodes[&dir].entries.len() > 3).then(|| self.few(dir, 300))
            }
            _ => None,
        }
    }

    fn create(&mut self) -> Option<Op> {
        let dir = self.shallow_dir(0);
        let name = self.new_name(dir);
        let at = self.place(dir, &name);
        let full = self.style.full;
        let numbers = (self.rng.below(1 << 9) as u32, self.rng.below(1 << 18) as u32);
        let make = match self.rng.below(20) {
            0..4 => Make::Dir,
            4..6 if full => {
                let len = self.length(1000);
                Make::Link((0..len).map(|_| 1 + self.rng.below(255) as u8).collect())
            }
            6 if full => Make::Char(numbers.0, numbers.1),
            7 if full => Make::Block(numbers.0, numbers.1),
            8 if full => Make::Fifo,
            9 if full => Make::Socket,
            _ => Make::File,
        };
        let mode = if full { self.rng.below(0o10000) as u32 } else { 0o644 };
        let owner = (self.rng.below(1 << 31) as u32, self.rng.below(1 << 31) as u32);
        Some(Op::Create { at, make, mode, owner })
    }

    fn remove(&mut self) -> Option<Op> {
        let (dir, name, _) = self.entry(|node| node.entries.is_empty())?;
        Some(Op::Remove { at: self.place(dir, &name) })
    }

    fn write(&mut self) -> Option<Op> {
        let (file, node) = self.file()?;
        let size = self.nodes[&node].size;
        let at = match self.rng.below(10) {
            0..4 => size,
            4..8 => self.rng.below(size + 1),
            8 => size + self.length((1 << 20).min(self.style.reach)),
            _ => self.length(self.style.reach),
        };
        // What is nearly full is to be full.
        let data = self.data(if self.theme == Theme::Full { 4 << 20 } else { self.style.write });
        (at + data.len <= self.style.reach * 2).then_some(Op::Write { file, at, data })
    }

    fn truncate(&mut self) -> Option<Op> {
        let (file, node) = self.file()?;
        let size = match self.rng.below(4) {
            0 => 0,
            1 => self.length(self.style.reach),
            _ => self.rng.below(self.nodes[&node].size + 1),
        };
        Some(Op::Truncate { file, size })
    }

    fn punch(&mut self) -> Option<Op> {
        let (file, node) = self.file()?;
        let size = self.nodes[&node].size;
        if size == 0 {
            return None;
        }
        let at = self.rng.below(size);
        Some(Op::Punch { file, at, len: self.length(size - at) })
    }

    fn replace(&mut self) -> Option<Op> {
        let (file, _) = self.file()?;
        Some(Op::Replace { file, data: self.data(self.style.write * 4) })
    }

    fn link(&mut self) -> Option<Op> {
        let (dir, name, _) = self.entry(|n| n.kind != NodeKind::Dir && n.links < LINKS_MAX)?;
        let node = self.place(dir, &name);
        let to = self.pick_dir();
        let name = self.new_name(to);
        Some(Op::Link { node, at: self.place(to, &name) })
    }

    fn rename(&mut self) -> Option<Op> {
        let (from, name, node) = self.entry(|_| true)?;
        let height = self.height(node);
        let (to, new) = match self.rng.below(3) {
            0 => self.entry(|_| true).map(|(dir, name, _)| (dir, name))?,
            _ => {
                let to = self.shallow_dir(height);
                (to, self.new_name(to))
            }
        };
        let is_dir = self.nodes[&node].kind == NodeKind::Dir;
        let old = self.child(to, &new);
        let fits = old.is_none_or(|old| {
            let other = &self.nodes[&old];
            old != node && (other.kind == NodeKind::Dir) == is_dir && other.entries.is_empty()
        });
        let fits = fits && !(is_dir && self.is_above(node, to)) && self.depth(to) + height < DEPTH_MAX;
        fits.then(|| Op::Rename { from: self.place(from, &name), to: self.place(to, &new) })
    }

    fn exchange(&mut self) -> Option<Op> {
        let (one, other) = (self.entry(|_| true)?, self.entry(|_| true)?);
        let fits = |plan: &Self, node, dir| {
            let is_dir = plan.nodes[&node].kind == NodeKind::Dir;
            !(is_dir && plan.is_above(node, dir)) && plan.depth(dir) + plan.height(node) < DEPTH_MAX
        };
        let both = one.2 != other.2 && fits(self, one.2, other.0) && fits(self, other.2, one.0);
        both.then(|| Op::Exchange { one: self.place(one.0, &one.1), other: self.place(other.0, &other.1) })
    }

    fn owner(&mut self) -> Option<Op> {
        let wanted = self.style.full;
        let (dir, name, node) = self.entry(|node| wanted || node.kind == NodeKind::File)?;
        let mode = match self.nodes[&node].kind {
            NodeKind::Link => None,
            _ if wanted => Some(self.rng.below(0o10000) as u32),
            _ => Some([0o444, 0o644][self.rng.below(2) as usize]),
        };
        let owner = (self.rng.below(1 << 31) as u32, self.rng.below(1 << 31) as u32);
        Some(Op::Owner { node: self.place(dir, &name), owner, mode })
    }

    fn times(&mut self) -> Option<Op> {
        let (dir, name, _) = self.entry(|_| true)?;
        let mut time = || Time { sec: 400_000_000 + self.rng.below(1 << 30) as i64 * 2 % (1 << 30), nsec: 0 };
        let (atime, mtime) = (time(), time());
        Some(Op::Times { node: self.place(dir, &name), atime, mtime })
    }

    fn flags(&mut self) -> Option<Op> {
        let (dir, name, _) = self.entry(|n| matches!(n.kind, NodeKind::File | NodeKind::Dir))?;
        let flags = [0, 0x40, 0x80, 0xc0][self.rng.below(4) as usize];
        Some(Op::Flags { node: self.place(dir, &name), flags })
    }

    fn xattr(&mut self) -> Option<Op> {
        let (dir, name, node) = self.entry(|_| true)?;
        let plain = matches!(self.nodes[&node].kind, NodeKind::File | NodeKind::Dir);
        let prefix =
            if plain { ["user.", "trusted.", "security."][self.rng.below(3) as usize] } else { "trusted." };
        let tail = if self.rng.below(10) == 0 { 200 } else { 1 + self.rng.below(5) };
        // xfs_repair 6.1 takes names for damage, the kernel's own too, that differ in the prefix alone and need two blocks.
        let key = format!("{prefix}{}{}{}", &prefix[..1], self.rng.below(12), "k".repeat(tail as usize))
            .into_bytes();
        let value = (self.rng.below(4) > 0).then(|| {
            let most = if self.rng.below(10) == 0 { self.style.value } else { 200 };
            self.data(most).bytes()
        });
        Some(Op::Xattr { node: self.place(dir, &name), name: key, value })
    }
}
