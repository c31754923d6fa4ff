//! Part of a disk as a disk: a partition, a tar member.

use std::fs::File;

use super::{BlockDevice, Caps, Disk, Run, Span};
use crate::error::{Common, Result};

/// The bytes of `inner` inside `span`.
#[derive(Debug)]
pub struct SliceDevice {
    inner: Disk,
    span: Span,
}

impl SliceDevice {
    /// A window on `inner`; the caller has checked that `span` lies inside it.
    pub fn new(inner: Disk, span: Span) -> Self {
        Self { inner, span }
    }

    fn locate(&self, at: u64) -> Result<u64> {
        self.span.start().checked_add(at).ok_or_else(|| Common::RangeWraps { start: at, len: 0 }.into())
    }

    fn within(&self, span: Span) -> Result<Span> {
        Span::new(self.locate(span.start())?, span.len())
    }
}

impl BlockDevice for SliceDevice {
    fn size(&self) -> u64 {
        self.span.len()
    }

    fn caps(&self) -> Caps {
        Caps { resize: false, ..self.inner.caps() }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(self.locate(at)?, buf)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.inner.write_at(self.locate(at)?, data)
    }

    fn claim(&self, span: Span) -> Result<bool> {
        self.inner.claim(self.within(span)?)
    }

    fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
        self.inner.write_fresh(self.locate(at)?, data)
    }

    fn place(&self, span: Span) -> Option<Span> {
        self.inner.place(self.within(span).ok()?)
    }

    fn at_hand(&self, span: Span) -> bool {
        self.within(span).is_ok_and(|span| self.inner.at_hand(span))
    }

    fn pages(&self, span: Span) -> Option<(&File, u64)> {
        self.inner.pages(self.within(span).ok()?)
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        self.inner.write_zeroes(self.within(span)?)
    }

    fn discard(&self, span: Span) -> Result<()> {
        self.inner.discard(self.within(span)?)
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        self.inner.first_run(self.within(span)?)
    }
}
