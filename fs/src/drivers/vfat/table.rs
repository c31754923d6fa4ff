//! The file allocation table: from one cluster of a chain to the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use racker_formats::block::{BlockSize, Disk, Span};
use racker_formats::error::{Common, Result};
use racker_formats::wire::{bytes, index, is_zero, len64, part_mut, take};

use super::boot_sector::{BootSector, Width};
use super::fault::FatFault;
use crate::cache::BlockCache;

/// Pieces of the table that are read and kept.
const PIECE: BlockSize = match BlockSize::from_shift(12) {
    Some(size) => size,
    None => panic!("12 is below 63"),
};

/// Bytes of the table that are read at once to count.
const COUNT_BYTES: u64 = 256 << 10;

/// Changed pieces that are kept until they are written: 4 MiB.
const CHANGES_MAX: usize = 1024;

/// A place in a chain: its first cluster, how many clusters further, the cluster there.
#[derive(Clone, Copy, Debug)]
struct Mark {
    first: u32,
    steps: u64,
    cluster: u32,
}

/// What the table says of a cluster that is not free and does not end a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Bad,
    Next(u32),
}

/// The table that counts, on a disk of its own, and where the last walk through a chain got to.
#[derive(Debug)]
pub(super) struct Table {
    disk: Disk,
    /// All tables that are written: the same bytes.
    copies: Vec<Disk>,
    /// Changed pieces.
    changes: Mutex<BTreeMap<u64, Vec<u8>>>,
    width: Width,
    clusters: u32,
    cache: BlockCache,
    /// Reading a file from its beginning to its end walks its chain once instead of once a read.
    mark: Mutex<Option<Mark>>,
}

impl Table {
    /// The table that the boot sector says counts, or the first of the copies whose first entry repeats the media
    /// byte, as it must.
    pub(super) fn open(disk: &Disk, boot: &BootSector) -> Result<Self> {
        let copies = match boot.active_fat {
            Some(active) => active..active.saturating_add(1),
            None => 0..boot.fats,
        };
        let place =
            |number: u8| boot.fat_start.saturating_add(u64::from(number).saturating_mul(boot.fat_bytes));
        let mut start = place(copies.start);
        for number in copies {
            if bytes(disk, place(number), 1, 1, "table")?.first() == Some(&boot.media) {
                start = place(number);
                break;
            }
        }
        let copies = match boot.active_fat {
            Some(_) => vec![start],
            None => (0..boot.fats).map(place).collect(),
        };
        let slice = |start: u64| disk.slice(Span::new(start, boot.fat_bytes)?);
        let copies = copies.into_iter().map(slice).collect::<Result<Vec<_>>>()?;
        let (width, clusters) = (boot.width, boot.clusters);
        let (cache, mark, changes) = (BlockCache::new(PIECE), Mutex::new(None), Mutex::default());
        Ok(Self { disk: slice(start)?, copies, changes, width, clusters, cache, mark })
    }

    pub(super) fn last(&self) -> u32 {
        self.clusters.saturating_add(1)
    }

    /// Checks that a number is that of a cluster.
    pub(super) fn check(&self, what: &'static str, cluster: u32) -> Result<u32> {
        if cluster < 2 || cluster > self.last() {
            return Err(FatFault::Cluster { what, cluster, last: self.last() }.into());
        }
        Ok(cluster)
    }

    /// What the table says of a cluster.
    pub(super) fn entry(&self, cluster: u32) -> Result<u32> {
        let number = u64::from(cluster);
        Ok(match self.width {
            Width::Fat12 => {
                let at = number.saturating_add(number >> 1);
                let pair = u16::from_le_bytes([self.byte(at)?, self.byte(at.saturating_add(1))?]);
                u32::from(if cluster & 1 == 0 { pair & 0xfff } else { pair >> 4 })
            }
            Width::Fat16 => u16::from_le_bytes(self.word::<2>(number << 1)?).into(),
            Width::Fat32 => u32::from_le_bytes(self.word::<4>(number << 2)?) & 0x0fff_ffff,
        })
    }

    fn byte(&self, at: u64) -> Result<u8> {
        self.word::<1>(at).map(|[byte]| byte)
    }

    /// The bytes at `at`, which do not cross a piece.
    fn word<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let (number, within) = PIECE.split(at);
        if let Some(piece) = self.changes.lock().map_err(|_| Common::Poisoned)?.get(&number) {
            return take::<[u8; N]>(piece, index(within)?, "table entry");
        }
        take::<[u8; N]>(&self.piece(number)?, index(within)?, "table entry")
    }

    /// A piece as it is on the disk.
    fn piece(&self, number: u64) -> Result<Arc<[u8]>> {
        self.cache.get(number, || {
            let from = number << PIECE.shift();
            let len = PIECE.bytes().min(self.disk.size().saturating_sub(from));
            bytes(&self.disk, from, len, PIECE.bytes(), "table")
        })
    }

    /// Changes what the table says of a cluster.
    pub(super) fn set(&self, cluster: u32, entry: u32) -> Result<()> {
        let number = u64::from(self.check("the change", cluster)?);
        let [a, b, c, d] = entry.to_le_bytes();
        match self.width {
            Width::Fat12 => {
                let at = number.saturating_add(number >> 1);
                let behind = at.saturating_add(1);
                if cluster & 1 == 0 {
                    let high = self.byte(behind)? & 0xf0;
                    self.set_bytes(at, &[a])?;
                    self.set_bytes(behind, &[high | (b & 0xf)])?;
                } else {
                    let low = self.byte(at)? & 0xf;
                    self.set_bytes(at, &[low | (a << 4)])?;
                    self.set_bytes(behind, &[(a >> 4) | (b << 4)])?;
                }
            }
            Width::Fat16 => self.set_bytes(number << 1, &[a, b])?,
            Width::Fat32 => {
                // The upper four bits are nobody's, and stay.
                let [.., high] = self.word::<4>(number << 2)?;
                self.set_bytes(number << 2, &[a, b, c, (d & 0xf) | (high & 0xf0)])?;
            }
        }
        Ok(())
    }

    /// Changes bytes that do not cross a piece.
    fn set_bytes(&self, at: u64, new: &[u8]) -> Result<()> {
        let (number, within) = PIECE.split(at);
        let old = self.piece(number)?;
        let mut changes = self.changes.lock().map_err(|_| Common::Poisoned)?;
        let piece = changes.entry(number).or_insert_with(|| old.to_vec());
        part_mut(piece, index(within)?, new.len(), "table entry")?.copy_from_slice(new);
        let full = changes.len() >= CHANGES_MAX;
        drop(changes);
        if full { self.flush() } else { Ok(()) }
    }

    /// Writes what has changed, to all tables.
    pub(super) fn flush(&self) -> Result<()> {
        let mut changes = self.changes.lock().map_err(|_| Common::Poisoned)?;
        for (number, piece) in std::mem::take(&mut *changes) {
            for copy in &self.copies {
                copy.write_at(number << PIECE.shift(), &piece)?;
            }
            self.cache.put(number, piece.into())?;
        }
        Ok(())
    }

    /// Ends a chain with this cluster.
    pub(super) fn set_end(&self, cluster: u32) -> Result<()> {
        let end = match self.width {
            Width::Fat12 => 0xfff,
            Width::Fat16 => 0xffff,
            Width::Fat32 => 0x0fff_ffff,
        };
        self.set(cluster, end)
    }

    /// Forgets where the last walk got to: a chain is to become shorter.
    pub(super) fn forget_walk(&self) -> Result<()> {
        *self.mark.lock().map_err(|_| Common::Poisoned)? = None;
        Ok(())
    }

    /// All copies, each as the one that counts.
    pub(super) fn each_copy(&self) -> Vec<Self> {
        let alone = |disk: &Disk| Self {
            disk: disk.clone(),
            copies: vec![disk.clone()],
            changes: Mutex::default(),
            width: self.width,
            clusters: self.clusters,
            cache: BlockCache::new(PIECE),
            mark: Mutex::new(None),
        };
        self.copies.iter().map(alone).collect()
    }

    /// Gives all copies the content of one.
    pub(super) fn copy_from(&self, one: &Self) -> Result<()> {
        let mut all = Span::first(one.disk.size());
        while !all.is_empty() {
            let piece = all.truncate(COUNT_BYTES);
            let content = bytes(&one.disk, piece.start(), piece.len(), COUNT_BYTES, "table")?;
            for copy in &self.copies {
                copy.write_at(piece.start(), &content)?;
            }
            all = all.skip(piece.len());
        }
        Ok(())
    }

    /// Says in the table's second entry that the volume was closed; FAT12 has no room for that.
    pub(super) fn set_clean(&self) -> Result<()> {
        match self.width {
            Width::Fat12 => Ok(()),
            Width::Fat16 => {
                let [a, b, ..] = (self.entry(1)? | 0xc000).to_le_bytes();
                self.set_bytes(2, &[a, b])
            }
            Width::Fat32 => {
                let [.., high] = self.word::<4>(4)?;
                let [a, b, c, d] = (self.entry(1)? | 0x0c00_0000).to_le_bytes();
                self.set_bytes(4, &[a, b, c, (d & 0xf) | (high & 0xf0)])
            }
        }
    }

    /// Whether all tables say the same of every cluster. What lies behind the last entry is nobody's, and does not count.
    pub(super) fn copies_agree(&self) -> Result<bool> {
        let (first, rest) = self.copies.split_first().ok_or(Common::Poisoned)?;
        let bits = match self.width {
            Width::Fat12 => 12,
            Width::Fat16 => 16,
            Width::Fat32 => 32,
        };
        let used = u64::from(self.last()).saturating_add(1).saturating_mul(bits).div_ceil(8);
        let mut all = Span::first(used.min(first.size()));
        while !all.is_empty() {
            let piece = all.truncate(COUNT_BYTES);
            let want = bytes(first, piece.start(), piece.len(), COUNT_BYTES, "table")?;
            for copy in rest {
                if bytes(copy, piece.start(), piece.len(), COUNT_BYTES, "table")? != want {
                    return Ok(false);
                }
            }
            all = all.skip(piece.len());
        }
        Ok(true)
    }

    /// Visits what the table says of every cluster that is not free, in order, and runs of free ones: the first, and
    /// how many. Nothing has been changed.
    pub(super) fn each(
        &self,
        visit: &mut dyn FnMut(u32, u32) -> Result<()>,
        free: &mut dyn FnMut(u32, u32) -> Result<()>,
    ) -> Result<()> {
        let width = match self.width {
            Width::Fat12 => {
                return (2..=self.last()).try_for_each(|cluster| match self.entry(cluster)? {
                    0 => free(cluster, 1),
                    entry => visit(cluster, entry),
                });
            }
            Width::Fat16 => 2u64,
            Width::Fat32 => 4,
        };
        let mut cluster = 2u32;
        while cluster <= self.last() {
            let at = u64::from(cluster).saturating_mul(width);
            let rest = u64::from(self.last().saturating_sub(cluster)).saturating_add(1);
            let len = COUNT_BYTES.min(rest.saturating_mul(width));
            // The table may have a gigabyte: it is read in order, past the cache.
            for part in bytes(&self.disk, at, len, COUNT_BYTES, "table")?.chunks(index(PIECE.bytes())?) {
                if is_zero(part) {
                    let count = u32::try_from(len64(part.len()).checked_div(width).unwrap_or(0)).unwrap_or(0);
                    free(cluster, count)?;
                    cluster = cluster.saturating_add(count);
                    continue;
                }
                for entry in part.chunks_exact(index(width)?) {
                    let value = match *entry {
                        [a, b] => u16::from_le_bytes([a, b]).into(),
                        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]) & 0x0fff_ffff,
                        _ => 0,
                    };
                    if value == 0 {
                        free(cluster, 1)?
                    } else {
                        visit(cluster, value)?
                    }
                    cluster = cluster.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    /// What an entry says: `None` for one that ends a chain.
    pub(super) fn meaning(&self, entry: u32) -> Option<Link> {
        let high = match self.width {
            Width::Fat12 => 0xf00,
            Width::Fat16 => 0xff00,
            Width::Fat32 => 0x0fff_ff00,
        };
        match entry.checked_sub(high) {
            Some(0xf8..) => None,
            Some(0xf7) => Some(Link::Bad),
            _ => Some(Link::Next(entry)),
        }
    }

    /// The cluster behind `cluster`; `None` at the chain's end.
    pub(super) fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let entry = self.entry(self.check("the chain", cluster)?)?;
        let end = match self.width {
            Width::Fat12 => 0xff8,
            Width::Fat16 => 0xfff8,
            Width::Fat32 => 0x0fff_fff8,
        };
        if entry >= end { Ok(None) } else { self.check("the table", entry).map(Some) }
    }

    /// The cluster `steps` behind `first`; `None` if the chain ends before.
    pub(super) fn seek(&self, first: u32, steps: u64) -> Result<Option<u32>> {
        if steps >= u64::from(self.clusters) {
            return Err(FatFault::Loop.into());
        }
        let mark = *self.mark.lock().map_err(|_| Common::Poisoned)?;
        let from = mark.filter(|m| m.first == first && m.steps <= steps);
        let mut at =
            from.unwrap_or(Mark { first, steps: 0, cluster: self.check("a directory entry", first)? });
        while at.steps < steps {
            let Some(next) = self.next(at.cluster)? else { return Ok(None) };
            at = Mark { steps: at.steps.saturating_add(1), cluster: next, ..at };
        }
        *self.mark.lock().map_err(|_| Common::Poisoned)? = Some(at);
        Ok(Some(at.cluster))
    }

    /// How many clusters the chain from `first` has, and the last one.
    pub(super) fn end(&self, first: u32) -> Result<(u64, u32)> {
        let mark = *self.mark.lock().map_err(|_| Common::Poisoned)?;
        let mut at = mark.filter(|m| m.first == first).unwrap_or(Mark {
            first,
            steps: 0,
            cluster: self.check("a directory entry", first)?,
        });
        while let Some(next) = self.next(at.cluster)? {
            at = Mark { steps: at.steps.saturating_add(1), cluster: next, ..at };
            if at.steps > u64::from(self.clusters) {
                return Err(FatFault::Loop.into());
            }
        }
        *self.mark.lock().map_err(|_| Common::Poisoned)? = Some(at);
        Ok((at.steps.saturating_add(1), at.cluster))
    }

    /// The cluster at `cluster` and how many follow it one by one on the disk, up to `max` in all.
    pub(super) fn run(&self, cluster: u32, max: u64) -> Result<u64> {
        let (mut at, mut len) = (cluster, 1u64);
        while len < max {
            match self.next(at)? {
                Some(next) if Some(next) == at.checked_add(1) => at = next,
                _ => break,
            }
            len = len.saturating_add(1);
        }
        Ok(len)
    }

    /// Whether the table's second entry says that the volume was unmounted, and that nothing could not be read; FAT12
    /// does not say.
    pub(super) fn is_clean(&self) -> Result<bool> {
        let marks = match self.width {
            Width::Fat12 => return Ok(true),
            Width::Fat16 => 0xc000,
            Width::Fat32 => 0x0c00_0000,
        };
        Ok(self.entry(1)? & marks == marks)
    }

    /// The first run of free clusters from `from` on: where it starts, and how many there are.
    pub(super) fn free_run(&self, from: u32) -> Result<Option<(u32, u32)>> {
        let mut first = from;
        while first <= self.last() && self.entry(first)? != 0 {
            first = first.saturating_add(1);
        }
        let mut end = first;
        while end <= self.last() && self.entry(end)? == 0 {
            end = end.saturating_add(1);
        }
        Ok((end > first).then(|| (first, end.saturating_sub(first))))
    }

    /// Counts the free clusters.
    pub(super) fn count_free(&self) -> Result<u64> {
        let each = match self.width {
            Width::Fat12 => {
                let free = (2..=self.last()).map(|c| Ok(u64::from(self.entry(c)? == 0)));
                return free.sum();
            }
            Width::Fat16 => 2,
            Width::Fat32 => 4,
        };
        // The table may have a gigabyte: it is read in order, past the cache.
        let end = u64::from(self.clusters).saturating_add(2).saturating_mul(each);
        let mut at = each.saturating_mul(2);
        let mut free = 0u64;
        while at < end {
            let len = COUNT_BYTES.min(end.saturating_sub(at));
            let piece = bytes(&self.disk, at, len, COUNT_BYTES, "table")?;
            let is_free = |entry: &&[u8]| match entry {
                // The upper four bits of FAT32 are not part of the number.
                [a, b, c, d] => a | b | c | (d & 0xf) == 0,
                _ => entry.iter().all(|b| *b == 0),
            };
            free = free.saturating_add(len64(piece.chunks_exact(index(each)?).filter(is_free).count()));
            at = at.saturating_add(len);
        }
        Ok(free)
    }
}
