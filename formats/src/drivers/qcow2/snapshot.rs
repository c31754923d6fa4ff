//! The snapshot table: a list of L1 tables with names.

use zerocopy::IntoBytes;
use zerocopy::big_endian::U64;

use super::fault::Fault;
use super::header::{Header, L1_BYTES_MAX, TablePlace};
use super::layout::{RawSnapshot, RawSnapshotExtra};
use crate::block::Disk;
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::registry::{self, Moment};
use crate::wire::{bytes, index, len64, part, part_mut, read, take};

/// Bytes of one entry's extra data: QEMU's limit; what is defined takes 24.
const EXTRA_MAX: u64 = 1024;
/// Bytes of the whole table: QEMU's limit.
const TABLE_BYTES_MAX: u64 = 64 * MIB;

/// Bytes of extra data in a new entry: sizes of state and disk, and a count of instructions.
const NEW_EXTRA: u32 = 24;
/// No machine ran that counts its instructions.
const NO_ICOUNT: u64 = u64::MAX;

/// One internal snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1: TablePlace,
    pub(super) id: String,
    pub(super) name: String,
    /// Virtual size in bytes at that time.
    pub(super) size: u64,
    /// The entry itself says the size.
    pub(super) has_size: bool,
    moment: Moment,
    /// Bytes that a virtual machine keeps behind the end of the disk.
    vm_state_size: u64,
    icount: Option<u64>,
    /// The entry as it lies on disk, without padding.
    raw: Vec<u8>,
}

/// All snapshots, and the bytes that the table takes.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) list: Vec<Snapshot>,
    pub(super) table_bytes: u64,
}

impl Snapshot {
    /// One of a disk of `size` bytes that is made now; where its L1 table lies is said later.
    pub(super) fn new(id: String, name: &str, moment: Moment, size: u64) -> Result<Self> {
        let narrow = |len: usize| u16::try_from(len).map_err(|_| Fault::SnapshotName(len));
        let fixed = RawSnapshot {
            l1_table_offset: 0.into(),
            l1_size: 0.into(),
            id_size: narrow(id.len())?.into(),
            name_size: narrow(name.len())?.into(),
            date_sec: moment.date_sec.into(),
            date_nsec: moment.date_nsec.into(),
            vm_clock_nsec: moment.vm_clock_nsec.into(),
            vm_state_size: 0.into(),
            extra_data_size: NEW_EXTRA.into(),
        };
        let extra = RawSnapshotExtra { vm_state_size: 0.into(), disk_size: size.into() };
        let icount = NO_ICOUNT.to_be_bytes();
        let raw = [fixed.as_bytes(), extra.as_bytes(), &icount, id.as_bytes(), name.as_bytes()].concat();
        let l1 = TablePlace { at: 0, entries: 0 };
        let name = name.to_string();
        Ok(Self { l1, id, name, size, has_size: true, moment, vm_state_size: 0, icount: None, raw })
    }

    /// Says where its L1 table lies.
    pub(super) fn set_l1(&mut self, place: TablePlace) -> Result<()> {
        let mut fixed: RawSnapshot = take(&self.raw, 0, "snapshot")?;
        fixed.l1_table_offset = place.at.into();
        fixed.l1_size = u32::try_from(place.entries).map_err(|_| Common::Index(place.entries))?.into();
        part_mut(&mut self.raw, 0, size_of::<RawSnapshot>(), "snapshot")?.copy_from_slice(fixed.as_bytes());
        self.l1 = place;
        Ok(())
    }

    /// What users of the library see.
    pub(super) fn public(&self) -> registry::Snapshot {
        registry::Snapshot {
            id: self.id.clone(),
            name: self.name.clone(),
            date_sec: self.moment.date_sec.into(),
            date_nsec: self.moment.date_nsec,
            vm_clock_nsec: self.moment.vm_clock_nsec,
            vm_state_size: self.vm_state_size,
            icount: self.icount,
            virtual_size: self.size,
        }
    }
}

impl SnapshotTable {
    /// A table that is not on disk.
    pub(super) fn of(list: Vec<Snapshot>) -> Self {
        let table_bytes =
            list.iter().map(|s| len64(s.raw.len()).next_multiple_of(8)).fold(0, u64::saturating_add);
        Self { list, table_bytes }
    }

    /// A table as it lies on disk, and how many entries it has.
    pub(super) fn bytes(list: &[Snapshot]) -> Result<(Vec<u8>, u64)> {
        let mut all = Vec::new();
        for snapshot in list {
            all.extend_from_slice(&snapshot.raw);
            all.resize(all.len().next_multiple_of(8), 0);
        }
        let found = len64(all.len());
        if found > TABLE_BYTES_MAX {
            return Err(Fault::Many { what: "bytes of snapshot table", found, max: TABLE_BYTES_MAX }.into());
        }
        Ok((all, len64(list.len())))
    }

    /// Reads the table that the header names.
    pub(super) fn read(file: &Disk, header: &Header) -> Result<Self> {
        let start = header.snapshots.at;
        let mut all = Self::default();
        for number in 0..header.snapshots.entries {
            let at = start.saturating_add(all.table_bytes);
            let (snapshot, len) =
                read_entry(file, at, header).within(|| format!("snapshot {}", number.saturating_add(1)))?;
            all.list.push(snapshot);
            all.table_bytes = all.table_bytes.saturating_add(len);
            if all.table_bytes > TABLE_BYTES_MAX {
                let (what, found, max) = ("bytes of snapshot table", all.table_bytes, TABLE_BYTES_MAX);
                return Err(Fault::Many { what, found, max }.into());
            }
        }
        Ok(all)
    }
}

/// Reads one entry; also says how many bytes it takes.
fn read_entry(file: &Disk, at: u64, header: &Header) -> Result<(Snapshot, u64)> {
    let raw: RawSnapshot = read(file, at, "snapshot")?;
    let extra_len = u64::from(raw.extra_data_size.get());
    if extra_len > EXTRA_MAX {
        return Err(Fault::Many { what: "bytes of extra data", found: extra_len, max: EXTRA_MAX }.into());
    }
    let (id_len, name_len) = (u64::from(raw.id_size.get()), u64::from(raw.name_size.get()));
    // Three numbers below 2^17: no overflow.
    let rest_len = extra_len.saturating_add(id_len).saturating_add(name_len);
    let rest = bytes(file, at.saturating_add(40), rest_len, rest_len, "snapshot")?;
    let extra: Option<RawSnapshotExtra> =
        if extra_len >= 16 { Some(take(&rest, 0, "snapshot")?) } else { None };
    let icount: Option<U64> = if extra_len >= 24 { Some(take(&rest, 16, "snapshot")?) } else { None };
    let (extra_len, id_len, name_len) = (index(extra_len)?, index(id_len)?, index(name_len)?);
    let text = |at, len| -> Result<String> {
        Ok(String::from_utf8_lossy(part(&rest, at, len, "snapshot")?).into_owned())
    };
    let l1 = TablePlace { at: raw.l1_table_offset.get(), entries: raw.l1_size.get().into() };
    check_l1(&l1, header, file.size())?;
    let snapshot = Snapshot {
        l1,
        id: text(extra_len, id_len)?,
        name: text(extra_len.saturating_add(id_len), name_len)?,
        size: extra.map_or(header.size, |e| e.disk_size.get()),
        has_size: extra.is_some(),
        moment: Moment {
            date_sec: raw.date_sec.get(),
            date_nsec: raw.date_nsec.get(),
            vm_clock_nsec: raw.vm_clock_nsec.get(),
        },
        // The larger number came later.
        vm_state_size: extra.map_or(raw.vm_state_size.get().into(), |e| e.vm_state_size.get()),
        icount: icount.map(U64::get).filter(|n| *n != NO_ICOUNT),
        raw: [raw.as_bytes(), &rest].concat(),
    };
    Ok((snapshot, rest_len.saturating_add(40).next_multiple_of(8)))
}

fn check_l1(l1: &TablePlace, header: &Header, file: u64) -> Result<()> {
    let (what, cluster) = ("L1 table", header.geometry.cluster);
    if l1.entries > L1_BYTES_MAX / 8 {
        return Err(Fault::Many { what: "L1 entries", found: l1.entries, max: L1_BYTES_MAX / 8 }.into());
    }
    let len = l1.entries.saturating_mul(8);
    if l1.entries > 0 && !cluster.aligned(l1.at) {
        return Err(Fault::Unaligned { what, at: l1.at, cluster: cluster.bytes() }.into());
    }
    if l1.entries > 0 && l1.at.checked_add(len).is_none_or(|end| end > file) {
        return Err(Fault::OutsideFile { what, at: l1.at, len, file }.into());
    }
    Ok(())
}
