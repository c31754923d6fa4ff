//! The metadata region: size, block size, sector sizes, ID, parent.

use std::collections::BTreeMap;

use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::fault::VhdxFault;
use super::layout::{
    ENTRIES_MAX, FILE_PARAMETERS, HAS_PARENT, LEAVE_ALLOCATED, LOGICAL_SECTOR_SIZE, METADATA, METADATA_DISK,
    METADATA_REQUIRED, METADATA_USER, PAGE, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, RawFileParameters,
    RawLocator, RawMetadata, RawMetadataTable, RawPair, TABLE_BYTES, VHDX_LOCATOR, VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE,
};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{MIB, TIB};
use crate::wire::{bytes, index, len64, part, part_mut, take};

/// 2.6.2.2: the largest disk.
pub(super) const SIZE_MAX: u64 = 64 * TIB;
/// 2.6.1.2: the largest item.
const ITEM_BYTES_MAX: u64 = MIB;
/// Regions that are rewritten: programs make one of 1 MiB.
const REGION_BYTES_MAX: u64 = 16 * MIB;
/// Pairs of a locator: five are known.
const PAIRS_MAX: u16 = 64;

/// The kinds of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskType {
    Dynamic,
    Fixed,
    Differencing,
}

impl DiskType {
    /// The word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Fixed => "fixed",
            Self::Differencing => "differencing",
        }
    }
}

/// What the metadata say, checked.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pub(super) disk_type: DiskType,
    pub(super) block: BlockSize,
    /// Bytes of a sector as the guest addresses it: 512 or 4096.
    pub(super) sector: BlockSize,
    /// Bytes of a sector as the guest is told that the device writes it.
    pub(super) physical_sector: u32,
    /// Virtual size in bytes.
    pub(super) size: u64,
    pub(super) disk_id: Uuid,
    /// What the parent locator says, by key.
    pub(super) parent: Option<BTreeMap<String, String>>,
    /// Where in the file the virtual size stands.
    size_at: u64,
}

/// The items of the region by their ID.
struct Items<'a> {
    file: &'a Disk,
    region: Span,
    entries: BTreeMap<Uuid, RawMetadata>,
}

impl Items<'_> {
    fn read(file: &Disk, region: Span) -> Result<Items<'_>> {
        let table =
            bytes(file, region.start(), TABLE_BYTES.min(region.len()), TABLE_BYTES, "metadata table")?;
        let head: RawMetadataTable = take(&table, 0, "metadata table")?;
        if head.signature != METADATA {
            return Err(VhdxFault::Missing("signature of the metadata table").into());
        }
        let (found, max) = (u32::from(head.entry_count.get()), ENTRIES_MAX);
        if found > max {
            return Err(VhdxFault::Entries { what: "metadata table", found, max }.into());
        }
        let mut items = Items { file, region, entries: BTreeMap::new() };
        for number in 0..index(found.into())? {
            let raw: RawMetadata = take(&table, entry_at(number), "metadata table entry")?;
            // What users put there is none of our business.
            if raw.flags.get() & METADATA_USER == 0 {
                items.add(raw)?;
            }
        }
        Ok(items)
    }

    fn add(&mut self, raw: RawMetadata) -> Result<()> {
        const KNOWN: [Uuid; 6] = [
            FILE_PARAMETERS,
            VIRTUAL_DISK_SIZE,
            VIRTUAL_DISK_ID,
            LOGICAL_SECTOR_SIZE,
            PHYSICAL_SECTOR_SIZE,
            PARENT_LOCATOR,
        ];
        let id = Uuid::from_bytes_le(raw.item_id);
        if !KNOWN.contains(&id) {
            let required = raw.flags.get() & METADATA_REQUIRED != 0;
            return if required {
                Err(VhdxFault::Unknown { what: "metadata item", id }.into())
            } else {
                Ok(())
            };
        }
        match self.entries.insert(id, raw) {
            Some(_) => Err(VhdxFault::Twice("metadata item").into()),
            None => Ok(()),
        }
    }

    /// Where the item lies in the file.
    fn place(&self, id: Uuid, what: &'static str, min: u64) -> Result<Span> {
        let raw = self.entries.get(&id).ok_or(VhdxFault::Missing(what))?;
        let (at, len, region) = (u64::from(raw.offset.get()), u64::from(raw.length.get()), self.region.len());
        let span = Span::new(at, len)?;
        if at < TABLE_BYTES || span.end() > region || len < min || len > ITEM_BYTES_MAX {
            return Err(VhdxFault::Item { id, at, len, region }.into());
        }
        Ok(self.region.skip(at).truncate(len))
    }

    fn bytes(&self, id: Uuid, what: &'static str, min: u64) -> Result<Vec<u8>> {
        let span = self.place(id, what, min)?;
        bytes(self.file, span.start(), span.len(), ITEM_BYTES_MAX, what)
    }

    /// Where the entry of a known item stands in the table.
    fn slot(&self, table: &[u8], id: Uuid) -> Result<usize> {
        let head: RawMetadataTable = take(table, 0, "metadata table")?;
        for number in 0..usize::from(head.entry_count.get()) {
            let raw: RawMetadata = take(table, entry_at(number), "metadata table entry")?;
            if Uuid::from_bytes_le(raw.item_id) == id && raw.flags.get() & METADATA_USER == 0 {
                return Ok(entry_at(number));
            }
        }
        Err(VhdxFault::Missing("parent locator").into())
    }

    /// A place of `len` bytes in the region, of whose bytes no item uses any: not even one that nobody knows.
    fn room(&self, region: &[u8], len: u64) -> Result<u64> {
        let head: RawMetadataTable = take(region, 0, "metadata table")?;
        let mut used = vec![Span::first(TABLE_BYTES)];
        for number in 0..usize::from(head.entry_count.get()) {
            let raw: RawMetadata = take(region, entry_at(number), "metadata table entry")?;
            used.push(Span::new(raw.offset.get().into(), raw.length.get().into())?);
        }
        let mut places: Vec<u64> = used.iter().map(|span| span.end().next_multiple_of(8)).collect();
        places.sort_unstable();
        let free = |at: &u64| {
            Span::new(*at, len).is_ok_and(|place| {
                place.end() <= self.region.len() && used.iter().all(|span| span.intersect(place).is_none())
            })
        };
        Ok(places
            .into_iter()
            .find(free)
            .ok_or(VhdxFault::NoParent("the metadata have no room for its name"))?)
    }

    fn number32(&self, id: Uuid, what: &'static str) -> Result<u32> {
        Ok(take::<U32>(&self.bytes(id, what, 4)?, 0, what)?.get())
    }
}

const fn entry_at(number: usize) -> usize {
    number.saturating_mul(size_of::<RawMetadata>()).saturating_add(size_of::<RawMetadataTable>())
}

impl Metadata {
    /// Reads and checks the items of the region.
    pub(super) fn read(file: &Disk, region: Span) -> Result<Self> {
        Self::parse(&Items::read(file, region)?).within(|| "metadata")
    }

    fn parse(items: &Items<'_>) -> Result<Self> {
        let value = |what, found: u64, expected| VhdxFault::Value { what, found, expected };
        let raw = items.bytes(FILE_PARAMETERS, "file parameters", 8)?;
        let parameters: RawFileParameters = take(&raw, 0, "file parameters")?;
        let (bytes, flags) = (u64::from(parameters.block_size.get()), parameters.flags.get());
        let block = BlockSize::from_bytes(bytes)
            .filter(|b| (MIB..=256 * MIB).contains(&b.bytes()))
            .ok_or(value("block size", bytes, "a power of two from 1 MiB to 256 MiB"))?;
        if flags & !(LEAVE_ALLOCATED | HAS_PARENT) != 0 {
            return Err(value("flags of the file parameters", flags.into(), "0 to 3").into());
        }
        let sectors = "512 or 4096";
        let found = u64::from(items.number32(LOGICAL_SECTOR_SIZE, "logical sector size")?);
        let sector = BlockSize::from_bytes(found)
            .filter(|b| matches!(b.bytes(), 512 | 4096))
            .ok_or(value("logical sector size", found, sectors))?;
        let physical_sector = items.number32(PHYSICAL_SECTOR_SIZE, "physical sector size")?;
        if !matches!(physical_sector, 512 | 4096) {
            return Err(value("physical sector size", physical_sector.into(), sectors).into());
        }
        let size_at = items.place(VIRTUAL_DISK_SIZE, "virtual disk size", 8)?.start();
        let raw = items.bytes(VIRTUAL_DISK_SIZE, "virtual disk size", 8)?;
        let size = take::<U64>(&raw, 0, "virtual disk size")?.get();
        check_size(size, sector)?;
        let raw = items.bytes(VIRTUAL_DISK_ID, "virtual disk ID", 16)?;
        let disk_id = Uuid::from_bytes_le(take(&raw, 0, "virtual disk ID")?);
        let has_parent = flags & HAS_PARENT != 0;
        let parent = if has_parent {
            let raw = items.bytes(PARENT_LOCATOR, "parent locator", 20)?;
            Some(locator(&raw).within(|| "parent locator")?)
        } else {
            None
        };
        let disk_type = match (has_parent, flags & LEAVE_ALLOCATED != 0) {
            (true, _) => DiskType::Differencing,
            (false, true) => DiskType::Fixed,
            (false, false) => DiskType::Dynamic,
        };
        Ok(Self { disk_type, block, sector, physical_sector, size, disk_id, parent, size_at })
    }

    /// The page of the file in which the virtual size stands, with another size in it.
    pub(super) fn page_with_size(&self, file: &Disk, size: u64) -> Result<(u64, Vec<u8>)> {
        let at = PAGE.floor(self.size_at);
        let mut page = bytes(file, at, PAGE.bytes(), PAGE.bytes(), "metadata")?;
        let within = index(self.size_at.saturating_sub(at))?;
        // A size that crosses pages is nothing that any program writes.
        part_mut(&mut page, within, 8, "virtual disk size")?.copy_from_slice(&size.to_le_bytes());
        Ok((at, page))
    }

    /// The pages of `region` in `file` that change for these pairs of a parent locator, or none: with their places in
    /// the file. The item gets a new place, behind all others or where there is room.
    pub(super) fn pages_with_parent(
        file: &Disk,
        region: Span,
        pairs: Option<&BTreeMap<String, String>>,
    ) -> Result<Vec<(u64, Vec<u8>)>> {
        let items = Items::read(file, region)?;
        let old = bytes(file, region.start(), region.len(), REGION_BYTES_MAX, "metadata region")?;
        let mut new = old.clone();
        let at = items.slot(&old, PARENT_LOCATOR)?;
        let mut entry: RawMetadata = take(&old, at, "metadata table entry")?;
        if let Some(pairs) = pairs {
            let item = locator_bytes(pairs)?;
            let place = items.room(&old, len64(item.len()))?;
            part_mut(&mut new, index(place)?, item.len(), "parent locator")?.copy_from_slice(&item);
            entry.offset = u32::try_from(place).map_err(|_| Common::Index(place))?.into();
            entry.length = u32::try_from(item.len()).map_err(|_| Common::Index(len64(item.len())))?.into();
            part_mut(&mut new, at, size_of::<RawMetadata>(), "entry")?.copy_from_slice(entry.as_bytes());
        } else {
            // Entries behind it move up.
            let mut head: RawMetadataTable = take(&old, 0, "metadata table")?;
            let count = head.entry_count.get();
            let (end, size) = (entry_at(count.into()), size_of::<RawMetadata>());
            let behind =
                part(&old, at.saturating_add(size), end.saturating_sub(at).saturating_sub(size), "entries")?;
            part_mut(&mut new, at, behind.len(), "entries")?.copy_from_slice(behind);
            part_mut(&mut new, end.saturating_sub(size), size, "entry")?.fill(0);
            head.entry_count = U16::new(count.saturating_sub(1));
            part_mut(&mut new, 0, size_of::<RawMetadataTable>(), "table")?.copy_from_slice(head.as_bytes());
            let place = index(
                items.place(FILE_PARAMETERS, "file parameters", 8)?.start().saturating_sub(region.start()),
            )?;
            let mut raw: RawFileParameters = take(&old, place, "file parameters")?;
            raw.flags = (raw.flags.get() & !HAS_PARENT).into();
            part_mut(&mut new, place, size_of::<RawFileParameters>(), "file parameters")?
                .copy_from_slice(raw.as_bytes());
        }
        let page = index(PAGE.bytes())?;
        let pages = old.chunks(page).zip(new.chunks(page)).enumerate().filter(|(_, (a, b))| a != b);
        let place = |number: usize| len64(number.saturating_mul(page)).saturating_add(region.start());
        Ok(pages.map(|(number, (_, after))| (place(number), after.to_vec())).collect())
    }

    /// The bytes of the region of a new image, all that is not zero: table and items.
    pub(super) fn region(&self) -> Result<Vec<u8>> {
        let mut flags = if self.disk_type == DiskType::Fixed { LEAVE_ALLOCATED } else { 0 };
        flags |= if self.parent.is_some() { HAS_PARENT } else { 0 };
        let block_size = u32::try_from(self.block.bytes()).map_err(|_| Common::Index(self.block.bytes()))?;
        let parameters = RawFileParameters { block_size: block_size.into(), flags: flags.into() };
        let sector = u32::try_from(self.sector.bytes()).map_err(|_| Common::Index(self.sector.bytes()))?;
        let disk = METADATA_DISK | METADATA_REQUIRED;
        let mut items = vec![
            (FILE_PARAMETERS, METADATA_REQUIRED, parameters.as_bytes().to_vec()),
            (VIRTUAL_DISK_SIZE, disk, self.size.to_le_bytes().to_vec()),
            (VIRTUAL_DISK_ID, disk, self.disk_id.to_bytes_le().to_vec()),
            (LOGICAL_SECTOR_SIZE, disk, sector.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR_SIZE, disk, self.physical_sector.to_le_bytes().to_vec()),
        ];
        if let Some(pairs) = &self.parent {
            items.push((PARENT_LOCATOR, METADATA_REQUIRED, locator_bytes(pairs)?));
        }
        let mut head = RawMetadataTable::new_zeroed();
        head.signature = METADATA;
        head.entry_count = U16::new(u16::try_from(items.len()).unwrap_or_default());
        let mut region = head.as_bytes().to_vec();
        let mut behind = Vec::new();
        for (id, flags, item) in items {
            let offset = TABLE_BYTES.saturating_add(len64(behind.len()));
            let raw = RawMetadata {
                item_id: id.to_bytes_le(),
                offset: u32::try_from(offset).map_err(|_| Common::Index(offset))?.into(),
                length: u32::try_from(item.len()).map_err(|_| Common::Index(len64(item.len())))?.into(),
                flags: flags.into(),
                reserved: 0.into(),
            };
            region.extend_from_slice(raw.as_bytes());
            behind.extend(item);
        }
        region.resize(index(TABLE_BYTES)?, 0);
        region.extend(behind);
        Ok(region)
    }

    /// A new disk.
    pub(super) fn new(disk_type: DiskType, size: u64, block: BlockSize) -> Self {
        Self {
            disk_type,
            block,
            sector: super::SECTOR,
            physical_sector: 4096,
            size,
            disk_id: Uuid::new_v4(),
            parent: None,
            // The size stands behind the file parameters; it is read anew before it is changed.
            size_at: 0,
        }
    }
}

/// 2.6.2.2: whole sectors, 64 TiB at most.
pub(super) fn check_size(size: u64, sector: BlockSize) -> Result<()> {
    if size > SIZE_MAX || !sector.aligned(size) {
        return Err(VhdxFault::Size { bytes: size, max: SIZE_MAX, sector: sector.bytes() }.into());
    }
    Ok(())
}

/// The pairs of a parent locator.
fn locator(item: &[u8]) -> Result<BTreeMap<String, String>> {
    let head: RawLocator = take(item, 0, "parent locator")?;
    let id = Uuid::from_bytes_le(head.locator_type);
    if id != VHDX_LOCATOR {
        return Err(VhdxFault::Unknown { what: "kind of parent", id }.into());
    }
    let (count, max) = (head.key_value_count.get(), PAIRS_MAX);
    if count > max {
        let what = "parent locator";
        return Err(VhdxFault::Entries { what, found: count.into(), max: max.into() }.into());
    }
    let mut pairs = BTreeMap::new();
    for number in 0..usize::from(count) {
        let at = number.saturating_mul(size_of::<RawPair>()).saturating_add(size_of::<RawLocator>());
        let raw: RawPair = take(item, at, "parent locator entry")?;
        let key = text(item, raw.key_offset.get(), raw.key_length.get())?;
        pairs.insert(key, text(item, raw.value_offset.get(), raw.value_length.get())?);
    }
    Ok(pairs)
}

fn text(item: &[u8], at: u32, len: u16) -> Result<String> {
    let bytes = part(item, index(at.into())?, len.into(), "parent locator entry")?;
    let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    Ok(String::from_utf16_lossy(&units))
}

fn locator_bytes(pairs: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let narrow = |n: usize| u16::try_from(n).map_err(|_| VhdxFault::NoParent("its name is too long"));
    let head = RawLocator {
        locator_type: VHDX_LOCATOR.to_bytes_le(),
        reserved: 0.into(),
        key_value_count: narrow(pairs.len())?.into(),
    };
    let mut item = head.as_bytes().to_vec();
    let first = pairs.len().saturating_mul(size_of::<RawPair>()).saturating_add(item.len());
    let mut texts: Vec<u8> = Vec::new();
    for (key, value) in pairs {
        let mut place = |text: &str| {
            let at = first.saturating_add(texts.len());
            let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            texts.extend(&units);
            let at = u32::try_from(at).map_err(|_| Common::Index(len64(at)))?;
            Ok::<_, crate::error::Error>((at, narrow(units.len())?))
        };
        let ((key_offset, key_length), (value_offset, value_length)) = (place(key)?, place(value)?);
        let raw = RawPair {
            key_offset: key_offset.into(),
            value_offset: value_offset.into(),
            key_length: key_length.into(),
            value_length: value_length.into(),
        };
        item.extend(raw.as_bytes());
    }
    item.extend(texts);
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::MemDevice;

    #[test]
    fn what_is_written_is_read() {
        let mut new = Metadata::new(DiskType::Differencing, 5 * MIB, BlockSize::from_bytes(2 * MIB).unwrap());
        let pair = |k: &str, v: &str| (k.to_string(), v.to_string());
        new.parent = Some([pair("parent_linkage", "{x}"), pair("relative_path", ".\\é.vhdx")].into());
        let mut region = new.region().unwrap();
        region.resize(MIB as usize, 0);
        let file = Disk::new(MemDevice::from_bytes(region));
        let read = Metadata::read(&file, Span::first(MIB)).unwrap();
        assert_eq!((read.size, read.block, read.disk_type), (new.size, new.block, DiskType::Differencing));
        assert_eq!((read.disk_id, read.parent.clone()), (new.disk_id, new.parent));
        let (at, page) = read.page_with_size(&file, 7 * MIB).unwrap();
        file.write_at(at, &page).unwrap();
        assert_eq!(Metadata::read(&file, Span::first(MIB)).unwrap().size, 7 * MIB);
    }
}
