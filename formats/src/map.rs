//! Where an image keeps its disk: in which file of the chain, at which offset, and how.

use std::sync::Arc;

use crate::block::{Run, RunKind, Span};
use crate::error::Result;
use crate::registry::Image;

/// Where one image keeps the beginning of a stretch of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The run.
    pub run: Run,
    /// Offset in bytes in the image's file, or in the file that it keeps its data in: of the bytes as they are read,
    /// or of space that is set aside for them.
    pub at: Option<u64>,
    /// The bytes lie there compressed.
    pub compressed: bool,
    /// The bytes have their place in the file, and the file has a hole there.
    pub hollow: bool,
}

impl Location {
    /// A run of which nothing is known but its kind.
    pub fn of(run: Run) -> Self {
        Self { run, at: None, compressed: false, hollow: false }
    }
}

/// A stretch of disk that lies in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes on the disk.
    pub span: Span,
    /// Images above the one that holds it: 0 is the image itself.
    pub depth: usize,
    /// What it reads as.
    pub kind: RunKind,
    /// Offset in that image's file in bytes.
    pub at: Option<u64>,
    /// The bytes lie there compressed.
    pub compressed: bool,
    /// The bytes have their place in the file, and the file has a hole there.
    pub hollow: bool,
    /// The file that holds the bytes, as the image names it; none if that is the image's own.
    pub file: Option<String>,
}

impl Extent {
    /// Zeroes that no image of the chain says anything about.
    fn absent(span: Span) -> Self {
        Self { span, depth: 0, kind: RunKind::Hole, at: None, compressed: false, hollow: false, file: None }
    }

    /// Whether `next` goes on where this one ends, so that the two are one.
    fn is_continued_by(&self, next: &Self) -> bool {
        let joined = match (self.at, next.at) {
            (None, None) => true,
            (Some(at), Some(next)) => at.checked_add(self.span.len()) == Some(next),
            _ => false,
        };
        joined
            && self.span.end() == next.span.start()
            && (self.depth, self.kind, self.compressed, self.hollow)
                == (next.depth, next.kind, next.compressed, next.hollow)
            && self.file == next.file
    }
}

/// The extents of an image's disk in order, from `span.start()` to `span.end()`; neighbours that lie together are one.
pub fn map(image: &Arc<dyn Image>, span: Span) -> impl Iterator<Item = Result<Extent>> + use<> {
    let mut chain = vec![Arc::clone(image)];
    while let Some(parent) = chain.last().and_then(|i| i.parent()) {
        chain.push(parent);
    }
    let mut rest = span;
    let mut held: Option<Extent> = None;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return held.take().map(Ok);
            }
            let next = match first(&chain, rest) {
                Ok(next) => next,
                Err(e) => {
                    rest = rest.skip(rest.len());
                    held = None;
                    return Some(Err(e));
                }
            };
            rest = rest.skip(next.span.len());
            match held.take() {
                Some(before) if before.is_continued_by(&next) => {
                    let len = before.span.len().saturating_add(next.span.len());
                    let span = Span::new(before.span.start(), len).unwrap_or(before.span);
                    held = Some(Extent { span, ..before });
                }
                Some(before) => {
                    held = Some(next);
                    return Some(Ok(before));
                }
                None => held = Some(next),
            }
        }
    })
}

/// The extent that `span` begins with.
fn first(chain: &[Arc<dyn Image>], span: Span) -> Result<Extent> {
    let mut found = Extent::absent(span);
    let mut span = span;
    for (depth, image) in chain.iter().enumerate() {
        let known = image.size().saturating_sub(span.start());
        if known == 0 {
            // A parent shorter than its child goes on with zeroes: it is the child that says so.
            break;
        }
        span = span.truncate(known);
        let Location { run, at, compressed, hollow } = image.locate(span)?;
        span = span.truncate(run.len.max(1));
        let kind = if run.kind == RunKind::Parent { RunKind::Hole } else { run.kind };
        let file = if at.is_some() { image.file_at(span.start()) } else { None };
        found = Extent { span, depth, kind, at, compressed, hollow, file };
        if run.kind != RunKind::Parent {
            break;
        }
    }
    Ok(found)
}
