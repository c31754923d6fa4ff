//! bzip2: any number of streams in a row, as `pbzip2` makes them.
//!
//! Each block is packed by itself, and nothing says where it is but a mark at its beginning, at any bit. A file is gone
//! through once when it is opened: that finds the blocks and their sizes, and checks all of them.
//!
//! * [`bits`]: marks, and numbers between bytes
//! * [`blocks`]: what is between the marks

mod bits;
mod blocks;

use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::Disk;
use crate::error::Result;
use crate::registry::Head;

/// The entry in the list.
pub(super) const FORMAT: Bzip2 = Bzip2;

/// bzip2 streams.
pub(super) struct Bzip2;

impl ContainerFormat for Bzip2 {
    fn name(&self) -> &'static str {
        "bzip2"
    }

    fn probe(&self, head: &Head<'_>) -> bool {
        matches!(head.at::<4>(0), Some([b'B', b'Z', b'h', b'1'..=b'9']))
            && head.at::<6>(4).is_some_and(bits::is_mark)
    }

    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>> {
        Ok(Stream::boxed(Disk::new(blocks::scan(&file, expansion)?)))
    }
}
