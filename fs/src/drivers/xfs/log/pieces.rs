//! Directory blocks that lie in several extents: each extent's part is logged as a buffer of its own, but the
//! checksum is that of the whole. So the blocks are put right when everything is replayed. A change of a directory
//! always logs its inode too: the directories to look at are in the log.
//!
//! The kernel (up to 6.18 at least) takes each part for a block, and refuses to mount.

use std::collections::BTreeSet;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::super::crc;
use super::super::described::OwnerField;
use super::super::inode::{ForkFormat, Inode};
use super::super::units::{BASIC_BLOCK_SHIFT, Daddr, FileBlock, InodeNo};
use super::super::volume::Volume;
use super::buf_item::{BufItem, description};
use crate::filesystem::NodeKind;

/// Kinds of buffers, `XFS_BLFT_…`: the first and the last of directories, and inner blocks of any hash tree.
const KIND_DIR_FIRST: u16 = 10;
const KIND_DIR_LAST: u16 = 14;
const KIND_DA_NODE: u16 = 15;

/// Parts of directory blocks that were replayed, and directories that may have them.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    parts: BTreeSet<Daddr>,
    dirs: BTreeSet<InodeNo>,
}

impl Pieces {
    /// Takes note of a replayed buffer; says whether it is surely only a part of a block.
    pub(super) fn note(&mut self, volume: &Volume, buf: &BufItem) -> bool {
        let whole = volume.sb.dir_block_size.bytes() >> BASIC_BLOCK_SHIFT;
        let dir = (KIND_DIR_FIRST..=KIND_DIR_LAST).contains(&buf.kind);
        if !volume.sb.v5 || buf.count >= whole || !(dir || buf.kind == KIND_DA_NODE) {
            return false;
        }
        self.parts.insert(buf.at);
        dir
    }

    /// Takes note of a directory.
    pub(super) fn note_dir(&mut self, ino: InodeNo) {
        self.dirs.insert(ino);
    }

    /// Puts the checksums of the blocks right whose parts were replayed.
    pub(super) fn join(self, volume: &Volume) -> Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        for ino in &self.dirs {
            // It may have been freed, or be something else by now.
            let Ok(dir) = volume.inode(*ino) else { continue };
            if dir.kind == NodeKind::Dir && dir.data.format != ForkFormat::Local {
                self.join_dir(volume, &dir).within(|| format!("directory {}", ino.0))?;
            }
        }
        Ok(())
    }

    fn join_dir(&self, volume: &Volume, dir: &Inode) -> Result<()> {
        let fork = volume.dir_fork(dir);
        let size = volume.sb.block_size;
        let step = size.count(volume.sb.dir_block_size.bytes()).max(1);
        let mut joined = FileBlock(0);
        for mapping in volume.mappings(dir, fork.kind, FileBlock(0))? {
            let mapping = mapping?;
            let span = volume.sb.span(mapping.start, mapping.len)?;
            for part in self.parts_in(span) {
                let byte = (part.0 << BASIC_BLOCK_SHIFT).saturating_sub(span.start());
                let at = mapping.at.0.saturating_add(size.split(byte).0);
                let first = FileBlock(at.checked_div(step).unwrap_or(0).saturating_mul(step));
                if first >= joined {
                    volume.join_block(dir, first)?;
                    joined = FileBlock(first.0.saturating_add(step));
                }
            }
        }
        Ok(())
    }

    fn parts_in(&self, span: Span) -> impl Iterator<Item = &Daddr> {
        let first = Daddr(span.start() >> BASIC_BLOCK_SHIFT);
        self.parts.range(first..Daddr(span.end() >> BASIC_BLOCK_SHIFT))
    }
}

impl Volume {
    /// Writes the checksum of a directory block, if it is one of this directory.
    fn join_block(&self, dir: &Inode, first: FileBlock) -> Result<()> {
        let (start, bytes) = self.fork_block(&self.dir_fork(dir), first)?;
        let Some((itself, false)) = description(&bytes) else { return Ok(()) };
        let OwnerField::Inode(owner) = itself.owner else { return Ok(()) };
        if bytes.get(owner..).and_then(|b| b.first_chunk()) != Some(&dir.ino.0.to_be_bytes()) {
            return Ok(());
        }
        let crc = U32::new(crc::compute(&bytes, itself.crc)?);
        let at = start.saturating_add(racker_formats::wire::len64(itself.crc));
        self.disk.write_at(at, crc.as_bytes())
    }
}
