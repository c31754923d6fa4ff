//! What formats with a table share: qcow2, VMDK sparse, VHDX, dynamic VHD and VDI differ in how they find a block,
//! and agree in how it is read afterwards.
//!
//! A driver answers [`BlockMap::lookup`]; reading, falling through to the parent, run lists and a few unpacked
//! blocks kept at hand are written here once.

mod busy;
mod in_place;
mod recent;
mod sheets;
mod slices;
mod write;

use crate::block::{BlockSize, Disk, Run, RunKind, Span};
use crate::error::{Common, Result};
use crate::map::Location;
use crate::wire::{index, len64};

pub(crate) use busy::{Busy, Claim};
pub(crate) use in_place::{InPlace, Parts};
pub(crate) use recent::Recent;
pub(crate) use sheets::{Changed, Sheets};
pub(crate) use slices::Slices;
pub(crate) use write::{Room, WriteMap, discard, write, write_zeroes};

/// Lookups that one answer of [`first_run`] may join: a caller that asks about a whole disk and uses only the
/// beginning shall not pay for the tables of all of it.
const JOINED_LOOKUPS_MAX: usize = 32;

/// An offset in bytes inside the file that holds the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostOffset(pub(crate) u64);

/// Where compressed bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Packed {
    /// First byte; need not be aligned to anything.
    pub(crate) host: HostOffset,
    /// Bytes that hold the block, perhaps with others behind it.
    pub(crate) stored: u64,
}

/// Where a stretch of the disk lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In one piece from this offset on.
    Data(HostOffset),
    /// Nowhere: the table says that it reads as zeroes.
    Zero,
    /// Nowhere: the parent is asked, and zeroes are read without one.
    Absent,
    /// Inside a compressed block.
    Packed(Packed),
}

/// The answer to one lookup: `place` holds for `len` bytes from the offset asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Where it lives.
    pub(crate) place: Place,
    /// How far that holds in bytes; never 0, never past the end of the span asked about.
    pub(crate) len: u64,
}

/// How a format finds a block.
pub(crate) trait BlockMap {
    /// Unit of compression.
    fn block_size(&self) -> BlockSize;
    /// The disk that data offsets point into.
    fn data(&self) -> &Disk;
    /// What shows through where nothing is allocated.
    fn parent(&self) -> Option<&Disk>;
    /// Where the first part of `span`, which is not empty, lives.
    fn lookup(&self, span: Span) -> Result<Mapping>;
    /// Fills `out`, which is one block, from compressed bytes.
    fn unpack(&self, packed: Packed, out: &mut [u8]) -> Result<()> {
        let _ = out;
        let by = format!("a format without compression, at {:#x}", packed.host.0);
        Err(Common::Unsupported { what: "unpacking", by }.into())
    }
    /// Whether the image is about to leave its parent: zeroes have to be its own then, even where there are zeroes.
    fn leaving(&self) -> bool {
        false
    }
    /// Whether blocks are so large that holes of the file inside them are worth telling.
    fn holes_in_blocks(&self) -> bool {
        false
    }
}

/// Fills `buf` with the bytes at `at`.
pub(crate) fn read(map: &impl BlockMap, recent: &Recent, at: u64, buf: &mut [u8]) -> Result<()> {
    let mut rest = Span::new(at, len64(buf.len()))?;
    let mut later = buf;
    while !rest.is_empty() {
        let mapping = map.lookup(rest)?;
        let piece = rest.truncate(mapping.len.max(1));
        let now;
        (now, later) = later.split_at_mut_checked(index(piece.len())?).ok_or(Common::Short {
            what: "read",
            need: index(piece.len())?,
            have: 0,
        })?;
        match mapping.place {
            Place::Data(host) => read_padded(map.data(), host.0, now)?,
            Place::Zero => now.fill(0),
            Place::Absent => read_parent(map.parent(), piece.start(), now)?,
            Place::Packed(packed) => {
                let (_, within) = map.block_size().split(piece.start());
                recent.read(packed, map.block_size(), within, now, |out| map.unpack(packed, out))?;
            }
        }
        rest = rest.skip(piece.len());
    }
    Ok(())
}

/// Whether reading `span` would probably not wait; a table that is not in memory is read to find that out.
pub(crate) fn at_hand(map: &impl BlockMap, span: Span) -> bool {
    let Ok(mapping) = map.lookup(span) else { return false };
    let piece = span.truncate(mapping.len);
    match mapping.place {
        Place::Data(host) => Span::new(host.0, piece.len()).is_ok_and(|there| map.data().at_hand(there)),
        Place::Zero => true,
        Place::Absent => map.parent().is_none_or(|parent| parent.at_hand(piece)),
        Place::Packed(_) => false,
    }
}

/// The first run of `span`: table entries alone decide, neighbours are joined.
pub(crate) fn first_run(map: &impl BlockMap, span: Span) -> Result<Run> {
    let mut run: Option<Run> = None;
    let mut rest = span;
    for _ in 0..JOINED_LOOKUPS_MAX {
        if rest.is_empty() {
            break;
        }
        let mapping = map.lookup(rest)?;
        let piece = rest.truncate(mapping.len.max(1));
        let next = match mapping.place {
            Place::Data(host) if map.holes_in_blocks() => data_run(map.data(), host, piece.len())?,
            Place::Data(_) | Place::Packed(_) => Run { len: piece.len(), kind: RunKind::Data },
            Place::Zero => Run { len: piece.len(), kind: RunKind::Zero },
            Place::Absent => parent_run(map.parent(), piece)?,
        };
        match &mut run {
            None => run = Some(next),
            Some(run) if run.kind == next.kind => run.len = run.len.saturating_add(next.len),
            Some(_) => break,
        }
        rest = rest.skip(next.len);
    }
    Ok(run.unwrap_or(Run { len: span.len(), kind: RunKind::Data }))
}

/// Where the image itself keeps the beginning of `span`. What is absent and has no parent to show through is `bottom`;
/// in images that have a place for every block, `holes` asks the file whether the place is a hole.
pub(crate) fn locate(map: &impl BlockMap, span: Span, bottom: RunKind, holes: bool) -> Result<Location> {
    let Mapping { place, len } = map.lookup(span)?;
    let run = |kind| Run { len, kind };
    let location = |run, at| Location { run, at, compressed: false, hollow: false };
    Ok(match place {
        Place::Data(HostOffset(host)) if holes => locate_plain(map.data(), host, len)?,
        Place::Data(HostOffset(host)) => location(run(RunKind::Data), Some(host)),
        Place::Packed(_) => Location { compressed: true, ..location(run(RunKind::Data), None) },
        Place::Zero => location(run(RunKind::Zero), None),
        Place::Absent if map.parent().is_some() => location(run(RunKind::Parent), None),
        Place::Absent => location(run(bottom), None),
    })
}

/// Where the disk in the file `data` from `host` on keeps `len` bytes: all of them there, some in holes of the file.
pub(crate) fn locate_plain(data: &Disk, host: u64, len: u64) -> Result<Location> {
    let run = data_run(data, HostOffset(host), len)?;
    Ok(Location { run, at: Some(host), compressed: false, hollow: run.kind.is_zero() })
}

/// What the file says about a stretch that is stored: a hole in it reads as zeroes.
fn data_run(data: &Disk, host: HostOffset, len: u64) -> Result<Run> {
    let run = data.first_run(Span::new(host.0, len)?)?;
    let kind = if run.kind.is_zero() { RunKind::Zero } else { RunKind::Data };
    Ok(Run { len: run.len, kind })
}

/// Reads from the parent; what lies behind its end reads as zeroes.
pub(crate) fn read_parent(parent: Option<&Disk>, at: u64, buf: &mut [u8]) -> Result<()> {
    match parent {
        Some(parent) => read_padded(parent, at, buf),
        None => {
            buf.fill(0);
            Ok(())
        }
    }
}

/// What the parent says about a stretch that is not allocated above it.
pub(crate) fn parent_run(parent: Option<&Disk>, span: Span) -> Result<Run> {
    let hole = Run { len: span.len(), kind: RunKind::Hole };
    let Some(parent) = parent else { return Ok(hole) };
    let inside = span.truncate(parent.size().saturating_sub(span.start()));
    if inside.is_empty() {
        return Ok(hole);
    }
    let run = parent.first_run(inside)?;
    let kind = if run.kind.is_zero() { run.kind } else { RunKind::Parent };
    Ok(Run { len: run.len, kind })
}

/// Reads what is there and zeroes behind the end of `disk`.
fn read_padded(disk: &Disk, at: u64, buf: &mut [u8]) -> Result<()> {
    let there = index(disk.size().saturating_sub(at).min(len64(buf.len())))?;
    let (now, behind) = buf.split_at_mut(there);
    behind.fill(0);
    if now.is_empty() { Ok(()) } else { disk.read_at(at, now) }
}
