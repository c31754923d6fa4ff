//! xz (the .xz file format 1.2): any number of blocks and streams, stream padding, all checks.
//!
//! * [`index`]: where the blocks are
//! * [`blocks`]: how each is decoded

mod blocks;
mod index;

use std::io::{ErrorKind, Read};

use super::spool::SpoolFault;
use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::Disk;
use crate::error::Result;
use crate::limits::DECODER_MEMORY_MAX;
use crate::registry::Head;

/// The entry in the list.
pub(super) const FORMAT: Xz = Xz;

/// xz streams.
pub(super) struct Xz;

impl ContainerFormat for Xz {
    fn name(&self) -> &'static str {
        "xz"
    }

    fn probe(&self, head: &Head<'_>) -> bool {
        // Magic, and the stream flags: a zero byte and the number of a check.
        matches!(head.at::<8>(0), Some([0xfd, b'7', b'z', b'X', b'Z', 0, 0, check]) if check < 16)
    }

    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>> {
        let blocks = index::read(&file)?;
        let size = blocks.last().map_or(0, |b| b.at.saturating_add(b.size));
        expansion.spend(size, self.name())?;
        Ok(Stream::boxed(Disk::new(blocks::content(file, blocks, size))))
    }
}

/// Names the decoder's refusal of a dictionary for what it is.
struct Limited<R>(R);

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf).map_err(|e| match e.kind() {
            ErrorKind::OutOfMemory => {
                std::io::Error::other(SpoolFault::Memory { what: "xz", max: DECODER_MEMORY_MAX })
            }
            _ => e,
        })
    }
}
