//! A base with the changes of an input.
//!
//! A record is eight bytes: the number of a hot sector (two bytes; with the highest bit set one of the first 32,
//! where superblocks and headers are), then a place in it (nine bits) and what to do there (seven bits), then a
//! value of four bytes.

use std::collections::BTreeMap;

use racker_formats::block::{BlockDevice, Caps};
use racker_formats::error::Result;

use crate::base::{Base, SECTOR};

/// Records of one input: more make no sense of an image.
const RECORDS_MAX: usize = 64;

/// Numbers that programs stumble over.
const ODD: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// A damaged image.
#[derive(Debug)]
pub struct Damaged {
    base: &'static Base,
    changed: BTreeMap<u64, [u8; SECTOR]>,
}

impl Damaged {
    /// The base with all records of an input applied.
    pub fn new(base: &'static Base, input: &[u8]) -> Self {
        let mut it = Self { base, changed: BTreeMap::new() };
        for record in input.as_chunks::<8>().0.iter().take(RECORDS_MAX) {
            it.apply(record);
        }
        it
    }

    fn pick(&self, number: u16) -> Option<u64> {
        let hot = self.base.hot();
        let among = if number & 0x8000 != 0 { hot.len().min(32) } else { hot.len() };
        hot.get(usize::from(number & 0x7fff).checked_rem(among)?).copied()
    }

    fn sector(&self, number: u64) -> [u8; SECTOR] {
        self.changed.get(&number).copied().unwrap_or_else(|| self.base.sector(number))
    }

    fn apply(&mut self, record: &[u8; 8]) {
        let [s0, s1, p0, p1, v0, v1, v2, v3] = *record;
        let Some(number) = self.pick(u16::from_le_bytes([s0, s1])) else { return };
        let mut sector = self.sector(number);
        let at = usize::from(u16::from_le_bytes([p0, p1 & 1]));
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let odd = ODD[usize::from(v0 & 15)];
        let rest = &mut sector[at..];
        match p1 >> 1 & 15 {
            0 => put(rest, &[v0]),
            1 => put(rest, &[v0, v1]),
            2 => put(rest, &value.to_le_bytes()),
            3 => put(rest, &value.to_be_bytes()),
            4 => put(rest, &(odd as u16).to_le_bytes()),
            5 => put(rest, &(odd as u32).to_be_bytes()),
            6 => put(rest, &(odd as u32).to_le_bytes()),
            7 => put(rest, &odd.to_be_bytes()),
            8 => put(rest, &odd.to_le_bytes()),
            9 => rest[0] ^= 1 << (v0 & 7),
            10 => rest[0] = rest[0].wrapping_add(v0),
            11 => {
                let len = (usize::from(v1) + 1).min(rest.len());
                rest[..len].fill(v0);
            }
            // Somebody else's bytes, which look right in the wrong place.
            12 | 13 => {
                let Some(other) = self.pick(u16::from_le_bytes([v0, v1])) else { return };
                let from = self.sector(other);
                sector[at..].copy_from_slice(&from[at..]);
            }
            14 => {
                let Some(other) = self.pick(u16::from_le_bytes([v0, v1])) else { return };
                let from = self.sector(other);
                let start = usize::from(u16::from_le_bytes([v2, v3 & 1]));
                let len = (SECTOR - at).min(SECTOR - start).min(usize::from(v3 >> 1) + 1);
                sector[at..at + len].copy_from_slice(&from[start..start + len]);
            }
            _ => put(rest, &(number as u32).to_be_bytes()),
        }
        self.changed.insert(number, sector);
    }
}

fn put(to: &mut [u8], bytes: &[u8]) {
    for (to, from) in to.iter_mut().zip(bytes) {
        *to = *from;
    }
}

impl BlockDevice for Damaged {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn caps(&self) -> Caps {
        Caps::READ_ONLY
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.base.fill(at, buf);
        let end = at + buf.len() as u64;
        let sector = SECTOR as u64;
        for (number, bytes) in self.changed.range(at / sector..end.div_ceil(sector)) {
            let start = number * sector;
            let (from, to) = (start.max(at), (start + sector).min(end));
            let bytes = &bytes[(from - start) as usize..(to - start) as usize];
            buf[(from - at) as usize..(to - at) as usize].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
