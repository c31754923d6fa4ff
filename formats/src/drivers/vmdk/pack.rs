//! Compressed grains: zlib streams (RFC 1950) with a window of 32 KiB, as the specification asks for.

use std::fmt::{Debug, Formatter};
use std::sync::Mutex;

use libdeflater::{CompressionLvl, Compressor, DecompressionError, Decompressor};

use crate::error::{Common, Result};

/// Expands `packed` into `out`; at least `need` bytes must come out, the rest is zero.
pub(super) fn inflate(packed: &[u8], out: &mut [u8], need: usize) -> std::result::Result<(), &'static str> {
    match Decompressor::new().zlib_decompress(packed, out) {
        Ok(len) if len < need => Err("it is shorter than a grain"),
        Ok(len) => {
            if let Some(rest) = out.get_mut(len..) {
                rest.fill(0);
            }
            Ok(())
        }
        Err(DecompressionError::BadData) => Err("not a zlib stream, or a wrong checksum"),
        Err(DecompressionError::InsufficientSpace) => Err("it is longer than a grain"),
    }
}

/// The fastest level that stays within 2 % of the size that zlib makes unless told otherwise.
pub(super) const LEVEL: i32 = 4;

/// The most bytes that `len` bytes take.
pub(super) fn bound(len: usize) -> usize {
    Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default()).zlib_compress_bound(len)
}

/// Compresses grains; called by many threads at once.
pub(super) struct Deflate {
    /// Compressors that nobody uses at the moment: each has tables of several hundred KiB.
    idle: Mutex<Vec<Compressor>>,
    level: CompressionLvl,
}

impl Deflate {
    /// At a level from 1, fast, to 12, small.
    pub(super) fn new(level: i32) -> Self {
        Self { idle: Mutex::default(), level: CompressionLvl::new(level).unwrap_or_default() }
    }

    /// Compresses a grain behind `prefix` bytes that the caller fills in.
    pub(super) fn deflate(&self, grain: &[u8], prefix: usize) -> Result<Vec<u8>> {
        let idle = self.idle.lock().map_err(|_| Common::Poisoned)?.pop();
        let mut compressor = idle.unwrap_or_else(|| Compressor::new(self.level));
        let mut out = vec![0; compressor.zlib_compress_bound(grain.len()).saturating_add(prefix)];
        let room = out.get_mut(prefix..).unwrap_or_default();
        // The bound leaves room for the worst case, so this cannot fail.
        let len = compressor.zlib_compress(grain, room).unwrap_or_default();
        self.idle.lock().map_err(|_| Common::Poisoned)?.push(compressor);
        out.truncate(prefix.saturating_add(len));
        out.shrink_to_fit();
        Ok(out)
    }
}

impl Debug for Deflate {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflate").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let grain: Vec<u8> = (0..65536u32).map(|i| ((i * i) >> 5) as u8).collect();
        let pack = Deflate::new(LEVEL);
        let packed = pack.deflate(&grain, 12).unwrap();
        let mut out = vec![7; 65536];
        inflate(&packed[12..], &mut out, 65536).unwrap();
        assert_eq!(out, grain);
        assert!(inflate(&packed[12..packed.len() - 1], &mut out, 65536).is_err());
        assert!(inflate(&packed[12..], &mut out[..65535], 65535).is_err());
        assert!(inflate(&pack.deflate(&grain[..512], 0).unwrap(), &mut out, 65536).is_err());
        inflate(&pack.deflate(&grain[..512], 0).unwrap(), &mut out, 512).unwrap();
        assert_eq!((&out[..512], out[512]), (&grain[..512], 0));
    }
}
