//! L1 and L2: from an offset in the disk to a place in the file.

use std::sync::Arc;

use zerocopy::big_endian::U64;

use super::entry::{Entry, EntryRules, RawEntry};
use super::fault::Fault;
use super::header::{Header, Incompatible, L1_BYTES_MAX};
use super::layout::OFFSET_MASK;
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::{KIB, MIB};
use crate::mapped::{HostOffset, Mapping, Place, Slices};
use crate::wire::{index, table};

/// L2 tables are read in pieces: an edit touches a few places of a table of up to 2 MiB.
const SLICE_BYTES: u64 = 16 * KIB;
/// Bytes of L2 tables kept: with clusters of 64 KiB they map 32 GiB.
const CACHE_BYTES: u64 = 4 * MIB;

/// A piece of an L2 table, as it lies on disk.
pub(super) type Slice = [U64];

/// The active L1 table and the L2 tables behind it.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) rules: EntryRules,
    /// Virtual size in bytes.
    pub(super) size: u64,
    /// The L1 table with its flags.
    pub(super) l1: Vec<u64>,
    slices: Slices<Slice>,
    slice: BlockSize,
}

impl Tables {
    /// Reads the L1 table.
    pub(super) fn read(file: &Disk, header: &Header) -> Result<Self> {
        let raw: Vec<U64> = table(file, header.l1.at, header.l1.entries, L1_BYTES_MAX, "L1 table")?;
        let geometry = header.geometry;
        let slice_bytes = SLICE_BYTES.min(geometry.cluster.bytes());
        let slice = BlockSize::from_bytes(slice_bytes).ok_or(Common::Index(slice_bytes))?;
        Ok(Self {
            rules: EntryRules {
                geometry,
                version2: header.version == 2,
                data_file: header.incompatible.contains(Incompatible::DATA_FILE),
            },
            size: header.size,
            l1: raw.into_iter().map(U64::get).collect(),
            slices: Slices::new(index(CACHE_BYTES >> slice.shift())?),
            slice,
        })
    }

    /// Turns to another L1 table.
    pub(super) fn turn_to(&mut self, l1: Vec<u64>, size: u64) -> Result<()> {
        self.l1 = l1;
        self.size = size;
        self.slices.clear()
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

    /// Where the first part of `span` lives; looks at one slice of one L2 table, or passes over empty L1 entries.
    pub(super) fn lookup(&self, file: &Disk, data_size: u64, span: Span) -> Result<Mapping> {
        let geometry = &self.rules.geometry;
        let (number, within) = geometry.l2_reach.split(span.start());
        let Some(l2) = self.l2_at(number)? else {
            return Ok(Mapping { place: Place::Absent, len: self.unmapped(span)? });
        };
        let place = || format!("L2 table {number} at {:#x}", l2.0);
        let (cluster, _) = geometry.cluster.split(within);
        let (slice_number, first) = self.slice_of(cluster)?;
        let slice = self.slice(file, l2, slice_number).within(place)?;
        let mut walk = Walk { tables: self, slice: &slice, next: first, span, data_size, mapping: None };
        walk.run().within(place)
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

    /// The slice that holds the entry of cluster `number` of an L2 table, and the entry's place in it.
    fn slice_of(&self, number: u64) -> Result<(u64, usize)> {
        let shift =
            self.rules.geometry.cluster.shift().saturating_sub(self.rules.geometry.l2_entries.shift());
        let (slice, within) = self.slice.split(number.wrapping_shl(shift));
        Ok((slice, index(within >> shift)?))
    }

    /// A slice, from the cache if it is there.
    fn slice(&self, file: &Disk, l2: HostOffset, number: u64) -> Result<Arc<Slice>> {
        let at = self.slice.start_of(number).and_then(|n| l2.0.checked_add(n)).ok_or(Common::Index(l2.0))?;
        let len = self.slice.bytes();
        self.slices.get(at, || {
            if at.saturating_add(len) > file.size() {
                return Err(Fault::OutsideFile { what: "L2 table", at, len, file: file.size() }.into());
            }
            Ok(table::<U64>(file, at, len / 8, SLICE_BYTES, "L2 table")?.into())
        })
    }

    /// Entry `number` of a slice, if it has that many.
    fn entry(&self, slice: &Slice, number: usize) -> Result<Option<Entry>> {
        let raw = if self.rules.geometry.extended() {
            let at = number.saturating_mul(2);
            let (word, bitmap) = (slice.get(at), slice.get(at.saturating_add(1)));
            word.zip(bitmap).map(|(w, b)| RawEntry { word: w.get(), bitmap: b.get() })
        } else {
            slice.get(number).map(|w| RawEntry { word: w.get(), bitmap: 0 })
        };
        raw.map(|raw| self.rules.decode(raw)).transpose()
    }
}

/// Joins what neighbours in one slice say.
struct Walk<'a> {
    tables: &'a Tables,
    slice: &'a Slice,
    /// The entry to look at next.
    next: usize,
    /// What is still asked about.
    span: Span,
    /// Size of the disk that data lie on.
    data_size: u64,
    mapping: Option<Mapping>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<Mapping> {
        while !self.span.is_empty() {
            match self.cluster() {
                Ok(true) => self.next = self.next.saturating_add(1),
                Ok(false) => break,
                // What lies before a bad entry can be read all the same.
                Err(_) if self.mapping.is_some() => break,
                Err(e) => return Err(e),
            }
        }
        // The span is not empty and its first entry lies in the slice, so there is a mapping.
        self.mapping.ok_or_else(|| Fault::Cut("L2 table").into())
    }

    /// Takes in the next entry; says whether the one behind it is worth a look.
    fn cluster(&mut self) -> Result<bool> {
        match self.tables.entry(self.slice, self.next)? {
            None => Ok(false),
            Some(Entry::Packed(packed)) => {
                self.join(Place::Packed(packed), self.tables.rules.geometry.cluster)
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
            self.check_data(place, number)?;
            if !self.join(place, geometry.subcluster)? {
                return Ok(false);
            }
            if self.span.is_empty() || geometry.cluster.aligned(self.span.start()) {
                return Ok(true);
            }
        }
    }

    /// Takes the block that `span` starts in, if it goes on as what came before it.
    fn join(&mut self, place: Place, block: BlockSize) -> Result<bool> {
        let (_, within) = block.split(self.span.start());
        let piece = self.span.truncate(block.bytes().saturating_sub(within));
        match &mut self.mapping {
            None => {
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
                if !goes_on {
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
