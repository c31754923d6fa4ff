//! Writes a new image from its beginning to its end: what `convert -O qcow2` uses.
//!
//! Clusters come in the guest's order and are laid one behind the other. An L2 table is written when the guest's
//! offset leaves it, a refcount block when the file leaves the clusters that it counts: it stands in the first of
//! them. So memory holds the L1 and refcount tables and one block of each kind below them, whatever the size. The
//! header is written last.

use std::io::Read;
use std::sync::Arc;

use flate2::{Compress, Compression, FlushCompress, Status};
use zerocopy::IntoBytes;

use super::layout::{COMPRESSION_TYPE_AT, MAGIC, RawHeader, RawHeaderV3};
use super::options::{Choice, Packing};
use crate::block::{BlockSize, Disk, Span};
use crate::convert::{Pack, Piece, Sink};
use crate::error::{Common, Fault, Kind, Result};
use crate::limits::MIB;
use crate::registry::Plan;
use crate::wire::{index, len64, part_mut};

/// "The refcount of this cluster is exactly one."
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Incompatible feature bits.
const COMPRESSION_BIT: u64 = 1 << 3;
const EXTENDED_L2_BIT: u64 = 1 << 4;
/// Compatible feature bit.
const LAZY_BIT: u64 = 1;
/// All 32 subclusters of a cluster are allocated.
const ALL_ALLOCATED: u64 = 0xffff_ffff;
/// Bytes that are gathered before they are written: packed clusters are small.
const GATHER: usize = 1 << 20;
/// The file is made longer in steps of this.
const GROWTH: u64 = 64 * MIB;
/// QEMU inflates with a window of 4 KiB: 2^12 bytes.
const WINDOW_BITS: u8 = 12;
/// QEMU's limit on the L1 table, 32 MiB.
const L1_BYTES_MAX: u64 = 32 * MIB;

/// What keeps a new image from being written.
#[derive(Debug, thiserror::Error)]
enum SinkFault {
    /// The disk needs an L1 table beyond QEMU's limit.
    #[error("a disk of {size} bytes needs clusters larger than {cluster} bytes")]
    TooLarge {
        /// Virtual size in bytes.
        size: u64,
        /// Cluster size in bytes.
        cluster: u64,
    },
    /// Pieces came out of order or across a cluster's border.
    #[error("a piece at {at} came after {done}")]
    Order {
        /// Its offset.
        at: u64,
        /// What was done before it.
        done: u64,
    },
    /// The compressor failed.
    #[error("compressing a cluster failed")]
    Pack,
}

impl Fault for SinkFault {
    fn kind(&self) -> Kind {
        match self {
            Self::TooLarge { .. } => Kind::Invalid,
            Self::Order { .. } | Self::Pack => Kind::Io,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TooLarge { .. } => Some("-o cluster_size=2M allows the largest disks".into()),
            _ => None,
        }
    }
}

/// Takes the pieces of a disk into a new image.
#[derive(Debug)]
pub(super) struct Qcow2Sink {
    out: Output,
    choice: Choice,
    size: u64,
    compress: bool,
    l1: Vec<u64>,
    /// The L2 table being filled, and its place in L1.
    l2: Option<(usize, Vec<u64>)>,
    /// The guest's offset up to which all is done.
    done: u64,
    /// Where the next packed cluster goes: a byte in a cluster that others share.
    packed_at: Option<u64>,
}

impl Qcow2Sink {
    /// A new image in the empty, writable `file`.
    pub(super) fn new(file: Disk, plan: &Plan) -> Result<Self> {
        let choice = Choice::of(&plan.options)?;
        let cluster = choice.cluster;
        let l1_entries = plan.size.div_ceil(cluster.bytes().saturating_mul(l2_entries(&choice)).max(1));
        if l1_entries.saturating_mul(8) > L1_BYTES_MAX {
            return Err(SinkFault::TooLarge { size: plan.size, cluster: cluster.bytes() }.into());
        }
        let mut out = Output::new(file, cluster, choice.refcount_order);
        // The header's own cluster.
        out.allocate(1)?;
        Ok(Self {
            out,
            choice,
            size: plan.size,
            compress: plan.compress,
            // Even an empty disk has an L1 table somewhere.
            l1: vec![0; index(l1_entries.max(1))?],
            l2: None,
            done: 0,
            packed_at: None,
        })
    }

    /// Writes the L2 table of the guest's offsets that are done.
    fn end_l2(&mut self) -> Result<()> {
        let Some((number, table)) = self.l2.take() else { return Ok(()) };
        self.end_packed();
        let at = self.out.allocate(1)?;
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
        self.out.write(at, &bytes)?;
        if let Some(entry) = self.l1.get_mut(number) {
            *entry = at | COPIED;
        }
        Ok(())
    }

    /// Packed clusters that follow start in a cluster of their own.
    fn end_packed(&mut self) {
        self.packed_at = None;
    }

    /// Sets the L2 entry of the guest's cluster at `at`.
    fn map(&mut self, at: u64, entry: u64, bitmap: u64) -> Result<()> {
        let words = index(self.choice.cluster.bytes())? / 8;
        let per = l2_entries(&self.choice);
        let (cluster, _) = self.choice.cluster.split(at);
        let number = index(cluster.checked_div(per).unwrap_or(0))?;
        if self.l2.as_ref().is_none_or(|(n, _)| *n != number) {
            self.end_l2()?;
        }
        let (_, table) = self.l2.get_or_insert_with(|| (number, vec![0; words]));
        let slot = index(cluster.checked_rem(per).unwrap_or(0))?;
        if self.choice.extended_l2 {
            let pair = table.get_mut(slot.saturating_mul(2)..).and_then(|t| t.first_chunk_mut::<2>());
            if let Some(pair) = pair {
                *pair = [entry, bitmap];
            }
        } else if let Some(word) = table.get_mut(slot) {
            *word = entry;
        }
        Ok(())
    }

    fn in_order(&mut self, at: u64, len: u64) -> Result<()> {
        let end = Span::new(at, len)?.end();
        if at < self.done || !self.choice.cluster.aligned(at) || end > self.size {
            return Err(SinkFault::Order { at, done: self.done }.into());
        }
        self.done = end;
        Ok(())
    }

    /// Lays plain clusters one behind the other.
    fn data(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.in_order(at, len64(bytes.len()))?;
        self.end_packed();
        let size = index(self.choice.cluster.bytes())?;
        let mut guest = at;
        for cluster in bytes.chunks(size) {
            // The L2 table that is full goes before the next cluster.
            let place = {
                self.map(guest, 0, 0)?;
                self.out.allocate(1)?
            };
            self.map(guest, place | COPIED, ALL_ALLOCATED)?;
            self.out.write(place, cluster)?;
            guest = guest.saturating_add(len64(size));
        }
        Ok(())
    }

    /// Lays one packed cluster behind the last one, in clusters that packed ones share.
    fn packed(&mut self, at: u64, len: u64, bytes: &[u8]) -> Result<()> {
        self.in_order(at, len)?;
        self.map(at, 0, 0)?;
        let cluster = self.choice.cluster;
        let need = len64(bytes.len());
        let place = match self.packed_at.filter(|p| self.out.can_extend(*p, need)) {
            Some(place) => place,
            None => self.out.allocate_run(cluster.count(need))?,
        };
        let end = place.saturating_add(need);
        self.out.count_packed(place, end)?;
        self.out.write(place, bytes)?;
        self.packed_at = if cluster.aligned(end) { None } else { Some(end) };
        // "Compressed Clusters Descriptor": the offset, and the number of sectors behind its first one.
        let sectors = (end.saturating_sub(1) >> 9).saturating_sub(place >> 9);
        let shift = 62u32.saturating_sub(cluster.shift().saturating_sub(8));
        self.map(at, COMPRESSED | place | sectors.checked_shl(shift).unwrap_or(0), 0)
    }

    fn header(&self, l1_at: u64, table: Span) -> Result<Vec<u8>> {
        let choice = &self.choice;
        let raw = RawHeader {
            magic: MAGIC,
            version: choice.version.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: choice.cluster.shift().into(),
            size: self.size.into(),
            crypt_method: 0.into(),
            l1_size: u32::try_from(self.l1.len()).unwrap_or(u32::MAX).into(),
            l1_table_offset: l1_at.into(),
            refcount_table_offset: table.start().into(),
            refcount_table_clusters: u32::try_from(choice.cluster.count(table.len()))
                .unwrap_or(u32::MAX)
                .into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
        };
        let mut bytes = vec![0u8; index(choice.cluster.bytes())?];
        put(&mut bytes, 0, raw.as_bytes())?;
        if choice.version == 2 {
            return Ok(bytes);
        }
        let zstd = choice.packing == Packing::Zstd;
        let mut incompatible = if zstd { COMPRESSION_BIT } else { 0 };
        if choice.extended_l2 {
            incompatible |= EXTENDED_L2_BIT;
        }
        let v3 = RawHeaderV3 {
            incompatible_features: incompatible.into(),
            compatible_features: if choice.lazy_refcounts { LAZY_BIT } else { 0 }.into(),
            autoclear_features: 0.into(),
            refcount_order: choice.refcount_order.into(),
            header_length: 112.into(),
        };
        put(&mut bytes, size_of::<RawHeader>(), v3.as_bytes())?;
        put(&mut bytes, COMPRESSION_TYPE_AT, &[u8::from(zstd)])?;
        Ok(bytes)
    }
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) -> Result<()> {
    part_mut(bytes, at, what.len(), "qcow2 header")?.copy_from_slice(what);
    Ok(())
}

/// Clusters that one L2 table maps.
fn l2_entries(choice: &Choice) -> u64 {
    let words = choice.cluster.bytes() >> 3;
    if choice.extended_l2 { words >> 1 } else { words }
}

impl Sink for Qcow2Sink {
    fn block_size(&self) -> BlockSize {
        self.choice.cluster
    }

    fn pack(&self) -> Option<Arc<dyn Pack>> {
        let pack = ClusterPack { cluster: self.choice.cluster, packing: self.choice.packing };
        self.compress.then(|| -> Arc<dyn Pack> { Arc::new(pack) })
    }

    fn put(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Zero(_) => Ok(()),
            Piece::Data { at, bytes } => self.data(at, &bytes),
            Piece::Packed { at, len, bytes } => self.packed(at, len, &bytes),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.end_l2()?;
        let l1: Vec<u8> = self.l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        let l1_at = self.out.allocate_run(self.choice.cluster.count(len64(l1.len())))?;
        self.out.write(l1_at, &l1)?;
        let table = self.out.finish()?;
        let header = self.header(l1_at, table)?;
        self.out.file.write_at(0, &header)?;
        self.out.file.flush()
    }
}

/// The file, filled from its beginning to its end, with the counts of its clusters.
#[derive(Debug)]
struct Output {
    file: Disk,
    cluster: BlockSize,
    order: u32,
    /// The first cluster that is free.
    next: u64,
    /// Refcount blocks by the clusters they count: their offsets.
    blocks: Vec<u64>,
    /// Counts of the clusters of the last refcount block.
    counts: Vec<u64>,
    /// Bytes that are written together, and where they go.
    gathered: Vec<u8>,
    gathered_at: u64,
}

impl Output {
    fn new(file: Disk, cluster: BlockSize, order: u32) -> Self {
        Self {
            file,
            cluster,
            order,
            next: 0,
            blocks: Vec::new(),
            counts: Vec::new(),
            gathered: Vec::new(),
            gathered_at: 0,
        }
    }

    /// Clusters that one refcount block counts.
    fn per_block(&self) -> u64 {
        self.cluster.bytes().saturating_mul(8) >> (1u32 << self.order).trailing_zeros()
    }

    /// Takes `count` clusters that no refcount block stands between; returns the first one's offset.
    fn allocate_run(&mut self, count: u64) -> Result<u64> {
        loop {
            let per = self.per_block().max(1);
            let within = self.next.checked_rem(per).unwrap_or(0);
            let room = if within == 0 { 0 } else { per.saturating_sub(within) };
            // A run longer than a block can be continued only where the next block does not stand in the way.
            if within != 0 && count <= room {
                let at = self.cluster.start_of(self.next).ok_or(Common::Index(self.next))?;
                for _ in 0..count {
                    self.take()?;
                }
                return Ok(at);
            }
            if count >= per {
                return self.allocate_long(count);
            }
            // To the next block; what is skipped stays free.
            while self.next.checked_rem(per).unwrap_or(0) != 0 {
                self.skip()?;
            }
            self.begin_block()?;
        }
    }

    /// Takes more clusters in a row than one refcount block counts: the blocks stand in front of them all.
    fn allocate_long(&mut self, count: u64) -> Result<u64> {
        let per = self.per_block().max(2);
        while self.next.checked_rem(per).unwrap_or(0) != 0 {
            self.skip()?;
        }
        // `blocks` of them count themselves and the run behind them.
        let mut blocks = 1u64;
        while blocks.saturating_mul(per) < count.saturating_add(blocks) {
            blocks = blocks.saturating_add(1);
        }
        let first = self.next;
        self.end_block()?;
        let used = count.saturating_add(blocks);
        for number in 0..blocks {
            let at = self.cluster.start_of(first.saturating_add(number)).ok_or(Common::Index(first))?;
            self.blocks.push(at);
            let counted = used.saturating_sub(number.saturating_mul(per)).min(per);
            self.counts = vec![1; index(counted)?];
            if number.saturating_add(1) < blocks {
                self.write_counts(at)?;
                self.counts.clear();
            }
        }
        self.next = first.saturating_add(used);
        self.cluster.start_of(first.saturating_add(blocks)).ok_or_else(|| Common::Index(first).into())
    }

    /// Takes `count` clusters, as few as one.
    fn allocate(&mut self, count: u64) -> Result<u64> {
        if count == 1 && self.next.checked_rem(self.per_block().max(1)) == Some(0) && self.next != 0 {
            self.begin_block()?;
        }
        if self.next == 0 {
            // Cluster 0 is the header's: its refcount block comes second.
            self.counts.push(1);
            self.next = 1;
            let at = self.cluster.bytes();
            self.blocks.push(at);
            self.counts.push(1);
            self.next = 2;
            return Ok(0);
        }
        self.allocate_run(count)
    }

    /// Starts the refcount block that counts from the next cluster on, in that cluster.
    fn begin_block(&mut self) -> Result<()> {
        self.end_block()?;
        let at = self.cluster.start_of(self.next).ok_or(Common::Index(self.next))?;
        self.blocks.push(at);
        self.take()
    }

    fn take(&mut self) -> Result<()> {
        self.counts.push(1);
        self.next = self.next.checked_add(1).ok_or(Common::Index(self.next))?;
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        self.counts.push(0);
        self.next = self.next.checked_add(1).ok_or(Common::Index(self.next))?;
        Ok(())
    }

    /// Writes the refcount block that is complete.
    fn end_block(&mut self) -> Result<()> {
        if let Some(at) = self.blocks.last().copied() {
            self.write_counts(at)?;
        }
        self.counts.clear();
        Ok(())
    }

    fn write_counts(&mut self, at: u64) -> Result<()> {
        let bits = 1u32.checked_shl(self.order).unwrap_or(64);
        let mut bytes = vec![0u8; index(self.cluster.bytes())?];
        for (i, count) in self.counts.iter().enumerate() {
            if bits >= 8 {
                let width = usize::try_from(bits >> 3).unwrap_or(8);
                let from = 8usize.saturating_sub(width);
                let raw = count.to_be_bytes();
                put(&mut bytes, i.saturating_mul(width), raw.get(from..).unwrap_or_default())?;
            } else {
                // Below a byte the first count stands in the lowest bits.
                let per = usize::try_from(8u32.checked_div(bits).unwrap_or(1)).unwrap_or(1);
                let (byte, place) = (i.checked_div(per).unwrap_or(0), i.checked_rem(per).unwrap_or(0));
                let shift = u32::try_from(place).unwrap_or(0).saturating_mul(bits);
                let value = u8::try_from(*count).unwrap_or(0).checked_shl(shift).unwrap_or(0);
                if let Some(b) = bytes.get_mut(byte) {
                    *b |= value;
                }
            }
        }
        self.write_out(at, &bytes)
    }

    /// Whether a packed cluster of `need` bytes can stand at `place`, in and behind the last cluster taken.
    fn can_extend(&self, place: u64, need: u64) -> bool {
        let (cluster, _) = self.cluster.split(place);
        let (last, _) = self.cluster.split(place.saturating_add(need).saturating_sub(1));
        let per = self.per_block().max(1);
        let max = if self.order >= 6 { u64::MAX } else { (1u64 << (1u32 << self.order)).saturating_sub(1) };
        let slot = cluster.checked_rem(per).and_then(|s| usize::try_from(s).ok());
        let shared = slot.and_then(|s| self.counts.get(s)).copied().unwrap_or(max);
        // The clusters behind it must follow at once, in the same refcount block.
        let together = cluster.checked_div(per) == last.checked_div(per);
        cluster.checked_add(1) == Some(self.next) && together && shared < max
    }

    /// Counts a packed cluster in every cluster that it touches; takes those that are new.
    fn count_packed(&mut self, place: u64, end: u64) -> Result<()> {
        let (first, within) = self.cluster.split(place);
        let (last, _) = self.cluster.split(end.saturating_sub(1));
        let per = self.per_block().max(1);
        while self.next <= last {
            self.take()?;
        }
        // A cluster that it begins in the middle of has others already.
        if within != 0
            && let Some(count) = self.counts.get_mut(index(first.checked_rem(per).unwrap_or(0))?)
        {
            *count = count.saturating_add(1);
        }
        Ok(())
    }

    /// Writes bytes; those that follow each other go together.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = self.gathered_at.saturating_add(len64(self.gathered.len()));
        if at != end || self.gathered.len().saturating_add(bytes.len()) > GATHER {
            self.write_gathered()?;
            self.gathered_at = at;
        }
        if bytes.len() >= GATHER {
            self.gathered_at = at.saturating_add(len64(bytes.len()));
            return self.write_out(at, bytes);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn write_gathered(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.gathered);
        if !bytes.is_empty() {
            self.write_out(self.gathered_at, &bytes)?;
        }
        self.gathered_at = self.gathered_at.saturating_add(len64(bytes.len()));
        self.gathered = bytes;
        self.gathered.clear();
        Ok(())
    }

    fn write_out(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let end = Span::new(at, len64(bytes.len()))?.end();
        let size = self.file.size();
        if end > size {
            self.file.resize(end.max(size.saturating_add(GROWTH)))?;
        }
        self.file.write_at(at, bytes)
    }

    /// Writes the refcount table and what is left, and cuts the file to its size. Returns where the table is.
    fn finish(&mut self) -> Result<Span> {
        self.write_gathered()?;
        // The table counts the blocks that its own clusters add.
        let bytes_for = |blocks: usize| len64(blocks).saturating_mul(8);
        let mut clusters = self.cluster.count(bytes_for(self.blocks.len()).max(8));
        let mut more = self.blocks.len();
        for _ in 0..8 {
            let per = self.per_block().max(1);
            let added = index(clusters.checked_div(per).unwrap_or(0))?.saturating_add(2);
            more = self.blocks.len().saturating_add(added);
            clusters = self.cluster.count(bytes_for(more));
        }
        let at = self.allocate_run(clusters)?;
        if self.blocks.len() > more {
            return Err(Common::Index(len64(self.blocks.len())).into());
        }
        let table: Vec<u8> = self.blocks.iter().flat_map(|b| b.to_be_bytes()).collect();
        let len = clusters.saturating_mul(self.cluster.bytes());
        let mut bytes = vec![0u8; index(len)?];
        put(&mut bytes, 0, &table)?;
        self.write_out(at, &bytes)?;
        self.end_block()?;
        let end = self.cluster.start_of(self.next).ok_or(Common::Index(self.next))?;
        self.file.resize(end)?;
        Span::new(at, len)
    }
}

/// Compresses clusters.
#[derive(Debug)]
struct ClusterPack {
    cluster: BlockSize,
    packing: Packing,
}

impl Pack for ClusterPack {
    fn unit(&self) -> BlockSize {
        self.cluster
    }

    fn pack(&self, at: u64, bytes: &[u8]) -> Result<Piece> {
        let size = index(self.cluster.bytes())?;
        let len = len64(bytes.len());
        let mut whole = Vec::new();
        // The disk's last cluster is packed with zeroes behind its end.
        let input = if bytes.len() == size {
            bytes
        } else {
            whole.extend_from_slice(bytes);
            whole.resize(size, 0);
            &whole
        };
        let packed = match self.packing {
            Packing::Zlib => deflate(input)?,
            Packing::Zstd => zstandard(input)?,
        };
        Ok(match packed {
            Some(packed) => Piece::Packed { at, len, bytes: packed },
            None => Piece::Data { at, bytes: bytes.to_vec() },
        })
    }
}

/// Raw deflate with QEMU's window; none if it does not get smaller.
fn deflate(input: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut out = Vec::with_capacity(input.len());
    let mut packer = Compress::new_with_window_bits(Compression::default(), false, WINDOW_BITS);
    let status = packer.compress_vec(input, &mut out, FlushCompress::Finish).map_err(|_| SinkFault::Pack)?;
    // Whatever does not fit into less than a cluster is better left plain.
    Ok((status == Status::StreamEnd && out.len() < input.len()).then_some(out))
}

/// A zstd frame; none if it does not get smaller.
fn zstandard(input: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut out = Vec::with_capacity(input.len());
    let mut packer = zstd::stream::read::Encoder::with_buffer(input, 3).map_err(|_| SinkFault::Pack)?;
    let limit = len64(input.len());
    packer.by_ref().take(limit).read_to_end(&mut out)?;
    Ok((out.len() < input.len()).then_some(out))
}
