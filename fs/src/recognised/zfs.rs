//! Members of ZFS pools: an uberblock in the first label, and the pool's name and number in the list before it.

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::wire::{bytes, index};

use super::Recognised;

/// The first label: 256 KiB, of which the list takes 112 KiB from 16 KiB on and the uberblocks the second half.
const LABEL_BYTES: u64 = 256 << 10;
const LIST: std::ops::Range<usize> = 16 << 10..128 << 10;
const UBERBLOCKS_AT: usize = 128 << 10;
/// Uberblocks take 1 KiB or more.
const UBERBLOCK_BYTES: usize = 1024;
const MAGIC: u64 = 0x00ba_b10c;

/// Types of values in the list.
const UINT64: u32 = 8;
const STRING: u32 = 9;

pub(super) fn recognise(volume: &Disk) -> Result<Option<Recognised>> {
    if volume.size() < LABEL_BYTES {
        return Ok(None);
    }
    let label = bytes(volume, 0, LABEL_BYTES, LABEL_BYTES, "zfs label")?;
    let ring = label.get(UBERBLOCKS_AT..).unwrap_or_default();
    let is_uberblock = |b: &[u8]| {
        let magic = b.first_chunk::<8>().copied().unwrap_or_default();
        u64::from_le_bytes(magic) == MAGIC || u64::from_be_bytes(magic) == MAGIC
    };
    if !ring.chunks(UBERBLOCK_BYTES).any(is_uberblock) {
        return Ok(None);
    }
    let list = label.get(LIST).unwrap_or_default();
    let name = find(list, b"name", STRING).map(|v| String::from_utf8_lossy(v).into_owned());
    let number = find(list, b"pool_guid", UINT64).and_then(|v| v.first_chunk::<8>());
    let number = number.map(|n| u64::from_be_bytes(*n).to_string());
    Ok(Some(Recognised::new("zfs_member").label(name).uuid(number)))
}

/// The value of that name and type in a list of name and value pairs in XDR.
fn find<'a>(list: &'a [u8], name: &[u8], kind: u32) -> Option<&'a [u8]> {
    // One byte for the encoding, which must be XDR.
    if list.first() != Some(&1) {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(*list.get(at..)?.first_chunk()?));
    let mut at = 12usize;
    loop {
        let size = index(word(at)?.into()).ok()?;
        // A pair takes more than its own two sizes, so this ends with the list.
        if size <= 8 {
            return None;
        }
        let (found, behind) = string(list, at.checked_add(8)?)?;
        if found == name && word(behind)? == kind {
            let value = behind.checked_add(8)?;
            return if kind == STRING { string(list, value).map(|(s, _)| s) } else { list.get(value..) };
        }
        at = at.checked_add(size)?;
    }
}

/// A counted string, and where what follows it begins.
fn string(list: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let len = index(u32::from_be_bytes(*list.get(at..)?.first_chunk()?).into()).ok()?;
    let from = at.checked_add(4)?;
    let end = from.checked_add(len)?;
    Some((list.get(from..end)?, end.checked_add(3)? & !3))
}
