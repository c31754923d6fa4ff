//! Reference counts: who uses which host cluster.

use std::collections::{BTreeSet, HashMap};

use zerocopy::big_endian::U64;

use super::fault::Fault;
use super::header::{Geometry, Header, REFCOUNT_TABLE_BYTES_MAX, TablePlace};
use super::layout::REFCOUNT_OFFSET_MASK;
use crate::block::{BlockSize, Disk};
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::wire::{bytes, index, len64, part_mut, table};

/// Bytes of refcount blocks kept; past that they are written and forgotten.
const KEPT_BYTES: u64 = 8 * MIB;

/// Host clusters in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clusters {
    /// Number of the first one: its offset divided by the cluster size.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

impl Clusters {
    /// Those that hold the `len` bytes at `at`.
    pub(super) fn of(cluster: BlockSize, at: u64, len: u64) -> Self {
        let (first, within) = cluster.split(at);
        Self { first, count: cluster.count(within.saturating_add(len)) }
    }

    /// The number behind the last one.
    pub(super) const fn end(self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// All numbers.
    pub(super) fn numbers(self) -> std::ops::Range<u64> {
        self.first..self.end()
    }
}

/// Adds to a list of runs, joining the new one with the last if they touch.
pub(super) fn push(list: &mut Vec<Clusters>, run: Clusters) {
    match list.last_mut() {
        Some(last) if last.end() == run.first => last.count = last.count.saturating_add(run.count),
        _ => list.push(run),
    }
}

/// The refcount table, and those refcount blocks that were looked at.
#[derive(Debug)]
pub(super) struct Refcounts {
    file: Disk,
    cluster: BlockSize,
    order: u32,
    /// Counts in one block.
    per_block: BlockSize,
    /// Offset of each block; 0 means that there is none.
    table: Vec<u64>,
    /// There are blocks that the table on disk does not name.
    table_changed: bool,
    /// Their numbers.
    new_blocks: BTreeSet<u64>,
    blocks: HashMap<u64, Block>,
    /// Bytes of blocks read so far.
    loaded: u64,
    /// Whether a block was written.
    stored: bool,
}

#[derive(Debug)]
struct Block {
    counts: Counts,
    dirty: bool,
}

impl Refcounts {
    /// Reads the table.
    pub(super) fn read(file: &Disk, header: &Header) -> Result<Self> {
        let place = header.refcount_table;
        let what = "refcount table";
        let raw: Vec<U64> = table(file, place.at, place.entries, REFCOUNT_TABLE_BYTES_MAX, what)?;
        let mut all = Self::empty(file, &header.geometry)?;
        all.table = raw.into_iter().map(|e| e.get() & REFCOUNT_OFFSET_MASK).collect();
        all.table_changed = false;
        Ok(all)
    }

    /// All counts are zero, and no table is there yet.
    pub(super) fn empty(file: &Disk, geometry: &Geometry) -> Result<Self> {
        let (cluster, order) = (geometry.cluster, geometry.refcount_order);
        let bits = cluster.shift().saturating_add(3).saturating_sub(order);
        Ok(Self {
            file: file.clone(),
            cluster,
            order,
            per_block: BlockSize::from_shift(bits).ok_or(Fault::RefcountOrder(order))?,
            table: Vec::new(),
            table_changed: true,
            new_blocks: BTreeSet::new(),
            blocks: HashMap::new(),
            loaded: 0,
            stored: false,
        })
    }

    /// Counts in one block.
    pub(super) fn per_block(&self) -> BlockSize {
        self.per_block
    }

    /// Bytes of blocks read so far.
    pub(super) fn loaded(&self) -> u64 {
        self.loaded
    }

    /// Whether any block was written.
    pub(super) fn stored(&self) -> bool {
        self.stored
    }

    /// Whether the table on disk is not good any more.
    pub(super) fn table_changed(&self) -> bool {
        self.table_changed
    }

    /// Entries of the table, up to the last that is used.
    pub(super) fn table_entries(&self) -> u64 {
        let used = self.table.iter().rposition(|at| *at != 0).map_or(0, |last| last.saturating_add(1));
        len64(used)
    }

    /// Where the blocks lie.
    pub(super) fn block_places(&self) -> impl Iterator<Item = u64> {
        self.table.iter().copied().filter(|at| *at != 0)
    }

    /// The largest count that fits.
    pub(super) fn most(&self) -> u64 {
        u64::MAX.wrapping_shr(64u32.saturating_sub(1u32.wrapping_shl(self.order)))
    }

    /// The counts of block `number`, if it is there.
    pub(super) fn block(&mut self, number: u64) -> Result<Option<&Counts>> {
        Ok(self.load(number)?.map(|block| &block.counts))
    }

    /// The count of a host cluster.
    pub(super) fn get(&mut self, cluster: u64) -> Result<u64> {
        let (number, within) = self.per_block.split(cluster);
        let within = index(within)?;
        Ok(self.load(number)?.map_or(0, |block| block.counts.get(within)))
    }

    /// The count of a host cluster, and the first cluster behind it that may have another.
    pub(super) fn run(&mut self, cluster: u64) -> Result<(u64, u64)> {
        let (number, within) = self.per_block.split(cluster);
        let (within, per_block) = (index(within)?, self.per_block);
        let block_end = per_block.start_of(number.saturating_add(1)).unwrap_or(u64::MAX);
        let Some(block) = self.load(number)? else {
            let used = self.table.get(index(number)?..).unwrap_or_default();
            let more = used.iter().position(|at| *at != 0);
            let next = more.map(|more| number.saturating_add(len64(more)));
            return Ok((0, next.and_then(|next| per_block.start_of(next)).unwrap_or(u64::MAX)));
        };
        let same = block.counts.same_from(within);
        Ok((block.counts.get(within), block_end.min(cluster.saturating_add(len64(same)))))
    }

    /// Sets the count of a host cluster, whose block must be there.
    pub(super) fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        let (number, within) = self.per_block.split(cluster);
        let (within, most) = (index(within)?, self.most());
        if count > most {
            return Err(Fault::CountTooLarge { cluster, most }.into());
        }
        let block = self.load(number)?.ok_or(Fault::NoRefcountBlock { cluster })?;
        block.counts.set(within, count);
        block.dirty = true;
        Ok(())
    }

    /// Takes one off the count of a host cluster; gives what is left.
    pub(super) fn lower(&mut self, cluster: u64) -> Result<u64> {
        let left = self.get(cluster)?.checked_sub(1).ok_or(Fault::CountZero { cluster })?;
        self.set(cluster, left)?;
        Ok(left)
    }

    /// Puts a new block of zeroes at host cluster `at`.
    pub(super) fn add_block(&mut self, number: u64, at: u64) -> Result<()> {
        let most = REFCOUNT_TABLE_BYTES_MAX / 8;
        if number >= most {
            return Err(Fault::RefcountTableFull { most }.into());
        }
        let slot = index(number)?;
        if self.table.len() <= slot {
            self.table.resize(slot.saturating_add(1), 0);
        }
        let at = self.cluster.start_of(at).ok_or(Common::Index(at))?;
        if let Some(entry) = self.table.get_mut(slot) {
            *entry = at;
        }
        self.table_changed = true;
        self.new_blocks.insert(number);
        let counts = Counts { bytes: vec![0; index(self.cluster.bytes())?], order: self.order };
        self.make_room()?;
        self.blocks.insert(number, Block { counts, dirty: true });
        Ok(())
    }

    /// Writes the table to its new place.
    pub(super) fn store_table(&mut self, place: TablePlace) -> Result<()> {
        let len = index(place.entries)?;
        let mut raw = vec![0u8; len.saturating_mul(8)];
        for (to, from) in raw.as_chunks_mut::<8>().0.iter_mut().zip(&self.table) {
            *to = from.to_be_bytes();
        }
        self.file.write_at(place.at, &raw)?;
        self.table.resize(len, 0);
        self.table_changed = false;
        self.new_blocks.clear();
        Ok(())
    }

    /// Writes the entries of new blocks into the table on disk, which has room for them.
    pub(super) fn store_entries(&mut self, place: TablePlace) -> Result<()> {
        for number in &self.new_blocks {
            let entry = self.table.get(index(*number)?).copied().unwrap_or_default();
            let at = place.at.saturating_add(number.saturating_mul(8));
            self.file.write_at(at, &entry.to_be_bytes())?;
        }
        self.table_changed = false;
        self.new_blocks.clear();
        Ok(())
    }

    /// Writes every block that was changed.
    pub(super) fn store(&mut self) -> Result<()> {
        let mut dirty: Vec<(u64, &mut Block)> = Vec::new();
        for (number, block) in &mut self.blocks {
            if block.dirty {
                let at = self.table.get(index(*number)?).copied().unwrap_or_default();
                dirty.push((at, block));
            }
        }
        dirty.sort_by_key(|(at, _)| *at);
        for (at, block) in dirty {
            self.stored = true;
            self.file.write_at(at, &block.counts.bytes)?;
            block.dirty = false;
        }
        Ok(())
    }

    fn load(&mut self, number: u64) -> Result<Option<&mut Block>> {
        if !self.blocks.contains_key(&number) {
            let at =
                usize::try_from(number).ok().and_then(|n| self.table.get(n)).copied().unwrap_or_default();
            if at == 0 {
                return Ok(None);
            }
            let counts = self.read_block(at).within(|| format!("refcount block {number}"))?;
            self.make_room()?;
            self.blocks.insert(number, Block { counts, dirty: false });
        }
        Ok(self.blocks.get_mut(&number))
    }

    fn read_block(&mut self, at: u64) -> Result<Counts> {
        let (len, file) = (self.cluster.bytes(), self.file.size());
        if !self.cluster.aligned(at) {
            return Err(Fault::Unaligned { what: "refcount block", at, cluster: len }.into());
        }
        if at.checked_add(len).is_none_or(|end| end > file) {
            return Err(Fault::OutsideFile { what: "refcount block", at, len, file }.into());
        }
        self.loaded = self.loaded.saturating_add(len);
        Ok(Counts { bytes: bytes(&self.file, at, len, len, "refcount block")?, order: self.order })
    }

    fn make_room(&mut self) -> Result<()> {
        if len64(self.blocks.len()) << self.cluster.shift() >= KEPT_BYTES {
            self.store()?;
            self.blocks.clear();
        }
        Ok(())
    }
}

/// Counts side by side, as they lie on disk.
#[derive(Debug)]
pub(super) struct Counts {
    bytes: Vec<u8>,
    order: u32,
}

impl Counts {
    /// Count `number`; 0 behind the end.
    pub(super) fn get(&self, number: usize) -> u64 {
        if self.order < 3 {
            let (byte, shift, mask) = self.bits(number);
            return u64::from(self.bytes.get(byte).copied().unwrap_or_default() >> shift & mask);
        }
        let width = self.width();
        let from = number.saturating_mul(width);
        let count = self.bytes.get(from..from.saturating_add(width)).unwrap_or_default();
        count.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    /// How many counts from `number` on have the same value.
    fn same_from(&self, number: usize) -> usize {
        let value = self.get(number);
        let bits = 1usize.wrapping_shl(self.order);
        let all = self.bytes.len().saturating_mul(8).checked_div(bits).unwrap_or_default();
        let mut at = number.saturating_add(1);
        let in_word = |at: usize| (at.saturating_mul(bits) & 63) != 0;
        while at < all && in_word(at) && self.get(at) == value {
            at = at.saturating_add(1);
        }
        if at < all && !in_word(at) {
            // Eight bytes at once, as long as they look like those that hold nothing but this value.
            let from = at.saturating_mul(bits) / 8;
            let words = self.bytes.get(from..).unwrap_or_default().as_chunks::<8>().0;
            let pattern = Self::filled(self.order, value).to_be_bytes();
            let same = words.iter().position(|word| *word != pattern).unwrap_or(words.len());
            at = at.saturating_add(same.saturating_mul(64).checked_div(bits).unwrap_or_default());
            while at < all && self.get(at) == value {
                at = at.saturating_add(1);
            }
        }
        at.saturating_sub(number)
    }

    /// Eight bytes full of one value.
    fn filled(order: u32, value: u64) -> u64 {
        (order..6).fold(value, |word, order| word | word.wrapping_shl(1u32.wrapping_shl(order)))
    }

    /// Sets count `number` to a value that fits.
    fn set(&mut self, number: usize, count: u64) {
        if self.order < 3 {
            let (byte, shift, mask) = self.bits(number);
            if let Some(byte) = self.bytes.get_mut(byte) {
                let low = u8::try_from(count).unwrap_or(mask) & mask;
                *byte = *byte & !(mask << shift) | low << shift;
            }
            return;
        }
        let width = self.width();
        let from = number.saturating_mul(width);
        let raw = count.to_be_bytes();
        let low = raw.get(raw.len().saturating_sub(width)..).unwrap_or_default();
        if let Ok(place) = part_mut(&mut self.bytes, from, width, "count") {
            place.copy_from_slice(low);
        }
    }

    /// Bytes of one count of eight bits or more.
    fn width(&self) -> usize {
        1usize.wrapping_shl(self.order.saturating_sub(3))
    }

    /// Where a count of less than eight bits lies: byte, shift, mask. The first is in the lowest bits.
    fn bits(&self, number: usize) -> (usize, u32, u8) {
        let per_byte_shift = 3u32.saturating_sub(self.order);
        let within = number & 1usize.wrapping_shl(per_byte_shift).wrapping_sub(1);
        let shift = u32::try_from(within).unwrap_or_default().wrapping_shl(self.order);
        let bits = 1u32.wrapping_shl(self.order);
        (number >> per_byte_shift, shift, 1u8.wrapping_shl(bits).wrapping_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_keep_their_neighbours() {
        for order in 0..=6u32 {
            let most = u64::MAX >> (64 - (1 << order));
            let mut counts = Counts { bytes: vec![0; 64], order };
            let number = (64 * 8) >> order;
            for n in 0..number {
                counts.set(n, most.min(n as u64 + 1));
            }
            for n in 0..number {
                assert_eq!(counts.get(n), most.min(n as u64 + 1), "order {order}");
            }
            counts.set(3, 0);
            assert_eq!((counts.get(2), counts.get(3), counts.get(4)), (most.min(3), 0, most.min(5)));
            assert_eq!(counts.get(number), 0);
        }
    }

    #[test]
    fn runs_of_every_width_end_where_the_value_does() {
        for order in 0..=6u32 {
            let most = u64::MAX >> (64 - (1 << order));
            let number = (256 * 8) >> order;
            for (from, to) in
                [(0, number), (1, number - 1), (number / 3, number / 2), (2, 3), (number - 1, number)]
            {
                let mut counts = Counts { bytes: vec![0; 256], order };
                for n in from..to {
                    counts.set(n, most);
                }
                let mut at = 0;
                let mut seen = Vec::new();
                while at < number {
                    let same = counts.same_from(at);
                    seen.push((at, same, counts.get(at)));
                    at += same;
                }
                let all = [(0, from, 0), (from, to - from, most), (to, number - to, 0)];
                let expected: Vec<_> = all.into_iter().filter(|(_, len, _)| *len > 0).collect();
                assert_eq!(seen, expected, "order {order}");
            }
        }
    }

    #[test]
    fn narrow_counts_start_at_the_lowest_bit() {
        let counts = Counts { bytes: vec![0b1110_0100], order: 1 };
        assert_eq!([0, 1, 2, 3].map(|n| counts.get(n)), [0, 1, 2, 3]);
    }
}
