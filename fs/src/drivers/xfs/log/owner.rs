//! Two files that exchanged their forks left each other's number in the blocks of the trees: the inodes are
//! logged with a note to put it right.

use std::collections::BTreeSet;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, part_mut, take};

use super::super::bmap::BMBT;
use super::super::crc;
use super::super::described::{LONG_SELF, OwnerField};
use super::super::fault::Fault;
use super::super::inode::{ForkFormat, Inode};
use super::super::layout::{BMBT_MAGIC, RawBtreeHead};
use super::super::units::FsBlock;
use super::super::volume::Volume;
use super::inode_item::NewOwner;

/// Makes inodes the owners of all blocks of their trees, as these are at the end of a replay.
pub(super) fn change_all(volume: &Volume, trees: &BTreeSet<NewOwner>) -> Result<()> {
    // No block belongs to two trees.
    let mut budget = volume.sb.blocks;
    for tree in trees {
        change(volume, *tree, &mut budget).within(|| format!("inode {}", tree.ino.0))?;
    }
    Ok(())
}

fn change(volume: &Volume, tree: NewOwner, budget: &mut u64) -> Result<()> {
    // It may have been freed since.
    let Ok(inode) = volume.inode(tree.ino) else { return Ok(()) };
    let Some(fork) = inode.fork(tree.fork).copied() else { return Ok(()) };
    if fork.format != ForkFormat::Btree {
        return Ok(());
    }
    let (level, roots) = volume.tree_root(&inode, &fork)?;
    let mut todo: Vec<(u32, u64)> = roots.into_iter().map(|block| (level, block)).collect();
    while let Some((level, block)) = todo.pop() {
        *budget = budget.checked_sub(1).ok_or(Fault::Circle { what: BMBT.what })?;
        let bytes = claim(volume, &inode, block, level).within(|| format!("extent tree block {block}"))?;
        if let Some(below) = level.checked_sub(1) {
            let children = volume.tree_children(&bytes, level)?;
            todo.extend(children.into_iter().map(|block| (below, block)));
        }
    }
    Ok(())
}

/// Makes the inode the owner of one block.
fn claim(volume: &Volume, inode: &Inode, block: u64, level: u32) -> Result<Vec<u8>> {
    let span = volume.sb.span(FsBlock(block), 1)?;
    let mut bytes = wire::bytes(&volume.disk, span.start(), span.len(), 64 << 10, BMBT.what)?;
    let head: RawBtreeHead = take(&bytes, 0, BMBT.what)?;
    if head.bb_magic.get() != BMBT_MAGIC[1] || u32::from(head.bb_level.get()) != level {
        let (found, expected) = (head.bb_level.get().into(), level.into());
        return Err(Fault::TreeLevel { what: BMBT.what, found, expected }.into());
    }
    crc::check(&bytes, LONG_SELF.crc, BMBT.what)?;
    if let OwnerField::Inode(at) = LONG_SELF.owner {
        let owner = part_mut(&mut bytes, at, 8, BMBT.what)?;
        if owner != inode.ino.0.to_be_bytes() {
            owner.copy_from_slice(&inode.ino.0.to_be_bytes());
            crc::stamp(&mut bytes, LONG_SELF.crc)?;
            volume.disk.write_at(span.start(), &bytes)?;
        }
    }
    Ok(bytes)
}
