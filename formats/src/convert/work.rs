//! What is done with one chunk: it is read, cut into data and zeroes, and packed if the sink wants that.

use super::sink::{Pack, Piece};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Result, Within};
use crate::wire::{index, is_zero, len64, part, part_mut};

/// What all threads share.
pub(super) struct Work<'a> {
    pub(super) source: &'a Disk,
    /// Unit of zero detection in bytes; none copies zeroes as they are.
    pub(super) grain: Option<BlockSize>,
    pub(super) pack: Option<&'a dyn Pack>,
}

impl Work<'_> {
    /// Reads one chunk and cuts it into pieces.
    pub(super) fn chunk(&self, span: Span) -> Result<Vec<Piece>> {
        let mut data = Vec::new();
        for run in self.source.runs(span) {
            let (run, kind) = run?;
            if kind.is_zero() && self.grain.is_some() {
                continue;
            }
            // Only now is memory needed: most chunks of most disks are holes.
            if data.is_empty() {
                data.resize(index(span.len())?, 0u8);
            }
            if !kind.is_zero() {
                let at = index(run.start().saturating_sub(span.start()))?;
                let place = || format!("reading {} bytes at {}", run.len(), run.start());
                self.source
                    .read_at(run.start(), part_mut(&mut data, at, index(run.len())?, "chunk")?)
                    .within(place)?;
            }
        }
        if data.is_empty() && !span.is_empty() {
            return Ok(vec![Piece::Zero(span)]);
        }
        self.cut(span, data)
    }

    /// Cuts the bytes of a chunk into zeroes and data, and packs the data if the sink wants that.
    fn cut(&self, span: Span, data: Vec<u8>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let unit = match (self.pack, self.grain) {
            (Some(pack), _) => pack.unit(),
            (None, Some(grain)) => grain,
            (None, None) => return Ok(vec![Piece::Data { at: span.start(), bytes: data }]),
        };
        // Stretches of equal kind, in units.
        let mut at = 0usize;
        let step = index(unit.bytes())?;
        let mut stretch: Option<(bool, usize)> = None;
        while at < data.len() {
            let len = step.min(data.len().saturating_sub(at));
            let zero = self.grain.is_some() && is_zero(part(&data, at, len, "chunk")?);
            if stretch.is_none_or(|(z, _)| z != zero) {
                if let Some((was, from)) = stretch {
                    self.piece(span, &data, from, at, was, &mut pieces)?;
                }
                stretch = Some((zero, at));
            }
            at = at.saturating_add(len);
        }
        match stretch {
            Some((false, 0)) if self.pack.is_none() => {
                pieces.push(Piece::Data { at: span.start(), bytes: data });
            }
            Some((zero, from)) => self.piece(span, &data, from, data.len(), zero, &mut pieces)?,
            None => {}
        }
        Ok(pieces)
    }

    fn piece(
        &self,
        span: Span,
        data: &[u8],
        from: usize,
        to: usize,
        zero: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let at = span.start().saturating_add(len64(from));
        let bytes = part(data, from, to.saturating_sub(from), "chunk")?;
        match self.pack {
            _ if zero => pieces.push(Piece::Zero(Span::new(at, len64(bytes.len()))?)),
            None => pieces.push(Piece::Data { at, bytes: bytes.to_vec() }),
            Some(pack) => {
                let unit = index(pack.unit().bytes())?;
                let mut at = at;
                for block in bytes.chunks(unit) {
                    pieces.push(pack.pack(at, block)?);
                    at = at.saturating_add(len64(block.len()));
                }
            }
        }
        Ok(())
    }
}
