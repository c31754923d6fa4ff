//! The superblock, checked: everything that the rest of the driver takes for granted, and the conversions between
//! the ways XFS counts places.

use racker_formats::block::{BlockSize, Disk, Span};
use racker_formats::error::Result;
use racker_formats::wire::{self, take};

use super::crc;
use super::fault::Fault;
use super::layout::{RawSuperblock, RawUuid, SB_MAGIC};
use super::units::{AgBlock, AgNo, BASIC_BLOCK_SHIFT, Daddr, FsBlock, InodeNo, Lsn};

bitflags::bitflags! {
    /// Features whose absence from a reader forbids reading.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Incompat: u32 {
        const FTYPE = 1 << 0;
        const SPINODES = 1 << 1;
        const META_UUID = 1 << 2;
        const BIGTIME = 1 << 3;
        const NEEDSREPAIR = 1 << 4;
        const NREXT64 = 1 << 5;
        const EXCHRANGE = 1 << 6;
        const PARENT = 1 << 7;
        const METADIR = 1 << 8;
        const ZONED = 1 << 9;
        const ZONE_GAPS = 1 << 10;
    }

    /// Features whose absence from a writer forbids writing.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct RoCompat: u32 {
        const FINOBT = 1 << 0;
        const RMAPBT = 1 << 1;
        const REFLINK = 1 << 2;
        const INOBTCNT = 1 << 3;
    }

    /// Features of log items; they matter only while the log is not empty.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct LogIncompat: u32 {
        const XATTRS = 1 << 0;
    }

    /// `sb_features2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Features2: u32 {
        const LAZYSBCOUNT = 0x2;
        const ATTR2 = 0x8;
        const PROJID32 = 0x80;
        const CRC = 0x100;
        const FTYPE = 0x200;
    }

    /// The bits of `sb_versionnum` above the version.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct VersionBits: u16 {
        const ATTR = 0x10;
        const NLINK = 0x20;
        const QUOTA = 0x40;
        const ALIGN = 0x80;
        const DALIGN = 0x100;
        const SHARED = 0x200;
        const LOGV2 = 0x400;
        const SECTOR = 0x800;
        const EXTFLG = 0x1000;
        const DIRV2 = 0x2000;
        /// ASCII names without regard to case.
        const BORG = 0x4000;
        const MOREBITS = 0x8000;
    }
}

/// Incompatible features that racker reads.
const INCOMPAT_READ: Incompat = Incompat::FTYPE
    .union(Incompat::SPINODES)
    .union(Incompat::META_UUID)
    .union(Incompat::BIGTIME)
    .union(Incompat::NREXT64)
    .union(Incompat::EXCHRANGE)
    .union(Incompat::PARENT)
    .union(Incompat::METADIR);

/// Blocks of the smallest allocation group there can be.
const AG_BLOCKS_MIN: u64 = 64;
/// The largest stripe unit of a log in bytes: a log record is no longer.
const LOG_SUNIT_MAX: u32 = 256 << 10;
/// The largest log in bytes.
const LOG_BYTES_MAX: u64 = (1 << 31) - (1 << 10);
/// Offset of `sb_crc`.
const CRC_AT: usize = core::mem::offset_of!(RawSuperblock, sb_crc);

/// A superblock that holds together.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// As it lies on disk.
    pub(super) raw: RawSuperblock,
    /// Version 5: every block describes itself and has a checksum.
    pub(super) v5: bool,
    pub(super) version_bits: VersionBits,
    pub(super) features2: Features2,
    pub(super) incompat: Incompat,
    pub(super) ro_compat: RoCompat,
    pub(super) log_incompat: LogIncompat,
    /// The UUID users see.
    pub(super) uuid: RawUuid,
    /// The UUID in every block: it stays when users change theirs.
    pub(super) meta_uuid: RawUuid,
    pub(super) block_size: BlockSize,
    pub(super) sector_size: BlockSize,
    pub(super) inode_size: BlockSize,
    pub(super) dir_block_size: BlockSize,
    /// Blocks of the filesystem.
    pub(super) blocks: u64,
    /// Blocks of every allocation group but the last.
    pub(super) ag_blocks: u32,
    /// Allocation groups.
    pub(super) ag_count: u32,
    /// Bits of a block number within its group.
    pub(super) ag_blklog: u32,
    /// Binary logarithm of the inodes in a block.
    pub(super) inopblog: u32,
    pub(super) root: InodeNo,
    pub(super) log: LogPlace,
    /// Alignment of inode chunks in blocks; 0 is none.
    pub(super) inode_align: u32,
    /// Alignment of sparse inode chunks in blocks.
    pub(super) sparse_align: u32,
}

/// Where the log is and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPlace {
    pub(super) start: FsBlock,
    /// Length in filesystem blocks.
    pub(super) blocks: u32,
    /// Bytes its records are padded to: the stripe unit, or 512.
    pub(super) sunit: u32,
    /// The stripe unit as the superblock has it: 0 and 1 are none.
    pub(super) sunit_raw: u32,
    pub(super) sector_size: BlockSize,
    /// Version 2: records of up to 256 KiB and stripe units.
    pub(super) v2: bool,
}

/// Names of feature bits, unknown ones in hexadecimal.
pub(super) fn names<F: bitflags::Flags<Bits = u32>>(flags: &F) -> String {
    let mut all: Vec<String> = flags.iter_names().map(|(n, _)| n.to_ascii_lowercase()).collect();
    let unknown = flags.bits() & !F::all().bits();
    if unknown != 0 {
        all.push(format!("unknown features {unknown:#x}"));
    }
    all.join(", ")
}

fn field(what: &'static str, found: impl Into<u64>, good: bool, why: &'static str) -> Result<()> {
    if good { Ok(()) } else { Err(Fault::Field { what, found: found.into(), why }.into()) }
}

/// A size that is given by its logarithm too.
fn size(what: &'static str, bytes: u64, log: u8, range: std::ops::RangeInclusive<u64>) -> Result<BlockSize> {
    let size = BlockSize::from_bytes(bytes).filter(|s| s.shift() == u32::from(log) && range.contains(&bytes));
    size.ok_or_else(|| {
        Fault::Field { what, found: bytes, why: "no such size, or not as its logarithm says" }.into()
    })
}

impl Superblock {
    /// Reads the first superblock of a volume and checks it.
    pub(super) fn read(volume: &Disk) -> Result<Self> {
        let raw: RawSuperblock = wire::read(volume, 0, "superblock")?;
        field("sb_magicnum", raw.sb_magicnum.get(), raw.sb_magicnum.get() == SB_MAGIC, "not XFSB")?;
        let len = u64::from(raw.sb_sectsize.get());
        let sector = wire::bytes(volume, 0, len, 32 << 10, "superblock")?;
        Self::parse(&sector, volume.size())
    }

    /// Checks the superblock in `sector`, which is all of the sector, for a volume of `volume_size` bytes.
    pub(super) fn parse(sector: &[u8], volume_size: u64) -> Result<Self> {
        Self::parse_any(sector, volume_size, false)
    }

    fn parse_any(sector: &[u8], volume_size: u64, copy: bool) -> Result<Self> {
        let raw: RawSuperblock = take(sector, 0, "superblock")?;
        if raw.sb_magicnum.get() != SB_MAGIC {
            let found = raw.sb_magicnum.get();
            return Err(Fault::Magic { what: "superblock", found, expected: SB_MAGIC }.into());
        }
        let version = raw.sb_versionnum.get() & 0xf;
        if !(4..=5).contains(&version) {
            return Err(Fault::Version { found: version }.into());
        }
        let v5 = version == 5;
        if v5 {
            crc::check(sector, CRC_AT, "superblock")?;
        }
        let sb = Self::build(raw, v5)?;
        if sb.raw.sb_inprogress != 0 && !copy {
            return Err(Fault::InProgress.into());
        }
        sb.check_features()?;
        sb.check_geometry(volume_size)?;
        if !copy {
            sb.inode_offset(sb.root)?;
        }
        Ok(sb)
    }

    /// The same for a copy in another group: mkfs wrote it before it was done.
    pub(super) fn parse_copy(sector: &[u8], volume_size: u64) -> Result<Self> {
        Self::parse_any(sector, volume_size, true)
    }

    fn build(raw: RawSuperblock, v5: bool) -> Result<Self> {
        let version_bits = VersionBits::from_bits_retain(raw.sb_versionnum.get() & !0xf);
        let more = v5 || version_bits.contains(VersionBits::MOREBITS);
        let bits = |present: bool, word: u32| if present { word } else { 0 };
        let features2 = Features2::from_bits_retain(bits(more, raw.sb_features2.get()));
        let incompat = Incompat::from_bits_retain(bits(v5, raw.sb_features_incompat.get()));
        let ro_compat = RoCompat::from_bits_retain(bits(v5, raw.sb_features_ro_compat.get()));
        let log_incompat = LogIncompat::from_bits_retain(bits(v5, raw.sb_features_log_incompat.get()));
        let block_min = if v5 { 1024 } else { 512 };
        let block_size =
            size("sb_blocksize", raw.sb_blocksize.get().into(), raw.sb_blocklog, block_min..=64 << 10)?;
        let sector_size = size("sb_sectsize", raw.sb_sectsize.get().into(), raw.sb_sectlog, 512..=32 << 10)?;
        let inode_min = if v5 { 512 } else { 256 };
        let inode_size =
            size("sb_inodesize", raw.sb_inodesize.get().into(), raw.sb_inodelog, inode_min..=2048)?;
        field(
            "sb_sectsize",
            sector_size.bytes(),
            sector_size.bytes() <= block_size.bytes(),
            "a sector is no larger than a block",
        )?;
        let inopblog = block_size.shift().checked_sub(inode_size.shift());
        let inopblog = inopblog.filter(|l| *l == u32::from(raw.sb_inopblog) && *l > 0);
        let inopblog = inopblog.ok_or(Fault::Field {
            what: "sb_inopblog",
            found: raw.sb_inopblog.into(),
            why: "not the logarithm of a block's inodes",
        })?;
        let dir_shift = block_size.shift().saturating_add(raw.sb_dirblklog.into());
        let dir_block_size = BlockSize::from_shift(dir_shift).filter(|s| s.bytes() <= 64 << 10);
        let dir_block_size = dir_block_size.ok_or(Fault::Field {
            what: "sb_dirblklog",
            found: raw.sb_dirblklog.into(),
            why: "a directory block has at most 64 KiB",
        })?;
        let log = Self::log_place(&raw, version_bits, block_size)?;
        let meta_uuid = if incompat.contains(Incompat::META_UUID) { raw.sb_meta_uuid } else { raw.sb_uuid };
        Ok(Self {
            v5,
            version_bits,
            features2,
            incompat,
            ro_compat,
            log_incompat,
            uuid: raw.sb_uuid,
            meta_uuid,
            block_size,
            sector_size,
            inode_size,
            dir_block_size,
            blocks: raw.sb_dblocks.get(),
            ag_blocks: raw.sb_agblocks.get(),
            ag_count: raw.sb_agcount.get(),
            ag_blklog: raw.sb_agblklog.into(),
            inopblog,
            root: InodeNo(raw.sb_rootino.get()),
            log,
            inode_align: if version_bits.contains(VersionBits::ALIGN) { raw.sb_inoalignmt.get() } else { 0 },
            sparse_align: raw.sb_spino_align.get(),
            raw,
        })
    }

    fn log_place(raw: &RawSuperblock, bits: VersionBits, block_size: BlockSize) -> Result<LogPlace> {
        let sector_size = if raw.sb_logsectsize.get() == 0 {
            BlockSize::from_shift(BASIC_BLOCK_SHIFT)
        } else {
            let bytes = u64::from(raw.sb_logsectsize.get());
            Some(size("sb_logsectsize", bytes, raw.sb_logsectlog, 512..=32 << 10)?)
        };
        let sector_size = sector_size.ok_or(Fault::Unsupported { what: "a log without sectors" })?;
        let v2 = bits.contains(VersionBits::LOGV2);
        let sunit_raw = raw.sb_logsunit.get();
        let fits = sunit_raw <= LOG_SUNIT_MAX && (sunit_raw <= 1 || u64::from(sunit_raw).is_multiple_of(512));
        field(
            "sb_logsunit",
            sunit_raw,
            fits,
            "a log's stripe unit is a multiple of 512 and at most 256 KiB",
        )?;
        let bytes = u64::from(raw.sb_logblocks.get()).saturating_mul(block_size.bytes());
        field("sb_logblocks", bytes, bytes <= LOG_BYTES_MAX, "a log has less than 2 GiB")?;
        Ok(LogPlace {
            start: FsBlock(raw.sb_logstart.get()),
            blocks: raw.sb_logblocks.get(),
            sunit: if v2 && sunit_raw > 1 { sunit_raw } else { 512 },
            sunit_raw,
            sector_size,
            v2,
        })
    }

    fn check_features(&self) -> Result<()> {
        if self.incompat.contains(Incompat::NEEDSREPAIR) {
            return Err(Fault::NeedsRepair.into());
        }
        let unread = Incompat::from_bits_retain(self.incompat.bits() & !INCOMPAT_READ.bits());
        if !unread.is_empty() {
            return Err(Fault::Features { features: names(&unread) }.into());
        }
        let unread = self.version_bits.intersection(VersionBits::SHARED);
        let needed = VersionBits::EXTFLG.union(VersionBits::DIRV2);
        if !unread.is_empty() || !self.version_bits.contains(needed) {
            let features = format!("version bits {:#x}", self.version_bits.bits());
            return Err(Fault::Features { features }.into());
        }
        let unread = self.features2.bits() & !Features2::all().bits();
        if !self.v5 && unread != 0 {
            return Err(Fault::Features { features: format!("unknown features2 {unread:#x}") }.into());
        }
        Ok(())
    }

    fn check_geometry(&self, volume_size: u64) -> Result<()> {
        let (ag_blocks, ag_count) = (u64::from(self.ag_blocks), u64::from(self.ag_count));
        field("sb_agcount", self.ag_count, ag_count > 0, "no allocation group")?;
        let log = ag_blocks.checked_next_power_of_two().map(u64::trailing_zeros);
        let fits = ag_blocks >= AG_BLOCKS_MIN && log == Some(self.ag_blklog);
        field("sb_agblocks", self.ag_blocks, fits, "no such size, or not as its logarithm says")?;
        let most = ag_blocks.saturating_mul(ag_count);
        let least = ag_blocks.saturating_mul(ag_count.saturating_sub(1)).saturating_add(AG_BLOCKS_MIN);
        let fits = (least..=most).contains(&self.blocks);
        field("sb_dblocks", self.blocks, fits, "not what the allocation groups add up to")?;
        let need = self.blocks.saturating_mul(self.block_size.bytes());
        if need > volume_size {
            return Err(Fault::Truncated { need, have: volume_size }.into());
        }
        if self.raw.sb_shared_vn != 0 {
            return Err(Fault::Unsupported { what: "a shared superblock" }.into());
        }
        if self.log.start.0 == 0 {
            return Err(Fault::ExternalLog.into());
        }
        field("sb_logblocks", self.log.blocks, self.log.blocks > 0, "no log")?;
        self.span(self.log.start, u64::from(self.log.blocks))?;
        Ok(())
    }

    /// Why racker does not write to it, if so.
    pub(super) fn unwritable(&self) -> Option<Fault> {
        if !self.v5 {
            return Some(Fault::ReadOnlyFeatures { features: "version 4 of the format".into() });
        }
        if self.incompat.contains(Incompat::METADIR) {
            return Some(Fault::ReadOnlyFeatures { features: "metadir".into() });
        }
        let unknown = RoCompat::from_bits_retain(self.ro_compat.bits() & !RoCompat::all().bits());
        (!unknown.is_empty()).then(|| Fault::ReadOnlyFeatures { features: names(&unknown) })
    }

    /// Whether directory entries tell the kind of node they name.
    pub(super) fn ftype(&self) -> bool {
        self.incompat.contains(Incompat::FTYPE) || self.features2.contains(Features2::FTYPE) && !self.v5
    }

    /// Blocks of a group: the last may be shorter.
    pub(super) fn ag_length(&self, ag: AgNo) -> Result<u32> {
        let before = u64::from(self.ag_blocks).saturating_mul(ag.0.into());
        let length = self.blocks.saturating_sub(before).min(self.ag_blocks.into());
        if ag.0 >= self.ag_count || length == 0 {
            return Err(Fault::BlockRange { ag: ag.0.into(), block: 0, len: 1 }.into());
        }
        // At most ag_blocks, which is 32 bits wide.
        Ok(u32::try_from(length).unwrap_or(self.ag_blocks))
    }

    /// The filesystem's number of a block within a group.
    pub(super) fn fs_block(&self, ag: AgNo, block: AgBlock) -> Result<FsBlock> {
        if block.0 >= self.ag_length(ag)? {
            return Err(Fault::BlockRange { ag: ag.0.into(), block: block.0.into(), len: 1 }.into());
        }
        let high = u64::from(ag.0).checked_shl(self.ag_blklog).unwrap_or(u64::MAX);
        Ok(FsBlock(high | u64::from(block.0)))
    }

    /// The group of a block, and its number within it. Checked: both are inside the filesystem.
    pub(super) fn split(&self, block: FsBlock) -> Result<(AgNo, AgBlock)> {
        let ag = block.0.checked_shr(self.ag_blklog).unwrap_or(0);
        let high = ag.checked_shl(self.ag_blklog).unwrap_or(0);
        let within = block.0 ^ high;
        let fault = Fault::BlockRange { ag, block: within, len: 1 };
        let (Ok(ag), Ok(within)) = (u32::try_from(ag), u32::try_from(within)) else {
            return Err(fault.into());
        };
        self.fs_block(AgNo(ag), AgBlock(within))?;
        Ok((AgNo(ag), AgBlock(within)))
    }

    /// The bytes of `len` blocks of a group.
    pub(super) fn ag_span(&self, ag: AgNo, block: AgBlock, len: u64) -> Result<Span> {
        let fault = || Fault::BlockRange { ag: ag.0.into(), block: block.0.into(), len };
        let length = u64::from(self.ag_length(ag)?);
        let end = u64::from(block.0).checked_add(len).ok_or_else(fault)?;
        if end > length || len == 0 {
            return Err(fault().into());
        }
        let first = u64::from(self.ag_blocks).saturating_mul(ag.0.into()).saturating_add(block.0.into());
        let start = self.block_size.start_of(first).ok_or_else(fault)?;
        Span::new(start, self.block_size.start_of(len).ok_or_else(fault)?)
    }

    /// The bytes of `len` blocks of the filesystem; they never leave their group.
    pub(super) fn span(&self, block: FsBlock, len: u64) -> Result<Span> {
        let (ag, within) = self.split(block)?;
        self.ag_span(ag, within, len)
    }

    /// The place of a block in 512-byte units.
    pub(super) fn daddr(&self, block: FsBlock) -> Result<Daddr> {
        Ok(Daddr(self.span(block, 1)?.start() >> BASIC_BLOCK_SHIFT))
    }

    /// The byte offset of header sector `sector` of a group: 0 superblock, 1 AGF, 2 AGI, 3 AGFL.
    pub(super) fn ag_header(&self, ag: AgNo, sector: u32) -> Result<u64> {
        let start = self.ag_span(ag, AgBlock(0), 1)?.start();
        let within = self.sector_size.start_of(sector.into()).unwrap_or(0);
        Ok(start.saturating_add(within))
    }

    /// The group of an inode, the block within it, and the inode's place in the block.
    pub(super) fn split_inode(&self, ino: InodeNo) -> Result<(AgNo, AgBlock, u32)> {
        let fault = || Fault::InodeRange { ino: ino.0 };
        let block = ino.0.checked_shr(self.inopblog).unwrap_or(0);
        let place = ino.0 ^ block.checked_shl(self.inopblog).unwrap_or(0);
        let (ag, block) = self.split(FsBlock(block)).map_err(|_| fault())?;
        Ok((ag, block, u32::try_from(place).map_err(|_| fault())?))
    }

    /// The byte offset of an inode.
    pub(super) fn inode_offset(&self, ino: InodeNo) -> Result<u64> {
        let (ag, block, place) = self.split_inode(ino)?;
        let within = self.inode_size.start_of(place.into()).ok_or(Fault::InodeRange { ino: ino.0 })?;
        Ok(self.ag_span(ag, block, 1)?.start().saturating_add(within))
    }

    /// An inode's number within its group.
    pub(super) fn ag_inode(&self, ino: InodeNo) -> Result<(AgNo, u32)> {
        let (ag, block, place) = self.split_inode(ino)?;
        let number = block.0.checked_shl(self.inopblog).filter(|n| n >> self.inopblog == block.0);
        Ok((ag, number.ok_or(Fault::InodeRange { ino: ino.0 })? | place))
    }

    /// The inode with number `number` within a group.
    pub(super) fn inode(&self, ag: AgNo, number: u32) -> Result<InodeNo> {
        let bits = self.ag_blklog.saturating_add(self.inopblog);
        let high = u64::from(ag.0).checked_shl(bits).unwrap_or(u64::MAX);
        let ino = InodeNo(high | u64::from(number));
        match self.split_inode(ino) {
            Ok((found, ..)) if found == ag => Ok(ino),
            _ => Err(Fault::InodeRange { ino: ino.0 }.into()),
        }
    }

    /// The log sequence number of the superblock's last change.
    pub(super) fn lsn(&self) -> Lsn {
        Lsn(if self.v5 { self.raw.sb_lsn.get() } else { 0 })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    /// A superblock of four groups of 1000 blocks of 4 KiB, the last one shorter.
    pub(in super::super) fn sample() -> RawSuperblock {
        let mut raw = RawSuperblock::new_zeroed();
        raw.sb_magicnum = SB_MAGIC.into();
        raw.sb_blocksize = 4096.into();
        raw.sb_blocklog = 12;
        raw.sb_sectsize = 512.into();
        raw.sb_sectlog = 9;
        raw.sb_inodesize = 512.into();
        raw.sb_inodelog = 9;
        raw.sb_inopblog = 3;
        raw.sb_inopblock = 8.into();
        raw.sb_agblocks = 1000.into();
        raw.sb_agblklog = 10;
        raw.sb_agcount = 4.into();
        raw.sb_dblocks = 3500.into();
        raw.sb_rootino = 128.into();
        raw.sb_logstart = 2048.into();
        raw.sb_logblocks = 900.into();
        raw.sb_versionnum = 0xb4a5.into();
        raw.sb_features2 = 0x18a.into();
        raw.sb_features_incompat = 3.into();
        raw
    }

    pub(in super::super) fn parse(mut raw: RawSuperblock, size: u64) -> Result<Superblock> {
        let mut sector = [0; 512];
        raw.sb_crc = 0.into();
        sector[..264].copy_from_slice(raw.as_bytes());
        crc::stamp(&mut sector, CRC_AT)?;
        Superblock::parse(&sector, size)
    }

    #[test]
    fn places_convert_and_stay_inside() {
        let sb = parse(sample(), 1 << 30).unwrap();
        let block = sb.fs_block(AgNo(3), AgBlock(499)).unwrap();
        assert_eq!(block, FsBlock(3 * 1024 + 499));
        assert_eq!(sb.split(block).unwrap(), (AgNo(3), AgBlock(499)));
        assert_eq!(sb.span(block, 1).unwrap().start(), (3 * 1000 + 499) * 4096);
        assert!(sb.span(block, 2).is_err(), "past the end of the last group");
        assert!(sb.span(FsBlock(1000), 1).is_err(), "between two groups");
        assert!(sb.span(FsBlock(u64::MAX), 1).is_err());
        assert!(sb.fs_block(AgNo(4), AgBlock(0)).is_err());
        let ino = sb.inode(AgNo(1), 8 * 7 + 3).unwrap();
        assert_eq!(sb.inode_offset(ino).unwrap(), 1007 * 4096 + 3 * 512);
        assert_eq!(sb.ag_inode(ino).unwrap(), (AgNo(1), 59));
        assert!(sb.inode(AgNo(0), u32::MAX).is_err());
        assert!(sb.inode_offset(InodeNo(u64::MAX)).is_err());
        assert_eq!(sb.ag_header(AgNo(1), 2).unwrap(), 1000 * 4096 + 1024);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (bits, name) in [(1 << 9, "zoned"), (1 << 31, "0x80000000")] {
            let mut raw = sample();
            raw.sb_features_incompat = (bits | 3).into();
            let e = parse(raw, 1 << 30).unwrap_err();
            assert!(e.to_string().contains(name), "{e}");
        }
        let mut raw = sample();
        raw.sb_features_incompat = 0x10.into();
        assert!(parse(raw, 1 << 30).unwrap_err().hint().unwrap().contains("xfs_repair"));
        let mut raw = sample();
        raw.sb_features_ro_compat = (1 << 20).into();
        assert!(parse(raw, 1 << 30).unwrap().unwritable().is_some());
        let mut raw = sample();
        raw.sb_features_incompat = (1 << 8 | 3).into();
        assert!(parse(raw, 1 << 30).unwrap().unwritable().unwrap().to_string().contains("metadir"));
    }

    #[test]
    fn nonsense_is_refused() {
        let cases: [fn(&mut RawSuperblock); 9] = [
            |r| r.sb_blocksize = 4095.into(),
            |r| r.sb_agblocks = 2000.into(),
            |r| r.sb_agcount = 0.into(),
            |r| r.sb_dblocks = u64::MAX.into(),
            |r| r.sb_dirblklog = 200,
            |r| r.sb_logblocks = 2000.into(),
            |r| r.sb_logstart = 0.into(),
            |r| r.sb_rootino = u64::MAX.into(),
            |r| r.sb_inopblog = 4,
        ];
        for case in cases {
            let mut raw = sample();
            case(&mut raw);
            assert!(parse(raw, 1 << 30).is_err());
        }
        assert!(parse(sample(), 3500 * 4096 - 1).is_err());
    }
}
