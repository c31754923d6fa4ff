//! The filesystem made larger or smaller, as `resize2fs` does it offline.
//!
//! In this order: the new shape is judged and everything that has to move is known before anything changes
//! (`shape.rs`, `plan.rs`); inodes of groups that go get new numbers (`renumber.rs`); blocks that are in the way are
//! copied, and what names them is corrected (`evacuate.rs`, `repoint.rs`); tables move, the shape changes, new groups
//! are made (`finish.rs`, `found.rs`); all copies of superblock and descriptors are written.
//!
//! When the blocks that were reserved for descriptors run out, what lies behind them moves. Everything happens in the
//! transaction, so a failure leaves the filesystem as it was.

mod evacuate;
mod finish;
mod found;
mod plan;
mod renumber;
mod repoint;
mod shape;

use racker_formats::error::Result;

use super::super::fault::Ext4Fault;
use super::super::superblock::Superblock;
use super::Edit;
use super::zones::Zones;

impl Edit {
    /// Makes the filesystem as large as it can be in the first `size` bytes of its volume.
    pub(super) fn resize_filesystem(&mut self, size: u64) -> Result<()> {
        if self.failed {
            return Err(Ext4Fault::Unsound("was left by an operation that failed").into());
        }
        let old = &self.fs.sb;
        let (blocks, block_size, have) =
            (size >> old.block_size.shift(), old.block_size.bytes(), self.fs.disk.size());
        if size > have {
            return Err(Ext4Fault::LargerThanVolume { blocks, block_size, size: have }.into());
        }
        let larger = blocks >= old.blocks;
        let new = old.resized(size)?;
        // What is left over behind the last group is no group of its own, but the last group may end there already.
        if new.blocks == old.blocks || (larger && new.blocks < old.blocks) {
            return Ok(());
        }
        self.may_resize(&new)?;
        if new.groups > old.groups {
            found::check_layout(&new, old.groups)?;
        }
        self.check_smaller(&new)?;
        self.write_back(true)?;
        self.failed = true;
        self.undo = None;
        self.resize_to(new)?;
        self.failed = false;
        Ok(())
    }

    fn resize_to(&mut self, new: Superblock) -> Result<()> {
        let plan = self.plan(new)?;
        self.zones = Zones::without_journal(&self.fs.sb, &self.groups.list)?;
        let staying = self.fs.sb.groups.min(plan.new.groups);
        if plan.new.groups < self.fs.sb.groups {
            self.renumber(plan.new.groups)?;
        }
        let moves = self.evacuate(&plan)?;
        self.repoint_all(staying, &moves)?;
        self.settle()?;
        self.move_tables(&plan)?;
        self.reshape(&plan)?;
        self.settle_shape()
    }

    /// Refuses to make the filesystem smaller than what is in it, before anything is done.
    fn check_smaller(&self, new: &Superblock) -> Result<()> {
        let old = &self.fs.sb;
        if new.blocks >= old.blocks {
            return Ok(());
        }
        let used_inodes = u64::from(old.inodes).saturating_sub(self.totals.free_inodes);
        let per_group = u64::from(old.inodes_per_group);
        let tables = |sb: &Superblock, groups: u64| {
            (0..groups).fold(0u64, |sum, group| {
                sum.saturating_add(2)
                    .saturating_add(sb.table_blocks())
                    .saturating_add(sb.base_blocks(group).1)
            })
        };
        let free = self.totals.free.checked_shl(old.cluster_shift).unwrap_or(u64::MAX);
        let own = tables(old, old.groups).saturating_add(old.first_data_block);
        // Tables share clusters, so with these it is what is needed at least.
        let data = old.blocks.saturating_sub(free).saturating_sub(own);
        let need = data.saturating_add(tables(new, new.groups)).saturating_add(old.first_data_block);
        let inodes_fit = used_inodes <= new.groups.saturating_mul(per_group);
        if inodes_fit && need <= new.blocks {
            return Ok(());
        }
        let by_inodes = used_inodes.div_ceil(per_group.max(1)).saturating_sub(1);
        let by_inodes = old.first_block(by_inodes).saturating_add(1);
        let least = if inodes_fit { need } else { need.max(by_inodes) };
        let bytes = old.block_size.start_of(least).unwrap_or(u64::MAX);
        let what =
            format!("what is in the filesystem takes about {bytes} bytes, so it cannot become that small");
        Err(Ext4Fault::Cannot(what).into())
    }
}
