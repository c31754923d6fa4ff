//! A larger filesystem: more clusters at the end, and a larger table where the one that is there has no room for them.
//!
//! Clusters keep their numbers. With a larger table everything behind it moves up, clusters in use from the last one to
//! the first, so nothing is overwritten that is still to be copied. The type stays: it follows from the number of
//! clusters, and all entries of the table would change with it.

use racker_formats::block::Span;
use racker_formats::error::{Kind, Result};
use racker_formats::wire::{bytes, part_mut};

use super::boot_sector::{
    BootSector, CLUSTERS_MAX_FAT12, CLUSTERS_MAX_FAT16, CLUSTERS_MAX_FAT32, Root, Width,
};
use super::fault::FatFault;
use super::layout::RawBoot;
use super::places::Places;
use super::table::Link;
use super::volume::Fat;
use super::writer::FatMut;
use crate::fresh::Fresh;

/// Bytes that are copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// How large the parts are going to be, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    sectors: u64,
    /// Of one table.
    table: u64,
    clusters: u64,
}

/// The numbers of a filesystem that its shape follows from.
#[derive(Clone, Copy, Debug)]
struct Terms {
    width: Width,
    sector: u64,
    per_cluster: u64,
    fats: u64,
    /// Sectors before the data that are not the tables.
    others: u64,
    /// Sectors of one table as it is.
    table: u64,
}

impl Terms {
    fn of(boot: &BootSector) -> Self {
        let sectors = |bytes: u64| bytes.checked_div(boot.sector).unwrap_or(0);
        let table = sectors(boot.fat_bytes);
        let fats = u64::from(boot.fats);
        Self {
            width: boot.width,
            sector: boot.sector,
            per_cluster: sectors(boot.cluster.bytes()).max(1),
            fats,
            others: sectors(boot.data_start).saturating_sub(fats.saturating_mul(table)),
            table,
        }
    }

    fn clusters(&self, sectors: u64, table: u64) -> u64 {
        let before = self.others.saturating_add(self.fats.saturating_mul(table));
        sectors.saturating_sub(before).checked_div(self.per_cluster).unwrap_or(0)
    }

    /// Sectors of a table for so many clusters.
    fn need(&self, clusters: u64) -> u64 {
        let entries = clusters.saturating_add(2);
        let bytes = match self.width {
            Width::Fat12 => entries.saturating_mul(3).div_ceil(2),
            Width::Fat16 => entries.saturating_mul(2),
            Width::Fat32 => entries.saturating_mul(4),
        };
        bytes.div_ceil(self.sector.max(1))
    }

    /// Clusters that a table has room for.
    fn room(&self, table: u64) -> u64 {
        let bytes = table.saturating_mul(self.sector);
        let entries = match self.width {
            Width::Fat12 => bytes.saturating_mul(2).checked_div(3).unwrap_or(0),
            Width::Fat16 => bytes >> 1,
            Width::Fat32 => bytes >> 2,
        };
        entries.saturating_sub(2)
    }

    /// The most that so many sectors can be: with the table as it is, or with a larger one.
    fn shape(&self, sectors: u64) -> Shape {
        let clusters = self.clusters(sectors, self.table);
        let kept = clusters.min(self.room(self.table));
        // What the table has no room for is not part of the filesystem.
        let used = self
            .others
            .saturating_add(self.fats.saturating_mul(self.table))
            .saturating_add(kept.saturating_mul(self.per_cluster));
        let kept_sectors = if kept < clusters { used } else { sectors };
        let table = self.need(clusters).max(self.table);
        let larger = self.clusters(sectors, table);
        if larger > kept {
            Shape { sectors, table, clusters: larger }
        } else {
            Shape { sectors: kept_sectors, table: self.table, clusters: kept }
        }
    }

    /// The most sectors that still give as many clusters as the type can have.
    fn most(&self, clusters: u64) -> u64 {
        let table = self.need(clusters).max(self.table);
        self.others
            .saturating_add(self.fats.saturating_mul(table))
            .saturating_add(clusters.saturating_mul(self.per_cluster))
    }
}

impl FatMut {
    /// Makes the filesystem as large as it can be in the first `size` bytes of its volume.
    pub(super) fn grow_volume(&mut self, size: u64) -> Result<()> {
        let boot = self.fat.boot;
        let terms = Terms::of(&boot);
        let sectors = size.checked_div(boot.sector).unwrap_or(0).min(u32::MAX.into());
        let shape = terms.shape(sectors);
        if shape.clusters <= u64::from(boot.clusters) {
            return Ok(());
        }
        let (max, name) = match boot.width {
            Width::Fat12 => (CLUSTERS_MAX_FAT12, "FAT12"),
            Width::Fat16 => (CLUSTERS_MAX_FAT16, "FAT16"),
            Width::Fat32 => (CLUSTERS_MAX_FAT32, "FAT32"),
        };
        if shape.clusters > max {
            let most = terms.most(max).saturating_mul(boot.sector);
            return Err(FatFault::TypeTooSmall { name, size, most }.into());
        }
        if shape.table > u64::from(u16::MAX) && boot.width != Width::Fat32 {
            return Err(FatFault::WrongKind {
                kind: Kind::Unsupported,
                what: "the table cannot be that large",
            }
            .into());
        }
        let boots = self.boots()?;
        self.begin()?;
        self.fat.table.flush()?;
        let table = shape.table.saturating_mul(boot.sector);
        if table > boot.fat_bytes {
            self.move_up(table)?;
        }
        for mut old in boots {
            put_shape(&mut old.sector, boot.width, shape)?;
            self.fat.disk.write_at(old.at, &old.sector)?;
        }
        self.reopen(&boot, shape)?;
        self.end();
        Ok(())
    }

    /// Makes room for tables of `table` bytes, and copies them.
    fn move_up(&self, table: u64) -> Result<()> {
        let boot = &self.fat.boot;
        let more = table.saturating_sub(boot.fat_bytes);
        let all = more.saturating_mul(boot.fats.into());
        let mut end = None;
        for cluster in (2..=self.fat.table.last()).rev() {
            let entry = self.fat.table.entry(cluster)?;
            let in_use = entry != 0 && self.fat.table.meaning(entry) != Some(Link::Bad);
            match (in_use, end) {
                (true, None) => end = Some(cluster.saturating_add(1)),
                (false, Some(stop)) => {
                    self.move_clusters(cluster.saturating_add(1), stop, all)?;
                    end = None;
                }
                _ => {}
            }
        }
        if let Some(stop) = end {
            self.move_clusters(2, stop, all)?;
        }
        if let Root::Fixed(start, len) = boot.root {
            self.move_bytes(start, len, all)?;
        }
        for number in (0..u64::from(boot.fats)).rev() {
            let from = boot.fat_start.saturating_add(number.saturating_mul(boot.fat_bytes));
            let by = number.saturating_mul(more);
            self.move_bytes(from, boot.fat_bytes, by)?;
            let tail = from.saturating_add(by).saturating_add(boot.fat_bytes);
            self.fat.disk.write_zeroes(Span::new(tail, more)?)?;
        }
        Ok(())
    }

    fn move_clusters(&self, first: u32, end: u32, by: u64) -> Result<()> {
        let count = u64::from(end.saturating_sub(first));
        self.move_bytes(self.fat.byte_of(first)?, count << self.fat.boot.cluster.shift(), by)
    }

    /// Copies bytes to a place further up, from the last to the first.
    fn move_bytes(&self, start: u64, len: u64, by: u64) -> Result<()> {
        if by == 0 {
            return Ok(());
        }
        let mut left = len;
        while left > 0 {
            let piece = left.min(COPY_BYTES);
            left = left.saturating_sub(piece);
            let at = start.saturating_add(left);
            let buf = bytes(&self.fat.disk, at, piece, COPY_BYTES, "data")?;
            self.fat.disk.write_at(at.saturating_add(by), &buf)?;
        }
        Ok(())
    }

    /// Reads what was written, and makes the new clusters free ones.
    fn reopen(&mut self, old: &BootSector, shape: Shape) -> Result<()> {
        let mut fat = Fat::open(self.fat.disk.clone())?;
        if u64::from(fat.boot.clusters) != shape.clusters || fat.boot.width != old.width {
            return Err(FatFault::Unsound("the filesystem has another size than it was given".into()).into());
        }
        let (first, end) = (old.clusters.saturating_add(2), fat.boot.clusters.saturating_add(2));
        match fat.boot.width {
            Width::Fat12 => (first..end).try_for_each(|cluster| fat.table.set(cluster, 0))?,
            Width::Fat16 => clear(&fat, u64::from(first) << 1, u64::from(end) << 1)?,
            Width::Fat32 => clear(&fat, u64::from(first) << 2, u64::from(end) << 2)?,
        }
        fat.table.flush()?;
        // What the table has of them in memory is from before.
        fat = Fat::open(self.fat.disk.clone())?;
        let next = self.space.next;
        self.space = fat.verify()?;
        self.space.next = next;
        // What is free now may have been in use when the edit began.
        self.space.fresh = Fresh::default();
        fat.claims = None;
        // Entries have moved with everything else.
        fat.places = Places::default();
        self.fat = fat;
        self.drop_indexes()
    }
}

/// Fills bytes of all tables with zeroes.
fn clear(fat: &Fat, from: u64, to: u64) -> Result<()> {
    for number in 0..u64::from(fat.boot.fats) {
        let start = fat.boot.fat_start.saturating_add(number.saturating_mul(fat.boot.fat_bytes));
        fat.disk.write_zeroes(Span::new(start.saturating_add(from), to.saturating_sub(from))?)?;
    }
    Ok(())
}

/// Puts the sizes into a boot sector.
fn put_shape(sector: &mut [u8], width: Width, shape: Shape) -> Result<()> {
    const TOTAL16: usize = core::mem::offset_of!(RawBoot, tot_sec16);
    const TOTAL32: usize = core::mem::offset_of!(RawBoot, tot_sec32);
    const TABLE16: usize = core::mem::offset_of!(RawBoot, fat_sz16);
    const TABLE32: usize = core::mem::offset_of!(RawBoot, fat_sz32);
    let mut put = |at: usize, value: &[u8]| -> Result<()> {
        part_mut(sector, at, value.len(), "boot sector")?.copy_from_slice(value);
        Ok(())
    };
    let total = u32::try_from(shape.sectors).unwrap_or(u32::MAX);
    let short = u16::try_from(total).ok().filter(|_| width != Width::Fat32);
    put(TOTAL16, &short.unwrap_or(0).to_le_bytes())?;
    put(TOTAL32, &if short.is_some() { 0 } else { total }.to_le_bytes())?;
    match width {
        Width::Fat32 => put(TABLE32, &u32::try_from(shape.table).unwrap_or(u32::MAX).to_le_bytes()),
        _ => put(TABLE16, &u16::try_from(shape.table).unwrap_or(u16::MAX).to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_grows_when_there_is_no_room_in_it() {
        let terms =
            Terms { width: Width::Fat16, sector: 512, per_cluster: 4, fats: 2, others: 33, table: 20 };
        // 20 sectors have room for 5118 clusters.
        assert_eq!(terms.room(20), 5118);
        assert_eq!(terms.need(5118), 20);
        assert_eq!(terms.need(5119), 21);
        let exact = 33 + 40 + 4 * 5118;
        assert_eq!(terms.shape(exact), Shape { sectors: exact, table: 20, clusters: 5118 });
        // One cluster more is less than a larger table takes.
        assert_eq!(terms.shape(exact + 4), Shape { sectors: exact, table: 20, clusters: 5118 });
        let more = terms.shape(exact + 400);
        assert_eq!((more.sectors, more.table), (exact + 400, 21));
        assert!(more.clusters > 5118 && more.clusters <= terms.room(21));
        assert!(terms.shape(terms.most(65524)).clusters <= 65524);
    }
}
