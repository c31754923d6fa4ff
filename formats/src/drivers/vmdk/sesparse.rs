//! seSparse extents, which ESXi 6.5 and later keep snapshots in: read only.
//!
//! No public specification has them; what is known is what the readers of others rely on. All fields are of 64 bits,
//! little-endian, and count sectors:
//!
//! ```text
//! header ▸ volatile header ▸ journal ▸ grain directory ▸ grain tables ▸ free bitmap ▸ back map ▸ grains
//! ```
//!
//! A grain has 4 KiB, a grain table 4,096 entries. The upper four bits of an entry say what it is; of the other
//! sixty the upper twelve are the lowest of the grain's number. A journal that is still to be replayed is refused:
//! reading without it would be reading something that was never there.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::fault::VmdkFault;
use super::grains::Mapping;
use super::layout::SECTOR;
use crate::block::{BlockSize, Disk};
use crate::check::{Report, Severity};
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::wire::{self, index, len64};

/// What a header begins with.
pub(super) const MAGIC: [u8; 8] = [0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0];
/// The only version: 2.1.
pub(super) const VERSION: u64 = 0x2_0000_0001;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
/// Bytes in a grain.
const GRAIN: BlockSize = match BlockSize::from_bytes(4 * KIB) {
    Some(size) => size,
    None => panic!("4 KiB is a power of two"),
};
/// Sectors of a grain, and of a grain table.
const GRAIN_SECTORS: u64 = 8;
const TABLE_SECTORS: u64 = 64;
/// Entries in a grain table.
const ENTRIES: BlockSize = match BlockSize::from_bytes(TABLE_SECTORS.saturating_mul(SECTOR) / 8) {
    Some(size) => size,
    None => panic!("4,096 is a power of two"),
};
/// Bytes of the disk that one grain table describes.
const TABLE_COVERS: BlockSize = match BlockSize::from_bytes(ENTRIES.bytes().saturating_mul(GRAIN.bytes())) {
    Some(size) => size,
    None => panic!("16 MiB is a power of two"),
};
/// The grain directory of 62 TiB, VMware's largest disk, takes 31 MiB.
const DIRECTORY_MAX: u64 = 32 * MIB;
/// Grain tables in memory: 32 KiB each.
const TABLES_MAX: usize = 512;
/// Findings that are listed for one extent.
const FINDINGS_MAX: usize = 100;

/// The header, which never changes.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U64,
    /// Sectors of the disk.
    capacity: U64,
    grain_size: U64,
    grain_table_size: U64,
    flags: U64,
    reserved: [U64; 4],
    volatile_header_offset: U64,
    volatile_header_size: U64,
    journal_header: [U64; 2],
    journal: [U64; 2],
    grain_dir_offset: U64,
    grain_dir_size: U64,
    grain_tables_offset: U64,
    grain_tables_size: U64,
    free_bitmap: [U64; 2],
    backmap: [U64; 2],
    grains_offset: U64,
    grains_size: U64,
    pad: [u8; 304],
}

/// The header that changes.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawVolatile {
    magic: U64,
    free_gt_number: U64,
    next_txn_seq_number: U64,
    /// Not zero if the journal has changes that are not in their places.
    replay_journal: U64,
    pad: [u8; 480],
}

const _: () = assert!(size_of::<RawHeader>() == 512);
const _: () = assert!(size_of::<RawVolatile>() == 512);

/// A seSparse extent.
#[derive(Debug)]
pub(super) struct SeSparse {
    pub(super) file: Disk,
    capacity: u64,
    directory: Vec<U64>,
    /// First byte of the grain tables, and how many there are.
    tables_at: u64,
    tables: u64,
    /// First byte of the grains, and the end of the file: its header may lag behind.
    grains_at: u64,
    grains_end: u64,
    loaded: RwLock<HashMap<u64, Arc<Vec<U64>>>>,
}

impl SeSparse {
    /// Opens the extent in `file`.
    pub(super) fn open(file: Disk) -> Result<Self> {
        let raw: RawHeader = wire::read(&file, 0, "seSparse header")?;
        check_header(&raw)?;
        let at = in_bytes("the volatile header's place", raw.volatile_header_offset)?;
        let volatile: RawVolatile = wire::read(&file, at, "volatile header")?;
        if volatile.magic.get() != VOLATILE_MAGIC {
            return Err(VmdkFault::Volatile(volatile.magic.get()).into());
        }
        if volatile.replay_journal.get() != 0 {
            return Err(VmdkFault::Journal.into());
        }
        let capacity = in_bytes("the capacity", raw.capacity)?;
        let need = TABLE_COVERS.count(capacity);
        let found = in_bytes("the grain directory", raw.grain_dir_size)? / 8;
        if found < need {
            return Err(VmdkFault::GdEntries { found, need }.into());
        }
        let directory_at = in_bytes("the grain directory's place", raw.grain_dir_offset)?;
        let directory = wire::table(&file, directory_at, need, DIRECTORY_MAX, "grain directory")?;
        let grains_at = in_bytes("the grains' place", raw.grains_offset)?;
        Ok(Self {
            capacity,
            directory,
            tables_at: in_bytes("the grain tables' place", raw.grain_tables_offset)?,
            tables: raw.grain_tables_size.get() / TABLE_SECTORS,
            grains_at,
            grains_end: file.size(),
            loaded: RwLock::default(),
            file,
        })
    }

    /// Bytes of the disk in this extent.
    pub(super) fn size(&self) -> u64 {
        self.capacity
    }

    /// Bytes in a grain.
    pub(super) fn grain_bytes(&self) -> u64 {
        GRAIN.bytes()
    }

    /// Where the bytes at `at` are, and for how many of `want` bytes that holds. `at` lies inside the extent, and
    /// `want` is not 0.
    pub(super) fn map(&self, at: u64, want: u64) -> Result<(Mapping, u64)> {
        let (number, within_table) = TABLE_COVERS.split(at);
        let left = TABLE_COVERS.bytes().saturating_sub(within_table).min(want);
        let Some(table) = self.table(number)? else { return Ok((Mapping::Absent, left)) };
        let (entry, within) = GRAIN.split(within_table);
        let mut rest = table.iter().skip(index(entry)?);
        let first = self.mapping(rest.next().map_or(0, |e| e.get()))?;
        let first = match first {
            Mapping::Data { host } => Mapping::Data { host: host.saturating_add(within) },
            other => other,
        };
        let mut len = GRAIN.bytes().saturating_sub(within);
        for raw in rest {
            let next = match first {
                Mapping::Data { host } => Mapping::Data { host: host.saturating_add(len) },
                other => other,
            };
            if len >= left || self.mapping(raw.get())? != next {
                break;
            }
            len = len.saturating_add(GRAIN.bytes());
        }
        Ok((first, len.min(left)))
    }

    /// Grain table `number`, unless the directory has none.
    fn table(&self, number: u64) -> Result<Option<Arc<Vec<U64>>>> {
        if let Some(table) = self.loaded.read().map_err(|_| Common::Poisoned)?.get(&number) {
            return Ok(Some(Arc::clone(table)));
        }
        let entry = self.directory.get(index(number)?).map_or(0, |e| e.get());
        let place = match (entry >> 60, entry & 0x0fff_ffff_ffff_ffff) {
            (0, 0) => return Ok(None),
            (1, place) if place < self.tables => place,
            _ => return Err(VmdkFault::SeDirectory { index: number, entry, tables: self.tables }.into()),
        };
        let at = place.saturating_mul(TABLE_SECTORS.saturating_mul(SECTOR)).saturating_add(self.tables_at);
        let bytes = ENTRIES.bytes().saturating_mul(8);
        let table = wire::table(&self.file, at, ENTRIES.bytes(), bytes, "grain table");
        let table = Arc::new(table.within(|| format!("grain table {number}"))?);
        let mut loaded = self.loaded.write().map_err(|_| Common::Poisoned)?;
        if loaded.len() >= TABLES_MAX {
            loaded.clear();
        }
        loaded.insert(number, Arc::clone(&table));
        Ok(Some(table))
    }

    /// The meaning of one entry, checked against the size of the file.
    fn mapping(&self, entry: u64) -> Result<Mapping> {
        let number = match (entry >> 60, entry & 0x0fff_ffff_ffff_ffff) {
            (0, 0) => return Ok(Mapping::Absent),
            // Unmapped by the guest, or zeroed.
            (1 | 2, _) => return Ok(Mapping::Zero),
            (3, number) => (number >> 48) | ((number & 0xffff_ffff_ffff) << 12),
            _ => return Err(VmdkFault::SeEntry(entry).into()),
        };
        let host = number.checked_mul(GRAIN.bytes()).and_then(|at| at.checked_add(self.grains_at));
        match host {
            Some(host) if host.saturating_add(GRAIN.bytes()) <= self.grains_end => Ok(Mapping::Data { host }),
            _ => Err(VmdkFault::SeGrain { number, end: self.grains_end }.into()),
        }
    }

    /// Looks at every entry.
    pub(super) fn check(&self, name: &str, report: &mut Report) -> Result<()> {
        let (mut listed, mut more) = (0, 0u64);
        let mut add = |what: String, report: &mut Report| {
            if listed < FINDINGS_MAX {
                listed = listed.saturating_add(1);
                report.add(Severity::Corruption, what);
            } else {
                more = more.saturating_add(1);
            }
        };
        for number in 0..len64(self.directory.len()) {
            match self.table(number) {
                Ok(Some(table)) => {
                    for e in table.iter().filter_map(|entry| self.mapping(entry.get()).err()) {
                        add(format!("{name}: grain table {number}: {e}"), report);
                    }
                }
                Ok(None) => {}
                Err(e) => add(format!("{name}: {e}"), report),
            }
        }
        if more > 0 {
            report.add(Severity::Corruption, format!("{name}: {more} findings more"));
        }
        Ok(())
    }
}

/// Refuses what nobody has seen yet: the format is not published, so nothing may be guessed.
fn check_header(raw: &RawHeader) -> Result<()> {
    let odd = |what, value: u64| VmdkFault::SeField { what, value };
    let known = [
        ("version", raw.version.get(), VERSION),
        ("size of grains", raw.grain_size.get(), GRAIN_SECTORS),
        ("size of grain tables", raw.grain_table_size.get(), TABLE_SECTORS),
        ("set of flags", raw.flags.get(), 0),
    ];
    if raw.magic != MAGIC {
        return Err(odd("magic", u64::from_le_bytes(raw.magic)).into());
    }
    for (what, found, expected) in known {
        if found != expected {
            return Err(odd(what, found).into());
        }
    }
    if let Some(value) = raw.reserved.iter().map(|r| r.get()).find(|r| *r != 0) {
        return Err(odd("reserved field", value).into());
    }
    if !wire::is_zero(&raw.pad) {
        return Err(odd("padding that is not zero", 0).into());
    }
    Ok(())
}

fn in_bytes(what: &'static str, sectors: U64) -> Result<u64> {
    let sectors = sectors.get();
    sectors.checked_mul(SECTOR).ok_or_else(|| VmdkFault::Sectors { what, sectors }.into())
}
