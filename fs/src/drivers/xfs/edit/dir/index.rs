//! The index of free room that a directory with a tree has: for each block of entries its longest free stretch. That
//! of the directory that was changed last stays at hand.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part_mut, take};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U64};

use super::super::super::described::DIR_SELF;
use super::super::super::fault::Fault;
use super::super::super::inode::{ForkKind, Inode};
use super::super::super::layout::{DIR_FREE_MAGIC, RawDirFreeHead, RawDirHead};
use super::super::super::units::{FileBlock, InodeNo, Lsn};
use super::super::super::volume::BlockKind;
use super::super::Edit;
use super::Geometry;

const WHAT: &str = "directory free index";
const FREE: BlockKind = BlockKind::new(WHAT, DIR_FREE_MAGIC, DIR_SELF);
const HEAD: usize = size_of::<RawDirFreeHead>();
const BEST: usize = size_of::<U16>();
/// In the place of a block that is not there.
pub(super) const NO_BLOCK: u16 = 0xffff;
/// The most blocks of entries there can be: addresses have 32 bits in units of 8 bytes.
const ENTRY_BYTES_MAX: u64 = 1 << 35;

/// The index of one directory.
#[derive(Debug)]
pub(in super::super) struct DirIndex {
    ino: InodeNo,
    bests: Vec<u16>,
}

pub(super) fn missing<T>() -> Result<T> {
    Err(Fault::Structure { what: WHAT, why: "it does not have a block of entries" }.into())
}

impl Geometry {
    /// Blocks of entries in a block of the index.
    fn per_index(&self) -> usize {
        self.bytes.saturating_sub(HEAD).checked_div(BEST).unwrap_or(1).max(1)
    }

    fn index_block(&self, number: usize) -> FileBlock {
        FileBlock(self.free.0.saturating_add(len64(number).saturating_mul(self.step)))
    }
}

impl Edit {
    /// The index of a directory with a tree.
    pub(super) fn bests(&mut self, dir: &Inode) -> Result<Vec<u16>> {
        if let Some(held) = self.last_dir.take_if(|held| held.ino == dir.ino) {
            return Ok(held.bests);
        }
        self.read_index(dir).within(|| format!("directory {}", dir.ino.0))
    }

    /// Keeps the index at hand.
    pub(super) fn keep_bests(&mut self, dir: &Inode, bests: Vec<u16>) {
        self.last_dir = Some(DirIndex { ino: dir.ino, bests });
    }

    fn read_index(&self, dir: &Inode) -> Result<Vec<u16>> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let each = geometry.per_index();
        let most = index(dir.size.min(ENTRY_BYTES_MAX))?.div_ceil(geometry.bytes.max(1));
        let fork = self.volume.dir_fork(dir);
        let mut bests = Vec::new();
        let mut next = geometry.free;
        while let Some(mapping) = self.volume.mapping_at(dir, ForkKind::Data, next)? {
            // Blocks of the index that would say nothing are not there.
            let on = mapping.at.0.max(next.0).saturating_sub(geometry.free.0);
            let number = on.checked_div(geometry.step).unwrap_or(0);
            let first = index(number)?.saturating_mul(each);
            if first >= most {
                return missing();
            }
            let at = geometry.index_block(index(number)?);
            let (_, block) = self.volume.da_block(&fork, at, &[FREE])?;
            let raw: RawDirFreeHead = take(&block.bytes, 0, WHAT)?;
            let (count, used) = (index(raw.nvalid.get().into())?, index(raw.nused.get().into())?);
            if index(raw.firstdb.get().into())? != first || count > each || used > count {
                return Err(Fault::Structure { what: WHAT, why: "its counts cannot be" }.into());
            }
            bests.resize(first, NO_BLOCK);
            for i in 0..count {
                let best: U16 = take(&block.bytes, HEAD.saturating_add(i.saturating_mul(BEST)), WHAT)?;
                bests.push(best.get());
            }
            next = FileBlock(at.0.saturating_add(geometry.step));
        }
        Ok(bests)
    }

    /// Writes what the index says of data block `number`: the block of the index is made, or goes, as need be.
    pub(super) fn put_best(&mut self, dir: &mut Inode, bests: &[u16], number: usize) -> Result<()> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let each = geometry.per_index();
        let which = number.checked_div(each).unwrap_or(0);
        let first = which.saturating_mul(each);
        let rest = bests.get(first..).unwrap_or_default();
        let own = rest.get(..each.min(rest.len())).unwrap_or_default();
        let used = own.iter().filter(|best| **best != NO_BLOCK).count();
        let at = geometry.index_block(which);
        let there = self.volume.mapping_at(dir, ForkKind::Data, at)?.is_some_and(|m| m.at <= at);
        if used == 0 {
            return if there { self.shrink(dir, at) } else { Ok(()) };
        }
        let (place, lsn) = if there {
            let (_, block) = self.volume.da_block(&self.volume.dir_fork(dir), at, &[FREE])?;
            let raw: RawDirFreeHead = take(&block.bytes, 0, WHAT)?;
            (raw.hdr.blkno.get(), Lsn(raw.hdr.lsn.get()))
        } else {
            (self.grow(dir, at)?.0, Lsn(0))
        };
        let number32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).into();
        let head = RawDirFreeHead {
            hdr: RawDirHead {
                magic: DIR_FREE_MAGIC[1].into(),
                crc: 0.into(),
                blkno: U64::new(place),
                lsn: 0.into(),
                uuid: self.volume.sb.meta_uuid,
                owner: dir.ino.0.into(),
            },
            firstdb: number32(first),
            nvalid: number32(own.len()),
            nused: number32(used),
            pad: 0.into(),
        };
        let mut bytes = vec![0; geometry.bytes];
        part_mut(&mut bytes, 0, HEAD, WHAT)?.copy_from_slice(head.as_bytes());
        for (i, best) in own.iter().enumerate() {
            let place = HEAD.saturating_add(i.saturating_mul(BEST));
            part_mut(&mut bytes, place, BEST, WHAT)?.copy_from_slice(&best.to_be_bytes());
        }
        DIR_SELF.stamp(&mut bytes, lsn)?;
        self.write_fork_block(dir, at, &bytes)
    }

    /// Frees all blocks of the index.
    pub(super) fn drop_index(&mut self, dir: &mut Inode) -> Result<()> {
        let free = Geometry::of(&self.volume.sb)?.free;
        self.release_range(dir, ForkKind::Data, free.0, u64::MAX)
    }
}
