//! An inode that is being changed.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part};
use zerocopy::IntoBytes;

use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::features::{Incompat, RoCompat};
use super::super::inode::Inode;
use super::super::layout::{
    INODE_CHECKSUM_HI_AT, INODE_CHECKSUM_LO_AT, INODE_GENERATION_AT, OLD_INODE_BYTES, RawInode, inode_flags,
};
use super::super::superblock::Superblock;
use super::Edit;
use super::bytes::{get16, low16, low32, put, put16};
use crate::filesystem::{NodeKind, Time};

/// Where the field behind the project id would be: all fields that are known end before.
const ALL_FIELDS: usize = 160;
/// Sizes up to this need no `large_file`.
const SMALL_MAX: u64 = 0x7fff_ffff;
/// Links that a node can have.
pub(super) const LINKS_MAX: u16 = 65_000;

/// An inode: its fixed fields as a structure, all of it as bytes.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) number: u32,
    pub(super) raw: RawInode,
    pub(super) kind: NodeKind,
    pub(super) size: u64,
    /// Bytes of fixed fields; extended attributes follow.
    pub(super) fixed: usize,
    /// All of it; what the fixed fields cover is brought up to date when it is stored.
    pub(super) bytes: Vec<u8>,
}

impl Node {
    /// The node of an inode that was read.
    pub(super) fn of(inode: Inode) -> Result<Self> {
        let mode = u64::from(inode.raw.mode.get());
        let kind = inode.kind.ok_or(Ext4Fault::Inode { field: "i_mode", found: mode })?;
        let Inode { number, raw, size, fixed, bytes, .. } = inode;
        Ok(Self { number, raw, kind, size, fixed, bytes })
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.raw.flags.get() & flag != 0
    }

    /// Sets or clears flags.
    pub(super) fn set_flag(&mut self, flag: u32, on: bool) {
        let flags = self.raw.flags.get();
        self.raw.flags = if on { flags | flag } else { flags & !flag }.into();
    }

    pub(super) fn is_inline(&self) -> bool {
        self.has(inode_flags::INLINE_DATA)
    }

    /// Bytes with all fields as they are now, without a checksum.
    pub(super) fn all(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let fixed = self.fixed.min(ALL_FIELDS);
        for (to, from) in bytes.iter_mut().zip(self.raw.as_bytes().iter().take(fixed)) {
            *to = *from;
        }
        bytes
    }

    /// The inode as the reading half sees it.
    pub(super) fn view(&self, sb: &Superblock) -> Result<Inode> {
        let mut inode = Inode::parse_unchecked(sb, self.number, self.all())?;
        inode.size = self.size;
        Ok(inode)
    }

    /// Where the checksums of its own metadata start from.
    pub(super) fn seed(&self, sb: &Superblock) -> u32 {
        crc32c(crc32c(sb.csum_seed, &self.number.to_le_bytes()), &self.raw.generation.get().to_le_bytes())
    }

    /// 512-byte sectors, or blocks in a huge file, that it takes.
    pub(super) fn add_blocks(&mut self, sb: &Superblock, blocks: i64) -> Result<()> {
        let shift = sb.block_size.shift().saturating_sub(9);
        let has_huge = sb.features.ro_compat.contains(RoCompat::HUGE_FILE);
        let hi = if has_huge { u64::from(self.raw.blocks_hi.get()) << 32 } else { 0 };
        let counted = hi | u64::from(self.raw.blocks_lo.get());
        let sectors = if has_huge && self.has(inode_flags::HUGE_FILE) {
            counted.checked_shl(shift).unwrap_or(u64::MAX)
        } else {
            counted
        };
        let change = blocks.checked_mul(1i64.wrapping_shl(shift));
        let now = change
            .and_then(|change| sectors.checked_add_signed(change))
            .ok_or(Ext4Fault::Inode { field: "i_blocks", found: sectors })?;
        let max = if has_huge { (1u64 << 48).saturating_sub(1) } else { u64::from(u32::MAX) };
        let huge = now > max;
        if huge && !has_huge {
            return Err(Ext4Fault::Cannot("without huge_file no file takes 2 TiB".into()).into());
        }
        let stored = if huge { now >> shift } else { now };
        self.set_flag(inode_flags::HUGE_FILE, huge);
        self.raw.blocks_lo = low32(stored).into();
        if has_huge {
            self.raw.blocks_hi = low16(stored >> 32).into();
        }
        Ok(())
    }

    /// The block of its extended attributes.
    pub(super) fn set_xattr_block(&mut self, block: u64) {
        self.raw.file_acl_lo = low32(block).into();
        self.raw.file_acl_hi = low16(block >> 32).into();
    }

    pub(super) fn xattr_block(&self) -> u64 {
        u64::from(self.raw.file_acl_hi.get()) << 32 | u64::from(self.raw.file_acl_lo.get())
    }

    /// The time of the node's own change.
    pub(super) fn set_ctime(&mut self, now: Time) {
        let (sec, extra) = split_time(now, self.fixed >= 0x88);
        (self.raw.ctime, self.raw.ctime_extra) = (sec.into(), extra.into());
    }

    /// The time of the content's change.
    pub(super) fn set_mtime(&mut self, now: Time) {
        let (sec, extra) = split_time(now, self.fixed >= 0x8c);
        (self.raw.mtime, self.raw.mtime_extra) = (sec.into(), extra.into());
    }

    /// The time of the last access.
    pub(super) fn set_atime(&mut self, now: Time) {
        let (sec, extra) = split_time(now, self.fixed >= 0x90);
        (self.raw.atime, self.raw.atime_extra) = (sec.into(), extra.into());
    }

    /// The time of birth.
    pub(super) fn set_crtime(&mut self, now: Time) {
        if self.fixed >= 0x98 {
            let (sec, extra) = split_time(now, true);
            (self.raw.crtime, self.raw.crtime_extra) = (sec.into(), extra.into());
        }
    }

    /// Content and node changed.
    pub(super) fn touch(&mut self, now: Time) {
        self.set_mtime(now);
        self.set_ctime(now);
    }

    /// One link more or fewer.
    pub(super) fn set_links(&mut self, links: u16) {
        self.raw.links_count = links.into();
    }

    pub(super) fn links(&self) -> u16 {
        self.raw.links_count.get()
    }
}

/// A time as it is stored. Without the extra field it reaches from 1901 to 2038, with it to 2446.
fn split_time(time: Time, has_extra: bool) -> (u32, u32) {
    const MIN: i64 = -(1 << 31);
    let max = if has_extra { (3i64 << 32).saturating_add(0x7fff_ffff) } else { 0x7fff_ffff };
    let sec = time.sec.clamp(MIN, max);
    let low = u32::try_from(sec & 0xffff_ffff).unwrap_or(0);
    if !has_extra {
        return (low, 0);
    }
    let epoch = sec.saturating_sub(i64::from(low.cast_signed())) >> 32 & 3;
    (low, time.nsec.min(999_999_999) << 2 | u32::try_from(epoch).unwrap_or(0))
}

impl Edit {
    /// An inode that a directory may name.
    pub(super) fn node(&mut self, number: u64) -> Result<Node> {
        let inode = self.fs.inode(number)?;
        self.check_used(inode.number)?;
        Node::of(inode).within(|| format!("inode {number}"))
    }

    /// Stores an inode with its checksum.
    pub(super) fn save(&mut self, node: &mut Node) -> Result<()> {
        self.store(node, true)
    }

    /// The same; only if it is `charged` its owner's quota counts what is new.
    pub(super) fn store(&mut self, node: &mut Node, charged: bool) -> Result<()> {
        let sb = &self.fs.sb;
        node.raw.size_lo = low32(node.size).into();
        let has_high = node.kind == NodeKind::File || sb.features.incompat.contains(Incompat::LARGEDIR);
        if has_high {
            node.raw.size_hi = low32(node.size >> 32).into();
        }
        let needs_large = node.kind == NodeKind::File && node.size > SMALL_MAX;
        if needs_large && !sb.features.ro_compat.contains(RoCompat::LARGE_FILE) {
            if sb.raw.rev_level.get() == 0 {
                return Err(Ext4Fault::Cannot("files of this revision have less than 2 GiB".into()).into());
            }
            self.fs.sb.features.ro_compat |= RoCompat::LARGE_FILE;
        }
        let sb = &self.fs.sb;
        let mut bytes = node.all();
        if sb.features.has_metadata_csum() {
            sum_inode(&mut bytes, node.number, sb.csum_seed)?;
        }
        let (block, within) = self.place_of(node.number)?;
        let table = self.fs.block("an inode table", block)?;
        if charged {
            self.charge(node.number, part(&table, within, bytes.len(), "inode")?, &bytes)?;
        }
        drop(table);
        self.change_system("an inode table", block, |table| put(table, within, &bytes))?;
        node.bytes = bytes;
        Ok(())
    }

    /// The block of an inode's table entry, and where it is in it.
    pub(super) fn place_of(&self, number: u32) -> Result<(u64, usize)> {
        let sb = &self.fs.sb;
        let slot = number.saturating_sub(1).checked_rem(sb.inodes_per_group).unwrap_or(0);
        let table = self.desc(self.group_of(number))?.inode_table;
        let (block, within) = sb.block_size.split(u64::from(slot).saturating_mul(len64(sb.inode_bytes)));
        Ok((table.saturating_add(block), index(within)?))
    }
}

/// Puts the checksum into the bytes of an inode; `base` is where all checksums start from.
pub(super) fn sum_inode(bytes: &mut [u8], number: u32, base: u32) -> Result<()> {
    let extra = if bytes.len() > OLD_INODE_BYTES { usize::from(get16(bytes, OLD_INODE_BYTES)?) } else { 0 };
    let has_hi = OLD_INODE_BYTES.saturating_add(extra) >= INODE_CHECKSUM_HI_AT.saturating_add(2);
    put16(bytes, INODE_CHECKSUM_LO_AT, 0)?;
    if has_hi {
        put16(bytes, INODE_CHECKSUM_HI_AT, 0)?;
    }
    let generation = part(bytes, INODE_GENERATION_AT, 4, "inode")?;
    let sum = crc32c(crc32c(crc32c(base, &number.to_le_bytes()), generation), bytes);
    put16(bytes, INODE_CHECKSUM_LO_AT, low16(sum.into()))?;
    if has_hi {
        put16(bytes, INODE_CHECKSUM_HI_AT, low16(u64::from(sum) >> 16))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_split_as_the_kernel_does() {
        let at = |sec, extra| split_time(Time { sec, nsec: 7 }, extra);
        assert_eq!(at(-1, true), (u32::MAX, 7 << 2));
        assert_eq!(at(0x8000_0000, true), (0x8000_0000, 7 << 2 | 1));
        assert_eq!(at(15_032_385_535, true), (0x7fff_ffff, 7 << 2 | 3));
        assert_eq!(at(i64::MAX, true), (0x7fff_ffff, 7 << 2 | 3));
        assert_eq!(at(i64::MAX, false), (0x7fff_ffff, 0));
    }
}
