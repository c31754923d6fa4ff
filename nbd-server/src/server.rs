//! The server: exports, connections, and how all of it ends.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use racker_formats::error::{Error, Fault, Kind, Result};

use crate::connection::{Connection, lock};
use crate::export::Export;
use crate::handshake::{Cut, End, Handshake};
use crate::limits::{Limits, NAME_BYTES_MAX};
use crate::listen::{Listener, Waker, wait};
use crate::pages::PipePool;
use crate::spin::Spinners;
use crate::stream::Stream;
use crate::tls::Tls;

/// What a server says while it runs.
type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// Why exports cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerFault {
    /// Two of a name.
    #[error("two exports are called {0:?}")]
    Twice(String),
    /// A name that clients cannot ask for.
    #[error("an export's name has {len} bytes, {NAME_BYTES_MAX} are allowed, and no zero byte")]
    Name {
        /// Its length in bytes.
        len: usize,
    },
    /// There is nothing to be served.
    #[error("there is nothing to serve")]
    Empty,
    /// Writes that were answered may not be on stable storage.
    #[error("{export}: what was written last could not be flushed: {why}")]
    Flush {
        /// The export's name.
        export: String,
        /// What failed.
        why: Error,
    },
}

impl Fault for ServerFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Twice(_) | Self::Name { .. } | Self::Empty => Kind::Invalid,
            Self::Flush { why, .. } => why.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        matches!(self, Self::Twice(_)).then(|| "give each image a name of its own with --name".into())
    }
}

/// What was served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Connections that came as far as requests.
    pub connections: u64,
    /// Requests of all of them.
    pub requests: u64,
    /// Bytes of the disks that were read.
    pub read: u64,
    /// Bytes of the disks that were written.
    pub written: u64,
    /// Connections that had to be cut off because they did not end in time.
    pub cut_off: usize,
}

/// What all connections have done so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    connections: AtomicU64,
    requests: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

impl Counts {
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What connections share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) counts: Counts,
    /// What `STARTTLS` begins.
    pub(crate) tls: Option<Tls>,
    /// For reads that nobody copies.
    pub(crate) pipes: Arc<PipePool>,
    /// Threads that wait without sleeping.
    pub(crate) spinners: Spinners,
    exports: Vec<Arc<Export>>,
    by_name: BTreeMap<Vec<u8>, usize>,
    is_stopping: AtomicBool,
    tell: Tell,
    open: Mutex<Open>,
    closed: Condvar,
}

/// The connections that there are.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, Arc<dyn Stream>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "server of {} exports", self.exports.len())
    }
}

impl Shared {
    /// The export that a client calls `name`.
    pub(crate) fn find(&self, name: &[u8]) -> Option<Arc<Export>> {
        self.by_name.get(name).and_then(|i| self.exports.get(*i)).map(Arc::clone)
    }

    pub(crate) fn exports(&self) -> &[Arc<Export>] {
        &self.exports
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub(crate) fn tell(&self, what: &str) {
        (self.tell)(what);
    }

    /// Counts a connection in, if there may be one more.
    fn enter(self: &Arc<Self>, stream: &Arc<dyn Stream>) -> Option<Entered> {
        let mut open = lock(&self.open);
        if open.streams.len() >= self.limits.connections || self.is_stopping() {
            return None;
        }
        let number = open.next;
        open.next = open.next.wrapping_add(1);
        open.streams.insert(number, Arc::clone(stream));
        Some(Entered { server: Arc::clone(self), number })
    }

    /// Waits until all connections have ended; how many have not.
    fn wait_for_all(&self, time: Duration) -> usize {
        let start = Instant::now();
        let mut open = lock(&self.open);
        loop {
            let left = time.saturating_sub(start.elapsed());
            if open.streams.is_empty() || left.is_zero() {
                return open.streams.len();
            }
            let waited = self.closed.wait_timeout(open, left);
            open = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Handshake and requests of one connection.
    fn serve(self: &Arc<Self>, stream: Arc<dyn Stream>) {
        let peer = stream.peer();
        let done = Handshake::new(self, Arc::clone(&stream)).run().and_then(|end| match end {
            End::Left => Ok(()),
            End::Go(session, stream) => {
                self.counts.connections.fetch_add(1, Ordering::Relaxed);
                let done = Arc::new(Connection::new(Arc::clone(self), *session, Arc::clone(&stream))).serve();
                stream.finish();
                done
            }
        });
        stream.end();
        match done {
            Ok(()) => {}
            // A client that goes away without a word is no news.
            Err(Cut::Io(e)) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
            Err(cut) => self.tell(&format!("{peer}: cut off: {cut}")),
        }
    }
}

/// A connection that counts until it ends, in whatever way.
struct Entered {
    server: Arc<Shared>,
    number: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut open = lock(&self.server.open);
        if let Some(stream) = open.streams.remove(&self.number) {
            stream.end();
        }
        self.server.closed.notify_all();
    }
}

/// A server of disks.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    waker: Option<Waker>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// A server of `exports`; `default` is the one that clients mean who name none. `tell` hears what goes wrong.
    /// With `tls` that is required, clients that do not begin it are told nothing.
    pub fn new(
        exports: Vec<Export>,
        default: Option<usize>,
        limits: Limits,
        tls: Option<Tls>,
        tell: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self> {
        if exports.is_empty() {
            return Err(ServerFault::Empty.into());
        }
        let mut by_name = BTreeMap::new();
        for (i, export) in exports.iter().enumerate() {
            let name = export.name().as_bytes();
            if name.len() > NAME_BYTES_MAX || name.contains(&0) {
                return Err(ServerFault::Name { len: name.len() }.into());
            }
            if by_name.insert(name.to_vec(), i).is_some() {
                return Err(ServerFault::Twice(export.name().into()).into());
            }
        }
        if let Some(default) = default.filter(|i| *i < exports.len()) {
            by_name.entry(Vec::new()).or_insert(default);
        }
        let shared = Shared {
            limits,
            counts: Counts::default(),
            tls,
            pipes: Arc::default(),
            spinners: Spinners::default(),
            exports: exports.into_iter().map(Arc::new).collect(),
            by_name,
            is_stopping: AtomicBool::new(false),
            tell: Box::new(tell),
            open: Mutex::default(),
            closed: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared), waker: None, acceptor: None })
    }

    /// What it serves.
    pub fn exports(&self) -> &[Arc<Export>] {
        self.shared.exports()
    }

    /// Serves one connection to its end, on this thread.
    pub fn serve(&self, stream: Arc<dyn Stream>) {
        if let Some(_entered) = self.shared.enter(&stream) {
            self.shared.serve(stream);
        }
    }

    /// Serves one connection on a thread of its own; `done` is called when it has ended.
    pub fn connect(&self, stream: Arc<dyn Stream>, done: impl FnOnce() + Send + 'static) -> Result<()> {
        let entered = self.shared.enter(&stream);
        let server = Arc::clone(&self.shared);
        let serve = move || {
            if entered.is_some() {
                server.serve(stream);
            }
            drop(entered);
            done();
        };
        thread::Builder::new().name("nbd connection".into()).spawn(serve)?;
        Ok(())
    }

    /// Calls `done` when there were connections and all of them have ended.
    pub fn when_left(&self, done: impl FnOnce() + Send + 'static) -> Result<()> {
        let server = Arc::clone(&self.shared);
        let wait = move || {
            let mut open = lock(&server.open);
            while server.counts.connections.load(Ordering::Relaxed) == 0 || !open.streams.is_empty() {
                open = server.closed.wait(open).unwrap_or_else(PoisonError::into_inner);
            }
            drop(open);
            done();
        };
        thread::Builder::new().name("nbd idle".into()).spawn(wait)?;
        Ok(())
    }

    /// Begins to accept connections; called once.
    pub fn listen(&mut self, listeners: Vec<Listener>) -> Result<()> {
        let (waker, woken) = Waker::new()?;
        let shared = Arc::clone(&self.shared);
        let accept = move || {
            while let Some(stream) = wait(&listeners, &woken, &|what| shared.tell(what)) {
                let Some(entered) = shared.enter(&stream) else {
                    if !shared.is_stopping() {
                        shared.tell(&format!("{}: turned away: too many connections", stream.peer()));
                    }
                    stream.end();
                    continue;
                };
                let server = Arc::clone(&shared);
                let serve = move || {
                    let _entered = entered;
                    server.serve(stream);
                };
                if let Err(e) = thread::Builder::new().name("nbd connection".into()).spawn(serve) {
                    shared.tell(&format!("a connection was turned away: no thread for it: {e}"));
                }
            }
        };
        self.acceptor = Some(thread::Builder::new().name("nbd accept".into()).spawn(accept)?);
        self.waker = Some(waker);
        Ok(())
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        lock(&self.shared.open).streams.len()
    }

    /// Lets nobody in any more, lets requests in flight end, and puts everything on stable storage.
    pub fn stop(mut self) -> Result<Summary> {
        self.shared.is_stopping.store(true, Ordering::Release);
        drop(self.waker.take());
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in lock(&self.shared.open).streams.values() {
            stream.end_input();
        }
        let cut_off = self.shared.wait_for_all(self.shared.limits.grace);
        if cut_off > 0 {
            for stream in lock(&self.shared.open).streams.values() {
                stream.end();
            }
            self.shared.wait_for_all(self.shared.limits.grace);
        }
        for export in self.shared.exports().iter().filter(|e| e.disk().writable()) {
            let flush = |why| ServerFault::Flush { export: export.name().into(), why };
            export.disk().flush().map_err(flush)?;
        }
        let counts = &self.shared.counts;
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Ok(Summary {
            connections: count(&counts.connections),
            requests: count(&counts.requests),
            read: count(&counts.read),
            written: count(&counts.written),
            cut_off,
        })
    }
}
