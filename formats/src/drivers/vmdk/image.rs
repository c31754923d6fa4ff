//! The opened image: extents in a row, a parent below.

use std::sync::Mutex;

use serde_json::{Value, json};

use super::check;
use super::descriptor::{Access, Descriptor};
use super::fault::VmdkFault;
use super::grains::{Mapping, SparseExtent};
use crate::block::{BlockDevice, Caps, Disk, Run, RunKind, Span, Support};
use crate::check::Report;
use crate::error::{Common, Result, Within};
use crate::mapped::{parent_run, read_parent};
use crate::registry::{Facts, Image, Reference, Role};
use crate::wire::{index, len64, part_mut};

/// Stretches that one answer about runs may join: who asks about a whole disk and uses the beginning shall not
/// pay for all its tables.
const JOINED_RUNS_MAX: usize = 32;

/// An opened VMDK.
#[derive(Debug)]
pub(super) struct VmdkImage {
    size: u64,
    /// In order, without gaps, from 0 to `size`.
    extents: Vec<Extent>,
    parent: Option<Disk>,
    /// None for a lone extent of a split disk.
    descriptor: Option<Descriptor>,
    /// The file that holds the descriptor, and where in it.
    home: Disk,
    descriptor_at: u64,
    /// Whether the content ID still has to change before the first write.
    fresh: Mutex<bool>,
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
        parent: Option<Disk>,
        descriptor: Option<Descriptor>,
        home: Disk,
        descriptor_at: u64,
        fresh: bool,
    ) -> Self {
        let size = extents.last().map_or(0, |e| e.span.end());
        Self { size, extents, parent, descriptor, home, descriptor_at, fresh: Mutex::new(fresh) }
    }

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
        })
    }

    fn place_name(&self, extent: &Extent) -> String {
        match self.extents.iter().position(|e| std::ptr::eq(e, extent)) {
            _ if extent.name.is_empty() => "sparse extent".into(),
            Some(i) => format!("extent {} ({})", i.saturating_add(1), extent.name),
            None => extent.name.clone(),
        }
    }

    /// What a new grain of the extent that starts at `start` of the disk has around the bytes written to it.
    fn below(&self, start: u64) -> impl Fn(u64, &mut [u8]) -> Result<()> {
        move |at, buf| read_parent(self.parent.as_ref(), start.saturating_add(at), buf)
    }

    /// One run, not joined with the next.
    fn one_run(&self, span: Span) -> Result<Run> {
        let (place, len) = self.place(span)?;
        match place {
            Place::Bytes { file, host, in_grains: false } => file.first_run(Span::new(host, len)?),
            Place::Bytes { .. } | Place::Packed { .. } => Ok(Run { len, kind: RunKind::Data }),
            Place::Zero => Ok(Run { len, kind: RunKind::Zero }),
            Place::Absent => parent_run(self.parent.as_ref(), span.truncate(len)),
        }
    }

    /// Calls `each(extent, span within the extent, bytes done)` for the extents of a request to change something.
    fn for_change(&self, span: Span, mut each: impl FnMut(&Extent, Span, usize) -> Result<()>) -> Result<()> {
        self.renew_cid()?;
        let mut rest = span;
        while !rest.is_empty() {
            let extent = self.extent(rest.start())?;
            let here = rest.truncate(extent.span.end().saturating_sub(rest.start()));
            if extent.access != Access::ReadWrite {
                return Err(VmdkFault::ReadOnly("an extent that the descriptor marks RDONLY").into());
            }
            let within = Span::new(here.start().saturating_sub(extent.span.start()), here.len())?;
            let done = index(rest.start().saturating_sub(span.start()))?;
            each(extent, within, done).within(|| self.place_name(extent))?;
            rest = rest.skip(here.len());
        }
        Ok(())
    }

    /// Gives the disk a new content ID before its content changes, so that children of it can tell.
    fn renew_cid(&self) -> Result<()> {
        let mut fresh = self.fresh.lock().map_err(|_| Common::Poisoned)?;
        if !*fresh && let Some(at) = self.descriptor.as_ref().and_then(|d| d.cid_at) {
            let digits = format!("{:08x}", super::create::random_cid());
            self.home.write_at(self.descriptor_at.saturating_add(at), digits.as_bytes())?;
        }
        *fresh = true;
        Ok(())
    }

    /// What `info` says of each extent, as `qemu-img` does.
    fn extent_facts(&self) -> Vec<Value> {
        let facts = |e: &Extent| {
            let mut value = json!({ "virtual-size": e.span.len(), "filename": e.name });
            let (format, sparse) = match &e.body {
                Body::Zero => ("ZERO", None),
                Body::Flat { .. } => ("FLAT", None),
                Body::Sparse(sparse) => ("SPARSE", Some(sparse)),
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

    fn sparse_extents(&self) -> impl Iterator<Item = (&Extent, &SparseExtent)> {
        self.extents.iter().filter_map(|e| match &e.body {
            Body::Sparse(sparse) => Some((e, sparse.as_ref())),
            _ => None,
        })
    }
}

impl Image for VmdkImage {
    fn facts(&self) -> Facts {
        let mut facts = Facts { format: "vmdk", virtual_size: self.size, ..Facts::default() };
        facts.cluster_size = self.sparse_extents().next().map(|(_, s)| s.header.grain.bytes());
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

    fn check(&self, report: &mut Report) -> Result<()> {
        for (extent, sparse) in self.sparse_extents() {
            check::extent(sparse, &self.place_name(extent), report)?;
        }
        Ok(())
    }
}

impl BlockDevice for VmdkImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        let write = self.extents.iter().all(|e| match &e.body {
            Body::Zero => true,
            Body::Flat { file, .. } => file.writable(),
            Body::Sparse(sparse) => sparse.file.writable() && sparse.refuse_writes().is_ok(),
        });
        let grain = self.sparse_extents().next().map_or(64 << 10, |(_, s)| s.header.grain.bytes());
        Caps {
            write,
            zero: Support::Native,
            discard: Support::No,
            runs: Support::Native,
            resize: false,
            preferred: u32::try_from(grain).unwrap_or(64 << 10),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0usize;
        while done < buf.len() {
            let here = at.saturating_add(len64(done));
            let left = buf.len().saturating_sub(done);
            let (place, len) = self.place(Span::new(here, len64(left))?)?;
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
        for extent in &self.extents {
            match &extent.body {
                Body::Zero => {}
                Body::Flat { file, .. } => file.flush()?,
                Body::Sparse(sparse) if sparse.file.writable() => sparse.sync()?,
                Body::Sparse(_) => {}
            }
        }
        self.home.flush()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.for_change(Span::new(at, len64(data.len()))?, |extent, span, done| {
            let piece = crate::wire::part(data, done, index(span.len())?, "write")?;
            let below = self.below(extent.span.start());
            match &extent.body {
                Body::Zero => Err(VmdkFault::ReadOnly("an extent of kind ZERO").into()),
                Body::Flat { file, at } => file.write_at(at.saturating_add(span.start()), piece),
                Body::Sparse(sparse) => {
                    sparse.write(span.start(), piece, self.parent.is_some().then_some(&below))
                }
            }
        })
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        self.for_change(span, |extent, span, _| {
            let below = self.below(extent.span.start());
            match &extent.body {
                Body::Zero => Ok(()),
                Body::Flat { file, at } => {
                    file.write_zeroes(Span::new(at.saturating_add(span.start()), span.len())?)
                }
                Body::Sparse(sparse) => sparse.zero(span, self.parent.is_some().then_some(&below)),
            }
        })
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let mut run = self.one_run(span)?;
        for _ in 1..JOINED_RUNS_MAX {
            if run.len >= span.len() {
                break;
            }
            let next = self.one_run(span.skip(run.len))?;
            if next.kind != run.kind {
                break;
            }
            run.len = run.len.saturating_add(next.len);
        }
        Ok(run)
    }
}
