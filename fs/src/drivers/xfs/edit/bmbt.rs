//! The extent tree of a fork, changed in place: one record at a time, with splits and merges. Its root lies in the
//! inode.
//!
//! Each way down asks a block for the level of its parent minus one and for a first key as its parent has it, so
//! that no block is met twice on it.

use racker_formats::error::Result;
use racker_formats::wire::{index, part_mut, take};
use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::super::bmap::{BMBT, Mapping};
use super::super::described::LONG_SELF;
use super::super::fault::Fault;
use super::super::inode::{ForkKind, Inode, bmbt_levels_max, bmdr_entries};
use super::super::layout::{BMBT_MAGIC, RawBmbtRec, RawBmdrBlock, RawBtreeHead, RawLongBlock};
use super::super::units::{AgNo, FsBlock, InodeNo, Lsn, NULL_FS_BLOCK};
use super::Edit;
use super::alloc::Want;
use super::owner::Owner;
use super::records::Run;

const HEAD: usize = size_of::<RawLongBlock>();
/// Bytes of a record, and of a key with its pointer.
const ITEM: usize = size_of::<RawBmbtRec>();
const KEY: usize = size_of::<U64>();

/// A record with its offset, or a child with its key: the same size on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    key: u64,
    /// The record, or the child's block.
    body: u128,
}

impl Item {
    fn record(mapping: &Mapping) -> Self {
        let raw = mapping.encode();
        Self { key: mapping.at.0, body: u128::from(raw.l0.get()) << 64 | u128::from(raw.l1.get()) }
    }

    fn child(key: u64, block: FsBlock) -> Self {
        Self { key, body: block.0.into() }
    }

    fn block(self) -> Result<FsBlock> {
        let block = u64::try_from(self.body).map_err(|_| damaged("a child that cannot be"))?;
        Ok(FsBlock(block))
    }
}

/// A block of the tree, or its root.
#[derive(Clone, Debug)]
struct Node {
    /// Nowhere: the root.
    at: Option<FsBlock>,
    level: u16,
    left: u64,
    right: u64,
    lsn: Lsn,
    items: Vec<Item>,
    dirty: bool,
}

/// A step of the way from the root to a leaf.
struct Step {
    node: Node,
    index: usize,
}

/// The tree of one fork.
pub(super) struct Bmbt<'e> {
    edit: &'e mut Edit,
    ino: InodeNo,
    kind: ForkKind,
    near: AgNo,
    root: Node,
    root_max: usize,
    max: usize,
    /// Blocks that the tree gained, and lost.
    gained: u64,
    lost: u64,
}

fn damaged(why: &'static str) -> Fault {
    Fault::Structure { what: BMBT.what, why }
}

impl<'e> Bmbt<'e> {
    /// The tree of a fork that has one.
    pub(super) fn open(edit: &'e mut Edit, inode: &Inode, kind: ForkKind) -> Result<Self> {
        let fork = inode.fork(kind).ok_or_else(|| damaged("the fork is not there"))?;
        let bytes = inode.fork_bytes(fork)?;
        let raw: RawBmdrBlock = take(bytes, 0, BMBT.what)?;
        let head = size_of::<RawBmdrBlock>();
        let root_max = bmdr_entries(fork.room);
        let pointers = head.saturating_add(root_max.saturating_mul(KEY));
        let items = children(bytes, head, pointers, raw.bb_numrecs.get().into())?;
        let level = raw.bb_level.get();
        let root = Node {
            at: None,
            level,
            left: NULL_FS_BLOCK,
            right: NULL_FS_BLOCK,
            lsn: Lsn(0),
            items,
            dirty: false,
        };
        let room = index(edit.volume.sb.block_size.bytes())?.saturating_sub(HEAD);
        let max = room.checked_div(ITEM).unwrap_or(1);
        let (near, _, _) = edit.volume.sb.split_inode(inode.ino)?;
        Ok(Self { edit, ino: inode.ino, kind, near, root, root_max, max, gained: 0, lost: 0 })
    }

    /// Puts the root back into the inode, which afterwards has `extents` extents.
    pub(super) fn close(self, inode: &mut Inode, extents: u64) -> Result<()> {
        let Some(fork) = inode.fork(self.kind).copied() else { return Ok(()) };
        if self.root.dirty {
            let mut bytes = vec![0; fork.room];
            put_root(&mut bytes, &self.root, self.root_max)?;
            part_mut(&mut inode.bytes, fork.at, fork.room, "fork")?.copy_from_slice(&bytes);
        }
        inode.count_extents(self.kind, extents)?;
        inode.count_blocks(self.gained, self.lost)?;
        let volume = std::sync::Arc::clone(&self.edit.volume);
        inode.reparse(&volume)
    }

    /// Makes room for a fork of other size in the inode: a root that no longer fits moves into a block.
    pub(super) fn refit(mut self, room: usize) -> Result<(Vec<u8>, u64)> {
        self.root_max = bmdr_entries(room);
        if self.root.items.len() > self.root_max {
            self.grow()?;
        }
        let mut bytes = vec![0; room];
        put_root(&mut bytes, &self.root, self.root_max)?;
        Ok((bytes, self.gained))
    }

    /// Puts `new` in the place of `old`, which begins in the same gap between its neighbours.
    pub(super) fn update(&mut self, old: &Mapping, new: &Mapping) -> Result<()> {
        let mut path = self.find_exact(old)?;
        if let Some(step) = path.last_mut() {
            if let Some(place) = step.node.items.get_mut(step.index) {
                *place = Item::record(new);
            }
            step.node.dirty = true;
        }
        self.finish(path)
    }

    /// Adds a record.
    pub(super) fn insert(&mut self, new: &Mapping) -> Result<()> {
        let mut path = self.find(new.at.0)?;
        let mut item = Item::record(new);
        let mut depth = path.len().saturating_sub(1);
        if let Some(step) = path.last_mut() {
            let place = step.node.items.partition_point(|i| i.key < item.key);
            if step.node.items.get(place).is_some_and(|i| i.key == item.key) {
                return Err(damaged("an extent is there already").into());
            }
            step.index = place;
        }
        let mut behind = 0usize;
        loop {
            let root = depth == 0;
            let most = if root { self.root_max } else { self.max };
            let Some(step) = path.get_mut(depth) else { return Err(damaged("a way ends early").into()) };
            let at = step.index.saturating_add(behind).min(step.node.items.len());
            step.node.items.insert(at, item);
            step.node.dirty = true;
            if step.node.items.len() <= most {
                break;
            }
            if root {
                self.finish(path)?;
                return self.grow();
            }
            let middle = step.node.items.len().div_ceil(2);
            let items = step.node.items.split_off(middle);
            let (Some(left), Some(first)) = (step.node.at, items.first().copied()) else {
                return Err(damaged("a split of nothing").into());
            };
            let (level, right) = (step.node.level, step.node.right);
            let block = self.take(left)?;
            if let Some(step) = path.get_mut(depth) {
                step.node.right = block.0;
            }
            self.turn(right, level, Some(block))?;
            let new = Node { at: Some(block), level, left: left.0, right, lsn: Lsn(0), items, dirty: true };
            self.write(&new)?;
            item = Item::child(first.key, block);
            behind = 1;
            depth = depth.saturating_sub(1);
        }
        self.finish(path)
    }

    /// Takes a record away; others remain.
    pub(super) fn remove(&mut self, old: &Mapping) -> Result<()> {
        let mut path = self.find_exact(old)?;
        if let Some(step) = path.last_mut() {
            step.node.items.remove(step.index);
            step.node.dirty = true;
        }
        let mut depth = path.len().saturating_sub(1);
        while depth > 0 {
            let few = path.get(depth).is_some_and(|s| s.node.items.len() < self.max >> 1);
            if !few || !self.mend(&mut path, depth)? {
                break;
            }
            depth = depth.saturating_sub(1);
        }
        self.finish(path)?;
        self.shrink()
    }

    /// Brings the block at `depth` back to half full. Says whether its parent lost a child.
    fn mend(&mut self, path: &mut Vec<Step>, depth: usize) -> Result<bool> {
        let above = depth.saturating_sub(1);
        let Some(parent) = path.get(above) else { return Ok(false) };
        let place = parent.index;
        let from = place.saturating_sub(1);
        let to = from.saturating_add(1);
        let sibling = if place > 0 { from } else { to };
        let Some(child) = parent.node.items.get(sibling).copied() else { return Ok(false) };
        let level = parent.node.level.saturating_sub(1);
        let other = self.read(child, level)?;
        let Some(step) = path.get_mut(depth) else { return Ok(false) };
        let own = step.node.clone();
        let (mut left, mut right) = if place > 0 { (other, own) } else { (own, other) };
        let numbers = (left.at.map(|b| b.0), right.at.map(|b| b.0));
        if numbers != (Some(right.left), Some(left.right)) {
            return Err(damaged("siblings do not name each other").into());
        }
        let total = left.items.len().saturating_add(right.items.len());
        left.items.append(&mut right.items);
        left.dirty = true;
        if total <= self.max {
            left.right = right.right;
            let block = right.at.ok_or_else(|| damaged("a root among siblings"))?;
            self.turn(right.right, level, left.at)?;
            self.give(block)?;
            self.write(&left)?;
            // What is below the parent now lies as it is to lie.
            path.truncate(depth);
            if let Some(parent) = path.get_mut(above) {
                parent.node.items.remove(to);
                if let (Some(item), Some(first)) = (parent.node.items.get_mut(from), left.items.first()) {
                    item.key = first.key;
                }
                parent.node.dirty = true;
                parent.index = from;
            }
            return Ok(true);
        }
        right.items = left.items.split_off(total.div_ceil(2));
        right.dirty = true;
        let first = right.items.first().map(|i| i.key);
        let (own, other) = if place > 0 { (right, left) } else { (left, right) };
        self.write(&other)?;
        if let Some(step) = path.get_mut(depth) {
            step.node = own;
        }
        if let (Some(parent), Some(first)) = (path.get_mut(above), first)
            && let Some(item) = parent.node.items.get_mut(to)
        {
            item.key = first;
            parent.node.dirty = true;
        }
        Ok(false)
    }

    /// Writes the changed blocks of a way, each with its first key known to its parent.
    fn finish(&mut self, mut path: Vec<Step>) -> Result<()> {
        for depth in (1..path.len()).rev() {
            let first = path.get(depth).and_then(|s| s.node.items.first()).map(|i| i.key);
            let Some(first) = first else { return Err(damaged("an empty block").into()) };
            if let Some(parent) = path.get_mut(depth.saturating_sub(1))
                && let Some(item) = parent.node.items.get_mut(parent.index)
                && item.key != first
            {
                item.key = first;
                parent.node.dirty = true;
            }
        }
        self.settle(path)
    }

    fn settle(&mut self, path: Vec<Step>) -> Result<()> {
        for step in path {
            if step.node.at.is_none() {
                self.root = step.node;
            } else if step.node.dirty {
                self.write(&step.node)?;
            }
        }
        Ok(())
    }

    /// Moves what the root has into a block below it.
    fn grow(&mut self) -> Result<()> {
        if u32::from(self.root.level) >= bmbt_levels_max(&self.edit.volume.sb) {
            return Err(damaged("the tree cannot grow any higher").into());
        }
        let first = self.root.items.first().copied().ok_or_else(|| damaged("an empty root"))?;
        let block = self.take(first.block()?)?;
        let items = std::mem::take(&mut self.root.items);
        let level = self.root.level;
        let ends = NULL_FS_BLOCK;
        let child = Node { at: Some(block), level, left: ends, right: ends, lsn: Lsn(0), items, dirty: true };
        self.write(&child)?;
        self.root.items.push(Item::child(first.key, block));
        self.root.level = level.saturating_add(1);
        self.root.dirty = true;
        Ok(())
    }

    /// Takes away an only child of the root whose entries fit into the inode.
    fn shrink(&mut self) -> Result<()> {
        while let ([only], true) = (self.root.items.as_slice(), self.root.level > 1) {
            let level = self.root.level.saturating_sub(1);
            let child = self.read(*only, level)?;
            if child.items.len() > self.root_max {
                return Ok(());
            }
            if let Some(block) = child.at {
                self.give(block)?;
            }
            self.root.items = child.items;
            self.root.level = level;
            self.root.dirty = true;
        }
        Ok(())
    }

    /// The way to the leaf that has, or would have, a record at `key`.
    fn find(&mut self, key: u64) -> Result<Vec<Step>> {
        let mut path = Vec::new();
        let mut node = self.root.clone();
        loop {
            let index = node.items.partition_point(|i| i.key <= key).saturating_sub(1);
            let level = node.level;
            let child = node.items.get(index).copied();
            path.push(Step { node, index });
            if level == 0 {
                return Ok(path);
            }
            let child = child.ok_or_else(|| damaged("an inner block without children"))?;
            node = self.read(child, level.saturating_sub(1))?;
        }
    }

    fn find_exact(&mut self, old: &Mapping) -> Result<Vec<Step>> {
        let path = self.find(old.at.0)?;
        let found = path.last().and_then(|s| s.node.items.get(s.index));
        if found != Some(&Item::record(old)) {
            return Err(damaged("an extent is not where it was found").into());
        }
        Ok(path)
    }

    fn read(&self, child: Item, level: u16) -> Result<Node> {
        let node = self.read_block(child.block()?, level)?;
        if node.items.first().is_none_or(|i| i.key != child.key) {
            return Err(damaged("a block does not begin where its parent says").into());
        }
        Ok(node)
    }

    fn read_block(&self, block: FsBlock, level: u16) -> Result<Node> {
        let volume = &self.edit.volume;
        let bytes = volume.block(&BMBT, volume.sb.span(block, 1)?, self.ino.0)?;
        let raw: RawLongBlock = take(&bytes, 0, BMBT.what)?;
        let found = raw.head.bb_level.get();
        if found != level {
            let (found, expected) = (found.into(), level.into());
            return Err(Fault::TreeLevel { what: BMBT.what, found, expected }.into());
        }
        let count = usize::from(raw.head.bb_numrecs.get());
        if count == 0 || count > self.max {
            return Err(damaged("a block has more entries than fit, or none").into());
        }
        let items = if level == 0 {
            let mut items = Vec::with_capacity(count.saturating_add(1));
            for i in 0..count {
                let raw = take(&bytes, HEAD.saturating_add(i.saturating_mul(ITEM)), BMBT.what)?;
                items.push(Item::record(&Mapping::decode(&raw)));
            }
            items
        } else {
            children(&bytes, HEAD, HEAD.saturating_add(self.max.saturating_mul(KEY)), count)?
        };
        if !items.is_sorted_by(|a, b| a.key < b.key) {
            return Err(damaged("keys are out of order").into());
        }
        let (left, right) = (raw.bb_leftsib.get(), raw.bb_rightsib.get());
        Ok(Node { at: Some(block), level, left, right, lsn: Lsn(raw.bb_lsn.get()), items, dirty: false })
    }

    fn write(&self, node: &Node) -> Result<()> {
        let Some(block) = node.at else { return Ok(()) };
        let sb = &self.edit.volume.sb;
        let mut bytes = vec![0; index(sb.block_size.bytes())?];
        let head = RawLongBlock {
            head: RawBtreeHead {
                bb_magic: BMBT_MAGIC[1].into(),
                bb_level: node.level.into(),
                bb_numrecs: u16::try_from(node.items.len()).unwrap_or(u16::MAX).into(),
            },
            bb_leftsib: node.left.into(),
            bb_rightsib: node.right.into(),
            bb_blkno: sb.daddr(block)?.0.into(),
            bb_lsn: node.lsn.0.into(),
            bb_uuid: sb.meta_uuid,
            bb_owner: self.ino.0.into(),
            bb_crc: 0.into(),
            bb_pad: 0.into(),
        };
        part_mut(&mut bytes, 0, HEAD, BMBT.what)?.copy_from_slice(head.as_bytes());
        if node.level == 0 {
            for (item, place) in
                node.items.iter().zip(bytes.get_mut(HEAD..).unwrap_or_default().chunks_mut(ITEM))
            {
                place.copy_from_slice(&item.body.to_be_bytes());
            }
        } else {
            put_children(&mut bytes, HEAD, self.max, &node.items)?;
        }
        LONG_SELF.stamp(&mut bytes, node.lsn)?;
        self.edit.volume.disk.write_at(sb.span(block, 1)?.start(), &bytes)
    }

    /// Makes `block`, if it is one, name `left` as its left sibling.
    fn turn(&mut self, block: u64, level: u16, left: Option<FsBlock>) -> Result<()> {
        if block == NULL_FS_BLOCK {
            return Ok(());
        }
        let mut node = self.read_block(FsBlock(block), level)?;
        node.left = left.map_or(NULL_FS_BLOCK, |b| b.0);
        self.write(&node)
    }

    fn take(&mut self, near: FsBlock) -> Result<FsBlock> {
        let (ag, within) = self.edit.volume.sb.split(near)?;
        let near = if ag == self.near { ag } else { self.near };
        let behind = (ag == near).then(|| within.0.saturating_add(1));
        let owner = Owner::fork_tree(self.ino, self.kind);
        let found = self.edit.allocate(Want { whole: 1, take: 1, near, behind }, owner)?;
        self.gained = self.gained.saturating_add(1);
        self.edit.fs_block(found)
    }

    fn give(&mut self, block: FsBlock) -> Result<()> {
        let (ag, within) = self.edit.volume.sb.split(block)?;
        let owner = Owner::fork_tree(self.ino, self.kind);
        self.lost = self.lost.saturating_add(1);
        self.edit.group(ag)?.release_own(Run { start: within.0, len: 1 }, owner)
    }
}

/// `count` keys at `keys` with as many blocks at `pointers`.
fn children(bytes: &[u8], keys: usize, pointers: usize, count: usize) -> Result<Vec<Item>> {
    let word = |base: usize, i: usize| -> Result<u64> {
        Ok(take::<U64>(bytes, base.saturating_add(i.saturating_mul(KEY)), BMBT.what)?.get())
    };
    (0..count).map(|i| Ok(Item::child(word(keys, i)?, FsBlock(word(pointers, i)?)))).collect()
}

/// Writes children at `at`, where there is room for `max`.
fn put_children(bytes: &mut [u8], at: usize, max: usize, items: &[Item]) -> Result<()> {
    let pointers = at.saturating_add(max.saturating_mul(KEY));
    for (i, item) in items.iter().enumerate() {
        let on = i.saturating_mul(KEY);
        part_mut(bytes, at.saturating_add(on), KEY, BMBT.what)?.copy_from_slice(&item.key.to_be_bytes());
        let block = item.block()?.0.to_be_bytes();
        part_mut(bytes, pointers.saturating_add(on), KEY, BMBT.what)?.copy_from_slice(&block);
    }
    Ok(())
}

fn put_root(bytes: &mut [u8], root: &Node, max: usize) -> Result<()> {
    if root.items.len() > max {
        return Err(damaged("more pointers than fit into the inode").into());
    }
    let head = RawBmdrBlock {
        bb_level: root.level.into(),
        bb_numrecs: u16::try_from(root.items.len()).unwrap_or(u16::MAX).into(),
    };
    let len = size_of::<RawBmdrBlock>();
    part_mut(bytes, 0, len, BMBT.what)?.copy_from_slice(head.as_bytes());
    put_children(bytes, len, max, &root.items)
}
