//! A fork given back: its extents, shared ones as far as nobody else uses them, and the blocks of its tree.

use std::sync::Arc;

use racker_formats::error::{Result, Within};

use super::super::bmap::Mapping;
use super::super::fault::Fault;
use super::super::inode::{DiFlags2, ForkKind, Inode};
use super::super::units::{FileBlock, InodeNo};
use super::Edit;
use super::owner::Owner;
use super::records::Run;

impl Edit {
    /// Frees all blocks of a fork. Returns how many the inode had in it. The inode itself stays as it is.
    pub(super) fn release_fork(&mut self, inode: &Inode, kind: ForkKind) -> Result<u64> {
        self.release_all(inode, kind)
            .within(|| format!("freeing the {} fork of inode {}", kind.name(), inode.ino.0))
    }

    fn release_all(&mut self, inode: &Inode, kind: ForkKind) -> Result<u64> {
        let volume = Arc::clone(&self.volume);
        let shared = kind == ForkKind::Data && inode.flags2.contains(DiFlags2::REFLINK);
        let (mut blocks, mut extents) = (0u64, 0u64);
        for mapping in volume.mappings(inode, kind, FileBlock(0))? {
            let mapping = mapping?;
            self.release_mapping(inode.ino, kind, &mapping, shared)?;
            blocks = blocks.saturating_add(mapping.len);
            extents = extents.saturating_add(1);
            self.breathe()?;
        }
        if inode.fork(kind).is_some_and(|f| f.extents != extents) {
            let why = "the extents are not as many as the inode says";
            return Err(Fault::Fork { ino: inode.ino.0, fork: kind.name(), why }.into());
        }
        for block in volume.fork_tree_blocks(inode, kind)? {
            let (ag, within) = volume.sb.split(block)?;
            let run = Run { start: within.0, len: 1 };
            self.group(ag)?.release_own(run, Owner::fork_tree(inode.ino, kind))?;
            blocks = blocks.saturating_add(1);
            self.breathe()?;
        }
        Ok(blocks)
    }

    fn release_mapping(
        &mut self,
        ino: InodeNo,
        kind: ForkKind,
        mapping: &Mapping,
        shared: bool,
    ) -> Result<()> {
        let (ag, start) = self.volume.sb.split(mapping.start)?;
        let len = u32::try_from(mapping.len).unwrap_or(u32::MAX);
        let run = Run { start: start.0, len };
        let owner = Owner::content(ino, kind, mapping.at.0, mapping.unwritten);
        let group = self.group(ag)?;
        group.space.ground.check(run.start, run.len)?;
        if shared { group.release_shared(run, owner) } else { group.release_own(run, owner) }
    }
}
