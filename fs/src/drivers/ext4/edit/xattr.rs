//! Extended attributes set and removed: in the inode if they fit, or else in a block, or else in inodes of their own.

use racker_formats::error::{Result, Within};
use racker_formats::wire::take;

use super::super::acl;
use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, Incompat};
use super::super::layout::{RawXattrHeader, XATTR_CHECKSUM_AT, XATTR_MAGIC};
use super::Edit;
use super::bytes::put32;
use super::node::Node;
use super::xattr_list::{Attr, Value, build_block, fits_block, parse_block};
use crate::filesystem::Time;

/// Where the count of nodes that share a block is in it.
const REFCOUNT_AT: usize = 4;

/// What stands in an entry for a name's first part, and what is left of the name.
fn split_name(name: &[u8]) -> Result<(u8, &[u8])> {
    const PREFIXES: [(&[u8], u8); 4] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6), (b"gnu.", 10)];
    match name {
        b"system.posix_acl_access" => return Ok((2, b"")),
        b"system.posix_acl_default" => return Ok((3, b"")),
        _ => {}
    }
    let found = PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)));
    let refused = || {
        let shown = String::from_utf8_lossy(name);
        Ext4Fault::Cannot(format!("ext4 has no extended attributes called {shown:?}")).into()
    };
    found.filter(|(_, rest)| !rest.is_empty()).ok_or_else(refused)
}

/// Values of a node's attributes in inodes of their own: how many, and blocks of whole clusters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values {
    pub(super) inodes: i64,
    blocks: i64,
}

impl Edit {
    /// Sets or removes an extended attribute.
    pub(super) fn set_xattr(
        &mut self,
        number: u64,
        name: &[u8],
        value: Option<&[u8]>,
        now: Time,
    ) -> Result<()> {
        let (index, rest) = split_name(name)?;
        let stored = match (value, index) {
            (Some(value), 2 | 3) => Some(acl::to_disk(value)?),
            (value, _) => value.map(<[u8]>::to_vec),
        };
        let mut node = self.node(number)?;
        let place = || format!("inode {number}");
        let before = self.values(&node).within(place)?;
        if self.change_xattr(&mut node, (index, rest), stored).within(place)? {
            let after = self.values(&node).within(place)?;
            node.add_blocks(&self.fs.sb, after.blocks.saturating_sub(before.blocks))?;
            self.charge_values(&node, after.inodes.saturating_sub(before.inodes))?;
            node.set_ctime(now);
            self.save(&mut node)?;
        }
        Ok(())
    }

    /// What counts as a node's because values of its attributes are in other inodes.
    pub(super) fn values(&mut self, node: &Node) -> Result<Values> {
        let mut all = self.inode_attrs(node)?;
        all.extend(self.block_attrs(node)?);
        let shift = self.fs.sb.cluster_shift;
        let sizes = all.iter().filter_map(|attr| match attr.value {
            Value::Inode { size, .. } => Some(u64::from(size)),
            Value::Here(_) => None,
        });
        Ok(sizes.fold(Values::default(), |sum, size| {
            let clusters = self.fs.sb.block_size.count(size).div_ceil(self.ratio());
            let blocks = clusters.checked_shl(shift).unwrap_or(0).cast_signed();
            Values { inodes: sum.inodes.saturating_add(1), blocks: sum.blocks.saturating_add(blocks) }
        }))
    }

    /// Changes the lists; tells whether anything changed.
    fn change_xattr(&mut self, node: &mut Node, name: (u8, &[u8]), value: Option<Vec<u8>>) -> Result<bool> {
        let mut inner = self.inode_attrs(node)?;
        let mut outer = self.block_attrs(node)?;
        let is_it = |attr: &Attr| (attr.index, attr.name.as_slice()) == name;
        let old: Vec<Attr> = inner.iter().chain(&outer).filter(|a| is_it(a)).cloned().collect();
        let was_outside = outer.iter().any(is_it);
        inner.retain(|attr| !is_it(attr));
        outer.retain(|attr| !is_it(attr));
        let Some(value) = value else {
            if old.is_empty() {
                return Ok(false);
            }
            self.put_attrs(node, &inner, was_outside.then_some(&outer), &old)?;
            return Ok(true);
        };
        let mut new = Attr { index: name.0, name: name.1.to_vec(), value: Value::Here(value) };
        for _ in 0..2 {
            inner.push(new);
            if Self::fits_inode(node, &inner) {
                self.put_attrs(node, &inner, was_outside.then_some(&outer), &old)?;
                return Ok(true);
            }
            let Some(again) = inner.pop() else { break };
            outer.push(again);
            if fits_block(&outer, self.fs.sb.block_size.bytes()) {
                self.put_attrs(node, &inner, Some(&outer), &old)?;
                return Ok(true);
            }
            let Some(again) = outer.pop() else { break };
            let Value::Here(value) = &again.value else { break };
            if !self.fs.sb.features.incompat.contains(Incompat::EA_INODE) {
                break;
            }
            new = self.new_ea_inode(node, again.index, &again.name, value)?;
        }
        Err(Ext4Fault::NoRoom("the extended attributes of this node").into())
    }

    /// Stores both lists, the second only if it is given. `old` are attributes that are in neither any more.
    fn put_attrs(
        &mut self,
        node: &mut Node,
        inner: &[Attr],
        outer: Option<&Vec<Attr>>,
        old: &[Attr],
    ) -> Result<()> {
        let in_inode = self.inode_attrs(node)?;
        for attr in old.iter().filter(|a| in_inode.contains(a)) {
            self.drop_value(attr)?;
        }
        self.put_inode_attrs(node, inner)?;
        match outer {
            Some(outer) => self.put_block_attrs(node, outer),
            None => Ok(()),
        }
    }

    fn drop_value(&mut self, attr: &Attr) -> Result<()> {
        match attr.value {
            Value::Inode { number, .. } => self.drop_ea_inode(number),
            Value::Here(_) => Ok(()),
        }
    }

    /// The attributes in a node's block.
    fn block_attrs(&mut self, node: &Node) -> Result<Vec<Attr>> {
        match node.xattr_block() {
            0 => Ok(Vec::new()),
            number => Ok(self.xattr_block(number)?.1),
        }
    }

    /// A block of attributes: by how many nodes it is shared, and what is in it.
    fn xattr_block(&mut self, number: u64) -> Result<(u32, Vec<Attr>)> {
        let place = || format!("attribute block {number}");
        self.check_owned("the inode", number, 1).within(place)?;
        let block = self.fs.block("extended attributes", number).within(place)?;
        self.fs.check_xattr_block(number, &block).within(place)?;
        let head = take::<RawXattrHeader>(&block, 0, "extended attributes")?;
        let shared = head.refcount.get();
        if head.magic.get() != XATTR_MAGIC || shared == 0 {
            let found = shared.into();
            return Err(Ext4Fault::Xattr { what: "reference count", found }.into()).within(place);
        }
        Ok((shared, parse_block(&block).within(place)?))
    }

    /// Puts attributes into a node's block. One that others share is left to them.
    fn put_block_attrs(&mut self, node: &mut Node, list: &[Attr]) -> Result<()> {
        let number = node.xattr_block();
        let (shared, before) = if number == 0 { (0, Vec::new()) } else { self.xattr_block(number)? };
        if list.is_empty() {
            return self.drop_xattr_block(node);
        }
        let size = self.fs.sb.block_size.bytes();
        let block = build_block(list, size)?;
        if shared == 1 {
            for attr in before.iter().filter(|a| !list.contains(a)) {
                self.drop_value(attr)?;
            }
            return self.put_xattr_block(number, block);
        }
        if shared > 1 {
            // Values in inodes have one more entry that names them.
            for attr in list.iter().filter(|a| before.contains(a)) {
                if let Value::Inode { number, .. } = attr.value {
                    self.share_ea_inode(number)?;
                }
            }
            self.drop_xattr_block(node)?;
        }
        if self.fs.sb.raw.rev_level.get() == 0 {
            // Its superblock cannot say that there are any.
            let why = "a filesystem of revision 0 has no extended attributes";
            return Err(Ext4Fault::Cannot(why.into()).into());
        }
        let number = self.take_meta(node)?;
        node.set_xattr_block(number);
        self.fs.sb.features.compat |= Compat::EXT_ATTR;
        self.put_xattr_block(number, block)
    }

    /// Stores a block of attributes with its checksum.
    fn put_xattr_block(&mut self, number: u64, block: Vec<u8>) -> Result<()> {
        let mut block = block;
        self.sum_xattr_block(number, &mut block)?;
        self.put_block(number, block)
    }

    pub(super) fn sum_xattr_block(&self, number: u64, block: &mut [u8]) -> Result<()> {
        if !self.fs.sb.features.has_metadata_csum() {
            return Ok(());
        }
        put32(block, XATTR_CHECKSUM_AT, 0)?;
        let sum = crc32c(crc32c(self.fs.sb.csum_seed, &number.to_le_bytes()), block);
        put32(block, XATTR_CHECKSUM_AT, sum)
    }

    /// Takes a node off its block of attributes, which goes with the last one.
    pub(super) fn drop_xattr_block(&mut self, node: &mut Node) -> Result<()> {
        let number = node.xattr_block();
        if number == 0 {
            return Ok(());
        }
        let (shared, list) = self.xattr_block(number)?;
        node.set_xattr_block(0);
        if shared == 1 {
            for attr in &list {
                self.drop_value(attr)?;
            }
            return self.give_meta(node, number);
        }
        let ratio = self.ratio();
        node.add_blocks(&self.fs.sb, ratio.cast_signed().saturating_neg())?;
        let mut block = self.fs.block("extended attributes", number)?.to_vec();
        put32(&mut block, REFCOUNT_AT, shared.saturating_sub(1))?;
        self.put_xattr_block(number, block)
    }

    /// Lets go of all attributes of a node that is deleted.
    pub(super) fn drop_attrs(&mut self, node: &mut Node) -> Result<()> {
        let values = self.values(node)?.inodes;
        self.charge_values(node, values.saturating_neg())?;
        for attr in self.inode_attrs(node)? {
            self.drop_value(&attr)?;
        }
        self.drop_xattr_block(node)
    }

    /// Gives `new` the attributes of `old`, all but inline content.
    pub(super) fn copy_attrs(&mut self, old: &Node, new: &mut Node) -> Result<()> {
        let mut inner = self.inode_attrs(old)?;
        inner.retain(|attr| !attr.is_inline_data());
        let outer = self.block_attrs(old)?;
        for attr in inner.iter().chain(&outer) {
            if let Value::Inode { number, .. } = attr.value {
                self.share_ea_inode(number)?;
            }
        }
        self.put_inode_attrs(new, &inner)?;
        if !outer.is_empty() {
            self.put_block_attrs(new, &outer)?;
        }
        let values = self.values(new)?;
        self.charge_values(new, values.inodes)?;
        new.add_blocks(&self.fs.sb, values.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_their_prefix() {
        assert_eq!(split_name(b"user.a").unwrap(), (1, &b"a"[..]));
        assert_eq!(split_name(b"security.selinux").unwrap(), (6, &b"selinux"[..]));
        assert_eq!(split_name(b"system.posix_acl_default").unwrap(), (3, &b""[..]));
        assert!(split_name(b"system.data").is_err());
        assert!(split_name(b"user.").is_err());
    }
}
