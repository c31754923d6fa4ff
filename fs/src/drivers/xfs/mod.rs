//! XFS, versions 4 and 5.

#![expect(dead_code, reason = "grows from the bottom up")]

mod crc;
mod edit;
mod fault;
mod layout;
mod superblock;
mod units;

use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::error::{Common, Result};
use racker_formats::registry::{Guess, Head};

use crate::filesystem::{Driver, Filesystem};
use superblock::Superblock;

/// The driver.
pub(super) static FORMAT: Xfs = Xfs;

/// XFS.
#[derive(Debug)]
pub(super) struct Xfs;

impl Driver for Xfs {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn probe(&self, head: &Head<'_>) -> Guess {
        if head.at::<4>(0) == Some(layout::SB_MAGIC.to_be_bytes()) { Guess::Strong } else { Guess::No }
    }

    fn open(&self, volume: Disk) -> Result<Arc<dyn Filesystem>> {
        Superblock::read(&volume)?;
        Err(Common::Unsupported { what: "reading", by: "xfs".into() }.into())
    }
}
