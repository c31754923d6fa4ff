//! The superblock, the group descriptors, and where the filesystem's own tables lie.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part};

use super::super::edit::groups::Desc;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, Incompat, RoCompat};
use super::super::journal::Journal;
use super::Checker;

/// Groups of the largest filesystem that is checked: 128 TiB with blocks of 4 KiB.
const GROUPS_MAX: u64 = 1 << 20;
/// `s_state`: closed cleanly; errors were seen.
const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;

impl Checker<'_> {
    /// What the superblock says beyond what a reader needs.
    pub(super) fn check_superblock(&mut self) -> Result<()> {
        let sb = &self.fs.sb;
        let raw = &sb.raw;
        let per_block = sb.block_size.bytes().checked_div(len64(sb.group_bytes)).unwrap_or(1).max(1);
        let descriptors = sb.groups.div_ceil(per_block);
        let reserved = u64::from(raw.r_blocks_count_lo.get())
            | if sb.features.incompat.contains(Incompat::BIT64) {
                u64::from(raw.r_blocks_count_hi.get()) << 32
            } else {
                0
            };
        let room = u64::try_from(sb.inode_bytes.saturating_sub(128)).unwrap_or(0);
        let meta_bg = sb.features.incompat.contains(Incompat::META_BG);
        let old = raw.rev_level.get() == 0;
        for (field, found, max) in [
            ("s_r_blocks_count", reserved, sb.blocks / 2),
            ("s_reserved_gdt_blocks", raw.reserved_gdt_blocks.get().into(), sb.block_size.bytes() / 4),
            ("s_first_meta_bg", if meta_bg { raw.first_meta_bg.get().into() } else { 0 }, descriptors),
            ("s_log_groups_per_flex", raw.log_groups_per_flex.into(), 31),
            ("s_min_extra_isize", if old { 0 } else { raw.min_extra_isize.get().into() }, room),
            ("s_want_extra_isize", if old { 0 } else { raw.want_extra_isize.get().into() }, room),
        ] {
            if found > max {
                let expected = format!("at most {max}");
                self.finds.corrupt(Ext4Fault::Superblock { field, found, expected }.to_string())?;
            }
        }
        let resizes = raw.feature_compat.get() & 0x10 != 0 && !old;
        if resizes && meta_bg {
            self.finds.corrupt("the superblock has resize_inode and meta_bg, which exclude each other")?;
        }
        if sb.features.has_metadata_csum() && sb.features.ro_compat.contains(RoCompat::GDT_CSUM) {
            self.finds.corrupt("the superblock has metadata_csum and uninit_bg, which exclude each other")?;
        }
        if !sb.folding_is_known() {
            let (field, found) = ("s_encoding", raw.encoding.get().into());
            let expected = "1, UTF-8 of Unicode 12.1".into();
            self.finds.corrupt(Ext4Fault::Superblock { field, found, expected }.to_string())?;
        }
        self.check_journal()
    }

    fn check_journal(&mut self) -> Result<()> {
        let raw = &self.fs.sb.raw;
        let has = self.fs.sb.features.compat.contains(Compat::HAS_JOURNAL);
        let number = raw.journal_inum.get();
        if !has {
            if number != 0 {
                self.finds
                    .corrupt(format!("the superblock names journal inode {number}, and has no journal"))?;
            }
            if self.fs.sb.features.incompat.contains(Incompat::RECOVER) {
                self.finds.corrupt("the superblock has a journal to replay, and no journal")?;
            }
            return Ok(());
        }
        if number == 0 {
            if raw.journal_uuid == [0; 16] && raw.journal_dev.get() == 0 {
                self.finds.corrupt("the superblock has a journal, and does not say where it is")?;
            }
            return Ok(());
        }
        let opened = Journal::open(self.fs);
        let Some(journal) = self.finds.sound(|| "journal".into(), opened)? else { return Ok(()) };
        if journal.errno != 0 {
            self.finds.corrupt("the journal was given up because of an error (s_errno)")?;
        }
        if journal.users > 1 {
            let what = format!("the journal says that {} filesystems use it (s_nr_users)", journal.users);
            // A log that is not empty may be of others indeed.
            if journal.start != 0 || raw.journal_uuid != [0; 16] {
                return self.finds.corrupt(what);
            }
            self.mend_journal = true;
            self.finds.mendable(what)?;
        }
        if journal.has_remnants {
            self.mend_journal = true;
            self.finds.mendable("the journal's superblock is of version 1, and has fields of version 2")?;
        }
        Ok(())
    }

    /// The state that the superblock has.
    pub(super) fn check_state(&mut self) -> Result<()> {
        let state = self.fs.sb.raw.state.get();
        if state & STATE_ERRORS != 0 {
            self.mend_totals = true;
            self.finds.mendable("the kernel has noted errors")?;
        } else if state & STATE_VALID == 0 {
            self.mend_totals = true;
            self.finds.mendable("the filesystem was not closed")?;
        }
        Ok(())
    }

    /// Reads all descriptors, and marks what they name; tells whether all is in its place.
    pub(super) fn read_tables(&mut self) -> Result<bool> {
        let sb = &self.fs.sb;
        if sb.groups > GROUPS_MAX {
            return Err(Ext4Fault::Limit { what: "block groups", found: sb.groups, max: GROUPS_MAX }.into());
        }
        let mut sound = true;
        let per_block = sb.block_size.bytes().checked_div(len64(sb.group_bytes)).unwrap_or(1).max(1);
        for number in 0..sb.groups {
            let (at, within) = (number.checked_div(per_block), number.checked_rem(per_block));
            let start = index(within.unwrap_or(0))?.saturating_mul(sb.group_bytes);
            let read = self.fs.block("a group descriptor", sb.descriptor_block(at.unwrap_or(0)));
            let parsed = read
                .and_then(|b| Desc::parse(sb, number, part(&b, start, sb.group_bytes, "group descriptor")?));
            match self.finds.sound(|| format!("group {number}"), parsed)? {
                Some(desc) => self.descs.push(desc),
                None => sound = false,
            }
        }
        if !sound {
            return Ok(false);
        }
        for number in 0..sb.groups {
            let (start, len) = sb.base_blocks(number);
            let end = sb.first_block(number).saturating_add(sb.blocks_of(number));
            // Copies of the superblock may not fit into a last group that is short.
            sound &=
                self.table(number, "copies of the superblock", start, len.min(end.saturating_sub(start)))?;
        }
        let table = sb.table_blocks();
        for (number, desc) in (0u64..).zip(self.descs.clone()) {
            for (what, start, len) in [
                ("block bitmap", desc.block_bitmap, 1),
                ("inode bitmap", desc.inode_bitmap, 1),
                ("inode table", desc.inode_table, table),
            ] {
                sound &= self.is_near(number, what, start, len)? && self.table(number, what, start, len)?;
            }
        }
        if sb.features.incompat.contains(Incompat::MMP) {
            let block = sb.raw.mmp_block.get();
            if sb.check_blocks("the superblock", block, 1).is_err() {
                self.finds.corrupt(format!("the multiple mount block is {block}"))?;
            } else {
                sound &= self.table(0, "multiple mount block", block, 1)?;
                let free = super::super::edit::check_mmp(self.fs);
                if let Err(e) = free {
                    self.finds.corrupt(e.to_string())?;
                }
            }
        }
        Ok(sound)
    }

    /// Without `flex_bg` a group has its tables in itself.
    fn is_near(&mut self, group: u64, what: &str, start: u64, len: u64) -> Result<bool> {
        let sb = &self.fs.sb;
        let first = sb.first_block(group);
        let end = first.saturating_add(sb.blocks_of(group));
        if sb.features.incompat.contains(Incompat::FLEX_BG)
            || (start >= first && start.saturating_add(len) <= end)
        {
            return Ok(true);
        }
        self.finds.corrupt(format!("group {group}: its {what} at block {start} is in another group"))?;
        Ok(false)
    }

    /// Marks blocks of a table; they must not be marked yet.
    fn table(&mut self, group: u64, what: &str, start: u64, len: u64) -> Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        if let Some(block) = self.own.set_run(start, len) {
            self.finds.corrupt(format!("group {group}: its {what} and another table share block {block}"))?;
            return Ok(false);
        }
        // Tables may share clusters.
        let (first, count) = self.clusters(start, len);
        self.used.set_run(first, count);
        Ok(true)
    }

    /// The clusters that blocks lie in: the first, and how many.
    pub(super) fn clusters(&self, start: u64, len: u64) -> (u64, u64) {
        let sb = &self.fs.sb;
        let cluster = |block: u64| block.saturating_sub(sb.first_data_block) >> sb.cluster_shift;
        let (first, last) = (cluster(start), cluster(start.saturating_add(len.max(1)).saturating_sub(1)));
        (first, last.saturating_sub(first).saturating_add(1))
    }
}
