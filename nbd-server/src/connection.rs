//! One connection after its handshake.
//!
//! Its threads take turns: one reads requests and answers them as long as they need nothing but the host's memory, and
//! their replies go out together while more requests are there already. Where one may have to wait for a device, the
//! thread lets the next one read, carries the request out and answers. So requests that wait do so side by side, no
//! request waits for being handed over, and a connection that does nothing has one thread. Threads are made when there
//! is nobody left to read, up to a limit. Where writes take no time, long ones are done while they arrive.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use racker_formats::block::{Span, Support};
use racker_formats::error::Error;
use racker_formats::wire::{index, len64};

use crate::errno::Errno;
use crate::handshake::{Cut, Replies, Session};
use crate::limits::{
    CACHE_BYTES_MAX, CONTEXTS_MAX, PAYLOAD_DRAIN_MAX, PAYLOAD_IN_FLIGHT_MAX, PIECE, REQUESTS_IN_FLIGHT_MAX,
    ZEROES_AT_ONCE,
};
use crate::reply::{put_done, put_error};
use crate::request::{Request, Terms, payload, validate};
use crate::scratch::{Body, Scratch};
use crate::server::Shared;
use crate::spin::Pace;
use crate::stream::{AHEAD, Ahead, Stream};
use crate::wire::{EXTENDED_REQUEST_BYTES, Frame, REQUEST_BYTES};

/// Bytes of the payload that chooses metadata contexts, at most.
const CHOICE_BYTES_MAX: u64 = 8 + 4 * CHOICES_MAX;
const CHOICES_MAX: u64 = 64;
const _: () = assert!(CONTEXTS_MAX == 64);

/// Writes of at most this many bytes may be done before the next request is read, when all of it is there.
const SMALL_WRITE: u64 = 32 << 10;
/// What is longer is written while it arrives, where writing is quick: what is there whenever it is so many bytes, which
/// leaves the client room to send on. Otherwise one thread receives while another one writes.
const WRITE_PIECE: u64 = 64 << 10;
/// Such pieces end where pages of the host do: a part of one would be read first.
const HOST_PAGE: u64 = 4 << 10;
/// Writes of a [`WRITE_PIECE`] to the host's memory take less.
const SLOW_WRITE: Duration = Duration::from_micros(200);
/// Bytes of answers after which the stream is asked whether the client takes them. Nobody reads on behind an answer that
/// waits for the client, and some clients take no answer before all that they have to send has been read.
const UNTAKEN_MAX: u64 = 64 << 10;

/// A connection in the transmission phase.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) server: Arc<Shared>,
    pub(crate) session: Session,
    stream: Arc<dyn Stream>,
    input: Mutex<Input>,
    /// The last write took no time.
    writes_at_once: AtomicBool,
    /// Threads that read the next request, or wait to do so.
    readers: AtomicUsize,
    /// Threads in all.
    threads: Mutex<usize>,
    thread_ended: Condvar,
    output: Mutex<()>,
    is_broken: AtomicBool,
    /// Bytes of large payloads in memory.
    held: Mutex<u64>,
    released: Condvar,
}

/// The client's bytes.
#[derive(Debug, Default)]
struct Input {
    ahead: Ahead,
    pace: Pace,
    /// Bytes of quick answers since the client was seen to take them.
    untaken: u64,
    has_ended: bool,
    cut: Option<Cut>,
}

impl Input {
    /// Fills `out`; `false` if the stream ended before its first byte.
    fn fill(&mut self, connection: &Connection, out: &mut [u8]) -> io::Result<bool> {
        let Self { ahead, pace, .. } = self;
        ahead.fill(&mut |buf| connection.receive(buf, pace), out)
    }

    /// Puts what there is into `out`, at least one byte; 0 if the stream has ended.
    fn some(&mut self, connection: &Connection, out: &mut [u8]) -> io::Result<usize> {
        let Self { ahead, pace, .. } = self;
        match ahead.take(out) {
            0 => connection.receive(out, pace),
            taken => Ok(taken),
        }
    }
}

/// What a thread has to do next.
#[derive(Debug)]
enum Step {
    Do(Frame, Request),
    /// It is done.
    Done(Frame),
    Refuse(Frame, Errno),
    End,
}

impl Connection {
    pub(crate) fn new(server: Arc<Shared>, session: Session, stream: Arc<dyn Stream>) -> Self {
        Self {
            server,
            session,
            stream,
            input: Mutex::default(),
            writes_at_once: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
            threads: Mutex::new(0),
            thread_ended: Condvar::new(),
            output: Mutex::default(),
            is_broken: AtomicBool::new(false),
            held: Mutex::new(0),
            released: Condvar::new(),
        }
    }

    /// Serves until the client leaves or the connection fails, and until all of its requests are answered.
    pub(crate) fn serve(self: &Arc<Self>) -> Result<(), Cut> {
        if let Some(idle) = self.server.limits.idle {
            self.stream.limit(Some(idle))?;
        }
        *lock(&self.threads) = 1;
        self.work();
        let mut threads = lock(&self.threads);
        while *threads > 0 {
            threads = self.thread_ended.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
        drop(threads);
        match lock(&self.input).cut.take() {
            Some(cut) => Err(cut),
            None => Ok(()),
        }
    }

    /// One thread's work.
    fn work(self: &Arc<Self>) {
        let _counted = Counted(self);
        let mut scratch = Scratch::default();
        while let Some((frame, request)) = self.next_to_do(&mut scratch) {
            let done = self.carry_out(&frame, request, &mut scratch);
            self.answered(done);
            let held = large(&frame, &request);
            if held > 0 {
                scratch.shrink();
                self.release(held);
            }
        }
    }

    /// Reads requests, and answers those that need not wait for anything, up to one that may have to: then another
    /// thread reads on. `None` at the end.
    fn next_to_do(self: &Arc<Self>, scratch: &mut Scratch) -> Option<(Frame, Request)> {
        self.readers.fetch_add(1, Ordering::AcqRel);
        let mut input = lock(&self.input);
        scratch.gather(true);
        let next = loop {
            let step = if input.has_ended { Ok(Step::End) } else { self.next(&mut input, scratch) };
            let done = match step {
                Ok(Step::Do(frame, request)) if !self.is_quick(&frame, &request, &mut input) => {
                    break Some((frame, request));
                }
                Ok(Step::Do(frame, request)) => self.carry_out(&frame, request, scratch),
                Ok(Step::Done(frame)) => self.done(&frame, scratch),
                Ok(Step::Refuse(frame, error)) => self.refuse(&frame, error, scratch),
                Ok(Step::End) => {
                    input.has_ended = true;
                    break None;
                }
                Err(cut) => {
                    self.end(&mut input, cut);
                    break None;
                }
            };
            self.answered(done);
        };
        scratch.gather(false);
        let readers = self.readers.fetch_sub(1, Ordering::AcqRel);
        drop(input);
        if next.is_some() && readers <= 1 {
            self.add_thread();
        }
        let sent = self.send_waiting(scratch);
        self.answered(sent);
        next
    }

    /// Whether a request can be answered from what the host has in memory: waking another thread up would take
    /// longer.
    fn is_quick(&self, frame: &Frame, request: &Request, input: &mut Input) -> bool {
        // Hosts may take long to write. One that did is not waited for while others are there that could be begun.
        let may_write = frame.len <= SMALL_WRITE && (self.writes_at_once() || !input.ahead.has(1));
        let (span, answer) = match *request {
            Request::Read { span, .. } if span.len() <= len64(PIECE) => (Ok(span), span.len()),
            Request::Write { at, fua: false } if may_write => (Span::new(at, frame.len), 0),
            _ => return false,
        };
        if !span.is_ok_and(|span| self.session.export.disk().at_hand(span)) {
            return false;
        }
        input.untaken = input.untaken.saturating_add(answer);
        if input.untaken > UNTAKEN_MAX {
            if !self.stream.takes_more() {
                return false;
            }
            input.untaken = answer;
        }
        true
    }

    fn end(&self, input: &mut Input, cut: Cut) {
        input.has_ended = true;
        // What failed first is the reason.
        if !self.is_broken.load(Ordering::Acquire) {
            input.cut = Some(cut);
        }
    }

    /// A reply that could not be sent ends the connection.
    fn answered(&self, done: io::Result<()>) {
        if done.is_err() && !self.is_broken.swap(true, Ordering::AcqRel) {
            self.stream.end();
        }
    }

    /// Starts one more thread, if there may be one.
    fn add_thread(self: &Arc<Self>) {
        let mut threads = lock(&self.threads);
        if *threads >= REQUESTS_IN_FLIGHT_MAX {
            return;
        }
        let me = Arc::clone(self);
        // Without it the others do all of the work.
        if thread::Builder::new().name("nbd request".into()).spawn(move || me.work()).is_ok() {
            *threads = threads.saturating_add(1);
        }
    }

    /// Reads what the stream has; waits past the idle time as long as something is being done.
    fn receive(&self, buf: &mut [u8], pace: &mut Pace) -> io::Result<usize> {
        loop {
            let socket = self.stream.socket();
            match pace.receive(&self.server.spinners, socket, buf, |buf| self.stream.read(buf)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.is_busy() => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the client was idle for too long"));
                }
                done => return done,
            }
        }
    }

    /// Whether some thread is not about to read.
    fn is_busy(&self) -> bool {
        *lock(&self.threads) > self.readers.load(Ordering::Acquire)
    }

    /// Reads one request with its payload.
    fn next(&self, input: &mut Input, scratch: &mut Scratch) -> Result<Step, Cut> {
        let is_extended = self.session.replies == Replies::Extended;
        if !input.ahead.has(if is_extended { EXTENDED_REQUEST_BYTES } else { REQUEST_BYTES }) {
            // The client may send nothing before it has them.
            self.send_waiting(scratch)?;
        }
        let frame = if is_extended {
            let mut bytes = [0; EXTENDED_REQUEST_BYTES];
            if !input.fill(self, &mut bytes)? {
                return Ok(Step::End);
            }
            Frame::extended(&bytes)
        } else {
            let mut bytes = [0; REQUEST_BYTES];
            if !input.fill(self, &mut bytes)? {
                return Ok(Step::End);
            }
            Frame::compact(&bytes)
        };
        let frame = frame.ok_or(Cut::Broken("no request where one was expected"))?;
        let payload = payload(&frame, self.session.replies);
        if payload > PAYLOAD_DRAIN_MAX {
            return Err(Cut::Broken("a payload is too long"));
        }
        // Long payloads come one after the other.
        input.ahead.exact(payload >= len64(AHEAD));
        if index(payload).is_ok_and(|len| !input.ahead.has(len)) {
            self.send_waiting(scratch)?;
        }
        let request = if self.server.is_stopping() {
            Err(Errno::Shutdown)
        } else {
            validate(&frame, &self.terms()).and_then(|request| match request {
                Request::Status { span: None, .. } if payload > CHOICE_BYTES_MAX => Err(Errno::Inval),
                request => Ok(request),
            })
        };
        self.server.counts.request();
        match request {
            Ok(Request::Disconnect) => Ok(Step::End),
            Ok(request) => {
                if let Some((span, block)) = self.stream_in(&frame, &request) {
                    let done = self.stream_write(input, span, block, scratch)?;
                    return Ok(done.map_or_else(|e| Step::Refuse(frame, e), |()| Step::Done(frame)));
                }
                self.hold(large(&frame, &request));
                let len = index(payload).map_err(|_| Cut::Broken("a payload is too long"))?;
                self.take_payload(input, len, scratch)?;
                Ok(Step::Do(frame, request))
            }
            Err(error) => {
                self.drain(input, payload, scratch)?;
                Ok(Step::Refuse(frame, error))
            }
        }
    }

    /// Reads a payload. Memory follows what has arrived: announcing much takes none.
    fn take_payload(&self, input: &mut Input, len: usize, scratch: &mut Scratch) -> Result<(), Cut> {
        let mut done = 0;
        while done < len {
            let to = len.min(done.saturating_add(done.max(PIECE)));
            let room = scratch.data(to).get_mut(done..).unwrap_or_default();
            if !input.fill(self, room)? {
                return Err(Cut::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            done = to;
        }
        Ok(())
    }

    /// Reads `left` bytes, and forgets them.
    fn drain(&self, input: &mut Input, left: u64, scratch: &mut Scratch) -> Result<(), Cut> {
        let mut left = left;
        while left > 0 {
            let now = left.min(len64(PIECE));
            let len = index(now).map_err(|_| Cut::Broken("a payload is too long"))?;
            self.take_payload(input, len, scratch)?;
            left = left.saturating_sub(now);
        }
        Ok(())
    }

    fn writes_at_once(&self) -> bool {
        self.writes_at_once.load(Ordering::Relaxed)
    }

    /// Takes note of how long a write of so many bytes took.
    fn has_written(&self, bytes: u64, begun: Instant) {
        let pieces = bytes.div_ceil(WRITE_PIECE).max(1);
        let slow = SLOW_WRITE.saturating_mul(u32::try_from(pieces).unwrap_or(u32::MAX));
        self.writes_at_once.store(begun.elapsed() < slow, Ordering::Relaxed);
    }

    /// The span of a write that is done while its payload arrives, and of what its pieces are multiples. No block of a
    /// format is cut: what is missing of a new one would be filled in first.
    fn stream_in(&self, frame: &Frame, request: &Request) -> Option<(Span, u64)> {
        let Request::Write { at, fua: false } = *request else { return None };
        let span = Span::new(at, frame.len).ok()?;
        let disk = self.session.export.disk();
        if frame.len <= SMALL_WRITE || !self.writes_at_once() || !disk.at_hand(span) {
            return None;
        }
        let has_blocks = disk.pages(span).is_none();
        let block = if has_blocks { HOST_PAGE.max(disk.caps().preferred.into()) } else { HOST_PAGE };
        (block <= len64(PIECE)).then_some((span, block))
    }

    /// Writes a payload while it arrives. A client that dies in the middle leaves a part of it, as if it had lost its
    /// power: it has had no answer.
    fn stream_write(
        &self,
        input: &mut Input,
        span: Span,
        block: u64,
        scratch: &mut Scratch,
    ) -> Result<Result<(), Errno>, Cut> {
        self.server.counts.written(span.len());
        let long = |_| Cut::Broken("a payload is too long");
        let (mut rest, mut have) = (span, 0);
        while !rest.is_empty() {
            let most = rest.truncate(len64(PIECE)).len();
            let room = scratch.data(index(most).map_err(long)?).get_mut(have..).unwrap_or_default();
            let got = input.some(self, room)?;
            if got == 0 {
                return Err(Cut::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            have = have.saturating_add(got);
            let end = rest.start().saturating_add(len64(have));
            let over = if len64(have) == rest.len() { 0 } else { end.checked_rem(block).unwrap_or(0) };
            let now = len64(have).saturating_sub(over);
            if now == 0 || (len64(have) < most && now < WRITE_PIECE) {
                continue;
            }
            let done = self.put(rest.start(), now, scratch);
            rest = rest.skip(now);
            let now = index(now).map_err(long)?;
            scratch.data(have).copy_within(now.., 0);
            have = have.saturating_sub(now);
            if let Err(error) = done {
                self.drain(input, rest.len().saturating_sub(len64(have)), scratch)?;
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    fn terms(&self) -> Terms {
        Terms {
            flags: self.session.flags,
            replies: self.session.replies,
            has_contexts: !self.session.contexts.is_empty(),
            size: self.session.export.disk().size(),
        }
    }

    /// Waits until so many more bytes may be in memory.
    fn hold(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut held = lock(&self.held);
        while *held > 0 && held.saturating_add(bytes) > PAYLOAD_IN_FLIGHT_MAX {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held = held.saturating_add(bytes);
    }

    fn release(&self, bytes: u64) {
        let mut held = lock(&self.held);
        *held = held.saturating_sub(bytes);
        self.released.notify_one();
    }

    /// Does what was asked for, and answers; an error is one of the stream.
    fn carry_out(&self, frame: &Frame, request: Request, scratch: &mut Scratch) -> io::Result<()> {
        let done = match request {
            Request::Read { span, whole } => {
                self.server.counts.read(span.len());
                return self.read(frame, span, whole, scratch);
            }
            Request::Status { span: Some(span), one, .. } => return self.status(frame, span, one, scratch),
            Request::Status { at, one, span: None } => return self.chosen_status(frame, at, one, scratch),
            Request::Write { at, fua } => self.write(frame, at, fua, scratch),
            Request::Zero { span, fua, no_hole, fast } => self.zero(span, no_hole, fast, fua),
            Request::Trim { span, fua } => {
                let done = self.session.export.disk().discard(span);
                done.map_err(|e| self.failed("trim", span, &e)).and_then(|()| self.flush(fua))
            }
            Request::Cache { span } => self.cache(span, scratch),
            Request::Flush => self.flush(true),
            Request::Resize { size } => {
                let done = self.session.export.disk().resize(size);
                done.map_err(|e| self.failed("resize", Span::first(size), &e))
            }
            Request::Disconnect => return Ok(()),
        };
        match done {
            Ok(()) => self.done(frame, scratch),
            Err(e) => self.refuse(frame, e, scratch),
        }
    }

    fn write(&self, frame: &Frame, at: u64, fua: bool, scratch: &Scratch) -> Result<(), Errno> {
        self.server.counts.written(frame.len);
        self.put(at, frame.len, scratch)?;
        self.flush(fua)
    }

    /// Writes the first `len` bytes of the buffer.
    fn put(&self, at: u64, len: u64, scratch: &Scratch) -> Result<(), Errno> {
        let data = scratch.got(index(len).map_err(|e| Errno::from(&e))?);
        let begun = Instant::now();
        self.session.export.disk().write_at(at, data).map_err(|e| {
            let span = Span::new(at, len).unwrap_or(Span::first(len));
            self.failed("write", span, &e)
        })?;
        self.has_written(len, begun);
        Ok(())
    }

    fn zero(&self, span: Span, no_hole: bool, fast: bool, fua: bool) -> Result<(), Errno> {
        let disk = self.session.export.disk();
        let is_native = disk.caps().zero == Support::Native && !no_hole;
        if fast && !is_native {
            return Err(Errno::NotSup);
        }
        let mut rest = span;
        while !rest.is_empty() {
            let piece = if is_native { rest } else { rest.truncate(ZEROES_AT_ONCE) };
            let done = if no_hole { disk.store_zeroes(piece) } else { disk.write_zeroes(piece) };
            done.map_err(|e| self.failed("write zeroes", piece, &e))?;
            rest = rest.skip(piece.len());
            if !rest.is_empty() && self.server.is_stopping() {
                return Err(Errno::Shutdown);
            }
        }
        self.flush(fua)
    }

    /// Reads, so that the host has it in memory.
    fn cache(&self, span: Span, scratch: &mut Scratch) -> Result<(), Errno> {
        let mut rest = span.truncate(CACHE_BYTES_MAX);
        let disk = self.session.export.disk();
        while !rest.is_empty() && !self.server.is_stopping() {
            let run = disk.first_run(rest).map_err(|e| self.failed("cache", rest, &e))?;
            let mut piece = rest.truncate(run.len);
            if !run.kind.is_zero() {
                piece = piece.truncate(len64(PIECE));
                let len = index(piece.len()).map_err(|e| Errno::from(&e))?;
                let done = disk.read_at(piece.start(), scratch.data(len));
                done.map_err(|e| self.failed("cache", piece, &e))?;
            }
            rest = rest.skip(piece.len());
        }
        Ok(())
    }

    /// Puts what was written on stable storage, if that is asked for.
    fn flush(&self, wanted: bool) -> Result<(), Errno> {
        if !wanted || !self.session.export.disk().writable() {
            return Ok(());
        }
        self.session.export.disk().flush().map_err(|e| self.failed("flush", Span::first(0), &e))
    }

    /// Tells the server's user what failed, and finds the number for the client.
    pub(crate) fn failed(&self, what: &str, span: Span, error: &Error) -> Errno {
        let name = self.session.export.name();
        self.server.tell(&format!("{name}: {what} of {} bytes at {}: {error}", span.len(), span.start()));
        Errno::from(error)
    }

    pub(crate) fn done(&self, frame: &Frame, scratch: &mut Scratch) -> io::Result<()> {
        put_done(scratch.head(), self.session.replies, frame);
        self.send(scratch, Body::NONE)
    }

    pub(crate) fn refuse(&self, frame: &Frame, error: Errno, scratch: &mut Scratch) -> io::Result<()> {
        put_error(scratch.head(), self.session.replies, frame, error);
        self.send(scratch, Body::NONE)
    }

    /// Sends a reply, or a chunk of one: its header and `body`, now or with those behind it.
    pub(crate) fn send(&self, scratch: &mut Scratch, body: Body) -> io::Result<()> {
        if scratch.keep(body) {
            return Ok(());
        }
        let _output = self.output()?;
        self.send_part(scratch, body)
    }

    /// Sends the replies that wait for others.
    fn send_waiting(&self, scratch: &mut Scratch) -> io::Result<()> {
        if !scratch.has_waiting() {
            return Ok(());
        }
        scratch.head();
        let _output = self.output()?;
        self.send_part(scratch, Body::NONE)
    }

    /// Keeps all other replies away.
    pub(crate) fn output(&self) -> io::Result<MutexGuard<'_, ()>> {
        let output = lock(&self.output);
        // Nobody may go on where another one stopped half-way.
        if self.is_broken.load(Ordering::Acquire) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(output)
    }

    /// Sends a part of what [`output`](Self::output) was taken for.
    pub(crate) fn send_part(&self, scratch: &mut Scratch, body: Body) -> io::Result<()> {
        scratch.send(self.stream.as_ref(), body).inspect_err(|_| {
            if !self.is_broken.swap(true, Ordering::AcqRel) {
                self.stream.end();
            }
        })
    }

    /// The socket, if bytes go out on it as they are.
    pub(crate) fn has_socket(&self) -> bool {
        self.stream.socket().is_some()
    }
}

/// Bytes of a request that count as a large payload.
fn large(frame: &Frame, request: &Request) -> u64 {
    if matches!(request, Request::Write { .. }) && frame.len > len64(PIECE) { frame.len } else { 0 }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that counts until it ends, in whatever way.
struct Counted<'a>(&'a Connection);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // It may have held anything, and its request has no answer.
            self.0.is_broken.store(true, Ordering::Release);
            self.0.stream.end();
        }
        let mut threads = lock(&self.0.threads);
        *threads = threads.saturating_sub(1);
        self.0.thread_ended.notify_all();
    }
}
