//! Metadata contexts: what an export says of its stretches.

use std::fmt::Debug;
use std::sync::Arc;

use racker_formats::block::{BlockSize, Disk, RunKind, Span};
use racker_formats::error::{Common, Result};
use racker_formats::registry::Image;

/// The stretch takes no space.
const HOLE: u32 = 1;
/// The stretch reads as zeroes.
const ZERO: u32 = 2;
/// The stretch was written.
const DIRTY: u32 = 1;
/// Bytes of a bitmap that are looked at in one go.
const BITS_BYTES: u64 = 4096;

/// Tells something of every stretch of a disk.
pub trait Context: Debug + Send + Sync {
    /// Its name: `base:allocation`.
    fn name(&self) -> &str;
    /// The length of the first stretch of `span` that is all of one kind, and the flags of that kind: not empty,
    /// not past the span's end. `span` is not empty.
    fn first(&self, span: Span) -> Result<(u64, u32)>;
}

/// `base:allocation`: data, zeroes, holes.
#[derive(Debug)]
pub struct Allocation(Disk);

impl Allocation {
    /// Of `disk`.
    pub fn of(disk: Disk) -> Self {
        Self(disk)
    }
}

impl Context for Allocation {
    fn name(&self) -> &str {
        "base:allocation"
    }

    fn first(&self, span: Span) -> Result<(u64, u32)> {
        let run = self.0.first_run(span)?;
        Ok((
            run.len,
            match run.kind {
                RunKind::Data | RunKind::Parent => 0,
                // Zeroes that an image has in its tables may take no space either.
                RunKind::Zero | RunKind::Hole => HOLE | ZERO,
            },
        ))
    }
}

/// `qemu:allocation-depth`: how many images down a stretch is kept; 0 if it is kept nowhere.
#[derive(Debug)]
pub struct AllocationDepth(Arc<dyn Image>);

impl AllocationDepth {
    /// Of the chain that begins with `image`.
    pub fn of(image: Arc<dyn Image>) -> Self {
        Self(image)
    }
}

impl Context for AllocationDepth {
    fn name(&self) -> &str {
        "qemu:allocation-depth"
    }

    fn first(&self, span: Span) -> Result<(u64, u32)> {
        let (mut image, mut span, mut depth) = (Arc::clone(&self.0), span, 1u32);
        loop {
            let inside = span.truncate(image.size().saturating_sub(span.start()));
            if inside.is_empty() {
                // A parent that ends before its child.
                return Ok((span.len(), 0));
            }
            let run = image.locate(inside)?.run;
            span = inside.truncate(run.len.max(1));
            match (run.kind, image.parent()) {
                (RunKind::Data | RunKind::Zero, _) => return Ok((span.len(), depth)),
                (RunKind::Parent, Some(parent)) => image = parent,
                _ => return Ok((span.len(), 0)),
            }
            depth = depth.saturating_add(1);
        }
    }
}

/// `qemu:dirty-bitmap:NAME`: what was written since a bitmap was made.
#[derive(Debug)]
pub struct DirtyBitmap {
    name: String,
    /// The lowest bit of each byte first.
    bits: Disk,
    granularity: BlockSize,
}

impl DirtyBitmap {
    /// The bitmap `name`, each of whose `bits` stands for so many bytes; `None` if that is no power of two.
    pub fn new(name: &str, bits: Disk, granularity: u64) -> Option<Self> {
        let granularity = BlockSize::from_bytes(granularity)?;
        Some(Self { name: format!("qemu:dirty-bitmap:{name}"), bits, granularity })
    }

    /// How many bits from `first` on are alike, up to `count`, and what they are; no more than fit a piece.
    fn alike(&self, first: u64, count: u64) -> Result<(u64, bool)> {
        let from = first / 8;
        let there = self.bits.size().saturating_sub(from).min(BITS_BYTES);
        let mut bytes = vec![0u8; usize::try_from(there).map_err(|_| Common::Index(there))?];
        self.bits.read_at(from, &mut bytes)?;
        let bit = |n: u64| -> bool {
            let byte = usize::try_from((n / 8).saturating_sub(from)).ok().and_then(|i| bytes.get(i));
            byte.is_some_and(|b| b >> (n % 8) & 1 == 1)
        };
        let is_set = bit(first);
        let end = first.saturating_add(count).min(from.saturating_add(BITS_BYTES).saturating_mul(8));
        let mut next = first.saturating_add(1);
        while next < end && bit(next) == is_set {
            next = next.saturating_add(1);
        }
        Ok((next.saturating_sub(first), is_set))
    }
}

impl Context for DirtyBitmap {
    fn name(&self) -> &str {
        &self.name
    }

    fn first(&self, span: Span) -> Result<(u64, u32)> {
        let (first, within) = self.granularity.split(span.start());
        let bits = self.granularity.count(within.saturating_add(span.len()));
        let (alike, is_set) = self.alike(first, bits)?;
        let len = alike.saturating_mul(self.granularity.bytes()).saturating_sub(within);
        Ok((len.clamp(1, span.len()), if is_set { DIRTY } else { 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racker_formats::block::MemDevice;

    #[test]
    fn bitmaps_are_read_bit_by_bit() {
        let bits = Disk::new(MemDevice::from_bytes(vec![0b0000_0110, 0, 1]));
        let map = DirtyBitmap::new("b", bits, 512).unwrap();
        let first = |at, len| map.first(Span::new(at, len).unwrap()).unwrap();
        assert_eq!(first(0, 10_000), (512, 0));
        assert_eq!(first(100, 300), (300, 0));
        assert_eq!(first(600, 10_000), (936, DIRTY));
        assert_eq!(first(1536, 10_000), (13 * 512, 0));
        assert_eq!(first(16 * 512, 300), (300, DIRTY));
        // Behind the last bit nothing was written.
        assert_eq!(first(24 * 512, 512), (512, 0));
    }

    #[test]
    fn holes_read_as_zeroes() {
        let disk = Disk::new(MemDevice::new(4096));
        let (len, _) = Allocation::of(disk).first(Span::new(512, 1000).unwrap()).unwrap();
        assert_eq!(len, 1000);
    }
}
