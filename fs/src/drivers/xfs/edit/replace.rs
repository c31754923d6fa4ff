//! All of a file's content replaced.

use racker_formats::error::{Result, Within};
use racker_formats::wire::part_mut;

use crate::filesystem::{Content, NodeKind, Time};

use super::super::bmap::Mapping;
use super::super::fault::Fault;
use super::super::inode::{DiFlags, DiFlags2, ForkFormat, ForkKind, Inode};
use super::super::units::InodeNo;
use super::Edit;
use super::fork::Built;

/// Blocks of the extent tree of a small file in many pieces.
const TREE_BLOCKS: u64 = 16;

impl Edit {
    /// Replaces the content of file `ino`. The new content goes to other blocks than the old one, unless there is
    /// only room for it once the old one is gone.
    pub(in super::super) fn replace(&mut self, ino: InodeNo, content: Content<'_>, now: Time) -> Result<()> {
        let inode = self.inode(ino)?;
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
        self.replace_checked(inode, content, now)
            .within(|| format!("replacing the content of inode {}", ino.0))
    }

    fn replace_checked(&mut self, mut inode: Inode, content: Content<'_>, now: Time) -> Result<()> {
        let size = content.size;
        // The tree of the new fork needs less than a hundredth of what its content does, or a few blocks.
        let blocks = self.volume.sb.block_size.count(size);
        let tree = blocks.checked_div(100).unwrap_or(0).saturating_add(TREE_BLOCKS);
        let want = blocks.saturating_add(tree);
        let own = inode.raw.di_nblocks.get();
        let shared = inode.flags2.contains(DiFlags2::REFLINK);
        self.reserve(0)?;
        let budget = self.budget_for(want)?;
        if want > budget && want <= budget.saturating_add(own) && !shared {
            // There is room for it once the old content is gone.
            self.run(|edit| {
                edit.budget = u64::MAX;
                edit.cut_off(&mut inode, 0)
            })?;
            self.budget_for(want)?;
        }
        // Holes take nothing: whether there is room for the rest is seen then.
        self.budget = self.budget.saturating_sub(tree);
        let extents = self.prepare(|edit| edit.pour(inode.ino, content))?;
        self.budget = self.budget.saturating_add(tree);
        self.run(|edit| edit.put_content(inode, size, &extents, now))
    }

    /// Gives a file extents that were written for it in the place of all that it has.
    fn put_content(&mut self, mut inode: Inode, size: u64, extents: &[Mapping], now: Time) -> Result<()> {
        self.cut_off(&mut inode, 0)?;
        let blocks = extents.iter().map(|e| e.len).fold(0, u64::saturating_add);
        inode.count_blocks(blocks, 0)?;
        inode.core()?.di_size = size.into();
        self.put_extents(&mut inode, ForkKind::Data, extents, 0)?;
        inode.touch(&self.volume, true, now)?;
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
        let format = match built.format {
            ForkFormat::Dev => 0,
            ForkFormat::Local => 1,
            ForkFormat::Extents => 2,
            ForkFormat::Btree => 3,
        };
        self.count_extents(kind, built.extents)?;
        let core = self.core()?;
        match kind {
            ForkKind::Data => core.di_format = format,
            ForkKind::Attr => core.di_aformat = format,
        }
        Ok(())
    }
}
