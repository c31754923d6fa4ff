//! Compressed clusters: raw deflate or zstd, which need not fill the sectors they are stored in.

use std::cell::RefCell;
use std::fmt::{Debug, Formatter};
use std::sync::Mutex;

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use zstd::bulk::Compressor;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;
use crate::block::BlockSize;
use crate::convert::{Pack, Piece};
use crate::deflate::Encoder;
use crate::error::{Common, Result};
use crate::wire::{index, len64};

thread_local! {
    /// Making a decoder takes as long as a small cluster.
    static ZSTD: RefCell<Option<Decoder<'static>>> = const { RefCell::new(None) };
    static DEFLATE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// Fills `out`, which is one cluster, from `stored`; `Err` says what is wrong with the bytes.
pub(super) fn unpack(how: Compression, stored: &[u8], out: &mut [u8]) -> std::result::Result<(), String> {
    match how {
        Compression::Zlib => inflate(stored, out),
        Compression::Zstd => unzstd(stored, out),
    }
}

fn inflate(stored: &[u8], out: &mut [u8]) -> std::result::Result<(), String> {
    // The fast way wants a stream that ends with the cluster, as every writer we know makes it.
    if DEFLATE.with_borrow_mut(|d| d.deflate_decompress(stored, out)) == Ok(out.len()) {
        return Ok(());
    }
    // QEMU is content as soon as the cluster is full, so this is what decides.
    let mut stream = Decompress::new(false);
    let status = stream.decompress(stored, out, FlushDecompress::Finish).map_err(|e| e.to_string())?;
    let made = stream.total_out();
    let full = usize::try_from(made).is_ok_and(|n| n == out.len());
    match status {
        Status::Ok | Status::BufError | Status::StreamEnd if full => Ok(()),
        _ => Err(format!("the stream ends after {made} of {} bytes", out.len())),
    }
}

fn unzstd(stored: &[u8], out: &mut [u8]) -> std::result::Result<(), String> {
    ZSTD.with_borrow_mut(|kept| {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => Decoder::new().map_err(|e| e.to_string())?,
        };
        stream.reinit().map_err(|e| e.to_string())?;
        let done = run_to_the_end(&mut stream, stored, out);
        *kept = Some(stream);
        done
    })
}

fn run_to_the_end(
    stream: &mut Decoder<'_>,
    stored: &[u8],
    out: &mut [u8],
) -> std::result::Result<(), String> {
    let mut from = InBuffer::around(stored);
    let len = out.len();
    let mut to = OutBuffer::around(out);
    while to.pos() < len {
        let before = (from.pos, to.pos());
        // 0 says that a frame is complete; another may follow, as long as something moves.
        stream.run(&mut from, &mut to).map_err(|e| e.to_string())?;
        if (from.pos, to.pos()) == before {
            return Err(format!("the stream ends after {} of {len} bytes", to.pos()));
        }
    }
    Ok(())
}

/// Packs clusters for a new image.
pub(super) struct ClusterPack {
    cluster: BlockSize,
    how: Compression,
    /// Level of zstd; 0 is its own default.
    level: i32,
    /// Encoders that nobody uses at the moment: making one costs more than a small cluster.
    zlib: Idle<Encoder>,
    zstd: Idle<Compressor<'static>>,
}

/// What one thread at a time uses.
type Idle<T> = Mutex<Vec<T>>;

/// Lends one that is idle, or a new one.
fn lend<T, U>(idle: &Idle<T>, new: impl FnOnce() -> Result<T>, work: impl FnOnce(&mut T) -> U) -> Result<U> {
    let waiting = idle.lock().map_err(|_| Common::Poisoned)?.pop();
    let mut lent = waiting.map_or_else(new, Ok)?;
    let done = work(&mut lent);
    idle.lock().map_err(|_| Common::Poisoned)?.push(lent);
    Ok(done)
}

impl Debug for ClusterPack {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterPack").field("cluster", &self.cluster).field("how", &self.how).finish()
    }
}

impl ClusterPack {
    /// For clusters of that size.
    pub(super) fn new(cluster: BlockSize, how: Compression, level: i32) -> Self {
        Self { cluster, how, level, zlib: Mutex::default(), zstd: Mutex::default() }
    }

    /// The packed bytes, unless they take as much room as the cluster.
    pub(super) fn packed(&self, whole: &[u8]) -> Result<Option<Vec<u8>>> {
        let room = whole.len().saturating_sub(1);
        match self.how {
            Compression::Zlib => {
                lend(&self.zlib, || Ok(Encoder::default()), |encoder| encoder.deflate(whole, room))
            }
            Compression::Zstd => {
                let packed = lend(
                    &self.zstd,
                    || Ok(Compressor::new(self.level)?),
                    |encoder| encoder.compress(whole),
                )??;
                Ok(Some(packed).filter(|p| p.len() <= room))
            }
        }
    }
}

impl Pack for ClusterPack {
    fn unit(&self) -> BlockSize {
        self.cluster
    }

    fn pack(&self, at: u64, bytes: &[u8]) -> Result<Piece> {
        let len = len64(bytes.len());
        let mut padded = Vec::new();
        let whole = if len == self.cluster.bytes() {
            bytes
        } else {
            // The last cluster is whole as well.
            padded.extend_from_slice(bytes);
            padded.resize(index(self.cluster.bytes())?, 0);
            &padded
        };
        Ok(match self.packed(whole)? {
            Some(packed) => Piece::Packed { at, len, bytes: packed },
            None => Piece::Data { at, bytes: bytes.to_vec().into() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes in stretches of noise and repetition, another mixture for each seed.
    fn mixture(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut all = Vec::with_capacity(len);
        while all.len() < len {
            let stretch = 1 + next() as usize % (1 << (next() % 16));
            let noise = next() % 3 != 0;
            let byte = next() as u8;
            all.extend((0..stretch).map(|_| if noise { next() as u8 } else { byte }));
        }
        all.truncate(len);
        all
    }

    #[test]
    fn what_is_packed_unpacks_whatever_it_is() {
        for how in [Compression::Zlib, Compression::Zstd] {
            for bits in 9..=21 {
                let cluster = BlockSize::from_shift(bits).unwrap();
                let pack = ClusterPack::new(cluster, how, 0);
                let rounds = (1u64 << 22 >> bits).clamp(4, 60);
                for seed in 0..rounds {
                    let data = mixture(1 << bits, seed * 7919 + u64::from(bits));
                    let Piece::Packed { bytes, .. } = pack.pack(0, &data).unwrap() else { continue };
                    let mut back = vec![0; data.len()];
                    unpack(how, &bytes, &mut back).unwrap();
                    assert!(back == data && bytes.len() < data.len());
                }
            }
        }
    }

    #[test]
    fn a_stream_that_is_cut_short_is_an_error() {
        for how in [Compression::Zlib, Compression::Zstd] {
            let pack = ClusterPack::new(BlockSize::from_shift(16).unwrap(), how, 0);
            let Piece::Packed { bytes, .. } = pack.pack(0, &[7; 65536]).unwrap() else { panic!() };
            let mut out = vec![0; 65536];
            assert!(unpack(how, &bytes[..bytes.len() / 2], &mut out).is_err());
            assert!(unpack(how, &[], &mut out).is_err());
        }
    }
}
