//! Power cuts and failing hosts while an image is in use.

use std::sync::Arc;

use racker_formats::block::{Disk, MemDevice};
use racker_formats::options::Values;
use racker_formats::registry::{Plan, by_name};
use racker_tests::rng::Rng;
use racker_tests::sim::{CrashDisk, FaultDisk};

use super::super::power::power_cuts;
use super::{content, disk, no_corruption, open_disk};

const SIZE: usize = 3 << 20;

/// An image with data in its first MiB.
fn start() -> Vec<u8> {
    let file = Arc::new(MemDevice::new(0));
    let plan = Plan { size: SIZE as u64, options: Values::default(), ..Plan::default() };
    let image = by_name("vmdk").unwrap().create(Disk::from_arc(file.clone()), &plan).unwrap();
    disk(&image).write_at(0, &vec![1; 1 << 20]).unwrap();
    disk(&image).flush().unwrap();
    drop(image);
    file.to_bytes()
}

/// One byte value for each write, at a place of its own, so that what is there tells which writes arrived.
fn places() -> Vec<(u64, usize)> {
    vec![
        (0, 512),
        (65_536 * 2 + 700, 90_000),
        (1 << 20, 65_536),
        ((1 << 20) + 70_000, 300),
        (2_500_000, 600_000),
    ]
}

#[test]
fn after_a_power_cut_what_was_flushed_is_there() {
    let file = Arc::new(CrashDisk::new(start()));
    let image = open_disk(Disk::from_arc(file.clone()), true).unwrap();
    // How many operations the file had seen when each write was flushed.
    let mut flushed = Vec::new();
    for (number, (at, len)) in places().into_iter().enumerate() {
        disk(&image).write_at(at, &vec![number as u8 + 2; len]).unwrap();
        disk(&image).flush().unwrap();
        flushed.push(file.len());
    }
    drop(image);
    file.cuts(&mut Rng::new(7), 6, |cut, bytes| {
        let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
        let all = content(&disk(&image));
        for (number, (at, len)) in places().into_iter().enumerate() {
            let now = &all[at as usize..at as usize + len];
            let new = number as u8 + 2;
            if flushed[number] <= cut {
                assert!(now.iter().all(|b| *b == new), "write {number} was flushed before cut {cut}");
            }
            // Old, new or, where the write was torn, both: never what belongs elsewhere.
            let old = u8::from(at < 1 << 20);
            assert!(now.iter().all(|b| [old, new].contains(b)), "write {number}, cut {cut}");
        }
        if !image.facts().dirty {
            no_corruption(&image);
        }
    });
}

/// Writes, zeroes and discards of all sizes, with the mark for zeroed grains and without it.
#[test]
fn a_power_cut_shows_what_was_written_and_nothing_else() {
    for (seed, options) in [(1, ""), (2, "zeroed_grain=on")] {
        let file = Arc::new(MemDevice::new(0));
        let vmdk = by_name("vmdk").unwrap();
        let typed = options.split(',').filter_map(|o| o.split_once('='));
        let options = Values::parse("vmdk", vmdk.options(), typed).unwrap();
        let plan = Plan { size: 1 << 20, options, ..Plan::default() };
        drop(vmdk.create(Disk::from_arc(file.clone()), &plan).unwrap());
        let dir = racker_tests::image::scratch();
        let path = dir.path().join("cut.vmdk");
        power_cuts(file.to_bytes(), &|disk, write| open_disk(disk, write), 30, seed, |bytes, judge| {
            std::fs::write(&path, bytes).unwrap();
            judge(&racker_tests::image::read_by_qemu("vmdk", &path));
        });
    }
}

#[test]
fn when_the_host_fails_once_a_second_flush_saves_all() {
    let first = start();
    let mut good = 0;
    loop {
        let file = Arc::new(MemDevice::from_bytes(first.clone()));
        let faulty = Arc::new(FaultDisk::new(Disk::from_arc(file.clone()), good, false));
        good += 1;
        let Ok(image) = open_disk(Disk::from_arc(faulty.clone()), true) else { continue };
        let mut model = content(&Disk::from_arc(Arc::new(MemDevice::from_bytes(vec![0; SIZE]))));
        model[..1 << 20].fill(1);
        for (number, (at, len)) in places().into_iter().enumerate() {
            let new = vec![number as u8 + 2; len];
            // What fails is done again, as a guest does.
            if disk(&image).write_at(at, &new).is_err() {
                disk(&image).write_at(at, &new).unwrap();
            }
            model[at as usize..at as usize + len].copy_from_slice(&new);
            if disk(&image).flush().is_err() {
                disk(&image).flush().unwrap();
            }
        }
        let over = !faulty.failed();
        drop(image);
        let image = open_disk(Disk::from_arc(file), false).unwrap();
        assert!(content(&disk(&image)) == model, "operation {good} failed");
        if over {
            return;
        }
    }
}
