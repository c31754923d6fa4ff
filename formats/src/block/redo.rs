//! The redo file: an edit written down in full beside the image before any of it is applied.
//!
//! It serves images whose format and filesystem offer nothing better (DESIGN: raw disks, VMDK). All numbers are
//! little-endian:
//!
//! | part | content |
//! | --- | --- |
//! | header, 64 bytes | magic, size of the image before and after, scope, CRC-32C of these |
//! | record, once per change of at most 1 MiB | 32 bytes (magic, kind, offset, length, CRC-32C of all that follows and of the first 24 bytes), CRC-32C of each old sector, then the new bytes (none for zeroes) |
//! | trailer, 32 bytes | magic, count of records, CRC-32C over the records' checksums and these |
//!
//! With a valid trailer the edit is decided and is applied, as often as it takes; without, it never happened. Each
//! sector that is applied must be the old or the new one, so a redo file never lands on some other image.
//!
//! Programs that know nothing of the redo file must not take a half-applied disk for a good one. So the sectors by
//! which they recognise what is going to change (the gates: a filesystem's superblock, an image's header) hold a
//! [notice](GATE) while the rest is applied, and get what belongs there last.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Change, ChangeKind, Disk, Span};
use crate::error::{Common, Fault, Kind, Result};
use crate::limits::MIB;
use crate::wire::{self, index, len64};

const MAGIC: [u8; 16] = *b"racker redo v1\n\0";
const RECORD_MAGIC: u32 = 0x4f44_4552; // "REDO"
const TRAILER_MAGIC: [u8; 16] = *b"racker redo end\n";
const DATA: u32 = 1;
const ZERO: u32 = 2;
/// A sector, with its new bytes, that is shut while the other records are applied.
const SHUT: u32 = 3;
/// Sectors that are shut in one edit: one for each of its filesystems.
const GATES_MAX: usize = 4096;
/// The unit a disk writes whole: a torn write leaves each sector old or new.
const SECTOR: u64 = 512;
const PIECE_MAX: u64 = MIB;

/// How the notice in a shut sector begins.
pub const GATE: &[u8] = b"racker: an edit of this disk was interrupted while it was being applied.\n";

/// What stands in a sector that is shut.
fn notice() -> [u8; 512] {
    let rest: &[u8] =
        b"Keep the file that ends in .racker-redo beside the image, and let racker finish the edit:\n\
        racker disk check --repair IMAGE\n";
    let mut sector = [0; 512];
    for (to, from) in sector.iter_mut().zip(GATE.iter().chain(rest)) {
        *to = *from;
    }
    sector
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 16],
    old_size: U64,
    new_size: U64,
    scope: U32,
    reserved: [u8; 24],
    crc: U32,
}
const _: () = assert!(size_of::<Header>() == 64);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Record {
    magic: U32,
    kind: U32,
    at: U64,
    len: U64,
    crc: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<Record>() == 32);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Trailer {
    magic: [u8; 16],
    count: U64,
    chain: U32,
    crc: U32,
}
const _: () = assert!(size_of::<Trailer>() == 32);

/// What the offsets of a redo file count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The image's file.
    File,
    /// The disk in the image, whose bytes lie in several files.
    Disk,
}

/// Why a redo file is not applied.
#[derive(Debug, thiserror::Error)]
pub enum RedoFault {
    /// The image is neither as before nor as after the edit.
    #[error(
        "an unfinished edit does not belong to this image: the sector at byte {at} is neither old nor new"
    )]
    Foreign {
        /// Byte offset in the image.
        at: u64,
    },
    /// The image's size is neither the old nor the new one.
    #[error("an unfinished edit is for an image of {expected} bytes, this one has {found}")]
    Size {
        /// In the redo file.
        expected: u64,
        /// Of the image.
        found: u64,
    },
    /// What only opening the image by itself finishes.
    #[error("an edit of it was interrupted: racker disk check --repair finishes it")]
    Pending,
    /// The image is half-way between old and new, and what would finish it is not there.
    #[error("an edit of this disk was interrupted while it was being applied, and the rest of it is missing")]
    Lost,
    /// A record contradicts its checksum although the trailer is there.
    #[error("the redo file is damaged in record {0}")]
    Damaged(u64),
}

impl Fault for RedoFault {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }

    fn hint(&self) -> Option<String> {
        Some(
            "an edit was interrupted while it was applied: keep the image and the .racker-redo file together"
                .into(),
        )
    }
}

fn header(old_size: u64, new_size: u64, scope: Scope) -> Header {
    let mut h = Header {
        magic: MAGIC,
        old_size: old_size.into(),
        new_size: new_size.into(),
        scope: match scope {
            Scope::File => 0.into(),
            Scope::Disk => 1.into(),
        },
        reserved: [0; 24],
        crc: 0.into(),
    };
    h.crc = crc32c::crc32c(part_of(h.as_bytes(), 60)).into();
    h
}

fn part_of(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(..len).unwrap_or(bytes)
}

/// Appends to a disk that grows.
struct Appender<'a> {
    redo: &'a Disk,
    at: u64,
}

impl Appender<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let end = Span::new(self.at, len64(bytes.len()))?.end();
        if end > self.redo.size() {
            self.redo.resize(end)?;
        }
        self.redo.write_at(self.at, bytes)?;
        self.at = end;
        Ok(())
    }
}

/// Writes down how `staged` differs from `image`, and which sectors are shut while that is applied. The redo file is
/// on stable storage afterwards.
pub fn seal(
    redo: &Disk,
    (image, scope): (&Disk, Scope),
    staged: &Disk,
    changes: &[Change],
    gates: &[Span],
) -> Result<()> {
    let mut out = Appender { redo, at: 0 };
    out.put(header(image.size(), staged.size(), scope).as_bytes())?;
    let shut = gates.iter().filter(|gate| gate.end() <= staged.size()).map(|gate| (*gate, SHUT));
    let changed = changes.iter().map(|c| (c.span, if c.kind == ChangeKind::Data { DATA } else { ZERO }));
    let (mut chain, mut count) = (0u32, 0u64);
    for (mut rest, kind) in shut.chain(changed) {
        while !rest.is_empty() {
            let piece = rest.truncate(PIECE_MAX);
            rest = rest.skip(piece.len());
            let old = sector_sums(&old_bytes(image, piece)?);
            let mut data = Vec::new();
            if kind != ZERO {
                data.resize(index(piece.len())?, 0);
                staged.read_at(piece.start(), &mut data)?;
            }
            let mut record = Record {
                magic: RECORD_MAGIC.into(),
                kind: kind.into(),
                at: piece.start().into(),
                len: piece.len().into(),
                crc: 0.into(),
                reserved: 0.into(),
            };
            let sum = record_sum(&record, &old, &data);
            record.crc = sum.into();
            chain = crc32c::crc32c_append(chain, &sum.to_le_bytes());
            count = count.saturating_add(1);
            out.put(record.as_bytes())?;
            out.put(&old)?;
            out.put(&data)?;
        }
    }
    // The trailer decides: everything before it must be there first.
    redo.flush()?;
    let mut trailer =
        Trailer { magic: TRAILER_MAGIC, count: count.into(), chain: chain.into(), crc: 0.into() };
    trailer.crc = crc32c::crc32c(part_of(trailer.as_bytes(), 28)).into();
    out.put(trailer.as_bytes())?;
    redo.flush()
}

/// The bytes of `image` in `span`; behind its end zeroes.
fn old_bytes(image: &Disk, span: Span) -> Result<Vec<u8>> {
    let mut old = vec![0; index(span.len())?];
    let have = image.size().saturating_sub(span.start()).min(span.len());
    if have > 0 {
        image.read_at(span.start(), wire::part_mut(&mut old, 0, index(have)?, "old bytes")?)?;
    }
    Ok(old)
}

fn sector_sums(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(512).flat_map(|s| crc32c::crc32c(s).to_le_bytes()).collect()
}

fn record_sum(record: &Record, old: &[u8], data: &[u8]) -> u32 {
    let sum = crc32c::crc32c(part_of(record.as_bytes(), 24));
    crc32c::crc32c_append(crc32c::crc32c_append(sum, old), data)
}

/// What a redo file holds.
#[derive(Debug)]
pub struct Sealed {
    old_size: u64,
    new_size: u64,
    count: u64,
    /// What it is applied to.
    pub scope: Scope,
}

/// Looks whether a redo file is complete; `None` means that its edit never happened.
pub fn sealed(redo: &Disk) -> Result<Option<Sealed>> {
    let size = redo.size();
    if size < len64(size_of::<Header>()).saturating_add(len64(size_of::<Trailer>())) {
        return Ok(None);
    }
    let head: Header = wire::read(redo, 0, "redo header")?;
    let end: Trailer = wire::read(redo, size.saturating_sub(32), "redo trailer")?;
    let sound = head.magic == MAGIC
        && head.crc.get() == crc32c::crc32c(part_of(head.as_bytes(), 60))
        && end.magic == TRAILER_MAGIC
        && end.crc.get() == crc32c::crc32c(part_of(end.as_bytes(), 28));
    if !sound {
        return Ok(None);
    }
    let scope = if head.scope.get() == 0 { Scope::File } else { Scope::Disk };
    let (old_size, new_size) = (head.old_size.get(), head.new_size.get());
    let sealed = Sealed { old_size, new_size, count: end.count.get(), scope };
    // A trailer behind records that never arrived whole is a torn file, not a decision.
    let mut chain = 0u32;
    let complete = each_record(redo, &sealed, |record, _, _| {
        chain = crc32c::crc32c_append(chain, &record.crc.get().to_le_bytes());
        Ok(())
    });
    match complete {
        Ok(()) if chain == end.chain.get() => Ok(Some(sealed)),
        Ok(()) => Ok(None),
        Err(e) if e.kind() == Kind::Io => Err(e),
        Err(_) => Ok(None),
    }
}

/// Calls `each(record, old sums, new bytes)` for all records, whose checksums were verified.
fn each_record(
    redo: &Disk,
    sealed: &Sealed,
    mut each: impl FnMut(&Record, &[u8], &[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = 64u64;
    for number in 0..sealed.count {
        let record: Record = wire::read(redo, at, "redo record")?;
        let len = record.len.get();
        let known = record.magic.get() == RECORD_MAGIC && matches!(record.kind.get(), DATA | ZERO | SHUT);
        if !known || len == 0 || len > PIECE_MAX {
            return Err(RedoFault::Damaged(number).into());
        }
        let sums = len.div_ceil(SECTOR).saturating_mul(4);
        let data = if record.kind.get() == ZERO { 0 } else { len };
        let old_at = at.saturating_add(32);
        let old = wire::bytes(redo, old_at, sums, PIECE_MAX, "old sums")?;
        let new = wire::bytes(redo, old_at.saturating_add(sums), data, PIECE_MAX, "new bytes")?;
        if record.crc.get() != record_sum(&record, &old, &new) {
            return Err(RedoFault::Damaged(number).into());
        }
        each(&record, &old, &new)?;
        at = old_at.saturating_add(sums).saturating_add(data);
    }
    Ok(())
}

/// Applies a sealed edit to the image and flushes it. May be repeated, and interrupted, at will.
pub fn apply(redo: &Disk, image: &Disk, sealed: &Sealed) -> Result<()> {
    let size = image.size();
    let (old, new) = (sealed.old_size, sealed.new_size);
    if size != old && size != new {
        return Err(RedoFault::Size { expected: old, found: size }.into());
    }
    let gates = gates(redo, sealed)?;
    // All sectors are judged before the first is written: a foreign image stays untouched.
    each_record(redo, sealed, |record, old, new| foreign(image, record, old, new, &gates))?;
    if new > size {
        image.resize(new)?;
    }
    for gate in &gates {
        image.write_at(gate.start(), part_of(&notice(), index(gate.len())?))?;
    }
    if !gates.is_empty() {
        image.flush()?;
    }
    each_record(redo, sealed, |record, _, new| put(image, record, new, &gates))?;
    if new < size {
        image.resize(new)?;
    }
    image.flush()?;
    if gates.is_empty() {
        return Ok(());
    }
    each_record(redo, sealed, |record, _, new| match record.kind.get() {
        SHUT => image.write_at(record.at.get(), new),
        _ => Ok(()),
    })?;
    image.flush()
}

/// The sectors that are shut meanwhile.
fn gates(redo: &Disk, sealed: &Sealed) -> Result<Vec<Span>> {
    let mut gates = Vec::new();
    let mut number = 0u64;
    each_record(redo, sealed, |record, _, _| {
        if record.kind.get() == SHUT {
            if record.len.get() > SECTOR || gates.len() >= GATES_MAX {
                return Err(RedoFault::Damaged(number).into());
            }
            gates.push(Span::new(record.at.get(), record.len.get())?);
        }
        number = number.saturating_add(1);
        Ok(())
    })?;
    Ok(gates)
}

/// Applies one record, and leaves what is shut as it is.
fn put(image: &Disk, record: &Record, new: &[u8], gates: &[Span]) -> Result<()> {
    let span = Span::new(record.at.get(), record.len.get())?;
    if record.kind.get() == SHUT {
        return Ok(());
    }
    let mut inside: Vec<Span> = gates.iter().filter_map(|gate| gate.intersect(span)).collect();
    inside.sort_by_key(|shut| shut.start());
    let mut rest = span;
    for shut in inside {
        put_part(image, span, rest.truncate(shut.start().saturating_sub(rest.start())), new)?;
        rest = rest.skip(shut.end().saturating_sub(rest.start()));
    }
    put_part(image, span, rest, new)
}

/// Writes `part` of a record that covers `span`.
fn put_part(image: &Disk, span: Span, part: Span, new: &[u8]) -> Result<()> {
    if part.is_empty() {
        return Ok(());
    }
    if new.is_empty() {
        return image.write_zeroes(part);
    }
    let from = index(part.start().saturating_sub(span.start()))?;
    image.write_at(part.start(), wire::part(new, from, index(part.len())?, "new bytes")?)
}

/// Whether some sector of the image is neither the old nor the new one.
fn foreign(image: &Disk, record: &Record, old_sums: &[u8], new: &[u8], gates: &[Span]) -> Result<()> {
    let span = Span::new(record.at.get(), record.len.get())?;
    let now = old_bytes(image, span)?;
    let (zero, notice) = ([0u8; 512], notice());
    for (i, (sector, sum)) in now.chunks(512).zip(old_sums.chunks(4)).enumerate() {
        let start = i.checked_mul(512).ok_or(Common::Index(len64(i)))?;
        let wanted = new.get(start..).map(|n| part_of(n, sector.len())).unwrap_or_default();
        let wanted = if new.is_empty() { part_of(&zero, sector.len()) } else { wanted };
        let at = span.start().saturating_add(len64(start));
        let is_shut = || gates.iter().any(|g| g.start() == at) && sector == part_of(&notice, sector.len());
        if crc32c::crc32c(sector).to_le_bytes() != sum && sector != wanted && !is_shut() {
            return Err(RedoFault::Foreign { at }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{BlockDevice, MemDevice, Staged};
    use super::*;

    fn bytes(disk: &Disk) -> Vec<u8> {
        let mut all = vec![0; disk.size() as usize];
        disk.read_at(0, &mut all).unwrap();
        all
    }

    /// An image, the edit over it, and its redo file.
    fn edit() -> (Vec<u8>, Vec<u8>, Disk) {
        let old: Vec<u8> = (0..40_000u32).map(|i| (i % 253) as u8).collect();
        let image = Disk::new(MemDevice::from_bytes(old.clone()));
        let staged = Arc::new(Staged::new(image.clone()));
        let top = Disk::from_arc(staged.clone());
        top.resize(45_000).unwrap();
        top.write_at(700, &[7; 9000]).unwrap();
        top.write_zeroes(Span::new(20_480, 8192).unwrap()).unwrap();
        top.write_at(44_000, &[3; 1000]).unwrap();
        let redo = Disk::new(MemDevice::new(0));
        seal(&redo, (&image, Scope::File), &top, &staged.changes().unwrap(), &[]).unwrap();
        assert_eq!(bytes(&image), old, "sealing changes nothing");
        assert_eq!(staged.size(), 45_000);
        (old, bytes(&top), redo)
    }

    #[test]
    fn a_torn_redo_file_never_happened() {
        let (_, _, redo) = edit();
        let whole = bytes(&redo);
        for cut in (0..whole.len()).step_by(97) {
            let torn = Disk::new(MemDevice::from_bytes(whole[..cut].to_vec()));
            assert!(sealed(&torn).unwrap().is_none(), "cut at {cut}");
        }
        let mut lost = whole.clone();
        lost[4096..4608].fill(0);
        assert!(sealed(&Disk::new(MemDevice::from_bytes(lost))).unwrap().is_none());
    }

    #[test]
    fn applying_repeats_over_any_mixture_of_old_and_new_sectors() {
        let (old, new, redo) = edit();
        let edit = sealed(&redo).unwrap().unwrap();
        for seed in 0u64..64 {
            let grown = seed % 2 == 0;
            let mut mixed = old.clone();
            if grown {
                mixed.resize(new.len(), 0);
            }
            let mut state = seed;
            for start in (0..mixed.len()).step_by(512) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let end = (start + 512).min(mixed.len());
                if state >> 63 == 1 && grown {
                    mixed[start..end].copy_from_slice(&new[start..end]);
                }
            }
            let image = Disk::new(MemDevice::from_bytes(mixed));
            apply(&redo, &image, &edit).unwrap();
            assert_eq!(bytes(&image), new, "seed {seed}");
            apply(&redo, &image, &edit).unwrap();
            assert_eq!(bytes(&image), new);
        }
    }

    #[test]
    fn some_other_image_is_left_alone() {
        let (mut old, _, redo) = edit();
        let edit = sealed(&redo).unwrap().unwrap();
        old[900] ^= 1;
        let image = Disk::new(MemDevice::from_bytes(old.clone()));
        let e = apply(&redo, &image, &edit).unwrap_err();
        assert!(matches!(e.fault(), Some(RedoFault::Foreign { at: 512 })), "{e}");
        assert_eq!(bytes(&image), old);
    }
}
