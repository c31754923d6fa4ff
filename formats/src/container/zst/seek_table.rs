//! The list of frames that the seekable format (zstd's `contrib/seekable_format`) puts into a skippable frame at the
//! end: it tells the sizes of frames whose headers do not.
//!
//! It is taken at its word only where what it says agrees with the file. What it says of a frame's content is seen
//! to be true when the frame is decoded.

use super::frames::{Frame, MAGIC, header, is_skippable};
use crate::block::{Disk, Span};
use crate::error::Result;
use crate::wire::{bytes, len64};

/// The skippable frame that holds it.
const FRAME: u32 = 0x184d_2a5e;
/// What it ends with.
const END: u32 = 0x8f92_eab1;
/// Bytes of that frame's header, and of what the table ends with.
const HEAD: u64 = 8;
const FOOT: u64 = 9;
/// Bytes of a table: a million frames.
const BYTES_MAX: u64 = 12 << 20;

/// The frames that the table lists, with the sizes of their content; `None` if there is no table that fits.
pub(super) fn read(file: &Disk) -> Result<Option<Vec<Frame>>> {
    let Some(foot_at) = file.size().checked_sub(FOOT) else { return Ok(None) };
    let mut foot = [0; 9];
    file.read_at(foot_at, &mut foot)?;
    let [c0, c1, c2, c3, flags, m0, m1, m2, m3] = foot;
    if u32::from_le_bytes([m0, m1, m2, m3]) != END || flags & 0x7c != 0 {
        return Ok(None);
    }
    let count = u64::from(u32::from_le_bytes([c0, c1, c2, c3]));
    let each = if flags & 0x80 != 0 { 12 } else { 8 };
    let len = count.saturating_mul(each);
    let Some(start) = foot_at.checked_sub(len.saturating_add(HEAD)) else { return Ok(None) };
    if len > BYTES_MAX {
        return Ok(None);
    }
    let table = bytes(file, start, len.saturating_add(HEAD), BYTES_MAX.saturating_add(HEAD), "seek table")?;
    let (head, entries) = table.as_chunks::<4>();
    let mut words = head.iter().map(|w| u32::from_le_bytes(*w));
    let said = (words.next(), words.next().map(u64::from));
    if said != (Some(FRAME), Some(len.saturating_add(FOOT))) || !entries.is_empty() {
        return Ok(None);
    }
    let mut frames = Vec::new();
    let mut at = 0u64;
    while let (Some(packed), Some(content)) = (words.next(), words.next()) {
        if each == 12 {
            // Part of a checksum of the content, which a frame that is decoded in full has in itself.
            let _ = words.next();
        }
        let Ok(span) = Span::new(at, u64::from(packed)) else { return Ok(None) };
        at = span.end();
        if at > start || packed < 4 {
            return Ok(None);
        }
        let mut magic = [0; 4];
        file.read_at(span.start(), &mut magic)?;
        match u32::from_le_bytes(magic) {
            MAGIC => {}
            other if is_skippable(other) && content == 0 => continue,
            _ => return Ok(None),
        }
        match header(file, span.start())? {
            Some(header) if header.content.is_none_or(|c| c == u64::from(content)) => {
                frames.push(Frame { span, header: header.with(u64::from(content)) });
            }
            _ => return Ok(None),
        }
    }
    Ok((at == start && len64(frames.len()) <= count).then_some(frames))
}
