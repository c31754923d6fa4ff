//! What was free when an edit began: the content of files may be stored there at once.
//!
//! A writer tells here, the first time that it looks at a part of its free space, what is free: it has changed nothing
//! of that part by then, so that is the state of before the edit. What it frees later never comes to be in here, as
//! the old state refers to it. Only content is [written](Fresh::write) by it: a tree that is changed in place would be
//! half old and half new if the tables of free space were wrong.

use std::collections::{BTreeMap, BTreeSet};

use racker_formats::block::{Disk, Span};
use racker_formats::error::Result;
use racker_formats::wire::{index, len64};

/// Bytes at both ends of a volume that are left out: what stands there says what a volume is.
const ENDS: u64 = 1 << 20;
/// Stretches that are remembered; the space behind them is used like any other.
const SPANS_MAX: usize = 1 << 18;

/// Free space of before the edit, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// Where it may be; nothing at all if there was a log to replay, as others would replay it once more.
    inside: Option<Span>,
    /// Start and end of each stretch, none touching the next.
    spans: BTreeMap<u64, u64>,
    /// Parts of the filesystem that were looked at.
    seen: BTreeSet<u64>,
}

impl Fresh {
    /// For a filesystem of `size` bytes that was closed cleanly.
    pub(crate) fn of(size: u64) -> Self {
        let inside = Span::new(ENDS, size.saturating_sub(ENDS.saturating_mul(2))).ok();
        Self { inside, ..Self::default() }
    }

    /// Whether it is the first look at a part, which shall be [added](Self::add) then.
    pub(crate) fn first_look(&mut self, part: u64) -> bool {
        self.inside.is_some() && self.seen.insert(part)
    }

    /// A stretch is free.
    pub(crate) fn add(&mut self, span: Span) {
        let Some(span) = self.inside.and_then(|inside| inside.intersect(span)) else { return };
        let (mut start, mut end) = (span.start(), span.end());
        if let Some((before, _)) = self.spans.range(..=start).next_back().filter(|(_, e)| **e >= start) {
            start = *before;
        }
        if let Some(behind) = self.spans.remove(&end) {
            end = behind;
        }
        if self.spans.len() < SPANS_MAX || self.spans.contains_key(&start) {
            self.spans.insert(start, end);
        }
    }

    /// Writes content to the blocks of a file: at once where they were free.
    pub(crate) fn write(&self, disk: &Disk, at: u64, data: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (at, data);
        while !rest.is_empty() {
            let stop = at.saturating_add(len64(rest.len()));
            let here = self.spans.range(..=at).next_back().map(|(_, end)| *end).filter(|end| *end > at);
            let until = match here {
                Some(end) => end.min(stop),
                None => self.spans.range(at..stop).next().map_or(stop, |(start, _)| *start),
            };
            let take = index(until.saturating_sub(at))?;
            let (now, later) = rest.split_at_checked(take).unwrap_or((rest, &[]));
            if here.is_some() {
                disk.write_fresh(at, now)?;
            } else {
                disk.write_at(at, now)?;
            }
            (at, rest) = (until, later);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use racker_formats::block::{BlockDevice, Caps, Support};

    use super::*;

    /// Remembers who wrote what how.
    #[derive(Debug)]
    struct Tape(&'static Mutex<Vec<(bool, u64, usize)>>);

    impl BlockDevice for Tape {
        fn size(&self) -> u64 {
            64 << 20
        }

        fn caps(&self) -> Caps {
            Caps { write: true, runs: Support::No, ..Caps::READ_ONLY }
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }

        fn flush(&self) -> Result<()> {
            Ok(())
        }

        fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
            self.0.lock().unwrap().push((false, at, data.len()));
            Ok(())
        }

        fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
            self.0.lock().unwrap().push((true, at, data.len()));
            Ok(())
        }
    }

    #[test]
    fn only_what_was_free_is_written_at_once() {
        static LOG: Mutex<Vec<(bool, u64, usize)>> = Mutex::new(Vec::new());
        let disk = Disk::new(Tape(&LOG));
        let mut fresh = Fresh::of(64 << 20);
        assert!(fresh.first_look(3) && !fresh.first_look(3) && !Fresh::default().first_look(0));
        let span = |start: u64, len: u64| Span::new(start, len).unwrap();
        for (start, len) in [(0, (1 << 20) + 4096), ((1 << 20) + 8192, 4096), ((1 << 20) + 4096, 4096)] {
            fresh.add(span(start, len));
        }
        fresh.add(span(2 << 20, 512));
        fresh.add(span(63 << 20, 1 << 20));
        assert_eq!(fresh.spans.len(), 2, "touching stretches are one");
        fresh.write(&disk, (1 << 20) - 10, &vec![0; 2 << 20]).unwrap();
        fresh.write(&disk, 63 << 20, &[0; 5]).unwrap();
        let (mib, rest) = (1 << 20, (2 << 20) - 10 - 12288 - ((1 << 20) - 12288) - 512);
        let expected = vec![
            (false, mib - 10, 10),
            (true, mib, 12288),
            (false, mib + 12288, (1 << 20) - 12288),
            (true, 2 << 20, 512),
            (false, (2 << 20) + 512, rest),
            (false, 63 << 20, 5),
        ];
        assert_eq!(*LOG.lock().unwrap(), expected);
    }
}
