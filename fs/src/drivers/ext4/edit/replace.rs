//! All of a file's content replaced, read once from front to end.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, is_zero, len64, part_mut};

use super::super::extent::END;
use super::super::fault::Ext4Fault;
use super::Edit;
use super::node::Node;
use crate::filesystem::{Content, Time};

/// Bytes of content in memory.
const WINDOW: u64 = 1 << 20;
/// Zeroes of this many bytes in a row, at a multiple of it, are left out.
const HOLE: u64 = 64 << 10;
/// Blocks that a large tree may need besides those of its leaves.
const TREE_SPARE: u64 = 16;

impl Edit {
    /// Replaces all of a file's content.
    pub(super) fn replace(&mut self, file: u64, content: Content<'_>, now: Time) -> Result<()> {
        let mut node = self.content_node(file)?;
        self.replace_in(&mut node, content, now).within(|| format!("inode {file}"))
    }

    fn replace_in(&mut self, node: &mut Node, content: Content<'_>, now: Time) -> Result<()> {
        if node.is_inline() {
            if self.replace_inline(node, content.size)? {
                let mut bytes = vec![0; index(content.size)?];
                content.reader.read_exact(&mut bytes)?;
                self.write_inline(node, 0, &bytes)?;
                node.touch(now);
                return self.save(node);
            }
            self.end_inline(node)?;
        }
        self.check_size(node, content.size)?;
        self.check_room(node, content.size)?;
        node.size = node.size.max(content.size);
        node.touch(now);
        self.save(node)?;
        self.settle()?;
        self.unmap(node, 0, END)?;
        self.pour(node, content.size, content.reader)?;
        node.size = content.size;
        self.save(node)
    }

    /// Makes sure that new content will find room when the old one is gone.
    fn check_room(&self, node: &Node, size: u64) -> Result<()> {
        let sb = &self.fs.sb;
        let blocks = sb.block_size.count(size);
        let per_node = (sb.block_size.bytes() >> 4).max(1);
        // Up to four extents lie in the inode.
        let tree = match blocks {
            0..=4 => 0,
            n if n <= per_node => 3,
            n => n.div_ceil(per_node).saturating_add(TREE_SPARE),
        };
        let need = blocks.div_ceil(self.ratio()).saturating_add(tree);
        let old = node.view(sb)?.stat(sb)?.allocated >> sb.block_size.shift() >> sb.cluster_shift;
        let free = self.totals.free.saturating_add(old.saturating_sub(1));
        if need > free {
            let free = free.checked_shl(sb.cluster_shift).unwrap_or(0);
            return Err(Ext4Fault::NoSpace { free, blocks: sb.blocks }.into());
        }
        Ok(())
    }

    /// Writes content to a file without blocks, long zeroes left out.
    fn pour(&mut self, node: &mut Node, size: u64, reader: &mut dyn std::io::Read) -> Result<()> {
        let block = self.fs.sb.block_size;
        let window = WINDOW.max(block.bytes()).min(block.ceil(size).unwrap_or(u64::MAX));
        let mut buf = vec![0; index(window)?];
        let mut at = 0u64;
        while at < size {
            let len = index(size.saturating_sub(at).min(window))?;
            reader.read_exact(part_mut(&mut buf, 0, len, "content")?)?;
            // The rest of the last block must not show what was there before.
            buf.get_mut(len..).unwrap_or_default().fill(0);
            let whole = index(block.ceil(len64(len)).unwrap_or(window))?;
            self.pour_window(node, at, buf.get(..whole).unwrap_or_default())?;
            at = at.saturating_add(len64(len));
            self.shed_if_large()?;
        }
        Ok(())
    }

    /// Writes the stretches between holes of one window, which is whole blocks.
    fn pour_window(&mut self, node: &mut Node, at: u64, bytes: &[u8]) -> Result<()> {
        let block = self.fs.sb.block_size;
        let piece = index(HOLE.max(block.bytes()))?;
        let mut from = 0usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let holes = rest.chunks(piece).take_while(|p| p.len() == piece && is_zero(p)).count();
            let skipped = holes.saturating_mul(piece).min(rest.len());
            rest = rest.get(skipped..).unwrap_or_default();
            from = from.saturating_add(skipped);
            let data = rest.chunks(piece).take_while(|p| p.len() < piece || !is_zero(p)).count();
            let len = data.saturating_mul(piece).min(rest.len());
            let (now, later) = rest.split_at_checked(len).unwrap_or((rest, &[]));
            if !now.is_empty() {
                let start = at.saturating_add(len64(from));
                let end = start.saturating_add(len64(len));
                self.fill(node, block.split(start).0, block.count(end))?;
                self.write_mapped(node, start, now)?;
            }
            rest = later;
            from = from.saturating_add(len);
        }
        Ok(())
    }
}
