//! Pages of a host file on their way to a socket: a pipe holds them, and nobody copies them in between.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use crate::connection::lock;
use crate::limits::{PIECE, PIPES_MAX};

/// A pipe for pages.
#[derive(Debug)]
struct Pages {
    from: PipeReader,
    to: PipeWriter,
    /// Bytes in the pipe.
    held: usize,
}

impl Pages {
    /// A pipe that takes a [`PIECE`]; `None` where the host has none left for this user.
    fn new() -> Option<Self> {
        let (from, to) = io::pipe().ok()?;
        fcntl_setpipe_size(&to, PIECE).ok()?;
        Some(Self { from, to, held: 0 })
    }

    /// Takes in the pages of `len` bytes of `file` from `at` on; says of how many. There are fewer where the pipe is
    /// full or a page cannot be read, and none of files that cannot give theirs away.
    fn take(&mut self, file: &File, mut at: u64, len: usize) -> usize {
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
    fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
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

/// The pipes of a server, which connections use by turns: each takes two descriptors of the process.
#[derive(Debug, Default)]
pub(crate) struct PipePool {
    idle: Mutex<Vec<Pages>>,
    lent: AtomicUsize,
}

impl PipePool {
    /// A pipe with the pages of at most `len` bytes of `file` from `at` on; none where there is no pipe left, or nothing
    /// was taken in.
    pub(crate) fn take(self: &Arc<Self>, file: &File, at: u64, len: usize) -> Option<Lent> {
        let is_room = self.lent.fetch_add(1, Ordering::AcqRel) < PIPES_MAX;
        let mut lent = Lent { pages: None, pool: Arc::clone(self) };
        if is_room {
            let idle = lock(&self.idle).pop();
            lent.pages = idle.or_else(Pages::new);
        }
        let taken = lent.pages.as_mut().map_or(0, |pages| pages.take(file, at, len));
        (taken > 0).then_some(lent)
    }
}

/// A pipe of a pool, which gets it back, whatever becomes of the reply.
#[derive(Debug)]
pub(crate) struct Lent {
    pages: Option<Pages>,
    pool: Arc<PipePool>,
}

impl Lent {
    /// Bytes in the pipe.
    pub(crate) fn len(&self) -> usize {
        self.pages.as_ref().map_or(0, |pages| pages.held)
    }

    /// Sends all that was taken in.
    pub(crate) fn send(mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.pages.as_mut().map_or(Ok(()), |pages| pages.send(socket))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One that was not emptied is of no use.
        if let Some(pages) = self.pages.take().filter(|pages| pages.held == 0) {
            lock(&self.pool.idle).push(pages);
        }
        self.pool.lent.fetch_sub(1, Ordering::AcqRel);
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
            pages.send(ours.as_fd()).unwrap();
            at += taken;
        }
        assert_eq!(pages.take(&file, len64(bytes.len()), 10), 0);
        drop(ours);
        assert_eq!(reader.join().unwrap(), &bytes[5..]);
    }

    #[test]
    fn pipes_are_lent_by_turns() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let pipes = Arc::new(PipePool::default());
        assert!(pipes.take(&file, 5000, 10).is_none());
        let mut lent: Vec<Lent> = (0..PIPES_MAX).map(|_| pipes.take(&file, 0, 4000).unwrap()).collect();
        assert!(pipes.take(&file, 0, 4000).is_none());
        // What a reply that failed has left behind gets into no other.
        drop(lent.pop());
        let next = pipes.take(&file, 4000, 4000).unwrap();
        assert_eq!((next.len(), lock(&pipes.idle).len()), (1000, 0));
        let (here, mut there) = UnixStream::pair().unwrap();
        next.send(here.as_fd()).unwrap();
        drop(here);
        assert_eq!(there.read_to_end(&mut Vec::new()).unwrap(), 1000);
        lent.clear();
        assert_eq!((pipes.lent.load(Ordering::Acquire), lock(&pipes.idle).len()), (0, 1));
    }
}
