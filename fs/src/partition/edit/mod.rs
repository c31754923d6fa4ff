//! A partition table that is being changed.
//!
//! The table is read, changed in memory and written at once; nothing inside a partition moves. Entries, attributes
//! and boot code that racker does not know stay as they are.
//!
//! * [`area`]: gaps, and where a new partition goes
//! * [`mod@init`]: a new table
//! * the schemes change their own structures: `gpt::edit`, `mbr::edit`

pub(super) mod area;
mod fault;
mod init;

use std::fmt::Debug;
use std::ops::Range;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Result, Within};
use racker_formats::wire::bytes;

use self::area::Area;
pub use self::fault::TableFault;
pub use self::init::{NewTable, init};
use super::mbr::Record;
use super::{BOOT_SECTOR, gpt, mbr};

/// Where a new partition goes, in bytes. Without a start and an end that is the largest gap; without a size all of
/// the gap.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Its first byte.
    pub start: Option<u64>,
    /// The first byte behind it.
    pub end: Option<u64>,
    /// How many bytes it has; rounded up to whole sectors.
    pub size: Option<u64>,
    /// Where it may begin if the start is not given: at multiples of this power of two.
    pub align: u64,
}

/// A new partition.
#[derive(Clone, Debug)]
pub struct NewPartition {
    /// Where it goes.
    pub want: Want,
    /// Its number; the first one that is free if it is not given. On an MBR those from 5 on are logical.
    pub number: Option<u32>,
    /// A logical one, in the extended partition (MBR).
    pub logical: bool,
    /// What changes about an entry that says: a Linux filesystem.
    pub change: Change,
}

/// What changes about a partition besides its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The type as it is typed: a word, a code, a GUID.
    pub kind: Option<String>,
    /// The name (GPT).
    pub label: Option<String>,
    /// The GUID (GPT), or `random`.
    pub id: Option<String>,
    /// Active (MBR: then no other is), legacy BIOS bootable (GPT).
    pub bootable: Option<bool>,
    /// Attribute bits by number, and whether they are set (GPT).
    pub attributes: Vec<(u8, bool)>,
}

/// How large a partition becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// This many bytes; rounded up to whole sectors.
    Bytes(u64),
    /// This many more than it has.
    More(u64),
    /// All of the gap behind it, as far as it is aligned to this many bytes.
    Max(u64),
}

/// What the schemes do about their tables, in sectors.
pub(super) trait Edited: Debug {
    /// Bytes of a sector.
    fn sector(&self) -> u64;
    /// The numbers and sectors of all partitions.
    fn partitions(&self) -> Vec<(u32, Range<u64>)>;
    /// The area that a partition shares with others: the one of a new partition, or of one that is there.
    fn area(&self, logical: bool) -> Result<Area>;
    /// Whether a number is that of a logical partition.
    fn is_logical(&self, number: u32) -> bool;
    /// The number of a new partition: the one that was asked for, or a free one.
    fn number(&self, new: &NewPartition) -> Result<u32>;
    /// Adds a partition of that number; `gap` is the first sector of the gap that it lies in.
    fn add(&mut self, number: u32, new: &NewPartition, at: Range<u64>, gap: u64) -> Result<()>;
    /// Removes a partition.
    fn remove(&mut self, number: u32) -> Result<()>;
    /// Gives a partition another end.
    fn set_end(&mut self, number: u32, end: u64) -> Result<()>;
    /// Changes what an entry says.
    fn change(&mut self, number: u32, change: &Change) -> Result<()>;
    /// Gives the disk another identifier.
    fn set_id(&mut self, id: &str) -> Result<()>;
    /// Writes the table.
    fn write(&self, disk: &Disk) -> Result<()>;
}

/// A table in memory, to be changed and written.
#[derive(Debug)]
pub struct TableEdit {
    table: Box<dyn Edited>,
}

impl TableEdit {
    /// Reads the table of a disk. A GPT with one sound half is taken, and written whole.
    pub fn open(disk: &Disk) -> Result<Self> {
        if disk.size() < BOOT_SECTOR {
            return Err(TableFault::NoTable.into());
        }
        let boot = bytes(disk, 0, BOOT_SECTOR, BOOT_SECTOR, "boot sector")?;
        let table: Box<dyn Edited> = match Record::parse(&boot) {
            None => return Err(TableFault::NoTable.into()),
            Some(record) if record.is_protective() => {
                Box::new(gpt::Edit::open(disk, &record).within(|| "gpt")?)
            }
            Some(record) => Box::new(mbr::Edit::open(disk, boot, &record)?),
        };
        Ok(Self { table })
    }

    /// Adds a partition and returns its number.
    pub fn add(&mut self, new: &NewPartition) -> Result<u32> {
        let logical = new.logical || new.number.is_some_and(|n| self.table.is_logical(n));
        let new = NewPartition { logical, ..new.clone() };
        let area = self.table.area(logical)?;
        let number = self.table.number(&new)?;
        let (at, gap) = area.fit(&new.want)?;
        self.table.add(number, &new, at, gap)?;
        Ok(number)
    }

    /// Removes a partition from the table; its content stays where it is. Logical partitions behind it count anew.
    pub fn remove(&mut self, number: u32) -> Result<()> {
        self.at(number)?;
        self.table.remove(number)
    }

    /// Gives a partition another size and returns its bytes. It begins where it did, and no content is looked at:
    /// whoever makes one smaller asks [`may_cut`](crate::cut::may_cut) first.
    pub fn resize(&mut self, number: u32, size: Size) -> Result<Span> {
        let at = self.at(number)?;
        let sector = self.table.sector();
        let room = self.table.area(self.table.is_logical(number))?.room_behind(at.end).max(at.end);
        let sectors = |bytes: u64| bytes.div_ceil(sector);
        let end = match size {
            Size::Bytes(bytes) => at.start.saturating_add(sectors(bytes)),
            Size::More(bytes) => at.end.saturating_add(sectors(bytes)),
            Size::Max(align) => {
                let align = sectors(align).max(1);
                room.saturating_sub(room.checked_rem(align).unwrap_or(0)).max(at.end)
            }
        };
        let bytes = |sectors: u64| sectors.saturating_mul(sector);
        if end > room {
            let (wanted, there) = (end.saturating_sub(at.start), room.saturating_sub(at.start));
            return Err(TableFault::NoRoom { wanted: bytes(wanted), there: bytes(there) }.into());
        }
        if end <= at.start {
            return Err(TableFault::Empty.into());
        }
        self.table.set_end(number, end)?;
        Span::new(bytes(at.start), bytes(end.saturating_sub(at.start)))
    }

    /// Changes what the table says of a partition.
    pub fn change(&mut self, number: u32, change: &Change) -> Result<()> {
        self.at(number)?;
        self.table.change(number, change)
    }

    /// Gives the disk another identifier: a GUID, eight hexadecimal digits (MBR), or `random`.
    pub fn set_id(&mut self, id: &str) -> Result<()> {
        self.table.set_id(id)
    }

    /// The gaps between partitions that a new one could have, in bytes and in order.
    pub fn gaps(&self) -> Vec<Span> {
        let sector = self.table.sector();
        let gaps = self.table.area(false).map(|area| area.gaps()).unwrap_or_default();
        let span = |gap: &Range<u64>| {
            let len = gap.end.saturating_sub(gap.start);
            Span::new(gap.start.saturating_mul(sector), len.saturating_mul(sector)).ok()
        };
        gaps.iter().filter_map(span).collect()
    }

    /// Writes the table to the disk.
    pub fn write(&self, disk: &Disk) -> Result<()> {
        self.table.write(disk)
    }

    fn at(&self, number: u32) -> Result<Range<u64>> {
        let all = self.table.partitions();
        if let Some((_, at)) = all.iter().find(|(n, _)| *n == number) {
            return Ok(at.clone());
        }
        let there: Vec<String> = all.iter().map(|(n, _)| n.to_string()).collect();
        Err(TableFault::NoSuch { number, there: there.join(", ") }.into())
    }
}

/// The GUID that was typed.
pub(super) fn guid(typed: &str) -> Result<uuid::Uuid> {
    if typed == "random" {
        return Ok(uuid::Uuid::new_v4());
    }
    match uuid::Uuid::try_parse(typed) {
        Ok(guid) if !guid.is_nil() => Ok(guid),
        _ => Err(TableFault::Id(typed.into()).into()),
    }
}
