//! Zstandard (RFC 8878): any number of frames, skippable frames between them, windows up to 128 MiB.

use std::io::BufReader;

use super::spool::{SpoolFault, spool};
use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::{Disk, Reader};
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
        match head.at::<4>(0).map(u32::from_le_bytes) {
            Some(0xfd2f_b528) => true,
            // A skippable frame first (pzstd): a frame must follow it.
            Some(0x184d_2a50..=0x184d_2a5f) => {
                let len = head.at::<4>(4).map(u32::from_le_bytes).and_then(|n| usize::try_from(n).ok());
                let next = len.and_then(|n| n.checked_add(8)).and_then(|at| head.at::<4>(at));
                next.map(u32::from_le_bytes) == Some(0xfd2f_b528)
            }
            _ => false,
        }
    }

    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>> {
        let input = BufReader::with_capacity(256 << 10, Reader::new(file));
        let damaged = |why| SpoolFault::Damaged { what: self.name(), why };
        let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(damaged)?;
        Ok(Stream::boxed(spool(self.name(), &mut decoder, expansion)?))
    }
}
