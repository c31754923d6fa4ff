//! The records of each tree of an allocation group, checked, and the six kinds of trees.

use racker_formats::error::Result;

use super::super::fault::Fault;
use super::super::layout::{
    BNOBT_MAGIC, CNTBT_MAGIC, FINOBT_MAGIC, INOBT_MAGIC, REFCOUNTBT_MAGIC, RMAPBT_MAGIC, RawAllocRec,
    RawInobtRec, RawRefcountRec, RawRmapKey, RawRmapRec,
};
use super::btree::Shape;
use super::ground::Ground;
use super::owner::{Owner, UNWRITTEN_BIT};

/// A stretch of blocks of a group; never empty, its end is known to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::drivers::xfs) struct Run {
    pub(in crate::drivers::xfs) start: u32,
    pub(in crate::drivers::xfs) len: u32,
}

impl Run {
    /// The block behind the last one.
    pub(in crate::drivers::xfs) fn end(self) -> u32 {
        self.start.saturating_add(self.len)
    }

    /// The last block.
    pub(in crate::drivers::xfs) fn last(self) -> u32 {
        self.end().saturating_sub(1)
    }

    /// From `start` to before `end`, if there is anything between them.
    pub(in crate::drivers::xfs) fn between(start: u32, end: u32) -> Option<Self> {
        let len = end.checked_sub(start).filter(|l| *l > 0)?;
        Some(Self { start, len })
    }

    /// What both have in common.
    pub(in crate::drivers::xfs) fn intersect(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end().min(other.end()))
    }
}

macro_rules! alloc_parse {
    () => {
        type Record = Run;
        type RawRecord = RawAllocRec;
        type RawKey = RawAllocRec;

        fn parse(raw: &RawAllocRec, ground: &Ground) -> Result<Run> {
            let run = Run { start: raw.ar_startblock.get(), len: raw.ar_blockcount.get() };
            ground.check(run.start, run.len)?;
            Ok(run)
        }

        fn raw(run: &Run) -> RawAllocRec {
            RawAllocRec { ar_startblock: run.start.into(), ar_blockcount: run.len.into() }
        }
    };
}

/// Free space by place.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct ByPlace;

impl Shape for ByPlace {
    const NAME: &'static str = "bnobt";
    const MAGIC: u32 = BNOBT_MAGIC[1];
    const PLAIN_MAGIC: u32 = BNOBT_MAGIC[0];
    const RANGES: bool = false;
    /// The record itself; only its start orders it.
    type Key = PlaceKey;
    alloc_parse!();

    fn parse_key(raw: &RawAllocRec) -> PlaceKey {
        PlaceKey { start: raw.ar_startblock.get(), len: raw.ar_blockcount.get() }
    }

    fn raw_key(key: &PlaceKey) -> RawAllocRec {
        RawAllocRec { ar_startblock: key.start.into(), ar_blockcount: key.len.into() }
    }

    fn low(run: &Run) -> PlaceKey {
        PlaceKey { start: run.start, len: run.len }
    }

    fn high(run: &Run) -> PlaceKey {
        PlaceKey { start: run.last(), len: 0 }
    }

    fn follows(before: &Run, after: &Run) -> bool {
        // Neighbours would be one record.
        before.end() < after.start
    }
}

/// Key of the tree by place: as on disk it has the length too, which does not take part in the order.
#[derive(Clone, Copy, Debug, Eq)]
pub(in crate::drivers::xfs) struct PlaceKey {
    start: u32,
    len: u32,
}

impl PlaceKey {
    /// The key of a record that starts at `start`.
    pub(in crate::drivers::xfs) fn at(start: u32) -> Self {
        Self { start, len: 0 }
    }
}

impl PartialEq for PlaceKey {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start
    }
}

impl Ord for PlaceKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.start.cmp(&other.start)
    }
}

impl PartialOrd for PlaceKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Free space by length.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct ByLength;

impl Shape for ByLength {
    const NAME: &'static str = "cntbt";
    const MAGIC: u32 = CNTBT_MAGIC[1];
    const PLAIN_MAGIC: u32 = CNTBT_MAGIC[0];
    const RANGES: bool = false;
    /// Length, then start.
    type Key = (u32, u32);
    alloc_parse!();

    fn parse_key(raw: &RawAllocRec) -> (u32, u32) {
        (raw.ar_blockcount.get(), raw.ar_startblock.get())
    }

    fn raw_key((len, start): &(u32, u32)) -> RawAllocRec {
        RawAllocRec { ar_startblock: (*start).into(), ar_blockcount: (*len).into() }
    }

    fn low(run: &Run) -> (u32, u32) {
        (run.len, run.start)
    }

    fn high(run: &Run) -> (u32, u32) {
        (run.len, run.start)
    }

    fn follows(before: &Run, after: &Run) -> bool {
        (before.len, before.start) < (after.len, after.start)
    }
}

/// Sixty-four inodes in a row, some of which may be missing from a sparse chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drivers::xfs) struct Chunk {
    /// Number of the first one within the group.
    pub(in crate::drivers::xfs) first: u32,
    /// One bit for each four inodes that are not there.
    pub(in crate::drivers::xfs) holes: u16,
    /// Whether the record has a count of its inodes: only with sparse inodes.
    pub(in crate::drivers::xfs) counted: bool,
    /// Inodes that are there.
    pub(in crate::drivers::xfs) count: u8,
    /// How many of them are free.
    pub(in crate::drivers::xfs) free_count: u8,
    /// One bit for each free inode, and for each that is not there.
    pub(in crate::drivers::xfs) free: u64,
}

/// Inodes of a chunk.
pub(in crate::drivers::xfs) const CHUNK_INODES: u8 = 64;
/// Inodes for each bit of [`Chunk::holes`].
pub(in crate::drivers::xfs) const HOLE_INODES: u8 = 4;

impl Chunk {
    /// One bit for each inode that is there.
    pub(in crate::drivers::xfs) fn present(&self) -> u64 {
        let mut mask = 0u64;
        for bit in 0..16u32 {
            if self.holes.checked_shr(bit).unwrap_or(0) & 1 == 0 {
                mask |= 0xfu64.checked_shl(bit.saturating_mul(u32::from(HOLE_INODES))).unwrap_or(0);
            }
        }
        mask
    }

    fn read(raw: &RawInobtRec, ground: &Ground, what: &'static str) -> Result<Self> {
        use super::super::superblock::Incompat;
        let sparse = ground.volume.sb.incompat.contains(Incompat::SPINODES);
        let chunk = if sparse {
            Self {
                first: raw.ir_startino.get(),
                holes: raw.ir_holemask.get(),
                counted: true,
                count: raw.ir_count,
                free_count: raw.ir_freecount,
                free: raw.ir_free.get(),
            }
        } else {
            // Without sparse inodes the four bytes are one count.
            let wide = raw.ir_holemask.get() != 0 || raw.ir_count != 0;
            if wide {
                return Err(Fault::Structure { what, why: "more free inodes than a chunk has" }.into());
            }
            let (first, free) = (raw.ir_startino.get(), raw.ir_free.get());
            Self { first, holes: 0, counted: false, count: CHUNK_INODES, free_count: raw.ir_freecount, free }
        };
        let (present, free) = (chunk.present(), chunk.free);
        let good = u32::from(chunk.count) == present.count_ones()
            && u32::from(chunk.free_count) == (present & free).count_ones()
            && !present & !free == 0
            && chunk.first.checked_add(u32::from(CHUNK_INODES)).is_some();
        if !good {
            return Err(Fault::Structure { what, why: "a chunk's counts contradict its maps" }.into());
        }
        // Up to the last inode that is there.
        let inopblog = ground.volume.sb.inopblog;
        let last = chunk.first.saturating_add(63u32.saturating_sub(present.leading_zeros()));
        let [block, last] = [chunk.first, last].map(|number| number.checked_shr(inopblog).unwrap_or(0));
        ground.check(block, last.saturating_sub(block).saturating_add(1))?;
        Ok(chunk)
    }
}

macro_rules! inode_tree {
    ($(#[$doc:meta])* $name:ident, $text:literal, $magic:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(in crate::drivers::xfs) struct $name;

        impl Shape for $name {
            const NAME: &'static str = $text;
            const MAGIC: u32 = $magic[1];
            const PLAIN_MAGIC: u32 = $magic[0];
            const RANGES: bool = false;
            type Record = Chunk;
            type Key = u32;
            type RawRecord = RawInobtRec;
            type RawKey = zerocopy::big_endian::U32;

            fn parse(raw: &RawInobtRec, ground: &Ground) -> Result<Chunk> {
                Chunk::read(raw, ground, $text)
            }

            fn raw(chunk: &Chunk) -> RawInobtRec {
                raw_chunk(chunk)
            }

            fn parse_key(raw: &Self::RawKey) -> u32 {
                raw.get()
            }

            fn raw_key(key: &u32) -> Self::RawKey {
                (*key).into()
            }

            fn low(chunk: &Chunk) -> u32 {
                chunk.first
            }

            fn high(chunk: &Chunk) -> u32 {
                chunk.first.saturating_add(u32::from(CHUNK_INODES)).saturating_sub(1)
            }

            fn follows(before: &Chunk, after: &Chunk) -> bool {
                Self::high(before) < after.first
            }
        }
    };
}

fn raw_chunk(chunk: &Chunk) -> RawInobtRec {
    RawInobtRec {
        ir_startino: chunk.first.into(),
        ir_holemask: chunk.holes.into(),
        ir_count: if chunk.counted { chunk.count } else { 0 },
        ir_freecount: chunk.free_count,
        ir_free: chunk.free.into(),
    }
}

inode_tree!(
    /// All chunks of inodes.
    Inodes,
    "inobt",
    INOBT_MAGIC
);
inode_tree!(
    /// Chunks of which an inode is free.
    FreeInodes,
    "finobt",
    FINOBT_MAGIC
);

/// Who owns a stretch of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drivers::xfs) struct Mapped {
    pub(in crate::drivers::xfs) run: Run,
    pub(in crate::drivers::xfs) owner: Owner,
}

/// Key of the reverse map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::drivers::xfs) struct MapKey {
    pub(in crate::drivers::xfs) block: u32,
    pub(in crate::drivers::xfs) owner: u64,
    /// Offset and flags as on disk, but for the unwritten flag, which takes no part in the order.
    pub(in crate::drivers::xfs) offset: u64,
}

impl MapKey {
    /// Below all keys of `block`.
    pub(in crate::drivers::xfs) fn first(block: u32) -> Self {
        Self { block, owner: 0, offset: 0 }
    }

    /// Above all keys of `block`.
    pub(in crate::drivers::xfs) fn last(block: u32) -> Self {
        Self { block, owner: u64::MAX, offset: u64::MAX }
    }
}

/// Owners of blocks.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct Owners;

impl Shape for Owners {
    const NAME: &'static str = "rmapbt";
    const MAGIC: u32 = RMAPBT_MAGIC;
    const RANGES: bool = true;
    type Record = Mapped;
    type Key = MapKey;
    type RawRecord = RawRmapRec;
    type RawKey = RawRmapKey;

    fn parse(raw: &RawRmapRec, ground: &Ground) -> Result<Mapped> {
        let run = Run { start: raw.rm_startblock.get(), len: raw.rm_blockcount.get() };
        let end = u64::from(run.start).saturating_add(run.len.into());
        // The group's headers have an owner too.
        if run.len == 0 || end > u64::from(ground.blocks) {
            return Err(ground.fault(run.start, run.len));
        }
        Ok(Mapped { run, owner: Owner::parse(raw.rm_owner.get(), raw.rm_offset.get())? })
    }

    fn raw(map: &Mapped) -> RawRmapRec {
        RawRmapRec {
            rm_startblock: map.run.start.into(),
            rm_blockcount: map.run.len.into(),
            rm_owner: map.owner.number().into(),
            rm_offset: map.owner.raw_offset().into(),
        }
    }

    fn parse_key(raw: &RawRmapKey) -> MapKey {
        let offset = raw.rm_offset.get() & !UNWRITTEN_BIT;
        MapKey { block: raw.rm_startblock.get(), owner: raw.rm_owner.get(), offset }
    }

    fn raw_key(key: &MapKey) -> RawRmapKey {
        RawRmapKey {
            rm_startblock: key.block.into(),
            rm_owner: key.owner.into(),
            rm_offset: key.offset.into(),
        }
    }

    fn low(map: &Mapped) -> MapKey {
        let offset = map.owner.raw_offset() & !UNWRITTEN_BIT;
        MapKey { block: map.run.start, owner: map.owner.number(), offset }
    }

    fn high(map: &Mapped) -> MapKey {
        let more = u64::from(map.run.len.saturating_sub(1));
        let offset = map.owner.advanced(more).raw_offset() & !UNWRITTEN_BIT;
        MapKey { block: map.run.last(), owner: map.owner.number(), offset }
    }

    fn follows(before: &Mapped, after: &Mapped) -> bool {
        Self::low(before) < Self::low(after)
    }
}

/// How often blocks are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drivers::xfs) struct Counted {
    /// Copies in the making, which no file has yet, are counted apart: always once.
    pub(in crate::drivers::xfs) staging: bool,
    pub(in crate::drivers::xfs) run: Run,
    pub(in crate::drivers::xfs) count: u32,
}

/// The bit of `rc_startblock` that marks copies in the making.
const STAGING_BIT: u32 = 1 << 31;

/// Key of a stretch of blocks in the tree of counts.
pub(in crate::drivers::xfs) fn count_key(staging: bool, block: u32) -> u32 {
    if staging { block | STAGING_BIT } else { block }
}

/// Counts of shared blocks.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct Counts;

impl Shape for Counts {
    const NAME: &'static str = "refcountbt";
    const MAGIC: u32 = REFCOUNTBT_MAGIC;
    const RANGES: bool = false;
    type Record = Counted;
    type Key = u32;
    type RawRecord = RawRefcountRec;
    type RawKey = zerocopy::big_endian::U32;

    fn parse(raw: &RawRefcountRec, ground: &Ground) -> Result<Counted> {
        let start = raw.rc_startblock.get();
        let run = Run { start: start & !STAGING_BIT, len: raw.rc_blockcount.get() };
        ground.check(run.start, run.len)?;
        let (staging, count) = (start & STAGING_BIT != 0, raw.rc_refcount.get());
        if (count == 1) != staging || count == 0 {
            return Err(Fault::Structure { what: Self::NAME, why: "a count that cannot be" }.into());
        }
        Ok(Counted { staging, run, count })
    }

    fn raw(counted: &Counted) -> RawRefcountRec {
        RawRefcountRec {
            rc_startblock: count_key(counted.staging, counted.run.start).into(),
            rc_blockcount: counted.run.len.into(),
            rc_refcount: counted.count.into(),
        }
    }

    fn parse_key(raw: &Self::RawKey) -> u32 {
        raw.get()
    }

    fn raw_key(key: &u32) -> Self::RawKey {
        (*key).into()
    }

    fn low(counted: &Counted) -> u32 {
        count_key(counted.staging, counted.run.start)
    }

    fn high(counted: &Counted) -> u32 {
        count_key(counted.staging, counted.run.last())
    }

    fn follows(before: &Counted, after: &Counted) -> bool {
        Self::high(before) < Self::low(after)
    }
}
