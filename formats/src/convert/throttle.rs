//! A sink that takes its time.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::sink::{Pack, Piece, Sink};
use crate::block::BlockSize;
use crate::error::Result;
use crate::wire::len64;

/// So many bytes a second at most.
#[derive(Debug)]
pub struct Pace {
    per_second: u64,
    started: Instant,
    done: u64,
}

impl Pace {
    /// A pace that begins now; 0 is no limit.
    pub fn new(per_second: u64) -> Self {
        Self { per_second, started: Instant::now(), done: 0 }
    }

    /// Waits until `len` more bytes are due.
    pub fn wait(&mut self, len: u64) {
        self.done = self.done.saturating_add(len);
        let due = u128::from(self.done).saturating_mul(1_000_000).checked_div(u128::from(self.per_second));
        let due = due.and_then(|micros| u64::try_from(micros).ok()).map(Duration::from_micros);
        if let Some(rest) = due.and_then(|due| due.checked_sub(self.started.elapsed())) {
            thread::sleep(rest);
        }
    }
}

/// Passes pieces on at so many bytes of the disk a second. Zeroes cost nothing.
#[derive(Debug)]
pub struct Throttle {
    inner: Box<dyn Sink>,
    pace: Pace,
}

impl Throttle {
    /// `inner`, at most `per_second` bytes a second; 0 is no limit.
    pub fn new(inner: Box<dyn Sink>, per_second: u64) -> Self {
        Self { inner, pace: Pace::new(per_second) }
    }
}

impl Sink for Throttle {
    fn block_size(&self) -> BlockSize {
        self.inner.block_size()
    }

    fn pack(&self) -> Option<Arc<dyn Pack>> {
        self.inner.pack()
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match &piece {
            Piece::Zero(_) => {}
            Piece::Data { bytes, .. } => self.pace.wait(len64(bytes.len())),
            Piece::Packed { len, .. } => self.pace.wait(*len),
        }
        self.inner.put(piece)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.inner.finish()
    }
}
