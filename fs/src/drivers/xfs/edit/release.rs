//! A fork given back: its extents, shared ones as far as nobody else uses them, and the blocks of its tree.

use std::sync::Arc;

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;

use super::super::bmap::{BMBT, Mapping};
use super::super::fault::Fault;
use super::super::inode::{DiFlags2, ForkFormat, ForkKind, Inode};
use super::super::units::{FileBlock, FsBlock, InodeNo};
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
        Ok(blocks.saturating_add(self.release_tree(inode, kind)?))
    }

    /// The blocks of a fork's extent tree, the root in the inode aside. To be asked after a walk over its extents,
    /// which proves that the tree is one.
    fn tree_blocks(&self, inode: &Inode, kind: ForkKind) -> Result<Vec<FsBlock>> {
        let Some(fork) = inode.fork(kind).filter(|f| f.format == ForkFormat::Btree) else {
            return Ok(Vec::new());
        };
        let sb = &self.volume.sb;
        let (level, roots) = self.volume.tree_root(inode, fork)?;
        let mut todo: Vec<(u32, u64)> = roots.into_iter().map(|block| (level, block)).collect();
        let mut all = Vec::new();
        while let Some((level, block)) = todo.pop() {
            all.push(FsBlock(block));
            if len64(all.len()) > sb.blocks {
                return Err(Fault::Circle { what: BMBT.what }.into());
            }
            if let Some(below) = level.checked_sub(1) {
                let bytes = self.volume.block(&BMBT, sb.span(FsBlock(block), 1)?, inode.ino.0)?;
                let children = self.volume.tree_children(&bytes, level)?;
                todo.extend(children.into_iter().map(|block| (below, block)));
            }
        }
        Ok(all)
    }

    /// Frees the blocks of a fork's extent tree; the extents stay. Returns how many there were.
    pub(super) fn release_tree(&mut self, inode: &Inode, kind: ForkKind) -> Result<u64> {
        let mut count = 0u64;
        for block in self.tree_blocks(inode, kind)? {
            let (ag, within) = self.volume.sb.split(block)?;
            let run = Run { start: within.0, len: 1 };
            self.group(ag)?.release_own(run, Owner::fork_tree(inode.ino, kind))?;
            count = count.saturating_add(1);
            self.breathe()?;
        }
        Ok(count)
    }

    pub(super) fn release_mapping(
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
