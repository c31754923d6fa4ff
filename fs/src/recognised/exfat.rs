//! exFAT: the boot sector, and the label, which is an entry of the root directory.

use racker_formats::block::Disk;
use racker_formats::registry::Head;
use racker_formats::wire::bytes;

use super::Recognised;
use super::text::windows;

/// Kind of the entry with the label.
const LABEL: u8 = 0x83;
/// Clusters of the root directory that are looked through: the label is nearly always in the first.
const CLUSTERS_MAX: usize = 64;
/// Bytes of a cluster that are looked through.
const CLUSTER_BYTES_MAX: u64 = 64 << 10;

pub(super) fn by_head(head: &Head<'_>) -> Option<Recognised> {
    let signed = head.at::<8>(3)? == *b"EXFAT   " && head.at::<2>(510)? == [0x55, 0xaa];
    let serial = u32::from_le_bytes(head.at(100)?);
    let shown = (serial != 0).then(|| format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff));
    signed.then(|| Recognised::new("exfat").uuid(shown))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<4>().map(|b| u64::from(u32::from_le_bytes(*b)))
}

/// The volume's label.
pub(super) fn label(volume: &Disk) -> Option<Option<String>> {
    let boot = bytes(volume, 0, 512, 512, "exfat boot sector").ok()?;
    let (sector, cluster) = (u32::from(*boot.get(108)?), u32::from(*boot.get(109)?));
    let shift = sector.checked_add(cluster).filter(|shift| (9..=25).contains(shift))?;
    let (table, heap) = (word(&boot, 80)?.checked_shl(sector)?, word(&boot, 88)?.checked_shl(sector)?);
    let mut number = word(&boot, 96)?;
    for _ in 0..CLUSTERS_MAX {
        let at = heap.checked_add(number.checked_sub(2)?.checked_shl(shift)?)?;
        let len = 1u64.checked_shl(shift)?.min(CLUSTER_BYTES_MAX);
        let entries = bytes(volume, at, len, CLUSTER_BYTES_MAX, "exfat root directory").ok()?;
        for entry in entries.chunks_exact(32) {
            match entry.first()? {
                &LABEL => {
                    let len = usize::from(*entry.get(1)?).min(11).checked_mul(2)?;
                    return Some(Some(windows(entry.get(2..)?.get(..len)?)));
                }
                0 => return None,
                _ => {}
            }
        }
        let next = table.checked_add(number.checked_mul(4)?)?;
        number = word(&bytes(volume, next, 4, 4, "exfat table").ok()?, 0)?;
    }
    None
}
