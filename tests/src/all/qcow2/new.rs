//! New images: `qemu-img check` finds them clean and reads what went in.

use std::num::NonZero;
use std::path::Path;

use racker_formats::block::{Disk, FileDevice, MemDevice};
use racker_formats::convert::{self, NewFile};
use racker_formats::options::Values;
use racker_formats::registry::{Plan, by_name};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::read::as_qemu_reads;
use super::{content, disk, open, runs_agree};

const MIB: usize = 1 << 20;

/// Bytes of all kinds: zeroes, noise, and what compresses well.
fn bytes(size: usize) -> Vec<u8> {
    let mut rng = Rng::new(8);
    let mut all = vec![0; size];
    for piece in all.chunks_mut(40_000) {
        match rng.below(4) {
            0 => rng.fill(piece),
            1 => {}
            _ => piece.iter_mut().enumerate().for_each(|(i, b)| *b = (i / 7 % 50) as u8),
        }
    }
    all
}

fn convert(source: &Disk, target: &Path, options: &[(&str, &str)], compress: bool, threads: usize) {
    let format = by_name("qcow2").unwrap();
    let options = Values::parse("qcow2", format.options(), options.iter().copied()).unwrap();
    let plan = Plan { size: source.size(), options, compress, ..Plan::default() };
    let file = NewFile::prepare(target).unwrap();
    let sink = format.sink(file.disk().clone(), &plan).unwrap();
    let how = convert::Options { threads: NonZero::new(threads), ..convert::Options::default() };
    convert::convert(source, sink, how, &mut |_| ()).unwrap();
    file.publish().unwrap();
}

#[test]
fn copies_of_every_shape_are_sound() {
    let source = bytes(5 * MIB + 300);
    let from = Disk::new(MemDevice::from_bytes(source.clone()));
    // QEMU counts in sectors.
    let mut expected = source;
    expected.resize(expected.len().next_multiple_of(512), 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    for bits in 9..=21 {
        let cluster = (1u32 << bits).to_string();
        let shapes: [&[(&str, &str)]; 6] = [
            &[("refcount_bits", "1")],
            &[("refcount_bits", "4")],
            &[("refcount_bits", "64"), ("compression_type", "zstd")],
            &[("compat", "0.10")],
            &[("lazy_refcounts", "on")],
            &[("extended_l2", "on")],
        ];
        for shape in shapes.iter().filter(|s| bits >= 14 || s[0].0 != "extended_l2") {
            let options = [&[("cluster_size", cluster.as_str())], *shape].concat();
            for compress in [false, true] {
                convert(&from, &path, &options, compress, 2);
                qemu::check(&path);
                assert!(as_qemu_reads(&path) == expected, "{options:?} {compress}");
                let image = open(&path, false).unwrap();
                assert!(content(&disk(&image)) == expected);
                runs_agree(&disk(&image), &expected);
            }
        }
    }
}

#[test]
fn a_copy_does_not_depend_on_the_number_of_threads() {
    let from = Disk::new(MemDevice::from_bytes(bytes(9 * MIB)));
    let dir = tempfile::tempdir().unwrap();
    for compress in [false, true] {
        let copies = [1, 2, 5].map(|threads| {
            let path = dir.path().join(format!("{threads}.qcow2"));
            convert(&from, &path, &[], compress, threads);
            std::fs::read(path).unwrap()
        });
        assert!(copies[0] == copies[1] && copies[0] == copies[2]);
        assert!(compress == (copies[0].len() < 6 * MIB), "{}", copies[0].len());
    }
}

#[test]
fn an_empty_image_is_what_its_options_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let base = dir.path().join("base.raw");
    std::fs::write(&base, bytes(MIB)).unwrap();
    for bits in 9..=21 {
        for (compat, backing) in [("1.1", false), ("0.10", false), ("1.1", true), ("0.10", true)] {
            let cluster = (1u32 << bits).to_string();
            let mut typed = vec![("cluster_size", cluster.as_str()), ("compat", compat)];
            if backing {
                typed.extend([("backing_file", "base.raw"), ("backing_fmt", "raw")]);
            }
            let format = by_name("qcow2").unwrap();
            let options = Values::parse("qcow2", format.options(), typed).unwrap();
            let plan = Plan { size: 3 * MIB as u64, options, ..Plan::default() };
            let file = std::fs::File::create_new(&path).unwrap();
            let file =
                std::fs::File::options().read(true).write(true).open(&path).map(|f| (f, file)).unwrap();
            drop(format.create(Disk::new(FileDevice::new(file.0, true).unwrap()), &plan).unwrap());
            qemu::check(&path);
            let mut expected = if backing { bytes(MIB) } else { Vec::new() };
            expected.resize(3 * MIB, 0);
            assert!(as_qemu_reads(&path) == expected);
            assert!(content(&disk(&open(&path, false).unwrap())) == expected);
            let said = qemu::img(&["info", "--output=json", &path.display().to_string()]);
            assert!(said.contains(&format!("\"compat\": \"{compat}\"")), "{said}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let format = by_name("qcow2").unwrap();
    for typed in [
        [("compat", "0.10"), ("extended_l2", "on")],
        [("compat", "0.10"), ("refcount_bits", "8")],
        [("cluster_size", "4k"), ("extended_l2", "on")],
        [("cluster_size", "512"), ("backing_file", "x")],
    ] {
        let options = Values::parse("qcow2", format.options(), typed).unwrap();
        let plan = Plan { size: 1 << 20, options, ..Plan::default() };
        assert!(format.create(Disk::new(MemDevice::new(0)), &plan).is_err(), "{typed:?}");
    }
    let options = Values::parse("qcow2", format.options(), [("cluster_size", "512")]).unwrap();
    let plan = Plan { size: 1 << 40, options, ..Plan::default() };
    let e = format.create(Disk::new(MemDevice::new(0)), &plan).unwrap_err();
    assert!(e.hint().is_some(), "{e}");
}

#[test]
fn what_is_allocated_at_once_is_there() {
    let dir = racker_tests::image::scratch();
    let (path, theirs) = (dir.path().join("image.qcow2"), dir.path().join("theirs.qcow2"));
    for how in ["metadata", "falloc", "full"] {
        for options in
            ["", "cluster_size=4k,refcount_bits=1", "cluster_size=2M", "extended_l2=on", "compat=0.10"]
        {
            for size in [0, 3 * MIB as u64 + 512, 40 * MIB as u64] {
                let options = format!("{options},preallocation={how}");
                let image = racker_tests::image::create("qcow2", &path, size, &options, None).unwrap();
                assert!(content(&disk(&image)) == vec![0; size as usize]);
                drop(image);
                qemu::check(&path);
                assert!(as_qemu_reads(&path) == vec![0; size as usize]);
                // As much as QEMU allocates.
                let (at, size) = (theirs.display().to_string(), size.to_string());
                let options = options.trim_start_matches(',');
                qemu::img(&["create", "-q", "-f", "qcow2", "-o", options, &at, &size]);
                assert_eq!(allocated(&path), allocated(&theirs), "{options} {size}");
                let blocks = |p: &Path| std::os::unix::fs::MetadataExt::blocks(&p.metadata().unwrap()) * 512;
                let (ours, theirs) = (blocks(&path), blocks(&theirs));
                let enough = how == "metadata" || ours >= size.parse().unwrap();
                assert!(enough && ours < theirs + (600 << 10), "{options} {size}: {ours} {theirs}");
                // Nothing more is allocated for what is written then.
                let before = path.metadata().unwrap().len();
                let image = open(&path, true).unwrap();
                let top = disk(&image);
                if top.size() > 0 {
                    top.write_at(top.size() / 3, &[7; 100]).unwrap();
                    top.flush().unwrap();
                    qemu::check(&path);
                }
                assert_eq!(path.metadata().unwrap().len(), before);
            }
        }
    }
}

/// Clusters that `qemu-img check` counts.
fn allocated(path: &Path) -> String {
    let said = qemu::img(&["check", "--output=json", &path.display().to_string()]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    said["allocated-clusters"].to_string()
}

#[test]
fn a_data_file_is_made_and_filled() {
    for options in ["", ",data_file_raw=on", ",preallocation=falloc", ",extended_l2=on"] {
        let dir = racker_tests::image::scratch();
        let path = dir.path().join("image.qcow2");
        let data = dir.path().join("data");
        let raw = std::fs::File::options().read(true).write(true).create_new(true).open(&data).unwrap();
        let format = by_name("qcow2").unwrap();
        let typed = format!("data_file=data{options}");
        let pairs = typed.split(',').filter_map(|o| o.split_once('='));
        let plan = Plan {
            size: 3 * MIB as u64,
            options: Values::parse("qcow2", format.options(), pairs).unwrap(),
            data_file: Some(Disk::new(FileDevice::new(raw, true).unwrap())),
            ..Plan::default()
        };
        let source = bytes(3 * MIB);
        let file = NewFile::prepare(&path).unwrap();
        let sink = format.sink(file.disk().clone(), &plan).unwrap();
        let from = Disk::new(MemDevice::from_bytes(source.clone()));
        convert::convert(&from, sink, convert::Options::default(), &mut |_| ()).unwrap();
        file.publish().unwrap();
        drop(plan);
        qemu::img_in(dir.path(), &["check", "-q", "image.qcow2"]);
        qemu::img_in(dir.path(), &["convert", "-q", "-O", "raw", "image.qcow2", "read.raw"]);
        assert!(std::fs::read(dir.path().join("read.raw")).unwrap() == source, "{options}");
        assert!(racker_tests::image::read("qcow2", &path) == source);
        assert!(!options.contains("raw") || std::fs::read(&data).unwrap() == source);
    }
}

#[test]
fn a_child_shows_its_parent() {
    let dir = racker_tests::image::scratch();
    let (base, path) = (dir.path().join("base.qcow2"), dir.path().join("child.qcow2"));
    let image = racker_tests::image::create("qcow2", &base, MIB as u64, "", None).unwrap();
    disk(&image).write_at(1000, &bytes(500_000)).unwrap();
    disk(&image).flush().unwrap();
    let mut want = content(&disk(&image));
    drop(image);
    want.resize(2 * MIB, 0);
    for options in ["", "compat=0.10", "extended_l2=on,preallocation=metadata"] {
        let image =
            racker_tests::image::create("qcow2", &path, 2 * MIB as u64, options, Some(&base)).unwrap();
        assert!(content(&disk(&image)) == want);
        let mut want = want.clone();
        disk(&image).write_at(90_000, &[3; 70_000]).unwrap();
        want[90_000..160_000].fill(3);
        disk(&image).flush().unwrap();
        drop(image);
        qemu::check(&path);
        assert!(racker_tests::image::read_by_qemu("qcow2", &path) == want, "{options}");
        assert!(racker_tests::image::read("qcow2", &path) == want);
    }
}
