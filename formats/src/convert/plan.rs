//! Cuts a disk into chunks, and passes over its holes without giving them to anybody.

use crate::block::{BlockSize, Disk, Run, RunKind, Span};
use crate::error::{Result, Within};
use crate::limits::GIB;

/// How far a hole is looked for at once: a driver may have to read tables to say where one ends.
const LOOK_AHEAD: u64 = GIB;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A stretch of zeroes that nobody needs to read.
    Zero(Span),
    /// A chunk for a worker, and whether all of it is known to be data: asking a filesystem where the next hole is may
    /// take as long as reading the chunk.
    Chunk(Span, bool),
}

/// The rest of the disk.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    source: &'a Disk,
    rest: Span,
    /// Chunks end at multiples of this, wherever holes are, so that the cut never depends on chance.
    chunk: BlockSize,
    /// Whether holes are passed over.
    holes: bool,
    /// Where the source cannot say, there may be data.
    salvage: bool,
    /// Here there is data, or nobody knows.
    data: Span,
}

impl<'a> Plan<'a> {
    pub(super) fn new(source: &'a Disk, chunk: BlockSize, holes: bool, salvage: bool) -> Self {
        Self { source, rest: Span::first(source.size()), chunk, holes, salvage, data: Span::first(0) }
    }

    /// The most bytes of a chunk.
    pub(super) fn chunk(&self) -> BlockSize {
        self.chunk
    }

    /// The next step, or `None` at the end of the disk.
    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        let start = self.rest.start();
        if self.rest.is_empty() {
            return Ok(None);
        }
        let hole = if self.holes && self.data.end() <= start { self.hole()? } else { 0 };
        if hole > 0 {
            return Ok(Some(Step::Zero(self.take(hole))));
        }
        let (_, into) = self.chunk.split(start);
        let chunk = self.take(self.chunk.bytes().saturating_sub(into));
        Ok(Some(Step::Chunk(chunk, self.data.intersect(chunk) == Some(chunk))))
    }

    fn take(&mut self, len: u64) -> Span {
        let taken = self.rest.truncate(len);
        self.rest = self.rest.skip(len);
        taken
    }

    /// The length of the hole at hand in whole chunks, or to the end of the disk.
    fn hole(&mut self) -> Result<u64> {
        let start = self.rest.start();
        let mut len = 0u64;
        loop {
            let ahead = self.rest.skip(len).truncate(LOOK_AHEAD);
            if ahead.is_empty() {
                return Ok(len);
            }
            let run = self.source.first_run(ahead).within(|| format!("the source from byte {start} on"));
            let run = match run {
                Err(_) if self.salvage => Run { len: self.chunk.bytes(), kind: RunKind::Data },
                run => run?,
            };
            if !run.kind.is_zero() {
                self.data = ahead.truncate(run.len);
                return Ok(self.chunk.floor(ahead.start()).saturating_sub(start));
            }
            len = len.saturating_add(run.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockDevice, Caps, Support};

    const CHUNK: u64 = 4 << 20;
    const STRIPE: u64 = 10 << 20;

    /// Data in the first byte of every stripe.
    #[derive(Debug)]
    struct Striped(u64);

    impl BlockDevice for Striped {
        fn size(&self) -> u64 {
            self.0
        }
        fn caps(&self) -> Caps {
            Caps { runs: Support::Native, ..Caps::READ_ONLY }
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn first_run(&self, span: Span) -> Result<Run> {
            let into = span.start() % STRIPE;
            let (kind, len) = if into == 0 { (RunKind::Data, 1) } else { (RunKind::Hole, STRIPE - into) };
            Ok(Run { len: len.min(span.len()), kind })
        }
    }

    #[test]
    fn the_disk_is_covered_once_and_chunks_are_aligned() {
        for (size, holes, want) in [(35 << 20, true, 4), ((35 << 20) + 5, true, 4), (35 << 20, false, 9)] {
            let source = Disk::new(Striped(size));
            let mut plan = Plan::new(&source, BlockSize::from_bytes(CHUNK).unwrap(), holes, false);
            let (mut at, mut chunks) = (0, 0);
            while let Some(step) = plan.next().unwrap() {
                let span = match step {
                    Step::Zero(span) => span,
                    Step::Chunk(span, _) => {
                        chunks += 1;
                        assert!(span.len() <= CHUNK);
                        span
                    }
                };
                assert_eq!(span.start(), at);
                assert!(!span.is_empty() && (span.end() % CHUNK == 0 || span.end() == size));
                at = span.end();
            }
            assert_eq!((at, chunks), (size, want));
        }
    }
}
