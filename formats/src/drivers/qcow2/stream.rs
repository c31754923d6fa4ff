//! Writes a new image from beginning to end: data as they come, an L2 table before what it maps, the counts and
//! the header last of all. Everything lies where QEMU puts it: header, refcount table, its first block, L1 table, data.

use std::sync::Arc;

use super::create::{Design, Preallocation};
use super::entry::{EntryRules, RawEntry};
use super::fault::Fault;
use super::header::TablePlace;
use super::l2::L2;
use super::layout::{COPIED, READS_ZERO};
use super::pack::ClusterPack;
use super::refcount::{Clusters, Refcounts};
use crate::block::{BlockSize, Disk, Span};
use crate::convert::{Pack, Piece, Sink};
use crate::error::{Common, Result};
use crate::limits::{KIB, MIB};
use crate::wire::{index, len64};

/// Where QEMU puts the refcount table of a new image.
const TABLE_CLUSTER: u64 = 1;
/// Bytes by which the file grows ahead of what is written.
const GROW_BYTES: u64 = 16 * MIB;
/// Compressed bytes that are gathered before they are written.
const GATHERED_MAX: usize = 1 << 20;
/// Zeroes that are written at a time where the format cannot say zero.
const ZERO_PIECE: u64 = 256 * KIB;

/// A new image under way.
#[derive(Debug)]
pub(super) struct Stream {
    file: Disk,
    /// The external data file.
    data: Option<Disk>,
    design: Design,
    rules: EntryRules,
    counts: Refcounts,
    /// The first host cluster that is not in use yet.
    next: u64,
    l1: Vec<u64>,
    l1_at: u64,
    /// The L2 table at hand, and its number.
    l2: L2,
    number: u64,
    /// Where it goes, once something is in it.
    l2_at: Option<u64>,
    /// Compressed bytes that are not written yet, and where they go.
    gathered: Vec<u8>,
    gathered_at: u64,
    /// The packer, if the data shall be compressed.
    pack: Option<Arc<ClusterPack>>,
    /// Up to here the disk is in the image.
    done: u64,
}

impl Stream {
    /// Begins an image in a file that is emptied first.
    pub(super) fn new(file: &Disk, data: Option<&Disk>, design: Design, compress: bool) -> Result<Self> {
        let data = data.filter(|_| design.data_file.is_some()).cloned();
        for file in [Some(file), data.as_ref()].into_iter().flatten().filter(|file| file.caps().resize) {
            file.resize(0)?;
        }
        if let Some(data) = data.as_ref().filter(|data| data.caps().resize) {
            data.resize(design.size)?;
        }
        let geometry = design.geometry;
        let rules = EntryRules { geometry, version2: design.version == 2, data_file: data.is_some() };
        let pack =
            compress.then(|| Arc::new(ClusterPack::new(geometry.cluster, design.compression, design.level)));
        let l1 = vec![0; index(geometry.l1_entries(design.size))?];
        let mut new = Self {
            file: file.clone(),
            data,
            rules,
            counts: Refcounts::empty(file, &geometry)?,
            next: 0,
            l1_at: 0,
            l2: L2::read(file, rules, None)?,
            number: 0,
            l2_at: None,
            gathered: Vec::new(),
            gathered_at: 0,
            pack,
            done: 0,
            design,
            l1,
        };
        // The header is at 0, and the refcount table behind it if it stays that short: both are set aside before the
        // block that counts them.
        new.next = TABLE_CLUSTER.saturating_add(1);
        new.grow()?;
        let l1_bytes = len64(new.l1.len()).saturating_mul(8);
        let run = new.take(geometry.cluster.count(l1_bytes))?;
        new.counts.set(0, 1)?;
        new.counts.set(TABLE_CLUSTER, 1)?;
        new.l1_at = if run.count == 0 { 0 } else { new.offset(run.first)? };
        Ok(new)
    }

    fn cluster(&self) -> BlockSize {
        self.rules.geometry.cluster
    }

    fn offset(&self, cluster: u64) -> Result<u64> {
        Ok(self.cluster().start_of(cluster).ok_or(Common::Index(cluster))?)
    }

    /// The next `count` clusters; their counts are one.
    fn take(&mut self, count: u64) -> Result<Clusters> {
        while let Some(number) = self.missing_block(count)? {
            // The block that counts a cluster may lie in it.
            self.counts.add_block(number, self.next)?;
            let at = self.next;
            self.next = at.saturating_add(1);
            self.grow()?;
            self.counts.set(at, 1)?;
        }
        let run = Clusters { first: self.next, count };
        self.next = run.end();
        self.grow()?;
        for cluster in run.numbers() {
            self.counts.set(cluster, 1)?;
        }
        Ok(run)
    }

    /// The first block that is missing to count the next `count` clusters.
    fn missing_block(&mut self, count: u64) -> Result<Option<u64>> {
        let per_block = self.counts.per_block();
        // Cluster 0 comes first and is counted with the first of all.
        let at_start = self.next <= TABLE_CLUSTER.saturating_add(1);
        let first = if at_start { 0 } else { per_block.split(self.next).0 };
        let (last, _) = per_block.split(self.next.saturating_add(count).saturating_sub(1));
        for number in first..=last {
            if self.counts.block(number)?.is_none() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn grow(&self) -> Result<()> {
        let end = self.offset(self.next)?;
        if end > self.file.size() {
            self.file.resize(end.saturating_add(GROW_BYTES))?;
        }
        Ok(())
    }

    /// Sets the entry of the cluster at `at` of the disk.
    fn map(&mut self, at: u64, raw: RawEntry) -> Result<()> {
        let (_, within) = self.rules.geometry.l2_reach.split(at);
        self.begin_l2(at)?;
        let (slot, _) = self.cluster().split(within);
        self.l2.set(index(slot)?, raw)
    }

    /// Sees to it that the L2 table at hand is the one of the cluster at `at` of the disk. It lies before what it maps
    /// first, as in QEMU's images.
    fn begin_l2(&mut self, at: u64) -> Result<()> {
        let (number, _) = self.rules.geometry.l2_reach.split(at);
        if number != self.number {
            self.end_l2()?;
            self.number = number;
        }
        if self.l2_at.is_none() {
            let cluster = self.take(1)?.first;
            self.l2_at = Some(self.offset(cluster)?);
        }
        Ok(())
    }

    /// Writes the L2 table at hand, if there is one.
    fn end_l2(&mut self) -> Result<()> {
        let Some(at) = self.l2_at.take() else { return Ok(()) };
        self.file.write_at(at, self.l2.bytes())?;
        *self.l1.get_mut(index(self.number)?).ok_or(Common::Index(self.number))? = at | COPIED;
        self.l2 = L2::read(&self.file, self.rules, None)?;
        Ok(())
    }

    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.in_order(at, len64(bytes.len()))?;
        if let Some(data) = &self.data {
            data.write_at(at, bytes)?;
            return self.map_data(at, self.cluster().count(len64(bytes.len())), at);
        }
        self.begin_l2(at)?;
        let run = self.take(self.cluster().count(len64(bytes.len())))?;
        let start = self.offset(run.first)?;
        self.file.write_at(start, bytes)?;
        self.map_data(at, run.count, start)
    }

    /// Lets `count` clusters from `guest` on lie at `host`.
    fn map_data(&mut self, guest: u64, count: u64, host: u64) -> Result<()> {
        let bitmap = if self.rules.geometry.extended() { u64::from(u32::MAX) } else { 0 };
        self.map_as(guest, count, host, bitmap)
    }

    fn map_as(&mut self, guest: u64, count: u64, host: u64, bitmap: u64) -> Result<()> {
        for number in 0..count {
            let within = self.offset(number)?;
            let word = host.saturating_add(within) | COPIED;
            self.map(guest.saturating_add(within), RawEntry { word, bitmap })?;
        }
        Ok(())
    }

    /// Allocates the whole disk, as far as the design asks for it.
    pub(super) fn preallocate(&mut self) -> Result<()> {
        if self.design.preallocation == Preallocation::Off {
            return Ok(());
        }
        let mut rest = Span::first(self.design.size);
        while !rest.is_empty() {
            let piece = rest.truncate(GROW_BYTES.max(self.cluster().bytes()));
            let count = self.cluster().count(piece.len());
            let place = if self.data.is_some() {
                piece
            } else {
                self.begin_l2(piece.start())?;
                let run = self.take(count)?;
                Span::new(self.offset(run.first)?, self.offset(run.count)?)?
            };
            self.occupy(place)?;
            // With extended L2 the clusters have their places, and what shows is what showed before.
            self.map_as(piece.start(), count, place.start(), 0)?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    }

    /// Makes sure that the file has space for what lies in `span`.
    fn occupy(&self, span: Span) -> Result<()> {
        let file = self.data.as_ref().unwrap_or(&self.file);
        match self.design.preallocation {
            Preallocation::Off | Preallocation::Metadata => return Ok(()),
            Preallocation::Falloc if file.occupy(span)? => return Ok(()),
            Preallocation::Falloc | Preallocation::Full => {}
        }
        let mut rest = span;
        while !rest.is_empty() {
            let piece = rest.truncate(MIB);
            file.write_at(piece.start(), &vec![0; index(piece.len())?])?;
            rest = rest.skip(piece.len());
        }
        Ok(())
    }

    /// Says zero where something would show through; elsewhere nothing is zero already.
    fn zero(&mut self, span: Span) -> Result<()> {
        if self.design.backing.is_none() {
            return Ok(());
        }
        let mut rest = span;
        while !rest.is_empty() {
            if self.rules.version2 {
                let piece = rest.truncate(ZERO_PIECE.max(self.cluster().bytes()));
                self.data(piece.start(), &vec![0; index(piece.len())?])?;
                rest = rest.skip(piece.len());
                continue;
            }
            let zero = if self.rules.geometry.extended() {
                RawEntry { word: 0, bitmap: u64::from(u32::MAX) << 32 }
            } else {
                RawEntry { word: READS_ZERO, bitmap: 0 }
            };
            self.map(rest.start(), zero)?;
            rest = rest.skip(self.cluster().bytes());
        }
        Ok(())
    }

    fn packed(&mut self, at: u64, len: u64, bytes: &[u8]) -> Result<()> {
        self.in_order(at, len)?;
        self.begin_l2(at)?;
        let host = self.place_packed(len64(bytes.len()))?;
        let word = self.rules.packed_word(host, len64(bytes.len()))?;
        if host != self.gathered_at.saturating_add(len64(self.gathered.len()))
            || self.gathered.len() > GATHERED_MAX
        {
            self.write_gathered()?;
            self.gathered_at = host;
        }
        self.gathered.extend_from_slice(bytes);
        self.map(at, RawEntry { word, bitmap: 0 })
    }

    /// Room for `len` compressed bytes: right behind the last ones if that is possible.
    fn place_packed(&mut self, len: u64) -> Result<u64> {
        let tail = self.gathered_at.saturating_add(len64(self.gathered.len()));
        let (shared, within) = self.cluster().split(tail);
        let more = self.cluster().count(within.saturating_add(len)).saturating_sub(1);
        // The cluster that the last ones end in must be the last in use, and its count must not be full.
        let fits = within != 0
            && shared.saturating_add(1) == self.next
            && self.counts.get(shared)? < self.counts.most()
            && (more == 0 || self.missing_block(more)?.is_none());
        if !fits {
            let run = self.take(self.cluster().count(len))?;
            return self.offset(run.first);
        }
        let count = self.counts.get(shared)?.saturating_add(1);
        self.counts.set(shared, count)?;
        if more > 0 {
            self.take(more)?;
        }
        Ok(tail)
    }

    fn write_gathered(&mut self) -> Result<()> {
        self.file.write_at(self.gathered_at, &self.gathered)?;
        self.gathered_at = self.gathered_at.saturating_add(len64(self.gathered.len()));
        self.gathered.clear();
        Ok(())
    }

    /// Pieces come in order, each at the beginning of a cluster.
    fn in_order(&mut self, at: u64, len: u64) -> Result<()> {
        if at < self.done || !self.cluster().aligned(at) {
            return Err(Fault::Order { at, written: self.done }.into());
        }
        self.done = at.saturating_add(len);
        Ok(())
    }

    fn place_table(&mut self) -> Result<TablePlace> {
        let per_cluster = self.cluster().bytes() / 8;
        if self.counts.table_entries() <= per_cluster {
            return Ok(TablePlace { at: self.offset(TABLE_CLUSTER)?, entries: per_cluster });
        }
        self.counts.set(TABLE_CLUSTER, 0)?;
        loop {
            let clusters = self.counts.table_entries().div_ceil(per_cluster);
            let run = self.take(clusters)?;
            let entries = clusters.saturating_mul(per_cluster);
            if self.counts.table_entries() <= entries {
                return Ok(TablePlace { at: self.offset(run.first)?, entries });
            }
            // Counting the table took a block that it has no room for.
            for cluster in run.numbers() {
                self.counts.set(cluster, 0)?;
            }
        }
    }

    /// Writes all that is left; the file is an image from then on.
    pub(super) fn complete(mut self) -> Result<()> {
        self.end_l2()?;
        self.write_gathered()?;
        let l1: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file.write_at(self.l1_at, &l1)?;
        let table = self.place_table()?;
        self.counts.store_table(table)?;
        self.counts.store()?;
        let l1 = TablePlace { at: self.l1_at, entries: len64(self.l1.len()) };
        self.file.write_at(0, &self.design.header(l1, table)?)?;
        if self.file.caps().resize {
            self.file.resize(self.offset(self.next)?)?;
        }
        self.data.as_ref().map_or(Ok(()), Disk::flush)?;
        self.file.flush()
    }
}

impl Sink for Stream {
    fn block_size(&self) -> BlockSize {
        self.cluster()
    }

    fn pack(&self) -> Option<Arc<dyn Pack>> {
        let pack: Arc<dyn Pack> = self.pack.clone()?;
        Some(pack)
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Zero(span) => self.zero(span),
            Piece::Data { at, bytes } => self.data(at, &bytes),
            Piece::Packed { at, len, bytes } => self.packed(at, len, &bytes),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.complete()
    }
}
