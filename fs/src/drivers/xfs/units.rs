//! The numbers XFS counts places with, each a type of its own so that none passes for another.

use std::fmt;

/// An allocation group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AgNo(pub(super) u32);

/// A block within an allocation group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AgBlock(pub(super) u32);

/// A block of the filesystem: the group's number in the high bits, the block within it in the low ones.
/// Not linear: a group's size need not be a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FsBlock(pub(super) u64);

/// A block of a file or of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileBlock(pub(super) u64);

/// An inode: the group's number in the high bits, then the block within it, then the place in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeNo(pub(super) u64);

/// A place on the volume in 512-byte units, whatever the sector size: what `blkno` fields hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Daddr(pub(super) u64);

/// A place in the log that also tells time: how often the log was filled, and the 512-byte block in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Lsn(pub(super) u64);

/// Binary logarithm of the unit of [`Daddr`] and of log blocks.
pub(super) const BASIC_BLOCK_SHIFT: u32 = 9;
/// The unit of [`Daddr`] and of log blocks in bytes.
pub(super) const BASIC_BLOCK: usize = 1 << BASIC_BLOCK_SHIFT;

/// A pointer within a group that points nowhere.
pub(super) const NULL_AG_BLOCK: u32 = u32::MAX;
/// A pointer within the filesystem that points nowhere.
pub(super) const NULL_FS_BLOCK: u64 = u64::MAX;

impl Lsn {
    /// Of block `block` in round `cycle`.
    pub(super) const fn new(cycle: u32, block: u32) -> Self {
        // Widening; `From` is not const.
        Self(u64::from_be_bytes({
            let (c, b) = (cycle.to_be_bytes(), block.to_be_bytes());
            [c[0], c[1], c[2], c[3], b[0], b[1], b[2], b[3]]
        }))
    }

    /// How often the log was filled, from 1.
    pub(super) const fn cycle(self) -> u32 {
        let b = self.0.to_be_bytes();
        u32::from_be_bytes([b[0], b[1], b[2], b[3]])
    }

    /// The 512-byte block in the log.
    pub(super) const fn block(self) -> u32 {
        let b = self.0.to_be_bytes();
        u32::from_be_bytes([b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cycle(), self.block())
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_number_orders_by_cycle_first() {
        let lsn = Lsn::new(3, 0x1234);
        assert_eq!((lsn.cycle(), lsn.block()), (3, 0x1234));
        assert!(Lsn::new(3, 1) > Lsn::new(2, u32::MAX));
        assert_eq!(lsn.to_string(), "3/4660");
    }
}
