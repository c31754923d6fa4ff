//! The snapshot table: a list of L1 tables with names.

use super::fault::Fault;
use super::header::{Header, L1_BYTES_MAX, TablePlace};
use super::layout::{RawSnapshot, RawSnapshotExtra};
use crate::block::Disk;
use crate::error::{Result, Within};
use crate::limits::MIB;
use crate::wire::{bytes, index, part, read, take};

/// Bytes of one entry's extra data: QEMU's limit; what is defined takes 24.
const EXTRA_MAX: u64 = 1024;
/// Bytes of the whole table: QEMU's limit.
const TABLE_BYTES_MAX: u64 = 64 * MIB;

/// One internal snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) l1: TablePlace,
    pub(super) id: String,
    pub(super) name: String,
    /// Seconds since 1970.
    pub(super) date_sec: u64,
    /// Virtual size in bytes at that time.
    pub(super) size: u64,
    /// The entry itself says the size.
    pub(super) has_size: bool,
}

/// All snapshots, and the bytes that the table takes.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) list: Vec<Snapshot>,
    pub(super) table_bytes: u64,
}

impl SnapshotTable {
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
        date_sec: raw.date_sec.get().into(),
        size: extra.map_or(header.size, |e| e.disk_size.get()),
        has_size: extra.is_some(),
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
