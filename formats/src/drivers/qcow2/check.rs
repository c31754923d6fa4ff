//! Finds and mends inconsistencies: counts that are wrong, and marks that contradict the counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bitmap::Bitmap;
use super::census::{Census, Scope};
use super::entry::{Entry, RawEntry};
use super::findings::Findings;
use super::header::{Header, Incompatible};
use super::image::Qcow2;
use super::l2::L2;
use super::layout::{COMPRESSED, COPIED};
use super::refcount::{Clusters, Refcounts};
use super::snapshot::SnapshotTable;
use crate::check::{Report, Severity};
use crate::error::{Common, Kind, Result, Within};
use crate::mapped::HostOffset;

/// Runs of wrong counts that are mended one by one; who has more of them needs new counts.
const WRONG_MAX: usize = 100_000;

/// Host clusters in a row whose counts are wrong in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrong {
    run: Clusters,
    counted: u64,
    used: u64,
}

impl Wrong {
    fn severity(&self) -> Severity {
        if self.counted > self.used { Severity::Leak } else { Severity::Corruption }
    }
}

/// What a comparison of the counts found.
#[derive(Debug, Default)]
struct Counted {
    list: Vec<Wrong>,
    /// Clusters that the list has no room for.
    more_leaks: u64,
    more_corruptions: u64,
    /// The number behind the last cluster that is used or counted.
    end: u64,
}

impl Counted {
    /// Adds to the list; joins what continues its last run.
    fn note(&mut self, wrong: Wrong) {
        let full = self.list.len() >= WRONG_MAX;
        let same = |last: &&mut Wrong| {
            (last.run.end(), last.counted, last.used) == (wrong.run.first, wrong.counted, wrong.used)
        };
        if let Some(last) = self.list.last_mut().filter(same) {
            last.run.count = last.run.count.saturating_add(wrong.run.count);
        } else if full {
            let more = match wrong.severity() {
                Severity::Leak => &mut self.more_leaks,
                Severity::Corruption => &mut self.more_corruptions,
            };
            *more = more.saturating_add(wrong.run.count);
        } else {
            self.list.push(wrong);
        }
    }

    /// Whether lowering those in the list does not make all counts right.
    fn needs_new_counts(&self) -> bool {
        let more = self.more_leaks > 0 || self.more_corruptions > 0;
        more || self.list.iter().any(|wrong| wrong.severity() == Severity::Corruption)
    }

    fn tell(&self, found: &mut Findings<'_>) {
        for wrong @ Wrong { run, counted, used } in &self.list {
            found.add_many(wrong.severity(), run.count, || {
                let which = match run.count {
                    1 => format!("host cluster {}", run.first),
                    _ => format!("host clusters {} to {}", run.first, run.end().saturating_sub(1)),
                };
                format!("{which}: counted {counted} times, used {used} times")
            });
        }
        let more = [(Severity::Leak, self.more_leaks), (Severity::Corruption, self.more_corruptions)];
        for (severity, count) in more.into_iter().filter(|(_, count)| *count > 0) {
            found.add_many(severity, count, || format!("{count} more host clusters with wrong counts"));
        }
    }
}

/// What an image lists.
pub(super) type Lists = (Arc<SnapshotTable>, Arc<Vec<Bitmap>>);

impl Qcow2 {
    /// Compares what is counted with what is used, and every mark with both.
    pub(super) fn check_image(&self, report: &mut Report) -> Result<()> {
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let repair = report.repair;
        if repair {
            // Counts held in memory are out of date afterwards.
            *slot = None;
            self.prepared.store(false, Ordering::Release);
        }
        let (header, l1) = self.header_and_l1()?;
        let mut found = Findings::new(report, false);
        let lists = self.lists()?;
        let census = Census::take(self.scope(&header, &l1, &lists), &mut found)?;
        let mut statistics = census.statistics();
        // Without knowing all that is used nothing may be called free.
        let mend = repair && found.worst() != Some(Severity::Corruption);
        drop(found);
        // What is wrong with the counts' own structures is mended by making new ones.
        let mut own = Findings::new(report, mend);
        let wrong = match self.wrong_counts(&header, census, &mut own) {
            Ok(wrong) => {
                statistics.end = self.rules.geometry.cluster.start_of(wrong.end).unwrap_or(u64::MAX);
                wrong
            }
            Err(e) if e.kind() == Kind::Corrupt => {
                own.add(Severity::Corruption, || e.to_string());
                Counted::default()
            }
            Err(e) => return Err(e),
        };
        if mend && (own.worst().is_some() || wrong.needs_new_counts()) {
            self.renew_counts()?;
        } else if mend && !wrong.list.is_empty() {
            self.lower_counts(&header, &wrong.list)?;
        }
        wrong.tell(&mut own);
        drop(own);
        report.statistics = Some(statistics);
        let (header, l1) = self.header_and_l1()?;
        if report.worst() == Some(Severity::Corruption) {
            // What contradicts a wrong count is a mistake of its own, as QEMU counts. Counts that cannot be read were
            // found before.
            return match self.check_marks(&header, &l1, false, &mut Findings::new(report, false)) {
                Err(e) if e.kind() == Kind::Corrupt => Ok(()),
                other => other,
            };
        }
        self.check_marks(&header, &l1, mend, &mut Findings::new(report, mend))?;
        if mend && report.worst().is_none() {
            self.clear_marks(header, l1)?;
        }
        Ok(())
    }

    /// What the image lists.
    pub(super) fn lists(&self) -> Result<Lists> {
        let state = self.state()?;
        Ok((Arc::clone(&state.snapshots), Arc::clone(&state.bitmaps)))
    }

    /// What a census looks at.
    pub(super) fn scope<'a>(&'a self, header: &'a Header, l1: &'a [u64], lists: &'a Lists) -> Scope<'a> {
        Scope { file: &self.file, header, rules: self.rules, l1, snapshots: &lists.0, bitmaps: &lists.1 }
    }

    /// Clusters whose counts are not what they should be. As QEMU has it, what is counted behind the end of the file
    /// takes no space, and is neither used nor leaked.
    fn wrong_counts(
        &self,
        header: &Header,
        mut census: Census<'_>,
        found: &mut Findings<'_>,
    ) -> Result<Counted> {
        let mut counts = Refcounts::read(&self.file, header).within(|| "refcount table")?;
        let blocks: Vec<u64> = counts.block_places().collect();
        let mut places = BTreeSet::new();
        if let Some(twice) = blocks.iter().find(|at| !places.insert(**at)) {
            // A million entries that name one block would be compared a million times.
            found.add(Severity::Corruption, || {
                format!("two refcount table entries name the block at {twice:#x}")
            });
            return Ok(Counted { end: census.tally().end(), ..Counted::default() });
        }
        census.add_refcounts(blocks.into_iter(), found)?;
        let tally = census.tally();
        let mut all = Counted::default();
        let mut at = 0;
        while at < tally.len() {
            let (counted, same) = counts.run(at)?;
            let (used, as_often) = tally.run(at);
            let end = same.min(as_often).min(tally.len());
            let run = Clusters { first: at, count: end.saturating_sub(at) };
            if counted != 0 || used != 0 {
                all.end = end;
            }
            if counted != u64::from(used) {
                all.note(Wrong { run, counted, used: used.into() });
            }
            at = end;
        }
        Ok(all)
    }

    /// Takes leaked clusters back; nothing refers to them, so the order does not matter.
    fn lower_counts(&self, header: &Header, wrong: &[Wrong]) -> Result<()> {
        let mut counts = Refcounts::read(&self.file, header)?;
        for Wrong { run, used, .. } in wrong {
            for cluster in run.numbers() {
                counts.set(cluster, *used)?;
            }
        }
        counts.store()?;
        self.file.flush()
    }

    /// Bit 63 of an entry says that the count is one; writing in place relies on it.
    fn check_marks(&self, header: &Header, l1: &[u64], mend: bool, found: &mut Findings<'_>) -> Result<()> {
        let mut counts = Refcounts::read(&self.file, header)?;
        let cluster = self.rules.geometry.cluster;
        let mut new_l1 = l1.to_vec();
        let mut seen = BTreeSet::new();
        for (number, entry) in (0u64..).zip(&mut new_l1) {
            let Ok(Some(HostOffset(at))) = self.l2_at(number) else { continue };
            if seen.insert(at) {
                self.check_l2_marks(at, &mut counts, mend, found)?;
            }
            let right = if counts.get(cluster.split(at).0)? == 1 { COPIED } else { 0 };
            if *entry & COPIED != right {
                found.add(Severity::Corruption, || {
                    format!("L1 entry {number}: the mark of a single owner is wrong")
                });
                *entry = *entry & !COPIED | right;
            }
        }
        if !mend {
            return Ok(());
        }
        if new_l1 != l1 {
            let bytes: Vec<u8> = new_l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            self.file.write_at(header.l1.at, &bytes)?;
        }
        // Tables in memory have the old marks.
        self.turn_to(header.clone(), new_l1)?;
        self.file.flush()
    }

    fn check_l2_marks(
        &self,
        at: u64,
        counts: &mut Refcounts,
        mend: bool,
        found: &mut Findings<'_>,
    ) -> Result<()> {
        // What cannot be read was found by the census.
        let Ok(mut l2) = L2::read(&self.file, self.rules, Some(HostOffset(at))) else { return Ok(()) };
        let cluster = self.rules.geometry.cluster;
        let mut changed = false;
        for slot in 0..l2.len() {
            let (raw, entry) = (l2.raw(slot), l2.get(slot));
            // Clusters of an external data file are not counted: each is its only owner's.
            let count = |at: u64| if self.rules.data_file { Ok(1) } else { counts.get(cluster.split(at).0) };
            let right = right_mark(raw, &entry, count)?;
            let Some(right) = right else { continue };
            found.add(Severity::Corruption, || {
                format!("L2 table at {at:#x}, entry {slot}: the mark of a single owner is wrong")
            });
            l2.set(slot, RawEntry { word: raw.word & !COPIED | right, ..raw })?;
            changed = true;
        }
        if changed && mend { self.file.write_at(at, l2.bytes()) } else { Ok(()) }
    }

    /// A mended image is neither dirty nor corrupt, and promises nothing that nobody here knows to keep.
    fn clear_marks(&self, mut header: Header, l1: Vec<u64>) -> Result<()> {
        let marks = Incompatible::DIRTY | Incompatible::CORRUPT;
        if header.incompatible.intersects(marks) || header.autoclear != header.kept_promises() {
            header.incompatible.remove(marks);
            header.autoclear = header.kept_promises();
            self.turn_header(&header)?;
            self.turn_to(header, l1)?;
        }
        Ok(())
    }
}

/// The mark that an entry should have, if it has the other one.
pub(super) fn right_mark(
    raw: RawEntry,
    entry: &Result<Entry>,
    mut count: impl FnMut(u64) -> Result<u64>,
) -> Result<Option<u64>> {
    let right = match entry {
        Ok(Entry::Plain(plain)) => match plain.host {
            Some(host) if count(host.0)? == 1 => COPIED,
            _ => 0,
        },
        // Compressed clusters never have it.
        Ok(Entry::Packed(_)) => 0,
        Err(_) if raw.word & COMPRESSED != 0 => 0,
        Err(_) => return Ok(None),
    };
    Ok((raw.word & COPIED != right).then_some(right))
}
