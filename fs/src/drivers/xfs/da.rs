//! The tree over hashes of names that large directories and attribute forks have, block by block of the fork.

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, part_mut, take};

use super::described::DA_SELF;
use super::fault::Fault;
use super::inode::{ForkKind, Inode};
use super::layout::{DA_NODE_MAGIC, RawDaInfo, RawDaInfo4, RawDaNodeEntry, RawDaNodeTail};
use super::units::FileBlock;
use super::volume::{BlockKind, Volume};

/// The deepest tree there can be.
const LEVELS_MAX: u16 = 5;
/// An inner block.
pub(super) const NODE: BlockKind = da_kind("inner block of a hash tree", DA_NODE_MAGIC);

/// A kind of block in a hash tree.
pub(super) const fn da_kind(what: &'static str, magic: [u16; 2]) -> BlockKind {
    // Widening; `From` is not const.
    let [[a, b], [c, d]] = [magic[0].to_be_bytes(), magic[1].to_be_bytes()];
    BlockKind {
        what,
        magic: [u32::from_be_bytes([0, 0, a, b]), u32::from_be_bytes([0, 0, c, d])],
        magic_at: core::mem::offset_of!(RawDaInfo4, magic),
        magic_len: 2,
        itself: DA_SELF,
    }
}

/// A fork that is read in blocks of its own size: a directory's, or an attribute fork's.
#[derive(Clone, Copy, Debug)]
pub(super) struct DaFork<'a> {
    pub(super) inode: &'a Inode,
    pub(super) kind: ForkKind,
    /// Bytes of one of its blocks.
    pub(super) block_bytes: u64,
}

/// A block of such a fork.
#[derive(Debug)]
pub(super) struct DaBlock {
    /// Its place in the fork.
    pub(super) at: FileBlock,
    pub(super) bytes: Vec<u8>,
}

/// The hash of a name.
pub(super) fn hash(name: &[u8]) -> u32 {
    let (chunks, rest) = name.as_chunks::<4>();
    let mut hash = 0u32;
    for [a, b, c, d] in chunks {
        let word = u32::from(*a) << 21 ^ u32::from(*b) << 14 ^ u32::from(*c) << 7 ^ u32::from(*d);
        hash = word ^ hash.rotate_left(28);
    }
    match rest {
        [a, b, c] => u32::from(*a) << 14 ^ u32::from(*b) << 7 ^ u32::from(*c) ^ hash.rotate_left(21),
        [a, b] => u32::from(*a) << 7 ^ u32::from(*b) ^ hash.rotate_left(14),
        [a] => u32::from(*a) ^ hash.rotate_left(7),
        _ => hash,
    }
}

impl Volume {
    /// Reads the block of `fork` that begins at `at`, of one of `kinds`, and says which.
    pub(super) fn da_block<'k>(
        &self,
        fork: &DaFork<'_>,
        at: FileBlock,
        kinds: &'k [BlockKind],
    ) -> Result<(&'k BlockKind, DaBlock)> {
        let name =
            || format!("block {} of the {} fork of inode {}", at.0, fork.kind.name(), fork.inode.ino.0);
        let (first, bytes) = self.fork_block(fork, at).within(name)?;
        let version = usize::from(self.sb.v5);
        let found = |kind: &&BlockKind| kind.magic_of(&bytes).ok() == kind.magic.get(version).copied();
        let kind = kinds.iter().find(found).or(kinds.first());
        let kind = kind.ok_or(Fault::Unsupported { what: "a block of no kind" })?;
        self.check_block(kind, &bytes, first, fork.inode.ino.0).within(name)?;
        Ok((kind, DaBlock { at, bytes }))
    }

    /// The bytes of the block of `fork` that begins at `at`, which may lie in several extents, and the first one's
    /// place on the volume.
    pub(super) fn fork_block(&self, fork: &DaFork<'_>, at: FileBlock) -> Result<(u64, Vec<u8>)> {
        let mut bytes = vec![0; index(fork.block_bytes)?];
        let (mut first, mut done) = (None, 0u64);
        for mapping in self.mappings(fork.inode, fork.kind, at)? {
            let mapping = mapping?;
            let next = at.0.saturating_add(self.sb.block_size.count(done));
            let Some(skip) = next.checked_sub(mapping.at.0) else { break };
            if mapping.unwritten {
                break;
            }
            let span = self.sb.span(mapping.start, mapping.len)?;
            let left = fork.block_bytes.saturating_sub(done);
            let piece: Span = span.skip(self.sb.block_size.start_of(skip).unwrap_or(u64::MAX)).truncate(left);
            let place = part_mut(&mut bytes, index(done)?, index(piece.len())?, "block of a fork")?;
            self.disk.read_at(piece.start(), place)?;
            first = first.or(Some(piece.start()));
            done = done.saturating_add(piece.len());
            if done == fork.block_bytes {
                break;
            }
        }
        match first {
            Some(first) if done == fork.block_bytes => Ok((first, bytes)),
            _ => {
                let why = "a block that something points to is a hole";
                Err(Fault::Fork { ino: fork.inode.ino.0, fork: fork.kind.name(), why }.into())
            }
        }
    }

    /// The leaf below `root` that would hold `hash` first; of one of `leaves`, which are at level 0.
    pub(super) fn da_leaf(
        &self,
        fork: &DaFork<'_>,
        root: FileBlock,
        leaves: &[BlockKind],
        hash: u32,
    ) -> Result<DaBlock> {
        let kinds: Vec<BlockKind> = leaves.iter().copied().chain([NODE]).collect();
        let mut at = root;
        let mut level: Option<u16> = None;
        loop {
            let (kind, block) = self.da_block(fork, at, &kinds)?;
            if kind.what != NODE.what {
                if let Some(expected) = level.filter(|l| *l != 0) {
                    return Err(tree_level(0, expected));
                }
                return Ok(block);
            }
            let head = if self.sb.v5 { size_of::<RawDaInfo>() } else { size_of::<RawDaInfo4>() };
            let tail: RawDaNodeTail = take(&block.bytes, head, NODE.what)?;
            let found = tail.level.get();
            let expected = level.unwrap_or(found);
            if found != expected || found == 0 || found > LEVELS_MAX {
                return Err(tree_level(found, expected.clamp(1, LEVELS_MAX)));
            }
            level = found.checked_sub(1);
            let entries = head.saturating_add(if self.sb.v5 { 8 } else { 4 });
            at = child(&block.bytes, entries, tail.count.get(), hash)?;
        }
    }

    /// The leaf behind this one, if there is one.
    pub(super) fn da_next(
        &self,
        fork: &DaFork<'_>,
        leaf: &DaBlock,
        leaves: &[BlockKind],
    ) -> Result<Option<DaBlock>> {
        let info: RawDaInfo4 = take(&leaf.bytes, 0, "leaf")?;
        if info.forw.get() == 0 {
            return Ok(None);
        }
        Ok(Some(self.da_block(fork, FileBlock(info.forw.get().into()), leaves)?.1))
    }

    /// How many blocks a fork has: what a walk over them may spend. No fork of metadata has more than there are.
    pub(super) fn da_budget(&self, fork: &DaFork<'_>) -> Result<u64> {
        let mut blocks = 0u64;
        for mapping in self.mappings(fork.inode, fork.kind, FileBlock(0))? {
            blocks = blocks.saturating_add(mapping?.len);
            if blocks > self.sb.blocks {
                let why = "more blocks than the filesystem has";
                return Err(Fault::Fork { ino: fork.inode.ino.0, fork: fork.kind.name(), why }.into());
            }
        }
        Ok(blocks)
    }
}

fn tree_level(found: u16, expected: u16) -> racker_formats::error::Error {
    Fault::TreeLevel { what: "hash tree", found: found.into(), expected: expected.into() }.into()
}

/// The child that would hold `hash` first: the first one whose highest hash is not below it, or the last.
fn child(block: &[u8], entries: usize, count: u16, hash: u32) -> Result<FileBlock> {
    let entry = |i: usize| -> Result<RawDaNodeEntry> {
        take(block, entries.saturating_add(i.saturating_mul(size_of::<RawDaNodeEntry>())), NODE.what)
    };
    let count = usize::from(count);
    let last = count
        .checked_sub(1)
        .ok_or(Fault::Structure { what: NODE.what, why: "an inner block has no entry" })?;
    let (mut low, mut high) = (0usize, last);
    while low < high {
        let middle = low.midpoint(high);
        if entry(middle)?.hashval.get() < hash {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    Ok(FileBlock(entry(low)?.before.get().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_kernel() {
        // As xfs_db's `hash` command prints them.
        assert_eq!(hash(b"."), 0x2e);
        assert_eq!(hash(b".."), 0x172e);
        assert_eq!(hash(b"ostree-1-ock.conf"), 0xd797_34b7);
    }
}
