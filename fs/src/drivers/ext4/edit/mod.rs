//! Writing: everything in place.
//!
//! The volume under it stages all writes, so an edit lands whole or not at all, and nothing here writes journal
//! records. An unclean journal is replayed for good, and its orphans are dealt with, before the first edit; after
//! the last one the filesystem is as a clean unmount leaves it.
//!
//! Blocks of metadata change in memory, each with its checksum, where the reading half of the driver sees them
//! ([`Held`](super::held::Held)); they are written back when they take too much memory, and at the end. The content
//! of files goes to the volume at once, past what is staged where the blocks were free before (`fresh.rs` of the
//! crate).
//!
//! An operation first takes all that it needs. If that fails for want of room, what it changed so far is undone
//! from the copies in [`Undo`]. What it gives back becomes free when it has succeeded.
//!
//! From the bottom up:
//! - `bits.rs`, `bytes.rs`: bits and numbers; `undo.rs`: what an operation changed
//! - `groups.rs`: descriptors and bitmaps; `zones.rs`: what no file may have
//! - `space.rs`, `inodes.rs`: blocks and inodes taken and given back; `node.rs`: an inode changed
//! - `tree.rs`, `extents.rs`: extent trees; `indirect.rs`: the older block maps; `mapping.rs`: either of them
//! - `content.rs`, `replace.rs`: what files hold; `inline.rs`: small files in their inodes
//! - `hash.rs`, `dirblock.rs`, `probe.rs`, `index.rs`, `dir.rs`: directories
//! - `xattr.rs`, `xattr_list.rs`, `ea_inode.rs`: extended attributes; `quota.rs`: what owners take
//! - `create.rs`, `unlink.rs`, `rename.rs`, `attributes.rs`: the operations
//! - `identity.rs`, `reseed.rs`: label and UUID; `resize/`: larger and smaller
//! - `open.rs`, `orphans.rs`: what is done before the first of them; `writer.rs`: all of it as
//!   [`FilesystemMut`](crate::filesystem::FilesystemMut)

mod attributes;
pub(super) mod bits;
pub(super) mod bytes;
mod content;
mod create;
mod dir;
mod dirblock;
mod ea_inode;
mod extents;
pub(super) mod groups;
pub(super) mod hash;
mod identity;
mod index;
mod indirect;
mod inline;
mod inodes;
mod mapping;
mod node;
mod open;
mod orphans;
pub(super) mod probe;
mod quota;
mod rename;
mod replace;
mod reseed;
mod resize;
mod space;
mod tree;
mod undo;
mod unlink;
mod writer;
mod xattr;
mod xattr_list;
mod zones;

use std::sync::Arc;

use racker_formats::error::{Error, Kind, Result};
use racker_formats::wire::{index, len64};
use zerocopy::IntoBytes;

use self::groups::{Desc, Groups};
use self::quota::Quota;
use self::undo::Undo;
use self::zones::Zones;
use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::layout::SUPERBLOCK_AT;
use super::superblock::Superblock;
use super::volume::Ext4;
use crate::filesystem::Time;
use crate::fresh::Fresh;
pub(super) use open::{check_mmp, replayed, unwritable};
pub(super) use writer::Writer;

/// Bytes of metadata that stay in memory between two operations.
const HELD_BYTES_MAX: u64 = 32 << 20;
/// Bytes of one write when blocks in a row are written back.
const WRITE_BYTES: usize = 1 << 20;

/// A filesystem being changed.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) fs: Ext4,
    groups: Groups,
    zones: Zones,
    totals: Totals,
    /// Where to search when the best group is full.
    last_group: u32,
    /// What the running operation has changed; `None` when it can only succeed.
    undo: Option<Undo>,
    /// Blocks to give back when the operation has succeeded: first and number.
    released: Vec<(u64, u64)>,
    /// Inodes to give back then, and whether they were directories.
    released_inodes: Vec<(u32, bool)>,
    quota: Quota,
    fresh: Fresh,
    /// The time of the last operation.
    now: Time,
    /// Makes generation numbers differ.
    made: u32,
    failed: bool,
}

/// Counters of the superblock.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// Free clusters.
    free: u64,
    free_inodes: u64,
}

impl Totals {
    fn of(groups: &[Desc]) -> Self {
        groups.iter().fold(Self::default(), |sum, desc| Self {
            free: sum.free.saturating_add(desc.free.into()),
            free_inodes: sum.free_inodes.saturating_add(desc.free_inodes.into()),
        })
    }
}

impl Edit {
    /// Changes `fs`, whose journal is empty.
    fn new(fs: Ext4) -> Result<Self> {
        let groups = Groups::read(&fs)?;
        let zones = Zones::new(&fs, &groups.list)?;
        let totals = Totals::of(&groups.list);
        let size = fs.sb.block_size.start_of(fs.sb.blocks).unwrap_or(0);
        let fresh = if fs.is_clean() { Fresh::of(size) } else { Fresh::default() };
        Ok(Self {
            fs,
            fresh,
            groups,
            zones,
            totals,
            last_group: 0,
            undo: None,
            released: Vec::new(),
            released_inodes: Vec::new(),
            quota: Quota::default(),
            now: Time::default(),
            made: 0,
            failed: false,
        })
    }

    /// Runs one operation. One that fails for want of room leaves everything as it was, any other failure leaves the
    /// filesystem unusable.
    fn run<T>(&mut self, now: Time, operation: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(Ext4Fault::Unsound("was left by an operation that failed").into());
        }
        self.now = self.now.max(now);
        self.failed = true;
        self.begin();
        let done = match operation(self) {
            Ok(done) => done,
            Err(e) => {
                let harmless = matches!(e.kind(), Kind::NoSpace | Kind::Unsupported | Kind::Invalid);
                if !harmless {
                    return Err(e);
                }
                if self.undo.is_none() {
                    return Err(half_way(&e));
                }
                self.roll_back()?;
                self.failed = false;
                return Err(e);
            }
        };
        self.settle()?;
        self.shed_if_large()?;
        self.failed = false;
        Ok(done)
    }

    /// From here on the operation cannot fail for want of room: what it gave back is free, also for itself.
    fn settle(&mut self) -> Result<()> {
        self.undo = None;
        self.quota.keep();
        for (start, len) in std::mem::take(&mut self.released) {
            self.free_blocks(start, len)?;
        }
        for (number, was_dir) in std::mem::take(&mut self.released_inodes) {
            self.free_inode(number, was_dir)?;
        }
        Ok(())
    }

    /// Writes back what takes too much memory. Only where nothing may have to be undone.
    fn shed_if_large(&mut self) -> Result<()> {
        let block = self.fs.sb.block_size.bytes();
        let blocks = len64(self.fs.held.len()?).saturating_mul(block);
        if self.undo.is_none() && blocks.saturating_add(self.groups.held(block)) > HELD_BYTES_MAX {
            self.write_back(true)?;
        }
        Ok(())
    }

    /// Writes back all metadata.
    fn write_back(&mut self, shed: bool) -> Result<()> {
        self.write_groups(shed)?;
        let size = index(self.fs.sb.block_size.bytes())?;
        let mut row: Vec<u8> = Vec::new();
        let (mut start, mut next) = (0, 0);
        for (number, block) in self.fs.held.drain()? {
            if number != next || row.len().saturating_add(size) > WRITE_BYTES {
                self.write_row(start, &row)?;
                row.clear();
                start = number;
            }
            row.extend_from_slice(&block);
            next = number.saturating_add(1);
            self.fs.cache.put(number, Arc::clone(&block))?;
        }
        self.write_row(start, &row)
    }

    fn write_row(&self, start: u64, row: &[u8]) -> Result<()> {
        if row.is_empty() { Ok(()) } else { self.fs.disk.write_at(self.fs.byte_of(start)?, row) }
    }

    /// Writes back everything, the superblock last.
    fn finish(&mut self) -> Result<()> {
        if self.failed {
            return Err(Ext4Fault::Unsound("was left by an operation that failed").into());
        }
        self.write_quotas()?;
        self.write_back(false)?;
        self.write_superblock()
    }

    /// Free bytes as they are now.
    fn free_bytes(&self) -> u64 {
        let sb = &self.fs.sb;
        let blocks = self.totals.free.checked_shl(sb.cluster_shift).unwrap_or(u64::MAX).min(sb.blocks);
        sb.block_size.start_of(blocks).unwrap_or(u64::MAX)
    }

    /// Writes the superblock with the counts as they are.
    fn write_superblock(&mut self) -> Result<()> {
        let sb = &mut self.fs.sb;
        let free = self.totals.free.checked_shl(sb.cluster_shift).unwrap_or(u64::MAX);
        sb.raw.free_blocks_count_lo = bytes::low32(free).into();
        if sb.features.incompat.contains(super::features::Incompat::BIT64) {
            sb.raw.free_blocks_count_hi = bytes::low32(free >> 32).into();
        }
        sb.raw.free_inodes_count = bytes::low32(self.totals.free_inodes).into();
        if self.now.sec > i64::from(sb.raw.wtime.get()) {
            let sec = u64::try_from(self.now.sec).unwrap_or(0);
            sb.raw.wtime = bytes::low32(sec).into();
            if let Some(hi) = sb.raw.times_hi.first_mut() {
                *hi = u8::try_from((sec >> 32) & 0xff).unwrap_or(0);
            }
        }
        store_features(sb);
        if sb.features.has_metadata_csum() {
            let covered = sb.raw.as_bytes();
            let sum = crc32c(!0, covered.get(..1020).unwrap_or_default());
            sb.raw.checksum = sum.into();
        }
        self.fs.disk.write_at(SUPERBLOCK_AT, sb.raw.as_bytes())
    }

    /// Changes a block of the filesystem's own tables.
    fn change_system<T>(
        &mut self,
        what: &'static str,
        number: u64,
        change: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        // As loaded if it was not held: read before it is taken out.
        let loaded = self.fs.block(what, number)?;
        let held = self.fs.held.take(number)?;
        if let Some(undo) = &mut self.undo {
            undo.blocks.entry(number).or_insert_with(|| held.clone());
        }
        drop(held);
        let mut block = loaded;
        let done = change(Arc::make_mut(&mut block));
        self.fs.held.put(number, block)?;
        done
    }

    /// Changes a block of metadata that belongs to a node.
    fn change<T>(
        &mut self,
        what: &'static str,
        number: u64,
        change: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        self.check_owned(what, number, 1)?;
        self.change_system(what, number, change)
    }

    /// Gives a block of metadata new content.
    fn put_block(&mut self, number: u64, content: Vec<u8>) -> Result<()> {
        let held = self.fs.held.take(number)?;
        if let Some(undo) = &mut self.undo {
            undo.blocks.entry(number).or_insert(held);
        }
        self.fs.held.put(number, content.into())
    }
}

/// What comes of an error that should have left everything as it was, and did not.
fn half_way(e: &Error) -> Error {
    Ext4Fault::HalfWay(e.to_string()).into()
}

fn store_features(sb: &mut Superblock) {
    if sb.raw.rev_level.get() == 0 {
        return;
    }
    sb.raw.feature_compat = sb.features.compat.bits().into();
    sb.raw.feature_incompat = sb.features.incompat.bits().into();
    sb.raw.feature_ro_compat = sb.features.ro_compat.bits().into();
}
