//! Everything that can be wrong with an ext2, ext3 or ext4 filesystem.

use racker_formats::error::{Fault, Kind};

/// What is wrong. Block numbers count filesystem blocks, inodes are given by number.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Ext4Fault {
    /// No superblock.
    #[error("no ext2/3/4 superblock: magic {found:#06x}, expected 0xef53")]
    Magic {
        /// As stored.
        found: u16,
    },
    /// A field of the superblock is out of range.
    #[error("the superblock's {field} is {found}, expected {expected}")]
    Superblock {
        /// The kernel's name for the field.
        field: &'static str,
        /// As stored.
        found: u64,
        /// What would do.
        expected: String,
    },
    /// More blocks than the volume has.
    #[error("the filesystem has {blocks} blocks of {block_size} bytes, the volume only {size} bytes")]
    LargerThanVolume {
        /// Number of blocks.
        blocks: u64,
        /// Bytes of a block.
        block_size: u64,
        /// Bytes of the volume.
        size: u64,
    },
    /// Features that change the layout in unknown ways.
    #[error("unsupported features: {0}")]
    Features(String),
    /// A checksum.
    #[error("{what} has checksum {found:#x}, it adds up to {computed:#x}")]
    Checksum {
        /// What is covered.
        what: &'static str,
        /// As stored.
        found: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A bitmap and the count of it.
    #[error("{found} clusters are free, and {counted} are counted")]
    FreeCount {
        /// In the bitmap.
        found: u64,
        /// In the descriptor.
        counted: u64,
    },
    /// A block number outside the filesystem.
    #[error("{what} names block {block}, the filesystem has {blocks}")]
    BlockPastEnd {
        /// Who names it.
        what: &'static str,
        /// The number.
        block: u64,
        /// Number of blocks.
        blocks: u64,
    },
    /// An inode number outside the filesystem, or one that is not for files.
    #[error("no inode {number} for a file, they are 2 and {first} to {last}")]
    InodeNumber {
        /// As named.
        number: u64,
        /// First number of ordinary files.
        first: u32,
        /// Last number.
        last: u32,
    },
    /// An inode that is not in use.
    #[error("inode {0} is not in use")]
    InodeUnused(u32),
    /// A field of an inode.
    #[error("{field} is {found:#x}")]
    Inode {
        /// The field.
        field: &'static str,
        /// As stored.
        found: u64,
    },
    /// A block of an extent tree contradicts itself or its parent.
    #[error("extent tree: {what} is {found}, expected {expected}")]
    ExtentTree {
        /// What.
        what: &'static str,
        /// As stored.
        found: u64,
        /// What would do.
        expected: u64,
    },
    /// More blocks or steps than the filesystem can hold.
    #[error("{what} names more blocks than the filesystem has")]
    TooManyBlocks {
        /// What.
        what: &'static str,
    },
    /// A block of a block map that stands in two places.
    #[error("indirect block {0} is in the block map twice")]
    SharedBlock(u64),
    /// A directory entry whose length makes no sense.
    #[error("directory entry at byte {at} of block {block}: {what} is {found}")]
    DirEntry {
        /// Logical block of the directory.
        block: u64,
        /// Byte offset in it.
        at: usize,
        /// What.
        what: &'static str,
        /// As stored.
        found: u64,
    },
    /// A directory without a block where its size says there is one.
    #[error("the directory has a hole at block {0}")]
    DirHole(u64),
    /// An extended attribute that does not fit.
    #[error("extended attributes: {what} is {found:#x}")]
    Xattr {
        /// What.
        what: &'static str,
        /// As stored.
        found: u64,
    },
    /// An access control list that does not parse.
    #[error("access control list: {what}")]
    Acl {
        /// What.
        what: &'static str,
    },
    /// A symbolic link of an impossible length.
    #[error("symbolic link of {0} bytes")]
    LinkSize(u64),
    /// Encrypted content or names, which need a key.
    #[error("inode {0} is encrypted: racker has no key for its names and content")]
    Encrypted(u32),
    /// The journal is on another device.
    #[error("the journal is on another device (UUID {0}) and has changes that are not in the filesystem yet")]
    ExternalJournal(String),
    /// The journal's superblock or log contradicts itself.
    #[error("journal: {what} is {found}, expected {expected}")]
    Journal {
        /// What.
        what: &'static str,
        /// As stored.
        found: u64,
        /// What would do.
        expected: String,
    },
    /// Features of the journal that change its layout in unknown ways.
    #[error("the journal has unsupported features {0:#x}")]
    JournalFeatures(u32),
    /// A transaction of the journal fails its checksum.
    #[error("journal: transaction {transaction}: {what} fails its checksum")]
    JournalChecksum {
        /// Its number.
        transaction: u32,
        /// What is covered.
        what: &'static str,
    },
    /// No room for data.
    #[error("no space left: {free} of {blocks} blocks are free")]
    NoSpace {
        /// Free blocks.
        free: u64,
        /// Number of blocks.
        blocks: u64,
    },
    /// No inode for a new node.
    #[error("no inode left: all {0} are in use")]
    NoInodes(u32),
    /// No room in some structure of fixed size.
    #[error("no room left in {0}")]
    NoRoom(&'static str),
    /// Something that this filesystem cannot hold.
    #[error("{0}")]
    Cannot(String),
    /// What keeps a filesystem from being written.
    #[error("racker does not write to this filesystem: {0}")]
    Unwritable(String),
    /// It was not closed, or found damaged.
    #[error("the filesystem {0}")]
    Unsound(&'static str),
    /// Something contradicts itself, as a check has found.
    #[error("{0}: run e2fsck before changing anything")]
    Damaged(String),
    /// A hash of names that is not known.
    #[error("directory index: hash version {0} is not known")]
    HashVersion(u8),
    /// A bitmap against everything else.
    #[error("{what}: {bitmap} {number} is marked as {found}")]
    Bitmap {
        /// What was to be done.
        what: &'static str,
        /// What the bitmap is about.
        bitmap: &'static str,
        /// Which of it.
        number: u64,
        /// As it is.
        found: &'static str,
    },
    /// A block of the filesystem's own tables that something else claims.
    #[error("{what} names block {block}, which is part of the filesystem's own tables")]
    SystemBlock {
        /// Who names it.
        what: &'static str,
        /// Which.
        block: u64,
    },
    /// A directory whose structure is wrong.
    #[error("directory: {0}")]
    Directory(&'static str),
    /// A quota file.
    #[error("quotas: {0}")]
    Quota(&'static str),
    /// An operation that came to an end half-way.
    #[error("an operation failed half-way: {0}")]
    HalfWay(String),
    /// A limit of ours.
    #[error("{what}: {found}, racker handles {max}")]
    Limit {
        /// What.
        what: &'static str,
        /// As found.
        found: u64,
        /// The limit.
        max: u64,
    },
}

impl Fault for Ext4Fault {
    fn kind(&self) -> Kind {
        match self {
            Self::Features(_)
            | Self::Encrypted(_)
            | Self::ExternalJournal(_)
            | Self::JournalFeatures(_)
            | Self::Cannot(_)
            | Self::Unwritable(_)
            | Self::Limit { .. } => Kind::Unsupported,
            Self::NoSpace { .. } | Self::NoInodes(_) | Self::NoRoom(_) => Kind::NoSpace,
            _ => Kind::Corrupt,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::LargerThanVolume { .. } => Some("the image may be cut short".into()),
            Self::Unsound(_) => Some("e2fsck can repair it".into()),
            Self::Damaged(_) => Some("`racker disk fs IMAGE check` lists all that is wrong".into()),
            Self::ExternalJournal(_) => Some("mount it once together with its journal, or run e2fsck".into()),
            Self::Journal { .. } | Self::JournalChecksum { .. } => {
                Some("e2fsck can decide what to keep of a damaged journal".into())
            }
            _ => None,
        }
    }
}
