//! The gaps of an area that partitions share, and where a new one goes.

use std::ops::Range;

use racker_formats::block::BlockSize;
use racker_formats::error::Result;

use super::{TableFault, Want};

/// Sectors that partitions may have, and those that are taken.
#[derive(Debug)]
pub(in super::super) struct Area {
    /// The sectors that partitions may have.
    pub(in super::super) room: Range<u64>,
    /// Those that are taken, in any order; they may overlap.
    pub(in super::super) taken: Vec<Range<u64>>,
    /// Sectors in front of a new partition that are to be free as well.
    pub(in super::super) ahead: u64,
    /// Bytes of a sector.
    pub(in super::super) sector: u64,
}

impl Area {
    /// The stretches that nothing has, in order.
    pub(in super::super) fn gaps(&self) -> Vec<Range<u64>> {
        let mut taken = self.taken.clone();
        taken.sort_unstable_by_key(|t| (t.start, t.end));
        let mut gaps = Vec::new();
        let mut at = self.room.start;
        for range in taken.iter().filter(|t| !t.is_empty()) {
            if range.start > at {
                gaps.push(at..range.start.min(self.room.end));
            }
            at = at.max(range.end);
        }
        gaps.push(at..self.room.end);
        gaps.retain(|g| g.start < g.end);
        gaps
    }

    /// The gap that begins where a partition ends at sector `end`, if only up to its own end.
    pub(in super::super) fn room_behind(&self, end: u64) -> u64 {
        self.gaps().iter().find(|g| g.start == end).map_or(end, |g| g.end)
    }

    /// The sectors of a new partition, and the first one of the gap that it is in.
    pub(in super::super) fn fit(&self, want: &Want) -> Result<(Range<u64>, u64)> {
        let align = self.alignment(want.align)?;
        let len = want.size.map(|size| size.div_ceil(self.sector));
        if len == Some(0) {
            return Err(TableFault::Empty.into());
        }
        let start = want.start.map(|at| self.sectors(at, "the start")).transpose()?;
        let end = want.end.map(|at| self.sectors(at, "the end")).transpose()?;
        let open = |gap: &Range<u64>| gap.start.saturating_add(self.ahead);
        let aligned = |gap: &Range<u64>| align.ceil(open(gap)).unwrap_or(u64::MAX);
        let gaps = self.gaps();
        let gap = match (start, end) {
            (Some(start), _) => gaps.iter().find(|g| (open(g)..g.end).contains(&start)),
            (None, Some(end)) => gaps.iter().find(|g| open(g) < end && end <= g.end),
            // `max_by_key` takes the last of several: the first shall win.
            (None, None) => gaps.iter().rev().max_by_key(|g| g.end.saturating_sub(aligned(g))),
        };
        let Some(gap) = gap else {
            return Err(match start.or(end) {
                Some(at) => TableFault::Taken { at: at.saturating_mul(self.sector) }.into(),
                None => self.no_room(len, 0),
            });
        };
        let first = match (start, end, len) {
            (Some(start), ..) => start,
            (None, Some(end), Some(len)) => end.saturating_sub(len),
            _ => aligned(gap),
        };
        let last = match (end, len) {
            (Some(end), _) => end,
            (None, Some(len)) => first.saturating_add(len),
            // What is left over at the end of a gap is no room for anything aligned.
            (None, None) => Some(align.floor(gap.end)).filter(|end| *end > first).unwrap_or(gap.end),
        };
        if first < open(gap) || first >= last || last > gap.end {
            return Err(self.no_room(len, gap.end.saturating_sub(start.unwrap_or(aligned(gap)))));
        }
        Ok((first..last, gap.start))
    }

    fn no_room(&self, len: Option<u64>, there: u64) -> racker_formats::Error {
        let bytes = |sectors: u64| sectors.saturating_mul(self.sector);
        TableFault::NoRoom { wanted: bytes(len.unwrap_or(1)), there: bytes(there) }.into()
    }

    /// The alignment in sectors.
    fn alignment(&self, bytes: u64) -> Result<BlockSize> {
        let sectors = bytes.checked_div(self.sector).unwrap_or(0).max(1);
        BlockSize::from_bytes(sectors).ok_or_else(|| TableFault::Alignment(bytes).into())
    }

    fn sectors(&self, at: u64, what: &'static str) -> Result<u64> {
        if !at.is_multiple_of(self.sector) {
            return Err(TableFault::Unaligned { what, at, sector: self.sector }.into());
        }
        Ok(at.checked_div(self.sector).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> Area {
        let taken = vec![2048..4096, 3000..3500, 8192..10_000, 10_000..10_001, 99..99];
        Area { room: 34..20_000, taken, ahead: 0, sector: 512 }
    }

    fn want() -> Want {
        Want { start: None, end: None, size: None, align: 1 << 20 }
    }

    #[test]
    fn gaps_lie_between_what_is_taken() {
        assert_eq!(area().gaps(), [34..2048, 4096..8192, 10_001..20_000]);
        assert_eq!(area().room_behind(4096), 8192);
        assert_eq!(area().room_behind(8192), 8192);
        let full = Area { taken: std::iter::once(0..u64::MAX).collect(), ..area() };
        assert_eq!(full.gaps(), []);
        assert!(full.fit(&want()).is_err());
    }

    #[test]
    fn a_partition_goes_where_it_was_wanted_or_into_the_largest_gap() {
        let fit = |want: Want| area().fit(&want).map(|(range, _)| range).map_err(|e| e.to_string());
        let bytes = |sectors: u64| Some(sectors * 512);
        assert_eq!(fit(want()), Ok(10_240..18_432));
        assert_eq!(fit(Want { size: Some(1000), ..want() }), Ok(10_240..10_242));
        assert_eq!(fit(Want { start: bytes(4100), ..want() }), Ok(4100..8192));
        assert_eq!(fit(Want { start: bytes(4100), end: bytes(4101), ..want() }), Ok(4100..4101));
        assert_eq!(fit(Want { end: bytes(8000), ..want() }), Ok(4096..8000));
        assert_eq!(fit(Want { end: bytes(8000), size: Some(512), ..want() }), Ok(7999..8000));
        assert_eq!(fit(Want { start: bytes(40), align: 512, ..want() }), Ok(40..2048));
        for wrong in [
            Want { start: bytes(2048), ..want() },
            Want { start: bytes(33), ..want() },
            Want { start: Some(4100 * 512 + 1), ..want() },
            Want { start: bytes(4100), end: bytes(9000), ..want() },
            Want { start: bytes(4100), size: Some(1 << 30), ..want() },
            Want { start: bytes(4100), end: bytes(4100), ..want() },
            Want { size: Some(u64::MAX), ..want() },
            Want { size: Some(0), ..want() },
            Want { end: bytes(20_001), ..want() },
            Want { align: 3 << 20, ..want() },
            Want { start: Some(!511), size: Some(512), ..want() },
        ] {
            assert!(fit(wrong).is_err());
        }
        let logical = Area { ahead: 1, ..area() };
        assert_eq!(logical.fit(&Want { start: bytes(4097), ..want() }).unwrap(), (4097..8192, 4096));
        assert!(logical.fit(&Want { start: bytes(4096), ..want() }).is_err());
    }
}
