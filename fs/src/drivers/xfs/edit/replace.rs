//! All of a file's content replaced.

use racker_formats::error::{Result, Within};
use racker_formats::wire::part_mut;

use crate::filesystem::{Content, NodeKind, Time};

use super::super::fault::Fault;
use super::super::inode::{DiFlags, DiFlags2, ForkFormat, ForkKind, Inode};
use super::super::units::InodeNo;
use super::Edit;
use super::fork::{Built, Site};

/// Blocks of the extent tree of a small file in many pieces.
const TREE_BLOCKS: u64 = 16;

impl Edit {
    /// Replaces the content of file `ino`. The new content goes to other blocks than the old one, unless there is
    /// only room for it once the old one is gone.
    pub(in super::super) fn replace(&mut self, ino: InodeNo, content: Content<'_>, now: Time) -> Result<()> {
        let inode = self.volume.inode(ino)?;
        if inode.kind != NodeKind::File {
            let fault = if inode.kind == NodeKind::Dir {
                Fault::IsDirectory { ino: ino.0 }
            } else {
                Fault::NotA { ino: ino.0, what: "a regular file" }
            };
            return Err(fault.into());
        }
        if inode.flags.contains(DiFlags::REALTIME) {
            return Err(Fault::Realtime { ino: ino.0 }.into());
        }
        self.run(|edit| edit.replace_checked(inode, content, now))
            .within(|| format!("replacing the content of inode {}", ino.0))
    }

    fn replace_checked(&mut self, mut inode: Inode, content: Content<'_>, now: Time) -> Result<()> {
        let size = content.size;
        // The tree of the new fork needs less than a hundredth of what its content does, or a few blocks.
        let blocks = self.volume.sb.block_size.count(size);
        let want = blocks.saturating_add(blocks.checked_div(100).unwrap_or(0)).saturating_add(TREE_BLOCKS);
        let tight = want > self.budget_for(want)?;
        let mut old_blocks = 0;
        if tight {
            old_blocks = self.release_fork(&inode, ForkKind::Data)?;
            self.budget_for(want)?;
        }
        let extents = self.pour(inode.ino, content)?;
        let site = Site {
            ino: inode.ino,
            kind: ForkKind::Data,
            room: inode.data.room,
            big: inode.flags2.contains(DiFlags2::NREXT64),
        };
        let (near, _, _) = self.volume.sb.split_inode(inode.ino)?;
        let built = self.build_fork(site, &extents, near)?;
        if !tight {
            old_blocks = self.release_fork(&inode, ForkKind::Data)?;
        }
        let new_blocks = extents.iter().map(|e| e.len).fold(built.tree_blocks, u64::saturating_add);
        let blocks = inode.raw.di_nblocks.get().checked_sub(old_blocks);
        let Some(blocks) = blocks.and_then(|b| b.checked_add(new_blocks)) else {
            let why = "the fork has more blocks than the inode says";
            return Err(Fault::Fork { ino: inode.ino.0, fork: "data", why }.into());
        };
        inode.touch(&self.volume, true, now)?;
        inode.set_fork(ForkKind::Data, &built)?;
        let core = inode.core()?;
        core.di_size = size.into();
        core.di_nblocks = blocks.into();
        // Nothing of the new content is shared.
        core.di_flags2 = (core.di_flags2.get() & !DiFlags2::REFLINK.bits()).into();
        inode.store(&self.volume).map(drop)
    }
}

impl Inode {
    /// Puts a fork that was built into its place in the inode.
    pub(super) fn set_fork(&mut self, kind: ForkKind, built: &Built) -> Result<()> {
        let Some(fork) = self.fork(kind).copied() else {
            let why = "the inode does not have it";
            return Err(Fault::Fork { ino: self.ino.0, fork: kind.name(), why }.into());
        };
        part_mut(&mut self.bytes, fork.at, fork.room, "fork")?.copy_from_slice(&built.bytes);
        let big = self.flags2.contains(DiFlags2::NREXT64);
        let format = match built.format {
            ForkFormat::Dev => 0,
            ForkFormat::Local => 1,
            ForkFormat::Extents => 2,
            ForkFormat::Btree => 3,
        };
        let core = self.core()?;
        // Each count was checked against what its field holds.
        let narrow = u32::try_from(built.extents).unwrap_or(u32::MAX);
        match (kind, big) {
            (ForkKind::Data, true) => core.di_big_nextents = built.extents.into(),
            (ForkKind::Data, false) | (ForkKind::Attr, true) => core.di_nextents = narrow.into(),
            (ForkKind::Attr, false) => {
                core.di_anextents = u16::try_from(built.extents).unwrap_or(u16::MAX).into();
            }
        }
        match kind {
            ForkKind::Data => core.di_format = format,
            ForkKind::Attr => core.di_aformat = format,
        }
        Ok(())
    }
}
