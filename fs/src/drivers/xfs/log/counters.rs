//! The superblock's counters: they are not logged with every change but, after a crash, counted again from the
//! allocation groups.

use core::mem::offset_of;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, part_mut, take};
use zerocopy::IntoBytes;

use super::super::crc;
use super::super::described::{AGF_SELF, AGI_SELF, SB_SELF};
use super::super::fault::Fault;
use super::super::layout::{AGF_MAGIC, AGI_MAGIC, RawAgf, RawAgi, RawSuperblock};
use super::super::superblock::{Features2, LogIncompat};
use super::super::units::{AgNo, Lsn};
use super::super::volume::{BlockKind, Volume};

/// The free space of a group.
const AGF: BlockKind = BlockKind::new("AGF", [AGF_MAGIC, AGF_MAGIC], AGF_SELF);
/// The inodes of a group.
pub(super) const AGI: BlockKind = BlockKind::new("AGI", [AGI_MAGIC, AGI_MAGIC], AGI_SELF);

/// Counts free blocks and inodes, if the superblock's counters are not logged.
pub(super) fn recount(volume: &mut Volume) -> Result<()> {
    let sb = &volume.sb;
    if !sb.features2.contains(Features2::LAZYSBCOUNT) {
        return Ok(());
    }
    let (mut free, mut inodes, mut free_inodes) = (0u64, 0u64, 0u64);
    for number in 0..sb.ag_count {
        let ag = AgNo(number);
        let within = || format!("allocation group {number}");
        let agf: RawAgf = header(volume, &AGF, ag, 1).within(within)?;
        let agi: RawAgi = header(volume, &AGI, ag, 2).within(within)?;
        // Blocks of the free list and of the free space trees count as free.
        let parts = [agf.agf_freeblks, agf.agf_flcount, agf.agf_btreeblks];
        free = parts.iter().fold(free, |sum, part| sum.saturating_add(part.get().into()));
        inodes = inodes.saturating_add(agi.agi_count.get().into());
        free_inodes = free_inodes.saturating_add(agi.agi_freecount.get().into());
    }
    if free > sb.blocks || free_inodes > inodes {
        return Err(Fault::Structure { what: "counters", why: "more is free than there is" }.into());
    }
    volume.sb.raw.sb_fdblocks = free.into();
    volume.sb.raw.sb_icount = inodes.into();
    volume.sb.raw.sb_ifree = free_inodes.into();
    Ok(())
}

/// Header sector `sector` of a group.
pub(super) fn header<T: wire::Layout>(volume: &Volume, kind: &BlockKind, ag: AgNo, sector: u32) -> Result<T> {
    let at = volume.sb.ag_header(ag, sector)?;
    let len = volume.sb.sector_size.bytes();
    let bytes = wire::bytes(&volume.disk, at, len, 64 << 10, kind.what)?;
    volume.check_block(kind, &bytes, at, 0)?;
    take(&bytes, 0, kind.what)
}

/// Writes the superblock's counters as the volume knows them, and takes back the log's features: the log holds
/// nothing that needs them any more.
pub(super) fn store(volume: &mut Volume, lsn: Lsn) -> Result<()> {
    let len = volume.sb.sector_size.bytes();
    let mut sector = wire::bytes(&volume.disk, 0, len, 64 << 10, "superblock")?;
    volume.sb.log_incompat = LogIncompat::empty();
    let raw = &mut volume.sb.raw;
    raw.sb_features_log_incompat = 0.into();
    raw.sb_lsn = lsn.0.into();
    let start = offset_of!(RawSuperblock, sb_icount);
    let counters = [raw.sb_icount, raw.sb_ifree, raw.sb_fdblocks];
    part_mut(&mut sector, start, size_of_val(&counters), "superblock")?.copy_from_slice(counters.as_bytes());
    let at = offset_of!(RawSuperblock, sb_features_log_incompat);
    part_mut(&mut sector, at, 4, "superblock")?.fill(0);
    part_mut(&mut sector, SB_SELF.lsn, 8, "superblock")?.copy_from_slice(raw.sb_lsn.as_bytes());
    crc::stamp(&mut sector, SB_SELF.crc)?;
    volume.disk.write_at(0, &sector)
}
