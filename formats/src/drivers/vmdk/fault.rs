//! Everything that can be wrong with a VMDK.

use crate::error::{Fault, Kind};
use crate::opening::changed_parent;

/// What is wrong with a VMDK.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmdkFault {
    /// The version of a header that racker does not know.
    #[error("the header has version {0}; racker knows 1 to 3")]
    Version(u32),
    /// The end-of-line characters of the header are damaged.
    #[error("the header's end-of-line characters were changed: the file was copied as text, and is damaged")]
    Newlines,
    /// The size of grains is no power of two, or out of range.
    #[error("grains of {sectors} sectors: expected a power of two up to {max}")]
    GrainSize {
        /// What the header says.
        sectors: u64,
        /// The largest that racker reads.
        max: u64,
    },
    /// Entries in a grain table.
    #[error("{found} entries in a grain table: expected 1 to {max}")]
    GtEntries {
        /// What the header says.
        found: u32,
        /// The largest that racker reads.
        max: u32,
    },
    /// A size in sectors that does not fit into 64 bits of bytes.
    #[error("{what} of {sectors} sectors does not fit into 64 bits")]
    Sectors {
        /// The field.
        what: &'static str,
        /// What it says.
        sectors: u64,
    },
    /// Fewer entries in the grain directory than the capacity needs.
    #[error("the grain directory has {found} entries, the capacity needs {need}")]
    GdEntries {
        /// What the header says.
        found: u64,
        /// What the capacity needs.
        need: u64,
    },
    /// A compression that racker does not know.
    #[error("compression method {0} is unknown")]
    Compression(u16),
    /// Header fields that contradict each other about compression.
    #[error("the header's flags and its compression method {0} contradict each other about compression")]
    CompressionFlag(u16),
    /// A descriptor that the header does not name.
    #[error("a descriptor is at its usual place, but the header does not say so")]
    UnnamedDescriptor,
    /// Compressed grains without the markers that say how long they are.
    #[error("compressed grains without markers are not supported")]
    NoMarkers,
    /// The header has no grain directory.
    #[error("the header names no grain directory")]
    NoGrainDirectory,
    /// A stream without its end.
    #[error("the header says that a footer ends the stream, but there is none: the file is truncated")]
    NoFooter,
    /// A grain directory entry outside the file.
    #[error("grain directory entry {index} names sector {sector}, the file ends at {file_sectors}")]
    GtPastEnd {
        /// Number of the entry.
        index: u64,
        /// The sector that it names.
        sector: u64,
        /// Size of the file in sectors.
        file_sectors: u64,
    },
    /// A grain table entry outside the file.
    #[error(
        "grain {grain} is at sector {sector}, the file ends at {file_sectors}: the file may be truncated"
    )]
    GrainPastEnd {
        /// Number of the grain.
        grain: u64,
        /// The sector that the table names.
        sector: u64,
        /// Size of the file in sectors.
        file_sectors: u64,
    },
    /// Two entries of the grain directory that name the same table.
    #[error("two entries of the grain directory name the table at sector {sector}")]
    SharedTable {
        /// The sector that both name.
        sector: u32,
    },
    /// A compressed grain that belongs to another place.
    #[error("the compressed grain at sector {sector} is for disk sector {found}, the table says {expected}")]
    GrainLba {
        /// Where it lies in the file.
        sector: u64,
        /// What its marker says.
        found: u64,
        /// What the table says.
        expected: u64,
    },
    /// A compressed grain with an absurd length.
    #[error("the compressed grain at sector {sector} has {len} bytes, the limit is {max}")]
    GrainLen {
        /// Where it lies in the file.
        sector: u64,
        /// What its marker says.
        len: u32,
        /// What a grain can take.
        max: u64,
    },
    /// Deflate says no.
    #[error("the compressed grain at sector {sector} is damaged: {why}")]
    Inflate {
        /// Where it lies in the file.
        sector: u64,
        /// What the decoder says.
        why: &'static str,
    },
    /// A seSparse header with something that nobody has described.
    #[error("the seSparse header has a {what} that racker does not know: {value:#x}")]
    SeField {
        /// The field.
        what: &'static str,
        /// What it says.
        value: u64,
    },
    /// The header of a seSparse extent that changes is not where it should be.
    #[error("the volatile header has the magic {0:#x}")]
    Volatile(u64),
    /// Changes that were written to a journal and never to their places.
    #[error("the journal holds changes that were not written to their places, and racker cannot replay it")]
    Journal,
    /// A seSparse grain directory entry that makes no sense.
    #[error("grain directory entry {index} is {entry:#x}; there are {tables} grain tables")]
    SeDirectory {
        /// Number of the entry.
        index: u64,
        /// What it says.
        entry: u64,
        /// Tables in the file.
        tables: u64,
    },
    /// A seSparse grain table entry of a kind that nobody has described.
    #[error("grain table entry {0:#x} is of no kind that racker knows")]
    SeEntry(u64),
    /// A seSparse grain outside the file.
    #[error(
        "grain {number} of the file lies behind the end of the grains, byte {end}: the file may be truncated"
    )]
    SeGrain {
        /// Number among the grains of the file.
        number: u64,
        /// Where the grains end.
        end: u64,
    },
    /// The descriptor cannot be understood.
    #[error("line {line} of the descriptor: {why}")]
    Descriptor {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The descriptor lacks something.
    #[error("the descriptor has no {0}")]
    Missing(&'static str),
    /// Text in an encoding that racker does not know.
    #[error("the descriptor is not UTF-8")]
    Encoding,
    /// A kind of disk that is somewhere else.
    #[error("{0} is not supported: the data are on a device of another machine")]
    Device(&'static str),
    /// An extent of a kind that racker does not read.
    #[error("extents of kind {0} are not supported")]
    ExtentKind(String),
    /// The descriptor in a sparse extent describes more than that extent.
    #[error("the embedded descriptor lists {0} extents, expected one")]
    EmbeddedExtents(usize),
    /// A sparse extent that is smaller than the descriptor says.
    #[error("extent {name:?} holds {found} sectors, the descriptor says {expected}")]
    ExtentSize {
        /// As it stands in the descriptor.
        name: String,
        /// What the file has.
        found: u64,
        /// What the descriptor says.
        expected: u64,
    },
    /// The parent was changed after the child was made.
    #[error(
        "the parent's content ID is {found:08x}, the child expects {expected:08x}: the parent was changed"
    )]
    ParentCid {
        /// What the parent says.
        found: u32,
        /// What the child says.
        expected: u32,
    },
    /// A child that does not say whose.
    #[error("the image has a parent (content ID {0:08x}), but does not name it")]
    NoParentName(u32),
    /// Something that cannot be written.
    #[error("{0} cannot be changed in place")]
    ReadOnly(&'static str),
    /// The file would pass what an entry of 32 bits can name.
    #[error("the extent is full: sector {0} does not fit into a grain table")]
    Full(u64),
    /// A kind of image that is only written from beginning to end.
    #[error("streamOptimized images are only written in one go")]
    StreamOnly,
    /// Compression asked of a kind without.
    #[error("{0} images are not compressed")]
    Plain(&'static str),
    /// A child whose kind has no place for "see the parent".
    #[error("a flat image holds all its bytes and cannot have a parent")]
    FlatChild,
    /// Zeroed grains asked of a kind without grains.
    #[error("a flat image has no grains that could be marked as zeroes")]
    FlatZeroed,
    /// A disk that holds everything itself.
    #[error("the disk has no parent, and racker gives it none: make a new child with create -b")]
    NoChild,
    /// A parent of another format.
    #[error("the parent of a VMDK must be a VMDK with a content ID, not {0}")]
    ParentFormat(&'static str),
    /// Several files asked for where only one can be made.
    #[error("{0} needs further files beside the image, and there is no folder for them here")]
    NowhereBeside(&'static str),
    /// Two options that contradict each other.
    #[error("compat6 says which hardware version it is, and so does hwversion")]
    TwoVersions,
    /// Two users of one place in the file.
    #[error("grain {grain} is at sector {sector}, which something else uses as well")]
    Overlap {
        /// Number of the grain.
        grain: u64,
        /// The sector that the table names.
        sector: u64,
    },
    /// Tables that lie across each other.
    #[error("the grain table at sector {sector} overlaps another one")]
    TablesOverlap {
        /// Where it begins.
        sector: u64,
    },
    /// So large and so oddly laid out that what is in use cannot be kept in memory.
    #[error("grains lie at odd sectors all over a file of {file} bytes")]
    OddPlaces {
        /// Size of the file in bytes.
        file: u64,
    },
    /// A size that the kind of image cannot have.
    #[error("the size of {0} cannot be changed")]
    FixedSize(&'static str),
    /// Data came in another order than that of the disk.
    #[error("data for byte {at} after byte {written}")]
    Order {
        /// What came.
        at: u64,
        /// What was there already.
        written: u64,
    },
}

impl Fault for VmdkFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Version(_)
            | Self::Compression(_)
            | Self::NoMarkers
            | Self::Encoding
            | Self::Device(_)
            | Self::ExtentKind(_)
            | Self::EmbeddedExtents(_)
            | Self::Journal
            | Self::SeField { .. }
            | Self::NoChild
            | Self::StreamOnly => Kind::Unsupported,
            Self::GrainSize { sectors, .. } if sectors.is_power_of_two() => Kind::Unsupported,
            Self::ReadOnly(_) => Kind::ReadOnly,
            Self::Full(_) => Kind::NoSpace,
            Self::FixedSize(_) | Self::NowhereBeside(_) | Self::OddPlaces { .. } => Kind::Unsupported,
            Self::FlatZeroed
            | Self::Order { .. }
            | Self::Plain(_)
            | Self::FlatChild
            | Self::ParentFormat(_)
            | Self::TwoVersions => Kind::Invalid,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Overlap { .. } | Self::SharedTable { .. } | Self::TablesOverlap { .. } => {
                Some("mend the image with: racker disk check --repair".into())
            }
            Self::ParentCid { .. } => Some(changed_parent("vmdk")),
            Self::Plain(_) => Some("try -o subformat=streamOptimized".into()),
            Self::Journal => Some("start and stop the virtual machine once: ESXi replays the journal".into()),
            Self::StreamOnly => {
                Some("make one with: racker disk convert -o subformat=streamOptimized".into())
            }
            Self::ReadOnly(_) => Some("write the changed disk to a new file with --output NEW".into()),
            _ => None,
        }
    }
}
