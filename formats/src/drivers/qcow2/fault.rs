//! Everything that can be wrong with a qcow2 image.

use crate::error::{self, Kind};

/// What is wrong with the image, with the numbers.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the magic bytes of qcow2 are missing")]
    Magic,
    #[error("version {0}: only 2 and 3 are known")]
    Version(u32),
    #[error("cluster_bits is {0}, it must be 9 to 21")]
    ClusterBits(u32),
    #[error("extended L2 entries need clusters of at least 16 KiB, cluster_bits is {0}")]
    SubclusterSize(u32),
    #[error("refcount_order is {0}, it must be 0 to 6")]
    RefcountOrder(u32),
    #[error("header_length is {found}, it must be {min} to {max}")]
    HeaderLength { found: u32, min: u32, max: u64 },
    #[error("the header extension {kind:#010x} of {len} bytes reaches past the header area of {area} bytes")]
    Extension { kind: u32, len: u32, area: u64 },
    #[error("the header extension {0} appears twice")]
    ExtensionTwice(&'static str),
    #[error("the header extension {what} takes {found} bytes, it must take {expected}")]
    ExtensionLength { what: &'static str, found: usize, expected: &'static str },
    #[error("the image uses features that racker does not know: {}", .0.join(", "))]
    Features(Vec<String>),
    #[error("the data are encrypted ({0})")]
    Encrypted(&'static str),
    #[error("crypt_method is {0}: only 0 to 2 are known")]
    CryptMethod(u32),
    #[error("compression_type is {0}: only 0 (zlib) and 1 (zstd) are known")]
    CompressionType(u8),
    #[error("compression_type {found} contradicts the feature bit, which is {bit}")]
    CompressionBit { found: u8, bit: bool },
    #[error("the backing file's name at {at} of {len} bytes is outside the first cluster of {cluster} bytes")]
    BackingName { at: u64, len: u32, cluster: u64 },
    #[error("the {0} is not UTF-8")]
    NotText(&'static str),
    #[error("the image keeps its data in an external file, but does not name it")]
    DataFileUnnamed,
    #[error("a raw external data file and a backing file exclude each other")]
    RawDataAndBacking,
    #[error("{what} at {at:#x} is not aligned to clusters of {cluster} bytes")]
    Unaligned { what: &'static str, at: u64, cluster: u64 },
    #[error("{what} at {at:#x} of {len} bytes is outside the file of {file} bytes")]
    OutsideFile { what: &'static str, at: u64, len: u64, file: u64 },
    #[error("the L1 table has {found} entries, a disk of {size} bytes needs {need}")]
    L1Short { found: u64, need: u64, size: u64 },
    #[error("{found} {what}, the limit is {max}")]
    Many { what: &'static str, found: u64, max: u64 },
    #[error("the cluster at {host:#x} starts behind the end of the file of {file} bytes")]
    DataPastEnd { host: u64, file: u64 },
    #[error("a version 2 image cannot hold the zero cluster {0:#x}")]
    ZeroInVersion2(u64),
    #[error("the subcluster bitmap {bitmap:#018x} of the L2 entry {entry:#018x} contradicts itself")]
    Subclusters { entry: u64, bitmap: u64 },
    #[error(
        "guest offset {guest:#x} lies at {host:#x} of the external data file, where the two must be equal"
    )]
    DataFileOffset { guest: u64, host: u64 },
    #[error("an image with an external data file cannot hold compressed clusters or snapshots")]
    DataFileShape,
    #[error("the compressed cluster at {host:#x} of {stored} bytes does not unpack: {why}")]
    Unpack { host: u64, stored: u64, why: String },
    #[error("the image is marked as corrupt: it is not written to")]
    MarkedCorrupt,
    #[error("the data lie in the external file {0:?}, which cannot be changed as a whole or not at all")]
    DataFileEdit(String),
    #[error("the reference count of host cluster {cluster} is 0, but {what} is there")]
    FreeButUsed { cluster: u64, what: &'static str },
    #[error("a table says that data are in host cluster {cluster}, but {what} is there")]
    DataOverTable { cluster: u64, what: &'static str },
    #[error("the reference count of host cluster {cluster} is 0, but the cluster is in use")]
    CountZero { cluster: u64 },
    #[error("the reference count of host cluster {cluster} cannot pass {most}")]
    CountTooLarge { cluster: u64, most: u64 },
    #[error("host cluster {cluster} is in use, but has no reference count")]
    NoRefcountBlock { cluster: u64 },
    #[error("the refcount table cannot have more than {most} entries")]
    RefcountTableFull { most: u64 },
    #[error("the references cannot be counted: {0}")]
    CannotCount(String),
    #[error("no free cluster is within reach of the tables")]
    NoCluster,
    #[error("{0} needs version 3 (compat=1.1)")]
    NeedsVersion3(&'static str),
    #[error("a backing file is named, but not its format")]
    BackingFormatMissing,
    #[error("a backing file and preallocation exclude each other without extended_l2")]
    PreallocatedChild,
    #[error("compression and preallocation exclude each other")]
    PreallocatedPacked,
    #[error("zlib has one level in qcow2: compression_level is for compression_type=zstd")]
    LevelOfZlib,
    #[error("data_file_raw needs a data_file")]
    RawDataWithoutFile,
    #[error("the data file {0:?} of the new image is not open")]
    DataFileNotOpen(String),
    #[error("the backing file's name has {0} bytes, it must have 1 to 1023")]
    NewBackingName(usize),
    #[error("a disk of {0} bytes is too large for clusters of that size")]
    TooLarge(u64),
    #[error("the header takes {len} bytes, a cluster has {cluster}")]
    HeaderFull { len: usize, cluster: usize },
    #[error("the snapshot {0:?} does not say how long its disk is: the size cannot change while it is there")]
    ResizeSnapshot(String),
    #[error("the bitmap {0:?} would not fit another size: remove it first")]
    ResizeBitmap(String),
    #[error(
        "the backing file has {parent} bytes, more than the disk of {size} bytes, whose data lie in an external file"
    )]
    ResizeOverParent { parent: u64, size: u64 },
    #[error("there is no snapshot {0:?}")]
    NoSnapshot(String),
    #[error("there is a snapshot {0:?} already")]
    SnapshotExists(String),
    #[error("a snapshot's name of {0} bytes: it has 65535 at most")]
    SnapshotName(usize),
    #[error("there is no bitmap {0:?}")]
    NoBitmap(String),
    #[error("there is a bitmap {0:?} already")]
    BitmapExists(String),
    #[error("the bitmap {0:?} was in use when it was left, and cannot be relied on")]
    BitmapInUse(String),
    #[error("a bitmap's name of {0} bytes: it has 1 to 1023")]
    BitmapName(usize),
    #[error("a bitmap's granularity is a power of two from 512 to 2147483648, not {0}")]
    BitmapGranularity(u64),
    #[error("the bitmap is of a disk of {found} bytes, not of one of {size}")]
    BitmapSize { found: u64, size: u64 },
    #[error("the table of bitmap {name:?} has {found} entries, its bits need {need}")]
    BitmapTable { name: String, found: u64, need: u64 },
    #[error("a piece for offset {at} came when the image was written up to {written}")]
    Order { at: u64, written: u64 },
    #[error("{0} is cut short")]
    Cut(&'static str),
}

impl error::Fault for Fault {
    fn kind(&self) -> Kind {
        match self {
            Self::Version(_)
            | Self::Features(_)
            | Self::Encrypted(_)
            | Self::CompressionType(_)
            | Self::DataFileEdit(_)
            | Self::ResizeSnapshot(_)
            | Self::ResizeBitmap(_)
            | Self::BitmapInUse(_)
            | Self::ResizeOverParent { .. } => Kind::Unsupported,
            Self::NeedsVersion3(_)
            | Self::BackingFormatMissing
            | Self::PreallocatedChild
            | Self::SnapshotName(_)
            | Self::BitmapName(_)
            | Self::BitmapGranularity(_)
            | Self::BitmapSize { .. }
            | Self::PreallocatedPacked
            | Self::RawDataWithoutFile
            | Self::LevelOfZlib
            | Self::DataFileNotOpen(_)
            | Self::NewBackingName(_)
            | Self::TooLarge(_)
            | Self::HeaderFull { .. }
            | Self::Order { .. } => Kind::Invalid,
            Self::NoSnapshot(_) | Self::NoBitmap(_) => Kind::NotFound,
            Self::SnapshotExists(_) | Self::BitmapExists(_) => Kind::Exists,
            Self::RefcountTableFull { .. } | Self::NoCluster => Kind::NoSpace,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Encrypted(_) => "decrypt it first: qemu-img convert --object secret,… --image-opts …",
            Self::DataPastEnd { .. } | Self::OutsideFile { .. } => "the file may have been truncated",
            Self::BitmapInUse(_) => "take it away with: racker disk bitmap --remove IMAGE BITMAP",
            Self::BackingFormatMissing => "add -o backing_fmt=FORMAT",
            Self::TooLarge(_) | Self::HeaderFull { .. } => "choose larger clusters: -o cluster_size=64k",
            Self::DataFileUnnamed => {
                "record it with: qemu-img amend -o data_file=FILE IMAGE, or open the data file as raw"
            }
            Self::MarkedCorrupt
            | Self::FreeButUsed { .. }
            | Self::DataOverTable { .. }
            | Self::CountZero { .. }
            | Self::CannotCount(_)
            | Self::NoRefcountBlock { .. } => {
                "copy the image, then mend it with: qemu-img check -r all IMAGE"
            }
            _ => return None,
        };
        Some(text.into())
    }
}
