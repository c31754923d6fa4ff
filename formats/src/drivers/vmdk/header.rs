//! Headers of sparse extents: layout to checked meaning.

use super::fault::VmdkFault;
use super::layout::{
    COWD_MAGIC, GD_AT_END, MAGIC, RawCowdHeader, RawMarker, RawSparseHeader, SECTOR, flags, marker,
};
use crate::block::{BlockSize, Disk, Span};
use crate::error::Result;
use crate::limits::MIB;
use crate::wire::read;

/// The largest grain: VMware makes 64 KiB; one is kept in memory for each reader.
const GRAIN_MAX: u64 = 16 * MIB;
/// Entries in a grain table: 512 in hosted extents, 4096 in those of ESX Server.
const GT_ENTRIES_MAX: u32 = 4096;
/// Entries in a grain table of ESX Server, by definition.
const COWD_GT_ENTRIES: u32 = 4096;

/// A sparse extent's header that passed its checks.
#[derive(Clone, Debug)]
pub(super) struct SparseHeader {
    /// Bytes of the guest's disk in this extent.
    pub(super) capacity: u64,
    pub(super) grain: BlockSize,
    /// Entries in a grain table.
    pub(super) gt_entries: u32,
    /// Byte offset of the grain directory.
    pub(super) gd_at: u64,
    /// Byte offset of the redundant grain directory.
    pub(super) rgd_at: Option<u64>,
    /// Where the embedded descriptor lies.
    pub(super) descriptor: Option<Span>,
    /// Bytes that metadata take at the beginning of the file.
    pub(super) overhead: u64,
    pub(super) compressed: bool,
    pub(super) zeroed_grains: bool,
    pub(super) unclean: bool,
    /// ESX Server's form, which racker only reads.
    pub(super) is_cowd: bool,
}

/// Byte offset of the mark "open for writing" in a hosted header.
pub(super) const UNCLEAN_AT: u64 = 72;

impl SparseHeader {
    /// Reads the header of a sparse extent of either kind; in a stream, the footer.
    pub(super) fn read(file: &Disk) -> Result<Self> {
        let magic = read::<[u8; 4]>(file, 0, "VMDK header")?;
        if magic == COWD_MAGIC {
            return Self::try_from(&read::<RawCowdHeader>(file, 0, "COWD header")?);
        }
        let raw = read::<RawSparseHeader>(file, 0, "VMDK header")?;
        if raw.gd_offset.get() != GD_AT_END {
            return Self::try_from(&raw);
        }
        // A footer wins over the header: who writes a stream learns the grain directory's place only at its end.
        let footer = footer(file)?;
        let mut header = Self::try_from(&footer)?;
        // The descriptor is at the beginning, and the header there is the one that knows.
        header.descriptor = descriptor(&raw)?;
        Ok(header)
    }

    /// Entries that the grain directory needs.
    pub(super) fn gd_entries(&self) -> u64 {
        let per_table = self.table_covers();
        self.capacity.div_ceil(per_table.max(1))
    }

    /// Bytes of the guest's disk that one grain table describes.
    pub(super) fn table_covers(&self) -> u64 {
        // At most 16 MiB times 4096.
        self.grain.bytes().saturating_mul(self.gt_entries.into())
    }
}

impl TryFrom<&RawSparseHeader> for SparseHeader {
    type Error = crate::error::Error;

    fn try_from(raw: &RawSparseHeader) -> Result<Self> {
        let (version, bits) = (raw.version.get(), raw.flags.get());
        if raw.magic != MAGIC || !(1..=3).contains(&version) {
            return Err(VmdkFault::Version(version).into());
        }
        if bits & flags::NEWLINES != 0 && raw.newlines != *b"\n \r\n" {
            return Err(VmdkFault::Newlines.into());
        }
        let compressed = bits & flags::COMPRESSED != 0;
        match raw.compress_algorithm.get() {
            // QEMU goes by the method, others by the flag.
            method @ (0 | 1) if compressed != (method == 1) => {
                return Err(VmdkFault::CompressionFlag(method).into());
            }
            0 | 1 => {}
            other => return Err(VmdkFault::Compression(other).into()),
        }
        if compressed && bits & flags::MARKERS == 0 {
            return Err(VmdkFault::NoMarkers.into());
        }
        if matches!(raw.gd_offset.get(), 0 | GD_AT_END) {
            return Err(VmdkFault::NoGrainDirectory.into());
        }
        let rgd_at = match raw.rgd_offset.get() {
            // Who names the same one twice has one.
            sector if bits & flags::REDUNDANT != 0 && sector != 0 && sector != raw.gd_offset.get() => {
                Some(in_bytes("redundant grain directory", sector)?)
            }
            _ => None,
        };
        Ok(Self {
            capacity: in_bytes("capacity", raw.capacity.get())?,
            grain: grain(raw.grain_size.get())?,
            gt_entries: gt_entries(raw.num_gtes_per_gt.get())?,
            gd_at: in_bytes("grain directory", raw.gd_offset.get())?,
            rgd_at,
            descriptor: descriptor(raw)?,
            overhead: in_bytes("overhead", raw.over_head.get())?,
            compressed,
            zeroed_grains: bits & flags::ZEROED_GRAINS != 0,
            unclean: raw.unclean_shutdown != 0,
            is_cowd: false,
        })
    }
}

impl TryFrom<&RawCowdHeader> for SparseHeader {
    type Error = crate::error::Error;

    fn try_from(raw: &RawCowdHeader) -> Result<Self> {
        if raw.magic != COWD_MAGIC || raw.version.get() != 1 {
            return Err(VmdkFault::Version(raw.version.get()).into());
        }
        if raw.gd_offset.get() == 0 {
            return Err(VmdkFault::NoGrainDirectory.into());
        }
        let header = Self {
            capacity: in_bytes("capacity", raw.num_sectors.get().into())?,
            grain: grain(raw.grain_size.get().into())?,
            gt_entries: COWD_GT_ENTRIES,
            gd_at: in_bytes("grain directory", raw.gd_offset.get().into())?,
            rgd_at: None,
            descriptor: None,
            overhead: 0,
            compressed: false,
            zeroed_grains: false,
            unclean: false,
            is_cowd: true,
        };
        let (found, need) = (u64::from(raw.num_gd_entries.get()), header.gd_entries());
        if found < need {
            return Err(VmdkFault::GdEntries { found, need }.into());
        }
        Ok(header)
    }
}

/// Sectors as bytes.
pub(super) fn in_bytes(what: &'static str, sectors: u64) -> Result<u64> {
    sectors.checked_mul(SECTOR).ok_or_else(|| VmdkFault::Sectors { what, sectors }.into())
}

fn grain(sectors: u64) -> Result<BlockSize> {
    let bytes = sectors.checked_mul(SECTOR).filter(|b| *b <= GRAIN_MAX);
    let max = GRAIN_MAX.div_euclid(SECTOR);
    bytes.and_then(BlockSize::from_bytes).ok_or_else(|| VmdkFault::GrainSize { sectors, max }.into())
}

fn gt_entries(found: u32) -> Result<u32> {
    match found {
        1..=GT_ENTRIES_MAX => Ok(found),
        _ => Err(VmdkFault::GtEntries { found, max: GT_ENTRIES_MAX }.into()),
    }
}

fn descriptor(raw: &RawSparseHeader) -> Result<Option<Span>> {
    let at = in_bytes("descriptor offset", raw.descriptor_offset.get())?;
    let len = in_bytes("descriptor", raw.descriptor_size.get())?;
    Ok(if at == 0 || len == 0 { None } else { Some(Span::new(at, len)?) })
}

/// The header that ends a stream: a marker, the footer itself, and the end-of-stream marker, a sector each.
fn footer(file: &Disk) -> Result<RawSparseHeader> {
    // A file padded to whole sectors by a transfer is as good.
    let sectors = file.size().div_euclid(SECTOR);
    let at =
        |back: u64| sectors.checked_sub(back).and_then(|s| s.checked_mul(SECTOR)).ok_or(VmdkFault::NoFooter);
    let before = read::<RawMarker>(file, at(3)?, "footer marker")?;
    let footer = read::<RawSparseHeader>(file, at(2)?, "footer")?;
    let end = read::<RawMarker>(file, at(1)?, "end-of-stream marker")?;
    let is_footer = before.size.get() == 0 && before.kind.get() == marker::FOOTER && footer.magic == MAGIC;
    if !is_footer || end.size.get() != 0 || end.kind.get() != marker::END_OF_STREAM {
        return Err(VmdkFault::NoFooter.into());
    }
    Ok(footer)
}
