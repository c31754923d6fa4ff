//! L1 and L2: from an offset in the disk to a place in the file.

use std::collections::BTreeSet;
use std::sync::Arc;

use zerocopy::big_endian::U64;

use super::entry::{Entry, EntryRules, RawEntry};
use super::fault::Fault;
use super::header::{Header, L1_BYTES_MAX, TablePlace};
use super::layout::{COPIED, OFFSET_MASK};
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::mapped::{HostOffset, Mapping, Place, Sheets};
use crate::wire::{index, len64, table};

/// L2 tables are read in pieces: an edit touches a few places of a table of up to 2 MiB.
const SHEET_BYTES: u64 = 16 * KIB;
/// Bytes of L2 tables kept: with clusters of 64 KiB they map 32 GiB.
const CACHE_BYTES: u64 = 4 * MIB;
/// Entries of an L1 table in a sector: what is written of it at a time.
const L1_SECTOR: usize = 64;

/// An L1 table and the L2 tables behind it.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) rules: EntryRules,
    /// Virtual size in bytes.
    pub(super) size: u64,
    /// The L1 table with its flags.
    pub(super) l1: Vec<u64>,
    /// Sectors of the L1 table that are not on disk as they are here.
    l1_changed: BTreeSet<usize>,
    /// Pieces of L2 tables.
    pub(super) sheets: Arc<Sheets>,
    sheet: BlockSize,
    file: Disk,
}

/// An entry, and whether the table that it stands in belongs to this L1 table alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) alone: bool,
}

impl Tables {
    /// Reads the active L1 table.
    pub(super) fn read(file: &Disk, header: &Header) -> Result<Self> {
        Self::of(file, header, header.l1, header.size)
    }

    /// Reads the L1 table at `l1`, of a disk of `size` bytes.
    pub(super) fn of(file: &Disk, header: &Header, l1: TablePlace, size: u64) -> Result<Self> {
        let raw: Vec<U64> = table(file, l1.at, l1.entries, L1_BYTES_MAX, "L1 table")?;
        let geometry = header.geometry;
        let sheet_bytes = SHEET_BYTES.min(geometry.cluster.bytes());
        let sheet = BlockSize::from_bytes(sheet_bytes).ok_or(Common::Index(sheet_bytes))?;
        Ok(Self {
            rules: EntryRules::of(header),
            size,
            l1: raw.into_iter().map(U64::get).collect(),
            l1_changed: BTreeSet::new(),
            sheets: Arc::new(Sheets::new(file.clone(), index(CACHE_BYTES >> sheet.shift())?)),
            sheet,
            file: file.clone(),
        })
    }

    /// Turns to another L1 table, which is on disk.
    pub(super) fn turn_to(&mut self, l1: Vec<u64>, size: u64) -> Result<()> {
        self.l1 = l1;
        self.l1_changed.clear();
        self.size = size;
        self.sheets.clear()
    }

    /// Bytes of a sheet.
    pub(super) fn sheet_bytes(&self) -> u64 {
        self.sheet.bytes()
    }

    /// The L2 table that the L1 entry `number` names.
    pub(super) fn l2_at(&self, number: u64) -> Result<Option<HostOffset>> {
        let entry = self.l1.get(index(number)?).copied().unwrap_or_default();
        let at = entry & OFFSET_MASK;
        let cluster = self.rules.geometry.cluster;
        if !cluster.aligned(at) {
            let fault = Fault::Unaligned { what: "L2 table", at, cluster: cluster.bytes() };
            return Err(crate::error::Error::from(fault).within(format!("L1 entry {number}")));
        }
        Ok((at != 0).then_some(HostOffset(at)))
    }

    /// Whether nobody else refers to the L2 table that the L1 entry `number` names.
    pub(super) fn l2_alone(&self, number: u64) -> Result<bool> {
        Ok(self.l1.get(index(number)?).is_some_and(|entry| entry & COPIED != 0))
    }

    /// Lets the L1 entry `number` name the table at `at`, which is nobody else's.
    pub(super) fn set_l2(&mut self, number: u64, at: u64) -> Result<()> {
        let number = index(number)?;
        *self.l1.get_mut(number).ok_or(Common::Index(len64(number)))? = at | COPIED;
        self.l1_changed.insert(number / L1_SECTOR);
        Ok(())
    }

    /// The sectors of the L1 table that are not on disk, by number.
    pub(super) fn l1_waiting(&self) -> Vec<(usize, Vec<u8>)> {
        let bytes = |sector: usize| {
            let entries = self.l1.chunks(L1_SECTOR).nth(sector).unwrap_or_default();
            entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
        };
        self.l1_changed.iter().map(|sector| (*sector, bytes(*sector))).collect()
    }

    /// What was [waiting](Self::l1_waiting) is on disk.
    pub(super) fn l1_landed(&mut self, landed: &[(usize, Vec<u8>)]) {
        let now = self.l1_waiting();
        for sector in now.iter().filter(|sector| landed.contains(sector)) {
            self.l1_changed.remove(&sector.0);
        }
    }

    /// Where the first part of `span` lives; looks at one sheet of one L2 table, or passes over empty L1 entries.
    pub(super) fn lookup(&self, data: &Disk, span: Span) -> Result<Mapping> {
        Ok(self.find_first(data, span, Aim::Read)?.0)
    }

    /// The same, and the offset of the space that is set aside for the first byte, whatever is read. All of what the
    /// answer speaks of has such space in one piece, or none of it.
    pub(super) fn locate(&self, data: &Disk, span: Span) -> Result<(Mapping, Option<HostOffset>)> {
        self.find_first(data, span, Aim::Locate)
    }

    fn find_first(&self, data: &Disk, span: Span, aim: Aim) -> Result<(Mapping, Option<HostOffset>)> {
        let (number, _) = self.rules.geometry.l2_reach.split(span.start());
        let Some(l2) = self.l2_at(number)? else {
            return Ok((Mapping { place: Place::Absent, len: self.unmapped(span)? }, None));
        };
        let found = self.walk(l2, data, span, aim)?;
        // The span is not empty and its first entry lies in the sheet, so there is a mapping.
        found.ok_or_else(|| Fault::Cut("L2 table").into())
    }

    /// Where the first part of `span` is stored, if its bytes can be changed there: they are nobody else's.
    pub(super) fn own(&self, data: &Disk, span: Span) -> Result<Option<Mapping>> {
        let (number, _) = self.rules.geometry.l2_reach.split(span.start());
        match self.l2_at(number)? {
            Some(l2) if self.l2_alone(number)? => {
                Ok(self.walk(l2, data, span, Aim::Own)?.map(|(mapping, _)| mapping))
            }
            _ => Ok(None),
        }
    }

    fn walk(
        &self,
        l2: HostOffset,
        data: &Disk,
        span: Span,
        aim: Aim,
    ) -> Result<Option<(Mapping, Option<HostOffset>)>> {
        let (number, within) = self.rules.geometry.l2_reach.split(span.start());
        let place = || format!("L2 table {number} at {:#x}", l2.0);
        let (cluster, _) = self.rules.geometry.cluster.split(within);
        let (sheet, next) = self.sheet_of(l2, cluster)?;
        let sheet = self.sheet(sheet).within(place)?;
        // Only now: a writer makes the file longer before it lets the table name what it wrote there.
        let data_size = data.size();
        let mut walk =
            Walk { tables: self, sheet: &sheet, next, span, data_size, aim, mapping: None, host: None };
        walk.run().within(place)?;
        Ok(walk.mapping.map(|mapping| (mapping, walk.host)))
    }

    /// What is said about the cluster that holds byte `at` of the disk.
    pub(super) fn find(&self, at: u64) -> Result<Found> {
        let (number, within) = self.rules.geometry.l2_reach.split(at);
        let Some(l2) = self.l2_at(number)? else {
            return Ok(Found { entry: Entry::Plain(Default::default()), alone: false });
        };
        let place = || format!("L2 table {number} at {:#x}", l2.0);
        let (cluster, _) = self.rules.geometry.cluster.split(within);
        let (sheet, next) = self.sheet_of(l2, cluster)?;
        let sheet = self.sheet(sheet).within(place)?;
        let entry = self.entry(&sheet, next).within(place)?.ok_or(Fault::Cut("L2 table"))?;
        Ok(Found { entry, alone: self.l2_alone(number)? })
    }

    /// How many clusters from that of `at` on have their entries in one sheet.
    pub(super) fn in_sheet(&self, at: u64) -> u64 {
        let geometry = &self.rules.geometry;
        let per_sheet = self.sheet.bytes() >> self.entry_shift();
        let (_, within) = geometry.l2_reach.split(at);
        let (cluster, _) = geometry.cluster.split(within);
        per_sheet.saturating_sub(cluster & per_sheet.saturating_sub(1))
    }

    /// Changes entries of one sheet: those of the clusters at these offsets of the disk. Their table is there, and
    /// nobody else's.
    pub(super) fn set(&self, entries: &[(u64, RawEntry)]) -> Result<()> {
        let Some((first, _)) = entries.first() else { return Ok(()) };
        let geometry = self.rules.geometry;
        let (number, _) = geometry.l2_reach.split(*first);
        let l2 = self.l2_at(number)?.ok_or(Common::Index(number))?;
        let place = |at: u64| {
            let (_, within) = geometry.l2_reach.split(at);
            self.sheet_of(l2, geometry.cluster.split(within).0)
        };
        let (sheet, _) = place(*first)?;
        self.sheets.change(sheet, |bytes| {
            let (words, _) = bytes.as_chunks_mut::<8>();
            for (at, raw) in entries {
                let (_, slot) = place(*at)?;
                let (word, bitmap) = self.slot(slot);
                *words.get_mut(word).ok_or(Common::Index(*at))? = raw.word.to_be_bytes();
                if let Some(bitmap) = bitmap {
                    *words.get_mut(bitmap).ok_or(Common::Index(*at))? = raw.bitmap.to_be_bytes();
                }
            }
            Ok(())
        })
    }

    /// Puts a whole table at `at`, over what may have been known of that place.
    pub(super) fn put_l2(&self, at: u64, whole: &[u8]) -> Result<()> {
        for (number, piece) in (0u64..).zip(whole.chunks(index(self.sheet.bytes())?)) {
            let to = self.sheet.start_of(number).and_then(|n| at.checked_add(n)).ok_or(Common::Index(at))?;
            self.sheets.put(to, piece.to_vec())?;
        }
        Ok(())
    }

    /// How far from the beginning of `span` no L1 entry names a table.
    fn unmapped(&self, span: Span) -> Result<u64> {
        let reach = self.rules.geometry.l2_reach;
        let mut until = span.start();
        while until < span.end() {
            let (number, _) = reach.split(until);
            if self.l2_at(number)?.is_some() {
                break;
            }
            until = reach.start_of(number.saturating_add(1)).unwrap_or(u64::MAX);
        }
        Ok(until.min(span.end()).saturating_sub(span.start()))
    }

    /// Binary logarithm of an entry's size in bytes.
    fn entry_shift(&self) -> u32 {
        self.rules.geometry.cluster.shift().saturating_sub(self.rules.geometry.l2_entries.shift())
    }

    /// The sheet that holds the entry of cluster `number` of an L2 table, and the entry's place in it.
    fn sheet_of(&self, l2: HostOffset, number: u64) -> Result<(Span, usize)> {
        let shift = self.entry_shift();
        let (sheet, within) = self.sheet.split(number.wrapping_shl(shift));
        let at = self.sheet.start_of(sheet).and_then(|n| l2.0.checked_add(n)).ok_or(Common::Index(l2.0))?;
        Ok((Span::new(at, self.sheet.bytes())?, index(within >> shift)?))
    }

    fn sheet(&self, sheet: Span) -> Result<Arc<Vec<u8>>> {
        let file = self.file.size();
        if sheet.end() > file {
            let (at, len) = (sheet.start(), sheet.len());
            return Err(Fault::OutsideFile { what: "L2 table", at, len, file }.into());
        }
        self.sheets.get(sheet)
    }

    /// The words of entry `number`.
    fn slot(&self, number: usize) -> (usize, Option<usize>) {
        if !self.rules.geometry.extended() {
            return (number, None);
        }
        let at = number.saturating_mul(2);
        (at, Some(at.saturating_add(1)))
    }

    /// Entry `number` of a sheet, if it has that many.
    fn entry(&self, sheet: &[u8], number: usize) -> Result<Option<Entry>> {
        let (words, _) = sheet.as_chunks::<8>();
        let get = |at: usize| words.get(at).map(|word| u64::from_be_bytes(*word));
        let (word, bitmap) = self.slot(number);
        let Some(word) = get(word) else { return Ok(None) };
        let bitmap = bitmap.and_then(get).unwrap_or_default();
        Ok(Some(self.rules.decode(RawEntry { word, bitmap })?))
    }
}

/// What a walk looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// What is read.
    Read,
    /// What is read, and the space that is set aside for it.
    Locate,
    /// Only what can be changed in place.
    Own,
}

/// Joins what neighbours in one sheet say.
struct Walk<'a> {
    tables: &'a Tables,
    sheet: &'a [u8],
    /// The entry to look at next.
    next: usize,
    /// What is still asked about.
    span: Span,
    /// Size of the disk that data lie on.
    data_size: u64,
    aim: Aim,
    mapping: Option<Mapping>,
    /// Where space is set aside for the first byte of the mapping.
    host: Option<HostOffset>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        while !self.span.is_empty() {
            match self.cluster() {
                Ok(true) => self.next = self.next.saturating_add(1),
                Ok(false) => break,
                // What lies before a bad entry can be read all the same.
                Err(_) if self.mapping.is_some() => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes in the next entry; says whether the one behind it is worth a look.
    fn cluster(&mut self) -> Result<bool> {
        match self.tables.entry(self.sheet, self.next)? {
            None => Ok(false),
            Some(Entry::Plain(plain)) if self.aim == Aim::Own && !plain.copied => Ok(false),
            Some(Entry::Packed(_)) if self.aim == Aim::Own => Ok(false),
            Some(Entry::Packed(packed)) => {
                self.join(Place::Packed(packed), None, self.tables.rules.geometry.cluster)
            }
            Some(entry) => self.subclusters(&entry),
        }
    }

    /// Goes through what is left of one cluster; says whether the next one is worth a look.
    fn subclusters(&mut self, entry: &Entry) -> Result<bool> {
        let geometry = self.tables.rules.geometry;
        loop {
            let (_, within) = geometry.cluster.split(self.span.start());
            let (number, _) = geometry.subcluster.split(within);
            let number = u32::try_from(number).map_err(|_| Common::Index(number))?;
            let place = entry.place(number, &geometry);
            if self.aim == Aim::Own && !matches!(place, Place::Data(_)) {
                return Ok(false);
            }
            self.check_data(place, number)?;
            let host = if self.aim == Aim::Locate { entry.host(number, &geometry) } else { None };
            if !self.join(place, host, geometry.subcluster)? {
                return Ok(false);
            }
            if self.span.is_empty() || geometry.cluster.aligned(self.span.start()) {
                return Ok(true);
            }
        }
    }

    /// Takes the block that `span` starts in, if it goes on as what came before it.
    fn join(&mut self, place: Place, host: Option<HostOffset>, block: BlockSize) -> Result<bool> {
        let (_, within) = block.split(self.span.start());
        let piece = self.span.truncate(block.bytes().saturating_sub(within));
        match &mut self.mapping {
            None => {
                self.host = host.map(|host| HostOffset(host.0.saturating_add(within)));
                // Data are named by their first byte, not by their block's.
                let place = match place {
                    Place::Data(host) => Place::Data(HostOffset(host.0.saturating_add(within))),
                    other => other,
                };
                self.mapping = Some(Mapping { place, len: piece.len() });
            }
            Some(mapping) => {
                let goes_on = match (mapping.place, place) {
                    (Place::Data(first), Place::Data(now)) => first.0.checked_add(mapping.len) == Some(now.0),
                    (Place::Zero, Place::Zero) | (Place::Absent, Place::Absent) => true,
                    _ => false,
                };
                let room_goes_on =
                    host.map(|now| now.0) == self.host.map(|first| first.0.saturating_add(mapping.len));
                if !goes_on || !room_goes_on {
                    return Ok(false);
                }
                mapping.len = mapping.len.saturating_add(piece.len());
            }
        }
        self.span = self.span.skip(piece.len());
        Ok(true)
    }

    fn check_data(&self, place: Place, subcluster: u32) -> Result<()> {
        let Place::Data(host) = place else { return Ok(()) };
        let geometry = &self.tables.rules.geometry;
        if host.0 >= self.data_size {
            // QEMU counts a subcluster behind the end as zeroes if its cluster starts inside.
            let within = u64::from(subcluster).wrapping_shl(geometry.subcluster.shift());
            let cluster = host.0.saturating_sub(within);
            if cluster >= self.data_size {
                return Err(Fault::DataPastEnd { host: cluster, file: self.data_size }.into());
            }
        }
        let guest = geometry.subcluster.floor(self.span.start());
        if self.tables.rules.data_file && guest != host.0 {
            return Err(Fault::DataFileOffset { guest, host: host.0 }.into());
        }
        Ok(())
    }
}
