//! Waiting for a client's next request without going to sleep: where nothing else runs, waking up again takes longer than
//! many requests do.
//!
//! A thread spins only if the client was quick several times before, and not for long. Where that was of no use (the
//! client may have no processor to run on while this thread has it), it is tried more and more rarely.

use std::io;
use std::num::NonZero;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

/// The longest time that is spun, and the longest wait after which the next one may be short.
const SPIN: Duration = Duration::from_micros(100);
/// Quick requests in a row before the first try.
const FIRST: u32 = 8;
/// Quick requests in a row before a try, at most.
const LAST: u32 = 16 << 10;

/// How many threads of a server spin. One processor is always left to others.
#[derive(Debug)]
pub(crate) struct Spinners {
    count: AtomicUsize,
    most: usize,
}

impl Default for Spinners {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Self { count: AtomicUsize::new(0), most: processors.saturating_sub(1) }
    }
}

impl Spinners {
    /// Tries again and again whether `socket` has something to read; `None` if it had not for a while.
    fn spin(&self, socket: BorrowedFd<'_>, buf: &mut [u8]) -> Option<io::Result<usize>> {
        let is_room = self.count.fetch_add(1, Ordering::AcqRel) < self.most;
        let begun = Instant::now();
        let mut found = None;
        while is_room && found.is_none() && begun.elapsed() < SPIN {
            found = match recv(socket, &mut *buf, RecvFlags::DONTWAIT) {
                Ok((read, _)) => Some(Ok(read)),
                Err(e) if e == rustix::io::Errno::AGAIN => None,
                Err(e) => Some(Err(e.into())),
            };
        }
        self.count.fetch_sub(1, Ordering::AcqRel);
        found
    }
}

/// What is known of a client's pace.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Quick requests since the last slow one.
    quick: u32,
    /// So many are needed before anybody spins.
    needed: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { quick: 0, needed: FIRST }
    }
}

impl Pace {
    /// Reads what the client sends next, with `read` if it takes its time.
    pub(crate) fn receive(
        &mut self,
        spinners: &Spinners,
        socket: Option<BorrowedFd<'_>>,
        buf: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let Some(socket) = socket else { return read(buf) };
        if self.quick >= self.needed {
            if let Some(found) = spinners.spin(socket, buf) {
                self.needed = (self.needed / 2).max(FIRST);
                return found;
            }
            self.needed = self.needed.saturating_mul(2).min(LAST);
            self.quick = 0;
            return read(buf);
        }
        let begun = Instant::now();
        let found = read(buf);
        self.quick = if begun.elapsed() < SPIN { self.quick.saturating_add(1) } else { 0 };
        found
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn spins_where_that_helps() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let spinners = Spinners { count: AtomicUsize::new(0), most: 1 };
        let mut pace = Pace::default();
        let mut buf = [0; 4];
        let mut slept = 0;
        for _ in 0..FIRST + 5 {
            theirs.write_all(b"next").unwrap();
            let got = pace.receive(&spinners, Some(ours.as_fd()), &mut buf, |buf| {
                slept += 1;
                Ok(rustix::io::read(&ours, buf)?)
            });
            assert_eq!((got.unwrap(), &buf), (4, b"next"));
        }
        assert!(slept >= FIRST, "{slept}");
        // Nothing comes: it is asked the other way in the end, and more rarely from now on.
        pace.quick = FIRST;
        let got = pace.receive(&spinners, Some(ours.as_fd()), &mut buf, |_| Ok(1));
        assert_eq!((got.unwrap(), pace.quick, pace.needed), (1, 0, 2 * FIRST));
        // The end is found while spinning, too.
        drop(theirs);
        pace.quick = 2 * FIRST;
        let got = pace.receive(&spinners, Some(ours.as_fd()), &mut buf, |_| Ok(1));
        assert_eq!((got.unwrap(), spinners.count.into_inner()), (0, 0));
    }

    #[test]
    fn a_machine_that_is_full_is_left_alone() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"next").unwrap();
        let spinners = Spinners { count: AtomicUsize::new(1), most: 1 };
        assert!(spinners.spin(ours.as_fd(), &mut [0; 4]).is_none());
        assert_eq!(spinners.count.into_inner(), 1);
    }
}
