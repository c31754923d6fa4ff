//! Moving blocks to other places of the file.
//!
//! A copy is made and on stable storage before an entry of the map names it, and what it is a copy of stays until that
//! entry is.

use super::fault::VdiFault;
use super::header::Header;
use super::image::Vdi;
use super::layout::ZERO;
use super::space::Survey;
use crate::block::Span;
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::{InPlace, WriteMap};
use crate::wire::index;

/// Blocks that can be put in order: eight bytes of memory each.
const BLOCKS_MAX: u64 = 1 << 24;
/// Bytes copied at a time.
const PIECE: u64 = MIB;

impl Vdi {
    /// Fills the places that are free with the last blocks, and cuts the file behind what is left. The caller holds the
    /// gate; the map is sound.
    pub(super) fn compact(&self) -> Result<()> {
        let header = self.header()?.clone();
        let survey = Survey::of(self, &header)?;
        let blocks = self.blocks_by_place(&header)?;
        let holes: Vec<u32> = survey.space.holes().collect();
        let moves = holes.iter().zip(blocks.iter().rev()).filter(|(hole, (place, _))| *hole < place);
        for (hole, (place, block)) in moves {
            self.copy(&header, *place, *hole)?;
            self.set_entry(&header, (*block).into(), *hole)?;
            // Never so many that the map would land before its data: landing flushes them first.
            self.limit_waiting()?;
        }
        self.sync()?;
        self.recount()?;
        let end = self.header()?.place(survey.count)?.start().saturating_sub(header.extra);
        if end < self.file.size() { self.file.resize(end) } else { Ok(()) }
    }

    /// Looks at the map anew, and has the header count what is there.
    pub(super) fn recount(&self) -> Result<()> {
        let header = self.header()?.clone();
        let survey = Survey::of(self, &header)?;
        let allocated = survey.space.next();
        *self.space.lock().map_err(|_| Common::Poisoned)? = Some(survey.space);
        if header.allocated == allocated {
            Ok(())
        } else {
            self.turn_to(header.with(|h| h.allocated = allocated))
        }
    }

    /// Place and number of every block that has one, in order of places.
    pub(super) fn blocks_by_place(&self, header: &Header) -> Result<Vec<(u32, u32)>> {
        let count = header.map.len() / 4;
        if count > BLOCKS_MAX {
            return Err(VdiFault::ManyBlocks(count).into());
        }
        let mut blocks = Vec::new();
        self.each_entry(header, count, |block, place| {
            if place < ZERO {
                blocks.push((place, u32::try_from(block).map_err(|_| Common::Index(block))?));
            }
            Ok(())
        })?;
        blocks.sort_unstable();
        Ok(blocks)
    }

    /// Gives a block a copy of what place `from` holds.
    pub(super) fn move_block(&self, header: &Header, block: u64, from: u32) -> Result<()> {
        let room = self.reserve(block)?;
        self.copy_to(header, from, room.host.0.saturating_sub(header.extra))?;
        self.publish(room, Span::first(0))
    }

    fn copy(&self, header: &Header, from: u32, to: u32) -> Result<()> {
        self.copy_to(header, from, header.place(to)?.start().saturating_sub(header.extra))
    }

    /// Copies all that a place holds to another offset of the file.
    fn copy_to(&self, header: &Header, from: u32, to: u64) -> Result<()> {
        let start = header.place(from)?.start().saturating_sub(header.extra);
        let mut rest = Span::new(start, header.stride())?;
        while !rest.is_empty() {
            let piece = rest.truncate(PIECE);
            let mut bytes = vec![0; index(piece.len())?];
            self.file.read_at(piece.start(), &mut bytes)?;
            let skip = piece.start().saturating_sub(start);
            self.file.write_at(to.saturating_add(skip), &bytes)?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    }
}
