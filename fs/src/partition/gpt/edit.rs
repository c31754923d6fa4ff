//! Changes the entries of a GPT in memory, and makes a new table.

use std::collections::BTreeSet;
use std::ops::Range;

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::wire::{index, part_mut};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::super::edit::area::Area;
use super::super::edit::{Change, Edited, NewPartition, NewTable, TableFault, guid};
use super::super::mbr::Record;
use super::super::words::gpt_type;
use super::settle::{End, Half};
use super::{Header, LEGACY_BOOTABLE, RawEntry, RawHeader, SIGNATURE, last_lba};

/// What a new partition is if nothing is said of it: a Linux filesystem.
const LINUX: &str = "linux";
/// Entries of a new table: as many as everybody makes.
const ENTRIES: u32 = 128;
/// UTF-16 units of a name.
const LABEL_UNITS: usize = 36;

/// A GPT in memory.
#[derive(Debug)]
pub(in super::super) struct Edit {
    half: Half,
    /// Where the backup goes on the disk as it is now.
    end: End,
    /// What the MBR names beside the GPT, in sectors.
    hybrid: Vec<Range<u64>>,
}

impl Edit {
    /// Reads the table of a disk whose first sector is `record`.
    pub(in super::super) fn open(disk: &Disk, record: &Record) -> Result<Self> {
        let half = Half::find(disk, record)?;
        let end = half.end(disk, disk.size());
        let hybrid = if record.is_hybrid() { record.beside_protective() } else { Vec::new() };
        Ok(Self { half, end, hybrid })
    }

    /// Makes an empty table for a disk.
    pub(in super::super) fn new(disk: &Disk, new: &NewTable) -> Result<Self> {
        let sector = u64::from(new.sector_size);
        let id = guid(new.id.as_deref().unwrap_or("random"))?;
        let each = u32::try_from(size_of::<RawEntry>()).unwrap_or(128);
        let array = vec![0; index(u64::from(ENTRIES).saturating_mul(u64::from(each)))?];
        let array_sectors = u64::from(ENTRIES).saturating_mul(u64::from(each)).div_ceil(sector);
        let first_usable = array_sectors.saturating_add(2);
        let last = last_lba(disk, sector);
        let last_usable = last.saturating_sub(array_sectors).saturating_sub(1);
        if last_usable <= first_usable {
            return Err(TableFault::Small { size: disk.size() }.into());
        }
        let raw = RawHeader {
            signature: *SIGNATURE,
            revision: U32::new(0x0001_0000),
            header_size: U32::new(u32::try_from(size_of::<RawHeader>()).unwrap_or(92)),
            header_crc32: U32::new(0),
            reserved: U32::new(0),
            my_lba: U64::new(1),
            alternate_lba: U64::new(last),
            first_usable_lba: U64::new(first_usable),
            last_usable_lba: U64::new(last_usable),
            disk_guid: id.to_bytes_le(),
            partition_entry_lba: U64::new(2),
            number_of_partition_entries: U32::new(ENTRIES),
            size_of_partition_entry: U32::new(each),
            partition_entry_array_crc32: U32::new(0),
        };
        let mut sector_bytes = raw.as_bytes().to_vec();
        sector_bytes.resize(index(sector)?, 0);
        let half = Half::new(Header {
            sector,
            my_lba: 1,
            alternate_lba: last,
            first_usable,
            last_usable,
            disk_guid: id,
            entry_bytes: index(u64::from(each))?,
            array_lba: 2,
            array,
            raw: sector_bytes,
        });
        let end = half.end(disk, disk.size());
        Ok(Self { half, end, hybrid: Vec::new() })
    }

    fn count(&self) -> u32 {
        let header = &self.half.header;
        let count = header.array.len().checked_div(header.entry_bytes).unwrap_or(0);
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The entry of a number that the table has.
    fn entry(&mut self, number: u32) -> Result<&mut RawEntry> {
        let last = self.count();
        let header = &mut self.half.header;
        let slot = number.checked_sub(1).filter(|_| number <= last);
        let slot = slot.ok_or(TableFault::Number { number, last })?;
        let at = index(u64::from(slot))?.saturating_mul(header.entry_bytes);
        let bytes = part_mut(&mut header.array, at, size_of::<RawEntry>(), "gpt entry")?;
        RawEntry::mut_from_bytes(bytes).map_err(|_| TableFault::Number { number, last }.into())
    }

    /// Makes an entry all zeroes.
    fn clear(&mut self, number: u32) -> Result<()> {
        let header = &mut self.half.header;
        let start = index(u64::from(number.saturating_sub(1)))?.saturating_mul(header.entry_bytes);
        part_mut(&mut header.array, start, header.entry_bytes, "gpt entry")?.fill(0);
        Ok(())
    }

    /// A partition that the hybrid MBR names as well keeps its place.
    fn may_move(&self, number: u32) -> Result<()> {
        let all = self.partitions();
        let at = all.iter().find(|(n, _)| *n == number).map(|(_, at)| at);
        let mirrored = at.is_some_and(|at| self.hybrid.iter().any(|m| m.start < at.end && at.start < m.end));
        if mirrored { Err(TableFault::Hybrid(number).into()) } else { Ok(()) }
    }

    /// No two partitions have the same GUID.
    fn is_new(&self, id: &Uuid, number: u32) -> Result<()> {
        let same = self.half.header.guids().find(|(n, found)| *n != number && found == id);
        match same {
            Some((other, _)) => Err(TableFault::IdTaken(other).into()),
            None => Ok(()),
        }
    }
}

impl Edited for Edit {
    fn sector(&self) -> u64 {
        self.half.header.sector
    }

    fn partitions(&self) -> Vec<(u32, Range<u64>)> {
        let all = self.half.header.entries();
        all.map(|(number, first, last)| (number, first..last.saturating_add(1))).collect()
    }

    fn area(&self, logical: bool) -> Result<Area> {
        if logical {
            return Err(TableFault::Lacks { what: "logical partitions", scheme: "gpt" }.into());
        }
        let room = self.half.header.first_usable..self.end.last_usable.saturating_add(1);
        let taken = self.partitions().into_iter().map(|(_, at)| at).chain(self.hybrid.iter().cloned());
        // Whatever the header says is usable.
        let taken = taken.chain(self.half.own(self.end));
        Ok(Area { room, taken: taken.collect(), ahead: 0, sector: self.sector() })
    }

    fn is_logical(&self, _number: u32) -> bool {
        false
    }

    fn number(&self, new: &NewPartition) -> Result<u32> {
        let used: BTreeSet<u32> = self.partitions().into_iter().map(|(number, _)| number).collect();
        let last = self.count();
        match new.number {
            Some(number) if used.contains(&number) => Err(TableFault::Exists(number).into()),
            Some(number) if number == 0 || number > last => Err(TableFault::Number { number, last }.into()),
            Some(number) => Ok(number),
            None => (1..=last).find(|n| !used.contains(n)).ok_or_else(|| TableFault::Full(last).into()),
        }
    }

    fn add(&mut self, number: u32, new: &NewPartition, at: Range<u64>, _gap: u64) -> Result<()> {
        // An entry without a type counts for nothing, but it may hold what somebody left there.
        self.clear(number)?;
        let entry = self.entry(number)?;
        entry.unique_partition_guid = Uuid::new_v4().to_bytes_le();
        entry.starting_lba = U64::new(at.start);
        entry.ending_lba = U64::new(at.end.saturating_sub(1));
        let change = Change {
            kind: Some(new.change.kind.clone().unwrap_or_else(|| LINUX.into())),
            ..new.change.clone()
        };
        self.change(number, &change)
    }

    fn remove(&mut self, number: u32) -> Result<()> {
        self.may_move(number)?;
        self.clear(number)
    }

    fn set_end(&mut self, number: u32, end: u64) -> Result<()> {
        self.may_move(number)?;
        self.entry(number)?.ending_lba = U64::new(end.saturating_sub(1));
        Ok(())
    }

    fn change(&mut self, number: u32, change: &Change) -> Result<()> {
        let kind = change
            .kind
            .as_deref()
            .map(|word| gpt_type(word).ok_or_else(|| TableFault::Type { word: word.into(), scheme: "gpt" }));
        let kind = kind.transpose()?;
        let id = change.id.as_deref().map(guid).transpose()?;
        if let Some(id) = &id {
            self.is_new(id, number)?;
        }
        let label = change.label.as_deref().map(units).transpose()?;
        let entry = self.entry(number)?;
        if let Some(kind) = kind {
            entry.partition_type_guid = kind.to_bytes_le();
        }
        if let Some(id) = id {
            entry.unique_partition_guid = id.to_bytes_le();
        }
        if let Some(label) = label {
            entry.partition_name = label;
        }
        let mut bits = entry.attributes.get();
        let mut set = |mask: u64, on: bool| bits = if on { bits | mask } else { bits & !mask };
        for (bit, on) in &change.attributes {
            set(1u64.checked_shl(u32::from(*bit)).unwrap_or(0), *on);
        }
        if let Some(on) = change.bootable {
            set(LEGACY_BOOTABLE, on);
        }
        entry.attributes = U64::new(bits);
        Ok(())
    }

    fn set_id(&mut self, id: &str) -> Result<()> {
        let id = guid(id)?;
        let header = &mut self.half.header;
        let (raw, _) =
            RawHeader::mut_from_prefix(&mut header.raw).map_err(|_| TableFault::Id(id.to_string()))?;
        raw.disk_guid = id.to_bytes_le();
        header.disk_guid = id;
        Ok(())
    }

    fn write(&self, disk: &Disk) -> Result<()> {
        self.half.write(disk, disk.size(), !self.hybrid.is_empty())
    }
}

/// Writes the entry of a protective MBR into a first sector without entries.
pub(in super::super) fn protect(boot: &mut [u8], size: u64, sector: u64) -> Result<()> {
    // Not active, from the second sector on, cylinders that say "see the sectors" (UEFI 2.10, table 5-4).
    const ENTRY: [u8; 12] = [0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0];
    let last = size.checked_div(sector).unwrap_or(0).saturating_sub(1);
    let count = u32::try_from(last).unwrap_or(u32::MAX);
    part_mut(boot, 446, ENTRY.len(), "boot sector")?.copy_from_slice(&ENTRY);
    part_mut(boot, 458, 4, "boot sector")?.copy_from_slice(&count.to_le_bytes());
    part_mut(boot, 510, 2, "boot sector")?.copy_from_slice(&[0x55, 0xaa]);
    Ok(())
}

/// A name as an entry has it.
fn units(label: &str) -> Result<[U16; LABEL_UNITS]> {
    let mut name = [U16::new(0); LABEL_UNITS];
    let len = label.encode_utf16().count();
    if len > LABEL_UNITS {
        return Err(TableFault::LabelLength(len).into());
    }
    for (place, unit) in name.iter_mut().zip(label.encode_utf16()) {
        *place = U16::new(unit);
    }
    Ok(name)
}
