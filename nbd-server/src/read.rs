//! The answers to reads: holes as holes, data in pieces, and never more than a piece in memory. Where a file of the host
//! has the disk's bytes, its pages go to the socket without being copied here.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use racker_formats::block::Span;
use racker_formats::error::Error;
use racker_formats::wire::{index, is_zero, len64};

use crate::connection::{Connection, lock};
use crate::errno::Errno;
use crate::handshake::Replies;
use crate::limits::PIECE;
use crate::reply::{put_chunk, put_error, put_error_at, put_simple};
use crate::scratch::{Body, Scratch};
use crate::wire::{Frame, Put, chunk};

/// Reads of at most this many bytes are read without asking first where there are holes, and cost less to copy than
/// pages cost to pass on.
const SMALL: u64 = 32 << 10;
/// Zeroes before data are sent as a hole if they fill a sector.
const SECTOR: usize = 512;
/// Stretches of data that are remembered.
const SEEN_MAX: usize = 16;

/// How far ahead is looked for the end of a stretch of data.
const FAR: u64 = 1 << 30;

/// Stretches that were data when somebody asked last. Asking costs more than reading on some filesystems (tmpfs goes
/// through all pages up to the next hole), and what has become a hole since then is read as the zeroes that it is.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<VecDeque<Span>>);

impl Seen {
    /// Whether all of a piece at the beginning of `span` was data.
    fn has(&self, span: Span) -> bool {
        let piece = span.truncate(len64(PIECE));
        lock(&self.0).iter().any(|seen| seen.contains(piece))
    }

    fn note(&self, data: Span) {
        let mut seen = lock(&self.0);
        if seen.len() >= SEEN_MAX {
            seen.pop_front();
        }
        seen.push_back(data);
    }
}

impl Connection {
    /// Reads `span` and answers; `whole` asks for one chunk.
    pub(crate) fn read(
        &self,
        frame: &Frame,
        span: Span,
        whole: bool,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        match self.session.replies {
            _ if span.is_empty() => self.done(frame, scratch),
            Replies::Simple => self.read_simple(frame, span, scratch),
            _ if whole => self.read_whole(frame, span, scratch),
            _ => self.read_pieces(frame, span, scratch),
        }
    }

    /// Reads the beginning of `span`, at most a piece.
    fn piece(&self, span: Span, scratch: &mut Scratch) -> Result<Body, Errno> {
        let disk = self.session.export.disk();
        let piece = span.truncate(len64(PIECE));
        let len = index(piece.len()).map_err(|e| Errno::from(&e))?;
        if piece.len() > SMALL
            && self.has_socket()
            && let Some((file, at)) = disk.pages(piece)
            && let Some(pages) = self.server.pipes.take(file, at, len)
        {
            let taken = pages.len();
            scratch.hold(pages);
            return Ok(Body::Pages(taken));
        }
        // This also finds out what is wrong with pages that could not be had.
        disk.read_at(span.start(), scratch.data(len)).map_err(|e| self.failed("read", span, &e))?;
        Ok(Body::bytes(len))
    }

    /// The whole answer at once, or as long as no other reply may come in between.
    fn read_simple(&self, frame: &Frame, span: Span, scratch: &mut Scratch) -> io::Result<()> {
        let first = match self.piece(span, scratch) {
            Ok(first) => first,
            Err(e) => {
                put_simple(scratch.head(), frame, e.number());
                return self.send(scratch, Body::NONE);
            }
        };
        put_simple(scratch.head(), frame, 0);
        if len64(first.len()) == span.len() {
            return self.send(scratch, first);
        }
        let output = self.output()?;
        self.send_part(scratch, first)?;
        let mut rest = span.skip(len64(first.len()));
        while !rest.is_empty() {
            // The client believes that all is well: only the end of the connection can tell it otherwise.
            let next = self.piece(rest, scratch).map_err(|_| io::Error::other("a read failed half-way"))?;
            scratch.head();
            self.send_part(scratch, next)?;
            rest = rest.skip(len64(next.len()));
        }
        drop(output);
        Ok(())
    }

    /// One content chunk, filled up with zeroes if the disk fails in the middle of it.
    fn read_whole(&self, frame: &Frame, span: Span, scratch: &mut Scratch) -> io::Result<()> {
        let replies = self.session.replies;
        let first = match self.piece(span, scratch) {
            Ok(first) => first,
            Err(e) => return self.refuse(frame, e, scratch),
        };
        let is_all = len64(first.len()) == span.len();
        let head = scratch.head();
        put_chunk(head, replies, frame, chunk::OFFSET_DATA, is_all, span.len().saturating_add(8));
        head.put64(span.start());
        if is_all {
            return self.send(scratch, first);
        }
        let output = self.output()?;
        self.send_part(scratch, first)?;
        let mut rest = span.skip(len64(first.len()));
        let mut failed = None;
        while !rest.is_empty() {
            let next = if failed.is_some() { Err(Errno::Io) } else { self.piece(rest, scratch) };
            let next = next.unwrap_or_else(|e| {
                failed.get_or_insert((e, rest.start()));
                let len = index(rest.len().min(len64(PIECE))).unwrap_or(PIECE);
                scratch.data(len).fill(0);
                Body::bytes(len)
            });
            scratch.head();
            self.send_part(scratch, next)?;
            rest = rest.skip(len64(next.len()));
        }
        let head = scratch.head();
        match failed {
            None => put_chunk(head, replies, frame, chunk::NONE, true, 0),
            Some((e, at)) => put_error_at(head, replies, frame, e, at),
        }
        self.send_part(scratch, Body::NONE)?;
        drop(output);
        Ok(())
    }

    /// As many chunks as there are pieces and holes.
    fn read_pieces(&self, frame: &Frame, span: Span, scratch: &mut Scratch) -> io::Result<()> {
        let mut rest = span;
        while !rest.is_empty() {
            if rest.start() != span.start() && self.server.is_stopping() {
                put_error_at(scratch.head(), self.session.replies, frame, Errno::Shutdown, rest.start());
                return self.send(scratch, Body::NONE);
            }
            let done = match self.hole(rest).map_err(|e| self.failed("look for holes", rest, &e)) {
                Ok(Some(hole)) => {
                    self.send_hole(frame, rest.truncate(hole), hole == rest.len(), scratch)?;
                    hole
                }
                Ok(None) => match self.piece(rest, scratch) {
                    Ok(piece) => {
                        let done = len64(piece.len());
                        self.send_piece(frame, rest.truncate(done), piece, done == rest.len(), scratch)?;
                        done
                    }
                    Err(e) => return self.fail(frame, span, rest, e, scratch),
                },
                Err(e) => return self.fail(frame, span, rest, e, scratch),
            };
            rest = rest.skip(done);
        }
        Ok(())
    }

    /// How many bytes at the beginning of `span` are said to be zeroes, if that is worth asking.
    fn hole(&self, span: Span) -> Result<Option<u64>, Error> {
        let export = &self.session.export;
        if span.len() <= SMALL || export.seen.has(span) {
            return Ok(None);
        }
        let far = export.disk().size().saturating_sub(span.start()).min(FAR).max(span.len());
        let run = export.disk().first_run(Span::new(span.start(), far)?)?;
        if run.kind.is_zero() {
            // A chunk of zeroes has a length of 32 bits.
            return Ok(Some(run.len.min(span.len()).min(1 << 30)));
        }
        export.seen.note(Span::new(span.start(), run.len)?);
        Ok(None)
    }

    fn fail(
        &self,
        frame: &Frame,
        span: Span,
        rest: Span,
        error: Errno,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let replies = self.session.replies;
        if rest.start() == span.start() {
            put_error(scratch.head(), replies, frame, error);
        } else {
            put_error_at(scratch.head(), replies, frame, error, rest.start());
        }
        self.send(scratch, Body::NONE)
    }

    fn send_hole(&self, frame: &Frame, span: Span, done: bool, scratch: &mut Scratch) -> io::Result<()> {
        put_hole(scratch.head(), self.session.replies, frame, span, done);
        self.send(scratch, Body::NONE)
    }

    /// Zeroes at the beginning of what was copied are a hole; pages go unseen.
    fn send_piece(
        &self,
        frame: &Frame,
        span: Span,
        piece: Body,
        done: bool,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let zeroes = match piece {
            Body::Bytes { from, to } => leading_zeroes(scratch.got(to).get(from..).unwrap_or_default()),
            Body::Pages(_) => 0,
        };
        if zeroes == piece.len() {
            return self.send_hole(frame, span, done, scratch);
        }
        let replies = self.session.replies;
        let head = scratch.head();
        if zeroes > 0 {
            put_hole(head, replies, frame, span.truncate(len64(zeroes)), false);
        }
        let data = span.skip(len64(zeroes));
        put_chunk(head, replies, frame, chunk::OFFSET_DATA, done, data.len().saturating_add(8));
        head.put64(data.start());
        self.send(scratch, piece.skip(zeroes))
    }
}

fn put_hole(out: &mut Vec<u8>, replies: Replies, frame: &Frame, span: Span, done: bool) {
    put_chunk(out, replies, frame, chunk::OFFSET_HOLE, done, 12);
    out.put64(span.start());
    out.put32(u32::try_from(span.len()).unwrap_or(u32::MAX));
}

/// Bytes at the beginning of `data` that are zeroes: whole sectors, or all of it. Looks no further than the first
/// sector that is something else.
fn leading_zeroes(data: &[u8]) -> usize {
    let sectors = data.chunks(SECTOR).take_while(|sector| is_zero(sector));
    sectors.map(<[u8]>::len).fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_counted_in_sectors() {
        let mut data = vec![0; 3 * SECTOR + 100];
        assert_eq!(leading_zeroes(&data), data.len());
        data[3 * SECTOR] = 1;
        assert_eq!(leading_zeroes(&data), 3 * SECTOR);
        data[SECTOR - 1] = 1;
        assert_eq!(leading_zeroes(&data), 0);
        assert_eq!(leading_zeroes(&[]), 0);
    }
}
