use std::io::{self, Cursor};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::error::Kind;

/// Segments of several sizes whose bytes tell where they are; counts how often a decoder starts.
#[derive(Debug, Default)]
struct Counted {
    sizes: Vec<u64>,
    starts: AtomicUsize,
    /// A segment that ends too early, or goes on too long.
    bad: Option<(usize, i64)>,
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Source for Counted {
    fn what(&self) -> &'static str {
        "counted"
    }

    fn start(&self, number: usize) -> Result<Box<dyn Read + Send>> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        let at: u64 = self.sizes[..number].iter().sum();
        let mut len = self.sizes[number];
        if let Some((_, by)) = self.bad.filter(|(n, _)| *n == number) {
            len = len.saturating_add_signed(by);
        }
        Ok(Box::new(Cursor::new((at..at + len).map(byte).collect::<Vec<u8>>())))
    }

    fn memory(&self, _: usize) -> u64 {
        MIB
    }
}

fn starts(sizes: &[u64]) -> (Vec<u64>, u64) {
    let mut at = 0;
    let starts = sizes.iter().map(|s| (at, at += s).0).collect();
    (starts, at)
}

fn device(sizes: &[u64], bad: Option<(usize, i64)>) -> Segments<Counted> {
    let (starts, size) = starts(sizes);
    let source = Counted { sizes: sizes.to_vec(), bad, ..Counted::default() };
    Segments::unchecked(source, starts, size)
}

fn assert_reads(device: &Segments<Counted>, at: u64, len: u64) {
    let mut buf = vec![0; len as usize];
    device.read_at(at, &mut buf).unwrap();
    assert!((at..at + len).map(byte).eq(buf.iter().copied()), "{len} bytes at {at}");
}

const SIZES: [u64; 7] = [3, 0, MIB, 2 * MIB + 5, 0, 5 * MIB, 1];

#[test]
fn reading_through_starts_each_decoder_once() {
    let device = device(&SIZES, None);
    for at in (0..device.size).step_by(100_000) {
        assert_reads(&device, at, (device.size - at).min(100_000));
    }
    assert_eq!(device.source.starts.load(Ordering::Relaxed), 5);
}

#[test]
fn several_threads_start_no_more_than_one() {
    let device = device(&SIZES, None);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed) as u64 * 70_000;
                    if at >= device.size {
                        return;
                    }
                    assert_reads(&device, at, (device.size - at).min(70_000));
                }
            });
        }
    });
    assert_eq!(device.source.starts.load(Ordering::Relaxed), 5);
}

#[test]
fn memory_is_bounded_and_who_comes_back_finds_a_file() {
    // Checked before, so that decoders stop half-way; more than fits into memory.
    let sizes = [20 * MIB, 15 * MIB];
    let (starts, size) = starts(&sizes);
    let mut device =
        Segments::unchecked(Counted { sizes: sizes.to_vec(), ..Counted::default() }, starts, size);
    device.checked = true;
    for at in [0, 19, 0, 34, 10, 20, 1, 15, 3, 25, 2, 33, 0] {
        assert_reads(&device, at * MIB + 77, 1000);
        let state = device.state.lock().unwrap();
        assert!(state.pieces_bytes <= PIECES_MAX, "{}", state.pieces_bytes);
        assert_eq!(state.pieces_bytes, state.pieces.iter().map(|(_, p)| p.len() as u64).sum::<u64>());
        assert!(state.idle.len() <= IDLE_MAX);
    }
    assert!(device.source.starts.load(Ordering::Relaxed) <= 6);
    let spooled = device.state.lock().unwrap().spooled.len();
    assert!(spooled > 0);
    for at in (0..device.size).step_by(999_999) {
        assert_reads(&device, at, (device.size - at).min(999_999));
    }
}

#[test]
fn a_segment_of_another_size_is_damage_and_nobody_waits_for_it() {
    for by in [-1, 1] {
        let device = device(&SIZES, Some((3, by)));
        assert_reads(&device, 0, MIB);
        for _ in 0..4 {
            let e = device.read_at(2 * MIB, &mut [0; 10]).unwrap_err();
            assert_eq!(e.kind(), Kind::Corrupt, "{e}");
        }
        assert_reads(&device, device.size - 10, 10);
    }
}

#[test]
fn what_a_decoder_says_is_passed_on() {
    #[derive(Debug)]
    struct Broken;
    impl Source for Broken {
        fn what(&self) -> &'static str {
            "broken"
        }
        fn start(&self, number: usize) -> Result<Box<dyn Read + Send>> {
            match number {
                0 => Err(Common::Index(0).into()),
                _ => Ok(Box::new(Failing)),
            }
        }
        fn memory(&self, _: usize) -> u64 {
            0
        }
    }
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
    let device = Segments::unchecked(Broken, vec![0, 10], 20);
    for at in [0, 10, 0, 10] {
        assert!(device.read_at(at, &mut [0; 5]).is_err());
    }
}
