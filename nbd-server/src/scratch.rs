//! What one thread of a connection works with: buffers that are used again and again.

use std::io::{self, IoSlice};

use crate::limits::PIECE;
use crate::pages::Lent;
use crate::stream::{Stream, send_parts};

/// Replies of at most so many bytes of data may wait for those behind them.
const WAITS_MAX: usize = 32 << 10;
/// So many replies are sent together at most: the client works on them while those behind them are made.
const TOGETHER: usize = 4;

/// What follows the header of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body {
    /// A part of the buffer.
    Bytes { from: usize, to: usize },
    /// So many bytes, in pages that are [held](Scratch::hold).
    Pages(usize),
}

impl Body {
    /// Nothing.
    pub(crate) const NONE: Self = Self::bytes(0);

    /// The first `len` bytes of the buffer.
    pub(crate) const fn bytes(len: usize) -> Self {
        Self::Bytes { from: 0, to: len }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::Bytes { from, to } => to.saturating_sub(from),
            Self::Pages(len) => len,
        }
    }

    /// The same without the first `len` bytes; pages stay as they are.
    pub(crate) fn skip(self, len: usize) -> Self {
        match self {
            Self::Bytes { from, to } => Self::Bytes { from: from.saturating_add(len).min(to), to },
            Self::Pages(len) => Self::Pages(len),
        }
    }
}

/// The buffers.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    data: Vec<u8>,
    pub(crate) head: Vec<u8>,
    /// Replies that wait for those behind them.
    waiting: Vec<u8>,
    /// How many replies these are.
    count: usize,
    /// Whether replies wait at all.
    gathers: bool,
    /// Pages for the next reply.
    pages: Option<Lent>,
}

impl Scratch {
    /// Room for `len` bytes.
    pub(crate) fn data(&mut self, len: usize) -> &mut [u8] {
        if self.data.len() < len {
            self.data.resize(len, 0);
        }
        self.data.get_mut(..len).unwrap_or_default()
    }

    /// The first `len` bytes.
    pub(crate) fn got(&self, len: usize) -> &[u8] {
        self.data.get(..len).unwrap_or(&self.data)
    }

    /// An empty header.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        self.head.clear();
        &mut self.head
    }

    /// Holds pages that the next reply has to send.
    pub(crate) fn hold(&mut self, pages: Lent) {
        self.pages = Some(pages);
    }

    /// Whether small replies wait from now on until they are [sent](Self::send).
    pub(crate) fn gather(&mut self, gathers: bool) {
        self.gathers = gathers;
    }

    /// Lets a small reply wait; `false` if it has to be sent.
    pub(crate) fn keep(&mut self, body: Body) -> bool {
        let Body::Bytes { from, to } = body else { return false };
        self.count = self.count.saturating_add(1);
        if !self.gathers || body.len() > WAITS_MAX || self.count >= TOGETHER {
            return false;
        }
        self.waiting.extend_from_slice(&self.head);
        self.waiting.extend_from_slice(self.data.get(from..to).unwrap_or_default());
        true
    }

    /// Whether replies wait.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends replies that wait, the header, and the body.
    pub(crate) fn send(&mut self, stream: &dyn Stream, body: Body) -> io::Result<()> {
        let bytes = if let Body::Bytes { from, to } = body { from..to } else { 0..0 };
        let parts = [self.waiting.as_slice(), &self.head, self.data.get(bytes).unwrap_or_default()];
        send_parts(stream, &mut parts.map(IoSlice::new))?;
        self.waiting.clear();
        self.count = 0;
        let Body::Pages(_) = body else { return Ok(()) };
        match (self.pages.take(), stream.socket()) {
            (Some(pages), Some(socket)) => pages.send(socket),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Gives the memory of a large payload back.
    pub(crate) fn shrink(&mut self) {
        if self.data.len() > PIECE {
            self.data.truncate(PIECE);
            self.data.shrink_to_fit();
        }
    }
}
