//! Everything that can be wrong with a VDI.

use uuid::Uuid;

use crate::error::{self, Kind};
use crate::opening::changed_parent;

/// What is wrong with a VDI, with the numbers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VdiFault {
    /// Not a VDI.
    #[error("the signature of VDI is missing")]
    Signature,
    /// A version that nobody has described.
    #[error("version {}.{}: only 1.1 is known", .0 >> 16, .0 & 0xffff)]
    Version(u32),
    /// A kind of image that is not read.
    #[error("image type {0} is not known: only 1 (dynamic), 2 (fixed) and 4 (differencing) are")]
    ImageType(u32),
    /// Flags that nobody has described.
    #[error("the image flags {0:#x} are not known")]
    Flags(u32),
    /// A field that must have another value.
    #[error("the {what} is {found}, {expected} is expected")]
    Field {
        /// The field.
        what: &'static str,
        /// As it stands there.
        found: u64,
        /// What would do.
        expected: &'static str,
    },
    /// The map is too small for the disk.
    #[error("the block map has {found} entries, a disk of {size} bytes needs {need}")]
    MapShort {
        /// As the header says.
        found: u64,
        /// As the size demands.
        need: u64,
        /// Virtual size in bytes.
        size: u64,
    },
    /// The map lies outside the file, or over the data.
    #[error("the block map at {at:#x} of {len} bytes does not fit before {end:#x}")]
    MapOutside {
        /// Where it begins.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// Where the data or the file begin to be in its way.
        end: u64,
    },
    /// A block lies outside the file.
    #[error("block {block} at {host:#x} reaches past the end of the file of {file} bytes")]
    BlockPastEnd {
        /// Number of the block.
        block: u64,
        /// Where its data begin.
        host: u64,
        /// Size of the file in bytes.
        file: u64,
    },
    /// Two blocks of the disk are one of the file.
    #[error("block {block} is kept in place {place} of the file, as an earlier block is")]
    Shared {
        /// Number of the second block.
        block: u64,
        /// Number of the place in the file.
        place: u32,
    },
    /// The count of blocks is wrong.
    #[error("{found} blocks are said to be allocated, {counted} are")]
    Count {
        /// As the header says.
        found: u32,
        /// As the map says.
        counted: u32,
    },
    /// The parent is not in the same folder.
    #[error("the disk is a difference to disk {0}, and no file in the image's folder is that disk")]
    NoParent(Uuid),
    /// More than one file is the parent.
    #[error("the disk is a difference to disk {uuid}, and both {first:?} and {second:?} are that disk")]
    Parents {
        /// The parent's UUID.
        uuid: Uuid,
        /// One file.
        first: String,
        /// Another one.
        second: String,
    },
    /// The parent has changed.
    #[error("the parent {name:?} was changed after this difference to it was begun")]
    ParentChanged {
        /// The parent's file.
        name: String,
    },
    /// The disk is too large.
    #[error("a disk of {bytes} bytes: the limit is {max}")]
    Size {
        /// Bytes asked for, or found.
        bytes: u64,
        /// The most that the format holds.
        max: u64,
    },
    /// The size of a child is its parent's.
    #[error("the size of a differencing VDI is that of its parent and cannot be changed")]
    ResizeChild,
    /// A map that is too large to be put in order.
    #[error("an image with {0} blocks is too large to move its blocks")]
    ManyBlocks(u64),
    /// New differences are VirtualBox's business.
    #[error("racker makes no differencing VDI: VirtualBox keeps the list of them")]
    CreateChild,
}

impl error::Fault for VdiFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Version(_)
            | Self::ImageType(_)
            | Self::Flags(_)
            | Self::ResizeChild
            | Self::ManyBlocks(_)
            | Self::CreateChild => Kind::Unsupported,
            Self::NoParent(_) => Kind::NotFound,
            Self::Parents { .. } | Self::Size { .. } => Kind::Invalid,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Shared { .. } => "`racker disk check` lists all such blocks",
            Self::BlockPastEnd { .. } | Self::MapOutside { .. } => "the file may have been truncated",
            Self::NoParent(_) => {
                "VirtualBox knows where it is (VBoxManage showmediuminfo): put it beside the image"
            }
            Self::ParentChanged { .. } => return Some(changed_parent("vdi")),
            _ => return None,
        };
        Some(text.into())
    }
}
