//! Copies a disk into a new image: in parallel, in bounded memory, with output that does not depend on the number
//! of threads.
//!
//! ```text
//!  plan ──tickets──▶ worker ─┐
//!    ▲               worker ─┼─pieces──▶ one at a time, in order ──▶ Sink
//!    └──one ticket per chunk written──────────┘
//! ```
//!
//! The source is cut into chunks, and its holes are passed over. A ticket is permission to work on one chunk;
//! there are a few per thread, and writing a chunk frees the next one, so nobody runs ahead and memory stays
//! bounded even if one chunk is slow. A worker asks for the runs of its own chunk only, reads what is data, finds
//! zeroes, and packs if the sink wants packed pieces. The chunks go to the [`Sink`] in order, by the hand of
//! whichever worker is at hand: one at a time.
//!
//! * [`plan`]: chunks and holes; [`work`]: one chunk; [`crew`]: the threads; [`sink`]: where it goes
//! * [`digest`](mod@digest): what was read, to be compared with what a reader of the copy gets
//! * [`new_file`], [`existing`], [`pipe`]: the files that are written; [`concat`](mod@concat): several sources as one
//! * [`gzip`], [`throttle`]: what stands before a file: it compresses, or takes its time

mod bytes;
mod concat;
mod crew;
mod digest;
mod existing;
mod gzip;
mod new_file;
mod pipe;
mod plan;
mod sink;
mod throttle;
mod work;

use std::num::NonZero;
use std::thread;

use std::sync::Arc;

use self::plan::Plan;
use self::sink::Nowhere;
use self::work::Work;
use crate::block::{BlockSize, Disk, Span};
use crate::error::{Error, Result};
use crate::limits::MIB;
use crate::registry::Image;

pub use bytes::Bytes;
pub use concat::Concat;
pub use digest::Digest;
pub use existing::ExistingSink;
pub use gzip::GzipSink;
pub use new_file::{Beside, NewFile, abandon};
pub use pipe::{Pipe, PipeFault, from_input, scratch};
pub use sink::{DiskSink, Pack, Piece, Sink};
pub use throttle::{Pace, Throttle};

/// Zeroes shorter than this are copied as data, as `qemu-img convert` does by default (`-S 4k`).
pub const SPARSE_DEFAULT: u64 = 4096;

/// Smallest piece of the disk that is worked on at once.
const CHUNK: u64 = MIB;

/// How a disk is copied.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Worker threads; none means one for each processor.
    pub threads: Option<NonZero<usize>>,
    /// Shortest stretch of zeroes that is left out, in bytes; 0 copies all of them.
    pub sparse: u64,
    /// What shows through in the copy where nothing is written.
    pub base: Option<&'a Base>,
    /// Sectors that cannot be read become zeroes, and this is told of each; none fails the copy.
    pub salvage: Option<&'a Salvage<'a>>,
    /// Compute the digest of what is copied.
    pub digest: bool,
    /// Puts what was written so far on stable storage, while the copy goes on.
    pub settle: Option<&'a Settle<'a>>,
}

/// Is told which bytes could not be read, and why.
pub type Salvage<'a> = dyn Fn(Span, &Error) + Sync + 'a;

/// Has the host write down what it holds of the copy.
pub type Settle<'a> = dyn Fn() -> Result<()> + Sync + 'a;

/// The backing file of a copy, of which only what differs is written.
#[derive(Clone, Debug)]
pub struct Base {
    /// The image that is copied: what it takes from its own parent is compared with `disk`. Without it all is.
    pub image: Option<Arc<dyn Image>>,
    /// The backing file of the copy.
    pub disk: Disk,
    /// `disk` is the parent of `image`, so that nobody has to compare.
    pub is_parent: bool,
}

/// What a copy came to.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// The digest of what was copied, if it was asked for.
    pub digest: Option<Digest>,
    /// How the disk was cut.
    chunk: BlockSize,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { threads: None, sparse: SPARSE_DEFAULT, base: None, salvage: None, digest: false, settle: None }
    }
}

impl Options<'_> {
    fn threads(&self) -> usize {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        self.threads.map_or(cores, NonZero::get)
    }

    /// Whether nobody has to look at the bytes.
    fn may_share(&self) -> bool {
        self.sparse == SPARSE_DEFAULT && self.base.is_none() && self.salvage.is_none() && !self.digest
    }
}

/// Copies all of `source` into `sink` and finishes it. `progress` is told how many bytes are done.
pub fn convert(
    source: &Disk,
    mut sink: Box<dyn Sink>,
    options: Options<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied> {
    let block = sink.block_size();
    // A unit of the source that two chunks share would be unpacked twice.
    let unit = u64::from(source.caps().preferred).next_power_of_two();
    let chunk = BlockSize::from_bytes(block.bytes().max(unit).max(CHUNK)).unwrap_or(block);
    if options.may_share() && sink.share(source)? {
        progress(source.size());
        sink.finish()?;
        return Ok(Copied { digest: None, chunk });
    }
    let sparse = options.sparse.max(block.bytes()).next_power_of_two();
    let grain = if options.sparse == 0 { None } else { BlockSize::from_bytes(sparse.min(chunk.bytes())) };
    let packer = sink.pack();
    let work = Work {
        source,
        grain,
        pack: packer.as_deref(),
        base: options.base,
        block,
        salvage: options.salvage,
        digest: options.digest,
        shelf: Arc::default(),
    };
    // What shows through from a parent is no hole.
    let plan = Plan::new(source, chunk, grain.is_some() && options.base.is_none(), options.salvage.is_some());
    let (sink, digest) = crew::run(&work, plan, sink, options.threads(), options.settle, progress)?;
    sink.finish()?;
    Ok(Copied { digest: options.digest.then_some(digest), chunk })
}

/// The digest of a disk that nobody copies, for comparison with a copy that was made by other means.
pub fn digest(source: &Disk, options: Options<'_>) -> Result<Copied> {
    let chunk = BlockSize::from_bytes(MIB).unwrap_or_else(|| unreachable!("1 MiB is a power of two"));
    convert(source, Box::new(Nowhere(chunk)), Options { digest: true, ..options }, &mut |_| ())
}

impl Copied {
    /// Nobody has computed a digest: nothing is the same as this.
    pub fn unknown() -> Self {
        let chunk = BlockSize::from_bytes(MIB).unwrap_or_else(|| unreachable!("1 MiB is a power of two"));
        Self { digest: None, chunk }
    }

    /// Whether `copy` reads as what was copied. It may be larger, as formats round sizes up.
    pub fn verify(
        &self,
        source: &Disk,
        copy: &Disk,
        options: Options<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<bool> {
        if copy.size() < source.size() {
            return Ok(false);
        }
        let copy = copy.slice(Span::first(source.size()))?;
        let work = Work {
            source: &copy,
            grain: Some(self.chunk),
            pack: None,
            base: None,
            block: self.chunk,
            salvage: None,
            digest: true,
            shelf: Arc::default(),
        };
        let plan = Plan::new(&copy, self.chunk, true, false);
        let sink = Box::new(Nowhere(self.chunk));
        let (_, digest) = crew::run(&work, plan, sink, options.threads(), None, progress)?;
        Ok(self.digest == Some(digest))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::block::{BlockDevice, Caps, MemDevice, Run, RunKind, Span, Support};
    use crate::error::Kind;
    use crate::opening::{Opening, Policy};
    use crate::options::Values;
    use crate::registry::{self, by_name};

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
            let plan = registry::Plan { size: source.size(), ..registry::Plan::default() };
            let sink = by_name("raw").unwrap().sink(disk.clone(), &plan).unwrap();
            let mut last = 0;
            let options = Options { threads: NonZero::new(threads), ..Options::default() };
            convert(&source, sink, options, &mut |n| last = n).unwrap();
            assert_eq!(bytes(&disk), bytes(&source));
            assert_eq!(last, source.size());
        }
    }

    #[test]
    fn new_images_are_the_same_whatever_the_threads_and_give_back_what_went_in() {
        let source = source();
        /// A format, its options, and whether they say that the data are compressed.
        type Target = (&'static str, &'static [(&'static str, &'static str)], bool);
        let targets: [Target; 4] = [
            ("vmdk", &[("subformat", "monolithicSparse"), ("cid", "123")], false),
            ("vmdk", &[("subformat", "streamOptimized"), ("cid", "123")], false),
            ("qcow2", &[], true),
            ("qcow2", &[("compression_type", "zstd")], true),
        ];
        for (name, typed, compress) in targets {
            let format = by_name(name).unwrap();
            for sparse in [0, 4096, 1 << 20] {
                let copies = [1, 2, 7].map(|threads| {
                    let options = Values::parse(name, format.options(), typed.iter().copied()).unwrap();
                    let plan = registry::Plan {
                        size: source.size(),
                        options,
                        compress,
                        ..registry::Plan::default()
                    };
                    let file = Disk::new(MemDevice::new(0));
                    let sink = format.sink(file.clone(), &plan).unwrap();
                    let options = Options { threads: NonZero::new(threads), sparse, ..Options::default() };
                    convert(&source, sink, options, &mut |_| ()).unwrap();
                    file
                });
                let all = copies.each_ref().map(bytes);
                assert!(all[0] == all[1] && all[0] == all[2], "{typed:?} {sparse}");
                let opened =
                    format.open(copies[0].clone(), &mut Opening::new(None, Policy::Deny, false)).unwrap();
                let mut read = bytes(&Disk::from_arc(opened));
                // VMDK and qcow2 count in sectors.
                assert_eq!(read.len() as u64, source.size().next_multiple_of(512));
                read.truncate(source.size() as usize);
                assert!(read == bytes(&source), "{typed:?} {sparse}");
            }
        }
    }

    /// A few bytes of data in a desert of a few TiB.
    #[derive(Debug)]
    struct Desert;

    impl BlockDevice for Desert {
        fn size(&self) -> u64 {
            5 << 40
        }
        fn caps(&self) -> Caps {
            Caps { runs: Support::Native, ..Caps::READ_ONLY }
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
            assert!(at >> 40 == 3 && buf.len() <= 4096, "a hole was read");
            buf.fill(1);
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn first_run(&self, span: Span) -> Result<Run> {
            let oasis = Span::new(3 << 40, 4096).unwrap();
            Ok(match span.intersect(oasis) {
                Some(data) if data.start() == span.start() => Run { len: data.len(), kind: RunKind::Data },
                Some(data) => Run { len: data.start() - span.start(), kind: RunKind::Hole },
                None => Run { len: span.len(), kind: RunKind::Hole },
            })
        }
    }

    /// Counts what it gets.
    #[derive(Clone, Debug, Default)]
    struct Count(Arc<Mutex<(usize, u64, u64)>>);

    impl Sink for Count {
        fn block_size(&self) -> BlockSize {
            BlockSize::from_shift(12).unwrap()
        }
        fn put(&mut self, piece: Piece) -> Result<()> {
            let mut count = self.0.lock().unwrap();
            count.0 += 1;
            match piece {
                Piece::Zero(span) => count.1 += span.len(),
                Piece::Data { bytes, .. } => count.2 += bytes.len() as u64,
                Piece::Packed { bytes, .. } => count.2 += bytes.len() as u64,
            }
            Ok(())
        }
        fn finish(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_hole_of_terabytes_costs_nothing() {
        let count = Count::default();
        convert(&Disk::new(Desert), Box::new(count.clone()), Options::default(), &mut |_| ()).unwrap();
        assert_eq!(*count.0.lock().unwrap(), (4, (5 << 40) - 4096, 4096));
    }

    /// Fails past a certain offset, or panics there.
    #[derive(Debug)]
    struct Broken {
        inner: Disk,
        panics: bool,
    }

    impl BlockDevice for Broken {
        fn size(&self) -> u64 {
            self.inner.size()
        }
        fn caps(&self) -> Caps {
            Caps::READ_ONLY
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
            assert!(!self.panics || at < 3 << 20, "a driver's mistake");
            if at >= 3 << 20 {
                Err(std::io::Error::other("bad sector").into())
            } else {
                self.inner.read_at(at, buf)
            }
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_read_fails_the_copy_and_a_panic_does_not_hang_it() {
        for panics in [false, true] {
            let broken = Disk::new(Broken { inner: source(), panics });
            let plan = registry::Plan { size: broken.size(), ..registry::Plan::default() };
            let sink = by_name("raw").unwrap().sink(Disk::new(MemDevice::new(0)), &plan).unwrap();
            let e = convert(&broken, sink, Options::default(), &mut |_| ()).unwrap_err();
            assert_eq!(e.kind(), Kind::Io);
            assert_eq!(e.to_string().contains("bad sector"), !panics, "{e}");
        }
    }
}
