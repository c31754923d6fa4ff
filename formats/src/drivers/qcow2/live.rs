//! Writing while the disk is in use.
//!
//! Bytes go where the guest's bytes are, if nobody else refers to that place. Otherwise (nothing is there, a snapshot
//! shares it, it is compressed) new host clusters are filled, which no table names, and then the L2 entries change
//! in memory; [`flush`](super::flush) brings them to the file.
//!
//! Reference counts are kept exact, with `lazy_refcounts` as well: the dirty bit is never set.

use super::entry::{Entry, Plain, RawEntry};
use super::fault::Fault;
use super::image::Qcow2;
use super::layout::{COPIED, READS_ZERO};
use super::refcount::Clusters;
use super::tables::Found;
use crate::block::Span;
use crate::error::{Common, Result};
use crate::limits::{KIB, MIB};
use crate::mapped::{self, BlockMap, Claim, HostOffset, Packed, Place, parent_run};
use crate::wire::{index, len64, part};

/// Bytes of new clusters that are found a place at a time; one cluster if that is larger.
const BATCH_BYTES: u64 = MIB;
/// What surrounds new bytes is copied in pieces of this size, and zeroes are written so.
const PIECE: u64 = 256 * KIB;

/// A cluster that takes in new bytes.
#[derive(Debug)]
pub(super) struct Work {
    /// Where the cluster begins in the disk.
    at: u64,
    /// The new bytes' place in the disk.
    pub(super) piece: Span,
    /// The host cluster; found later if there is none yet.
    pub(super) host: Option<u64>,
    /// The host cluster reads as zeroes.
    pub(super) blank: bool,
    /// Subclusters that have to be filled: with new bytes, and with what shows there now around them.
    fill: u32,
    /// The entry to be, without its host cluster.
    allocated: u32,
    zero: u32,
    /// The entry changes.
    pub(super) changed: bool,
    /// What it refers to now and will not any more.
    freed: Option<Clusters>,
}

impl Qcow2 {
    /// Writes `data` at `at`.
    pub(super) fn write_live(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut rest = Span::new(at, len64(data.len()))?;
        let mut left = data;
        while !rest.is_empty() {
            let done = {
                let _moving = self.moving()?;
                self.write_some(rest, left)?
            };
            left = left.get(index(done)?..).unwrap_or_default();
            rest = rest.skip(done.max(1));
        }
        self.limit_waiting()
    }

    /// Writes the beginning of `data`; says how many bytes.
    fn write_some(&self, span: Span, data: &[u8]) -> Result<u64> {
        let own = self.state()?.tables.own(self.data(), span)?;
        let Some(mapped::Mapping { place: Place::Data(HostOffset(host)), len }) = own else {
            return self.write_fresh(span, data);
        };
        self.check_place(host, len)?;
        self.reach(host.saturating_add(len))?;
        self.data().write_at(host, part(data, 0, index(len)?, "write")?)?;
        Ok(len)
    }

    /// Refuses to write over the image's own structures, whatever a table says.
    fn check_place(&self, host: u64, len: u64) -> Result<()> {
        if self.data_file.is_some() {
            return Ok(());
        }
        let run = Clusters::of(self.rules.geometry.cluster, host, len);
        self.owners.read().map_err(|_| Common::Poisoned)?.check_data(run)
    }

    /// Makes the file that data lie in at least `end` bytes long.
    pub(super) fn reach(&self, end: u64) -> Result<()> {
        if end <= self.data().size() {
            return Ok(());
        }
        self.with_allocator(|_| if end > self.data().size() { self.data().resize(end) } else { Ok(()) })
    }

    /// Writes to clusters that are not this disk's alone, or not there. All of their entries lie in one sheet.
    fn write_fresh(&self, span: Span, data: &[u8]) -> Result<u64> {
        let cluster = self.rules.geometry.cluster;
        let (span, _claims) = self.claim(span, (BATCH_BYTES >> cluster.shift()).max(1))?;
        let mut works = Vec::new();
        let mut rest = span;
        while !rest.is_empty() {
            let at = cluster.floor(rest.start());
            let to_end = cluster.bytes().saturating_sub(rest.start().saturating_sub(at));
            works.push(self.work(at, rest.truncate(to_end))?);
            rest = rest.skip(to_end);
        }
        let taken = self.find_room(&mut works)?;
        match self.fill(&works, span, data).and_then(|()| self.publish(&works)) {
            Ok(()) => Ok(span.len()),
            Err(e) => {
                // Nothing names them.
                self.with_allocator(|alloc| alloc.release(&taken))?;
                Err(e)
            }
        }
    }

    /// Keeps others away from the first clusters of `span`: at most `batch`, all with their entries in one sheet. Says
    /// which part of `span` they are.
    pub(super) fn claim(&self, span: Span, batch: u64) -> Result<(Span, Vec<Claim<'_>>)> {
        let cluster = self.rules.geometry.cluster;
        let (first, within) = cluster.split(span.start());
        let most = batch.min(self.state()?.tables.in_sheet(span.start()));
        let count = cluster.count(within.saturating_add(span.len())).min(most);
        let end = cluster.start_of(first.saturating_add(count)).unwrap_or(u64::MAX);
        let claims: Result<_> = (first..first.saturating_add(count)).map(|n| self.busy.claim(n)).collect();
        Ok((span.truncate(end.saturating_sub(span.start())), claims?))
    }

    /// What has to be done to the cluster at `at` for the bytes of `piece`.
    pub(super) fn work(&self, at: u64, piece: Span) -> Result<Work> {
        let geometry = self.rules.geometry;
        let Found { entry, alone } = self.state()?.tables.find(at)?;
        let touched = self.touched(at, piece)?;
        let mut work = Work {
            at,
            piece,
            host: None,
            blank: false,
            fill: touched,
            allocated: touched,
            zero: 0,
            changed: true,
            freed: None,
        };
        match entry {
            Entry::Packed(Packed { host, stored }) => {
                work.fill = self.all_subclusters();
                work.allocated = work.fill;
                work.freed = Some(Clusters::of(geometry.cluster, host.0, stored));
            }
            Entry::Plain(Plain { host, copied, allocated, zero }) => {
                work.allocated |= allocated;
                work.zero = zero & !touched;
                let own = alone && copied;
                match host {
                    Some(host) if own || self.rules.data_file => {
                        work.host = Some(host.0);
                        work.fill = touched & !allocated;
                        work.changed = !own || work.fill != 0;
                    }
                    Some(host) => {
                        work.fill |= allocated;
                        work.freed = Some(Clusters::of(geometry.cluster, host.0, 1));
                    }
                    None => {}
                }
            }
        }
        if self.rules.data_file {
            // An external data file holds everything where the disk has it.
            if work.host.is_some_and(|host| host != at) {
                return Err(Fault::DataFileOffset { guest: at, host: work.host.unwrap_or_default() }.into());
            }
            (work.host, work.freed) = (Some(at), None);
        } else if let Some(host) = work.host {
            let file = self.file.size();
            if host >= file {
                return Err(Fault::DataPastEnd { host, file }.into());
            }
            self.check_place(host, 1)?;
        }
        Ok(work)
    }

    /// All subclusters of a cluster, one bit each.
    fn all_subclusters(&self) -> u32 {
        if self.rules.geometry.extended() { u32::MAX } else { 1 }
    }

    /// The subclusters of the cluster at `at` that `piece` touches.
    fn touched(&self, at: u64, piece: Span) -> Result<u32> {
        let subcluster = self.rules.geometry.subcluster;
        let from = subcluster.split(piece.start().saturating_sub(at)).0;
        let to = subcluster.count(piece.end().saturating_sub(at));
        let below = |n: u64| 1u64.checked_shl(u32::try_from(n).unwrap_or(64)).unwrap_or(0).wrapping_sub(1);
        Ok(u32::try_from(below(to) & !below(from)).map_err(|_| Common::Index(to))?)
    }

    /// Finds a host cluster for each that needs one; gives those that were taken.
    pub(super) fn find_room(&self, works: &mut [Work]) -> Result<Vec<Clusters>> {
        let mut taken = Vec::new();
        if works.iter().all(|work| work.host.is_some() && work.freed.is_none()) {
            return Ok(taken);
        }
        let found = self.with_allocator(|alloc| {
            for freed in works.iter().filter_map(|work| work.freed) {
                alloc.check_counted(freed)?;
            }
            let mut run = Clusters { first: 0, count: 0 };
            let mut missing = len64(works.iter().filter(|work| work.host.is_none()).count());
            let mut blank = alloc.blank();
            for work in works.iter_mut().filter(|work| work.host.is_none()) {
                if run.count == 0 {
                    blank = alloc.blank();
                    run = alloc.some(missing)?;
                    taken.push(run);
                }
                work.host = Some(alloc.offset(run.first)?);
                work.blank = run.first >= blank;
                run = Clusters { first: run.first.saturating_add(1), count: run.count.saturating_sub(1) };
                missing = missing.saturating_sub(1);
            }
            alloc.committed();
            Ok(())
        });
        match found {
            Ok(()) => Ok(taken),
            Err(e) => {
                self.with_allocator(|alloc| alloc.release(&taken))?;
                Err(e)
            }
        }
    }

    /// Writes the new bytes, which are those of `span`, and what belongs around them.
    fn fill(&self, works: &[Work], span: Span, data: &[u8]) -> Result<()> {
        let cluster = self.rules.geometry.cluster;
        let mut together: Option<(u64, Span)> = None;
        let write = |(host, piece): (u64, Span)| {
            let at = index(piece.start().saturating_sub(span.start()))?;
            self.reach(host.saturating_add(piece.len()))?;
            self.data().write_at(host, part(data, at, index(piece.len())?, "write")?)
        };
        for work in works {
            let base = work.host.ok_or(Fault::NoCluster)?;
            self.surround(work, base)?;
            let (_, within) = cluster.split(work.piece.start());
            let host = base.saturating_add(within);
            together = match together {
                Some((start, before)) if start.checked_add(before.len()) == Some(host) => {
                    Some((start, Span::new(before.start(), before.len().saturating_add(work.piece.len()))?))
                }
                Some(before) => {
                    write(before)?;
                    Some((host, work.piece))
                }
                None => Some((host, work.piece)),
            };
        }
        together.map_or(Ok(()), write)
    }

    /// Fills what a cluster's new bytes do not, in runs of subclusters.
    fn surround(&self, work: &Work, host: u64) -> Result<()> {
        let subcluster = self.rules.geometry.subcluster;
        let mut number = 0u32;
        while number < 32 {
            let count = (work.fill >> number).trailing_ones();
            if count == 0 {
                number = number.saturating_add((work.fill >> number).trailing_zeros().max(1));
                continue;
            }
            let offset = |n: u32| subcluster.start_of(n.into()).unwrap_or(u64::MAX);
            let run = Span::new(work.at.saturating_add(offset(number)), offset(count))?;
            let before = run.truncate(work.piece.start().saturating_sub(run.start()));
            let behind = run.skip(work.piece.end().saturating_sub(run.start()));
            for around in [before, behind] {
                let to = host.saturating_add(around.start().saturating_sub(work.at));
                self.bring(around, to, work.blank)?;
            }
            number = number.saturating_add(count);
        }
        Ok(())
    }

    /// Writes what the disk shows in `span` to `host`; behind the end of the disk that is zeroes.
    fn bring(&self, span: Span, host: u64, blank: bool) -> Result<()> {
        let size = self.state()?.tables.size;
        let (mut rest, mut host) = (span, host);
        while !rest.is_empty() {
            let inside = rest.truncate(size.saturating_sub(rest.start()));
            let (len, is_zero) = if inside.is_empty() {
                (rest.len(), true)
            } else {
                let run = mapped::first_run(self, inside)?;
                (run.len.clamp(1, inside.len()), run.kind.is_zero())
            };
            let piece = rest.truncate(if is_zero { len } else { len.min(PIECE) });
            if !(is_zero && blank) {
                self.reach(host.saturating_add(piece.len()))?;
            }
            if !is_zero {
                let mut bytes = vec![0; index(piece.len())?];
                self.read(piece.start(), &mut bytes)?;
                self.data().write_at(host, &bytes)?;
            } else if !blank {
                self.data().write_zeroes(Span::new(host, piece.len())?)?;
            }
            rest = rest.skip(piece.len());
            host = host.saturating_add(piece.len());
        }
        Ok(())
    }

    /// Lets the tables in memory name the clusters.
    pub(super) fn publish(&self, works: &[Work]) -> Result<()> {
        let mut entries = Vec::new();
        let mut freed = Vec::new();
        for work in works.iter().filter(|work| work.changed) {
            let host = work.host.ok_or(Fault::NoCluster)?;
            let plain = Plain {
                host: Some(HostOffset(host)),
                copied: true,
                allocated: work.allocated,
                zero: work.zero,
            };
            entries.push((work.at, self.raw(&plain)));
            freed.extend(work.freed);
        }
        self.change_entries(&entries, &freed)
    }

    /// An entry as it lies on disk.
    fn raw(&self, plain: &Plain) -> RawEntry {
        let mark = if plain.copied { COPIED } else { 0 };
        let word = plain.host.map_or(0, |host| host.0 | mark);
        if self.rules.geometry.extended() {
            return RawEntry { word, bitmap: u64::from(plain.allocated) | u64::from(plain.zero) << 32 };
        }
        RawEntry { word: if plain.zero == 0 { word } else { word | READS_ZERO }, bitmap: 0 }
    }

    /// Changes entries of one sheet in memory; `freed` is what they do not refer to any more.
    pub(super) fn change_entries(&self, entries: &[(u64, RawEntry)], freed: &[Clusters]) -> Result<()> {
        let Some((first, _)) = entries.first() else { return Ok(()) };
        let (number, _) = self.rules.geometry.l2_reach.split(*first);
        self.own_l2(number)?;
        self.state()?.tables.set(entries)?;
        self.freed.lock().map_err(|_| Common::Poisoned)?.extend(freed);
        Ok(())
    }

    /// Sees to it that the L2 table `number` is there and belongs to this disk alone.
    fn own_l2(&self, number: u64) -> Result<()> {
        if self.state()?.tables.l2_alone(number)? {
            return Ok(());
        }
        let cluster = self.rules.geometry.cluster;
        self.with_allocator(|alloc| {
            // Another writer may have been faster.
            if self.state()?.tables.l2_alone(number)? {
                return Ok(());
            }
            let old = self.l2_at(number)?;
            let old_run = old.map(|at| Clusters::of(cluster, at.0, 1));
            old_run.map_or(Ok(()), |run| alloc.check_counted(run))?;
            let mut table = super::l2::L2::read(&self.file, self.rules, old)?;
            if old.is_some() {
                self.unmark_shared(&mut table, alloc)?;
            }
            let run = alloc.some(1)?;
            alloc.committed();
            let at = alloc.offset(run.first)?;
            self.owners.write().map_err(|_| Common::Poisoned)?.add(run, "an L2 table");
            let mut state = self.state_mut()?;
            state.tables.put_l2(at, table.bytes())?;
            state.tables.set_l2(number, at)?;
            drop(state);
            self.freed.lock().map_err(|_| Common::Poisoned)?.extend(old_run);
            Ok(())
        })
    }

    /// Takes the mark of a single owner off what is counted more than once: in a shared table it means nothing.
    fn unmark_shared(&self, table: &mut super::l2::L2, alloc: &mut super::alloc::Allocator) -> Result<()> {
        if self.rules.data_file {
            return Ok(());
        }
        for slot in 0..table.len() {
            let raw = table.raw(slot);
            if raw.word & COPIED == 0 {
                continue;
            }
            let Entry::Plain(Plain { host: Some(host), .. }) = table.get(slot)? else { continue };
            let (number, _) = self.rules.geometry.cluster.split(host.0);
            if alloc.refcounts.get(number)? != 1 {
                table.set(slot, RawEntry { word: raw.word & !COPIED, ..raw })?;
            }
        }
        Ok(())
    }

    /// Makes `span` read as zeroes.
    pub(super) fn zero_live(&self, span: Span) -> Result<()> {
        self.clear(span, false)
    }

    /// Gives the space of `span` back, as far as it is whole subclusters. What was stored reads as zeroes.
    pub(super) fn discard_live(&self, span: Span) -> Result<()> {
        self.clear(span, true)
    }

    fn clear(&self, span: Span, discard: bool) -> Result<()> {
        let unit = self.rules.geometry.subcluster;
        let size = self.state()?.tables.size;
        // The last subcluster may be cut off by the end of the disk.
        let from = unit.ceil(span.start()).unwrap_or(u64::MAX).min(span.end());
        let to = if span.end() == size { size } else { unit.floor(span.end()).max(from) };
        if !discard {
            self.write_zero_bytes(span.truncate(from.saturating_sub(span.start())))?;
        }
        let mut rest = Span::new(from, to.saturating_sub(from))?;
        while !rest.is_empty() {
            rest = rest.skip(self.clear_some(rest, discard)?.max(1));
            self.limit_waiting()?;
        }
        if discard { Ok(()) } else { self.write_zero_bytes(span.skip(to.saturating_sub(span.start()))) }
    }

    /// Clears whole subclusters at the beginning of `span`; says how many bytes.
    fn clear_some(&self, span: Span, discard: bool) -> Result<u64> {
        let mapping = self.lookup(span)?;
        let nothing_to_do = match mapping.place {
            Place::Zero => !discard,
            Place::Absent => discard || (self.parent.is_none() && !self.is_leaving()),
            _ => false,
        };
        if nothing_to_do {
            return Ok(mapping.len);
        }
        let cluster = self.rules.geometry.cluster;
        let (number, within) = cluster.split(span.start());
        let piece = span.truncate(cluster.bytes().saturating_sub(within));
        let cleared = {
            let _moving = self.moving()?;
            let _claim = self.busy.claim(number)?;
            self.clear_cluster(piece, discard)?
        };
        if !cleared && !discard {
            self.write_zero_bytes(piece)?;
        }
        Ok(piece.len())
    }

    /// Clears the subclusters that `piece`, a part of one cluster, is made of; `false` if tables cannot say that.
    fn clear_cluster(&self, piece: Span, discard: bool) -> Result<bool> {
        let cluster = self.rules.geometry.cluster;
        let at = cluster.floor(piece.start());
        let Found { entry, .. } = self.state()?.tables.find(at)?;
        let mut mask = self.touched(at, piece)?;
        let below = self.nothing_below(piece)?;
        if self.rules.version2 && !below {
            return Ok(false);
        }
        let (old, freed) = match entry {
            Entry::Packed(_) if mask != self.all_subclusters() && !self.is_to_the_end(at, piece) => {
                return Ok(false);
            }
            Entry::Packed(Packed { host, stored }) => {
                (Plain::default(), Some(Clusters::of(cluster, host.0, stored)))
            }
            Entry::Plain(plain) => (plain, plain.host.map(|host| Clusters::of(cluster, host.0, 1))),
        };
        if discard && matches!(entry, Entry::Plain(_)) {
            mask &= old.allocated | old.zero;
        }
        let mut new = Plain { allocated: old.allocated & !mask, zero: old.zero & !mask, ..old };
        if !below {
            new.zero |= mask;
        }
        if new.allocated == 0 {
            (new.host, new.copied) = (None, false);
        }
        if new == old && !matches!(entry, Entry::Packed(_)) {
            return Ok(true);
        }
        self.clear_raw(piece)?;
        let freed = freed.filter(|_| new.host.is_none() && !self.rules.data_file);
        if let Some(freed) = freed {
            self.with_allocator(|alloc| alloc.check_counted(freed))?;
        }
        self.change_entries(&[(at, self.raw(&new))], freed.as_slice())?;
        Ok(true)
    }

    /// Whether `piece` is all that the disk has of the cluster at `at`.
    fn is_to_the_end(&self, at: u64, piece: Span) -> bool {
        piece.start() == at && self.state().is_ok_and(|s| s.tables.size == piece.end())
    }

    /// A data file that can be read without the image holds the zeroes as well.
    fn clear_raw(&self, piece: Span) -> Result<()> {
        let Some(data) = &self.data_file else { return Ok(()) };
        let there = piece.truncate(data.size().saturating_sub(piece.start()));
        data.write_zeroes(there)
    }

    /// Whether all of `span` would read as zeroes if nothing were allocated here.
    fn nothing_below(&self, span: Span) -> Result<bool> {
        if self.is_leaving() {
            // Nobody knows what comes to lie below.
            return Ok(false);
        }
        let run = parent_run(self.parent.as_ref(), span)?;
        Ok(run.kind.is_zero() && run.len >= span.len())
    }

    /// Writes zeroes where something else is read.
    fn write_zero_bytes(&self, span: Span) -> Result<()> {
        let mut rest = span;
        while !rest.is_empty() {
            let run = {
                let _moving = self.moving()?;
                mapped::first_run(self, rest)?
            };
            let as_it_is = run.kind.is_zero() && !self.is_leaving();
            let piece = rest.truncate(if as_it_is { run.len } else { run.len.min(PIECE) });
            if !as_it_is {
                self.write_live(piece.start(), &vec![0; index(piece.len())?])?;
            }
            rest = rest.skip(piece.len().max(1));
        }
        Ok(())
    }
}
