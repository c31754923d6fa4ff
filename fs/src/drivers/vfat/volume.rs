//! An opened FAT filesystem, as callers see it.
//!
//! A node is the place of its directory entry: the byte offset of the short entry, in units of 32 bytes. The root
//! directory has no entry and is node 1.

use std::ops::ControlFlow;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Kind, Result, Within};
use racker_formats::wire::{bytes, index, len64, part_mut, take};

use super::boot_sector::{BOOT_BYTES, BootSector, Root, Width};
use super::dir::{Dir, Entry, Item};
use super::fault::FatFault;
use super::layout::{DELETED, END, ENTRY_BYTES, RawEntry, RawInfo, attr};
use super::name;
use super::places::Places;
use super::table::Table;
use super::time::time;
use crate::claims::Claims;
use crate::filesystem::{
    DirEntry, Extent, ExtentKind, Filesystem, Flags, FsFacts, Name, NodeId, NodeKind, Stat, Time, Visit,
    VisitXattr,
};

pub(super) const ROOT: NodeId = NodeId(1);
/// Bytes of a table that are gone through to count what is free; beyond, the hint is taken.
const COUNTED_MAX: u64 = 4 << 20;
/// Marks of the sector with hints.
pub(super) const INFO_SIGNATURES: [u32; 2] = [0x4161_5252, 0x6141_7272];

/// A volume with a FAT12, FAT16 or FAT32 filesystem.
#[derive(Debug)]
pub(super) struct Fat {
    pub(super) disk: Disk,
    pub(super) boot: BootSector,
    pub(super) table: Table,
    /// Clusters of directories, where nobody has made sure that each has one owner.
    pub(super) claims: Option<Claims>,
    /// Where nodes have gone since.
    pub(super) places: Places,
}

fn wrong_kind(kind: Kind, what: &'static str) -> racker_formats::Error {
    FatFault::WrongKind { kind, what }.into()
}

impl Fat {
    pub(super) fn open(disk: Disk) -> Result<Self> {
        let boot = BootSector::read(&disk)?;
        let table = Table::open(&disk, &boot)?;
        Ok(Self { disk, boot, table, claims: Some(Claims::default()), places: Places::default() })
    }

    /// The byte where a cluster starts; all of it is on the volume.
    pub(super) fn byte_of(&self, cluster: u32) -> Result<u64> {
        let number = u64::from(cluster.saturating_sub(2));
        let at = self.boot.data_start.saturating_add(number << self.boot.cluster.shift());
        let (len, size) = (self.boot.cluster.bytes(), self.disk.size());
        if self.disk.check(at, len).is_err() {
            return Err(FatFault::PastVolume { cluster, size }.into());
        }
        Ok(at)
    }

    /// The directory entry that a node is; `None` for the root.
    pub(super) fn entry(&self, node: NodeId) -> Result<Option<RawEntry>> {
        if node == ROOT {
            return Ok(None);
        }
        let at = self.places.place(node)?.saturating_mul(len64(ENTRY_BYTES));
        let lowest = match self.boot.root {
            Root::Fixed(start, _) => start,
            Root::Chain(_) => self.boot.data_start,
        };
        let len = len64(ENTRY_BYTES);
        if at < lowest || self.disk.check(at, len).is_err() {
            return Err(FatFault::Node(node.0).into());
        }
        let raw = take::<RawEntry>(&bytes(&self.disk, at, len, len, "directory entry")?, 0, "entry")?;
        if matches!(raw.name[0], END | DELETED) || raw.attr & attr::VOLUME_ID != 0 {
            return Err(FatFault::Node(node.0).into());
        }
        Ok(Some(raw))
    }

    pub(super) fn first_cluster(&self, raw: &RawEntry) -> u32 {
        let hi = if self.boot.width == Width::Fat32 { raw.fst_clus_hi.get() } else { 0 };
        u32::from(hi) << 16 | u32::from(raw.fst_clus_lo.get())
    }

    pub(super) fn dir(&self, node: NodeId) -> Result<Dir> {
        let root = match self.entry(node)? {
            None => self.boot.root,
            Some(raw) if raw.attr & attr::DIRECTORY != 0 => Root::Chain(self.first_cluster(&raw)),
            Some(_) => return Err(wrong_kind(Kind::NotDir, "not a directory")),
        };
        Ok(Dir { node, root })
    }

    pub(super) fn root_dir(&self) -> Dir {
        Dir { node: ROOT, root: self.boot.root }
    }

    /// A file's first cluster and size.
    pub(super) fn file(&self, node: NodeId) -> Result<(u32, u64)> {
        match self.entry(node)? {
            Some(raw) if raw.attr & attr::DIRECTORY == 0 => {
                Ok((self.first_cluster(&raw), raw.file_size.get().into()))
            }
            _ => Err(wrong_kind(Kind::IsDir, "is a directory")),
        }
    }

    /// Visits the files and directories in a directory.
    fn entries(&self, dir: Dir, visit: &mut dyn FnMut(Entry) -> Result<ControlFlow<()>>) -> Result<()> {
        self.items(dir, &mut |item| match item {
            Item::Entry(entry) => visit(entry),
            Item::Label(_) => Ok(ControlFlow::Continue(())),
        })
    }

    /// The place of the entry with a name. There may be several that are one to FAT, made by systems that tell them
    /// apart: then it is the one of just these letters, or else the first.
    pub(super) fn find(&self, dir: Dir, name: &str) -> Result<Option<u64>> {
        let mut found = None;
        self.entries(dir, &mut |entry| {
            let exact = entry.name == name || entry.short == name;
            if exact || found.is_none() && (name::same(&entry.name, name) || name::same(&entry.short, name)) {
                found = Some(entry.at >> 5);
            }
            Ok(if exact { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(found)
    }

    /// Visits the stretches of free clusters in order, if the volume was closed.
    pub(super) fn free_runs(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        if self.boot.is_dirty || !self.table.is_clean()? {
            return Ok(false);
        }
        let mut cluster = 2;
        while let Some((first, count)) = self.table.free_run(cluster)? {
            let start = self.byte_of(first)?;
            let end = first.saturating_add(count);
            self.byte_of(end.saturating_sub(1))?;
            let span = Span::new(start, u64::from(count) << self.boot.cluster.shift())?;
            if visit(span)?.is_break() {
                break;
            }
            cluster = end;
        }
        Ok(true)
    }

    /// The run of a file's clusters that starts `skip` clusters from its beginning: the first byte and the number
    /// of bytes, `max` at most.
    pub(super) fn run(&self, first: u32, size: u64, skip: u64, max: u64) -> Result<(u64, u64)> {
        let Some(cluster) = self.table.seek(first, skip)? else {
            return Err(FatFault::ChainEnds { clusters: skip, size }.into());
        };
        let count = self.table.run(cluster, self.boot.cluster.count(max))?;
        let last = cluster.saturating_add(u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX));
        self.byte_of(last)?;
        Ok((self.byte_of(cluster)?, count << self.boot.cluster.shift()))
    }

    /// The label in the root directory. The boot sector repeats it, but is often not kept up to date.
    fn label(&self) -> Result<Option<String>> {
        let mut found = None;
        self.items(self.root_dir(), &mut |item| {
            Ok(match item {
                Item::Label(raw) => {
                    found = Some(name::label(&raw));
                    ControlFlow::Break(())
                }
                Item::Entry(_) => ControlFlow::Continue(()),
            })
        })?;
        Ok(found.filter(|l| !l.is_empty()))
    }

    fn free_clusters(&self) -> Result<u64> {
        if self.boot.fat_bytes > COUNTED_MAX
            && let Some(sector) = self.boot.info_sector
        {
            let at = sector.saturating_mul(self.boot.sector);
            let info = bytes(&self.disk, at, BOOT_BYTES, BOOT_BYTES, "FSInfo")?;
            let info = take::<RawInfo>(&info, 0, "FSInfo")?;
            let free = info.free_count.get();
            if [info.lead_sig.get(), info.struc_sig.get()] == INFO_SIGNATURES && free <= self.boot.clusters {
                return Ok(free.into());
            }
        }
        self.table.count_free()
    }

    /// A directory's links: its own two and one from each directory in it.
    fn links(&self, dir: Dir) -> Result<u64> {
        let mut links = 2u64;
        self.entries(dir, &mut |entry| {
            links = links.saturating_add(u64::from(entry.raw.attr & attr::DIRECTORY != 0));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(links)
    }
}

fn stat(kind: NodeKind, mode: u32, size: u64, allocated: u64, links: u64, times: [Time; 3]) -> Stat {
    let [mtime, atime, crtime] = times;
    Stat {
        kind,
        mode,
        uid: 0,
        gid: 0,
        size,
        allocated,
        links,
        atime,
        mtime,
        ctime: mtime,
        crtime: (crtime != Time::default()).then_some(crtime),
        rdev: (0, 0),
        flags: Flags::empty(),
        project: 0,
        generation: 0,
    }
}

impl Fat {
    /// What the filesystem says about itself, with so many free clusters.
    pub(super) fn facts_with(&self, free: u64) -> Result<FsFacts> {
        let width = match self.boot.width {
            Width::Fat12 => "fat12",
            Width::Fat16 => "fat16",
            Width::Fat32 => "fat32",
        };
        let id = self.boot.volume_id;
        let mut features = vec![width.to_string()];
        if self.boot.is_dirty {
            features.push("dirty".into());
        }
        Ok(FsFacts {
            kind: "vfat",
            label: self.label()?,
            uuid: (id != 0).then(|| format!("{:04X}-{:04X}", id >> 16, id & 0xffff)),
            size: self.boot.size,
            free: free << self.boot.cluster.shift(),
            block_size: u32::try_from(self.boot.cluster.bytes()).unwrap_or(u32::MAX),
            features,
            replayed: false,
            read_only: None,
        })
    }

    /// Everything about a node; `measure` says how many bytes a directory has, and how many links.
    pub(super) fn stat_with(
        &self,
        node: NodeId,
        measure: impl FnOnce(Dir) -> Result<(u64, u64)>,
    ) -> Result<Stat> {
        let place = || format!("directory entry {}", node.0);
        let Some(raw) = self.entry(node)? else {
            let (size, links) = measure(self.root_dir())?;
            return Ok(stat(NodeKind::Dir, 0o755, size, size, links, [Time::default(); 3]));
        };
        let times = [
            time(raw.wrt_date.get(), raw.wrt_time.get(), 0),
            time(raw.lst_acc_date.get(), 0, 0),
            time(raw.crt_date.get(), raw.crt_time.get(), raw.crt_time_tenth),
        ];
        // A mount shows programs and data alike, as FAT does not know which is which.
        let mode = if raw.attr & attr::READ_ONLY != 0 { 0o555 } else { 0o755 };
        if raw.attr & attr::DIRECTORY != 0 {
            let dir = Dir { node, root: Root::Chain(self.first_cluster(&raw)) };
            let (size, links) = measure(dir).within(place)?;
            return Ok(stat(NodeKind::Dir, mode, size, size, links, times));
        }
        let size = u64::from(raw.file_size.get());
        let allocated = self.boot.cluster.ceil(size).unwrap_or(size);
        Ok(stat(NodeKind::File, mode, size, allocated, 1, times))
    }
}

impl Filesystem for Fat {
    fn facts(&self) -> Result<FsFacts> {
        self.facts_with(self.free_clusters()?)
    }

    fn free_space(&self, visit: &mut Visit<'_, Span>) -> Result<bool> {
        // Nothing is free that a file or another table claims: who takes the space takes it for good.
        self.verify()?;
        self.free_runs(visit)
    }

    fn root(&self) -> NodeId {
        ROOT
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.stat_with(node, |dir| Ok((self.dir_bytes(dir)?, self.links(dir)?)))
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let Ok(wanted) = std::str::from_utf8(name.as_bytes()) else { return Ok(None) };
        let place = self.find(self.dir(dir)?, wanted).within(|| format!("directory entry {}", dir.0))?;
        place.map(|place| self.places.node(place)).transpose()
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        let place = || format!("directory entry {}", dir.0);
        // What the visitor says is none of ours: it must not get the place.
        let mut theirs = None;
        self.entries(self.dir(dir)?, &mut |entry| {
            let is_dir = entry.raw.attr & attr::DIRECTORY != 0;
            let kind = Some(if is_dir { NodeKind::Dir } else { NodeKind::File });
            let name = Name::new(entry.name.as_bytes())?;
            match visit(DirEntry { name, node: self.places.node(entry.at >> 5)?, kind }) {
                Ok(flow) => Ok(flow),
                Err(e) => {
                    theirs = Some(e);
                    Ok(ControlFlow::Break(()))
                }
            }
        })
        .within(place)?;
        theirs.map_or(Ok(()), Err)
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let (first, size) = self.file(file)?;
        let len = index(size.saturating_sub(at).min(len64(buf.len())))?;
        let mut done = 0usize;
        while done < len {
            let rest = len64(len.saturating_sub(done));
            let (skip, within) = self.boot.cluster.split(at.saturating_add(len64(done)));
            let (start, there) = self
                .run(first, size, skip, within.saturating_add(rest))
                .within(|| format!("directory entry {}", file.0))?;
            let take = index(there.saturating_sub(within).min(rest))?;
            let target = part_mut(buf, done, take, "read")?;
            self.disk.read_at(start.saturating_add(within), target)?;
            done = done.saturating_add(take);
        }
        Ok(done)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        let (first, size) = self.file(file)?;
        let mut at = 0u64;
        while at < size {
            let (skip, _) = self.boot.cluster.split(at);
            let rest = size.saturating_sub(at);
            let (start, there) =
                self.run(first, size, skip, rest).within(|| format!("directory entry {}", file.0))?;
            let len = there.min(rest);
            if visit(Extent { at, len, kind: ExtentKind::Data(start) })?.is_break() {
                break;
            }
            at = at.saturating_add(len);
        }
        Ok(())
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        self.entry(link)?;
        Err(wrong_kind(Kind::Invalid, "not a symbolic link"))
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        let _ = visit;
        self.entry(node).map(|_| ())
    }
}
