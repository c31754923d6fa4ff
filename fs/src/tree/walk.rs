//! One walk through a tree that ends whatever the image says.
//!
//! Why it ends: a directory is entered once ([`TreeFault::DirTwice`] otherwise), a filesystem has finitely many,
//! and a listing is finite by the contract of [`Filesystem::read_dir`]. The stack is our own, so depth costs
//! memory, which [`Limits`] bounds.

use std::collections::HashSet;
use std::ops::ControlFlow;

use racker_formats::error::{Error, Result, Within};
use racker_formats::wire::len64;

use super::{Tree, TreeFault};
use crate::filesystem::{DirEntry, Filesystem, NodeId, NodeKind, Stat};

/// What a walk may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Directories within each other. Linux reaches 2,048 with one path (`PATH_MAX`); deeper ones can be made,
    /// one `chdir` at a time, and are left to whoever wants to hurt.
    pub depth: usize,
    /// Length of a path in bytes: sixteen times `PATH_MAX`. Every name costs its whole path in a tar stream, so
    /// this is what keeps a small image from filling a large disk with nothing but names.
    pub path: usize,
    /// Entries in all: what 32-bit inode numbers can count; no disk of today holds more.
    pub nodes: u64,
    /// Bytes of memory for the sorted listings of all directories on the way down: about 10 million names.
    pub listings: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 4096, path: 64 << 10, nodes: 1 << 32, listings: 512 << 20 }
    }
}

/// One node on the way.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// From the tree's root: components joined by `/`, none in front; empty for the root itself.
    pub path: &'a [u8],
    /// The filesystem that holds it.
    pub fs: &'a dyn Filesystem,
    /// Which filesystem that is: two entries with the same `volume` and `node` are one node.
    pub volume: usize,
    /// Its number there.
    pub node: NodeId,
    /// Everything about it.
    pub stat: &'a Stat,
    /// How many directories are above it.
    pub depth: usize,
}

impl Entry<'_> {
    /// The last component of the path; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The path as people read it.
    pub fn shown(&self) -> String {
        format!("/{}", String::from_utf8_lossy(self.path))
    }
}

/// What the visitor is told.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A node, before what is below it.
    Node(Entry<'a>),
    /// A directory, after everything below it; not told for a directory that was skipped.
    Leave(Entry<'a>),
}

/// What the visitor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Go on.
    On,
    /// Do not enter this directory.
    Skip,
    /// No more.
    Stop,
}

/// What a walk went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Entries, the root and every further hard link included.
    pub nodes: u64,
    /// Mount points that no directory of the tree answers to.
    pub unused_mounts: Vec<Vec<u8>>,
}

/// The entries of a directory, sorted, in two pieces of memory instead of one for every name.
#[derive(Debug, Default)]
struct Listing {
    names: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    at: u32,
    len: u16,
    node: NodeId,
}

impl Listing {
    fn read(fs: &dyn Filesystem, dir: NodeId, max: u64) -> Result<Self> {
        let mut list = Self::default();
        let full = || Error::from(TreeFault::ListingLarge { max });
        fs.read_dir(dir, &mut |entry: DirEntry| {
            let name = entry.name.as_bytes();
            let at = u32::try_from(list.names.len()).map_err(|_| full())?;
            let len = u16::try_from(name.len()).expect("Name::MAX is below 2^16");
            list.names.extend_from_slice(name);
            list.items.push(Item { at, len, node: entry.node });
            if list.bytes() > max { Err(full()) } else { Ok(ControlFlow::Continue(())) }
        })?;
        let Self { names, items } = &mut list;
        items.sort_unstable_by(|a, b| a.name(names).cmp(b.name(names)));
        for pair in items.windows(2) {
            if let [a, b] = pair
                && a.name(names) == b.name(names)
            {
                return Err(TreeFault::NameTwice { name: a.name(names).to_vec() }.into());
            }
        }
        Ok(list)
    }

    fn bytes(&self) -> u64 {
        let items = len64(self.items.len()).saturating_mul(len64(size_of::<Item>()));
        items.saturating_add(len64(self.names.len()))
    }
}

impl Item {
    fn name<'n>(&self, names: &'n [u8]) -> &'n [u8] {
        let at = usize::try_from(self.at).unwrap_or(usize::MAX);
        names.get(at..at.saturating_add(self.len.into())).unwrap_or_default()
    }
}

/// A directory that was entered and not left.
#[derive(Debug)]
struct Frame {
    layer: usize,
    node: NodeId,
    stat: Stat,
    listing: Listing,
    next: usize,
    /// Length of the directory's own path.
    path_len: usize,
}

struct Walk<'a> {
    tree: &'a Tree,
    limits: &'a Limits,
    path: Vec<u8>,
    stack: Vec<Frame>,
    /// Per layer: the directories that were entered.
    entered: Vec<HashSet<NodeId>>,
    /// Bytes that the listings on the stack take.
    held: u64,
    nodes: u64,
}

/// Goes through a tree once: parents first, names in the order of their bytes.
///
/// An error stops the walk; it says at which path it came up.
pub fn walk(tree: &Tree, limits: &Limits, visit: &mut dyn FnMut(Step<'_>) -> Result<Go>) -> Result<Walked> {
    let mut walk = Walk {
        tree,
        limits,
        path: Vec::new(),
        stack: Vec::new(),
        entered: vec![HashSet::new(); tree.layers.len()],
        held: 0,
        nodes: 0,
    };
    let ended = walk.run(visit).map_err(|e| e.within(format!("/{}", String::from_utf8_lossy(&walk.path))))?;
    let used = |layer: &HashSet<NodeId>| !layer.is_empty();
    let unused = tree.layers.iter().zip(&walk.entered).skip(1).filter(|(_, e)| !used(e));
    let unused_mounts = match ended {
        ControlFlow::Continue(()) => unused.map(|(l, _)| l.path.clone()).collect(),
        // Stopped early: nobody knows what would have come.
        ControlFlow::Break(()) => Vec::new(),
    };
    Ok(Walked { nodes: walk.nodes, unused_mounts })
}

impl<'a> Walk<'a> {
    fn run(&mut self, visit: &mut dyn FnMut(Step<'_>) -> Result<Go>) -> Result<ControlFlow<()>> {
        if self.arrive(0, self.tree.root().1, visit)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        while let Some(frame) = self.stack.last_mut() {
            self.path.truncate(frame.path_len);
            let Some(item) = frame.listing.items.get(frame.next).copied() else {
                if self.leave(visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            };
            frame.next = frame.next.saturating_add(1);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(item.name(&frame.listing.names));
            let layer = frame.layer;
            if self.path.len() > self.limits.path {
                return Err(TreeFault::PathLong { max: self.limits.path }.into());
            }
            if self.arrive(layer, item.node, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn fs(&self, layer: usize) -> &'a dyn Filesystem {
        &*self.tree.layers.get(layer).expect("layers come from the tree itself").fs
    }

    fn volume(&self, layer: usize) -> usize {
        self.tree.layers.get(layer).map_or(layer, |l| l.volume)
    }

    /// Shows one node to the visitor, and enters it if it is a directory.
    fn arrive(
        &mut self,
        layer: usize,
        node: NodeId,
        visit: &mut dyn FnMut(Step<'_>) -> Result<Go>,
    ) -> Result<ControlFlow<()>> {
        let (mut layer, mut node) = (layer, node);
        let mut stat = self.fs(layer).stat(node).within(|| format!("node {}", node.0))?;
        if stat.kind == NodeKind::Dir
            && !self.path.is_empty()
            && let Some((over, mounted)) = self.tree.mounted_at(&self.path)
        {
            (layer, node) = (over, mounted.node);
            stat = self.fs(layer).stat(node).within(|| format!("node {}", node.0))?;
        }
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > self.limits.nodes {
            return Err(TreeFault::Many { max: self.limits.nodes }.into());
        }
        let (fs, volume) = (self.fs(layer), self.volume(layer));
        let depth = self.stack.len();
        let entry = Entry { path: &self.path, fs, volume, node, stat: &stat, depth };
        // The check comes before the visitor acts on the directory.
        if stat.kind == NodeKind::Dir && !self.entered.get_mut(layer).is_some_and(|set| set.insert(node)) {
            return Err(TreeFault::DirTwice { node }.into());
        }
        match visit(Step::Node(entry))? {
            Go::Stop => return Ok(ControlFlow::Break(())),
            Go::On if stat.kind == NodeKind::Dir => self.enter(layer, node, stat)?,
            Go::On | Go::Skip => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn enter(&mut self, layer: usize, node: NodeId, stat: Stat) -> Result<()> {
        if self.stack.len() >= self.limits.depth {
            return Err(TreeFault::Deep { max: self.limits.depth }.into());
        }
        let listing = Listing::read(self.fs(layer), node, self.limits.listings.saturating_sub(self.held))
            .map_err(|e| match e.fault() {
                Some(TreeFault::ListingLarge { .. }) => {
                    TreeFault::ListingLarge { max: self.limits.listings }.into()
                }
                _ => e,
            })?;
        self.held = self.held.saturating_add(listing.bytes());
        let path_len = self.path.len();
        self.stack.push(Frame { layer, node, stat, listing, next: 0, path_len });
        Ok(())
    }

    fn leave(&mut self, visit: &mut dyn FnMut(Step<'_>) -> Result<Go>) -> Result<ControlFlow<()>> {
        let Some(frame) = self.stack.pop() else { return Ok(ControlFlow::Continue(())) };
        self.held = self.held.saturating_sub(frame.listing.bytes());
        let Frame { layer, node, ref stat, .. } = frame;
        let (fs, volume) = (self.fs(layer), self.volume(layer));
        let depth = self.stack.len();
        let entry = Entry { path: &self.path, fs, volume, node, stat, depth };
        Ok(match visit(Step::Leave(entry))? {
            Go::Stop => ControlFlow::Break(()),
            Go::On | Go::Skip => ControlFlow::Continue(()),
        })
    }
}
