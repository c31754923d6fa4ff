//! Changing the size of a disk.
//!
//! Size, BAT entries and, if the BAT has to move, both region tables change in one sequence of the log.

use super::bat::Entry;
use super::fault::VhdxFault;
use super::image::{State, Vhdx};
use super::layout::{MEGABYTE, PAGE, REGION_TABLES_AT};
use super::metadata::{DiskType, check_size};
use super::regions::Regions;
use crate::block::Span;
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::{InPlace, WriteMap};
use crate::wire::{index, len64};

/// Bytes copied at a time.
const PIECE: u64 = MIB;

impl Vhdx {
    /// Makes the disk `size` bytes long, rounded up to a sector. The caller holds the gate.
    pub(super) fn change_size(&self, size: u64) -> Result<()> {
        let old = self.state()?.clone();
        let sector = old.geometry.sector;
        let size = sector.ceil(size).ok_or(Common::Index(size))?;
        check_size(size, sector)?;
        self.prepare_to_write()?;
        self.sync()?;
        if size > old.metadata.size { self.grow(&old, size) } else { self.shrink(&old, size) }
    }

    fn grow(&self, old: &State, size: u64) -> Result<()> {
        if let Some(parent) = self.parent.as_ref().map(|p| p.size()).filter(|p| *p > old.metadata.size) {
            return Err(VhdxFault::ParentLarger { parent, size: old.metadata.size }.into());
        }
        self.clear_tail(old)?;
        let mut new = old.clone();
        new.metadata.size = size;
        new.geometry.size = size;
        let need = new.geometry.entries().saturating_mul(8);
        if need > old.regions.bat.len() {
            new.regions = self.move_bat(old, need)?;
        } else {
            // What is behind the entries so far is nobody's, and may be anything.
            for number in old.geometry.entries()..new.geometry.entries() {
                if self.raw_entry(old, number)? != 0 {
                    self.set_raw_entry(old, number, 0)?;
                }
            }
        }
        let (at, page) = old.metadata.page_with_size(&self.file, size)?;
        self.sheets.put(at, page)?;
        self.sync()?;
        let moved = new.regions.bat != old.regions.bat;
        let (first, end) = (old.geometry.blocks(), new.geometry.blocks());
        let fixed = new.metadata.disk_type == DiskType::Fixed;
        self.turn_to(new)?;
        if moved {
            self.give_up(old.regions.bat.start(), old.regions.bat.len())?;
        }
        if fixed {
            self.allocate(first, end)?;
        }
        self.sync()?;
        self.use_freed_alone()
    }

    /// The blocks of a fixed disk are there from the beginning.
    fn allocate(&self, first: u64, end: u64) -> Result<()> {
        for block in first..end {
            let room = self.reserve(block)?;
            self.publish(room, Span::first(0))?;
            self.limit_waiting()?;
        }
        Ok(())
    }

    /// Copies the BAT to a larger place; the region tables that say so wait to land.
    fn move_bat(&self, old: &State, need: u64) -> Result<Regions> {
        let len = MEGABYTE.ceil(need).ok_or(Common::Index(need))?;
        // The length of a region is a number of 32 bits; a disk of 64 TiB in blocks of 1 MiB needs a ninth of that.
        let at = self.take_space(len)?;
        let used = Span::new(old.regions.bat.start(), old.geometry.entries().saturating_mul(8))?;
        let (mut rest, mut to) = (used, at);
        while !rest.is_empty() {
            let now = rest.truncate(PIECE);
            let mut bytes = vec![0; index(now.len())?];
            self.file.read_at(now.start(), &mut bytes)?;
            self.file.write_at(to, &bytes)?;
            to = to.saturating_add(now.len());
            rest = rest.skip(now.len());
        }
        let regions = old.regions.with_bat(Span::new(at, len)?)?;
        for table in REGION_TABLES_AT {
            let mut at = table;
            for page in regions.table().chunks(index(PAGE.bytes())?) {
                self.sheets.put(at, page.to_vec())?;
                at = at.saturating_add(len64(page.len()));
            }
        }
        Ok(regions)
    }

    /// Makes sure that nothing is left behind the end of the disk in its last block: growing shall not bring old
    /// bytes back.
    fn clear_tail(&self, state: &State) -> Result<()> {
        let (last, within) = state.geometry.block.split(state.metadata.size);
        if within == 0 {
            return Ok(());
        }
        let Some(host) = self.entry(state, last)?.host() else { return Ok(()) };
        let behind = Span::new(host, state.geometry.block.bytes())?.skip(within);
        let there = Span::first(self.file.size()).intersect(behind);
        there.map_or(Ok(()), |span| self.file.write_zeroes(span))?;
        // The block is used to its end from now on.
        let end = host.saturating_add(state.geometry.block.bytes());
        if end > self.file.size() { self.file.resize(end) } else { Ok(()) }
    }

    fn shrink(&self, old: &State, size: u64) -> Result<()> {
        let mut new = old.clone();
        new.metadata.size = size;
        new.geometry.size = size;
        for block in new.geometry.blocks()..old.geometry.blocks() {
            if let Some(host) = self.entry(old, block)?.host() {
                self.give_up(host, old.geometry.block.bytes())?;
            }
            self.forget(old, old.geometry.entry_of(block))?;
        }
        for chunk in new.geometry.chunks()..old.geometry.chunks() {
            let number = old.geometry.bitmap_entry_of(chunk);
            if number < old.geometry.entries() {
                if let Some(host) = self.bitmap(old, chunk)? {
                    self.give_up(host, MEGABYTE.bytes())?;
                }
                self.forget(old, number)?;
            }
        }
        let (at, page) = old.metadata.page_with_size(&self.file, size)?;
        self.sheets.put(at, page)?;
        self.sync()?;
        self.turn_to(new)?;
        self.use_freed_alone()?;
        self.cut_file(0)
    }

    fn forget(&self, state: &State, number: u64) -> Result<()> {
        if self.raw_entry(state, number)? == Entry::Absent.raw() {
            return Ok(());
        }
        self.set_raw_entry(state, number, Entry::Absent.raw())
    }
}
