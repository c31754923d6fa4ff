//! Devices that lie: one loses power, one fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use racker_formats::block::{BlockDevice, Caps, Disk, Span, Support};
use racker_formats::error::Result;

use crate::rng::Rng;

/// What is written as a whole whatever happens.
const SECTOR: usize = 512;

/// A disk in memory that remembers every change, so that a power cut can be imagined behind each of them.
#[derive(Debug)]
pub struct CrashDisk {
    start: Vec<u8>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    log: Vec<Arc<Op>>,
}

#[derive(Debug)]
enum Op {
    Write { at: usize, data: Vec<u8> },
    Resize(usize),
    Flush,
}

impl CrashDisk {
    /// A disk that holds `bytes`, all of it on stable storage.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { start: bytes.clone(), state: Mutex::new(State { bytes, log: Vec::new() }) }
    }

    /// How many changes and flushes there were.
    pub fn len(&self) -> usize {
        self.lock().log.len()
    }

    /// Whether nothing was done.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it holds if nothing goes wrong.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Calls `each` with the number of operations before the cut and what a power cut there may leave: everything
    /// flushed before, and of what came since all, nothing, or (`random` times) any sectors of any writes.
    pub fn cuts(&self, rng: &mut Rng, random: u32, mut each: impl FnMut(usize, &[u8])) {
        // Not under the lock: what is called may ask the disk.
        let log = self.lock().log.clone();
        let mut stable = self.start.clone();
        let mut since = 0;
        for cut in 0..=log.len() {
            let pending = &log[since..cut];
            each(cut, &stable);
            if !pending.is_empty() {
                let mut all = stable.clone();
                pending.iter().for_each(|op| op.land(&mut all));
                each(cut, &all);
                for _ in 0..random {
                    let mut some = stable.clone();
                    pending.iter().for_each(|op| op.land_torn(&mut some, rng));
                    each(cut, &some);
                }
            }
            if let Some(Op::Flush) = log.get(cut).map(Arc::as_ref) {
                pending.iter().for_each(|op| op.land(&mut stable));
                since = cut + 1;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test thread failed before")
    }

    fn change(&self, op: Op) {
        let mut state = self.lock();
        op.land(&mut state.bytes);
        state.log.push(Arc::new(op));
    }
}

impl Op {
    fn land(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { at, data } => put(bytes, *at, data),
            Self::Resize(size) => bytes.resize(*size, 0),
            Self::Flush => {}
        }
    }

    /// Lands as a whole, in part or not at all.
    fn land_torn(&self, bytes: &mut Vec<u8>, rng: &mut Rng) {
        match (self, rng.below(3)) {
            (_, 0) | (Self::Flush, _) => {}
            (_, 1) | (Self::Resize(_), _) => self.land(bytes),
            (Self::Write { at, data }, _) => {
                let mut from = 0;
                while from < data.len() {
                    let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(data.len());
                    if rng.below(2) == 0 {
                        put(bytes, at + from, &data[from..to]);
                    }
                    from = to;
                }
            }
        }
    }
}

/// Writes, and makes longer what is too short: a file does the same when its new size was lost.
fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

impl BlockDevice for CrashDisk {
    fn size(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    fn caps(&self) -> Caps {
        Caps {
            write: true,
            zero: Support::Emulated,
            discard: Support::No,
            runs: Support::No,
            resize: true,
            preferred: 4096,
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let at = at as usize;
        buf.copy_from_slice(&self.lock().bytes[at..at + buf.len()]);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.change(Op::Flush);
        Ok(())
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.change(Op::Write { at: at as usize, data: data.to_vec() });
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.change(Op::Resize(size as usize));
        Ok(())
    }
}

/// A disk whose n-th operation fails, reads included, and all after it if so wanted.
#[derive(Debug)]
pub struct FaultDisk {
    below: Disk,
    left: AtomicU64,
    forever: bool,
}

impl FaultDisk {
    /// Over `below`; the operation behind the first `good` ones fails, and with `forever` every later one.
    pub fn new(below: Disk, good: u64, forever: bool) -> Self {
        Self { below, left: AtomicU64::new(good + 1), forever }
    }

    /// Whether the failure has come.
    pub fn failed(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    fn step(&self) -> Result<()> {
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        match before {
            Ok(1) => Err(std::io::Error::other("this operation was chosen to fail").into()),
            Err(_) if self.forever => Err(std::io::Error::other("the device is gone").into()),
            _ => Ok(()),
        }
    }
}

impl BlockDevice for FaultDisk {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn caps(&self) -> Caps {
        Caps { zero: Support::Emulated, discard: Support::No, ..self.below.caps() }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.step()?;
        self.below.read_at(at, buf)
    }

    fn flush(&self) -> Result<()> {
        self.step()?;
        self.below.flush()
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.step()?;
        self.below.write_at(at, data)
    }

    fn write_zeroes(&self, span: Span) -> Result<()> {
        self.step()?;
        self.below.write_zeroes(span)
    }

    fn resize(&self, size: u64) -> Result<()> {
        self.step()?;
        self.below.resize(size)
    }
}
