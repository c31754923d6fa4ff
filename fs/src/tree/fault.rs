//! What can be wrong with a tree, or with the place it shall go to.

use std::path::PathBuf;

use racker_formats::error::{Fault, Kind};

use crate::filesystem::NodeId;

/// Why a tree cannot be walked or copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeFault {
    /// A directory that is reached a second time: a loop or a hard-linked directory.
    #[error("directory {} is reached a second time: directories have one name", .node.0)]
    DirTwice {
        /// The directory.
        node: NodeId,
    },
    /// Two entries of one directory have the same name.
    #[error("two entries have the name {:?}", String::from_utf8_lossy(.name))]
    NameTwice {
        /// The name.
        name: Vec<u8>,
    },
    /// Directories within directories.
    #[error("directories are nested deeper than {max}")]
    Deep {
        /// The limit.
        max: usize,
    },
    /// A path that is too long.
    #[error("the path is longer than {max} bytes")]
    PathLong {
        /// The limit in bytes.
        max: usize,
    },
    /// Too many nodes.
    #[error("there are more than {max} entries")]
    Many {
        /// The limit.
        max: u64,
    },
    /// The listings of the directories on the way down take too much memory.
    #[error("sorting the directory would take more than {max} bytes")]
    ListingLarge {
        /// The limit in bytes.
        max: u64,
    },
    /// The table of files with several hard links takes too much memory.
    #[error("the names of hard-linked files take more than {max} bytes")]
    LinksLarge {
        /// The limit in bytes.
        max: u64,
    },
    /// Extended attributes of one node take too much memory.
    #[error("the extended attributes take more than {max} bytes")]
    XattrsLarge {
        /// The limit in bytes.
        max: u64,
    },
    /// An extended attribute that no system could have.
    #[error("an extended attribute's name of {len} bytes is empty or has a zero byte in it")]
    XattrName {
        /// Length of the name in bytes.
        len: usize,
    },
    /// A file's extents do not follow each other.
    #[error("an extent begins at {at}, the one before it ended at {expected}")]
    ExtentOrder {
        /// First byte of the extent.
        at: u64,
        /// Where it should begin.
        expected: u64,
    },
    /// A file's extents end before its size.
    #[error("the extents end at {end}, the file has {size} bytes")]
    ExtentsShort {
        /// Where they end.
        end: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// A file gave fewer bytes than its size promises.
    #[error("the file ends at {at}, its size is {size} bytes")]
    ShortRead {
        /// Where the bytes ended.
        at: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// A symbolic link without a usable target.
    #[error("the symbolic link's target of {len} bytes is {why}")]
    LinkTarget {
        /// Length of the target in bytes.
        len: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hard link to something that is not there.
    #[error("{target}, which this is a hard link to, is not there")]
    LinkMissing {
        /// The other name.
        target: String,
    },
    /// A hard link to something on another filesystem.
    #[error("{target}, which this is a hard link to, is on another filesystem")]
    LinkAcross {
        /// The other name.
        target: String,
    },
    /// A tar stream that makes no sense.
    #[error("the tar stream is damaged at byte {at}: {why}")]
    Member {
        /// Where.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The tree's root is not a directory.
    #[error("the root of the tree is not a directory")]
    RootKind,
    /// The caller's progress function said stop.
    #[error("interrupted after {nodes} entries")]
    Interrupted {
        /// Entries that were done.
        nodes: u64,
    },
    /// The folder to extract into holds something.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The sidecar manifest of an earlier run.
    #[error("{} exists already", .0.display())]
    ManifestExists(PathBuf),
    /// The folder has no name that the manifest could be called after.
    #[error("{} has no name to call the manifest after", .0.display())]
    NoManifestName(PathBuf),
    /// The host takes no entry of this name.
    #[error("the host cannot hold an entry of this name: {source}")]
    HostName {
        /// What the host said.
        source: std::io::Error,
    },
    /// Something stands there already.
    #[error("the host has an entry of this name already")]
    HostExists,
    /// Something stands where a directory shall go, or a directory where something else shall.
    #[error("exists already")]
    Occupied,
    /// Somebody moved the folder while it was written.
    #[error("the folder was moved while it was written to")]
    HostMoved,
}

impl Fault for TreeFault {
    fn kind(&self) -> Kind {
        match self {
            Self::DirTwice { .. }
            | Self::NameTwice { .. }
            | Self::Deep { .. }
            | Self::PathLong { .. }
            | Self::Many { .. }
            | Self::ListingLarge { .. }
            | Self::LinksLarge { .. }
            | Self::XattrsLarge { .. }
            | Self::XattrName { .. }
            | Self::ExtentOrder { .. }
            | Self::ExtentsShort { .. }
            | Self::ShortRead { .. }
            | Self::LinkTarget { .. }
            | Self::LinkMissing { .. }
            | Self::LinkAcross { .. }
            | Self::Member { .. } => Kind::Corrupt,
            Self::NoManifestName(_) => Kind::Invalid,
            Self::RootKind => Kind::NotDir,
            Self::Interrupted { .. } | Self::HostMoved | Self::HostName { .. } => Kind::Io,
            Self::NotEmpty(_) => Kind::NotEmpty,
            Self::ManifestExists(_) | Self::HostExists | Self::Occupied => Kind::Exists,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotEmpty(_) => Some("name a new folder, or empty this one".into()),
            Self::ManifestExists(_) => {
                Some("it tells what an earlier extraction could not keep: move or remove it".into())
            }
            Self::Occupied => Some(
                "files are replaced, directories neither replaced nor merged: copy to another place".into(),
            ),
            Self::HostName { .. } | Self::HostExists => Some(
                "the host's filesystem forbids such names or takes different ones for the same: \
                 extract to another one, or use tar-out"
                    .into(),
            ),
            _ => None,
        }
    }
}
