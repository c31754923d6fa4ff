//! NTFS: the boot sector, and the volume's name in its own record of the master file table.

use racker_formats::block::Disk;
use racker_formats::registry::Head;
use racker_formats::wire::{bytes, index};

use super::Recognised;
use super::text::windows;

/// Number of the record that describes the volume.
const VOLUME_RECORD: u64 = 3;
/// Kind of the attribute with the volume's name.
const VOLUME_NAME: u32 = 0x60;
/// Kind that ends a record's attributes.
const END: u32 = u32::MAX;

pub(super) fn by_head(head: &Head<'_>) -> Option<Recognised> {
    let signed = head.at::<8>(3)? == *b"NTFS    " && head.at::<2>(510)? == [0x55, 0xaa];
    let serial = u64::from_le_bytes(head.at(0x48)?);
    signed.then(|| Recognised::new("ntfs").uuid(Some(format!("{serial:016X}"))))
}

/// The volume's name.
pub(super) fn label(volume: &Disk) -> Option<Option<String>> {
    let boot = bytes(volume, 0, 512, 512, "ntfs boot sector").ok()?;
    let sector = u64::from(u16::from_le_bytes(*boot.get(11..)?.first_chunk()?));
    let per_cluster = u64::from(*boot.get(13)?);
    let cluster = sector.checked_mul(per_cluster)?;
    let table = u64::from_le_bytes(*boot.get(0x30..)?.first_chunk()?).checked_mul(cluster)?;
    // A negative number is the binary logarithm of bytes, any other counts clusters.
    let size = boot.get(0x40)?.cast_signed();
    let record = match u64::try_from(size) {
        Ok(clusters) => cluster.checked_mul(clusters)?,
        Err(_) => 1u64.checked_shl(size.unsigned_abs().into())?,
    };
    if !(512..=65536).contains(&record) {
        return None;
    }
    let at = table.checked_add(record.checked_mul(VOLUME_RECORD)?)?;
    let record = bytes(volume, at, record, 65536, "ntfs record").ok()?;
    if !record.starts_with(b"FILE") {
        return None;
    }
    attribute(&record).map(|value| Some(windows(value)))
}

/// The value of the name attribute, which is always in the record itself.
fn attribute(record: &[u8]) -> Option<&[u8]> {
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*record.get(at..)?.first_chunk()?)));
    let word = |at: usize| Some(u32::from_le_bytes(*record.get(at..)?.first_chunk()?));
    let mut at = half(20)?;
    loop {
        let kind = word(at)?;
        let len = index(word(at.checked_add(4)?)?.into()).ok()?;
        // Each attribute takes 16 bytes or more, so this ends with the record.
        if kind == END || len < 16 {
            return None;
        }
        if kind == VOLUME_NAME {
            let bytes = index(word(at.checked_add(16)?)?.into()).ok()?;
            let from = at.checked_add(half(at.checked_add(20)?)?)?;
            return record.get(from..from.checked_add(bytes)?);
        }
        at = at.checked_add(len)?;
    }
}
