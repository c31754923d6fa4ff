//! Header sectors of an allocation group: read with checks, changed in place, written with a new checksum.

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{Layout, index, len64, part_mut};
use zerocopy::IntoBytes;

use super::super::described::{AGF_SELF, AGFL_SELF, AGI_SELF};
use super::super::fault::Fault;
use super::super::layout::{AGF_MAGIC, AGFL_MAGIC, AGI_MAGIC, RawAgf, RawAgfl, RawAgi};
use super::super::volume::BlockKind;
use super::ground::Ground;

/// A structure that has a sector of each group to itself.
pub(in crate::drivers::xfs) trait GroupHeader: Layout + IntoBytes + Copy {
    const KIND: BlockKind;
    /// The sector's number within the group.
    const SECTOR: u32;
    /// The group it says it belongs to.
    fn group(&self) -> u32;
}

impl GroupHeader for RawAgf {
    const KIND: BlockKind = BlockKind::new("AGF", [AGF_MAGIC; 2], AGF_SELF);
    const SECTOR: u32 = 1;
    fn group(&self) -> u32 {
        self.agf_seqno.get()
    }
}

impl GroupHeader for RawAgi {
    const KIND: BlockKind = BlockKind::new("AGI", [AGI_MAGIC; 2], AGI_SELF);
    const SECTOR: u32 = 2;
    fn group(&self) -> u32 {
        self.agi_seqno.get()
    }
}

impl GroupHeader for RawAgfl {
    const KIND: BlockKind = BlockKind::new("AGFL", [AGFL_MAGIC; 2], AGFL_SELF);
    const SECTOR: u32 = 3;
    fn group(&self) -> u32 {
        self.agfl_seqno.get()
    }
}

/// A header sector: all of its bytes, the structure at its start as a value of its own.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct Header<T> {
    at: u64,
    bytes: Vec<u8>,
    /// The structure; written back over the first bytes.
    pub(in crate::drivers::xfs) raw: T,
}

impl<T: GroupHeader> Header<T> {
    /// Reads the header of a group.
    pub(in crate::drivers::xfs) fn read(ground: &Ground) -> Result<Self> {
        Self::read_checked(ground).within(|| format!("group {}", ground.ag.0))
    }

    /// A header that is made now; `fill` is what lies behind the structure.
    pub(in crate::drivers::xfs) fn new(ground: &Ground, raw: T, fill: u8) -> Result<Self> {
        let sb = &ground.volume.sb;
        let at = sb.ag_header(ground.ag, T::SECTOR)?;
        let mut bytes = vec![fill; index(sb.sector_size.bytes())?];
        part_mut(&mut bytes, 0, size_of::<T>(), T::KIND.what)?.copy_from_slice(raw.as_bytes());
        Ok(Self { at, bytes, raw })
    }

    fn read_checked(ground: &Ground) -> Result<Self> {
        let sb = &ground.volume.sb;
        let at = sb.ag_header(ground.ag, T::SECTOR)?;
        let bytes = ground.volume.block(&T::KIND, Span::new(at, sb.sector_size.bytes())?, 0)?;
        let raw: T = racker_formats::wire::take(&bytes, 0, T::KIND.what)?;
        let (found, expected) = (raw.group().into(), ground.ag.0.into());
        if found != expected {
            return Err(Fault::Owner { what: T::KIND.what, found, expected }.into());
        }
        Ok(Self { at, bytes, raw })
    }

    /// The bytes behind the structure.
    pub(in crate::drivers::xfs) fn rest(&self) -> &[u8] {
        self.bytes.get(size_of::<T>()..).unwrap_or_default()
    }

    /// The bytes behind the structure, to be changed.
    pub(in crate::drivers::xfs) fn rest_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(size_of::<T>()..).unwrap_or_default()
    }

    /// Writes the sector; its log sequence number stays.
    pub(in crate::drivers::xfs) fn write(&mut self, ground: &Ground) -> Result<()> {
        if let Ok((place, _)) = T::mut_from_prefix(&mut self.bytes) {
            *place = self.raw;
        }
        let lsn = T::KIND.itself.lsn(&self.bytes)?;
        T::KIND.itself.stamp(&mut self.bytes, lsn)?;
        debug_assert_eq!(len64(self.bytes.len()), ground.volume.sb.sector_size.bytes());
        ground.volume.disk.write_at(self.at, &self.bytes)
    }
}
