//! From an address to a stream: sockets, TLS.

use std::fmt::Debug;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use racker_formats::error::{Error, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::address::{Address, Place};
use super::fault::ClientFault;
use crate::stream::{Stream, left};

/// Makes connections to one server.
pub trait Dial: Debug + Send + Sync {
    /// One more connection, on which nothing was said so far.
    fn dial(&self, until: Instant) -> Result<Arc<dyn Stream>>;
}

impl Dial for Address {
    fn dial(&self, until: Instant) -> Result<Arc<dyn Stream>> {
        match &self.place {
            Place::Tcp { host, port } => tcp(host, *port, until),
            Place::Unix(path) => {
                Ok(unix(&SocketAddrUnix::new(path.as_path()).map_err(io::Error::from)?, until)?)
            }
            Place::Abstract(name) => {
                Ok(unix(&SocketAddrUnix::new_abstract_name(name).map_err(io::Error::from)?, until)?)
            }
        }
    }
}

fn tcp(host: &str, port: u16, until: Instant) -> Result<Arc<dyn Stream>> {
    let mut failed = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                // A server whose machine is gone is found out in the end.
                let _ = sockopt::set_socket_keepalive(&stream, true);
                return Ok(Arc::new(stream));
            }
            Err(e) => failed = Some(e),
        }
    }
    let failed = failed.unwrap_or_else(|| io::Error::other("the host has no address"));
    Err(Error::from(failed).within("connecting"))
}

/// A server that lets nobody in any more would keep a plain connect waiting for ever.
fn unix(address: &SocketAddrUnix, until: Instant) -> Result<Arc<dyn Stream>> {
    let connected = || -> io::Result<UnixStream> {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(left(until)?))?;
        connect(&fd, address)?;
        Ok(fd.into())
    };
    match connected() {
        Ok(stream) => Ok(Arc::new(stream)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(ClientFault::Io { text: "the server lets nobody in".into() }.into())
        }
        Err(e) => Err(Error::from(e).within("connecting")),
    }
}

/// A server that answers to one stream, and no other: for tests.
#[derive(Debug)]
pub struct Single(std::sync::Mutex<Option<Arc<dyn Stream>>>);

impl Single {
    /// The one that answers to `stream`.
    pub fn new(stream: Arc<dyn Stream>) -> Self {
        Self(std::sync::Mutex::new(Some(stream)))
    }
}

impl Dial for Single {
    fn dial(&self, _: Instant) -> Result<Arc<dyn Stream>> {
        crate::connection::lock(&self.0).take().ok_or_else(|| ClientFault::Ended.into())
    }
}
