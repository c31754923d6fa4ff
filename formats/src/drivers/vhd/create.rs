//! New images.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::fault::VhdFault;
use super::fixed::FixedVhd;
use super::footer::{DiskType, Footer, SIZE_MAX, time_stamp};
use super::geometry::Geometry;
use super::header::{Header, Locator};
use super::layout::{FOOTER_BYTES, HEADER_BYTES, SECTOR, W2RU};
use super::parent;
use super::space::ALIGN;
use super::sparse::SparseVhd;
use crate::block::{Disk, Span};
use crate::error::Result;
use crate::measure::Growth;
use crate::options::{Opt, OptKind, Values};
use crate::registry::{Backing, Image, Plan};
use crate::wire::{index, len64};

/// The options of new images, under the names that `qemu-img` gives them.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        name: "subformat",
        help: "dynamic: grows with what is written (default); fixed: the whole disk and a footer, for Azure",
        kind: OptKind::Choice(&["dynamic", "fixed"]),
    },
    Opt {
        name: "force_size",
        help: "exactly the size asked for, instead of the next one that cylinders, heads and sectors can tell",
        kind: OptKind::Flag,
    },
];

/// Whether a fixed disk is asked for.
pub(super) fn is_fixed(options: &Values) -> bool {
    options.text("subformat") == Some("fixed")
}

/// Makes an empty image.
pub(super) fn create(file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let asked = plan.size.next_multiple_of(SECTOR);
    // Shrinking first makes sure that nothing old shows through where nothing is written.
    file.resize(0)?;
    if let Some(backing) = &plan.backing {
        return differencing(file, asked, backing, seconds);
    }
    let (size, geometry) = size(plan)?;
    if is_fixed(&plan.options) {
        let footer = Footer::new(DiskType::Fixed, size, geometry, seconds);
        file.resize(size.saturating_add(len64(FOOTER_BYTES)))?;
        file.write_at(size, footer.bytes())?;
        return Ok(Arc::new(FixedVhd::new(file, footer, size)?));
    }
    let footer = Footer::new(DiskType::Dynamic, size, geometry, seconds);
    let header = Header::new(size, header_end())?;
    write(&file, &footer, &header)?;
    Ok(Arc::new(SparseVhd::new(file, footer, header, None, None)))
}

/// The size that a new disk by `plan` gets, and how it is told.
fn size(plan: &Plan) -> Result<(u64, Geometry)> {
    let asked = plan.size.next_multiple_of(SECTOR);
    let geometry = Geometry::holding(asked);
    let exact = plan.options.flag("force_size") == Some(true) || geometry == Geometry::MAX;
    let (size, geometry) = if exact { (asked, Geometry::MAX) } else { (geometry.bytes(), geometry) };
    if size > SIZE_MAX {
        return Err(VhdFault::Size { bytes: size, max: SIZE_MAX }.into());
    }
    Ok((size, geometry))
}

/// How large new images become.
pub(super) fn growth(plan: &Plan) -> Result<Growth> {
    let (size, _) = size(plan)?;
    let footer = len64(FOOTER_BYTES);
    if is_fixed(&plan.options) {
        return Ok(Growth::none(size.saturating_add(footer)));
    }
    let header = Header::new(size, header_end())?;
    let empty = header.bat.end().next_multiple_of(SECTOR).saturating_add(footer);
    // Data are aligned; a bitmap lies before them, a footer behind.
    let data_at = |end: u64| end.saturating_add(header.bitmap_bytes).next_multiple_of(ALIGN);
    let grown = |end: u64| data_at(end).saturating_add(header.block.bytes()).saturating_add(footer);
    let (one, two) = (grown(empty), grown(grown(empty)));
    let (first, each) = (one.saturating_sub(empty), two.saturating_sub(one));
    Ok(Growth { unit: header.block, units: header.block.count(size), empty, first, each })
}

fn differencing(file: Disk, size: u64, backing: &Backing, seconds: u64) -> Result<Arc<dyn Image>> {
    let image = &backing.image;
    let id = parent::unique_id(image.as_ref()).ok_or(VhdFault::ParentFormat(image.facts().format))?;
    if size != image.size() {
        return Err(VhdFault::ParentSize { parent: image.size(), size }.into());
    }
    let exact = Geometry::of(size);
    let geometry = if exact.bytes() == size { exact } else { Geometry::MAX };
    let footer = Footer::new(DiskType::Differencing, size, geometry, seconds);

    let path = parent::PathText::of(&backing.reference.path)?;
    let span = Span::new(header_end(), len64(path.text.len()))?;
    let space = span.len().next_multiple_of(SECTOR);
    let mut header = Header::new(size, span.start().saturating_add(space))?;
    let time = time_stamp(backing.modified);
    header.name_parent(id, time, &path.name, &[(Locator { platform: W2RU, span }, space)]);
    write(&file, &footer, &header)?;
    file.write_at(span.start(), &path.text)?;

    let parent = Some(image.clone());
    Ok(Arc::new(SparseVhd::new(file, footer, header, parent, Some(backing.reference.clone()))))
}

/// Where the first sector behind footer and header begins.
fn header_end() -> u64 {
    len64(FOOTER_BYTES).saturating_add(len64(HEADER_BYTES))
}

/// Writes footers, header and an empty table.
fn write(file: &Disk, footer: &Footer, header: &Header) -> Result<()> {
    let table = vec![0xff; index(header.bat.len().next_multiple_of(SECTOR))?];
    let end = header.bat.start().saturating_add(len64(table.len()));
    file.resize(end.saturating_add(len64(FOOTER_BYTES)))?;
    file.write_at(end, footer.bytes())?;
    file.write_at(header.bat.start(), &table)?;
    file.write_at(header.at, header.bytes())?;
    file.write_at(0, footer.bytes())
}
