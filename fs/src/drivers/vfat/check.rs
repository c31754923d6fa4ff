//! All that is wrong with a FAT filesystem: what keeps it from being written ([`verify`](super::verify)), and what does
//! no harm — clusters that no file has, counts of free ones, marks of a volume that was not closed, names, the copy of
//! the boot sector.
//!
//! Mended are counts and marks, and clusters that nothing names are freed, if nothing else is wrong. Where the tables
//! differ, the one that agrees with all directories is taken, if only one does. Memory: five bits for each cluster.

use racker_formats::block::Disk;
use racker_formats::check::{Finding, Report, Severity};
use racker_formats::error::{Kind, Result};
use racker_formats::wire::bytes;
use zerocopy::IntoBytes;

use super::boot_sector::{BOOT_BYTES, Width};
use super::fault::FatFault;
use super::layout::EXTENDED16_AT;
use super::table::{Link, Table};
use super::verify::{Bits, Clusters, Sink};
use super::volume::Fat;
use super::writer::hints;

/// Where the byte of marks is in a boot sector of FAT32; in those of others it is the second byte behind the
/// parameter block.
const STATE32_AT: u64 = 65;
/// Where the boot sector of FAT32 says where its copy is.
const COPY_AT: usize = 50;

/// What can be mended, and is to be.
#[derive(Debug, Default)]
struct Mend {
    lost: Bits,
    is_dirty: bool,
    /// Free clusters, where the count of them is wrong.
    free: Option<u32>,
}

/// Checks the filesystem on `volume`, and mends it if that is asked for and safe.
pub(super) fn check(volume: Disk, report: &mut Report) -> Result<()> {
    let mut fat = Fat::open(volume)?;
    let (size, volume) = (fat.boot.size, fat.disk.size());
    if size > volume {
        return Err(FatFault::CutShort { size, volume }.into());
    }
    let tables = fat.right_table(report.repair)?;
    let mut sink = Sink::default();
    let (clusters, space) = fat.examine(&mut sink)?;
    let mend = fat.harmless(&clusters, u32::try_from(space.free).unwrap_or(u32::MAX), &mut sink)?;
    let repair = report.repair && !sink.doubtful && !sink.left;
    if repair {
        fat.mend(&mend)?;
        // What was mended must hold.
        fat = Fat::open(fat.disk.clone())?;
        fat.verify()?;
    }
    if let Some(what) = tables {
        report.findings.push(Finding { what, severity: Severity::Corruption, repaired: true, count: 1 });
    }
    let is_copy = |f: &Finding| f.what == COPY_DIFFERS;
    let told = sink.found.into_iter().map(|f| Finding { repaired: repair && !is_copy(&f), ..f });
    report.findings.extend(told);
    if sink.more > 0 {
        let what = format!("{} more findings of the same kinds", sink.more);
        report.findings.push(Finding {
            what,
            severity: Severity::Corruption,
            repaired: repair,
            count: sink.more,
        });
    }
    Ok(())
}

const COPY_DIFFERS: &str = "the boot sector and its copy differ";

impl Fat {
    /// Where the tables differ and only one agrees with the directories, takes that one for all of them, if asked.
    fn right_table(&mut self, repair: bool) -> Result<Option<String>> {
        if !repair || self.table.copies_agree()? {
            return Ok(None);
        }
        let mut right: Option<(usize, Table)> = None;
        for (number, table) in self.table.each_copy().into_iter().enumerate() {
            let mut alone = Self::open(self.disk.clone())?;
            alone.table = table;
            match alone.verify() {
                Ok(_) if right.is_some() => return Ok(None),
                Ok(_) => right = Some((number, alone.table)),
                Err(e) if e.kind() == Kind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        let Some((number, table)) = right else { return Ok(None) };
        self.table.copy_from(&table)?;
        *self = Self::open(self.disk.clone())?;
        Ok(Some(format!(
            "the tables differ from one another; number {number} is the one that agrees with the files"
        )))
    }

    /// What is wrong without harm.
    fn harmless(&self, clusters: &Clusters, free: u32, sink: &mut Sink) -> Result<Mend> {
        let mut mend = Mend { lost: self.lost(clusters)?, ..Mend::default() };
        if let Some(first) = (2..=self.table.last()).find(|cluster| mend.lost.get(*cluster)) {
            let count = mend.lost.count();
            sink.note(
                Severity::Leak,
                count,
                format!("{count} clusters belong to no file, from {first:#x} on"),
            );
        }
        if self.boot.is_dirty || !self.table.is_clean()? {
            mend.is_dirty = true;
            sink.note(Severity::Corruption, 1, "the volume was not closed".into());
        }
        if let Some(info) = hints(self)?
            && info.free_count.get() != free
            && info.free_count.get() != u32::MAX
        {
            let counted = info.free_count.get();
            mend.free = Some(free);
            sink.note(Severity::Corruption, 1, format!("FSInfo counts {counted} free clusters, {free} are"));
        }
        if self.copy_differs()? {
            sink.note(Severity::Corruption, 1, COPY_DIFFERS.into());
        }
        Ok(mend)
    }

    /// Clusters that are in use and that no file or directory leads to.
    fn lost(&self, clusters: &Clusters) -> Result<Bits> {
        let last = self.table.last();
        let mut reached = Bits::new(last)?;
        for first in (2..=last).filter(|cluster| clusters.begun.get(*cluster)) {
            let mut next = Some(first);
            // Each cluster is reached once, so this ends.
            while let Some(cluster) = next.filter(|cluster| *cluster <= last && reached.set(*cluster)) {
                next = match self.table.meaning(self.table.entry(cluster)?) {
                    Some(Link::Next(next)) => Some(next),
                    _ => None,
                };
            }
        }
        Ok(clusters.used.without(&reached))
    }

    /// Whether the copy of the boot sector is another one; the marks in it do not count.
    fn copy_differs(&self) -> Result<bool> {
        if self.boot.width != Width::Fat32 {
            return Ok(false);
        }
        let mut boot = bytes(&self.disk, 0, BOOT_BYTES, BOOT_BYTES, "boot sector")?;
        let place =
            boot.get(COPY_AT..).and_then(|b| b.first_chunk::<2>()).map_or(0, |b| u16::from_le_bytes(*b));
        let at = u64::from(place).saturating_mul(self.boot.sector);
        // Old makers put both into the same sector where there is no room for two.
        let hints = self.boot.info_sector == Some(place.into());
        if place == 0 || hints || at >= self.boot.fat_start {
            return Ok(false);
        }
        let mut copy = bytes(&self.disk, at, BOOT_BYTES, BOOT_BYTES, "boot sector")?;
        for sector in [&mut boot, &mut copy] {
            if let Some(state) = usize::try_from(STATE32_AT).ok().and_then(|at| sector.get_mut(at)) {
                *state = 0;
            }
        }
        Ok(boot != copy)
    }

    /// Frees what is lost, and puts counts and marks right.
    fn mend(&self, mend: &Mend) -> Result<()> {
        for cluster in (2..=self.table.last()).filter(|cluster| mend.lost.get(*cluster)) {
            self.table.set(cluster, 0)?;
        }
        if mend.is_dirty {
            self.table.set_clean()?;
            let old = u64::try_from(EXTENDED16_AT).unwrap_or(0).saturating_add(1);
            let at = if self.boot.width == Width::Fat32 { STATE32_AT } else { old };
            if self.boot.is_dirty {
                let state = bytes(&self.disk, at, 1, 1, "boot sector")?;
                self.disk.write_at(at, &[state.first().copied().unwrap_or(0) & !3])?;
            }
        }
        self.table.flush()?;
        if (mend.lost.count() > 0 || mend.free.is_some())
            && let Some(mut info) = hints(self)?
        {
            let free = u32::try_from(Self::open(self.disk.clone())?.table.count_free()?).unwrap_or(u32::MAX);
            info.free_count = free.into();
            let at = self.boot.info_sector.unwrap_or(0).saturating_mul(self.boot.sector);
            self.disk.write_at(at, info.as_bytes())?;
        }
        Ok(())
    }
}
