//! Volumes that are made of parts of a disk: LVM2's logical volumes.

mod lvm2;

use racker_formats::block::{BlockDevice, Caps, Disk, Span};
use racker_formats::error::{Common, Result};
use racker_formats::wire::{index, len64, part, part_mut};

pub use lvm2::Lvm2Fault;

/// Where the bytes of a volume lie on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In one piece.
    Span(Span),
    /// In segments, in order, without gaps.
    Mapped(Vec<Segment>),
}

/// A stretch of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte in the volume.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where each stripe begins on the disk; a linear segment has one.
    pub stripes: Vec<u64>,
    /// Bytes of one stripe before the next takes its turn.
    pub stripe_size: u64,
}

/// What was found, and what could not be used.
#[derive(Debug, Default)]
pub struct Logical {
    /// `VG/LV` and where it lies.
    pub volumes: Vec<(String, Layout)>,
    /// Those of them of which snapshots were taken, which have nothing of their own where the two do not differ.
    pub origins: Vec<String>,
    /// Groups that are damaged or incomplete, volumes of kinds that racker does not map.
    pub warnings: Vec<String>,
}

/// Finds the logical volumes whose parts all lie in `spans` of the disk.
pub fn logical(disk: &Disk, spans: impl Iterator<Item = Span>) -> Logical {
    lvm2::find(disk, spans)
}

/// Which volumes have a byte in common with another one, or twice. A partition that holds the parts of logical volumes
/// has nothing else.
pub(crate) fn crowded(volumes: &[crate::inspect::Volume]) -> Vec<bool> {
    let mut found = vec![false; volumes.len()];
    let plain = |v: &crate::inspect::Volume| matches!(v.layout, Layout::Span(_));
    // Partitions among themselves; then logical volumes among themselves and with what is no partition for them.
    for round in [false, true] {
        let mut all: Vec<(u64, u64, usize)> = Vec::new();
        for (number, volume) in volumes.iter().enumerate() {
            if plain(volume) || round {
                let holder = round && plain(volume) && volume.driver().is_none();
                all.extend(
                    volume
                        .layout
                        .stretches()
                        .filter(|_| !holder)
                        .map(|(at, len)| (at, at.saturating_add(len), number)),
                );
            }
        }
        all.sort_unstable();
        let mut widest: Option<(u64, usize)> = None;
        for (start, end, number) in all {
            if let Some((_, other)) = widest.filter(|(before, _)| *before > start) {
                for crowded in [number, other] {
                    found.get_mut(crowded).into_iter().for_each(|found| *found = true);
                }
            }
            if widest.is_none_or(|(before, _)| end > before) {
                widest = Some((end, number));
            }
        }
    }
    found
}

impl Layout {
    /// Where its parts lie on the disk, and how long they are.
    fn stretches(&self) -> Box<dyn Iterator<Item = (u64, u64)> + '_> {
        match self {
            Self::Span(span) => Box::new(std::iter::once((span.start(), span.len()))),
            Self::Mapped(segments) => Box::new(segments.iter().flat_map(Segment::stretches)),
        }
    }

    /// The volume as a disk of its own over `disk`.
    pub fn over(&self, disk: &Disk) -> Result<Disk> {
        match self {
            Self::Span(span) => disk.slice(*span),
            Self::Mapped(segments) => {
                for segment in segments {
                    segment.check(disk)?;
                }
                Ok(Disk::new(Mapped { disk: disk.clone(), segments: segments.clone() }))
            }
        }
    }
}

impl Segment {
    /// Where its stripes lie on the disk, and how long they are.
    fn stretches(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let each = self.len.checked_div(len64(self.stripes.len())).unwrap_or(0);
        self.stripes.iter().map(move |start| (*start, each))
    }

    /// All of it lies on the disk.
    fn check(&self, disk: &Disk) -> Result<()> {
        let count = len64(self.stripes.len());
        let each = self.len.checked_div(count).unwrap_or(u64::MAX);
        self.stripes.iter().try_for_each(|start| disk.check(*start, each).map(|_| ()))
    }

    /// Where byte `at` of the volume lies on the disk, and how many bytes follow it there.
    fn locate(&self, at: u64) -> Option<(u64, u64)> {
        let within = at.checked_sub(self.at)?;
        let left = self.len.checked_sub(within).filter(|l| *l > 0)?;
        if let [start] = self.stripes.as_slice() {
            return Some((start.checked_add(within)?, left));
        }
        let count = len64(self.stripes.len());
        let (turn, rest) = (within.checked_div(self.stripe_size)?, within.checked_rem(self.stripe_size)?);
        let stripe = self.stripes.get(usize::try_from(turn.checked_rem(count)?).ok()?)?;
        let row = turn.checked_div(count)?.checked_mul(self.stripe_size)?;
        Some((stripe.checked_add(row)?.checked_add(rest)?, self.stripe_size.checked_sub(rest)?.min(left)))
    }
}

/// A disk that is made of segments of another.
#[derive(Debug)]
struct Mapped {
    disk: Disk,
    segments: Vec<Segment>,
}

impl Mapped {
    /// Calls `each(place on the disk, bytes done, bytes)` for the pieces of a request.
    fn pieces(
        &self,
        at: u64,
        len: usize,
        mut each: impl FnMut(u64, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0usize;
        while done < len {
            let here = at.saturating_add(len64(done));
            let number = self.segments.partition_point(|s| s.at <= here).saturating_sub(1);
            let found = self.segments.get(number).and_then(|s| s.locate(here));
            let Some((place, there)) = found else {
                return Err(Common::PastEnd { start: here, len: 1, size: self.size() }.into());
            };
            let take = index(there.min(len64(len.saturating_sub(done))))?;
            each(place, done, take)?;
            done = done.saturating_add(take);
        }
        Ok(())
    }
}

impl BlockDevice for Mapped {
    fn size(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.at.saturating_add(s.len))
    }

    fn caps(&self) -> Caps {
        Caps { write: self.disk.writable(), ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.pieces(at, buf.len(), |place, done, take| {
            self.disk.read_at(place, part_mut(buf, done, take, "read")?)
        })
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.pieces(at, data.len(), |place, done, take| {
            self.disk.write_at(place, part(data, done, take, "write")?)
        })
    }

    fn claim(&self, span: Span) -> Result<bool> {
        if span != Span::first(self.size()) {
            return Ok(false);
        }
        for (start, len) in self.segments.iter().flat_map(Segment::stretches) {
            if !self.disk.claim(Span::new(start, len)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn place(&self, span: Span) -> Option<Span> {
        let number = self.segments.partition_point(|s| s.at <= span.start()).checked_sub(1)?;
        let (start, there) = self.segments.get(number)?.locate(span.start())?;
        if there < span.len() {
            return None;
        }
        self.disk.place(Span::new(start, span.len()).ok()?)
    }

    fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
        self.pieces(at, data.len(), |place, done, take| {
            self.disk.write_fresh(place, part(data, done, take, "write")?)
        })
    }
}

#[cfg(test)]
mod tests {
    use racker_formats::block::{MemDevice, Staged};

    use super::*;

    #[test]
    fn stripes_take_turns() {
        let disk = Disk::new(MemDevice::from_bytes((0..64).collect()));
        let linear = Segment { at: 0, len: 4, stripes: vec![60], stripe_size: 0 };
        let striped = Segment { at: 4, len: 8, stripes: vec![10, 30], stripe_size: 2 };
        let volume = Layout::Mapped(vec![linear, striped]).over(&disk).unwrap();
        let mut buf = [0; 12];
        volume.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [60, 61, 62, 63, 10, 11, 30, 31, 12, 13, 32, 33]);
        volume.write_at(3, &[99, 98, 97, 96]).unwrap();
        volume.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [60, 61, 62, 99, 98, 97, 96, 31, 12, 13, 32, 33]);
        assert!(volume.read_at(11, &mut [0; 2]).is_err());
        let past = Segment { at: 0, len: 8, stripes: vec![60], stripe_size: 0 };
        assert!(Layout::Mapped(vec![past]).over(&disk).is_err());
    }

    #[test]
    fn a_volume_is_claimed_with_all_its_parts() {
        let staged = Disk::new(Staged::through(Disk::new(MemDevice::new(16 << 20))));
        let volume = |first: u64, second: u64| {
            let part = |at, start| Segment { at, len: 2 << 20, stripes: vec![start], stripe_size: 0 };
            Layout::Mapped(vec![part(0, first), part(2 << 20, second)]).over(&staged).unwrap()
        };
        let (one, other) = (volume(2 << 20, 8 << 20), volume(5 << 20, 9 << 20));
        assert!(!one.claim(Span::first(512)).unwrap(), "all of it or nothing");
        assert!(one.claim(Span::first(one.size())).unwrap());
        assert!(!other.claim(Span::first(other.size())).unwrap(), "it meets the first");
    }
}
