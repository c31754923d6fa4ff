//! Everything that can be wrong with a tar.

use crate::error::{Fault, Kind};

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TarFault {
    /// The sum over the header is another one than the header says.
    #[error("the header at {at:#x} has checksum {found:#o}, its bytes sum up to {sum:#o}")]
    Checksum {
        /// Byte offset of the header in the archive.
        at: u64,
        /// What the header says.
        found: u64,
        /// What it should say.
        sum: u64,
    },
    /// A field that should be a number is none.
    #[error("{field} of the header at {at:#x} is not a number")]
    Number {
        /// Byte offset of the header in the archive.
        at: u64,
        /// The field's name.
        field: &'static str,
    },
    /// A member's bytes end behind the file.
    #[error("the member at {at:#x} has {len} bytes, the file ends at {file_size:#x}: it is truncated")]
    PastEnd {
        /// Byte offset of the header in the archive.
        at: u64,
        /// Bytes that should follow the header.
        len: u64,
        /// Size of the archive in bytes.
        file_size: u64,
    },
    /// Bytes that are too few for a header.
    #[error("the archive ends within the header at {at:#x}: it is truncated")]
    CutHeader {
        /// Byte offset of the header in the archive.
        at: u64,
    },
    /// More headers than racker reads.
    #[error("the archive has more than {0} members")]
    Many(usize),
    /// An extended header does not have the form "length key=value".
    #[error("the extended header at {at:#x} is malformed")]
    Pax {
        /// Byte offset of the header in the archive.
        at: u64,
    },
    /// A sparse map has more regions than racker reads.
    #[error("the sparse member at {at:#x} has more than {max} regions")]
    Regions {
        /// Byte offset of the header in the archive.
        at: u64,
        /// The ceiling.
        max: usize,
    },
    /// A region begins before the end of the one before it.
    #[error(
        "the sparse member at {at:#x} has a region at {offset} that begins before {end}, where another ends"
    )]
    Overlap {
        /// Byte offset of the header in the archive.
        at: u64,
        /// Where the region begins in the member.
        offset: u64,
        /// Where the one before it ends.
        end: u64,
    },
    /// A region ends behind the member.
    #[error("the sparse member at {at:#x} has {len} bytes at {offset}, but a size of {size}")]
    RegionPastEnd {
        /// Byte offset of the header in the archive.
        at: u64,
        /// Where the region begins in the member.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Size of the member in bytes.
        size: u64,
    },
    /// The regions need more bytes than the archive has for the member.
    #[error("the regions of the sparse member at {at:#x} take more than the {stored} bytes that are stored")]
    Stored {
        /// Byte offset of the header in the archive.
        at: u64,
        /// Bytes in the archive.
        stored: u64,
    },
    /// A sparse map that is not one.
    #[error("the map of the sparse member at {at:#x} is malformed")]
    Map {
        /// Byte offset of the header in the archive.
        at: u64,
    },
    /// A newer form of sparse members.
    #[error("the sparse member at {at:#x} has the form {major}.{minor}; racker reads 0.0, 0.1 and 1.0")]
    SparseVersion {
        /// Byte offset of the header in the archive.
        at: u64,
        /// `GNU.sparse.major`.
        major: u64,
        /// `GNU.sparse.minor`.
        minor: u64,
    },
    /// Part of a member that began on another tape.
    #[error("the member at {at:#x} is a part of one that began in another archive")]
    MultiVolume {
        /// Byte offset of the header in the archive.
        at: u64,
    },
}

impl Fault for TarFault {
    fn kind(&self) -> Kind {
        match self {
            Self::SparseVersion { .. } | Self::MultiVolume { .. } | Self::Many(_) | Self::Regions { .. } => {
                Kind::Unsupported
            }
            _ => Kind::Corrupt,
        }
    }
}
