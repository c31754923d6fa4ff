//! What an image has of its own goes into a parent.
//!
//! While the parent changes, the image covers what changes there; so what it shows is the same all the time, whenever
//! the power fails. What other images show through that parent is not.

use std::sync::Arc;

use crate::block::{BlockDevice, Disk, RunKind, Span};
use crate::convert::Pace;
use crate::error::{Result, Within};
use crate::limits::MIB;
use crate::map::Location;
use crate::registry::Image;
use crate::wire::{index, part_mut};

/// Bytes that are copied at once.
const CHUNK: u64 = 2 * MIB;

/// Copies what `layers` have of their own into `base`, which is opened for writing. The first layer is the image, each
/// further one the parent of the one before, and `base` the parent of the last, which is open for writing; none of them
/// needs to be opened with its parent. A base that is too small grows. Data are copied at `pace`. On return all is on
/// stable storage.
pub fn commit(
    layers: &[Arc<dyn Image>],
    base: &Arc<dyn Image>,
    mut pace: Pace,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let size = layers.first().map_or(0, |image| image.size());
    let device: Arc<dyn BlockDevice> = base.clone();
    let disk = &Disk::from_arc(device);
    let follower = match layers.last() {
        Some(child) if child.follows_parent()? => Some(child),
        _ => None,
    };
    if follower.is_some() {
        base.renew_identity().within(|| "the backing file")?;
    }
    if disk.size() < size {
        disk.resize(size).within(|| "the backing file")?;
    }
    if let Some(child) = follower {
        // Early, so that hardly any time passes in which the child does not know its parent.
        child.keep_parent(base.as_ref())?;
    }
    let base = disk;
    let mut buf = Vec::new();
    let mut rest = Span::first(size);
    while !rest.is_empty() {
        let (span, found) = first(layers, rest)?;
        match found {
            None => {}
            Some((_, RunKind::Zero)) => base.write_zeroes(span).within(|| "the backing file")?,
            Some((image, _)) => copy(image, base, span, &mut pace, &mut buf)?,
        }
        rest = rest.skip(span.len());
        progress(span.end());
    }
    base.flush()
}

/// The layer that has a stretch, and as what.
type Owner<'a> = (&'a Arc<dyn Image>, RunKind);

/// The stretch that `span` begins with and that one layer has, or none.
fn first(layers: &[Arc<dyn Image>], span: Span) -> Result<(Span, Option<Owner<'_>>)> {
    let mut span = span;
    for image in layers {
        let known = image.size().saturating_sub(span.start());
        if known == 0 {
            // The one above goes on with zeroes where its parent ends, and the base may not.
            return Ok((span, Some((image, RunKind::Zero))));
        }
        span = span.truncate(known);
        let Location { run, .. } = image.locate(span)?;
        span = span.truncate(run.len.max(1));
        if run.kind.is_allocated() {
            return Ok((span, Some((image, run.kind))));
        }
    }
    Ok((span, None))
}

fn copy(image: &Arc<dyn Image>, base: &Disk, span: Span, pace: &mut Pace, buf: &mut Vec<u8>) -> Result<()> {
    let device: Arc<dyn BlockDevice> = image.clone();
    let disk = Disk::from_arc(device);
    let mut rest = span;
    while !rest.is_empty() {
        let now = rest.truncate(CHUNK);
        let len = index(now.len())?;
        if buf.len() < len {
            buf.resize(len, 0);
        }
        let bytes = part_mut(buf, 0, len, "chunk")?;
        disk.read_at(now.start(), bytes)?;
        pace.wait(now.len());
        base.write_at(now.start(), bytes).within(|| "the backing file")?;
        rest = rest.skip(now.len());
    }
    Ok(())
}
