//! Inodes allocated and freed. A group without a free inode gets a new chunk of 64; where there is no room for a
//! whole one, a sparse one.

use racker_formats::error::{Result, Within};
use zerocopy::{FromZeros, IntoBytes};

use super::super::crc;
use super::super::fault::Fault;
use super::super::inode::CRC_AT;
use super::super::layout::{DINODE_MAGIC, RawDinode};
use super::super::superblock::{Incompat, RoCompat};
use super::super::units::{AgBlock, AgNo, InodeNo};
use super::Edit;
use super::btree::{Pool, Tree};
use super::ground::Ground;
use super::group::Group;
use super::inodes::InodeMap;
use super::owner::Owner;
use super::records::{CHUNK_INODES, Chunk, FreeInodes, HOLE_INODES, Run};
use super::space::Space;

/// `di_next_unlinked` of an inode on no list.
pub(super) const NULL_AG_INODE: u32 = u32::MAX;

/// The group's free space as the place where its inode trees get their blocks.
struct InodeTreePool<'a> {
    space: &'a mut Space,
    blocks: &'a mut u32,
}

impl Pool for InodeTreePool<'_> {
    fn take(&mut self) -> Result<u32> {
        *self.blocks = self.blocks.saturating_add(1);
        self.space.take_block(Owner::INODE_TREE)
    }

    fn give(&mut self, block: u32) -> Result<()> {
        *self.blocks = self.blocks.saturating_sub(1);
        self.space.release(Run { start: block, len: 1 }, Owner::INODE_TREE)
    }
}

fn contradiction<T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: "inode trees", why }.into())
}

/// The bit of inode `place` of a chunk.
fn bit(place: u32) -> u64 {
    1u64.checked_shl(place).unwrap_or(0)
}

impl InodeMap {
    /// A chunk with a free inode: the one of inode `near`, or else the next or the one before with one.
    fn chunk_with_free(&mut self, near: u32) -> Result<Option<Chunk>> {
        if self.agi.raw.agi_freecount.get() == 0 {
            return Ok(None);
        }
        let found = match self.free.as_mut() {
            Some(free) => match free.at_or_before(near)? {
                Some(chunk) => Some(chunk),
                None => free.after(near)?,
            },
            None => match self.at_hand()? {
                Some(chunk) => Some(chunk),
                None => self.search(near)?,
            },
        };
        let Some(chunk) = found.filter(|c| c.free_count > 0) else {
            return contradiction("the group counts free inodes, its tree has none");
        };
        // With a tree of free inodes both must agree.
        if self.all.at(chunk.first)? != Some(chunk) {
            return contradiction("the tree of free inodes contradicts that of all inodes");
        }
        Ok(Some(chunk))
    }

    /// A chunk with a free inode among those that changed last.
    fn at_hand(&mut self) -> Result<Option<Chunk>> {
        for first in [self.recent, self.agi.raw.agi_newino.get()] {
            if let Some(chunk) = self.all.at(first)?.filter(|c| c.free_count > 0) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// The same by a walk over all chunks, for want of a tree of those with free inodes.
    fn search(&mut self, near: u32) -> Result<Option<Chunk>> {
        let mut before = self.all.at_or_before(near)?;
        let mut after = self.all.after(near)?;
        while before.is_some() || after.is_some() {
            for chunk in [before, after].into_iter().flatten() {
                if chunk.free_count > 0 {
                    return Ok(Some(chunk));
                }
            }
            before = match before {
                Some(chunk) => self.all.before(chunk.first)?,
                None => None,
            };
            after = match after {
                Some(chunk) => self.all.after(chunk.first)?,
                None => None,
            };
        }
        Ok(None)
    }

    /// Puts `new` in the place of the record `old`, or adds it, in both trees.
    fn put(&mut self, old: Option<Chunk>, new: Chunk, space: &mut Space) -> Result<()> {
        let (mut all, mut free) = (self.agi.raw.agi_iblocks.get(), self.free_tree_blocks()?);
        match old {
            Some(old) => self.all.replace(&old, new)?,
            None => self.all.insert(new, &mut InodeTreePool { space, blocks: &mut all })?,
        }
        let held = old.filter(|c| c.free_count > 0);
        if let Some(tree) = self.free.as_mut() {
            let pool = &mut InodeTreePool { space, blocks: &mut free };
            change_free(tree, held, new, pool)?;
        }
        self.recent = new.first;
        let was = old.map_or((0, 0), |c| (c.count, c.free_count));
        self.recount(was, (new.count, new.free_count), (all, free))
    }

    /// Takes the record `old` out of both trees.
    fn drop_record(&mut self, old: Chunk, space: &mut Space) -> Result<()> {
        let (mut all, mut free) = (self.agi.raw.agi_iblocks.get(), self.free_tree_blocks()?);
        self.all.remove(&old, &mut InodeTreePool { space, blocks: &mut all })?;
        if let Some(tree) = self.free.as_mut().filter(|_| old.free_count > 0) {
            tree.remove(&old, &mut InodeTreePool { space, blocks: &mut free })?;
        }
        self.recount((old.count, old.free_count), (0, 0), (all, free))
    }

    /// Inodes and free ones of a chunk were `was` and are `now`; the trees have so many blocks.
    fn recount(&mut self, was: (u8, u8), now: (u8, u8), (all, free): (u32, u32)) -> Result<()> {
        if self.ground.volume.sb.ro_compat.contains(RoCompat::INOBTCNT) {
            self.agi.raw.agi_iblocks = all.into();
            self.agi.raw.agi_fblocks = free.into();
        }
        self.set_free_tree_blocks(free);
        let change = |field: u32, was: u8, now: u8| {
            field.checked_add(now.into()).and_then(|f| f.checked_sub(was.into()))
        };
        let raw = &mut self.agi.raw;
        let count = change(raw.agi_count.get(), was.0, now.0);
        let free = change(raw.agi_freecount.get(), was.1, now.1);
        let (Some(count), Some(free)) = (count, free) else {
            return contradiction("the group counts fewer inodes than its trees have");
        };
        raw.agi_count = count.into();
        raw.agi_freecount = free.into();
        self.dirty = true;
        Ok(())
    }
}

/// The tree of free inodes has the chunk as long as one of its inodes is free.
fn change_free(
    tree: &mut Tree<FreeInodes>,
    held: Option<Chunk>,
    new: Chunk,
    pool: &mut dyn Pool,
) -> Result<()> {
    match (held, new.free_count > 0) {
        (Some(held), true) => tree.replace(&held, new),
        (Some(held), false) => tree.remove(&held, pool),
        (None, true) => tree.insert(new, pool),
        (None, false) => Ok(()),
    }
}

impl Group {
    /// Marks a free inode near `near` as used; none if there is none.
    fn take_inode(&mut self, near: u32) -> Result<Option<u32>> {
        let Some(chunk) = self.inodes.chunk_with_free(near)? else { return Ok(None) };
        let place = (chunk.free & chunk.present()).trailing_zeros();
        let number = chunk.first.saturating_add(place);
        let free_count = chunk.free_count.saturating_sub(1);
        let new = Chunk { free: chunk.free & !bit(place), free_count, ..chunk };
        self.inodes.put(Some(chunk), new, &mut self.space)?;
        Ok(Some(number))
    }

    /// Marks a used inode as free. A chunk without any in use goes, as far as no block has inodes of two chunks.
    /// Returns the chunk that is gone.
    fn give_inode(&mut self, number: u32) -> Result<Option<Chunk>> {
        let found = self.inodes.all.at_or_before(number)?;
        let place = found.and_then(|c| number.checked_sub(c.first)).filter(|p| *p < u32::from(CHUNK_INODES));
        let (Some(chunk), Some(place)) = (found, place) else {
            return contradiction("an inode in use is in no chunk");
        };
        if chunk.free & bit(place) != 0 || chunk.present() & bit(place) == 0 {
            return contradiction("an inode to be freed is free already");
        }
        let free_count = chunk.free_count.saturating_add(1);
        let new = Chunk { free: chunk.free | bit(place), free_count, ..chunk };
        let per_block = 1u32.checked_shl(self.space.ground.volume.sb.inopblog).unwrap_or(u32::MAX);
        if new.free != u64::MAX || per_block > CHUNK_INODES.into() {
            return self.inodes.put(Some(chunk), new, &mut self.space).map(|()| None);
        }
        self.inodes.drop_record(chunk, &mut self.space)?;
        let mut place = 0;
        while place < u32::from(CHUNK_INODES) {
            let first = chunk.first.saturating_add(place);
            place = place.saturating_add(per_block);
            if chunk.present() & bit(place.saturating_sub(1)) != 0 {
                let start = first.checked_shr(self.space.ground.volume.sb.inopblog).unwrap_or(0);
                self.space.release(Run { start, len: 1 }, Owner::INODE_CHUNK)?;
            }
        }
        Ok(Some(chunk))
    }

    /// Allocates a chunk of at most `most` blocks and writes its inodes. Returns how many there are: none without
    /// room for any.
    fn add_chunk(&mut self, most: u32) -> Result<u32> {
        let ground = self.space.ground.clone();
        let sb = &ground.volume.sb;
        self.space.top_up()?;
        let inodes = 1u32.checked_shl(sb.inopblog).unwrap_or(u32::MAX).max(u32::from(CHUNK_INODES));
        let whole = inodes.checked_shr(sb.inopblog).unwrap_or(1).max(1);
        let align = sb.inode_align.max(1);
        // Room for the trees to be split.
        let spare = self.inodes.all.levels().saturating_mul(2).saturating_add(2);
        let available = self.available()?.min(most).saturating_sub(spare);
        if available >= whole
            && let Some(run) = self.space.aligned(whole, align, None)?
        {
            self.write_chunk(run)?;
            let first = run.start.checked_shl(sb.inopblog).unwrap_or(u32::MAX);
            let counted = sb.incompat.contains(Incompat::SPINODES);
            for i in 0..inodes.checked_div(CHUNK_INODES.into()).unwrap_or(1) {
                let first = first.saturating_add(i.saturating_mul(CHUNK_INODES.into()));
                let (count, free_count) = (CHUNK_INODES, CHUNK_INODES);
                let chunk = Chunk { first, holes: 0, counted, count, free_count, free: u64::MAX };
                self.inodes.put(None, chunk, &mut self.space)?;
            }
            self.inodes.agi.raw.agi_newino = first.into();
            return Ok(inodes);
        }
        let part = sb.sparse_align;
        let sparse = sb.incompat.contains(Incompat::SPINODES) && part > 0 && part < whole;
        if !sparse || available < part || sb.inode_align != whole {
            return Ok(0);
        }
        // A sparse chunk stands where a whole one could: neither in the first place nor across the group's end.
        let end = ground.blocks.saturating_sub(ground.blocks.checked_rem(align).unwrap_or(0));
        let Some(limits) = Run::between(align, end) else { return Ok(0) };
        match self.space.aligned(part, part, Some(limits))? {
            Some(run) => self.add_sparse(run, whole),
            None => Ok(0),
        }
    }

    /// Makes `run` a part of the chunk of `whole` blocks that it lies in.
    fn add_sparse(&mut self, run: Run, whole: u32) -> Result<u32> {
        let inopblog = self.space.ground.volume.sb.inopblog;
        self.write_chunk(run)?;
        let skip = run.start.checked_rem(whole).unwrap_or(0);
        let first = run.start.saturating_sub(skip).checked_shl(inopblog).unwrap_or(u32::MAX);
        let inodes = run.len.checked_shl(inopblog).unwrap_or(u32::MAX);
        let per_bit = u32::from(HOLE_INODES);
        let bits = inodes.checked_div(per_bit).unwrap_or(0);
        let shift = skip.checked_shl(inopblog).unwrap_or(0).checked_div(per_bit).unwrap_or(0);
        let mask = 1u32.checked_shl(bits).unwrap_or(0).saturating_sub(1).checked_shl(shift).unwrap_or(0);
        let Ok(mask) = u16::try_from(mask) else { return contradiction("a sparse chunk is too large") };
        let old = self.inodes.all.at(first)?;
        if old.is_some_and(|c| c.holes & mask != mask) {
            return contradiction("a chunk has inodes in free blocks");
        }
        let more = u8::try_from(inodes).unwrap_or(CHUNK_INODES);
        let none = Chunk { first, holes: u16::MAX, counted: true, count: 0, free_count: 0, free: u64::MAX };
        let base = old.unwrap_or(none);
        let new = Chunk {
            holes: base.holes & !mask,
            count: base.count.saturating_add(more),
            free_count: base.free_count.saturating_add(more),
            ..base
        };
        self.inodes.put(old, new, &mut self.space)?;
        self.inodes.agi.raw.agi_newino = first.into();
        Ok(inodes)
    }

    /// Allocates `run` and writes free inodes into it.
    fn write_chunk(&mut self, run: Run) -> Result<()> {
        self.space.allocate(run, Owner::INODE_CHUNK)?;
        let ground = &self.space.ground;
        let sb = &ground.volume.sb;
        let span = sb.ag_span(ground.ag, AgBlock(run.start), run.len.into())?;
        let size = racker_formats::wire::index(sb.inode_size.bytes())?;
        let mut bytes = vec![0; racker_formats::wire::index(span.len())?];
        let first = run.start.checked_shl(sb.inopblog).unwrap_or(u32::MAX);
        for (i, inode) in bytes.chunks_exact_mut(size).enumerate() {
            let number = first.saturating_add(u32::try_from(i).unwrap_or(u32::MAX));
            let raw = blank(ground, number)?;
            racker_formats::wire::part_mut(inode, 0, size_of::<RawDinode>(), "inode")?
                .copy_from_slice(raw.as_bytes());
            crc::stamp(inode, CRC_AT)?;
        }
        ground.volume.disk.write_at(span.start(), &bytes)
    }
}

/// A free inode as the kernel writes it. Its generation must not be that of an earlier inode in the same place, so
/// it depends on how much was ever written to the filesystem.
fn blank(ground: &Ground, number: u32) -> Result<RawDinode> {
    let sb = &ground.volume.sb;
    let seed =
        [sb.uuid.as_slice(), &sb.lsn().0.to_be_bytes(), &sb.raw.sb_fdblocks.get().to_be_bytes()].concat();
    let mut raw = RawDinode::new_zeroed();
    raw.di_magic = DINODE_MAGIC.into();
    raw.di_version = 3;
    raw.di_gen = crc32c::crc32c(&seed).into();
    raw.di_next_unlinked = NULL_AG_INODE.into();
    raw.di_ino = sb.inode(ground.ag, number)?.0.into();
    raw.di_uuid = sb.meta_uuid;
    Ok(raw)
}

impl Space {
    /// A free run of `len` blocks that starts at a multiple of `align`, within `limits` if there are any.
    pub(super) fn aligned(&mut self, len: u32, align: u32, limits: Option<Run>) -> Result<Option<Run>> {
        let fit = |run: Run| {
            let run = limits.map_or(Some(run), |l| run.intersect(l))?;
            let start = run.start.checked_next_multiple_of(align)?;
            (start.checked_add(len)? <= run.end()).then_some(Run { start, len })
        };
        // One this long fits wherever it starts; shorter ones have to be tried.
        let sure = len.saturating_add(align).saturating_sub(1);
        let mut next = self.free_by_length(if limits.is_none() { sure } else { len })?;
        if next.is_none() {
            next = self.free_by_length(len)?;
        }
        while let Some(run) = next {
            if let Some(found) = fit(run) {
                return Ok(Some(found));
            }
            next = self.next_by_length(run)?;
        }
        Ok(None)
    }
}

impl Edit {
    /// Allocates an inode, in group `near` if it has room. Returns its number and the generation that is new for it.
    pub(super) fn take_inode(&mut self, near: InodeNo) -> Result<(InodeNo, u32)> {
        let (first, number) = self.volume.sb.ag_inode(near)?;
        let count = self.volume.sb.ag_count;
        let order = || (first.0..count).chain(0..first.0.min(count));
        for grow in [false, true] {
            for ag in order() {
                let near = if ag == first.0 { number } else { 0 };
                let found = self
                    .take_in_group(AgNo(ag), near, grow || ag == first.0)
                    .within(|| format!("inodes of group {ag}"))?;
                if let Some(ino) = found {
                    return Ok((ino, self.generation(ino)?));
                }
            }
        }
        Err(Fault::NoSpace.into())
    }

    fn take_in_group(&mut self, ag: AgNo, near: u32, grow: bool) -> Result<Option<InodeNo>> {
        let mut found = self.group(ag)?.take_inode(near)?;
        if found.is_none() && grow && self.may_have_more_inodes() {
            let most = u32::try_from(self.budget).unwrap_or(u32::MAX);
            let added = u64::from(self.group(ag)?.add_chunk(most)?);
            self.budget = self.budget.saturating_sub(added >> self.volume.sb.inopblog);
            self.totals.inodes = self.totals.inodes.saturating_add(added);
            self.totals.free_inodes = self.totals.free_inodes.saturating_add(added);
            if added > 0 {
                found = self.group(ag)?.take_inode(near)?;
            }
        }
        let Some(number) = found else { return Ok(None) };
        let Some(free) = self.totals.free_inodes.checked_sub(1) else {
            return contradiction("the superblock counts no free inode");
        };
        self.totals.free_inodes = free;
        Ok(Some(self.volume.sb.inode(ag, number)?))
    }

    /// Whether the part of the filesystem that inodes may take is not used up.
    fn may_have_more_inodes(&self) -> bool {
        let sb = &self.volume.sb;
        let percent = u64::from(sb.raw.sb_imax_pct);
        let blocks = sb.blocks.saturating_mul(percent).checked_div(100).unwrap_or(0);
        let most = blocks.checked_shl(sb.inopblog).unwrap_or(u64::MAX);
        percent == 0 || self.totals.inodes.saturating_add(CHUNK_INODES.into()) <= most
    }

    /// The generation for the next use of a free inode.
    fn generation(&self, ino: InodeNo) -> Result<u32> {
        let sb = &self.volume.sb;
        let size = sb.inode_size.bytes();
        let bytes =
            racker_formats::wire::bytes(&self.volume.disk, sb.inode_offset(ino)?, size, size, "inode")?;
        let raw: RawDinode = racker_formats::wire::take(&bytes, 0, "inode")?;
        crc::check(&bytes, CRC_AT, "inode")?;
        if raw.di_magic.get() != DINODE_MAGIC || raw.di_mode.get() != 0 || raw.di_ino.get() != ino.0 {
            return contradiction("a free inode is in use");
        }
        Ok(raw.di_gen.get().wrapping_add(1))
    }

    /// Frees an inode that has no blocks any more.
    pub(super) fn give_inode(&mut self, ino: InodeNo) -> Result<()> {
        let (ag, number) = self.volume.sb.ag_inode(ino)?;
        let gone = self.group(ag)?.give_inode(number).within(|| format!("inodes of group {}", ag.0))?;
        // Of a chunk that goes, this inode was the only one not counted as free.
        let (count, free) = gone.map_or((0, 0), |c| (c.count, c.free_count));
        let inodes = self.totals.inodes.checked_sub(count.into());
        let more = u64::from(gone.is_none());
        let free = self.totals.free_inodes.saturating_add(more).checked_sub(free.into());
        let (Some(inodes), Some(free)) = (inodes, free) else {
            return contradiction("the superblock counts fewer inodes than its groups have");
        };
        (self.totals.inodes, self.totals.free_inodes) = (inodes, free);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_a_chunk_are_in_units_of_four() {
        let chunk =
            Chunk { first: 64, holes: 0xff00, counted: true, count: 32, free_count: 32, free: u64::MAX };
        assert_eq!(chunk.present(), u64::from(u32::MAX));
    }
}
