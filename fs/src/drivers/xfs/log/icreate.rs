//! Replay of new chunks of inodes: they are not logged byte by byte but made anew, all of them free.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part_mut, take};
use zerocopy::{FromZeros, IntoBytes};

use super::super::crc;
use super::super::fault::Fault;
use super::super::inode::CRC_AT;
use super::super::layout::{DINODE_MAGIC, RawDinode};
use super::super::superblock::Superblock;
use super::super::units::{AgBlock, AgNo, BASIC_BLOCK_SHIFT, Daddr, NULL_AG_BLOCK};
use super::super::volume::Volume;
use super::buffers::Buffers;
use super::layout::RawIcreateItem;
use super::transaction::Item;

/// Inodes of a chunk.
const CHUNK_INODES: u32 = 64;
/// Bytes of a buffer of inodes of the smallest size, 256 bytes; larger ones have larger buffers.
const CLUSTER_BYTES: u64 = 8192;
const WHAT: &str = "new inodes in the log";

/// A new chunk, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    ag: AgNo,
    block: AgBlock,
    blocks: u32,
    generation: u32,
}

impl Chunk {
    pub(super) fn parse(sb: &Superblock, item: &Item<'_>) -> Result<Self> {
        let raw: RawIcreateItem = take(item.region(0)?, 0, WHAT)?;
        let (count, blocks) = (raw.icl_count.get(), raw.icl_length.get());
        let size = u64::from(raw.icl_isize.get());
        let fits = size == sb.inode_size.bytes() && count <= CHUNK_INODES && count > 0;
        if !fits || count.checked_shr(sb.inopblog) != Some(blocks) || blocks == 0 {
            return Err(Fault::Structure { what: WHAT, why: "no chunk of inodes of this filesystem" }.into());
        }
        let chunk = Self {
            ag: AgNo(raw.icl_ag.get()),
            block: AgBlock(raw.icl_agbno.get()),
            blocks,
            generation: raw.icl_gen.get(),
        };
        sb.ag_span(chunk.ag, chunk.block, blocks.into())?;
        Ok(chunk)
    }

    /// The buffers that hold it: place and length in 512-byte units.
    pub(super) fn buffers(&self, sb: &Superblock) -> Result<Vec<(Daddr, u64)>> {
        let step = cluster_bytes(sb);
        let span = sb.ag_span(self.ag, self.block, self.blocks.into())?;
        let mut all = Vec::new();
        let mut rest = span;
        while !rest.is_empty() {
            let piece = rest.truncate(step);
            all.push((Daddr(piece.start() >> BASIC_BLOCK_SHIFT), piece.len() >> BASIC_BLOCK_SHIFT));
            rest = rest.skip(step);
        }
        Ok(all)
    }

    /// Makes the inodes.
    pub(super) fn replay(&self, volume: &Volume, buffers: &mut Buffers<'_>) -> Result<()> {
        let sb = &volume.sb;
        let size = index(sb.inode_size.bytes())?;
        let first = self.block.0.checked_shl(sb.inopblog).unwrap_or(u32::MAX);
        let mut number = sb.inode(self.ag, first)?.0;
        for (at, count) in self.buffers(sb)? {
            let buffer = buffers.get(at, count)?;
            buffer.itself = None;
            let bytes = buffer.change();
            bytes.fill(0);
            for inode in bytes.chunks_exact_mut(size) {
                let raw = free_inode(volume, number, self.generation);
                let core = if sb.v5 { size_of::<RawDinode>() } else { CRC_AT };
                part_mut(inode, 0, core, WHAT)?
                    .copy_from_slice(raw.as_bytes().get(..core).unwrap_or_default());
                if sb.v5 {
                    crc::stamp(inode, CRC_AT)?;
                }
                number = number.saturating_add(1);
            }
        }
        Ok(())
    }
}

/// An inode that is not in use.
fn free_inode(volume: &Volume, number: u64, generation: u32) -> RawDinode {
    let mut raw = RawDinode::new_zeroed();
    raw.di_magic = DINODE_MAGIC.into();
    raw.di_version = if volume.sb.v5 { 3 } else { 2 };
    raw.di_gen = generation.into();
    raw.di_next_unlinked = NULL_AG_BLOCK.into();
    if volume.sb.v5 {
        raw.di_ino = number.into();
        raw.di_uuid = volume.sb.meta_uuid;
    }
    raw
}

/// Bytes of a buffer of inodes: the kernel reads and writes them in whole ones.
fn cluster_bytes(sb: &Superblock) -> u64 {
    let block = sb.block_size.bytes();
    let mut size = CLUSTER_BYTES;
    if sb.v5 {
        // Larger inodes have larger buffers, if chunks are aligned to them.
        let larger = CLUSTER_BYTES.saturating_mul(sb.inode_size.bytes() >> 8);
        if u64::from(sb.inode_align) >= larger >> sb.block_size.shift() {
            size = larger;
        }
    }
    size.max(block).min(len64(64 << 10))
}
