//! Who a block belongs to, as the reverse map has it.

use racker_formats::error::Result;

use super::super::fault::Fault;
use super::super::inode::ForkKind;
use super::super::units::InodeNo;

/// Bit of `rm_offset`: blocks of an attribute fork.
const ATTR_BIT: u64 = 1 << 63;
/// Bit of `rm_offset`: blocks of a fork's extent tree.
const TREE_BIT: u64 = 1 << 62;
/// Bit of `rm_offset`: allocated, not written.
pub(in crate::drivers::xfs) const UNWRITTEN_BIT: u64 = 1 << 61;
/// Bits of the offset proper, in blocks.
const OFFSET_MASK: u64 = (1 << 54) - 1;
/// Owners from here on are parts of the filesystem, not inodes.
const SPECIAL_FIRST: u64 = 1 << 63;

/// The bit for a fork.
fn fork_bit(fork: ForkKind) -> u64 {
    match fork {
        ForkKind::Data => 0,
        ForkKind::Attr => ATTR_BIT,
    }
}

/// The owner of a stretch of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drivers::xfs) struct Owner {
    number: u64,
    /// Flags, and for the content of a fork its first block in the fork.
    offset: u64,
}

impl Owner {
    /// The headers of a group.
    pub(in crate::drivers::xfs) const HEADERS: Self = Self::special(3);
    /// The log.
    pub(in crate::drivers::xfs) const LOG: Self = Self::special(4);
    /// Free space trees, the reverse map itself, spare blocks.
    pub(in crate::drivers::xfs) const GROUP: Self = Self::special(5);
    /// Inode trees.
    pub(in crate::drivers::xfs) const INODE_TREE: Self = Self::special(6);
    /// Inodes.
    pub(in crate::drivers::xfs) const INODE_CHUNK: Self = Self::special(7);
    /// The tree of counts.
    pub(in crate::drivers::xfs) const COUNT_TREE: Self = Self::special(8);
    /// Copies in the making.
    pub(in crate::drivers::xfs) const STAGING: Self = Self::special(9);

    /// The part of the filesystem with number `-below`.
    const fn special(below: u64) -> Self {
        Self { number: 0u64.wrapping_sub(below), offset: 0 }
    }

    /// Content of a fork from its block `offset` on.
    pub(in crate::drivers::xfs) fn content(
        ino: InodeNo,
        fork: ForkKind,
        offset: u64,
        unwritten: bool,
    ) -> Self {
        let unwritten = if unwritten { UNWRITTEN_BIT } else { 0 };
        Self { number: ino.0, offset: (offset & OFFSET_MASK) | fork_bit(fork) | unwritten }
    }

    /// Blocks of a fork's extent tree.
    pub(in crate::drivers::xfs) fn fork_tree(ino: InodeNo, fork: ForkKind) -> Self {
        Self { number: ino.0, offset: fork_bit(fork) | TREE_BIT }
    }

    /// The part of the filesystem with this number, if it is none of an inode.
    pub(in crate::drivers::xfs) fn special_from(number: u64) -> Option<Self> {
        (number >= SPECIAL_FIRST).then_some(Self { number, offset: 0 })
    }

    /// Out of a record.
    pub(in crate::drivers::xfs) fn parse(number: u64, offset: u64) -> Result<Self> {
        let special = number >= SPECIAL_FIRST;
        let known = ATTR_BIT | TREE_BIT | UNWRITTEN_BIT | OFFSET_MASK;
        let place = offset & OFFSET_MASK;
        if offset & !known != 0 || (special && offset != 0) || (offset & TREE_BIT != 0 && place != 0) {
            return Err(Fault::Structure { what: "rmapbt", why: "an owner that cannot be" }.into());
        }
        Ok(Self { number, offset })
    }

    /// `rm_owner`.
    pub(in crate::drivers::xfs) fn number(self) -> u64 {
        self.number
    }

    /// `rm_offset`.
    pub(in crate::drivers::xfs) fn raw_offset(self) -> u64 {
        self.offset
    }

    /// Whether blocks have a place in a fork: these may be shared, and only these merge with regard to it.
    fn is_content(self) -> bool {
        self.number < SPECIAL_FIRST && self.offset & TREE_BIT == 0
    }

    /// The owner of what lies `blocks` further on.
    pub(in crate::drivers::xfs) fn advanced(self, blocks: u64) -> Self {
        if !self.is_content() {
            return self;
        }
        let place = (self.offset & OFFSET_MASK).saturating_add(blocks).min(OFFSET_MASK);
        Self { number: self.number, offset: (self.offset & !OFFSET_MASK) | place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_advances_and_the_rest_does_not() {
        let owner = Owner::content(InodeNo(128), ForkKind::Data, 5, true);
        assert_eq!(owner.advanced(3), Owner::content(InodeNo(128), ForkKind::Data, 8, true));
        assert_ne!(owner.advanced(3), Owner::content(InodeNo(128), ForkKind::Data, 8, false));
        assert_eq!(Owner::GROUP.advanced(9), Owner::GROUP);
        assert_eq!(Owner::GROUP.number(), u64::MAX - 4);
        let tree = Owner::fork_tree(InodeNo(128), ForkKind::Attr);
        assert_eq!(tree.advanced(1), tree);
        assert!(Owner::parse(u64::MAX - 4, 1).is_err());
        assert!(Owner::parse(128, 1 << 60).is_err());
    }
}
