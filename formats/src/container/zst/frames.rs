//! Where the frames of a file are (RFC 8878, section 3.1), found without decoding: a frame says how long its blocks
//! are, and each block how long it is.

use super::super::spool::SpoolFault;
use crate::block::{Disk, Span};
use crate::error::Result;
use crate::wire::{index, len64};

/// What a frame begins with.
pub(super) const MAGIC: u32 = 0xfd2f_b528;
/// The longest header, with the magic number.
const HEADER: u64 = 18;

/// A frame with content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where it lies in the file.
    pub(super) span: Span,
    pub(super) header: Header,
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the header, the magic number among them.
    len: u64,
    /// Bytes of the content, if it says so.
    pub(super) content: Option<u64>,
    /// Bytes of memory that decoding takes.
    pub(super) window: u64,
    has_sum: bool,
}

impl Header {
    /// With the size of the content that somebody else tells.
    pub(super) fn with(self, content: u64) -> Self {
        Self { content: Some(content), ..self }
    }
}

/// Whether a frame that begins so has no content.
pub(super) fn is_skippable(magic: u32) -> bool {
    matches!(magic, 0x184d_2a50..=0x184d_2a5f)
}

fn damaged(why: &str) -> SpoolFault {
    SpoolFault::Damaged { what: "zstd", why: std::io::Error::other(why) }
}

fn cut() -> SpoolFault {
    SpoolFault::Truncated("zstd")
}

/// The next frame with content at `at` or behind it, or `None` at the end of the file.
pub(super) fn next(file: &Disk, mut at: u64) -> Result<Option<Frame>> {
    while at < file.size() {
        let magic = u32::from_le_bytes(head(file, at)?);
        if is_skippable(magic) {
            let len = u32::from_le_bytes(head(file, at.saturating_add(4))?);
            at = at.saturating_add(8).saturating_add(u64::from(len));
            if at > file.size() {
                return Err(cut().into());
            }
            continue;
        }
        let header = header(file, at)?.ok_or(SpoolFault::Trailing("zstd"))?;
        let end = end(file, at.saturating_add(header.len), header.has_sum)?;
        return Ok(Some(Frame { span: Span::new(at, end.saturating_sub(at))?, header }));
    }
    Ok(None)
}

/// The bytes at `at`, all of which the file must have.
fn head<const N: usize>(file: &Disk, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    if file.check(at, len64(N)).is_err() {
        return Err(cut().into());
    }
    file.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// The header of the frame at `at`; `None` if there is none.
pub(super) fn header(file: &Disk, at: u64) -> Result<Option<Header>> {
    let mut bytes = [0u8; 18];
    let have = index(file.size().saturating_sub(at).min(HEADER))?;
    file.read_at(at, bytes.get_mut(..have).unwrap_or_default())?;
    let Some((magic, [flags, rest @ ..])) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    if u32::from_le_bytes(*magic) != MAGIC {
        return Ok(None);
    }
    if flags & 0x08 != 0 {
        return Err(damaged("a frame has flags that RFC 8878 does not know").into());
    }
    let single = flags & 0x20 != 0;
    let dictionary = match flags & 3 {
        3 => 4,
        len => usize::from(len),
    };
    let content = match (flags >> 6, single) {
        (0, false) => 0,
        (0, true) => 1,
        (1, _) => 2,
        (2, _) => 4,
        _ => 8,
    };
    let before = usize::from(!single).saturating_add(dictionary);
    let len = before.saturating_add(content).saturating_add(5);
    if len > have {
        return Err(cut().into());
    }
    let mut number = [0; 8];
    let stored = rest.get(before..before.saturating_add(content)).unwrap_or_default();
    number.iter_mut().zip(stored).for_each(|(to, from)| *to = *from);
    let number = u64::from_le_bytes(number);
    let content = match content {
        0 => None,
        2 => Some(number.saturating_add(256)),
        _ => Some(number),
    };
    let window = match (single, rest) {
        (false, [window, ..]) => {
            let base = 1u64.checked_shl(u32::from(window >> 3).saturating_add(10)).unwrap_or(u64::MAX);
            base.saturating_add((base >> 3).saturating_mul(u64::from(window & 7)))
        }
        _ => content.unwrap_or_default(),
    };
    Ok(Some(Header { len: len64(len), content, window, has_sum: flags & 0x04 != 0 }))
}

/// Where the frame ends whose blocks begin at `at`.
fn end(file: &Disk, mut at: u64, has_sum: bool) -> Result<u64> {
    loop {
        let [a, b, c] = head(file, at)?;
        let block = u32::from_le_bytes([a, b, c, 0]);
        let len = match (block >> 1) & 3 {
            0 | 2 => u64::from(block >> 3),
            1 => 1,
            _ => return Err(damaged("a block is of a type that RFC 8878 does not know").into()),
        };
        at = at.saturating_add(3).saturating_add(len);
        if block & 1 == 1 {
            break;
        }
    }
    let end = at.saturating_add(if has_sum { 4 } else { 0 });
    if end > file.size() {
        return Err(cut().into());
    }
    Ok(end)
}
