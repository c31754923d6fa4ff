//! A volume and its geometry: reads metadata blocks and checks what they say of themselves.

use std::sync::Arc;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, take};
use zerocopy::big_endian::{U16, U32, U64};

use super::crc;
use super::described::{OwnerField, SelfDescription};
use super::fault::Fault;
use super::layout::RawUuid;
use super::pending::Pending;
use super::superblock::Superblock;
use super::units::{BASIC_BLOCK_SHIFT, Lsn};

/// The largest metadata block there is: a directory block of 64 KiB.
const BLOCK_BYTES_MAX: u64 = 64 << 10;

/// A volume that holds XFS. A clone is the same volume.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// All reads and writes go here; nothing is cached above it.
    pub(super) disk: Disk,
    pub(super) sb: Superblock,
    /// What is not on the disk but shall be seen; nothing when the volume is written.
    pub(super) pending: Arc<Pending>,
}

/// One kind of metadata block.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockKind {
    /// Its name in errors.
    pub(super) what: &'static str,
    /// Its magic number without and with checksums.
    pub(super) magic: [u32; 2],
    /// Where the magic number is, and whether it has 2 or 4 bytes.
    pub(super) magic_at: usize,
    pub(super) magic_len: usize,
    /// Where it describes itself, with checksums.
    pub(super) itself: SelfDescription,
}

impl BlockKind {
    /// A kind whose magic number is its first four bytes.
    pub(super) const fn new(what: &'static str, magic: [u32; 2], itself: SelfDescription) -> Self {
        Self { what, magic, magic_at: 0, magic_len: 4, itself }
    }

    /// The magic number as it stands in a block.
    pub(super) fn magic_of(&self, block: &[u8]) -> Result<u32> {
        if self.magic_len == 2 {
            return Ok(take::<U16>(block, self.magic_at, self.what)?.get().into());
        }
        Ok(take::<U32>(block, self.magic_at, self.what)?.get())
    }
}

impl Volume {
    /// The volume on `disk`, its superblock checked.
    pub(super) fn open(disk: Disk) -> Result<Self> {
        let sb = Superblock::read(&disk)?;
        Ok(Self { disk, sb, pending: Arc::default() })
    }

    /// Reads a block of kind `kind` that belongs to `owner` (an inode, or an allocation group) and checks all
    /// that it says of itself.
    pub(super) fn block(&self, kind: &BlockKind, span: Span, owner: u64) -> Result<Vec<u8>> {
        let block = wire::bytes(&self.disk, span.start(), span.len(), BLOCK_BYTES_MAX, kind.what)?;
        self.check_block(kind, &block, span.start(), owner)
            .within(|| format!("{} at byte {}", kind.what, span.start()))?;
        Ok(block)
    }

    /// Checks a block that was read from byte `at`: magic number, checksum, UUID, place, owner.
    pub(super) fn check_block(&self, kind: &BlockKind, block: &[u8], at: u64, owner: u64) -> Result<()> {
        let what = kind.what;
        let [plain, with_crc] = kind.magic;
        let expected = if self.sb.v5 { with_crc } else { plain };
        let found = kind.magic_of(block)?;
        if found != expected {
            return Err(Fault::Magic { what, found, expected }.into());
        }
        if !self.sb.v5 {
            return Ok(());
        }
        crc::check(block, kind.itself.crc, what)?;
        self.check_self(kind, block, at, owner)
    }

    fn check_self(&self, kind: &BlockKind, block: &[u8], at: u64, owner: u64) -> Result<()> {
        let what = kind.what;
        if let Some(field) = kind.itself.uuid {
            self.check_uuid(&take(block, field, what)?, what)?;
        }
        if let Some(field) = kind.itself.blkno {
            let found = take::<U64>(block, field, what)?.get();
            let at = at >> BASIC_BLOCK_SHIFT;
            if found != at {
                return Err(Fault::Misplaced { what, at, found }.into());
            }
        }
        let found = match kind.itself.owner {
            OwnerField::None => owner,
            OwnerField::Group(field) => take::<U32>(block, field, what)?.get().into(),
            OwnerField::Inode(field) => take::<U64>(block, field, what)?.get(),
        };
        if found != owner {
            return Err(Fault::Owner { what, found, expected: owner }.into());
        }
        Ok(())
    }

    /// Checks that a structure carries this filesystem's UUID.
    pub(super) fn check_uuid(&self, found: &RawUuid, what: &'static str) -> Result<()> {
        if *found != self.sb.meta_uuid {
            return Err(Fault::ForeignUuid { what }.into());
        }
        Ok(())
    }
}

impl SelfDescription {
    /// The log sequence number of the last change, as it stands in a block.
    pub(super) fn lsn(&self, block: &[u8]) -> Result<Lsn> {
        Ok(Lsn(take::<U64>(block, self.lsn, "log sequence number")?.get()))
    }

    /// Writes the log sequence number and, last, the checksum.
    pub(super) fn stamp(&self, block: &mut [u8], lsn: Lsn) -> Result<()> {
        wire::part_mut(block, self.lsn, 8, "log sequence number")?.copy_from_slice(&lsn.0.to_be_bytes());
        crc::stamp(block, self.crc)
    }
}
