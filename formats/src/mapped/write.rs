//! Writing into a disk with a table, while it is in use.
//!
//! Where a block has its place, bytes are changed there. Where it has none, the driver reserves one which no reader
//! can see yet, the bytes are written, what must stand around them is taken from the parent, and only then the
//! driver publishes it: at no time does a table name bytes that are not there.

use super::{BlockMap, Busy, HostOffset, Mapping, Place, parent_run, read_parent};
use crate::block::{BlockSize, Span};
use crate::error::{Common, Result};
use crate::limits::KIB;
use crate::wire::{index, len64, part};

/// What surrounds new bytes is copied in pieces of this size.
const PIECE: u64 = 256 * KIB;

/// A place for a block, or for parts of it, which no reader can see yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// The block's number.
    pub(crate) block: u64,
    /// Where the block's first byte lies.
    pub(crate) host: HostOffset,
    /// What becomes visible, becomes so in multiples of this.
    pub(crate) unit: BlockSize,
    /// The place was reserved just now, and reads as zeroes.
    pub(crate) fresh: bool,
}

/// How a format takes in new data.
pub(crate) trait WriteMap: BlockMap {
    /// Unit of allocation.
    fn allocation(&self) -> BlockSize;
    /// Size of the disk in bytes.
    fn disk_size(&self) -> u64;
    /// The blocks at work.
    fn busy(&self) -> &Busy;
    /// A place for what `block` does not hold yet.
    fn reserve(&self, block: u64) -> Result<Room>;
    /// Makes `span` of the disk, whole units of one block, visible in its room. The bytes are written.
    fn publish(&self, room: Room, span: Span) -> Result<()>;
    /// Takes back a room that nothing was published in.
    fn release(&self, room: Room);
    /// Makes a whole block read as zeroes by its table entry alone and gives its place back; `false` where the
    /// format, or this block, cannot do that. The caller holds the claim on the block.
    fn zero_block(&self, block: u64) -> Result<bool> {
        let _ = block;
        Ok(false)
    }
}

/// Writes `data` at `at`.
pub(crate) fn write(map: &impl WriteMap, at: u64, data: &[u8]) -> Result<()> {
    let mut rest = Span::new(at, len64(data.len()))?;
    let mut left = data;
    while !rest.is_empty() {
        let mapping = map.lookup(rest)?;
        let piece = rest.truncate(mapping.len.max(1));
        let written = match mapping.place {
            Place::Data(host) => {
                map.data().write_at(host.0, part(left, 0, index(piece.len())?, "write")?)?;
                piece.len()
            }
            Place::Zero | Place::Absent => fill(map, mapping, piece, left)?,
            Place::Packed(_) => {
                let by = "a compressed block".to_string();
                return Err(Common::Unsupported { what: "writing in place", by }.into());
            }
        };
        left = left.get(index(written)?..).unwrap_or_default();
        rest = rest.skip(written);
    }
    Ok(())
}

/// Writes to the first block of `piece`, where it was `seen` to hold nothing. Returns the bytes written: 0 if
/// another writer was faster, and the caller looks again.
fn fill(map: &impl WriteMap, seen: Mapping, piece: Span, data: &[u8]) -> Result<u64> {
    let block = map.allocation();
    let (number, within) = block.split(piece.start());
    let piece = piece.truncate(block.bytes().saturating_sub(within));
    let _claim = map.busy().claim(number)?;
    let now = map.lookup(piece)?;
    if now.place != seen.place {
        return Ok(0);
    }
    let piece = piece.truncate(now.len.max(1));
    let room = map.reserve(number)?;
    let data = part(data, 0, index(piece.len())?, "write")?;
    let written = write_room(map, room, now.place, piece, data);
    match written.and_then(|whole| map.publish(room, whole)) {
        Ok(()) => Ok(piece.len()),
        Err(e) => {
            map.release(room);
            Err(e)
        }
    }
}

/// Writes `data` for `piece`, and what belongs around it; says what is there then.
fn write_room(map: &impl WriteMap, room: Room, below: Place, piece: Span, data: &[u8]) -> Result<Span> {
    let whole = units(room.unit, piece, map.disk_size())?;
    let before = whole.truncate(piece.start().saturating_sub(whole.start()));
    let behind = whole.skip(piece.end().saturating_sub(whole.start()));
    for around in [before, behind] {
        surround(map, room, below, around)?;
    }
    map.data().write_at(host(map, room, piece)?, data)?;
    Ok(whole)
}

/// `piece` widened to whole units, but not past the end of the disk.
fn units(unit: BlockSize, piece: Span, size: u64) -> Result<Span> {
    let start = unit.floor(piece.start());
    let end = unit.ceil(piece.end()).unwrap_or(u64::MAX).min(size.max(piece.end()));
    Span::new(start, end.saturating_sub(start))
}

/// Fills a stretch of a room with what shows there now.
fn surround(map: &impl WriteMap, room: Room, below: Place, around: Span) -> Result<()> {
    let parent = if below == Place::Absent { map.parent() } else { None };
    let mut rest = around;
    while !rest.is_empty() {
        let run = parent_run(parent, rest)?;
        let piece = rest.truncate(run.len.clamp(1, PIECE));
        let host = host(map, room, piece)?;
        if !run.kind.is_zero() {
            let mut bytes = vec![0; index(piece.len())?];
            read_parent(parent, piece.start(), &mut bytes)?;
            map.data().write_at(host, &bytes)?;
        } else if !room.fresh {
            map.data().write_at(host, &vec![0; index(piece.len())?])?;
        }
        rest = rest.skip(piece.len());
    }
    Ok(())
}

/// Where `span` of the disk lies in its room.
fn host(map: &impl WriteMap, room: Room, span: Span) -> Result<u64> {
    let (_, within) = map.allocation().split(span.start());
    Ok(room.host.0.checked_add(within).ok_or(Common::RangeWraps { start: room.host.0, len: within })?)
}

/// Makes `span` read as zeroes.
pub(crate) fn write_zeroes(map: &impl WriteMap, span: Span) -> Result<()> {
    clear(map, span, |absent| {
        // Nothing is there: only a parent that shows something has to be covered.
        let run = parent_run(map.parent(), absent)?;
        let piece = absent.truncate(run.len.clamp(1, PIECE));
        if run.kind.is_zero() && !map.leaving() {
            return Ok(run.len.max(1));
        }
        write(map, piece.start(), &vec![0; index(piece.len())?])?;
        Ok(piece.len())
    })
}

/// Gives the space of `span` back. What was stored reads as zeroes; what was not stays as it is.
pub(crate) fn discard(map: &impl WriteMap, span: Span) -> Result<()> {
    clear(map, span, |absent| Ok(absent.len()))
}

/// Clears what is stored; `absent` deals with the beginning of a stretch that is not, and says how far it came.
fn clear(map: &impl WriteMap, span: Span, absent: impl Fn(Span) -> Result<u64>) -> Result<()> {
    let block = map.allocation();
    let mut rest = span;
    while !rest.is_empty() {
        let (number, within) = block.split(rest.start());
        let to_end = block.bytes().saturating_sub(within);
        let whole = to_end.min(map.disk_size().saturating_sub(rest.start()));
        let mapping = map.lookup(rest)?;
        let piece = rest.truncate(mapping.len.max(1));
        let done = match mapping.place {
            Place::Zero => piece.len(),
            Place::Absent if map.parent().is_none() => piece.len(),
            place => {
                if within == 0 && rest.len() >= whole {
                    let _claim = map.busy().claim(number)?;
                    if map.zero_block(number)? {
                        rest = rest.skip(whole);
                        continue;
                    }
                }
                match place {
                    Place::Data(host) => {
                        map.data().write_zeroes(Span::new(host.0, piece.len())?)?;
                        piece.len()
                    }
                    Place::Packed(_) => {
                        let by = "a compressed block".to_string();
                        return Err(Common::Unsupported { what: "zeroing in place", by }.into());
                    }
                    Place::Zero | Place::Absent => absent(piece)?,
                }
            }
        };
        rest = rest.skip(done.max(1));
    }
    Ok(())
}
