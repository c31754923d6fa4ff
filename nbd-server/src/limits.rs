//! Every ceiling of the server, with its reason. A number out of a client's frame meets one of these before memory.

use std::time::Duration;

/// The longest name, of an export or a context: the protocol's own limit for strings.
pub const NAME_BYTES_MAX: usize = 4096;
/// Data of one option that are looked at: a name and a few dozen queries.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Data of one option that are read and forgotten, so that the client hears why; beyond that it is cut off.
pub const OPTION_DRAIN_MAX: u32 = 1 << 20;
/// Options of one handshake: a client that asks about every export of a server needs two for each.
pub const OPTIONS_MAX: u32 = 4096;
/// Metadata contexts that one connection selects.
pub const CONTEXTS_MAX: usize = 64;

/// The largest payload of a request, and of the answer to one that may not be cut in pieces. The protocol asks every
/// server for half of it; there are clients that never ask, and send 50 MB (nbd-tester-client).
pub const PAYLOAD_MAX: u32 = 64 << 20;
/// Payload that is read and forgotten, so that the client hears why its request fails; beyond that it is cut off.
pub const PAYLOAD_DRAIN_MAX: u64 = 128 << 20;
/// Pipes that a server has for reads that nobody copies: each takes two descriptors, and a [`PIECE`] of the host's memory.
pub const PIPES_MAX: usize = 32;
/// Bytes of a read that are in memory at a time.
pub const PIECE: usize = 256 << 10;
/// Payload beyond [`PIECE`] that the requests of one connection may hold at a time.
pub const PAYLOAD_IN_FLIGHT_MAX: u64 = 64 << 20;
/// Requests of one connection that run at a time.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 16;
/// Extents in the answer to one question for block status: the answer of a context stays below 64 KiB of memory.
pub const EXTENTS_MAX: usize = 2048;
/// Bytes that a cache request reads ahead.
pub const CACHE_BYTES_MAX: u64 = 64 << 20;
/// Zeroes that are written as bytes are written so many at a time, between two looks at whether the server ends.
pub const ZEROES_AT_ONCE: u64 = 64 << 20;

/// What one server allows its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// From a new connection to its first request.
    pub handshake: Duration,
    /// Between two requests, if that is limited.
    pub idle: Option<Duration>,
    /// For requests in flight when the server ends.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake: Duration::from_secs(10),
            idle: None,
            grace: Duration::from_secs(10),
        }
    }
}
