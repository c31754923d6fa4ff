//! A fork built from its extents: a list in the inode while it fits, else a tree whose blocks are filled evenly,
//! so that none is less than half full.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part_mut};
use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::super::bmap::Mapping;
use super::super::described::LONG_SELF;
use super::super::fault::Fault;
use super::super::inode::{ForkFormat, ForkKind, bmdr_entries};
use super::super::layout::{BMBT_MAGIC, RawBmbtRec, RawBmdrBlock, RawBtreeHead, RawLongBlock};
use super::super::units::{AgNo, FsBlock, InodeNo, Lsn, NULL_FS_BLOCK};
use super::Edit;
use super::alloc::Want;
use super::owner::Owner;

/// The most extents that the kernel allows a data fork: 2^31 - 1, or 2^48 - 1 with large counts.
const EXTENTS_MAX: u64 = (1 << 31) - 1;
const BIG_EXTENTS_MAX: u64 = (1 << 48) - 1;
/// The same for an attribute fork.
const ATTR_EXTENTS_MAX: u64 = (1 << 15) - 1;
const BIG_ATTR_EXTENTS_MAX: u64 = (1 << 32) - 1;

/// A fork as it is to lie in its inode.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) format: ForkFormat,
    /// All of its room in the inode.
    pub(super) bytes: Vec<u8>,
    pub(super) extents: u64,
    /// Blocks of its tree outside the inode.
    pub(super) tree_blocks: u64,
}

/// Where a fork is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) ino: InodeNo,
    pub(super) kind: ForkKind,
    /// Bytes it has in the inode.
    pub(super) room: usize,
    /// Whether the inode has large counts of extents.
    pub(super) big: bool,
}

/// The most extents of a fork, with large counts or without.
pub(super) fn extents_max(kind: ForkKind, big: bool) -> u64 {
    match (kind, big) {
        (ForkKind::Data, false) => EXTENTS_MAX,
        (ForkKind::Data, true) => BIG_EXTENTS_MAX,
        (ForkKind::Attr, false) => ATTR_EXTENTS_MAX,
        (ForkKind::Attr, true) => BIG_ATTR_EXTENTS_MAX,
    }
}

/// Keys and blocks of one level of a tree.
type Row = Vec<(u64, FsBlock)>;

/// How `count` entries spread evenly over as few blocks of `max` as there can be: entries of each block.
pub(super) fn spread(count: usize, max: usize) -> impl Iterator<Item = usize> {
    let blocks = count.div_ceil(max.max(1)).max(1);
    let (each, more) = (count.checked_div(blocks).unwrap_or(0), count.checked_rem(blocks).unwrap_or(0));
    (0..blocks).map(move |i| each.saturating_add(usize::from(i < more)))
}

impl Edit {
    /// Builds the fork with these extents, which are in order. Allocates the blocks of its tree near `near`.
    pub(super) fn build_fork(&mut self, site: Site, extents: &[Mapping], near: AgNo) -> Result<Built> {
        let count = len64(extents.len());
        if count > extents_max(site.kind, site.big) {
            let why = "the content would lie in more pieces than an inode can count";
            return Err(Fault::Fork { ino: site.ino.0, fork: site.kind.name(), why }.into());
        }
        let raw: Vec<RawBmbtRec> = extents.iter().map(Mapping::encode).collect();
        let mut bytes = vec![0; site.room];
        if raw.as_bytes().len() <= site.room {
            part_mut(&mut bytes, 0, raw.as_bytes().len(), "fork")?.copy_from_slice(raw.as_bytes());
            return Ok(Built { format: ForkFormat::Extents, bytes, extents: count, tree_blocks: 0 });
        }
        let starts: Vec<u64> = extents.iter().map(|e| e.at.0).collect();
        let (row, level, tree_blocks) = self.build_tree(site, &starts, raw.as_bytes(), near)?;
        let root = RawBmdrBlock {
            bb_level: level.into(),
            bb_numrecs: u16::try_from(row.len()).unwrap_or(u16::MAX).into(),
        };
        let mut at = 0;
        let mut put = |data: &[u8], to: usize| -> Result<()> {
            part_mut(&mut bytes, to, data.len(), "root of the extent tree")?.copy_from_slice(data);
            Ok(())
        };
        put(root.as_bytes(), at)?;
        at = at.saturating_add(size_of::<RawBmdrBlock>());
        let (keys, pointers) = split_row(&row);
        put(keys.as_bytes(), at)?;
        at = at.saturating_add(bmdr_entries(site.room).saturating_mul(size_of::<U64>()));
        put(pointers.as_bytes(), at)?;
        Ok(Built { format: ForkFormat::Btree, bytes, extents: count, tree_blocks })
    }

    /// Writes the tree's blocks row by row until what remains fits into the inode. Returns the keys and blocks for
    /// the root, its level, and the count of blocks.
    fn build_tree(
        &mut self,
        site: Site,
        starts: &[u64],
        records: &[u8],
        near: AgNo,
    ) -> Result<(Row, u16, u64)> {
        let root_max = bmdr_entries(site.room);
        if root_max == 0 {
            let why = "no room for the root of an extent tree";
            return Err(Fault::Fork { ino: site.ino.0, fork: site.kind.name(), why }.into());
        }
        let body = racker_formats::wire::index(self.volume.sb.block_size.bytes())?
            .saturating_sub(size_of::<RawLongBlock>());
        let each = size_of::<RawBmbtRec>();
        let max = body.checked_div(each).unwrap_or(1);
        let mut blocks = 0u64;
        let counts = spread(starts.len(), max);
        let mut rest = records;
        let mut first = 0usize;
        let mut leaves = Vec::new();
        for count in counts {
            let (now, later) = rest.split_at_checked(count.saturating_mul(each)).unwrap_or((rest, &[]));
            let key = starts.get(first).copied().unwrap_or(0);
            leaves.push((key, count, now.to_vec()));
            first = first.saturating_add(count);
            rest = later;
        }
        let mut row = self.write_row(site, 0, leaves, near)?;
        let mut level = 1u16;
        blocks = blocks.saturating_add(len64(row.len()));
        while row.len() > root_max {
            let mut next = Vec::new();
            let mut rest = row.as_slice();
            for count in spread(row.len(), max) {
                let (now, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
                let (keys, pointers) = split_row(now);
                let mut bytes = keys.as_bytes().to_vec();
                bytes.resize(max.saturating_mul(size_of::<U64>()), 0);
                bytes.extend_from_slice(pointers.as_bytes());
                next.push((now.first().map_or(0, |(key, _)| *key), count, bytes));
                rest = later;
            }
            row = self.write_row(site, level, next, near)?;
            blocks = blocks.saturating_add(len64(row.len()));
            level = level.saturating_add(1);
        }
        Ok((row, level, blocks))
    }

    /// Writes blocks of one level: for each its first key, its count of entries and their bytes.
    fn write_row(
        &mut self,
        site: Site,
        level: u16,
        blocks: Vec<(u64, usize, Vec<u8>)>,
        near: AgNo,
    ) -> Result<Row> {
        let mut places = Vec::with_capacity(blocks.len());
        let mut want = Want { whole: 1, take: 1, near, behind: None };
        for _ in &blocks {
            let found = self.allocate(want, Owner::fork_tree(site.ino, site.kind))?;
            places.push(self.fs_block(found)?);
            want.behind = Some(found.run.end()).filter(|_| found.ag == near);
            self.breathe()?;
        }
        let mut row = Vec::with_capacity(blocks.len());
        for (i, (key, count, body)) in blocks.into_iter().enumerate() {
            let at = |i: Option<usize>| i.and_then(|i| places.get(i)).map_or(NULL_FS_BLOCK, |b| b.0);
            let place = FsBlock(at(Some(i)));
            let siblings = [at(i.checked_sub(1)), at(i.checked_add(1))];
            self.write_tree_block(site, place, (level, count), siblings, &body)?;
            row.push((key, place));
        }
        Ok(row)
    }

    fn write_tree_block(
        &self,
        site: Site,
        place: FsBlock,
        (level, count): (u16, usize),
        [left, right]: [u64; 2],
        body: &[u8],
    ) -> Result<()> {
        let sb = &self.volume.sb;
        let mut bytes = vec![0; racker_formats::wire::index(sb.block_size.bytes())?];
        let head = RawLongBlock {
            head: RawBtreeHead {
                bb_magic: BMBT_MAGIC[1].into(),
                bb_level: level.into(),
                bb_numrecs: u16::try_from(count).unwrap_or(u16::MAX).into(),
            },
            bb_leftsib: left.into(),
            bb_rightsib: right.into(),
            bb_blkno: sb.daddr(place)?.0.into(),
            bb_lsn: 0.into(),
            bb_uuid: sb.meta_uuid,
            bb_owner: site.ino.0.into(),
            bb_crc: 0.into(),
            bb_pad: 0.into(),
        };
        part_mut(&mut bytes, 0, size_of::<RawLongBlock>(), "extent tree block")?
            .copy_from_slice(head.as_bytes());
        part_mut(&mut bytes, size_of::<RawLongBlock>(), body.len(), "extent tree block")?
            .copy_from_slice(body);
        LONG_SELF.stamp(&mut bytes, Lsn(0))?;
        self.volume.disk.write_at(sb.span(place, 1)?.start(), &bytes)
    }
}

fn split_row(row: &[(u64, FsBlock)]) -> (Vec<U64>, Vec<U64>) {
    row.iter().map(|(key, block)| (U64::new(*key), U64::new(block.0))).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_filled_evenly() {
        for count in 1..2000 {
            let all: Vec<usize> = spread(count, 251).collect();
            assert_eq!(all.iter().sum::<usize>(), count);
            assert!(all.iter().all(|n| *n <= 251 && (all.len() == 1 || *n >= 125)));
        }
    }
}
