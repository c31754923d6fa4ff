//! Which places of an extent's file are in use, and where it has room.
//!
//! Before the first change all tables are walked once: a place that two entries name, or an entry that names what
//! lies behind the file's end, would turn one change into two. Such an extent is read, and mended, but not written.

use std::collections::BTreeMap;

use super::fault::VmdkFault;
use super::grains::SparseExtent;
use super::layout::SECTOR;
use crate::block::{BlockSize, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::{index, len64};

/// Memory for one bit per unit: 2 TiB, which is all that an extent can have, in units of 4 KiB.
const BITS_BYTES_MAX: u64 = 64 * MIB;
/// Free stretches that are remembered: more are only lost space.
const FREE_MAX: usize = 1 << 18;

/// One bit for each unit of the file.
#[derive(Debug)]
pub(super) struct Census {
    unit: BlockSize,
    bits: Vec<u64>,
}

impl Census {
    /// Nothing in use, in a file of `size` bytes.
    fn new(unit: BlockSize, size: u64) -> Result<Self> {
        let words = unit.count(size).div_ceil(64);
        if words.saturating_mul(8) > BITS_BYTES_MAX {
            return Err(VmdkFault::OddPlaces { file: size }.into());
        }
        Ok(Self { unit, bits: vec![0; index(words)?] })
    }

    fn word(&self, number: u64) -> (usize, u64) {
        let bit = 1u64.wrapping_shl(u32::try_from(number % 64).unwrap_or(0));
        (usize::try_from(number / 64).unwrap_or(usize::MAX), bit)
    }

    fn units(&self, span: Span) -> std::ops::Range<u64> {
        // What a header says may lie far behind the end of the file.
        let end = len64(self.bits.len()).saturating_mul(64);
        self.unit.split(span.start()).0..self.unit.count(span.end()).min(end)
    }

    fn is_used(&self, number: u64) -> bool {
        let (word, bit) = self.word(number);
        self.bits.get(word).is_none_or(|w| w & bit != 0)
    }

    /// Marks what several may share, like a unit with many tables in it.
    pub(super) fn mark(&mut self, span: Span) {
        for number in self.units(span) {
            let (word, bit) = self.word(number);
            if let Some(word) = self.bits.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// Marks what must belong to nobody yet; `false` if it does.
    pub(super) fn claim(&mut self, span: Span) -> bool {
        let free = self.units(span).all(|n| !self.is_used(n));
        self.mark(span);
        free
    }

    /// Calls `each` for the stretches that nobody uses, from `from` to the end of the file at `size`.
    pub(super) fn each_free(
        &self,
        from: u64,
        size: u64,
        mut each: impl FnMut(Span) -> Result<()>,
    ) -> Result<()> {
        let end = self.unit.split(size).0;
        let mut at = self.unit.count(from);
        while at < end {
            let (word, bit) = self.word(at);
            if bit == 1 && self.bits.get(word) == Some(&u64::MAX) {
                at = at.saturating_add(64);
                continue;
            }
            let start = at;
            while at < end && !self.is_used(at) {
                at = at.saturating_add(1);
            }
            if at > start {
                let bytes = |n| self.unit.start_of(n).ok_or(Common::Index(n));
                each(Span::new(bytes(start)?, bytes(at.saturating_sub(start))?)?)?;
            }
            at = at.saturating_add(1);
        }
        Ok(())
    }
}

impl SparseExtent {
    /// The stretch of the file that the grain at `sector` takes.
    pub(super) fn grain_place(&self, grain: u64, sector: u64) -> Result<Span> {
        let at = sector.saturating_mul(SECTOR);
        if self.header.compressed {
            return Span::new(at, SECTOR);
        }
        let start = self.header.grain.start_of(grain).ok_or(Common::Index(grain))?;
        let len = self.header.grain.bytes().min(self.header.capacity.saturating_sub(start));
        Span::new(at, len.next_multiple_of(SECTOR))
    }

    /// Calls `each(grain, sector)` for the grains of one table that have a place.
    pub(super) fn each_grain_of(
        &self,
        table: u64,
        mut each: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        self.load(table)?;
        let Some(entries) = self.shared()?.loaded.get(&table).cloned() else { return Ok(()) };
        let first = table.saturating_mul(self.header.gt_entries.into());
        for (grain, raw) in (first..self.header.grain.count(self.header.capacity)).zip(entries) {
            if raw > u32::from(self.header.zeroed_grains) {
                each(grain, raw.into())?;
            }
        }
        Ok(())
    }

    /// Calls `each(grain, sector)` for all grains that have a place.
    fn each_grain(&self, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        for table in 0..self.header.gd_entries() {
            self.each_grain_of(table, &mut each)?;
        }
        Ok(())
    }

    /// A census with everything but grains in it. `odd` has a bit of each sector number where a grain begins.
    pub(super) fn structures(&self, odd: u64) -> Result<Census> {
        let size = self.file.size();
        // The largest unit that no grain begins within.
        // Compressed grains end anywhere, and a table may follow.
        let odd = if self.header.compressed { 1 } else { odd };
        let shift =
            odd.saturating_mul(SECTOR).trailing_zeros().min(self.header.grain.bytes().trailing_zeros());
        let unit = BlockSize::from_shift(shift).ok_or(Common::Index(shift.into()))?;
        let mut census = Census::new(unit, size)?;
        for span in self.fixed()? {
            census.mark(span);
        }
        let table = u64::from(self.header.gt_entries).saturating_mul(4);
        let state = self.shared()?;
        for sector in state.directory.iter().chain(&state.redundant).filter(|s| **s != 0) {
            census.mark(Span::new(u64::from(*sector).saturating_mul(SECTOR), table)?);
        }
        Ok(census)
    }

    /// A census of a sound extent, or what is wrong with it.
    pub(super) fn census(&self) -> Result<Census> {
        self.check_tables()?;
        let mut odd = 0;
        self.each_grain(|_, sector| {
            odd |= sector;
            Ok(())
        })?;
        let mut census = self.structures(odd)?;
        let size = self.file.size();
        self.each_grain(|grain, sector| {
            let place = self.grain_place(grain, sector)?;
            if place.end() > size {
                let file_sectors = size.div_euclid(SECTOR);
                return Err(VmdkFault::GrainPastEnd { grain, sector, file_sectors }.into());
            }
            if census.claim(place) { Ok(()) } else { Err(VmdkFault::Overlap { grain, sector }.into()) }
        })?;
        Ok(census)
    }

    /// Every table is inside the file, and none lies across another, the header or a directory.
    fn check_tables(&self) -> Result<()> {
        match self.displaced()?.into_iter().next() {
            Some(first) => Err(first.fault.into()),
            None => Ok(()),
        }
    }

    /// The tables that are outside the file or lie across something.
    pub(super) fn displaced(&self) -> Result<Vec<Displaced>> {
        let state = self.shared()?;
        let bytes = u64::from(self.header.gt_entries).saturating_mul(4);
        let fixed = self.fixed()?;
        let (mut found, mut inside) = (Vec::new(), Vec::new());
        for (number, home) in (0u64..).zip(&state.directory) {
            let copy = state.redundant.get(index(number)?).copied().unwrap_or(0);
            for (sector, is_copy) in [(*home, false), (if copy == *home { 0 } else { copy }, true)] {
                if sector == 0 {
                    continue;
                }
                let place = Span::new(u64::from(sector).saturating_mul(SECTOR), bytes)?;
                let (sector, file_sectors) = (u64::from(sector), self.file.size().div_euclid(SECTOR));
                if place.end() > self.file.size() {
                    let fault = VmdkFault::GtPastEnd { index: number, sector, file_sectors };
                    found.push(Displaced { number, is_copy, fault });
                } else if fixed.iter().any(|f| f.intersect(place).is_some_and(|i| !i.is_empty())) {
                    found.push(Displaced { number, is_copy, fault: VmdkFault::TablesOverlap { sector } });
                } else {
                    inside.push((sector, is_copy, number));
                }
            }
        }
        // The first of several keeps its place.
        inside.sort_unstable();
        let mut last: Option<u64> = None;
        for (sector, is_copy, number) in inside {
            let fault = match last {
                Some(at) if at == sector => {
                    VmdkFault::SharedTable { sector: u32::try_from(sector).unwrap_or(u32::MAX) }
                }
                Some(at) if sector.saturating_sub(at).saturating_mul(SECTOR) < bytes => {
                    VmdkFault::TablesOverlap { sector }
                }
                _ => {
                    last = Some(sector);
                    continue;
                }
            };
            found.push(Displaced { number, is_copy, fault });
        }
        Ok(found)
    }

    /// What cannot move: the header, the descriptor, the directories.
    fn fixed(&self) -> Result<Vec<Span>> {
        let header = &self.header;
        let directory = header.gd_entries().saturating_mul(4);
        let mut fixed = vec![Span::first(SECTOR)];
        fixed.extend(header.descriptor);
        for at in [Some(header.gd_at), header.rgd_at].into_iter().flatten() {
            fixed.push(Span::new(at, directory)?);
        }
        Ok(fixed)
    }
}

/// A table that is where it cannot be.
#[derive(Debug)]
pub(super) struct Displaced {
    pub(super) number: u64,
    /// It is the second copy.
    pub(super) is_copy: bool,
    pub(super) fault: VmdkFault,
}

/// Where an extent has room for grains.
#[derive(Debug)]
pub(super) struct Space {
    /// Where the file ends, at a multiple of a grain.
    pub(super) end: u64,
    /// Stretches inside the file that nobody uses, by their beginning; whole grains. They may hold anything.
    free: BTreeMap<u64, u64>,
    /// Places that grains left; tables on disk may still name them.
    pub(super) freed: Vec<u64>,
    /// Places that no table names any more, but perhaps somebody who is reading.
    pub(super) landed: Vec<u64>,
}

impl Space {
    /// Room at the end of the file only.
    pub(super) fn behind(end: u64) -> Self {
        Self { end, free: BTreeMap::new(), freed: Vec::new(), landed: Vec::new() }
    }

    /// The room that a census leaves.
    pub(super) fn new(census: &Census, extent: &SparseExtent) -> Result<Self> {
        let grain = extent.header.grain;
        let size = extent.file.size();
        let mut new = Self::behind(grain.ceil(size).ok_or(Common::Index(size))?);
        census.each_free(extent.header.overhead, size, |span| {
            let start = grain.ceil(span.start()).unwrap_or(u64::MAX);
            let len = grain.floor(span.end().saturating_sub(start.min(span.end())));
            if len > 0 && new.free.len() < FREE_MAX {
                new.free.insert(start, len);
            }
            Ok(())
        })?;
        Ok(new)
    }

    /// Takes up to `want` bytes inside the file, in one piece.
    pub(super) fn take(&mut self, want: u64) -> Option<Span> {
        let (start, len) = self.free.pop_first()?;
        if len > want {
            self.free.insert(start.saturating_add(want), len.saturating_sub(want));
        }
        Span::new(start, len.min(want)).ok()
    }

    /// Gives a place back that no table names.
    pub(super) fn give(&mut self, place: Span) {
        let (mut start, mut len) = (place.start(), place.len());
        if let Some((before, bytes)) = self.free.range(..start).next_back().map(|(a, b)| (*a, *b))
            && before.saturating_add(bytes) == start
        {
            self.free.remove(&before);
            (start, len) = (before, len.saturating_add(bytes));
        }
        if let Some(bytes) = self.free.remove(&start.saturating_add(len)) {
            len = len.saturating_add(bytes);
        }
        if self.free.len() < FREE_MAX {
            self.free.insert(start, len);
        }
    }

    /// Whether something waits for those who read to be gone.
    pub(super) fn has_landed(&self) -> bool {
        len64(self.landed.len()) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(at: u64, len: u64) -> Span {
        Span::new(at, len).unwrap()
    }

    #[test]
    fn what_is_free_and_what_is_not() {
        let mut census = Census::new(BlockSize::from_shift(9).unwrap(), 512 * 1000).unwrap();
        census.mark(span(0, 100));
        census.mark(span(50, 1000));
        assert!(census.claim(span(512 * 10, 512 * 300)));
        assert!(!census.claim(span(512 * 309, 512)));
        let mut free = Vec::new();
        census
            .each_free(512, 512 * 1000 + 100, |s| {
                free.push((s.start() / 512, s.len() / 512));
                Ok(())
            })
            .unwrap();
        assert_eq!(free, [(3, 7), (310, 690)]);
    }

    #[test]
    fn free_places_grow_together() {
        let mut space = Space::behind(1000);
        for at in [100, 300, 200] {
            space.give(span(at, 100));
        }
        assert_eq!(space.take(250), Some(span(100, 250)));
        assert_eq!(space.take(250), Some(span(350, 50)));
        assert_eq!(space.take(250), None);
    }
}
