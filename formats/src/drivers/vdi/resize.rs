//! Changing the size of a disk.
//!
//! One sector, the header, turns the image to another size, another map and another beginning of the data.

use super::fault::VdiFault;
use super::header::{BLOCK_BYTES, Header, ImageType, MAP_BYTES_MAX};
use super::image::Vdi;
use super::layout::{FREE, SECTOR, ZERO};
use super::space::Survey;
use crate::block::Span;
use crate::error::{Common, Result};
use crate::limits::KIB;
use crate::mapped::InPlace;
use crate::wire::index;

/// Bytes of a map written at a time.
const PIECE: u64 = 64 * KIB;

impl Vdi {
    /// Makes the disk `size` bytes long, rounded up to a sector. The caller holds the gate.
    pub(super) fn change_size(&self, size: u64) -> Result<()> {
        let size = size.checked_next_multiple_of(SECTOR).ok_or(Common::Index(size))?;
        if self.parent.is_some() {
            return Err(VdiFault::ResizeChild.into());
        }
        let mut header = self.header()?.clone();
        let need = header.block.count(size).saturating_mul(4);
        if need > MAP_BYTES_MAX {
            let max = MAP_BYTES_MAX.div_euclid(4).saturating_mul(BLOCK_BYTES);
            return Err(VdiFault::Size { bytes: size, max }.into());
        }
        self.prepare_to_write()?;
        self.sync()?;
        header.allocated = self.header()?.allocated;
        header.modify();
        if size > header.size {
            self.clear_behind(&header)?;
            let header = self.make_room(header, need)?;
            // New blocks are not there yet.
            return self.turn_to(header.with(|h| {
                h.size = size;
                h.image_type = ImageType::Dynamic;
            }));
        }
        header.size = size;
        self.turn_to(header.clone())?;
        self.clear_behind(&header)?;
        self.compact()?;
        let header = self.header()?.clone();
        let map = header.map.truncate(need);
        self.turn_to(header.with(|h| h.map = map))
    }

    /// Makes sure that nothing is left behind the end of the disk: growing shall not bring old bytes back.
    fn clear_behind(&self, header: &Header) -> Result<()> {
        let (last, within) = header.block.split(header.size);
        if within > 0 {
            let place = self.entry(header, last)?;
            let behind = if place < ZERO { Some(header.place(place)?.skip(within)) } else { None };
            let there = behind.and_then(|span| Span::first(self.file.size()).intersect(span));
            there.map_or(Ok(()), |span| self.file.write_zeroes(span))?;
        }
        let first = header.block.count(header.size);
        let mut behind = Vec::new();
        self.each_entry(header, header.map.len() / 4, |block, place| {
            if block >= first && place != FREE {
                behind.push(block);
            }
            Ok(())
        })?;
        for block in behind {
            self.set_entry(header, block, FREE)?;
            self.limit_waiting()?;
        }
        self.sync()
    }

    /// A map of `need` bytes: where it is, if there is room before the data, or else in place of the first blocks.
    fn make_room(&self, header: Header, need: u64) -> Result<Header> {
        let old = header.map;
        if need <= old.len() {
            return Ok(header);
        }
        let map = Span::new(old.start(), need)?;
        if map.end() <= header.data_at {
            self.write_map(&header, map, 0)?;
            return Ok(header.with(|h| h.map = map));
        }
        let shift = need.div_ceil(header.stride().max(1));
        let shift = u32::try_from(shift).map_err(|_| Common::Index(shift))?;
        self.free_first(&header, shift)?;
        // Entries and count as they are after that.
        let header = self.header()?.clone();
        let skip = u64::from(shift).saturating_mul(header.stride());
        let (map, data_at) = (Span::new(header.data_at, need)?, header.data_at.saturating_add(skip));
        if u32::try_from(data_at).is_err() {
            return Err(VdiFault::MapOutside { at: map.start(), len: need, end: u32::MAX.into() }.into());
        }
        if data_at > self.file.size() {
            self.file.resize(data_at)?;
        }
        self.write_map(&header, map, shift)?;
        let allocated = header.allocated.saturating_sub(shift);
        // What is free is counted anew, from the new beginning of the data.
        *self.space.lock().map_err(|_| Common::Poisoned)? = None;
        Ok(header.with(|h| {
            h.map = map;
            h.data_at = data_at;
            h.allocated = allocated;
        }))
    }

    /// Moves the blocks of the first `count` places to others.
    fn free_first(&self, header: &Header, count: u32) -> Result<()> {
        let blocks = self.blocks_by_place(header)?;
        let mut survey = Survey::of(self, header)?;
        survey.space.block(count)?;
        *self.space.lock().map_err(|_| Common::Poisoned)? = Some(survey.space);
        for (place, block) in blocks.into_iter().take_while(|(place, _)| *place < count) {
            self.move_block(header, block.into(), place)?;
            self.limit_waiting()?;
        }
        self.sync()
    }

    /// Writes the map at `to`, with `shift` taken off every place, and free entries behind those that are there now.
    fn write_map(&self, header: &Header, to: Span, shift: u32) -> Result<()> {
        let (mut at, mut piece) = (to.start(), Vec::new());
        let old = header.map.len() / 4;
        for block in 0..to.len() / 4 {
            let entry = if block < old { self.entry(header, block)? } else { FREE };
            let entry = if entry < ZERO { entry.saturating_sub(shift) } else { entry };
            piece.extend(entry.to_le_bytes());
            if piece.len() >= index(PIECE)? {
                self.file.write_at(at, &piece)?;
                at = at.saturating_add(PIECE);
                piece.clear();
            }
        }
        self.file.write_at(at, &piece)?;
        self.file.flush()
    }
}
