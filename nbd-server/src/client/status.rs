//! What the server said of data and holes, until something is written.

use racker_formats::block::{Run, RunKind, Span};

use super::answer::Extent;

/// The stretch takes no space.
const HOLE: u64 = 1;
/// The stretch reads as zeroes.
const ZERO: u64 = 2;

/// What a stretch with these flags of `base:allocation` is. A hole need not read as zeroes.
fn kind_of(flags: u64) -> RunKind {
    match (flags & ZERO != 0, flags & HOLE != 0) {
        (true, true) => RunKind::Hole,
        (true, false) => RunKind::Zero,
        (false, _) => RunKind::Data,
    }
}

/// The last answer.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Side by side, in order; neighbours are of different kinds.
    runs: Vec<(Span, RunKind)>,
    generation: u64,
}

impl Known {
    /// Counts what was written.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Something is written.
    pub(super) fn forget(&mut self) {
        self.runs.clear();
        self.generation = self.generation.wrapping_add(1);
    }

    /// The first run of `span`, if that is known.
    pub(super) fn first(&self, span: Span) -> Option<Run> {
        let place = self.runs.partition_point(|(run, _)| run.end() <= span.start());
        let (run, kind) = self.runs.get(place).filter(|(run, _)| run.start() <= span.start())?;
        Some(Run { len: run.end().min(span.end()).saturating_sub(span.start()), kind: *kind })
    }

    /// Takes the answer about `asked`, unless something was written since the `generation` of the question.
    pub(super) fn learn(&mut self, asked: Span, extents: &[Extent], generation: u64, size: u64) {
        if self.generation != generation {
            return;
        }
        self.runs.clear();
        let mut at = asked.start();
        for extent in extents {
            // The last one may reach past what was asked.
            let len = extent.len.min(size.saturating_sub(at));
            let Some(span) = Span::new(at, len).ok().filter(|s| !s.is_empty()) else { break };
            let kind = kind_of(extent.flags);
            match self.runs.last_mut() {
                Some((last, same)) if *same == kind => {
                    let len = last.len().saturating_add(len);
                    *last = Span::new(last.start(), len).unwrap_or(*last);
                }
                _ => self.runs.push((span, kind)),
            }
            at = span.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(at: u64, len: u64) -> Span {
        Span::new(at, len).unwrap()
    }

    #[test]
    fn answers_are_kept_until_something_is_written() {
        let mut known = Known::default();
        let extents = [(100, 0), (50, 1), (200, 3), (u64::MAX, 2)].map(|(len, flags)| Extent { len, flags });
        known.learn(span(1000, 500), &extents, 0, 2000);
        let first = |known: &Known, at, len| known.first(span(at, len)).map(|r| (r.len, r.kind));
        assert_eq!(first(&known, 1000, 500), Some((150, RunKind::Data)), "a hole without zeroes is data");
        assert_eq!(first(&known, 1149, 500), Some((1, RunKind::Data)));
        assert_eq!(first(&known, 1150, 10), Some((10, RunKind::Hole)));
        assert_eq!(first(&known, 1350, 10_000), Some((650, RunKind::Zero)));
        assert_eq!(first(&known, 999, 5), None);
        assert_eq!(first(&known, 2000, 5), None);
        known.forget();
        assert_eq!(first(&known, 1000, 500), None);
        known.learn(span(1000, 500), &extents, 0, 2000);
        assert_eq!(first(&known, 1000, 500), None, "the question was older than the change");
    }
}
