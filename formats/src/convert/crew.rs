//! The threads of a copy and what they agree on.
//!
//! Whoever has finished a chunk and finds that it is the next one in order, and that nobody is writing, writes
//! it and all that are ready behind it: the bytes are still in that processor's cache, which makes writing them
//! twice as fast as handing them to a thread that only writes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use super::Settle;
use super::digest::{Digest, Tally};
use super::plan::{Plan, Step};
use super::sink::{Piece, Sink};
use super::work::{Chunk, Work};
use crate::block::Span;
use crate::error::{Common, Error, Result};
use crate::limits::MIB;

/// Chunks in flight for each thread: one being worked on, one waiting, one being written.
const TICKETS_PER_THREAD: usize = 3;
/// Bytes of chunks in flight, however many threads there are.
const MEMORY_MAX: u64 = 96 * MIB;
/// Bytes of the disk between two times that the host is asked to write down what it has: long enough that a file
/// does not fall into pieces, and often enough that hardly anything is left for the end.
const SETTLE_EVERY: u64 = 64 * MIB;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// All that the threads share.
struct Desk<'a> {
    state: Mutex<State<'a>>,
    /// There may be something to do.
    changed: Condvar,
    /// It is over, well or badly: for the one who watches.
    over: Condvar,
}

struct State<'a> {
    plan: Plan<'a>,
    /// The plan has come to the end of the disk.
    planned: bool,
    /// Number of the next step of the plan.
    issued: u64,
    /// Number of the next step to be written.
    next: u64,
    /// Chunks that are being worked on or wait for their turn.
    tickets: usize,
    tickets_max: usize,
    /// Steps that are done and wait for their turn: at most a hole for each ticket besides the chunks.
    ready: BTreeMap<u64, Ready>,
    /// Where the pieces go; whoever writes has taken it.
    sink: Option<Box<dyn Sink>>,
    /// The digest of what was written.
    tally: Tally,
    /// Bytes of the disk that are done.
    done: u64,
    /// The first thing that went wrong.
    error: Option<Error>,
    /// Threads that wait for something to do: nobody is woken in vain.
    waiting: usize,
}

struct Ready {
    span: Span,
    chunk: Chunk,
    /// A chunk holds a ticket, a hole does not.
    has_ticket: bool,
}

/// What a thread does next.
enum Task {
    Write(Box<dyn Sink>, Ready),
    Read(u64, Span, bool),
    Stop,
}

/// Copies all that `plan` has into `sink`, with so many threads; gives the sink back to be finished, and the digest
/// of what was copied if `work` computes digests.
pub(super) fn run(
    work: &Work<'_>,
    plan: Plan<'_>,
    sink: Box<dyn Sink>,
    threads: usize,
    settle: Option<&Settle<'_>>,
    progress: &mut dyn FnMut(u64),
) -> Result<(Box<dyn Sink>, Digest)> {
    let threads = threads.max(1);
    let most = usize::try_from(MEMORY_MAX.div_euclid(plan.chunk().bytes().max(1))).unwrap_or(usize::MAX);
    let state = State {
        plan,
        planned: false,
        issued: 0,
        next: 0,
        tickets: 0,
        tickets_max: threads.saturating_mul(TICKETS_PER_THREAD).min(most).max(1),
        ready: BTreeMap::new(),
        sink: Some(sink),
        tally: Tally::default(),
        done: 0,
        error: None,
        waiting: 0,
    };
    let desk = Desk { state: Mutex::new(state), changed: Condvar::new(), over: Condvar::new() };
    thread::scope(|scope| {
        for _ in 0..threads {
            let body = || {
                // A driver's mistake must not leave the others waiting for a chunk that never comes.
                let end = catch_unwind(AssertUnwindSafe(|| desk.serve(work)));
                if let Some(e) = end.unwrap_or_else(|_| Err(Common::Poisoned.into())).err() {
                    desk.fail(e);
                }
            };
            if let Err(e) = thread::Builder::new().name("copy".into()).spawn_scoped(scope, body) {
                desk.fail(e.into());
            }
        }
        if let Some(settle) = settle {
            let body = || {
                if let Err(e) = desk.settle(settle) {
                    desk.fail(e);
                }
            };
            if let Err(e) = thread::Builder::new().name("settle".into()).spawn_scoped(scope, body) {
                desk.fail(e.into());
            }
        }
        desk.watch(progress)
    })?;
    let mut state = desk.state.into_inner().map_err(|_| Common::Poisoned)?;
    progress(state.done);
    let sink = state.sink.take().ok_or(Common::Poisoned)?;
    Ok((sink, state.tally.finish()))
}

impl<'a> Desk<'a> {
    fn lock(&self) -> Result<MutexGuard<'_, State<'a>>> {
        self.state.lock().map_err(|_| Common::Poisoned.into())
    }

    fn fail(&self, e: Error) {
        // A poisoned lock ends all threads by itself.
        if let Ok(mut state) = self.state.lock() {
            state.error.get_or_insert(e);
        }
        self.changed.notify_all();
        self.over.notify_all();
    }

    /// Tells progress until all is done or something went wrong.
    fn watch(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut told = 0;
        let mut state = self.lock()?;
        loop {
            if let Some(e) = state.error.take() {
                // The threads still have to see that it is over.
                state.error = Some(Common::Poisoned.into());
                return Err(e);
            }
            if state.is_done() {
                return Ok(());
            }
            if state.done != told {
                told = state.done;
                drop(state);
                progress(told);
                state = self.lock()?;
                if state.error.is_some() || state.is_done() {
                    continue;
                }
            }
            let waited = self.over.wait_timeout(state, PROGRESS_EVERY);
            (state, _) = waited.map_err(|_| Common::Poisoned)?;
        }
    }

    /// Has the host write down what is there, over and over, so that the end does not have to wait for all of it.
    fn settle(&self, settle: &Settle<'_>) -> Result<()> {
        let mut settled = 0u64;
        loop {
            let mut state = self.lock()?;
            while state.done.saturating_sub(settled) < SETTLE_EVERY {
                if state.error.is_some() || state.is_done() {
                    return Ok(());
                }
                (state, _) = self.over.wait_timeout(state, PROGRESS_EVERY).map_err(|_| Common::Poisoned)?;
            }
            settled = state.done;
            drop(state);
            settle()?;
        }
    }

    /// Works until there is nothing left to do.
    fn serve(&self, work: &Work<'_>) -> Result<()> {
        loop {
            let mut state = match self.task()? {
                Task::Stop => return Ok(()),
                Task::Read(number, span, is_data) => {
                    let chunk = work.chunk(span, is_data)?;
                    let mut state = self.lock()?;
                    state.ready.insert(number, Ready { span, chunk, has_ticket: true });
                    state
                }
                Task::Write(mut sink, ready) => {
                    for piece in ready.chunk.pieces {
                        sink.put(piece)?;
                    }
                    let mut state = self.lock()?;
                    state.sink = Some(sink);
                    if let Some(digest) = ready.chunk.digest {
                        state.tally.add(ready.span.start(), digest);
                    }
                    state.done = ready.span.end();
                    state.next = state.next.saturating_add(1);
                    if ready.has_ticket {
                        state.tickets = state.tickets.saturating_sub(1);
                    }
                    state
                }
            };
            let somebody_waits = std::mem::take(&mut state.waiting) > 0;
            drop(state);
            if somebody_waits {
                self.changed.notify_all();
            }
        }
    }

    /// What to do next; waits until there is something.
    fn task(&self) -> Result<Task> {
        let mut state = self.lock()?;
        loop {
            if state.error.is_some() || state.is_done() {
                drop(state);
                // Those who wait shall see it as well.
                self.changed.notify_all();
                self.over.notify_all();
                return Ok(Task::Stop);
            }
            if let Some(task) = state.write() {
                return Ok(task);
            }
            if let Some(task) = state.read()? {
                return Ok(task);
            }
            // A hole may have become ready.
            if let Some(task) = state.write() {
                return Ok(task);
            }
            if !state.is_done() {
                state.waiting = state.waiting.saturating_add(1);
                state = self.changed.wait(state).map_err(|_| Common::Poisoned)?;
            }
        }
    }
}

impl State<'_> {
    fn is_done(&self) -> bool {
        self.planned && self.next == self.issued
    }

    /// The next step in order, if it is ready and nobody is writing.
    fn write(&mut self) -> Option<Task> {
        let sink = self.sink.take()?;
        match self.ready.remove(&self.next) {
            Some(ready) => Some(Task::Write(sink, ready)),
            None => {
                self.sink = Some(sink);
                None
            }
        }
    }

    /// A new chunk, if there is one and a ticket for it. Holes on the way are ready at once.
    fn read(&mut self) -> Result<Option<Task>> {
        while !self.planned && self.tickets < self.tickets_max {
            let number = self.issued;
            let Some(step) = self.plan.next()? else {
                self.planned = true;
                break;
            };
            self.issued = number.saturating_add(1);
            match step {
                Step::Zero(span) => {
                    let chunk = Chunk { pieces: vec![Piece::Zero(span)], digest: None };
                    self.ready.insert(number, Ready { span, chunk, has_ticket: false });
                }
                Step::Chunk(span, is_data) => {
                    self.tickets = self.tickets.saturating_add(1);
                    return Ok(Some(Task::Read(number, span, is_data)));
                }
            }
        }
        Ok(None)
    }
}
