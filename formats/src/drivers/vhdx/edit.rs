//! An edit that lands whole or not at all.
//!
//! Data for blocks that are not there go to places that nothing names yet. What changes in blocks that are there goes
//! through the log, with the entries of the BAT, in one sequence; a block of which much changes, or for which the log
//! has no room left, is written anew in another place.

use super::bat::{Bits, Entry};
use super::fault::VhdxFault;
use super::image::{State, Vhdx};
use super::journal::{Landing, Step, step_bytes};
use super::layout::PAGE;
use super::metadata::DiskType;
use crate::block::{Change, ChangeKind, Disk, Span};
use crate::error::{Common, Result};
use crate::limits::{GIB, MIB};
use crate::mapped::{HostOffset, Room, WriteMap, parent_run};
use crate::wire::{index, part_mut};

/// Bytes of log that one edit takes at most, tables not counted.
const LOG_BUDGET: u64 = 2 * GIB;
/// A block of which more than this part changes is written anew.
const PART: u64 = 4;
/// Bytes copied at a time.
const PIECE: u64 = MIB;

/// An edit under way.
struct Edit<'a> {
    image: &'a Vhdx,
    state: State,
    staged: &'a Disk,
    steps: Vec<Step>,
    log_bytes: u64,
}

impl Vhdx {
    /// Lands all changes or none.
    pub(super) fn edit(&self, staged: &Disk, changes: &[Change]) -> Result<()> {
        let _one = self.editing.lock().map_err(|_| Common::Poisoned)?;
        let state = self.state()?.clone();
        if staged.size() != state.metadata.size {
            let by = "an atomic edit of a VHDX".to_string();
            return Err(Common::Unsupported { what: "another size", by }.into());
        }
        self.prepare_space()?;
        self.sync()?;
        self.mark(false)?;
        let old_size = self.file.size();
        let mut edit = Edit { image: self, state, staged, steps: Vec::new(), log_bytes: 0 };
        let landed = edit.stage(changes).and_then(|()| edit.land());
        if landed.is_err() {
            self.roll_back(old_size);
            return landed;
        }
        self.use_freed()?;
        // The space of a fixed disk stays with it.
        let fixed = self.state()?.metadata.disk_type == DiskType::Fixed;
        self.cut_file(if fixed { old_size } else { 0 })
    }

    /// Forgets what an edit that does not land has prepared; that it can't is no reason to say anything else than why
    /// the edit failed.
    fn roll_back(&self, old_size: u64) {
        let forgotten = self.sheets.clear();
        // What is free is found out anew by the next change.
        if let Ok(mut space) = self.space.lock() {
            *space = None;
        }
        let broken = self.marks.broken.load(std::sync::atomic::Ordering::Acquire);
        let cut = if old_size < self.file.size() && !broken { self.file.resize(old_size) } else { Ok(()) };
        if let Err(e) = forgotten.and(cut) {
            tracing::warn!("space that an edit took that failed stays behind: {e}");
        }
    }
}

impl Edit<'_> {
    fn stage(&mut self, changes: &[Change]) -> Result<()> {
        let block = self.state.geometry.block;
        let mut pieces: Vec<Change> = Vec::new();
        for change in changes {
            let mut rest = change.span;
            while !rest.is_empty() {
                let (number, within) = block.split(rest.start());
                let piece = rest.truncate(block.bytes().saturating_sub(within));
                if let Some(first) = pieces.first()
                    && block.split(first.span.start()).0 != number
                {
                    self.block(&std::mem::take(&mut pieces))?;
                }
                pieces.push(Change { span: piece, kind: change.kind });
                rest = rest.skip(piece.len());
            }
        }
        self.block(&pieces)
    }

    fn land(&mut self) -> Result<()> {
        let image = self.image;
        let (steps, staged) = (self.steps.as_slice(), Some(self.staged));
        if image.sheets.waiting()? == 0 {
            let landing = Landing { pages: &[], steps, staged };
            return if steps.is_empty() { Ok(()) } else { image.commit(landing, true) };
        }
        let given_up = image.begin_landing()?;
        let landed = image.sheets.land(|pages| image.commit(Landing { pages, steps, staged }, true));
        image.end_landing(given_up, landed.is_ok())?;
        landed
    }

    /// Stages the changes of one block, in order.
    fn block(&mut self, pieces: &[Change]) -> Result<()> {
        let Some(first) = pieces.first() else { return Ok(()) };
        let (number, _) = self.state.geometry.block.split(first.span.start());
        let _claim = self.image.busy.claim(number)?;
        match self.image.entry(&self.state, number)? {
            Entry::Full(host) => self.full(number, host, pieces),
            Entry::Partial(host) => self.partial(number, host, pieces),
            entry => self.fresh(number, entry, pieces),
        }
    }

    /// Whether the pieces zero all of a block.
    fn zeroes_all(&self, number: u64, pieces: &[Change]) -> bool {
        let block = self.state.geometry.block;
        let start = block.start_of(number).unwrap_or(u64::MAX);
        let whole = block.bytes().min(self.state.metadata.size.saturating_sub(start));
        let zeroed = pieces.iter().filter(|p| p.kind == ChangeKind::Zero).map(|p| p.span.len());
        zeroed.fold(0, u64::saturating_add) == whole
    }

    /// Changes in a block that is there.
    fn full(&mut self, number: u64, host: u64, pieces: &[Change]) -> Result<()> {
        let fixed = self.state.metadata.disk_type == DiskType::Fixed;
        if !fixed && self.zeroes_all(number, pieces) {
            return self.image.zero_block(number).map(|_| ());
        }
        let steps: Vec<Step> = pieces.iter().map(|p| self.step(host, *p)).collect::<Result<_>>()?;
        let data = pieces.iter().filter(|p| p.kind == ChangeKind::Data).map(|p| p.span.len());
        let data = data.fold(0, u64::saturating_add);
        let log = steps.iter().map(|s| step_bytes(*s)).fold(0, u64::saturating_add);
        let much = data.saturating_mul(PART) > self.state.geometry.block.bytes();
        if much || self.log_bytes.saturating_add(log) > LOG_BUDGET {
            return self.anew(number, host, pieces);
        }
        self.whole_in_file(host)?;
        self.log_bytes = self.log_bytes.saturating_add(log);
        self.steps.extend(steps);
        Ok(())
    }

    /// A piece of a block at `host`, through the log.
    fn step(&self, host: u64, piece: Change) -> Result<Step> {
        let (_, within) = self.state.geometry.block.split(piece.span.start());
        let host = host.saturating_add(within);
        Ok(match piece.kind {
            ChangeKind::Data => Step::Data { guest: piece.span, host },
            ChangeKind::Zero => {
                let len = PAGE.ceil(piece.span.len()).ok_or(Common::Index(piece.span.len()))?;
                Step::Zero(Span::new(host, len)?)
            }
        })
    }

    /// QEMU once made files that end within the last block: the log changes only what is in the file.
    fn whole_in_file(&self, host: u64) -> Result<()> {
        let end = host.saturating_add(self.state.geometry.block.bytes());
        if end > self.image.file.size() { self.image.file.resize(end) } else { Ok(()) }
    }

    /// Writes a block anew in another place.
    fn anew(&mut self, number: u64, old: u64, pieces: &[Change]) -> Result<()> {
        let (image, len) = (self.image, self.state.geometry.block.bytes());
        let new = image.take_space(len)?;
        // Holes stay holes.
        let there = Span::new(old, len.min(image.file.size().saturating_sub(old)))?;
        for run in image.file.runs(there) {
            let (run, kind) = run?;
            if !kind.is_zero() {
                copy(image, run, new.saturating_add(run.start().saturating_sub(old)))?;
            }
        }
        let room =
            Room { block: number, host: HostOffset(new), unit: self.state.geometry.sector, fresh: true };
        for piece in pieces {
            self.write_piece(room, *piece)?;
        }
        let entry = self.state.geometry.entry_of(number);
        image.set_raw_entry(&self.state, entry, Entry::Full(new).raw())?;
        image.give_up(old, len)
    }

    /// Changes in a block that is not there.
    fn fresh(&mut self, number: u64, entry: Entry, pieces: &[Change]) -> Result<()> {
        let parent = if entry == Entry::Absent { self.image.parent.as_ref() } else { None };
        if pieces.iter().all(|p| p.kind == ChangeKind::Zero) {
            if parent.is_none() || zero_below(parent, pieces)? {
                return Ok(());
            }
            if self.zeroes_all(number, pieces) {
                return self.image.zero_block(number).map(|_| ());
            }
        }
        let mut room = self.image.reserve(number)?;
        for piece in pieces {
            // The rest of the room reads as zeroes.
            if piece.kind == ChangeKind::Data {
                self.write_piece(room, *piece)?;
            }
        }
        for piece in pieces {
            if matches!(self.image.entry(&self.state, number)?, Entry::Full(_)) {
                break;
            }
            self.image.publish(room, piece.span)?;
            room.fresh = false;
        }
        Ok(())
    }

    /// Changes in a block that is there in part: what shows now goes through the log, the rest is written in place and
    /// shows when the bitmap says so.
    fn partial(&mut self, number: u64, host: u64, pieces: &[Change]) -> Result<()> {
        if self.zeroes_all(number, pieces) {
            return self.image.zero_block(number).map(|_| ());
        }
        self.whole_in_file(host)?;
        let room =
            Room { block: number, host: HostOffset(host), unit: self.state.geometry.sector, fresh: false };
        for piece in pieces {
            let mut rest = piece.span;
            while !rest.is_empty() {
                let (shows, len) = self.page_run(number, rest)?;
                let now = Change { span: rest.truncate(len), kind: piece.kind };
                if shows {
                    let step = self.step(host, now)?;
                    self.log_bytes = self.log_bytes.saturating_add(step_bytes(step));
                    if self.log_bytes > LOG_BUDGET {
                        let by = "an atomic edit of a difference".to_string();
                        return Err(Common::Unsupported { what: "changing more than 2 GiB", by }.into());
                    }
                    self.steps.push(step);
                } else {
                    self.write_piece(room, now)?;
                }
                rest = rest.skip(len);
            }
        }
        for piece in pieces {
            if matches!(self.image.entry(&self.state, number)?, Entry::Full(_)) {
                break;
            }
            self.image.publish(room, piece.span)?;
        }
        Ok(())
    }

    /// Whether any sector of the first pages of `span` shows, and for how many bytes that answer holds.
    fn page_run(&self, number: u64, span: Span) -> Result<(bool, u64)> {
        let geometry = &self.state.geometry;
        let (chunk, _) = geometry.chunk.split(number);
        let raw = self.image.raw_entry(&self.state, geometry.entry_of(number))?;
        let missing =
            VhdxFault::Entry { what: "block", number, entry: raw, why: "its sector bitmap is missing" };
        let bitmap = self.image.bitmap(&self.state, chunk)?.ok_or(missing)?;
        let (first, _) = geometry.sectors_of(number);
        let per_page = (PAGE.bytes() >> geometry.sector.shift()).max(1);
        let mut answer = None;
        let mut len = 0;
        while len < span.len() {
            let (_, within) = geometry.block.split(span.start().saturating_add(len));
            let sector = first.saturating_add(within >> geometry.sector.shift());
            let (page, bit) = Vhdx::bitmap_page(bitmap, sector)?;
            let bits = self.image.sheets.get(page)?;
            let end = bit.saturating_add(per_page);
            let shows = Bits(&bits).run_end(bit, end, false) < end;
            if *answer.get_or_insert(shows) != shows {
                break;
            }
            len = len.saturating_add(PAGE.bytes());
        }
        Ok((answer.unwrap_or(false), len.min(span.len())))
    }

    /// Writes a piece into a room, where nobody sees it yet.
    fn write_piece(&self, room: Room, piece: Change) -> Result<()> {
        let (_, within) = self.state.geometry.block.split(piece.span.start());
        let mut at = room.host.0.saturating_add(within);
        if piece.kind == ChangeKind::Zero {
            return self.image.file.write_zeroes(Span::new(at, piece.span.len())?);
        }
        let mut rest = piece.span;
        let mut buf = vec![0; index(PIECE.min(rest.len()))?];
        while !rest.is_empty() {
            let now = rest.truncate(PIECE);
            let bytes = part_mut(&mut buf, 0, index(now.len())?, "piece")?;
            self.staged.read_at(now.start(), bytes)?;
            self.image.file.write_at(at, bytes)?;
            at = at.saturating_add(now.len());
            rest = rest.skip(now.len());
        }
        Ok(())
    }
}

fn copy(image: &Vhdx, from: Span, to: u64) -> Result<()> {
    let (mut rest, mut at) = (from, to);
    let mut buf = vec![0; index(PIECE.min(from.len()))?];
    while !rest.is_empty() {
        let now = rest.truncate(PIECE);
        let bytes = part_mut(&mut buf, 0, index(now.len())?, "piece")?;
        image.file.read_at(now.start(), bytes)?;
        image.file.write_at(at, bytes)?;
        at = at.saturating_add(now.len());
        rest = rest.skip(now.len());
    }
    Ok(())
}

/// Whether the parent reads as zeroes wherever the pieces are.
fn zero_below(parent: Option<&Disk>, pieces: &[Change]) -> Result<bool> {
    for piece in pieces {
        let run = parent_run(parent, piece.span)?;
        if !run.kind.is_zero() || run.len < piece.span.len() {
            return Ok(false);
        }
    }
    Ok(true)
}
