//! Nodes put into a disk that is being edited, one after the other: below one directory, over what is there.
//!
//! A directory that is there stays and gets the new attributes; so does the directory that a symbolic link leads
//! to, as `/lib` does on many systems. Anything else is replaced. Where another filesystem is mounted, nodes go to
//! that one. Whatever comes from outside can name a place below the directory only.

use std::collections::{BTreeMap, HashMap};

use racker_formats::error::{Kind, Result, Within};

use super::{Notes, TreeFault};
use crate::edit::{Session, Writer};
use crate::filesystem::{Change, Keeps, Name, New, NewKind, NodeId, NodeKind, Time};
use crate::path::{Entry, Place, View, show};
use crate::selinux::{ATTRIBUTE, Labels};

/// Directories whose place is remembered: a stream goes through one after the other.
const PLACES_MAX: usize = 4096;
/// Mode of a directory that nothing tells about.
const DIR_MODE: u32 = 0o755;

/// What a node shall be like besides its kind and content.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access, if it is to be kept.
    pub atime: Option<Time>,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes under the kernel's names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A node that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    volume: usize,
    node: NodeId,
}

/// Puts nodes below a directory.
#[derive(Debug)]
pub struct Put<'p, 't> {
    session: &'p mut Session<'t>,
    view: &'p View,
    base: Place,
    now: Time,
    places: HashMap<Vec<u8>, Place>,
    /// The policy, and where the system has the root of `view`.
    labels: Option<(&'p Labels, Vec<Name>)>,
    /// Directories get their times when nothing more is put into them.
    dirs: Vec<(Spot, Option<Time>, Time)>,
    /// What filesystems did not take: how often, and the first path.
    lost: BTreeMap<&'static str, (u64, String)>,
}

impl<'p, 't> Put<'p, 't> {
    /// Puts below `base`, a directory of `view`, whose volumes are those of `session`.
    pub fn new(session: &'p mut Session<'t>, view: &'p View, base: Place, now: Time) -> Self {
        let (places, dirs, lost) = (HashMap::new(), Vec::new(), BTreeMap::new());
        Self { session, view, base, now, places, labels: None, dirs, lost }
    }

    /// Gives new nodes that come without a label of SELinux the one that the policy on the disk has for them. The
    /// policy's own system sees the root of the view at the path beside it.
    pub fn with_labels(self, labels: Option<(&'p Labels, Vec<Name>)>) -> Self {
        Self { labels, ..self }
    }

    /// Makes a node at `path`, whose components are joined by `/`; none for what the filesystem there cannot hold.
    /// An empty path is the directory itself.
    pub fn node(&mut self, path: &[Name], kind: NewKind<'_>, meta: &Meta) -> Result<Option<Spot>> {
        self.make(path, kind, meta).within(|| show(path))
    }

    fn make(&mut self, path: &[Name], kind: NewKind<'_>, meta: &Meta) -> Result<Option<Spot>> {
        let Some((name, above)) = path.split_last() else {
            let spot = Spot { volume: self.base.volume, node: self.base.node };
            return self.directory(spot, path, meta).map(Some);
        };
        let dir = self.place(above)?;
        // A directory that is mounted over is the mounted one.
        let over = self.view.mounts().iter().skip(1).find(|m| {
            m.at.split_last().is_some_and(|(last, above)| last == name && above == dir.path.as_slice())
        });
        if let (Some(mount), NewKind::Dir) = (over, kind) {
            return self.directory(Spot { volume: mount.volume, node: mount.root }, path, meta).map(Some);
        }
        let entry = self.view.entry_of(dir, name.clone())?;
        let kept = self.session.writer(entry.dir.volume)?.keeps();
        let need = match kind {
            NewKind::File | NewKind::Dir => Keeps::empty(),
            NewKind::Link(_) => Keeps::SYMLINKS,
            _ => Keeps::SPECIAL,
        };
        if !kept.contains(need) {
            self.lose(
                if need == Keeps::SYMLINKS { "symbolic links" } else { "devices, pipes and sockets" },
                path,
            );
            return Ok(None);
        }
        if let Some(found) = self.make_way(&entry, kind)? {
            return self.directory(found, path, meta).map(Some);
        }
        let owners = kept.contains(Keeps::OWNERS);
        let (uid, gid) = if owners { (meta.uid, meta.gid) } else { (0, 0) };
        if !owners && (meta.uid, meta.gid) != (0, 0) {
            self.lose("owners", path);
        }
        let new = New { kind, mode: meta.mode, uid, gid };
        let writer = self.session.writer(entry.dir.volume)?;
        let node = writer.create(entry.dir.node, &entry.name, &new, self.now)?;
        let spot = Spot { volume: entry.dir.volume, node };
        self.label(spot, &entry, kind, meta)?;
        self.xattrs(spot, path, meta)?;
        match kind {
            NewKind::Dir => self.dirs.push((spot, meta.atime, meta.mtime)),
            NewKind::File => {}
            _ => self.times(spot, meta.atime, meta.mtime)?,
        }
        Ok(Some(spot))
    }

    /// Writes to a file that was put.
    pub fn write(&mut self, file: Spot, at: u64, bytes: &[u8]) -> Result<()> {
        self.session.writer(file.volume)?.write(file.node, at, bytes, self.now)
    }

    /// The content of a file is complete: it has `size` bytes.
    pub fn finish_file(&mut self, file: Spot, size: u64, meta: &Meta) -> Result<()> {
        let now = self.now;
        let writer = self.session.writer(file.volume)?;
        if writer.filesystem().stat(file.node)?.size != size {
            writer.truncate(file.node, size, now)?;
        }
        self.times(file, meta.atime, meta.mtime)
    }

    /// Makes `path` one more name of what `target`, of the same tree, names.
    pub fn link(&mut self, path: &[Name], target: &[Name]) -> Result<()> {
        self.make_link(path, target).within(|| show(path))
    }

    fn make_link(&mut self, path: &[Name], target: &[Name]) -> Result<()> {
        let missing = || TreeFault::LinkMissing { target: show(target) };
        let (Some((name, above)), Some((old_name, old_above))) = (path.split_last(), target.split_last())
        else {
            return Err(missing().into());
        };
        let old = self.place(old_above)?;
        let old = self.view.entry_of(old, old_name.clone())?.found.ok_or_else(missing)?;
        let dir = self.place(above)?;
        let entry = self.view.entry_of(dir, name.clone())?;
        if entry.found.as_ref().is_some_and(|f| (f.volume, f.node) == (old.volume, old.node)) {
            return Ok(());
        }
        if entry.dir.volume != old.volume {
            return Err(TreeFault::LinkAcross { target: show(target) }.into());
        }
        if !self.session.writer(old.volume)?.keeps().contains(Keeps::HARD_LINKS) {
            self.lose("hard links", path);
            return Ok(());
        }
        self.make_way(&entry, NewKind::File)?;
        self.session.writer(old.volume)?.link(old.node, entry.dir.node, &entry.name, self.now)
    }

    /// Gives what was put at `path` an attribute that it did not come with.
    pub(super) fn xattr(&mut self, path: &[Name], name: &[u8], value: &[u8]) -> Result<()> {
        let place = match path.split_last() {
            None => Some(self.base.clone()),
            Some((last, above)) => {
                let dir = self.place(above)?;
                self.view.entry_of(dir, last.clone())?.found
            }
        };
        let Some(place) = place else { return Ok(()) };
        let meta = Meta { xattrs: vec![(name.to_vec(), value.to_vec())], ..Meta::default() };
        self.xattrs(Spot { volume: place.volume, node: place.node }, path, &meta).within(|| show(path))
    }

    /// Gives directories their times; says what was lost.
    pub fn finish(mut self) -> Result<Notes> {
        for (spot, atime, mtime) in std::mem::take(&mut self.dirs) {
            self.times(spot, atime, mtime)?;
        }
        let mut notes = Notes::default();
        for (what, (count, first)) in self.lost {
            notes.add(|| format!("{count} {what} left out, {first} first: they cannot be held there"));
        }
        Ok(notes)
    }

    /// The place of a directory, which is made if it is not there.
    fn place(&mut self, path: &[Name]) -> Result<Place> {
        let key = path.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/');
        if path.is_empty() {
            return Ok(self.base.clone());
        }
        if let Some(place) = self.places.get(&key) {
            return Ok(place.clone());
        }
        let mut at = self.base.clone();
        for (i, name) in path.iter().enumerate() {
            let below = path.get(..=i).unwrap_or(path);
            if let Some(next) = self.view.below(&at, name, true)? {
                at = next;
                continue;
            }
            let meta = Meta { mode: DIR_MODE, mtime: self.now, ..Meta::default() };
            self.make(below, NewKind::Dir, &meta)?;
            let missing = || TreeFault::LinkMissing { target: show(below) };
            at = self.view.below(&at, name, true)?.ok_or_else(missing)?;
        }
        if at.fs.stat(at.node)?.kind != NodeKind::Dir {
            return Err(crate::edit::EditFault::NotDir.into());
        }
        if self.places.len() >= PLACES_MAX {
            self.places.clear();
        }
        self.places.insert(key, at.clone());
        Ok(at)
    }

    /// Makes room for a new node of a kind. Returns the directory that stays, if that is what is there.
    fn make_way(&mut self, entry: &Entry, kind: NewKind<'_>) -> Result<Option<Spot>> {
        let Some(found) = &entry.found else { return Ok(None) };
        let there = found.fs.stat(found.node)?.kind;
        if kind == NewKind::Dir {
            let led = match there {
                NodeKind::Dir => Some(found.clone()),
                NodeKind::Link => self.view.below(&entry.dir, &entry.name, true).ok().flatten(),
                _ => None,
            };
            if let Some(led) = led.filter(|p| p.fs.stat(p.node).is_ok_and(|s| s.kind == NodeKind::Dir)) {
                return Ok(Some(Spot { volume: led.volume, node: led.node }));
            }
        }
        self.session.writer(entry.dir.volume)?.unlink(entry.dir.node, &entry.name, self.now)?;
        if there == NodeKind::Dir || there == NodeKind::Link {
            self.places.clear();
        }
        Ok(None)
    }

    /// Gives a directory that is there the attributes that it shall have.
    fn directory(&mut self, spot: Spot, path: &[Name], meta: &Meta) -> Result<Spot> {
        let now = self.now;
        let writer = self.session.writer(spot.volume)?;
        let keeps = writer.keeps();
        let owners = keeps.contains(Keeps::OWNERS);
        let change = Change {
            mode: Some(meta.mode),
            uid: owners.then_some(meta.uid),
            gid: owners.then_some(meta.gid),
            ..Change::default()
        };
        writer.set_attributes(spot.node, &change, now)?;
        self.xattrs(spot, path, meta)?;
        self.dirs.push((spot, meta.atime, meta.mtime));
        Ok(spot)
    }

    fn xattrs(&mut self, spot: Spot, path: &[Name], meta: &Meta) -> Result<()> {
        if meta.xattrs.is_empty() {
            return Ok(());
        }
        let now = self.now;
        let writer: &mut Writer<'t> = self.session.writer(spot.volume)?;
        if !writer.keeps().contains(Keeps::XATTRS) {
            self.lose("extended attributes", path);
            return Ok(());
        }
        let mut full = false;
        for (name, value) in &meta.xattrs {
            match writer.set_xattr(spot.node, name, Some(value), now) {
                // Filesystems have little room for these. If the disk were full, the next file would say so.
                Err(e) if e.kind() == Kind::NoSpace => full = true,
                done => done?,
            }
        }
        if full {
            self.lose("extended attributes", path);
        }
        Ok(())
    }

    fn label(&mut self, spot: Spot, entry: &Entry, kind: NewKind<'_>, meta: &Meta) -> Result<()> {
        let Some((labels, prefix)) = &self.labels else { return Ok(()) };
        if meta.xattrs.iter().any(|(name, _)| name == ATTRIBUTE) {
            return Ok(());
        }
        let path: Vec<Name> = prefix.iter().chain(&entry.dir.path).chain([&entry.name]).cloned().collect();
        let now = self.now;
        match labels.label(show(&path).as_bytes(), kind.kind()) {
            Some(label) => self.session.writer(spot.volume)?.give_label(spot.node, &label, now),
            None => Ok(()),
        }
    }

    fn times(&mut self, spot: Spot, atime: Option<Time>, mtime: Time) -> Result<()> {
        let change = Change { atime: Some(atime.unwrap_or(mtime)), mtime: Some(mtime), ..Change::default() };
        let now = self.now;
        self.session.writer(spot.volume)?.set_attributes(spot.node, &change, now)
    }

    /// Something about the node at `path` is left out.
    pub(super) fn lose(&mut self, what: &'static str, path: &[Name]) {
        let (count, _) = self.lost.entry(what).or_insert_with(|| (0, show(path)));
        *count = count.saturating_add(1);
    }
}
