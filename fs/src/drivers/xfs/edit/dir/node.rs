//! A block over the hashes of a directory's names: a leaf or an inner block of the tree, or the only leaf, which
//! also says how much room each block of entries has.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, part_mut, take};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32};

use super::super::super::da::{NODE, da_kind};
use super::super::super::described::DA_SELF;
use super::super::super::fault::Fault;
use super::super::super::inode::Inode;
use super::super::super::layout::{
    DA_NODE_MAGIC, DIR_LEAF1_MAGIC, DIR_LEAFN_MAGIC, RawDaInfo, RawDaInfo4, RawDaNodeTail, RawDirLeafEntry,
};
use super::super::super::units::{Daddr, FileBlock, Lsn};
use super::super::super::volume::BlockKind;
use super::super::Edit;
use super::Geometry;

const WHAT: &str = "directory leaf";
/// The only leaf.
const LEAF1: BlockKind = da_kind("only directory leaf", DIR_LEAF1_MAGIC);
/// One of several leaves.
const LEAFN: BlockKind = da_kind("directory leaf", DIR_LEAFN_MAGIC);
/// Bytes before the entries: info, two counts, padding.
const HEAD: usize = size_of::<RawDaInfo>() + 8;
const ITEM: usize = size_of::<RawDirLeafEntry>();
const BEST: usize = size_of::<U16>();
/// The count of blocks at the end of the only leaf.
const TAIL: usize = size_of::<U32>();

fn damaged(why: &'static str) -> Fault {
    Fault::Structure { what: WHAT, why }
}

/// A block of the tree. In a leaf items are hashes with addresses of entries; in an inner block the highest hash
/// below a child with the child's block.
#[derive(Clone, Debug)]
pub(super) struct DaNode {
    pub(super) at: FileBlock,
    pub(super) place: Daddr,
    pub(super) level: u16,
    pub(super) forw: u32,
    pub(super) back: u32,
    pub(super) lsn: Lsn,
    /// In order of their hashes.
    pub(super) items: Vec<(u32, u32)>,
    /// It is the only leaf.
    pub(super) only: bool,
    /// Longest free stretch of each block of entries, in the only leaf.
    pub(super) bests: Vec<u16>,
}

impl Edit {
    /// Whether the block that leaves begin with is the only one.
    pub(super) fn is_only_leaf(&self, dir: &Inode) -> Result<bool> {
        let geometry = Geometry::of(&self.volume.sb)?;
        let (_, bytes) = self.volume.fork_block(&self.volume.dir_fork(dir), geometry.leaf)?;
        Ok(LEAF1.magic_of(&bytes)? == LEAF1.magic[1])
    }

    /// The only leaf of a directory.
    pub(super) fn leaf(&self, dir: &Inode) -> Result<DaNode> {
        let geometry = Geometry::of(&self.volume.sb)?;
        self.read_node(dir, geometry.leaf, &[LEAF1])
    }

    /// A block of the tree.
    pub(super) fn node(&self, dir: &Inode, at: FileBlock) -> Result<DaNode> {
        let geometry = Geometry::of(&self.volume.sb)?;
        if at < geometry.leaf || at >= geometry.free {
            return Err(damaged("a block of the tree lies outside of the leaves").into());
        }
        self.read_node(dir, at, &[LEAFN, NODE])
    }

    fn read_node(&self, dir: &Inode, at: FileBlock, kinds: &[BlockKind]) -> Result<DaNode> {
        let fork = self.volume.dir_fork(dir);
        let (kind, block) = self.volume.da_block(&fork, at, kinds)?;
        DaNode::parse(at, &block.bytes, kind.what)
            .within(|| format!("block {} of directory {}", at.0, dir.ino.0))
    }

    /// Writes a block of the tree.
    pub(super) fn put_node(&mut self, dir: &Inode, node: &DaNode) -> Result<()> {
        let sb = &self.volume.sb;
        let mut bytes = vec![0; index(sb.dir_block_size.bytes())?];
        let magic = match (node.only, node.level) {
            (true, _) => DIR_LEAF1_MAGIC,
            (false, 0) => DIR_LEAFN_MAGIC,
            (false, _) => DA_NODE_MAGIC,
        };
        let info = RawDaInfo {
            hdr: RawDaInfo4 {
                forw: node.forw.into(),
                back: node.back.into(),
                magic: magic[1].into(),
                pad: 0.into(),
            },
            crc: 0.into(),
            blkno: node.place.0.into(),
            lsn: 0.into(),
            uuid: sb.meta_uuid,
            owner: dir.ino.0.into(),
        };
        let count = u16::try_from(node.items.len()).map_err(|_| damaged("too many entries"))?;
        let tail = RawDaNodeTail { count: count.into(), level: node.level.into() };
        let head = [info.as_bytes(), tail.as_bytes()].concat();
        part_mut(&mut bytes, 0, head.len(), WHAT)?.copy_from_slice(&head);
        for (i, (hash, value)) in node.items.iter().enumerate() {
            let raw = RawDirLeafEntry { hashval: (*hash).into(), address: (*value).into() };
            let at = HEAD.saturating_add(i.saturating_mul(ITEM));
            part_mut(&mut bytes, at, ITEM, WHAT)?.copy_from_slice(raw.as_bytes());
        }
        if node.only {
            let count = u32::try_from(node.bests.len()).map_err(|_| damaged("too many blocks"))?;
            let end = bytes.len().saturating_sub(TAIL);
            part_mut(&mut bytes, end, TAIL, WHAT)?.copy_from_slice(&count.to_be_bytes());
            let first = end.saturating_sub(node.bests.len().saturating_mul(BEST));
            for (i, best) in node.bests.iter().enumerate() {
                let at = first.saturating_add(i.saturating_mul(BEST));
                part_mut(&mut bytes, at, BEST, WHAT)?.copy_from_slice(&best.to_be_bytes());
            }
        }
        DA_SELF.stamp(&mut bytes, node.lsn)?;
        self.write_fork_block(dir, node.at, &bytes)
    }
}

impl DaNode {
    /// A new block.
    pub(super) fn new(at: FileBlock, place: Daddr, level: u16, items: Vec<(u32, u32)>) -> Self {
        let (only, bests) = (false, Vec::new());
        Self { at, place, level, forw: 0, back: 0, lsn: Lsn(0), items, only, bests }
    }

    fn parse(at: FileBlock, bytes: &[u8], what: &'static str) -> Result<Self> {
        let only = what == LEAF1.what;
        let info: RawDaInfo = take(bytes, 0, WHAT)?;
        let tail: RawDaNodeTail = take(bytes, size_of::<RawDaInfo>(), WHAT)?;
        // A leaf has its count of removed entries there.
        let level = if what == NODE.what { tail.level.get() } else { 0 };
        if what == NODE.what && (level == 0 || tail.count.get() == 0) {
            return Err(damaged("an inner block without level or children").into());
        }
        let count = usize::from(tail.count.get());
        let mut items = Vec::with_capacity(count.saturating_add(1));
        for i in 0..count {
            let raw: RawDirLeafEntry = take(bytes, HEAD.saturating_add(i.saturating_mul(ITEM)), WHAT)?;
            if level > 0 || raw.address.get() != 0 {
                items.push((raw.hashval.get(), raw.address.get()));
            }
        }
        if !items.is_sorted_by(|a, b| a.0 <= b.0) {
            return Err(damaged("hashes are out of order").into());
        }
        let mut bests = Vec::new();
        if only {
            let end = bytes.len().saturating_sub(TAIL);
            let count = index(take::<U32>(bytes, end, WHAT)?.get().into())?;
            let used = HEAD.saturating_add(usize::from(tail.count.get()).saturating_mul(ITEM));
            let first = count.checked_mul(BEST).and_then(|len| end.checked_sub(len)).filter(|at| *at >= used);
            let first = first.ok_or_else(|| damaged("more blocks than fit behind the entries"))?;
            for i in 0..count {
                let best: U16 = take(bytes, first.saturating_add(i.saturating_mul(BEST)), WHAT)?;
                bests.push(best.get());
            }
        }
        Ok(Self {
            at,
            place: Daddr(info.blkno.get()),
            level,
            forw: info.hdr.forw.get(),
            back: info.hdr.back.get(),
            lsn: Lsn(info.lsn.get()),
            items,
            only,
            bests,
        })
    }

    /// Most items of a block of the tree.
    pub(super) fn most(geometry: &Geometry) -> usize {
        geometry.bytes.saturating_sub(HEAD).checked_div(ITEM).unwrap_or(0)
    }

    /// Whether it can be the only leaf with `more` items, and with one more block or not.
    pub(super) fn fits(&self, geometry: &Geometry, more: usize, block: bool) -> bool {
        let items = self.items.len().saturating_add(more).saturating_mul(ITEM);
        let bests = self.bests.len().saturating_add(usize::from(block)).saturating_mul(BEST);
        HEAD.saturating_add(TAIL).saturating_add(items).saturating_add(bests) <= geometry.bytes
    }

    /// The highest hash in it.
    pub(super) fn highest(&self) -> u32 {
        self.items.last().map_or(0, |(hash, _)| *hash)
    }

    /// Adds an item of a leaf.
    pub(super) fn insert(&mut self, item: (u32, u32)) {
        let at = self.items.partition_point(|(hash, _)| *hash <= item.0);
        self.items.insert(at, item);
    }

    /// Takes away an item of a leaf.
    pub(super) fn forget(&mut self, item: (u32, u32)) -> Result<()> {
        let found = self.position(item).ok_or_else(|| damaged("an entry has no leaf entry"))?;
        self.items.remove(found);
        Ok(())
    }

    /// Where an item of a leaf is.
    pub(super) fn position(&self, item: (u32, u32)) -> Option<usize> {
        let from = self.items.partition_point(|(hash, _)| *hash < item.0);
        let same = self.items.iter().skip(from).take_while(|(hash, _)| *hash == item.0);
        let on = same.into_iter().position(|found| *found == item)?;
        Some(from.saturating_add(on))
    }
}
