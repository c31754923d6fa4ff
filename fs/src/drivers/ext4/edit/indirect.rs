//! Block maps of ext2 and ext3: pointers put in and taken out.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64};

use super::super::fault::Ext4Fault;
use super::Edit;
use super::bytes::{get32, low32, put32};
use super::node::Node;
use super::tree::Item;

/// Pointers in the inode to blocks of the file.
const DIRECT: u64 = 12;

/// Called with each piece that is taken out.
type Gone<'a> = dyn FnMut(&mut Edit, &mut Node, Item) -> Result<()> + 'a;

/// Blocks of the file `from..to` that are to be taken out.
#[derive(Clone, Copy)]
struct Range {
    from: u64,
    to: u64,
}

impl Edit {
    /// Logarithm of the pointers in a block.
    fn pointer_shift(&self) -> u32 {
        self.fs.sb.block_size.shift().saturating_sub(2)
    }

    /// Blocks that a tree of so many levels answers for.
    fn covered(&self, levels: u32) -> u64 {
        1u64.checked_shl(self.pointer_shift().saturating_mul(levels)).unwrap_or(u64::MAX)
    }

    /// Blocks that a map can hold.
    pub(super) fn map_blocks_max(&self) -> u64 {
        (1..=3).fold(DIRECT, |sum, levels| sum.saturating_add(self.covered(levels)))
    }

    /// The levels of the tree that answers for block `at`, and the first block that it answers for.
    fn tree_of(&self, at: u64) -> Result<(u32, u64)> {
        let mut base = DIRECT;
        for levels in 1..=3 {
            let end = base.saturating_add(self.covered(levels));
            if at < end {
                return Ok((levels, base));
            }
            base = end;
        }
        Err(Ext4Fault::Inode { field: "a block behind the block map", found: at }.into())
    }

    /// Maps a row of blocks, none of which is mapped.
    pub(super) fn map_blocks(&mut self, node: &mut Node, first: u64, start: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let (at, block) = (first.saturating_add(done), start.saturating_add(done));
            if at < DIRECT {
                put32(&mut node.raw.block, index(at)?.saturating_mul(4), low32(block))?;
                done = done.saturating_add(1);
                continue;
            }
            let (table, slot) = self.leaf_table(node, at)?;
            let room = self.covered(1).saturating_sub(slot);
            let count = room.min(len.saturating_sub(done));
            self.change("a block map", table, |bytes| {
                for step in 0..count {
                    let place = index(slot.saturating_add(step))?.saturating_mul(4);
                    put32(bytes, place, low32(block.saturating_add(step)))?;
                }
                Ok(())
            })?;
            done = done.saturating_add(count);
        }
        Ok(())
    }

    /// The block of pointers that holds the one to block `at`, made if need be, and its place there.
    fn leaf_table(&mut self, node: &mut Node, at: u64) -> Result<(u64, u64)> {
        let (levels, base) = self.tree_of(at)?;
        let within = at.saturating_sub(base);
        let slot = index(DIRECT.saturating_add(levels.into()).saturating_sub(1))?.saturating_mul(4);
        let mut table = u64::from(get32(&node.raw.block, slot)?);
        if table == 0 {
            table = self.new_pointers(node)?;
            put32(&mut node.raw.block, slot, low32(table))?;
        }
        for level in (1..levels).rev() {
            let place = index(self.slot_at(within, level))?.saturating_mul(4);
            self.check_owned("a block map", table, 1)?;
            let mut next = u64::from(get32(&self.fs.block("a block map", table)?, place)?);
            if next == 0 {
                next = self.new_pointers(node)?;
                self.change("a block map", table, |bytes| put32(bytes, place, low32(next)))?;
            }
            table = next;
        }
        Ok((table, self.slot_at(within, 0)))
    }

    /// Which pointer leads to block `within` of a tree, in a block with `level` levels below it.
    fn slot_at(&self, within: u64, level: u32) -> u64 {
        let shift = self.pointer_shift();
        (within >> shift.saturating_mul(level).min(63)) & self.covered(1).saturating_sub(1)
    }

    fn new_pointers(&mut self, node: &mut Node) -> Result<u64> {
        let block = self.take_meta(node)?;
        self.put_block(block, vec![0; index(self.fs.sb.block_size.bytes())?])?;
        Ok(block)
    }

    /// Takes out the pointers to the blocks `from..to`, and the blocks of pointers that are empty then. That takes
    /// no room, so from here on the operation cannot be undone: a block that stands in two places is found when it
    /// is given back for the second time.
    pub(super) fn unmap_blocks(
        &mut self,
        node: &mut Node,
        from: u64,
        to: u64,
        gone: &mut Gone<'_>,
    ) -> Result<()> {
        self.settle()?;
        for at in from..to.min(DIRECT) {
            let place = index(at)?.saturating_mul(4);
            let start = u64::from(get32(&node.raw.block, place)?);
            if start != 0 {
                put32(&mut node.raw.block, place, 0)?;
                gone(self, node, Item { first: at, len: 1, start, unwritten: false })?;
            }
        }
        let mut base = DIRECT;
        for levels in 1..=3 {
            let end = base.saturating_add(self.covered(levels));
            let slot = index(DIRECT.saturating_add(levels.into()).saturating_sub(1))?.saturating_mul(4);
            let table = u64::from(get32(&node.raw.block, slot)?);
            if table != 0 && from < end && to > base {
                let range = Range { from, to };
                if self.clear_table(node, (table, levels, base), range, gone)? {
                    put32(&mut node.raw.block, slot, 0)?;
                    self.give_meta(node, table)?;
                }
            }
            base = end;
        }
        Ok(())
    }

    /// Takes out pointers below a block of them; tells whether none is left. `table` is its block, the levels down
    /// to the file's blocks, and the first block that it answers for.
    fn clear_table(
        &mut self,
        node: &mut Node,
        table: (u64, u32, u64),
        range: Range,
        gone: &mut Gone<'_>,
    ) -> Result<bool> {
        let (number, levels, base) = table;
        let place = || format!("indirect block {number}");
        self.check_owned("a block map", number, 1).within(place)?;
        let mut bytes = self.fs.block("a block map", number).within(place)?.to_vec();
        let below = levels.saturating_sub(1);
        let each = self.covered(below);
        let (mut changed, mut left) = (false, false);
        let mut run: Option<Item> = None;
        for slot in 0..self.covered(1) {
            let first = base.saturating_add(slot.saturating_mul(each));
            let at = index(slot)?.saturating_mul(4);
            let start = u64::from(get32(&bytes, at)?);
            if start == 0 {
                continue;
            }
            let outside = first >= range.to || first.saturating_add(each) <= range.from;
            if outside || (below > 0 && !self.clear_table(node, (start, below, first), range, gone)?) {
                left = true;
                continue;
            }
            put32(&mut bytes, at, 0)?;
            changed = true;
            if below > 0 {
                self.give_meta(node, start)?;
                continue;
            }
            let item = Item { first, len: 1, start, unwritten: false };
            run = match run.map(|before| (before, before.joined(&item))) {
                Some((_, Some(joined))) => Some(joined),
                Some((before, None)) => {
                    gone(self, node, before)?;
                    Some(item)
                }
                None => Some(item),
            };
        }
        if let Some(last) = run {
            gone(self, node, last)?;
        }
        if changed && left {
            debug_assert_eq!(len64(bytes.len()), self.fs.sb.block_size.bytes());
            self.change_system("a block map", number, |old| {
                old.copy_from_slice(&bytes);
                Ok(())
            })?;
        }
        Ok(!left)
    }
}
