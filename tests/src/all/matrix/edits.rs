//! Random edits of any filesystem, and other sizes for it.

use racker_formats::block::Span;
use racker_formats::error::{Kind, Result};
use racker_formats::transaction::EditDisk;
use racker_fs::edit::{Session, Writer};
use racker_fs::filesystem::{Change, Content, Filesystem, Keeps, Name, New, NewKind, NodeId, NodeKind, Time};
use racker_fs::inspect::Inspection;
use racker_fs::path::View;
use racker_fs::tree::put::Put;
use racker_fs::tree::tar_in::tar_in;
use racker_tests::image::scratch;
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

/// Nodes above which more are removed than made.
const NODES: usize = 60;

/// Makes edits.
#[derive(Clone, Debug)]
pub(super) struct Edits {
    rng: Rng,
    number: u32,
    clock: i64,
    /// Every other edit gives the filesystem another size.
    resizes: bool,
}

/// An entry of the tree.
#[derive(Clone, Debug)]
struct Found {
    dir: NodeId,
    name: Name,
    node: NodeId,
    kind: NodeKind,
}

impl Edits {
    pub(super) fn new(rng: Rng) -> Self {
        Self { rng, number: 0, clock: 1_700_000_000, resizes: false }
    }

    /// Edits of which every other one gives the filesystem another size.
    pub(super) fn resizing(rng: Rng) -> Self {
        Self { resizes: true, ..Self::new(rng) }
    }

    /// One edit: a few operations, or a tree.
    pub(super) fn make(&mut self, disk: &EditDisk<'_>) -> Result<()> {
        let inspection = Inspection::of(disk.disk())?;
        let mut session = Session::new(&inspection, disk.clone());
        self.number += 1;
        if self.resizes && self.number.is_multiple_of(2) {
            self.resize(session.writer(0)?, disk.disk().size())?;
            return session.close();
        }
        let steps = 1 + self.rng.below(10);
        let with_tree = self.number % 3 == 1;
        for _ in 0..if with_tree { steps / 3 } else { steps } {
            self.step(session.writer(0)?)?;
        }
        if with_tree {
            self.tree(&inspection, &mut session)?;
            // What the tree took is given back, and used again.
            for _ in 0..self.rng.below(6) {
                self.step(session.writer(0)?)?;
            }
        }
        session.close()
    }

    /// A size between that of what is in the filesystem, if it can be made smaller, and that of its volume.
    fn resize(&mut self, fs: &mut Writer<'_>, volume: u64) -> Result<()> {
        let facts = fs.filesystem().facts()?;
        let smaller = facts.kind == "ext4" && self.number.is_multiple_of(4);
        let (low, high) = match smaller {
            true => ((facts.size - facts.free) * 5 / 4, facts.size),
            false => (facts.size, facts.size + (volume - facts.size) / 2),
        };
        let size = low + self.rng.below(high.saturating_sub(low) + 1);
        match fs.resize(size.max(low)) {
            // What is in it may not fit.
            Err(e) if smaller && matches!(e.kind(), Kind::NoSpace | Kind::Unsupported | Kind::Invalid) => {
                Ok(())
            }
            done => done,
        }
    }

    fn now(&mut self) -> Time {
        self.clock += 2;
        Time { sec: self.clock, nsec: 0 }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let most = [60, 3000, 40_000, 700_000][self.rng.below(4) as usize];
        let mut bytes = vec![0; 1 + self.rng.below(most) as usize];
        self.rng.fill(&mut bytes);
        bytes
    }

    fn name(&mut self) -> Name {
        let len = if self.rng.below(6) == 0 { 100 } else { 1 + self.rng.below(20) };
        let letters: String = (0..len).map(|_| char::from(b'a' + self.rng.below(26) as u8)).collect();
        Name::new(format!("n{letters}").as_bytes()).unwrap()
    }

    /// A tree that tar has put together.
    fn tree(&mut self, inspection: &Inspection, session: &mut Session<'_>) -> Result<()> {
        let dir = scratch();
        let base = dir.path().join(format!("tree{}", self.number));
        for number in 0..3 + self.rng.below(8) {
            let folder = base.join(format!("d{}", number % 3));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("file-{number}")), self.bytes()).unwrap();
        }
        let tar = dir.path().join("tree.tar");
        let tarring = tool("tar").args(["--sort=name", "--mtime=@1700000000", "-cf"]);
        tarring.arg(&tar).arg("-C").arg(dir.path()).arg(base.file_name().unwrap()).ok();
        let view = View::single(0, inspection.volumes[0].filesystem()?);
        let now = self.now();
        let put = Put::new(session, &view, view.root()?, now);
        let done = tar_in(&mut std::fs::File::open(&tar).unwrap(), put, &(), None);
        // A full disk takes a part of it.
        match done {
            Err(e) if e.kind() != Kind::NoSpace => Err(e),
            _ => Ok(()),
        }
    }

    fn step(&mut self, fs: &mut Writer<'_>) -> Result<()> {
        let mut all = Vec::new();
        let root = fs.root();
        walk(fs.filesystem().as_ref(), root, &mut all)?;
        let dirs: Vec<NodeId> =
            all.iter().filter(|f| f.kind == NodeKind::Dir).map(|f| f.node).chain([root]).collect();
        let files: Vec<NodeId> = all.iter().filter(|f| f.kind == NodeKind::File).map(|f| f.node).collect();
        let dir = dirs[self.rng.below(dirs.len() as u64) as usize];
        let crowded = all.len() > NODES;
        let done = if all.is_empty() || (!crowded && self.rng.below(3) == 0) {
            self.create(fs, dir)
        } else if crowded || self.rng.below(4) == 0 {
            let one = all[self.rng.below(all.len() as u64) as usize].clone();
            remove(fs, &one, self.now())
        } else if files.is_empty() || self.rng.below(5) == 0 {
            let one = all[self.rng.below(all.len() as u64) as usize].clone();
            self.entry(fs, &one, dir)
        } else {
            let file = files[self.rng.below(files.len() as u64) as usize];
            self.content(fs, file)
        };
        match done {
            Err(e)
                if !matches!(e.kind(), Kind::NoSpace | Kind::Unsupported | Kind::Invalid | Kind::Exists) =>
            {
                Err(e)
            }
            _ => Ok(()),
        }
    }

    fn create(&mut self, fs: &mut Writer<'_>, dir: NodeId) -> Result<()> {
        let (name, now, target) = (self.name(), self.now(), vec![b'x'; 1 + self.rng.below(900) as usize]);
        let kind = match self.rng.below(10) {
            0..2 => NewKind::Dir,
            2 if fs.keeps().contains(Keeps::SYMLINKS) => NewKind::Link(&target),
            _ => NewKind::File,
        };
        let node = fs.create(dir, &name, &New { kind, mode: 0o755, uid: 0, gid: 0 }, now)?;
        if kind == NewKind::File {
            return fs.write(node, 0, &self.bytes(), now);
        }
        Ok(())
    }

    /// Something about a name, or about attributes.
    fn entry(&mut self, fs: &mut Writer<'_>, one: &Found, dir: NodeId) -> Result<()> {
        let (name, now) = (self.name(), self.now());
        match self.rng.below(4) {
            0 if one.kind == NodeKind::File => fs.link(one.node, dir, &name, now),
            1 => fs.set_xattr(one.node, b"trusted.x", Some(&vec![7; 1 + self.rng.below(2000) as usize]), now),
            2 => {
                let change =
                    Change { mtime: Some(Time { sec: now.sec - 100, nsec: 0 }), ..Change::default() };
                fs.set_attributes(one.node, &change, now)
            }
            _ => fs.rename((one.dir, &one.name), (dir, &name), now),
        }
    }

    fn content(&mut self, fs: &mut Writer<'_>, file: NodeId) -> Result<()> {
        let (size, now) = (fs.stat(file)?.size, self.now());
        let at = self.rng.below(size + 100_000);
        match self.rng.below(6) {
            0 => fs.truncate(file, at, now),
            1 => fs.punch(file, Span::new(at / 2, 1 + self.rng.below(100_000))?, now),
            2 | 3 => {
                let bytes = self.bytes();
                let content = Content { reader: &mut bytes.as_slice(), size: bytes.len() as u64 };
                fs.replace(file, content, now)
            }
            _ => fs.write(file, at, &self.bytes(), now),
        }
    }
}

fn walk(fs: &dyn Filesystem, dir: NodeId, all: &mut Vec<Found>) -> Result<()> {
    let mut here = Vec::new();
    fs.read_dir(dir, &mut |entry| {
        here.push((entry.name, entry.node));
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    for (name, node) in here {
        // What the filesystem needs for itself stays as it is.
        if [b".".as_slice(), b"..", b"lost+found"].contains(&name.as_bytes()) {
            continue;
        }
        let kind = fs.stat(node)?.kind;
        all.push(Found { dir, name, node, kind });
        if kind == NodeKind::Dir {
            walk(fs, node, all)?;
        }
    }
    Ok(())
}

/// Removes a node and all below it.
fn remove(fs: &mut Writer<'_>, one: &Found, now: Time) -> Result<()> {
    if one.kind == NodeKind::Dir {
        let mut below = Vec::new();
        walk(fs.filesystem().as_ref(), one.node, &mut below)?;
        for child in below.iter().rev() {
            fs.unlink(child.dir, &child.name, now)?;
        }
    }
    fs.unlink(one.dir, &one.name, now)
}
