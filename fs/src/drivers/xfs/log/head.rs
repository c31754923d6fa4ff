//! Where the log begins and ends.
//!
//! The head is where the next record goes: the first block of the older round. Records may have been under way to
//! the disk when the system died, so that some before the head are missing or torn; the head goes back before the
//! first of them. The last record names the tail, the oldest record whose changes may not have reached their
//! places. If the last record says that the filesystem was unmounted, there is nothing to replay.

use racker_formats::error::{Result, Within};
use racker_formats::wire::take;

use super::super::fault::Fault;
use super::super::units::{BASIC_BLOCK, Lsn};
use super::layout::{RawLogOp, RawLogRecord};
use super::record::{Header, RECORD_BYTES_MAX, Record};
use super::ring::{Ring, is_header};

/// Records that can be under way at one time.
const IN_FLIGHT: u32 = 8;
/// Flag of the operation that says that the filesystem was unmounted.
pub(super) const OP_UNMOUNT: u8 = 0x20;

/// What the log says about itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// Where the next record goes.
    pub(super) head: Lsn,
    /// The block of the last record's header.
    pub(super) last_block: u32,
    /// The block of the oldest record that has to be replayed; the head's if there is none.
    pub(super) tail: u32,
    /// The oldest record as the last one names it.
    pub(super) tail_lsn: Lsn,
    /// Nothing has to be replayed.
    pub(super) clean: bool,
}

/// Blocks of the longest record.
fn record_blocks(ring: &Ring) -> u32 {
    let longest = if ring.place.v2 { RECORD_BYTES_MAX } else { 32 << 10 };
    (longest >> 9).min(ring.blocks)
}

/// Blocks that can be under way at one time.
pub(super) fn blocks_in_flight(ring: &Ring) -> u32 {
    record_blocks(ring).saturating_mul(IN_FLIGHT).min(ring.blocks)
}

impl State {
    /// Finds head and tail.
    pub(super) fn find(ring: &Ring) -> Result<Self> {
        Self::find_any(ring).within(|| "log")
    }

    fn find_any(ring: &Ring) -> Result<Self> {
        if ring.blocks < 2 {
            return Err(Fault::Structure { what: "log", why: "too short" }.into());
        }
        let Some(guess) = guess_head(ring)? else { return Ok(Self::never_written()) };
        // Most logs end in an unmount record: nothing was under way when it was written, and it ends the search.
        let quick = Self::at(ring, guess).ok().flatten().filter(|s| s.clean);
        if let Some(state) =
            quick.filter(|s| Record::read(ring, s.last_block).is_ok_and(|r| r.check(ring).is_ok()))
        {
            return Ok(state);
        }
        let head = settle_head(ring, guess)?;
        let none = || Fault::Structure { what: "log", why: "has no record" };
        let state = Self::at(ring, head)?.ok_or_else(none)?;
        if state.clean {
            return Ok(state);
        }
        state.verified(ring)
    }

    /// The state of a log of zeroes.
    fn never_written() -> Self {
        Self { head: Lsn::new(1, 0), last_block: 0, tail: 0, tail_lsn: Lsn::new(1, 0), clean: true }
    }

    /// The state if the head is block `head`: what the last record before it says.
    fn at(ring: &Ring, head: u32) -> Result<Option<Self>> {
        let Some(header) = last_header(ring, head, ring.blocks)? else { return Ok(None) };
        Self::from_last(ring, head, &header).map(Some)
    }

    fn from_last(ring: &Ring, head: u32, last: &Header) -> Result<Self> {
        last.check_uuid(ring)?;
        // A record that ends at or behind the log's end: what follows belongs to the next round.
        let wrapped = head <= last.block;
        let cycle = last.raw.h_cycle.get().saturating_add(wrapped.into());
        let tail_lsn = last.tail();
        let mut state = Self {
            head: Lsn::new(cycle, head),
            last_block: last.block,
            tail: tail_lsn.block(),
            tail_lsn,
            clean: false,
        };
        if is_unmount(ring, head, last)? {
            state.tail = head;
            state.clean = true;
        }
        state.check()?;
        if state.tail >= ring.blocks {
            let found = state.tail.into();
            return Err(Fault::Field { what: "h_tail_lsn", found, why: "outside of the log" }.into());
        }
        Ok(state)
    }

    /// The tail is not in front of the head.
    fn check(&self) -> Result<()> {
        let (head, tail) = (self.head, self.tail_lsn);
        let same = head.cycle() == tail.cycle() && head.block() >= tail.block();
        let before = tail.cycle().checked_add(1) == Some(head.cycle()) && head.block() < tail.block();
        if !self.clean && !same && !before {
            let why = "not within one round of the head";
            return Err(Fault::Field { what: "h_tail_lsn", found: tail.0, why }.into());
        }
        Ok(())
    }

    /// Takes back the head before torn records, and the tail behind ones that were overwritten.
    fn verified(self, ring: &Ring) -> Result<Self> {
        let mut state = self;
        if state.tail == state.head.block() {
            return Ok(state);
        }
        let first = back_records(ring, state.head.block(), state.tail, IN_FLIGHT)?;
        if let Err((bad, _)) = check_records(ring, first, state.head.block()) {
            let reach = ring.distance(state.tail, bad);
            let torn = || Fault::Structure { what: "log", why: "no sound record before a torn one" };
            let last = last_header(ring, bad, reach)?.ok_or_else(torn)?;
            tracing::warn!(block = bad, "a torn record ends the log");
            state = Self::from_last(ring, bad, &last)?;
            if state.clean || state.tail == state.head.block() {
                return Ok(state);
            }
        }
        state.tail = sound_tail(ring, &state)?;
        Ok(state)
    }
}

/// Whether the record before `head` says that the filesystem was unmounted.
fn is_unmount(ring: &Ring, head: u32, last: &Header) -> Result<bool> {
    if ring.after(last.block, last.blocks()) != head || last.raw.h_num_logops.get() != 1 {
        return Ok(false);
    }
    let data = ring.read(ring.after(last.block, last.head_blocks), 1)?;
    let op: RawLogOp = take(&data, 0, "log operation")?;
    Ok(op.oh_flags & OP_UNMOUNT != 0)
}

/// The first block of the older round as bisection finds it; none if the log was never written.
fn guess_head(ring: &Ring) -> Result<Option<u32>> {
    let end = ring.blocks.saturating_sub(1);
    let (first, last) = (ring.cycle(0)?, ring.cycle(end)?);
    if first == 0 {
        return Ok(None);
    }
    if first == last {
        return Ok(Some(0));
    }
    let (mut low, mut high) = (0, end);
    while high.saturating_sub(low) > 1 {
        let middle = low.midpoint(high);
        if ring.cycle(middle)? == last {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(Some(high))
}

/// Goes back from where bisection ended to the first block that was not written in this round, and from there to
/// the end of a whole record.
fn settle_head(ring: &Ring, guess: u32) -> Result<u32> {
    let last_cycle = ring.cycle(ring.blocks.saturating_sub(1))?;
    // With one round all over, the head is behind the last block.
    let mut head = if guess == 0 { ring.blocks } else { guess };
    let hole = if guess == 0 { last_cycle.wrapping_sub(1) } else { last_cycle };
    let scan = blocks_in_flight(ring);
    if head >= scan {
        let start = head.saturating_sub(scan);
        head = ring.find_cycle(start, scan, hole)?.unwrap_or(head);
    } else if last_cycle == 0 {
        // The rest of the log was never written, so nothing can be missing at its end.
        head = ring.find_cycle(0, head, hole)?.unwrap_or(head);
    } else {
        let before = scan.saturating_sub(head);
        let start = ring.blocks.saturating_sub(before);
        head = match ring.find_cycle(start, before, hole.wrapping_sub(1))? {
            Some(found) => found,
            None => ring.find_cycle(0, head, hole)?.unwrap_or(head),
        };
    }
    let whole = whole_record(ring, head)?;
    Ok(if whole == ring.blocks { 0 } else { whole })
}

/// `head`, or the beginning of the record before it if that is not all there.
fn whole_record(ring: &Ring, head: u32) -> Result<u32> {
    let at = if head == ring.blocks { 0 } else { head };
    let missing = || Fault::Structure { what: "log", why: "no record before the head" };
    let last = last_header(ring, at, record_blocks(ring).saturating_add(IN_FLIGHT))?.ok_or_else(missing)?;
    last.check_uuid(ring)?;
    Ok(if ring.distance(last.block, at) == last.blocks() { head } else { last.block })
}

/// The header of the last record before `head`, among `reach` blocks.
fn last_header(ring: &Ring, head: u32, reach: u32) -> Result<Option<Header>> {
    const STEP: u32 = 32;
    let mut done = 0u32;
    while done < reach.min(ring.blocks) {
        let step = STEP.min(reach.min(ring.blocks).saturating_sub(done));
        let back = done.saturating_add(step);
        let start = ring.after(head, ring.blocks.saturating_sub(back));
        let bytes = ring.read(start, step)?;
        for (i, block) in (0u32..step).zip(bytes.chunks_exact(BASIC_BLOCK)).rev() {
            if is_header(block) {
                return Header::parse(ring, ring.after(start, i), block).map(Some);
            }
        }
        done = back;
    }
    Ok(None)
}

/// The block where the `count`th record before `head` begins, or the oldest not before `tail`.
fn back_records(ring: &Ring, head: u32, tail: u32, count: u32) -> Result<u32> {
    let mut at = head;
    for _ in 0..count {
        let reach = ring.distance(tail, at);
        match last_header(ring, at, reach) {
            Ok(Some(header)) => at = header.block,
            Ok(None) => break,
            // A header that makes no sense is found again by the check of its record.
            Err(_) => match last_magic(ring, at, reach)? {
                Some(block) => at = block,
                None => break,
            },
        }
    }
    Ok(at)
}

/// The last block before `head` that begins as a header does, among `reach` blocks.
fn last_magic(ring: &Ring, head: u32, reach: u32) -> Result<Option<u32>> {
    for back in 1..=reach {
        let at = ring.after(head, ring.blocks.saturating_sub(back));
        if is_header(&ring.read(at, 1)?) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The next block from `from` on, before `head`, that begins as a header does.
fn next_magic(ring: &Ring, from: u32, head: u32) -> Result<Option<u32>> {
    for ahead in 0..ring.distance(from, head) {
        let at = ring.after(from, ahead);
        if is_header(&ring.read(at, 1)?) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Checks the records from `from` to `to`; an error comes with the block of the record.
fn check_records(
    ring: &Ring,
    from: u32,
    to: u32,
) -> std::result::Result<(), (u32, racker_formats::error::Error)> {
    walk(ring, from, to, &mut |record| record.check(ring))
}

/// Calls `visit` for the records from `from` up to `to`.
pub(super) fn walk(
    ring: &Ring,
    from: u32,
    to: u32,
    visit: &mut dyn FnMut(Record) -> Result<()>,
) -> std::result::Result<(), (u32, racker_formats::error::Error)> {
    let mut at = from;
    // Every record has at least two blocks, so this ends.
    let mut left = ring.distance(from, to);
    while left > 0 {
        let here = |e: racker_formats::error::Error| (at, e.within(format!("log record at block {at}")));
        let record = Record::read(ring, at).map_err(here)?;
        let blocks = record.header.blocks();
        visit(record).map_err(here)?;
        let over = || Fault::Structure { what: "log", why: "a record goes over the head" };
        left = left.checked_sub(blocks).ok_or_else(|| here(over().into()))?;
        at = ring.after(at, blocks);
    }
    Ok(())
}

/// The tail, moved on while the records there are damaged and so near the head that a write that never ended may
/// have gone over them: the tail must have been further by then.
fn sound_tail(ring: &Ring, state: &State) -> Result<u32> {
    let head = state.head.block();
    let missing = || Fault::Structure { what: "log", why: "no record at the tail" };
    let mut tail = next_magic(ring, state.tail, head)?.ok_or_else(missing)?;
    let raw: RawLogRecord = take(&ring.read(state.last_block, 1)?, 0, "log record")?;
    let size = raw.h_size.get().clamp(32 << 10, RECORD_BYTES_MAX);
    let near = (size >> 9).saturating_mul(IN_FLIGHT);
    loop {
        let Err((bad, error)) = check_records(ring, tail, head) else { return Ok(tail) };
        if ring.distance(head, bad) > near {
            return Err(error);
        }
        let next = ring.after(bad, 1);
        tail = match next_magic(ring, next, head)? {
            Some(found) if ring.distance(head, found) > ring.distance(head, tail) => found,
            _ => return Err(error),
        };
        tracing::warn!(block = tail, "the oldest records were overwritten");
    }
}
