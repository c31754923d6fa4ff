//! What distinguishes one kind of tree from another: its records, its keys and their order.

use std::fmt::Debug;

use racker_formats::error::Result;
use racker_formats::wire::Layout;
use zerocopy::IntoBytes;

use super::super::ground::Ground;

/// One kind of tree within an allocation group.
pub(in crate::drivers::xfs) trait Shape: Debug + 'static {
    /// The tree's name in errors.
    const NAME: &'static str;
    /// First word of each of its blocks.
    const MAGIC: u32;
    /// The same without checksums; 0 for a tree that goes with them.
    const PLAIN_MAGIC: u32 = 0;
    /// Inner blocks hold two keys for each child, the lowest and the highest below it: records may overlap.
    const RANGES: bool;
    /// A record, checked.
    type Record: Copy + PartialEq + Debug;
    /// What orders the records.
    type Key: Copy + Ord + Debug;
    /// A record as it lies on disk.
    type RawRecord: Layout + IntoBytes + Copy;
    /// A key as it lies on disk.
    type RawKey: Layout + IntoBytes + Copy;

    /// Checks a record of group `ground`.
    fn parse(raw: &Self::RawRecord, ground: &Ground) -> Result<Self::Record>;
    /// The bytes of a record.
    fn raw(record: &Self::Record) -> Self::RawRecord;
    /// A key out of an inner block.
    fn parse_key(raw: &Self::RawKey) -> Self::Key;
    /// The bytes of a key.
    fn raw_key(key: &Self::Key) -> Self::RawKey;
    /// The lowest key that a record covers: its place in the order.
    fn low(record: &Self::Record) -> Self::Key;
    /// The highest key that a record covers.
    fn high(record: &Self::Record) -> Self::Key;
    /// Whether `after` may be the next record behind `before`.
    fn follows(before: &Self::Record, after: &Self::Record) -> bool;
}
