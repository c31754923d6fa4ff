//! A random workload on an image in use, mirrored in memory.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{Disk, Span};
use racker_formats::registry::Image;
use racker_tests::image;
use racker_tests::rng::Rng;

/// An image in use.
pub(crate) struct Live {
    disk: Disk,
    /// What it shall hold.
    pub(crate) mirror: Vec<u8>,
    pub(crate) rng: Rng,
}

impl Live {
    /// Goes on with an image that holds `mirror`.
    pub(crate) fn new(image: Arc<dyn Image>, mirror: Vec<u8>, seed: u64) -> Self {
        let disk = image::disk(&image);
        assert_eq!(disk.size(), mirror.len() as u64);
        Self { disk, mirror, rng: Rng::new(seed) }
    }

    /// One operation: most are writes, of all sizes, aligned to nothing.
    pub(crate) fn step(&mut self) {
        let most = [600, 4096, 20_000, 300_000][self.rng.below(4) as usize].min(self.disk.size());
        let mut len = 1 + self.rng.below(most);
        let mut at = self.rng.below(self.disk.size() - len + 1);
        match self.rng.below(3) {
            0 => at -= at % 512,
            1 => {
                at -= at % 4096;
                len = len.next_multiple_of(4096).min(self.disk.size() - at);
            }
            _ => {}
        }
        let (range, span) = (at as usize..(at + len) as usize, Span::new(at, len).unwrap());
        match self.rng.below(40) {
            0..=23 => {
                self.rng.fill(&mut self.mirror[range.clone()]);
                self.disk.write_at(at, &self.mirror[range]).unwrap();
            }
            24..=28 => {
                self.disk.write_zeroes(span).unwrap();
                self.mirror[range].fill(0);
            }
            29..=31 => {
                self.disk.discard(span).unwrap();
                // Zeroes or the old bytes: which, is seen by reading.
                let mut found = vec![0; range.len()];
                self.disk.read_at(at, &mut found).unwrap();
                for (old, new) in self.mirror[range].iter_mut().zip(found) {
                    assert!(new == 0 || new == *old, "a discard brought other bytes to light");
                    *old = new;
                }
            }
            32..=33 => {
                // Something large is zeroed as a whole: whole blocks go.
                let from = self.rng.below(self.disk.size());
                let len = (self.disk.size() - from).min(6 << 20);
                let span = Span::new(from, len).unwrap();
                if self.rng.below(4) == 0 {
                    self.disk.write_zeroes(span).unwrap();
                    self.mirror[from as usize..(from + len) as usize].fill(0);
                }
            }
            34..=36 => self.disk.flush().unwrap(),
            _ => {
                let mut found = vec![0; range.len()];
                self.disk.read_at(at, &mut found).unwrap();
                assert!(found == self.mirror[range], "{len} bytes at {at} read otherwise");
            }
        }
    }

    /// Flushes, closes the image and lets `judge` look at the file.
    pub(crate) fn check(self, format: &str, path: &Path, judge: impl FnOnce(&[u8])) -> Vec<u8> {
        self.disk.flush().unwrap();
        assert!(image::content(&self.disk) == self.mirror);
        image::runs_agree(&self.disk, &self.mirror);
        // Its further files are locked while it is in use.
        drop(self.disk);
        assert!(image::read(format, path) == self.mirror, "racker reads something else from the file");
        judge(&self.mirror);
        self.mirror
    }
}

/// `steps` operations on the image at `path`, looked at `points` times, and opened anew now and then.
pub(crate) fn workload(
    format: &str,
    path: &Path,
    steps: u32,
    points: u32,
    seed: u64,
    judge: impl Fn(&[u8]),
) -> Vec<u8> {
    let mut mirror = image::read(format, path);
    for point in 0..points {
        let mut live = Live::new(image::open(format, path, true).unwrap(), mirror, seed + u64::from(point));
        for _ in 0..steps / points {
            live.step();
        }
        mirror = live.check(format, path, &judge);
    }
    mirror
}
