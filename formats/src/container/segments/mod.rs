//! What a compressed stream expands to, as a disk, without a copy of it.
//!
//! A stream is a row of segments: stretches at whose beginning a decoder can start. To read a byte is to decode from
//! the beginning of its segment, or from where a decoder of that segment has come to. What keeps that cheap:
//!
//! * *Pieces* that were decoded lately stay in memory. Who reads from one end to the other, with several threads and
//!   not quite in order, has each segment decoded once, and as many at a time as there are threads.
//! * A few decoders are kept *where they stopped*, so that going on is not starting again, however long segments are.
//! * *Zeroes* that were found on the way through the stream are never decoded again.
//! * Who reads here and there, as filesystems are read, comes back to the same segments. One that is begun for
//!   the third time is expanded into a temporary file without a name ([`spool`](super::spool)), and read from there
//!   after. So nothing is decoded more than four times, and a disk that is copied takes no room on the way.
//!
//! Memory is bounded by constants: pieces, idle decoders, stretches of zeroes.
//!
//! What is read was checked: either the whole stream was, when it was opened, or a segment is decoded to its end,
//! where its checksum is, before a byte of it is given to anybody.

mod zeroes;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::{self, Debug};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::spool::{Out, SpoolFault, decode_error, fill};
use crate::block::{BlockDevice, Caps, Disk, FileDevice, Run, RunKind, Span, Support};
use crate::error::{Common, Result};
use crate::limits::MIB;
use crate::wire::{index, len64, part, part_mut};

pub(super) use zeroes::Zeroes;

/// Bytes of a piece; the last one of a segment may be shorter.
const PIECE: u64 = MIB;
/// Bytes of pieces in memory: for each thread of a conversion, and for the segments that it goes through.
const PIECES_MAX: u64 = 16 * MIB;
/// The most bytes of a segment that was not checked when the stream was opened and yet stays out of the temporary file:
/// half of what pieces may take, for all of it is decoded before any of it is read.
pub(super) const UNCHECKED_MAX: u64 = 8 * MIB;
/// Pieces before the one that is asked for that are kept when a decoder passes them: threads that read in order are
/// not quite in order.
const KEPT_BEHIND: u64 = 4;
/// Decoders that are kept, and the bytes that they may take together. One is kept in any case.
const IDLE_MAX: usize = 4;
const IDLE_MEMORY_MAX: u64 = 48 * MIB;
/// How many times a segment is begun before it goes into the temporary file: for a look at its head and tail, and
/// for one that reads it through.
const BEGUN_FREE: u8 = 2;

/// The stream's side: where segments lie in it, and how they are decoded.
pub(super) trait Source: Debug + Send + Sync {
    /// The kind of stream, for errors.
    fn what(&self) -> &'static str;
    /// A decoder of segment `number`: gives exactly its bytes, and an error instead of its end if its checksum is wrong.
    fn start(&self, number: usize) -> Result<Box<dyn Read + Send>>;
    /// Bytes of memory that such a decoder takes.
    fn memory(&self, number: usize) -> u64;
}

/// A stream's content.
pub(super) struct Segments<S> {
    source: S,
    /// Where segments begin in the content, in order. The last one ends with the content.
    starts: Vec<u64>,
    size: u64,
    zeroes: Zeroes,
    /// All was decoded and checked once.
    checked: bool,
    state: Mutex<State>,
    /// A decoder has come back.
    returned: Condvar,
}

/// What is in memory, and who is at work.
#[derive(Default)]
struct State {
    /// The latest one last.
    pieces: VecDeque<(Key, Arc<Vec<u8>>)>,
    pieces_bytes: u64,
    /// The latest one last.
    idle: VecDeque<Decoder>,
    /// Segments that somebody decodes right now.
    busy: HashSet<usize>,
    /// How many times segments were begun.
    begun: HashMap<usize, u8>,
    /// Segments whose end was seen to be good.
    checked: HashSet<usize>,
    /// Segments that are in the temporary file.
    spooled: HashSet<usize>,
    spool: Option<Arc<Spool>>,
}

/// A segment, and a piece of it.
type Key = (usize, u64);

struct Decoder {
    segment: usize,
    /// The piece that it gives next.
    next: u64,
    from: Box<dyn Read + Send>,
    memory: u64,
}

/// The temporary file.
struct Spool {
    out: Out,
    disk: Disk,
}

/// Where a piece is.
enum Found {
    Memory(Arc<Vec<u8>>),
    File(Arc<Spool>),
}

/// What is to be decoded.
struct Job {
    decoder: Decoder,
    /// The piece that is wanted.
    wanted: u64,
    /// Go on to the segment's end.
    whole: bool,
    spool: Option<Arc<Spool>>,
}

/// Says that nobody is at work on a segment any more, however that ended.
struct Busy<'a, S> {
    of: &'a Segments<S>,
    segment: usize,
}

impl<S> Drop for Busy<'_, S> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.of.state.lock() {
            state.busy.remove(&self.segment);
        }
        self.of.returned.notify_all();
    }
}

impl<S> Debug for Segments<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segments({} of {} bytes)", self.starts.len(), self.size)
    }
}

impl<S: Source> Segments<S> {
    /// Segments that begin at `starts`, all of which were decoded and checked, and `zeroes` seen.
    pub(super) fn checked(source: S, starts: Vec<u64>, mut zeroes: Zeroes) -> Self {
        zeroes.finish();
        let size = zeroes.seen();
        Self::with(source, starts, size, zeroes, true)
    }

    /// Segments that begin at `starts`, the last of which ends at `size`. Those longer than [`UNCHECKED_MAX`] go into a
    /// temporary file when they are read.
    pub(super) fn unchecked(source: S, starts: Vec<u64>, size: u64) -> Self {
        Self::with(source, starts, size, Zeroes::new(), false)
    }

    fn with(source: S, starts: Vec<u64>, size: u64, zeroes: Zeroes, checked: bool) -> Self {
        let (state, returned) = (Mutex::default(), Condvar::new());
        Self { source, starts, size, zeroes, checked, state, returned }
    }

    /// The segment that holds byte `at`, and where it lies in the content.
    fn segment(&self, at: u64) -> (usize, u64, u64) {
        // Empty segments share their place with the next one.
        let number = self.starts.partition_point(|start| *start <= at).saturating_sub(1);
        let (start, end) = self.place(number);
        (number, start, end)
    }

    fn place(&self, number: usize) -> (u64, u64) {
        let next = number.saturating_add(1);
        let start = self.starts.get(number).copied().unwrap_or(self.size);
        (start, self.starts.get(next).copied().unwrap_or(self.size))
    }

    /// Whether a segment fits into memory: where there is no room for a temporary file, such are decoded again and again,
    /// which is only slow.
    fn is_short(&self, number: usize) -> bool {
        let (start, end) = self.place(number);
        end.saturating_sub(start) <= UNCHECKED_MAX
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        Ok(self.state.lock().map_err(|_| Common::Poisoned)?)
    }

    /// Finds a piece, or has it decoded.
    fn find(&self, key: Key) -> Result<Found> {
        let (segment, wanted) = key;
        let mut state = self.lock()?;
        loop {
            if let Some(piece) = state.piece(key) {
                return Ok(Found::Memory(piece));
            }
            if let Some(spool) = state.in_file(segment) {
                return Ok(Found::File(spool));
            }
            if state.busy.insert(segment) {
                break;
            }
            state = self.returned.wait(state).map_err(|_| Common::Poisoned)?;
        }
        let idle = state.resume(segment, wanted);
        let is_checked = self.checked || state.checked.contains(&segment);
        let begun = state.begun.entry(segment).or_default();
        if idle.is_none() {
            *begun = begun.saturating_add(1);
        }
        let spools = idle.is_none() && (*begun > BEGUN_FREE || !(is_checked || self.is_short(segment)));
        drop(state);
        let busy = Busy { of: self, segment };
        let spool = match spools.then(|| self.spool()).transpose() {
            Err(_) if self.is_short(segment) => None,
            spool => spool?,
        };
        let decoder = match idle {
            Some(decoder) => decoder,
            None => Decoder {
                segment,
                next: 0,
                from: self.source.start(segment)?,
                memory: self.source.memory(segment),
            },
        };
        let whole = spools || !is_checked;
        let mut job = Job { decoder, wanted, whole, spool };
        let pieces = self.decode(&mut job)?;
        let mut found = None;
        let mut state = self.lock()?;
        for (number, piece) in pieces {
            let piece = Arc::new(piece);
            if number == wanted {
                found = Some(Arc::clone(&piece));
            }
            state.keep((segment, number), piece);
        }
        if job.whole {
            state.checked.insert(segment);
        }
        if job.spool.is_some() {
            state.spooled.insert(segment);
        } else {
            state.rest(job.decoder, &self.place(segment));
        }
        drop(state);
        drop(busy);
        found.map(Found::Memory).ok_or_else(|| Common::Index(wanted).into())
    }

    /// Decodes up to the piece that is wanted, or to the segment's end; gives back the pieces worth keeping.
    fn decode(&self, job: &mut Job) -> Result<Vec<(u64, Vec<u8>)>> {
        let what = self.source.what();
        let (start, end) = self.place(job.decoder.segment);
        let mut kept = VecDeque::new();
        loop {
            let number = job.decoder.next;
            let at = start.saturating_add(number.saturating_mul(PIECE));
            let mut piece = vec![0; index(end.saturating_sub(at).min(PIECE))?];
            let len = fill(&mut job.decoder.from, &mut piece).map_err(|e| decode_error(what, e))?;
            if len < piece.len() {
                return Err(other_size(what, "less"));
            }
            let is_last = at.saturating_add(len64(len)) >= end;
            if is_last {
                // The checksum stands behind the last byte.
                let more = fill(&mut job.decoder.from, &mut [0]).map_err(|e| decode_error(what, e))?;
                if more > 0 {
                    return Err(other_size(what, "more"));
                }
            }
            match job.spool.as_ref().map_or(Ok(()), |spool| spool.out.write(at, &piece)) {
                Err(_) if self.is_short(job.decoder.segment) => job.spool = None,
                written => written?,
            }
            if number <= job.wanted.saturating_add(PIECES_MAX / PIECE / 2) {
                kept.push_back((number, piece));
            }
            if kept.front().is_some_and(|(n, _)| n.saturating_add(KEPT_BEHIND) < number.min(job.wanted)) {
                kept.pop_front();
            }
            job.decoder.next = number.saturating_add(1);
            if is_last || (!job.whole && number >= job.wanted) {
                return Ok(kept.into());
            }
        }
    }

    /// The temporary file, made when it is first needed.
    fn spool(&self) -> Result<Arc<Spool>> {
        let mut state = self.lock()?;
        if let Some(spool) = &state.spool {
            return Ok(Arc::clone(spool));
        }
        let out = Out::new(self.source.what())?;
        let disk = Disk::new(FileDevice::new(out.sized(self.size)?, false)?);
        let spool = Arc::new(Spool { out, disk });
        state.spool = Some(Arc::clone(&spool));
        Ok(spool)
    }
}

fn other_size(what: &'static str, than: &str) -> crate::error::Error {
    let why = std::io::Error::other(format!("a part of it expands to {than} than it should"));
    SpoolFault::Damaged { what, why }.into()
}

impl State {
    fn piece(&mut self, key: Key) -> Option<Arc<Vec<u8>>> {
        let place = self.pieces.iter().rposition(|(k, _)| *k == key)?;
        let found = self.pieces.remove(place)?;
        let piece = Arc::clone(&found.1);
        self.pieces.push_back(found);
        Some(piece)
    }

    /// The temporary file, if it has a segment.
    fn in_file(&self, segment: usize) -> Option<Arc<Spool>> {
        self.spool.clone().filter(|_| self.spooled.contains(&segment))
    }

    fn keep(&mut self, key: Key, piece: Arc<Vec<u8>>) {
        if let Some(place) = self.pieces.iter().position(|(k, _)| *k == key) {
            self.forget(place);
        }
        self.pieces_bytes = self.pieces_bytes.saturating_add(len64(piece.len()));
        self.pieces.push_back((key, piece));
        while self.pieces_bytes > PIECES_MAX && self.pieces.len() > 1 {
            self.forget(0);
        }
    }

    fn forget(&mut self, place: usize) {
        if let Some((_, piece)) = self.pieces.remove(place) {
            self.pieces_bytes = self.pieces_bytes.saturating_sub(len64(piece.len()));
        }
    }

    /// Takes the idle decoder of `segment` that is nearest before `wanted`.
    fn resume(&mut self, segment: usize, wanted: u64) -> Option<Decoder> {
        let fits = |d: &&Decoder| d.segment == segment && d.next <= wanted;
        let next = self.idle.iter().filter(fits).map(|d| d.next).max()?;
        let place = self.idle.iter().position(|d| d.segment == segment && d.next == next)?;
        self.idle.remove(place)
    }

    /// Keeps a decoder, unless it is through with its segment.
    fn rest(&mut self, decoder: Decoder, (start, end): &(u64, u64)) {
        if start.saturating_add(decoder.next.saturating_mul(PIECE)) >= *end {
            return;
        }
        self.idle.push_back(decoder);
        let memory = |idle: &VecDeque<Decoder>| idle.iter().map(|d| d.memory).fold(0, u64::saturating_add);
        while self.idle.len() > IDLE_MAX || (self.idle.len() > 1 && memory(&self.idle) > IDLE_MEMORY_MAX) {
            self.idle.pop_front();
        }
    }
}

impl<S: Source> BlockDevice for Segments<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn caps(&self) -> Caps {
        Caps { runs: Support::Native, ..Caps::READ_ONLY }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0usize;
        while done < buf.len() {
            let here = Span::new(at.saturating_add(len64(done)), len64(buf.len().saturating_sub(done)))?;
            let (zero, len) = self.zeroes.first(here);
            if zero {
                let len = index(len)?;
                part_mut(buf, done, len, "read")?.fill(0);
                done = done.saturating_add(len);
                continue;
            }
            let (segment, start, end) = self.segment(here.start());
            let within = here.start().saturating_sub(start);
            let number = within.checked_div(PIECE).unwrap_or_default();
            let into = within.checked_rem(PIECE).unwrap_or_default();
            let left = end.saturating_sub(here.start()).min(PIECE.saturating_sub(into));
            let len = index(len.min(left))?;
            if len == 0 {
                return Err(SpoolFault::Truncated(self.source.what()).into());
            }
            let to = part_mut(buf, done, len, "read")?;
            match self.find((segment, number))? {
                Found::Memory(piece) => to.copy_from_slice(part(&piece, index(into)?, len, "piece")?),
                Found::File(spool) => spool.disk.read_at(here.start(), to)?,
            }
            done = done.saturating_add(len);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn first_run(&self, span: Span) -> Result<Run> {
        let (zero, len) = self.zeroes.first(span);
        let (segment, _, end) = self.segment(span.start());
        if !zero && let Some(spool) = self.lock()?.in_file(segment) {
            return spool.disk.first_run(span.truncate(len.min(end.saturating_sub(span.start()).max(1))));
        }
        Ok(Run { len, kind: if zero { RunKind::Hole } else { RunKind::Data } })
    }
}

#[cfg(test)]
mod tests;
