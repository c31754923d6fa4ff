//! One block of a tree: bytes to checked entries and back.

use std::mem::size_of;

use racker_formats::error::Result;
use racker_formats::wire::{part, part_mut, take};
use zerocopy::{FromBytes, IntoBytes};

use super::super::super::described::SHORT_SELF;
use super::super::super::fault::Fault;
use super::super::super::layout::{RawBtreeHead, RawShortBlock};
use super::super::super::units::{Lsn, NULL_AG_BLOCK};
use super::super::super::volume::BlockKind;
use super::super::ground::Ground;
use super::Shape;

const HEAD: usize = size_of::<RawShortBlock>();
/// Bytes of a pointer to a child.
const POINTER: usize = size_of::<u32>();

/// How many entries the blocks of a tree hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Most records of a leaf.
    pub(super) leaf_max: usize,
    /// Most children of an inner block.
    pub(super) inner_max: usize,
}

impl Capacity {
    /// For tree `S` with blocks of `block_bytes`.
    pub(super) fn of<S: Shape>(block_bytes: usize) -> Self {
        let room = block_bytes.saturating_sub(HEAD);
        let each = key_bytes::<S>().saturating_add(POINTER);
        let count = |bytes: usize| room.checked_div(bytes).unwrap_or(0);
        Self { leaf_max: count(size_of::<S::RawRecord>()), inner_max: count(each) }
    }

    /// Most entries of a block at `level`.
    pub(super) fn max(self, level: u16) -> usize {
        if level == 0 { self.leaf_max } else { self.inner_max }
    }

    /// Fewest entries of a block at `level` that is not the root.
    pub(super) fn min(self, level: u16) -> usize {
        self.max(level) >> 1
    }
}

fn key_bytes<S: Shape>() -> usize {
    let keys = if S::RANGES { 2 } else { 1 };
    size_of::<S::RawKey>().saturating_mul(keys)
}

/// A child as its parent describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child<K> {
    /// Key of its first record.
    pub(super) low: K,
    /// Highest key below it; the same as `low` in trees without ranges.
    pub(super) high: K,
    pub(super) block: u32,
}

impl<K> Child<K> {
    /// Whether both are the same on disk: keys may have parts that take no part in the order.
    pub(super) fn same_bytes<S: Shape<Key = K>>(&self, other: &Self) -> bool {
        let same = |a: &K, b: &K| S::raw_key(a).as_bytes() == S::raw_key(b).as_bytes();
        self.block == other.block && same(&self.low, &other.low) && same(&self.high, &other.high)
    }
}

/// What a block holds.
#[derive(Debug)]
pub(super) enum Entries<S: Shape> {
    Records(Vec<S::Record>),
    Children(Vec<Child<S::Key>>),
}

/// A block of a tree.
#[derive(Debug)]
pub(super) struct Node<S: Shape> {
    /// 0 is a leaf.
    pub(super) level: u16,
    pub(super) left: u32,
    pub(super) right: u32,
    /// Log sequence number of its last change; it stays, so that it never runs ahead of the log.
    pub(super) lsn: Lsn,
    pub(super) entries: Entries<S>,
    /// Changed since it was read.
    pub(super) dirty: bool,
}

fn structure<S: Shape, T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: S::NAME, why }.into())
}

impl<S: Shape> Node<S> {
    /// A new block; log sequence number 0 is older than any log.
    pub(super) fn new(level: u16, left: u32, right: u32, entries: Entries<S>) -> Self {
        Self { level, left, right, lsn: Lsn(0), entries, dirty: true }
    }

    /// Reads block `block` of the group, which must stand at `level`.
    pub(super) fn read(ground: &Ground, block: u32, level: u16, root: bool) -> Result<Self> {
        let kind = BlockKind::new(S::NAME, [S::MAGIC; 2], SHORT_SELF);
        let bytes = ground.volume.block(&kind, ground.span(block)?, ground.ag.0.into())?;
        let raw: RawShortBlock = take(&bytes, 0, S::NAME)?;
        let found = raw.head.bb_level.get();
        if found != level {
            let (found, expected) = (found.into(), level.into());
            return Err(Fault::TreeLevel { what: S::NAME, found, expected }.into());
        }
        let capacity = Capacity::of::<S>(bytes.len());
        let count = usize::from(raw.head.bb_numrecs.get());
        let fewest = match (root, level) {
            (true, 0) => 0,
            (true, _) => 1,
            (false, _) => capacity.min(level).max(1),
        };
        if count > capacity.max(level) || count < fewest {
            return structure::<S, _>("a block has more entries than fit, or less than half of that");
        }
        let (left, right) = (raw.bb_leftsib.get(), raw.bb_rightsib.get());
        for sibling in [left, right] {
            if sibling != NULL_AG_BLOCK && (root || sibling == block) {
                return structure::<S, _>("a root has a sibling, or a block is its own");
            }
        }
        let entries = if level == 0 {
            Entries::Records(Self::records(ground, &bytes, count)?)
        } else {
            Entries::Children(Self::children(ground, &bytes, count, capacity.inner_max)?)
        };
        Ok(Self { level, left, right, lsn: Lsn(raw.bb_lsn.get()), entries, dirty: false })
    }

    fn records(ground: &Ground, bytes: &[u8], count: usize) -> Result<Vec<S::Record>> {
        let raw = slice::<S::RawRecord>(bytes, HEAD, count, S::NAME)?;
        let records: Vec<S::Record> = raw.iter().map(|r| S::parse(r, ground)).collect::<Result<_>>()?;
        let sorted = records.iter().zip(records.iter().skip(1)).all(|(a, b)| S::follows(a, b));
        if sorted { Ok(records) } else { structure::<S, _>("records overlap or are out of order") }
    }

    fn children(ground: &Ground, bytes: &[u8], count: usize, max: usize) -> Result<Vec<Child<S::Key>>> {
        let each = if S::RANGES { 2 } else { 1 };
        let keys = slice::<S::RawKey>(bytes, HEAD, count.saturating_mul(each), S::NAME)?;
        let pointers_at = HEAD.saturating_add(key_bytes::<S>().saturating_mul(max));
        let pointers = slice::<zerocopy::big_endian::U32>(bytes, pointers_at, count, S::NAME)?;
        let mut children = Vec::with_capacity(count);
        for (pair, pointer) in keys.chunks_exact(each).zip(pointers) {
            let (Some(low), Some(high)) = (pair.first(), pair.last()) else { continue };
            let (low, high) = (S::parse_key(low), S::parse_key(high));
            ground.check(pointer.get(), 1)?;
            children.push(Child { low, high, block: pointer.get() });
        }
        let sorted = children.iter().zip(children.iter().skip(1)).all(|(a, b)| a.low < b.low);
        if sorted && children.iter().all(|c| c.low <= c.high) {
            Ok(children)
        } else {
            structure::<S, _>("keys are out of order")
        }
    }

    /// The bytes of the block, which lies at `block`.
    pub(super) fn bytes(&self, ground: &Ground, block: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; ground.block_bytes()?];
        let capacity = Capacity::of::<S>(bytes.len());
        let raw = RawShortBlock {
            head: RawBtreeHead {
                bb_magic: S::MAGIC.into(),
                bb_level: self.level.into(),
                bb_numrecs: u16::try_from(self.len()).unwrap_or(u16::MAX).into(),
            },
            bb_leftsib: self.left.into(),
            bb_rightsib: self.right.into(),
            bb_blkno: ground.daddr(block)?.into(),
            bb_lsn: self.lsn.0.into(),
            bb_uuid: ground.volume.sb.meta_uuid,
            bb_owner: ground.ag.0.into(),
            bb_crc: 0.into(),
        };
        part_mut(&mut bytes, 0, HEAD, S::NAME)?.copy_from_slice(raw.as_bytes());
        match &self.entries {
            Entries::Records(records) => {
                let raw: Vec<S::RawRecord> = records.iter().map(S::raw).collect();
                put(&mut bytes, HEAD, raw.as_bytes(), S::NAME)?;
            }
            Entries::Children(children) => {
                let mut keys: Vec<S::RawKey> = Vec::with_capacity(children.len().saturating_mul(2));
                for child in children {
                    keys.push(S::raw_key(&child.low));
                    if S::RANGES {
                        keys.push(S::raw_key(&child.high));
                    }
                }
                put(&mut bytes, HEAD, keys.as_bytes(), S::NAME)?;
                let pointers: Vec<zerocopy::big_endian::U32> =
                    children.iter().map(|c| c.block.into()).collect();
                let at = HEAD.saturating_add(key_bytes::<S>().saturating_mul(capacity.inner_max));
                put(&mut bytes, at, pointers.as_bytes(), S::NAME)?;
            }
        }
        SHORT_SELF.stamp(&mut bytes, self.lsn)?;
        Ok(bytes)
    }

    /// Entries in the block.
    pub(super) fn len(&self) -> usize {
        match &self.entries {
            Entries::Records(records) => records.len(),
            Entries::Children(children) => children.len(),
        }
    }

    /// The records of a leaf.
    pub(super) fn leaf(&self) -> Result<&[S::Record]> {
        match &self.entries {
            Entries::Records(records) => Ok(records),
            Entries::Children(_) => structure::<S, _>("an inner block where a leaf has to be"),
        }
    }

    /// The records of a leaf, to be changed.
    pub(super) fn leaf_mut(&mut self) -> Result<&mut Vec<S::Record>> {
        match &mut self.entries {
            Entries::Records(records) => Ok(records),
            Entries::Children(_) => structure::<S, _>("an inner block where a leaf has to be"),
        }
    }

    /// The children of an inner block.
    pub(super) fn inner(&self) -> Result<&[Child<S::Key>]> {
        match &self.entries {
            Entries::Children(children) => Ok(children),
            Entries::Records(_) => structure::<S, _>("a leaf where an inner block has to be"),
        }
    }

    /// The children of an inner block, to be changed.
    pub(super) fn inner_mut(&mut self) -> Result<&mut Vec<Child<S::Key>>> {
        match &mut self.entries {
            Entries::Children(children) => Ok(children),
            Entries::Records(_) => structure::<S, _>("a leaf where an inner block has to be"),
        }
    }

    /// How the parent has to describe this block; nothing for an empty one.
    pub(super) fn summary(&self, block: u32) -> Option<Child<S::Key>> {
        let (low, high) = match &self.entries {
            Entries::Records(r) => (S::low(r.first()?), r.iter().map(S::high).max()?),
            Entries::Children(c) => (c.first()?.low, c.iter().map(|c| c.high).max()?),
        };
        Some(Child { low, high: if S::RANGES { high } else { low }, block })
    }

    /// Cuts off the entries from `at` on.
    pub(super) fn split_off(&mut self, at: usize) -> Entries<S> {
        match &mut self.entries {
            Entries::Records(records) => Entries::Records(records.split_off(at.min(records.len()))),
            Entries::Children(children) => Entries::Children(children.split_off(at.min(children.len()))),
        }
    }

    /// Puts entries behind those of the block.
    pub(super) fn append(&mut self, more: Entries<S>) -> Result<()> {
        match (&mut self.entries, more) {
            (Entries::Records(all), Entries::Records(more)) => all.extend(more),
            (Entries::Children(all), Entries::Children(more)) => all.extend(more),
            _ => return structure::<S, _>("siblings of different levels"),
        }
        Ok(())
    }
}

fn slice<'a, T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout + zerocopy::Unaligned>(
    bytes: &'a [u8],
    at: usize,
    count: usize,
    what: &'static str,
) -> Result<&'a [T]> {
    let len = size_of::<T>().saturating_mul(count);
    let bytes = part(bytes, at, len, what)?;
    <[T]>::ref_from_bytes(bytes).map_err(|_| Fault::Structure { what, why: "cut short" }.into())
}

fn put(bytes: &mut [u8], at: usize, data: &[u8], what: &'static str) -> Result<()> {
    part_mut(bytes, at, data.len(), what)?.copy_from_slice(data);
    Ok(())
}
