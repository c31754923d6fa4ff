//! Copies a disk into a new image: in parallel, in bounded memory, with output that does not depend on the number
//! of threads.
//!
//! ```text
//!  plan ──tickets──▶ worker ─┐
//!    ▲               worker ─┼─pieces──▶ writer (one, in order) ──▶ Sink
//!    └──one ticket per chunk written──────────┘
//! ```
//!
//! The source is cut into chunks. A ticket is permission to work on one chunk; there are a few per thread, and
//! writing a chunk issues the next one, so nobody runs ahead and memory stays bounded even if one chunk is slow.
//! A worker asks for the runs of its own chunk only, reads what is data, finds zeroes, and packs if the sink wants
//! packed pieces. One writer takes the chunks in order and hands their pieces to the [`Sink`].

mod new_file;
mod sink;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::block::{BlockSize, Disk, Span};
use crate::error::{Common, Result, Within};
use crate::limits::MIB;
use crate::wire::{index, is_zero, len64, part, part_mut};

pub use new_file::NewFile;
pub use sink::{DiskSink, Pack, Piece, Sink};

/// Chunks in flight for each thread: one being worked on, one waiting, one being written.
const TICKETS_PER_THREAD: usize = 3;
/// Zeroes shorter than this are copied as data, as `qemu-img convert` does by default (`-S 4k`).
pub const SPARSE_DEFAULT: u64 = 4096;

/// How a disk is copied.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads; none means one for each processor.
    pub threads: Option<NonZero<usize>>,
    /// Shortest stretch of zeroes that is left out, in bytes; 0 copies all of them.
    pub sparse: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: None, sparse: SPARSE_DEFAULT }
    }
}

/// What one worker made of one chunk.
#[derive(Debug)]
struct Chunk {
    span: Span,
    pieces: Vec<Piece>,
}

/// What all workers share.
struct Work<'a> {
    source: &'a Disk,
    chunk: BlockSize,
    /// Unit of zero detection in bytes; none copies zeroes as they are.
    grain: Option<BlockSize>,
    pack: Option<&'a dyn Pack>,
}

/// Copies all of `source` into `sink` and finishes it. `progress` is told how many bytes are done.
pub fn convert(
    source: &Disk,
    mut sink: Box<dyn Sink + '_>,
    options: Options,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let size = source.size();
    let block = sink.block_size();
    let chunk = BlockSize::from_bytes(block.bytes().max(MIB)).unwrap_or(block);
    let sparse = options.sparse.max(block.bytes()).next_power_of_two();
    let grain = if options.sparse == 0 { None } else { BlockSize::from_bytes(sparse.min(chunk.bytes())) };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = options.threads.map_or(cores, NonZero::get);
    let chunks = chunk.count(size);
    let packer = sink.pack();
    let work = Work { source, chunk, grain, pack: packer.as_deref() };

    let (ticket_in, ticket_out) = channel::<u64>();
    let (done_in, done_out) = channel::<(u64, Result<Chunk>)>();
    let tickets = Mutex::new(ticket_out);
    thread::scope(|scope| {
        let (tickets, work) = (&tickets, &work);
        for _ in 0..threads.min(usize::try_from(chunks).unwrap_or(threads)).max(1) {
            let done = done_in.clone();
            scope.spawn(move || worker(work, tickets, &done));
        }
        drop(done_in);
        let window = len64(threads.saturating_mul(TICKETS_PER_THREAD)).min(chunks);
        // Dropping the ticket channel, on success and on the first error alike, stops the workers.
        write_in_order(chunks, window, ticket_in, &done_out, sink.as_mut(), progress)
    })?;
    sink.finish()
}

fn worker(work: &Work<'_>, tickets: &Mutex<Receiver<u64>>, done: &Sender<(u64, Result<Chunk>)>) {
    loop {
        let Ok(Ok(number)) = tickets.lock().map(|t| t.recv()) else { return };
        let result = work.chunk(number);
        if done.send((number, result)).is_err() {
            return;
        }
    }
}

fn write_in_order(
    chunks: u64,
    window: u64,
    tickets: Sender<u64>,
    done: &Receiver<(u64, Result<Chunk>)>,
    sink: &mut (dyn Sink + '_),
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let gone = || Common::Poisoned;
    for number in 0..window {
        tickets.send(number).map_err(|_| gone())?;
    }
    let mut early: BTreeMap<u64, Chunk> = BTreeMap::new();
    let mut issued = window;
    for next in 0..chunks {
        while !early.contains_key(&next) {
            let (number, chunk) = done.recv().map_err(|_| gone())?;
            early.insert(number, chunk?);
        }
        let Some(chunk) = early.remove(&next) else { continue };
        let end = chunk.span.end();
        for piece in chunk.pieces {
            sink.put(piece)?;
        }
        progress(end);
        if issued < chunks {
            tickets.send(issued).map_err(|_| gone())?;
            issued = issued.saturating_add(1);
        }
    }
    Ok(())
}

impl Work<'_> {
    /// Reads one chunk and cuts it into pieces.
    fn chunk(&self, number: u64) -> Result<Chunk> {
        let start = self.chunk.start_of(number).ok_or(Common::Index(number))?;
        let span = Span::new(start, self.chunk.bytes().min(self.source.size().saturating_sub(start)))?;
        let mut data = Vec::new();
        for run in self.source.runs(span) {
            let (run, kind) = run?;
            if kind.is_zero() && self.grain.is_some() {
                continue;
            }
            // Only now is memory needed: most chunks of most disks are holes.
            if data.is_empty() {
                data.resize(index(span.len())?, 0u8);
            }
            if !kind.is_zero() {
                let at = index(run.start().saturating_sub(start))?;
                let place = || format!("reading {} bytes at {}", run.len(), run.start());
                self.source
                    .read_at(run.start(), part_mut(&mut data, at, index(run.len())?, "chunk")?)
                    .within(place)?;
            }
        }
        if data.is_empty() && !span.is_empty() {
            return Ok(Chunk { span, pieces: vec![Piece::Zero(span)] });
        }
        let pieces = self.cut(span, data)?;
        Ok(Chunk { span, pieces })
    }

    /// Cuts the bytes of a chunk into zeroes and data, and packs the data if the sink wants that.
    fn cut(&self, span: Span, data: Vec<u8>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let unit = match (self.pack, self.grain) {
            (Some(pack), _) => pack.unit(),
            (None, Some(grain)) => grain,
            (None, None) => return Ok(vec![Piece::Data { at: span.start(), bytes: data }]),
        };
        // Stretches of equal kind, in units.
        let mut at = 0usize;
        let step = index(unit.bytes())?;
        let mut stretch: Option<(bool, usize)> = None;
        while at < data.len() {
            let len = step.min(data.len().saturating_sub(at));
            let zero = self.grain.is_some() && is_zero(part(&data, at, len, "chunk")?);
            if stretch.is_none_or(|(z, _)| z != zero) {
                if let Some((was, from)) = stretch {
                    self.piece(span, &data, from, at, was, &mut pieces)?;
                }
                stretch = Some((zero, at));
            }
            at = at.saturating_add(len);
        }
        match stretch {
            Some((false, 0)) if self.pack.is_none() => {
                pieces.push(Piece::Data { at: span.start(), bytes: data });
            }
            Some((zero, from)) => self.piece(span, &data, from, data.len(), zero, &mut pieces)?,
            None => {}
        }
        Ok(pieces)
    }

    fn piece(
        &self,
        span: Span,
        data: &[u8],
        from: usize,
        to: usize,
        zero: bool,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let at = span.start().saturating_add(len64(from));
        let bytes = part(data, from, to.saturating_sub(from), "chunk")?;
        match self.pack {
            _ if zero => pieces.push(Piece::Zero(Span::new(at, len64(bytes.len()))?)),
            None => pieces.push(Piece::Data { at, bytes: bytes.to_vec() }),
            Some(pack) => {
                let unit = index(pack.unit().bytes())?;
                let mut at = at;
                for block in bytes.chunks(unit) {
                    pieces.push(pack.pack(at, block)?);
                    at = at.saturating_add(len64(block.len()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::block::{BlockDevice, Caps, MemDevice};
    use crate::error::Kind;
    use crate::registry::{Plan, by_name};

    fn source() -> Disk {
        let mut bytes = vec![0u8; (5 << 20) + 1234];
        for (i, b) in bytes.iter_mut().enumerate() {
            if (i / 10_000) % 3 == 1 {
                *b = (i % 251) as u8;
            }
        }
        Disk::new(MemDevice::from_bytes(bytes))
    }

    fn bytes(disk: &Disk) -> Vec<u8> {
        let mut all = vec![0; disk.size() as usize];
        disk.read_at(0, &mut all).unwrap();
        all
    }

    #[test]
    fn a_copy_is_the_same_whatever_the_threads() {
        let source = source();
        for threads in [1, 2, 7] {
            let file = Arc::new(MemDevice::new(0));
            let disk = Disk::from_arc(file.clone());
            let plan = Plan { size: source.size(), ..Plan::default() };
            let sink = by_name("raw").unwrap().sink(disk.clone(), &plan).unwrap();
            let mut last = 0;
            let options = Options { threads: NonZero::new(threads), ..Options::default() };
            convert(&source, sink, options, &mut |n| last = n).unwrap();
            assert_eq!(bytes(&disk), bytes(&source));
            assert_eq!(last, source.size());
        }
    }

    #[derive(Debug)]
    struct Broken(Disk);

    impl BlockDevice for Broken {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn caps(&self) -> Caps {
            Caps::READ_ONLY
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
            if at >= 3 << 20 {
                Err(std::io::Error::other("bad sector").into())
            } else {
                self.0.read_at(at, buf)
            }
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_read_fails_the_copy() {
        let broken = Disk::new(Broken(source()));
        let plan = Plan { size: broken.size(), ..Plan::default() };
        let sink = by_name("raw").unwrap().sink(Disk::new(MemDevice::new(0)), &plan).unwrap();
        let e = convert(&broken, sink, Options::default(), &mut |_| ()).unwrap_err();
        assert_eq!(e.kind(), Kind::Io);
    }
}
