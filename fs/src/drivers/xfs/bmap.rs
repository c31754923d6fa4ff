//! Which blocks a fork has: a list of extents in the inode, or a tree of them.

use racker_formats::error::{Result, Within};
use racker_formats::wire::take;
use zerocopy::big_endian::U64;

use super::described::LONG_SELF;
use super::fault::Fault;
use super::inode::{Fork, ForkFormat, ForkKind, Inode, bmdr_entries};
use super::layout::{BMBT_MAGIC, RawBmbtRec, RawBmdrBlock, RawBtreeHead, RawLongBlock, RawLongBlock4};
use super::units::{FileBlock, FsBlock, InodeNo};
use super::volume::{BlockKind, Volume};

/// A block of an extent tree.
pub(super) const BMBT: BlockKind = BlockKind::new("extent tree block", BMBT_MAGIC, LONG_SELF);

/// Bits of a length.
const LEN_BITS: u32 = 21;
/// Bits of a start block.
const START_BITS: u32 = 52;
/// Bits of a file offset.
const OFFSET_BITS: u32 = 54;
/// Bytes of a key, and of a pointer.
const KEY: usize = size_of::<U64>();

/// A stretch of a fork in blocks one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// First block in the fork.
    pub(super) at: FileBlock,
    /// First block of the filesystem.
    pub(super) start: FsBlock,
    /// Count of blocks; never 0.
    pub(super) len: u64,
    /// Allocated, never written: reads as zeroes.
    pub(super) unwritten: bool,
}

impl Mapping {
    /// The block behind the last one.
    pub(super) fn end(&self) -> FileBlock {
        FileBlock(self.at.0.saturating_add(self.len))
    }

    /// Takes a record apart.
    pub(super) fn decode(raw: &RawBmbtRec) -> Self {
        let all = u128::from(raw.l0.get()) << 64 | u128::from(raw.l1.get());
        let bits = |from: u32, count: u32| {
            let mask = 1u128.checked_shl(count).unwrap_or(0).wrapping_sub(1);
            u64::try_from(all.checked_shr(from).unwrap_or(0) & mask).unwrap_or(u64::MAX)
        };
        Self {
            at: FileBlock(bits(LEN_BITS.saturating_add(START_BITS), OFFSET_BITS)),
            start: FsBlock(bits(LEN_BITS, START_BITS)),
            len: bits(0, LEN_BITS),
            unwritten: all >> 127 == 1,
        }
    }

    /// Puts a record together.
    pub(super) fn encode(&self) -> RawBmbtRec {
        let all = u128::from(self.unwritten) << 127
            | u128::from(self.at.0) << (LEN_BITS.saturating_add(START_BITS))
            | u128::from(self.start.0) << LEN_BITS
            | u128::from(self.len);
        let [high, low] = [all >> 64, all & u128::from(u64::MAX)];
        let word = |w: u128| U64::new(u64::try_from(w).unwrap_or(0));
        RawBmbtRec { l0: word(high), l1: word(low) }
    }
}

/// An inner block of an extent tree whose pointers are followed one after the other.
#[derive(Debug)]
struct Inner {
    /// The level below it.
    below: u32,
    /// Keys and pointers not followed yet, the next one last.
    rest: Vec<(u64, u64)>,
}

/// The extents of a fork in order of offset.
///
/// Ends by itself: the level falls with every step down, every leaf has an extent, and every extent begins behind
/// the end of the one before, so that no block is met twice.
#[derive(Debug)]
pub(super) struct Mappings<'v> {
    volume: &'v Volume,
    ino: InodeNo,
    kind: ForkKind,
    /// Extents at hand, the next one last.
    ready: Vec<Mapping>,
    inner: Vec<Inner>,
    /// Extents that end at or before this block are left out.
    from: FileBlock,
    /// The end of the extent before.
    past: FileBlock,
    failed: bool,
}

impl Volume {
    /// The extents of a fork that end behind `from`; none for a fork that is not stored in extents.
    pub(super) fn mappings<'v>(
        &'v self,
        inode: &Inode,
        kind: ForkKind,
        from: FileBlock,
    ) -> Result<Mappings<'v>> {
        if !self.pending.concerns(inode.ino, kind) {
            return self.stored_mappings(inode, kind, from);
        }
        let stored: Result<Vec<Mapping>> = self.stored_mappings(inode, kind, FileBlock(0))?.collect();
        let mut ready = self.pending.apply(inode.ino, kind, stored?);
        ready.reverse();
        Ok(Mappings { ready, ..self.no_mappings(inode, kind, from) })
    }

    fn no_mappings<'v>(&'v self, inode: &Inode, kind: ForkKind, from: FileBlock) -> Mappings<'v> {
        Mappings {
            volume: self,
            ino: inode.ino,
            kind,
            ready: Vec::new(),
            inner: Vec::new(),
            from,
            past: FileBlock(0),
            failed: false,
        }
    }

    fn stored_mappings<'v>(&'v self, inode: &Inode, kind: ForkKind, from: FileBlock) -> Result<Mappings<'v>> {
        let mut all = self.no_mappings(inode, kind, from);
        let Some(fork) = inode.fork(kind) else { return Ok(all) };
        match fork.format {
            ForkFormat::Extents => {
                let bytes = inode.fork_bytes(fork)?;
                let count = usize::try_from(fork.extents).unwrap_or(usize::MAX);
                all.ready = records(bytes, 0, count)?;
            }
            ForkFormat::Btree => all.inner.push(root(inode, fork, from)?),
            ForkFormat::Local | ForkFormat::Dev => {}
        }
        Ok(all)
    }

    /// The extent that holds block `at` of a fork, or else the first one behind it.
    pub(super) fn mapping_at(&self, inode: &Inode, kind: ForkKind, at: FileBlock) -> Result<Option<Mapping>> {
        self.mappings(inode, kind, at)?.next().transpose()
    }

    fn bmbt_inner(&self, ino: InodeNo, block: u64, level: u32, from: FileBlock) -> Result<Inner> {
        self.pointers(&self.bmbt_block(ino, block, level)?, level, from)
    }

    /// The pointers of an inner block; keys and pointers lie in two halves of it.
    fn pointers(&self, bytes: &[u8], level: u32, from: FileBlock) -> Result<Inner> {
        let head = self.bmbt_head();
        let most = bytes.len().saturating_sub(head).checked_div(KEY.saturating_mul(2)).unwrap_or(0);
        let count = records_of(bytes, most)?;
        let pointers = head.saturating_add(most.saturating_mul(KEY));
        inner(bytes, head, pointers, count, level, from)
    }

    /// The level of the blocks that a tree's root in the inode points to, and these blocks.
    pub(super) fn tree_root(&self, inode: &Inode, fork: &Fork) -> Result<(u32, Vec<u64>)> {
        let root = root(inode, fork, FileBlock(0))?;
        Ok((root.below, root.rest.into_iter().map(|(_, block)| block).collect()))
    }

    /// The blocks that an inner block of level `level` points to.
    pub(super) fn tree_children(&self, bytes: &[u8], level: u32) -> Result<Vec<u64>> {
        let inner = self.pointers(bytes, level, FileBlock(0))?;
        Ok(inner.rest.into_iter().map(|(_, block)| block).collect())
    }

    fn bmbt_leaf(&self, ino: InodeNo, block: u64) -> Result<Vec<Mapping>> {
        let bytes = self.bmbt_block(ino, block, 0)?;
        let head = self.bmbt_head();
        let most = bytes.len().saturating_sub(head).checked_div(size_of::<RawBmbtRec>()).unwrap_or(0);
        let count = records_of(&bytes, most)?;
        records(&bytes, head, count)
    }

    fn bmbt_head(&self) -> usize {
        if self.sb.v5 { size_of::<RawLongBlock>() } else { size_of::<RawLongBlock4>() }
    }

    fn bmbt_block(&self, ino: InodeNo, block: u64, level: u32) -> Result<Vec<u8>> {
        let span = self.sb.span(FsBlock(block), 1)?;
        let bytes = self.block(&BMBT, span, ino.0)?;
        let head: RawBtreeHead = take(&bytes, 0, BMBT.what)?;
        if u32::from(head.bb_level.get()) != level {
            let found = head.bb_level.get().into();
            return Err(Fault::TreeLevel { what: BMBT.what, found, expected: level.into() }.into());
        }
        Ok(bytes)
    }
}

/// The count of records in a block, which has room for `most`.
fn records_of(bytes: &[u8], most: usize) -> Result<usize> {
    let head: RawBtreeHead = take(bytes, 0, BMBT.what)?;
    let count = usize::from(head.bb_numrecs.get());
    if count == 0 || count > most {
        let found = head.bb_numrecs.get().into();
        return Err(Fault::Field { what: "bb_numrecs", found, why: "none, or more than fit" }.into());
    }
    Ok(count)
}

/// `count` records at `at`, the first one last.
fn records(bytes: &[u8], at: usize, count: usize) -> Result<Vec<Mapping>> {
    let mut all = Vec::with_capacity(count);
    for i in (0..count).rev() {
        let place = at.saturating_add(i.saturating_mul(size_of::<RawBmbtRec>()));
        all.push(Mapping::decode(&take(bytes, place, "extent")?));
    }
    Ok(all)
}

fn root(inode: &Inode, fork: &Fork, from: FileBlock) -> Result<Inner> {
    let bytes = inode.fork_bytes(fork)?;
    let raw: RawBmdrBlock = take(bytes, 0, "root of the extent tree")?;
    let head = size_of::<RawBmdrBlock>();
    let pointers = head.saturating_add(bmdr_entries(fork.room).saturating_mul(KEY));
    inner(bytes, head, pointers, raw.bb_numrecs.get().into(), raw.bb_level.get().into(), from)
}

/// The pointers from the last one whose key is at or before `from`.
fn inner(
    bytes: &[u8],
    keys: usize,
    pointers: usize,
    count: usize,
    level: u32,
    from: FileBlock,
) -> Result<Inner> {
    let word = |base: usize, i: usize| -> Result<u64> {
        Ok(take::<U64>(bytes, base.saturating_add(i.saturating_mul(KEY)), BMBT.what)?.get())
    };
    let mut rest = Vec::new();
    for i in (0..count).rev() {
        let key = word(keys, i)?;
        rest.push((key, word(pointers, i)?));
        if key <= from.0 {
            break;
        }
    }
    let below = level.checked_sub(1).ok_or(Fault::TreeLevel { what: BMBT.what, found: 0, expected: 1 })?;
    Ok(Inner { below, rest })
}

impl Mappings<'_> {
    fn advance(&mut self) -> Result<Option<Mapping>> {
        loop {
            while let Some(next) = self.ready.pop() {
                self.check(&next)?;
                self.past = next.end();
                if next.end() > self.from {
                    return Ok(Some(next));
                }
            }
            let Some(top) = self.inner.last_mut() else { return Ok(None) };
            let below = top.below;
            let Some((key, block)) = top.rest.pop() else {
                self.inner.pop();
                continue;
            };
            if key < self.past.0 {
                return Err(self.fault("an extent tree's keys are not in order"));
            }
            if below == 0 {
                self.ready = self.volume.bmbt_leaf(self.ino, block)?;
                if self.ready.last().is_some_and(|first| first.at.0 != key) {
                    return Err(self.fault("a leaf does not begin where its parent says"));
                }
            } else {
                let inner = self.volume.bmbt_inner(self.ino, block, below, self.from)?;
                self.inner.push(inner);
            }
        }
    }

    fn check(&self, next: &Mapping) -> Result<()> {
        let end = next.at.0.saturating_add(next.len);
        if next.len == 0 || end >> OFFSET_BITS != 0 {
            return Err(self.fault("an extent is empty or too far behind"));
        }
        if next.at < self.past {
            return Err(self.fault("extents overlap or are not in order"));
        }
        if next.unwritten && self.kind == ForkKind::Attr {
            return Err(self.fault("an attribute fork has blocks that were never written"));
        }
        self.volume.sb.span(next.start, next.len).map(drop)
    }

    fn fault(&self, why: &'static str) -> racker_formats::error::Error {
        Fault::Fork { ino: self.ino.0, fork: self.kind.name(), why }.into()
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance().within(|| format!("extents of inode {}", self.ino.0));
        self.failed = next.is_err();
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_apart_and_together() {
        let one = Mapping {
            at: FileBlock((1 << 54) - 2),
            start: FsBlock((1 << 52) - 1),
            len: (1 << 21) - 1,
            unwritten: true,
        };
        assert_eq!(Mapping::decode(&one.encode()), one);
        let raw = RawBmbtRec { l0: U64::new(0x200), l1: U64::new(0x20_0001) };
        let plain = Mapping { at: FileBlock(1), start: FsBlock(1), len: 1, unwritten: false };
        assert_eq!(Mapping::decode(&raw), plain);
    }
}
