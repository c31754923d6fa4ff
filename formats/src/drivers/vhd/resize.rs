//! Changing the size of a dynamic disk.

use super::fault::VhdFault;
use super::footer::SIZE_MAX;
use super::header::{BAT_BYTES_MAX, Header};
use super::layout::{FOOTER_BYTES, SECTOR, UNUSED};
use super::space::{Space, Survey};
use super::sparse::{SparseVhd, State};
use crate::block::Span;
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::InPlace;
use crate::wire::{bytes, index, len64, part};

impl SparseVhd {
    /// Makes the disk `size` bytes long, rounded up to a sector. The caller holds the gate.
    ///
    /// Growing, all is prepared before the footers say so; shrinking, the footers say so first.
    pub(super) fn change_size(&self, size: u64) -> Result<()> {
        let size = size.next_multiple_of(SECTOR);
        if self.parent.is_some() {
            return Err(VhdFault::ResizeChild.into());
        }
        if size > SIZE_MAX {
            return Err(VhdFault::Size { bytes: size, max: SIZE_MAX }.into());
        }
        self.prepare_to_write()?;
        self.sync()?;
        let old = self.state()?.clone();
        let mut new = State { footer: old.footer.resized(size), header: old.header.clone() };
        if size > old.footer.size {
            self.clear_behind(&old)?;
            self.fit_table(&mut new)?;
            self.write_footers(&new)?;
            return self.turn_to(new);
        }
        self.write_footers(&new)?;
        self.turn_to(new.clone())?;
        self.clear_behind(&new)?;
        self.fit_table(&mut new)?;
        self.turn_to(new.clone())?;
        self.cut_file(&new)
    }

    /// Makes sure that nothing is left behind the end of the disk: growing shall not bring old bytes back.
    fn clear_behind(&self, state: &State) -> Result<()> {
        let (header, size) = (&state.header, state.footer.size);
        let (last, within) = header.block.split(size);
        if within > 0
            && let Some(block) = self.block(header, last)?
        {
            let there = Span::first(self.file.size()).intersect(block.data.skip(within));
            there.map_or(Ok(()), |span| self.file.write_zeroes(span))?;
        }
        let (first, count) = (header.block.count(size), header.bat.len() / 4);
        let mut behind = Vec::new();
        self.each_entry(header, count, |number, _| {
            if number >= first {
                behind.push(number);
            }
            Ok(())
        })?;
        for number in behind {
            self.set_entry(header, number, UNUSED)?;
            self.limit_waiting()?;
        }
        self.sync()
    }

    /// Writes both footers of the state to come.
    pub(super) fn write_footers(&self, new: &State) -> Result<()> {
        let footer = new.footer.bytes();
        // A file that was cut short ends with a block.
        let last = self.file.size().saturating_sub(len64(footer.len())).next_multiple_of(SECTOR);
        let at = Survey::of(self)?.end(&new.header, self.file.size()).max(last);
        let end = at.saturating_add(len64(footer.len()));
        if end > self.file.size() {
            self.file.resize(end)?;
        }
        self.file.write_at(0, footer)?;
        self.file.write_at(at, footer)?;
        let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
        *space = Some(Space::behind(end));
        self.file.flush()
    }

    /// Gives the table as many entries as the new size needs, by one sector of the header. 7-Zip wants no more.
    ///
    /// A table that does not fit into its sectors any more is copied to the end of the file.
    fn fit_table(&self, new: &mut State) -> Result<()> {
        let need = new.header.block.count(new.footer.size).saturating_mul(4);
        let old = new.header.bat;
        if need == old.len() {
            return Ok(());
        }
        if need > BAT_BYTES_MAX {
            let what = "the block allocation table";
            return Err(Common::TooLarge { what, need, max: BAT_BYTES_MAX }.into());
        }
        let room = old.len().next_multiple_of(SECTOR);
        let mut at = old.start();
        if need > room {
            let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
            let space = space.as_mut().ok_or(Common::Poisoned)?;
            at = self.take_space(space, new.footer.bytes(), 0, need.next_multiple_of(SECTOR))?;
            let what = "block allocation table";
            let mut table = bytes(&self.file, old.start(), old.len(), BAT_BYTES_MAX, what)?;
            table.resize(index(need.next_multiple_of(SECTOR))?, 0xff);
            self.file.write_at(at, &table)?;
        } else if need > old.len() {
            let unused = vec![0xff; index(room.saturating_sub(old.len()))?];
            self.file.write_at(old.end(), &unused)?;
        }
        self.file.flush()?;
        new.header.place_bat(Span::new(at, need)?);
        self.turn_header(&new.header)
    }

    fn turn_header(&self, header: &Header) -> Result<()> {
        // All that changed lies in the first sector.
        self.file.write_at(header.at, part(header.bytes(), 0, index(SECTOR)?, "header")?)?;
        self.file.flush()
    }

    /// Gives back what the file has behind the last block.
    fn cut_file(&self, state: &State) -> Result<()> {
        let end = Survey::of(self)?.end(&state.header, self.file.size());
        let size = end.saturating_add(len64(FOOTER_BYTES));
        // Not worth a write for the gap before a block.
        if size.saturating_add(MIB) < self.file.size() {
            self.file.write_at(end, state.footer.bytes())?;
            self.file.flush()?;
            self.file.resize(size)?;
            let mut space = self.space.lock().map_err(|_| Common::Poisoned)?;
            *space = Some(Space::behind(size));
        }
        self.file.flush()
    }
}
