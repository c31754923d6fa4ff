//! Both directions of a connection: sockets, standard input and output, memory.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{Shutdown as End, shutdown};

use crate::connection::lock;

/// Both directions of a connection. One thread reads at a time, and one writes.
pub trait Stream: Debug + Send + Sync {
    /// Reads what is there, at least one byte; 0 at the end.
    fn read(&self, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes some of `parts`.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    /// The longest time that one read or write may take.
    fn limit(&self, time: Option<Duration>) -> io::Result<()>;
    /// The longest time that one read may take.
    fn limit_input(&self, time: Duration) -> io::Result<()>;
    /// Lets reads find the end from now on.
    fn end_input(&self);
    /// Says good-bye where the stream has a way to: nothing is sent any more.
    fn finish(&self) {}
    /// Ends both directions; reads and writes that wait come back.
    fn end(&self);
    /// The socket, if bytes go out on it as they are.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Whether what is written now would probably not wait for the other side.
    fn takes_more(&self) -> bool {
        self.socket().is_none_or(is_writable)
    }
    /// Who is at the other side, for messages.
    fn peer(&self) -> String;
}

fn is_writable(to: BorrowedFd<'_>) -> bool {
    let mut one = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    poll(&mut one, Some(&Timespec::default())) == Ok(1)
}

/// Fills `buf`; `false` if the stream ended before its first byte.
pub(crate) fn fill(stream: &dyn Stream, buf: &mut [u8], until: Option<Instant>) -> io::Result<bool> {
    let mut done = 0usize;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        if let Some(until) = until {
            stream.limit(Some(left(until)?))?;
        }
        match stream.read(rest) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done = done.saturating_add(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Bytes that are read ahead of the frames in them.
pub(crate) const AHEAD: usize = 32 << 10;

/// What was read ahead of the frames in it.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
    /// Nothing is read ahead for now.
    is_exact: bool,
}

impl Ahead {
    /// Whether nothing is read ahead from now on: what follows a frame goes to its own place then without a copy.
    pub(crate) fn exact(&mut self, is_exact: bool) {
        self.is_exact = is_exact;
    }

    /// Whether `len` bytes are there.
    pub(crate) fn has(&self, len: usize) -> bool {
        self.to.saturating_sub(self.from) >= len
    }

    /// Moves what is there to `out`; says how much that was.
    pub(crate) fn take(&mut self, out: &mut [u8]) -> usize {
        let there = self.bytes.get(self.from..self.to).unwrap_or_default();
        let now = there.len().min(out.len());
        if let (Some(out), Some(there)) = (out.get_mut(..now), there.get(..now)) {
            out.copy_from_slice(there);
        }
        self.from = self.from.saturating_add(now);
        now
    }

    /// Fills `out` from what is there and from `receive`; `false` if that ended before the first byte.
    pub(crate) fn fill(
        &mut self,
        receive: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
        out: &mut [u8],
    ) -> io::Result<bool> {
        let mut done = 0usize;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let taken = self.take(rest);
            let got = if taken > 0 {
                taken
            } else if self.is_exact || rest.len() >= AHEAD {
                receive(rest)?
            } else {
                self.bytes.resize(AHEAD, 0);
                self.from = 0;
                self.to = 0;
                self.to = receive(&mut self.bytes)?;
                if self.to > 0 {
                    continue;
                }
                0
            };
            if got == 0 {
                return if done == 0 { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            done = done.saturating_add(got);
        }
        Ok(true)
    }
}

/// Time until then; an error if there is none.
pub(crate) fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Writes all of `head` and `body`.
pub(crate) fn send(stream: &dyn Stream, head: &[u8], body: &[u8]) -> io::Result<()> {
    send_parts(stream, &mut [IoSlice::new(head), IoSlice::new(body)])
}

/// Writes all of `parts`.
pub(crate) fn send_parts(stream: &dyn Stream, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Takes empty parts away.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut parts, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A socket of the host.
trait Socket: AsFd + Debug + Send + Sync {
    /// Who is at the other side.
    fn other(&self) -> String;
}

impl Socket for UnixStream {
    fn other(&self) -> String {
        match sockopt::socket_peercred(self) {
            Ok(who) => format!("process {}", who.pid.as_raw_nonzero()),
            Err(_) => "a local client".into(),
        }
    }
}

impl Socket for TcpStream {
    fn other(&self) -> String {
        self.peer_addr().map_or_else(|_| "a client".into(), |a| a.to_string())
    }
}

impl<S: Socket> Stream for S {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self, buf)?)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(self, parts)?)
    }

    fn limit(&self, time: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(self, Timeout::Recv, time)?;
        Ok(sockopt::set_socket_timeout(self, Timeout::Send, time)?)
    }

    fn limit_input(&self, time: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(self, Timeout::Recv, Some(time))?)
    }

    fn end_input(&self) {
        let _ = shutdown(self, End::Read);
    }

    fn end(&self) {
        let _ = shutdown(self, End::Both);
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn peer(&self) -> String {
        self.other()
    }
}

/// A stream over two descriptors: standard input and output of a program that was started for one connection.
#[derive(Debug)]
pub struct Pipes {
    input: File,
    output: File,
    is_ended: AtomicBool,
}

impl Pipes {
    /// Reads from one and writes to the other.
    pub fn new(input: OwnedFd, output: OwnedFd) -> Self {
        Self { input: input.into(), output: output.into(), is_ended: AtomicBool::new(false) }
    }
}

impl Stream for Pipes {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_ended.load(Ordering::Acquire) {
            return Ok(0);
        }
        Read::read(&mut &self.input, buf)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&mut &self.output).write_vectored(parts)
    }

    fn limit(&self, time: Option<Duration>) -> io::Result<()> {
        // Sockets know limits, pipes do not; whoever started this program is no stranger.
        let _ = sockopt::set_socket_timeout(&self.input, sockopt::Timeout::Recv, time);
        let _ = sockopt::set_socket_timeout(&self.output, sockopt::Timeout::Send, time);
        Ok(())
    }

    fn limit_input(&self, time: Duration) -> io::Result<()> {
        let _ = sockopt::set_socket_timeout(&self.input, sockopt::Timeout::Recv, Some(time));
        Ok(())
    }

    fn end_input(&self) {
        self.is_ended.store(true, Ordering::Release);
        let _ = shutdown(&self.input, End::Read);
    }

    fn end(&self) {
        self.is_ended.store(true, Ordering::Release);
        let _ = shutdown(&self.input, End::Both);
        let _ = shutdown(&self.output, End::Both);
    }

    fn takes_more(&self) -> bool {
        is_writable(self.output.as_fd())
    }

    fn peer(&self) -> String {
        "standard input".into()
    }
}

/// A client or a server that has said everything in advance, and does not listen: for tests.
#[derive(Debug)]
pub struct Said {
    bytes: Mutex<VecDeque<u8>>,
    at_once: usize,
}

impl Said {
    /// One that says `bytes`, of which so many arrive at a time.
    pub fn new(bytes: &[u8], at_once: usize) -> Self {
        Self { bytes: Mutex::new(bytes.iter().copied().collect()), at_once: at_once.max(1) }
    }
}

impl Stream for Said {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(self.at_once);
        Read::read(&mut *lock(&self.bytes), buf.get_mut(..most).unwrap_or_default())
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).fold(0, usize::saturating_add))
    }

    fn limit(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn limit_input(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn end_input(&self) {
        lock(&self.bytes).clear();
    }

    fn end(&self) {
        lock(&self.bytes).clear();
    }

    fn peer(&self) -> String {
        "somebody of the past".into()
    }
}
