//! streamOptimized, as VMware writes it: from beginning to end without going back.
//!
//! ```text
//! header ▸ descriptor ▸ (grains ▸ their grain table)… ▸ grain directory ▸ footer ▸ end of stream
//! ```
//!
//! Each grain is compressed behind a marker with its place in the disk; each table, the directory and the footer
//! follow a marker of their own. The directory's place is known only at the end, so the header says "see the
//! footer". Zero grains are left out, and so is a table without grains.

use std::sync::Arc;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::create::{GRAIN_SECTORS, GT_ENTRIES, GT_SECTORS, Layout};
use super::fault::VmdkFault;
use super::layout::{GD_AT_END, RawGrainMarker, RawMarker, RawSparseHeader, SECTOR, flags, marker};
use super::pack::Deflate;
use crate::block::{BlockSize, Disk};
use crate::convert::{Pack, Piece, Sink};
use crate::error::Result;
use crate::registry::Plan;
use crate::wire::{index, len64};

/// Bytes in a grain.
const GRAIN: u64 = GRAIN_SECTORS.saturating_mul(SECTOR);
const GRAIN_SIZE: BlockSize = super::create::GRAIN;
/// Bytes that are gathered before they are written.
const GATHERED_MAX: usize = 1 << 20;
/// Bytes of the disk that one grain table describes.
const TABLE_COVERS: u64 = GRAIN.saturating_mul(512);
/// Header and descriptor take a grain's room, as in VMware's files.
const OVERHEAD_SECTORS: u64 = 128;
/// The version of compressed extents that are only read.
const VERSION: u32 = 3;

/// Bytes of a stream whose grains cannot be compressed.
pub(super) fn full_size(plan: &Plan) -> Result<u64> {
    let layout = Layout::new(plan)?;
    let prefix = size_of::<RawGrainMarker>();
    let grain = len64(super::pack::bound(index(GRAIN)?).saturating_add(prefix)).div_ceil(SECTOR);
    let grains = GRAIN_SIZE.count(plan.size).saturating_mul(grain);
    let tables = layout.tables.saturating_mul(GT_SECTORS.saturating_add(1));
    // The directory and the footer follow markers, the end of the stream is one.
    let end = layout.gd_sectors.saturating_add(4);
    let sectors = OVERHEAD_SECTORS.saturating_add(grains).saturating_add(tables).saturating_add(end);
    Ok(sectors.saturating_mul(SECTOR))
}

/// A stream under way.
#[derive(Debug)]
pub(super) struct StreamSink {
    file: Disk,
    /// What is not written yet; it follows what is in the file.
    gathered: Vec<u8>,
    /// Sectors in the file and gathered.
    sector: u64,
    layout: Layout,
    header: RawSparseHeader,
    /// The table of the grains at hand, and its number.
    table: Vec<u32>,
    number: u64,
    /// Sectors of the tables.
    directory: Vec<u32>,
    /// Up to here the disk is in the stream.
    done: u64,
    /// How hard grains are compressed.
    level: i32,
}

impl StreamSink {
    /// Begins a stream for the image that `plan` asks for, in a file that is emptied first.
    pub(super) fn new(file: Disk, plan: &Plan) -> Result<Self> {
        file.resize(0)?;
        let layout = Layout::new(plan)?;
        let mut header = layout.header();
        header.version = U32::new(VERSION);
        header.flags = U32::new(flags::NEWLINES | flags::COMPRESSED | flags::MARKERS);
        header.gd_offset = U64::new(GD_AT_END);
        header.over_head = U64::new(OVERHEAD_SECTORS);
        header.compress_algorithm = U16::new(1);
        let directory = vec![0; index(layout.tables)?];
        let table = vec![0; index(GT_ENTRIES.into())?];
        let gathered = Vec::new();
        let level = plan.options.size("compression_level").and_then(|n| i32::try_from(n).ok());
        let level = level.unwrap_or(super::pack::LEVEL);
        let mut new =
            Self { file, gathered, sector: 0, layout, header, table, number: 0, directory, done: 0, level };
        new.append(header.as_bytes())?;
        let descriptor = new.layout.descriptor.clone();
        new.append(descriptor.as_bytes())?;
        let rest = OVERHEAD_SECTORS.saturating_sub(new.sector).saturating_mul(SECTOR);
        new.append(&vec![0; index(rest)?])?;
        Ok(new)
    }

    /// Adds whole sectors: zeroes fill the last one.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let whole = len64(bytes.len()).next_multiple_of(SECTOR);
        self.gathered.extend_from_slice(bytes);
        let fill = index(whole)?.saturating_sub(bytes.len());
        self.gathered.resize(self.gathered.len().saturating_add(fill), 0);
        self.sector = self.sector.saturating_add(whole.div_euclid(SECTOR));
        if self.gathered.len() >= GATHERED_MAX { self.write_gathered() } else { Ok(()) }
    }

    fn write_gathered(&mut self) -> Result<()> {
        let at = self.file.size();
        self.file.resize(at.saturating_add(len64(self.gathered.len())))?;
        self.file.write_at(at, &self.gathered)?;
        self.gathered.clear();
        Ok(())
    }

    fn marker(&mut self, kind: u32, num_sectors: u64) -> Result<()> {
        let mut raw = RawMarker::new_zeroed();
        raw.num_sectors = U64::new(num_sectors);
        raw.kind = U32::new(kind);
        self.append(raw.as_bytes())
    }

    /// The sector at hand as a table entry.
    fn here(&self) -> Result<u32> {
        u32::try_from(self.sector).map_err(|_| VmdkFault::Full(self.sector).into())
    }

    fn grain(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if at < self.done {
            return Err(VmdkFault::Order { at, written: self.done }.into());
        }
        let number = at.div_euclid(TABLE_COVERS);
        if number != self.number {
            self.end_table()?;
            self.number = number;
        }
        let sector = self.here()?;
        let entry = index(at.rem_euclid(TABLE_COVERS).div_euclid(GRAIN))?;
        if let Some(slot) = self.table.get_mut(entry) {
            *slot = sector;
        }
        self.done = at.saturating_add(GRAIN);
        self.append(bytes)
    }

    /// Writes the table at hand, unless nothing is in it.
    fn end_table(&mut self) -> Result<()> {
        if self.table.iter().all(|e| *e == 0) {
            return Ok(());
        }
        self.marker(marker::GRAIN_TABLE, GT_SECTORS)?;
        let sector = self.here()?;
        if let Some(slot) = self.directory.get_mut(index(self.number)?) {
            *slot = sector;
        }
        let bytes: Vec<u8> = self.table.iter().flat_map(|e| e.to_le_bytes()).collect();
        self.table.fill(0);
        self.append(&bytes)
    }
}

impl Sink for StreamSink {
    fn block_size(&self) -> BlockSize {
        GRAIN_SIZE
    }

    fn pack(&self) -> Option<Arc<dyn Pack>> {
        Some(Arc::new(GrainPack(Deflate::new(self.level))))
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Zero(_) => Ok(()),
            Piece::Packed { at, bytes, .. } => self.grain(at, &bytes),
            Piece::Data { at, .. } => Err(VmdkFault::Order { at, written: self.done }.into()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.end_table()?;
        self.marker(marker::GRAIN_DIRECTORY, self.layout.gd_sectors)?;
        let gd = self.sector;
        let bytes: Vec<u8> = self.directory.iter().flat_map(|e| e.to_le_bytes()).collect();
        self.append(&bytes)?;
        self.marker(marker::FOOTER, 1)?;
        let mut footer = self.header;
        footer.gd_offset = U64::new(gd);
        self.append(footer.as_bytes())?;
        self.marker(marker::END_OF_STREAM, 0)?;
        self.write_gathered()?;
        self.file.flush()
    }
}

/// Makes compressed grains with their markers.
#[derive(Debug)]
struct GrainPack(Deflate);

impl Pack for GrainPack {
    fn unit(&self) -> BlockSize {
        GRAIN_SIZE
    }

    fn pack(&self, at: u64, block: &[u8]) -> Result<Piece> {
        let prefix = size_of::<RawGrainMarker>();
        let len = len64(block.len());
        let mut bytes = if len == GRAIN {
            self.0.deflate(block, prefix)?
        } else {
            // The last grain is whole as well: not every reader takes less.
            let mut whole = block.to_vec();
            whole.resize(index(GRAIN)?, 0);
            self.0.deflate(&whole, prefix)?
        };
        let size = u32::try_from(bytes.len().saturating_sub(prefix)).unwrap_or(u32::MAX);
        let raw = RawGrainMarker { lba: U64::new(at.div_euclid(SECTOR)), size: U32::new(size) };
        if let Some(place) = bytes.get_mut(..prefix) {
            place.copy_from_slice(raw.as_bytes());
        }
        Ok(Piece::Packed { at, len, bytes })
    }
}
