//! Directories: entries looked up, put in and taken out, whatever form the directory has.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::part;

use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, Incompat};
use super::super::inode::Inode;
use super::super::layout::{DIR_TAIL_BYTES, DIR_TAIL_TYPE, inode_flags};
use super::super::map::Mapping;
use super::super::volume::Ext4;
use super::Edit;
use super::bytes::{get32, put, put16, put32};
use super::dirblock::{New, Place, find, insert, pack, places, point, remove};
use super::node::Node;
use super::xattr_list::Value;
use crate::filesystem::NodeKind;

/// Bytes in place of the block map that hold entries: the first four name the parent.
const INLINE_FROM: usize = 4;
/// Where the entry `..` is in the first block.
const PARENT_AT: usize = 12;

/// A directory block in memory: its number in the directory and in the filesystem.
pub(super) struct DirBlock {
    pub(super) number: u64,
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

/// What is done with an entry.
#[derive(Clone, Copy)]
enum Act {
    Remove,
    /// Names another node of this kind from now on.
    Point(u32, NodeKind),
}

impl Edit {
    fn file_type(&self, kind: NodeKind) -> u8 {
        if self.fs.sb.features.incompat.contains(Incompat::FILETYPE) { kind.entry_type() } else { 0 }
    }

    pub(super) fn is_indexed(&self, dir: &Node) -> bool {
        let listed = dir.has(inode_flags::INDEX) && !dir.is_inline();
        listed && self.fs.sb.features.compat.contains(Compat::DIR_INDEX)
    }

    /// Reads a block of a directory.
    pub(super) fn dir_block(&self, dir: &Node, number: u64) -> Result<DirBlock> {
        self.fs.dir_block(&dir.view(&self.fs.sb)?, number)
    }

    /// Stores a block of entries.
    pub(super) fn put_leaf(&mut self, dir: &Node, mut block: DirBlock) -> Result<()> {
        if self.fs.sb.features.has_metadata_csum() {
            let tail = self.fs.usable()?;
            let bytes = &mut block.bytes;
            put32(bytes, tail, 0)?;
            put16(bytes, tail.saturating_add(4), u16::try_from(DIR_TAIL_BYTES).unwrap_or(12))?;
            put(bytes, tail.saturating_add(6), &[0, DIR_TAIL_TYPE])?;
            let sum = crc32c(dir.seed(&self.fs.sb), part(bytes, 0, tail, "directory block")?);
            put32(bytes, tail.saturating_add(8), sum)?;
        }
        self.check_owned("a directory", block.at, 1)?;
        self.put_block(block.at, block.bytes)
    }

    /// Adds an empty block to a directory.
    pub(super) fn append(&mut self, dir: &mut Node) -> Result<DirBlock> {
        let block = self.fs.sb.block_size;
        let number = block.count(dir.size);
        let wide = self.fs.sb.features.incompat.contains(Incompat::LARGEDIR);
        if number >= self.blocks_max(dir) || (!wide && dir.size >= 1 << 31) {
            return Err(Ext4Fault::NoRoom("the directory").into());
        }
        self.fill(dir, number, number.saturating_add(1))?;
        let Mapping::Data(at) = self.map(dir, number)?.to else {
            return Err(Ext4Fault::DirHole(number).into());
        };
        dir.size = block.start_of(number.saturating_add(1)).unwrap_or(u64::MAX);
        let mut bytes = vec![0; self.fs.block_len()?];
        let usable = self.fs.usable()?;
        pack(&mut bytes, usable, &[])?;
        Ok(DirBlock { number, at, bytes })
    }

    /// The node that a name has in a directory.
    pub(super) fn find_entry(&self, dir: &Node, name: &[u8]) -> Result<Option<u32>> {
        self.fs.find_entry(&dir.view(&self.fs.sb)?, name)
    }

    /// Puts an entry into a directory, which the caller stores.
    pub(super) fn add_entry(
        &mut self,
        dir: &mut Node,
        name: &[u8],
        number: u32,
        kind: NodeKind,
    ) -> Result<()> {
        let place = format!("directory inode {}", dir.number);
        self.add_to(dir, name, number, kind).within(|| place)
    }

    fn add_to(&mut self, dir: &mut Node, name: &[u8], number: u32, kind: NodeKind) -> Result<()> {
        if !self.fs.sb.takes(dir.raw.flags.get(), name) {
            let what = "a directory that ignores case has only names in UTF-8 here (strict encoding)";
            return Err(Ext4Fault::Cannot(what.into()).into());
        }
        let new = New { inode: number, file_type: self.file_type(kind), name };
        if dir.is_inline() {
            if self.add_inline(dir, new)? {
                return Ok(());
            }
            self.move_dir_out(dir)?;
        }
        if self.is_indexed(dir) {
            return self.add_indexed(dir, new);
        }
        if dir.has(inode_flags::INDEX) {
            let what = "an indexed directory in a filesystem without dir_index";
            return Err(Ext4Fault::Cannot(what.into()).into());
        }
        let (usable, blocks) = (self.fs.usable()?, self.fs.dir_blocks(&dir.view(&self.fs.sb)?)?);
        for at in 0..blocks {
            let mut block = self.dir_block(dir, at)?;
            if insert(&mut block.bytes, usable, new)? {
                return self.put_leaf(dir, block);
            }
        }
        if blocks == 1 && self.fs.sb.features.compat.contains(Compat::DIR_INDEX) && self.fs.hash_is_known() {
            self.make_index(dir)?;
            return self.add_indexed(dir, new);
        }
        let mut block = self.append(dir)?;
        if !insert(&mut block.bytes, usable, new)? {
            return Err(Ext4Fault::Directory("a new block has no room").into());
        }
        self.put_leaf(dir, block)
    }

    /// Takes an entry out.
    pub(super) fn remove_entry(&mut self, dir: &mut Node, name: &[u8]) -> Result<()> {
        let place = format!("directory inode {}", dir.number);
        self.act(dir, name, Act::Remove).within(|| place)
    }

    /// Makes an entry name another node.
    pub(super) fn point_entry(&mut self, dir: &mut Node, name: &[u8], to: u32, kind: NodeKind) -> Result<()> {
        let place = format!("directory inode {}", dir.number);
        self.act(dir, name, Act::Point(to, kind)).within(|| place)
    }

    fn act(&mut self, dir: &mut Node, name: &[u8], act: Act) -> Result<()> {
        if dir.is_inline() {
            return self.act_inline(dir, name, act);
        }
        if self.is_indexed(dir) {
            let found = self.fs.find_indexed(&dir.view(&self.fs.sb)?, name)?;
            let (block, place) = found.ok_or(Ext4Fault::Directory("an entry is gone"))?;
            return self.act_in(dir, block, &place, act);
        }
        let usable = self.fs.usable()?;
        let wanted = self.fs.sb.wanted(dir.raw.flags.get(), name);
        for at in 0..self.fs.dir_blocks(&dir.view(&self.fs.sb)?)? {
            let block = self.dir_block(dir, at)?;
            if self.is_index_block(dir, &block)? {
                continue;
            }
            if let Some(place) = find(&block.bytes, usable, &wanted)? {
                return self.act_in(dir, block, &place, act);
            }
        }
        Err(Ext4Fault::Directory("an entry is gone").into())
    }

    /// Whether a block of an indexed directory is one of the index.
    fn is_index_block(&self, dir: &Node, block: &DirBlock) -> Result<bool> {
        let view = dir.view(&self.fs.sb)?;
        Ok(self.fs.index_table(&view, block.number, &block.bytes)?.is_some())
    }

    fn act_in(&mut self, dir: &Node, mut block: DirBlock, place: &Place, act: Act) -> Result<()> {
        let usable = self.fs.usable()?;
        match act {
            Act::Remove => remove(&mut block.bytes, usable, place)?,
            Act::Point(to, kind) => point(&mut block.bytes, place, to, self.file_type(kind))?,
        }
        self.put_leaf(dir, block)
    }

    /// The two stretches of an inline directory's entries.
    pub(super) fn inline_stretches(&self, dir: &Node) -> Result<(Vec<u8>, Vec<u8>)> {
        let [first, second] = self.fs.inline_dir(&dir.view(&self.fs.sb)?)?;
        Ok((first, second))
    }

    pub(super) fn put_stretches(&mut self, dir: &mut Node, first: &[u8], second: &[u8]) -> Result<()> {
        put(&mut dir.raw.block, INLINE_FROM, first)?;
        let mut list = self.inode_attrs(dir)?;
        for attr in list.iter_mut().filter(|a| a.is_inline_data()) {
            attr.value = Value::Here(second.to_vec());
        }
        self.put_inode_attrs(dir, &list)
    }

    fn add_inline(&mut self, dir: &mut Node, new: New<'_>) -> Result<bool> {
        let (mut first, mut second) = self.inline_stretches(dir)?;
        let (one, two) = (first.len(), second.len());
        let done = insert(&mut first, one, new)? || insert(&mut second, two, new)?;
        if done {
            self.put_stretches(dir, &first, &second)?;
        }
        Ok(done)
    }

    fn act_inline(&mut self, dir: &mut Node, name: &[u8], act: Act) -> Result<()> {
        let (mut first, mut second) = self.inline_stretches(dir)?;
        let wanted = self.fs.sb.wanted(dir.raw.flags.get(), name);
        let mut done = false;
        for stretch in [&mut first, &mut second] {
            let len = stretch.len();
            let Some(place) = find(stretch, len, &wanted)? else { continue };
            match act {
                Act::Remove => remove(stretch, len, &place)?,
                Act::Point(to, kind) => point(stretch, &place, to, self.file_type(kind))?,
            }
            done = true;
            break;
        }
        if done {
            return self.put_stretches(dir, &first, &second);
        }
        Err(Ext4Fault::Directory("an entry is gone").into())
    }

    /// Moves the entries of an inline directory to a block.
    fn move_dir_out(&mut self, dir: &mut Node) -> Result<()> {
        let parent = get32(&dir.raw.block, 0)?;
        let (first, second) = self.inline_stretches(dir)?;
        self.end_inline(dir)?;
        dir.size = 0;
        let mut block = self.append(dir)?;
        let dots = self.dots(dir.number, parent);
        let usable = self.fs.usable()?;
        let mut all = dots.to_vec();
        for stretch in [&first, &second] {
            for place in places(stretch, stretch.len())?.iter().filter(|p| p.inode != 0) {
                all.push(New { inode: place.inode, file_type: place.file_type, name: place.name(stretch)? });
            }
        }
        pack(&mut block.bytes, usable, &all)?;
        self.put_leaf(dir, block)
    }

    /// The entries `.` and `..`.
    fn dots(&self, number: u32, parent: u32) -> [New<'static>; 2] {
        let file_type = self.file_type(NodeKind::Dir);
        [New { inode: number, file_type, name: b"." }, New { inode: parent, file_type, name: b".." }]
    }

    /// Gives a new directory its first block.
    pub(super) fn start_dir(&mut self, dir: &mut Node, parent: u32) -> Result<()> {
        let mut block = self.append(dir)?;
        let dots = self.dots(dir.number, parent);
        let usable = self.fs.usable()?;
        pack(&mut block.bytes, usable, &dots)?;
        self.put_leaf(dir, block)
    }

    /// The directory that a directory lies in.
    pub(super) fn parent_of(&self, dir: &Node) -> Result<u32> {
        if dir.is_inline() {
            return get32(&dir.raw.block, 0);
        }
        let block = self.dir_block(dir, 0)?;
        check_dots(&block.bytes)?;
        get32(&block.bytes, PARENT_AT)
    }

    /// Makes another directory the one that it lies in.
    pub(super) fn set_parent(&mut self, dir: &mut Node, parent: u32) -> Result<()> {
        if dir.is_inline() {
            return put32(&mut dir.raw.block, 0, parent);
        }
        let mut block = self.dir_block(dir, 0)?;
        check_dots(&block.bytes)?;
        put32(&mut block.bytes, PARENT_AT, parent)?;
        match self.is_index_block(dir, &block)? {
            true => self.put_index(dir, block),
            false => self.put_leaf(dir, block),
        }
    }
}

/// Checks that a directory begins with the two entries that each has.
fn check_dots(block: &[u8]) -> Result<()> {
    let name = |at: usize, len: usize| part(block, at.saturating_add(6), len.saturating_add(2), "directory");
    let right = name(0, 1)?.first() == Some(&1)
        && name(0, 1)?.get(2..) == Some(b".")
        && super::bytes::get16(block, 4)? == 12
        && name(PARENT_AT, 2)?.first() == Some(&2)
        && name(PARENT_AT, 2)?.get(2..) == Some(b"..");
    if right { Ok(()) } else { Err(Ext4Fault::Directory("it does not begin with . and ..").into()) }
}

impl Ext4 {
    /// The inode of a name in a directory, looked for in all entries.
    pub(in super::super) fn find_stored(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        let wanted = self.sb.wanted(dir.raw.flags.get(), name);
        let mut found = None;
        self.stored_entries(dir, &mut |entry| {
            if wanted.is(entry.name) {
                found = Some(entry.inode);
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}
