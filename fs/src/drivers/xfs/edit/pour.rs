//! Content to newly allocated blocks: read once from front to end, never held as a whole.

use racker_formats::block::BlockSize;
use racker_formats::error::{Common, Kind, Result};
use racker_formats::wire::{index, is_zero, len64, part, part_mut};

use crate::filesystem::Content;

use super::super::bmap::Mapping;
use super::super::inode::ForkKind;
use super::super::units::{AgNo, FileBlock, InodeNo};
use super::Edit;
use super::alloc::Want;
use super::owner::Owner;

/// Bytes of content in memory.
const WINDOW: usize = 1 << 20;
/// Zeroes of this many bytes in a row, at a multiple of it, are left out.
const HOLE: u64 = 64 << 10;
/// Blocks of the longest extent.
pub(super) const EXTENT_BLOCKS_MAX: u64 = (1 << 21) - 1;

/// Content on its way to the blocks of a file.
struct Pouring {
    ino: InodeNo,
    /// Blocks of the content from the next one to its end.
    left: u64,
    near: AgNo,
    behind: Option<u32>,
    extents: Vec<Mapping>,
}

impl Edit {
    /// Writes content to blocks that it allocates for file `ino`. Returns the extents. Without space for all of it
    /// nothing has changed.
    pub(super) fn pour(&mut self, ino: InodeNo, content: Content<'_>) -> Result<Vec<Mapping>> {
        let block = self.volume.sb.block_size;
        let (near, _, _) = self.volume.sb.split_inode(ino)?;
        let left = block.count(content.size);
        let mut pouring = Pouring { ino, left, near, behind: None, extents: Vec::new() };
        match self.pour_all(&mut pouring, content) {
            Err(e) if e.kind() == Kind::NoSpace => {
                for extent in &pouring.extents {
                    self.release_mapping(ino, ForkKind::Data, extent, false)?;
                }
                Err(e)
            }
            Err(e) => Err(e),
            Ok(()) => Ok(pouring.extents),
        }
    }

    fn pour_all(&mut self, pouring: &mut Pouring, content: Content<'_>) -> Result<()> {
        let block = self.volume.sb.block_size;
        let mut window = vec![0; WINDOW.min(index(block.ceil(content.size).unwrap_or(u64::MAX))?)];
        let mut at = 0u64;
        while at < content.size {
            let len = index(content.size.saturating_sub(at).min(len64(window.len())))?;
            content.reader.read_exact(part_mut(&mut window, 0, len, "content")?)?;
            // The rest of the last block must not show what was there before.
            window.get_mut(len..).unwrap_or_default().fill(0);
            let whole = index(block.ceil(len64(len)).ok_or(Common::Index(at))?)?;
            self.pour_window(pouring, at, part(&window, 0, whole, "content")?)?;
            at = at.saturating_add(len64(len));
            self.breathe()?;
        }
        Ok(())
    }

    /// Writes one window of content that begins at byte `at`: the stretches between holes.
    fn pour_window(&mut self, pouring: &mut Pouring, at: u64, bytes: &[u8]) -> Result<()> {
        let block = self.volume.sb.block_size;
        let piece = index(HOLE.max(block.bytes()))?;
        let mut data: Option<(usize, usize)> = None;
        let mut from = 0usize;
        for part in bytes.chunks(piece) {
            let to = from.saturating_add(part.len());
            let hole = part.len() == piece && is_zero(part);
            if !hole {
                data = Some((data.map_or(from, |(start, _)| start), to));
            }
            if let Some((start, end)) = data.filter(|_| hole || to == bytes.len()) {
                self.pour_run(
                    pouring,
                    at.saturating_add(len64(start)),
                    bytes.get(start..end).unwrap_or_default(),
                )?;
                data = None;
            }
            if hole {
                pouring.left = pouring.left.saturating_sub(block.count(len64(piece)));
            }
            from = to;
        }
        Ok(())
    }

    /// Writes whole blocks that belong at byte `at` of the file.
    fn pour_run(&mut self, pouring: &mut Pouring, at: u64, bytes: &[u8]) -> Result<()> {
        let block: BlockSize = self.volume.sb.block_size;
        let mut next = FileBlock(block.split(at).0);
        let mut rest = bytes;
        while !rest.is_empty() {
            let blocks = block.count(len64(rest.len()));
            let take = u32::try_from(blocks.min(EXTENT_BLOCKS_MAX)).unwrap_or(u32::MAX);
            let (near, behind) = (pouring.near, pouring.behind);
            let want = Want { whole: pouring.left.max(1), take, near, behind };
            let found = self.allocate(want, Owner::content(pouring.ino, ForkKind::Data, next.0, false))?;
            let start = self.fs_block(found)?;
            let span = self.volume.sb.span(start, found.run.len.into())?;
            let (now, later) = rest.split_at_checked(index(span.len())?).unwrap_or((rest, &[]));
            self.fresh.write(&self.volume.disk, span.start(), now)?;
            let len = u64::from(found.run.len);
            pouring.add(Mapping { at: next, start, len, unwritten: false });
            (pouring.near, pouring.behind) = (found.ag, Some(found.run.end()));
            pouring.left = pouring.left.saturating_sub(len);
            next = FileBlock(next.0.saturating_add(len));
            rest = later;
        }
        Ok(())
    }
}

impl Pouring {
    fn add(&mut self, new: Mapping) {
        if let Some(last) = self.extents.last_mut() {
            let follows = last.end() == new.at && last.start.0.saturating_add(last.len) == new.start.0;
            // The last block of one group and the first of the next never have neighbouring numbers that hold data.
            if follows && last.len.saturating_add(new.len) <= EXTENT_BLOCKS_MAX {
                last.len = last.len.saturating_add(new.len);
                return;
            }
        }
        self.extents.push(new);
    }
}
