//! Writing while the disk is in use: new blocks go to the end of the file.
//!
//! A block's data begin at a multiple of 4 KiB of the file, its bitmap right before them; in the gap before that
//! lies the footer that ended the file, untouched, so that at no time the file is without one that holds.

use super::fault::VhdFault;
use super::header::Header;
use super::layout::{FOOTER_BYTES, SECTOR, UNUSED};
use super::sparse::{Block, SECTORS, SparseVhd, State, set_bits};
use crate::block::{BlockSize, Span};
use crate::error::{Common, Result};
use crate::limits::KIB;
use crate::mapped::{BlockMap, Busy, HostOffset, Room, WriteMap};
use crate::wire::{index, len64};

/// Where data begin in the file: at pages of the host.
pub(super) const ALIGN: u64 = 4 * KIB;

/// Where the file has room.
#[derive(Debug)]
pub(super) struct Space {
    /// Everything before is in use: blocks, tables, the footer.
    pub(super) end: u64,
    /// The end of what was ever written: behind `end` only after a room was given back.
    soiled: u64,
}

impl Space {
    /// Behind everything that the file holds.
    pub(super) const fn behind(end: u64) -> Self {
        Self { end, soiled: end }
    }
}

/// Faults that one survey lists: a table of noise has millions.
pub(super) const FAULTS_MAX: usize = 1000;

/// The blocks of an image by their place, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// First sector and number of each block that is in order, sorted.
    blocks: Vec<(u32, u32)>,
    /// With the numbers of their blocks.
    pub(super) faults: Vec<(u64, VhdFault)>,
}

impl Survey {
    /// Looks at the whole table.
    pub(super) fn of(image: &SparseVhd) -> Result<Self> {
        let state = image.state()?;
        let header = &state.header;
        let fixed = structures(image, &state)?;
        let file = image.file.size();
        let mut survey = Self::default();
        image.each_entry(header, header.block.count(state.footer.size), |number, entry| {
            let whole = Block::at(header, entry).whole();
            let (block, host) = (number, whole.start());
            let fault = match fixed.iter().find(|(_, span)| span.intersect(whole).is_some()) {
                Some((what, _)) => VhdFault::BlockOver { block, host, what },
                None if whole.end() > file => VhdFault::BlockPastEnd { block, host, file },
                None => {
                    survey.blocks.push((entry, u32::try_from(number).unwrap_or(u32::MAX)));
                    return Ok(());
                }
            };
            survey.fault(block, fault);
            Ok(())
        })?;
        survey.blocks.sort_unstable();
        survey.find_shared(header);
        Ok(survey)
    }

    fn fault(&mut self, block: u64, fault: VhdFault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push((block, fault));
        }
    }

    /// Blocks that begin before the one before them ends.
    fn find_shared(&mut self, header: &Header) {
        let mut last: Option<(Span, u32)> = None;
        for (sector, number) in std::mem::take(&mut self.blocks) {
            let whole = Block::at(header, sector).whole();
            match last.filter(|(span, _)| span.end() > whole.start()) {
                Some((_, first)) => {
                    let (first, second, host) = (first.into(), number.into(), whole.start());
                    self.fault(second, VhdFault::Shared { first, second, host });
                }
                None => {
                    last = Some((whole, number));
                    self.blocks.push((sector, number));
                }
            }
        }
    }

    /// The end of the last block, or of the structures.
    pub(super) fn end(&self, header: &Header, file_size: u64) -> u64 {
        let blocks = self.blocks.last().map_or(0, |(sector, _)| Block::at(header, *sector).whole().end());
        let table = header.bat.end().next_multiple_of(SECTOR);
        // The noise of a damaged header is no reason to make the file longer.
        let there = header.locators.iter().map(|l| l.span.end().next_multiple_of(SECTOR));
        let locators = there.filter(|end| *end <= file_size).max().unwrap_or(0);
        let own = len64(header.bytes().len()).saturating_add(header.at).next_multiple_of(SECTOR);
        blocks.max(table).max(locators).max(own)
    }

    /// Bytes between blocks that no block uses, in holes as large as a block.
    pub(super) fn unused(&self, header: &Header) -> u64 {
        let block = header.block.bytes();
        let pairs = self.blocks.iter().zip(self.blocks.iter().skip(1));
        let gaps = pairs.map(|((a, _), (b, _))| {
            let (a, b) = (Block::at(header, *a).whole(), Block::at(header, *b).whole());
            b.start().saturating_sub(a.end())
        });
        gaps.filter(|gap| *gap >= block).fold(0, u64::saturating_add)
    }
}

/// What lies in the file beside blocks.
fn structures(image: &SparseVhd, state: &State) -> Result<Vec<(&'static str, Span)>> {
    let mut all = vec![
        ("the footer's copy", Span::first(len64(FOOTER_BYTES))),
        ("the dynamic disk header", Span::new(state.header.at, len64(state.header.bytes().len()))?),
        ("the block allocation table", state.header.bat),
    ];
    let there = |l: &&super::header::Locator| l.span.end() <= image.file.size();
    all.extend(state.header.locators.iter().filter(there).map(|l| ("a parent locator", l.span)));
    Ok(all)
}

impl SparseVhd {
    /// Looks through the table before the first write: an entry that names another block's bytes, or the table's
    /// own, is harmless until somebody writes there.
    pub(super) fn prepare_to_write(&self) -> Result<()> {
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        if space.is_some() {
            return Ok(());
        }
        let survey = Survey::of(self)?;
        if let Some((_, fault)) = survey.faults.into_iter().next() {
            return Err(fault.into());
        }
        *space = Some(Space::behind(self.file.size().next_multiple_of(SECTOR)));
        Ok(())
    }

    /// Makes a new block visible. Its bitmap is written at once, as its data were: no entry of the table ever names
    /// a block without one, which programs read in three different ways.
    pub(super) fn publish_new(&self, header: &Header, room: Room, bits: &[u8]) -> Result<()> {
        let bitmap_at = room.host.0.saturating_sub(header.bitmap_bytes);
        self.file.write_at(bitmap_at, bits)?;
        let sector = u32::try_from(bitmap_at.div_euclid(SECTOR)).map_err(|_| VhdFault::Full)?;
        self.set_entry(header, room.block, sector)
    }

    /// Takes `len` bytes at the end of the file whose byte `lead` is aligned, and ends the file with a footer.
    pub(super) fn take_space(&self, space: &mut Space, footer: &[u8], lead: u64, len: u64) -> Result<u64> {
        let start = space.end.saturating_add(lead).next_multiple_of(ALIGN).saturating_sub(lead);
        let end = start.saturating_add(len);
        let last_sector = u32::try_from(start.div_euclid(SECTOR)).ok().filter(|s| *s != UNUSED);
        last_sector.ok_or(VhdFault::Full)?;
        let new_size = end.saturating_add(len64(footer.len()));
        if new_size > self.file.size() {
            self.file.resize(new_size)?;
        }
        if let Some(used) = Span::first(space.soiled).intersect(Span::new(start, len)?) {
            self.file.write_zeroes(used)?;
        }
        self.file.write_at(end, footer)?;
        *space = Space { end: new_size, soiled: new_size.max(space.soiled) };
        Ok(start)
    }
}

impl WriteMap for SparseVhd {
    fn allocation(&self) -> BlockSize {
        self.block_size()
    }

    fn disk_size(&self) -> u64 {
        self.state().map_or(0, |s| s.footer.size)
    }

    fn busy(&self) -> &Busy {
        &self.busy
    }

    fn reserve(&self, block: u64) -> Result<Room> {
        let state = self.state()?;
        if let Some(found) = self.block(&state.header, block)? {
            let host = HostOffset(found.data.start());
            return Ok(Room { block, host, unit: SECTORS, fresh: false });
        }
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        let space = space.as_mut().ok_or(Common::Poisoned)?;
        let (bitmap, data) = (state.header.bitmap_bytes, state.header.block.bytes());
        let len = bitmap.saturating_add(data);
        let start = self.take_space(space, state.footer.bytes(), bitmap, len)?;
        let host = HostOffset(start.saturating_add(bitmap));
        Ok(Room { block, host, unit: SECTORS, fresh: true })
    }

    fn publish(&self, room: Room, span: Span) -> Result<()> {
        let state = self.state()?;
        let header = &state.header;
        let bitmap_at = room.host.0.saturating_sub(header.bitmap_bytes);
        let bitmap = Span::new(bitmap_at, header.bitmap_bytes)?;
        let (_, within) = header.block.split(span.start());
        let (from, to) = (within / SECTOR, SECTORS.count(within.saturating_add(span.len())));
        if !room.fresh {
            return self.sheets.change(bitmap, |bits| set_bits(bits, from, to));
        }
        let mut bits = vec![0; index(header.bitmap_bytes)?];
        if self.parent.is_some() {
            set_bits(&mut bits, from, to)?;
        } else {
            // Everything else in the block is zeroes, for programs that go by the bitmap and those that do not.
            bits.fill(0xff);
        }
        self.publish_new(header, room, &bits)
    }

    fn release(&self, room: Room) {
        let Ok(state) = self.state() else { return };
        let start = room.host.0.saturating_sub(state.header.bitmap_bytes);
        let end = room.host.0.saturating_add(state.header.block.bytes()).saturating_add(len64(FOOTER_BYTES));
        // Only the last room can be given back; it is cleared before it is used again.
        if let Ok(mut space) = self.space.lock()
            && let Some(space) = space.as_mut().filter(|s| room.fresh && s.end == end)
        {
            space.end = start;
        }
    }
}
