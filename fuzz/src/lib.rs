//! What the fuzz targets share: real images of the fixtures, damaged as the fuzzer's input says.
//!
//! Random bytes never become a filesystem, and a fuzzer cannot carry 300 MiB about. So an input is
//! `base, record, record, …`: one byte chooses an image of the fixtures (0: the rest of the input is the file
//! itself), each record of eight bytes changes one sector of it. Only *hot* sectors are changed: those that were
//! read when the undamaged image was gone through, in the order in which they were read first.
//!
//! Checksums do not stand in the way: a build with `--cfg fuzzing` takes any.

pub mod base;
pub mod chance;
pub mod damage;
pub mod edit;
pub mod walk;

use std::io::Write;
use std::time::{Duration, Instant};

use racker_formats::block::Disk;

use base::{Base, Kind};

/// How long one input is worked on before it is given up without a word. The fuzzer's own limit, which tells of
/// loops that never look at the clock, is longer.
pub const TIME_MAX: Duration = Duration::from_secs(2);

/// A clock for one input.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Whether the time is up.
    pub fn is_up(self) -> bool {
        self.0.elapsed() > TIME_MAX
    }
}

/// What an input means.
#[derive(Debug)]
pub struct Input {
    /// The bytes to look at.
    pub disk: Disk,
    /// The image that they were made from, if it was one.
    pub base: Option<&'static Base>,
    /// The highest bit of the first byte: the target's other way of going through it, where it has one.
    pub other_way: bool,
}

impl Input {
    /// Takes the fuzzer's bytes apart.
    pub fn new(kind: Kind, input: &[u8]) -> Option<Self> {
        let (choice, rest) = input.split_first()?;
        let (choice, other_way) = (usize::from(choice & 0x7f), choice & 0x80 != 0);
        let Some(number) = choice.checked_sub(1) else {
            let device = racker_formats::block::MemDevice::from_bytes(rest.to_vec());
            return Some(Self { disk: Disk::new(device).read_only(), base: None, other_way });
        };
        let base = base::of(kind, number)?;
        Some(Self { disk: Disk::new(damage::Damaged::new(base, rest)), base: Some(base), other_way })
    }
}

/// Swallows a stream, up to a limit.
#[derive(Debug)]
pub struct Sink(pub usize);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(buf.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
