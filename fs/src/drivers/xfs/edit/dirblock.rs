//! A directory of one block, built from one that was inside its inode. Entries stand where the inode said they
//! would, so that the cursor of a program that lists the directory stays good.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part_mut};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U64};

use super::super::described::DIR_SELF;
use super::super::fault::Fault;
use super::super::layout::{
    DIR_BLOCK_MAGIC, RawDirBlockTail, RawDirData, RawDirEntry, RawDirFree, RawDirHead, RawDirLeafEntry,
    RawDirUnused,
};
use super::super::superblock::Superblock;
use super::super::units::{Daddr, InodeNo, Lsn};
use super::shortdir::ShortDir;

const WHAT: &str = "directory block";
/// Kind of node that `.` and `..` name.
const FTYPE_DIR: u8 = 2;
/// What a free stretch begins with.
const FREE_TAG: u16 = 0xffff;
/// Units of entries' places.
const PLACE_SHIFT: u32 = 3;

/// A block in the making.
struct Building<'a> {
    sb: &'a Superblock,
    bytes: Vec<u8>,
    /// Where the next entry may stand.
    next: usize,
    leaves: Vec<(u32, u32)>,
    /// Free stretches: length and place.
    free: Vec<(u16, u16)>,
}

/// Builds the block of directory `ino` that will lie at `place`.
pub(super) fn build(sb: &Superblock, ino: InodeNo, place: Daddr, dir: &ShortDir) -> Result<Vec<u8>> {
    let len = racker_formats::wire::index(sb.dir_block_size.bytes())?;
    let (next, leaves, free) = (size_of::<RawDirData>(), Vec::new(), Vec::new());
    let mut building = Building { sb, bytes: vec![0; len], next, leaves, free };
    let count = dir.entries.len().saturating_add(2);
    let leaves = count.saturating_mul(size_of::<RawDirLeafEntry>());
    let end = len.saturating_sub(size_of::<RawDirBlockTail>()).saturating_sub(leaves);
    let ftype = sb.ftype().then_some(FTYPE_DIR);
    building.add(b".", ino, ftype, building.next)?;
    building.add(b"..", dir.parent, ftype, building.next)?;
    for entry in &dir.entries {
        let at = usize::from(entry.offset);
        building.skip_to(at)?;
        building.add(&entry.name, entry.ino, entry.ftype, at)?;
    }
    if building.next > end {
        return Err(Fault::Structure { what: WHAT, why: "the entries do not fit" }.into());
    }
    building.skip_to(end)?;
    building.finish(ino, place, end)
}

impl Building<'_> {
    fn put(&mut self, at: usize, data: &[u8]) -> Result<()> {
        part_mut(&mut self.bytes, at, data.len(), WHAT)?.copy_from_slice(data);
        Ok(())
    }

    fn add(&mut self, name: &[u8], ino: InodeNo, ftype: Option<u8>, at: usize) -> Result<()> {
        let namelen = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let raw = RawDirEntry { inumber: ino.0.into(), namelen };
        let bytes = [raw.as_bytes(), name, ftype.as_slice()].concat();
        let len = bytes.len().saturating_add(size_of::<U16>()).next_multiple_of(1 << PLACE_SHIFT);
        let place = u16::try_from(at).map_err(|_| Fault::Structure { what: WHAT, why: "too large" })?;
        self.put(at, &bytes)?;
        let behind = at.saturating_add(len);
        self.put(behind.saturating_sub(size_of::<U16>()), U16::new(place).as_bytes())?;
        self.leaves.push((self.sb.name_hash(name), u32::from(place) >> PLACE_SHIFT));
        self.next = behind;
        Ok(())
    }

    /// Makes what lies before `at` a free stretch.
    fn skip_to(&mut self, at: usize) -> Result<()> {
        let fault = Fault::Structure { what: WHAT, why: "entries overlap or are not where they can be" };
        let Some(len) = at.checked_sub(self.next).filter(|l| l.is_multiple_of(1 << PLACE_SHIFT)) else {
            return Err(fault.into());
        };
        if len == 0 {
            return Ok(());
        }
        let (Ok(len), Ok(place)) = (u16::try_from(len), u16::try_from(self.next)) else {
            return Err(fault.into());
        };
        let raw = RawDirUnused { freetag: FREE_TAG.into(), length: len.into() };
        self.put(self.next, raw.as_bytes())?;
        self.put(at.saturating_sub(size_of::<U16>()), U16::new(place).as_bytes())?;
        self.free.push((len, place));
        self.next = at;
        Ok(())
    }

    fn finish(mut self, ino: InodeNo, place: Daddr, end: usize) -> Result<Vec<u8>> {
        self.leaves.sort_unstable();
        let leaves: Vec<RawDirLeafEntry> = self
            .leaves
            .iter()
            .map(|(hash, place)| RawDirLeafEntry { hashval: (*hash).into(), address: (*place).into() })
            .collect();
        self.put(end, leaves.as_bytes())?;
        let count = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
        let tail = RawDirBlockTail { count: count.into(), stale: 0.into() };
        self.put(end.saturating_add(leaves.as_bytes().len()), tail.as_bytes())?;
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        let mut best =
            self.free.iter().map(|(len, at)| RawDirFree { offset: (*at).into(), length: (*len).into() });
        let none = RawDirFree { offset: 0.into(), length: 0.into() };
        let mut next = || best.next().unwrap_or(none);
        let bestfree = [next(), next(), next()];
        let head = RawDirData {
            hdr: RawDirHead {
                magic: DIR_BLOCK_MAGIC[1].into(),
                crc: 0.into(),
                blkno: U64::new(place.0),
                lsn: 0.into(),
                uuid: self.sb.meta_uuid,
                owner: ino.0.into(),
            },
            bestfree,
            pad: 0.into(),
        };
        self.put(0, head.as_bytes())?;
        debug_assert_eq!(len64(self.bytes.len()), self.sb.dir_block_size.bytes());
        DIR_SELF.stamp(&mut self.bytes, Lsn(0))?;
        Ok(self.bytes)
    }
}
