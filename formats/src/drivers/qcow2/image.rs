//! An opened image as a block device.
//!
//! Who reads or writes goes through `movers`, so that host clusters which nobody names any more are handed out only
//! after everybody who may still be on the way to them. Writers and flushes share `gate`; whoever changes the image
//! as a whole (an edit, another size, a snapshot, a repair) holds it alone.
//!
//! Locks are taken in this order: `gate`, `landing`, `movers`, claims on clusters in order of their number,
//! `allocator`, `state`, `owners`.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::alloc::Allocator;
use super::bitmap::{Bitmap, read_bitmaps};
use super::entry::EntryRules;
use super::fault::Fault;
use super::header::{Compression, Header};
use super::land::writable;
use super::owners::Owners;
use super::pack;
use super::refcount::{Clusters, Refcounts};
use super::snapshot::SnapshotTable;
use super::tables::Tables;
use crate::block::{BlockDevice, BlockSize, Caps, Change, Disk, Run, RunKind, Span, Support};
use crate::check::Report;
use crate::error::{Common, Result, Within};
use crate::map::Location;
use crate::mapped::{self, BlockMap, Busy, HostOffset, Mapping, Packed, Place, Recent};
use crate::opening::{Opening, Reference};
use crate::registry::{Backing, Bitmaps, Facts, Image, Snapshots};
use crate::unopened::Unopened;
use crate::wire::index;

/// A qcow2 image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    pub(super) file: Disk,
    /// The external data file.
    pub(super) data_file: Option<Disk>,
    pub(super) parent: Option<Disk>,
    parent_image: Option<Arc<dyn Image>>,
    pub(super) rules: EntryRules,
    pub(super) compression: Compression,
    state: RwLock<State>,
    /// Free clusters, once somebody has asked for one.
    pub(super) allocator: Mutex<Option<Allocator>>,
    /// Where the image's own structures lie, once somebody has asked for a cluster.
    pub(super) owners: Arc<RwLock<Owners>>,
    /// Whether the image was made ready for its first write.
    pub(super) prepared: AtomicBool,
    gate: RwLock<()>,
    /// One flush after the other.
    pub(super) landing: Mutex<()>,
    movers: RwLock<()>,
    pub(super) busy: Busy,
    /// What no table in memory names any more, once for each reference that went.
    pub(super) freed: Mutex<Vec<Clusters>>,
    pub(super) recent: Recent,
    /// Another parent is about to come: zeroes are written down even where this one has zeroes.
    leaving: AtomicBool,
    /// Whether clusters look as if they were set aside in advance, once somebody has asked.
    ahead: OnceLock<bool>,
    /// What packs clusters, once somebody has asked.
    pub(super) packer: OnceLock<pack::ClusterPack>,
}

/// What changes in an image's life.
#[derive(Debug)]
pub(super) struct State {
    pub(super) header: Header,
    pub(super) tables: Tables,
    pub(super) snapshots: Arc<SnapshotTable>,
    pub(super) bitmaps: Arc<Vec<Bitmap>>,
}

impl Qcow2 {
    /// Opens an image and the files that its header names.
    pub(super) fn open(file: Disk, opening: &mut Opening) -> Result<Self> {
        let header = Header::read(&file)?;
        let data_file = match &header.data_file {
            Some(reference) => Some(opening.follow_file(reference)?),
            None => None,
        };
        let parent = match &header.backing {
            Some(reference) if !opening.alone() => Some(opening.follow_image(reference)?.1),
            _ => None,
        };
        Self::with_parent(file, header, data_file, parent)
    }

    /// An image that was made just now, with the files that it names. Nobody has said where its backing file may be
    /// looked for if `parent` is missing.
    pub(super) fn created(
        file: Disk,
        data_file: Option<Disk>,
        parent: Option<Arc<dyn Image>>,
    ) -> Result<Self> {
        let header = Header::read(&file)?;
        Self::with_parent(file, header, data_file, parent)
    }

    /// A parent that is named and not open stands there, and fails when it is asked.
    fn with_parent(
        file: Disk,
        header: Header,
        data_file: Option<Disk>,
        parent: Option<Arc<dyn Image>>,
    ) -> Result<Self> {
        let not_open = header.backing.as_ref().map(|_| Disk::new(Unopened { size: header.size }));
        let mut new = Self::new(file, header, data_file, parent)?;
        new.parent = new.parent.or(not_open);
        Ok(new)
    }

    /// Reads the L1 table and the lists.
    fn new(
        file: Disk,
        header: Header,
        data_file: Option<Disk>,
        parent_image: Option<Arc<dyn Image>>,
    ) -> Result<Self> {
        let parent = parent_image.clone().map(|image| {
            let device: Arc<dyn BlockDevice> = image;
            Disk::from_arc(device).read_only()
        });
        let tables = Tables::read(&file, &header).within(|| "L1 table")?;
        let snapshots = Arc::new(SnapshotTable::read(&file, &header).within(|| "snapshot table")?);
        let bitmaps = Arc::new(read_bitmaps(&file, &header)?);
        Ok(Self {
            file,
            data_file,
            parent,
            parent_image,
            rules: tables.rules,
            compression: header.compression,
            state: RwLock::new(State { header, tables, snapshots, bitmaps }),
            allocator: Mutex::default(),
            owners: Arc::default(),
            prepared: AtomicBool::new(false),
            gate: RwLock::default(),
            landing: Mutex::default(),
            movers: RwLock::default(),
            busy: Busy::default(),
            freed: Mutex::default(),
            recent: Recent::default(),
            leaving: AtomicBool::new(false),
            ahead: OnceLock::new(),
            packer: OnceLock::new(),
        })
    }

    /// What the image is like now.
    pub(super) fn state(&self) -> Result<RwLockReadGuard<'_, State>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    /// The same, to be changed.
    pub(super) fn state_mut(&self) -> Result<RwLockWriteGuard<'_, State>> {
        self.state.write().map_err(|_| Common::Poisoned.into())
    }

    /// Held while data move.
    pub(super) fn moving(&self) -> Result<RwLockReadGuard<'_, ()>> {
        self.movers.read().map_err(|_| Common::Poisoned.into())
    }

    /// Waits for everybody who may be on the way to a place that no table in memory names any more.
    pub(super) fn wait_for_movers(&self) -> Result<()> {
        drop(self.movers.write().map_err(|_| Common::Poisoned)?);
        Ok(())
    }

    /// Held by one who writes or flushes.
    pub(super) fn enter(&self) -> Result<RwLockReadGuard<'_, ()>> {
        self.gate.read().map_err(|_| Common::Poisoned.into())
    }

    /// Keeps all who write away, with everything that was written on stable storage.
    pub(super) fn alone(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        let gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        self.sync()?;
        Ok(gate)
    }

    /// Copies of the header and the L1 table as they are now.
    pub(super) fn header_and_l1(&self) -> Result<(Header, Vec<u64>)> {
        let state = self.state()?;
        Ok((state.header.clone(), state.tables.l1.clone()))
    }

    /// Turns to other tables, which are on disk already.
    pub(super) fn turn_to(&self, header: Header, l1: Vec<u64>) -> Result<()> {
        let mut state = self.state_mut()?;
        state.tables.turn_to(l1, header.size)?;
        state.header = header;
        drop(state);
        self.wait_for_movers()?;
        self.recent.clear()
    }

    /// The L2 table that the L1 entry `number` names.
    pub(super) fn l2_at(&self, number: u64) -> Result<Option<HostOffset>> {
        self.state()?.tables.l2_at(number)
    }

    /// Whether so many more clusters are counted than the file has room for that they must have been set aside in
    /// advance; the measure is QEMU's.
    fn has_holes(&self) -> bool {
        let cluster = self.rules.geometry.cluster;
        let Some(stored) = self.file.stored() else { return false };
        let (there, _) = cluster.split(stored);
        let many = (there.saturating_mul(10) / 9).max(there.saturating_add(2));
        let all = cluster.count(self.file.size());
        all >= many
            && *self.ahead.get_or_init(|| {
                let count = || -> Result<u64> {
                    let mut counts = Refcounts::read(&self.file, &self.state()?.header)?;
                    let mut used = 0u64;
                    let mut at = 0;
                    while at < all && used < many {
                        let (count, next) = counts.run(at)?;
                        let len = next.min(all).saturating_sub(at);
                        used = used.saturating_add(if count == 0 { 0 } else { len });
                        at = next;
                    }
                    Ok(used)
                };
                // Who cannot count does not know better.
                count().is_ok_and(|used| used >= many)
            })
    }

    /// Whether another parent is about to come.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Reads without asking anybody: for those who keep all others away.
    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        mapped::read(self, &self.recent, at, buf)
    }

    fn ready_to_write(&self) -> Result<()> {
        if self.prepared.load(Ordering::Acquire) { Ok(()) } else { self.prepare() }
    }
}

impl BlockMap for Qcow2 {
    fn block_size(&self) -> BlockSize {
        self.rules.geometry.cluster
    }

    fn data(&self) -> &Disk {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        self.state()?.tables.lookup(self.data(), span)
    }

    fn unpack(&self, packed: Packed, out: &mut [u8]) -> Result<()> {
        unpack(&self.file, self.compression, packed, out)
    }
}

/// Fills `out` from a compressed cluster of `file`.
pub(super) fn unpack(file: &Disk, how: Compression, packed: Packed, out: &mut [u8]) -> Result<()> {
    let Packed { host: HostOffset(host), stored } = packed;
    // The last sector may be cut off with the end of the file; the stream itself ends before.
    let there = stored.min(file.size().saturating_sub(host));
    let mut bytes = vec![0; index(there)?];
    file.read_at(host, &mut bytes)?;
    pack::unpack(how, &bytes, out).map_err(|why| Fault::Unpack { host, stored, why }.into())
}

impl BlockDevice for Qcow2 {
    fn size(&self) -> u64 {
        self.state().map_or(0, |s| s.tables.size)
    }

    fn caps(&self) -> Caps {
        let write = self.file.writable() && self.data().writable();
        Caps {
            write,
            zero: Support::Native,
            discard: Support::Native,
            runs: Support::Native,
            resize: write && self.file.caps().resize,
            preferred: u32::try_from(self.rules.geometry.cluster.bytes()).unwrap_or(u32::MAX),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let _moving = self.moving()?;
        self.read(at, buf)
    }

    fn flush(&self) -> Result<()> {
        let _gate = self.enter()?;
        self.sync()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let _gate = self.enter()?;
        self.ready_to_write()?;
        self.write_live(at, data)
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        let _gate = self.enter()?;
        self.ready_to_write()?;
        self.zero_live(span)
    }

    fn discard(&self, span: Span) -> Result<()> {
        let _gate = self.enter()?;
        self.ready_to_write()?;
        self.discard_live(span)
    }

    fn allot(&self, span: Span) -> Result<bool> {
        if !span.is_empty() {
            let _gate = self.enter()?;
            self.ready_to_write()?;
            self.place_ahead(span)?;
        }
        Ok(true)
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let _moving = self.moving()?;
        mapped::first_run(self, span)
    }

    fn at_hand(&self, span: Span) -> bool {
        let Ok(_moving) = self.moving() else { return false };
        mapped::at_hand(self, span)
    }

    /// Only of images that nobody writes to: a cluster that is given back is handed out again for other bytes.
    fn pages(&self, span: Span) -> Option<(&File, u64)> {
        if self.file.writable() || self.data().writable() {
            return None;
        }
        match self.lookup(span).ok()? {
            Mapping { place: Place::Data(host), len } if len == span.len() => {
                self.data().pages(Span::new(host.0, len).ok()?)
            }
            _ => None,
        }
    }

    fn resize(&self, size: u64) -> Result<()> {
        let _gate = self.alone()?;
        self.change_size(size)
    }
}

impl Image for Qcow2 {
    fn facts(&self) -> Facts {
        super::facts::facts(self)
    }

    fn check(&self, report: &mut Report) -> Result<()> {
        let _gate = self.alone()?;
        self.check_image(report)
    }

    fn parent(&self) -> Option<Arc<dyn Image>> {
        self.parent_image.clone()
    }

    fn locate(&self, span: Span) -> Result<Location> {
        let _moving = self.moving()?;
        let (Mapping { place, mut len }, at) = self.state()?.tables.locate(self.data(), span)?;
        let kind = match place {
            Place::Data(_) | Place::Packed(_) => RunKind::Data,
            Place::Zero => RunKind::Zero,
            Place::Absent if self.parent.is_some() => RunKind::Parent,
            Place::Absent => RunKind::Hole,
        };
        let (mut kind, mut hollow) = (kind, false);
        if let (Place::Data(host), None, true) = (place, &self.data_file, self.has_holes()) {
            let there = Span::new(host.0, len)?.truncate(self.file.size().saturating_sub(host.0));
            if !there.is_empty() {
                let run = self.file.first_run(there)?;
                (hollow, len) = (run.kind.is_zero(), run.len);
                kind = if hollow { RunKind::Zero } else { kind };
            }
        }
        let compressed = matches!(place, Place::Packed(_));
        Ok(Location { run: Run { len, kind }, at: at.map(|at| at.0), compressed, hollow })
    }

    fn file_at(&self, _: u64) -> Option<String> {
        self.state().ok()?.header.data_file.as_ref().map(|reference| reference.path.clone())
    }

    fn leave_parent(&self, _: Option<&Backing>) -> Result<()> {
        self.leaving.store(true, Ordering::Release);
        Ok(())
    }

    fn follows_parent(&self) -> Result<bool> {
        Ok(false)
    }

    fn name_parent(&self, parent: Option<&Reference>, _: Option<&Backing>) -> Result<()> {
        let _gate = self.alone()?;
        self.turn_parent(parent)
    }

    fn empty(&self) -> Result<()> {
        let _gate = self.alone()?;
        self.forget_all()
    }

    fn write_packed(&self, at: u64, data: &[u8]) -> Result<()> {
        let _gate = self.enter()?;
        self.ready_to_write()?;
        self.write_packed_live(at, data)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }

    fn applies(&self) -> bool {
        true
    }

    fn may_edit(&self) -> Result<()> {
        let state = self.state()?;
        writable(&state.header)?;
        match &state.header.data_file {
            Some(file) => Err(Fault::DataFileEdit(file.path.clone()).into()),
            None => Ok(()),
        }
    }

    fn apply(&self, staged: &Disk, changes: &[Change]) -> Result<()> {
        self.may_edit()?;
        let _gate = self.alone()?;
        self.land(staged, |edit| edit.resize(staged.size()).and_then(|()| edit.stage(changes)))
    }
}
