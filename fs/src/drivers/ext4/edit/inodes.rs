//! Inodes taken and given back.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64};

use super::super::fault::Ext4Fault;
use super::Edit;
use super::bits::{next_clear, next_set};
use super::bytes::low32;
use super::groups::{INODE_UNINIT, INODE_ZEROED, Which};

impl Edit {
    /// The group of an inode.
    pub(super) fn group_of(&self, number: u32) -> u32 {
        number.saturating_sub(1).checked_div(self.fs.sb.inodes_per_group).unwrap_or(0)
    }

    /// Takes an inode, in the group of its directory or the next one that has any.
    pub(super) fn allocate_inode(&mut self, dir: u32, is_dir: bool) -> Result<u32> {
        let groups = low32(self.fs.sb.groups);
        let home = self.group_of(dir);
        let room = |edit: &Self, group: u32| {
            edit.desc(group).is_ok_and(|desc| desc.free_inodes > 0 && (!is_dir || desc.free > 0))
        };
        let any = |edit: &Self, group: u32| edit.desc(group).is_ok_and(|desc| desc.free_inodes > 0);
        let all = || (home..groups).chain(0..home);
        let found = all().find(|g| room(self, *g)).or_else(|| all().find(|g| any(self, *g)));
        let Some(group) = found else { return Err(Ext4Fault::NoInodes(self.fs.sb.inodes).into()) };
        self.take_inode(group, is_dir).within(|| format!("group {group}"))
    }

    pub(super) fn take_inode(&mut self, group: u32, is_dir: bool) -> Result<u32> {
        let per_group = self.fs.sb.inodes_per_group;
        let count = index(per_group.into())?;
        let map = self.bits(group, Which::Inodes)?;
        let from = index(self.desc(group)?.first_inode.into())?;
        let slot = next_clear(&map, from, count);
        drop(map);
        let short = u32::try_from(slot).unwrap_or(u32::MAX);
        let number = group.saturating_mul(per_group).saturating_add(short).saturating_add(1);
        if slot >= count || number < self.fs.sb.first_inode {
            let found = "free, though it is none for files";
            return Err(Ext4Fault::Bitmap {
                what: "a new node",
                bitmap: "inode",
                number: number.into(),
                found,
            }
            .into());
        }
        self.materialise(group)?;
        self.mark(group, Which::Inodes, (slot, slot.saturating_add(1)), true)?;
        let desc = *self.desc(group)?;
        let used = per_group.saturating_sub(desc.unused);
        let now_used = used.max(short.saturating_add(1));
        if self.fs.sb.features.has_group_csum() && desc.flags & INODE_ZEROED == 0 {
            self.zero_table(desc.inode_table, used, now_used)?;
        }
        let desc = self.desc_mut(group)?;
        desc.flags &= !INODE_UNINIT;
        desc.unused = per_group.saturating_sub(now_used);
        desc.free_inodes = desc.free_inodes.saturating_sub(1);
        desc.first_inode = short.saturating_add(1);
        desc.dirs = desc.dirs.saturating_add(u32::from(is_dir));
        self.totals.free_inodes = self.totals.free_inodes.saturating_sub(1);
        Ok(number)
    }

    /// Clears the blocks of a table that hold the inodes from `used` to `now_used` and none before.
    fn zero_table(&mut self, table: u64, used: u32, now_used: u32) -> Result<()> {
        let block = self.fs.sb.block_size;
        let per_block = block.bytes().checked_div(len64(self.fs.sb.inode_bytes)).unwrap_or(1).max(1);
        let (first, end) = (u64::from(used).div_ceil(per_block), u64::from(now_used).div_ceil(per_block));
        for number in first..end {
            self.put_block(table.saturating_add(number), vec![0; index(block.bytes())?])?;
        }
        Ok(())
    }

    /// Gives back an inode when the operation has succeeded.
    pub(super) fn release_inode(&mut self, number: u32, was_dir: bool) -> Result<()> {
        if self.undo.is_none() {
            return self.free_inode(number, was_dir);
        }
        self.released_inodes.push((number, was_dir));
        Ok(())
    }

    /// Marks an inode as free.
    pub(super) fn free_inode(&mut self, number: u32, was_dir: bool) -> Result<()> {
        let group = self.group_of(number);
        let short = number.saturating_sub(1).checked_rem(self.fs.sb.inodes_per_group).unwrap_or(0);
        let slot = index(short.into())?;
        self.mark(group, Which::Inodes, (slot, slot.saturating_add(1)), false)?;
        let desc = self.desc_mut(group)?;
        desc.free_inodes = desc.free_inodes.saturating_add(1);
        desc.first_inode = desc.first_inode.min(short);
        desc.dirs = desc.dirs.saturating_sub(u32::from(was_dir));
        self.totals.free_inodes = self.totals.free_inodes.saturating_add(1);
        Ok(())
    }

    /// Checks that an inode which a directory names is marked as in use.
    pub(super) fn check_used(&mut self, number: u32) -> Result<()> {
        let group = self.group_of(number);
        let short = number.saturating_sub(1).checked_rem(self.fs.sb.inodes_per_group).unwrap_or(0);
        let slot = index(short.into())?;
        let map = self.bits(group, Which::Inodes)?;
        if next_set(&map, slot, slot.saturating_add(1)) == slot {
            return Ok(());
        }
        let what = "a directory";
        let found = "free, though in use";
        Err(Ext4Fault::Bitmap { what, bitmap: "inode", number: number.into(), found }.into())
    }
}
