//! The superblock's counters, and its copies in the other groups.

use racker_formats::check::Severity;
use racker_formats::error::{Result, Within};
use racker_formats::wire;

use super::super::described::SB_SELF;
use super::super::edit::ground::Ground;
use super::super::layout::RawSuperblock;
use super::super::superblock::Superblock;
use super::super::units::AgNo;
use super::Checker;
use super::notes::Mend;

/// Bits of `sb_versionnum` that only the first superblock keeps up: attributes and quotas are in use.
const FIRST_ONLY: u16 = 0x10 | 0x40;
/// The bit of `sb_features2` of attributes of version 2, which is also set when the first is made.
const FIRST_ONLY2: u32 = 0x8;

impl Checker<'_> {
    /// Compares the group's copy of the superblock with the first one.
    pub(super) fn copy(&mut self, ground: &Ground) -> Result<()> {
        match self.copy_fault(ground.ag)? {
            Some(fault) => self.notes.mendable(Mend::Copy, Severity::Corruption, fault),
            None => Ok(()),
        }
    }

    /// What is wrong with a group's copy of the superblock.
    pub(super) fn copy_fault(&mut self, ag: AgNo) -> Result<Option<String>> {
        let sb = &self.volume.sb;
        let place = || format!("group {}: superblock", ag.0);
        let (at, len) = (sb.ag_header(ag, 0)?, sb.sector_size.bytes());
        let bytes = wire::bytes(&self.volume.disk, at, len, 32 << 10, "superblock")?;
        match Superblock::parse_copy(&bytes, self.volume.disk.size()).within(place) {
            Err(e) => Ok(Some(e.to_string())),
            Ok(copy) => {
                if self.volume.sb.v5 {
                    self.stamp(SB_SELF.lsn(&bytes)?)?;
                }
                let field = difference(&self.volume.sb.raw, &copy.raw);
                Ok(field.map(|field| format!("{}: {field} is not that of the first superblock", place())))
            }
        }
    }

    /// The superblock's counters.
    pub(super) fn counters(&mut self) -> Result<()> {
        if self.totals.unknown {
            return Ok(());
        }
        let raw = self.volume.sb.raw;
        let [inodes, free_inodes, free_blocks] = self.totals.numbers();
        let all = [
            ("sb_icount", raw.sb_icount.get(), inodes),
            ("sb_ifree", raw.sb_ifree.get(), free_inodes),
            ("sb_fdblocks", raw.sb_fdblocks.get(), free_blocks),
        ];
        for (name, found, right) in all {
            self.notes.count_of(Mend::Counter, &format!("superblock: {name}"), found, right)?;
        }
        Ok(())
    }
}

/// The first field in which a copy of the superblock differs that has to be the same.
fn difference(first: &RawSuperblock, copy: &RawSuperblock) -> Option<&'static str> {
    let same = [
        ("sb_dblocks", first.sb_dblocks == copy.sb_dblocks),
        ("sb_blocksize", first.sb_blocksize == copy.sb_blocksize),
        ("sb_agblocks", first.sb_agblocks == copy.sb_agblocks),
        ("sb_agcount", first.sb_agcount == copy.sb_agcount),
        ("sb_uuid", first.sb_uuid == copy.sb_uuid),
        ("sb_meta_uuid", first.sb_meta_uuid == copy.sb_meta_uuid),
        ("sb_logstart", first.sb_logstart == copy.sb_logstart),
        ("sb_logblocks", first.sb_logblocks == copy.sb_logblocks),
        ("sb_rextsize", first.sb_rextsize == copy.sb_rextsize),
        ("sb_rblocks", first.sb_rblocks == copy.sb_rblocks),
        ("sb_sectsize", first.sb_sectsize == copy.sb_sectsize),
        ("sb_inodesize", first.sb_inodesize == copy.sb_inodesize),
        ("sb_dirblklog", first.sb_dirblklog == copy.sb_dirblklog),
        ("sb_inoalignmt", first.sb_inoalignmt == copy.sb_inoalignmt),
        ("sb_spino_align", first.sb_spino_align == copy.sb_spino_align),
        ("sb_logsunit", first.sb_logsunit == copy.sb_logsunit),
        ("sb_logsectsize", first.sb_logsectsize == copy.sb_logsectsize),
        ("sb_versionnum", (first.sb_versionnum.get() ^ copy.sb_versionnum.get()) & !FIRST_ONLY == 0),
        ("sb_features2", (first.sb_features2.get() ^ copy.sb_features2.get()) & !FIRST_ONLY2 == 0),
        ("sb_features_ro_compat", first.sb_features_ro_compat == copy.sb_features_ro_compat),
        ("sb_features_incompat", first.sb_features_incompat == copy.sb_features_incompat),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(name, _)| name)
}
