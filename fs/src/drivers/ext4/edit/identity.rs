//! Label and UUID, which stand in every copy of the superblock.
//!
//! Checksums start from the UUID. With `uninit_bg` those of the descriptors are made anew, in their copies, too. With
//! `metadata_csum` that is all checksums there are, and with `ea_inode` the hashes of values. Instead the seed that
//! they start from can be written down, as `tune2fs -O metadata_csum_seed` does, if whoever asks wants it: that is
//! quick, but old boot loaders do not know the feature.

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;
use zerocopy::IntoBytes;

use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, Incompat, RoCompat};
use super::bytes::low16;
use super::{Edit, store_features};
use crate::filesystem::{NewUuid, Time, label_bytes};

/// `s_state` of a filesystem that was closed; its copies do not say so.
const STATE_VALID: u16 = 1;

impl Edit {
    /// Gives the filesystem another label.
    pub(super) fn set_label(&mut self, label: &str, now: Time) -> Result<()> {
        let name = label_bytes(label)?;
        self.run(now, |edit| {
            edit.fs.sb.raw.volume_name = name;
            edit.undo = None;
            edit.write_copies()
        })
    }

    /// Gives the filesystem another UUID.
    pub(super) fn set_uuid(&mut self, new: &NewUuid) -> Result<()> {
        let uuid = new.uuid()?.into_bytes();
        self.may_rename()?;
        let (now, keep) = (self.now, new.keep_checksums);
        self.run(now, |edit| {
            edit.undo = None;
            edit.put_uuid(uuid, keep)
        })
    }

    /// What keeps a UUID from being changed.
    fn may_rename(&self) -> Result<()> {
        let sb = &self.fs.sb;
        let why = if sb.features.compat.contains(Compat::STABLE_INODES) {
            "its UUID is part of how files are encrypted (stable_inodes)"
        } else if sb.raw.journal_dev.get() != 0 || sb.raw.journal_uuid != [0; 16] {
            "its journal on another device knows it by its UUID"
        } else {
            return Ok(());
        };
        Err(Ext4Fault::Cannot(format!("the UUID cannot be changed: {why}")).into())
    }

    /// Whether checksums start from the UUID itself.
    fn needs_seed(&self) -> bool {
        let features = &self.fs.sb.features;
        let has_sums = features.has_metadata_csum() || features.incompat.contains(Incompat::EA_INODE);
        has_sums && !features.incompat.contains(Incompat::CSUM_SEED)
    }

    fn put_uuid(&mut self, uuid: [u8; 16], keep: bool) -> Result<()> {
        let has_sums = self.fs.sb.features.has_metadata_csum();
        let anew = self.needs_seed() && !(keep && has_sums);
        if anew {
            self.reseed(crc32c(!0, &uuid))?;
        } else if self.needs_seed() {
            self.fs.sb.raw.checksum_seed = self.fs.sb.csum_seed.into();
            self.fs.sb.features.incompat.insert(Incompat::CSUM_SEED);
        }
        self.fs.sb.raw.uuid = uuid;
        if !self.fs.sb.features.incompat.contains(Incompat::CSUM_SEED) {
            self.fs.sb.csum_seed = crc32c(!0, &uuid);
        }
        if anew || self.fs.sb.features.ro_compat.contains(RoCompat::GDT_CSUM) && !has_sums {
            for group in 0..self.groups.list.len() {
                self.desc_mut(u32::try_from(group).unwrap_or(u32::MAX))?;
            }
            self.write_back(true)?;
            self.write_descriptor_copies()?;
        }
        self.write_copies()
    }

    /// Writes the superblock over all its copies, as tune2fs does.
    pub(super) fn write_copies(&mut self) -> Result<()> {
        self.write_superblock()?;
        let mut copy = self.fs.sb.clone();
        copy.features.incompat.remove(Incompat::RECOVER);
        copy.raw.state = (copy.raw.state.get() & !STATE_VALID).into();
        store_features(&mut copy);
        for group in 1..copy.groups {
            if !copy.has_superblock(group) {
                continue;
            }
            copy.raw.block_group_nr = low16(group).into();
            if copy.features.has_metadata_csum() {
                let sum = crc32c(!0, copy.raw.as_bytes().get(..1020).unwrap_or_default());
                copy.raw.checksum = sum.into();
            }
            let at = self.fs.byte_of(copy.first_block(group)).within(|| format!("group {group}"))?;
            self.fs.disk.write_at(at, copy.raw.as_bytes())?;
        }
        Ok(())
    }

    /// Writes the descriptors over all their copies.
    pub(super) fn write_descriptor_copies(&mut self) -> Result<()> {
        let sb = self.fs.sb.clone();
        let per_block = sb.block_size.bytes().checked_div(len64(sb.group_bytes)).unwrap_or(1).max(1);
        let all = sb.groups.div_ceil(per_block);
        let meta = sb.features.incompat.contains(Incompat::META_BG);
        let together = if meta { all.min(sb.raw.first_meta_bg.get().into()) } else { all };
        for number in 0..all {
            let block = self.fs.block("a block of group descriptors", sb.descriptor_block(number))?;
            let first = number.saturating_mul(per_block);
            // Behind every copy of the superblock; else in the second and the last group that it is about.
            let places: Vec<u64> = if number < together {
                let with = (1..sb.groups).filter(|g| sb.has_superblock(*g));
                with.map(|g| sb.first_block(g).saturating_add(1).saturating_add(number)).collect()
            } else {
                let last = first.saturating_add(per_block).saturating_sub(1);
                let two = [first.saturating_add(1), last].into_iter().filter(|g| *g < sb.groups);
                two.map(|g| sb.first_block(g).saturating_add(sb.has_superblock(g).into())).collect()
            };
            for place in places {
                self.fs.disk.write_at(self.fs.byte_of(place)?, &block)?;
            }
        }
        Ok(())
    }
}
