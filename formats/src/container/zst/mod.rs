//! Zstandard (RFC 8878): any number of frames, skippable frames between them, windows up to 128 MiB.
//!
//! A frame can only be read from its beginning. Where a file has many, none of them long, and says what each expands to
//! (in the frames' headers, as `pzstd` writes them, or in the table of the seekable format), nothing is read when it is
//! opened but that. Any other file, such as `zstd` makes, is gone through once, which finds its size and checks it;
//! a frame is read on from where the last read ended, and who goes back often has it in a temporary file.
//!
//! * [`frames`]: where frames are
//! * [`seek_table`]: the seekable format's list of them
//! * [`groups`]: what is decoded from one start to the next

mod frames;
mod groups;
mod seek_table;

use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::Disk;
use crate::error::Result;
use crate::registry::Head;

/// The entry in the list.
pub(super) const FORMAT: Zstd = Zstd;

/// Zstandard streams.
pub(super) struct Zstd;

impl ContainerFormat for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn probe(&self, head: &Head<'_>) -> bool {
        let number = |at| head.at::<4>(at).map(u32::from_le_bytes);
        match number(0) {
            Some(frames::MAGIC) => true,
            // A skippable frame first (pzstd): a frame must follow it.
            Some(magic) if frames::is_skippable(magic) => {
                let len = number(4).and_then(|n| usize::try_from(n).ok());
                let next = len.and_then(|n| n.checked_add(8)).and_then(number);
                next == Some(frames::MAGIC)
            }
            _ => false,
        }
    }

    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>> {
        Ok(Stream::boxed(Disk::new(groups::open(&file, expansion)?)))
    }
}
