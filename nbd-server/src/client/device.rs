//! An export as a block device: requests cut to what the server takes, and filled up to its blocks.

use std::fmt;
use std::sync::{Mutex, PoisonError, RwLock};

use racker_formats::block::{BlockDevice, Caps, Run, RunKind, Span, Support};
use racker_formats::error::{Common, Result};
use racker_formats::wire::{index, len64};

use super::answer::{Filling, Wanted};
use super::fault::ClientFault;
use super::limits::{REQUEST_BYTES_MAX, STATUS_SPAN_MAX, ZERO_BYTES_MAX};
use super::link::Request;
use super::pool::Pool;
use super::status::Known;
use crate::connection::lock;
use crate::handshake::Replies;
use crate::wire::{CommandFlags, ExportFlags, command};

/// Bytes that are taken for data where nobody can say.
const UNSURE_BYTES: u64 = 64 << 10;

/// An export of a server.
pub struct Remote {
    pool: Pool,
    /// Blocks that are written in part are read first: nobody else may write meanwhile.
    edges: RwLock<()>,
    known: Mutex<Known>,
}

/// Errors name the device so: nothing of what is in its buffers.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk of an NBD server")
    }
}

impl Remote {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, edges: RwLock::new(()), known: Mutex::default() }
    }

    /// Has the server make its disk larger, to `size` bytes. This device goes on with the size that it has: formats
    /// would take it for a file that can be cut as well, which no server does.
    pub(super) fn grow(&self, size: u64) -> Result<()> {
        if !self.can(ExportFlags::SEND_RESIZE) || self.can(ExportFlags::READ_ONLY) {
            return Err(ClientFault::Unsupported("another size of the server's disk").into());
        }
        // The new size stands where other requests have their offset.
        let at = Span::new(size, 0)?;
        self.ask(command::RESIZE, at, CommandFlags::empty(), &[], Wanted::Nothing)?;
        self.flush()
    }

    fn can(&self, flag: ExportFlags) -> bool {
        self.pool.terms().flags.contains(flag)
    }

    /// Bytes of the smallest request.
    fn unit(&self) -> u64 {
        self.pool.terms().block.into()
    }

    fn is_aligned(&self, span: Span) -> bool {
        let within = |at: u64| at.checked_rem(self.unit()).unwrap_or(0);
        within(span.start()) == 0 && within(span.end()) == 0
    }

    /// The whole blocks that `span` touches. They lie inside the disk, which has whole blocks only.
    fn outward(&self, span: Span) -> Result<Span> {
        let unit = self.unit();
        let start = span.start().saturating_sub(span.start().checked_rem(unit).unwrap_or(0));
        let end = span.end().checked_next_multiple_of(unit).ok_or(Common::Index(span.end()))?;
        Span::new(start, end.saturating_sub(start))
    }

    /// `span` as the part of a block before the first whole one, the whole blocks, and the part behind them.
    fn parts(&self, span: Span) -> Result<(Span, Span, Span)> {
        let unit = self.unit();
        let first = span.start().checked_next_multiple_of(unit).ok_or(Common::Index(span.start()))?;
        let head = span.truncate(first.saturating_sub(span.start()));
        let rest = span.skip(head.len());
        let whole = rest.truncate(rest.len().saturating_sub(rest.len().checked_rem(unit).unwrap_or(0)));
        Ok((head, whole, rest.skip(whole.len())))
    }

    /// Bytes of payload in one request: whole blocks.
    fn at_once(&self) -> u64 {
        let terms = self.pool.terms();
        terms.most.min(REQUEST_BYTES_MAX.max(terms.block)).into()
    }

    fn ask(
        &self,
        command: u16,
        span: Span,
        flags: CommandFlags,
        payload: &[u8],
        wanted: Wanted<'_>,
    ) -> Result<Wanted<'static>> {
        let request = Request { command, at: span.start(), len: span.len(), flags, payload };
        Ok(self.pool.ask(&request, wanted)?)
    }

    fn read_whole(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = at;
        for piece in buf.chunks_mut(index(self.at_once())?) {
            let span = Span::new(at, len64(piece.len()))?;
            let wanted = Wanted::Bytes(Filling::new(at, piece));
            self.ask(command::READ, span, CommandFlags::empty(), &[], wanted)?;
            at = span.end();
        }
        Ok(())
    }

    fn write_whole(&self, at: u64, data: &[u8]) -> Result<()> {
        // Without a way to flush, everything is put on stable storage at once where that is possible.
        let fua = self.can(ExportFlags::SEND_FUA) && !self.can(ExportFlags::SEND_FLUSH);
        let flags = if fua { CommandFlags::FUA } else { CommandFlags::empty() };
        let mut at = at;
        for piece in data.chunks(index(self.at_once())?) {
            let span = Span::new(at, len64(piece.len()))?;
            self.ask(command::WRITE, span, flags, piece, Wanted::Nothing)?;
            at = span.end();
        }
        Ok(())
    }

    /// Writes part of one block.
    fn write_edge(&self, span: Span, data: &[u8]) -> Result<()> {
        if span.is_empty() {
            return Ok(());
        }
        let _alone = self.edges.write().unwrap_or_else(PoisonError::into_inner);
        let block = self.outward(span)?;
        let mut bytes = vec![0; index(block.len())?];
        self.read_whole(block.start(), &mut bytes)?;
        let from = index(span.start().saturating_sub(block.start()))?;
        let part = bytes.get_mut(from..).and_then(|rest| rest.get_mut(..data.len()));
        part.ok_or(Common::Index(span.end()))?.copy_from_slice(data);
        self.write_whole(block.start(), &bytes)
    }

    /// Sends a request without payload for `span`, whole blocks, in pieces.
    fn each(&self, command: u16, span: Span) -> Result<()> {
        let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = span;
        while !rest.is_empty() {
            let piece = rest.truncate(ZERO_BYTES_MAX.into());
            self.ask(command, piece, CommandFlags::empty(), &[], Wanted::Nothing)?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    }

    /// What was known of holes is not any more, neither before nor after a change.
    fn changing<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        lock(&self.known).forget();
        let done = change();
        lock(&self.known).forget();
        done
    }
}

impl BlockDevice for Remote {
    fn size(&self) -> u64 {
        self.pool.terms().size
    }

    fn caps(&self) -> Caps {
        let write = !self.can(ExportFlags::READ_ONLY);
        let native = |flag| if write && self.can(flag) { Support::Native } else { Support::No };
        let terms = self.pool.terms();
        Caps {
            write,
            zero: native(ExportFlags::SEND_WRITE_ZEROES),
            discard: native(ExportFlags::SEND_TRIM),
            runs: if terms.context.is_some() { Support::Native } else { Support::No },
            resize: false,
            preferred: terms.preferred.clamp(256 << 10, 2 << 20),
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let span = Span::new(at, len64(buf.len()))?;
        if self.is_aligned(span) {
            return self.read_whole(at, buf);
        }
        let mut rest = span;
        while !rest.is_empty() {
            let now = rest.truncate(self.at_once().saturating_sub(self.unit()).max(self.unit()));
            let blocks = self.outward(now)?;
            let mut bytes = vec![0; index(blocks.len())?];
            self.read_whole(blocks.start(), &mut bytes)?;
            let from = index(now.start().saturating_sub(blocks.start()))?;
            let into = index(now.start().saturating_sub(at))?;
            let len = index(now.len())?;
            let source = bytes.get(from..).and_then(|b| b.get(..len));
            let target = buf.get_mut(into..).and_then(|b| b.get_mut(..len));
            let (source, target) = source.zip(target).ok_or(Common::Index(now.end()))?;
            target.copy_from_slice(source);
            rest = rest.skip(now.len());
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        // One that offers no flush has nothing to flush, or cannot: QEMU takes it so as well.
        if self.can(ExportFlags::SEND_FLUSH) && !self.can(ExportFlags::READ_ONLY) {
            self.ask(command::FLUSH, Span::first(0), CommandFlags::empty(), &[], Wanted::Nothing)?;
        }
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        let span = Span::new(at, len64(data.len()))?;
        let (head, whole, tail) = self.parts(span)?;
        let (first, rest) = data.split_at_checked(index(head.len())?).ok_or(Common::Index(span.end()))?;
        let (middle, last) = rest.split_at_checked(index(whole.len())?).ok_or(Common::Index(span.end()))?;
        self.changing(|| {
            self.write_edge(head, first)?;
            if !middle.is_empty() {
                let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
                self.write_whole(whole.start(), middle)?;
            }
            self.write_edge(tail, last)
        })
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        let (head, whole, tail) = self.parts(span)?;
        self.changing(|| {
            self.write_edge(head, &vec![0; index(head.len())?])?;
            self.each(command::WRITE_ZEROES, whole)?;
            self.write_edge(tail, &vec![0; index(tail.len())?])
        })
    }

    fn discard(&self, span: Span) -> Result<()> {
        let (_, whole, _) = self.parts(span)?;
        self.changing(|| self.each(command::TRIM, whole))
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        if let Some(run) = lock(&self.known).first(span) {
            return Ok(run);
        }
        if self.pool.terms().context.is_none() {
            return Ok(Run { len: span.len(), kind: RunKind::Data });
        }
        let seen = lock(&self.known).generation();
        let asked = self.outward(span)?;
        let asked = match self.pool.terms().replies {
            Replies::Extended => asked,
            _ => asked.truncate(STATUS_SPAN_MAX),
        };
        let status =
            self.ask(command::BLOCK_STATUS, asked, CommandFlags::empty(), &[], Wanted::Extents(Vec::new()))?;
        let Wanted::Extents(extents) = status else { return Err(ClientFault::Ended.into()) };
        let mut known = lock(&self.known);
        known.learn(asked, &extents, seen, self.size());
        if let Some(run) = known.first(span) {
            return Ok(run);
        }
        // Somebody has written meanwhile: what is data is at least read.
        Ok(Run { len: span.len().min(UNSURE_BYTES), kind: RunKind::Data })
    }
}
