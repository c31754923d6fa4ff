//! The file allocation table: from one cluster of a chain to the next.

use std::sync::Mutex;

use racker_formats::block::{BlockSize, Disk, Span};
use racker_formats::error::{Common, Result};
use racker_formats::wire::{bytes, index, len64, take};

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

/// A place in a chain: its first cluster, how many clusters further, the cluster there.
#[derive(Clone, Copy, Debug)]
struct Mark {
    first: u32,
    steps: u64,
    cluster: u32,
}

/// The table that counts, on a disk of its own, and where the last walk through a chain got to.
#[derive(Debug)]
pub(super) struct Table {
    disk: Disk,
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
        let disk = disk.slice(Span::new(start, boot.fat_bytes)?)?;
        let (width, clusters) = (boot.width, boot.clusters);
        Ok(Self { disk, width, clusters, cache: BlockCache::new(PIECE), mark: Mutex::new(None) })
    }

    fn last(&self) -> u32 {
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
    fn entry(&self, cluster: u32) -> Result<u32> {
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
        let piece = self.cache.get(number, || {
            let from = number << PIECE.shift();
            let len = PIECE.bytes().min(self.disk.size().saturating_sub(from));
            bytes(&self.disk, from, len, PIECE.bytes(), "table")
        })?;
        take::<[u8; N]>(&piece, index(within)?, "table entry")
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
