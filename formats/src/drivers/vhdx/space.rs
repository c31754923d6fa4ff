//! Writing while the disk is in use: where new blocks and sector bitmaps go.
//!
//! A place that a block gives up is not used again before the BAT without it is on stable storage, and all who might
//! still be reading or writing there are done.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::bat::{Bits, Entry, Geometry, fill_bits};
use super::fault::VhdxFault;
use super::image::{State, Vhdx, megabytes};
use super::layout::{HEADER_SECTION, MEGABYTE};
use super::metadata::DiskType;
use crate::block::{BlockSize, Span};
use crate::error::{Common, Error, Result};
use crate::limits::TIB;
use crate::mapped::{BlockMap, Busy, HostOffset, Room, WriteMap};
use crate::wire::index;

/// Faults that one survey lists: a BAT of noise has millions.
pub(super) const FAULTS_MAX: usize = 1000;
/// Files up to this size are written to: a bit in memory for each megabyte is 16 MiB.
const FILE_MAX: u64 = 128 * TIB;

/// Which megabytes of the file are in use.
#[derive(Debug, Default)]
pub(super) struct Space {
    used: Vec<u64>,
    /// No megabyte before this one is free.
    low: u32,
    /// Given up, but the BAT on disk may still name them.
    given_up: Vec<(u32, u32)>,
    /// Given up for good, but somebody may still be reading there.
    leaving: Vec<(u32, u32)>,
}

impl Space {
    fn is_used(&self, megabyte: u32) -> bool {
        let word = usize::try_from(megabyte / 64).ok().and_then(|w| self.used.get(w)).copied().unwrap_or(0);
        word & 1u64.wrapping_shl(megabyte % 64) != 0
    }

    fn set(&mut self, megabyte: u32, used: bool) -> Result<()> {
        let word = index(u64::from(megabyte / 64))?;
        if word >= self.used.len() {
            self.used.resize(word.saturating_add(1), 0);
        }
        let (slot, bit) = (self.used.get_mut(word), 1u64.wrapping_shl(megabyte % 64));
        let slot = slot.ok_or(Common::Index(megabyte.into()))?;
        *slot = if used { *slot | bit } else { *slot & !bit };
        if !used {
            self.low = self.low.min(megabyte);
        }
        Ok(())
    }

    /// Marks a stretch as used; says whether all of it was free.
    fn take_at(&mut self, first: u32, count: u32) -> Result<bool> {
        let end = first.saturating_add(count);
        if (first..end).any(|m| self.is_used(m)) {
            return Ok(false);
        }
        (first..end).try_for_each(|m| self.set(m, true))?;
        Ok(true)
    }

    /// The first stretch of `count` megabytes that are free, taken.
    fn take(&mut self, count: u32) -> Result<u32> {
        while self.is_used(self.low) {
            self.low = self.low.saturating_add(1);
        }
        let mut first = self.low;
        let mut next = first;
        while next.saturating_sub(first) < count {
            if self.is_used(next) {
                first = next.saturating_add(1);
            }
            next = next.saturating_add(1);
        }
        self.take_at(first, count)?;
        Ok(first)
    }

    fn give_back(&mut self, first: u32, count: u32) {
        for megabyte in first..first.saturating_add(count) {
            // Only what was taken is given back, so there is a bit for it.
            let _ = self.set(megabyte, false);
        }
    }

    /// The megabyte behind the last one in use.
    pub(super) fn end(&self) -> u32 {
        let last = self.used.iter().rposition(|word| *word != 0).unwrap_or(0);
        let word = self.used.get(last).copied().unwrap_or(0);
        let before = u32::try_from(last).unwrap_or(u32::MAX).saturating_mul(64);
        before.saturating_add(64u32.saturating_sub(word.leading_zeros()))
    }

    /// First megabyte and length of every stretch before the end that is free.
    pub(super) fn gaps(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let end = self.end();
        let mut next = self.low;
        std::iter::from_fn(move || {
            let first = (next..end).find(|m| !self.is_used(*m))?;
            next = (first..end).find(|m| self.is_used(*m)).unwrap_or(end);
            Some((first, next.saturating_sub(first)))
        })
    }
}

/// What BAT and regions say about the file.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) space: Space,
    /// With the numbers of their entries, where they have one.
    pub(super) faults: Vec<(Option<u64>, VhdxFault)>,
}

impl Survey {
    /// Looks at everything that has a place in the file.
    pub(super) fn of(image: &Vhdx) -> Result<Self> {
        let file = image.file.size();
        if file > FILE_MAX {
            return Err(VhdxFault::FileSize(file).into());
        }
        let state = image.state()?;
        let log = image.headers.lock().map_err(|_| Common::Poisoned)?.current.log;
        let mut survey = Self::default();
        let regions = &state.regions;
        let mut fixed = vec![("header section", Span::first(HEADER_SECTION)), ("log", log)];
        fixed.extend([("BAT", regions.bat), ("metadata region", regions.metadata)]);
        fixed.extend(regions.others.iter().map(|span| ("unknown region", *span)));
        for (what, span) in fixed {
            if !survey.take(span)? {
                let fault = VhdxFault::Shared { what, number: 0, host: span.start() };
                survey.fault(None, fault);
            }
        }
        survey.entries(image, &state, file)?;
        Ok(survey)
    }

    fn entries(&mut self, image: &Vhdx, state: &State, file: u64) -> Result<()> {
        let geometry = &state.geometry;
        let mut kept = Vec::new();
        for chunk in 0..geometry.chunks() {
            let number = geometry.bitmap_entry_of(chunk);
            let mut has_bitmap = false;
            if number < geometry.entries() {
                let raw = image.raw_entry(state, number)?;
                if let Some(host) = self.meaning(number, geometry.decode_bitmap(chunk, raw))?.flatten() {
                    has_bitmap = true;
                    let len = MEGABYTE.bytes();
                    self.place(("the sector bitmap of chunk", chunk, number), (host, len), len, file)?;
                }
            }
            let first = chunk.saturating_mul(geometry.chunk.bytes());
            let end = first.saturating_add(geometry.chunk.bytes()).min(geometry.blocks());
            for block in first..end {
                let number = geometry.entry_of(block);
                let raw = image.raw_entry(state, number)?;
                if let Some(host) = Geometry::kept_place(raw) {
                    kept.push(host);
                }
                let Some(entry) = self.meaning(number, geometry.decode(block, raw))? else { continue };
                let Some(host) = entry.host() else { continue };
                if matches!(entry, Entry::Partial(_)) && !has_bitmap {
                    let why = "it is there in part, but its chunk has no sector bitmap";
                    self.fault(
                        Some(number),
                        VhdxFault::Entry { what: "block", number: block, entry: raw, why },
                    );
                }
                // QEMU once made files that end with the disk, within the last block.
                let start = geometry.block.start_of(block).ok_or(Common::Index(block))?;
                let used = geometry.block.bytes().min(geometry.size.saturating_sub(start));
                self.place(("block", block, number), (host, geometry.block.bytes()), used, file)?;
            }
        }
        // Whatever such an entry still names may be shown by other programs: it stays out of use.
        for host in kept {
            let span = Span::new(host, geometry.block.bytes()).ok().filter(|span| span.end() <= file);
            let _ = span.map_or(Ok(true), |span| self.take(span))?;
        }
        Ok(())
    }

    /// A decoded entry, or a fault; other errors end the survey.
    fn meaning<T>(&mut self, number: u64, decoded: Result<T>) -> Result<Option<T>> {
        match decoded {
            Ok(meaning) => Ok(Some(meaning)),
            Err(e) => {
                let fault = entry_fault(e)?;
                self.fault(Some(number), fault);
                Ok(None)
            }
        }
    }

    /// Takes `len` bytes at `host`, of which `used` have to be in the file, for what `(what, of)` names in entry
    /// `number`.
    fn place(
        &mut self,
        (what, of, number): (&'static str, u64, u64),
        (host, len): (u64, u64),
        used: u64,
        file: u64,
    ) -> Result<()> {
        match Span::new(host, len) {
            Ok(span) if host.saturating_add(used) <= file => {
                if !self.take(span)? {
                    self.fault(Some(number), VhdxFault::Shared { what, number: of, host });
                }
            }
            _ => self.fault(Some(number), VhdxFault::PastEnd { what, number: of, host, file }),
        }
        Ok(())
    }

    fn take(&mut self, span: Span) -> Result<bool> {
        let (first, _) = MEGABYTE.split(span.start());
        let first = u32::try_from(first).map_err(|_| Common::Index(first))?;
        self.space.take_at(first, megabytes(span.len())?)
    }

    fn fault(&mut self, number: Option<u64>, fault: VhdxFault) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push((number, fault));
        }
    }
}

/// The bytes of `count` megabytes from `first` on.
pub(super) fn stretch(first: u32, count: u32) -> Result<Span> {
    let bytes = |megabytes: u32| MEGABYTE.start_of(megabytes.into()).ok_or(Common::Index(megabytes.into()));
    Span::new(bytes(first)?, bytes(count)?)
}

/// The fault in an error of the BAT.
fn entry_fault(e: Error) -> Result<VhdxFault> {
    match e.fault::<VhdxFault>() {
        Some(VhdxFault::Entry { what, number, entry, why }) => {
            Ok(VhdxFault::Entry { what, number: *number, entry: *entry, why })
        }
        _ => Err(e),
    }
}

impl Vhdx {
    /// Looks through the BAT before the first write: an entry that names another block's bytes, or the BAT's own, is
    /// harmless until somebody writes there.
    pub(super) fn prepare_space(&self) -> Result<()> {
        if self.marks.broken.load(Ordering::Acquire) {
            return Err(VhdxFault::Broken.into());
        }
        if self.space.lock().map_err(|_| Common::Poisoned)?.is_some() {
            return Ok(());
        }
        let survey = Survey::of(self)?;
        if let Some((_, fault)) = survey.faults.into_iter().next() {
            return Err(fault.into());
        }
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        space.get_or_insert(survey.space);
        Ok(())
    }

    /// Prepares for changes of the disk's data: the header says so first, 2.2.2, and children of it can tell.
    pub(super) fn prepare_to_write(&self) -> Result<()> {
        self.prepare_space()?;
        // Who leaves a parent shows the same before and after.
        self.mark(!self.leaving())
    }

    /// Says in the header that the file changes, and the data if so.
    pub(super) fn mark(&self, data: bool) -> Result<()> {
        let marks = &self.marks;
        let done = marks.file.load(Ordering::Acquire) && (!data || marks.data.load(Ordering::Acquire));
        if done || marks.unborn.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut headers = self.headers.lock().map_err(|_| Common::Poisoned)?;
        headers.turn(&self.file, |header| {
            header.file_write = Uuid::new_v4();
            if data {
                header.data_write = Uuid::new_v4();
            }
        })?;
        headers.repeat(&self.file)?;
        marks.file.store(true, Ordering::Release);
        marks.data.fetch_or(data, Ordering::AcqRel);
        Ok(())
    }

    /// A place of `len` bytes, whole megabytes, that reads as zeroes.
    pub(super) fn take_space(&self, len: u64) -> Result<u64> {
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        let first = space.as_mut().ok_or(Common::Poisoned)?.take(megabytes(len)?)?;
        let at = MEGABYTE.start_of(first.into()).ok_or(Common::Index(first.into()))?;
        let span = Span::new(at, MEGABYTE.ceil(len).ok_or(Common::Index(len))?)?;
        let prepared = self.prepare_place(span);
        if prepared.is_err()
            && let Some(space) = space.as_mut()
        {
            space.give_back(first, megabytes(len)?);
        }
        prepared.map(|()| at)
    }

    fn prepare_place(&self, span: Span) -> Result<()> {
        let old_end = self.file.size();
        // What was there once is not what a new block holds.
        if let Some(soiled) = Span::first(old_end).intersect(span) {
            self.file.write_zeroes(soiled)?;
        }
        if span.end() > old_end { self.file.resize(span.end()) } else { Ok(()) }
    }

    /// Gives up a place that the BAT in memory does not name any more.
    pub(super) fn give_up(&self, at: u64, len: u64) -> Result<()> {
        let (first, _) = MEGABYTE.split(at);
        let place = (u32::try_from(first).map_err(|_| Common::Index(first))?, megabytes(len)?);
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        space.as_mut().ok_or(Common::Poisoned)?.given_up.push(place);
        Ok(())
    }

    /// What is given up so far; the BAT in memory names none of it.
    pub(super) fn begin_landing(&self) -> Result<Vec<(u32, u32)>> {
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        Ok(space.as_mut().map(|s| std::mem::take(&mut s.given_up)).unwrap_or_default())
    }

    /// The BAT landed, or did not.
    pub(super) fn end_landing(&self, mut given_up: Vec<(u32, u32)>, landed: bool) -> Result<()> {
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        if let Some(space) = space.as_mut() {
            let list = if landed { &mut space.leaving } else { &mut space.given_up };
            list.append(&mut given_up);
        }
        Ok(())
    }

    /// Puts places to use that were given up.
    pub(super) fn use_freed(&self) -> Result<()> {
        let some =
            self.space.lock().map_err(|_| Common::Poisoned)?.as_ref().is_some_and(|s| !s.leaving.is_empty());
        if !some {
            return Ok(());
        }
        let _alone = self.gate.write().map_err(|_| Common::Poisoned)?;
        self.use_freed_alone()
    }

    /// The same for a caller that holds the gate alone. Until they are, they are holes of the file.
    pub(super) fn use_freed_alone(&self) -> Result<()> {
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        if let Some(space) = space.as_mut() {
            for (first, count) in std::mem::take(&mut space.leaving) {
                space.give_back(first, count);
                let there = Span::first(self.file.size()).intersect(stretch(first, count)?);
                there.map_or(Ok(()), |span| self.file.discard(span))?;
            }
        }
        Ok(())
    }

    /// Cuts the file behind the last megabyte in use, but leaves `least` bytes.
    pub(super) fn cut_file(&self, least: u64) -> Result<()> {
        let end = match self.space.lock().map_err(|_| Common::Poisoned)?.as_ref() {
            Some(space) => MEGABYTE.start_of(space.end().into()).unwrap_or(u64::MAX).max(least),
            None => return Ok(()),
        };
        if end < self.file.size() { self.file.resize(end) } else { Ok(()) }
    }

    /// Enters the sectors of `span`, part of a block that is there in part, into the bitmap.
    fn enter_sectors(&self, state: &State, block: u64, host: u64, span: Span) -> Result<()> {
        let (_, within) = state.geometry.block.split(span.start());
        let (first, count) = state.geometry.sectors_of(block);
        let shift = state.geometry.sector.shift();
        let from = first.saturating_add(within >> shift);
        let len = state.geometry.sector.count(span.len());
        self.fill_bitmap(host, from, from.saturating_add(len), true)?;
        // Once all are there the bitmap is not needed; the sectors behind the end of the disk do not count.
        let start = state.geometry.block.start_of(block).ok_or(Common::Index(block))?;
        let to_end = state.geometry.sector.count(state.geometry.size.saturating_sub(start)).min(count);
        if self.all_set(host, first, first.saturating_add(to_end))? {
            let number = state.geometry.entry_of(block);
            if let Entry::Partial(at) = self.entry(state, block)? {
                self.set_raw_entry(state, number, Entry::Full(at).raw())?;
            }
        }
        Ok(())
    }

    /// Sets or clears the bits of a chunk's sectors, in the bitmap at `host`.
    fn fill_bitmap(&self, host: u64, from: u64, to: u64, set: bool) -> Result<()> {
        let mut at = from;
        while at < to {
            let (page, number) = Self::bitmap_page(host, at)?;
            let end = number.saturating_add(to.saturating_sub(at)).min(page.len().saturating_mul(8));
            self.sheets.change(page, |bits| fill_bits(bits, number, end, set))?;
            at = at.saturating_add(end.saturating_sub(number));
        }
        Ok(())
    }

    fn all_set(&self, host: u64, from: u64, to: u64) -> Result<bool> {
        let mut at = from;
        while at < to {
            let (page, number) = Self::bitmap_page(host, at)?;
            let end = number.saturating_add(to.saturating_sub(at)).min(page.len().saturating_mul(8));
            if Bits(&self.sheets.get(page)?).run_end(number, end, true) < end {
                return Ok(false);
            }
            at = at.saturating_add(end.saturating_sub(number));
        }
        Ok(true)
    }

    /// The bitmap of a chunk; a new one if there is none.
    fn bitmap_for_writing(&self, state: &State, chunk: u64) -> Result<u64> {
        // Two blocks of a chunk may want it at once.
        let number = state.geometry.bitmap_entry_of(chunk);
        let _claim = self.busy.claim(u64::MAX)?;
        if let Some(host) = self.bitmap(state, chunk)? {
            return Ok(host);
        }
        let host = self.take_space(MEGABYTE.bytes())?;
        // State 6 is the same as that of a block.
        self.set_raw_entry(state, number, Entry::Full(host).raw())?;
        Ok(host)
    }

    /// Enters a new block of a difference, of which only `span` is there.
    fn publish_part(&self, state: &State, room: Room, span: Span) -> Result<()> {
        let (chunk, _) = state.geometry.chunk.split(room.block);
        let bitmap = self.bitmap_for_writing(state, chunk)?;
        let (first, count) = state.geometry.sectors_of(room.block);
        // The bits may be those of a block that was there before.
        self.fill_bitmap(bitmap, first, first.saturating_add(count), false)?;
        self.set_raw_entry(state, state.geometry.entry_of(room.block), Entry::Partial(room.host.0).raw())?;
        self.enter_sectors(state, room.block, bitmap, span)
    }
}

impl WriteMap for Vhdx {
    fn allocation(&self) -> BlockSize {
        self.block_size()
    }

    fn disk_size(&self) -> u64 {
        self.state().map_or(0, |s| s.metadata.size)
    }

    fn busy(&self) -> &Busy {
        &self.busy
    }

    fn reserve(&self, block: u64) -> Result<Room> {
        let state = self.state()?;
        let unit = state.geometry.sector;
        if let Some(host) = self.entry(&state, block)?.host() {
            return Ok(Room { block, host: HostOffset(host), unit, fresh: false });
        }
        let host = self.take_space(state.geometry.block.bytes())?;
        Ok(Room { block, host: HostOffset(host), unit, fresh: true })
    }

    fn publish(&self, room: Room, span: Span) -> Result<()> {
        let state = self.state()?;
        let number = state.geometry.entry_of(room.block);
        let raw = self.raw_entry(&state, number)?;
        if !room.fresh {
            let (chunk, _) = state.geometry.chunk.split(room.block);
            let bitmap = self.bitmap_for_writing(&state, chunk)?;
            return self.enter_sectors(&state, room.block, bitmap, span);
        }
        // A place that the old entry kept stays out of use in this session: another block may have it.
        let shines_through =
            self.parent.is_some() && state.geometry.decode(room.block, raw)? == Entry::Absent;
        let start = state.geometry.block.start_of(room.block).ok_or(Common::Index(room.block))?;
        let whole = state.geometry.block.bytes().min(state.geometry.size.saturating_sub(start));
        if shines_through && span.len() < whole {
            self.publish_part(&state, room, span)
        } else {
            self.set_raw_entry(&state, number, Entry::Full(room.host.0).raw())
        }
    }

    fn release(&self, room: Room) {
        let count = self.state().map(|s| megabytes(s.geometry.block.bytes()));
        let (first, _) = MEGABYTE.split(room.host.0);
        if let (Ok(Ok(count)), Ok(first), Ok(mut space)) = (count, u32::try_from(first), self.space.lock())
            && let Some(space) = space.as_mut().filter(|_| room.fresh)
        {
            space.give_back(first, count);
        }
    }

    fn zero_block(&self, block: u64) -> Result<bool> {
        let state = self.state()?;
        let number = state.geometry.entry_of(block);
        match self.entry(&state, block)? {
            Entry::Zero => return Ok(true),
            // The blocks of a fixed disk stay where they are.
            Entry::Full(_) | Entry::Partial(_) if state.metadata.disk_type == DiskType::Fixed => {
                return Ok(false);
            }
            Entry::Full(host) | Entry::Partial(host) => {
                self.set_raw_entry(&state, number, Entry::Zero.raw())?;
                self.give_up(host, state.geometry.block.bytes())?;
            }
            Entry::Absent => self.set_raw_entry(&state, number, Entry::Zero.raw())?,
        }
        Ok(true)
    }
}
