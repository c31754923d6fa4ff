//! Content in the inode itself: changed as long as it fits, moved out when it no longer does.

use racker_formats::block::Span;
use racker_formats::error::Result;
use racker_formats::wire::{index, len64};

use super::super::features::Incompat;
use super::super::layout::inode_flags;
use super::Edit;
use super::node::Node;
use super::tree::empty_root;
use super::xattr_list::{Attr, SYSTEM, Value};

/// Bytes in place of the block map.
const FIRST: usize = 60;

impl Edit {
    /// All bytes that the inode has room for, those behind the size too.
    fn inline_room(&self, node: &Node) -> Result<Vec<u8>> {
        let mut all = node.raw.block.to_vec();
        all.extend(self.fs.inline_rest(&node.view(&self.fs.sb)?)?.unwrap_or_default());
        Ok(all)
    }

    /// Puts back all bytes that the inode has room for.
    pub(super) fn put_inline(&mut self, node: &mut Node, all: &[u8]) -> Result<()> {
        let (first, rest) = all.split_at_checked(FIRST).unwrap_or((all, &[]));
        for (to, from) in node.raw.block.iter_mut().zip(first) {
            *to = *from;
        }
        let mut list = self.inode_attrs(node)?;
        for attr in list.iter_mut().filter(|a| a.is_inline_data()) {
            attr.value = Value::Here(rest.to_vec());
        }
        self.put_inode_attrs(node, &list)
    }

    /// Writes bytes if they fit into the inode.
    pub(super) fn write_inline(&mut self, node: &mut Node, at: u64, data: &[u8]) -> Result<bool> {
        let mut all = self.inline_room(node)?;
        let end = at.saturating_add(len64(data.len()));
        if end > len64(all.len()) {
            return Ok(false);
        }
        all.get_mut(index(node.size)?..).unwrap_or_default().fill(0);
        if let Some(to) = all.get_mut(index(at)?..index(end)?) {
            to.copy_from_slice(data);
        }
        self.put_inline(node, &all)?;
        node.size = node.size.max(end);
        Ok(true)
    }

    /// Gives inline content another size, if it fits.
    pub(super) fn resize_inline(&mut self, node: &mut Node, size: u64) -> Result<bool> {
        let mut all = self.inline_room(node)?;
        if size > len64(all.len()) {
            return Ok(false);
        }
        all.get_mut(index(size.min(node.size))?..).unwrap_or_default().fill(0);
        self.put_inline(node, &all)?;
        node.size = size;
        Ok(true)
    }

    /// Makes room for new inline content, if it fits.
    pub(super) fn replace_inline(&mut self, node: &mut Node, size: u64) -> Result<bool> {
        let room = len64(self.inline_room(node)?.len());
        Ok(size <= room && self.resize_inline(node, 0)? && self.resize_inline(node, size)?)
    }

    /// Makes inline bytes zero.
    pub(super) fn clear_inline(&mut self, node: &mut Node, span: Span) -> Result<()> {
        let mut all = self.inline_room(node)?;
        let end = index(span.end().min(len64(all.len())))?;
        all.get_mut(index(span.start())?.min(end)..end).unwrap_or_default().fill(0);
        self.put_inline(node, &all)
    }

    /// Moves inline content of a file to a block.
    pub(super) fn move_out(&mut self, node: &mut Node) -> Result<()> {
        let mut content = self.fs.inline_content(&node.view(&self.fs.sb)?)?;
        self.end_inline(node)?;
        if !content.is_empty() {
            let block = self.fs.sb.block_size;
            let blocks = block.count(len64(content.len()));
            content.resize(index(block.start_of(blocks).unwrap_or(0))?, 0);
            self.fill(node, 0, blocks)?;
            self.write_mapped(node, 0, &content)?;
        }
        Ok(())
    }

    /// Makes the inode one that maps blocks, and has none.
    pub(super) fn end_inline(&mut self, node: &mut Node) -> Result<()> {
        let mut list = self.inode_attrs(node)?;
        list.retain(|attr| !attr.is_inline_data());
        self.put_inode_attrs(node, &list)?;
        node.set_flag(inode_flags::INLINE_DATA, false);
        self.start_map(node)
    }

    /// An empty map of blocks.
    pub(super) fn start_map(&mut self, node: &mut Node) -> Result<()> {
        let extents = self.fs.sb.features.incompat.contains(Incompat::EXTENTS);
        node.set_flag(inode_flags::EXTENTS, extents);
        node.raw.block = if extents { empty_root()? } else { [0; FIRST] };
        Ok(())
    }
}

impl Attr {
    /// Whether it is the second part of inline content.
    pub(super) fn is_inline_data(&self) -> bool {
        self.index == SYSTEM && self.name == b"data"
    }
}
