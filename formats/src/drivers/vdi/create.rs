//! New images.

use std::sync::Arc;

use super::fault::VdiFault;
use super::header::{Header, ImageType};
use super::image::Vdi;
use super::layout::{FREE, SECTOR};
use crate::block::Disk;
use crate::error::{Common, Result};
use crate::limits::KIB;
use crate::measure::Growth;
use crate::options::{Opt, OptKind};
use crate::registry::{Image, Plan};
use crate::wire::index;

/// The options of new images, under the names that `qemu-img` gives them.
pub(super) const OPTIONS: &[Opt] = &[Opt {
    name: "static",
    help: "on: a place in the file for every block from the beginning; off: as they are written (default)",
    kind: OptKind::Flag,
}];

/// Entries of a map written at a time.
const PIECE: u32 = 16 << 10;

/// Makes an empty image.
pub(super) fn create(file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
    if plan.backing.is_some() {
        return Err(VdiFault::CreateChild.into());
    }
    let header = header(plan)?;
    // Shrinking first makes sure that nothing old shows through where nothing is written.
    file.resize(0)?;
    file.resize(end(&header))?;
    write_map(&file, &header, header.image_type == ImageType::Fixed)?;
    file.write_at(0, header.bytes())?;
    Ok(Arc::new(Vdi::new(file, header, None)))
}

/// How large new images become.
pub(super) fn growth(plan: &Plan) -> Result<Growth> {
    let header = header(plan)?;
    if header.image_type == ImageType::Fixed {
        return Ok(Growth::none(end(&header)));
    }
    let (unit, each) = (header.block, header.stride());
    Ok(Growth { unit, units: unit.count(header.size), empty: end(&header), first: each, each })
}

fn header(plan: &Plan) -> Result<Header> {
    let size = plan.size.checked_next_multiple_of(SECTOR).ok_or(Common::Index(plan.size))?;
    let fixed = plan.options.flag("static") == Some(true);
    Header::new(if fixed { ImageType::Fixed } else { ImageType::Dynamic }, size)
}

/// Bytes of the file of a new image.
fn end(header: &Header) -> u64 {
    u64::from(header.allocated).saturating_mul(header.stride()).saturating_add(header.data_at)
}

fn write_map(file: &Disk, header: &Header, fixed: bool) -> Result<()> {
    let blocks = u32::try_from(header.map.len() / 4).map_err(|_| Common::Index(header.map.len()))?;
    let mut first = 0u32;
    let mut piece = Vec::with_capacity(index(64 * KIB)?);
    while first < blocks {
        let end = first.saturating_add(PIECE).min(blocks);
        piece.clear();
        piece.extend((first..end).flat_map(|i| if fixed { i } else { FREE }.to_le_bytes()));
        file.write_at(header.map.skip(u64::from(first).saturating_mul(4)).start(), &piece)?;
        first = end;
    }
    Ok(())
}
