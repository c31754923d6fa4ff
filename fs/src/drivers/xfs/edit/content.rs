//! Bytes written into a file at any place, cut off, or taken out of its middle.

use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part};

use crate::filesystem::{NodeKind, Time};

use super::super::bmap::Mapping;
use super::super::fault::Fault;
use super::super::inode::{DiFlags2, ForkKind, Inode};
use super::super::units::{FileBlock, InodeNo};
use super::Edit;
use super::alloc::Want;
use super::owner::Owner;
use super::pour::EXTENT_BLOCKS_MAX;
use super::records::Run;

/// The largest size of a file.
const SIZE_MAX: u64 = (1 << 63) - 1;
/// Pieces of this many bytes are probably not the last of their file.
const PIECE: usize = 64 << 10;
/// Blocks in a row that are looked for behind such a piece.
const AHEAD: u64 = 2048;
/// Blocks that the extent tree may take for a change in one place.
const TREE_BLOCKS: u64 = 16;
/// Bytes copied or zeroed at a time.
const WINDOW: u64 = 256 << 10;

/// A stretch of blocks of a file that are all alike.
#[derive(Clone, Copy, Debug)]
enum Stretch {
    /// From this block on, so many.
    Hole(u64, u64),
    /// Allocated, never written.
    Unwritten(Mapping),
    /// Written, and nobody else's.
    Own(Mapping),
    /// Used by others too.
    Shared(Mapping),
}

/// Bytes for a place in a file.
#[derive(Clone, Copy, Debug)]
struct Write<'a> {
    at: u64,
    data: &'a [u8],
}

impl<'a> Write<'a> {
    fn end(&self) -> u64 {
        self.at.saturating_add(len64(self.data.len()))
    }

    /// What of it lies between two bytes of the file.
    fn cut(&self, from: u64, to: u64) -> Result<Self> {
        let (from, to) = (from.max(self.at), to.min(self.end()));
        let skip = index(from.saturating_sub(self.at))?;
        let data = part(self.data, skip, index(to.saturating_sub(from))?, "content")?;
        Ok(Self { at: from, data })
    }
}

impl Edit {
    /// Reads a file whose content may change.
    fn changeable(&self, ino: InodeNo) -> Result<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            NodeKind::File => {}
            NodeKind::Dir => return Err(Fault::IsDirectory { ino: ino.0 }.into()),
            _ => return Err(Fault::NotA { ino: ino.0, what: "a regular file" }.into()),
        }
        self.removable(&inode)?;
        Ok(inode)
    }

    /// Writes bytes to a file, which grows if they reach past its end.
    pub(in super::super) fn write(&mut self, ino: InodeNo, at: u64, data: &[u8], now: Time) -> Result<()> {
        let inode = self.changeable(ino)?;
        let write = Write { at, data };
        if write.end() > SIZE_MAX {
            return Err(Fault::Unsupported { what: "so large a file" }.into());
        }
        let all = self.stretches(&inode, write)?;
        let new = all.iter().map(|s| s.new_blocks()).fold(0, u64::saturating_add);
        self.room_for_extents(&inode, new)?;
        let tree = new.checked_div(64).unwrap_or(0).saturating_add(TREE_BLOCKS);
        self.reserve(new.saturating_add(tree))?;
        self.run(|edit| {
            let mut inode = inode;
            let all = if at > inode.size {
                edit.clear_behind(&mut inode)?;
                edit.stretches(&inode, write)?
            } else {
                all
            };
            for stretch in all {
                edit.write_stretch(&mut inode, stretch, write)?;
            }
            edit.finish_content(inode, Some(write.end()), now)
        })
        .within(|| format!("writing to inode {}", ino.0))
    }

    /// Gives a file another size.
    pub(in super::super) fn truncate(&mut self, ino: InodeNo, size: u64, now: Time) -> Result<()> {
        let inode = self.changeable(ino)?;
        if size > SIZE_MAX {
            return Err(Fault::Unsupported { what: "so large a file" }.into());
        }
        if size > inode.size {
            self.reserve(TREE_BLOCKS)?;
        }
        self.run(|edit| {
            let mut inode = inode;
            if size > inode.size {
                edit.clear_behind(&mut inode)?;
            } else {
                edit.budget = u64::MAX;
                edit.cut_off(&mut inode, size)?;
            }
            inode.core()?.di_size = size.into();
            edit.finish_content(inode, None, now)
        })
        .within(|| format!("truncating inode {}", ino.0))
    }

    /// Makes a stretch of a file read as zeroes; whole blocks of it become a hole.
    pub(in super::super) fn punch(&mut self, ino: InodeNo, span: Span, now: Time) -> Result<()> {
        let inode = self.changeable(ino)?;
        self.room_for_extents(&inode, 1)?;
        self.reserve(TREE_BLOCKS)?;
        self.run(|edit| {
            let mut inode = inode;
            let block = edit.volume.sb.block_size;
            let (from, to) = (block.count(span.start()), block.split(span.end()).0);
            // Nothing is seen behind the end.
            let to = if span.end() >= inode.size { block.count(span.end()) } else { to };
            let bytes = |n: u64| block.start_of(n).unwrap_or(u64::MAX);
            if from >= to {
                edit.zero(&mut inode, span.start(), span.end().min(bytes(from)))?;
                edit.zero(&mut inode, span.start().max(bytes(from)), span.end())?;
            } else {
                edit.zero(&mut inode, span.start(), bytes(from))?;
                edit.release_range(&mut inode, ForkKind::Data, from, to)?;
                edit.zero(&mut inode, bytes(to), span.end())?;
            }
            edit.finish_content(inode, None, now)
        })
        .within(|| format!("punching a hole into inode {}", ino.0))
    }

    /// Writes an inode whose content changed.
    fn finish_content(&mut self, mut inode: Inode, end: Option<u64>, now: Time) -> Result<()> {
        inode.touch(&self.volume, true, now)?;
        if let Some(end) = end {
            let core = inode.core()?;
            core.di_size = core.di_size.get().max(end).into();
        }
        inode.store(&self.volume).map(drop)
    }

    /// Refuses what would give a file more extents than its inode can count.
    fn room_for_extents(&self, inode: &Inode, more: u64) -> Result<()> {
        let most = super::fork::extents_max(ForkKind::Data, super::attrs::big_counts(inode));
        if inode.data.extents.saturating_add(more).saturating_add(2) > most {
            return Err(Fault::Unsupported { what: "a file in so many pieces" }.into());
        }
        Ok(())
    }

    /// Frees what a file has behind `size`.
    pub(super) fn cut_off(&mut self, inode: &mut Inode, size: u64) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let block = volume.sb.block_size;
        if size == 0 {
            let blocks = self.release_fork(inode, ForkKind::Data)?;
            inode.put_nothing()?;
            inode.count_blocks(0, blocks)?;
            let core = inode.core()?;
            core.di_flags2 = (core.di_flags2.get() & !DiFlags2::REFLINK.bits()).into();
            return inode.reparse(&volume);
        }
        self.release_range(inode, ForkKind::Data, block.count(size), u64::MAX)?;
        // Whoever makes it larger again clears the rest of a shared block.
        let (last, within) = block.split(size);
        if within > 0
            && let Some(Stretch::Own(_)) =
                self.stretches_between(inode, last, last.saturating_add(1))?.first()
        {
            let end = block.start_of(last.saturating_add(1)).unwrap_or(u64::MAX);
            self.zero(inode, size, end)?;
        }
        Ok(())
    }

    /// Makes what lies behind the end of a file, in its last block and in others, read as zeroes.
    fn clear_behind(&mut self, inode: &mut Inode) -> Result<()> {
        let block = self.volume.sb.block_size;
        let past = block.count(inode.size);
        self.release_range(inode, ForkKind::Data, past, u64::MAX)?;
        self.zero(inode, inode.size, block.start_of(past).unwrap_or(u64::MAX))
    }

    /// Zeroes some bytes within one block.
    fn zero(&mut self, inode: &mut Inode, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let (block, _) = self.volume.sb.block_size.split(from);
        let zeroes = vec![0; index(to.saturating_sub(from))?];
        let write = Write { at: from, data: &zeroes };
        for stretch in self.stretches_between(inode, block, block.saturating_add(1))? {
            if let Stretch::Own(_) | Stretch::Shared(_) = stretch {
                self.write_stretch(inode, stretch, write)?;
            }
        }
        Ok(())
    }

    fn stretches(&mut self, inode: &Inode, write: Write<'_>) -> Result<Vec<Stretch>> {
        let block = self.volume.sb.block_size;
        self.stretches_between(inode, block.split(write.at).0, block.count(write.end()))
    }

    /// What a file has from block `from` to before `to`.
    fn stretches_between(&mut self, inode: &Inode, from: u64, to: u64) -> Result<Vec<Stretch>> {
        let volume = Arc::clone(&self.volume);
        let (mut all, mut next) = (Vec::new(), from);
        for mapping in volume.mappings(inode, ForkKind::Data, FileBlock(from))? {
            let mapping = mapping?;
            if mapping.at.0 >= to {
                break;
            }
            let part = mapping.part(from, to);
            if part.at.0 > next {
                all.push(Stretch::Hole(next, part.at.0.saturating_sub(next)));
            }
            next = part.end().0;
            self.confirm(inode, &part)?;
            if part.unwritten {
                all.push(Stretch::Unwritten(part));
            } else {
                self.part_shared(inode, part, &mut all)?;
            }
        }
        if next < to {
            all.push(Stretch::Hole(next, to.saturating_sub(next)));
        }
        Ok(all)
    }

    /// Checks that blocks that a file says it has are not free, nor anybody else's.
    fn confirm(&mut self, inode: &Inode, mapping: &Mapping) -> Result<()> {
        let (ag, start) = self.volume.sb.split(mapping.start)?;
        let run = Run { start: start.0, len: u32::try_from(mapping.len).unwrap_or(u32::MAX) };
        let owner = Owner::content(inode.ino, ForkKind::Data, mapping.at.0, mapping.unwritten);
        self.group(ag)?.space.confirm(run, owner).within(|| format!("blocks of inode {}", inode.ino.0))
    }

    /// Parts written blocks into those that are shared and those that are not.
    fn part_shared(&mut self, inode: &Inode, mapping: Mapping, all: &mut Vec<Stretch>) -> Result<()> {
        let (ag, start) = self.volume.sb.split(mapping.start)?;
        let run = Run { start: start.0, len: u32::try_from(mapping.len).unwrap_or(u32::MAX) };
        if !inode.flags2.contains(DiFlags2::REFLINK) {
            self.group(ag)?.check_own(run)?;
            all.push(Stretch::Own(mapping));
            return Ok(());
        }
        let shared = match self.group(ag)?.sharing.as_mut() {
            Some(sharing) => sharing.shared_parts(run)?,
            None => Vec::new(),
        };
        let on = |block: u32| mapping.at.0.saturating_add(block.saturating_sub(run.start).into());
        let mut next = run.start;
        for part in shared {
            if part.start > next {
                all.push(Stretch::Own(mapping.part(on(next), on(part.start))));
            }
            all.push(Stretch::Shared(mapping.part(on(part.start), on(part.end()))));
            next = part.end();
        }
        if next < run.end() {
            all.push(Stretch::Own(mapping.part(on(next), on(run.end()))));
        }
        Ok(())
    }

    fn write_stretch(&mut self, inode: &mut Inode, stretch: Stretch, write: Write<'_>) -> Result<()> {
        let ino = inode.ino;
        match stretch {
            Stretch::Own(mapping) => {
                let (from, to) = self.bytes_between(&mapping)?;
                let write = write.cut(from, to)?;
                let place = self.volume.sb.span(mapping.start, mapping.len)?.start();
                let at = place.saturating_add(write.at.saturating_sub(from));
                self.fresh.write(&self.volume.disk, at, write.data)
            }
            Stretch::Unwritten(part) => {
                self.fill(&part, write, None)?;
                let (ag, start) = self.volume.sb.split(part.start)?;
                let run = Run { start: start.0, len: u32::try_from(part.len).unwrap_or(u32::MAX) };
                let owner = |unwritten| Owner::content(ino, ForkKind::Data, part.at.0, unwritten);
                let space = &mut self.group(ag)?.space;
                space.top_up()?;
                space.unmap(run, owner(true))?;
                space.map(run, owner(false))?;
                self.replace_part(inode, &part, Mapping { unwritten: false, ..part })
            }
            Stretch::Hole(at, len) => {
                let mut next = at;
                while let Some(left) = at.saturating_add(len).checked_sub(next).filter(|l| *l > 0) {
                    let new = self.new_blocks(inode, next, left, write)?;
                    self.fill(&new, write, None)?;
                    inode.count_blocks(new.len, 0)?;
                    self.map_add(inode, ForkKind::Data, new)?;
                    next = new.end().0;
                    self.breathe()?;
                }
                Ok(())
            }
            Stretch::Shared(old) => {
                let mut next = old.at.0;
                while let Some(left) = old.end().0.checked_sub(next).filter(|l| *l > 0) {
                    let new = self.new_blocks(inode, next, left, write)?;
                    let part = old.part(new.at.0, new.end().0);
                    self.fill(&new, write, Some(&part))?;
                    self.release_mapping(ino, ForkKind::Data, &part, true)?;
                    self.replace_part(inode, &part, new)?;
                    next = new.end().0;
                    self.breathe()?;
                }
                Ok(())
            }
        }
    }

    /// Puts a mapping in the place of another one of the same length.
    fn replace_part(&mut self, inode: &mut Inode, part: &Mapping, new: Mapping) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let whole = volume.mapping_at(inode, ForkKind::Data, part.at)?;
        let why = "an extent is not where it was found";
        let whole = whole.filter(|w| w.at <= part.at && w.end() >= part.end());
        let whole = whole.ok_or(Fault::Fork { ino: inode.ino.0, fork: "data", why })?;
        self.map_cut(inode, ForkKind::Data, &whole, part)?;
        self.map_add(inode, ForkKind::Data, new)
    }

    /// Allocates up to `left` blocks for block `at` of a file on, behind those before it if possible.
    fn new_blocks(&mut self, inode: &Inode, at: u64, left: u64, write: Write<'_>) -> Result<Mapping> {
        let volume = Arc::clone(&self.volume);
        let sb = &volume.sb;
        let (mut near, _, _) = sb.split_inode(inode.ino)?;
        let mut behind = None;
        if let Some(before) = at.checked_sub(1)
            && let Some(last) = volume.mapping_at(inode, ForkKind::Data, FileBlock(before))?
            && last.at.0 <= before
        {
            let on = at.saturating_sub(last.at.0);
            let (ag, start) = sb.split(last.start)?;
            near = ag;
            behind = u32::try_from(on).ok().and_then(|on| start.0.checked_add(on));
        }
        let more = write.end() >= inode.size && write.data.len() >= PIECE;
        let whole = if more { left.max(AHEAD) } else { left };
        let take = u32::try_from(left.min(EXTENT_BLOCKS_MAX)).unwrap_or(u32::MAX);
        let owner = Owner::content(inode.ino, ForkKind::Data, at, false);
        let found = self.allocate(Want { whole, take, near, behind }, owner)?;
        let start = self.fs_block(found)?;
        Ok(Mapping { at: FileBlock(at), start, len: found.run.len.into(), unwritten: false })
    }

    /// The bytes of a file that a mapping is for.
    fn bytes_between(&self, mapping: &Mapping) -> Result<(u64, u64)> {
        let bytes = |block: u64| self.volume.sb.block_size.start_of(block);
        let why = "beyond the end of all files";
        let span = bytes(mapping.at.0).zip(bytes(mapping.end().0));
        Ok(span.ok_or(Fault::Field { what: "br_startoff", found: mapping.at.0, why })?)
    }

    /// Writes new blocks: what is written now, and around it what `old` has there, or zeroes.
    fn fill(&self, new: &Mapping, write: Write<'_>, old: Option<&Mapping>) -> Result<()> {
        let (from, to) = self.bytes_between(new)?;
        let place = self.volume.sb.span(new.start, new.len)?.start();
        let on = |at: u64| place.saturating_add(at.saturating_sub(from));
        let write = write.cut(from, to)?;
        for (start, end) in [(from, write.at), (write.end(), to)] {
            let mut next = start;
            while next < end {
                let len = end.saturating_sub(next).min(WINDOW);
                let mut bytes = vec![0; index(len)?];
                if let Some(old) = old {
                    let there = self.volume.sb.span(old.start, old.len)?.start();
                    self.volume.disk.read_at(there.saturating_add(next.saturating_sub(from)), &mut bytes)?;
                }
                self.fresh.write(&self.volume.disk, on(next), &bytes)?;
                next = next.saturating_add(len);
            }
        }
        self.fresh.write(&self.volume.disk, on(write.at), write.data)
    }
}

impl Stretch {
    /// Blocks to be allocated when it is written.
    fn new_blocks(&self) -> u64 {
        match self {
            Self::Hole(_, len) => *len,
            Self::Shared(mapping) => mapping.len,
            Self::Unwritten(_) | Self::Own(_) => 0,
        }
    }
}
