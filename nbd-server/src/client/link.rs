//! One connection with several requests in flight.
//!
//! Threads send their requests, and those that wait take turns receiving: who receives hands an answer that is not his
//! own to its owner, together with the turn, so that bytes go from the stream to the buffer that they are for. The first
//! thing that goes wrong ends the connection for all.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answer::{Wanted, error, extents};
use super::fault::ClientFault;
use super::handshake::Terms;
use super::limits::{CHUNKS_MAX, ERROR_BYTES_MAX, Patience, STATUS_BYTES_MAX, TICK};
use crate::connection::lock;
use crate::handshake::Replies;
use crate::stream::{Ahead, Stream, send};
use crate::wire::{
    CommandFlags, EXTENDED_REPLY_BYTES, Fields, Frame, ReplyHead, SIMPLE_REPLY_BYTES, STRUCTURED_REPLY_BYTES,
    chunk, command,
};

/// Bit of the chunks that tell of errors.
const ERROR_BIT: u16 = 1 << 15;

type Faulty<T> = Result<T, ClientFault>;

/// A request, with what messages call it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) command: u16,
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) flags: CommandFlags,
    pub(super) payload: &'a [u8],
}

impl Request<'_> {
    /// Whether a sound server may be silent for long before it answers.
    fn is_slow(&self) -> bool {
        !matches!(self.command, command::READ | command::WRITE | command::BLOCK_STATUS)
            || self.flags.contains(CommandFlags::FUA)
    }

    fn doing(&self) -> &'static str {
        match self.command {
            command::READ => "read",
            command::WRITE => "write",
            command::FLUSH => "put what was written on stable storage",
            command::TRIM => "give space back",
            command::WRITE_ZEROES => "write zeroes",
            command::BLOCK_STATUS => "say what is data",
            command::RESIZE => "change the size",
            _ => "do that",
        }
    }
}

/// A connection on which requests are answered.
#[derive(Debug)]
pub(super) struct Link {
    stream: Arc<dyn Stream>,
    terms: Terms,
    patience: Patience,
    /// Requests go out one by one.
    output: Mutex<Vec<u8>>,
    input: Mutex<Input>,
    state: Mutex<State>,
    turned: Condvar,
    /// Requests that somebody waits for.
    load: AtomicUsize,
}

#[derive(Debug)]
struct Input {
    ahead: Ahead,
    /// When something was last heard, or began to be waited for.
    heard: Instant,
}

#[derive(Debug, Default)]
struct State {
    cookie: u64,
    /// Cookies of requests that are not answered, and which of them are slow.
    waiting: BTreeMap<u64, bool>,
    /// Somebody receives, or was handed an answer.
    is_taken: bool,
    /// What has begun to come for somebody.
    head: Option<ReplyHead>,
    end: Option<ClientFault>,
}

/// What has come of an answer.
#[derive(Debug, Default)]
struct Progress {
    chunks: usize,
    error: Option<(u32, String)>,
}

impl Link {
    pub(super) fn new(stream: Arc<dyn Stream>, terms: Terms, patience: Patience) -> Faulty<Self> {
        // A request that does not go out is as bad as an answer that does not come in.
        stream.limit(Some(patience.answer)).map_err(|e| ClientFault::io(&e))?;
        stream.limit_input(TICK.min(patience.answer)).map_err(|e| ClientFault::io(&e))?;
        Ok(Self {
            stream,
            terms,
            patience,
            output: Mutex::default(),
            input: Mutex::new(Input { ahead: Ahead::default(), heard: Instant::now() }),
            state: Mutex::default(),
            turned: Condvar::new(),
            load: AtomicUsize::new(0),
        })
    }

    /// How many wait for answers.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Why there is no connection any more.
    pub(super) fn end(&self) -> Option<ClientFault> {
        lock(&self.state).end.clone()
    }

    /// Sends a request and waits for its answer.
    pub(super) fn ask(&self, request: &Request<'_>, wanted: Wanted<'_>) -> Faulty<Wanted<'static>> {
        self.load.fetch_add(1, Ordering::Relaxed);
        let answer = self.ask_now(request, wanted);
        self.load.fetch_sub(1, Ordering::Relaxed);
        answer
    }

    fn ask_now(&self, request: &Request<'_>, mut wanted: Wanted<'_>) -> Faulty<Wanted<'static>> {
        let cookie = self.announce(request)?;
        let mut progress = Progress::default();
        let done = self.send(request, cookie).and_then(|()| self.receive(cookie, &mut wanted, &mut progress));
        let done = done.and_then(|()| match progress.error {
            Some(_) => Ok(Wanted::Nothing),
            None => match wanted {
                Wanted::Nothing => Ok(Wanted::Nothing),
                Wanted::Bytes(filling) => filling.check().map(|()| Wanted::Nothing),
                Wanted::Extents(all) if all.is_empty() => {
                    Err(ClientFault::Broken("an answer without extents"))
                }
                Wanted::Extents(all) => Ok(Wanted::Extents(all)),
            },
        });
        match (done, progress.error) {
            (Err(fault), _) => Err(self.fail(fault)),
            (Ok(_), Some((number, text))) => Err(ClientFault::answer(request.doing(), number, &text)),
            (Ok(wanted), None) => Ok(wanted),
        }
    }

    fn announce(&self, request: &Request<'_>) -> Faulty<u64> {
        let mut state = lock(&self.state);
        if let Some(end) = &state.end {
            return Err(end.clone());
        }
        state.cookie = state.cookie.wrapping_add(1);
        let cookie = state.cookie;
        state.waiting.insert(cookie, request.is_slow());
        Ok(cookie)
    }

    fn send(&self, request: &Request<'_>, cookie: u64) -> Faulty<()> {
        let Request { command, at, len, flags, payload } = *request;
        let is_extended = self.terms.replies == Replies::Extended;
        let flags =
            if is_extended && !payload.is_empty() { flags | CommandFlags::PAYLOAD_LEN } else { flags };
        let mut head = lock(&self.output);
        head.clear();
        Frame { flags, command, cookie, at, len }.put(&mut head, is_extended);
        send(self.stream.as_ref(), &head, payload).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientFault::Stuck(self.patience.answer.as_secs())
            }
            _ => ClientFault::io(&e),
        })
    }

    /// Ends the connection for all who wait; the first reason is the one that counts.
    fn fail(&self, fault: ClientFault) -> ClientFault {
        let mut state = lock(&self.state);
        let fault = state.end.get_or_insert(fault).clone();
        state.waiting.clear();
        self.stream.end();
        self.turned.notify_all();
        fault
    }

    /// Receives until the answer with that cookie is complete.
    fn receive(&self, cookie: u64, wanted: &mut Wanted<'_>, progress: &mut Progress) -> Faulty<()> {
        let until = Instant::now().checked_add(self.patience.whole);
        let mut has_turn = false;
        loop {
            let head = self.turn(cookie, has_turn, until)?;
            has_turn = true;
            if self.take(head, wanted, progress, until)? {
                let mut state = lock(&self.state);
                state.waiting.remove(&cookie);
                state.is_taken = false;
                self.turned.notify_all();
                return Ok(());
            }
        }
    }

    /// Waits for what is for this cookie; the turn is ours then.
    fn turn(&self, cookie: u64, has_turn: bool, until: Option<Instant>) -> Faulty<ReplyHead> {
        let mut has_turn = has_turn;
        let mut state = lock(&self.state);
        loop {
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            if let Some(head) = state.head.take_if(|head| head.cookie() == cookie) {
                return Ok(head);
            }
            if !has_turn && state.is_taken {
                state = self.turned.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let is_first = !state.is_taken;
            state.is_taken = true;
            drop(state);
            let head = self.head(is_first, until)?;
            if head.cookie() == cookie {
                return Ok(head);
            }
            state = lock(&self.state);
            if !state.waiting.contains_key(&head.cookie()) {
                return Err(ClientFault::Broken("an answer to a request that nobody made"));
            }
            // The turn goes with it.
            has_turn = false;
            state.head = Some(head);
            self.turned.notify_all();
        }
    }

    /// Reads what stands before the next data.
    fn head(&self, is_first: bool, until: Option<Instant>) -> Faulty<ReplyHead> {
        let mut input = lock(&self.input);
        if is_first {
            input.heard = Instant::now();
        }
        let head = if self.terms.replies == Replies::Extended {
            let mut bytes = [0; EXTENDED_REPLY_BYTES];
            self.fill(&mut input, &mut bytes, until)?;
            ReplyHead::extended(&bytes)
        } else {
            let mut bytes = [0; STRUCTURED_REPLY_BYTES];
            let (short, rest) = bytes.split_at_mut(SIMPLE_REPLY_BYTES);
            self.fill(&mut input, short, until)?;
            let simple = short.first_chunk().and_then(ReplyHead::simple);
            if simple.is_none() && self.terms.replies == Replies::Structured {
                self.fill(&mut input, rest, until)?;
            }
            simple.or_else(|| {
                ReplyHead::structured(&bytes).filter(|_| self.terms.replies == Replies::Structured)
            })
        };
        head.ok_or(ClientFault::Broken("no reply where one was expected"))
    }

    /// Takes what stands behind `head`; whether that is all.
    fn take(
        &self,
        head: ReplyHead,
        wanted: &mut Wanted<'_>,
        progress: &mut Progress,
        until: Option<Instant>,
    ) -> Faulty<bool> {
        let mut input = lock(&self.input);
        match head {
            ReplyHead::Simple { error: 0, .. } => {
                match wanted {
                    Wanted::Nothing => {}
                    Wanted::Bytes(filling) if self.terms.replies == Replies::Simple => {
                        self.fill(&mut input, filling.whole(), until)?;
                    }
                    _ => return Err(ClientFault::Broken("a simple reply to what wants chunks")),
                }
                Ok(true)
            }
            ReplyHead::Simple { error, .. } => {
                progress.error = Some((error, String::new()));
                Ok(true)
            }
            ReplyHead::Chunk { is_last, kind, len, .. } => {
                progress.chunks = progress.chunks.saturating_add(1);
                if progress.chunks > CHUNKS_MAX {
                    return Err(ClientFault::Broken("a reply in too many chunks"));
                }
                self.chunk(&mut input, (kind, len, is_last), wanted, progress, until)?;
                Ok(is_last)
            }
        }
    }

    fn chunk(
        &self,
        input: &mut MutexGuard<'_, Input>,
        (kind, len, is_last): (u16, u64, bool),
        wanted: &mut Wanted<'_>,
        progress: &mut Progress,
        until: Option<Instant>,
    ) -> Faulty<()> {
        match (kind, wanted) {
            (chunk::NONE, _) if len == 0 && is_last => Ok(()),
            (chunk::OFFSET_DATA, Wanted::Bytes(filling)) if len > 8 => {
                let at = self.payload(input, 8, until)?;
                let at = Fields(&at).u64().unwrap_or_default();
                let part = filling.part(at, len.saturating_sub(8))?;
                self.fill(input, part, until)
            }
            (chunk::OFFSET_HOLE, Wanted::Bytes(filling)) if len == 12 => {
                let bytes = self.payload(input, 12, until)?;
                let mut fields = Fields(&bytes);
                let (at, len) = (fields.u64().unwrap_or_default(), fields.u32().unwrap_or_default());
                filling.part(at, len.into())?.fill(0);
                Ok(())
            }
            (chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT, Wanted::Extents(all)) => {
                let number = self.terms.context.ok_or(ClientFault::Broken("extents of no context"))?;
                if len > STATUS_BYTES_MAX || !all.is_empty() {
                    return Err(ClientFault::Broken("too many extents"));
                }
                *all = extents(kind, &self.payload(input, len, until)?, number)?;
                Ok(())
            }
            (kind, _) if kind & ERROR_BIT != 0 && len <= ERROR_BYTES_MAX => {
                let found = error(&self.payload(input, len, until)?)?;
                progress.error.get_or_insert(found);
                Ok(())
            }
            _ => Err(ClientFault::Broken("a chunk that does not belong here")),
        }
    }

    /// Some bytes that met a limit.
    fn payload(
        &self,
        input: &mut MutexGuard<'_, Input>,
        len: u64,
        until: Option<Instant>,
    ) -> Faulty<Vec<u8>> {
        let mut bytes =
            vec![0; usize::try_from(len).map_err(|_| ClientFault::Broken("a chunk is too long"))?];
        self.fill(input, &mut bytes, until)?;
        Ok(bytes)
    }

    /// Fills `out` from the stream.
    fn fill(&self, input: &mut Input, out: &mut [u8], until: Option<Instant>) -> Faulty<()> {
        let Input { ahead, heard } = input;
        let mut receive = |buf: &mut [u8]| loop {
            if until.is_some_and(|until| Instant::now() > until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.stream.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if heard.elapsed() > self.patience_now() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                done => {
                    *heard = Instant::now();
                    return done;
                }
            }
        };
        match ahead.fill(&mut receive, out) {
            Ok(true) => Ok(()),
            Ok(false) if out.is_empty() => Ok(()),
            Ok(false) => Err(ClientFault::Ended),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                Err(ClientFault::Stuck(self.patience_now().as_secs()))
            }
            Err(e) => Err(ClientFault::io(&e)),
        }
    }

    /// How long nothing may be heard.
    fn patience_now(&self) -> Duration {
        let is_slow = lock(&self.state).waiting.values().any(|slow| *slow);
        if is_slow { self.patience.slow } else { self.patience.answer }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let has_ended = lock(&self.state).end.is_some();
        if !has_ended && self.stream.limit(Some(TICK)).is_ok() {
            let mut frame = Vec::new();
            let is_extended = self.terms.replies == Replies::Extended;
            let leave =
                Frame { flags: CommandFlags::empty(), command: command::DISC, cookie: 0, at: 0, len: 0 };
            leave.put(&mut frame, is_extended);
            if send(self.stream.as_ref(), &frame, &[]).is_ok() {
                self.stream.finish();
            }
        }
        self.stream.end();
    }
}
