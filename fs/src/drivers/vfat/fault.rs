//! Everything that can be wrong with a FAT filesystem.

use racker_formats::error::{Fault, Kind};

/// What is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum FatFault {
    /// A field of the boot sector is out of range.
    #[error("the boot sector's {field} is {found}, expected {expected}")]
    BootSector {
        /// What the specification calls it.
        field: &'static str,
        /// As stored.
        found: u64,
        /// What would do.
        expected: &'static str,
    },
    /// A cluster number outside the filesystem, or one that is free or bad.
    #[error("{what} leads to cluster {cluster:#x}, they are 2 to {last:#x}")]
    Cluster {
        /// Where the number stands.
        what: &'static str,
        /// The number.
        cluster: u32,
        /// The last one.
        last: u32,
    },
    /// A chain that is longer than there are clusters.
    #[error("the cluster chain is a loop")]
    Loop,
    /// A chain that ends before its file does.
    #[error("the cluster chain ends after {clusters} clusters, the file has {size} bytes")]
    ChainEnds {
        /// Clusters in the chain.
        clusters: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// A cluster that is not on the volume.
    #[error("cluster {cluster:#x} is past the end of the volume of {size} bytes")]
    PastVolume {
        /// The cluster.
        cluster: u32,
        /// Size of the volume in bytes.
        size: u64,
    },
    /// A directory larger than the format allows.
    #[error("the directory has more than {0} bytes")]
    DirSize(u64),
    /// A node number that is no directory entry in use.
    #[error("no file at directory entry {0}")]
    Node(u64),
    /// Something that makes writing a danger to other files.
    #[error("{0}: run fsck.vfat before changing anything")]
    Unsound(String),
    /// The volume ends before the filesystem does.
    #[error("the filesystem has {size} bytes, its volume {volume}")]
    CutShort {
        /// What the boot sector says.
        size: u64,
        /// Bytes of the volume.
        volume: u64,
    },
    /// Not enough free clusters.
    #[error("the filesystem is full: {need} clusters needed, {free} are free")]
    Full {
        /// Clusters that the change needs.
        need: u64,
        /// Free clusters.
        free: u64,
    },
    /// The fixed root directory, or one of 65536 entries.
    #[error("the directory is full")]
    DirFull,
    /// More than the size's 32 bits can say.
    #[error("a file of {0} bytes: at most 4294967295 on FAT")]
    FileSize(u64),
    /// A name that FAT does not take.
    #[error("{name:?} is no name for FAT: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More clusters than the type can have.
    #[error("{name} has no room for {size} bytes with clusters of this size: {most} at most")]
    TypeTooSmall {
        /// The type.
        name: &'static str,
        /// Bytes asked for.
        size: u64,
        /// Bytes that it can have.
        most: u64,
    },
    /// An operation stopped half-way.
    #[error("an earlier change failed half-way")]
    HalfDone,
    /// Not what was asked for.
    #[error("{what}")]
    WrongKind {
        /// What the caller can do about it.
        kind: Kind,
        /// What it is or is not.
        what: &'static str,
    },
}

impl Fault for FatFault {
    fn kind(&self) -> Kind {
        match self {
            Self::WrongKind { kind, .. } => *kind,
            Self::Full { .. } | Self::DirFull => Kind::NoSpace,
            Self::TypeTooSmall { .. } => Kind::Unsupported,
            Self::FileSize(_) | Self::Name { .. } => Kind::Invalid,
            Self::HalfDone => Kind::Io,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::PastVolume { .. } | Self::CutShort { .. } => Some("the image may be cut short".into()),
            Self::TypeTooSmall { most, .. } => {
                Some(format!("another type would be another filesystem; {most} is a size that it can have"))
            }
            _ => None,
        }
    }
}
