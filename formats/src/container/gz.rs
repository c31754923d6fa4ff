//! gzip (RFC 1952): one or several members in a row, as `pigz`, `bgzip` and `cat a.gz b.gz` make them.
//! Zeroes behind the last member are the padding of tapes; anything else there is an error.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::spool::{SpoolFault, spool};
use super::{Container, ContainerFormat, Expansion, Stream};
use crate::block::{Disk, Reader};
use crate::error::Result;
use crate::registry::Head;

/// The entry in the list.
pub(super) const FORMAT: Gzip = Gzip;

/// gzip streams.
pub(super) struct Gzip;

/// Bytes read at once from below.
const INPUT: usize = 256 << 10;
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
        let input = BufReader::with_capacity(INPUT, Reader::new(file));
        let mut members = Members { state: State::Inside(Box::new(GzDecoder::new(input))) };
        Ok(Stream::boxed(spool(self.name(), &mut members, expansion)?))
    }
}

/// The members of a stream one after the other.
struct Members<R> {
    state: State<R>,
}

enum State<R> {
    Inside(Box<GzDecoder<R>>),
    Between(R),
    End,
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            self.state = match std::mem::replace(&mut self.state, State::End) {
                State::Inside(mut decoder) => {
                    let n = decoder.read(buf)?;
                    if n > 0 {
                        self.state = State::Inside(decoder);
                        return Ok(n);
                    }
                    State::Between(decoder.into_inner())
                }
                State::Between(input) => next_member(input)?,
                State::End => return Ok(0),
            };
        }
    }
}

fn next_member<R: BufRead>(mut input: R) -> io::Result<State<R>> {
    loop {
        let ahead = input.fill_buf()?;
        match ahead.iter().position(|b| *b != 0) {
            None if ahead.is_empty() => return Ok(State::End),
            None => {
                let len = ahead.len();
                input.consume(len);
            }
            Some(zeroes) => {
                let is_member = ahead.get(zeroes) == Some(&0x1f);
                input.consume(zeroes);
                if is_member {
                    return Ok(State::Inside(Box::new(GzDecoder::new(input))));
                }
                return Err(io::Error::other(SpoolFault::Trailing("gzip")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

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
