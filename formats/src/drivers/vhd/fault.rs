//! Everything that can be wrong with a VHD.

use uuid::Uuid;

use crate::error::{self, Kind};

/// What is wrong with a VHD, with the numbers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VhdFault {
    /// Neither end of the file has a footer.
    #[error("there is no footer at either end of the file")]
    NoFooter,
    /// The only footer is damaged.
    #[error("the {what} has the checksum {found:#010x}, its bytes give {expected:#010x}")]
    Checksum {
        /// Footer or header.
        what: &'static str,
        /// As it stands there.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// A version of the format that nobody has described.
    #[error("the {what} has version {found:#010x}, only 1.0 is known")]
    Version {
        /// Footer or header.
        what: &'static str,
        /// As it stands there.
        found: u32,
    },
    /// A kind of disk that nobody has described.
    #[error("disk type {0} is not known: only 2 (fixed), 3 (dynamic) and 4 (differencing) are")]
    DiskType(u32),
    /// The disk is too large, or has no size.
    #[error("a disk of {bytes} bytes: the limit is {max}")]
    Size {
        /// Bytes asked for, or found.
        bytes: u64,
        /// The most that the format holds.
        max: u64,
    },
    /// A fixed disk in a file that is shorter.
    #[error("the disk has {size} bytes, the file only {there}: it may be truncated")]
    Truncated {
        /// Virtual size in bytes.
        size: u64,
        /// Bytes before the footer.
        there: u64,
    },
    /// No dynamic disk header where the footer says.
    #[error("there is no dynamic disk header at {0:#x}")]
    NoHeader(u64),
    /// Blocks that are no power of two, or smaller than a sector.
    #[error("blocks of {0} bytes: a power of two of at least 512 is expected")]
    BlockSize(u32),
    /// The BAT is too small for the disk.
    #[error("the block allocation table has {found} entries, a disk of {size} bytes needs {need}")]
    BatShort {
        /// As the header says.
        found: u64,
        /// As the size demands.
        need: u64,
        /// Virtual size in bytes.
        size: u64,
    },
    /// The BAT lies outside the file.
    #[error("the block allocation table at {at:#x} of {len} bytes is outside the file of {file} bytes")]
    BatOutside {
        /// Where it begins.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// Size of the file in bytes.
        file: u64,
    },
    /// A block lies outside the file.
    #[error("block {block} at {host:#x} reaches past the end of the file of {file} bytes")]
    BlockPastEnd {
        /// Number of the block.
        block: u64,
        /// Where its bitmap begins.
        host: u64,
        /// Size of the file in bytes.
        file: u64,
    },
    /// A block lies over the structures of the image.
    #[error("block {block} at {host:#x} lies over {what}")]
    BlockOver {
        /// Number of the block.
        block: u64,
        /// Where its bitmap begins.
        host: u64,
        /// Header, table, locator.
        what: &'static str,
    },
    /// Two blocks share bytes of the file.
    #[error("blocks {first} and {second} share the bytes at {host:#x}")]
    Shared {
        /// Number of the first block.
        first: u64,
        /// Number of the second block.
        second: u64,
        /// Where the second one begins.
        host: u64,
    },
    /// A differencing disk that names no parent.
    #[error("the disk is a difference to another one, but names none")]
    NoParent,
    /// The parent is not the disk that it was.
    #[error("the parent is disk {found}, this is a difference to disk {expected}")]
    ParentId {
        /// The parent's unique ID.
        found: Uuid,
        /// The one recorded here.
        expected: Uuid,
    },
    /// A name that cannot be written down.
    #[error("the parent's name {0:?} is too long")]
    NameTooLong(String),
    /// A parent in another format.
    #[error("the parent of a VHD must be a VHD, this one is {0}")]
    ParentFormat(&'static str),
    /// A disk that holds everything itself.
    #[error("the disk has no parent, and racker gives it none: make a new child with create -b")]
    NoChild,
    /// A child must be as large as its parent.
    #[error("a difference to a disk of {parent} bytes cannot have {size}")]
    ParentSize {
        /// The parent's size in bytes.
        parent: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// The table has no room for such a place.
    #[error("the image is full: blocks can only begin within the first 2 TiB of the file")]
    Full,
    /// The size of a child is its parent's.
    #[error("the size of a differencing VHD is that of its parent and cannot be changed")]
    ResizeChild,
}

impl error::Fault for VhdFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Version { .. } | Self::DiskType(_) | Self::ResizeChild | Self::NoChild => Kind::Unsupported,
            Self::Full => Kind::NoSpace,
            Self::Size { .. } | Self::NameTooLong(_) | Self::ParentFormat(_) | Self::ParentSize { .. } => {
                Kind::Invalid
            }
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::BlockOver { .. } | Self::Shared { .. } => "`racker disk check` lists all such blocks",
            Self::BlockPastEnd { .. } | Self::Truncated { .. } | Self::BatOutside { .. } => {
                "the file may have been truncated"
            }
            Self::ParentId { .. } => "another disk took the parent's name, or the parent was made anew",
            _ => return None,
        };
        Some(text.into())
    }
}
