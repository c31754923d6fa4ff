//! Everything that can be wrong with an XFS filesystem, or beyond what racker does with one.

use racker_formats::error::{self, Kind};

/// What is wrong. Block numbers are as the structure that names them counts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Fault {
    /// The first word is not what it has to be.
    #[error("{what}: magic number {found:#x}, expected {expected:#x}")]
    Magic {
        /// The structure.
        what: &'static str,
        /// What is there.
        found: u32,
        /// What has to be there.
        expected: u32,
    },
    /// The checksum in a structure is not that of its bytes.
    #[error("{what}: the checksum is {stored:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// The structure.
        what: &'static str,
        /// As it stands there.
        stored: u32,
        /// As its bytes say.
        computed: u32,
    },
    /// A block of another filesystem, or left over from an earlier one.
    #[error("{what} carries the UUID of another filesystem")]
    ForeignUuid {
        /// The structure.
        what: &'static str,
    },
    /// A block that says it lies elsewhere.
    #[error("{what} at sector {at} says that it lies at sector {found}")]
    Misplaced {
        /// The structure.
        what: &'static str,
        /// Where it was read, in 512-byte units.
        at: u64,
        /// Where it says it is.
        found: u64,
    },
    /// A block that says it belongs to something else.
    #[error("{what} belongs to {found}, not to {expected}")]
    Owner {
        /// The structure.
        what: &'static str,
        /// As it stands there: an inode or an allocation group.
        found: u64,
        /// Who led to it.
        expected: u64,
    },
    /// A field outside of its range.
    #[error("{what} is {found}, which cannot be: {why}")]
    Field {
        /// The field under the specification's name.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The rule.
        why: &'static str,
    },
    /// A version of the format before version 4.
    #[error("version {found} of the format; racker reads 4 and 5")]
    Version {
        /// The version.
        found: u16,
    },
    /// Features that racker does not know.
    #[error("the filesystem uses {features}, which racker does not read")]
    Features {
        /// By name, or in hexadecimal.
        features: String,
    },
    /// Features that racker does not write.
    #[error("the filesystem uses {features}, which racker does not write")]
    ReadOnlyFeatures {
        /// By name, or in hexadecimal.
        features: String,
    },
    /// A repair was begun and not finished, or an upgrade is pending.
    #[error("the filesystem is marked as in need of repair")]
    NeedsRepair,
    /// `mkfs` was stopped in the middle.
    #[error("the filesystem was never finished: mkfs was interrupted")]
    InProgress,
    /// The log is on a device of its own.
    #[error("the log is on another device, which racker does not read")]
    ExternalLog,
    /// The file's blocks are on the realtime device.
    #[error("inode {ino} keeps its data on the realtime device, which racker does not read")]
    Realtime {
        /// The inode.
        ino: u64,
    },
    /// The volume is smaller than the filesystem.
    #[error("the filesystem takes {need} bytes, the volume has {have}")]
    Truncated {
        /// Bytes the superblock claims.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// A block number outside of its allocation group or of the filesystem.
    #[error("{len} blocks at group {ag} block {block} are not inside the filesystem")]
    BlockRange {
        /// Allocation group.
        ag: u64,
        /// First block within it.
        block: u64,
        /// Count of blocks.
        len: u64,
    },
    /// An inode number that cannot be.
    #[error("there can be no inode {ino}")]
    InodeRange {
        /// The number.
        ino: u64,
    },
    /// An inode that is not in use.
    #[error("inode {ino} is not in use")]
    InodeFree {
        /// The number.
        ino: u64,
    },
    /// Content was asked of a directory.
    #[error("inode {ino} is a directory")]
    IsDirectory {
        /// The number.
        ino: u64,
    },
    /// Entries were asked of something else.
    #[error("inode {ino} is not a directory")]
    NotADirectory {
        /// The number.
        ino: u64,
    },
    /// Content, or a target, was asked of a node that has none.
    #[error("inode {ino} is not {what}")]
    NotA {
        /// The number.
        ino: u64,
        /// What it would have to be.
        what: &'static str,
    },
    /// A fork whose description does not fit into its inode.
    #[error("inode {ino}: the {fork} fork: {why}")]
    Fork {
        /// The inode.
        ino: u64,
        /// `data` or `attribute`.
        fork: &'static str,
        /// The rule.
        why: &'static str,
    },
    /// A tree block whose level is not its parent's minus one.
    #[error("{what}: level {found} where {expected} has to be")]
    TreeLevel {
        /// The tree.
        what: &'static str,
        /// As it stands there.
        found: u64,
        /// What its parent asks for.
        expected: u64,
    },
    /// A walk met more blocks than there can be: it runs in a circle.
    #[error("{what} runs in a circle")]
    Circle {
        /// The walk.
        what: &'static str,
    },
    /// A structure that contradicts itself.
    #[error("{what}: {why}")]
    Structure {
        /// The structure.
        what: &'static str,
        /// The rule that is broken.
        why: &'static str,
    },
    /// Spare blocks whose count contradicts the ends of their list.
    #[error("AGF: {count} spare blocks from slot {first} to {last} of {size}")]
    Spares {
        /// How many there are to be.
        count: u32,
        /// The first slot.
        first: u32,
        /// The last one.
        last: u32,
        /// Slots there are.
        size: u32,
    },
    /// A directory has no entry of that name.
    #[error("directory {dir} has no such entry")]
    NoEntry {
        /// The directory's inode.
        dir: u64,
    },
    /// No room is left for what is to be written.
    #[error("no space is left on the filesystem")]
    NoSpace,
    /// A time that inodes cannot hold.
    #[error("inodes of this filesystem cannot hold a time of {seconds} seconds from 1970")]
    Time {
        /// Seconds from 1970.
        seconds: i64,
    },
    /// A change failed half-way: what was changed must not be committed, and nothing more is changed.
    #[error("an earlier change failed, so nothing more is written")]
    Abandoned,
    /// A kind of log item that racker does not know.
    #[error("the log holds an item of unknown kind {kind:#x}")]
    UnknownLogItem {
        /// The kind.
        kind: u16,
    },
    /// The superblock was last changed in a time that the log has not reached.
    #[error("the superblock's sequence number {found} is ahead of the log, which ends at {head}")]
    LsnAhead {
        /// In the superblock: round and block.
        found: String,
        /// Where the log's next record goes.
        head: String,
    },
    /// Something contradicts itself, as a check has found.
    #[error("{0}: run xfs_repair before changing anything")]
    Damaged(String),
    /// A check found so much that it makes no sense to go on.
    #[error("so much is wrong that the check ends here")]
    TooMuch,
    /// More inodes than a check has memory for.
    #[error("there are more than {most} inodes, which is more than racker checks")]
    TooManyInodes {
        /// How many there may be.
        most: u64,
    },
    /// Something that racker does not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// The thing.
        what: &'static str,
    },
}

impl error::Fault for Fault {
    fn kind(&self) -> Kind {
        match self {
            Self::Version { .. }
            | Self::Features { .. }
            | Self::ReadOnlyFeatures { .. }
            | Self::ExternalLog
            | Self::Realtime { .. }
            | Self::UnknownLogItem { .. }
            | Self::Time { .. }
            | Self::TooManyInodes { .. }
            | Self::Unsupported { .. } => Kind::Unsupported,
            Self::IsDirectory { .. } => Kind::IsDir,
            Self::NotADirectory { .. } => Kind::NotDir,
            Self::NotA { .. } | Self::Abandoned => Kind::Invalid,
            Self::NoEntry { .. } => Kind::NotFound,
            Self::NoSpace => Kind::NoSpace,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NeedsRepair | Self::LsnAhead { .. } => Some("xfs_repair mends it".into()),
            Self::Damaged(_) => Some("`racker disk fs IMAGE check` lists all that is wrong".into()),
            Self::Truncated { .. } => Some("the image may be cut short".into()),
            _ => None,
        }
    }
}
