//! A directory entry that comes to name another inode.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part_mut};

use crate::filesystem::Time;

use super::super::bmap::Mapping;
use super::super::dir::{DATA_BLOCKS, Entry, Place};
use super::super::fault::Fault;
use super::super::inode::{ForkFormat, ForkKind, Inode};
use super::super::layout::DIR_SELF;
use super::super::superblock::VersionBits;
use super::super::units::{FileBlock, InodeNo};
use super::Edit;
use super::alloc::Want;
use super::attrs::big_counts;
use super::dirblock;
use super::fork::Site;
use super::owner::Owner;
use super::shortdir::ShortDir;

impl Edit {
    /// Makes `entry` of directory `dir` name the inode `ino`, of the same kind as before.
    pub(super) fn point_entry(&mut self, dir: Inode, entry: &Entry, ino: InodeNo, now: Time) -> Result<()> {
        let number = dir.ino.0;
        self.point(dir, entry, ino, now).within(|| format!("directory {number}"))
    }

    fn point(&mut self, mut dir: Inode, entry: &Entry, ino: InodeNo, now: Time) -> Result<()> {
        match entry.place {
            Place::Block { block, at } => self.point_in_block(&dir, block, at, ino)?,
            Place::Inode { .. } => {
                let mut short = ShortDir::parse(&dir, &self.volume.sb)?;
                short.set(&entry.name, ino)?;
                let bytes = short.pack()?;
                if bytes.len() <= dir.data.room {
                    dir.set_local(&bytes)?;
                } else {
                    self.move_out(&mut dir, &short)?;
                }
            }
        }
        dir.touch(&self.volume, true, now)?;
        dir.store(&self.volume).map(drop)
    }

    /// Changes the inode number of the entry at byte `at` of a directory block.
    fn point_in_block(&self, dir: &Inode, block: FileBlock, at: usize, ino: InodeNo) -> Result<()> {
        let fork = self.volume.dir_fork(dir);
        let (_, mut data) = self.volume.da_block(&fork, block, &DATA_BLOCKS)?;
        part_mut(&mut data.bytes, at, 8, "directory entry")?.copy_from_slice(&ino.0.to_be_bytes());
        let lsn = DIR_SELF.lsn(&data.bytes)?;
        DIR_SELF.stamp(&mut data.bytes, lsn)?;
        self.write_fork_block(dir, block, &data.bytes)
    }

    /// Writes a directory block, which may lie in several extents.
    fn write_fork_block(&self, dir: &Inode, block: FileBlock, bytes: &[u8]) -> Result<()> {
        let size = self.volume.sb.block_size;
        let mut rest = bytes;
        let mut next = block;
        for mapping in self.volume.mappings(dir, ForkKind::Data, block)? {
            let mapping = mapping?;
            let Some(skip) = next.0.checked_sub(mapping.at.0) else { break };
            let span = self.volume.sb.span(mapping.start, mapping.len)?;
            let span = span.skip(size.start_of(skip).unwrap_or(u64::MAX)).truncate(len64(rest.len()));
            let (now, later) = rest.split_at_checked(index(span.len())?).unwrap_or((rest, &[]));
            self.volume.disk.write_at(span.start(), now)?;
            next = FileBlock(next.0.saturating_add(size.count(span.len())));
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
        let why = "a block that was read is a hole";
        Err(Fault::Fork { ino: dir.ino.0, fork: "data", why }.into())
    }

    /// Moves a directory out of its inode, into a block of its own.
    fn move_out(&mut self, dir: &mut Inode, short: &ShortDir) -> Result<()> {
        let volume = std::sync::Arc::clone(&self.volume);
        let sb = &volume.sb;
        if sb.version_bits.contains(VersionBits::BORG) {
            return Err(Fault::Unsupported { what: "growing a directory that ignores case" }.into());
        }
        let blocks = sb.block_size.count(sb.dir_block_size.bytes());
        let (near, _, _) = sb.split_inode(dir.ino)?;
        let mut extents: Vec<Mapping> = Vec::new();
        let mut done = 0u64;
        while let Some(left) = blocks.checked_sub(done).filter(|l| *l > 0) {
            let take = u32::try_from(left).unwrap_or(u32::MAX);
            let want = Want { whole: left, take, near, behind: None };
            let found = self.allocate(want, Owner::content(dir.ino, ForkKind::Data, done, false))?;
            let len = u64::from(found.run.len);
            extents.push(Mapping {
                at: FileBlock(done),
                start: self.fs_block(found)?,
                len,
                unwritten: false,
            });
            done = done.saturating_add(len);
        }
        let Some(first) = extents.first() else {
            return Err(Fault::Structure { what: "directory", why: "blocks of no size" }.into());
        };
        let bytes = dirblock::build(sb, dir.ino, sb.daddr(first.start)?, short)?;
        let (room, big) = (dir.data.room, big_counts(dir));
        let built =
            self.build_fork(Site { ino: dir.ino, kind: ForkKind::Data, room, big }, &extents, near)?;
        let more = blocks.saturating_add(built.tree_blocks);
        dir.set_fork(ForkKind::Data, &built)?;
        let core = dir.core()?;
        core.di_size = sb.dir_block_size.bytes().into();
        core.di_nblocks = core.di_nblocks.get().saturating_add(more).into();
        let mut rest = bytes.as_slice();
        for extent in &extents {
            let span = sb.span(extent.start, extent.len)?;
            let (now, later) = rest.split_at_checked(index(span.len())?).unwrap_or((rest, &[]));
            volume.disk.write_at(span.start(), now)?;
            rest = later;
        }
        Ok(())
    }
}

impl Inode {
    /// Puts content into the inode itself.
    fn set_local(&mut self, bytes: &[u8]) -> Result<()> {
        debug_assert_eq!(self.data.format, ForkFormat::Local);
        let (at, room) = (self.data.at, self.data.room);
        let fork = part_mut(&mut self.bytes, at, room, "data fork")?;
        fork.fill(0);
        part_mut(fork, 0, bytes.len(), "data fork")?.copy_from_slice(bytes);
        self.core()?.di_size = len64(bytes.len()).into();
        Ok(())
    }
}
