//! Replay of changed buffers: the chunks of 128 bytes that a bitmap names.

use core::mem::offset_of;

use racker_formats::error::Result;
use racker_formats::wire::{index, part, part_mut, take};
use zerocopy::big_endian::{U16, U32};
use zerocopy::little_endian as le;

use super::super::crc;
use super::super::described::{
    AGF_SELF, AGFL_SELF, AGI_SELF, DA_SELF, DIR_SELF, LONG_SELF, REMOTE_SELF, SB_SELF, SHORT_SELF,
    SelfDescription,
};
use super::super::fault::Fault;
use super::super::inode::CRC_AT;
use super::super::layout::{
    AGF_MAGIC, AGFL_MAGIC, AGI_MAGIC, ATTR_LEAF_MAGIC, BMBT_MAGIC, BNOBT_MAGIC, CNTBT_MAGIC, DA_NODE_MAGIC,
    DINODE_MAGIC, DIR_BLOCK_MAGIC, DIR_DATA_MAGIC, DIR_FREE_MAGIC, DIR_LEAF1_MAGIC, DIR_LEAFN_MAGIC,
    DQUOT_MAGIC, FINOBT_MAGIC, INOBT_MAGIC, REFCOUNTBT_MAGIC, RMAPBT_MAGIC, RawDaInfo4, RawDinode,
    RawSuperblock, RawUuid, SB_MAGIC, SYMLINK_MAGIC,
};
use super::super::superblock::Incompat;
use super::super::units::{Daddr, Lsn};
use super::super::volume::Volume;
use super::buffers::Buffers;
use super::layout::RawBufItem;
use super::transaction::Item;

bitflags::bitflags! {
    /// `blf_flags`; the kind of buffer is in the upper five bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct BufFlags: u16 {
        /// Inodes, of which only the links of the list of unlinked ones are replayed.
        const INODES = 1 << 0;
        /// The buffer is freed: what was logged of it before must not be replayed.
        const CANCEL = 1 << 1;
        const USER_QUOTA = 1 << 2;
        const PROJECT_QUOTA = 1 << 3;
        const GROUP_QUOTA = 1 << 4;
    }
}

/// Kinds of buffers, `XFS_BLFT_…`, that need care.
const KIND_SHIFT: u32 = 11;
const KIND_RTBITMAP: u16 = 19;
const KIND_RTSUMMARY: u16 = 20;
/// Bytes that a bit of the bitmap stands for.
const CHUNK_SHIFT: u32 = 7;
/// Words of the longest bitmap: for 64 KiB and one more.
const MAP_WORDS_MAX: u32 = 17;
const WHAT: &str = "changed buffer in the log";

/// What a buffer item says.
#[derive(Clone, Debug)]
pub(super) struct BufItem {
    pub(super) at: Daddr,
    /// In 512-byte units.
    pub(super) count: u64,
    pub(super) flags: BufFlags,
    /// `XFS_BLFT_…`
    pub(super) kind: u16,
    /// Stretches of bytes that were changed: offset and length.
    changed: Vec<(usize, usize)>,
}

impl BufItem {
    /// The flags alone.
    pub(super) fn flags(item: &Item<'_>) -> Result<BufFlags> {
        let raw: RawBufItem = take(item.region(0)?, 0, WHAT)?;
        Ok(BufFlags::from_bits_truncate(raw.blf_flags.get()))
    }

    pub(super) fn parse(item: &Item<'_>) -> Result<Self> {
        let region = item.region(0)?;
        let raw: RawBufItem = take(region, 0, WHAT)?;
        let words = raw.blf_map_size.get();
        if words > MAP_WORDS_MAX {
            let why = "a bitmap for more than 64 KiB";
            return Err(Fault::Field { what: "blf_map_size", found: words.into(), why }.into());
        }
        let flags = raw.blf_flags.get();
        Ok(Self {
            at: Daddr(raw.blf_blkno.get()),
            count: raw.blf_len.get().into(),
            flags: BufFlags::from_bits_truncate(flags),
            kind: flags >> KIND_SHIFT,
            changed: stretches(region, words)?,
        })
    }
}

/// The stretches of set bits of a bitmap of `words` words, in bytes of the buffer.
fn stretches(region: &[u8], words: u32) -> Result<Vec<(usize, usize)>> {
    let mut all: Vec<(usize, usize)> = Vec::new();
    let mut at = size_of::<RawBufItem>();
    let mut bit = 0usize;
    for _ in 0..words {
        let word = take::<le::U32>(region, at, WHAT)?.get();
        at = at.saturating_add(4);
        for i in 0..u32::BITS {
            let start = bit << CHUNK_SHIFT;
            bit = bit.saturating_add(1);
            if word >> i & 1 == 0 {
                continue;
            }
            match all.last_mut() {
                Some((first, len)) if first.saturating_add(*len) == start => {
                    *len = len.saturating_add(1 << CHUNK_SHIFT);
                }
                _ => all.push((start, 1 << CHUNK_SHIFT)),
            }
        }
    }
    Ok(all)
}

/// Replays a buffer unless it is newer than the transaction. A part of a block has no checksum of its own.
pub(super) fn replay(
    volume: &Volume,
    buffers: &mut Buffers<'_>,
    item: &Item<'_>,
    buf: &BufItem,
    lsn: Lsn,
    part: bool,
) -> Result<()> {
    let buffer = buffers.get(buf.at, buf.count)?;
    if volume.sb.v5 && newer(volume, &buffer.bytes, buf, lsn)? {
        return Ok(());
    }
    if buf.flags.contains(BufFlags::INODES) {
        return unlinked_pointers(volume, buffer.change(), item, buf);
    }
    copy(buffer.change(), item, buf)?;
    buffer.itself = description(&buffer.bytes).filter(|_| !part).map(|(itself, _)| itself);
    Ok(())
}

/// Whether what is on disk came later than the transaction. Only a block of this filesystem has a number to go by.
fn newer(volume: &Volume, bytes: &[u8], buf: &BufItem, lsn: Lsn) -> Result<bool> {
    if matches!(buf.kind, KIND_RTBITMAP | KIND_RTSUMMARY) {
        return Ok(false);
    }
    let Some((itself, remote)) = description(bytes) else { return Ok(false) };
    // Attribute values are written without the log, so their number says nothing.
    if remote {
        return Ok(false);
    }
    let uuid_at = itself.uuid.unwrap_or_else(|| superblock_uuid_at(volume));
    let uuid: RawUuid = take(bytes, uuid_at, WHAT)?;
    let found = itself.lsn(bytes)?;
    let known = found != Lsn(0) && found != Lsn(u64::MAX);
    Ok(uuid == volume.sb.meta_uuid && known && found >= lsn)
}

fn superblock_uuid_at(volume: &Volume) -> usize {
    if volume.sb.incompat.contains(Incompat::META_UUID) {
        offset_of!(RawSuperblock, sb_meta_uuid)
    } else {
        offset_of!(RawSuperblock, sb_uuid)
    }
}

/// How a block describes itself, by its magic number, and whether it holds a value of an attribute; none for those
/// that do not do it as a whole.
pub(super) fn description(bytes: &[u8]) -> Option<(SelfDescription, bool)> {
    let first = take::<U32>(bytes, 0, WHAT).ok()?.get();
    let with_crc = |magic: [u32; 2]| magic[1] == first;
    let short = [BNOBT_MAGIC, CNTBT_MAGIC, INOBT_MAGIC, FINOBT_MAGIC];
    let itself = match first {
        _ if short.into_iter().any(with_crc) => SHORT_SELF,
        RMAPBT_MAGIC | REFCOUNTBT_MAGIC => SHORT_SELF,
        _ if with_crc(BMBT_MAGIC) => LONG_SELF,
        AGF_MAGIC => AGF_SELF,
        AGI_MAGIC => AGI_SELF,
        AGFL_MAGIC => AGFL_SELF,
        SB_MAGIC => SB_SELF,
        SYMLINK_MAGIC => REMOTE_SELF,
        super::super::layout::ATTR_REMOTE_MAGIC => return Some((REMOTE_SELF, true)),
        _ if [DIR_BLOCK_MAGIC, DIR_DATA_MAGIC, DIR_FREE_MAGIC].into_iter().any(with_crc) => DIR_SELF,
        _ => {
            let magic = take::<U16>(bytes, offset_of!(RawDaInfo4, magic), WHAT).ok()?.get();
            let trees = [DA_NODE_MAGIC, ATTR_LEAF_MAGIC, DIR_LEAF1_MAGIC, DIR_LEAFN_MAGIC];
            let dinode = take::<U16>(bytes, 0, WHAT).ok()?.get();
            let single = dinode != DINODE_MAGIC && dinode != DQUOT_MAGIC;
            return (single && trees.iter().any(|m| m[1] == magic)).then_some((DA_SELF, false));
        }
    };
    Some((itself, false))
}

/// Copies the regions of an item to where its bitmap says. A stretch may be cut into several regions.
fn copy(bytes: &mut [u8], item: &Item<'_>, buf: &BufItem) -> Result<()> {
    let mut region = 1usize;
    for (start, len) in &buf.changed {
        let mut done = 0usize;
        while done < *len {
            let from = item.region(region)?;
            region = region.saturating_add(1);
            let left = len.saturating_sub(done);
            let take = from.len().min(left) >> CHUNK_SHIFT << CHUNK_SHIFT;
            if take == 0 {
                return Err(Fault::Structure { what: WHAT, why: "a region is shorter than a chunk" }.into());
            }
            let to = part_mut(bytes, start.saturating_add(done), take, WHAT)?;
            to.copy_from_slice(part(from, 0, take, WHAT)?);
            done = done.saturating_add(take);
        }
    }
    Ok(())
}

/// Replays the links of the list of unlinked inodes: the only part of inodes that is logged by buffer.
fn unlinked_pointers(volume: &Volume, bytes: &mut [u8], item: &Item<'_>, buf: &BufItem) -> Result<()> {
    let mut logged = bytes.to_vec();
    copy(&mut logged, item, buf)?;
    let size = index(volume.sb.inode_size.bytes())?;
    let field = offset_of!(RawDinode, di_next_unlinked);
    for (inode, new) in bytes.chunks_exact_mut(size).zip(logged.chunks_exact(size)) {
        let new = part(new, field, 4, WHAT)?;
        if part(inode, field, 4, WHAT)? == new {
            continue;
        }
        if new == [0; 4] {
            let why = "a link of the list of unlinked inodes is 0";
            return Err(Fault::Structure { what: WHAT, why }.into());
        }
        part_mut(inode, field, 4, WHAT)?.copy_from_slice(new);
        if volume.sb.v5 {
            crc::stamp(inode, CRC_AT)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_stretches() {
        let mut region = vec![0; size_of::<RawBufItem>()];
        region.extend_from_slice(&(0b1101u32 | 1 << 31).to_le_bytes());
        region.extend_from_slice(&1u32.to_le_bytes());
        assert_eq!(stretches(&region, 2).unwrap(), [(0, 128), (256, 256), (31 * 128, 256)]);
        assert!(stretches(&region, 3).is_err());
    }
}
