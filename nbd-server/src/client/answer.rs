//! What answers to requests are put together from: without any I/O.

use crate::wire::{Fields, chunk};

use super::fault::ClientFault;
use super::handshake::shown;

/// The buffer of a read, and which of its bytes have come.
#[derive(Debug)]
pub(super) struct Filling<'a> {
    /// Offset of the first byte on the disk.
    at: u64,
    buf: &'a mut [u8],
    /// So many bytes from the beginning have come.
    next: usize,
    /// What has come out of order: starts and ends.
    others: Vec<(usize, usize)>,
}

impl<'a> Filling<'a> {
    pub(super) fn new(at: u64, buf: &'a mut [u8]) -> Self {
        Self { at, buf, next: 0, others: Vec::new() }
    }

    /// All of it, for an answer in one piece.
    pub(super) fn whole(&mut self) -> &mut [u8] {
        self.next = self.buf.len();
        self.buf
    }

    /// The part for `len` bytes at `offset` on the disk, which was asked for and has not come before.
    pub(super) fn part(&mut self, offset: u64, len: u64) -> Result<&mut [u8], ClientFault> {
        let outside = || ClientFault::Broken("bytes that were not asked for");
        let from = offset.checked_sub(self.at).and_then(|n| usize::try_from(n).ok()).ok_or_else(outside)?;
        let to = usize::try_from(len).ok().and_then(|len| from.checked_add(len)).ok_or_else(outside)?;
        if len == 0 || to > self.buf.len() {
            return Err(outside());
        }
        if from < self.next {
            return Err(ClientFault::Broken("the same bytes twice"));
        }
        if from == self.next {
            self.next = to;
        } else {
            self.others.push((from, to));
        }
        self.buf.get_mut(from..to).ok_or_else(outside)
    }

    /// Sees that every byte has come once.
    pub(super) fn check(mut self) -> Result<(), ClientFault> {
        self.others.sort_unstable();
        for (from, to) in self.others {
            if from < self.next {
                return Err(ClientFault::Broken("the same bytes twice"));
            }
            if from > self.next {
                break;
            }
            self.next = to;
        }
        if self.next == self.buf.len() {
            Ok(())
        } else {
            Err(ClientFault::Broken("an answer that leaves bytes out"))
        }
    }
}

/// A stretch of disk from where the last one ends: its length in bytes, and what `base:allocation` says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) len: u64,
    pub(super) flags: u64,
}

/// What an answer is for.
#[derive(Debug)]
pub(super) enum Wanted<'a> {
    /// Success.
    Nothing,
    /// Bytes of the disk.
    Bytes(Filling<'a>),
    /// Stretches, from the beginning of what was asked about.
    Extents(Vec<Extent>),
}

/// Parses the payload of a chunk with extents of the context `number`.
pub(super) fn extents(kind: u16, payload: &[u8], number: u32) -> Result<Vec<Extent>, ClientFault> {
    let bad = ClientFault::Broken("extents that make no sense");
    let mut fields = Fields(payload);
    if fields.u32() != Some(number) {
        return Err(ClientFault::Broken("extents of a context that was not asked for"));
    }
    let is_wide = kind == chunk::BLOCK_STATUS_EXT;
    let count = if is_wide { Some(fields.u32().ok_or(bad.clone())?) } else { None };
    let mut all = Vec::new();
    while !fields.is_done() {
        let extent = if is_wide {
            fields.u64().zip(fields.u64())
        } else {
            fields.u32().zip(fields.u32()).map(|(len, flags)| (len.into(), flags.into()))
        };
        let (len, flags) = extent.filter(|(len, _)| *len > 0).ok_or(bad.clone())?;
        all.push(Extent { len, flags });
    }
    let is_counted = count.is_none_or(|count| usize::try_from(count) == Ok(all.len()));
    if all.is_empty() || !is_counted { Err(bad) } else { Ok(all) }
}

/// Parses the payload of a chunk with an error: its number and its text.
pub(super) fn error(payload: &[u8]) -> Result<(u32, String), ClientFault> {
    let bad = ClientFault::Broken("an error that makes no sense");
    let mut fields = Fields(payload);
    let number = fields.u32().filter(|n| *n != 0).ok_or(bad.clone())?;
    let len = fields.u16().ok_or(bad.clone())?;
    let text = fields.take(len.into()).ok_or(bad)?;
    Ok((number, shown(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_once_in_any_order() {
        let mut buf = [0; 10];
        let mut filling = Filling::new(100, &mut buf);
        filling.part(104, 6).unwrap().fill(2);
        filling.part(100, 2).unwrap().fill(1);
        filling.part(102, 2).unwrap().fill(3);
        filling.check().unwrap();
        assert_eq!(buf, [1, 1, 3, 3, 2, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn bytes_left_out_or_sent_twice_are_found() {
        let fails = |parts: &[(u64, u64)]| {
            let mut buf = [0; 10];
            let mut filling = Filling::new(100, &mut buf);
            parts.iter().any(|(at, len)| filling.part(*at, *len).is_err()) || filling.check().is_err()
        };
        assert!(!fails(&[(100, 10)]));
        assert!(!fails(&[(105, 5), (100, 5)]));
        for parts in [
            &[][..],
            &[(100, 9)],
            &[(101, 9)],
            &[(100, 11)],
            &[(99, 5)],
            &[(100, 0)],
            &[(u64::MAX, 2)],
            &[(100, u64::MAX)],
            &[(100, 5), (100, 5)],
            &[(105, 5), (107, 3), (100, 5)],
            &[(106, 4), (100, 5)],
            &[(102, 8), (102, 8), (100, 2)],
        ] {
            assert!(fails(parts), "{parts:?}");
        }
    }

    #[test]
    fn extents_are_of_the_context_and_not_empty() {
        let one = [0, 0, 0, 7, 0, 0, 16, 0, 0, 0, 0, 3];
        let narrow = |bytes: &[u8]| extents(chunk::BLOCK_STATUS, bytes, 7);
        assert_eq!(narrow(&one), Ok(vec![Extent { len: 4096, flags: 3 }]));
        assert!(narrow(&one[..4]).is_err() && narrow(&one[..11]).is_err());
        assert!(extents(chunk::BLOCK_STATUS, &one, 8).is_err());
        assert!(narrow(&[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 3]).is_err());
        let mut wide = vec![0, 0, 0, 7, 0, 0, 0, 1];
        wide.extend_from_slice(&(1u64 << 40).to_be_bytes());
        wide.extend_from_slice(&2u64.to_be_bytes());
        assert_eq!(extents(chunk::BLOCK_STATUS_EXT, &wide, 7), Ok(vec![Extent { len: 1 << 40, flags: 2 }]));
        wide[7] = 2;
        assert!(extents(chunk::BLOCK_STATUS_EXT, &wide, 7).is_err());
    }

    #[test]
    fn errors_have_a_number_and_perhaps_a_text() {
        assert_eq!(error(&[0, 0, 0, 5, 0, 2, b'h', b'i']), Ok((5, "hi".into())));
        assert_eq!(error(&[0, 0, 0, 5, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]), Ok((5, String::new())));
        assert!(error(&[0, 0, 0, 0, 0, 0]).is_err());
        assert!(error(&[0, 0, 0, 5, 0, 3, b'h', b'i']).is_err());
        assert!(error(&[0, 0, 0, 5]).is_err());
    }
}
