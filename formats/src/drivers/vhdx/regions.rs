//! The region tables: where BAT and metadata lie.

use uuid::Uuid;
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

use super::fault::VhdxFault;
use super::header::checksum;
use super::layout::{
    BAT_REGION, ENTRIES_MAX, HEADER_SECTION, MEGABYTE, METADATA_REGION, REGION, REGION_TABLES_AT, RawRegion,
    RawRegionTable, TABLE_BYTES,
};
use crate::block::{Disk, Span};
use crate::error::{Result, Within};
use crate::wire::{bytes, index, part_mut, take};

/// The regions of an image.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    /// The table as it lies on disk.
    table: Vec<u8>,
    pub(super) bat: Span,
    pub(super) metadata: Span,
    /// Those that racker does not know and may leave alone.
    pub(super) others: Vec<Span>,
    /// Whether both copies of the table are valid and the same.
    pub(super) both: bool,
}

impl Regions {
    /// Reads the first table that is valid.
    pub(super) fn read(file: &Disk) -> Result<Self> {
        let mut tables = Vec::new();
        for at in REGION_TABLES_AT {
            if let Ok(table) = bytes(file, at, TABLE_BYTES, TABLE_BYTES, "region table")
                && is_valid(&table)
            {
                tables.push(table);
            }
        }
        let both = matches!(tables.as_slice(), [first, second] if first == second);
        let table = tables.into_iter().next().ok_or(VhdxFault::NoRegionTable)?;
        let mut regions = Self::parse(table, file.size()).within(|| "region table")?;
        regions.both = both;
        Ok(regions)
    }

    fn parse(table: Vec<u8>, file: u64) -> Result<Self> {
        let head: RawRegionTable = take(&table, 0, "region table")?;
        let (found, max) = (head.entry_count.get(), ENTRIES_MAX);
        if found > max {
            return Err(VhdxFault::Entries { what: "region table", found, max }.into());
        }
        let (mut bat, mut metadata, mut others) = (None, None, Vec::new());
        for number in 0..index(found.into())? {
            let raw: RawRegion = take(&table, entry_at(number), "region table entry")?;
            let id = Uuid::from_bytes_le(raw.guid);
            let (slot, what) = match id {
                BAT_REGION => (&mut bat, "BAT"),
                METADATA_REGION => (&mut metadata, "metadata region"),
                _ if raw.required.get() & 1 != 0 => {
                    return Err(VhdxFault::Unknown { what: "region", id }.into());
                }
                _ => {
                    others.extend(region(&raw, "unknown region", file));
                    continue;
                }
            };
            let span = region(&raw, what, file)?;
            if slot.replace(span).is_some() {
                return Err(VhdxFault::Twice(what).into());
            }
        }
        let bat = bat.ok_or(VhdxFault::Missing("BAT"))?;
        let metadata = metadata.ok_or(VhdxFault::Missing("metadata region"))?;
        Ok(Self { table, bat, metadata, others, both: true })
    }

    /// Those of a new image.
    pub(super) fn new(bat: Span, metadata: Span) -> Result<Self> {
        let mut table = vec![0; index(TABLE_BYTES)?];
        let mut head = RawRegionTable::new_zeroed();
        head.signature = REGION;
        head.entry_count = 2.into();
        part_mut(&mut table, 0, size_of::<RawRegionTable>(), "region table")?
            .copy_from_slice(head.as_bytes());
        let mut regions = Self { table, bat, metadata, others: Vec::new(), both: true };
        regions.set(0, BAT_REGION, bat)?;
        regions.set(1, METADATA_REGION, metadata)?;
        Ok(regions)
    }

    /// The same with the BAT elsewhere.
    pub(super) fn with_bat(&self, bat: Span) -> Result<Self> {
        let mut regions = self.clone();
        let head: RawRegionTable = take(&self.table, 0, "region table")?;
        for number in 0..index(head.entry_count.get().into())? {
            let raw: RawRegion = take(&self.table, entry_at(number), "region table entry")?;
            if Uuid::from_bytes_le(raw.guid) == BAT_REGION {
                regions.set(number, BAT_REGION, bat)?;
            }
        }
        regions.bat = bat;
        Ok(regions)
    }

    fn set(&mut self, number: usize, id: Uuid, span: Span) -> Result<()> {
        let raw = RawRegion {
            guid: id.to_bytes_le(),
            file_offset: span.start().into(),
            length: u32::try_from(span.len()).unwrap_or_default().into(),
            required: 1.into(),
        };
        let slot = part_mut(&mut self.table, entry_at(number), size_of::<RawRegion>(), "region table")?;
        slot.copy_from_slice(raw.as_bytes());
        let sum = checksum(&self.table).to_le_bytes();
        part_mut(&mut self.table, 4, 4, "region table")?.copy_from_slice(&sum);
        Ok(())
    }

    /// The table as it lies on disk, 64 KiB.
    pub(super) fn table(&self) -> &[u8] {
        &self.table
    }
}

const fn entry_at(number: usize) -> usize {
    number.saturating_mul(size_of::<RawRegion>()).saturating_add(size_of::<RawRegionTable>())
}

fn is_valid(table: &[u8]) -> bool {
    let head: Result<RawRegionTable> = take(table, 0, "region table");
    head.is_ok_and(|head| head.signature == REGION && head.checksum.get() == checksum(table))
}

fn region(raw: &RawRegion, what: &'static str, file: u64) -> Result<Span> {
    let (at, len) = (raw.file_offset.get(), u64::from(raw.length.get()));
    let fault = |why| VhdxFault::Region { what, at, len, why };
    let span = Span::new(at, len)?;
    if !MEGABYTE.aligned(at) || !MEGABYTE.aligned(len) || at < HEADER_SECTION || len == 0 {
        return Err(fault("is not made of whole megabytes behind the first").into());
    }
    if span.end() > file {
        return Err(fault("is outside the file").into());
    }
    Ok(span)
}
