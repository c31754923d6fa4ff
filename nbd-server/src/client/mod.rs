//! The client: the export of a server as a [`Disk`].
//!
//! NBD's `doc/proto.md` and `doc/uri.md`: fixed newstyle, TLS, simple, structured and extended replies,
//! `base:allocation`, block sizes, several connections. Left out: the old handshake, connections that come back after
//! they were lost: what had not been flushed by then may be lost as well, and nobody would hear of it.
//!
//! * [`address`]: where an export is; [`dial`]: sockets; `tls`: certificates and keys
//! * `handshake`: options; `link`: one connection with several requests; `answer`: what comes back; `pool`: several
//!   connections
//! * [`device`]: requests cut and filled up; `status`: data and holes
//! * [`limits`]: what servers may say, and how long they may take; [`fault`]: what can be wrong with one
//!
//! Servers are hostile: each length meets a limit before memory, each byte of an answer comes once and is one that was
//! asked for, and who does not answer is given up.

pub mod address;
mod answer;
pub mod device;
pub mod dial;
pub mod fault;
mod handshake;
pub mod limits;
mod link;
mod pool;
mod status;
mod tls;

use racker_formats::block::Disk;
use racker_formats::error::Result;

use self::address::Address;
use self::device::Remote;
use self::dial::Dial;
use self::handshake::Wish;
use self::limits::Patience;
use self::pool::Pool;
use self::tls::ClientTls;

/// Connects to the export at `address`.
pub fn connect(address: &Address, patience: Patience) -> Result<Disk> {
    Ok(Disk::new(remote(address, patience)?))
}

/// Has a server make an export larger, to `size` bytes; disks that are connected keep the size they know.
pub fn grow(address: &Address, size: u64, patience: Patience) -> Result<()> {
    remote(address, patience)?.grow(size)
}

fn remote(address: &Address, patience: Patience) -> Result<Remote> {
    let tls = address.tls.as_ref().map(ClientTls::new).transpose()?;
    let wish = Wish { export: address.export.clone(), tls };
    Ok(Remote::new(Pool::new(Box::new(address.clone()), wish, patience)?))
}

/// Connects to an export of a server that is reached in another way, without TLS.
pub fn connect_by(server: impl Dial + 'static, export: &str, patience: Patience) -> Result<Disk> {
    let wish = Wish { export: export.into(), tls: None };
    Ok(Disk::new(Remote::new(Pool::new(Box::new(server), wish, patience)?)))
}
