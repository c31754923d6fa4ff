//! The opened image: extents in a row, a parent below.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use serde_json::{Value, json};

use super::create::parent_cid;
use super::descriptor::{Access, Descriptor};
use super::fault::VmdkFault;
use super::grains::{Mapping, SparseExtent};
use super::home::Home;
use super::sesparse::SeSparse;
use super::write::Below;
use super::{check, resize};
use crate::block::{BlockDevice, Caps, Disk, Run, RunKind, Span, Support};
use crate::check::Report;
use crate::error::{Common, Result, Within};
use crate::map::Location;
use crate::mapped::{locate_plain, parent_run, read_parent};
use crate::opening::{Reference, Role};
use crate::registry::{Backing, Facts, Image, below};
use crate::wire::{index, len64, part, part_mut};

/// Stretches that one answer about runs may join: who asks about a whole disk and uses the beginning shall not
/// pay for all its tables.
const JOINED_RUNS_MAX: usize = 32;

/// An opened VMDK.
#[derive(Debug)]
pub(super) struct VmdkImage {
    /// Held by all who read or write, and alone by who changes the size or needs to know that nobody reads.
    state: RwLock<State>,
    parent: Option<Disk>,
    parent_image: Option<Arc<dyn Image>>,
    /// Whether the content ID still has to change before the first write.
    fresh: Mutex<bool>,
    /// Another parent is to come.
    leaving: AtomicBool,
    /// The content ID now, if there is one.
    cid: AtomicU32,
}

/// What changes with the size.
#[derive(Debug)]
pub(super) struct State {
    pub(super) size: u64,
    /// In order, without gaps, from 0 to `size`.
    pub(super) extents: Vec<Extent>,
    /// None for a lone extent of a split disk.
    pub(super) descriptor: Option<Descriptor>,
    pub(super) home: Home,
}

/// One extent.
#[derive(Debug)]
pub(super) struct Extent {
    /// Its place in the disk.
    pub(super) span: Span,
    pub(super) access: Access,
    /// As it stands in the descriptor; empty if the extent is the image itself.
    pub(super) name: String,
    pub(super) body: Body,
}

/// Where an extent's bytes are.
#[derive(Debug)]
pub(super) enum Body {
    Zero,
    Flat { file: Disk, at: u64 },
    Sparse(Box<SparseExtent>),
    SeSparse(Box<SeSparse>),
}

/// Where a stretch of the disk is.
enum Place<'a> {
    Bytes { file: &'a Disk, host: u64, in_grains: bool },
    Packed { extent: &'a SparseExtent, sector: u64, at: u64 },
    Zero,
    Absent,
}

impl VmdkImage {
    /// An image of these extents, which follow each other without gaps. `fresh` is an image nobody has seen yet.
    pub(super) fn new(
        extents: Vec<Extent>,
        parent_image: Option<Arc<dyn Image>>,
        descriptor: Option<Descriptor>,
        home: Home,
        fresh: bool,
    ) -> Self {
        let size = extents.last().map_or(0, |e| e.span.end());
        let cid = AtomicU32::new(descriptor.as_ref().map_or(0, |d| d.cid));
        let state = RwLock::new(State { size, extents, descriptor, home });
        let parent = parent_image.as_ref().map(below);
        let (fresh, leaving) = (Mutex::new(fresh), AtomicBool::new(false));
        Self { state, parent, parent_image, fresh, leaving, cid }
    }

    fn shared(&self) -> Result<RwLockReadGuard<'_, State>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    /// What a new grain of an extent has around the bytes written to it.
    fn below(&self, extent: &Extent) -> Option<Below<'_>> {
        let leaving = self.leaving.load(Ordering::Acquire);
        self.parent.as_ref().map(|parent| Below { parent, start: extent.span.start(), leaving })
    }

    /// One run, not joined with the next.
    fn one_run(&self, state: &State, span: Span) -> Result<Run> {
        let (place, len) = state.place(span)?;
        match place {
            Place::Bytes { file, host, in_grains: false } => file.first_run(Span::new(host, len)?),
            Place::Bytes { .. } | Place::Packed { .. } => Ok(Run { len, kind: RunKind::Data }),
            Place::Zero => Ok(Run { len, kind: RunKind::Zero }),
            Place::Absent => parent_run(self.parent.as_ref(), span.truncate(len)),
        }
    }

    /// Calls `each(extent, span within the extent, bytes done)` for the extents of a request to change something.
    fn for_change(&self, span: Span, mut each: impl FnMut(&Extent, Span, usize) -> Result<()>) -> Result<()> {
        let state = self.shared()?;
        self.renew_cid(&state)?;
        let mut rest = span;
        while !rest.is_empty() {
            let extent = state.extent(rest.start())?;
            let here = rest.truncate(extent.span.end().saturating_sub(rest.start()));
            if extent.access != Access::ReadWrite {
                return Err(VmdkFault::ReadOnly("an extent that the descriptor marks RDONLY").into());
            }
            let within = Span::new(here.start().saturating_sub(extent.span.start()), here.len())?;
            let done = index(rest.start().saturating_sub(span.start()))?;
            each(extent, within, done).within(|| state.place_name(extent))?;
            rest = rest.skip(here.len());
        }
        Ok(())
    }

    /// Gives the disk a new content ID before its content changes, so that children of it can tell.
    fn renew_cid(&self, state: &State) -> Result<()> {
        if self.leaving.load(Ordering::Acquire) {
            // The content stays the same.
            return Ok(());
        }
        let mut fresh = self.fresh.lock().map_err(|_| Common::Poisoned)?;
        if !*fresh
            && let Some(d) = &state.descriptor
            && let Some((at, len)) = d.cid_at
        {
            // As many digits as there are: nothing behind them moves.
            let bits = u32::try_from(len.saturating_mul(4)).unwrap_or(32);
            let mask = u32::MAX.checked_shr(32u32.saturating_sub(bits)).unwrap_or(0);
            let mut cid = super::create::random_cid() & mask;
            if cid == d.cid {
                cid ^= 1;
            }
            let at = state.home.embedded.map_or(0, |e| e.start()).saturating_add(at);
            state.home.file.write_at(at, format!("{cid:0len$x}").as_bytes())?;
            self.cid.store(cid, Ordering::Release);
        }
        *fresh = true;
        Ok(())
    }

    /// Clears something: `zero` covers what the parent has, otherwise it may show.
    fn clear(&self, span: Span, zero: bool) -> Result<()> {
        self.for_change(span, |extent, span, _| match &extent.body {
            Body::Zero => Ok(()),
            Body::Flat { file, at } => {
                let there = Span::new(at.saturating_add(span.start()), span.len())?;
                if zero { file.write_zeroes(there) } else { file.discard(there) }
            }
            Body::Sparse(sparse) if zero => sparse.zero(span, self.below(extent)),
            Body::Sparse(sparse) => sparse.discard(span, self.below(extent)),
            Body::SeSparse(_) => Err(VmdkFault::ReadOnly("a seSparse extent").into()),
        })
    }
}

impl State {
    /// The extent that holds the byte at `at`.
    fn extent(&self, at: u64) -> Result<&Extent> {
        let i = self.extents.partition_point(|e| e.span.end() <= at);
        self.extents.get(i).ok_or_else(|| Common::PastEnd { start: at, len: 1, size: self.size }.into())
    }

    /// Where the first bytes of `span` are, and how many of them.
    fn place(&self, span: Span) -> Result<(Place<'_>, u64)> {
        let extent = self.extent(span.start())?;
        let at = span.start().saturating_sub(extent.span.start());
        let want = span.len().min(extent.span.end().saturating_sub(span.start()));
        Ok(match &extent.body {
            Body::Zero => (Place::Zero, want),
            Body::Flat { file, at: base } => {
                (Place::Bytes { file, host: base.saturating_add(at), in_grains: false }, want)
            }
            Body::Sparse(sparse) => {
                let (mapping, len) = sparse.map(at, want).within(|| self.place_name(extent))?;
                let place = match mapping {
                    Mapping::Data { host } => Place::Bytes { file: &sparse.file, host, in_grains: true },
                    Mapping::Packed { sector } => Place::Packed { extent: sparse, sector, at },
                    Mapping::Zero => Place::Zero,
                    Mapping::Absent => Place::Absent,
                };
                (place, len)
            }
            Body::SeSparse(sparse) => {
                let (mapping, len) = sparse.map(at, want).within(|| self.place_name(extent))?;
                let place = match mapping {
                    Mapping::Data { host } => Place::Bytes { file: &sparse.file, host, in_grains: true },
                    Mapping::Zero => Place::Zero,
                    Mapping::Absent | Mapping::Packed { .. } => Place::Absent,
                };
                (place, len)
            }
        })
    }

    pub(super) fn place_name(&self, extent: &Extent) -> String {
        match self.extents.iter().position(|e| std::ptr::eq(e, extent)) {
            _ if extent.name.is_empty() => "sparse extent".into(),
            Some(i) => format!("extent {} ({})", i.saturating_add(1), extent.name),
            None => extent.name.clone(),
        }
    }

    /// What `info` says of each extent, as `qemu-img` does.
    fn extent_facts(&self) -> Vec<Value> {
        let facts = |e: &Extent| {
            let mut value = json!({ "virtual-size": e.span.len(), "filename": e.name });
            let (format, sparse) = match &e.body {
                Body::Zero => ("ZERO", None),
                Body::Flat { .. } => ("FLAT", None),
                Body::Sparse(sparse) => ("SPARSE", Some(sparse)),
                Body::SeSparse(_) => ("SESPARSE", None),
            };
            if let Some(map) = value.as_object_mut() {
                map.insert("format".into(), format.into());
                if let Some(sparse) = sparse {
                    map.insert("cluster-size".into(), sparse.header.grain.bytes().into());
                    if sparse.header.compressed {
                        map.insert("compressed".into(), true.into());
                    }
                }
            }
            value
        };
        self.extents.iter().map(facts).collect()
    }

    /// Bytes in a grain of the first extent that has grains.
    fn grain(&self) -> Option<u64> {
        self.extents.iter().find_map(|e| match &e.body {
            Body::Sparse(sparse) => Some(sparse.header.grain.bytes()),
            Body::SeSparse(sparse) => Some(sparse.grain_bytes()),
            Body::Zero | Body::Flat { .. } => None,
        })
    }

    pub(super) fn sparse_extents(&self) -> impl Iterator<Item = (&Extent, &SparseExtent)> {
        self.extents.iter().filter_map(|e| match &e.body {
            Body::Sparse(sparse) => Some((e, sparse.as_ref())),
            _ => None,
        })
    }
}

impl State {
    /// Everything that was written is on stable storage.
    pub(super) fn sync(&self) -> Result<()> {
        for extent in &self.extents {
            match &extent.body {
                Body::Zero => {}
                Body::Flat { file, .. } => file.flush()?,
                Body::Sparse(sparse) if sparse.file.writable() => sparse.sync()?,
                Body::Sparse(_) | Body::SeSparse(_) => {}
            }
        }
        self.home.file.flush()
    }

    fn facts(&self) -> Facts {
        let mut facts = Facts { format: "vmdk", virtual_size: self.size, ..Facts::default() };
        facts.cluster_size = self.grain();
        facts.dirty = self.sparse_extents().any(|(_, s)| s.header.unclean);
        facts.data_files = self.extents.iter().map(|e| e.name.clone()).filter(|n| !n.is_empty()).collect();
        facts.specific.insert("extents".into(), self.extent_facts().into());
        if let Some(d) = &self.descriptor {
            facts.subformat = Some(d.create_type.name().into());
            facts.specific.insert("create-type".into(), d.create_type.name().into());
            facts.specific.insert("cid".into(), d.cid.into());
            let parent_cid = d.parent.as_ref().map_or(u32::MAX, |p| p.cid);
            facts.specific.insert("parent-cid".into(), parent_cid.into());
            if let Some(adapter) = d.ddb.get("ddb.adaptertype") {
                facts.specific.insert("adapter-type".into(), adapter.as_str().into());
            }
            if let Some(version) = d.ddb.get("ddb.virtualhwversion") {
                facts.specific.insert("hwversion".into(), version.as_str().into());
            }
            facts.backing = d.parent.as_ref().and_then(|p| p.name.clone()).map(|path| Reference {
                path,
                format: Some("vmdk".into()),
                role: Role::Backing,
            });
        }
        facts
    }
}

impl Image for VmdkImage {
    /// The file has the descriptor, and nothing else.
    fn is_spread(&self) -> bool {
        let described = |state: &State| state.descriptor.is_some() && state.home.embedded.is_none();
        self.shared().is_ok_and(|state| described(&state))
    }

    fn facts(&self) -> Facts {
        let mut facts = self.shared().map(|state| state.facts()).unwrap_or_default();
        if let Some(cid) = facts.specific.get_mut("cid") {
            *cid = self.cid.load(Ordering::Acquire).into();
        }
        facts
    }

    fn check(&self, report: &mut Report) -> Result<()> {
        let state = self.state.write().map_err(|_| Common::Poisoned)?;
        for (extent, sparse) in state.sparse_extents() {
            if sparse.file.writable() {
                sparse.sync()?;
                sparse.collect()?;
            }
            check::extent(sparse, &state.place_name(extent), report)?;
        }
        for extent in &state.extents {
            if let Body::SeSparse(sparse) = &extent.body {
                sparse.check(&state.place_name(extent), report)?;
            }
        }
        Ok(())
    }

    fn follows_parent(&self) -> Result<bool> {
        let state = self.shared()?;
        let (_, text) = state.with_parent_cid(0)?;
        state.home.has_room(&text)?;
        Ok(true)
    }

    fn renew_identity(&self) -> Result<()> {
        let state = self.shared()?;
        self.renew_cid(&state)?;
        state.home.file.flush()
    }

    fn keep_parent(&self, parent: &dyn Image) -> Result<()> {
        let cid = parent.facts().specific.get("cid").and_then(serde_json::Value::as_u64);
        let cid = cid.and_then(|cid| u32::try_from(cid).ok()).ok_or(VmdkFault::Missing("CID"))?;
        let mut state = self.state.write().map_err(|_| Common::Poisoned)?;
        let (at, text) = state.with_parent_cid(cid)?;
        if text.len() == state.descriptor.as_ref().map_or(0, |d| d.text.len()) {
            // Nothing behind the digits moves: only they are written.
            return state.home.overwrite(at, format!("{cid:08x}").as_bytes());
        }
        state.turn_descriptor(&text)
    }

    fn leave_parent(&self, next: Option<&Backing>) -> Result<()> {
        self.may_have(next)?;
        self.leaving.store(true, Ordering::Release);
        Ok(())
    }

    fn name_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        self.may_have(opened)?;
        self.flush()?;
        let state = self.state.write().map_err(|_| Common::Poisoned)?;
        let cid = opened.map(parent_cid).transpose()?;
        state.turn_parent(parent.map(|p| p.path.as_str()), cid)
    }

    fn parent(&self) -> Option<Arc<dyn Image>> {
        self.parent_image.clone()
    }

    fn locate(&self, span: Span) -> Result<Location> {
        self.location(&*self.shared()?, span)
    }

    fn file_at(&self, at: u64) -> Option<String> {
        let state = self.shared().ok()?;
        let name = state.extent(at).ok()?.name.clone();
        Some(name).filter(|name| !name.is_empty())
    }
}

impl VmdkImage {
    /// Refuses a parent that the disk cannot have.
    fn may_have(&self, next: Option<&Backing>) -> Result<()> {
        if self.parent.is_none() {
            return Err(VmdkFault::NoChild.into());
        }
        next.map_or(Ok(()), |next| parent_cid(next).map(|_| ()))
    }

    fn location(&self, state: &State, span: Span) -> Result<Location> {
        let (place, len) = state.place(span)?;
        let location = |kind, at| Location { at, ..Location::of(Run { len, kind }) };
        Ok(match place {
            Place::Bytes { file, host, in_grains: false } => locate_plain(file, host, len)?,
            Place::Bytes { host, .. } => location(RunKind::Data, Some(host)),
            Place::Packed { .. } => Location { compressed: true, ..location(RunKind::Data, None) },
            Place::Zero => location(RunKind::Zero, None),
            Place::Absent if self.parent.is_some() => location(RunKind::Parent, None),
            Place::Absent => location(RunKind::Hole, None),
        })
    }
}

impl BlockDevice for VmdkImage {
    fn size(&self) -> u64 {
        self.shared().map_or(0, |state| state.size)
    }

    fn caps(&self) -> Caps {
        let Ok(state) = self.shared() else { return Caps::READ_ONLY };
        let write = state.extents.iter().all(|e| match &e.body {
            Body::Zero => true,
            Body::Flat { file, .. } => file.writable(),
            Body::Sparse(sparse) => sparse.file.writable() && sparse.refuse_writes().is_ok(),
            Body::SeSparse(_) => false,
        });
        let grain = state.grain().unwrap_or(64 << 10);
        Caps {
            write,
            zero: Support::Native,
            discard: Support::Native,
            runs: Support::Native,
            resize: write && self.parent.is_none() && state.home.file.caps().resize,
            preferred: u32::try_from(grain).unwrap_or(64 << 10),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let state = self.shared()?;
        let mut done = 0usize;
        while done < buf.len() {
            let here = at.saturating_add(len64(done));
            let left = buf.len().saturating_sub(done);
            let (place, len) = state.place(Span::new(here, len64(left))?)?;
            let piece = part_mut(buf, done, index(len)?, "read")?;
            match place {
                Place::Bytes { file, host, .. } => file.read_at(host, piece)?,
                Place::Packed { extent, sector, at } => extent.read_packed(sector, at, piece)?,
                Place::Zero => piece.fill(0),
                Place::Absent => read_parent(self.parent.as_ref(), here, piece).within(|| "parent")?,
            }
            done = done.saturating_add(piece.len());
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let left = {
            let state = self.shared()?;
            state.sync()?;
            let mut left = false;
            for (_, sparse) in state.sparse_extents() {
                left |= sparse.has_landed()?;
            }
            left
        };
        if left {
            // Places that no table names any more are free when nobody reads there: that is now.
            let state = self.state.write().map_err(|_| Common::Poisoned)?;
            for (_, sparse) in state.sparse_extents() {
                sparse.collect()?;
            }
        }
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.for_change(Span::new(at, len64(data.len()))?, |extent, span, done| {
            let piece = part(data, done, index(span.len())?, "write")?;
            match &extent.body {
                Body::Zero => Err(VmdkFault::ReadOnly("an extent of kind ZERO").into()),
                Body::Flat { file, at } => file.write_at(at.saturating_add(span.start()), piece),
                Body::Sparse(sparse) => sparse.write(span.start(), piece, self.below(extent)),
                Body::SeSparse(_) => Err(VmdkFault::ReadOnly("a seSparse extent").into()),
            }
        })
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        self.clear(span, true)
    }

    fn discard(&self, span: Span) -> Result<()> {
        self.clear(span, false)
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let state = self.shared()?;
        let mut run = self.one_run(&state, span)?;
        for _ in 1..JOINED_RUNS_MAX {
            if run.len >= span.len() {
                break;
            }
            let next = self.one_run(&state, span.skip(run.len))?;
            if next.kind != run.kind {
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        Ok(run)
    }

    fn resize(&self, size: u64) -> Result<()> {
        let mut state = self.state.write().map_err(|_| Common::Poisoned)?;
        self.renew_cid(&state)?;
        resize::resize(&mut state, size)
    }
}
