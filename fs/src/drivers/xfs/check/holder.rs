//! What blocks can be found to belong to.

use std::fmt;

use super::super::edit::owner::Owner;
use super::super::inode::ForkKind;
use super::super::units::InodeNo;

/// Who has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// The group's headers.
    Headers,
    /// The log.
    Log,
    /// A tree of free space or the reverse map, by name.
    Tree(&'static str),
    /// Spare blocks.
    Spare,
    /// A tree of inodes, by name.
    InodeTree(&'static str),
    /// Inodes.
    Inodes,
    /// The tree of counts.
    CountTree,
    /// A copy in the making.
    Staging,
    /// A fork of an inode from this block on; never written or written.
    Fork(InodeNo, ForkKind, u64, bool),
    /// The extent tree of a fork.
    ForkTree(InodeNo, ForkKind),
}

impl Holder {
    /// As the reverse map has it.
    pub(super) fn owner(self) -> Owner {
        match self {
            Self::Headers => Owner::HEADERS,
            Self::Log => Owner::LOG,
            Self::Tree(_) | Self::Spare => Owner::GROUP,
            Self::InodeTree(_) => Owner::INODE_TREE,
            Self::Inodes => Owner::INODE_CHUNK,
            Self::CountTree => Owner::COUNT_TREE,
            Self::Staging => Owner::STAGING,
            Self::Fork(ino, fork, at, unwritten) => Owner::content(ino, fork, at, unwritten),
            Self::ForkTree(ino, fork) => Owner::fork_tree(ino, fork),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headers => f.write_str("the group's headers"),
            Self::Log => f.write_str("the log"),
            Self::Tree(name) | Self::InodeTree(name) => write!(f, "the {name}"),
            Self::Spare => f.write_str("the list of spare blocks"),
            Self::Inodes => f.write_str("inodes"),
            Self::CountTree => f.write_str("the refcountbt"),
            Self::Staging => f.write_str("a copy in the making"),
            Self::Fork(ino, fork, ..) => write!(f, "the {} fork of inode {}", fork.name(), ino.0),
            Self::ForkTree(ino, fork) => {
                write!(f, "the extent tree of the {} fork of inode {}", fork.name(), ino.0)
            }
        }
    }
}
