//! The blocks of an .xz file, each of which can be decoded by itself.

use std::io::{BufReader, Cursor, Read};

use lzma_rust2::XzReader;

use super::super::segments::{Segments, Source};
use super::Limited;
use super::index::{Block, END_MAGIC, MAGIC, put_multibyte};
use crate::block::{Disk, Reader};
use crate::error::{Common, Result};
use crate::limits::{DECODER_MEMORY_MAX, KIB, MIB};
use crate::wire::len64;

/// Bytes of memory of a decoder: of most, as nobody knows the dictionary before its block is looked at.
const MEMORY: u64 = 10 * MIB;

/// The blocks of a file.
#[derive(Debug)]
pub(super) struct Blocks {
    file: Disk,
    blocks: Vec<Block>,
}

/// The content of `file`, whose blocks expand to `size` bytes.
pub(super) fn content(file: Disk, blocks: Vec<Block>, size: u64) -> Segments<Blocks> {
    let starts = blocks.iter().map(|b| b.at).collect();
    Segments::unchecked(Blocks { file, blocks }, starts, size)
}

impl Source for Blocks {
    fn what(&self) -> &'static str {
        "xz"
    }

    /// A block is decoded as the only one of a stream, so that the decoder checks all that it can check.
    fn start(&self, number: usize) -> Result<Box<dyn Read + Send>> {
        let block = self.blocks.get(number).ok_or(Common::Index(len64(number)))?;
        let (head, tail) = edges(block);
        let body = BufReader::with_capacity(256 << 10, Reader::new(self.file.slice(block.span)?));
        let input = Cursor::new(head).chain(body).chain(Cursor::new(tail));
        let limit_kib = u32::try_from(DECODER_MEMORY_MAX.checked_div(KIB).unwrap_or_default());
        Ok(Box::new(Limited(XzReader::new_mem_limit(input, false, limit_kib.unwrap_or(u32::MAX)))))
    }

    fn memory(&self, _: usize) -> u64 {
        MEMORY
    }
}

/// A stream's header in front of a block, and an index and footer behind it.
fn edges(block: &Block) -> (Vec<u8>, Vec<u8>) {
    let mut head = MAGIC.to_vec();
    head.extend(block.flags);
    head.extend(crc32fast::hash(&block.flags).to_le_bytes());
    let mut tail = vec![0];
    for number in [1, block.unpadded, block.size] {
        put_multibyte(number, &mut tail);
    }
    tail.resize(tail.len().next_multiple_of(4), 0);
    tail.extend(crc32fast::hash(&tail).to_le_bytes());
    // In units of four bytes, less one; an index of one record has some twenty bytes.
    let units = u32::try_from(tail.len() >> 2).unwrap_or(u32::MAX).saturating_sub(1);
    let fields = [units.to_le_bytes().as_slice(), &block.flags].concat();
    tail.extend(crc32fast::hash(&fields).to_le_bytes());
    tail.extend(fields);
    tail.extend(END_MAGIC);
    (head, tail)
}
