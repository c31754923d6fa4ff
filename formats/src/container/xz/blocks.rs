//! A disk in an .xz file, expanded block by block as it is asked for.
//!
//! A block is decoded when a byte of it is first read, into a temporary file, and never again: filesystems come
//! back to the same places many times. So a look at an image costs the blocks that hold its tables, and several
//! threads decode several blocks at once.

use std::io::{BufReader, Cursor, Read};
use std::sync::Mutex;

use lzma_rust2::XzReader;

use super::super::spool::{Out, SpoolFault};
use super::Limited;
use super::index::{Block, END_MAGIC, MAGIC, damaged, put_multibyte};
use crate::block::{BlockDevice, Caps, Disk, FileDevice, Reader, Run, RunKind, Span};
use crate::error::{Common, Result};
use crate::limits::{DECODER_MEMORY_MAX, KIB};
use crate::wire::{index, len64, part_mut};

/// The content of an .xz file.
#[derive(Debug)]
pub(super) struct Blocks {
    file: Disk,
    blocks: Vec<Block>,
    /// For each block, whether its content is in `out`.
    done: Vec<Mutex<bool>>,
    out: Out,
    /// What was decoded so far, and holes elsewhere.
    expanded: Disk,
}

impl Blocks {
    /// The content of `file`, whose blocks expand to `size` bytes.
    pub(super) fn new(file: Disk, blocks: Vec<Block>, size: u64) -> Result<Self> {
        let out = Out::new("xz")?;
        let expanded = Disk::new(FileDevice::new(out.sized(size)?, false)?);
        let done = blocks.iter().map(|_| Mutex::new(false)).collect();
        Ok(Self { file, blocks, done, out, expanded })
    }

    /// The number of the block that holds byte `at`.
    fn number(&self, at: u64) -> usize {
        // Empty blocks share their place with the next one.
        self.blocks.partition_point(|b| b.at <= at).saturating_sub(1)
    }

    /// Sees to it that block `number` is expanded.
    fn need(&self, number: usize) -> Result<&Block> {
        let missing = || Common::Index(len64(number));
        let block = self.blocks.get(number).ok_or_else(missing)?;
        let mut done = self.done.get(number).ok_or_else(missing)?.lock().map_err(|_| Common::Poisoned)?;
        if !*done {
            self.decode(block)?;
            *done = true;
        }
        Ok(block)
    }

    /// Decodes a block as the only one of a stream, so that the decoder checks all that it can check.
    fn decode(&self, block: &Block) -> Result<()> {
        let (head, tail) = edges(block);
        let body = BufReader::with_capacity(256 << 10, Reader::new(self.file.slice(block.span)?));
        let input = Cursor::new(head).chain(body).chain(Cursor::new(tail));
        let limit_kib = u32::try_from(DECODER_MEMORY_MAX.checked_div(KIB).unwrap_or_default());
        let decoder = XzReader::new_mem_limit(input, false, limit_kib.unwrap_or(u32::MAX));
        // One byte more than there may be, to see that there is none.
        let mut decoder = Limited(decoder).take(block.size.saturating_add(1));
        let mut at = block.at;
        let end = block.at.saturating_add(block.size);
        self.out.copy(&mut decoder, |len| {
            let start = at;
            at = at.saturating_add(len);
            if at > end {
                return Err(damaged(format!(
                    "a block expands to more than the {} bytes its index says",
                    block.size
                )));
            }
            Ok(start)
        })?;
        if at < end {
            return Err(damaged(format!(
                "a block expands to less than the {} bytes its index says",
                block.size
            )));
        }
        Ok(())
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

impl BlockDevice for Blocks {
    fn size(&self) -> u64 {
        self.expanded.size()
    }

    fn caps(&self) -> Caps {
        Caps { runs: self.expanded.caps().runs, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0usize;
        while done < buf.len() {
            let here = at.saturating_add(len64(done));
            let block = self.need(self.number(here))?;
            let left = block.at.saturating_add(block.size).saturating_sub(here);
            let len = index(left.min(len64(buf.len().saturating_sub(done))))?;
            if len == 0 {
                return Err(SpoolFault::Truncated("xz").into());
            }
            self.expanded.read_at(here, part_mut(buf, done, len, "read")?)?;
            done = done.saturating_add(len);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let number = self.number(span.start());
        let end = self.blocks.get(number).map_or(0, |b| b.at.saturating_add(b.size));
        let span = span.truncate(end.saturating_sub(span.start()).max(1));
        let is_done = self.done.get(number).is_some_and(|d| d.lock().is_ok_and(|d| *d));
        if is_done {
            return self.expanded.first_run(span);
        }
        Ok(Run { len: span.len(), kind: RunKind::Data })
    }
}
