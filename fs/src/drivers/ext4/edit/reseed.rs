//! All checksums made anew, to start from another seed (`metadata_csum` when the UUID changes).
//!
//! One walk over the inodes in order of their numbers: each block of metadata belongs to one inode, is read with its
//! old checksum, and gets the new one at once, so nothing has to be remembered but blocks of attributes that several
//! inodes share. Inodes that hold values of attributes come last, as their owners' hashes start from the values.
//! Descriptors and bitmaps, which the walk reads, are done at the very end.

use std::collections::HashSet;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, is_zero, part, sum_holds};

use super::super::csum::crc32c;
use super::super::extent::END;
use super::super::fault::Ext4Fault;
use super::super::features::Incompat;
use super::super::inode::Inode;
use super::super::layout::{
    DIR_TAIL_BYTES, EXTENT_BYTES, RawXattrHeader, XATTR_CHECKSUM_AT, XATTR_MAGIC, inode_flags,
};
use super::super::map::Mapping;
use super::Edit;
use super::bits::next_set;
use super::bytes::{get16, get32, low32, put, put32};
use super::groups::{BLOCK_UNINIT, INODE_UNINIT, Which};
use super::node::{Node, sum_inode};
use super::tree::TreeNode;
use crate::filesystem::NodeKind;

/// Where a multiple mount block has its checksum.
const MMP_SUM_AT: usize = 1020;
/// Where an inode has its time of access, in place of which a value's inode has the value's hash.
const ATIME_AT: usize = 8;
/// Bytes of one value.
const VALUE_BYTES_MAX: u64 = 64 << 10;
/// Where a block of attributes has the hash of all of it, and by how many inodes it is shared.
const BLOCK_HASH_AT: usize = 12;
const SHARED_AT: usize = 4;
/// Bytes of an attribute's entry before its name.
const ENTRY: usize = 16;

impl Edit {
    /// Makes all checksums start from `new`; those of descriptors are left to whoever writes them next.
    pub(super) fn reseed(&mut self, new: u32) -> Result<()> {
        self.write_back(true)?;
        let mut shared = HashSet::new();
        for group in 0..low32(self.fs.sb.groups) {
            self.reseed_group(group, new, &mut shared).within(|| format!("group {group}"))?;
        }
        if self.fs.sb.features.incompat.contains(Incompat::EA_INODE) {
            self.each_inode(self.fs.sb.groups, &mut |edit, number| {
                // All others have their new checksums already.
                let inode = Inode::parse_unchecked(&edit.fs.sb, number, edit.fs.inode_bytes(number)?)?;
                if inode.links == 0 || inode.kind.is_none() || !inode.is_ea_inode() {
                    return Ok(());
                }
                let inode = edit.fs.any_inode(number)?;
                edit.reseed_inode(inode, new, &mut HashSet::new())
            })?;
        }
        if self.fs.sb.features.has_metadata_csum() {
            self.reseed_mmp(new)?;
            self.reseed_bitmaps(new)?;
        }
        self.fs.sb.csum_seed = new;
        self.forget_read()
    }

    /// All inodes of a group that were ever used.
    fn reseed_group(&mut self, group: u32, new: u32, shared: &mut HashSet<u64>) -> Result<()> {
        let desc = *self.desc(group)?;
        if desc.flags & INODE_UNINIT != 0 && self.fs.sb.features.has_group_csum() {
            return Ok(());
        }
        let per_group = self.fs.sb.inodes_per_group;
        let map = self.bits(group, Which::Inodes)?;
        for slot in 0..per_group.saturating_sub(desc.unused) {
            let number = group.saturating_mul(per_group).saturating_add(slot).saturating_add(1);
            let place = || format!("inode {number}");
            let bytes = self.fs.inode_bytes(number).within(place)?;
            if is_zero(&bytes) {
                continue;
            }
            let at = index(slot.into())?;
            let used = next_set(&map, at, at.saturating_add(1)) == at;
            let inode = if used { Some(self.fs.any_inode(number).within(place)?) } else { None };
            match inode.filter(|inode| inode.links != 0 && inode.kind.is_some()) {
                // These come later.
                Some(inode) if inode.is_ea_inode() => {}
                Some(inode) => self.reseed_inode(inode, new, shared).within(place)?,
                // One that was deleted has nothing but its own checksum.
                None => self.stamp(number, bytes, new).within(place)?,
            }
            self.shed_if_large()?;
        }
        Ok(())
    }

    fn reseed_inode(&mut self, inode: Inode, new: u32, shared: &mut HashSet<u64>) -> Result<()> {
        let sums = self.fs.sb.features.has_metadata_csum();
        let seed = seed_of(new, inode.number, inode.raw.generation.get());
        let (number, has_map, is_dir) =
            (inode.number, inode.has_map(self), inode.kind == Some(NodeKind::Dir));
        let is_orphans = number == self.fs.sb.raw.orphan_file_inum.get();
        let mut bytes = inode.bytes.clone();
        if inode.is_ea_inode() {
            let value = self.value_of(number)?;
            put32(&mut bytes, ATIME_AT, crc32c(new, &value))?;
        }
        self.reseed_attrs(&inode, &mut bytes, new, shared)?;
        let node = Node::of(inode.clone())?;
        if sums && has_map {
            if is_dir {
                self.reseed_dir(&inode, seed)?;
            }
            let mut places = Vec::new();
            if is_orphans {
                for block in 0..self.fs.sb.block_size.count(inode.size).min(self.fs.sb.blocks) {
                    match self.fs.map(&inode, block)?.to {
                        Mapping::Data(at) => places.push(at),
                        _ => return Err(Ext4Fault::DirHole(block).into()),
                    }
                }
            }
            if node.has(inode_flags::EXTENTS) {
                self.reseed_tree(&node, &TreeNode::root(&node)?, END, seed)?;
            }
            for at in places {
                self.put_orphans(seed, at)?;
            }
        }
        self.stamp(number, bytes, new)
    }

    /// Stores an inode with its new checksum.
    fn stamp(&mut self, number: u32, mut bytes: Vec<u8>, new: u32) -> Result<()> {
        if self.fs.sb.features.has_metadata_csum() {
            sum_inode(&mut bytes, number, new)?;
        }
        let (block, within) = self.place_of(number)?;
        self.change_system("an inode table", block, |table| put(table, within, &bytes))
    }

    fn reseed_tree(&mut self, node: &Node, tree: &TreeNode, end: u64, seed: u32) -> Result<()> {
        if tree.depth == 0 {
            return Ok(());
        }
        let depth = tree.depth.saturating_sub(1);
        for (slot, item) in tree.items.iter().enumerate() {
            let stop = tree.items.get(slot.saturating_add(1)).map_or(end, |next| next.first);
            let child = self.tree_node(node, item.start, depth, (item.first, stop))?;
            self.reseed_tree(node, &child, stop, seed)?;
            let mut bytes = self.fs.block("an extent block", item.start)?.to_vec();
            let tail = child.max.saturating_add(1).saturating_mul(EXTENT_BYTES);
            let sum = crc32c(seed, part(&bytes, 0, tail, "extent node")?);
            put32(&mut bytes, tail, sum)?;
            self.put_block(item.start, bytes)?;
            self.shed_if_large()?;
        }
        Ok(())
    }

    /// The blocks of a directory, before those of its tree.
    fn reseed_dir(&mut self, dir: &Inode, seed: u32) -> Result<()> {
        for number in 0..self.fs.dir_blocks(dir)? {
            let block = self.fs.dir_block(dir, number)?;
            let table = self.fs.index_table(dir, number, &block.bytes)?;
            let mut bytes = block.bytes;
            match table {
                Some(at) => {
                    let end = |count: u16| at.saturating_add(usize::from(count).saturating_mul(8));
                    let (limit, count) = (get16(&bytes, at)?, get16(&bytes, at.saturating_add(2))?);
                    let (used, tail) = (end(count), end(limit));
                    let sum = crc32c(seed, part(&bytes, 0, used, "directory index")?);
                    let sum = crc32c(crc32c(sum, part(&bytes, tail, 4, "directory index")?), &[0; 4]);
                    put32(&mut bytes, tail.saturating_add(4), sum)?;
                }
                None => {
                    let tail = bytes.len().saturating_sub(DIR_TAIL_BYTES);
                    let sum = crc32c(seed, part(&bytes, 0, tail, "directory block")?);
                    put32(&mut bytes, tail.saturating_add(8), sum)?;
                }
            }
            self.check_owned("a directory", block.at, 1)?;
            self.put_block(block.at, bytes)?;
            self.shed_if_large()?;
        }
        Ok(())
    }

    /// The block of attributes, and hashes of values in inodes.
    fn reseed_attrs(
        &mut self,
        inode: &Inode,
        bytes: &mut [u8],
        new: u32,
        shared: &mut HashSet<u64>,
    ) -> Result<()> {
        let in_inodes = self.fs.sb.features.incompat.contains(Incompat::EA_INODE);
        let room = bytes.get_mut(inode.fixed..).unwrap_or_default();
        if in_inodes && inode.fixed > 128 && room.len() > 4 && get32(room, 0)? == XATTR_MAGIC {
            self.rehash(room, 4, new)?;
        }
        let number = inode.xattr_block;
        if number == 0 || shared.contains(&number) {
            return Ok(());
        }
        let place = || format!("attribute block {number}");
        self.check_owned("the inode", number, 1).within(place)?;
        let mut block = self.fs.block("extended attributes", number).within(place)?.to_vec();
        self.fs.check_xattr_block(number, &block).within(place)?;
        if get32(&block, SHARED_AT)? > 1 {
            shared.insert(number);
        }
        if in_inodes && let Some(all) = self.rehash(&mut block, size_of::<RawXattrHeader>(), new)? {
            put32(&mut block, BLOCK_HASH_AT, all)?;
        }
        if self.fs.sb.features.has_metadata_csum() {
            put32(&mut block, XATTR_CHECKSUM_AT, 0)?;
            let sum = crc32c(crc32c(new, &number.to_le_bytes()), &block);
            put32(&mut block, XATTR_CHECKSUM_AT, sum)?;
        }
        self.put_block(number, block)
    }

    /// Corrects the hashes of entries whose values are in inodes, from the entry at `first` on; returns the hash of
    /// all entries if any was.
    fn rehash(&mut self, room: &mut [u8], first: usize, new: u32) -> Result<Option<u32>> {
        let (mut at, mut changed, mut all, mut whole) = (first, false, 0u32, true);
        while room.get(at..).and_then(|r| r.first_chunk::<4>()).is_some_and(|word| *word != [0; 4]) {
            let name_len = usize::from(room.get(at).copied().unwrap_or(0));
            let number = get32(room, at.saturating_add(4))?;
            let hash_at = at.saturating_add(12);
            if number != 0 {
                let value = self.value_of(number).within(|| format!("attribute inode {number}"))?;
                let (was, now) = (crc32c(self.fs.sb.csum_seed, &value), crc32c(new, &value));
                let hash = get32(room, hash_at)?;
                put32(room, hash_at, hash ^ was ^ now)?;
                changed = true;
            }
            let hash = get32(room, hash_at)?;
            whole &= hash != 0;
            all = all.rotate_left(16) ^ hash;
            at = at.saturating_add(ENTRY).saturating_add(name_len.saturating_add(3) & !3);
        }
        Ok(changed.then_some(if whole { all } else { 0 }))
    }

    /// The value that an inode holds, which still has its old checksums.
    fn value_of(&self, number: u32) -> Result<Vec<u8>> {
        let inode = self.fs.any_inode(number)?;
        if !inode.is_ea_inode() || inode.size > VALUE_BYTES_MAX {
            return Err(Ext4Fault::Xattr { what: "inode of a value", found: number.into() }.into());
        }
        let mut value = vec![0; index(inode.size)?];
        self.fs.read_blocks(&inode, 0, &mut value)?;
        let (found, computed) = (inode.raw.atime.get(), crc32c(self.fs.sb.csum_seed, &value));
        if !sum_holds(found, computed) {
            return Err(Ext4Fault::Checksum { what: "the value", found, computed }.into());
        }
        Ok(value)
    }

    fn reseed_mmp(&mut self, new: u32) -> Result<()> {
        if !self.fs.sb.features.incompat.contains(Incompat::MMP) {
            return Ok(());
        }
        self.change_system("multiple mount protection", self.fs.sb.raw.mmp_block.get(), |bytes| {
            let sum = crc32c(new, part(bytes, 0, MMP_SUM_AT, "multiple mount block")?);
            put32(bytes, MMP_SUM_AT, sum)
        })
    }

    /// Checksums of bitmaps, which stand in the descriptors.
    fn reseed_bitmaps(&mut self, new: u32) -> Result<()> {
        let mut sums = Vec::new();
        for group in 0..low32(self.fs.sb.groups) {
            let flags = self.desc(group)?.flags;
            let mut pair = [None; 2];
            for (slot, (which, without)) in
                pair.iter_mut().zip([(Which::Blocks, BLOCK_UNINIT), (Which::Inodes, INODE_UNINIT)])
            {
                if flags & without == 0 {
                    let map = self.bits(group, which)?;
                    *slot = Some(self.fs.sb.bitmap_sum_from(new, which, &map)?);
                }
            }
            sums.push(pair);
            self.shed_if_large()?;
        }
        for (group, [blocks, inodes]) in (0u32..).zip(sums) {
            let desc = self.desc_mut(group)?;
            desc.block_csum = blocks.unwrap_or(desc.block_csum);
            desc.inode_csum = inodes.unwrap_or(desc.inode_csum);
        }
        Ok(())
    }
}

/// Where the checksums of an inode's own metadata start from.
fn seed_of(base: u32, number: u32, generation: u32) -> u32 {
    crc32c(crc32c(base, &number.to_le_bytes()), &generation.to_le_bytes())
}
