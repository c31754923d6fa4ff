//! Values of extended attributes in inodes of their own, which count the entries that name them.

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;

use super::super::csum::crc32c;
use super::super::extent::END;
use super::super::fault::Ext4Fault;
use super::super::layout::inode_flags;
use super::Edit;
use super::node::Node;
use super::xattr_list::{Attr, Value, entry_hash};
use crate::filesystem::{NodeKind, Time};

impl Edit {
    /// Makes an inode for a value of `owner`; returns the attribute that names it.
    pub(super) fn new_ea_inode(
        &mut self,
        owner: &Node,
        index: u8,
        name: &[u8],
        value: &[u8],
    ) -> Result<Attr> {
        let number = self.allocate_inode(owner.number, false)?;
        let now = Time::default();
        let mut node = self.blank(number, NodeKind::File, now)?;
        node.raw.mode = 0o100_600.into();
        (node.raw.uid, node.raw.gid) = (owner.raw.uid, owner.raw.gid);
        (node.raw.uid_hi, node.raw.gid_hi) = (owner.raw.uid_hi, owner.raw.gid_hi);
        self.start_map(&mut node)?;
        node.set_flag(inode_flags::EA_INODE, true);
        node.set_links(1);
        node.size = len64(value.len());
        let sum = crc32c(self.fs.sb.csum_seed, value);
        // The hash stands for the access time, the count for the version, and its high half for the change time.
        node.raw.atime = sum.into();
        node.raw.version = 1.into();
        node.raw.ctime = 0.into();
        let mut padded = value.to_vec();
        let block = self.fs.sb.block_size;
        let blocks = block.count(node.size);
        padded.resize(self.fs.block_len()?.saturating_mul(usize::try_from(blocks).unwrap_or(0)), 0);
        self.fill(&mut node, 0, blocks)?;
        self.write_mapped(&node, 0, &padded)?;
        self.save(&mut node)?;
        let size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let hash = entry_hash(name, std::iter::once(sum));
        Ok(Attr { index, name: name.to_vec(), value: Value::Inode { number, size, hash } })
    }

    fn ea_node(&mut self, number: u32) -> Result<(Node, u64)> {
        let place = || format!("attribute inode {number}");
        if number < self.fs.sb.first_inode {
            let found = number.into();
            return Err(Ext4Fault::Xattr { what: "inode of a value", found }.into()).within(place);
        }
        let inode = self.fs.any_inode(number).within(place)?;
        if !inode.is_ea_inode() {
            let found = inode.flags.into();
            return Err(Ext4Fault::Xattr { what: "flags of the inode of a value", found }.into())
                .within(place);
        }
        self.check_used(number).within(place)?;
        let node = Node::of(inode).within(place)?;
        let count = u64::from(node.raw.ctime.get()) << 32 | u64::from(node.raw.version.get());
        Ok((node, count))
    }

    fn set_count(&mut self, node: &mut Node, count: u64) -> Result<()> {
        node.raw.ctime = super::bytes::low32(count >> 32).into();
        node.raw.version = super::bytes::low32(count).into();
        self.save(node)
    }

    /// One more entry names the value.
    pub(super) fn share_ea_inode(&mut self, number: u32) -> Result<()> {
        let (mut node, count) = self.ea_node(number)?;
        self.set_count(&mut node, count.saturating_add(1))
    }

    /// One entry fewer names the value, which goes with the last one.
    pub(super) fn drop_ea_inode(&mut self, number: u32) -> Result<()> {
        let (mut node, count) = self.ea_node(number)?;
        if count > 1 {
            return self.set_count(&mut node, count.saturating_sub(1));
        }
        self.unmap(&mut node, 0, END)?;
        node.set_flag(inode_flags::EA_INODE, false);
        let now = self.now;
        self.bury(&mut node, now)
    }
}
