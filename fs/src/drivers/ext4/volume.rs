//! An opened filesystem: blocks, group descriptors, inodes by number.

use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::error::{Common, Result, Within};
use racker_formats::wire::{bytes, index, len64, part};

use super::fast_commit::FastCommits;
use super::fault::Ext4Fault;
use super::group::Group;
use super::held::Held;
use super::inode::Inode;
use super::superblock::Superblock;
use crate::cache::BlockCache;
use crate::claims::Claims;

/// The root directory.
pub(super) const ROOT_INODE: u32 = 2;

/// A volume with an ext2, ext3 or ext4 filesystem, as it is after its journal was replayed.
#[derive(Debug)]
pub(super) struct Ext4 {
    pub(super) disk: Disk,
    pub(super) sb: Superblock,
    /// What fast commits change over the replayed journal; empty nearly always.
    pub(super) fast: FastCommits,
    /// Whether the journal had something to replay.
    pub(super) replayed: bool,
    pub(super) cache: BlockCache,
    /// What a writer has changed and not yet written back.
    pub(super) held: Held,
    /// Blocks of directories that have more than one.
    pub(super) claims: Claims,
}

impl Ext4 {
    pub(super) fn new(disk: Disk, sb: Superblock) -> Self {
        let cache = BlockCache::new(sb.block_size);
        Self {
            disk,
            sb,
            fast: FastCommits::default(),
            replayed: false,
            cache,
            held: Held::default(),
            claims: Claims::default(),
        }
    }

    /// The byte where a block starts.
    pub(super) fn byte_of(&self, block: u64) -> Result<u64> {
        self.sb.block_size.start_of(block).ok_or_else(|| Common::Index(block).into())
    }

    /// Reads one block, which `what` needs.
    pub(super) fn block(&self, what: &'static str, block: u64) -> Result<Arc<[u8]>> {
        if block >= self.sb.blocks {
            return Err(Ext4Fault::BlockPastEnd { what, block, blocks: self.sb.blocks }.into());
        }
        if let Some(held) = self.held.get(block)? {
            return Ok(held);
        }
        let len = self.sb.block_size.bytes();
        self.cache.get(block, || bytes(&self.disk, self.byte_of(block)?, len, len, what))
    }

    /// The descriptor of a block group.
    pub(super) fn group(&self, group: u64) -> Result<Group> {
        let place = || format!("group {group}");
        let per_block = self.sb.block_size.bytes().checked_div(len64(self.sb.group_bytes)).unwrap_or(1);
        let number = group.checked_div(per_block).unwrap_or(0);
        let within = group.checked_rem(per_block).unwrap_or(0).saturating_mul(len64(self.sb.group_bytes));
        let block = self.block("a group descriptor", self.sb.descriptor_block(number)).within(place)?;
        let raw = part(&block, index(within)?, self.sb.group_bytes, "group descriptor")?;
        Group::parse(&self.sb, group, raw).within(place)
    }

    /// The bytes of an inode as they lie in its table, and where on the disk that is.
    pub(super) fn inode_bytes(&self, number: u32) -> Result<Vec<u8>> {
        let slot = u64::from(number).checked_sub(1).filter(|_| number <= self.sb.inodes);
        let Some(slot) = slot else { return Err(self.no_inode(number.into())) };
        let per_group = u64::from(self.sb.inodes_per_group);
        let group = slot.checked_div(per_group).unwrap_or(0);
        let within = slot.checked_rem(per_group).unwrap_or(0);
        let table = self.group(group)?.inode_table;
        let at = within.saturating_mul(len64(self.sb.inode_bytes));
        let (block, offset) = self.sb.block_size.split(at);
        let block = self.block("an inode table", table.saturating_add(block))?;
        Ok(part(&block, index(offset)?, self.sb.inode_bytes, "inode")?.to_vec())
    }

    /// An inode, of any kind and state.
    pub(super) fn any_inode(&self, number: u32) -> Result<Inode> {
        let place = || format!("inode {number}");
        if let Some(raw) = self.fast.inode(number) {
            // Its checksum is the fast commit's; the stored one is not brought up to date.
            return Inode::parse_unchecked(&self.sb, number, raw.to_vec()).within(place);
        }
        Inode::parse(&self.sb, number, self.inode_bytes(number).within(place)?).within(place)
    }

    /// An inode that is in use and may be named by a directory.
    pub(super) fn inode(&self, number: u64) -> Result<Inode> {
        let short = u32::try_from(number).unwrap_or(0);
        if short > self.sb.inodes || (short != ROOT_INODE && short < self.sb.first_inode) {
            return Err(self.no_inode(number));
        }
        let inode = self.any_inode(short)?;
        if inode.links == 0 || inode.is_ea_inode() {
            return Err(Ext4Fault::InodeUnused(short).into());
        }
        Ok(inode)
    }

    fn no_inode(&self, number: u64) -> racker_formats::Error {
        Ext4Fault::InodeNumber { number, first: self.sb.first_inode, last: self.sb.inodes }.into()
    }
}
