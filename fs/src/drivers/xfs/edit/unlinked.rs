//! Inodes that were deleted while programs had them open: the system died before they were freed. Each group
//! has lists of them.

use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::inode::{DiFlags, DiFlags2, ForkKind, Inode};
use super::super::log::unlinked;
use super::super::superblock::Incompat;
use super::super::units::AgNo;
use super::Edit;
use super::ialloc::NULL_AG_INODE;

/// `di_format` and `di_aformat` of a fork of extents.
const FORMAT_EXTENTS: u8 = 2;

impl Edit {
    /// Frees all inodes on the lists of deleted ones.
    pub(super) fn free_unlinked(&mut self) -> Result<()> {
        for ino in unlinked(&self.volume)? {
            let inode = self.volume.inode(ino)?;
            self.free_inode(inode).within(|| format!("deleted inode {}", ino.0))?;
            let (ag, _, _) = self.volume.sb.split_inode(ino)?;
            let inodes = &mut self.group(ag)?.inodes;
            // All of the group's lists are freed; whichever came first, none is left.
            inodes.agi.raw.agi_unlinked.fill(NULL_AG_INODE.into());
            inodes.dirty = true;
            self.breathe()?;
        }
        Ok(())
    }

    /// Frees an inode that no entry names, with all it has.
    pub(super) fn free_inode(&mut self, mut inode: Inode) -> Result<()> {
        if inode.flags.contains(DiFlags::REALTIME) {
            return Err(Fault::Realtime { ino: inode.ino.0 }.into());
        }
        self.release_fork(&inode, ForkKind::Data)?;
        self.release_fork(&inode, ForkKind::Attr)?;
        let features = self.volume.sb.incompat;
        let mut flags2 = DiFlags2::empty();
        flags2.set(DiFlags2::BIGTIME, features.contains(Incompat::BIGTIME));
        flags2.set(DiFlags2::NREXT64, features.contains(Incompat::NREXT64));
        let generation = inode.raw.di_gen.get().wrapping_add(1);
        let core = inode.core()?;
        core.di_mode = 0.into();
        core.di_flags = 0.into();
        core.di_flags2 = flags2.bits().into();
        core.di_dmevmask = 0.into();
        core.di_forkoff = 0;
        core.di_size = 0.into();
        core.di_nblocks = 0.into();
        core.di_big_nextents = 0.into();
        core.di_nextents = 0.into();
        core.di_anextents = 0.into();
        core.di_format = FORMAT_EXTENTS;
        core.di_aformat = FORMAT_EXTENTS;
        core.di_gen = generation.into();
        core.di_next_unlinked = NULL_AG_INODE.into();
        let ino = inode.ino;
        inode.store_free(&self.volume)?;
        self.give_inode(ino)
    }

    /// Frees copies in the making that nobody finished.
    pub(super) fn free_leftovers(&mut self) -> Result<()> {
        for ag in 0..self.volume.sb.ag_count {
            let group = self.group(AgNo(ag))?;
            let Some(sharing) = group.sharing.as_mut() else { return Ok(()) };
            for run in sharing.leftovers()? {
                group.drop_copy(run).within(|| format!("unfinished copies in group {ag}"))?;
            }
            self.breathe()?;
        }
        Ok(())
    }
}
