//! Where a decoder can start in a gzip file: its state, kept here and there on the one way through the file that
//! also checks everything.

use std::io::{self, Read};

use crc32fast::Hasher;

use super::super::Expansion;
use super::super::segments::{Segments, Source, Zeroes};
use super::super::spool::decode_error;
use super::inflate::{Inflate, MEMORY, Point, damaged};
use crate::block::Disk;
use crate::error::Result;
use crate::limits::MIB;
use crate::wire::{is_zero, len64, sum_holds};

/// Work between two points of a small file, in bytes that were decoded. It doubles whenever the points take too
/// much memory.
const APART: u64 = MIB;
/// Zeroes are decoded this many times as fast as data, and nobody asks for them.
const ZEROES_ARE_LIGHTER: u64 = 16;

/// A stretch of the content from where a decoder can start to where the next one can.
#[derive(Clone)]
struct Stretch {
    start: u64,
    point: Point,
    /// The checksum of the content up to the next one's start.
    sum: Hasher,
}

/// The points of a file.
pub(super) struct Points {
    file: Disk,
    stretches: Vec<Stretch>,
    size: u64,
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Points({})", self.stretches.len())
    }
}

/// Goes through `file` once; the points take `memory_max` bytes at most.
pub(super) fn scan(file: &Disk, expansion: &mut Expansion, memory_max: u64) -> Result<Segments<Points>> {
    let failed = |e| decode_error("gzip", e);
    let mut from = Inflate::new(file.clone());
    let first = from.point().map_err(failed)?;
    let mut memory = first.memory();
    let mut stretches = vec![Stretch { start: 0, point: first, sum: Hasher::new() }];
    let mut zeroes = Zeroes::new();
    let (mut apart, mut work) = (APART, 0u64);
    loop {
        let bytes = from.step().map_err(failed)?;
        if bytes.is_empty() {
            break;
        }
        expansion.spend(len64(bytes.len()), "gzip")?;
        let len = len64(bytes.len());
        let light = is_zero(bytes);
        work = work.saturating_add(if light { len.div_ceil(ZEROES_ARE_LIGHTER) } else { len });
        zeroes.add(bytes);
        if let Some(last) = stretches.last_mut() {
            last.sum.update(bytes);
        }
        if work >= apart {
            work = 0;
            let point = from.point().map_err(failed)?;
            memory = memory.saturating_add(point.memory());
            stretches.push(Stretch { start: zeroes.seen(), point, sum: Hasher::new() });
        }
        while memory > memory_max && stretches.len() > 2 {
            apart = apart.saturating_mul(2);
            stretches = thin(stretches);
            memory = stretches.iter().map(|s| s.point.memory()).fold(0, u64::saturating_add);
        }
    }
    let starts = stretches.iter().map(|s| s.start).collect();
    let points = Points { file: file.clone(), stretches, size: zeroes.seen() };
    Ok(Segments::checked(points, starts, zeroes))
}

/// Every other one.
fn thin(all: Vec<Stretch>) -> Vec<Stretch> {
    let mut kept: Vec<Stretch> = Vec::with_capacity(all.len().div_ceil(2));
    for (i, stretch) in all.into_iter().enumerate() {
        match kept.last_mut() {
            Some(last) if i & 1 == 1 => last.sum.combine(&stretch.sum),
            _ => kept.push(stretch),
        }
    }
    kept
}

impl Source for Points {
    fn what(&self) -> &'static str {
        "gzip"
    }

    fn start(&self, number: usize) -> Result<Box<dyn Read + Send>> {
        let next = number.saturating_add(1);
        let end = self.stretches.get(next).map_or(self.size, |s| s.start);
        let stretch = self.stretches.get(number).ok_or(crate::error::Common::Index(len64(number)))?;
        let from = Inflate::resume(self.file.clone(), &stretch.point).map_err(|e| decode_error("gzip", e))?;
        let want = stretch.sum.clone().finalize();
        let left = end.saturating_sub(stretch.start);
        Ok(Box::new(Run { from, step: Vec::new(), used: 0, left, sum: Some(Hasher::new()), want }))
    }

    fn memory(&self, _: usize) -> u64 {
        MEMORY.saturating_mul(2)
    }
}

/// Reads one stretch.
struct Run {
    from: Inflate,
    /// What was decoded last, and how much of it was read.
    step: Vec<u8>,
    used: usize,
    /// Bytes of the stretch that were not read yet.
    left: u64,
    sum: Option<Hasher>,
    want: u32,
}

impl Read for Run {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            // The file is as it was when it was opened, and so is what comes out of it.
            let sum = self.sum.take().map(Hasher::finalize);
            return match sum {
                Some(sum) if !sum_holds(self.want, sum) => Err(damaged("it has changed since it was opened")),
                _ => Ok(0),
            };
        }
        if self.used >= self.step.len() {
            self.step.clear();
            self.step.extend_from_slice(self.from.step()?);
            self.used = 0;
        }
        let have = self.step.get(self.used..).unwrap_or_default();
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let len = have.len().min(buf.len()).min(left);
        let (Some(have), Some(to)) = (have.get(..len), buf.get_mut(..len)) else { return Ok(0) };
        to.copy_from_slice(have);
        if let Some(sum) = &mut self.sum {
            sum.update(have);
        }
        self.used = self.used.saturating_add(len);
        self.left = self.left.saturating_sub(len64(len));
        Ok(len)
    }
}
