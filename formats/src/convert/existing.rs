//! Writes into an image that is there already.

use super::sink::{Piece, Sink};
use crate::block::{BlockSize, Disk};
use crate::error::{Common, Result};

/// Takes a copy into an image that somebody made before: zeroes are written too, unless it is known to have them.
#[derive(Debug)]
pub struct ExistingSink {
    disk: Disk,
    block: BlockSize,
    is_zero: bool,
}

impl ExistingSink {
    /// A sink over `disk`, which is at least as large as what is copied. `is_zero` says that every byte is zero.
    pub fn new(disk: Disk, is_zero: bool) -> Self {
        let block = BlockSize::from_shift(12).unwrap_or_else(|| unreachable!("12 is below 63"));
        Self { disk, block, is_zero }
    }
}

impl Sink for ExistingSink {
    fn block_size(&self) -> BlockSize {
        self.block
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Data { at, bytes } => self.disk.write_at(at, &bytes),
            Piece::Zero(span) if !self.is_zero => self.disk.write_zeroes(span),
            Piece::Zero(_) => Ok(()),
            Piece::Packed { .. } => {
                Err(Common::Unsupported { what: "a packed piece", by: "an image in use".into() }.into())
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.disk.flush()
    }
}
