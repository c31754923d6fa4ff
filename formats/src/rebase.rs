//! Another parent under an image whose content stays the same.
//!
//! What the image shows through its old parent, and would show differently through the new one, is written into the
//! image while it still has the old one. Only then does it name the new one. So a crash leaves the same content, on
//! the one parent or on the other.

use std::sync::Arc;

use crate::block::{BlockDevice, BlockSize, Disk, Span};
use crate::error::{Result, Within};
use crate::limits::MIB;
use crate::map::Location;
use crate::mapped::{parent_run, read_parent};
use crate::registry::{Backing, Image};
use crate::wire::{index, is_zero, part};

/// Bytes of each parent that are read at once.
const CHUNK: u64 = 2 * MIB;

/// Gives `image`, which was opened for writing with all its parents, another parent, or none; what it reads as stays
/// the same. What is written into it is compressed if `compress` says so. `progress` is told how many bytes are done. On
/// return all is on stable storage, and the image is to be opened anew.
pub fn rebase(
    image: &Arc<dyn Image>,
    target: Option<&Backing>,
    compress: bool,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let disk = |image: Arc<dyn Image>| {
        let device: Arc<dyn BlockDevice> = image;
        Disk::from_arc(device)
    };
    let top = disk(Arc::clone(image));
    let old = image.parent().map(|parent| disk(parent).read_only());
    let new = target.map(|t| disk(Arc::clone(&t.image)).read_only());
    // Units that are written whole take nothing from the old parent but what is there already.
    let unit = image.facts().cluster_size.and_then(BlockSize::from_bytes);
    let unit = unit.or(BlockSize::from_bytes(64 << 10)).filter(|u| u.bytes() <= CHUNK);
    let unit = unit.or(BlockSize::from_bytes(CHUNK)).ok_or(crate::error::Common::Index(CHUNK))?;
    let packed = compress.then(|| image.as_ref());
    let mut pull = Pull { top: &top, packed, old, new, unit, left: Vec::new(), right: Vec::new() };
    image.leave_parent(target)?;
    let mut rest = Span::first(image.size());
    while !rest.is_empty() {
        let Location { run, .. } = image.locate(rest)?;
        let span = rest.truncate(run.len.max(1));
        if !run.kind.is_allocated() {
            pull.span(span)?;
        }
        rest = rest.skip(span.len());
        progress(span.end());
    }
    image.flush()?;
    image.name_parent(target.map(|t| &t.reference), target)
}

/// Brings what differs into the image.
struct Pull<'a> {
    top: &'a Disk,
    /// The same, if what is written shall be compressed.
    packed: Option<&'a dyn Image>,
    old: Option<Disk>,
    new: Option<Disk>,
    unit: BlockSize,
    left: Vec<u8>,
    right: Vec<u8>,
}

impl Pull<'_> {
    /// Goes through `span`, of which the image has nothing.
    fn span(&mut self, span: Span) -> Result<()> {
        let mut rest = span;
        while !rest.is_empty() {
            let old = parent_run(self.old.as_ref(), rest).within(|| "the old parent")?;
            let new = parent_run(self.new.as_ref(), rest).within(|| "the new parent")?;
            let both = rest.truncate(old.len.min(new.len).max(1));
            let done = if old.kind.is_zero() && new.kind.is_zero() {
                both
            } else {
                // Up to the end of a unit, so that each is written once.
                let end = self.unit.floor(rest.start()).saturating_add(CHUNK);
                let chunk = rest.truncate(end.saturating_sub(rest.start()));
                self.chunk(chunk)?;
                chunk
            };
            rest = rest.skip(done.len());
        }
        Ok(())
    }

    /// Compares a stretch and writes the units of it that differ.
    fn chunk(&mut self, span: Span) -> Result<()> {
        let len = index(span.len())?;
        self.left.resize(len, 0);
        self.right.resize(len, 0);
        read_parent(self.old.as_ref(), span.start(), &mut self.left).within(|| "the old parent")?;
        read_parent(self.new.as_ref(), span.start(), &mut self.right).within(|| "the new parent")?;
        let mut rest = span;
        // Neighbours that differ in the same way are written together.
        let mut held: Option<(Span, bool)> = None;
        while !rest.is_empty() {
            let (_, within) = self.unit.split(rest.start());
            let piece = rest.truncate(self.unit.bytes().saturating_sub(within));
            rest = rest.skip(piece.len());
            let at = index(piece.start().saturating_sub(span.start()))?;
            let old = part(&self.left, at, index(piece.len())?, "chunk")?;
            let differs = old != part(&self.right, at, index(piece.len())?, "chunk")?;
            let next = differs.then(|| (piece, is_zero(old)));
            held = match (held, next) {
                (Some((before, zero)), Some((now, same))) if zero == same && before.end() == now.start() => {
                    Some((Span::new(before.start(), before.len().saturating_add(now.len()))?, zero))
                }
                (before, now) => {
                    self.write(span, before)?;
                    now
                }
            };
        }
        self.write(span, held)
    }

    fn write(&self, chunk: Span, piece: Option<(Span, bool)>) -> Result<()> {
        match piece {
            None => Ok(()),
            Some((span, true)) => self.top.write_zeroes(span),
            Some((span, false)) => {
                let at = index(span.start().saturating_sub(chunk.start()))?;
                let bytes = part(&self.left, at, index(span.len())?, "chunk")?;
                let whole = self.unit.aligned(span.start())
                    && (self.unit.aligned(span.end()) || span.end() == self.top.size());
                match self.packed.filter(|_| whole) {
                    Some(image) => image.write_packed(span.start(), bytes),
                    None => self.top.write_at(span.start(), bytes),
                }
            }
        }
    }
}

const _: () = assert!(CHUNK.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    #[test]
    fn only_units_that_differ_are_written() {
        let disk = |bytes: Vec<u8>| Disk::new(MemDevice::from_bytes(bytes));
        let unit = BlockSize::from_bytes(4096).unwrap();
        let mut old = vec![1u8; 20_000];
        old[4096..8192].fill(0);
        let mut new = vec![1u8; 30_000];
        new[9000] = 2;
        let top = disk(vec![7; 40_000]);
        let (left, right) = (Vec::new(), Vec::new());
        let mut pull = Pull {
            top: &top,
            packed: None,
            old: Some(disk(old.clone())),
            new: Some(disk(new)),
            unit,
            left,
            right,
        };
        pull.span(Span::first(40_000)).unwrap();
        let mut found = vec![0; 40_000];
        top.read_at(0, &mut found).unwrap();
        old.resize(40_000, 0);
        // The first, the fourth, and those behind the end of both are the same on either.
        let same = [(0, 4096), (12_288, 16_384), (32_768, 40_000)];
        for (from, to) in same {
            assert!(found[from..to].iter().all(|b| *b == 7), "{from}");
        }
        assert!(found[4096..12_288] == old[4096..12_288]);
        assert!(found[16_384..32_768] == old[16_384..32_768]);
    }
}
