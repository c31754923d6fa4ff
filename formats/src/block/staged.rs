//! Holds writes back: until a transaction commits them, or for good when a log is replayed only in memory.
//!
//! Changed pages of 4 KiB live in memory, and past a ceiling in an unlinked temporary file. Nothing below is
//! written, but for what [`Staged::through`] lets pass ([`fresh`](super::fresh)). A page is there as a whole, so a
//! partial write first reads the rest of its page from below.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::fresh::Fresh;
use super::{BlockDevice, BlockSize, Caps, Disk, Run, RunKind, Span, Support};
use crate::error::{Common, Result};
use crate::limits::STAGED_MEMORY_MAX;
use crate::wire::{index, is_zero, len64, part, part_mut};

const PAGE: usize = 4096;
const PAGE_SIZE: BlockSize = match BlockSize::from_shift(12) {
    Some(size) => size,
    None => panic!("12 is below 63"),
};

/// A private writable layer over a disk.
#[derive(Debug)]
pub struct Staged {
    below: Disk,
    state: RwLock<State>,
    /// What nothing refers to may be written below.
    through: bool,
    /// What lies below is the file that an edit lands on.
    over_file: bool,
}

#[derive(Debug)]
struct State {
    size: u64,
    /// Bytes of `below` that still show through: shrinking and growing again must not bring old bytes back.
    visible: u64,
    pages: BTreeMap<u64, Page>,
    in_memory: u64,
    spill: Option<Spill>,
    fresh: Fresh,
}

#[derive(Debug)]
enum Page {
    Memory(Box<[u8; PAGE]>),
    /// Byte offset in the spill file.
    Spilled(u64),
    Zero,
}

#[derive(Debug)]
struct Spill {
    file: File,
    len: u64,
}

/// One contiguous change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whole pages, but for the end of the disk.
    pub span: Span,
    /// What is there now.
    pub kind: ChangeKind,
}

/// What a change puts into its span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Bytes, to be read from the [`Staged`].
    Data,
    /// Zeroes.
    Zero,
}

/// Sorted changes, and zeroes where none of them touches `span`.
pub(crate) fn with_zeroes(mut changes: Vec<Change>, span: Span) -> Vec<Change> {
    let mut gaps = Vec::new();
    let mut rest = span;
    for change in &changes {
        let gap = rest.truncate(change.span.start().saturating_sub(rest.start()));
        if !gap.is_empty() {
            gaps.push(Change { span: gap, kind: ChangeKind::Zero });
        }
        rest = rest.skip(change.span.end().saturating_sub(rest.start()));
    }
    if !rest.is_empty() {
        gaps.push(Change { span: rest, kind: ChangeKind::Zero });
    }
    if !gaps.is_empty() {
        changes.append(&mut gaps);
        changes.sort_by_key(|change| change.span.start());
    }
    changes
}

impl Staged {
    /// A layer over `below` without changes.
    pub fn new(below: Disk) -> Self {
        let size = below.size();
        let (pages, fresh) = (BTreeMap::new(), Fresh::default());
        let state = State { size, visible: size, pages, in_memory: 0, spill: None, fresh };
        Self { below, state: RwLock::new(state), through: false, over_file: false }
    }

    /// Such a layer, and `below` gets at once what is written to places that nothing there refers to.
    pub fn through(below: Disk) -> Self {
        Self { through: true, ..Self::over(below) }
    }

    /// The same over the file that the changes are going to land on, of which [places](BlockDevice::place) are told.
    pub fn over(below: Disk) -> Self {
        Self { over_file: true, ..Self::new(below) }
    }

    /// Makes sure that what was written below is on stable storage. It stays there from then on; an error after
    /// [`undo`](Self::undo).
    pub fn settle(&self) -> Result<()> {
        self.exclusive()?.fresh.settle(&self.below)
    }

    /// What was settled does not land after all.
    pub fn unsettle(&self) -> Result<()> {
        self.exclusive()?.fresh.unsettle();
        Ok(())
    }

    /// Gives the space back that was taken below, unless it is settled.
    pub fn undo(&self) -> Result<()> {
        self.exclusive()?.fresh.undo(&self.below)
    }

    /// The disk under the changes.
    pub fn below(&self) -> &Disk {
        &self.below
    }

    /// All changes, in order of offset, neighbours of one kind joined.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let state = self.shared()?;
        let mut all: Vec<Change> = Vec::new();
        for (number, page) in &state.pages {
            let start = PAGE_SIZE.start_of(*number).ok_or(Common::Index(*number))?;
            let len = PAGE_SIZE.bytes().min(state.size.saturating_sub(start));
            if len == 0 {
                continue;
            }
            let kind = if matches!(page, Page::Zero) { ChangeKind::Zero } else { ChangeKind::Data };
            match all.last_mut() {
                Some(last) if last.kind == kind && last.span.end() == start => {
                    last.span = Span::new(last.span.start(), last.span.len().saturating_add(len))?;
                }
                _ => all.push(Change { span: Span::new(start, len)?, kind }),
            }
        }
        // What was cut off and came back reads as zeroes, with pages of its own or without.
        let came_back = state.size.min(self.below.size()).saturating_sub(state.visible);
        Ok(with_zeroes(all, Span::new(state.visible, came_back)?))
    }

    /// Whether nothing was changed, the size included.
    pub fn is_unchanged(&self) -> Result<bool> {
        let state = self.shared()?;
        Ok(state.pages.is_empty() && state.size == self.below.size())
    }

    fn shared(&self) -> Result<RwLockReadGuard<'_, State>> {
        self.state.read().map_err(|_| Common::Poisoned.into())
    }

    fn exclusive(&self) -> Result<RwLockWriteGuard<'_, State>> {
        self.state.write().map_err(|_| Common::Poisoned.into())
    }

    /// Reads one page as it is now.
    fn load(&self, state: &State, number: u64, out: &mut [u8; PAGE]) -> Result<()> {
        match state.pages.get(&number) {
            Some(Page::Memory(bytes)) => out.copy_from_slice(bytes.as_slice()),
            Some(Page::Zero) => out.fill(0),
            Some(Page::Spilled(at)) => state.spilled(*at, out)?,
            None => self.load_below(state, number, out)?,
        }
        Ok(())
    }

    fn load_below(&self, state: &State, number: u64, out: &mut [u8]) -> Result<()> {
        let start = PAGE_SIZE.start_of(number).ok_or(Common::Index(number))?;
        let have = index(state.visible.saturating_sub(start).min(len64(out.len())))?;
        out.fill(0);
        if have == 0 {
            return Ok(());
        }
        self.below.read_at(start, part_mut(out, 0, have, "page")?)
    }

    /// Writes to the pages that are held back.
    fn hold(&self, state: &mut State, at: u64, data: &[u8]) -> Result<()> {
        let mut page = [0u8; PAGE];
        by_page(at, data.len(), |number, within, done, take| {
            if take < PAGE {
                self.load(state, number, &mut page)?;
            }
            part_mut(&mut page, within, take, "page")?.copy_from_slice(part(data, done, take, "write")?);
            self.store(state, number, &page)
        })
    }

    fn store(&self, state: &mut State, number: u64, page: &[u8; PAGE]) -> Result<()> {
        if is_zero(page) {
            return state.put(number, Page::Zero);
        }
        if let Some(Page::Memory(old)) = state.pages.get_mut(&number) {
            old.copy_from_slice(page);
            return Ok(());
        }
        if let Some(Page::Spilled(at)) = state.pages.get(&number) {
            let at = *at;
            let spill = state.spill.as_ref().ok_or(Common::Poisoned)?;
            spill.file.write_all_at(page, at)?;
            return Ok(());
        }
        if state.in_memory < STAGED_MEMORY_MAX {
            return state.put(number, Page::Memory(Box::new(*page)));
        }
        if state.spill.is_none() {
            state.spill = Some(Spill { file: tempfile::tempfile()?, len: 0 });
        }
        let spill = state.spill.as_mut().ok_or(Common::Poisoned)?;
        let at = spill.len;
        spill.file.write_all_at(page, at)?;
        spill.len = at.saturating_add(len64(PAGE));
        state.put(number, Page::Spilled(at))
    }
}

impl State {
    fn put(&mut self, number: u64, page: Page) -> Result<()> {
        let was = matches!(self.pages.get(&number), Some(Page::Memory(_)));
        let is = matches!(page, Page::Memory(_));
        if is && !was {
            self.in_memory = self.in_memory.saturating_add(PAGE_SIZE.bytes());
        } else if was && !is {
            self.in_memory = self.in_memory.saturating_sub(PAGE_SIZE.bytes());
        }
        self.pages.insert(number, page);
        Ok(())
    }

    fn spilled(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let spill = self.spill.as_ref().ok_or(Common::Poisoned)?;
        spill.file.read_exact_at(out, at)?;
        Ok(())
    }
}

/// Calls `each(page number, offset within the page, bytes done, bytes)` for the pages of a request.
fn by_page(at: u64, len: usize, mut each: impl FnMut(u64, usize, usize, usize) -> Result<()>) -> Result<()> {
    let mut done = 0usize;
    while done < len {
        let (number, within) = PAGE_SIZE.split(at.saturating_add(len64(done)));
        let within = index(within)?;
        let take = PAGE.saturating_sub(within).min(len.saturating_sub(done));
        each(number, within, done, take)?;
        done = done.saturating_add(take);
    }
    Ok(())
}

impl BlockDevice for Staged {
    fn size(&self) -> u64 {
        self.shared().map_or(0, |s| s.size)
    }

    fn caps(&self) -> Caps {
        Caps {
            write: true,
            zero: Support::Native,
            discard: Support::No,
            runs: Support::Native,
            resize: true,
            preferred: 64 << 10,
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let state = self.shared()?;
        // Most of a large read shows through: one request below, then the changed pages over it.
        let span = Span::new(at, len64(buf.len()))?;
        let below = index(state.visible.saturating_sub(at).min(span.len()))?;
        buf.fill(0);
        let (first, _) = PAGE_SIZE.split(at);
        let (last, _) = PAGE_SIZE.split(span.end().saturating_sub(1));
        let staged = state.pages.range(first..=last).count();
        if below > 0 && len64(staged) <= last.saturating_sub(first) {
            self.below.read_at(at, part_mut(buf, 0, below, "read")?)?;
        }
        if staged == 0 {
            return Ok(());
        }
        let mut page = [0u8; PAGE];
        let all = len64(staged) > last.saturating_sub(first);
        by_page(at, buf.len(), |number, within, done, take| {
            if all || state.pages.contains_key(&number) {
                self.load(&state, number, &mut page)?;
                part_mut(buf, done, take, "read")?.copy_from_slice(part(&page, within, take, "page")?);
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.hold(&mut *self.exclusive()?, at, data)
    }

    fn claim(&self, span: Span) -> Result<bool> {
        let mut state = self.exclusive()?;
        if !self.through || state.size != self.below.size() || state.visible != state.size {
            return Ok(false);
        }
        let State { pages, fresh, size, .. } = &mut *state;
        let changed = pages.keys().filter_map(|number| {
            let start = PAGE_SIZE.start_of(*number)?;
            Span::new(start, PAGE_SIZE.bytes().min(size.saturating_sub(start))).ok()
        });
        Ok(fresh.claim(span, changed))
    }

    fn write_fresh(&self, at: u64, data: &[u8]) -> Result<()> {
        let mut state = self.exclusive()?;
        let span = Span::new(at, len64(data.len()))?;
        let (first, _) = PAGE_SIZE.split(at);
        let (last, _) = PAGE_SIZE.split(span.end().saturating_sub(1));
        // A page that is held back hides what lies below.
        let held = state.pages.range(first..=last).next().is_some();
        if held || !state.fresh.passes(span, state.visible) {
            return self.hold(&mut state, at, data);
        }
        state.fresh.note(&self.below, span)?;
        self.below.write_at(at, data)
    }

    fn place(&self, span: Span) -> Option<Span> {
        self.over_file.then_some(span)
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        let mut state = self.exclusive()?;
        let mut page = [0u8; PAGE];
        let mut rest = span;
        while !rest.is_empty() {
            let (number, within) = PAGE_SIZE.split(rest.start());
            let take = PAGE_SIZE.bytes().saturating_sub(within).min(rest.len());
            if take == PAGE_SIZE.bytes() {
                state.put(number, Page::Zero)?;
            } else {
                self.load(&state, number, &mut page)?;
                part_mut(&mut page, index(within)?, index(take)?, "page")?.fill(0);
                self.store(&mut state, number, &page)?;
            }
            rest = rest.skip(take);
        }
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let state = self.shared()?;
        let (first, within) = PAGE_SIZE.split(span.start());
        if let Some(page) = state.pages.get(&first) {
            let kind = if matches!(page, Page::Zero) { RunKind::Zero } else { RunKind::Data };
            let len = PAGE_SIZE.bytes().saturating_sub(within).min(span.len());
            return Ok(Run { len, kind });
        }
        let next = state.pages.range(first..).next().and_then(|(n, _)| PAGE_SIZE.start_of(*n));
        let until = next.unwrap_or(u64::MAX).min(span.end());
        if span.start() >= state.visible {
            return Ok(Run { len: until.saturating_sub(span.start()), kind: RunKind::Hole });
        }
        let until = until.min(state.visible);
        self.below.first_run(span.truncate(until.saturating_sub(span.start())))
    }

    fn resize(&self, size: u64) -> Result<()> {
        let mut state = self.exclusive()?;
        if size < state.size {
            let (keep, within) = PAGE_SIZE.split(size);
            let from = if within == 0 { keep } else { keep.saturating_add(1) };
            drop(state.pages.split_off(&from));
            state.in_memory = len64(state.pages.values().filter(|p| matches!(p, Page::Memory(_))).count())
                .saturating_mul(PAGE_SIZE.bytes());
            state.visible = state.visible.min(size);
            if let Some(Page::Memory(page)) = state.pages.get_mut(&keep) {
                part_mut(page.as_mut_slice(), index(within)?, PAGE.saturating_sub(index(within)?), "page")?
                    .fill(0);
            } else if let Some(Page::Spilled(_)) = state.pages.get(&keep) {
                let mut page = [0u8; PAGE];
                self.load(&state, keep, &mut page)?;
                part_mut(&mut page, index(within)?, PAGE.saturating_sub(index(within)?), "page")?.fill(0);
                self.store(&mut state, keep, &page)?;
            }
        }
        state.size = size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::MemDevice;
    use super::*;

    fn staged(size: usize) -> (Disk, Arc<Staged>, Disk) {
        let below = Disk::new(MemDevice::from_bytes((0..size).map(|i| (i % 251) as u8).collect()));
        let staged = Arc::new(Staged::new(below.clone()));
        let top = Disk::from_arc(Arc::clone(&staged) as Arc<dyn BlockDevice>);
        (below, staged, top)
    }

    #[test]
    fn writes_are_seen_above_and_not_below() {
        let (below, staged, top) = staged(20_000);
        top.write_at(4090, &[255; 10]).unwrap();
        top.write_zeroes(Span::new(8192, 8192).unwrap()).unwrap();
        let (mut a, mut b) = (vec![0; 20_000], vec![0; 20_000]);
        top.read_at(0, &mut a).unwrap();
        below.read_at(0, &mut b).unwrap();
        assert_eq!(&a[4090..4100], &[255; 10]);
        assert_eq!(&a[8192..16384], &[0; 8192]);
        assert_eq!((&a[..4090], &a[4100..8192], &a[16384..]), (&b[..4090], &b[4100..8192], &b[16384..]));
        let changes = staged.changes().unwrap();
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[1], Change { span: Span::new(8192, 8192).unwrap(), kind: ChangeKind::Zero });
    }

    #[test]
    fn shrinking_and_growing_does_not_bring_old_bytes_back() {
        let (_, _, top) = staged(20_000);
        top.write_at(100, &[9; 10]).unwrap();
        top.resize(105).unwrap();
        top.resize(30_000).unwrap();
        let mut buf = vec![1; 30_000];
        top.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf[100..106], &[9, 9, 9, 9, 9, 0]);
        assert!(buf[105..].iter().all(|b| *b == 0));
    }
}
