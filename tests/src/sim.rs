//! Devices that lie: one loses power, one fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use racker_formats::block::{BlockDevice, Caps, Disk, Span, Support};
use racker_formats::error::Result;

use crate::rng::Rng;

/// What is written as a whole whatever happens.
const SECTOR: usize = 512;

/// Bytes in memory.
pub trait Medium: Clone + Debug + Send + Sync + 'static {
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Cuts them off, or adds zeroes.
    fn resize(&mut self, len: usize);
    /// Reads inside them.
    fn read(&self, at: usize, buf: &mut [u8]);
    /// Writes, and makes longer what is too short: a file does the same when its new size was lost.
    fn put(&mut self, at: usize, data: &[u8]);
}

impl Medium for Vec<u8> {
    fn len(&self) -> usize {
        self.len()
    }

    fn resize(&mut self, len: usize) {
        self.resize(len, 0);
    }

    fn read(&self, at: usize, buf: &mut [u8]) {
        buf.copy_from_slice(&self[at..at + buf.len()]);
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        if self.len() < end {
            self.resize(end, 0);
        }
        self[at..end].copy_from_slice(data);
    }
}

/// Bytes that are mostly zeroes: a copy of it, and comparing a copy, cost nothing but for what was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    len: usize,
    /// Those that are not all zeroes.
    pages: BTreeMap<usize, Arc<[u8; PAGE]>>,
}

const PAGE: usize = 4096;
const ZEROES: [u8; PAGE] = [0; PAGE];

impl Sparse {
    /// The content of a disk.
    pub fn of(disk: &Disk) -> Result<Self> {
        let mut all = Self { len: disk.size() as usize, ..Self::default() };
        for run in disk.runs(Span::first(disk.size())) {
            let (mut span, kind) = run?;
            while !kind.is_zero() && !span.is_empty() {
                let mut piece = vec![0; span.len().min(1 << 20) as usize];
                disk.read_at(span.start(), &mut piece)?;
                all.put(span.start() as usize, &piece);
                span = span.skip(piece.len() as u64);
            }
        }
        Ok(all)
    }

    /// Calls `each` with place and length of what differs between this and `other`, which is as long, byte by byte.
    pub fn differences(&self, other: &Self, mut each: impl FnMut(usize, usize)) {
        assert_eq!(self.len, other.len, "disks of different sizes");
        let numbers: BTreeSet<usize> = self.pages.keys().chain(other.pages.keys()).copied().collect();
        for number in numbers {
            let of = |all: &Self| all.pages.get(&number).cloned();
            let (a, b) = match (of(self), of(other)) {
                (Some(a), Some(b)) if Arc::ptr_eq(&a, &b) => continue,
                (a, b) => (a.map_or(ZEROES, |p| *p), b.map_or(ZEROES, |p| *p)),
            };
            let mut at = 0;
            while let Some(skip) = a[at..].iter().zip(&b[at..]).position(|(a, b)| a != b) {
                at += skip;
                let len = a[at..].iter().zip(&b[at..]).take_while(|(a, b)| a != b).count();
                each(number * PAGE + at, len);
                at += len;
            }
        }
    }

    /// Calls `each` with the place and content of all that is not zero.
    pub fn each(&self, mut each: impl FnMut(usize, &[u8])) {
        self.pages.iter().for_each(|(number, page)| each(number * PAGE, page.as_slice()));
    }
}

impl Medium for Sparse {
    fn len(&self) -> usize {
        self.len
    }

    fn resize(&mut self, len: usize) {
        self.len = len;
        self.pages.retain(|number, _| number * PAGE < len);
        if let Some(mut last) = self.pages.last_entry().filter(|last| (last.key() + 1) * PAGE > len) {
            let keep = len - last.key() * PAGE;
            Arc::make_mut(last.get_mut())[keep..].fill(0);
        }
    }

    fn read(&self, mut at: usize, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let skip = at % PAGE;
            let (now, later) = buf.split_at_mut(buf.len().min(PAGE - skip));
            match self.pages.get(&(at / PAGE)) {
                Some(page) => now.copy_from_slice(&page[skip..skip + now.len()]),
                None => now.fill(0),
            }
            at += now.len();
            buf = later;
        }
    }

    fn put(&mut self, mut at: usize, mut data: &[u8]) {
        self.len = self.len.max(at + data.len());
        while !data.is_empty() {
            let skip = at % PAGE;
            let (now, later) = data.split_at(data.len().min(PAGE - skip));
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new(ZEROES));
            Arc::make_mut(page)[skip..skip + now.len()].copy_from_slice(now);
            if **page == ZEROES {
                self.pages.remove(&(at / PAGE));
            }
            at += now.len();
            data = later;
        }
    }
}

/// A disk in memory that remembers every change, so that a power cut can be imagined behind each of them.
#[derive(Debug)]
pub struct CrashDisk<M = Vec<u8>> {
    start: M,
    state: Mutex<State<M>>,
}

#[derive(Debug)]
struct State<M> {
    bytes: M,
    log: Vec<Arc<Op>>,
}

#[derive(Debug)]
enum Op {
    Write { at: usize, data: Vec<u8> },
    Resize(usize),
    Flush,
}

impl<M: Medium> CrashDisk<M> {
    /// A disk that holds `bytes`, all of it on stable storage.
    pub fn new(bytes: M) -> Self {
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
    pub fn bytes(&self) -> M {
        self.lock().bytes.clone()
    }

    /// Calls `each` with the number of operations before the cut and what a power cut there may leave: everything
    /// flushed before, and of what came since all, nothing, or (`random` times) any sectors of any writes.
    pub fn cuts(&self, rng: &mut Rng, random: u32, mut each: impl FnMut(usize, &M)) {
        // Not under the lock: `each` may ask.
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
            if log.get(cut).is_some_and(|op| matches!(**op, Op::Flush)) {
                pending.iter().for_each(|op| op.land(&mut stable));
                since = cut + 1;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<M>> {
        self.state.lock().expect("no test thread failed before")
    }

    fn change(&self, op: Op) {
        let mut state = self.lock();
        op.land(&mut state.bytes);
        state.log.push(Arc::new(op));
    }
}

impl Op {
    fn land<M: Medium>(&self, bytes: &mut M) {
        match self {
            Self::Write { at, data } => bytes.put(*at, data),
            Self::Resize(size) => bytes.resize(*size),
            Self::Flush => {}
        }
    }

    /// Lands as a whole, in part or not at all.
    fn land_torn<M: Medium>(&self, bytes: &mut M, rng: &mut Rng) {
        match (self, rng.below(3)) {
            (_, 0) | (Self::Flush, _) => {}
            (_, 1) | (Self::Resize(_), _) => self.land(bytes),
            (Self::Write { at, data }, _) => {
                let mut from = 0;
                while from < data.len() {
                    let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(data.len());
                    if rng.below(2) == 0 {
                        bytes.put(at + from, &data[from..to]);
                    }
                    from = to;
                }
            }
        }
    }
}

impl<M: Medium> BlockDevice for CrashDisk<M> {
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
        self.lock().bytes.read(at as usize, buf);
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
    good: u64,
    left: AtomicU64,
    forever: bool,
}

impl FaultDisk {
    /// Over `below`; the operation behind the first `good` ones fails, and with `forever` every later one.
    pub fn new(below: Disk, good: u64, forever: bool) -> Self {
        Self { below, good, left: AtomicU64::new(good + 1), forever }
    }

    /// Whether the failure has come.
    pub fn failed(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// How many operations there were, if it has not failed.
    pub fn done(&self) -> u64 {
        self.good + 1 - self.left.load(Ordering::SeqCst)
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
