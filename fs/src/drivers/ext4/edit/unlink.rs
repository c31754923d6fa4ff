//! Entries removed, and nodes that have lost their last one.

use racker_formats::error::{Result, Within};

use super::super::extent::END;
use super::super::fault::Ext4Fault;
use super::super::layout::inode_flags;
use super::Edit;
use super::bytes::low32;
use super::node::Node;
use crate::filesystem::{Name, NodeKind, Time};

impl Edit {
    /// Removes an entry, and its node if that was the last one.
    pub(super) fn unlink(&mut self, dir: u64, name: &Name, now: Time) -> Result<()> {
        let mut dir = self.node(dir)?;
        let found = self.find_entry(&dir, name.as_bytes())?;
        let number = found.ok_or(Ext4Fault::Directory("an entry is gone"))?;
        let mut node = self.node(number.into())?;
        self.remove_entry(&mut dir, name.as_bytes())?;
        if node.kind == NodeKind::Dir {
            Self::drop_dir_link(&mut dir);
        }
        dir.touch(now);
        self.save(&mut dir)?;
        self.lose_link(&mut node, now)
    }

    /// Takes one link off a node, all if it is a directory, and deletes it when it has none left.
    pub(super) fn lose_link(&mut self, node: &mut Node, now: Time) -> Result<()> {
        let links = if node.kind == NodeKind::Dir { 0 } else { node.links().saturating_sub(1) };
        node.set_links(links);
        node.set_ctime(now);
        if links > 0 {
            return self.save(node);
        }
        let place = format!("inode {}", node.number);
        self.delete(node, now).within(|| place)
    }

    /// Gives back all that a node has, and the node. That takes no room.
    pub(super) fn delete(&mut self, node: &mut Node, now: Time) -> Result<()> {
        let view = node.view(&self.fs.sb)?;
        let has_map = match node.kind {
            NodeKind::File | NodeKind::Dir => !node.is_inline(),
            NodeKind::Link => !node.is_inline() && !view.is_fast_link(&self.fs.sb),
            _ => false,
        };
        if has_map && !node.has(inode_flags::EXTENTS) && self.fs.sb.cluster_shift > 0 {
            return Err(Ext4Fault::Cannot("files with block maps do not go with clusters".into()).into());
        }
        self.settle()?;
        if has_map {
            self.unmap(node, 0, END)?;
        }
        self.drop_attrs(node)?;
        self.bury(node, now)
    }

    /// Marks an inode that has nothing any more as deleted.
    pub(super) fn bury(&mut self, node: &mut Node, now: Time) -> Result<()> {
        node.set_links(0);
        node.size = 0;
        (node.raw.blocks_lo, node.raw.blocks_hi) = (0.into(), 0.into());
        if !node.has(inode_flags::EXTENTS) {
            node.raw.block = [0; 60];
        }
        node.set_flag(inode_flags::INLINE_DATA | inode_flags::INDEX, false);
        node.put_no_attrs();
        // Less than the number of inodes would be taken for a link of the list of orphans.
        let sec = u64::try_from(now.sec).unwrap_or(0);
        node.raw.dtime = low32(sec).max(self.fs.sb.inodes).into();
        node.set_ctime(now);
        self.save(node)?;
        self.release_inode(node.number, node.kind == NodeKind::Dir)
    }
}

impl Node {
    /// Clears the room behind the fixed fields.
    fn put_no_attrs(&mut self) {
        let fixed = self.fixed;
        self.bytes.get_mut(fixed..).unwrap_or_default().fill(0);
    }
}
