//! The content of files: written, cut off, made a hole.

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64};

use super::super::extent::END;
use super::super::fault::Ext4Fault;
use super::super::layout::inode_flags;
use super::super::map::Mapping;
use super::Edit;
use super::node::Node;
use crate::filesystem::Time;

impl Edit {
    /// A node whose content can change.
    pub(super) fn content_node(&mut self, number: u64) -> Result<Node> {
        let node = self.node(number)?;
        let mapped = node.has(inode_flags::EXTENTS) || node.is_inline();
        if !mapped && self.fs.sb.cluster_shift > 0 {
            return Err(Ext4Fault::Cannot("files with block maps do not go with clusters".into()).into());
        }
        Ok(node)
    }

    /// Refuses sizes that no inode of this kind can have.
    pub(super) fn check_size(&self, node: &Node, size: u64) -> Result<()> {
        let blocks = self.fs.sb.block_size.count(size);
        if blocks > self.blocks_max(node) || size >= 1 << 63 {
            return Err(Ext4Fault::Cannot(format!("no file of this kind can have {size} bytes")).into());
        }
        Ok(())
    }

    /// Writes bytes to a file.
    pub(super) fn write(&mut self, file: u64, at: u64, data: &[u8], now: Time) -> Result<()> {
        let mut node = self.content_node(file)?;
        self.write_to(&mut node, at, data, now).within(|| format!("inode {file}"))
    }

    pub(super) fn write_to(&mut self, node: &mut Node, at: u64, data: &[u8], now: Time) -> Result<()> {
        let end = at.saturating_add(len64(data.len()));
        let old = node.size;
        if node.is_inline() {
            if self.write_inline(node, at, data)? {
                node.touch(now);
                return self.save(node);
            }
            self.move_out(node)?;
        }
        self.check_size(node, end)?;
        let block = self.fs.sb.block_size;
        let (first, behind) = (block.split(at).0, block.count(end));
        let last = behind.saturating_sub(1);
        let fresh_first = !matches!(self.map(node, first)?.to, Mapping::Data(_));
        let fresh_last = !matches!(self.map(node, last)?.to, Mapping::Data(_));
        self.fill(node, first, behind)?;
        node.size = old.max(end);
        node.touch(now);
        self.save(node)?;
        // All that can run out has been taken: from here on blocks get new content.
        if at > old {
            self.clear_tail(node, old, at)?;
        }
        if fresh_first {
            self.clear(node, block.floor(at), at)?;
        }
        if fresh_last {
            self.clear(node, end, block.ceil(end).unwrap_or(end))?;
        }
        self.write_mapped(node, at, data)
    }

    /// Makes bytes of a file zero, inside one block that is there.
    fn clear(&mut self, node: &Node, from: u64, to: u64) -> Result<()> {
        let len = index(to.saturating_sub(from))?;
        if len == 0 { Ok(()) } else { self.write_mapped(node, from, &vec![0; len]) }
    }

    /// Makes what lies behind the end of a file in its last block zero, up to `to`, before the file grows over it.
    fn clear_tail(&mut self, node: &Node, end: u64, to: u64) -> Result<()> {
        let block = self.fs.sb.block_size;
        if block.aligned(end) {
            return Ok(());
        }
        self.clear_inside(node, end, to.min(block.ceil(end).unwrap_or(end)))
    }

    /// Makes bytes inside one block zero, unless they are that already.
    fn clear_inside(&mut self, node: &Node, from: u64, to: u64) -> Result<()> {
        let (block, _) = self.fs.sb.block_size.split(from);
        match self.map(node, block)?.to {
            Mapping::Data(start) if from < to => {
                self.check_owned("a file", start, 1)?;
                self.clear(node, from, to)
            }
            _ => Ok(()),
        }
    }

    /// Gives a file another size.
    pub(super) fn truncate(&mut self, file: u64, size: u64, now: Time) -> Result<()> {
        let mut node = self.content_node(file)?;
        self.resize_file(&mut node, size).within(|| format!("inode {file}"))?;
        node.touch(now);
        self.save(&mut node)
    }

    fn resize_file(&mut self, node: &mut Node, size: u64) -> Result<()> {
        let old = node.size;
        if node.is_inline() {
            if self.resize_inline(node, size)? {
                return Ok(());
            }
            self.move_out(node)?;
        }
        self.check_size(node, size)?;
        if size >= old {
            node.size = size;
            // What this needs is taken before anything lies on the volume.
            self.save(node)?;
            return self.clear_tail(node, old, size);
        }
        self.settle()?;
        let block = self.fs.sb.block_size;
        self.unmap(node, block.count(size), END)?;
        node.size = size;
        if !block.aligned(size) {
            self.clear_inside(node, size, block.ceil(size).unwrap_or(size))?;
        }
        Ok(())
    }

    /// Makes a stretch of a file read as zeroes.
    pub(super) fn punch(&mut self, file: u64, span: Span, now: Time) -> Result<()> {
        let mut node = self.content_node(file)?;
        self.punch_in(&mut node, span, now).within(|| format!("inode {file}"))
    }

    fn punch_in(&mut self, node: &mut Node, span: Span, now: Time) -> Result<()> {
        node.touch(now);
        if node.is_inline() {
            self.clear_inline(node, span)?;
            return self.save(node);
        }
        let block = self.fs.sb.block_size;
        let first = block.count(span.start());
        // The last block of the file goes as a whole.
        let to_end = span.end() >= node.size;
        let behind = if to_end { block.count(span.end()) } else { block.split(span.end()).0 };
        if first < behind {
            self.unmap(node, first, behind)?;
        }
        self.save(node)?;
        let (head, tail) = (block.split(span.start()).0, block.split(span.end()).0);
        if head < first {
            let end = block.start_of(first).unwrap_or(u64::MAX).min(span.end());
            self.clear_inside(node, span.start(), end)?;
        }
        if !to_end && tail >= first {
            self.clear_inside(node, block.floor(span.end()), span.end())?;
        }
        Ok(())
    }
}
