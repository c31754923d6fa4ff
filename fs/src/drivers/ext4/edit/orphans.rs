//! Orphans: nodes that were deleted, or being cut off, when the filesystem was last in use.

use std::collections::HashSet;

use racker_formats::error::{Result, Within};
use racker_formats::wire::part;

use super::super::csum::crc32c;
use super::super::extent::END;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, RoCompat};
use super::super::layout::inode_flags;
use super::super::map::Mapping;
use super::Edit;
use super::bytes::{get32, put32};
use super::node::Node;
use crate::filesystem::{NodeKind, Time};

/// The number in front of the checksum of a block of the orphan file.
const BLOCK_MAGIC: u32 = 0x0b10_ca04;
/// Bytes of both.
const TAIL: usize = 8;

impl Edit {
    /// Finishes what was begun with all orphans.
    pub(super) fn finish_orphans(&mut self) -> Result<()> {
        let now = Time { sec: self.fs.sb.raw.wtime.get().into(), nsec: 0 };
        self.run(now, |edit| edit.orphan_list(now)).within(|| "list of orphans")?;
        self.run(now, |edit| edit.orphan_file(now)).within(|| "orphan file")
    }

    fn orphan_list(&mut self, now: Time) -> Result<()> {
        self.settle()?;
        let mut seen = HashSet::new();
        let mut next = self.fs.sb.raw.last_orphan.get();
        while next != 0 {
            if !seen.insert(next) {
                return Err(Ext4Fault::Directory("the list of orphans comes round").into());
            }
            let number = next;
            next = self.orphan(number, now).within(|| format!("inode {number}"))?;
        }
        self.fs.sb.raw.last_orphan = 0.into();
        Ok(())
    }

    /// Deletes or cuts off one orphan; returns the next one of the list.
    fn orphan(&mut self, number: u32, now: Time) -> Result<u32> {
        if number < self.fs.sb.first_inode || number > self.fs.sb.inodes {
            let (first, last) = (self.fs.sb.first_inode, self.fs.sb.inodes);
            return Err(Ext4Fault::InodeNumber { number: number.into(), first, last }.into());
        }
        self.check_used(number)?;
        let mut node = Node::of(self.fs.any_inode(number)?)?;
        let next = node.raw.dtime.get();
        node.raw.dtime = 0.into();
        if node.links() == 0 {
            // It still counts as its owner's.
            let mut counted = node.bytes.clone();
            super::bytes::put16(&mut counted, 26, 1)?;
            self.charge(number, &counted, &node.bytes)?;
            if node.has(inode_flags::EA_INODE) {
                self.settle()?;
                self.unmap(&mut node, 0, END)?;
                self.bury(&mut node, now)?;
            } else {
                self.delete(&mut node, now)?;
            }
        } else {
            if node.kind == NodeKind::File && !node.is_inline() {
                let first = self.fs.sb.block_size.count(node.size);
                self.unmap(&mut node, first, END)?;
            }
            self.save(&mut node)?;
        }
        self.shed_if_large()?;
        Ok(next)
    }

    fn orphan_file(&mut self, now: Time) -> Result<()> {
        let features = &self.fs.sb.features;
        if !features.compat.contains(Compat::ORPHAN_FILE)
            || !features.ro_compat.contains(RoCompat::ORPHAN_PRESENT)
        {
            return Ok(());
        }
        self.settle()?;
        let file = self.fs.any_inode(self.fs.sb.raw.orphan_file_inum.get())?;
        let blocks = self.fs.sb.block_size.count(file.size).min(self.fs.sb.blocks);
        for number in 0..blocks {
            let Mapping::Data(at) = self.fs.map(&file, number)?.to else {
                return Err(Ext4Fault::DirHole(number).into());
            };
            self.orphan_block(file.csum_seed, at, now).within(|| format!("block {number}"))?;
        }
        self.fs.sb.features.ro_compat.remove(RoCompat::ORPHAN_PRESENT);
        Ok(())
    }

    fn orphan_block(&mut self, seed: u32, at: u64, now: Time) -> Result<()> {
        let block = self.fs.block("the orphan file", at)?;
        let tail = block.len().saturating_sub(TAIL);
        let magic = get32(&block, tail)?;
        if magic != BLOCK_MAGIC {
            return Err(Ext4Fault::Directory("a block of the orphan file has the wrong magic").into());
        }
        let sums = self.fs.sb.features.has_metadata_csum();
        let seed_of_file = seed;
        let seed = crc32c(seed, &at.to_le_bytes());
        let (found, computed) =
            (get32(&block, tail.saturating_add(4))?, crc32c(seed, part(&block, 0, tail, "orphans")?));
        if sums && !racker_formats::wire::sum_holds(found, computed) {
            return Err(Ext4Fault::Checksum { what: "the block of orphans", found, computed }.into());
        }
        for word in part(&block, 0, tail, "orphans")?.as_chunks::<4>().0 {
            let number = u32::from_le_bytes(*word);
            if number != 0 {
                self.orphan(number, now).within(|| format!("inode {number}"))?;
            }
        }
        self.put_orphans(seed_of_file, at)
    }

    /// Makes a block of the orphan file an empty one.
    pub(super) fn put_orphans(&mut self, seed: u32, at: u64) -> Result<()> {
        let sums = self.fs.sb.features.has_metadata_csum();
        let seed = crc32c(seed, &at.to_le_bytes());
        self.change("the orphan file", at, |bytes| {
            let tail = bytes.len().saturating_sub(TAIL);
            let (entries, rest) = bytes.split_at_mut_checked(tail).ok_or(Ext4Fault::Directory("short"))?;
            entries.fill(0);
            if sums { put32(rest, 4, crc32c(seed, entries)) } else { Ok(()) }
        })
    }
}
