//! ext2, ext3 and ext4, read and written.
//!
//! Specification: the kernel's `Documentation/filesystems/ext4` and e2fsprogs 1.47.
//!
//! * Read: everything that `mke2fs` makes up to 1.47, whatever features are on, and all checksums verified that
//!   the kernel verifies when it reads (block and inode bitmaps are not needed, so not looked at).
//! * An unclean journal is replayed into memory. One on another device is refused while it holds changes.
//! * Encrypted directories, files and links are refused one by one: without the key there is nothing to show.
//!   verity files are read as they are; the hash tree behind their end is not consulted.
//! * Names in directories with `casefold` are found, hashed and kept apart as the kernel does it (`casefold.rs`).
//! * The list of orphans is not processed: those inodes have no names, and truncations that were cut short are
//!   finished by the kernel at the next mount; a reader stops at the size anyway.
//! * Checked ([`check`](mod@check)): everything that e2fsck looks at, before each edit too.
//! * Written ([`edit`]): all of these but for what follows. Not opened for writing: filesystems with errors noted or
//!   not closed, mounted elsewhere (`mmp`), with fast commits to replay, of other systems than Linux, with
//!   `shared_blocks` or other features that a writer has to know.
//! * Refused by name: `compression`, `dirdata`, journal devices, and every incompatible feature not known.

mod acl;
mod block_map;
mod casefold;
mod check;
mod commit;
mod csum;
mod dir;
mod edit;
mod extent;
mod fast_commit;
mod fault;
mod features;
mod free;
mod group;
mod held;
mod inline;
mod inode;
mod journal;
mod land;
mod layout;
mod map;
mod read;
mod recover;
mod superblock;
mod volume;
mod xattr;

use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::check::Report;
use racker_formats::error::Result;
use racker_formats::registry::{Guess, Head};
use racker_formats::transaction::Journal;

use crate::filesystem::{Driver, Filesystem, FilesystemMut};

/// The driver of ext2, ext3 and ext4.
pub(super) static FORMAT: Ext4Driver = Ext4Driver;

pub(super) struct Ext4Driver;

impl Driver for Ext4Driver {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn kinds(&self) -> &'static [(&'static str, bool)] {
        &[("ext2, ext3, ext4: journal replayed", true)]
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        let word = |at| head.at::<4>(1024usize.saturating_add(at)).map_or(u32::MAX, u32::from_le_bytes);
        let is_magic = word(56) & 0xffff == u32::from(layout::MAGIC);
        // A journal on a device of its own has a superblock too.
        let is_journal = word(76) == 1 && word(96) & 0x8 != 0;
        if !is_magic || is_journal {
            return Guess::No;
        }
        let sane = word(24) <= 6 && word(76) <= 1 && word(0) != 0 && word(40) != 0;
        if sane { Guess::Strong } else { Guess::Weak }
    }

    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>> {
        Ok(Arc::new(recover::open(volume)?))
    }

    fn open_mut(&self, volume: Disk) -> Result<Box<dyn FilesystemMut>> {
        Ok(Box::new(edit::Writer::open(volume)?))
    }

    fn gate(&self) -> u64 {
        layout::SUPERBLOCK_AT
    }

    fn journal(&self) -> Option<Box<dyn Journal>> {
        Some(Box::new(land::Land))
    }

    fn check(&self, volume: Disk, report: &mut Report) -> Result<()> {
        check::check(volume, report)
    }
}
