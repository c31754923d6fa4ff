//! bzip2: any number of streams in a row, as `pbzip2` makes them.

use std::io::BufReader;

use bzip2::bufread::MultiBzDecoder;

use super::spool::spool;
use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::{Disk, Reader};
use crate::error::Result;
use crate::registry::Head;

/// The entry in the list.
pub(super) const FORMAT: Bzip2 = Bzip2;

/// bzip2 streams.
pub(super) struct Bzip2;

/// The digits of pi that begin a block, and those of its square root that end a stream without one.
const BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
const END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];

impl ContainerFormat for Bzip2 {
    fn name(&self) -> &'static str {
        "bzip2"
    }

    fn probe(&self, head: &Head<'_>) -> bool {
        matches!(head.at::<4>(0), Some([b'B', b'Z', b'h', b'1'..=b'9']))
            && matches!(head.at::<6>(4), Some(BLOCK | END))
    }

    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>> {
        let input = BufReader::with_capacity(256 << 10, Reader::new(file));
        Ok(Stream::boxed(spool(self.name(), &mut MultiBzDecoder::new(input), expansion)?))
    }
}
