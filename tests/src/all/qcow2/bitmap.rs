//! Bitmaps: QEMU reads what racker made of them, and notes its own writes in them.

use std::path::Path;
use std::sync::Arc;

use racker_formats::Result;
use racker_formats::block::{BlockDevice, Disk, MemDevice};
use racker_formats::error::Kind;
use racker_formats::registry::{BitmapChange, BitmapFacts, BitmapSource, Bitmaps, Image};
use racker_tests::image::scratch;
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker};

use super::make::Recipe;
use super::{content, cut_step, open, open_disk};

const MIB: u64 = 1 << 20;

/// An image of 3 MiB with three bitmaps, which saw two writes of QEMU's.
fn noted(path: &Path, options: &str) {
    let file = path.display().to_string();
    qemu::img(&["create", "-q", "-f", "qcow2", "-o", options, &file, "3M"]);
    let image = open(path, true).unwrap();
    let bitmaps = image.bitmaps().unwrap();
    let add = |granularity, enabled| BitmapChange::Add { granularity, enabled };
    bitmaps.change("a", add(None, true)).unwrap();
    bitmaps.change("fine", add(Some(512), true)).unwrap();
    bitmaps.change("coarse", add(Some(MIB), false)).unwrap();
    drop(image);
    qemu::check(path);
    qemu::io("qcow2", path, &["write 70k 3k".into(), "write 2M 512".into()]);
    qemu::check(path);
}

/// Numbers of the bits that are set.
fn ones(bits: &Disk) -> Vec<u64> {
    let bytes = content(bits);
    let all = (0..)
        .zip(&bytes)
        .flat_map(|(n, byte)| (0..8).filter(move |b| byte >> b & 1 != 0).map(move |b| n * 8 + b));
    all.collect()
}

fn merge(to: &dyn Bitmaps, name: &str, from: &Arc<dyn Image>, other: &str) -> Result<()> {
    let bitmaps = from.bitmaps().unwrap();
    let facts = bitmaps.list()?.into_iter().find(|b| b.name == other).unwrap();
    let bits = bitmaps.bits(other)?;
    let source = BitmapSource { bits: &bits, granularity: facts.granularity, disk_size: from.size() };
    to.change(name, BitmapChange::Merge(source))
}

#[test]
fn qemu_notes_writes_in_bitmaps_and_racker_joins_them() {
    for options in ["cluster_size=512", "cluster_size=4k", "cluster_size=64k", "cluster_size=2M"] {
        let dir = scratch();
        let path = dir.path().join("image");
        noted(&path, options);
        let image = open(&path, true).unwrap();
        let bitmaps = image.bitmaps().unwrap();
        let bits = |name| ones(&bitmaps.bits(name).unwrap());
        // QEMU notes whole clusters where it has to fill them.
        assert!(
            [140, 141, 142, 143, 144, 145, 4096].iter().all(|bit| bits("fine").contains(bit)),
            "{options}"
        );
        assert!(bits("coarse").is_empty());
        merge(bitmaps, "coarse", &image, "fine").unwrap();
        assert_eq!(bits("coarse"), [0, 2]);
        qemu::check(&path);
        bitmaps.change("fine", BitmapChange::Clear).unwrap();
        assert!(bits("fine").is_empty());
        merge(bitmaps, "fine", &image, "coarse").unwrap();
        assert_eq!(bits("fine"), (0..2048).chain(4096..6144).collect::<Vec<_>>());
        bitmaps.change("a", BitmapChange::Enable(false)).unwrap();
        bitmaps.change("coarse", BitmapChange::Enable(true)).unwrap();
        qemu::check(&path);
        let state = |b: BitmapFacts| (b.name, b.enabled, b.consistent);
        let all: Vec<_> = bitmaps.list().unwrap().into_iter().map(state).collect();
        let expected = [("a", false), ("fine", true), ("coarse", true)];
        assert_eq!(all, expected.map(|(name, enabled)| (name.to_string(), enabled, true)));
        // What racker writes is noted in none of them.
        Disk::from_arc(image.clone() as Arc<dyn BlockDevice>).write_at(0, &[1]).unwrap();
        image.flush().unwrap();
        assert_eq!(bitmaps.bits("fine").unwrap_err().kind(), Kind::Unsupported);
        assert!(bitmaps.bits("a").is_ok());
        for name in ["fine", "a", "coarse"] {
            bitmaps.change(name, BitmapChange::Remove).unwrap();
            qemu::check(&path);
        }
        let said = qemu::img(&["info", "-U", &path.display().to_string()]);
        assert!(!said.contains("bitmaps"), "{said}");
    }
}

#[test]
fn what_qemu_notes_is_what_racker_reads() {
    let dir = scratch();
    let path = dir.path().join("image");
    let file = path.display().to_string();
    qemu::img(&["create", "-q", "-f", "qcow2", &file, "64M"]);
    qemu::img(&["bitmap", "--add", "-g", "64k", &file, "b"]);
    qemu::io("qcow2", &path, &["write 1M 1M".into(), "write -z 40M 64k".into()]);
    let bits = open(&path, false).unwrap().bitmaps().unwrap().bits("b").unwrap();
    assert_eq!(ones(&bits), (16..32).chain([640]).collect::<Vec<_>>());
}

#[test]
fn bitmaps_that_cannot_be_are_refused() {
    let dir = scratch();
    let path = dir.path().join("image");
    noted(&path, "cluster_size=64k");
    let image = open(&path, true).unwrap();
    let bitmaps = image.bitmaps().unwrap();
    let add = |granularity| BitmapChange::Add { granularity, enabled: true };
    let kind = |name: &str, change| bitmaps.change(name, change).unwrap_err().kind();
    assert_eq!(kind("a", add(None)), Kind::Exists);
    assert_eq!(kind("", add(None)), Kind::Invalid);
    assert_eq!(kind(&"x".repeat(1024), add(None)), Kind::Invalid);
    assert_eq!(kind("b", add(Some(256))), Kind::Invalid);
    assert_eq!(kind("b", add(Some(3000))), Kind::Invalid);
    assert_eq!(kind("b", BitmapChange::Clear), Kind::NotFound);
    let bits = bitmaps.bits("fine").unwrap();
    let other = BitmapSource { bits: &bits, granularity: 512, disk_size: 4 * MIB };
    assert_eq!(kind("a", BitmapChange::Merge(other)), Kind::Invalid);
    let old = dir.path().join("old");
    qemu::img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", &old.display().to_string(), "1M"]);
    let image = open(&old, true).unwrap();
    assert_eq!(image.bitmaps().unwrap().change("b", add(None)).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_power_cut_leaves_the_bitmaps_as_they_were_or_as_they_shall_be() {
    type Step = fn(&dyn Bitmaps, &Arc<dyn Image>);
    let steps: [Step; 4] = [
        |b, _| b.change("new", BitmapChange::Add { granularity: None, enabled: true }).unwrap(),
        |b, image| merge(b, "coarse", image, "fine").unwrap(),
        |b, _| b.change("fine", BitmapChange::Clear).unwrap(),
        |b, _| b.change("a", BitmapChange::Remove).unwrap(),
    ];
    for options in ["cluster_size=512", "cluster_size=64k,refcount_bits=1"] {
        let dir = scratch();
        let path = dir.path().join("image");
        noted(&path, options);
        let good = std::fs::read(&path).unwrap();
        let states = |bytes: &[u8]| {
            let image = open_disk(Disk::new(MemDevice::from_bytes(bytes.to_vec())), false).unwrap();
            let bitmaps = image.bitmaps().unwrap();
            let all = bitmaps.list().unwrap();
            let bits: Vec<_> = all.iter().map(|b| ones(&bitmaps.bits(&b.name).unwrap())).collect();
            (all, bits)
        };
        for step in steps {
            cut_step(&path, &good, |image| step(image.bitmaps().unwrap(), image), states);
        }
    }
}

#[test]
fn long_names_of_a_backing_file_stay_where_bitmaps_come() {
    let dir = scratch();
    let long = format!("{}.qcow2", "b".repeat(200));
    let base = dir.path().join(&long);
    qemu::img(&["create", "-q", "-f", "qcow2", &base.display().to_string(), "1M"]);
    for cluster_size in ["512", "4k", "64k"] {
        let path = dir.path().join("child");
        let options = format!("cluster_size={cluster_size}");
        let file = path.display().to_string();
        qemu::img_in(
            dir.path(),
            &["create", "-q", "-f", "qcow2", "-o", &options, "-b", &long, "-F", "qcow2", &file],
        );
        let image = open(&path, true).unwrap();
        let bitmaps = image.bitmaps().unwrap();
        for name in ["one", "two"] {
            bitmaps.change(name, BitmapChange::Add { granularity: None, enabled: true }).unwrap();
        }
        bitmaps.change("one", BitmapChange::Remove).unwrap();
        drop(image);
        qemu::check(&path);
        let said = qemu::img(&["info", &file]);
        assert!(said.contains(&long) && said.contains("two") && !said.contains("one\n"), "{said}");
        assert_eq!(open(&path, false).unwrap().facts().backing.unwrap().path, long);
        qemu::io("qcow2", &path, &["write 0 64k".into()]);
        qemu::check(&path);
    }
}

#[test]
fn snapshots_leave_bitmaps_good() {
    let dir = scratch();
    let path = dir.path().join("image");
    noted(&path, "cluster_size=4k");
    let image = open(&path, true).unwrap();
    let before = ones(&image.bitmaps().unwrap().bits("fine").unwrap());
    image.snapshots().unwrap().create("s", racker_formats::registry::Moment::default()).unwrap();
    drop(image);
    qemu::check(&path);
    qemu::img(&["snapshot", "-c", "t", &path.display().to_string()]);
    let image = open(&path, true).unwrap();
    image.snapshots().unwrap().delete("s").unwrap();
    assert_eq!(ones(&image.bitmaps().unwrap().bits("fine").unwrap()), before);
    drop(image);
    qemu::check(&path);
}

#[test]
fn every_shape_takes_bitmaps() {
    let base = Recipe { size: 3 * MIB, refcount_bits: 16, ..Recipe::default() };
    for recipe in [
        Recipe { cluster_bits: 9, backing: true, ..base.clone() },
        Recipe { cluster_bits: 12, snapshots: 2, ..base.clone() },
        Recipe { cluster_bits: 16, lazy: true, ..base.clone() },
        Recipe { cluster_bits: 14, extended: true, ..base.clone() },
        Recipe { cluster_bits: 16, packed: Some("zstd"), ..base },
    ] {
        let dir = scratch();
        let path = recipe.make(dir.path());
        let before = racker_tests::image::read_by_qemu("qcow2", &path);
        let image = open(&path, true).unwrap();
        let change = BitmapChange::Add { granularity: Some(512), enabled: true };
        image.bitmaps().unwrap().change("b", change).unwrap();
        drop(image);
        qemu::check(&path);
        qemu::io("qcow2", &path, &["write 1M 1M".into()]);
        let bits = open(&path, false).unwrap().bitmaps().unwrap().bits("b").unwrap();
        assert_eq!(ones(&bits), (2048..4096).collect::<Vec<_>>());
        qemu::check(&path);
        let after = racker_tests::image::read_by_qemu("qcow2", &path);
        assert!(
            before[..MIB as usize] == after[..MIB as usize]
                && before[2 * MIB as usize..] == after[2 * MIB as usize..]
        );
    }
}

#[test]
fn damaged_bitmaps_are_refused_and_nothing_worse() {
    let dir = scratch();
    let path = dir.path().join("image");
    noted(&path, "cluster_size=512");
    let good = std::fs::read(&path).unwrap();
    let rng = &mut Rng::new(9);
    // Where the extension names the directory, in the first cluster or behind it.
    let mark = 0x2385_2875_u32.to_be_bytes();
    let ext = good.windows(4).position(|w| w == mark).unwrap();
    let number = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let directory = number(ext + 24);
    let tables: Vec<usize> = [directory, directory + 32].map(number).to_vec();
    for round in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(2) {
            let (at, len) = match rng.below(4) {
                0 => (ext, 32),
                1 => (tables[rng.below(2) as usize], 64),
                _ => (directory, 104),
            };
            let at = (at + rng.below(len) as usize).min(bytes.len() - 1);
            bytes[at] = [bytes[at] ^ 1 << rng.below(8), 0, 255, rng.below(256) as u8][rng.below(4) as usize];
        }
        let Ok(image) = open_disk(Disk::new(MemDevice::from_bytes(bytes)), true) else { continue };
        let bitmaps = image.bitmaps().unwrap();
        for bitmap in bitmaps.list().unwrap() {
            if let Ok(bits) = bitmaps.bits(&bitmap.name) {
                assert!(bits.size() <= 1 << 20, "{round}");
                let _ = content(&bits);
            }
            let change = match round % 4 {
                0 => BitmapChange::Clear,
                1 => BitmapChange::Remove,
                2 => BitmapChange::Enable(false),
                _ => BitmapChange::Add { granularity: None, enabled: true },
            };
            let name = if round % 4 == 3 { "new" } else { &bitmap.name };
            let _ = bitmaps.change(name, change);
        }
    }
}

/// `racker disk …` in a folder.
fn run(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

fn listed(dir: &Path, name: &str) -> Vec<(String, u64, bool)> {
    let said = run(dir, &["info", "--json", name]).ok();
    let info: serde_json::Value = serde_json::from_str(&said).unwrap();
    let all = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    let one = |b: &serde_json::Value| {
        let auto = b["flags"].as_array().unwrap().iter().any(|flag| flag == "auto");
        (b["name"].as_str().unwrap().to_string(), b["granularity"].as_u64().unwrap(), auto)
    };
    all.iter().map(one).collect()
}

#[test]
fn steps_are_done_in_their_order_and_bitmaps_go_with_a_copy() {
    let dir = scratch();
    let at = dir.path();
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "a.qcow2", "4M"]);
    run(at, &["bitmap", "--add", "-g", "64k", "a.qcow2", "one"]).ok();
    qemu::io("qcow2", &at.join("a.qcow2"), &["write 1M 64k".into()]);
    run(at, &["bitmap", "--add", "--disable", "--merge", "one", "a.qcow2", "two"]).ok();
    run(
        at,
        &["bitmap", "--merge", "one", "--clear", "--image-opts", "driver=qcow2,file.filename=a.qcow2", "one"],
    )
    .ok();
    let two = ("two".to_string(), 65_536, false);
    assert_eq!(listed(at, "a.qcow2"), [("one".to_string(), 65_536, true), two.clone()]);
    let bits = |name: &str, bitmap: &str| {
        ones(&open(&at.join(name), false).unwrap().bitmaps().unwrap().bits(bitmap).unwrap())
    };
    assert_eq!((bits("a.qcow2", "one"), bits("a.qcow2", "two")), (vec![], vec![16]));
    // A step that fails leaves nothing half done behind.
    run(at, &["bitmap", "--add", "--merge", "none", "a.qcow2", "three"]).failed();
    assert_eq!(listed(at, "a.qcow2").len(), 2);
    assert_eq!(run(at, &["bitmap", "a.qcow2", "one"]).status, 2);
    assert!(run(at, &["bitmap", "--add", "-f", "raw", "a.qcow2", "x"]).failed().contains("no bitmaps"));

    let copy = |rest: &[&str]| run(at, &[&["convert", "--bitmaps"], rest].concat());
    copy(&["--verify", "-O", "qcow2", "-c", "-o", "cluster_size=4k", "a.qcow2", "b.qcow2"]).ok();
    qemu::check(&at.join("b.qcow2"));
    assert_eq!(listed(at, "b.qcow2"), listed(at, "a.qcow2"));
    assert_eq!((bits("b.qcow2", "one"), bits("b.qcow2", "two")), (vec![], vec![16]));
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "c.qcow2", "4M"]);
    copy(&["-n", "-O", "qcow2", "a.qcow2", "c.qcow2"]).ok();
    assert_eq!(listed(at, "c.qcow2"), listed(at, "a.qcow2"));
    assert!(copy(&["-n", "-O", "qcow2", "a.qcow2", "c.qcow2"]).failed().contains("already"));
    // What cannot take them is refused before anything is written.
    for rest in [
        &["-O", "raw", "a.qcow2", "no"][..],
        &["-O", "qcow2", "-o", "compat=0.10", "a.qcow2", "no"],
        &["-O", "qcow2", "a.qcow2", "b.qcow2", "no"],
        &["-O", "vmdk", "a.qcow2", "no"],
        &["-O", "raw", "a.qcow2", "-"],
    ] {
        copy(rest).failed();
        assert!(!at.join("no").exists());
    }
    // Racker's own writes are noted nowhere, so the bitmap is of no use any more.
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "zero.qcow2", "4M"]);
    run(at, &["convert", "-n", "-O", "qcow2", "zero.qcow2", "a.qcow2"]).ok();
    assert!(copy(&["-O", "qcow2", "a.qcow2", "no"]).failed().contains("--skip-broken-bitmaps"));
    let said = copy(&["--skip-broken-bitmaps", "-O", "qcow2", "a.qcow2", "d.qcow2"]);
    assert!(said.err.contains("\"one\""), "{said}");
    assert_eq!(listed(at, "d.qcow2"), [two]);
    let said = qemu::img_status(&["measure", "-O", "qcow2", &at.join("d.qcow2").display().to_string()]).1;
    let ours = run(at, &["measure", "-O", "qcow2", "d.qcow2"]).ok();
    let last = |text: &str| text.trim().lines().last().map(str::to_string);
    assert_eq!(last(&ours), last(&said));
}
