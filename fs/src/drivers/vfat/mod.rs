//! FAT12, FAT16 and FAT32 with long names, read.
//!
//! Specification: Microsoft's "FAT: General Overview of On-Disk Format" (fatgen103) and its "Long Filename
//! Specification". Where it leaves things open, Linux's vfat with its default options is followed: code page 437
//! for short names, case bits of Windows NT, local times shown as UTC, everything owned by root with mode 0755
//! (0555 with the read-only attribute).
//!
//! * A directory ends with the first entry whose name begins with a zero byte, as the specification and mtools have
//!   it; Linux reads on.
//! * The first table counts unless the boot sector names another, or the first does not repeat the media byte.
//! * A filesystem that claims to be larger than its volume is read as far as the volume goes.

mod boot_sector;
mod dir;
mod fault;
mod layout;
mod name;
mod table;
mod time;
mod volume;

use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::registry::{Guess, Head};

use crate::filesystem::{Driver, Filesystem};
pub(crate) use boot_sector::is_boot_sector;

/// The driver of FAT12, FAT16 and FAT32.
pub(super) static FORMAT: Vfat = Vfat;

pub(super) struct Vfat;

impl Driver for Vfat {
    fn name(&self) -> &'static str {
        "vfat"
    }

    fn kinds(&self) -> &'static [(&'static str, bool)] {
        &[("FAT12, FAT16, FAT32", false)]
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if is_boot_sector(head.first) { Guess::Strong } else { Guess::No }
    }

    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>> {
        Ok(Arc::new(volume::Fat::open(volume)?))
    }
}
