//! What an edit stores at once, because nothing refers to that place before the edit lands.
//!
//! A filesystem gives free space to new files. What was free in the state of before the edit may be overwritten
//! before anything is decided: if the edit never lands, that space is as free as before. So the content of large files
//! is written once, and not to a file that is copied later.
//!
//! What this rests on:
//! * Only the writer of a filesystem knows what was free, and it must be the only one who writes there: it
//!   [claims](super::BlockDevice::claim) its volume. When something was changed before that nobody had claimed (the
//!   partition table, say), then what looks free may not have been: one such claim ends all of this.
//! * What was free is as the *old* state has it. Space that the edit itself has freed is still referred to there.
//! * The first and the last bytes of a file say which format it has: they are held back always.
//! * It is flushed before the edit is decided.

use std::collections::BTreeSet;

use super::{BlockSize, Disk, RunKind, Span};
use crate::error::{Common, Result};
use crate::limits::MIB;

/// Bytes at both ends of the file that are never written before the edit is decided.
const ENDS: u64 = MIB;
/// Holes are looked for by this much at once.
const CHUNK: BlockSize = match BlockSize::from_shift(20) {
    Some(size) => size,
    None => panic!("20 is below 63"),
};
/// Spans that are claimed: volumes, and the parts of logical ones.
const CLAIMS_MAX: usize = 4096;

/// The spans that writers claimed, and what they have stored.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    claimed: Vec<Span>,
    /// Somebody else has written, too.
    over: bool,
    /// The edit may land: what it has stored stays.
    kept: bool,
    /// The edit is given up, and must not land any more.
    given_up: bool,
    /// Where holes were looked for: all that was written to.
    seen: BTreeSet<u64>,
    /// What was not stored on the host before.
    holes: Vec<Span>,
    /// All of the file has its space, which it is to keep.
    full: Option<bool>,
}

impl Fresh {
    /// A writer claims a span; `changed` are all that was changed so far.
    pub(super) fn claim(&mut self, span: Span, mut changed: impl Iterator<Item = Span>) -> bool {
        let owned = |at: Span| self.claimed.iter().any(|claimed| claimed.contains(at));
        let foreign = changed.any(|at| !owned(at));
        let taken = self.claimed.iter().any(|claimed| claimed.intersect(span).is_some());
        self.over |= foreign || taken || self.claimed.len() >= CLAIMS_MAX;
        if !self.over {
            self.claimed.push(span);
        }
        !self.over
    }

    /// Whether a write to `span` of a file of `size` bytes need not wait.
    pub(super) fn passes(&self, span: Span, size: u64) -> bool {
        let inside = span.start() >= ENDS && span.end() <= size.saturating_sub(ENDS);
        !self.over && inside && self.claimed.iter().any(|claimed| claimed.contains(span))
    }

    /// Remembers what has no space of its own yet where `span` of `below` is going to be written.
    pub(super) fn note(&mut self, below: &Disk, span: Span) -> Result<()> {
        let size = below.size();
        let full = *self.full.get_or_insert_with(|| below.stored().is_some_and(|bytes| bytes >= size));
        let (first, _) = CHUNK.split(span.start());
        let (last, _) = CHUNK.split(span.end().saturating_sub(1));
        for number in first..=last {
            if !self.seen.insert(number) || full {
                continue;
            }
            let start = CHUNK.start_of(number).unwrap_or(size).min(size);
            let chunk = Span::new(start, CHUNK.bytes().min(size.saturating_sub(start)))?;
            for run in below.runs(chunk) {
                let (hole, kind) = run?;
                if kind == RunKind::Hole {
                    self.add_hole(hole)?;
                }
            }
        }
        Ok(())
    }

    fn add_hole(&mut self, hole: Span) -> Result<()> {
        match self.holes.last_mut() {
            Some(last) if last.end() == hole.start() => {
                *last = Span::new(last.start(), last.len().saturating_add(hole.len()))?;
            }
            _ => self.holes.push(hole),
        }
        Ok(())
    }

    /// Makes sure that what was stored is on stable storage. From here on it stays.
    pub(super) fn settle(&mut self, below: &Disk) -> Result<()> {
        if self.given_up {
            return Err(Common::GivenUp.into());
        }
        if !self.seen.is_empty() {
            below.flush()?;
        }
        self.kept = true;
        Ok(())
    }

    /// It turns out that the edit does not land.
    pub(super) fn unsettle(&mut self) {
        self.kept = false;
    }

    /// The edit is given up: what was a hole becomes one again. Nothing is stored any more after that.
    pub(super) fn undo(&mut self, below: &Disk) -> Result<()> {
        if self.kept {
            return Ok(());
        }
        (self.over, self.given_up) = (true, true);
        std::mem::take(&mut self.holes).into_iter().try_for_each(|hole| below.discard(hole))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{BlockDevice, FileDevice, MemDevice, Staged};
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn span(start: u64, len: u64) -> Span {
        Span::new(start, len).unwrap()
    }

    fn over(below: Disk) -> (Disk, Arc<Staged>) {
        let staged = Arc::new(Staged::through(below));
        (Disk::from_arc(Arc::clone(&staged) as Arc<dyn BlockDevice>), staged)
    }

    fn bytes(disk: &Disk, at: u64, len: usize) -> Vec<u8> {
        let mut found = vec![0; len];
        disk.read_at(at, &mut found).unwrap();
        found
    }

    #[test]
    fn what_is_claimed_passes_and_nothing_else() {
        let below = Disk::new(MemDevice::new(SIZE as usize));
        let (top, staged) = over(below.clone());
        top.write_fresh(4 << 20, &[1; 5000]).unwrap();
        assert!(bytes(&below, 4 << 20, 5000) == [0; 5000], "nobody has claimed it");
        let (top, _) = over(below.clone());
        assert!(top.slice(span(0, 8 << 20)).unwrap().claim(span(0, 8 << 20)).unwrap());
        for (at, passes) in [
            (MIB - 5000, false),
            (MIB, true),
            ((8 << 20) - 6000, true),
            ((8 << 20) - 10, false),
            (9 << 20, false),
            (SIZE - MIB, false),
        ] {
            top.write_fresh(at, &[2; 5000]).unwrap();
            assert!(bytes(&top, at, 5000) == [2; 5000]);
            assert_eq!(bytes(&below, at, 5000) == [2; 5000], passes, "at {at}");
        }
        // The pages that were held back belong to nobody, so nothing else can be claimed.
        assert!(!top.claim(span(9 << 20, 4096)).unwrap());
        top.write_fresh(2 << 20, &[3; 10]).unwrap();
        assert!(bytes(&below, 2 << 20, 10) == [0; 10]);
        assert!(!staged.is_unchanged().unwrap());
    }

    #[test]
    fn two_volumes_are_claimed_one_after_the_other() {
        let (top, staged) = over(Disk::new(MemDevice::new(SIZE as usize)));
        assert!(top.claim(span(MIB, MIB)).unwrap());
        top.write_at(MIB + 100, &[1]).unwrap();
        top.write_fresh(MIB + 8192, &[1]).unwrap();
        assert!(top.claim(span(4 << 20, MIB)).unwrap());
        assert!(!top.claim(span((4 << 20) + 4096, MIB)).unwrap(), "of two that meet no one is alone");
        staged.settle().unwrap();
        let (top, _) = over(Disk::new(MemDevice::new(SIZE as usize)));
        top.write_at(0, &[1]).unwrap();
        assert!(!top.claim(span(MIB, MIB)).unwrap(), "the table may have changed");
        let plain = Disk::new(Staged::new(Disk::new(MemDevice::new(SIZE as usize))));
        assert!(!plain.claim(span(MIB, MIB)).unwrap());
    }

    /// Writes of both kinds in any order are seen as one disk, and what was held back never shows below.
    #[test]
    fn both_kinds_of_writes_make_one_disk() {
        let mut state = 1u64;
        let mut below_end = |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let below = Disk::new(MemDevice::new(SIZE as usize));
        let (top, staged) = over(below.clone());
        assert!(top.claim(span(0, SIZE)).unwrap());
        let mut mirror = vec![0u8; SIZE as usize];
        for step in 0..3000u64 {
            let at = (2 << 20) + below_end(300_000);
            let data = vec![step as u8 | 1; 1 + below_end(20_000) as usize];
            let some = 1 + data.len() / 8;
            let (len, byte) = match below_end(5) {
                0 => (some, step as u8 | 1),
                1 => (some, 0),
                _ => (data.len(), step as u8 | 1),
            };
            match (len == data.len(), byte) {
                (_, 0) => top.write_zeroes(span(at, len as u64)).unwrap(),
                (true, _) => top.write_fresh(at, &data).unwrap(),
                (false, _) => top.write_at(at, &data[..len]).unwrap(),
            }
            mirror[at as usize..][..len].fill(byte);
            let seen = bytes(&top, 2 << 20, 400_000);
            assert!(seen == mirror[2 << 20..][..400_000], "step {step}");
        }
        let changes = staged.changes().unwrap();
        assert!(!changes.is_empty());
        // What is written below together with what is held back is the disk as it is seen.
        for change in changes {
            below
                .write_at(change.span.start(), &bytes(&top, change.span.start(), change.span.len() as usize))
                .unwrap();
        }
        assert!(bytes(&below, 0, SIZE as usize) == mirror);
    }

    #[test]
    fn an_edit_that_is_given_up_takes_no_space() {
        let file = tempfile::tempfile().unwrap();
        let below = Disk::new(FileDevice::new(file, true).unwrap());
        below.resize(SIZE).unwrap();
        below.write_at(5 << 20, &[7; 100_000]).unwrap();
        below.flush().unwrap();
        let (stored, runs) = (below.stored().unwrap(), holes(&below));
        let (top, staged) = over(below.clone());
        assert!(top.claim(span(0, SIZE)).unwrap());
        for at in [(2 << 20) + 100, (5 << 20) - 50_000, 8 << 20] {
            top.write_fresh(at, &vec![1; 2_000_000]).unwrap();
        }
        below.flush().unwrap();
        assert!(below.stored().unwrap() > stored + 3_000_000);
        staged.undo().unwrap();
        below.flush().unwrap();
        assert_eq!((below.stored().unwrap(), holes(&below)), (stored, runs));
        top.write_fresh(3 << 20, &[5; 5]).unwrap();
        assert!(bytes(&below, 3 << 20, 5) == [0; 5], "nothing comes after the end");
        assert!(staged.settle().is_err(), "what is gone cannot land");
    }

    #[test]
    fn what_may_land_is_not_given_up() {
        let file = tempfile::tempfile().unwrap();
        let below = Disk::new(FileDevice::new(file, true).unwrap());
        below.resize(SIZE).unwrap();
        let (top, staged) = over(below.clone());
        assert!(top.claim(span(0, SIZE)).unwrap());
        top.write_fresh(3 << 20, &[5; 5]).unwrap();
        staged.settle().unwrap();
        staged.undo().unwrap();
        assert!(bytes(&below, 3 << 20, 5) == [5; 5]);
        staged.unsettle().unwrap();
        staged.undo().unwrap();
        assert!(bytes(&below, 3 << 20, 5) == [0; 5]);
    }

    fn holes(disk: &Disk) -> Vec<(Span, RunKind)> {
        disk.runs(Span::first(disk.size())).map(|r| r.unwrap()).collect()
    }
}
