//! The answers to `BLOCK_STATUS`.

use std::io;
use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::wire::len64;

use crate::connection::Connection;
use crate::context::Context;
use crate::errno::Errno;
use crate::handshake::Replies;
use crate::limits::EXTENTS_MAX;
use crate::reply::put_chunk;
use crate::scratch::{Body, Scratch};
use crate::wire::{Fields, Frame, Put, chunk};

/// Questions to a context for one answer: what lies side by side may be alike.
const STEPS_MAX: usize = 4 * EXTENTS_MAX;

/// A stretch: its length in bytes, and what the context says of it.
type Extent = (u64, u32);

impl Connection {
    /// Answers for the stretch `span`, and all contexts.
    pub(crate) fn status(
        &self,
        frame: &Frame,
        span: Span,
        one: bool,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        self.extents_of(frame, span, one, &self.session.contexts, scratch)
    }

    /// The same for the stretch and the contexts that the payload of the request names.
    pub(crate) fn chosen_status(
        &self,
        frame: &Frame,
        at: u64,
        one: bool,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let len = usize::try_from(frame.len).unwrap_or_default();
        let chosen = self.chosen(at, scratch.got(len));
        match chosen {
            Some((span, contexts)) => self.extents_of(frame, span, one, &contexts, scratch),
            None => self.refuse(frame, Errno::Inval, scratch),
        }
    }

    #[allow(clippy::type_complexity)]
    fn chosen(&self, at: u64, payload: &[u8]) -> Option<(Span, Vec<(u32, Arc<dyn Context>)>)> {
        let mut fields = Fields(payload);
        let span = Span::new(at, fields.u64()?).ok()?;
        if span.is_empty() || span.end() > self.session.export.disk().size() {
            return None;
        }
        let mut chosen: Vec<(u32, Arc<dyn Context>)> = Vec::new();
        while !fields.is_done() {
            let number = fields.u32()?;
            let found = self.session.contexts.iter().find(|(n, _)| *n == number)?;
            if chosen.iter().any(|(n, _)| *n == number) {
                return None;
            }
            chosen.push(found.clone());
        }
        (!chosen.is_empty()).then_some((span, chosen))
    }

    fn extents_of(
        &self,
        frame: &Frame,
        span: Span,
        one: bool,
        contexts: &[(u32, Arc<dyn Context>)],
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let replies = self.session.replies;
        scratch.head();
        for (i, (number, context)) in contexts.iter().enumerate() {
            let extents = match extents(context.as_ref(), span, if one { 1 } else { EXTENTS_MAX }) {
                Ok(extents) => extents,
                Err(e) => {
                    let error = self.failed("look for block status", span, &e);
                    return self.refuse(frame, error, scratch);
                }
            };
            let done = i.saturating_add(1) == contexts.len();
            put_extents(&mut scratch.head, replies, frame, *number, &extents, done);
        }
        self.send(scratch, Body::NONE)
    }
}

/// The stretches at the beginning of `span`, neighbours of a kind joined, `max` of them at most.
fn extents(context: &dyn Context, span: Span, max: usize) -> racker_formats::Result<Vec<Extent>> {
    let mut found: Vec<Extent> = Vec::new();
    let mut rest = span;
    for _ in 0..STEPS_MAX {
        if rest.is_empty() {
            break;
        }
        let (len, flags) = context.first(rest)?;
        let is_full = found.len() >= max;
        match found.last_mut() {
            Some((last, kind)) if *kind == flags => *last = last.saturating_add(len),
            _ if is_full => break,
            _ => found.push((len, flags)),
        }
        rest = rest.skip(len.max(1));
    }
    Ok(found)
}

fn put_extents(
    out: &mut Vec<u8>,
    replies: Replies,
    frame: &Frame,
    number: u32,
    extents: &[Extent],
    done: bool,
) {
    let count = len64(extents.len());
    if replies == Replies::Extended {
        let size = count.saturating_mul(16).saturating_add(8);
        put_chunk(out, replies, frame, chunk::BLOCK_STATUS_EXT, done, size);
        out.put32(number);
        out.put32(u32::try_from(count).unwrap_or(u32::MAX));
        for (len, flags) in extents {
            out.put64(*len);
            out.put64((*flags).into());
        }
    } else {
        let size = count.saturating_mul(8).saturating_add(4);
        put_chunk(out, replies, frame, chunk::BLOCK_STATUS, done, size);
        out.put32(number);
        for (len, flags) in extents {
            // A compact request asks for less than 4 GiB, and no extent is longer.
            out.put32(u32::try_from(*len).unwrap_or(u32::MAX));
            out.put32(*flags);
        }
    }
}
