//! Quotas: what users, groups and projects take is counted in hidden files, which have to be right.
//!
//! Every inode that is stored is compared with what it was; the differences are added up and put into the files at
//! the end. A file is a tree (`quotafmt_v2`, as `repquota` and the kernel have it): blocks of 1024 bytes, four levels
//! of 256 references by the bytes of the id, then blocks of entries. Limits and grace times stay as they are.

use std::collections::BTreeMap;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part};

use super::super::fault::Ext4Fault;
use super::super::features::RoCompat;
use super::super::layout::inode_flags;
use super::super::volume::ROOT_INODE;
use super::Edit;
use super::bytes::{get16, get32, low32, put, put16, put32};
use super::node::Node;

/// Bytes of a block of the tree.
const BLOCK: usize = 1024;
/// References in a block, and levels of them.
const REFS: usize = 256;
const LEVELS: u32 = 4;
/// The root of the tree.
const ROOT: u32 = 1;
/// Head of a block of entries, an entry, and how many there are.
const HEAD: usize = 16;
const ENTRY: usize = 72;
const ENTRIES: usize = 14;
/// Where an entry counts inodes and bytes.
const INODES_AT: usize = 24;
const SPACE_AT: usize = 48;
/// Where the grace time of inodes is: 1 in an entry for id 0 that would be all zero.
const ITIME_AT: usize = 64;
/// Places in the first block: number of blocks, first free block, first block with a free entry.
const BLOCKS_AT: usize = 20;
const FREE_BLOCK_AT: usize = 24;
const FREE_ENTRY_AT: usize = 28;
/// First word of the files, and the version that is known.
const MAGIC: [u32; 3] = [0xd9c0_1f11, 0xd9c0_1927, 0xd9c0_3f14];
const VERSION: u32 = 1;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    space: i64,
    inodes: i64,
}

impl Usage {
    fn add(&mut self, other: Self) {
        self.space = self.space.saturating_add(other.space);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// Kind of quota and id.
type Owner = (usize, u32);

/// Changes of what is counted.
#[derive(Debug, Default)]
pub(super) struct Quota {
    /// Of the running operation.
    running: Vec<(Owner, Usage)>,
    /// Of all before.
    all: BTreeMap<Owner, Usage>,
}

impl Quota {
    /// The running operation stays.
    pub(super) fn keep(&mut self) {
        for (owner, usage) in self.running.drain(..) {
            self.all.entry(owner).or_default().add(usage);
        }
    }

    /// The running operation is undone.
    pub(super) fn forget(&mut self) {
        self.running.clear();
    }
}

impl Edit {
    /// The files for users, groups and projects; 0 for those that are not kept.
    fn quota_files(&self) -> [u32; 3] {
        let raw = &self.fs.sb.raw;
        if !self.fs.sb.features.ro_compat.contains(RoCompat::QUOTA) {
            return [0; 3];
        }
        [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()]
    }

    /// Notes that an inode changes from `old` to `new`, as stored.
    pub(super) fn charge(&mut self, number: u32, old: &[u8], new: &[u8]) -> Result<()> {
        for (bytes, sign) in [(old, -1i64), (new, 1)] {
            let Some(space) = self.space(bytes)? else { continue };
            let usage = Usage { space: space.saturating_mul(sign), inodes: sign };
            self.add_usage(number, bytes, usage)?;
        }
        Ok(())
    }

    /// Notes that so many values more of a node's attributes, or fewer, are in inodes of their own: each of those
    /// counts once for every node that names it. Their space counts with that of the node.
    pub(super) fn charge_values(&mut self, node: &Node, inodes: i64) -> Result<()> {
        if inodes == 0 {
            return Ok(());
        }
        self.add_usage(node.number, &node.all(), Usage { space: 0, inodes })
    }

    /// Adds to what the owners of an inode take, if it counts at all.
    fn add_usage(&mut self, number: u32, bytes: &[u8], usage: Usage) -> Result<()> {
        let files = self.quota_files();
        let is_hidden = number != ROOT_INODE && number < self.fs.sb.first_inode;
        if is_hidden || files == [0; 3] || files.contains(&number) {
            return Ok(());
        }
        if number == self.fs.sb.raw.orphan_file_inum.get() {
            return Ok(());
        }
        let ids = owners(bytes)?.into_iter().enumerate();
        for owner in ids.filter(|(kind, _)| files.get(*kind) != Some(&0)) {
            self.quota.running.push((owner, usage));
        }
        Ok(())
    }

    /// The bytes that an inode in use takes.
    fn space(&self, bytes: &[u8]) -> Result<Option<i64>> {
        let flags = get32(bytes, 32)?;
        if get16(bytes, 26)? == 0 || flags & inode_flags::EA_INODE != 0 {
            return Ok(None);
        }
        let blocks = u64::from(get16(bytes, 116)?) << 32 | u64::from(get32(bytes, 28)?);
        let shift = if flags & inode_flags::HUGE_FILE != 0 { self.fs.sb.block_size.shift() } else { 9 };
        Ok(Some(blocks.checked_shl(shift).unwrap_or(0).cast_signed()))
    }

    /// Puts all changes into the files.
    pub(super) fn write_quotas(&mut self) -> Result<()> {
        self.quota.keep();
        let files = self.quota_files();
        for ((kind, id), usage) in std::mem::take(&mut self.quota.all) {
            if usage != Usage::default() {
                let number = files.get(kind).copied().unwrap_or(0);
                let place = || format!("quota file, inode {number}");
                let mut file = QuotaFile { node: Node::of(self.fs.any_inode(number)?)? };
                file.check(self, kind).within(place)?;
                file.count(self, id, usage).within(place)?;
            }
        }
        Ok(())
    }
}

/// The file of one kind.
struct QuotaFile {
    node: Node,
}

impl QuotaFile {
    fn check(&self, edit: &Edit, kind: usize) -> Result<()> {
        let head = self.read(edit, 0)?;
        if Some(&get32(&head, 0)?) != MAGIC.get(kind) || get32(&head, 4)? != VERSION {
            return Err(Ext4Fault::Quota("it does not begin as one of version 1 does").into());
        }
        Ok(())
    }

    fn read(&self, edit: &Edit, block: u32) -> Result<Vec<u8>> {
        let at = u64::from(block).saturating_mul(len64(BLOCK));
        let mut bytes = vec![0; BLOCK];
        let view = self.node.view(&edit.fs.sb)?;
        if edit.fs.read_blocks(&view, at, &mut bytes)? != BLOCK {
            return Err(Ext4Fault::Quota("it names a block behind its end").into());
        }
        Ok(bytes)
    }

    fn write(&mut self, edit: &mut Edit, block: u32, bytes: &[u8]) -> Result<()> {
        let at = u64::from(block).saturating_mul(len64(BLOCK));
        let number = self.node.number;
        let mut node = self.node.clone();
        let now = edit.now;
        edit.write_to(&mut node, at, bytes, now).within(|| format!("inode {number}"))?;
        self.node = node;
        Ok(())
    }

    /// Adds to what is counted for an id.
    fn count(&mut self, edit: &mut Edit, id: u32, usage: Usage) -> Result<()> {
        let mut block = ROOT;
        for level in 0..LEVELS {
            let bytes = self.read(edit, block)?;
            let next = get32(&bytes, slot(id, level)?)?;
            if next == 0 {
                return self.insert(edit, id, usage, (block, level));
            }
            block = next;
        }
        let mut bytes = self.read(edit, block)?;
        for number in 0..ENTRIES {
            let at = HEAD.saturating_add(number.saturating_mul(ENTRY));
            let entry = part(&bytes, at, ENTRY, "quota")?;
            if get32(entry, 0)? == id && entry.iter().any(|b| *b != 0) {
                let mut entry = entry.to_vec();
                count_in(&mut entry, id, usage)?;
                put(&mut bytes, at, &entry)?;
                return self.write(edit, block, &bytes);
            }
        }
        Err(Ext4Fault::Quota("its tree leads to a block without the entry").into())
    }

    /// Makes an entry for an id, whose way ends at a level of a block.
    fn insert(&mut self, edit: &mut Edit, id: u32, usage: Usage, end: (u32, u32)) -> Result<()> {
        let leaf = self.new_entry(edit, id, usage)?;
        let (mut block, level) = end;
        for level in level..LEVELS {
            let next = if level.saturating_add(1) == LEVELS { leaf } else { self.new_block(edit)? };
            let mut bytes = self.read(edit, block)?;
            put32(&mut bytes, slot(id, level)?, next)?;
            self.write(edit, block, &bytes)?;
            block = next;
        }
        Ok(())
    }

    /// Puts an entry into a block that has room; returns the block.
    fn new_entry(&mut self, edit: &mut Edit, id: u32, usage: Usage) -> Result<u32> {
        let mut head = self.read(edit, 0)?;
        let mut block = get32(&head, FREE_ENTRY_AT)?;
        if block == 0 {
            block = self.new_block(edit)?;
            head = self.read(edit, 0)?;
            put32(&mut head, FREE_ENTRY_AT, block)?;
            self.write(edit, 0, &head)?;
        }
        let mut bytes = self.read(edit, block)?;
        let used = get16(&bytes, 8)?;
        let place = |number: usize| HEAD.saturating_add(number.saturating_mul(ENTRY));
        let is_free = |bytes: &[u8], number| {
            part(bytes, place(number), ENTRY, "quota").is_ok_and(|e| e.iter().all(|b| *b == 0))
        };
        let Some(free) = (0..ENTRIES).find(|number| is_free(&bytes, *number)) else {
            return Err(Ext4Fault::Quota("a block with free entries has none").into());
        };
        let mut entry = vec![0; ENTRY];
        put32(&mut entry, 0, id)?;
        count_in(&mut entry, id, usage)?;
        put(&mut bytes, place(free), &entry)?;
        let used = used.saturating_add(1);
        put16(&mut bytes, 8, used)?;
        if usize::from(used) >= ENTRIES {
            // It is full now, and out of the list of those that are not.
            let next = get32(&bytes, 0)?;
            put(&mut bytes, 0, &[0; 8])?;
            put32(&mut head, FREE_ENTRY_AT, next)?;
            self.write(edit, 0, &head)?;
            if next != 0 {
                let mut other = self.read(edit, next)?;
                put32(&mut other, 4, 0)?;
                self.write(edit, next, &other)?;
            }
        }
        self.write(edit, block, &bytes)?;
        Ok(block)
    }

    /// A block that nothing uses, all zero.
    fn new_block(&mut self, edit: &mut Edit) -> Result<u32> {
        let mut head = self.read(edit, 0)?;
        let free = get32(&head, FREE_BLOCK_AT)?;
        let block = if free == 0 {
            let end = get32(&head, BLOCKS_AT)?;
            put32(&mut head, BLOCKS_AT, end.saturating_add(1))?;
            end
        } else {
            let next = get32(&self.read(edit, free)?, 0)?;
            put32(&mut head, FREE_BLOCK_AT, next)?;
            free
        };
        self.write(edit, 0, &head)?;
        self.write(edit, block, &[0; BLOCK])?;
        Ok(block)
    }
}

/// Owner, group and project of an inode.
fn owners(bytes: &[u8]) -> Result<[u32; 3]> {
    let wide = |lo, hi| {
        Ok::<u32, racker_formats::Error>(u32::from(get16(bytes, hi)?) << 16 | u32::from(get16(bytes, lo)?))
    };
    let project = if bytes.len() >= super::create::PROJECT_END { get32(bytes, 156)? } else { 0 };
    Ok([wide(2, 120)?, wide(24, 122)?, project])
}

/// Where a block of references has the one for an id.
fn slot(id: u32, level: u32) -> Result<usize> {
    let shift = LEVELS.saturating_sub(1).saturating_sub(level).saturating_mul(8);
    Ok((index(u64::from(id >> shift))? & REFS.saturating_sub(1)).saturating_mul(4))
}

/// Adds to the counts of an entry.
fn count_in(entry: &mut [u8], id: u32, usage: Usage) -> Result<()> {
    for (at, change) in [(INODES_AT, usage.inodes), (SPACE_AT, usage.space)] {
        let high = get32(entry, at.saturating_add(4))?;
        let old = u64::from(high) << 32 | u64::from(get32(entry, at)?);
        let new = old.saturating_add_signed(change);
        put32(entry, at, low32(new))?;
        put32(entry, at.saturating_add(4), low32(new >> 32))?;
    }
    // All zero would be no entry.
    if id == 0 && entry.iter().all(|b| *b == 0) {
        put32(entry, ITIME_AT, 1)?;
    }
    Ok(())
}
