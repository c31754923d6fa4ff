//! The header: bytes to a checked value, and back.

use uuid::Uuid;
use zerocopy::{FromZeros, IntoBytes};

use super::fault::VdiFault;
use super::layout::{FLAG_ZERO_EXPAND, RawHeader, SECTOR, SIGNATURE, VERSION};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::wire::{len64, read};

/// 128 TiB in blocks of 1 MiB. The map is read in pieces; who writes needs a bit in memory for each block.
pub(super) const MAP_BYTES_MAX: u64 = 512 * MIB;
/// Blocks of new images: what everybody makes, and all that QEMU reads.
pub(super) const BLOCK_BYTES: u64 = MIB;
/// Where map and data of new images are aligned: as VirtualBox does since 2013. A disk can grow to 256 GiB until its
/// map has to move.
const ALIGN: u64 = MIB;
/// Bytes behind the first two fields and the text that the header is said to have.
const HEADER_SIZE: u32 = 400;
const TEXT: &[u8] = b"<<< racker Virtual Disk Image >>>\n";

/// The kinds of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageType {
    Dynamic,
    Fixed,
    Differencing,
}

impl ImageType {
    /// The word for it; QEMU says "static" for fixed.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "static",
            Self::Differencing => "differencing",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Dynamic => 1,
            Self::Fixed => 2,
            Self::Differencing => 4,
        }
    }
}

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    raw: RawHeader,
    pub(super) image_type: ImageType,
    /// Virtual size in bytes: whole sectors.
    pub(super) size: u64,
    pub(super) block: BlockSize,
    /// Bytes in the file before each block's data.
    pub(super) extra: u64,
    /// Where the map lies, in bytes of its entries.
    pub(super) map: Span,
    /// Where the data begin.
    pub(super) data_at: u64,
    /// Blocks in the file.
    pub(super) allocated: u32,
}

impl Header {
    /// Reads and checks the header.
    pub(super) fn read(file: &Disk) -> Result<Self> {
        let raw: RawHeader = read(file, 0, "header")?;
        Self::parse(&raw, file.size()).within(|| "header")
    }

    fn parse(raw: &RawHeader, file: u64) -> Result<Self> {
        if raw.signature.get() != SIGNATURE {
            return Err(VdiFault::Signature.into());
        }
        if raw.version.get() != VERSION {
            return Err(VdiFault::Version(raw.version.get()).into());
        }
        let flags = raw.flags.get();
        if flags & !FLAG_ZERO_EXPAND != 0 {
            return Err(VdiFault::Flags(flags).into());
        }
        let linked = raw.uuid_linkage != [0; 16] || raw.uuid_parent_modify != [0; 16];
        let image_type = match raw.image_type.get() {
            1 | 2 | 4 if linked => ImageType::Differencing,
            1 => ImageType::Dynamic,
            2 => ImageType::Fixed,
            4 => return Err(VdiFault::NoParent(Uuid::nil()).into()),
            other => return Err(VdiFault::ImageType(other).into()),
        };
        let field = |what, found: u64, expected| VdiFault::Field { what, found, expected };
        let sector = u64::from(raw.sector_size.get());
        if sector != SECTOR {
            return Err(field("sector size", sector, "512").into());
        }
        let block = u64::from(raw.block_size.get());
        let block = BlockSize::from_bytes(block).filter(|b| b.bytes() >= SECTOR).ok_or(field(
            "block size",
            block,
            "a power of two of at least 512",
        ))?;
        let extra = u64::from(raw.block_extra.get());
        if extra != 0 && (!extra.is_power_of_two() || extra < SECTOR) {
            return Err(
                field("size of what precedes a block", extra, "0 or a power of two of at least 512").into()
            );
        }
        let mut header = Self {
            raw: *raw,
            image_type,
            // VirtualBox makes odd sizes out of odd raw files; QEMU rounds them up as well.
            size: raw.disk_size.get().checked_next_multiple_of(SECTOR).ok_or(Common::Index(u64::MAX))?,
            block,
            extra,
            map: Span::first(0),
            data_at: raw.offset_data.get().into(),
            allocated: raw.blocks_allocated.get(),
        };
        header.map = header.check_map(file)?;
        Ok(header)
    }

    fn check_map(&self, file: u64) -> Result<Span> {
        let at = u64::from(self.raw.offset_blocks.get());
        let entries = u64::from(self.raw.blocks.get());
        for (what, found) in [("place of the map", at), ("place of the data", self.data_at)] {
            if found.rem_euclid(SECTOR) != 0 || found < SECTOR {
                let expected = "a multiple of 512 behind the header";
                return Err(VdiFault::Field { what, found, expected }.into());
            }
        }
        let need = self.block.count(self.size);
        if entries < need {
            return Err(VdiFault::MapShort { found: entries, need, size: self.size }.into());
        }
        let len = entries.saturating_mul(4);
        if len > MAP_BYTES_MAX {
            return Err(Common::TooLarge { what: "the block map", need: len, max: MAP_BYTES_MAX }.into());
        }
        let map = Span::new(at, len)?;
        let end = self.data_at.min(file);
        if map.end() > end {
            return Err(VdiFault::MapOutside { at, len, end }.into());
        }
        Ok(map)
    }

    /// The header of a new image.
    pub(super) fn new(image_type: ImageType, size: u64) -> Result<Self> {
        let mut raw = RawHeader::new_zeroed();
        raw.text.iter_mut().zip(TEXT).for_each(|(to, from)| *to = *from);
        raw.signature = SIGNATURE.into();
        raw.version = VERSION.into();
        raw.header_size = HEADER_SIZE.into();
        raw.image_type = image_type.number().into();
        raw.sector_size = 512.into();
        raw.geometry = [0.into(), 0.into(), 0.into(), 512.into()];
        raw.block_size = u32::try_from(BLOCK_BYTES).unwrap_or_default().into();
        raw.uuid_create = Uuid::new_v4().to_bytes_le();
        raw.uuid_modify = Uuid::new_v4().to_bytes_le();
        let block = BlockSize::from_bytes(BLOCK_BYTES).ok_or(Common::Index(BLOCK_BYTES))?;
        let map = Span::new(ALIGN, block.count(size).saturating_mul(4))?;
        let max = MAP_BYTES_MAX.div_euclid(4).saturating_mul(BLOCK_BYTES);
        if map.len() > MAP_BYTES_MAX {
            return Err(VdiFault::Size { bytes: size, max }.into());
        }
        let data_at = map.end().max(ALIGN.saturating_add(1)).next_multiple_of(ALIGN);
        let fixed = image_type == ImageType::Fixed;
        let allocated = if fixed { u32::try_from(block.count(size)).unwrap_or(u32::MAX) } else { 0 };
        let mut header = Self { raw, image_type, size, block, extra: 0, map, data_at, allocated };
        header.seal();
        Ok(header)
    }

    /// The same with changes.
    #[must_use]
    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Brings the fields in line with what was changed.
    pub(super) fn seal(&mut self) {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        self.raw.image_type = self.image_type.number().into();
        self.raw.disk_size = self.size.into();
        self.raw.offset_blocks = narrow(self.map.start()).into();
        self.raw.offset_data = narrow(self.data_at).into();
        self.raw.blocks = narrow(self.map.len() / 4).into();
        self.raw.blocks_allocated = self.allocated.into();
    }

    /// Says that the disk changes in this session.
    pub(super) fn modify(&mut self) {
        self.raw.uuid_modify = Uuid::new_v4().to_bytes_le();
    }

    /// Records the parent's UUID and that of its last change.
    pub(super) fn follow(&mut self, parent: Uuid, modified: Uuid) {
        self.raw.uuid_linkage = parent.to_bytes_le();
        self.raw.uuid_parent_modify = modified.to_bytes_le();
    }

    /// As it lies on disk: one sector.
    pub(super) fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    /// Bytes that a block takes in the file.
    pub(super) fn stride(&self) -> u64 {
        self.block.bytes().saturating_add(self.extra)
    }

    /// Where the data of place `number` of the file lie.
    pub(super) fn place(&self, number: u32) -> Result<Span> {
        let skip = u64::from(number).checked_mul(self.stride()).and_then(|n| n.checked_add(self.data_at));
        let at = skip.and_then(|n| n.checked_add(self.extra)).ok_or(Common::Index(number.into()))?;
        Span::new(at, self.block.bytes())
    }

    /// The UUID of this disk.
    pub(super) fn uuid(&self) -> Uuid {
        Uuid::from_bytes_le(self.raw.uuid_create)
    }

    /// The UUID of its last change.
    pub(super) fn modified(&self) -> Uuid {
        Uuid::from_bytes_le(self.raw.uuid_modify)
    }

    /// The UUID of the parent, and of its last change when the difference was begun.
    pub(super) fn parent(&self) -> (Uuid, Uuid) {
        (Uuid::from_bytes_le(self.raw.uuid_linkage), Uuid::from_bytes_le(self.raw.uuid_parent_modify))
    }

    /// What somebody wrote about the disk.
    pub(super) fn comment(&self) -> String {
        let end = self.raw.comment.iter().position(|b| *b == 0).unwrap_or(self.raw.comment.len());
        String::from_utf8_lossy(self.raw.comment.get(..end).unwrap_or_default()).into_owned()
    }
}

/// The size of the first sector of an image in bytes.
pub(super) fn header_bytes() -> u64 {
    len64(size_of::<RawHeader>())
}
