//! A sparse extent: grain directory, grain tables, and where each grain is.
//!
//! Offsets here are bytes from the beginning of the extent, which is not the beginning of the disk where the disk
//! has several.

use std::collections::{BTreeSet, HashMap};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use zerocopy::little_endian::U32;

use super::fault::VmdkFault;
use super::header::SparseHeader;
use super::layout::{RawGrainMarker, SECTOR};
use super::pack::inflate;
use super::write::Writing;
use crate::block::Disk;
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::mapped::{HostOffset, Packed, Recent};
use crate::wire::{self, index, len64};

/// The grain directory of 4 TiB in grains of 4 KiB takes 8 MiB.
pub(super) const GD_BYTES_MAX: u64 = 16 * MIB;
/// Grain tables in memory: 2 KiB each, for 128 GiB of disk in grains of 64 KiB.
const TABLES_MAX: usize = 4096;
/// Bytes read at once in the hope that a compressed grain is not longer.
const PACKED_GUESS: u64 = 32 << 10;

/// Where a stretch of an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Bytes at this offset of the file.
    Data { host: u64 },
    /// Zeroes by an entry of its own.
    Zero,
    /// Not here: the parent has it, or it is zero.
    Absent,
    /// The compressed grain at this sector of the file.
    Packed { sector: u64 },
}

/// A sparse extent.
#[derive(Debug)]
pub(super) struct SparseExtent {
    pub(super) file: Disk,
    pub(super) header: SparseHeader,
    pub(super) state: RwLock<Tables>,
    /// Grains expanded last.
    recent: Recent,
    pub(super) writing: Writing,
}

/// What is known of the tables.
#[derive(Debug)]
pub(super) struct Tables {
    /// The grain directory: sectors of grain tables.
    pub(super) directory: Vec<u32>,
    /// Sectors of the redundant grain tables.
    pub(super) redundant: Vec<u32>,
    /// Grain tables by their number, each with as many entries as the header says.
    pub(super) loaded: HashMap<u64, Vec<u32>>,
    /// Numbers of tables that changed since they were written.
    pub(super) dirty: BTreeSet<u64>,
    /// Numbers of tables that are being written.
    pub(super) in_flight: BTreeSet<u64>,
}

impl SparseExtent {
    /// Opens the extent whose checked header is at hand.
    pub(super) fn open(file: Disk, header: SparseHeader) -> Result<Self> {
        let count = header.gd_entries();
        let directory = sectors(&file, header.gd_at, count, GD_BYTES_MAX, "grain directory")?;
        let redundant = match header.rgd_at {
            // Only writing needs it, and reading does without where it is damaged.
            Some(at) if file.writable() => sectors(&file, at, count, GD_BYTES_MAX, "redundant directory")?,
            _ => Vec::new(),
        };
        let writing = Writing::default();
        let state = RwLock::new(Tables {
            directory,
            redundant,
            loaded: HashMap::new(),
            dirty: BTreeSet::new(),
            in_flight: BTreeSet::new(),
        });
        Ok(Self { file, header, state, recent: Recent::default(), writing })
    }

    /// Reads the redundant directory, which readers do without.
    pub(super) fn learn_redundant(&self) -> Result<()> {
        if let Some(at) = self.header.rgd_at
            && self.shared()?.redundant.is_empty()
        {
            let count = self.header.gd_entries();
            let found = sectors(&self.file, at, count, GD_BYTES_MAX, "redundant directory")?;
            self.exclusive()?.redundant = found;
        }
        Ok(())
    }

    /// Bytes of the disk in this extent.
    pub(super) fn size(&self) -> u64 {
        self.header.capacity
    }

    pub(super) fn shared(&self) -> Result<RwLockReadGuard<'_, Tables>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    pub(super) fn exclusive(&self) -> Result<RwLockWriteGuard<'_, Tables>> {
        self.state.write().map_err(|_| Common::Poisoned.into())
    }

    /// Number of the grain table for a grain, and the entry in it.
    pub(super) fn locate(&self, grain: u64) -> (u64, u64) {
        let each = u64::from(self.header.gt_entries).max(1);
        (grain.div_euclid(each), grain.rem_euclid(each))
    }

    /// Where the bytes at `at` are, and for how many of `want` bytes that holds. `at` lies inside the extent,
    /// and `want` is not 0.
    pub(super) fn map(&self, at: u64, want: u64) -> Result<(Mapping, u64)> {
        let (grain, within) = self.header.grain.split(at);
        let (table, entry) = self.locate(grain);
        self.load(table)?;
        let state = self.shared()?;
        let want = want.min(self.header.capacity.saturating_sub(at));
        let Some(entries) = state.loaded.get(&table) else {
            // No table: nothing in all that it would describe.
            let left =
                self.header.table_covers().saturating_sub(at.rem_euclid(self.header.table_covers().max(1)));
            return Ok((Mapping::Absent, left.min(want)));
        };
        let rest = entries.get(index(entry)?..).unwrap_or_default();
        let first = self.mapping(rest.first().copied().unwrap_or(0), grain)?;
        let mut len = self.header.grain.bytes().saturating_sub(within);
        if !matches!(first, Mapping::Packed { .. }) {
            for (next, raw) in (grain.saturating_add(1)..).zip(rest.iter().skip(1)) {
                if len >= want || !self.continues(first, within.saturating_add(len), *raw, next)? {
                    break;
                }
                len = len.saturating_add(self.header.grain.bytes());
            }
        }
        let first = match first {
            Mapping::Data { host } => Mapping::Data { host: host.saturating_add(within) },
            other => other,
        };
        Ok((first, len.min(want)))
    }

    /// Whether the next grain continues what `first` began `distance` bytes before it.
    fn continues(&self, first: Mapping, distance: u64, raw: u32, grain: u64) -> Result<bool> {
        Ok(match (first, self.mapping(raw, grain)?) {
            (Mapping::Data { host }, Mapping::Data { host: next }) => {
                host.checked_add(distance) == Some(next)
            }
            (Mapping::Zero, Mapping::Zero) | (Mapping::Absent, Mapping::Absent) => true,
            _ => false,
        })
    }

    /// The meaning of one entry, checked against the size of the file.
    fn mapping(&self, raw: u32, grain: u64) -> Result<Mapping> {
        let sector = match raw {
            0 => return Ok(Mapping::Absent),
            1 if self.header.zeroed_grains => return Ok(Mapping::Zero),
            sector => u64::from(sector),
        };
        // 32 bits of sectors always fit.
        let host = sector.saturating_mul(SECTOR);
        let start = self.header.grain.start_of(grain).ok_or(Common::Index(grain))?;
        let len = if self.header.compressed {
            len64(size_of::<RawGrainMarker>())
        } else {
            // The last grain may be cut where the disk ends.
            self.header.grain.bytes().min(self.header.capacity.saturating_sub(start))
        };
        if host.saturating_add(len) > self.file.size() {
            let file_sectors = self.file.size().div_euclid(SECTOR);
            return Err(VmdkFault::GrainPastEnd { grain, sector, file_sectors }.into());
        }
        Ok(if self.header.compressed { Mapping::Packed { sector } } else { Mapping::Data { host } })
    }

    /// Brings grain table `number` into memory, unless the directory has none.
    pub(super) fn load(&self, number: u64) -> Result<()> {
        let sector = {
            let state = self.shared()?;
            match state.directory.get(index(number)?) {
                _ if state.loaded.contains_key(&number) => return Ok(()),
                None | Some(0) => return Ok(()),
                Some(sector) => u64::from(*sector),
            }
        };
        let entries = self.read_table(number, sector)?;
        let mut state = self.exclusive()?;
        let Tables { loaded, dirty, in_flight, .. } = &mut *state;
        if loaded.len() >= TABLES_MAX {
            loaded.retain(|number, _| dirty.contains(number) || in_flight.contains(number));
        }
        loaded.entry(number).or_insert(entries);
        Ok(())
    }

    pub(super) fn read_table(&self, number: u64, sector: u64) -> Result<Vec<u32>> {
        let count = u64::from(self.header.gt_entries);
        let at = sector.saturating_mul(SECTOR);
        let end = at.saturating_add(count.saturating_mul(4));
        if end > self.file.size() {
            let file_sectors = self.file.size().div_euclid(SECTOR);
            return Err(VmdkFault::GtPastEnd { index: number, sector, file_sectors }.into());
        }
        sectors(&self.file, at, count, GD_BYTES_MAX, "grain table").within(|| format!("grain table {number}"))
    }

    /// Reads from the compressed grain at `sector`, which holds the bytes at `at`; `buf` ends with the grain.
    pub(super) fn read_packed(&self, sector: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        let (grain, within) = self.header.grain.split(at);
        let host = HostOffset(sector.saturating_mul(SECTOR));
        let packed = Packed { host, stored: self.header.grain.bytes() };
        self.recent.read(packed, self.header.grain, within, buf, |out| self.unpack(sector, grain, out))
    }

    /// Expands the compressed grain at `sector` into `out`, a whole grain.
    fn unpack(&self, sector: u64, grain: u64, out: &mut [u8]) -> Result<()> {
        let at = sector.saturating_mul(SECTOR);
        let marker_len = len64(size_of::<RawGrainMarker>());
        let have = self.file.size().saturating_sub(at);
        let guess = have.min(PACKED_GUESS);
        let mut raw = wire::bytes(&self.file, at, guess, PACKED_GUESS, "compressed grain")?;
        let marker: RawGrainMarker = wire::take(&raw, 0, "grain marker")?;
        let start = self.header.grain.start_of(grain).ok_or(Common::Index(grain))?;
        let expected = start.div_euclid(SECTOR);
        if marker.lba.get() != expected {
            let found = marker.lba.get();
            return Err(VmdkFault::GrainLba { sector, found, expected }.into());
        }
        // What deflate cannot shrink grows by a few bytes for each 16 KiB.
        let max = self.header.grain.bytes().saturating_mul(2);
        let len = u64::from(marker.size.get());
        if len == 0 || len > max {
            return Err(VmdkFault::GrainLen { sector, len: marker.size.get(), max }.into());
        }
        let all = marker_len.saturating_add(len);
        if all > guess {
            raw = wire::bytes(&self.file, at, all, max.saturating_add(marker_len), "compressed grain")?;
        }
        let packed = wire::part(&raw, size_of::<RawGrainMarker>(), index(len)?, "compressed grain")?;
        let need = len64(out.len()).min(self.header.capacity.saturating_sub(start));
        inflate(packed, out, index(need)?).map_err(|why| VmdkFault::Inflate { sector, why }.into())
    }
}

/// A table of sector numbers.
fn sectors(file: &Disk, at: u64, count: u64, max: u64, what: &'static str) -> Result<Vec<u32>> {
    let raw = wire::table::<U32>(file, at, count, max, what)?;
    Ok(raw.into_iter().map(U32::get).collect())
}
