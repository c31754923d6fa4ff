//! Why an edit of a filesystem is refused, whatever the filesystem.

use racker_formats::error::{Fault, Kind};

use crate::filesystem::Name;

/// What cannot be.
#[derive(Debug, thiserror::Error)]
pub enum EditFault {
    /// A new entry of a name that is taken.
    #[error("{0:?} exists already")]
    Exists(Name),
    /// An entry that is not there.
    #[error("{0:?}: no such file or directory")]
    NotFound(Name),
    /// More than its volume has.
    #[error("{size} bytes are more than the volume has: {have}")]
    Room {
        /// Bytes asked for.
        size: u64,
        /// Bytes of the volume.
        have: u64,
    },
    /// Less than it has.
    #[error("the filesystem has {now} bytes, and racker does not make it smaller: {size}")]
    Smaller {
        /// Bytes asked for.
        size: u64,
        /// Bytes of the filesystem.
        now: u64,
    },
    /// A directory that has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// Something else where a directory is needed.
    #[error("not a directory")]
    NotDir,
    /// A directory where something else is needed.
    #[error("is a directory")]
    IsDir,
    /// Something else where a regular file is needed.
    #[error("not a regular file")]
    NotFile,
    /// A directory that would become a part of itself.
    #[error("a directory cannot be moved below itself")]
    BelowItself,
    /// Directories that lie in each other without end, or deeper than any path reaches.
    #[error("the directory lies too deep in others")]
    Depth,
    /// A filesystem without something.
    #[error("this filesystem has no {0}")]
    NotKept(&'static str),
    /// Names or content that only a key opens.
    #[error("encrypted files and directories are left as they are")]
    Encrypted,
    /// Content under a seal.
    #[error("the file is sealed by fs-verity: its content cannot change")]
    Verity,
    /// A target that no symbolic link can have.
    #[error("the target of a symbolic link has 1 to 4095 bytes and no zero byte, not {0} bytes")]
    Target(usize),
    /// A name that no extended attribute has.
    #[error("{0:?} is no name of an extended attribute: those begin with user., trusted. or security.")]
    XattrName(String),
    /// Attributes of users on something that is neither file nor directory.
    #[error("only files and directories have user. attributes")]
    UserXattr,
    /// Bytes of a value.
    #[error("the value of an extended attribute has {0} bytes, more than 65536")]
    XattrValue(usize),
    /// An access control list where none can be.
    #[error("symbolic links have no access control list, and only directories a default one")]
    NoList,
    /// Bytes that are no access control list.
    #[error("not an access control list: {0}")]
    List(&'static str),
    /// An operation after one that failed half-way.
    #[error("an operation failed before: nothing of this edit can be kept")]
    Failed,
    /// A look at a filesystem after its edit.
    #[error("the edit of this filesystem is over")]
    Closed,
}

impl Fault for EditFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Exists(_) => Kind::Exists,
            Self::NotFound(_) => Kind::NotFound,
            Self::NotEmpty => Kind::NotEmpty,
            Self::NotDir => Kind::NotDir,
            Self::IsDir => Kind::IsDir,
            Self::Depth => Kind::Corrupt,
            Self::NotKept(_) | Self::Encrypted | Self::Verity => Kind::Unsupported,
            Self::NotFile
            | Self::BelowItself
            | Self::Target(_)
            | Self::XattrName(_)
            | Self::UserXattr
            | Self::XattrValue(_)
            | Self::NoList
            | Self::List(_)
            | Self::Room { .. }
            | Self::Smaller { .. }
            | Self::Failed
            | Self::Closed => Kind::Invalid,
        }
    }
}
