//! Label and UUID, which stand in the superblock of every group.
//!
//! On version 5 every block carries the UUID, too. So the one that users see is told apart from that of the blocks,
//! which stays: the feature `META_UUID` says that there are two, and goes when both are the same again (as with
//! `xfs_admin -U`). Records of the log carry the one that users see; the log is ended once more with a record that
//! has the new one.

use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use zerocopy::FromBytes;

use super::super::described::SB_SELF;
use super::super::fault::Fault;
use super::super::layout::{RawSuperblock, RawUuid};
use super::super::log::Log;
use super::super::superblock::{Incompat, Superblock};
use super::super::units::AgNo;
use super::{Edit, SUPERBLOCK};
use crate::filesystem::{NewUuid, label_bytes};

impl Edit {
    /// The superblock as it was when it was last read whole.
    pub(super) fn geometry(&self) -> &Superblock {
        &self.volume.sb
    }

    /// Gives the filesystem another label.
    pub(super) fn set_label(&mut self, label: &str) -> Result<()> {
        let name = label_bytes(label)?;
        self.in_every_copy(|raw| raw.sb_fname = name)
    }

    /// Gives the filesystem another UUID.
    pub(super) fn set_uuid(&mut self, new: &NewUuid) -> Result<()> {
        let new = new.uuid()?.into_bytes();
        let meta = self.volume.sb.meta_uuid;
        let mut log = Log::open(&self.volume)?;
        self.in_every_copy(|raw| rename(raw, new, meta))?;
        log.rename(new)
    }

    /// Changes the superblock of every group, with everything else on the volume.
    fn in_every_copy(&mut self, change: impl Fn(&mut RawSuperblock)) -> Result<()> {
        self.run(|edit| edit.change_copies(&change))
    }

    pub(super) fn change_copies(&mut self, change: &impl Fn(&mut RawSuperblock)) -> Result<()> {
        self.write_back()?;
        let sb = self.volume.sb.clone();
        let len = sb.sector_size.bytes();
        for ag in (0..sb.ag_count).map(AgNo) {
            let span = Span::new(sb.ag_header(ag, 0)?, len)?;
            let mut sector =
                self.volume.block(&SUPERBLOCK, span, 0).within(|| format!("allocation group {}", ag.0))?;
            let (raw, _) = RawSuperblock::mut_from_prefix(&mut sector)
                .map_err(|_| Fault::Structure { what: "superblock", why: "too short" })?;
            change(raw);
            let lsn = SB_SELF.lsn(&sector)?;
            SB_SELF.stamp(&mut sector, lsn)?;
            self.volume.disk.write_at(span.start(), &sector)?;
        }
        // Whoever holds the volume as it was reads it anew.
        self.groups.clear();
        let mut volume = self.volume.as_ref().clone();
        volume.sb = Superblock::read(&volume.disk)?;
        self.volume = Arc::new(volume);
        Ok(())
    }
}

/// Changes the UUID that users see; the one of the blocks is `meta`.
fn rename(raw: &mut RawSuperblock, new: RawUuid, meta: RawUuid) {
    let features = Incompat::from_bits_retain(raw.sb_features_incompat.get());
    let apart = new != meta;
    raw.sb_features_incompat = match apart {
        true => features.union(Incompat::META_UUID).bits().into(),
        false => features.difference(Incompat::META_UUID).bits().into(),
    };
    raw.sb_meta_uuid = if apart { meta } else { RawUuid::default() };
    raw.sb_uuid = new;
}
