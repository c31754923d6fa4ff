//! The BAT: which entry belongs to which block, and what an entry says.

use super::fault::VhdxFault;
use super::layout::{MEGABYTE, PAGE};
use super::metadata::{DiskType, Metadata};
use crate::block::{BlockSize, Span};
use crate::error::{Common, Result};
use crate::wire::index;

/// 2.5.1.1: states of a payload block.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
/// In version 0.95, which QEMU reads as well.
const UNMAPPED_0_95: u64 = 5;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
/// Bits 3 to 19 of an entry.
const RESERVED: u64 = 0xf_fff8;
const STATE: u64 = 7;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing is there: the parent shows through.
    Absent,
    /// Reads as zeroes, or as anything, for which zeroes will do.
    Zero,
    /// At this offset of the file.
    Full(u64),
    /// At this offset of the file, as far as the bitmap says; elsewhere the parent shows through.
    Partial(u64),
}

impl Entry {
    /// Where the block lies, if it does.
    pub(super) const fn host(self) -> Option<u64> {
        match self {
            Self::Full(host) | Self::Partial(host) => Some(host),
            Self::Absent | Self::Zero => None,
        }
    }

    /// As it lies on disk.
    pub(super) const fn raw(self) -> u64 {
        match self {
            Self::Absent => NOT_PRESENT,
            // Hyper-V does not read an entry in this state with a place.
            Self::Zero => ZERO,
            Self::Full(host) => host | FULLY_PRESENT,
            Self::Partial(host) => host | PARTIALLY_PRESENT,
        }
    }
}

/// How blocks and chunks are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) block: BlockSize,
    pub(super) sector: BlockSize,
    /// Blocks whose sectors one bitmap of 1 MiB describes.
    pub(super) chunk: BlockSize,
    pub(super) disk_type: DiskType,
    /// Virtual size in bytes.
    pub(super) size: u64,
}

impl Geometry {
    /// The geometry of a disk.
    pub(super) fn of(metadata: &Metadata) -> Result<Self> {
        let (block, sector) = (metadata.block, metadata.sector);
        // 2.5: 2^23 sectors a chunk; 16 blocks at least, as blocks end at 2^28 and sectors begin at 2^9.
        let shift = sector.shift().saturating_add(23).saturating_sub(block.shift());
        let chunk = BlockSize::from_shift(shift).ok_or(Common::Index(shift.into()))?;
        Ok(Self { block, sector, chunk, disk_type: metadata.disk_type, size: metadata.size })
    }

    /// Blocks of the disk.
    pub(super) const fn blocks(&self) -> u64 {
        self.block.count(self.size)
    }

    /// Chunks of the disk.
    pub(super) const fn chunks(&self) -> u64 {
        self.chunk.count(self.blocks())
    }

    /// Entries of the BAT, 2.5: a difference has one for the bitmap of each chunk, others for all but the last.
    pub(super) fn entries(&self) -> u64 {
        if self.disk_type == DiskType::Differencing {
            self.chunks().saturating_mul(self.chunk.bytes().saturating_add(1))
        } else {
            let (before, _) = self.chunk.split(self.blocks().saturating_sub(1));
            self.blocks().saturating_add(before)
        }
    }

    /// The entry of a block.
    pub(super) fn entry_of(&self, block: u64) -> u64 {
        let (chunk, _) = self.chunk.split(block);
        block.saturating_add(chunk)
    }

    /// The entry of a chunk's bitmap.
    pub(super) fn bitmap_entry_of(&self, chunk: u64) -> u64 {
        chunk.saturating_mul(self.chunk.bytes().saturating_add(1)).saturating_add(self.chunk.bytes())
    }

    /// The meaning of a block's entry.
    pub(super) fn decode(&self, block: u64, entry: u64) -> Result<Entry> {
        let fault = |why| VhdxFault::Entry { what: "block", number: block, entry, why };
        if entry & RESERVED != 0 {
            return Err(fault("reserved bits are set").into());
        }
        let host = MEGABYTE.floor(entry);
        let differencing = self.disk_type == DiskType::Differencing;
        match entry & STATE {
            NOT_PRESENT => Ok(Entry::Absent),
            UNDEFINED | ZERO | UNMAPPED | UNMAPPED_0_95 => Ok(Entry::Zero),
            FULLY_PRESENT | PARTIALLY_PRESENT if host == 0 => Err(fault("it names no place").into()),
            FULLY_PRESENT => Ok(Entry::Full(host)),
            PARTIALLY_PRESENT if differencing => Ok(Entry::Partial(host)),
            PARTIALLY_PRESENT => Err(fault("only a block of a difference can be there in part").into()),
            _ => Err(fault("there is no such state").into()),
        }
    }

    /// Where the bitmap of a chunk lies, if it is there.
    pub(super) fn decode_bitmap(&self, chunk: u64, entry: u64) -> Result<Option<u64>> {
        let fault = |why| VhdxFault::Entry { what: "the sector bitmap of chunk", number: chunk, entry, why };
        let host = MEGABYTE.floor(entry);
        match entry & STATE {
            _ if entry & RESERVED != 0 => Err(fault("reserved bits are set").into()),
            0 => Ok(None),
            6 if host == 0 => Err(fault("it names no place").into()),
            6 if self.disk_type != DiskType::Differencing => {
                Err(fault("only a difference has bitmaps").into())
            }
            6 => Ok(Some(host)),
            _ => Err(fault("there is no such state").into()),
        }
    }

    /// The place that an entry without a block keeps to itself: programs may show what was there before.
    pub(super) const fn kept_place(entry: u64) -> Option<u64> {
        let host = MEGABYTE.floor(entry);
        match entry & STATE {
            UNDEFINED | UNMAPPED | UNMAPPED_0_95 if host != 0 => Some(host),
            _ => None,
        }
    }

    /// The stretch of a chunk's bitmap that describes a block, in sectors from the beginning of the chunk.
    pub(super) fn sectors_of(&self, block: u64) -> (u64, u64) {
        let (_, within) = self.chunk.split(block);
        let count = self.block.bytes() >> self.sector.shift();
        (within.saturating_mul(count), count)
    }
}

/// The page of the BAT that holds an entry, and the entry's place in it.
pub(super) fn page_of(bat: Span, entry: u64) -> Result<(Span, usize)> {
    let at = entry.saturating_mul(8);
    if at >= bat.len() {
        return Err(Common::Index(entry).into());
    }
    let (page, within) = PAGE.split(at);
    let skip = PAGE.start_of(page).ok_or(Common::Index(entry))?;
    Ok((bat.skip(skip).truncate(PAGE.bytes()), index(within)?))
}

/// A bit for each sector, the first in the lowest bit of the first byte.
pub(super) struct Bits<'a>(pub(super) &'a [u8]);

impl Bits<'_> {
    fn byte(&self, number: u64) -> u8 {
        usize::try_from(number / 8).ok().and_then(|i| self.0.get(i)).copied().unwrap_or(0)
    }

    /// Whether a sector is there.
    pub(super) fn get(&self, number: u64) -> bool {
        let shift = u32::try_from(number % 8).unwrap_or(0);
        self.byte(number).wrapping_shr(shift) & 1 != 0
    }

    /// The first sector behind `from` whose bit is another, `end` at most.
    pub(super) fn run_end(&self, from: u64, end: u64, is_set: bool) -> u64 {
        let uniform = if is_set { 0xff } else { 0 };
        let mut at = from;
        while at < end {
            if at.is_multiple_of(8) && self.byte(at) == uniform {
                at = at.saturating_add(8);
            } else if self.get(at) == is_set {
                at = at.saturating_add(1);
            } else {
                break;
            }
        }
        at.min(end)
    }
}

/// Sets or clears the bits of the sectors `from` to `to`.
pub(super) fn fill_bits(bitmap: &mut [u8], from: u64, to: u64, set: bool) -> Result<()> {
    let mut at = from;
    while at < to {
        let slot = bitmap.get_mut(index(at / 8)?).ok_or(Common::Index(at))?;
        if at.is_multiple_of(8) && to.saturating_sub(at) >= 8 {
            *slot = if set { 0xff } else { 0 };
            at = at.saturating_add(8);
        } else {
            let bit = 1u8.wrapping_shl(u32::try_from(at % 8).unwrap_or(0));
            *slot = if set { *slot | bit } else { *slot & !bit };
            at = at.saturating_add(1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{GIB, MIB};

    fn geometry(disk_type: DiskType, size: u64, block: u64) -> Geometry {
        Geometry::of(&Metadata::new(disk_type, size, BlockSize::from_bytes(block).unwrap())).unwrap()
    }

    #[test]
    fn entries_are_counted_as_the_specification_does() {
        // Chunks of 4 GiB: 128 blocks of 32 MiB.
        let g = geometry(DiskType::Dynamic, 4 * GIB, 32 * MIB);
        assert_eq!(
            (g.chunk.bytes(), g.entries(), g.entry_of(127), g.bitmap_entry_of(0)),
            (128, 128, 127, 128)
        );
        let g = geometry(DiskType::Dynamic, 4 * GIB + 512, 32 * MIB);
        assert_eq!((g.blocks(), g.entries(), g.entry_of(128)), (129, 130, 129));
        let g = geometry(DiskType::Differencing, 4 * GIB + 512, 32 * MIB);
        assert_eq!((g.entries(), g.bitmap_entry_of(1)), (258, 257));
        assert_eq!(geometry(DiskType::Dynamic, 0, MIB).entries(), 0);
    }

    #[test]
    fn entries_mean_what_they_say() {
        let g = geometry(DiskType::Dynamic, GIB, MIB);
        for entry in [Entry::Absent, Entry::Zero, Entry::Full(5 * MIB)] {
            assert_eq!(g.decode(0, entry.raw()).unwrap(), entry);
        }
        assert_eq!(g.decode(0, 3 | 7 << 20).unwrap(), Entry::Zero);
        for bad in [4, 6, 7 | 1 << 20, 8, 6 | 1 << 20 | 1 << 19] {
            assert!(g.decode(0, bad).is_err(), "{bad:#x}");
        }
        assert_eq!(Geometry::kept_place(3 | 7 << 20), Some(7 * MIB));
        let g = geometry(DiskType::Differencing, GIB, MIB);
        assert_eq!(g.decode(0, 7 | 1 << 20).unwrap(), Entry::Partial(MIB));
        assert_eq!(
            (g.decode_bitmap(0, 0).unwrap(), g.decode_bitmap(0, 6 | 2 << 20).unwrap()),
            (None, Some(2 * MIB))
        );
        assert!(g.decode_bitmap(0, 7 | 2 << 20).is_err());
    }

    #[test]
    fn runs_of_bits_begin_low() {
        let mut bitmap = vec![0u8; 512];
        fill_bits(&mut bitmap, 3, 30, true).unwrap();
        assert_eq!(bitmap[..5], [0b1111_1000, 0xff, 0xff, 0b0011_1111, 0]);
        fill_bits(&mut bitmap, 8, 17, false).unwrap();
        let bits = Bits(&bitmap);
        assert_eq!(
            (bits.run_end(3, 4096, true), bits.run_end(8, 4096, false), bits.run_end(17, 20, true)),
            (8, 17, 20)
        );
    }
}
