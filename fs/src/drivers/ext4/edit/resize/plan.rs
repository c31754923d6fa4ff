//! What has to move before the filesystem can have its new shape, and where the filesystem's own tables go.
//!
//! The blocks behind a new end, and those that a larger table of descriptors will cover, are *wanted*: files leave
//! them. Bitmaps and inode tables that are in the way get places that no table had before, so they are copied in any
//! order; files leave these places, too.

use std::collections::{BTreeMap, HashSet};

use racker_formats::error::Result;

use super::super::super::fault::Ext4Fault;
use super::super::super::features::Incompat;
use super::super::super::superblock::Superblock;
use super::super::Edit;
use super::super::groups::Desc;
use super::super::zones::Zones;

/// A table of the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    BlockBitmap,
    InodeBitmap,
    Inodes,
    /// The block of multiple mount protection, which belongs to no group.
    Mmp,
}

/// A table that goes elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableMove {
    pub(super) group: u32,
    pub(super) table: Table,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) len: u64,
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) new: Superblock,
    /// Blocks that files leave.
    pub(super) wanted: Zones,
    pub(super) tables: Vec<TableMove>,
    /// Blocks of tables that are no more: start and end, below the new end.
    pub(super) freed: Vec<(u64, u64)>,
    /// All that the filesystem's own tables have in groups that stay, afterwards.
    pub(super) kept: Zones,
}

fn less(all: &mut Vec<(u64, u64)>, from: (u64, u64), without: (u64, u64)) {
    let (start, end) = from;
    let first = (start, end.min(without.0.max(start)));
    let second = (start.max(without.1.min(end)), end);
    if without.0 >= without.1 {
        all.push(from);
        return;
    }
    all.extend([first, second].into_iter().filter(|(a, b)| a < b));
}

fn base(sb: &Superblock, group: u64) -> (u64, u64) {
    let (start, len) = sb.base_blocks(group);
    (start, start.saturating_add(len))
}

fn meet(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The tables of a group.
fn tables_of(sb: &Superblock, desc: &Desc) -> [(Table, u64, u64); 3] {
    [
        (Table::BlockBitmap, desc.block_bitmap, 1),
        (Table::InodeBitmap, desc.inode_bitmap, 1),
        (Table::Inodes, desc.inode_table, sb.table_blocks()),
    ]
}

impl Edit {
    /// What the way to the shape `new` needs.
    pub(super) fn plan(&self, new: Superblock) -> Result<Plan> {
        let old = &self.fs.sb;
        let staying = old.groups.min(new.groups);
        let (mut wanted, mut freed, mut bases) = (Vec::new(), Vec::new(), Vec::new());
        for group in 0..staying {
            let (before, now) = (base(old, group), base(&new, group));
            less(&mut freed, before, now);
            less(&mut wanted, now, before);
            bases.push(now);
        }
        let grown = Zones::joined(wanted.clone())?;
        let behind = (new.blocks, old.blocks);
        if behind.0 < behind.1 {
            wanted.push(behind);
        }
        let gone = Zones::joined(wanted.clone())?;
        let mut places =
            Places { edit: self, new: &new, bases: Zones::joined(bases)?, taken: BTreeMap::new() };
        let mut tables = Vec::new();
        for (group, desc) in (0u32..).zip(&self.groups.list) {
            let stays = u64::from(group) < new.groups;
            for (table, from, len) in tables_of(old, desc) {
                let here = (from, from.saturating_add(len));
                if !stays {
                    freed.push((here.0, here.1.min(new.blocks)));
                } else if gone.overlap(from, len).is_some() {
                    let to = places.find(group, here, len)?;
                    tables.push(TableMove { group, table, from, to, len });
                    freed.push((here.0, here.1.min(new.blocks)));
                }
            }
        }
        if old.features.incompat.contains(Incompat::MMP) {
            let from = old.raw.mmp_block.get();
            if gone.overlap(from, 1).is_some() {
                let to = places.find(0, (from, from.saturating_add(1)), 1)?;
                tables.push(TableMove { group: 0, table: Table::Mmp, from, to, len: 1 });
                freed.push((from, from.saturating_add(1).min(new.blocks)));
            }
        }
        let clusters = old.cluster_shift > 0;
        if clusters && (!grown.all().is_empty() || !tables.is_empty()) {
            let what = "its tables would have to move, which racker does not do with clusters (bigalloc)";
            return Err(Ext4Fault::Cannot(what.into()).into());
        }
        wanted.extend(places.taken);
        freed.retain(|(start, end)| start < end);
        // What a table leaves may be what the descriptors take.
        let mut free = Vec::new();
        for stretch in freed {
            grown.outside(stretch, &mut |start, end| free.push((start, end)));
        }
        let kept = self.kept(&new, &tables)?;
        Ok(Plan { new, wanted: Zones::joined(wanted)?, tables, freed: free, kept })
    }

    /// The tables of groups that stay, where they will be.
    fn kept(&self, new: &Superblock, moves: &[TableMove]) -> Result<Zones> {
        let (mut all, mut bases) = (Vec::new(), Vec::new());
        let count = usize::try_from(new.groups).unwrap_or(usize::MAX).min(self.groups.list.len());
        for (number, desc) in (0u64..).zip(self.groups.list.iter().take(count)) {
            bases.push(base(new, number));
            for (_, start, len) in tables_of(new, desc) {
                all.push((start, start.saturating_add(len)));
            }
        }
        let gone: HashSet<u64> = moves.iter().map(|m| m.from).collect();
        all.retain(|(start, _)| !gone.contains(start));
        all.extend(bases);
        all.extend(moves.iter().map(|m| (m.to, m.to.saturating_add(m.len))));
        let mmp = self.fs.sb.raw.mmp_block.get();
        if self.fs.sb.features.incompat.contains(Incompat::MMP) && !gone.contains(&mmp) {
            all.push((mmp, mmp.saturating_add(1)));
        }
        Zones::joined(all)
    }
}

/// Places for tables.
struct Places<'a> {
    edit: &'a Edit,
    new: &'a Superblock,
    /// The copies of superblock and descriptors as they will be.
    bases: Zones,
    /// Given away already: start and end.
    taken: BTreeMap<u64, u64>,
}

impl Places<'_> {
    /// A place for `len` blocks of `group`, which are at `here`: no table is there now or will be.
    fn find(&mut self, group: u32, here: (u64, u64), len: u64) -> Result<u64> {
        let (own, end) = (self.new.first_block(group.into()), self.new.blocks);
        let flexible = self.new.features.incompat.contains(Incompat::FLEX_BG);
        let (first, last) = if flexible {
            // Behind where it was, or from the start where that is behind the end.
            (if here.0 < end { here.0 } else { self.new.first_data_block }, end)
        } else {
            (own, own.saturating_add(self.new.blocks_of(group.into())))
        };
        let mut at = first;
        while at.saturating_add(len) <= last {
            let span = (at, at.saturating_add(len));
            let busy = self.edit.zones.overlap(at, len).and_then(|block| self.edit.zones.around(block));
            let busy = busy.or_else(|| self.bases.overlap(at, len).and_then(|b| self.bases.around(b)));
            let before = self.taken.range(..span.1).next_back().map(|(start, end)| (*start, *end));
            let busy = busy.or_else(|| before.filter(|taken| meet(*taken, span)));
            match busy {
                Some((_, stop)) => at = stop.max(at.saturating_add(1)),
                None => {
                    self.taken.insert(span.0, span.1);
                    return Ok(at);
                }
            }
        }
        let what = format!("there is no place for the tables of group {group}");
        Err(Ext4Fault::Cannot(what).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_stretch() {
        let zones = Zones::joined(vec![(10, 20), (30, 40)]).unwrap();
        let left = |stretch| {
            let mut all = Vec::new();
            zones.outside(stretch, &mut |start, end| all.push((start, end)));
            all
        };
        assert_eq!(left((0, 50)), [(0, 10), (20, 30), (40, 50)]);
        assert_eq!(left((12, 18)), []);
        assert_eq!(left((15, 35)), [(20, 30)]);
        let mut all = Vec::new();
        less(&mut all, (5, 10), (5, 7));
        less(&mut all, (5, 7), (5, 10));
        less(&mut all, (5, 10), (5, 5));
        assert_eq!(all, [(7, 10), (5, 10)]);
    }
}
