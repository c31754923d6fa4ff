//! VMDK: VMware's virtual disks (Virtual Disk Format 5.0).
//!
//! Read: monolithicSparse (header versions 1 to 3, zeroed grains), streamOptimized (with the grain directory at
//! the end, as VMware and VirtualBox write it, or at the front, as QEMU does), monolithicFlat, split disks of both
//! kinds, vmfs and vmfsThin (flat), vmfsSparse (COWD), seSparse, and parents of all these.
//! Written, created, resized and mended: monolithicSparse and split sparse disks (children of another VMDK
//! included, but those keep their size), flat and split flat ones; streamOptimized is written in one go, by
//! conversion.
//!
//! Refused by name: devices of other machines (fullDevice, partitionedDevice, raw device maps), extents
//! marked NOACCESS, seSparse with a journal to be replayed, compressed grains without markers, writing to compressed or ESX Server extents.
//!
//! Disagreements of others: QEMU takes any extent list in an embedded descriptor for good and ignores it; here a
//! list of several is refused. QEMU does not look at the disk sector before a compressed grain; here it must fit.
//! QEMU's own streamOptimized files have the tables at the front and no footer, which VMware's importers refuse;
//! here tables follow the data and a footer ends the stream, as the specification has it.
//!
//! * [`layout`]: structures as they lie on disk; [`header`]: their checked form; [`descriptor`]: the text;
//!   [`home`]: where it stands
//! * [`grains`]: where a grain is; [`pack`]: compressed grains; [`write`](mod@write): changes while in use
//! * [`census`]: what is in use, and where there is room; [`check`]: inconsistencies, and mending them
//! * [`sesparse`]: ESXi's newer snapshots
//! * [`image`]: extents in a row; [`resize`]: more of them, or larger ones
//! * [`create`]: new images; [`stream`]: those that are written in one go

mod census;
mod check;
mod create;
mod descriptor;
mod fault;
mod grains;
mod header;
mod home;
mod image;
mod layout;
mod pack;
mod resize;
mod sesparse;
mod stream;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::create::{OPTIONS, Subformat};
use self::descriptor::{
    Access, CreateType, DESCRIPTOR_BYTES_MAX, Descriptor, ExtentLine, Parent, Source, looks_like_descriptor,
};
use self::grains::SparseExtent;
use self::header::SparseHeader;
use self::home::Home;
use self::image::{Body, Extent, VmdkImage};
use self::layout::{COWD_MAGIC, MAGIC, SECTOR};
use self::sesparse::SeSparse;
use self::stream::StreamSink;
use crate::block::{Disk, Span};
use crate::convert::{DiskSink, Sink};
use crate::error::{Result, Within};
use crate::measure::Growth;
use crate::opening::{Opening, Reference, Role};
use crate::options::Opt;
use crate::registry::{Format, Guess, Head, Image, Plan, SubKind};
use crate::wire::bytes;

pub use self::fault::VmdkFault;

/// The format's entry in the list.
pub(super) const FORMAT: Vmdk = Vmdk;

/// VMware's virtual disks.
pub(super) struct Vmdk;

impl Format for Vmdk {
    fn name(&self) -> &'static str {
        "vmdk"
    }

    fn suffixes(&self) -> &'static [&'static str] {
        &["vmdk"]
    }

    fn kinds(&self) -> &'static [SubKind] {
        const KINDS: &[SubKind] = &[
            SubKind::all("monolithicSparse"),
            SubKind::all("monolithicFlat"),
            SubKind::all("twoGbMaxExtentSparse"),
            SubKind::all("twoGbMaxExtentFlat"),
            SubKind::create("streamOptimized"),
            SubKind::write("vmfs, vmfsThin (flat)"),
            SubKind::read("vmfsSparse (COWD)"),
            SubKind::read("seSparse"),
            SubKind::all("delta links"),
        ];
        KINDS
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        let version = head.at::<4>(4).map(u32::from_le_bytes);
        match head.at::<4>(0) {
            Some(MAGIC) if matches!(version, Some(1..=3)) => Guess::Strong,
            Some(COWD_MAGIC) if version == Some(1) => Guess::Strong,
            Some(MAGIC | COWD_MAGIC) => Guess::Weak,
            _ if is_sesparse(head.first) => Guess::Strong,
            // However large: a raw disk whose guest wrote such text is refused for its size, not followed.
            _ if looks_like_descriptor(head.first) => Guess::Weak,
            _ => Guess::No,
        }
    }

    fn open(&self, file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
        let magic = bytes(&file, 0, 4.min(file.size()), 4, "VMDK magic")?;
        if magic == MAGIC || magic == COWD_MAGIC {
            return open_sparse(file, opening);
        }
        if is_sesparse(&bytes(&file, 0, 16.min(file.size()), 16, "seSparse magic")?) {
            return open_sesparse(file, opening);
        }
        open_described(file, opening)
    }

    fn create(&self, file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
        create::image(&file, plan)?;
        reopen(file, plan)
    }

    fn sink(&self, file: Disk, plan: &Plan) -> Result<Box<dyn Sink>> {
        match Subformat::of(&plan.options) {
            // Compressed by nature, asked for or not.
            Subformat::StreamOptimized if plan.backing.is_none() => {
                Ok(Box::new(StreamSink::new(file, plan)?))
            }
            Subformat::StreamOptimized => Err(VmdkFault::FlatChild.into()),
            other if plan.compress || plan.options.size("compression_level").is_some() => {
                Err(VmdkFault::Plain(other.name()).into())
            }
            _ => Ok(Box::new(DiskSink::new(self.create(file, plan)?))),
        }
    }

    fn packs(&self, plan: &Plan) -> bool {
        matches!(Subformat::of(&plan.options), Subformat::StreamOptimized)
    }

    fn streams(&self, plan: &Plan) -> bool {
        Subformat::of(&plan.options) == Subformat::StreamOptimized
    }

    fn growth(&self, plan: &Plan) -> Result<Option<Growth>> {
        create::growth(plan)
    }

    fn full_size(&self, plan: &Plan) -> Result<Option<u64>> {
        match create::growth(plan)? {
            Some(growth) => Ok(Some(growth.full())),
            None => stream::full_size(plan).map(Some),
        }
    }

    fn options(&self) -> &'static [Opt] {
        OPTIONS
    }
}

/// A file that is itself a sparse extent: with its descriptor inside, or one piece of a split disk by itself.
fn open_sparse(file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
    let header = SparseHeader::read(&file)?;
    let (descriptor, home) = embedded(&file, &header)?;
    if let Some(d) = &descriptor
        && d.extents.len() > 1
    {
        return Err(VmdkFault::EmbeddedExtents(d.extents.len()).into());
    }
    let extent = lone_extent(&file, header)?;
    if opening.write()
        && let Body::Sparse(sparse) = &extent.body
    {
        sparse.refuse_writes()?;
    }
    let parent = match descriptor.as_ref().and_then(|d| d.parent.as_ref()) {
        Some(parent) => Some(open_parent(parent, opening)?),
        None => None,
    };
    Ok(Arc::new(VmdkImage::new(vec![extent], parent, descriptor, home, false)))
}

/// Whether a file begins as a seSparse extent does.
fn is_sesparse(first: &[u8]) -> bool {
    first.starts_with(&sesparse::MAGIC)
        && first.get(8..).is_some_and(|rest| rest.starts_with(&sesparse::VERSION.to_le_bytes()))
}

/// A seSparse extent by itself, without the descriptor that names it.
fn open_sesparse(file: Disk, opening: &Opening) -> Result<Arc<dyn Image>> {
    if opening.write() {
        return Err(VmdkFault::ReadOnly("a seSparse extent").into());
    }
    let sparse = SeSparse::open(file.clone())?;
    let span = Span::first(sparse.size());
    let body = Body::SeSparse(Box::new(sparse));
    let extent = Extent { span, access: Access::ReadOnly, name: String::new(), body };
    let home = Home { file, embedded: None, beside: None };
    Ok(Arc::new(VmdkImage::new(vec![extent], None, None, home, false)))
}

/// Opens the image that was just made as `plan` says: its files have no names yet.
fn reopen(file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
    let parent = plan.backing.as_ref().map(|b| b.image.clone());
    let subformat = Subformat::of(&plan.options);
    if subformat == Subformat::MonolithicSparse {
        let header = SparseHeader::read(&file)?;
        let (descriptor, home) = embedded(&file, &header)?;
        let extent = lone_extent(&file, header)?;
        return Ok(Arc::new(VmdkImage::new(vec![extent], parent, descriptor, home, true)));
    }
    let text = bytes(&file, 0, file.size(), DESCRIPTOR_BYTES_MAX, "descriptor")?;
    let descriptor = Descriptor::parse(&text)?;
    let beside = plan.beside.as_ref().ok_or(VmdkFault::NowhereBeside(subformat.name()))?;
    let extents = extents(&descriptor, true, &mut |name| beside.made(name))?;
    let home = Home { file, embedded: None, beside: None };
    Ok(Arc::new(VmdkImage::new(extents, parent, Some(descriptor), home, true)))
}

/// The descriptor inside a sparse extent, and its place.
fn embedded(file: &Disk, header: &SparseHeader) -> Result<(Option<Descriptor>, Home)> {
    let home = Home { file: file.clone(), embedded: header.descriptor, beside: None };
    let text = match header.descriptor {
        Some(span) => bytes(file, span.start(), span.len(), DESCRIPTOR_BYTES_MAX, "descriptor")?,
        None => Vec::new(),
    };
    // A piece of a split disk may have room for a descriptor and none in it.
    if text.first().is_none_or(|b| *b == 0) {
        // QEMU looks for a parent there, whatever the header says.
        let usual = Span::new(SECTOR, file.size().saturating_sub(SECTOR).min(SECTOR))?;
        let there = bytes(file, usual.start(), usual.len(), SECTOR, "descriptor")?;
        if !header.is_cowd && looks_like_descriptor(&there) {
            return Err(VmdkFault::UnnamedDescriptor.into());
        }
        return Ok((None, home));
    }
    let parse = if file.writable() { Descriptor::parse } else { Descriptor::parse_to_read };
    Ok((Some(parse(&text)?), home))
}

fn lone_extent(file: &Disk, header: SparseHeader) -> Result<Extent> {
    let sparse = SparseExtent::open(file.clone(), header)?;
    let (span, access) = (Span::first(sparse.size()), Access::ReadWrite);
    Ok(Extent { span, access, name: String::new(), body: Body::Sparse(Box::new(sparse)) })
}

/// A file that is a descriptor: the data are in other files.
fn open_described(file: Disk, opening: &mut Opening) -> Result<Arc<dyn Image>> {
    let text = bytes(&file, 0, file.size(), DESCRIPTOR_BYTES_MAX, "descriptor")?;
    let parse = if file.writable() { Descriptor::parse } else { Descriptor::parse_to_read };
    let descriptor = parse(&text)?;
    refuse_devices(descriptor.create_type)?;
    let mut follow =
        |name: &str| opening.follow_file(&Reference { path: name.into(), format: None, role: Role::Extent });
    let write = file.writable();
    let extents = extents(&descriptor, write, &mut follow)?;
    let parent = match &descriptor.parent {
        Some(parent) => Some(open_parent(parent, opening)?),
        None => None,
    };
    let home = Home { file, embedded: None, beside: opening.place_beside() };
    Ok(Arc::new(VmdkImage::new(extents, parent, Some(descriptor), home, false)))
}

/// Opens the file of an extent by its name.
type Follow<'a> = &'a mut dyn FnMut(&str) -> Result<Disk>;

/// The extents that a descriptor names.
fn extents(descriptor: &Descriptor, write: bool, follow: Follow<'_>) -> Result<Vec<Extent>> {
    descriptor.size()?;
    let mut extents = Vec::new();
    // Flat extents may lie in one file. Sparse ones may not: each would take the same space for itself.
    let mut flat = BTreeMap::new();
    let mut at = 0u64;
    for (i, line) in descriptor.extents.iter().enumerate() {
        let place = || format!("extent {}", i.saturating_add(1));
        let span = Span::new(at, line.len).within(place)?;
        extents.push(open_extent(span, line, &mut flat, write, follow).within(place)?);
        at = span.end();
    }
    // A lookup finds an extent by its end: one without bytes would hide the next.
    extents.retain(|e| !e.span.is_empty());
    Ok(extents)
}

fn open_extent(
    span: Span,
    line: &ExtentLine,
    flat: &mut BTreeMap<String, Disk>,
    write: bool,
    follow: Follow<'_>,
) -> Result<Extent> {
    if line.access == Access::None {
        return Err(VmdkFault::ExtentKind("NOACCESS".into()).into());
    }
    let mut follow = |name: &str| follow(name).within(|| name);
    let (name, body) = match &line.source {
        Source::Zero => (String::new(), Body::Zero),
        Source::Other { kind } => return Err(VmdkFault::ExtentKind(kind.clone()).into()),
        Source::SeSparse { name } => {
            let sparse = SeSparse::open(follow(name)?).within(|| name)?;
            let (found, expected) = (sparse.size().div_euclid(SECTOR), line.len.div_euclid(SECTOR));
            if found < expected {
                return Err(VmdkFault::ExtentSize { name: name.clone(), found, expected }.into());
            }
            if write {
                return Err(VmdkFault::ReadOnly("a seSparse extent").into());
            }
            (name.clone(), Body::SeSparse(Box::new(sparse)))
        }
        Source::Flat { name, at } => {
            let file = match flat.get(name) {
                Some(file) => file.clone(),
                None => flat.entry(name.clone()).or_insert(follow(name)?).clone(),
            };
            file.check(*at, line.len).within(|| name)?;
            (name.clone(), Body::Flat { file, at: *at })
        }
        Source::Sparse { name } => {
            let file = follow(name)?;
            let header = SparseHeader::read(&file).within(|| name)?;
            let sparse = SparseExtent::open(file, header).within(|| name)?;
            let (found, expected) = (sparse.size().div_euclid(SECTOR), line.len.div_euclid(SECTOR));
            if found < expected {
                return Err(VmdkFault::ExtentSize { name: name.clone(), found, expected }.into());
            }
            if write {
                sparse.refuse_writes().within(|| name)?;
            }
            (name.clone(), Body::Sparse(Box::new(sparse)))
        }
    };
    Ok(Extent { span, access: line.access, name, body })
}

fn open_parent(parent: &Parent, opening: &mut Opening) -> Result<Arc<dyn Image>> {
    let path = parent.name.clone().ok_or(VmdkFault::NoParentName(parent.cid))?;
    let reference = Reference { path, format: Some("vmdk".into()), role: Role::Backing };
    let (_, image) = opening.follow_image(&reference)?;
    if opening.alone() {
        return Ok(image);
    }
    let cid = image.facts().specific.get("cid").and_then(serde_json::Value::as_u64);
    let found = cid.and_then(|c| u32::try_from(c).ok()).unwrap_or(u32::MAX);
    if found != parent.cid {
        return Err(VmdkFault::ParentCid { found, expected: parent.cid }.into());
    }
    Ok(image)
}

/// Disks that are devices of the machine that VMware runs on.
fn refuse_devices(kind: CreateType) -> Result<()> {
    match kind {
        CreateType::FullDevice
        | CreateType::PartitionedDevice
        | CreateType::VmfsRaw
        | CreateType::VmfsRawDeviceMap
        | CreateType::VmfsPassthroughRawDeviceMap => Err(VmdkFault::Device(kind.name()).into()),
        CreateType::MonolithicSparse
        | CreateType::MonolithicFlat
        | CreateType::TwoGbMaxExtentSparse
        | CreateType::TwoGbMaxExtentFlat
        | CreateType::StreamOptimized
        | CreateType::Vmfs
        | CreateType::VmfsThin
        | CreateType::VmfsSparse
        | CreateType::SeSparse
        | CreateType::Custom => Ok(()),
    }
}
