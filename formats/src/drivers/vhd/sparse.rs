//! Dynamic and differencing disks: a table of blocks, and before each block a bitmap of its sectors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use super::fault::VhdFault;
use super::footer::Footer;
use super::header::Header;
use super::layout::{SECTOR, UNUSED};
use super::space::Space;
use super::{check, facts};
use crate::block::{BlockSize, Disk, RunKind, Span};
use crate::check::Report;
use crate::error::{Common, Error, Result, Within};
use crate::limits::{KIB, MIB};
use crate::map::Location;
use crate::mapped::{self, BlockMap, Busy, HostOffset, InPlace, Mapping, Parts, Place, Recent, Sheets};
use crate::opening::Reference;
use crate::registry::{Backing, Facts, Image, below};
use crate::wire::{index, len64};

/// The table is read in pieces.
const BAT_SHEET: u64 = 4 * KIB;
/// Pieces kept: the table of 64 GiB in blocks of 2 MiB, and their bitmaps by turns.
const SHEETS: usize = 256;
/// Changed pieces that may wait for a flush; a quarter of a megabyte of bitmaps.
const WAITING_MAX: usize = 512;
/// What a new image is filled in: finer than a block, as fresh blocks read as zeroes.
pub(super) const SECTORS: BlockSize = match BlockSize::from_shift(9) {
    Some(size) => size,
    None => panic!("9 is below 63"),
};

/// A dynamic or differencing VHD.
#[derive(Debug)]
pub(super) struct SparseVhd {
    pub(super) file: Disk,
    pub(super) parent: Option<Disk>,
    parent_image: Option<Arc<dyn Image>>,
    pub(super) backing: Option<Reference>,
    /// Zeroes that are written are the image's own, for another parent is to come.
    pub(super) leaving: AtomicBool,
    state: RwLock<State>,
    /// The BAT and the bitmaps.
    pub(super) sheets: Sheets,
    pub(super) busy: Busy,
    /// What writing needs to know, once somebody writes.
    pub(super) space: Mutex<Option<Space>>,
    /// Held by all who read or write, and alone by who changes the size.
    pub(super) gate: RwLock<()>,
    recent: Recent,
}

/// What changes with the size.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) footer: Footer,
    pub(super) header: Header,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Its bitmap.
    pub(super) bitmap: Span,
    /// Its data.
    pub(super) data: Span,
}

impl SparseVhd {
    /// The disk in `file`.
    pub(super) fn new(
        file: Disk,
        footer: Footer,
        header: Header,
        parent_image: Option<Arc<dyn Image>>,
        backing: Option<Reference>,
    ) -> Self {
        Self {
            sheets: Sheets::new(file.clone(), SHEETS),
            file,
            parent: parent_image.as_ref().map(below),
            parent_image,
            backing,
            leaving: AtomicBool::new(false),
            state: RwLock::new(State { footer, header }),
            busy: Busy::default(),
            space: Mutex::new(None),
            gate: RwLock::new(()),
            recent: Recent::default(),
        }
    }

    pub(super) fn state(&self) -> Result<RwLockReadGuard<'_, State>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    /// Turns to another size or table.
    pub(super) fn turn_to(&self, state: State) -> Result<()> {
        *self.state.write().map_err(|_| Common::Poisoned)? = state;
        // Pieces of a table of another length are other pieces.
        self.sheets.clear()
    }

    /// The table entry of a block.
    pub(super) fn entry(&self, header: &Header, block: u64) -> Result<u32> {
        let (sheet, within) = bat_sheet(header, block)?;
        let piece = self.sheets.get(sheet).within(|| "block allocation table")?;
        let bytes = piece.get(within..).and_then(|b| b.first_chunk::<4>());
        Ok(u32::from_be_bytes(*bytes.ok_or(Common::Index(block))?))
    }

    /// Changes the table entry of a block.
    pub(super) fn set_entry(&self, header: &Header, block: u64, entry: u32) -> Result<()> {
        let (sheet, within) = bat_sheet(header, block)?;
        self.sheets.change(sheet, |bytes| {
            let slot = bytes.get_mut(within..).and_then(|b| b.first_chunk_mut::<4>());
            *slot.ok_or(Common::Index(block))? = entry.to_be_bytes();
            Ok(())
        })
    }

    /// Calls `each` with the number and the entry of every block below `count` that is there.
    pub(super) fn each_entry(
        &self,
        header: &Header,
        count: u64,
        mut each: impl FnMut(u64, u32) -> Result<()>,
    ) -> Result<()> {
        let mut number = 0;
        while number < count {
            let (sheet, _) = bat_sheet(header, number)?;
            let piece = self.sheets.get(sheet).within(|| "block allocation table")?;
            for entry in piece.as_chunks::<4>().0 {
                let entry = u32::from_be_bytes(*entry);
                if entry != UNUSED && number < count {
                    each(number, entry)?;
                }
                number = number.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Where a block lies, if it is there.
    pub(super) fn block(&self, header: &Header, block: u64) -> Result<Option<Block>> {
        let entry = self.entry(header, block)?;
        if entry == UNUSED {
            return Ok(None);
        }
        let found = Block::at(header, entry);
        // The disk may end within its last block, and the file there.
        if found.data.start() >= self.file.size() {
            return Err(self.past_end(block, found));
        }
        Ok(Some(found))
    }

    fn past_end(&self, block: u64, found: Block) -> Error {
        VhdFault::BlockPastEnd { block, host: found.bitmap.start(), file: self.file.size() }.into()
    }

    /// Where the first part of `span` lives inside a block that is there.
    fn within_block(&self, found: Block, number: u64, span: Span, within: u64) -> Result<Mapping> {
        let bitmap = self.sheets.get(found.bitmap).within(|| format!("bitmap of block {number}"))?;
        let bits = Bits(&bitmap);
        let (first, _) = SECTORS.split(within);
        let end = SECTORS.count(within.saturating_add(span.len()));
        let is_set = bits.get(first);
        let until = bits.run_end(first, end, is_set);
        let len = until.saturating_mul(SECTOR).saturating_sub(within).min(span.len());
        if !is_set {
            return Ok(Mapping { place: Place::Absent, len });
        }
        let host = found.data.start().saturating_add(within);
        if host.saturating_add(len) > self.file.size() {
            return Err(self.past_end(number, found));
        }
        Ok(Mapping { place: Place::Data(HostOffset(host)), len })
    }

    /// Brings data, bitmaps and table to stable storage, in this order.
    pub(super) fn sync(&self) -> Result<()> {
        if !self.file.writable() {
            return self.file.flush();
        }
        // A new block has its first bitmap already; a change of a bitmap that was lost shows what was there before,
        // and so does a bitmap without its entry: one barrier before both is enough.
        self.sheets.land(|pieces| self.sheets.write_home(pieces))
    }
}

/// The piece of the BAT that holds the entry of a block, and the entry's place in it.
fn bat_sheet(header: &Header, block: u64) -> Result<(Span, usize)> {
    let at = block.saturating_mul(4);
    if at >= header.bat.len() {
        return Err(Common::Index(block).into());
    }
    let (skip, within) = (at.saturating_sub(at.rem_euclid(BAT_SHEET)), at.rem_euclid(BAT_SHEET));
    Ok((header.bat.skip(skip).truncate(BAT_SHEET), index(within)?))
}

impl Block {
    /// The block that a table entry names: the sector where its bitmap begins.
    pub(super) fn at(header: &Header, entry: u32) -> Self {
        // 32 bits of sectors and two sizes below 2^32.
        let host = u64::from(entry).saturating_mul(SECTOR);
        let data = host.saturating_add(header.bitmap_bytes);
        let span = |at, len| Span::new(at, len).unwrap_or(Span::first(0));
        Self { bitmap: span(host, header.bitmap_bytes), data: span(data, header.block.bytes()) }
    }

    /// Bitmap and data.
    pub(super) fn whole(self) -> Span {
        let len = self.bitmap.len().saturating_add(self.data.len());
        Span::new(self.bitmap.start(), len).unwrap_or(self.bitmap)
    }
}

/// A bit for each sector, the first in the highest bit of the first byte.
struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    fn byte(&self, number: u64) -> u8 {
        usize::try_from(number / 8).ok().and_then(|i| self.0.get(i)).copied().unwrap_or(0)
    }

    fn get(&self, number: u64) -> bool {
        let shift = u32::try_from(number % 8).unwrap_or(0);
        self.byte(number).wrapping_shl(shift) & 0x80 != 0
    }

    /// The first sector behind `from` whose bit is another, `end` at most.
    fn run_end(&self, from: u64, end: u64, is_set: bool) -> u64 {
        let uniform = if is_set { 0xff } else { 0 };
        let mut at = from;
        while at < end {
            if at.is_multiple_of(8) && self.byte(at) == uniform {
                at = at.saturating_add(8);
            } else if self.get(at) == is_set {
                at = at.saturating_add(1);
            } else {
                break;
            }
        }
        at.min(end)
    }
}

/// Sets the bits of the sectors `from` to `to`.
pub(super) fn set_bits(bitmap: &mut [u8], from: u64, to: u64) -> Result<()> {
    let mut at = from;
    while at < to {
        let slot = bitmap.get_mut(index(at / 8)?).ok_or(Common::Index(at))?;
        if at.is_multiple_of(8) && to.saturating_sub(at) >= 8 {
            *slot = 0xff;
            at = at.saturating_add(8);
        } else {
            *slot |= 0x80u8.wrapping_shr(u32::try_from(at % 8).unwrap_or(0));
            at = at.saturating_add(1);
        }
    }
    Ok(())
}

impl BlockMap for SparseVhd {
    fn block_size(&self) -> BlockSize {
        self.state().map_or(SECTORS, |s| s.header.block)
    }

    fn data(&self) -> &Disk {
        &self.file
    }

    fn parent(&self) -> Option<&Disk> {
        self.parent.as_ref()
    }

    fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    fn holes_in_blocks(&self) -> bool {
        true
    }

    fn lookup(&self, span: Span) -> Result<Mapping> {
        let state = self.state()?;
        let header = &state.header;
        let (number, within) = header.block.split(span.start());
        let to_end = header.block.bytes().saturating_sub(within);
        if let Some(found) = self.block(header, number)? {
            return self.within_block(found, number, span.truncate(to_end), within);
        }
        // As far as nothing is there, within the same piece of the table.
        let (sheet, within_sheet) = bat_sheet(header, number)?;
        let piece = self.sheets.get(sheet)?;
        let entries = piece.get(within_sheet..).unwrap_or_default().as_chunks::<4>().0;
        let unused = len64(entries.iter().take_while(|e| u32::from_be_bytes(**e) == UNUSED).count());
        let more = unused.saturating_sub(1).saturating_mul(header.block.bytes());
        let len = to_end.saturating_add(more);
        Ok(Mapping { place: Place::Absent, len: len.min(span.len()) })
    }
}

impl InPlace for SparseVhd {
    const WAITING_MAX: usize = WAITING_MAX;
    const PREFERRED_MAX: u64 = 2 * MIB;

    fn parts(&self) -> Parts<'_> {
        Parts { gate: &self.gate, sheets: &self.sheets, recent: &self.recent }
    }

    fn prepare_to_write(&self) -> Result<()> {
        Self::prepare_to_write(self)
    }

    fn sync(&self) -> Result<()> {
        Self::sync(self)
    }

    fn change_size(&self, size: u64) -> Result<()> {
        Self::change_size(self, size)
    }
}

impl Image for SparseVhd {
    /// Without the copy of the footer at its beginning it would be taken for a fixed disk.
    fn heads(&self) -> Vec<Span> {
        let last = self.file.size().checked_sub(512);
        [Some(0), last].into_iter().flatten().filter_map(|at| Span::new(at, 512).ok()).collect()
    }

    fn facts(&self) -> Facts {
        let Ok(state) = self.state() else { return Facts::default() };
        let mut facts = facts::of_footer(&state.footer);
        facts.cluster_size = Some(state.header.block.bytes());
        facts.backing.clone_from(&self.backing);
        if self.backing.is_some() {
            let id = state.header.parent_id().to_string();
            facts.specific.insert("parent-unique-id".into(), id.into());
        }
        facts
    }

    fn check(&self, report: &mut Report) -> Result<()> {
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        check::check(self, report)
    }

    /// A parent is known by an identity that it keeps for life.
    fn follows_parent(&self) -> Result<bool> {
        Ok(false)
    }

    fn leave_parent(&self, next: Option<&Backing>) -> Result<()> {
        self.may_have(next)?;
        self.leaving.store(true, Ordering::Release);
        Ok(())
    }

    fn name_parent(&self, parent: Option<&Reference>, opened: Option<&Backing>) -> Result<()> {
        let _gate = self.gate.write().map_err(|_| Common::Poisoned)?;
        self.turn_parent(parent, opened)
    }

    fn parent(&self) -> Option<Arc<dyn Image>> {
        self.parent_image.clone()
    }

    fn locate(&self, span: Span) -> Result<Location> {
        let _gate = self.shared_gate()?;
        mapped::locate(self, span, RunKind::Zero, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        let mut bitmap = vec![0u8; 512];
        set_bits(&mut bitmap, 3, 30).unwrap();
        assert_eq!(bitmap[..5], [0b0001_1111, 0xff, 0xff, 0b1111_1100, 0]);
        let bits = Bits(&bitmap);
        assert_eq!((bits.get(2), bits.get(3), bits.get(29), bits.get(30)), (false, true, true, false));
        assert_eq!(bits.run_end(0, 4096, false), 3);
        assert_eq!(bits.run_end(3, 4096, true), 30);
        assert_eq!(bits.run_end(30, 4096, false), 4096);
        assert_eq!(bits.run_end(3, 20, true), 20);
    }
}
