//! Other sizes, and images that are mended.

use racker_formats::block::Disk;
use racker_tests::image::{findings, read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::{content, disk, make, open, text};

const MIB: u64 = 1 << 20;

fn fill(disk: &Disk, model: &mut [u8], rng: &mut Rng) {
    for _ in 0..12 {
        let len = 1 + rng.below(300_000.min(model.len() as u64)) as usize;
        let at = rng.below((model.len() - len + 1) as u64) as usize;
        rng.fill(&mut model[at..at + len]);
        disk.write_at(at as u64, &model[at..at + len]).unwrap();
    }
    // The end is what matters here.
    let at = model.len() - 512;
    rng.fill(&mut model[at..]);
    disk.write_at(at as u64, &model[at..]).unwrap();
}

#[test]
fn a_disk_grows_and_shrinks() {
    let sizes = [5 * MIB + 512, 40 * MIB, 3 * MIB + 1024, 3 * MIB + 70_144, 90 * MIB, 33 * MIB, 512, 2 * MIB];
    for (number, options) in [
        "subformat=monolithicSparse",
        "zeroed_grain=on",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
    ]
    .into_iter()
    .enumerate()
    {
        let dir = scratch();
        let path = dir.path().join("a.vmdk");
        let mut rng = Rng::new(number as u64);
        make(&path, MIB, options, None).unwrap();
        let mut model = vec![0; MIB as usize];
        for size in sizes {
            let image = open(&path, true).unwrap();
            fill(&disk(&image), &mut model, &mut rng);
            disk(&image).resize(size).unwrap();
            model.resize(size as usize, 0);
            assert!(content(&disk(&image)) == model, "{options} {size}");
            fill(&disk(&image), &mut model, &mut rng);
            disk(&image).flush().unwrap();
            drop(image);
            assert!(content(&disk(&open(&path, false).unwrap())) == model, "{options} {size}");
            assert!(read_by_qemu("vmdk", &path) == model, "{options} {size}");
            assert_eq!(findings("vmdk", &path, false), Vec::<String>::new(), "{options} {size}");
            let (status, said) = qemu::img_status(&["check", "-f", "vmdk", &text(&path)]);
            assert!(status == 0 || said.contains("does not support"), "{said}");
        }
    }
}

#[test]
fn a_split_disk_gets_and_loses_files() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = scratch();
        let path = dir.path().join("a.vmdk");
        make(&path, 3 << 30, &format!("subformat={subformat}"), None).unwrap();
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(count(), 3);
        let places: [u64; 4] = [0, (2 << 30) - 512, (3 << 30) - 512, (7 << 30) - 512];
        let image = open(&path, true).unwrap();
        places[..3].iter().for_each(|at| disk(&image).write_at(*at, &[7; 512]).unwrap());
        disk(&image).resize(7 << 30).unwrap();
        assert_eq!(count(), 5);
        disk(&image).write_at(places[3], &[7; 512]).unwrap();
        disk(&image).flush().unwrap();
        drop(image);
        let commands: Vec<String> = places.iter().map(|at| format!("read -q -P 7 {at} 512")).collect();
        qemu::io("vmdk", &path, &commands);
        qemu::io("vmdk", &path, &["read -q -P 0 3G 1M".into(), "read -q -P 0 6G 1M".into()]);
        let image = open(&path, true).unwrap();
        disk(&image).resize((2 << 30) + 512).unwrap();
        assert_eq!(count(), 3);
        disk(&image).resize(1 << 30).unwrap();
        assert_eq!(count(), 2);
        disk(&image).resize(3 << 30).unwrap();
        drop(image);
        let zero = [1u64 << 30, (2 << 30) - 512, (3 << 30) - 512].map(|at| format!("read -q -P 0 {at} 512"));
        qemu::io("vmdk", &path, &zero);
        qemu::io("vmdk", &path, &["read -q -P 7 0 512".into()]);
        assert_eq!(findings("vmdk", &path, false), Vec::<String>::new());
    }
}

/// A sector number in the first grain table, or in its copy, or in a directory.
fn entry(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

#[test]
fn damage_is_found_and_mended() {
    let dir = scratch();
    let path = dir.path().join("a.vmdk");
    make(&path, 64 * MIB, "", None).unwrap();
    let mut model = vec![0; 64 * MIB as usize];
    let image = open(&path, true).unwrap();
    fill(&disk(&image), &mut model[..2 * MIB as usize], &mut Rng::new(1));
    disk(&image).write_at(40 * MIB, &[9; 100_000]).unwrap();
    model[40 * MIB as usize..][..100_000].fill(9);
    disk(&image).flush().unwrap();
    drop(image);
    let good = std::fs::read(&path).unwrap();
    let (rgd, gd) = (entry(&good, 48) * 512, entry(&good, 56) * 512);
    let (copy, table) = (entry(&good, rgd) * 512, entry(&good, gd) * 512);
    let second = entry(&good, gd + 4) * 512;
    let put = |bytes: &mut Vec<u8>, at: usize, n: usize| {
        bytes[at..at + 4].copy_from_slice(&(n as u32).to_le_bytes())
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(&mut Vec<u8>));
    let damages: [Damage<'_>; 8] = [
        ("directory entry 0 names sector", &|b| put(b, gd, 0x7fff_ffff)),
        ("directory entry 1 names sector", &|b| put(b, rgd + 4, 0x7fff_ffff)),
        ("two entries of the grain directory", &|b| put(b, gd + 4, table / 512)),
        ("grain 0 is at sector", &|b| put(b, table, 0x7fff_ffff)),
        ("copies of grain table 0 differ", &|b| put(b, copy + 4, 0)),
        ("overlaps another one", &|b| put(b, gd + 4, table / 512 + 1)),
        ("which something else uses", &|b| {
            let shared = entry(b, table);
            // Two grains that are the same, one place for both.
            let (from, to) = (shared * 512, entry(b, table + 4) * 512);
            b.copy_within(from..from + 65536, to);
            [table, copy].iter().for_each(|t| put(b, t + 4, shared));
        }),
        ("belong to no grain", &|b| b.resize(b.len() + 65536, 5)),
    ];
    for (what, damage) in damages {
        let mut bad = good.clone();
        damage(&mut bad);
        std::fs::write(&path, &bad).unwrap();
        let found = findings("vmdk", &path, false);
        assert!(found.iter().any(|f| f.contains(what)), "{what}: {found:?}");
        let leak = what.contains("belong");
        if let (Ok(image), false) = (open(&path, true), leak || what.contains("differ")) {
            let e = disk(&image).write_at(0, &[1]).unwrap_err();
            assert!(std::fs::read(&path).unwrap()[2048..] == bad[2048..], "{what}: {e}");
        }
        findings("vmdk", &path, true);
        // What was appended while mending may leave room behind it.
        findings("vmdk", &path, true);
        assert_eq!(findings("vmdk", &path, false), Vec::<String>::new(), "{what}");
        let mut want = model.clone();
        if what.contains("something else") {
            want.copy_within(0..65536, 65536);
        }
        assert!(content(&disk(&open(&path, false).unwrap())) == want, "{what}");
        assert!(read_by_qemu("vmdk", &path) == want, "{what}");
        let (status, said) = qemu::img_status(&["check", "-f", "vmdk", &text(&path)]);
        assert_eq!(status, 0, "{what}: {said}");
    }
    assert_ne!(second, 0);
}
