//! Members of Linux software arrays (md): the superblock is at the volume's beginning (1.1), 4 KiB behind it (1.2),
//! or near its end (0.90, 1.0), where the filesystem's own beginning may be the volume's too.

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::registry::Head;
use racker_formats::wire::bytes;

use super::Recognised;
use super::text::{until_zero, uuid};

const MAGIC: u32 = 0xa92b_4efc;
const NAME: &str = "linux_raid_member";
/// Bytes of the superblock that are looked at.
const BYTES: u64 = 256;

/// Versions 1.1 and 1.2.
pub(super) fn by_head(head: &Head<'_>) -> Option<Recognised> {
    [(4096usize, 8u64), (0, 0)].into_iter().find_map(|(at, sector)| version1(head.first.get(at..)?, sector))
}

/// Versions 1.0 and 0.90.
pub(super) fn by_end(volume: &Disk) -> Result<Option<Recognised>> {
    let size = volume.size();
    let sectors = size >> 9;
    // 1.0: at least 8 KiB before the end, on a multiple of 4 KiB.
    if let Some(sector) = sectors.checked_sub(16).map(|s| s & !7)
        && let Some(found) = version1(&bytes(volume, sector << 9, BYTES, BYTES, "md superblock")?, sector)
    {
        return Ok(Some(found));
    }
    // 0.90: at least 64 KiB before the end, on a multiple of 64 KiB.
    let Some(at) = (size & !0xffff).checked_sub(0x1_0000) else { return Ok(None) };
    Ok(version0(&bytes(volume, at, BYTES, BYTES, "md superblock")?))
}

fn word<const N: usize>(sb: &[u8], at: usize) -> Option<[u8; N]> {
    sb.get(at..)?.first_chunk::<N>().copied()
}

/// A superblock of version 1, which says itself at which sector it is.
fn version1(sb: &[u8], sector: u64) -> Option<Recognised> {
    let sound = u32::from_le_bytes(word(sb, 0)?) == MAGIC
        && u32::from_le_bytes(word(sb, 4)?) == 1
        && u64::from_le_bytes(word(sb, 144)?) == sector;
    let found = Recognised::new(NAME).uuid(uuid(&word(sb, 16)?)).label(Some(until_zero(sb.get(32..64)?)));
    sound.then_some(found)
}

/// A superblock of version 0.90, in the byte order of the machine that wrote it.
fn version0(sb: &[u8]) -> Option<Recognised> {
    let first: [u8; 4] = word(sb, 0)?;
    let is_little = match (u32::from_le_bytes(first), u32::from_be_bytes(first)) {
        (MAGIC, _) => true,
        (_, MAGIC) => false,
        _ => return None,
    };
    let mut id = [0u8; 16];
    // One word is further in front than the other three.
    for (to, at) in id.as_chunks_mut::<4>().0.iter_mut().zip([20usize, 52, 56, 60]) {
        *to = word(sb, at)?;
        if is_little {
            to.reverse();
        }
    }
    Some(Recognised::new(NAME).uuid(uuid(&id)))
}
