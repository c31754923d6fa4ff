//! Compressed clusters: raw deflate or zstd, which need not fill the sectors they are stored in.

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::header::Compression;

/// Fills `out`, which is one cluster, from `stored`; `Err` says what is wrong with the bytes.
pub(super) fn unpack(how: Compression, stored: &[u8], out: &mut [u8]) -> Result<(), String> {
    match how {
        Compression::Zlib => inflate(stored, out),
        Compression::Zstd => unzstd(stored, out),
    }
}

fn inflate(stored: &[u8], out: &mut [u8]) -> Result<(), String> {
    // The fast way wants a stream that ends with the cluster, as every writer we know makes it.
    if Decompressor::new().deflate_decompress(stored, out) == Ok(out.len()) {
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

fn unzstd(stored: &[u8], out: &mut [u8]) -> Result<(), String> {
    let mut stream = Decoder::new().map_err(|e| e.to_string())?;
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
