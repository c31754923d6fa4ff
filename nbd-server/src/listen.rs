//! Where connections come from: Unix sockets, TCP, sockets that somebody else has opened.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::net::sockopt;
use rustix::process::umask;

use crate::limits::PIECE;
use crate::stream::Stream;

/// How long nobody is let in when the host has run out of something.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes that may be on the way to a local client: a piece, and the next one while that is read.
const SEND_BYTES: usize = 2 * PIECE;

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// A path.
    Unix(UnixListener),
    /// An address.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `path`, which only this user can reach. What a server left there that is gone is replaced.
    ///
    /// Changes the program's file mode mask for a moment: to be called before there are other threads.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let is_left = UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        let is_socket = fs::symlink_metadata(path).is_ok_and(|m| {
            use std::os::unix::fs::FileTypeExt;
            m.file_type().is_socket()
        });
        if is_left && is_socket {
            fs::remove_file(path)?;
        }
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        umask(before);
        Ok(Self::Unix(listener?))
    }

    /// Listens at an address.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::Tcp(TcpListener::bind(address)?))
    }

    /// The address, if it is one of the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(l) => l.local_addr().ok(),
        }
    }

    fn quiet(&self) -> io::Result<()> {
        match self {
            Self::Unix(l) => l.set_nonblocking(true),
            Self::Tcp(l) => l.set_nonblocking(true),
        }
    }

    fn accept(&self) -> io::Result<Arc<dyn Stream>> {
        match self {
            Self::Unix(l) => {
                let (stream, _) = l.accept()?;
                stream.set_nonblocking(false)?;
                // The host gives as much of it as it gives to anybody; TCP finds out for itself.
                let _ = sockopt::set_socket_send_buffer_size(&stream, SEND_BYTES);
                Ok(Arc::new(stream))
            }
            Self::Tcp(l) => {
                let (stream, _) = l.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                // A client whose machine is gone is found out in the end.
                let _ = sockopt::set_socket_keepalive(&stream, true);
                Ok(Arc::new(stream))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(l) => l.as_fd(),
            Self::Tcp(l) => l.as_fd(),
        }
    }
}

/// Ends [`wait`] when it is dropped.
#[derive(Debug)]
pub(crate) struct Waker {
    _pipe: PipeWriter,
}

/// The other end of a [`Waker`].
#[derive(Debug)]
pub(crate) struct Woken(PipeReader);

impl Waker {
    pub(crate) fn new() -> io::Result<(Self, Woken)> {
        let (reader, writer) = io::pipe()?;
        Ok((Self { _pipe: writer }, Woken(reader)))
    }
}

/// Waits for the next connection; `None` if it shall not be waited for any more.
pub(crate) fn wait(listeners: &[Listener], woken: &Woken, tell: &dyn Fn(&str)) -> Option<Arc<dyn Stream>> {
    for listener in listeners {
        // A connection can be gone again before it is accepted, and nobody may wait for it then.
        let _ = listener.quiet();
    }
    loop {
        let mut all = vec![PollFd::new(&woken.0, PollFlags::IN)];
        all.extend(listeners.iter().map(|l| PollFd::new(l, PollFlags::IN)));
        if poll(&mut all, None).is_err_and(|e| e != rustix::io::Errno::INTR) {
            return None;
        }
        let (end, ready) = all.split_first()?;
        if !end.revents().is_empty() {
            return None;
        }
        for (listener, _) in listeners.iter().zip(ready).filter(|(_, fd)| !fd.revents().is_empty()) {
            match listener.accept() {
                Ok(stream) => return Some(stream),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    tell(&format!("a connection could not be accepted: {e}"));
                    thread::sleep(PAUSE);
                }
            }
        }
    }
}
