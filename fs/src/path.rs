//! The only place that resolves a path: components, symbolic links, `..`, mount points.

use std::sync::Arc;

use racker_formats::error::{Fault, Kind, Result};

use crate::filesystem::{DirEntry, Filesystem, Name, NodeId, NodeKind};

/// Symbolic links followed in one walk, as Linux has it (`MAXSYMLINKS`).
const SYMLINKS_MAX: usize = 40;
/// Components of one path, links' targets included: `PATH_MAX` / 2 per link.
const COMPONENTS_MAX: usize = 2048 * (SYMLINKS_MAX + 1);

/// What can be wrong with a path.
#[derive(Debug, thiserror::Error)]
pub enum PathFault {
    /// Nothing there.
    #[error("{0}: no such file or directory")]
    NotFound(String),
    /// A component that is no directory has something behind it.
    #[error("{0}: not a directory")]
    NotDir(String),
    /// Links that lead to links without end.
    #[error("{0}: more than {SYMLINKS_MAX} symbolic links")]
    Loop(String),
    /// A path that ends in nothing that an entry could be called.
    #[error("{0}: names no entry of a directory")]
    NoEntry(String),
    /// The root of a filesystem cannot be removed, moved or replaced.
    #[error("{0}: another filesystem is mounted there")]
    MountPoint(String),
    /// A path that is longer than anything real.
    #[error("the path has too many components")]
    Long,
}

impl Fault for PathFault {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) => Kind::NotFound,
            Self::NotDir(_) => Kind::NotDir,
            Self::Loop(_) | Self::Long | Self::NoEntry(_) | Self::MountPoint(_) => Kind::Invalid,
        }
    }
}

/// A filesystem, or a folder of one, at a place of the tree.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Where: components from the root; none for the root itself.
    pub at: Vec<Name>,
    /// Which volume of the disk it is (an index of [`Inspection::volumes`](crate::inspect::Inspection)).
    pub volume: usize,
    /// The filesystem.
    pub fs: Arc<dyn Filesystem>,
    /// Its folder that is seen there.
    pub root: NodeId,
}

/// A tree put together from mounts. The first one is the root.
#[derive(Clone, Debug)]
pub struct View {
    mounts: Vec<Mount>,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub struct Place {
    /// The volume of the disk.
    pub volume: usize,
    /// The filesystem.
    pub fs: Arc<dyn Filesystem>,
    /// The node.
    pub node: NodeId,
    /// The entry that names it; none for the root of a mount.
    pub entry: Option<(NodeId, Name)>,
    /// Components from the root of the tree, without links.
    pub path: Vec<Name>,
}

impl Place {
    /// The path as text, safe to print only after cleaning.
    pub fn display(&self) -> String {
        show(&self.path)
    }
}

/// The entry of a directory that a path means, whether it is there or not.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The directory.
    pub dir: Place,
    /// The name in it.
    pub name: Name,
    /// What it names, if anything; a symbolic link is not followed.
    pub found: Option<Place>,
}

impl Entry {
    /// The path as text, safe to print only after cleaning.
    pub fn display(&self) -> String {
        match (&self.found, self.dir.path.is_empty()) {
            (Some(found), _) => found.display(),
            (None, true) => format!("/{}", String::from_utf8_lossy(self.name.as_bytes())),
            (None, false) => {
                format!("{}/{}", self.dir.display(), String::from_utf8_lossy(self.name.as_bytes()))
            }
        }
    }
}

/// A path without what is behind its last component, cut before that component.
pub(crate) fn split_last(path: &[u8]) -> Result<(&[u8], Name)> {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |i| i.saturating_add(1));
    let whole = path.get(..end).unwrap_or_default();
    let start = whole.iter().rposition(|b| *b == b'/').map_or(0, |i| i.saturating_add(1));
    let (dir, last) = whole.split_at_checked(start).unwrap_or_default();
    let nothing = || PathFault::NoEntry(String::from_utf8_lossy(path).into_owned());
    Ok((if dir.is_empty() { b"/" } else { dir }, Name::new(last).map_err(|_| nothing())?))
}

/// Components as a path.
pub fn show(path: &[Name]) -> String {
    if path.is_empty() {
        return "/".into();
    }
    path.iter().fold(String::new(), |mut s, n| {
        s.push('/');
        s.push_str(&String::from_utf8_lossy(n.as_bytes()));
        s
    })
}

/// What is still to be walked, the next component last.
struct Todo(Vec<Vec<u8>>);

impl Todo {
    fn push(&mut self, path: &[u8]) -> Result<()> {
        let parts = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").rev();
        for part in parts {
            if self.0.len() >= COMPONENTS_MAX {
                return Err(PathFault::Long.into());
            }
            self.0.push(part.to_vec());
        }
        Ok(())
    }
}

impl View {
    /// A tree with one filesystem.
    pub fn single(volume: usize, fs: Arc<dyn Filesystem>) -> Self {
        let root = fs.root();
        Self { mounts: vec![Mount { at: Vec::new(), volume, fs, root }] }
    }

    /// A tree from mounts, the root first.
    pub fn new(mounts: Vec<Mount>) -> Self {
        Self { mounts }
    }

    /// The mounts, the root first.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The root of the tree.
    pub fn root(&self) -> Result<Place> {
        let mount = self.mounts.first().ok_or_else(|| PathFault::NotFound("/".into()))?;
        Ok(enter(mount))
    }

    /// Where `path` leads; a link at its end is followed if `follow` says so.
    ///
    /// Relative paths start at the root, `..` never leaves it, and links are the image's own: an absolute one
    /// starts at the image's root again.
    pub fn resolve(&self, path: &[u8], follow: bool) -> Result<Place> {
        self.resolve_from(self.root()?, path, follow)
    }

    /// The entry that `path` means. The directory that holds it exists.
    pub fn entry(&self, path: &[u8]) -> Result<Entry> {
        let (above, name) = split_last(path)?;
        let dir = self.resolve(above, true)?;
        if dir.fs.stat(dir.node)?.kind != NodeKind::Dir {
            return Err(PathFault::NotDir(dir.display()).into());
        }
        self.entry_of(dir, name)
    }

    /// The entry `name` of a directory.
    pub fn entry_of(&self, dir: Place, name: Name) -> Result<Entry> {
        let found = match self.step(&dir, name.as_bytes()) {
            Ok(place) if place.entry.is_none() => return Err(PathFault::MountPoint(place.display()).into()),
            Ok(place) => Some(place),
            Err(e) if e.kind() == Kind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(Entry { dir, name, found })
    }

    /// What `name` of a directory names, none if nothing; a link is followed if `follow` says so.
    pub fn below(&self, dir: &Place, name: &Name, follow: bool) -> Result<Option<Place>> {
        let next = match self.step(dir, name.as_bytes()) {
            Ok(next) => next,
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        if !follow || next.fs.stat(next.node)?.kind != NodeKind::Link {
            return Ok(Some(next));
        }
        // From the root on: a link may lead up.
        let mut path = dir.path.iter().map(Name::as_bytes).collect::<Vec<_>>();
        path.push(name.as_bytes());
        match self.resolve(&path.join(&b'/'), true) {
            Ok(place) => Ok(Some(place)),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn resolve_from(&self, start: Place, path: &[u8], follow: bool) -> Result<Place> {
        let root = self.root()?;
        // The places above the current one, for `..`.
        let mut above: Vec<Place> = Vec::new();
        let mut here = start;
        let mut links = 0usize;
        let mut todo = Todo(Vec::new());
        let must_be_dir = path.ends_with(b"/") && path.iter().any(|b| *b != b'/');
        todo.push(path)?;
        while let Some(part) = todo.0.pop() {
            if part == b".." {
                here = above.pop().unwrap_or_else(|| root.clone());
                continue;
            }
            if here.fs.stat(here.node)?.kind != NodeKind::Dir {
                return Err(PathFault::NotDir(here.display()).into());
            }
            let next = self.step(&here, &part)?;
            let last = todo.0.is_empty();
            let is_link = next.fs.stat(next.node)?.kind == NodeKind::Link;
            if is_link && (!last || follow || must_be_dir) {
                links = links.saturating_add(1);
                if links > SYMLINKS_MAX {
                    return Err(PathFault::Loop(next.display()).into());
                }
                let target = next.fs.read_link(next.node)?;
                if target.first() == Some(&b'/') {
                    above.clear();
                    here = root.clone();
                }
                todo.push(&target)?;
                continue;
            }
            above.push(std::mem::replace(&mut here, next));
        }
        if must_be_dir && here.fs.stat(here.node)?.kind != NodeKind::Dir {
            return Err(PathFault::NotDir(here.display()).into());
        }
        Ok(here)
    }

    /// The place of an entry that was read from the folder at `dir`, over a mount point if there is one.
    pub fn child(&self, dir: &Place, entry: DirEntry) -> Place {
        let mut path = dir.path.clone();
        path.push(entry.name.clone());
        if let Some(mount) = self.mounts.iter().skip(1).find(|m| m.at == path) {
            return enter(mount);
        }
        let named = Some((dir.node, entry.name));
        Place { volume: dir.volume, fs: Arc::clone(&dir.fs), node: entry.node, entry: named, path }
    }

    /// One component down, over a mount point if there is one.
    fn step(&self, here: &Place, part: &[u8]) -> Result<Place> {
        let missing = |here: &Place| {
            let dir = if here.path.is_empty() { String::new() } else { here.display() };
            PathFault::NotFound(format!("{dir}/{}", String::from_utf8_lossy(part)))
        };
        // A component that cannot be a name (too long) names nothing.
        let Ok(name) = Name::new(part) else { return Err(missing(here).into()) };
        let mounted = self.mounts.iter().skip(1).find(|m| {
            m.at.split_last().is_some_and(|(last, above)| *last == name && above == here.path.as_slice())
        });
        if let Some(mount) = mounted {
            return Ok(enter(mount));
        }
        let Some(node) = here.fs.lookup(here.node, &name)? else { return Err(missing(here).into()) };
        Ok(self.child(here, DirEntry { name, node, kind: None }))
    }
}

fn enter(mount: &Mount) -> Place {
    Place {
        volume: mount.volume,
        fs: Arc::clone(&mount.fs),
        node: mount.root,
        entry: None,
        path: mount.at.clone(),
    }
}

/// Reads a whole file of at most `max` bytes.
pub fn read_all(fs: &dyn Filesystem, node: NodeId, max: u64) -> Result<Vec<u8>> {
    let size = fs.stat(node)?.size;
    if size > max {
        let what = "a file that is read whole";
        return Err(racker_formats::error::Common::TooLarge { what, need: size, max }.into());
    }
    let mut data = vec![0; racker_formats::wire::index(size)?];
    let mut done = 0usize;
    while let Some(rest) = data.get_mut(done..).filter(|r| !r.is_empty()) {
        let n = fs.read(node, racker_formats::wire::len64(done), rest)?;
        if n == 0 {
            break;
        }
        done = done.saturating_add(n);
    }
    data.truncate(done);
    Ok(data)
}
