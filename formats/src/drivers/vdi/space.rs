//! Writing while the disk is in use: new blocks take the first places of the file that are free.

use super::fault::VdiFault;
use super::header::Header;
use super::image::Vdi;
use super::layout::{FREE, ZERO};
use crate::block::{BlockSize, Span};
use crate::error::{Common, Result};
use crate::mapped::{BlockMap, Busy, HostOffset, Room, WriteMap};
use crate::wire::index;

/// Faults that one survey lists: a map of noise has millions.
pub(super) const FAULTS_MAX: usize = 1000;

/// Which places of the file are in use.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// A bit for each place.
    used: Vec<u64>,
    /// One more than the last place in use: what the header counts.
    end: u32,
    /// No place before this one is free.
    low: u32,
}

impl Space {
    /// Takes a place; says whether it was free.
    fn take(&mut self, place: u32) -> Result<bool> {
        let (word, bit) = (index(u64::from(place / 64))?, 1u64.wrapping_shl(place % 64));
        if word >= self.used.len() {
            self.used.resize(word.saturating_add(1), 0);
        }
        let slot = self.used.get_mut(word).ok_or(Common::Index(place.into()))?;
        let free = *slot & bit == 0;
        *slot |= bit;
        self.end = self.end.max(place.saturating_add(1));
        Ok(free)
    }

    fn is_used(&self, place: u32) -> bool {
        let word = usize::try_from(place / 64).ok().and_then(|w| self.used.get(w)).copied().unwrap_or(0);
        word & 1u64.wrapping_shl(place % 64) != 0
    }

    fn give_back(&mut self, place: u32) {
        if let Some(slot) = usize::try_from(place / 64).ok().and_then(|w| self.used.get_mut(w)) {
            *slot &= !1u64.wrapping_shl(place % 64);
        }
        self.low = self.low.min(place);
        while self.end > 0 && !self.is_used(self.end.saturating_sub(1)) {
            self.end = self.end.saturating_sub(1);
        }
    }

    /// The first free place, taken.
    fn first_free(&mut self) -> Result<u32> {
        while self.is_used(self.low) {
            self.low = self.low.saturating_add(1);
        }
        let place = self.low;
        self.take(place)?;
        Ok(place)
    }

    /// Keeps the first `count` places from being taken.
    pub(super) fn block(&mut self, count: u32) -> Result<()> {
        for place in 0..count {
            self.take(place)?;
        }
        Ok(())
    }

    /// The place behind all that are in use.
    pub(super) const fn next(&self) -> u32 {
        self.end
    }

    /// The free places before the end, in order.
    pub(super) fn holes(&self) -> impl Iterator<Item = u32> + '_ {
        (self.low..self.end).filter(|place| !self.is_used(*place))
    }
}

/// What the map says about the file.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) space: Space,
    /// Blocks that have a place.
    pub(super) count: u32,
    /// With the numbers of their blocks.
    pub(super) faults: Vec<(u64, VdiFault)>,
}

impl Survey {
    /// Looks at the whole map.
    pub(super) fn of(image: &Vdi, header: &Header) -> Result<Self> {
        let mut survey = Self::default();
        let file = image.file.size();
        // No more places than the file has room for: a bit for each is what this takes in memory.
        image.each_entry(header, header.map.len() / 4, |block, place| {
            if place >= ZERO {
                return Ok(());
            }
            let span = header.place(place)?;
            let fault = if span.end() > file {
                VdiFault::BlockPastEnd { block, host: span.start(), file }
            } else if !survey.space.take(place)? {
                VdiFault::Shared { block, place }
            } else {
                survey.count = survey.count.saturating_add(1);
                return Ok(());
            };
            if survey.faults.len() < FAULTS_MAX {
                survey.faults.push((block, fault));
            }
            Ok(())
        })?;
        Ok(survey)
    }
}

impl Vdi {
    /// Looks through the map before the first write: two entries that name one place are harmless until somebody
    /// writes there. Then says in the header that the disk changes, so that children of it can tell.
    pub(super) fn prepare_to_write(&self) -> Result<()> {
        if self.space.lock().map_err(|_| Common::Poisoned)?.is_some() {
            return Ok(());
        }
        let mut header = self.header()?.clone();
        let survey = Survey::of(self, &header)?;
        if let Some((_, fault)) = survey.faults.into_iter().next() {
            return Err(fault.into());
        }
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        if space.is_some() {
            return Ok(());
        }
        header.modify();
        self.turn_to(header)?;
        *space = Some(survey.space);
        Ok(())
    }
}

impl WriteMap for Vdi {
    fn allocation(&self) -> BlockSize {
        self.block_size()
    }

    fn disk_size(&self) -> u64 {
        self.header().map_or(0, |h| h.size)
    }

    fn busy(&self) -> &Busy {
        &self.busy
    }

    fn reserve(&self, block: u64) -> Result<Room> {
        let header = self.header()?;
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        let place = space.as_mut().ok_or(Common::Poisoned)?.first_free()?;
        let span = header.place(place)?;
        let old_end = self.file.size();
        // What was there once is not what a new block holds.
        if let Some(soiled) = Span::first(old_end).intersect(span) {
            self.file.write_zeroes(soiled)?;
        }
        if span.end() > old_end {
            self.file.resize(span.end())?;
        }
        Ok(Room { block, host: HostOffset(span.start()), unit: header.block, fresh: true })
    }

    fn publish(&self, room: Room, _: Span) -> Result<()> {
        let header = self.header()?;
        let place = place_of(&header, room);
        self.set_entry(&header, room.block, place)
    }

    fn release(&self, room: Room) {
        if let (Ok(header), Ok(mut space)) = (self.header(), self.space.lock())
            && let Some(space) = space.as_mut()
        {
            space.give_back(place_of(&header, room));
        }
    }

    fn zero_block(&self, block: u64) -> Result<bool> {
        let header = self.header()?;
        // A place that is given up would have to be filled at once by the last block: everything before the count is
        // taken to be in use. So stored blocks are zeroed in place, and give their space back as holes of the file.
        if self.entry(&header, block)? != FREE {
            return Ok(false);
        }
        self.set_entry(&header, block, ZERO)?;
        Ok(true)
    }
}

/// The number of a room's place in the file.
fn place_of(header: &Header, room: Room) -> u32 {
    let from = room.host.0.saturating_sub(header.extra).saturating_sub(header.data_at);
    u32::try_from(from.checked_div(header.stride()).unwrap_or(0)).unwrap_or(u32::MAX)
}
