//! An attribute fork built from its attributes: inside the inode while they fit, else a leaf, else a tree of leaves,
//! with large values in blocks of their own behind them.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part_mut, take};
use zerocopy::IntoBytes;

use super::super::attr::{Attr, AttrFlags};
use super::super::bmap::Mapping;
use super::super::da::hash;
use super::super::described::{DA_SELF, REMOTE_SELF};
use super::super::fault::Fault;
use super::super::inode::{DiFlags2, ForkFormat, Inode};
use super::super::layout::{
    ATTR_LEAF_MAGIC, ATTR_REMOTE_MAGIC, DA_NODE_MAGIC, RawAttrFree, RawAttrLeafEntry, RawAttrLeafTail,
    RawAttrLocal, RawAttrRemote, RawAttrRemoteName, RawAttrShort, RawAttrShortEntry, RawDaInfo, RawDaInfo4,
    RawDaNodeEntry, RawDaNodeTail, RawParent,
};
use super::super::superblock::Superblock;
use super::super::units::{BASIC_BLOCK_SHIFT, Daddr, FileBlock, Lsn};
use super::Edit;
use super::alloc::Want;
use super::fork::{Built, Site, spread};
use super::owner::Owner;

const WHAT: &str = "attribute leaf";
/// Bytes before the entries of a leaf, and of an inner block.
const LEAF_HEAD: usize = size_of::<RawDaInfo>() + size_of::<RawAttrLeafTail>() + 4;
const NODE_HEAD: usize = size_of::<RawDaInfo>() + size_of::<RawDaNodeTail>() + 4;
/// Names in a leaf begin at multiples of this.
const NAME_ALIGN: usize = 4;
/// What the kernel takes for the fixed part of a name whose value lies elsewhere: it counts padding, for ever.
const REMOTE_NAME: usize = 11;
/// Deepest tree: the root's level.
const LEVELS_MAX: u16 = 4;
/// Blocks of values are never logged, and say so.
const NEVER_LOGGED: Lsn = Lsn(u64::MAX);

/// A block of a fork in the making.
struct Block {
    bytes: Vec<u8>,
    /// It is part of a value.
    value: bool,
}

/// Highest hash below, and the block's place in the fork.
type Row = Vec<(u32, u32)>;

/// An attribute on its way into a leaf.
struct Placed<'a> {
    attr: &'a Attr,
    hash: u32,
    /// Where its value begins in the fork, if not beside the name.
    remote: Option<u32>,
}

impl Edit {
    /// Builds the fork with these attributes and allocates its blocks. Returns it and how many there are.
    pub(super) fn build_attrs(&mut self, site: Site, attrs: &[Attr]) -> Result<(Built, u64)> {
        self.build_all(site, attrs).within(|| format!("writing the attributes of inode {}", site.ino.0))
    }

    fn build_all(&mut self, site: Site, attrs: &[Attr]) -> Result<(Built, u64)> {
        let empty = |format, bytes| Built { format, bytes, extents: 0, tree_blocks: 0 };
        if attrs.is_empty() {
            return Ok((empty(ForkFormat::Extents, vec![0; site.room]), 0));
        }
        if let Some(mut bytes) = short(attrs).filter(|b| b.len() <= site.room) {
            bytes.resize(site.room, 0);
            return Ok((empty(ForkFormat::Local, bytes), 0));
        }
        let volume = std::sync::Arc::clone(&self.volume);
        let blocks = Building::new(&volume.sb, site)?.all(attrs)?;
        let (near, _, _) = volume.sb.split_inode(site.ino)?;
        let (mut extents, mut behind, mut done) = (Vec::<Mapping>::new(), None, 0u64);
        let whole = len64(blocks.len());
        while let Some(left) = whole.checked_sub(done).filter(|l| *l > 0) {
            let take = u32::try_from(left).unwrap_or(u32::MAX);
            let want = Want { whole: left, take, near, behind };
            let found = self.allocate(want, Owner::content(site.ino, site.kind, done, false))?;
            let (start, len) = (self.fs_block(found)?, u64::from(found.run.len));
            extents.push(Mapping { at: FileBlock(done), start, len, unwritten: false });
            behind = Some(found.run.end()).filter(|_| found.ag == near);
            done = done.saturating_add(len);
            self.breathe()?;
        }
        let mut rest = blocks.into_iter();
        for extent in &extents {
            let mut place = volume.sb.span(extent.start, extent.len)?;
            for mut block in rest.by_ref().take(index(extent.len)?) {
                block.finish(Daddr(place.start() >> BASIC_BLOCK_SHIFT))?;
                volume.disk.write_at(place.start(), &block.bytes)?;
                place = place.skip(volume.sb.block_size.bytes());
            }
        }
        let built = self.build_fork(site, &extents, near)?;
        let count = whole.saturating_add(built.tree_blocks);
        Ok((built, count))
    }
}

impl Block {
    /// Says where it lies, and seals it.
    fn finish(&mut self, place: Daddr) -> Result<()> {
        let (itself, lsn) = if self.value { (REMOTE_SELF, NEVER_LOGGED) } else { (DA_SELF, Lsn(0)) };
        if let Some(at) = itself.blkno {
            part_mut(&mut self.bytes, at, 8, WHAT)?.copy_from_slice(&place.0.to_be_bytes());
        }
        itself.stamp(&mut self.bytes, lsn)
    }
}

/// Attributes as they lie in an inode; none if they never can.
pub(super) fn short(attrs: &[Attr]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size_of::<RawAttrShort>()];
    for attr in attrs {
        let (namelen, valuelen) = (u8::try_from(attr.name.len()).ok()?, u8::try_from(attr.value.len()).ok()?);
        let raw = RawAttrShortEntry { namelen, valuelen, flags: attr.flags.bits() };
        bytes.extend([raw.as_bytes(), &attr.name, &attr.value].concat());
    }
    let totsize = u16::try_from(bytes.len()).ok()?;
    let count = u8::try_from(attrs.len()).ok()?;
    let head = RawAttrShort { totsize: totsize.into(), count, padding: 0 };
    bytes.get_mut(..size_of::<RawAttrShort>())?.copy_from_slice(head.as_bytes());
    Some(bytes)
}

/// The hash under which an attribute is found.
pub(in crate::drivers::xfs) fn attr_hash(sb: &Superblock, attr: &Attr) -> Result<u32> {
    if !attr.flags.contains(AttrFlags::PARENT) {
        return Ok(hash(&attr.name));
    }
    let name = sb.name_hash(&attr.name);
    let parent: RawParent = take(&attr.value, 0, "parent pointer")?;
    let [a, b, c, d, e, f, g, h] = parent.p_ino.get().to_be_bytes();
    Ok(name ^ u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes([e, f, g, h]))
}

/// Bytes of a name with or without its value in a leaf.
fn name_bytes(attr: &Attr, with_value: bool) -> usize {
    let len = match with_value {
        true => size_of::<RawAttrLocal>().saturating_add(attr.value.len()),
        false => REMOTE_NAME,
    };
    len.saturating_add(attr.name.len()).next_multiple_of(NAME_ALIGN)
}

/// Builds the blocks of one fork.
struct Building<'a> {
    sb: &'a Superblock,
    site: Site,
    block: usize,
}

impl<'a> Building<'a> {
    fn new(sb: &'a Superblock, site: Site) -> Result<Self> {
        Ok(Self { sb, site, block: index(sb.block_size.bytes())? })
    }

    /// All blocks of the fork in order.
    fn all(&self, attrs: &[Attr]) -> Result<Vec<Block>> {
        let mut placed = Vec::with_capacity(attrs.len());
        for attr in attrs {
            // The kernel's rule: what would take three quarters of a block goes elsewhere.
            let local_max = (self.block >> 1).saturating_add(self.block >> 2);
            let remote = (name_bytes(attr, true) >= local_max).then_some(0);
            placed.push(Placed { attr, hash: attr_hash(self.sb, attr)?, remote });
        }
        placed.sort_by_key(|p| p.hash);
        let leaves = self.leaves(&placed);
        let rows = self.rows(leaves.len())?;
        // The root first, then leaves, inner blocks, values.
        let inner: usize = rows.iter().map(Vec::len).fold(0, usize::saturating_add);
        let tree = leaves.len().saturating_add(inner);
        let mut values = Vec::new();
        for p in placed.iter_mut().filter(|p| p.remote.is_some()) {
            p.remote = Some(number(tree.saturating_add(values.len()))?);
            self.value(&p.attr.value, &mut values)?;
        }
        let mut rest = placed.as_slice();
        let (mut row, mut blocks) = (Row::new(), Vec::new());
        let first = usize::from(!rows.is_empty());
        for (i, count) in leaves.iter().enumerate() {
            let (now, later) = rest.split_at_checked(*count).unwrap_or((rest, &[]));
            rest = later;
            let siblings = self.siblings(first, leaves.len(), i)?;
            blocks.push(self.leaf(now, siblings)?);
            row.push((now.last().map_or(0, |p| p.hash), number(first.saturating_add(i))?));
        }
        let mut next = first.saturating_add(leaves.len());
        for (level, counts) in rows.iter().enumerate() {
            let at = if counts.len() == 1 { 0 } else { next };
            let level = u16::try_from(level).unwrap_or(u16::MAX).saturating_add(1);
            let (nodes, above) = self.nodes(level, counts, &row, at)?;
            next = next.saturating_add(nodes.len());
            row = above;
            if at == 0 {
                blocks.splice(..0, nodes);
            } else {
                blocks.extend(nodes);
            }
        }
        blocks.extend(values);
        Ok(blocks)
    }

    /// How many attributes go into each leaf. Those of one hash stay together if they can: `xfs_repair` wants the
    /// last hash of each leaf to be above the one before.
    fn leaves(&self, placed: &[Placed<'_>]) -> Vec<usize> {
        let room = self.block.saturating_sub(LEAF_HEAD);
        let need = |p: &Placed<'_>| {
            size_of::<RawAttrLeafEntry>().saturating_add(name_bytes(p.attr, p.remote.is_none()))
        };
        let (mut counts, mut count, mut used) = (Vec::new(), 0usize, 0usize);
        for alike in placed.chunk_by(|a, b| a.hash == b.hash) {
            let mut want = alike.iter().map(need).fold(0, usize::saturating_add);
            for p in alike {
                if count > 0 && used.saturating_add(want.max(need(p))) > room {
                    counts.push(count);
                    (count, used) = (0, 0);
                }
                count = count.saturating_add(1);
                used = used.saturating_add(need(p));
                want = 0;
            }
        }
        counts.push(count);
        counts
    }

    /// How many children each inner block has, row by row from the leaves up to the root; no row over a single leaf.
    fn rows(&self, leaves: usize) -> Result<Vec<Vec<usize>>> {
        let max = self.block.saturating_sub(NODE_HEAD).checked_div(size_of::<RawDaNodeEntry>()).unwrap_or(1);
        let (mut rows, mut below) = (Vec::<Vec<usize>>::new(), leaves);
        while below > 1 {
            let row: Vec<usize> = spread(below, max).collect();
            below = row.len();
            rows.push(row);
            if rows.len() > usize::from(LEVELS_MAX) {
                return Err(Fault::Unsupported { what: "so large an attribute fork" }.into());
            }
        }
        Ok(rows)
    }

    /// The neighbours of number `i` of a row that begins at block `first`: behind and before.
    fn siblings(&self, first: usize, count: usize, i: usize) -> Result<(u32, u32)> {
        let at = |i: Option<usize>| match i.filter(|i| *i < count) {
            Some(i) => number(first.saturating_add(i)),
            None => Ok(0),
        };
        Ok((at(i.checked_add(1))?, at(i.checked_sub(1))?))
    }

    fn info(&self, magic: u16, (forw, back): (u32, u32)) -> RawDaInfo {
        RawDaInfo {
            hdr: RawDaInfo4 { forw: forw.into(), back: back.into(), magic: magic.into(), pad: 0.into() },
            crc: 0.into(),
            blkno: 0.into(),
            lsn: 0.into(),
            uuid: self.sb.meta_uuid,
            owner: self.site.ino.0.into(),
        }
    }

    /// Inner blocks of one level from block `first` on, and the row that they make.
    fn nodes(&self, level: u16, counts: &[usize], below: &Row, first: usize) -> Result<(Vec<Block>, Row)> {
        let (mut blocks, mut row) = (Vec::new(), Row::new());
        let mut rest = below.as_slice();
        for (i, count) in counts.iter().enumerate() {
            let (now, later) = rest.split_at_checked(*count).unwrap_or((rest, &[]));
            rest = later;
            let tail = RawDaNodeTail { count: small(now.len())?.into(), level: level.into() };
            let info = self.info(DA_NODE_MAGIC[1], self.siblings(first, counts.len(), i)?);
            let mut bytes = [info.as_bytes(), tail.as_bytes(), &[0; 4]].concat();
            for (hashval, before) in now {
                let entry = RawDaNodeEntry { hashval: (*hashval).into(), before: (*before).into() };
                bytes.extend_from_slice(entry.as_bytes());
            }
            bytes.resize(self.block, 0);
            blocks.push(Block { bytes, value: false });
            row.push((now.last().map_or(0, |(hash, _)| *hash), number(first.saturating_add(i))?));
        }
        Ok((blocks, row))
    }

    /// A leaf: entries from the front, names from the back.
    fn leaf(&self, placed: &[Placed<'_>], siblings: (u32, u32)) -> Result<Block> {
        let mut bytes = vec![0; self.block];
        let (mut entry_at, mut name_at) = (LEAF_HEAD, self.block);
        for p in placed {
            let len = name_bytes(p.attr, p.remote.is_none());
            let full = Fault::Structure { what: WHAT, why: "the names do not fit" };
            name_at = name_at.checked_sub(len).filter(|at| *at > entry_at).ok_or(full)?;
            let namelen = u8::try_from(p.attr.name.len()).unwrap_or(u8::MAX);
            let (name, local) = match p.remote {
                None => {
                    let raw = RawAttrLocal { valuelen: small(p.attr.value.len())?.into(), namelen };
                    ([raw.as_bytes(), &p.attr.name, &p.attr.value].concat(), AttrFlags::LOCAL)
                }
                Some(block) => {
                    let valuelen = number(p.attr.value.len())?.into();
                    let raw = RawAttrRemoteName { valueblk: block.into(), valuelen, namelen };
                    ([raw.as_bytes(), p.attr.name.as_slice()].concat(), AttrFlags::empty())
                }
            };
            part_mut(&mut bytes, name_at, name.len(), WHAT)?.copy_from_slice(&name);
            let flags = p.attr.flags.union(local).bits();
            let nameidx = small(name_at)?.into();
            let entry = RawAttrLeafEntry { hashval: p.hash.into(), nameidx, flags, pad2: 0 };
            part_mut(&mut bytes, entry_at, size_of::<RawAttrLeafEntry>(), WHAT)?
                .copy_from_slice(entry.as_bytes());
            entry_at = entry_at.saturating_add(size_of::<RawAttrLeafEntry>());
        }
        let none = RawAttrFree { base: 0.into(), size: 0.into() };
        let free = name_at.saturating_sub(entry_at);
        let tail = RawAttrLeafTail {
            count: small(placed.len())?.into(),
            usedbytes: small(self.block.saturating_sub(name_at))?.into(),
            firstused: small(name_at)?.into(),
            holes: 0,
            pad1: 0,
            freemap: [RawAttrFree { base: small(entry_at)?.into(), size: small(free)?.into() }, none, none],
        };
        let info = self.info(ATTR_LEAF_MAGIC[1], siblings);
        let head = [info.as_bytes(), tail.as_bytes()].concat();
        part_mut(&mut bytes, 0, head.len(), WHAT)?.copy_from_slice(&head);
        Ok(Block { bytes, value: false })
    }

    /// A value in blocks of its own.
    fn value(&self, value: &[u8], blocks: &mut Vec<Block>) -> Result<()> {
        let room = self.block.saturating_sub(size_of::<RawAttrRemote>()).max(1);
        for (i, piece) in value.chunks(room).enumerate() {
            let head = RawAttrRemote {
                rm_magic: ATTR_REMOTE_MAGIC.into(),
                rm_offset: number(i.saturating_mul(room))?.into(),
                rm_bytes: number(piece.len())?.into(),
                rm_crc: 0.into(),
                rm_uuid: self.sb.meta_uuid,
                rm_owner: self.site.ino.0.into(),
                rm_blkno: 0.into(),
                rm_lsn: 0.into(),
            };
            let mut bytes = [head.as_bytes(), piece].concat();
            bytes.resize(self.block, 0);
            blocks.push(Block { bytes, value: true });
        }
        Ok(())
    }
}

/// A number of the format with 32 bits.
fn number(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Fault::Unsupported { what: "so large an attribute fork" }.into())
}

/// A number of the format with 16 bits.
fn small(value: usize) -> Result<u16> {
    u16::try_from(value).map_err(|_| Fault::Structure { what: WHAT, why: "too large" }.into())
}

/// Whether the counts of extents are in the large fields.
pub(super) fn big_counts(inode: &Inode) -> bool {
    inode.flags2.contains(DiFlags2::NREXT64)
}
