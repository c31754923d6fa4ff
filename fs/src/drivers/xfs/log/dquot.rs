//! Replay of quota records.

use core::mem::offset_of;

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part, part_mut, take};

use super::super::crc;
use super::super::fault::Fault;
use super::super::layout::{DQUOT_MAGIC, RawDquot};
use super::super::units::{BASIC_BLOCK_SHIFT, Daddr, Lsn};
use super::super::volume::Volume;
use super::buffers::Buffers;
use super::layout::RawDquotItem;
use super::transaction::Item;

const WHAT: &str = "quota record in the log";

/// Replays a quota record unless it is newer than the transaction.
pub(super) fn replay(volume: &Volume, buffers: &mut Buffers<'_>, item: &Item<'_>, lsn: Lsn) -> Result<()> {
    let head: RawDquotItem = take(item.region(0)?, 0, WHAT)?;
    let logged = item.region(1)?;
    let known = offset_of!(RawDquot, dd_fill);
    let new: RawDquot = take(&[part(logged, 0, known, WHAT)?, &[0; 32]].concat(), 0, WHAT)?;
    if new.d_magic.get() != DQUOT_MAGIC {
        let (found, expected) = (new.d_magic.get().into(), DQUOT_MAGIC.into());
        return Err(Fault::Magic { what: WHAT, found, expected }.into());
    }
    let blocks = u64::from(head.qlf_len.get());
    let count = volume.sb.block_size.start_of(blocks).map_or(u64::MAX, |len| len >> BASIC_BLOCK_SHIFT);
    let buffer = buffers.get(Daddr(head.qlf_blkno.get()), count)?;
    let at = index(head.qlf_boffset.get().into())?;
    let size = size_of::<RawDquot>();
    if len64(at) > len64(buffer.bytes.len()).saturating_sub(len64(size)) {
        let found = head.qlf_boffset.get().into();
        return Err(Fault::Field { what: "qlf_boffset", found, why: "outside of its buffer" }.into());
    }
    let old: RawDquot = take(&buffer.bytes, at, WHAT)?;
    let on_disk = Lsn(old.dd_lsn.get());
    if volume.sb.v5 && on_disk != Lsn(0) && on_disk != Lsn(u64::MAX) && on_disk >= lsn {
        return Ok(());
    }
    let record = part_mut(buffer.change(), at, size, WHAT)?;
    part_mut(record, 0, known, WHAT)?.copy_from_slice(part(logged, 0, known, WHAT)?);
    if volume.sb.v5 {
        part_mut(record, offset_of!(RawDquot, dd_lsn), 8, WHAT)?.copy_from_slice(&lsn.0.to_be_bytes());
        crc::stamp(record, offset_of!(RawDquot, dd_crc))?;
    }
    Ok(())
}
