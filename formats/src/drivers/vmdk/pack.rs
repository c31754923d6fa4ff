//! Compressed grains: zlib streams (RFC 1950) with a window of 32 KiB, as the specification asks for.

use libdeflater::{CompressionLvl, Compressor, DecompressionError, Decompressor};

/// Expands `packed` into `out`; at least `need` bytes must come out, the rest is zero.
pub(super) fn inflate(packed: &[u8], out: &mut [u8], need: usize) -> Result<(), &'static str> {
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

/// Smaller than what zlib makes at its level 6, which VMware and QEMU use, in a fraction of the time.
pub(super) const LEVEL: i32 = 4;

/// The most bytes that `len` bytes take.
pub(super) fn bound(len: usize) -> usize {
    Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default()).zlib_compress_bound(len)
}

/// Compresses a grain, at a level from 1 to 12, behind `prefix` bytes that the caller fills in.
pub(super) fn deflate(grain: &[u8], prefix: usize, level: i32) -> Vec<u8> {
    let level = CompressionLvl::new(level).unwrap_or_default();
    let mut compressor = Compressor::new(level);
    let mut out = vec![0; compressor.zlib_compress_bound(grain.len()).saturating_add(prefix)];
    let room = out.get_mut(prefix..).unwrap_or_default();
    // The bound leaves room for the worst case, so this cannot fail.
    let len = compressor.zlib_compress(grain, room).unwrap_or_default();
    out.truncate(prefix.saturating_add(len));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let grain: Vec<u8> = (0..65536u32).map(|i| ((i * i) >> 5) as u8).collect();
        let packed = deflate(&grain, 12, LEVEL);
        let mut out = vec![7; 65536];
        inflate(&packed[12..], &mut out, 65536).unwrap();
        assert_eq!(out, grain);
        assert!(inflate(&packed[12..packed.len() - 1], &mut out, 65536).is_err());
        assert!(inflate(&packed[12..], &mut out[..65535], 65535).is_err());
        assert!(inflate(&deflate(&grain[..512], 0, LEVEL), &mut out, 65536).is_err());
        inflate(&deflate(&grain[..512], 0, LEVEL), &mut out, 512).unwrap();
        assert_eq!((&out[..512], out[512]), (&grain[..512], 0));
    }
}
