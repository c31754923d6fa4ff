//! Extended attributes: entries and values that do not overlap, hashes, blocks that several inodes share, and values in
//! inodes of their own.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part, take};

use super::super::edit::bytes::get32;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, Incompat};
use super::super::inode::Inode;
use super::super::layout::{OLD_INODE_BYTES, RawXattr, RawXattrHeader, XATTR_MAGIC, inode_flags};
use super::Checker;

/// Name index and name of what says how an inode is encrypted; bytes at its end that no two have in common.
const ENCRYPTION: u8 = 9;
const NONCE: usize = 16;

/// A block of attributes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    /// Inodes that it counts, and that were found.
    stored: u32,
    found: u32,
    values: Values,
    policy: Option<u32>,
}

/// Values in inodes of their own: how many, and the clusters that count as the owner's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values {
    pub(super) inodes: u64,
    pub(super) clusters: u64,
}

/// What the attributes of an inode come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) values: Values,
    /// Clusters of the block of attributes.
    pub(super) clusters: u64,
    pub(super) policy: Option<u32>,
}

fn wrong(what: &'static str, found: u64) -> racker_formats::Error {
    Ext4Fault::Xattr { what, found }.into()
}

/// The hash of an entry; `signed` as some programs have computed it, for names beyond ASCII.
fn entry_hash(name: &[u8], words: impl Iterator<Item = u32>, signed: bool) -> u32 {
    let of_name = name.iter().fold(0u32, |hash, byte| {
        let byte = if signed { i32::from(byte.cast_signed()).cast_unsigned() } else { u32::from(*byte) };
        hash.rotate_left(5) ^ byte
    });
    words.fold(of_name, |hash, word| hash.rotate_left(16) ^ word)
}

fn hash_holds(stored: u32, name: &[u8], words: impl Iterator<Item = u32> + Clone) -> bool {
    cfg!(fuzzing) || [false, true].into_iter().any(|signed| entry_hash(name, words.clone(), signed) == stored)
}

/// Marks bytes of a room that hold something; false if some did before, or are not there.
fn occupy(taken: &mut [bool], at: usize, len: usize) -> bool {
    let end = at.saturating_add(len);
    let Some(bytes) = taken.get_mut(at..end) else { return false };
    let free = bytes.iter().all(|taken| !taken);
    bytes.fill(true);
    free
}

fn padded(len: usize) -> usize {
    len.saturating_add(3) & !3
}

impl Checker<'_> {
    /// Checks all attributes of an inode.
    pub(super) fn check_attributes(&mut self, inode: &Inode) -> Result<Attributes> {
        let mut all = Attributes::default();
        let room = inode.bytes.get(inode.fixed..).unwrap_or_default();
        let magic = room.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic));
        if inode.fixed > OLD_INODE_BYTES && magic == Some(XATTR_MAGIC) {
            let list = self.check_list(inode, room, (4, 4), false);
            let place = || format!("inode {}: attributes in the inode", inode.number);
            if let Some((values, policy)) = self.finds.sound(place, list)? {
                (all.values, all.policy) = (values, policy);
            }
        }
        if inode.xattr_block == 0 {
            return Ok(all);
        }
        let place = || format!("inode {}: attribute block {}", inode.number, inode.xattr_block);
        let block = self.attribute_block(inode);
        if let Some((values, policy)) = self.finds.sound(place, block)? {
            all.values.inodes = all.values.inodes.saturating_add(values.inodes);
            all.values.clusters = all.values.clusters.saturating_add(values.clusters);
            all.policy = all.policy.or(policy);
            all.clusters = 1;
        }
        Ok(all)
    }

    fn attribute_block(&mut self, inode: &Inode) -> Result<(Values, Option<u32>)> {
        let number = inode.xattr_block;
        if let Some(shared) = self.shared.get_mut(&number) {
            shared.found = shared.found.saturating_add(1);
            return Ok((shared.values, shared.policy));
        }
        if !self.fs.sb.features.compat.contains(Compat::EXT_ATTR) {
            return Err(wrong("a block though the superblock has no ext_attr", number));
        }
        self.fs.sb.check_blocks("the inode", number, 1)?;
        if !self.claim_attributes(number) {
            self.all_known = false;
            self.taken(inode, number)?;
            return Ok((Values::default(), None));
        }
        let block = self.fs.block("extended attributes", number)?;
        self.fs.check_xattr_block(number, &block)?;
        let stored = take::<RawXattrHeader>(&block, 0, "extended attributes")?.refcount.get();
        let list = self.check_list(inode, &block, (size_of::<RawXattrHeader>(), 0), true);
        // That it is shared is known even if its content is not sound.
        let shared = Shared { stored, found: 1, values: Values::default(), policy: None };
        self.shared.insert(number, shared);
        let (values, policy) = list?;
        self.shared.insert(number, Shared { values, policy, ..shared });
        Ok((values, policy))
    }

    /// Goes through the entries from `first` on, with values at `base` and up. Each takes 16 bytes or more, so this ends.
    fn check_list(
        &mut self,
        inode: &Inode,
        room: &[u8],
        (first, base): (usize, usize),
        in_block: bool,
    ) -> Result<(Values, Option<u32>)> {
        let mut taken = vec![false; room.len()];
        occupy(&mut taken, 0, first);
        let (mut values, mut policy) = (Values::default(), None);
        let mut at = first;
        while room.get(at..).and_then(|r| r.first_chunk::<4>()).is_some_and(|word| *word != [0; 4]) {
            let raw = take::<RawXattr>(room, at, "attribute entry")?;
            let name_at = at.saturating_add(size_of::<RawXattr>());
            let name = part(room, name_at, raw.name_len.into(), "attribute name")?;
            let len = size_of::<RawXattr>().saturating_add(padded(name.len()));
            if !occupy(&mut taken, at, len) {
                return Err(wrong("an entry that overlaps something at", len64(at)));
            }
            at = at.saturating_add(len);
            let (stored, size) = (raw.hash.get(), raw.value_size.get());
            if raw.value_inum.get() != 0 {
                let more = self.check_value(inode, raw.value_inum.get(), size, name, stored)?;
                values.inodes = values.inodes.saturating_add(1);
                values.clusters = values.clusters.saturating_add(more);
                continue;
            }
            let size = index(size.into())?;
            let value = if size == 0 {
                &[][..]
            } else {
                let value_at = base.saturating_add(usize::from(raw.value_offs.get()));
                let value = part(room, value_at, size, "attribute value")?;
                if !occupy(&mut taken, value_at, padded(size)) {
                    return Err(wrong("a value that overlaps something at", len64(value_at)));
                }
                value
            };
            let words = value
                .chunks(4)
                .map(|bytes| bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte)));
            if (in_block || stored != 0) && !hash_holds(stored, name, words) {
                return Err(wrong("the hash of an entry", stored.into()));
            }
            if raw.name_index == ENCRYPTION && name == b"c" {
                policy = Some(self.policy(value)?);
            }
        }
        if at.saturating_add(4) <= room.len() && !occupy(&mut taken, at, 4) {
            return Err(wrong("an end that overlaps something at", len64(at)));
        }
        Ok((values, policy))
    }

    /// A number for the policy of an encryption, which is all of the value but its nonce.
    fn policy(&mut self, value: &[u8]) -> Result<u32> {
        let len = value.len().saturating_sub(NONCE);
        if !matches!((value.first(), value.len()), (Some(1), 28) | (Some(2), 40)) {
            return Err(wrong("the length of an encryption context", len64(value.len())));
        }
        let next = u32::try_from(self.policies.len()).unwrap_or(u32::MAX);
        Ok(*self.policies.entry(value.get(..len).unwrap_or_default().to_vec()).or_insert(next))
    }

    /// Checks a value in an inode of its own; returns the clusters that count as the owner's.
    fn check_value(
        &mut self,
        owner: &Inode,
        number: u32,
        size: u32,
        name: &[u8],
        stored: u32,
    ) -> Result<u64> {
        if !self.fs.sb.features.incompat.contains(Incompat::EA_INODE) {
            return Err(wrong("an inode for a value, though the superblock has no ea_inode:", number.into()));
        }
        if number == owner.number {
            return Err(wrong("its own inode for a value:", number.into()));
        }
        self.fs.ea_inode(owner, number, size)?;
        let count = self.values.entry(number).or_default();
        *count = count.saturating_add(1);
        let held = self.fs.any_inode(number)?;
        if !hash_holds(stored, name, std::iter::once(held.raw.atime.get())) {
            // Lustre's, which are not counted.
            let points_back = held.raw.mtime.get() == owner.number
                && held.raw.generation.get() == owner.raw.generation.get();
            if !points_back {
                return Err(wrong("the hash of an entry", stored.into()));
            }
            // They have times where others have their counts.
            self.finds.refuse(|| format!("inode {number} holds a value in the way that Lustre has it"))?;
            return Ok(0);
        }
        let cluster = self.fs.sb.block_size.bytes().checked_shl(self.fs.sb.cluster_shift).unwrap_or(u64::MAX);
        Ok(u64::from(size).div_ceil(cluster.max(1)))
    }

    /// Whether blocks of attributes and inodes of values count those that name them.
    pub(super) fn check_shared(&mut self) -> Result<()> {
        for (block, shared) in std::mem::take(&mut self.shared) {
            if shared.stored != shared.found {
                let (stored, found) = (shared.stored, shared.found);
                self.finds
                    .corrupt(format!("attribute block {block} counts {stored} inodes, {found} have it"))?;
            }
        }
        for (number, found) in std::mem::take(&mut self.values) {
            let note = self.notes.get(number);
            if !note.is_used() || !note.is_value() {
                self.finds.corrupt(format!(
                    "inode {number} holds a value of an attribute, and is not in use as that"
                ))?;
                continue;
            }
            let held = self.fs.any_inode(number)?;
            let counted = u64::from(held.raw.ctime.get()) << 32 | u64::from(held.raw.version.get());
            let is_lustre = counted != found && held.raw.mtime.get() != 0 && found == 1;
            if counted != found && !is_lustre {
                let what = format!("attribute inode {number} counts {counted} entries, {found} name it");
                self.finds.corrupt(what)?;
            }
            self.notes.get_mut(number)?.name(false);
        }
        Ok(())
    }

    /// The bytes of an inode's inline data: 60 and what an attribute holds of it.
    pub(super) fn inline_room(&self, inode: &Inode) -> Result<Option<u64>> {
        let rest = self.fs.inline_rest(inode)?;
        Ok(rest.map(|rest| len64(rest.len()).saturating_add(60)))
    }

    /// Notes how an inode is encrypted.
    pub(super) fn check_encryption(&mut self, inode: &Inode, policy: Option<u32>) -> Result<()> {
        if !inode.has(inode_flags::ENCRYPT) {
            return Ok(());
        }
        self.notes.get_mut(inode.number)?.encrypt();
        match policy {
            Some(policy) => {
                self.policy_of.insert(inode.number, policy);
                Ok(())
            }
            None => self.finds.corrupt(format!("inode {} is encrypted, and does not say how", inode.number)),
        }
    }

    /// Whether a fast link's target, or the first of its blocks, ends where its size says.
    pub(super) fn ends_at_size(inode: &Inode, target: &[u8]) -> bool {
        let len = if inode.has(inode_flags::ENCRYPT) {
            let low = get32(target, 0).unwrap_or(0) & 0xffff;
            u64::from(low).saturating_add(2)
        } else {
            len64(target.iter().position(|b| *b == 0).unwrap_or(target.len()))
        };
        len < len64(target.len()) && len == inode.size
    }
}
