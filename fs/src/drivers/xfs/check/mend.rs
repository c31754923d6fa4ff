//! What is mended: what was counted, and what a crash left to do.

use std::collections::BTreeSet;
use std::sync::Arc;

use racker_formats::block::Disk;
use racker_formats::check::Report;
use racker_formats::error::Result;
use racker_formats::wire;
use zerocopy::FromBytes;

use super::super::described::SB_SELF;
use super::super::edit::Edit;
use super::super::edit::ground::Ground;
use super::super::edit::header::Header;
use super::super::fault::Fault;
use super::super::layout::{RawAgf, RawAgi, RawSuperblock};
use super::super::units::AgNo;
use super::super::volume::Volume;
use super::notes::Mend;
use super::{Checker, check};

/// Mends all that was found, and looks again.
pub(super) fn mend(disk: &Disk, mut checker: Checker<'_>) -> Result<()> {
    if let Some(fault) = checker.volume.sb.unwritable() {
        tracing::warn!(%fault, "nothing is mended");
        return Ok(());
    }
    let what: BTreeSet<Mend> = checker.notes.mends.iter().map(|(mend, _)| *mend).collect();
    let has = |mend| what.contains(&mend);
    if has(Mend::GroupCount) || has(Mend::Counter) {
        checker.mend_counts()?;
    }
    if has(Mend::Copy) {
        checker.mend_copies()?;
    }
    if has(Mend::Unlinked) || has(Mend::Leftover) {
        let mut edit = Edit::new(Arc::new(Volume::open(disk.clone())?))?;
        edit.recover(&[])?;
    }
    let mut again = Report::default();
    check(disk.read_only(), &mut again)?;
    if let Some(finding) = again.findings.first() {
        tracing::warn!(finding = finding.what, "still there after it was mended");
        let why = "what was to be mended is not sound afterwards";
        return Err(Fault::Structure { what: "filesystem", why }.into());
    }
    checker.notes.mended();
    Ok(())
}

impl Checker<'_> {
    /// Writes what was counted into the groups' headers and the superblock.
    fn mend_counts(&mut self) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        for (ag, state) in &self.groups {
            let ground = Ground::new(Arc::clone(&volume), AgNo(*ag))?;
            if let Some((free, longest)) = state.free {
                let mut agf = Header::<RawAgf>::read(&ground)?;
                if (agf.raw.agf_freeblks.get(), agf.raw.agf_longest.get()) != (free, longest) {
                    (agf.raw.agf_freeblks, agf.raw.agf_longest) = (free.into(), longest.into());
                    agf.write(&ground)?;
                }
            }
            if let Some((count, free)) = state.inodes {
                let mut agi = Header::<RawAgi>::read(&ground)?;
                if (agi.raw.agi_count.get(), agi.raw.agi_freecount.get()) != (count, free) {
                    (agi.raw.agi_count, agi.raw.agi_freecount) = (count.into(), free.into());
                    agi.write(&ground)?;
                }
            }
        }
        let mut sector = self.first_sector()?;
        if let Ok((raw, _)) = RawSuperblock::mut_from_prefix(&mut sector) {
            let [inodes, free_inodes, free_blocks] = self.totals.numbers();
            raw.sb_icount = inodes.into();
            raw.sb_ifree = free_inodes.into();
            raw.sb_fdblocks = free_blocks.into();
        }
        let lsn = SB_SELF.lsn(&sector)?;
        SB_SELF.stamp(&mut sector, lsn)?;
        volume.disk.write_at(0, &sector)
    }

    fn first_sector(&self) -> Result<Vec<u8>> {
        let len = self.volume.sb.sector_size.bytes();
        wire::bytes(&self.volume.disk, 0, len, 32 << 10, "superblock")
    }

    /// Writes the superblock to the groups whose copy is damaged.
    fn mend_copies(&mut self) -> Result<()> {
        let sector = self.first_sector()?;
        for ag in (1..self.volume.sb.ag_count).map(AgNo) {
            if self.copy_fault(ag)?.is_some() {
                self.volume.disk.write_at(self.volume.sb.ag_header(ag, 0)?, &sector)?;
            }
        }
        Ok(())
    }
}
