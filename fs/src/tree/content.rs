//! What a node holds: bytes with their holes, link targets, extended attributes.

use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::Result;
use racker_formats::wire::{index, len64};

use super::{Entry, TreeFault};
use crate::filesystem::{Extent, ExtentKind};

/// Bytes read at a time: large enough that a disk is kept busy, small enough to be nothing.
pub(super) const PIECE: usize = 1 << 20;

/// Longest target of a symbolic link in bytes. Linux makes none of `PATH_MAX` (4,096) or more.
const TARGET_MAX: usize = 64 << 10;

/// Bytes of all extended attributes of one node. Linux lists at most 64 KiB of names with 64 KiB each; what
/// people use stays below one MiB.
const XATTRS_BYTES_MAX: u64 = 64 << 20;

/// Calls `each` with every stretch of a file that holds bytes, in order. Holes, and space that was allocated but
/// never written, lie between them.
pub(super) fn data_spans(entry: &Entry<'_>, each: &mut dyn FnMut(Span) -> Result<()>) -> Result<()> {
    let size = entry.stat.size;
    let mut covered = 0u64;
    let mut open: Option<Span> = None;
    entry.fs.extents(entry.node, &mut |extent: Extent| {
        let Extent { at, len, kind } = extent;
        if at != covered {
            return Err(TreeFault::ExtentOrder { at, expected: covered }.into());
        }
        let len = Span::new(at, len)?.end().min(size).saturating_sub(at);
        covered = at.saturating_add(len);
        if len > 0 && matches!(kind, ExtentKind::Data(_) | ExtentKind::Inline) {
            // `open` ends where this one begins, or there was a hole between them.
            open = Some(match open.take() {
                Some(span) => Span::new(span.start(), span.len().saturating_add(len))?,
                None => Span::new(at, len)?,
            });
        } else if let Some(span) = open.take() {
            each(span)?;
        }
        Ok(if covered < size { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if covered < size {
        return Err(TreeFault::ExtentsShort { end: covered, size }.into());
    }
    open.map_or(Ok(()), each)
}

/// Reads one stretch of a file, at most [`PIECE`] bytes at a time.
pub(super) fn read_span(
    entry: &Entry<'_>,
    span: Span,
    buf: &mut Vec<u8>,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut rest = span;
    while !rest.is_empty() {
        let want = index(rest.len().min(len64(PIECE)))?;
        if buf.len() < want {
            buf.resize(want, 0);
        }
        let target = buf.get_mut(..want).unwrap_or_default();
        let got = entry.fs.read(entry.node, rest.start(), target)?;
        let bytes = target.get(..got).filter(|b| !b.is_empty());
        let Some(bytes) = bytes else {
            return Err(TreeFault::ShortRead { at: rest.start(), size: entry.stat.size }.into());
        };
        each(rest.start(), bytes)?;
        rest = rest.skip(len64(got));
    }
    Ok(())
}

/// The target of a symbolic link, as some system could have made it.
pub(super) fn link_target(entry: &Entry<'_>) -> Result<Vec<u8>> {
    let target = entry.fs.read_link(entry.node)?;
    let why = match target.len() {
        0 => "empty",
        n if n > TARGET_MAX => "too long",
        _ if target.contains(&0) => "not a path: there is a zero byte in it",
        _ => return Ok(target),
    };
    Err(TreeFault::LinkTarget { len: target.len(), why }.into())
}

/// An extended attribute: name and value.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// All extended attributes, sorted by name.
pub(super) fn xattrs(entry: &Entry<'_>) -> Result<Vec<Xattr>> {
    let mut list = Vec::new();
    let mut bytes = 0u64;
    entry.fs.xattrs(entry.node, &mut |(name, value): (&[u8], &[u8])| {
        if name.is_empty() || name.contains(&0) {
            return Err(TreeFault::XattrName { len: name.len() }.into());
        }
        bytes = bytes.saturating_add(len64(name.len())).saturating_add(len64(value.len()));
        if bytes > XATTRS_BYTES_MAX {
            return Err(TreeFault::XattrsLarge { max: XATTRS_BYTES_MAX }.into());
        }
        list.push((name.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    list.sort();
    Ok(list)
}
