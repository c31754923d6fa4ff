//! gzip (RFC 1952): one or several members in a row, as `pigz`, `bgzip` and `cat a.gz b.gz` make them.
//! Zeroes behind the last member are the padding of tapes; anything else there is an error.
//!
//! A file is gone through once when it is opened: that finds its size, checks every member, and leaves points where a
//! decoder can start again.
//!
//! * [`inflate`]: the members, and a decoder's state
//! * [`points`]: where decoders start

mod inflate;
mod points;

use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::Disk;
use crate::error::Result;
use crate::limits::MIB;
use crate::registry::Head;

/// The entry in the list.
pub(super) const FORMAT: Gzip = Gzip;

/// gzip streams.
pub(super) struct Gzip;

/// Memory of all points where decoders can start: a thousand or two of them.
const POINTS_MEMORY_MAX: u64 = 32 * MIB;
/// The flag bits that RFC 1952 leaves free: a decoder must refuse them.
const RESERVED: u8 = 0b1110_0000;

impl ContainerFormat for Gzip {
    fn name(&self) -> &'static str {
        "gzip"
    }

    fn probe(&self, head: &Head<'_>) -> bool {
        // Magic, method deflate, flags.
        matches!(head.at::<4>(0), Some([0x1f, 0x8b, 8, flags]) if flags & RESERVED == 0)
    }

    fn open(&self, file: Disk, expansion: &mut Expansion) -> Result<Box<dyn Container>> {
        Ok(Stream::boxed(Disk::new(points::scan(&file, expansion, POINTS_MEMORY_MAX)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::spool::SpoolFault;
    use super::*;
    use crate::block::MemDevice;
    use crate::error::Kind;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn open(bytes: Vec<u8>, max: u64) -> Result<Vec<u8>> {
        let disk = Disk::new(MemDevice::from_bytes(bytes));
        let disk = Gzip.open(disk, &mut Expansion::at_most(max))?.open(0)?;
        let mut out = vec![0; disk.size() as usize];
        disk.read_at(0, &mut out)?;
        Ok(out)
    }

    #[test]
    fn members_in_a_row_and_padding() {
        let mut file = [gzip(b"abc"), gzip(b""), gzip(&[0; 10_000]), gzip(b"x")].concat();
        file.extend([0; 700]);
        let want = [&b"abc"[..], &[0; 10_000], b"x"].concat();
        assert_eq!(open(file, 1 << 20).unwrap(), want);
    }

    #[test]
    fn every_truncation_and_any_flipped_byte_is_an_error() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect();
        let file = gzip(&bytes);
        for len in 0..file.len() {
            assert_eq!(open(file[..len].to_vec(), 1 << 20).unwrap_err().kind(), Kind::Corrupt, "{len}");
        }
        for i in 10..file.len() {
            let mut bad = file.clone();
            bad[i] ^= 0x10;
            assert_eq!(open(bad, 1 << 20).unwrap_err().kind(), Kind::Corrupt, "{i}");
        }
        let e = open([file.as_slice(), b"more"].concat(), 1 << 20).unwrap_err();
        assert!(matches!(e.fault(), Some(SpoolFault::Trailing(_))), "{e}");
    }

    #[test]
    fn a_bomb_meets_the_limit() {
        let e = open(gzip(&vec![0; 4 << 20]), 1 << 20).unwrap_err();
        assert!(matches!(e.fault(), Some(SpoolFault::Bomb { .. })), "{e}");
    }
}
