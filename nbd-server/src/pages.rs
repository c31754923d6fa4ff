//! Pages of a host file on their way to a socket: a pipe holds them, and nobody copies them in between.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use crate::limits::PIECE;

/// A pipe for pages.
#[derive(Debug)]
pub(crate) struct Pages {
    from: PipeReader,
    to: PipeWriter,
    /// Bytes in the pipe.
    held: usize,
}

impl Pages {
    /// A pipe that takes a [`PIECE`]; `None` where the host has none left for this user.
    pub(crate) fn new() -> Option<Self> {
        let (from, to) = io::pipe().ok()?;
        fcntl_setpipe_size(&to, PIECE).ok()?;
        Some(Self { from, to, held: 0 })
    }

    /// Takes in the pages of `len` bytes of `file` from `at` on; says of how many. There are fewer where the pipe is
    /// full or a page cannot be read, and none of files that cannot give theirs away.
    pub(crate) fn take(&mut self, file: &File, mut at: u64, len: usize) -> usize {
        // What was left behind by a reply that failed must not get into another one.
        if self.held > 0 {
            return 0;
        }
        while self.held < len {
            let rest = len.saturating_sub(self.held);
            match splice(file, Some(&mut at), &self.to, None, rest, SpliceFlags::NONBLOCK) {
                Ok(0) => break,
                Ok(n) => self.held = self.held.saturating_add(n),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.held
    }

    /// Sends all that was taken in.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.held > 0 {
            match splice(&self.from, None, socket, None, self.held, SpliceFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.held = self.held.saturating_sub(n),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use racker_formats::wire::len64;

    use super::*;

    #[test]
    fn pages_arrive_as_they_are() {
        let bytes: Vec<u8> = (0u32..100_000).flat_map(|n| n.to_be_bytes()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let mut pages = Pages::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).unwrap();
            got
        });
        let mut at = 5;
        while at < bytes.len() {
            let taken = pages.take(&file, len64(at), PIECE.min(bytes.len() - at));
            assert!(taken > 0);
            // A pipe that was not emptied takes nothing in.
            assert_eq!(pages.held, taken);
            pages.send(ours.as_fd()).unwrap();
            at += taken;
        }
        assert_eq!(pages.take(&file, len64(bytes.len()), 10), 0);
        drop(ours);
        assert_eq!(reader.join().unwrap(), &bytes[5..]);
    }
}
