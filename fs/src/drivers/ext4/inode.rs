//! Inodes: kind, owner, sizes, times, device numbers.

use racker_formats::error::Result;
use racker_formats::wire::{part, sum_holds, take};

use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::features::{Incompat, RoCompat};
use super::layout::{
    INODE_BLOCK_AT, INODE_CHECKSUM_HI_AT, INODE_CHECKSUM_LO_AT, OLD_INODE_BYTES, RawInode, inode_flags,
};
use super::superblock::Superblock;
use crate::filesystem::{Flags, NodeKind, Stat, Time};

/// An inode whose checksum and basic fields are right.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) number: u32,
    /// All of it, as on disk.
    pub(super) bytes: Vec<u8>,
    /// Bytes of fixed fields; extended attributes may follow.
    pub(super) fixed: usize,
    pub(super) raw: RawInode,
    /// `None` for a mode that is none, which an unused inode may have.
    pub(super) kind: Option<NodeKind>,
    pub(super) size: u64,
    pub(super) links: u16,
    pub(super) flags: u32,
    /// Block of extended attributes, 0 for none.
    pub(super) xattr_block: u64,
    /// Where the checksums of this inode's own metadata blocks start from.
    pub(super) csum_seed: u32,
}

impl Inode {
    /// Checks the bytes of inode number `number`.
    pub(super) fn parse(sb: &Superblock, number: u32, bytes: Vec<u8>) -> Result<Self> {
        let inode = Self::parse_unchecked(sb, number, bytes)?;
        if sb.features.has_metadata_csum() {
            inode.check_sum()?;
        }
        Ok(inode)
    }

    /// The same without the checksum.
    pub(super) fn parse_unchecked(sb: &Superblock, number: u32, bytes: Vec<u8>) -> Result<Self> {
        // The 128 bytes of old are read as if zeroes followed.
        let mut long = bytes.clone();
        long.resize(long.len().max(size_of::<RawInode>()), 0);
        let mut raw = take::<RawInode>(&long, 0, "inode")?;
        let extra = if bytes.len() > OLD_INODE_BYTES { usize::from(raw.extra_isize.get()) } else { 0 };
        let fixed = OLD_INODE_BYTES.saturating_add(extra);
        if fixed > bytes.len() || !extra.is_multiple_of(4) {
            let found = u64::from(raw.extra_isize.get());
            return Err(Ext4Fault::Inode { field: "i_extra_isize", found }.into());
        }
        // What lies behind the fixed fields are extended attributes, no fields.
        if fixed < size_of::<RawInode>() {
            if let Some(rest) = long.get_mut(fixed..) {
                rest.fill(0);
            }
            raw = take::<RawInode>(&long, 0, "inode")?;
        }
        let kind = NodeKind::from_mode(raw.mode.get().into());
        let flags = raw.flags.get();
        let mut size = u64::from(raw.size_lo.get());
        // The high half was something else for directories; `large_dir` gave it back.
        if kind == Some(NodeKind::File) || sb.features.incompat.contains(Incompat::LARGEDIR) {
            size |= u64::from(raw.size_hi.get()) << 32;
        }
        let seed = crc32c(crc32c(sb.csum_seed, &number.to_le_bytes()), &raw.generation.get().to_le_bytes());
        let acl_hi = if sb.is_linux() { raw.file_acl_hi.get() } else { 0 };
        let inode = Self {
            number,
            fixed,
            kind,
            size,
            links: raw.links_count.get(),
            flags,
            xattr_block: u64::from(acl_hi) << 32 | u64::from(raw.file_acl_lo.get()),
            csum_seed: seed,
            raw,
            bytes,
        };
        inode.check_size(sb)?;
        Ok(inode)
    }

    /// No file has more than 2^32 blocks, and no offset in one is negative.
    fn check_size(&self, sb: &Superblock) -> Result<()> {
        let max = sb.block_size.bytes().saturating_mul(1 << 32).min(1 << 63);
        if self.size >= max {
            return Err(Ext4Fault::Inode { field: "i_size", found: self.size }.into());
        }
        Ok(())
    }

    fn check_sum(&self) -> Result<()> {
        const WHAT: &str = "the inode";
        // The low half is always there, the high half if the fixed fields reach it.
        let has_hi = self.fixed >= INODE_CHECKSUM_HI_AT.saturating_add(2);
        let mut zeroed = self.bytes.clone();
        for at in [Some(INODE_CHECKSUM_LO_AT), has_hi.then_some(INODE_CHECKSUM_HI_AT)].into_iter().flatten() {
            if let Some(field) = zeroed.get_mut(at..).and_then(|b| b.get_mut(..2)) {
                field.fill(0);
            }
        }
        let computed = crc32c(self.csum_seed, &zeroed) & if has_hi { u32::MAX } else { 0xffff };
        let hi = if has_hi { u32::from(self.raw.checksum_hi.get()) << 16 } else { 0 };
        let found = hi | u32::from(self.raw.checksum_lo.get());
        // An inode that was never written is all zeroes, and has no checksum.
        if !sum_holds(found, computed) && !racker_formats::wire::is_zero(&self.bytes) {
            return Err(Ext4Fault::Checksum { what: WHAT, found, computed }.into());
        }
        Ok(())
    }

    /// The 60 bytes that hold the root of the block map, a short link's target or inline data.
    pub(super) fn block(&self) -> &[u8] {
        part(&self.bytes, INODE_BLOCK_AT, 60, "inode").unwrap_or_default()
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether it only holds the value of an extended attribute.
    pub(super) fn is_ea_inode(&self) -> bool {
        self.has(inode_flags::EA_INODE)
    }

    /// Refuses what cannot be read without a key.
    pub(super) fn check_plain(&self) -> Result<()> {
        if self.has(inode_flags::ENCRYPT) {
            return Err(Ext4Fault::Encrypted(self.number).into());
        }
        Ok(())
    }

    /// Whether the target of a symbolic link is in the inode instead of in a block.
    pub(super) fn is_fast_link(&self, sb: &Superblock) -> bool {
        let xattr_sectors = if self.xattr_block == 0 {
            0
        } else {
            (sb.block_size.bytes() >> 9).checked_shl(sb.cluster_shift).unwrap_or(0)
        };
        let inline = self.has(inode_flags::INLINE_DATA | inode_flags::EXTENTS);
        // The blocks of values in inodes of their own are counted too, so the count says nothing there.
        let has_none =
            sb.features.incompat.contains(Incompat::EA_INODE) || self.allocated(sb) >> 9 <= xattr_sectors;
        !inline && self.size < 60 && has_none
    }

    /// Bytes that it takes on the volume.
    pub(super) fn allocated(&self, sb: &Superblock) -> u64 {
        let lo = u64::from(self.raw.blocks_lo.get());
        if !sb.features.ro_compat.contains(RoCompat::HUGE_FILE) {
            return lo << 9;
        }
        let units = u64::from(self.raw.blocks_hi.get()) << 32 | lo;
        let shift = if self.has(inode_flags::HUGE_FILE) { sb.block_size.shift() } else { 9 };
        units.checked_shl(shift).unwrap_or(u64::MAX)
    }

    /// What the kernel adds to a file's blocks for inline data, lest programs take it for a hole.
    fn inline_shown(&self) -> u64 {
        let is_inline = self.kind == Some(NodeKind::File) && self.has(inode_flags::INLINE_DATA);
        if is_inline { self.size.div_ceil(512) << 9 } else { 0 }
    }

    /// Everything that `stat` shows.
    pub(super) fn stat(&self, sb: &Superblock) -> Result<Stat> {
        let r = &self.raw;
        let mode = u32::from(r.mode.get());
        let kind = self.kind.ok_or(Ext4Fault::Inode { field: "i_mode", found: mode.into() })?;
        let hi = |n: u16| if sb.is_linux() { u32::from(n) << 16 } else { 0 };
        let has_project = sb.features.ro_compat.contains(RoCompat::PROJECT);
        let device = matches!(kind, NodeKind::Char | NodeKind::Block);
        Ok(Stat {
            kind,
            mode: mode & 0o7777,
            uid: hi(r.uid_hi.get()) | u32::from(r.uid.get()),
            gid: hi(r.gid_hi.get()) | u32::from(r.gid.get()),
            size: if device { 0 } else { self.size },
            allocated: self.allocated(sb).saturating_add(self.inline_shown()),
            links: self.links.into(),
            atime: time(r.atime.get(), r.atime_extra.get()),
            mtime: time(r.mtime.get(), r.mtime_extra.get()),
            ctime: time(r.ctime.get(), r.ctime_extra.get()),
            crtime: (self.fixed >= 0x98).then(|| time(r.crtime.get(), r.crtime_extra.get())),
            rdev: if device { self.device_number() } else { (0, 0) },
            flags: Flags::from_bits_truncate(self.flags),
            project: if has_project { r.projid.get() } else { 0 },
            generation: r.generation.get(),
        })
    }

    /// Major and minor number: 8 and 8 bits in the first word, or 12 and 20 in the second.
    fn device_number(&self) -> (u32, u32) {
        let word = |at| take::<[u8; 4]>(self.block(), at, "device number").map_or(0, u32::from_le_bytes);
        match word(0) {
            0 => {
                let new = word(4);
                ((new & 0xf_ff00) >> 8, (new & 0xff) | ((new >> 12) & 0xf_ff00))
            }
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

/// A time of 32 bits, with two more bits of seconds and the nanoseconds in the extra field.
fn time(sec: u32, extra: u32) -> Time {
    let base = i64::from(sec.cast_signed());
    let epoch = i64::from(extra & 3) << 32;
    Time { sec: base.saturating_add(epoch), nsec: (extra >> 2).min(999_999_999) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_from_1901_to_2446() {
        assert_eq!(time(0x8000_0000, 0), Time { sec: -2_147_483_648, nsec: 0 });
        assert_eq!(time(0xffff_ffff, 4), Time { sec: -1, nsec: 1 });
        assert_eq!(time(0x8000_0000, 1), Time { sec: 2_147_483_648, nsec: 0 });
        assert_eq!(time(0x7fff_ffff, 3), Time { sec: 15_032_385_535, nsec: 0 });
    }
}
