//! Snapshots inside an image: made, gone back to, deleted, read.
//!
//! Each of the three writes down the whole state to be: L2 tables whose marks change, L1 tables, the snapshot table,
//! and all reference counts, counted anew. All of it goes where nobody refers to; one sector of the header turns to
//! it. So a power cut leaves the image as it was or as it shall be.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::alloc::Allocator;
use super::census::Census;
use super::check::{Lists, right_mark};
use super::fault::Fault;
use super::findings::Findings;
use super::header::{Header, L1_BYTES_MAX, SNAPSHOTS_MAX, TablePlace};
use super::image::Qcow2;
use super::l2::L2;
use super::layout::{COPIED, OFFSET_MASK};
use super::refcount::Refcounts;
use super::snapshot::{Snapshot, SnapshotTable};
use super::view::View;
use crate::block::{Disk, Span, Support};
use crate::check::{Report, Severity};
use crate::error::{Common, Result, Within};
use crate::mapped::HostOffset;
use crate::registry::{self, Moment, Snapshots};
use crate::wire::{index, len64, table};

/// The image as it shall be.
struct Next {
    header: Header,
    l1: Vec<u64>,
    list: Vec<Snapshot>,
    /// The snapshot that has the same tables as the disk, by its place in the list.
    same: Option<usize>,
}

impl Snapshots for Qcow2 {
    fn create(&self, name: &str, moment: Moment) -> Result<registry::Snapshot> {
        let _gate = self.alone()?;
        self.change_history(|next| {
            if next.list.iter().any(|s| s.name == name) {
                return Err(Fault::SnapshotExists(name.into()).into());
            }
            if len64(next.list.len()) >= SNAPSHOTS_MAX {
                let (what, found) = ("snapshots", len64(next.list.len()));
                return Err(Fault::Many { what, found, max: SNAPSHOTS_MAX }.into());
            }
            // As QEMU counts: one more than the largest number.
            let last = next.list.iter().filter_map(|s| s.id.parse::<u64>().ok()).max().unwrap_or_default();
            let id = last.saturating_add(1).to_string();
            next.list.push(Snapshot::new(id, name, moment, next.header.size)?);
            next.same = next.list.len().checked_sub(1);
            Ok(())
        })?;
        let state = self.state()?;
        let made = state.snapshots.list.last().ok_or_else(|| Fault::NoSnapshot(name.into()))?;
        Ok(made.public())
    }

    fn apply(&self, which: &str) -> Result<()> {
        let _gate = self.alone()?;
        self.change_history(|next| {
            let snapshot = next.list.get(find(&next.list, which)?).ok_or(Common::Index(0))?;
            if let Some(bitmap) = self.state()?.bitmaps.iter().find(|b| b.is_consistent()) {
                return Err(Fault::ResizeBitmap(bitmap.name.clone()).into());
            }
            let what = "L1 table";
            let raw: Vec<zerocopy::big_endian::U64> =
                table(&self.file, snapshot.l1.at, snapshot.l1.entries, L1_BYTES_MAX, what)?;
            let entries = index(next.header.geometry.l1_entries(snapshot.size).max(1))?;
            // What a virtual machine kept behind the end of the disk comes back as well.
            next.l1 = raw.into_iter().map(zerocopy::big_endian::U64::get).collect();
            next.l1.resize(entries.max(next.l1.len()), 0);
            next.header.size = snapshot.size;
            Ok(())
        })
    }

    fn delete(&self, which: &str) -> Result<()> {
        let _gate = self.alone()?;
        self.change_history(|next| {
            let by_name = next.list.iter().position(|s| s.name == which);
            next.list.remove(by_name.map_or_else(|| find(&next.list, which), Ok)?);
            Ok(())
        })
    }

    fn disk(&self, which: &str) -> Result<Disk> {
        let state = self.state()?;
        let snapshot =
            state.snapshots.list.get(find(&state.snapshots.list, which)?).ok_or(Common::Index(0))?;
        Ok(Disk::new(View::new(self, &state.header, snapshot)?))
    }
}

/// Where the snapshot is that has this number, or else this name.
fn find(list: &[Snapshot], which: &str) -> Result<usize> {
    let by_id = list.iter().position(|s| s.id == which);
    let found = by_id.or_else(|| list.iter().position(|s| s.name == which));
    Ok(found.ok_or_else(|| Fault::NoSnapshot(which.into()))?)
}

impl Qcow2 {
    /// Turns to what `change` makes of the image. The caller keeps writers away.
    fn change_history(&self, change: impl FnOnce(&mut Next) -> Result<()>) -> Result<()> {
        if self.rules.data_file {
            return Err(Fault::DataFileShape.into());
        }
        // What the disk shows stays, so bitmaps stay good.
        self.ready()?;
        let (header, l1) = self.header_and_l1()?;
        let lists = self.lists()?;
        let mut next = Next { header, l1, list: lists.0.list.clone(), same: None };
        change(&mut next)?;
        // What it counts holds for none of what comes next.
        let mut slot = self.allocator.lock().map_err(|_| Common::Poisoned)?;
        let mut alloc = match slot.take() {
            Some(alloc) => alloc,
            None => self.open_allocator()?,
        };
        let size = self.file.size();
        let written = self.write_next(&mut next, &lists, &mut alloc);
        drop(alloc);
        if let Err(e) = written {
            // Nothing refers to what was written, and counts that were stored on the way are no worse than a leak.
            if self.file.size() > size {
                self.file.resize(size)?;
            }
            return Err(e);
        }
        self.turn_header(&next.header)?;
        // Where everything lies is found out again before the next write.
        self.prepared.store(false, Ordering::Release);
        let snapshots = SnapshotTable::read(&self.file, &next.header).within(|| "snapshot table")?;
        self.state_mut()?.snapshots = Arc::new(snapshots);
        self.turn_to(next.header, next.l1)?;
        self.give_space_back()
    }

    /// Forgets everything that the disk has of its own: all of its parent shows through.
    pub(super) fn forget_all(&self) -> Result<()> {
        self.change_history(|next| {
            next.l1.fill(0);
            Ok(())
        })
    }

    /// Gives the host back what nobody uses.
    fn give_space_back(&self) -> Result<()> {
        if self.file.caps().discard != Support::Native {
            return Ok(());
        }
        let cluster = self.rules.geometry.cluster;
        let mut counts = Refcounts::read(&self.file, &self.state()?.header)?;
        let end = cluster.split(self.file.size()).0;
        let offset = |n: u64| cluster.start_of(n).ok_or(Common::Index(n));
        let mut at = 0;
        while at < end {
            let (count, next) = counts.run(at)?;
            let next = next.min(end);
            if count == 0 {
                self.file.discard(Span::new(offset(at)?, offset(next.saturating_sub(at))?)?)?;
            }
            at = next;
        }
        Ok(())
    }

    /// Puts everything on stable storage that the header to be names.
    fn write_next(&self, next: &mut Next, lists: &Lists, alloc: &mut Allocator) -> Result<()> {
        let bitmaps = Arc::clone(&lists.1);
        // The snapshot that is made has the disk's tables before it has any of its own.
        let count_as = |next: &Next| {
            let list =
                next.list.iter().filter(|s| s.l1.entries > 0 || next.same.is_none()).cloned().collect();
            (Arc::new(SnapshotTable::of(list)), Arc::clone(&bitmaps))
        };
        let now = count_as(next);
        let census = self.counted(&next.header, &next.l1, &now)?;
        let twice = u64::from(next.same.is_some()).saturating_add(1);
        let l1 = self.settle_marks(&next.l1, &census, twice, alloc)?;
        drop(census);
        next.l1 = l1;
        if let Some(snapshot) = next.same.and_then(|at| next.list.get_mut(at)) {
            let place = self.write_table(&next.l1, alloc)?;
            snapshot.set_l1(place)?;
        }
        next.header.l1 = self.write_table(&next.l1, alloc)?;
        let (bytes, count) = SnapshotTable::bytes(&next.list)?;
        next.header.snapshots = TablePlace { at: 0, entries: count };
        if count > 0 {
            next.header.snapshots.at = self.write_new(&bytes, alloc)?;
        }
        next.same = None;
        let finally = count_as(next);
        next.header.refcount_table = self.write_new_counts(&next.header, &next.l1, &finally, Some(alloc))?;
        Ok(())
    }

    /// A census without findings: what cannot be counted must not be counted anew.
    fn counted<'a>(&'a self, header: &'a Header, l1: &'a [u64], lists: &'a Lists) -> Result<Census<'a>> {
        let mut report = Report::default();
        let census = Census::take(self.scope(header, l1, lists), &mut Findings::new(&mut report, false))?;
        match report.findings.iter().find(|f| f.severity == Severity::Corruption) {
            Some(found) => Err(Fault::CannotCount(found.what.clone()).into()),
            None => Ok(census),
        }
    }

    /// An L1 table in which all marks of single owners are right, those of its L2 tables included. An L2 table that
    /// has others is copied; each counts `times` times what the census says.
    fn settle_marks(
        &self,
        l1: &[u64],
        census: &Census<'_>,
        times: u64,
        alloc: &mut Allocator,
    ) -> Result<Vec<u64>> {
        let cluster = self.rules.geometry.cluster;
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        let mut l1 = l1.to_vec();
        for entry in l1.iter_mut().filter(|entry| **entry & OFFSET_MASK != 0) {
            let at = *entry & OFFSET_MASK;
            let place = match places.get(&at) {
                Some(place) => *place,
                None => {
                    let mut l2 = L2::read(&self.file, self.rules, Some(HostOffset(at)))?;
                    let changed = self.mark(&mut l2, census, times)?;
                    let place = if changed { self.write_new(l2.bytes(), alloc)? } else { at };
                    places.insert(at, place);
                    place
                }
            };
            let alone = place != at || census.count(cluster.split(at).0) == 1;
            *entry = place | if alone && times == 1 { COPIED } else { 0 };
        }
        Ok(l1)
    }

    /// Sets right the marks of one table; says whether any was wrong.
    fn mark(&self, l2: &mut L2, census: &Census<'_>, times: u64) -> Result<bool> {
        let cluster = self.rules.geometry.cluster;
        let mut changed = false;
        for slot in 0..l2.len() {
            let (raw, entry) = (l2.raw(slot), l2.get(slot));
            let count = |at: u64| Ok(census.count(cluster.split(at).0).saturating_mul(times));
            if let Some(right) = right_mark(raw, &entry, count)? {
                l2.set(slot, super::entry::RawEntry { word: raw.word & !COPIED | right, ..raw })?;
                changed = true;
            }
        }
        Ok(changed)
    }

    fn write_table(&self, entries: &[u64], alloc: &mut Allocator) -> Result<TablePlace> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        Ok(TablePlace { at: self.write_new(&bytes, alloc)?, entries: len64(entries.len()) })
    }

    /// Writes `bytes` to clusters that nobody uses; says where.
    fn write_new(&self, bytes: &[u8], alloc: &mut Allocator) -> Result<u64> {
        let cluster = self.rules.geometry.cluster;
        let run = alloc.all(cluster.count(len64(bytes.len())))?;
        let at = alloc.offset(run.first)?;
        self.file.write_at(at, bytes)?;
        Ok(at)
    }
}
