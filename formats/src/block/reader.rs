//! A disk as a stream, for code that insists on `std::io::Read`: decoders.

use std::io::{self, Read};

use super::Disk;
use crate::wire::len64;

/// Reads a disk from its beginning to its end.
#[derive(Debug)]
pub struct Reader {
    disk: Disk,
    at: u64,
}

impl Reader {
    /// Starts at the first byte of `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk, at: 0 }
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.size().saturating_sub(self.at);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let Some(part) = buf.get_mut(..len) else { return Ok(0) };
        // The error travels inside the `io::Error`, so that no cause is lost on the way through a decoder.
        self.disk.read_at(self.at, part).map_err(io::Error::other)?;
        self.at = self.at.saturating_add(len64(len));
        Ok(len)
    }
}
