//! Writing: version 5 of the format, in place.
//!
//! The volume under it stages all writes, so an edit lands whole or not at all; nothing here writes log records.
//! A dirty log is replayed, its pending intents are carried out and the log is made clean before the first edit.
//! Blocks that change keep their log sequence number, new ones get 0: no block is ever ahead of the log.
//!
//! Every structure that tracks space changes with every allocation: both free space trees, the spare blocks, the
//! reverse map, the counts of shared blocks, the group headers and the superblock's counters. They are read on
//! first use, checked, changed in memory and written back at the end, or when they take too much memory: the reading
//! half of the driver asks for none of them. What it does read (inodes, and the blocks of their forks) is written
//! at once. Content goes past what is staged where blocks were free before (`fresh.rs` of the crate).
//!
//! An operation that finds no space has changed nothing: it reserves what it may need at most before it begins.
//!
//! From the bottom up:
//! - `ground.rs`: a group as a place on the volume; `header.rs`: its header sectors
//! - `btree/`: one B+tree for all trees of a group; `records.rs`, `owner.rs`: what they hold
//! - `space.rs`, `spare.rs`, `rmap.rs`: free space, spare blocks, owners
//! - `refcount.rs`: shared blocks; `inodes.rs`: inodes; `group.rs`: all of a group
//! - `verify.rs`: what is asked of a group before it is changed
//! - `alloc.rs`: space over all groups; `free.rs`: told to those who write none of it
//! - `fork.rs`: a fork built from its extents; `extents.rs`, `bmbt.rs`: one changed in place
//! - `release.rs`: a fork given back; `pour.rs`: content to blocks
//! - `node.rs`: an inode changed; `ialloc.rs`: inodes allocated and freed
//! - `attrs.rs`: an attribute fork built from its attributes; `parents.rs`: those that name parents
//! - `dir/`, `shortdir.rs`, `dirblock.rs`: directories
//! - the operations: `create.rs`, `names.rs`, `content.rs`, `setattr.rs`, `xattrs.rs`, `replace.rs`, `separate.rs`
//! - `identity.rs`: label and UUID, in every copy of the superblock; `grow.rs`: more space
//! - `intents.rs`, `unlinked.rs`: what a crash left to do
//! - `writer.rs`: all of it as [`FilesystemMut`](crate::filesystem::FilesystemMut)

mod alloc;
pub(super) mod attrs;
mod bmbt;
pub(super) mod btree;
mod content;
mod create;
pub(super) mod dir;
mod dirblock;
mod extents;
mod fork;
mod free;
pub(super) mod ground;
mod group;
mod grow;
pub(super) mod header;
mod ialloc;
mod identity;
mod inodes;
mod intents;
mod names;
mod node;
pub(super) mod owner;
mod parents;
mod pour;
pub(super) mod records;
mod refcount;
mod release;
mod replace;
mod rmap;
mod separate;
mod setattr;
pub(super) mod shortdir;
mod space;
pub(super) mod spare;
mod unlinked;
mod verify;
mod writer;
mod xattrs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Error, Kind, Result, Within};
use racker_formats::wire::len64;
use zerocopy::FromBytes;

use super::check;
use super::described::SB_SELF;
use super::fault::Fault;
use super::inode::Inode;
use super::layout::{RawSuperblock, SB_MAGIC};
use super::sound;
use super::superblock::{Superblock, VersionBits};
use super::units::{AgNo, InodeNo};
use super::volume::{BlockKind, Volume};
use crate::fresh::Fresh;
pub(super) use free::visit as visit_free;
use ground::Ground;
use group::Group;
pub(super) use writer::Writer;

/// Bytes of tree blocks that stay in memory, in the middle of an operation or between two.
const HELD_BYTES_MAX: u64 = 32 << 20;

/// Bits of `sb_qflags`: the usage that quotas count is right. It no longer is when blocks or inodes change hands;
/// without the bits the next mount with quotas counts again.
const QUOTA_CHECKED: u16 = 0x4 | 0x20 | 0x100 | 0x400;

/// Steps of an operation, each of which takes some ten tree blocks at most, between two looks at memory.
const STEPS: u32 = 64;

/// The superblock as a block.
const SUPERBLOCK: BlockKind = BlockKind::new("superblock", [SB_MAGIC; 2], SB_SELF);

/// A filesystem being changed.
#[derive(Debug)]
pub(super) struct Edit {
    volume: Arc<Volume>,
    groups: BTreeMap<u32, Group>,
    fresh: Fresh,
    /// What is free, and what is somebody's, was compared as far as it can be.
    compared: bool,
    /// Groups whose structures were compared with each other.
    verified: BTreeSet<u32>,
    totals: Totals,
    /// Steps of operations so far.
    steps: u32,
    /// The index of the directory that was changed last.
    last_dir: Option<dir::DirIndex>,
    /// An inode has attributes, which the superblock has to say.
    attr_bit: bool,
    /// An operation changed something.
    changed: bool,
    /// Blocks that the operation may still allocate for files.
    budget: u64,
    /// An operation failed half-way.
    failed: bool,
}

/// An operation that was found to be possible and yet is not.
fn spoiled(e: Error) -> Error {
    match e.kind() {
        Kind::NoSpace | Kind::Unsupported | Kind::Invalid => {
            let why = "an operation was found to be possible, begun, and was not";
            Error::from(Fault::Structure { what: "filesystem", why }).within(e.to_string())
        }
        _ => e,
    }
}

/// Counters of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Totals {
    free_blocks: u64,
    inodes: u64,
    free_inodes: u64,
}

impl Edit {
    /// Changes the filesystem on `volume`, whose log is clean.
    pub(super) fn new(volume: Arc<Volume>) -> Result<Self> {
        let raw = &volume.sb.raw;
        let totals = Totals {
            free_blocks: raw.sb_fdblocks.get(),
            inodes: raw.sb_icount.get(),
            free_inodes: raw.sb_ifree.get(),
        };
        if totals.free_blocks > volume.sb.blocks || totals.free_inodes > totals.inodes {
            let (found, why) = (totals.free_blocks, "more is free than there is");
            return Err(Fault::Field { what: "sb_fdblocks", found, why }.into());
        }
        Ok(Self {
            volume,
            groups: BTreeMap::new(),
            fresh: Fresh::default(),
            compared: false,
            verified: BTreeSet::new(),
            totals,
            steps: 0,
            last_dir: None,
            attr_bit: false,
            changed: false,
            budget: 0,
            failed: false,
        })
    }

    /// What is free now was free before the edit: content may go there at once.
    fn trust_free_space(&mut self) {
        let sb = &self.volume.sb;
        self.fresh = Fresh::of(sb.block_size.start_of(sb.blocks).unwrap_or(0));
    }

    /// An allocation group.
    fn group(&mut self, ag: AgNo) -> Result<&mut Group> {
        match self.groups.entry(ag.0) {
            std::collections::btree_map::Entry::Occupied(held) => Ok(held.into_mut()),
            std::collections::btree_map::Entry::Vacant(place) => {
                let ground = Ground::new(Arc::clone(&self.volume), ag)?;
                let mut group = Group::read(&ground)?;
                let name = || format!("group {}", ag.0);
                let first = self.verified.insert(ag.0);
                let free = group.verify(first).within(name)?;
                if self.fresh.first_look(ag.0.into()) {
                    free.into_iter().for_each(|span| self.fresh.add(span));
                }
                Ok(place.insert(group))
            }
        }
    }

    /// An inode that an operation is about: one that is sound.
    fn inode(&self, ino: InodeNo) -> Result<Inode> {
        let inode = self.volume.inode(ino)?;
        match sound::faults(&self.volume.sb, &inode, false).into_iter().next() {
            Some(fault) => Err(Error::from(fault).within(format!("inode {}", ino.0))),
            None => Ok(inode),
        }
    }

    /// Makes sure that an operation may allocate `blocks` blocks, before it changes anything.
    fn reserve(&mut self, blocks: u64) -> Result<()> {
        if self.failed {
            return Err(Fault::Abandoned.into());
        }
        self.compare_space()?;
        if self.budget_for(blocks)? < blocks {
            return Err(Fault::NoSpace.into());
        }
        Ok(())
    }

    /// Makes sure that what is free is nobody's, before an operation takes or frees any: what is only written in place
    /// does not wait for that.
    fn compare_space(&mut self) -> Result<()> {
        if !self.compared {
            self.write_back()?;
            check::refuse_wrong_space(&self.volume.disk)?;
            self.compared = true;
        }
        Ok(())
    }

    /// Runs the beginning of an operation that, if there is no space for it, has changed nothing.
    fn prepare<T>(&mut self, begin: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let begun = begin(self);
        self.failed = begun.as_ref().is_err_and(|e| e.kind() != Kind::NoSpace);
        begun
    }

    /// Runs one operation, which was found to be possible. One that fails leaves the filesystem unusable. What it
    /// changed of groups stays in memory: nobody else reads that.
    fn run<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(Fault::Abandoned.into());
        }
        self.failed = true;
        self.changed = true;
        let done = operation(self).map_err(spoiled)?;
        self.breathe()?;
        self.failed = false;
        Ok(done)
    }

    /// Makes sure that everything is on the volume.
    pub(super) fn finish(&mut self) -> Result<()> {
        if self.failed {
            return Err(Fault::Abandoned.into());
        }
        self.write_back()
    }

    /// Writes back and forgets the groups, in the middle of a long operation or after it, if they take too much
    /// memory.
    fn breathe(&mut self) -> Result<()> {
        self.steps = self.steps.wrapping_add(1);
        if !self.steps.is_multiple_of(STEPS) {
            return Ok(());
        }
        self.shed()
    }

    fn shed(&mut self) -> Result<()> {
        let held = self.groups.values().map(Group::held).fold(0usize, usize::saturating_add);
        if self.volume.sb.block_size.start_of(len64(held)).is_none_or(|bytes| bytes > HELD_BYTES_MAX) {
            self.write_back()?;
            self.groups.clear();
        }
        Ok(())
    }

    /// The superblock with its counters as they are now.
    fn superblock(&self) -> Superblock {
        let mut sb = self.volume.sb.clone();
        let gained = self.groups.values().map(|g| g.space.gained).fold(0i64, i64::saturating_add);
        sb.raw.sb_fdblocks = self.totals.free_blocks.saturating_add_signed(gained).into();
        sb.raw.sb_icount = self.totals.inodes.into();
        sb.raw.sb_ifree = self.totals.free_inodes.into();
        sb
    }

    fn write_back(&mut self) -> Result<()> {
        for group in self.groups.values_mut() {
            group.write_back()?;
            let gained = std::mem::take(&mut group.space.gained);
            let why = "the superblock's count of free blocks contradicts the groups'";
            let Some(free) = self.totals.free_blocks.checked_add_signed(gained) else {
                return Err(Fault::Structure { what: "superblock", why }.into());
            };
            self.totals.free_blocks = free;
        }
        if self.changed {
            self.write_totals()?;
            self.changed = false;
        }
        Ok(())
    }

    fn write_totals(&self) -> Result<()> {
        let span = Span::first(self.volume.sb.sector_size.bytes());
        let mut sector = self.volume.block(&SUPERBLOCK, span, 0)?;
        if let Ok((raw, _)) = RawSuperblock::mut_from_prefix(&mut sector) {
            if self.attr_bit {
                raw.sb_versionnum = (raw.sb_versionnum.get() | VersionBits::ATTR.bits()).into();
            }
            raw.sb_fdblocks = self.totals.free_blocks.into();
            raw.sb_icount = self.totals.inodes.into();
            raw.sb_ifree = self.totals.free_inodes.into();
            raw.sb_qflags = (raw.sb_qflags.get() & !QUOTA_CHECKED).into();
        }
        let lsn = SB_SELF.lsn(&sector)?;
        SB_SELF.stamp(&mut sector, lsn)?;
        self.volume.disk.write_at(0, &sector)
    }
}
