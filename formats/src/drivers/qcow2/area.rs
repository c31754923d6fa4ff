//! What stands behind the header's fixed fields, the parent's name and the place of the bitmaps: the header's first
//! cluster is written anew, and one write of its first sector turns to it.
//!
//! What the old header does not use takes what does not fit into that sector. The names of features are a courtesy;
//! they go at first and come back once the place of the old header is free.

use zerocopy::IntoBytes;

use super::create::{BACKING_NAME_MAX, extension};
use super::extensions::{BitmapDirectory, Extensions};
use super::fault::Fault;
use super::header::{AUTOCLEAR_RAW_DATA, Header};
use super::image::Qcow2;
use super::layout::{
    EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_END, EXT_FEATURE_NAMES, RawBitmaps, RawExtension, RawHeader,
};
use crate::block::Span;
use crate::error::{Common, Result};
use crate::opening::Reference;
use crate::registry::by_name;
use crate::wire::{bytes, index, len64, part_mut, take};

/// What is written as a whole.
const SECTOR: usize = 512;
/// Largest cluster in bytes.
const CLUSTER_MAX: u64 = 2 << 20;

impl Qcow2 {
    /// Names another parent in the header, or none. The caller keeps writers away.
    pub(super) fn turn_parent(&self, parent: Option<&Reference>) -> Result<()> {
        self.prepare()?;
        let (header, l1) = self.header_and_l1()?;
        if parent.is_some() && header.autoclear & AUTOCLEAR_RAW_DATA != 0 {
            return Err(Fault::RawDataAndBacking.into());
        }
        let parent = parent.map(known).transpose()?;
        let draft = Draft::new(self, &header, parent.as_ref(), header.extensions.bitmaps)?;
        draft.write_apart(self)?;
        let first = draft.header(&header);
        self.turn_header(&first)?;
        self.turn_to(first, l1)?;
        self.complete(&draft)
    }

    /// Adds to the header area, once the first sector turned to a draft, what did not fit into that.
    pub(super) fn complete(&self, draft: &Draft) -> Result<()> {
        let Some(whole) = &draft.whole else { return Ok(()) };
        let (header, l1) = self.header_and_l1()?;
        let (sector, rest) = whole.split_first_chunk::<SECTOR>().ok_or(Common::Index(0))?;
        self.file.write_at(len64(SECTOR), rest)?;
        self.file.flush()?;
        let last = header.with_area(*sector, draft.parent.clone(), draft.bitmaps);
        self.turn_header(&last)?;
        self.turn_to(last, l1)
    }
}

/// A reference whose format every program knows by name.
fn known(reference: &Reference) -> Result<Reference> {
    if reference.path.is_empty() || reference.path.len() > BACKING_NAME_MAX {
        return Err(Fault::NewBackingName(reference.path.len()).into());
    }
    let format = reference.format.as_deref().ok_or(Fault::BackingFormatMissing)?;
    let known = by_name(format).ok().and_then(|f| f.aliases().first()).copied();
    Ok(Reference { format: Some(known.unwrap_or(format).to_string()), ..reference.clone() })
}

/// The header area to be.
pub(super) struct Draft {
    parent: Option<Reference>,
    bitmaps: Option<BitmapDirectory>,
    name: String,
    /// Where the name goes for now, if not into the first sector.
    name_apart: Option<u64>,
    /// The first sector that turns to the new parent.
    first: [u8; SECTOR],
    /// All of the area as it shall be in the end, if that is more than the first sector.
    whole: Option<Vec<u8>>,
}

impl Draft {
    /// An area that names this parent and these bitmaps; whatever else `header` has behind it stays.
    pub(super) fn new(
        image: &Qcow2,
        header: &Header,
        parent: Option<&Reference>,
        bitmaps: Option<BitmapDirectory>,
    ) -> Result<Self> {
        let cluster = header.geometry.cluster.bytes();
        let area = bytes(&image.file, 0, cluster, CLUSTER_MAX, "header")?;
        let raw: RawHeader = take(&area, 0, "header")?;
        let start = header.fixed_length()?;
        let (old_at, old_len) = (raw.backing_file_offset.get(), u64::from(raw.backing_file_size.get()));
        let end = if old_at == 0 { cluster } else { old_at.min(cluster) };
        let old = Extensions::list(&area, start, end)?;
        let name = parent.map(|p| p.path.clone()).unwrap_or_default();
        let format = parent.and_then(|p| p.format.clone());
        let build = |names: bool| -> Result<Vec<u8>> {
            let mut all = area.get(..index(start.into())?).ok_or(Common::Index(start.into()))?.to_vec();
            if let Some(format) = &format {
                extension(&mut all, EXT_BACKING_FORMAT, format.as_bytes())?;
            }
            for (kind, data) in &old {
                let anew = matches!(*kind, EXT_BACKING_FORMAT | EXT_BITMAPS);
                if !anew && (names || *kind != EXT_FEATURE_NAMES) {
                    extension(&mut all, *kind, data)?;
                }
            }
            if let Some(bitmaps) = bitmaps {
                extension(&mut all, EXT_BITMAPS, raw_bitmaps(bitmaps)?.as_bytes())?;
            }
            all.extend_from_slice(RawExtension { kind: EXT_END.into(), length: 0.into() }.as_bytes());
            Ok(all)
        };
        let mut whole = build(true)?;
        let name_end = len64(whole.len().saturating_add(name.len()));
        if name_end <= len64(SECTOR) {
            let first = sector(&whole, &name, None)?;
            return Ok(Self { parent: parent.cloned(), bitmaps, name, name_apart: None, first, whole: None });
        }
        // What the old header uses, and what the last one will use.
        let old_end = old.iter().fold(u64::from(start).saturating_add(8), |sum, (_, data)| {
            sum.saturating_add(8).saturating_add(len64(data.len()).next_multiple_of(8))
        });
        let room = name_end <= cluster;
        let last = Span::first(if room { name_end } else { 0 });
        let used = [Span::first(old_end), Span::new(old_at, old_len)?, last];
        let small = build(false)?;
        let len = small.len();
        if len > SECTOR {
            return Err(Fault::HeaderFull { len, cluster: SECTOR }.into());
        }
        let fits = len.saturating_add(name.len()) <= SECTOR;
        let name_apart = if fits { None } else { Some(apart(cluster, len64(name.len()), &used)?) };
        let first = sector(&small, &name, name_apart)?;
        let name_at = len64(whole.len());
        whole.extend_from_slice(name.as_bytes());
        whole.resize(whole.len().max(SECTOR), 0);
        set_name(&mut whole, name_at, &name)?;
        let whole = room.then_some(whole);
        Ok(Self { parent: parent.cloned(), bitmaps, name, name_apart, first, whole })
    }

    /// Writes what the first sector will refer to, to a place that the old one does not use.
    pub(super) fn write_apart(&self, image: &Qcow2) -> Result<()> {
        if let Some(name_at) = self.name_apart {
            image.file.write_at(name_at, self.name.as_bytes())?;
            image.file.flush()?;
        }
        Ok(())
    }

    /// `header` with the sector that turns to the draft.
    pub(super) fn header(&self, header: &Header) -> Header {
        header.with_area(self.first, self.parent.clone(), self.bitmaps)
    }
}

fn raw_bitmaps(directory: BitmapDirectory) -> Result<RawBitmaps> {
    let BitmapDirectory { count, at, len } = directory;
    Ok(RawBitmaps {
        nb_bitmaps: u32::try_from(count).map_err(|_| Common::Index(count))?.into(),
        reserved: 0.into(),
        bitmap_directory_size: len.into(),
        bitmap_directory_offset: at.into(),
    })
}

/// A place in the first cluster for `len` bytes that overlap nothing in `used`.
fn apart(cluster: u64, len: u64, used: &[Span]) -> Result<u64> {
    let last = cluster.saturating_sub(len) & !7;
    let behind = used.iter().map(|span| span.end().next_multiple_of(8));
    let free = |at: &u64| {
        Span::new(*at, len).is_ok_and(|place| {
            place.start() >= len64(SECTOR)
                && place.end() <= cluster
                && used.iter().all(|span| span.intersect(place).is_none())
        })
    };
    let found = std::iter::once(last).chain(behind).find(free);
    let full = || Fault::HeaderFull { len: usize::try_from(len).unwrap_or(usize::MAX), cluster: SECTOR };
    Ok(found.ok_or_else(full)?)
}

/// The first sector: `head`, and behind it the name, unless that lies apart.
fn sector(head: &[u8], name: &str, apart: Option<u64>) -> Result<[u8; SECTOR]> {
    let mut sector = [0; SECTOR];
    part_mut(&mut sector, 0, head.len(), "header")?.copy_from_slice(head);
    if apart.is_none() {
        part_mut(&mut sector, head.len(), name.len(), "header")?.copy_from_slice(name.as_bytes());
    }
    set_name(&mut sector, apart.unwrap_or(len64(head.len())), name)?;
    Ok(sector)
}

/// Says in the header where the parent's name is; an empty name is none.
fn set_name(area: &mut [u8], at: u64, name: &str) -> Result<()> {
    let mut raw: RawHeader = take(area, 0, "header")?;
    let len = u32::try_from(name.len()).map_err(|_| Common::Index(len64(name.len())))?;
    raw.backing_file_offset = if len == 0 { 0 } else { at }.into();
    raw.backing_file_size = len.into();
    part_mut(area, 0, size_of::<RawHeader>(), "header")?.copy_from_slice(raw.as_bytes());
    Ok(())
}
