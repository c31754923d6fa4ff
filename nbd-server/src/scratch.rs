//! What one thread of a connection works with: buffers that are used again and again.

use std::fs::File;
use std::io::{self, IoSlice};

use crate::limits::PIECE;
use crate::pages::Pages;
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
    /// So many bytes, in pages that were [taken](Scratch::take).
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
    pages: Option<Pages>,
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

    /// Takes in pages of `file`; says of how many bytes. The next reply has to send them.
    pub(crate) fn take(&mut self, file: &File, at: u64, len: usize) -> usize {
        if self.pages.is_none() {
            self.pages = Pages::new();
        }
        self.pages.as_mut().map_or(0, |pages| pages.take(file, at, len))
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
        match (body, &mut self.pages, stream.socket()) {
            (Body::Bytes { .. }, ..) => Ok(()),
            (Body::Pages(_), Some(pages), Some(socket)) => pages.send(socket),
            (Body::Pages(_), ..) => Err(io::ErrorKind::Unsupported.into()),
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
