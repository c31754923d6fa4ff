//! Compressed clusters written while the disk is in use.

use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, MemDevice, Span};
use racker_formats::registry::Image;
use racker_tests::image::{read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;

use super::make::Recipe;
use super::{content, disk, open, open_disk};

const KIB: u64 = 1 << 10;

/// A few stretches of one byte and of noise.
fn mixture(rng: &mut Rng, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + 1 + rng.below(30_000) as usize).min(bytes.len());
        match rng.below(3) {
            0 => rng.fill(&mut bytes[at..end]),
            _ => bytes[at..end].fill(rng.below(256) as u8),
        }
        at = end;
    }
    bytes
}

/// Whole clusters of the disk, `most` bytes or so.
fn clusters(rng: &mut Rng, bits: u32, size: u64, most: u64) -> Span {
    let cluster = 1u64 << bits;
    let at = rng.below(size.div_ceil(cluster)) * cluster;
    let len = (1 + rng.below(most.div_ceil(cluster))) * cluster;
    Span::new(at, len.min(size - at)).unwrap()
}

fn packed(image: &Arc<dyn Image>, mirror: &mut [u8], span: Span, rng: &mut Rng) {
    let bytes = mixture(rng, span.len());
    image.write_packed(span.start(), &bytes).unwrap();
    mirror[span.start() as usize..span.end() as usize].copy_from_slice(&bytes);
}

#[test]
fn packed_and_plain_writes_agree_with_a_mirror() {
    let base = Recipe { size: 2048 * KIB + 512, refcount_bits: 16, ..Recipe::default() };
    for recipe in [
        Recipe { cluster_bits: 9, refcount_bits: 1, ..base.clone() },
        Recipe { cluster_bits: 12, refcount_bits: 2, backing: true, ..base.clone() },
        Recipe { cluster_bits: 12, snapshots: 2, packed: Some("zlib"), ..base.clone() },
        Recipe { cluster_bits: 14, extended: true, backing: true, ..base.clone() },
        Recipe { cluster_bits: 16, version2: true, ..base.clone() },
        Recipe { cluster_bits: 16, packed: Some("zstd"), ..base.clone() },
        Recipe { cluster_bits: 21, ..base },
    ] {
        println!("{recipe:?}");
        let dir = scratch();
        let path = recipe.make(dir.path());
        let image = open(&path, true).unwrap();
        let all = disk(&image);
        let mut mirror = content(&all);
        let rng = &mut Rng::new(4);
        let size = image.size();
        for step in 1..=60 {
            match rng.below(5) {
                0 | 1 => {
                    let span = clusters(rng, recipe.cluster_bits, size, 200 * KIB);
                    packed(&image, &mut mirror, span, rng);
                }
                2 => {
                    let len = 1 + rng.below(40_000);
                    let at = rng.below(size - len);
                    let bytes = mixture(rng, len);
                    all.write_at(at, &bytes).unwrap();
                    mirror[at as usize..(at + len) as usize].copy_from_slice(&bytes);
                }
                3 => {
                    let span = Span::new(rng.below(size - 90_000), 1 + rng.below(90_000)).unwrap();
                    all.write_zeroes(span).unwrap();
                    mirror[span.start() as usize..span.end() as usize].fill(0);
                }
                _ => image.flush().unwrap(),
            }
            if step % 20 == 0 {
                image.flush().unwrap();
                assert!(content(&all) == mirror);
                qemu::check(&path);
                assert!(read_by_qemu("qcow2", &path) == mirror);
            }
        }
    }
}

#[test]
fn a_power_cut_leaves_each_cluster_old_or_new() {
    for (cluster_bits, refcount_bits) in [(9, 16), (9, 1), (12, 16)] {
        let dir = scratch();
        let recipe = Recipe { cluster_bits, refcount_bits, size: 200 * KIB, ..Recipe::default() };
        let path = recipe.make(dir.path());
        let crash = Arc::new(CrashDisk::new(std::fs::read(&path).unwrap()));
        let image = open_disk(Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>), true).unwrap();
        let old = content(&disk(&image));
        let mut new = old.clone();
        let rng = &mut Rng::new(5);
        packed(&image, &mut new, Span::first(100 * KIB), rng);
        packed(&image, &mut new, Span::new(100 * KIB, 100 * KIB).unwrap(), rng);
        image.flush().unwrap();
        let mut count = 0;
        crash.cuts(&mut Rng::new(1), 3, |_, bytes| {
            let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.clone())), false).unwrap();
            let found = content(&disk(&image));
            // What does not get smaller is written in place, sector by sector.
            for ((found, old), new) in found.chunks(512).zip(old.chunks(512)).zip(new.chunks(512)) {
                assert!(found == old || found == new);
            }
            count += 1;
            if count % 20 == 0 {
                std::fs::write(&path, bytes).unwrap();
                qemu::check_leaks_only(&path);
            }
        });
        std::fs::write(&path, crash.bytes()).unwrap();
        qemu::check(&path);
        assert!(read_by_qemu("qcow2", &path) == new);
    }
}

#[test]
fn packed_writes_that_are_no_whole_clusters_are_refused() {
    let dir = scratch();
    let path =
        Recipe { cluster_bits: 16, refcount_bits: 16, size: 300 * KIB, ..Recipe::default() }.make(dir.path());
    let image = open(&path, true).unwrap();
    assert!(image.write_packed(512, &[1; 65536]).is_err());
    assert!(image.write_packed(0, &[1; 512]).is_err());
    image.write_packed(256 * KIB, &[1; 44 << 10]).unwrap();
    image.flush().unwrap();
    qemu::check(&path);
    assert!(read_by_qemu("qcow2", &path)[256 << 10..].iter().all(|b| *b == 1));
}
