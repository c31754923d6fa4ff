//! One side of TLS, without I/O.

use std::io::{self, IoSlice};

/// One side of a connection with TLS. It works on memory and never waits: what comes in and goes out is moved by others.
pub(crate) trait Session: Send {
    /// Whether the handshake is not over.
    fn is_handshaking(&self) -> bool;

    /// Takes some of what has arrived, at least a byte of it, and says how much.
    fn receive(&mut self, arrived: &[u8]) -> io::Result<usize>;

    /// What the other side has said, up to `buf`'s length: 0 after its good-bye, `WouldBlock` if more has to arrive.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Makes records of some of `parts`, and says how much it took.
    fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Records to be sent, which are forgotten here.
    fn outgoing(&mut self) -> io::Result<Vec<u8>>;

    /// Whether there are such.
    fn wants_write(&self) -> bool;

    /// Makes the record that says good-bye.
    fn close(&mut self);
}
