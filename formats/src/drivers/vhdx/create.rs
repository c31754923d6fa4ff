//! New images.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::bat::{Entry, Geometry, page_of};
use super::fault::VhdxFault;
use super::header::{Header, Headers};
use super::image::{State, Vhdx};
use super::layout::{FILE_SIGNATURE, HEADER_SECTION, MEGABYTE, PAGE, REGION_TABLES_AT};
use super::metadata::{DiskType, Metadata, check_size};
use super::parent;
use super::regions::Regions;
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result};
use crate::limits::{GIB, MIB, TIB};
use crate::measure::Growth;
use crate::options::{Opt, OptKind};
use crate::registry::{Backing, Image, Plan};
use crate::wire::index;

/// The options of new images, under the names that `qemu-img` gives them.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        name: "subformat",
        help: "dynamic: grows with what is written (default); fixed: a place in the file for every block",
        kind: OptKind::Choice(&["dynamic", "fixed"]),
    },
    Opt {
        name: "block_size",
        help: "bytes of a block, a power of two from 1M to 256M; 0 chooses by the size of the disk (default)",
        kind: OptKind::Size { min: 0, max: 256 * MIB, power_of_two: false },
    },
    Opt {
        name: "log_size",
        help: "bytes of the log, whole megabytes (1M)",
        kind: OptKind::Size { min: MIB, max: 4095 * MIB, power_of_two: false },
    },
    Opt {
        name: "block_state_zero",
        help: "blocks of a dynamic disk begin as zeroes (default), not as anything that Hyper-V may show",
        kind: OptKind::Flag,
    },
];

/// Makes an empty image.
pub(super) fn create(file: Disk, plan: &Plan) -> Result<Arc<dyn Image>> {
    let (log, state) = layout(plan)?;
    let region = state.regions.metadata;

    // Shrinking first makes sure that nothing old shows through where nothing is written.
    file.resize(0)?;
    file.resize(region.end())?;
    file.write_at(region.start(), &state.metadata.region()?)?;
    for at in REGION_TABLES_AT {
        file.write_at(at, state.regions.table())?;
    }
    if state.metadata.disk_type == DiskType::Fixed {
        file.resize(full_size(&state))?;
    }
    let zero = plan.options.flag("block_state_zero").unwrap_or(true);
    write_bat(&file, &state, region.end(), zero)?;
    let mut headers = Headers::new(Header::new(log));
    headers.repeat(&file)?;
    headers.repeat(&file)?;
    let mut signature = FILE_SIGNATURE.to_vec();
    signature.extend("racker".encode_utf16().flat_map(u16::to_le_bytes));
    file.write_at(0, &signature)?;

    // What was written is what counts: places in the metadata are found there.
    let state = State::new(Metadata::read(&file, region)?, state.regions)?;
    let parent = plan.backing.as_ref().map(|b| (b.image.clone(), b.reference.clone()));
    let image = Vhdx::new(file, headers, state, parent);
    image.marks.unborn.store(true, Ordering::Release);
    Ok(Arc::new(image))
}

/// How large new images become.
pub(super) fn growth(plan: &Plan) -> Result<Growth> {
    let (_, state) = layout(plan)?;
    if state.metadata.disk_type == DiskType::Fixed {
        return Ok(Growth::none(full_size(&state)));
    }
    let (unit, each) = (state.geometry.block, state.geometry.block.bytes());
    let units = state.geometry.blocks();
    Ok(Growth { unit, units, empty: state.regions.metadata.end(), first: each, each })
}

/// Bytes of the file when every block is there.
fn full_size(state: &State) -> u64 {
    let geometry = &state.geometry;
    let blocks = geometry.blocks().saturating_mul(geometry.block.bytes());
    state.regions.metadata.end().saturating_add(blocks)
}

/// Where log, BAT and metadata lie; the blocks are behind them.
fn layout(plan: &Plan) -> Result<(Span, State)> {
    let metadata = metadata(plan)?;
    let log = plan.options.size("log_size").unwrap_or(MIB);
    if !MEGABYTE.aligned(log) {
        return Err(VhdxFault::Value { what: "log size", found: log, expected: "whole megabytes" }.into());
    }
    let geometry = Geometry::of(&metadata)?;
    let bat_len = MEGABYTE.ceil(geometry.entries().saturating_mul(8)).ok_or(Common::Index(u64::MAX))?;
    let log = Span::new(HEADER_SECTION, log)?;
    let bat = Span::new(log.end(), bat_len.max(MIB))?;
    let region = Span::new(bat.end(), MIB)?;
    Ok((log, State::new(metadata, Regions::new(bat, region)?)?))
}

fn metadata(plan: &Plan) -> Result<Metadata> {
    let fixed = plan.options.text("subformat") == Some("fixed");
    let size = super::SECTOR.ceil(plan.size).ok_or(Common::Index(plan.size))?;
    let bytes = match plan.options.size("block_size") {
        Some(bytes @ 1..) => bytes,
        _ => block_for(size),
    };
    let block = BlockSize::from_bytes(bytes).filter(|b| b.bytes() >= MIB).ok_or(VhdxFault::Value {
        what: "block size",
        found: bytes,
        expected: "a power of two from 1 MiB to 256 MiB",
    })?;
    let disk_type = if fixed { DiskType::Fixed } else { DiskType::Dynamic };
    let mut metadata = Metadata::new(disk_type, size, block);
    if let Some(backing) = &plan.backing {
        metadata.disk_type = DiskType::Differencing;
        inherit(&mut metadata, backing)?;
    }
    check_size(metadata.size, metadata.sector)?;
    Ok(metadata)
}

/// What a difference has from its parent: sectors, and the ID that the guest sees.
fn inherit(metadata: &mut Metadata, backing: &Backing) -> Result<()> {
    metadata.parent = Some(parent::pairs(backing.image.as_ref(), &backing.reference.path)?);
    let facts = backing.image.facts();
    let number = |key: &str| facts.specific.get(key).and_then(serde_json::Value::as_u64);
    if let Some(sector) = number("logical-sector-size").and_then(BlockSize::from_bytes) {
        metadata.sector = sector;
    }
    if let Some(sector) = number("physical-sector-size").and_then(|n| u32::try_from(n).ok()) {
        metadata.physical_sector = sector;
    }
    let id = facts.specific.get("virtual-disk-id").and_then(|v| v.as_str());
    metadata.disk_id = id.and_then(|t| Uuid::parse_str(t).ok()).unwrap_or(metadata.disk_id);
    metadata.size = metadata.sector.ceil(metadata.size).ok_or(Common::Index(metadata.size))?;
    Ok(())
}

/// The size of blocks where none is asked for, as `qemu-img` chooses it.
const fn block_for(size: u64) -> u64 {
    if size > 32 * TIB {
        64 * MIB
    } else if size > 100 * GIB {
        32 * MIB
    } else if size > GIB {
        16 * MIB
    } else {
        8 * MIB
    }
}

/// Writes the entries that are not zero.
fn write_bat(file: &Disk, state: &State, first: u64, zero: bool) -> Result<()> {
    let geometry = &state.geometry;
    let fixed = state.metadata.disk_type == DiskType::Fixed;
    if !fixed && (!zero || state.metadata.disk_type == DiskType::Differencing) {
        return Ok(());
    }
    let mut page: Option<(Span, Vec<u8>)> = None;
    for block in 0..geometry.blocks() {
        let host = block.saturating_mul(geometry.block.bytes()).saturating_add(first);
        let entry = if fixed { Entry::Full(host) } else { Entry::Zero };
        let (span, within) = page_of(state.regions.bat, geometry.entry_of(block))?;
        if let Some((before, bytes)) = page.take_if(|(before, _)| *before != span) {
            file.write_at(before.start(), &bytes)?;
        }
        let (_, bytes) = page.get_or_insert((span, vec![0; index(PAGE.bytes())?]));
        let slot = bytes.get_mut(within..).and_then(|b| b.first_chunk_mut::<8>());
        *slot.ok_or(Common::Index(block))? = entry.raw().to_le_bytes();
    }
    page.map_or(Ok(()), |(span, bytes)| file.write_at(span.start(), &bytes))
}
