//! What remains when blocks and inodes are where they belong: tables moved, the shape changed, copies written.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64};
use zerocopy::IntoBytes;

use super::super::super::fault::Ext4Fault;
use super::super::super::features::{Compat, Incompat};
use super::super::super::superblock::Superblock;
use super::super::bits::{next_clear, next_set};
use super::super::bytes::{get32, low32, put32};
use super::super::groups::{Groups, Which};
use super::super::node::Node;
use super::super::zones::Zones;
use super::super::{Edit, Totals};
use super::plan::{Plan, Table};
use super::repoint::RESIZE_INODE;
use crate::cache::BlockCache;
use crate::claims::Claims;
use crate::fresh::Fresh;

/// Which pointer of an inode leads to two levels of pointers, in bytes.
const DOUBLE_AT: usize = 52;
/// `s_jnl_backup_type`: `s_jnl_blocks` has the map and the size of the journal's inode.
const BACKUP_BLOCKS: u8 = 1;
/// Bytes that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

impl Edit {
    /// Forgets what was read, as blocks have moved.
    pub(in super::super) fn forget_read(&mut self) -> Result<()> {
        self.write_back(true)?;
        self.fs.cache = BlockCache::new(self.fs.sb.block_size);
        self.fs.claims = Claims::default();
        Ok(())
    }

    /// Moves bitmaps and inode tables that are in the way, and gives back what tables had.
    pub(super) fn move_tables(&mut self, plan: &Plan) -> Result<()> {
        self.write_back(true)?;
        for table in &plan.tables {
            let block = self.fs.sb.block_size;
            let piece = (COPY_BYTES >> block.shift()).max(1);
            let mut done = 0;
            while done < table.len {
                let count = piece.min(table.len.saturating_sub(done));
                let mut buf = vec![0; index(block.start_of(count).unwrap_or(0))?];
                self.fs.disk.read_at(self.fs.byte_of(table.from.saturating_add(done))?, &mut buf)?;
                self.fs.disk.write_at(self.fs.byte_of(table.to.saturating_add(done))?, &buf)?;
                done = done.saturating_add(count);
            }
        }
        for (start, end) in &plan.freed {
            self.give_back(*start, *end, &plan.kept)?;
        }
        // What a group without a bitmap has in use follows from its descriptor: it is written down before that changes.
        for table in &plan.tables {
            self.materialise(table.group)?;
        }
        self.write_back(true)?;
        for table in &plan.tables {
            match table.table {
                Table::BlockBitmap => self.desc_mut(table.group)?.block_bitmap = table.to,
                Table::InodeBitmap => self.desc_mut(table.group)?.inode_bitmap = table.to,
                Table::Inodes => self.desc_mut(table.group)?.inode_table = table.to,
                Table::Mmp => self.fs.sb.raw.mmp_block = table.to.into(),
            }
        }
        self.forget_read()
    }

    /// Marks clusters as free that tables had, but for those that `kept` tables are in, too.
    fn give_back(&mut self, start: u64, end: u64, kept: &Zones) -> Result<()> {
        let mut at = start;
        while at < end {
            let (group, first) = self.locate(at);
            let stop = self.fs.sb.first_block(u64::from(group).saturating_add(1)).min(end);
            let last = self.locate(stop.saturating_sub(1)).1.saturating_add(1);
            at = stop;
            let origin = self.fs.sb.first_block(group.into());
            let ratio = self.ratio();
            for bit in first..last {
                let cluster = origin.saturating_add(len64(bit).saturating_mul(ratio));
                let shared = ratio > 1 && {
                    let map = self.bits(group, Which::Blocks)?;
                    kept.overlap(cluster, ratio).is_some()
                        || next_set(&map, bit, bit.saturating_add(1)) != bit
                };
                if !shared {
                    self.mark(group, Which::Blocks, (bit, bit.saturating_add(1)), false)?;
                    let desc = self.desc_mut(group)?;
                    desc.free = desc.free.saturating_add(1);
                    self.totals.free = self.totals.free.saturating_add(1);
                }
            }
            let desc = self.desc_mut(group)?;
            (desc.longest, desc.first_free) = (desc.free, 0);
            self.shed_if_large()?;
        }
        Ok(())
    }

    /// Gives the filesystem its new number of blocks and groups.
    pub(super) fn reshape(&mut self, plan: &Plan) -> Result<()> {
        self.write_back(true)?;
        let old = self.fs.sb.clone();
        let new = old.with_blocks(plan.new.blocks, plan.new.groups)?;
        if new.groups < old.groups {
            self.groups.list.truncate(index(new.groups)?);
        }
        let last = old.groups.min(new.groups).saturating_sub(1);
        let short = low32(last);
        if new.blocks > old.blocks {
            // Read as it was.
            drop(self.bits(short, Which::Blocks)?);
        }
        self.fs.sb = new;
        let (before, now) = (index(old.clusters_of(last))?, index(self.fs.sb.clusters_of(last))?);
        if now > before {
            self.open_bits(short, before, now)?;
        }
        if self.fs.sb.groups > old.groups {
            self.found(old.groups)?;
        }
        // The last group always has its bitmap.
        self.materialise(low32(self.fs.sb.groups).saturating_sub(1))
    }

    /// Marks clusters as free that a group did not have before.
    fn open_bits(&mut self, group: u32, from: usize, to: usize) -> Result<()> {
        let map = self.bits(group, Which::Blocks)?;
        let mut at = next_set(&map, from, to);
        while at < to {
            let stop = next_clear(&map, at, to);
            self.mark(group, Which::Blocks, (at, stop), false)?;
            at = next_set(&map, stop, to);
        }
        let desc = self.desc_mut(group)?;
        desc.free = desc.free.saturating_add(low32(len64(to.saturating_sub(from))));
        desc.longest = desc.free;
        Ok(())
    }

    /// Writes what says how large the filesystem is, in all copies, and reads it again.
    pub(super) fn settle_shape(&mut self) -> Result<()> {
        self.list_reserved()?;
        self.back_up_journal()?;
        self.write_back(true)?;
        self.count()?;
        self.write_copies()?;
        self.write_descriptor_copies()?;
        self.forget_read()?;
        let written = Superblock::read(&self.fs.disk)?;
        if (written.blocks, written.groups) != (self.fs.sb.blocks, self.fs.sb.groups) {
            return Err(Ext4Fault::Unsound("has another size than it was given").into());
        }
        self.groups = Groups::read(&self.fs)?;
        self.zones = Zones::new(&self.fs, &self.groups.list)?;
        self.fresh = Fresh::default();
        self.last_group = 0;
        Ok(())
    }

    /// Adds up what is free.
    fn count(&mut self) -> Result<()> {
        self.totals = Totals::of(&self.groups.list);
        Ok(())
    }

    /// Makes the inode of reserved descriptor blocks (`resize_inode`) list them, with their copies.
    fn list_reserved(&mut self) -> Result<()> {
        let sb = self.fs.sb.clone();
        if !sb.features.compat.contains(Compat::RESIZE_INODE) {
            return Ok(());
        }
        let mut node = Node::of(self.fs.any_inode(RESIZE_INODE)?)?;
        let list = u64::from(get32(&node.raw.block, DOUBLE_AT)?);
        if list == 0 {
            return Err(Ext4Fault::Unsound("has no list of reserved descriptor blocks").into());
        }
        self.check_owned("the resize inode", list, 1)?;
        let size = index(sb.block_size.bytes())?;
        let slots = size >> 2;
        let copies: Vec<u64> = (1..sb.groups).filter(|group| sb.has_superblock(*group)).collect();
        let (reserved, used) = (u64::from(sb.raw.reserved_gdt_blocks.get()), sb.desc_blocks());
        if reserved > 0 && copies.len() > slots {
            let what = "there are more copies of descriptors than the resize inode can list";
            return Err(Ext4Fault::Cannot(what.into()).into());
        }
        let mut double = vec![0u8; size];
        for number in 0..reserved {
            let place = used.saturating_add(number);
            let block = sb.descriptor_block(0).saturating_add(place);
            let slot = index(place)?.checked_rem(slots).unwrap_or(0).saturating_mul(4);
            put32(&mut double, slot, low32(block))?;
            let mut places = vec![0u8; size];
            for (at, group) in (0usize..).step_by(4).zip(&copies) {
                let copy = block.saturating_add(group.saturating_mul(sb.blocks_per_group));
                put32(&mut places, at, low32(copy))?;
            }
            self.put_block(block, places)?;
        }
        self.put_block(list, double)?;
        let each = len64(copies.len()).saturating_add(1);
        let blocks = reserved.saturating_mul(each).saturating_add(1).saturating_mul(self.ratio());
        (node.raw.blocks_lo, node.raw.blocks_hi) = (0.into(), 0.into());
        node.add_blocks(&sb, blocks.cast_signed())?;
        self.save(&mut node)
    }

    /// The superblock has a copy of where the journal is.
    fn back_up_journal(&mut self) -> Result<()> {
        let number = self.fs.sb.raw.journal_inum.get();
        if !self.fs.has_journal() || number == 0 {
            return Ok(());
        }
        let journal = self.fs.any_inode(number)?;
        let raw = &mut self.fs.sb.raw;
        raw.jnl_backup_type = BACKUP_BLOCKS;
        let (map, size) = raw.jnl_blocks.as_mut_bytes().split_at_mut_checked(60).unwrap_or_default();
        map.copy_from_slice(&journal.raw.block);
        let (hi, lo) = (journal.raw.size_hi.get().to_le_bytes(), journal.raw.size_lo.get().to_le_bytes());
        for (to, from) in size.iter_mut().zip(hi.into_iter().chain(lo)) {
            *to = from;
        }
        Ok(())
    }

    /// What keeps a filesystem from getting another size.
    pub(super) fn may_resize(&self, new: &Superblock) -> Result<()> {
        let old = &self.fs.sb;
        let smaller = new.blocks < old.blocks;
        let why = if smaller && old.features.compat.contains(Compat::STABLE_INODES) {
            "numbers of inodes are part of how files are encrypted (stable_inodes)"
        } else if old.features.incompat.contains(Incompat::BIT64)
            && old.features.compat.contains(Compat::RESIZE_INODE)
            && new.blocks > 1 << 32
            && new.raw.reserved_gdt_blocks.get() > 0
        {
            "reserved descriptor blocks (resize_inode) end at 2^32 blocks"
        } else {
            return Ok(());
        };
        Err(Ext4Fault::Cannot(format!("the filesystem cannot have that size: {why}")).into())
    }
}
