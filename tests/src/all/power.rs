//! The power fails while an image is in use.
//!
//! What was flushed is there. A sector written since holds what it held at the flush, or what any of the writes since
//! put there; nothing else comes to light.

use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, MemDevice, Span};
use racker_formats::registry::Image;
use racker_tests::image;
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;

const SECTOR: u64 = 512;

/// What the disk was to hold, and how far the file's operations had come.
struct State {
    mirror: Vec<u8>,
    begun: usize,
    done: usize,
    flushed: bool,
}

/// How an image is opened over a file.
pub(crate) type Open<'a> = &'a dyn Fn(Disk, bool) -> racker_formats::Result<Arc<dyn Image>>;

/// Uses the image in `bytes`, cuts the power at every operation of the file, and looks at what is left. `foreign` is
/// shown some of the files, with a judge for what another program reads from them.
pub(crate) fn power_cuts(
    bytes: Vec<u8>,
    open: Open<'_>,
    steps: u32,
    seed: u64,
    mut foreign: impl FnMut(&[u8], &dyn Fn(&[u8])),
) {
    let crash = Arc::new(CrashDisk::new(bytes));
    let states = use_it(&crash, open, steps, &mut Rng::new(seed));
    let (mut number, mut rng, last) = (0u32, Rng::new(seed + 1), crash.len());
    crash.cuts(&mut Rng::new(seed + 2), 2, |cut, bytes| {
        let when = format!("after {cut} of {last} operations");
        let judge = |found: &[u8]| allowed(found, &states, cut, &when);
        let opened = open(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false);
        let image = opened.unwrap_or_else(|e| panic!("{when}: {e}"));
        judge(&image::content(&image::disk(&image)));
        number += 1;
        // A log that has to be replayed is the rarer case.
        if number % 23 == 0 || image.facts().dirty && number % 2 == 0 || cut == last {
            foreign(bytes, &judge);
            goes_on(bytes, open, &mut rng);
        }
    });
}

/// Random changes of whole sectors.
fn use_it(crash: &Arc<CrashDisk>, open: Open<'_>, steps: u32, rng: &mut Rng) -> Vec<State> {
    let top = Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>);
    let disk = image::disk(&open(top, true).unwrap());
    let mirror = image::content(&disk);
    let mut states = vec![State { mirror, begun: 0, done: crash.len(), flushed: true }];
    for step in 0..steps {
        let mut mirror = states.last().unwrap().mirror.clone();
        let begun = crash.len();
        let flushed = rng.below(6) == 0 || step + 1 == steps;
        if flushed {
            disk.flush().unwrap();
        } else {
            change(&disk, &mut mirror, rng);
        }
        states.push(State { mirror, begun, done: crash.len(), flushed });
    }
    states
}

/// One change of whole sectors.
fn change(disk: &Disk, mirror: &mut [u8], rng: &mut Rng) {
    let total = disk.size() / SECTOR;
    let most = [1, 9, 40, 300][rng.below(4) as usize].min(total);
    let count = 1 + rng.below(most);
    let at = rng.below(total - count + 1) * SECTOR;
    let range = at as usize..(at + count * SECTOR) as usize;
    let span = Span::new(at, count * SECTOR).unwrap();
    match rng.below(8) {
        0 => {
            disk.write_zeroes(span).unwrap();
            mirror[range].fill(0);
        }
        1 => {
            disk.discard(span).unwrap();
            disk.read_at(at, &mut mirror[range]).unwrap();
        }
        _ => {
            rng.fill(&mut mirror[range.clone()]);
            disk.write_at(at, &mirror[range]).unwrap();
        }
    }
}

/// Every sector is as it may be after `cut` operations of the file.
fn allowed(found: &[u8], states: &[State], cut: usize, when: &str) {
    let since = states.iter().rposition(|s| s.flushed && s.done <= cut).unwrap_or(0);
    let may: Vec<&State> = states[since..].iter().take_while(|s| s.begun <= cut).collect();
    assert_eq!(found.len(), states[0].mirror.len(), "{when}");
    for (number, sector) in found.chunks(SECTOR as usize).enumerate() {
        let at = number * SECTOR as usize;
        let known = may.iter().any(|s| s.mirror[at..at + sector.len()] == *sector);
        assert!(known, "{when}: sector {number} holds what nobody wrote there since the last flush");
    }
}

/// An image that was cut off can be used again.
fn goes_on(bytes: &[u8], open: Open<'_>, rng: &mut Rng) {
    let file = Disk::new(MemDevice::from_bytes(bytes.to_vec()));
    let opened = open(file.clone(), true).unwrap();
    let disk = image::disk(&opened);
    let mut mirror = image::content(&disk);
    for _ in 0..6 {
        change(&disk, &mut mirror, rng);
    }
    disk.flush().unwrap();
    assert!(image::content(&disk) == mirror);
    drop((disk, opened));
    assert!(image::content(&image::disk(&open(file, false).unwrap())) == mirror);
}
