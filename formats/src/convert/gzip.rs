//! gzip (RFC 1952), by many threads at once: one member, whose pieces are compressed each for itself.
//!
//! A piece ends with an empty stored block, which brings it to a whole byte; so pieces can be put one behind the
//! other, and the checksum of the whole is computed from theirs.

use std::sync::Arc;

use crc32fast::Hasher;
use flate2::{Compress, Compression, FlushCompress};

use super::sink::{Pack, Piece, Sink};
use crate::block::{BlockSize, Disk};
use crate::error::{Common, Result};
use crate::wire::{index, len64, part};

/// Bytes that are compressed at a time.
const UNIT: BlockSize = match BlockSize::from_shift(18) {
    Some(unit) => unit,
    None => panic!("18 is below 63"),
};
/// What gzip does by default.
const LEVEL: u32 = 6;
/// Deflate, no name, no time, made on any system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// A last block without bytes.
const LAST_BLOCK: [u8; 2] = [3, 0];
/// Bytes of a checksum.
const CRC_BYTES: usize = 4;
/// Compressed bytes that are gathered before they are written.
const GATHERED_MAX: usize = 1 << 20;

/// Compresses a disk as it is, zeroes and all, into a file that is written from beginning to end.
#[derive(Debug)]
pub struct GzipSink {
    file: Disk,
    gathered: Vec<u8>,
    /// Checksum of what went in.
    crc: Hasher,
    /// Bytes that went in.
    len: u64,
    pack: Arc<GzipPack>,
    /// A unit of zeroes, compressed.
    zeroes: Vec<u8>,
}

/// Compresses one piece.
#[derive(Clone, Copy, Debug)]
struct GzipPack {
    level: Compression,
}

impl GzipSink {
    /// Begins a gzip file in `file`, which is emptied; `level` goes from 1, fast, to 9, small.
    pub fn new(file: Disk, level: Option<u32>) -> Result<Self> {
        file.resize(0)?;
        let pack = Arc::new(GzipPack { level: Compression::new(level.unwrap_or(LEVEL).clamp(1, 9)) });
        let zeroes = pack.deflate(&vec![0; index(UNIT.bytes())?])?;
        Ok(Self { file, gathered: HEADER.to_vec(), crc: Hasher::new(), len: 0, pack, zeroes })
    }

    /// Adds a piece as [`GzipPack::deflate`] makes it, of `len` bytes.
    fn add(&mut self, packed: &[u8], len: u64) -> Result<()> {
        let (crc, data) = packed.split_first_chunk::<CRC_BYTES>().ok_or(Common::Index(0))?;
        self.crc.combine(&Hasher::new_with_initial_len(u32::from_le_bytes(*crc), len));
        self.len = self.len.wrapping_add(len);
        self.gathered.extend_from_slice(data);
        if self.gathered.len() >= GATHERED_MAX { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let at = self.file.size();
        self.file.resize(at.saturating_add(len64(self.gathered.len())))?;
        self.file.write_at(at, &self.gathered)?;
        self.gathered.clear();
        Ok(())
    }
}

impl GzipPack {
    /// The checksum of `bytes`, then the bytes compressed.
    fn deflate(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut out = crc32fast::hash(bytes).to_le_bytes().to_vec();
        let mut stream = Compress::new(self.level, false);
        let mut done = 0;
        loop {
            // With room left the flush is complete.
            out.reserve(bytes.len().saturating_add(1024));
            let rest = part(bytes, done, bytes.len().saturating_sub(done), "piece")?;
            let failed = |e: flate2::CompressError| std::io::Error::other(e.to_string());
            stream.compress_vec(rest, &mut out, FlushCompress::Sync).map_err(failed)?;
            done = index(stream.total_in())?;
            if done == bytes.len() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

impl Pack for GzipPack {
    fn unit(&self) -> BlockSize {
        UNIT
    }

    fn pack(&self, at: u64, bytes: &[u8]) -> Result<Piece> {
        Ok(Piece::Packed { at, len: len64(bytes.len()), bytes: self.deflate(bytes)? })
    }
}

impl Sink for GzipSink {
    fn block_size(&self) -> BlockSize {
        UNIT
    }

    fn pack(&self) -> Option<Arc<dyn Pack>> {
        let pack: Arc<dyn Pack> = self.pack.clone();
        Some(pack)
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Packed { len, bytes, .. } => self.add(&bytes, len),
            Piece::Data { bytes, .. } => {
                let packed = self.pack.deflate(&bytes)?;
                self.add(&packed, len64(bytes.len()))
            }
            Piece::Zero(span) => {
                let mut rest = span;
                while rest.len() >= UNIT.bytes() {
                    let zeroes = std::mem::take(&mut self.zeroes);
                    let done = self.add(&zeroes, UNIT.bytes());
                    self.zeroes = zeroes;
                    done?;
                    rest = rest.skip(UNIT.bytes());
                }
                if rest.is_empty() {
                    return Ok(());
                }
                let packed = self.pack.deflate(&vec![0; index(rest.len())?])?;
                self.add(&packed, rest.len())
            }
        }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.gathered.extend_from_slice(&LAST_BLOCK);
        let crc = self.crc.clone().finalize();
        self.gathered.extend_from_slice(&crc.to_le_bytes());
        // The size is kept modulo 2^32.
        let len = self.len.to_le_bytes();
        self.gathered.extend_from_slice(part(&len, 0, 4, "size")?);
        self.write()?;
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::block::MemDevice;
    use crate::convert::{Options, convert};

    #[test]
    fn what_is_compressed_by_any_number_of_threads_expands_to_the_same() {
        let mut bytes = vec![0u8; (3 << 20) + 77];
        for (i, b) in bytes.iter_mut().enumerate().filter(|(i, _)| (i / 300_000) % 2 == 1) {
            *b = ((i * i) >> 7) as u8;
        }
        let source = Disk::new(MemDevice::from_bytes(bytes.clone()));
        let files = [1, 3].map(|threads| {
            let file = Arc::new(MemDevice::new(0));
            let sink = GzipSink::new(Disk::from_arc(file.clone()), None).unwrap();
            let options = Options { threads: std::num::NonZero::new(threads), ..Options::default() };
            convert(&source, Box::new(sink), options, &mut |_| ()).unwrap();
            file.to_bytes()
        });
        assert!(files[0] == files[1] && files[0].len() < bytes.len() / 2);
        let mut out = Vec::new();
        // One member only, as the simplest readers want it.
        flate2::read::GzDecoder::new(files[0].as_slice()).read_to_end(&mut out).unwrap();
        assert!(out == bytes);
    }
}
