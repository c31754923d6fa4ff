//! Why a partition table is not changed as it was asked for.

use racker_formats::error::{Fault, Kind};

/// Why a partition table is not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableFault {
    /// There is no table to change.
    #[error("the disk has no partition table")]
    NoTable,
    /// A new table would hide what is there.
    #[error("the disk has {what} already")]
    InUse {
        /// A table, or a filesystem.
        what: String,
    },
    /// The disk has no room for a table.
    #[error("a disk of {size} bytes is too small for a table")]
    Small {
        /// Bytes of the disk.
        size: u64,
    },
    /// Nothing of that number.
    #[error("there is no partition {number}")]
    NoSuch {
        /// As asked for.
        number: u32,
        /// Those that there are.
        there: String,
    },
    /// Something of that number.
    #[error("there is a partition {0} already")]
    Exists(u32),
    /// A number that the table does not have.
    #[error("the table has no place for partition {number}, only for 1 to {last}")]
    Number {
        /// As asked for.
        number: u32,
        /// The last one that it has.
        last: u32,
    },
    /// No entry is free.
    #[error("all {0} entries of the table are in use")]
    Full(u32),
    /// No gap is large enough.
    #[error("no room for {wanted} bytes: the gap has {there}")]
    NoRoom {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes of the gap that was chosen, from where the partition would begin.
        there: u64,
    },
    /// A place that something has, or that no partition can have.
    #[error("byte {at} is not in a gap")]
    Taken {
        /// Byte offset on the disk.
        at: u64,
    },
    /// A partition of no bytes.
    #[error("a partition has at least one sector")]
    Empty,
    /// A place between two sectors.
    #[error("{what} at byte {at} is not a multiple of the sector's {sector} bytes")]
    Unaligned {
        /// Start or end.
        what: &'static str,
        /// As asked for.
        at: u64,
        /// Bytes of a sector.
        sector: u64,
    },
    /// An alignment that is no power of two.
    #[error("an alignment of {0} bytes is no power of two")]
    Alignment(u64),
    /// A word that names no type.
    #[error("{word:?} is no type of a {scheme} partition")]
    Type {
        /// As typed.
        word: String,
        /// The table.
        scheme: &'static str,
    },
    /// A name that an entry has no room for.
    #[error("a name of {0} UTF-16 units does not fit: there is room for 36")]
    LabelLength(usize),
    /// Something that this kind of table does not have.
    #[error("{what}: {scheme} tables have none")]
    Lacks {
        /// What was asked for.
        what: &'static str,
        /// The table.
        scheme: &'static str,
    },
    /// Something that is no GUID, or no 32 bits.
    #[error("{0:?} is no identifier for this table")]
    Id(String),
    /// Two partitions would have the same identifier.
    #[error("partition {0} has this identifier already")]
    IdTaken(u32),
    /// The MBR names the partition too.
    #[error("partition {0} stands in the hybrid MBR as well, which would no longer fit")]
    Hybrid(u32),
    /// A chain that racker would have to put in order before it could change it.
    #[error("the logical partitions cannot be changed: {0}")]
    Chain(String),
    /// An extended partition that still holds logical ones.
    #[error("partition {0} holds logical partitions")]
    Holds(u32),
    /// There is no place for logical partitions.
    #[error("logical partitions need an extended one, and there is none")]
    NoExtended,
    /// Only one extended partition can be.
    #[error("partition {0} is extended already, and there can be only one")]
    SecondExtended(u32),
    /// A partition that holds others stays one, another cannot become one.
    #[error("partition {0} cannot become an extended one or cease to be one")]
    Container(u32),
    /// A sector size that the table cannot have.
    #[error("{scheme} tables with sectors of {sector} bytes cannot be made")]
    Sector {
        /// The table.
        scheme: &'static str,
        /// Bytes asked for.
        sector: u32,
    },
}

impl Fault for TableFault {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSuch { .. } | Self::NoTable | Self::NoExtended => Kind::NotFound,
            Self::Exists(_) | Self::InUse { .. } => Kind::Exists,
            Self::Chain(_) | Self::Hybrid(_) | Self::Sector { .. } | Self::Lacks { .. } => Kind::Unsupported,
            _ => Kind::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoTable => "`racker disk part IMAGE init gpt` makes one",
            Self::InUse { .. } => {
                "--force makes a new table all the same: what was found by the old one is lost"
            }
            Self::NoSuch { there, .. } if there.is_empty() => "the table is empty",
            Self::NoSuch { there, .. } => return Some(format!("there is {there}")),
            Self::Full(_) => {
                "an MBR has four primary partitions, one of which may be extended (--type extended)"
            }
            Self::NoRoom { .. } | Self::Taken { .. } => "`racker disk part IMAGE ls` shows the gaps",
            Self::Type { scheme: "gpt", .. } => {
                "a type is a word (esp, xbootldr, linux, swap, lvm, root-x86-64, bios-boot, msr…), \
                 one of sgdisk's codes (8300) or a GUID"
            }
            Self::Type { .. } => "a type is a word (linux, swap, lvm, esp, extended…) or a number (83)",
            Self::Id(_) => "a GPT has GUIDs (`random` makes one), an MBR has eight hexadecimal digits",
            Self::Hybrid(_) => "make the MBR a protective one first (in gdisk: x, then n)",
            Self::Chain(_) => "the primary partitions can be changed all the same",
            Self::Holds(_) => "remove the logical partitions first, the last one first",
            Self::NoExtended => "`add --type extended` makes one",
            Self::Sector { scheme: "dos", .. } => "a GPT can have sectors of 4096 bytes",
            _ => return None,
        };
        Some(text.into())
    }
}
