//! Where the pieces of a copy go.

use std::fmt::Debug;
use std::sync::Arc;

use super::bytes::Bytes;
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result};
use crate::registry::Image;

/// One piece of a disk, in the form a sink takes.
#[derive(Debug)]
pub enum Piece {
    /// Reads as zeroes.
    Zero(Span),
    /// Plain bytes.
    Data {
        /// Where on the guest's disk.
        at: u64,
        /// What is there.
        bytes: Bytes,
    },
    /// One unit of the guest's disk, packed in the format's own way.
    Packed {
        /// Where on the guest's disk.
        at: u64,
        /// Bytes of the guest's disk that it stands for.
        len: u64,
        /// What is written.
        bytes: Vec<u8>,
    },
}

/// Packs one unit; called by many workers at once. The result must depend on its arguments only.
pub trait Pack: Debug + Send + Sync {
    /// How much is packed at a time: a cluster, a grain.
    fn unit(&self) -> BlockSize;
    /// Packs the unit at `at`; shorter than a unit only at the disk's end. May answer [`Piece::Data`] where packing
    /// does not pay.
    fn pack(&self, at: u64, bytes: &[u8]) -> Result<Piece>;
}

/// Takes the pieces of a disk in order of offset. What no piece speaks of is left to the new image's backing file.
pub trait Sink: Debug + Send {
    /// Unit of allocation of the target; zeroes are left out in multiples of it.
    fn block_size(&self) -> BlockSize;
    /// Who packs for it, if it wants packed pieces.
    fn pack(&self) -> Option<Arc<dyn Pack>> {
        None
    }
    /// Takes all of `source` at once by sharing its space, if both are such files; `false` if nothing was done.
    fn share(&mut self, source: &Disk) -> Result<bool> {
        let _ = source;
        Ok(false)
    }
    /// Takes the next piece.
    fn put(&mut self, piece: Piece) -> Result<()>;
    /// All pieces are there: writes what is left to write, and puts all on stable storage.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Takes everything and keeps nothing.
#[derive(Debug)]
pub(super) struct Nowhere(pub(super) BlockSize);

impl Sink for Nowhere {
    fn block_size(&self) -> BlockSize {
        self.0
    }

    fn put(&mut self, _: Piece) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// Writes into a new image that reads as zeroes where nothing was written.
#[derive(Debug)]
pub struct DiskSink {
    image: Arc<dyn Image>,
    disk: Disk,
    block: BlockSize,
}

impl DiskSink {
    /// A sink over a freshly created image whose blocks read as zeroes where nothing was written to them: zeroes are
    /// left out in multiples of `grain`, not of blocks.
    pub fn with_grain(image: Arc<dyn Image>, grain: BlockSize) -> Self {
        let disk = Disk::from_arc(image.clone());
        Self { image, disk, block: grain }
    }

    /// A sink over a freshly created image.
    pub fn new(image: Arc<dyn Image>) -> Self {
        let block = image.facts().cluster_size.and_then(BlockSize::from_bytes);
        // Formats without clusters leave zeroes out as finely as a filesystem makes holes.
        let block = block.or(BlockSize::from_shift(12)).unwrap_or_else(|| unreachable!("12 is below 63"));
        let disk = Disk::from_arc(image.clone());
        Self { image, disk, block }
    }
}

impl Sink for DiskSink {
    fn block_size(&self) -> BlockSize {
        self.block
    }

    fn share(&mut self, source: &Disk) -> Result<bool> {
        self.disk.share(source)
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Data { at, bytes } => self.disk.write_at(at, &bytes),
            // New images read as zeroes, unless a parent shows through.
            Piece::Zero(span) if self.image.facts().backing.is_some() => self.disk.write_zeroes(span),
            Piece::Zero(_) => Ok(()),
            Piece::Packed { .. } => {
                let by = self.image.facts().format.to_string();
                Err(Common::Unsupported { what: "a packed piece", by }.into())
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.disk.flush()
    }
}
