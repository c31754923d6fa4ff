//! Several disks one behind the other, as one.

use crate::block::{BlockDevice, Caps, Disk, Run, RunKind, Span, Support};
use crate::error::{Common, Result};
use crate::wire::{index, len64, part_mut};

/// Disks in a row. Each begins at a multiple of a unit; zeroes fill the gaps.
#[derive(Debug)]
pub struct Concat {
    parts: Vec<Part>,
    size: u64,
    preferred: u32,
}

#[derive(Debug)]
struct Part {
    /// Its place, without the zeroes that follow it.
    span: Span,
    disk: Disk,
}

impl Concat {
    /// `disks` in order, each at a multiple of `unit` bytes.
    pub fn new(disks: Vec<Disk>, unit: u64) -> Result<Self> {
        let (mut parts, mut at, mut preferred) = (Vec::new(), 0u64, 0);
        // Empty ones would hide the zeroes before them.
        for disk in disks.into_iter().filter(|d| d.size() > 0) {
            let span = Span::new(at, disk.size())?;
            at = span.end().checked_next_multiple_of(unit.max(1)).ok_or(Common::Index(span.end()))?;
            preferred = disk.caps().preferred.max(preferred);
            parts.push(Part { span, disk });
        }
        Ok(Self { parts, size: at, preferred })
    }

    /// The part that holds byte `at`, or the one behind the gap that does.
    fn part(&self, at: u64) -> Option<&Part> {
        self.parts.get(self.parts.partition_point(|p| p.span.end() <= at))
    }
}

impl BlockDevice for Concat {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        Caps { runs: Support::Native, preferred: self.preferred, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let wanted = Span::new(at, len64(buf.len()))?;
        buf.fill(0);
        let from = self.parts.partition_point(|p| p.span.end() <= at);
        for part in self.parts.get(from..).unwrap_or_default() {
            let Some(here) = part.span.intersect(wanted) else { break };
            let into = index(here.start().saturating_sub(at))?;
            let out = part_mut(buf, into, index(here.len())?, "disks in a row")?;
            part.disk.read_at(here.start().saturating_sub(part.span.start()), out)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let hole = |end: u64| Run { len: end.saturating_sub(span.start()), kind: RunKind::Hole };
        let Some(part) = self.part(span.start()) else { return Ok(hole(span.end())) };
        match part.span.intersect(span) {
            Some(here) if here.start() == span.start() => {
                let within = here.start().saturating_sub(part.span.start());
                part.disk.first_run(Span::new(within, here.len())?)
            }
            Some(here) => Ok(hole(here.start())),
            None => Ok(hole(span.end())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    #[test]
    fn disks_follow_each_other_at_whole_units() {
        let disk = |byte, len| Disk::new(MemDevice::from_bytes(vec![byte; len]));
        let row = Disk::new(Concat::new(vec![disk(1, 700), disk(2, 0), disk(3, 512)], 512).unwrap());
        assert_eq!(row.size(), 1536);
        let mut all = vec![9; 1536];
        row.read_at(0, &mut all).unwrap();
        assert!(all[..700].iter().all(|b| *b == 1) && all[700..1024].iter().all(|b| *b == 0));
        assert!(all[1024..].iter().all(|b| *b == 3));
        let mut few = vec![9; 500];
        row.read_at(600, &mut few).unwrap();
        assert_eq!(few, all[600..1100]);
        let runs: Vec<_> = row.runs(Span::first(1536)).map(|r| r.unwrap()).collect();
        let lens: Vec<_> = runs.iter().map(|(s, k)| (s.len(), k.is_zero())).collect();
        assert_eq!(lens, [(700, false), (324, true), (512, false)]);
    }
}
