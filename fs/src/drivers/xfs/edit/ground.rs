//! One allocation group as a place on the volume: where its blocks lie, and what they must say of themselves.

use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Error, Result};
use racker_formats::wire::index;

use super::super::fault::Fault;
use super::super::units::{AgBlock, AgNo, BASIC_BLOCK_SHIFT};
use super::super::volume::Volume;

/// Superblock, AGF, AGI and AGFL, a sector each.
const HEADER_SECTORS: u64 = 4;

/// A group's blocks on the volume.
#[derive(Clone, Debug)]
pub(in crate::drivers::xfs) struct Ground {
    pub(in crate::drivers::xfs) volume: Arc<Volume>,
    pub(in crate::drivers::xfs) ag: AgNo,
    /// Blocks of the group.
    pub(in crate::drivers::xfs) blocks: u32,
    /// Blocks at the group's start that hold its headers.
    header_blocks: u32,
}

impl Ground {
    /// Group `ag` of the filesystem on `volume`.
    pub(in crate::drivers::xfs) fn new(volume: Arc<Volume>, ag: AgNo) -> Result<Self> {
        let blocks = volume.sb.ag_length(ag)?;
        let header_bytes = volume.sb.sector_size.start_of(HEADER_SECTORS).unwrap_or(u64::MAX);
        let header_blocks = u32::try_from(volume.sb.block_size.count(header_bytes)).unwrap_or(u32::MAX);
        Ok(Self { volume, ag, blocks, header_blocks })
    }

    /// Blocks at the group's start that hold its headers.
    pub(in crate::drivers::xfs) fn header_blocks(&self) -> u32 {
        self.header_blocks
    }

    /// Size of a block in bytes.
    pub(in crate::drivers::xfs) fn block_bytes(&self) -> Result<usize> {
        index(self.volume.sb.block_size.bytes())
    }

    /// Checks that `len` blocks from `start` are inside the group and none of them holds its headers.
    pub(in crate::drivers::xfs) fn check(&self, start: u32, len: u32) -> Result<()> {
        let end = u64::from(start).saturating_add(len.into());
        if len == 0 || start < self.header_blocks || end > u64::from(self.blocks) {
            return Err(self.fault(start, len));
        }
        Ok(())
    }

    /// The error for blocks that cannot be where something says they are.
    pub(in crate::drivers::xfs) fn fault(&self, start: u32, len: u32) -> Error {
        Fault::BlockRange { ag: self.ag.0.into(), block: start.into(), len: len.into() }.into()
    }

    /// The bytes of a block on the volume.
    pub(in crate::drivers::xfs) fn span(&self, block: u32) -> Result<Span> {
        self.check(block, 1)?;
        self.volume.sb.ag_span(self.ag, AgBlock(block), 1)
    }

    /// The place of a block in 512-byte units, as the block itself has it.
    pub(in crate::drivers::xfs) fn daddr(&self, block: u32) -> Result<u64> {
        Ok(self.span(block)?.start() >> BASIC_BLOCK_SHIFT)
    }
}
