//! Everything that can be wrong with a VHDX.

use uuid::Uuid;

use crate::error::{self, Kind};
use crate::opening::changed_parent;

/// What is wrong with a VHDX, with the numbers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VhdxFault {
    /// Not a VHDX.
    #[error("the signature of VHDX is missing")]
    Signature,
    /// Neither header can be used.
    #[error("neither header is valid")]
    NoHeader,
    /// Two different headers say that they are the newer one.
    #[error("the headers differ, but both have the sequence number {0}")]
    Headers(u64),
    /// A version that nobody has described.
    #[error("{what} version {found}: only {known} is known")]
    Version {
        /// File or log.
        what: &'static str,
        /// As it stands there.
        found: u16,
        /// The one that is known.
        known: u16,
    },
    /// Neither region table can be used.
    #[error("neither region table is valid")]
    NoRegionTable,
    /// A region or an item of metadata that must be known to open the image.
    #[error("the image needs the {what} {id}, which racker does not know")]
    Unknown {
        /// Region or item.
        what: &'static str,
        /// Its ID.
        id: Uuid,
    },
    /// A region or an item of metadata that every image has.
    #[error("the {0} is missing")]
    Missing(&'static str),
    /// Something that there may be only one of.
    #[error("there are two {0}s")]
    Twice(&'static str),
    /// A region that is not where it can be.
    #[error("the {what} at {at:#x} of {len} bytes {why}")]
    Region {
        /// The region.
        what: &'static str,
        /// Where it begins.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// More entries than a table can have.
    #[error("the {what} has {found} entries, the limit is {max}")]
    Entries {
        /// The table.
        what: &'static str,
        /// As it says.
        found: u32,
        /// As the format allows.
        max: u32,
    },
    /// A value that is out of range.
    #[error("the {what} is {found}, {expected} is expected")]
    Value {
        /// The item.
        what: &'static str,
        /// As it stands there.
        found: u64,
        /// What would do.
        expected: &'static str,
    },
    /// An item of metadata that lies outside its region.
    #[error("the metadata item {id} at {at:#x} of {len} bytes is outside its region of {region} bytes")]
    Item {
        /// Its ID.
        id: Uuid,
        /// Where it begins in the region.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// The region's length in bytes.
        region: u64,
    },
    /// The BAT is too small for the disk.
    #[error("the BAT has room for {found} entries, a disk of {size} bytes needs {need}")]
    BatShort {
        /// As its region allows.
        found: u64,
        /// As the size demands.
        need: u64,
        /// Virtual size in bytes.
        size: u64,
    },
    /// An entry in a state that it cannot have.
    #[error("the BAT entry of {what} {number} is {entry:#018x}: {why}")]
    Entry {
        /// Block, or sector bitmap of a chunk.
        what: &'static str,
        /// Its number.
        number: u64,
        /// As it stands there.
        entry: u64,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A block lies outside the file.
    #[error("{what} {number} at {host:#x} reaches past the end of the file of {file} bytes")]
    PastEnd {
        /// Block, or sector bitmap of a chunk.
        what: &'static str,
        /// Its number.
        number: u64,
        /// Where it begins.
        host: u64,
        /// Size of the file in bytes.
        file: u64,
    },
    /// Two things share bytes of the file.
    #[error("{what} {number} at {host:#x} lies over something else")]
    Shared {
        /// Block, or sector bitmap of a chunk.
        what: &'static str,
        /// Its number.
        number: u64,
        /// Where it begins.
        host: u64,
    },
    /// The log cannot be replayed.
    #[error("the log must be replayed and cannot be: {0}")]
    Log(&'static str),
    /// The file is shorter than when the log was written.
    #[error("the file has {found} bytes, it had {expected} when the log was written: it was truncated")]
    Truncated {
        /// Size of the file in bytes.
        found: u64,
        /// As the log says.
        expected: u64,
    },
    /// The parent locator leads nowhere.
    #[error("the disk is a difference to another one, but {0}")]
    NoParent(&'static str),
    /// The parent is not as it was.
    #[error("the parent's data have the ID {found}, this is a difference to {expected}")]
    Linkage {
        /// The parent's `DataWriteGuid`.
        found: String,
        /// `parent_linkage`.
        expected: String,
    },
    /// A disk that holds everything itself.
    #[error("the disk has no parent, and racker gives it none: make a new child with create -b")]
    NoChild,
    /// A parent in another format.
    #[error("the parent of a VHDX must be a VHDX, this one is {0}")]
    ParentFormat(&'static str),
    /// The size cannot be.
    #[error("a disk of {bytes} bytes: at most {max}, in whole sectors of {sector} bytes")]
    Size {
        /// Bytes asked for, or found.
        bytes: u64,
        /// The most that the format holds.
        max: u64,
        /// Bytes of a sector.
        sector: u64,
    },
    /// The parent is larger than the disk, so growing would show what was never on it.
    #[error("the parent has {parent} bytes, more than this disk's {size}: making it larger would show them")]
    ParentLarger {
        /// The parent's size in bytes.
        parent: u64,
        /// This disk's size in bytes.
        size: u64,
    },
    /// The file is too large to be written to.
    #[error("a file of {0} bytes is too large to be changed")]
    FileSize(u64),
    /// A change failed half way.
    #[error(
        "an earlier change failed half way: the image has to be opened anew, which finishes or undoes it"
    )]
    Broken,
}

impl error::Fault for VhdxFault {
    fn kind(&self) -> Kind {
        match self {
            Self::NoChild
            | Self::Version { .. }
            | Self::Unknown { .. }
            | Self::ParentLarger { .. }
            | Self::FileSize(_) => Kind::Unsupported,
            Self::ParentFormat(_) | Self::Size { .. } => Kind::Invalid,
            Self::Broken => Kind::Io,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Shared { .. } | Self::Entry { .. } => "`racker disk check` lists all such blocks",
            Self::PastEnd { .. } => "the file may have been truncated",
            Self::Linkage { .. } => return Some(changed_parent("vhdx")),
            _ => return None,
        };
        Some(text.into())
    }
}
