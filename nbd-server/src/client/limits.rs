//! Every ceiling of the client, with its reason. A number out of a server's frame meets one of these before memory.

use std::time::Duration;

/// Data of one answer to an option: a name and a description, each of which the protocol limits to 4096 bytes.
pub const ANSWER_BYTES_MAX: u32 = 64 << 10;
/// Answers to one option: each export of a list is one.
pub const ANSWERS_MAX: usize = 10_000;
/// Exports that are told of when there is none of the name that was asked for.
pub const OFFERED_MAX: usize = 12;
/// Letters of a server's text that are shown.
pub const TEXT_CHARS_MAX: usize = 200;
/// The longest name of an export: the protocol's own limit for strings.
pub const NAME_BYTES_MAX: usize = 4096;

/// The largest disk: offsets fit a file of the host.
pub const SIZE_MAX: u64 = i64::MAX.unsigned_abs();
/// The largest unit that a server may want requests to be made of: the protocol's own limit.
pub const BLOCK_BYTES_MAX: u32 = 64 << 10;
/// Payload of one request where the server says nothing: what the protocol asks every server to take.
pub const PAYLOAD_DEFAULT: u32 = 32 << 20;
/// Bytes that one request reads or writes: more makes nothing faster, and keeps others waiting.
pub const REQUEST_BYTES_MAX: u32 = 4 << 20;
/// Bytes that one request makes zero, so that a server that has to write them answers in time.
pub const ZERO_BYTES_MAX: u32 = 1 << 30;
/// Bytes that one question for block status is about, where lengths have 32 bits.
pub const STATUS_SPAN_MAX: u64 = (4 << 30) - (64 << 10);
/// Payload of one answer to it: half a million extents.
pub const STATUS_BYTES_MAX: u64 = 4 << 20;
/// Chunks of one reply: servers cut at their own blocks, of 512 bytes at least.
pub const CHUNKS_MAX: usize = 64 << 10;
/// Payload of a chunk that tells of an error: the protocol's own limit for strings, and the numbers beside it.
pub const ERROR_BYTES_MAX: u64 = 4096 + 64;

/// Connections of one disk at a time.
pub const CONNECTIONS_MAX: usize = 4;
/// How often somebody who waits for a server looks at the time.
pub const TICK: Duration = Duration::from_millis(500);

/// How long servers may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To connect, and for the handshake.
    pub handshake: Duration,
    /// Without a byte, while something is read, written or asked.
    pub answer: Duration,
    /// Without a byte, while something is put on stable storage, made zero, given back or resized.
    pub slow: Duration,
    /// For one answer from beginning to end, however steadily it drips.
    pub whole: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            slow: Duration::from_secs(300),
            whole: Duration::from_secs(900),
        }
    }
}
