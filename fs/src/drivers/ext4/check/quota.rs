//! Quotas: what the hidden files count for each owner, against what was found.

use std::collections::{HashMap, HashSet};

use racker_formats::error::Result;
use racker_formats::wire::{len64, part};

use super::super::edit::bytes::{get16, get32};
use super::super::fault::Ext4Fault;
use super::super::features::RoCompat;
use super::super::inode::Inode;
use super::Checker;

/// Bytes of a block of a file, levels of references in it, and references in a block.
const BLOCK: usize = 1024;
const LEVELS: u32 = 4;
const REFS: usize = 256;
/// Head of a block of entries, bytes of an entry, and how many there are.
const HEAD: usize = 16;
const ENTRY: usize = 72;
const ENTRIES: usize = 14;
/// First words of the files of users, groups and projects, and the version.
const MAGIC: [u32; 3] = [0xd9c0_1f11, 0xd9c0_1927, 0xd9c0_3f14];
const VERSION: u32 = 1;

/// What somebody takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    space: u64,
    inodes: u64,
}

/// What users, groups and projects take.
#[derive(Debug, Default)]
pub(super) struct Owners([HashMap<u32, Usage>; 3]);

impl Owners {
    /// Adds an inode that takes `space` bytes.
    pub(super) fn charge(&mut self, inode: &Inode, space: u64, inodes: u64) {
        let raw = &inode.raw;
        let wide = |hi: u16, lo: u16| u32::from(hi) << 16 | u32::from(lo);
        let ids =
            [wide(raw.uid_hi.get(), raw.uid.get()), wide(raw.gid_hi.get(), raw.gid.get()), raw.projid.get()];
        for (owners, id) in self.0.iter_mut().zip(ids) {
            let usage = owners.entry(id).or_default();
            usage.space = usage.space.saturating_add(space);
            usage.inodes = usage.inodes.saturating_add(inodes);
        }
    }
}

impl Checker<'_> {
    /// Compares the files with what was found, if all was.
    pub(super) fn check_quotas(&mut self) -> Result<()> {
        if !self.fs.sb.features.ro_compat.contains(RoCompat::QUOTA) || self.finds.doubtful {
            return Ok(());
        }
        let raw = &self.fs.sb.raw;
        let files = [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()];
        let owners = std::mem::take(&mut self.owners);
        for ((number, owners), magic) in files.into_iter().zip(owners.0).zip(MAGIC) {
            if number == 0 {
                continue;
            }
            let place = || format!("quota file, inode {number}");
            let counted = self.read_quotas(number, magic);
            let Some(counted) = self.finds.sound(place, counted)? else { continue };
            let mut ids: Vec<u32> = counted.keys().chain(owners.keys()).copied().collect();
            ids.sort_unstable();
            ids.dedup();
            for id in ids {
                let both = [&counted, &owners].map(|all| all.get(&id).copied().unwrap_or_default());
                let [counted, found] = both;
                if counted != found {
                    self.finds.corrupt(format!(
                        "quota file, inode {number}: it counts {} bytes and {} inodes for id {id}, there are {} and {}",
                        counted.space, counted.inodes, found.space, found.inodes
                    ))?;
                }
            }
        }
        Ok(())
    }

    fn quota_block(&self, inode: &Inode, block: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK];
        let at = u64::from(block).saturating_mul(len64(BLOCK));
        if self.fs.read_blocks(inode, at, &mut bytes)? != BLOCK {
            return Err(Ext4Fault::Quota("it names a block behind its end").into());
        }
        Ok(bytes)
    }

    /// What a file counts. Each block is read once, so this ends.
    fn read_quotas(&self, number: u32, magic: u32) -> Result<HashMap<u32, Usage>> {
        let inode = self.fs.any_inode(number)?;
        let head = self.quota_block(&inode, 0)?;
        if get32(&head, 0)? != magic || get32(&head, 4)? != VERSION {
            return Err(Ext4Fault::Quota("it does not begin as one of version 1 does").into());
        }
        let (mut found, mut seen) = (HashMap::new(), HashSet::new());
        let mut waiting = vec![(1u32, 0u32)];
        while let Some((block, level)) = waiting.pop() {
            let bytes = self.quota_block(&inode, block)?;
            if level == LEVELS {
                let used = usize::from(get16(&bytes, 8)?);
                if used > ENTRIES {
                    return Err(Ext4Fault::Quota("a block has more entries than fit").into());
                }
                for slot in 0..ENTRIES {
                    let entry =
                        part(&bytes, HEAD.saturating_add(slot.saturating_mul(ENTRY)), ENTRY, "quota")?;
                    if entry.iter().any(|b| *b != 0) {
                        let long = |at: usize| -> Result<u64> {
                            Ok(u64::from(get32(entry, at.saturating_add(4))?) << 32
                                | u64::from(get32(entry, at)?))
                        };
                        found.insert(get32(entry, 0)?, Usage { inodes: long(24)?, space: long(48)? });
                    }
                }
                continue;
            }
            for slot in 0..REFS {
                let next = get32(&bytes, slot.saturating_mul(4))?;
                if next != 0 && seen.insert(next) {
                    waiting.push((next, level.saturating_add(1)));
                }
            }
        }
        Ok(found)
    }
}
