//! A sparse member: regions of data with holes between them.

use super::fault::TarFault;
use super::layout::BLOCK;
use super::pax::{decimal, push};
use crate::block::{BlockDevice, Caps, Disk, Run, RunKind, Span, Support};
use crate::error::Result;
use crate::limits::SPARSE_REGIONS_MAX;
use crate::wire::{bytes, index, len64, part_mut};

/// One region of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// Where it lies in the member; never empty.
    span: Span,
    /// Where its bytes are in the archive.
    host: u64,
}

/// Where the bytes of a sparse member are.
#[derive(Clone, Debug)]
pub(super) struct Map {
    size: u64,
    /// In order, without overlaps, inside `size`.
    regions: Vec<Region>,
}

impl Map {
    /// Checks the regions of the member whose header lies at `at`: `size` bytes, of which `stored` lie at `data`
    /// of the archive.
    pub(super) fn new(at: u64, size: u64, pairs: &[(u64, u64)], data: u64, stored: u64) -> Result<Self> {
        let (mut end, mut used) = (0u64, 0u64);
        let mut regions = Vec::with_capacity(pairs.len());
        for &(offset, len) in pairs {
            if offset < end {
                return Err(TarFault::Overlap { at, offset, end }.into());
            }
            end = offset.checked_add(len).filter(|end| *end <= size).ok_or(TarFault::RegionPastEnd {
                at,
                offset,
                len,
                size,
            })?;
            if len > 0 {
                let host = data.checked_add(used).ok_or(TarFault::Stored { at, stored })?;
                regions.push(Region { span: Span::new(offset, len)?, host });
            }
            used = used
                .checked_add(len)
                .filter(|used| *used <= stored)
                .ok_or(TarFault::Stored { at, stored })?;
        }
        Ok(Self { size, regions })
    }

    /// Size of the member in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The member as a disk over the archive.
    pub(super) fn open(&self, file: &Disk) -> Disk {
        Disk::new(SparseDevice { file: file.clone(), map: self.clone() }).read_only()
    }

    /// The first region that ends behind `at`.
    fn next(&self, at: u64) -> Option<Region> {
        let i = self.regions.partition_point(|r| r.span.end() <= at);
        self.regions.get(i).copied()
    }
}

/// The map that a member of form 1.0 has before its data: decimal numbers, each on a line, filled up to a block.
/// Returns the regions and the bytes that the map takes.
pub(super) fn read_map(file: &Disk, at: u64, data: u64, stored: u64) -> Result<(Vec<(u64, u64)>, u64)> {
    let mut numbers = Numbers { file, at, data, stored, block: Vec::new(), read: 0, next: 0 };
    let count = numbers.take()?;
    if count > len64(SPARSE_REGIONS_MAX) {
        return Err(TarFault::Regions { at, max: SPARSE_REGIONS_MAX }.into());
    }
    let mut regions = Vec::new();
    for _ in 0..count {
        let offset = numbers.take()?;
        push(&mut regions, offset, numbers.take()?, at)?;
    }
    Ok((regions, numbers.read))
}

/// Numbers on lines, read block by block.
struct Numbers<'a> {
    file: &'a Disk,
    at: u64,
    data: u64,
    stored: u64,
    block: Vec<u8>,
    /// Bytes read so far.
    read: u64,
    /// Where the next byte is in `block`.
    next: usize,
}

impl Numbers<'_> {
    fn take(&mut self) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return decimal(&digits).ok_or_else(|| TarFault::Map { at: self.at }.into()),
                b if digits.len() < 20 => digits.push(b),
                _ => return Err(TarFault::Map { at: self.at }.into()),
            }
        }
    }

    fn byte(&mut self) -> Result<u8> {
        if self.next >= self.block.len() {
            let left = self.stored.saturating_sub(self.read);
            if left < BLOCK {
                return Err(TarFault::Map { at: self.at }.into());
            }
            self.block = bytes(self.file, self.data.saturating_add(self.read), BLOCK, BLOCK, "sparse map")?;
            self.read = self.read.saturating_add(BLOCK);
            self.next = 0;
        }
        let byte = self.block.get(self.next).copied().ok_or(TarFault::Map { at: self.at })?;
        self.next = self.next.saturating_add(1);
        Ok(byte)
    }
}

/// The member as a device.
#[derive(Debug)]
struct SparseDevice {
    file: Disk,
    map: Map,
}

impl BlockDevice for SparseDevice {
    fn size(&self) -> u64 {
        self.map.size
    }

    fn caps(&self) -> Caps {
        Caps { runs: Support::Native, preferred: 256 << 10, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        let want = Span::new(at, len64(buf.len()))?;
        let first = self.map.regions.partition_point(|r| r.span.end() <= at);
        for region in self.map.regions.get(first..).unwrap_or_default() {
            let Some(both) = region.span.intersect(want) else { break };
            let host = region.host.saturating_add(both.start().saturating_sub(region.span.start()));
            let to = index(both.start().saturating_sub(at))?;
            self.file.read_at(host, part_mut(buf, to, index(both.len())?, "sparse member")?)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        match self.map.next(span.start()) {
            Some(region) if region.span.start() <= span.start() => {
                let within = span.start().saturating_sub(region.span.start());
                let len = region.span.len().saturating_sub(within).min(span.len());
                self.file.first_run(Span::new(region.host.saturating_add(within), len)?)
            }
            Some(region) => {
                let len = region.span.start().saturating_sub(span.start()).min(span.len());
                Ok(Run { len, kind: RunKind::Hole })
            }
            None => Ok(Run { len: span.len(), kind: RunKind::Hole }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    #[test]
    fn regions_and_holes_read_as_they_should() {
        let file = Disk::new(MemDevice::from_bytes((0..=255).collect()));
        let map = Map::new(0, 1000, &[(10, 5), (20, 0), (990, 10), (1000, 0)], 100, 15).unwrap();
        let disk = map.open(&file);
        let mut all = vec![9; 1000];
        disk.read_at(0, &mut all).unwrap();
        let mut want = vec![0; 1000];
        want[10..15].copy_from_slice(&[100, 101, 102, 103, 104]);
        want[990..].copy_from_slice(&[105, 106, 107, 108, 109, 110, 111, 112, 113, 114]);
        assert_eq!(all, want);
        let runs: Vec<_> = disk.runs(Span::first(1000)).map(|r| r.unwrap()).collect();
        assert_eq!(runs.len(), 4);
        assert_eq!((runs[2].0.start(), runs[2].0.len(), runs[2].1), (15, 975, RunKind::Hole));
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let new = |pairs: &[(u64, u64)]| Map::new(0, 1000, pairs, 0, 500).unwrap_err();
        assert!(matches!(new(&[(0, 10), (5, 10)]).fault(), Some(TarFault::Overlap { .. })));
        assert!(matches!(new(&[(999, 2)]).fault(), Some(TarFault::RegionPastEnd { .. })));
        assert!(matches!(new(&[(u64::MAX, 2)]).fault(), Some(TarFault::RegionPastEnd { .. })));
        assert!(matches!(new(&[(0, 501)]).fault(), Some(TarFault::Stored { .. })));
    }
}
