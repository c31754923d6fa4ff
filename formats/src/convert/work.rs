//! What is done with one chunk: it is read, cut into data and zeroes, and packed if the sink wants that.

use std::sync::Arc;

use super::bytes::{Buffer, Bytes, Shelf};
use super::digest::of_chunk;
use super::sink::{Pack, Piece};
use super::{Base, Salvage};
use crate::block::{BlockSize, Disk, Run, RunKind, Span};
use crate::error::{Result, Within};
use crate::wire::{index, is_zero, len64, part, part_mut};

/// What is given up at a time where the source cannot be read.
const SECTOR: usize = 512;

/// What all threads share.
pub(super) struct Work<'a> {
    pub(super) source: &'a Disk,
    /// Unit of zero detection in bytes; none copies zeroes as they are.
    pub(super) grain: Option<BlockSize>,
    pub(super) pack: Option<&'a dyn Pack>,
    /// What shows through where nothing is written.
    pub(super) base: Option<&'a Base>,
    /// Unit of allocation of the target.
    pub(super) block: BlockSize,
    pub(super) salvage: Option<&'a Salvage<'a>>,
    pub(super) digest: bool,
    pub(super) shelf: Arc<Shelf>,
}

/// A chunk that is ready to be written.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) pieces: Vec<Piece>,
    /// What it adds to the digest of the disk: nothing if it is zero, or if nobody wants to know.
    pub(super) digest: Option<[u8; 32]>,
}

impl Work<'_> {
    /// Reads one chunk, of which nothing is known or that all of it is data, and cuts it into pieces.
    pub(super) fn chunk(&self, span: Span, is_data: bool) -> Result<Chunk> {
        if let Some(base) = self.base {
            return self.chunk_over(span, base);
        }
        let data = if is_data { self.read_data(span)? } else { self.read(span, self.grain.is_none())? };
        let digest = if self.digest { of_chunk(&data) } else { None };
        if data.is_empty() && !span.is_empty() {
            return Ok(Chunk { pieces: vec![Piece::Zero(span)], digest });
        }
        let mut pieces = Vec::new();
        self.cut(span, data, &mut pieces)?;
        Ok(Chunk { pieces, digest })
    }

    /// The same where a backing file shows through: units that read as it does are left out.
    fn chunk_over(&self, span: Span, base: &Base) -> Result<Chunk> {
        let wanted = self.units_wanted(span, base)?;
        let mut pieces = Vec::new();
        for run in wanted.chunk_by(|a, b| a.1 == b.1).filter(|run| run.first().is_some_and(|u| u.1)) {
            let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
            let here = Span::new(first.start(), last.end().saturating_sub(first.start()))?;
            self.cut(here, self.read(here, true)?, &mut pieces)?;
        }
        // Zeroes behind the end of the backing file are there already.
        pieces.retain(|p| !matches!(p, Piece::Zero(span) if span.start() >= base.disk.size()));
        let digest = if self.digest { of_chunk(&self.read(span, false)?) } else { None };
        Ok(Chunk { pieces, digest })
    }

    /// The target's units in `span`, and whether each has to be written.
    fn units_wanted(&self, span: Span, base: &Base) -> Result<Vec<(Span, bool)>> {
        let mut units = Vec::new();
        let mut rest = span;
        while !rest.is_empty() {
            let (_, into) = self.block.split(rest.start());
            let unit = rest.truncate(self.block.bytes().saturating_sub(into));
            units.push((unit, false));
            rest = rest.skip(unit.len());
        }
        let mut rest = span;
        while !rest.is_empty() {
            let run = match &base.image {
                Some(image) => image.locate(rest)?.run,
                None => Run { len: rest.len(), kind: RunKind::Parent },
            };
            let here = rest.truncate(run.len.max(1));
            let touched = units.iter_mut().filter(|(unit, wanted)| !wanted && unit.intersect(here).is_some());
            for (unit, wanted) in touched {
                *wanted = match run.kind {
                    RunKind::Parent if base.is_parent => false,
                    RunKind::Parent => self.differs(*unit, &base.disk)?,
                    _ => true,
                };
            }
            rest = rest.skip(here.len());
        }
        Ok(units)
    }

    /// Whether a unit of the source reads otherwise than in `base`, which goes on with zeroes.
    fn differs(&self, unit: Span, base: &Disk) -> Result<bool> {
        let mut there = vec![0; index(unit.len())?];
        if let Some(both) = unit.intersect(Span::first(base.size())) {
            base.read_at(both.start(), part_mut(&mut there, 0, index(both.len())?, "unit")?)
                .within(|| "the backing file of the copy")?;
        }
        Ok(*self.read(unit, true)? != *there)
    }

    /// The bytes of `span`, none of which is a hole.
    fn read_data(&self, span: Span) -> Result<Buffer> {
        let mut data = self.shelf.take(index(span.len())?);
        self.fill(span, &mut data)?;
        Ok(data)
    }

    /// The bytes of `span`; none if all of it is zeroes that nobody stored, unless `all` are asked for.
    fn read(&self, span: Span, all: bool) -> Result<Buffer> {
        let len = index(span.len())?;
        // Memory is needed only where there is data: most chunks of most disks are holes.
        let mut data = self.shelf.take(if all { len } else { 0 });
        let mut rest = span;
        while !rest.is_empty() {
            let run = match self.source.first_run(rest) {
                Err(_) if self.salvage.is_some() => Run { len: rest.len(), kind: RunKind::Data },
                run => run?,
            };
            let here = rest.truncate(run.len);
            rest = rest.skip(run.len);
            let at = index(here.start().saturating_sub(span.start()))?;
            if data.is_empty() {
                if run.kind.is_zero() {
                    continue;
                }
                data = self.shelf.take(len);
                part_mut(&mut data, 0, at, "chunk")?.fill(0);
            }
            let place = part_mut(&mut data, at, index(here.len())?, "chunk")?;
            if run.kind.is_zero() { place.fill(0) } else { self.fill(here, place)? }
        }
        Ok(data)
    }

    /// Reads `span`; what cannot be read is told of and becomes zeroes, if that is wanted.
    fn fill(&self, span: Span, out: &mut [u8]) -> Result<()> {
        let place = |span: Span| format!("the source, {} bytes at {}", span.len(), span.start());
        let done = self.source.read_at(span.start(), out);
        let (Err(_), Some(salvage)) = (&done, self.salvage) else { return done.within(|| place(span)) };
        let mut at = span.start();
        for sector in out.chunks_mut(SECTOR) {
            if let Err(e) = self.source.read_at(at, sector) {
                sector.fill(0);
                salvage(Span::new(at, len64(sector.len()))?, &e);
            }
            at = at.saturating_add(len64(sector.len()));
        }
        Ok(())
    }

    /// Cuts the bytes of a chunk into zeroes and data, and packs the data if the sink wants that.
    fn cut(&self, span: Span, data: Buffer, pieces: &mut Vec<Piece>) -> Result<()> {
        let data = Bytes::new(data);
        let unit = match (self.pack, self.grain) {
            (Some(pack), _) => pack.unit(),
            (None, Some(grain)) => grain,
            (None, None) => {
                pieces.push(Piece::Data { at: span.start(), bytes: data });
                return Ok(());
            }
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
                    self.piece(span, data.part(from..at), from, was, pieces)?;
                }
                stretch = Some((zero, at));
            }
            at = at.saturating_add(len);
        }
        match stretch {
            Some((zero, from)) => self.piece(span, data.part(from..data.len()), from, zero, pieces),
            None => Ok(()),
        }
    }

    /// The bytes that lie `from` bytes behind the beginning of `span`.
    fn piece(
        &self,
        span: Span,
        bytes: Bytes,
        from: usize,
        zero: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let at = span.start().saturating_add(len64(from));
        match self.pack {
            _ if zero => pieces.push(Piece::Zero(Span::new(at, len64(bytes.len()))?)),
            None => pieces.push(Piece::Data { at, bytes }),
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
