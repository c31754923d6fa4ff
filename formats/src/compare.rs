//! Compares two disks by what they read as.

use std::thread;

use crate::block::{Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::wire::{index, is_zero, len64, part, part_mut};

/// Bytes of each disk that are read at once.
const CHUNK: u64 = 2 * MIB;
/// Zeroes are looked for in pieces of this many bytes.
const PIECE: usize = 64 << 10;

/// How two disks compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They read the same.
    Same {
        /// Sizes differ, and the longer one's rest is zeroes.
        sizes_differ: bool,
    },
    /// Only under [`Strictness::Allocation`]: the sizes differ.
    Size,
    /// Only under [`Strictness::Allocation`]: one is allocated where the other is not.
    Allocation {
        /// The first such byte.
        at: u64,
    },
    /// They read differently.
    Content {
        /// The first byte that differs; past the end of the shorter disk, the first that is not zero.
        at: u64,
    },
}

/// What counts as a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// The bytes that are read; a shorter disk goes on with zeroes.
    Content,
    /// Sizes and allocation too.
    Allocation,
}

/// Compares `a` with `b`. `progress` is told how many bytes are done.
pub fn compare(a: &Disk, b: &Disk, strictness: Strictness, progress: &mut dyn FnMut(u64)) -> Result<Verdict> {
    let strict = strictness == Strictness::Allocation;
    if strict && a.size() != b.size() {
        return Ok(Verdict::Size);
    }
    let common = a.size().min(b.size());
    let mut pair = Pair { a, b, left: Vec::new(), right: Vec::new() };
    let mut rest = Span::first(common);
    while !rest.is_empty() {
        let (one, two) = (a.first_run(rest)?, b.first_run(rest)?);
        let both = rest.truncate(one.len.min(two.len));
        if strict && one.kind.is_allocated() != two.kind.is_allocated() {
            return Ok(Verdict::Allocation { at: both.start() });
        }
        if !(one.kind.is_zero() && two.kind.is_zero())
            && let Some(at) = pair.differ(both, one.kind.is_zero(), two.kind.is_zero(), progress)?
        {
            return Ok(Verdict::Content { at });
        }
        rest = rest.skip(both.len());
        progress(both.end());
    }
    let longer = if a.size() > b.size() { a } else { b };
    let tail = Span::new(common, longer.size().saturating_sub(common))?;
    for run in longer.runs(tail) {
        let (span, kind) = run?;
        pair.a = longer;
        if !kind.is_zero()
            && let Some(at) = pair.differ(span, false, true, progress)?
        {
            return Ok(Verdict::Content { at });
        }
    }
    Ok(Verdict::Same { sizes_differ: !tail.is_empty() })
}

/// Two disks and the memory to read them into.
struct Pair<'a> {
    a: &'a Disk,
    b: &'a Disk,
    left: Vec<u8>,
    right: Vec<u8>,
}

impl Pair<'_> {
    /// The first byte of `span` that differs. A side that is known to be zeroes is not read.
    fn differ(
        &mut self,
        span: Span,
        a_zero: bool,
        b_zero: bool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<u64>> {
        let mut rest = span;
        while !rest.is_empty() {
            let now = rest.truncate(CHUNK);
            let len = index(now.len())?;
            let found = match (a_zero, b_zero) {
                (true, true) => None,
                (false, true) => not_zero(fill(self.a, now, &mut self.left)?),
                (true, false) => not_zero(fill(self.b, now, &mut self.right)?),
                (false, false) => {
                    let (left, right) = (&mut self.left, &mut self.right);
                    // Both sides at once: unpacking is what takes the time.
                    let (one, two) = thread::scope(|scope| {
                        let other = scope.spawn(|| fill(self.b, now, right));
                        let one = fill(self.a, now, left);
                        (one, other.join())
                    });
                    let (one, two) = (one?, two.map_err(|_| Common::Poisoned)??);
                    first_difference(part(one, 0, len, "chunk")?, part(two, 0, len, "chunk")?)
                }
            };
            if let Some(at) = found {
                return Ok(Some(now.start().saturating_add(len64(at))));
            }
            rest = rest.skip(now.len());
            progress(now.end());
        }
        Ok(None)
    }
}

/// Reads `span` into `buf`, which grows to hold it.
fn fill<'b>(disk: &Disk, span: Span, buf: &'b mut Vec<u8>) -> Result<&'b [u8]> {
    let len = index(span.len())?;
    if buf.len() < len {
        buf.resize(len, 0);
    }
    let bytes = part_mut(buf, 0, len, "chunk")?;
    disk.read_at(span.start(), bytes).within(|| format!("{} bytes at {}", span.len(), span.start()))?;
    Ok(bytes)
}

/// The first byte that is not zero.
fn not_zero(bytes: &[u8]) -> Option<usize> {
    let mut at = 0usize;
    for piece in bytes.chunks(PIECE) {
        if !is_zero(piece) {
            return piece.iter().position(|b| *b != 0).map(|n| at.saturating_add(n));
        }
        at = at.saturating_add(piece.len());
    }
    None
}

/// The first byte that differs.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let mut at = 0usize;
    for (one, two) in a.chunks(PIECE).zip(b.chunks(PIECE)) {
        if one != two {
            return one.iter().zip(two).position(|(x, y)| x != y).map(|n| at.saturating_add(n));
        }
        at = at.saturating_add(one.len());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    fn disk(bytes: Vec<u8>) -> Disk {
        Disk::new(MemDevice::from_bytes(bytes))
    }

    fn verdict(a: Vec<u8>, b: Vec<u8>, strictness: Strictness) -> Verdict {
        compare(&disk(a), &disk(b), strictness, &mut |_| ()).unwrap()
    }

    #[test]
    fn the_first_difference_is_found_wherever_it_is() {
        let plain = vec![7u8; (5 << 20) + 3];
        assert_eq!(
            verdict(plain.clone(), plain.clone(), Strictness::Allocation),
            Verdict::Same { sizes_differ: false }
        );
        for at in [0, 65_536, (2 << 20) - 1, 2 << 20, (5 << 20) + 2] {
            let mut other = plain.clone();
            other[at] = 8;
            assert_eq!(
                verdict(plain.clone(), other, Strictness::Content),
                Verdict::Content { at: at as u64 }
            );
        }
    }

    #[test]
    fn a_shorter_disk_goes_on_with_zeroes() {
        let mut long = vec![1u8; 1000];
        long.resize(300_000, 0);
        assert_eq!(
            verdict(vec![1; 1000], long.clone(), Strictness::Content),
            Verdict::Same { sizes_differ: true }
        );
        assert_eq!(verdict(vec![1; 1000], long.clone(), Strictness::Allocation), Verdict::Size);
        long[299_999] = 1;
        assert_eq!(verdict(long, vec![1; 1000], Strictness::Content), Verdict::Content { at: 299_999 });
    }
}
