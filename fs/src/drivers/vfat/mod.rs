//! FAT12, FAT16 and FAT32 with long names, read and written.
//!
//! Specification: Microsoft's "FAT: General Overview of On-Disk Format" (fatgen103) and its "Long Filename
//! Specification". Where it leaves things open, Linux's vfat with its default options is followed: code page 437
//! for short names, case bits of Windows NT, local times shown as UTC, everything owned by root with mode 0755
//! (0555 with the read-only attribute).
//!
//! * A directory ends with the first entry whose name begins with a zero byte, as the specification and mtools have
//!   it; Linux reads on.
//! * The first table counts unless the boot sector names another, or the first does not repeat the media byte.
//! * A filesystem that claims to be larger than its volume is read as far as the volume goes, and not written.
//!
//! Written: what is sound ([`verify`]) — no cluster has two owners, `.` and `..` lead where they must, all tables
//! hold the same. Anything else is refused, and `fsck.vfat` named. The mark of a volume that was not closed is not a
//! reason to refuse, and stays, as the kernel leaves it. Short names are made as Windows makes them. Files have no
//! holes: what is added to a file takes its space. Kept of a node's attributes are the read-only attribute (whether the
//! owner may write), the time of the last change in steps of two seconds, the day of the last access, and the birth.
//!
//! * [`boot_sector`], [`layout`]: where everything is; [`table`]: chains; [`dir`], [`name`], [`time`]: entries;
//!   [`volume`]: the reader
//! * [`writer`]: what writing keeps in memory; [`alloc`]: clusters; [`index`]: directories; [`places`]: nodes that move
//! * [`verify`], [`check`](mod@check): whether it contradicts itself
//! * [`create`], [`rename`], [`write`](mod@write), [`short_name`], [`identity`], [`grow`]: changes; [`traits`]: all of it as the
//!   trait has it

mod alloc;
mod boot_sector;
mod check;
mod create;
mod dir;
mod fault;
mod grow;
mod identity;
mod index;
mod layout;
mod name;
mod places;
mod rename;
mod short_name;
mod table;
mod time;
mod traits;
mod verify;
mod volume;
mod write;
mod writer;

use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::check::Report;
use racker_formats::error::Result;
use racker_formats::registry::{Guess, Head};

use crate::filesystem::{Driver, Filesystem, FilesystemMut};
pub(crate) use boot_sector::is_boot_sector;

/// The driver of FAT12, FAT16 and FAT32.
pub(super) static FORMAT: Vfat = Vfat;

pub(super) struct Vfat;

impl Driver for Vfat {
    fn name(&self) -> &'static str {
        "vfat"
    }

    fn kinds(&self) -> &'static [(&'static str, bool)] {
        &[("FAT12, FAT16, FAT32", true)]
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if is_boot_sector(head.first) { Guess::Strong } else { Guess::No }
    }

    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>> {
        Ok(Arc::new(volume::Fat::open(volume)?))
    }
    fn open_mut(&self, volume: Disk) -> Result<Box<dyn FilesystemMut>> {
        Ok(Box::new(writer::FatMut::open(volume)?))
    }

    fn check(&self, volume: Disk, report: &mut Report) -> Result<()> {
        check::check(volume, report)
    }
}
