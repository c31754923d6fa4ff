//! Changes that land whole: through the log.
//!
//! A sequence is written to the log and flushed, together with all data that it makes visible. A header that carries
//! its GUID makes it count: from then on whoever opens the file replays it. It is carried out, flushed, and a header
//! without a GUID says that it is done.
//!
//! A sequence that is too long for the log gets one of its own at the end of the file; the header says where it is for
//! as long as it counts.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::append::{Appender, log_room, sequence_bytes};
use super::fault::VhdxFault;
use super::header::Headers;
use super::image::Vhdx;
use super::layout::{MEGABYTE, PAGE};
use crate::block::{Disk, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::mapped::Changed;
use crate::wire::{index, len64, part_mut};

/// The length of a log is a number of 32 bits.
const LOG_MAX: u64 = 4095 * MIB;
/// Data are carried to their places in pieces of this size.
const PIECE: u64 = MIB;

/// One thing that a sequence does beside changing tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Writes what stands at `guest` of the staged disk to `host`; what is left of the last page is zeroed.
    Data { guest: Span, host: u64 },
    /// Zeroes whole pages of the file.
    Zero(Span),
}

/// What lands together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landing<'a> {
    /// Pages of tables.
    pub(super) pages: &'a [Changed],
    pub(super) steps: &'a [Step],
    /// Where the data of the steps are read from.
    pub(super) staged: Option<&'a Disk>,
}

impl Step {
    fn pages(self) -> u64 {
        match self {
            Self::Data { guest, .. } => PAGE.count(guest.len()),
            Self::Zero(_) => 0,
        }
    }
}

/// Bytes of log that a step takes at most.
pub(super) fn step_bytes(step: Step) -> u64 {
    sequence_bytes(step.pages(), 1)
}

impl Landing<'_> {
    fn bytes(&self) -> u64 {
        let pages = self.steps.iter().map(|s| s.pages()).fold(len64(self.pages.len()), u64::saturating_add);
        let zeroes = len64(self.steps.iter().filter(|s| matches!(s, Step::Zero(_))).count());
        sequence_bytes(pages, zeroes)
    }

    /// Calls `page(host, bytes)` and `zero(span)` for everything, data in pieces of `piece` bytes.
    fn each(
        &self,
        piece: u64,
        mut page: impl FnMut(u64, &[u8]) -> Result<()>,
        mut zero: impl FnMut(Span) -> Result<()>,
    ) -> Result<()> {
        for (at, bytes) in self.pages {
            page(*at, bytes)?;
        }
        let mut buf = vec![0; index(piece)?];
        for step in self.steps {
            match *step {
                Step::Zero(span) => zero(span)?,
                Step::Data { guest, host } => {
                    let (mut rest, mut at) = (guest, host);
                    while !rest.is_empty() {
                        let now = rest.truncate(piece);
                        let len = index(now.len())?;
                        let padded = PAGE.ceil(now.len()).ok_or(Common::Index(now.len()))?;
                        let out = part_mut(&mut buf, 0, index(padded)?, "piece")?;
                        out.fill(0);
                        let staged = self.staged.ok_or(Common::Poisoned)?;
                        staged.read_at(now.start(), part_mut(out, 0, len, "piece")?)?;
                        page(at, out)?;
                        at = at.saturating_add(padded);
                        rest = rest.skip(now.len());
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes everything to its place.
    fn carry_out(&self, file: &Disk) -> Result<()> {
        self.each(PIECE, |host, bytes| file.write_at(host, bytes), |span| file.write_zeroes(span))?;
        file.flush()
    }
}

impl Vhdx {
    /// Brings data, then tables, to stable storage.
    pub(super) fn sync(&self) -> Result<()> {
        if !self.file.writable() {
            return self.file.flush();
        }
        if self.marks.broken.load(Ordering::Acquire) {
            return Err(VhdxFault::Broken.into());
        }
        let given_up = self.begin_landing()?;
        let landed = self.sheets.land(|pages| {
            if self.marks.unborn.load(Ordering::Acquire) {
                return self.sheets.write_home(pages);
            }
            self.mark(false)?;
            self.commit(Landing { pages, steps: &[], staged: None }, false)
        });
        if landed.is_ok() {
            self.marks.unborn.store(false, Ordering::Release);
        }
        self.end_landing(given_up, landed.is_ok())?;
        landed
    }

    /// Lands everything or nothing. With `data` the header that makes it count says that the data change.
    pub(super) fn commit(&self, landing: Landing<'_>, data: bool) -> Result<()> {
        let mut headers = self.headers.lock().map_err(|_| Common::Poisoned)?;
        let need = landing.bytes();
        let old_log = headers.current.log;
        let log = if need <= log_room(old_log) { old_log } else { self.log_for(need)? };
        if let Err(e) = self.begin(&mut headers, log, landing, data) {
            // Where the header could not be written, nobody knows whether it counts: then all stays as it is.
            if log != old_log && !self.marks.broken.load(Ordering::Acquire) {
                self.give_up_log(log)?;
            }
            return Err(e);
        }
        let done = landing.carry_out(&self.file).and_then(|()| {
            headers.turn(&self.file, |header| {
                header.log_id = Uuid::nil();
                // A disk without a log keeps the new one.
                header.log = if old_log.is_empty() { log } else { old_log };
            })?;
            headers.repeat(&self.file)
        });
        if let Err(e) = done {
            // It has landed, as everybody sees who opens the file; only this image does not know what is where.
            self.marks.broken.store(true, Ordering::Release);
            tracing::warn!("what landed in the log could not be carried out: {e}");
            return Ok(());
        }
        if log != old_log && !old_log.is_empty() {
            self.give_up_log(log)?;
        }
        Ok(())
    }

    /// Writes the sequence and the header that makes it count.
    fn begin(&self, headers: &mut Headers, log: Span, landing: Landing<'_>, data: bool) -> Result<()> {
        // Both closures append to the same sequence.
        let appender = RefCell::new(Appender::new(&self.file, log));
        landing.each(
            PAGE.bytes(),
            |host, bytes| appender.borrow_mut().page(host, bytes),
            |span| appender.borrow_mut().zeroes(span),
        )?;
        let id = appender.into_inner().finish()?;
        // The log and the data that it makes visible, together.
        self.file.flush()?;
        let turned = headers.turn(&self.file, |header| {
            header.log_id = id;
            header.log = log;
            if data {
                header.data_write = Uuid::new_v4();
            }
        });
        if turned.is_err() {
            self.marks.broken.store(true, Ordering::Release);
        }
        turned
    }

    /// A place at the end of the file for a log of `need` bytes.
    fn log_for(&self, need: u64) -> Result<Span> {
        let len = MEGABYTE.ceil(need.saturating_add(PAGE.bytes())).ok_or(Common::Index(need))?;
        if len > LOG_MAX {
            return Err(Common::TooLarge { what: "the log of one change", need: len, max: LOG_MAX }.into());
        }
        Span::new(self.take_space(len)?, len)
    }

    /// Gives a log back that served once.
    fn give_up_log(&self, log: Span) -> Result<()> {
        // The header that names the old log is on stable storage.
        self.give_up(log.start(), log.len())?;
        let given_up = self.begin_landing()?;
        self.end_landing(given_up, true)
    }
}
