//! The thread that has the filesystem: it does what the kernel asks for, one request after the other, and lands what
//! has changed: when the filesystem is unmounted, and with `--live` whenever somebody wants it on stable storage, or
//! a while after the first change.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fuser::Errno;
use racker_formats::transaction::Transaction;
use racker_fs::inspect::Volume;

use super::front::Job;
use super::tree::{Memory, Tree};
use crate::fault::{About, Failure, Outcome};
use crate::target::Target;

/// How long changes wait at most before they land, with `--live`.
const LIVE: Duration = Duration::from_secs(5);

/// How a mount ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    /// Something was changed.
    pub(super) changed: bool,
    /// It was in use when it had to end.
    pub(super) cut_off: bool,
}

/// What happens after a stretch of requests.
enum Next {
    /// Changes land, and the mount goes on.
    Land,
    /// The mount has ended.
    End { cut_off: bool },
}

/// Serves a filesystem that is only read.
pub(super) fn read(
    volume: &Volume,
    memory: Memory,
    jobs: &Receiver<Job>,
    ready: impl FnOnce() -> Outcome<()>,
) -> Outcome<Ended> {
    let mut tree = Tree::reading(volume.filesystem()?, memory);
    ready()?;
    match work(&mut tree, jobs) {
        Next::End { cut_off } => Ok(Ended { changed: false, cut_off }),
        Next::Land => Err(Failure::new("changes to what is only read")),
    }
}

/// Serves a filesystem that is changed, and lands the changes.
pub(super) fn write(
    (target, volume): (&Target, &Volume),
    memory: Memory,
    live: bool,
    jobs: &Receiver<Job>,
    ready: impl FnOnce() -> Outcome<()>,
) -> Outcome<Ended> {
    let mut ready = Some(ready);
    let mut memory = memory;
    let mut ended = Ended::default();
    loop {
        let transaction = match target.opened.begin() {
            Ok(transaction) => transaction,
            Err(e) if ready.is_some() => return Err(e).about(&target.path),
            Err(e) => return failed(Err(e).about(&target.path), memory, (volume, jobs)),
        };
        let mut next = Next::Land;
        let mut begin = || ready.take().map_or(Ok(()), |ready| ready());
        let done = stretch((target, volume, &transaction), (&mut memory, live), jobs, &mut begin, &mut next);
        let is_mounted = ready.is_none();
        let landed = done.and_then(|()| {
            ended.changed |= !transaction.is_unchanged()?;
            transaction.commit().about(&target.path)
        });
        match (landed, next) {
            (Ok(()), Next::End { cut_off }) => return Ok(Ended { cut_off, ..ended }),
            (Ok(()), Next::Land) => {
                memory.changed = false;
                memory.waiting.drain(..).for_each(fuser::ReplyEmpty::ok);
            }
            (Err(e), Next::End { .. }) => return Err(e),
            (Err(e), Next::Land) if is_mounted => return failed(Err(e), memory, (volume, jobs)),
            (Err(e), Next::Land) => return Err(e),
        }
    }
}

/// Works in one transaction, up to where it lands.
fn stretch<'t>(
    (target, volume, transaction): (&Target, &Volume, &'t Transaction),
    (memory, live): (&mut Memory, bool),
    jobs: &Receiver<Job>,
    ready: &mut dyn FnMut() -> Outcome<()>,
    next: &mut Next,
) -> Outcome<()> {
    let writer = volume.edit(&transaction.disk()).about(&target.path)?;
    let kept = std::mem::replace(memory, Memory::empty());
    let mut tree: Tree<'t> = Tree::writing(writer, kept, live);
    // A mount that does not come about has ended.
    *next = Next::End { cut_off: false };
    ready()?;
    *next = work(&mut tree, jobs);
    let is_end = matches!(next, Next::End { .. });
    let tidy = if is_end { tree.forget_hidden() } else { Ok(()) };
    let (writer, kept) = tree.into_parts();
    *memory = kept;
    if let Some(writer) = writer {
        writer.close().about(&target.path)?;
    }
    let failure = |_| Failure::new("files that were removed while they were open are not gone");
    tidy.map_err(failure).about(&target.path)
}

/// Does what is asked for, until something has to land.
fn work(tree: &mut Tree<'_>, jobs: &Receiver<Job>) -> Next {
    let mut until: Option<Instant> = None;
    loop {
        let job = match until {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => jobs.recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match job {
            Ok(Job::Do(work)) => work(tree),
            Ok(Job::CutOff) => return Next::End { cut_off: true },
            Err(RecvTimeoutError::Timeout) => return Next::Land,
            Ok(Job::Unmounted) | Err(RecvTimeoutError::Disconnected) => return Next::End { cut_off: false },
        }
        if !tree.memory.waiting.is_empty() {
            return Next::Land;
        }
        if tree.must_land() && until.is_none() {
            until = Instant::now().checked_add(LIVE);
        }
    }
}

/// After changes did not land nothing works any more, so that nobody believes that it does; the reason is told at the
/// end.
fn failed(
    why: Outcome<Ended>,
    mut memory: Memory,
    (volume, jobs): (&Volume, &Receiver<Job>),
) -> Outcome<Ended> {
    memory.waiting.drain(..).for_each(|reply| reply.error(Errno::EIO));
    if let Err(e) = &why {
        eprint!("{}", e.report());
    }
    // What its readers see is the edit that is over: each look at it fails.
    let mut tree = Tree::reading(volume.filesystem()?, memory);
    while matches!(work(&mut tree, jobs), Next::Land) {
        tree.memory.waiting.drain(..).for_each(|reply| reply.error(Errno::EIO));
    }
    why
}
