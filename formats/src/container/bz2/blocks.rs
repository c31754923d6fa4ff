//! The blocks of a bzip2 file, each of which can be decoded by itself.

use std::io::{self, Cursor, Read};

use bzip2::read::BzDecoder;

use super::super::Expansion;
use super::super::segments::{Segments, Source, Zeroes};
use super::super::spool::{SpoolFault, decode_error, fill};
use super::bits::{BLOCK, Bits, END, MARK_BITS, Marks};
use crate::block::Disk;
use crate::error::{Common, Error, Kind, Result};
use crate::limits::MIB;
use crate::wire::{bytes, index, len64, part, sum_holds};

/// Blocks of all streams, at 900,000 bytes each: 940 GB.
const BLOCKS_MAX: usize = 1 << 20;
/// Bits of one block: what 900,000 bytes can take at worst, tables included, is little more than their size.
const BLOCK_BITS_MAX: u64 = 2 * MIB * 8;
/// Bits that can look like a mark inside one block, of 2^24 that may be looked at with a chance of 2^-47 each.
const CHANCES_MAX: usize = 4;
/// Bits of a checksum.
const SUM_BITS: u64 = 32;
/// Bytes that are decoded in one go.
const PIECE: usize = 128 << 10;
/// Blocks are put together to segments of this many bytes: each costs a decoder.
const SEGMENT: u64 = MIB;
/// Bytes of memory of a decoder: 3.6 MB of its own, and the block.
const MEMORY: u64 = 6 * MIB;

/// A block: the bits from its mark to the next one, and the digit of its stream's header.
#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    bits: u64,
    level: u8,
}

/// The blocks of a file.
#[derive(Debug)]
pub(super) struct Blocks {
    file: Disk,
    blocks: Vec<Block>,
    /// For each segment the number of its first block.
    firsts: Vec<usize>,
}

/// What was found on the way through a file.
struct Scan<'a> {
    file: &'a Disk,
    marks: Marks,
    expansion: &'a mut Expansion,
    zeroes: Zeroes,
    blocks: Vec<Block>,
    firsts: Vec<usize>,
    /// Where segments begin in the content.
    starts: Vec<u64>,
}

fn damaged(why: &str) -> Error {
    SpoolFault::Damaged { what: "bzip2", why: io::Error::other(why) }.into()
}

fn failed(e: io::Error) -> Error {
    decode_error("bzip2", e)
}

/// Goes through `file` once.
pub(super) fn scan(file: &Disk, expansion: &mut Expansion) -> Result<Segments<Blocks>> {
    let (marks, zeroes) = (Marks::new(), Zeroes::new());
    let (blocks, firsts, starts) = (Vec::new(), Vec::new(), Vec::new());
    let mut scan = Scan { file, marks, expansion, zeroes, blocks, firsts, starts };
    let mut at = 0;
    while at < file.size() {
        at = scan.stream(at)?;
    }
    let Scan { zeroes, blocks, firsts, starts, .. } = scan;
    Ok(Segments::checked(Blocks { file: file.clone(), blocks, firsts }, starts, zeroes))
}

impl Scan<'_> {
    /// Goes through the stream at byte `at`; says where it ends.
    fn stream(&mut self, at: u64) -> Result<u64> {
        let mut bits = Bits::new(self.file.clone(), at.saturating_mul(8)).map_err(failed)?;
        let head = bits.number(32).map_err(failed)?;
        let level = match u32::try_from(head).unwrap_or_default().to_be_bytes() {
            [b'B', b'Z', b'h', level @ b'1'..=b'9'] => level,
            _ if at > 0 => return Err(SpoolFault::Trailing("bzip2").into()),
            _ => return Err(damaged("it does not begin as it should")),
        };
        let mut place = bits.at();
        let mut whole = 0u32;
        loop {
            let mut bits = Bits::new(self.file.clone(), place).map_err(failed)?;
            let mark = bits.number(48).map_err(failed)?;
            let sum = u32::try_from(bits.number(32).map_err(failed)?).unwrap_or_default();
            match mark {
                BLOCK => {
                    place = self.block(place, level)?;
                    whole = whole.rotate_left(1) ^ sum;
                }
                END if sum_holds(sum, whole) => return Ok(bits.at().div_ceil(8)),
                END => return Err(damaged("the checksum of a stream is wrong")),
                _ => return Err(damaged("a block does not begin as it should")),
            }
        }
    }

    /// Decodes the block at bit `start`; says at which bit it ends.
    fn block(&mut self, start: u64, level: u8) -> Result<u64> {
        if self.blocks.len() >= BLOCKS_MAX {
            return Err(damaged("it has too many blocks"));
        }
        // Behind the mark and the checksum, from a whole byte on.
        let from = start.saturating_add(MARK_BITS).saturating_add(SUM_BITS) & !7;
        let mut search = Bits::new(self.file.clone(), from).map_err(failed)?;
        for _ in 0..=CHANCES_MAX {
            let next = search.find(&self.marks).map_err(failed)?;
            let next = next.ok_or(SpoolFault::Truncated("bzip2"))?;
            let bits = next.saturating_sub(start);
            if bits > BLOCK_BITS_MAX {
                break;
            }
            if self.decode(Block { start, bits, level })? {
                return Ok(next);
            }
        }
        Err(damaged("a block is not what bzip2 makes"))
    }

    /// Decodes a block. `false` if it is none: what looked like the next mark may be inside of it.
    fn decode(&mut self, block: Block) -> Result<bool> {
        let mut from = BzDecoder::new(Cursor::new(block.alone(self.file)?));
        let start = self.zeroes.seen();
        let mut buf = vec![0; PIECE];
        loop {
            // Nothing is given before all of a block was read: what is wrong then is wrong wherever it ends.
            let len = match fill(&mut from, &mut buf).map_err(failed) {
                Err(e) if e.kind() == Kind::Corrupt && self.zeroes.seen() == start => return Ok(false),
                len => len?,
            };
            let bytes = buf.get(..len).unwrap_or_default();
            self.expansion.spend(len64(len), "bzip2")?;
            self.zeroes.add(bytes);
            if len < PIECE {
                break;
            }
        }
        if self.starts.last().is_none_or(|last| start.saturating_sub(*last) >= SEGMENT) {
            self.starts.push(start);
            self.firsts.push(self.blocks.len());
        }
        self.blocks.push(block);
        Ok(true)
    }
}

impl Block {
    /// A stream of its own for the block.
    fn alone(&self, file: &Disk) -> Result<Vec<u8>> {
        let end = self.start.saturating_add(self.bits);
        let (first, last) = (self.start >> 3, end.div_ceil(8));
        let raw = bytes(file, first, last.saturating_sub(first), BLOCK_BITS_MAX, "bzip2 block")?;
        let shift = u32::try_from(self.start & 7).unwrap_or_default();
        let mut stream = Vec::with_capacity(raw.len().saturating_add(20));
        stream.extend([b'B', b'Z', b'h', self.level]);
        let next = raw.iter().skip(1).chain(&[0]);
        stream.extend(raw.iter().zip(next).map(|(a, b)| {
            let both = u16::from_be_bytes([*a, *b]).checked_shl(shift).unwrap_or_default();
            let [byte, _] = both.to_be_bytes();
            byte
        }));
        // The stream has one block, whose checksum is that of the whole.
        let sum = part(&stream, 10, 4, "bzip2 block")?.to_vec();
        let tail = END.to_be_bytes().into_iter().skip(2).chain(sum);
        let (whole, over) = (index(self.bits >> 3)?, u32::try_from(self.bits & 7).unwrap_or_default());
        let edge = stream.get(whole.saturating_add(4)).copied().unwrap_or_default();
        stream.truncate(whole.saturating_add(4));
        let [_, kept] = 0xff00u16.checked_shr(over).unwrap_or_default().to_be_bytes();
        let mut left = u16::from(edge & kept) << 8;
        for byte in tail.chain([0]) {
            let both = left | (u16::from(byte) << 8).checked_shr(over).unwrap_or_default();
            let [out, rest] = both.to_be_bytes();
            stream.push(out);
            left = u16::from_be_bytes([rest, 0]);
        }
        Ok(stream)
    }
}

impl Source for Blocks {
    fn what(&self) -> &'static str {
        "bzip2"
    }

    fn start(&self, number: usize) -> Result<Box<dyn Read + Send>> {
        let first = self.firsts.get(number).copied().ok_or(Common::Index(len64(number)))?;
        let next = self.firsts.get(number.saturating_add(1)).copied().unwrap_or(self.blocks.len());
        let blocks = self.blocks.get(first..next).unwrap_or_default().to_vec();
        Ok(Box::new(Run { file: self.file.clone(), blocks: blocks.into_iter(), from: None }))
    }

    fn memory(&self, _: usize) -> u64 {
        MEMORY
    }
}

/// Reads some blocks one after the other.
struct Run {
    file: Disk,
    blocks: std::vec::IntoIter<Block>,
    from: Option<BzDecoder<Cursor<Vec<u8>>>>,
}

impl Read for Run {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(from) = &mut self.from {
                let len = from.read(buf)?;
                if len > 0 || buf.is_empty() {
                    return Ok(len);
                }
            }
            let Some(block) = self.blocks.next() else { return Ok(0) };
            let stream = block.alone(&self.file).map_err(io::Error::other)?;
            self.from = Some(BzDecoder::new(Cursor::new(stream)));
        }
    }
}
