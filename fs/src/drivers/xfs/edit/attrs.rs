//! Extended attributes copied from one inode to another, as they are: inside the inode, or block by block with
//! the new owner and place in each block.

use racker_formats::error::{Result, Within};
use racker_formats::wire::part_mut;
use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::super::attr::{LEAF, REMOTE};
use super::super::bmap::Mapping;
use super::super::da::NODE;
use super::super::fault::Fault;
use super::super::inode::{DiFlags2, ForkFormat, ForkKind, Inode};
use super::super::layout::OwnerField;
use super::super::units::{BASIC_BLOCK_SHIFT, FsBlock, InodeNo, Lsn};
use super::super::volume::BlockKind;
use super::Edit;
use super::alloc::Want;
use super::fork::{Built, Site};
use super::owner::Owner;

impl Edit {
    /// Copies the blocks of the attribute fork of `from`, which has one outside the inode, for inode `to`. Returns
    /// the fork and its blocks.
    pub(super) fn copy_attrs(&mut self, from: &Inode, to: InodeNo, room: usize) -> Result<(Built, u64)> {
        self.copy_blocks(from, to, room).within(|| format!("copying the attributes of inode {}", from.ino.0))
    }

    fn copy_blocks(&mut self, from: &Inode, to: InodeNo, room: usize) -> Result<(Built, u64)> {
        let volume = std::sync::Arc::clone(&self.volume);
        let (near, _, _) = volume.sb.split_inode(to)?;
        let (mut extents, mut blocks) = (Vec::new(), 0u64);
        let mut behind = None;
        for mapping in volume.mappings(from, ForkKind::Attr, super::super::units::FileBlock(0))? {
            let mapping = mapping?;
            let mut done = 0;
            while done < mapping.len {
                let left = mapping.len.saturating_sub(done);
                let at = super::super::units::FileBlock(mapping.at.0.saturating_add(done));
                let take = u32::try_from(left).unwrap_or(u32::MAX);
                let want = Want { whole: left, take, near, behind };
                let found = self.allocate(want, Owner::content(to, ForkKind::Attr, at.0, false))?;
                let start = self.fs_block(found)?;
                let len = u64::from(found.run.len);
                for i in 0..len {
                    let source = FsBlock(mapping.start.0.saturating_add(done).saturating_add(i));
                    self.copy_block(from.ino, source, to, FsBlock(start.0.saturating_add(i)))?;
                }
                extents.push(Mapping { at, start, len, unwritten: false });
                behind = Some(found.run.end()).filter(|_| found.ag == near);
                done = done.saturating_add(len);
                blocks = blocks.saturating_add(len);
            }
        }
        let big = volume.sb.incompat.contains(super::super::superblock::Incompat::NREXT64);
        let built = self.build_fork(Site { ino: to, kind: ForkKind::Attr, room, big }, &extents, near)?;
        blocks = blocks.saturating_add(built.tree_blocks);
        Ok((built, blocks))
    }

    /// Copies one block of an attribute fork: of its hash tree, a leaf, or part of a value.
    fn copy_block(&self, from: InodeNo, source: FsBlock, to: InodeNo, place: FsBlock) -> Result<()> {
        let sb = &self.volume.sb;
        let span = sb.span(source, 1)?;
        let [leaf] = LEAF;
        let kinds: [BlockKind; 3] = [leaf, NODE, REMOTE];
        let mut block = racker_formats::wire::bytes(
            &self.volume.disk,
            span.start(),
            span.len(),
            span.len(),
            REMOTE.what,
        )?;
        let [_, magic] = leaf.magic;
        let found = kinds.iter().find(|k| k.magic_of(&block).ok() == k.magic.last().copied());
        let Some(kind) = found else {
            return Err(Fault::Magic { what: "attribute block", found: 0, expected: magic }.into());
        };
        self.volume.check_block(kind, &block, span.start(), from.0)?;
        let target = sb.span(place, 1)?.start();
        let mut put = |at: Option<usize>, value: u64| -> Result<()> {
            let Some(at) = at else { return Ok(()) };
            part_mut(&mut block, at, size_of::<U64>(), kind.what)?
                .copy_from_slice(U64::new(value).as_bytes());
            Ok(())
        };
        put(kind.itself.blkno, target >> BASIC_BLOCK_SHIFT)?;
        if let OwnerField::Inode(at) = kind.itself.owner {
            put(Some(at), to.0)?;
        }
        // Values are never logged and say so; all else is older than any log.
        let lsn = if kind.what == REMOTE.what { kind.itself.lsn(&block)? } else { Lsn(0) };
        kind.itself.stamp(&mut block, lsn)?;
        self.volume.disk.write_at(target, &block)
    }
}

/// Whether an inode has attributes outside of itself.
pub(super) fn outside(inode: &Inode) -> bool {
    inode.attr.is_some_and(|f| f.format != ForkFormat::Local && f.extents > 0)
}

/// Whether the counts of extents are in the large fields.
pub(super) fn big_counts(inode: &Inode) -> bool {
    inode.flags2.contains(DiFlags2::NREXT64)
}
