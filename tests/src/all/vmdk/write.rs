//! What racker writes, others read as it was meant.

use std::path::Path;
use std::sync::Barrier;

use racker_formats::Kind;
use racker_formats::block::{Disk, Span};
use racker_formats::convert::{Options, convert};
use racker_formats::options::Values;
use racker_formats::registry::{Plan, by_name};
use racker_tests::qemu;
use racker_tests::rng::Rng;

use super::{SUBFORMATS, content, disk, file, open, same, sound, source, text};

fn identical(a: &Path, b: &Path) {
    let said = qemu::img(&["compare", &text(a), &text(b)]);
    assert!(said.contains("identical"), "{said}");
}

/// Random changes to `disk`, and the same to `model`.
fn change(disk: &Disk, model: &mut [u8], rng: &mut Rng, count: u32) {
    for _ in 0..count {
        let most = [600, 5000, 70_000, 700_000][rng.below(4) as usize];
        let len = (1 + rng.below(most)).min(model.len() as u64) as usize;
        let at = rng.below((model.len() - len + 1) as u64) as usize;
        let place = &mut model[at..at + len];
        if rng.below(4) == 0 {
            place.fill(0);
            disk.write_zeroes(Span::new(at as u64, len as u64).unwrap()).unwrap();
        } else {
            rng.fill(place);
            disk.write_at(at as u64, place).unwrap();
        }
    }
}

#[test]
fn changes_in_place_are_what_qemu_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("image.vmdk"), dir.path().join("model.raw"));
    for (number, subformat) in SUBFORMATS[..5].iter().enumerate() {
        let mut rng = Rng::new(number as u64);
        let options = format!("subformat={subformat}");
        qemu::img(&["create", "-q", "-f", "vmdk", "-o", &options, &text(&path), "20M"]);
        qemu::io("vmdk", &path, &["write -P 7 3M 1M".into()]);
        let mut model = content(&disk(&open(&path, false).unwrap()));
        for _ in 0..4 {
            let image = open(&path, true).unwrap();
            change(&disk(&image), &mut model, &mut rng, 30);
            assert!(content(&disk(&image)) == model, "{subformat}");
            disk(&image).flush().unwrap();
            sound(&image);
            drop(image);
            std::fs::write(&raw, &model).unwrap();
            identical(&path, &raw);
            let (status, said) = qemu::img_status(&["check", "-f", "vmdk", &text(&path)]);
            assert!(status == 0 || said.contains("does not support"), "{said}");
            assert!(!open(&path, false).unwrap().facts().dirty);
        }
    }
}

#[test]
fn a_child_is_written_with_its_parent_around_the_new_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top, raw) =
        (dir.path().join("base.vmdk"), dir.path().join("top.vmdk"), dir.path().join("model.raw"));
    qemu::img(&["create", "-q", "-f", "vmdk", &text(&base), "20M"]);
    qemu::io("vmdk", &base, &["write -P 1 100k 5M".into(), "write -P 2 15M 70k".into()]);
    qemu::img_in(dir.path(), &["create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk"]);
    let before = std::fs::read(&base).unwrap();
    let mut model = content(&disk(&open(&top, false).unwrap()));
    let image = open(&top, true).unwrap();
    change(&disk(&image), &mut model, &mut Rng::new(3), 60);
    disk(&image).flush().unwrap();
    assert!(content(&disk(&image)) == model);
    sound(&image);
    drop(image);
    std::fs::write(&raw, &model).unwrap();
    identical(&top, &raw);
    assert!(std::fs::read(&base).unwrap() == before, "a parent is only read");
}

#[test]
fn a_change_gives_a_new_content_id_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vmdk");
    for subformat in ["monolithicSparse", "monolithicFlat"] {
        qemu::img(&[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            &format!("subformat={subformat}"),
            &text(&path),
            "1M",
        ]);
        let cid = || open(&path, false).unwrap().facts().specific["cid"].clone();
        let before = cid();
        let image = open(&path, true).unwrap();
        let mut buf = [0; 512];
        disk(&image).read_at(0, &mut buf).unwrap();
        disk(&image).flush().unwrap();
        drop(image);
        assert_eq!(cid(), before, "reading changes nothing");
        let image = open(&path, true).unwrap();
        disk(&image).write_at(0, &[1; 512]).unwrap();
        let bytes = || std::fs::read(&path).unwrap().into_iter().take(2048).collect::<Vec<u8>>();
        let after = bytes();
        disk(&image).write_at(512, &[1; 512]).unwrap();
        disk(&image).flush().unwrap();
        assert_eq!(bytes(), after);
        drop(image);
        assert_ne!(cid(), before);
    }
}

/// Threads that write into the same new grains lose nothing.
#[test]
fn writers_at_once_share_new_grains() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vmdk");
    qemu::img(&["create", "-q", "-f", "vmdk", &text(&path), "16M"]);
    let image = open(&path, true).unwrap();
    let (threads, piece) = (8u64, 4096u64);
    let start = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (disk, start) = (disk(&image), &start);
            scope.spawn(move || {
                start.wait();
                let mut at = thread * piece;
                while at < disk.size() {
                    disk.write_at(at, &[thread as u8 + 1; 4096]).unwrap();
                    if at % (1 << 20) == 0 {
                        disk.flush().unwrap();
                    }
                    at += threads * piece;
                }
            });
        }
    });
    disk(&image).flush().unwrap();
    sound(&image);
    drop(image);
    let all = content(&disk(&open(&path, false).unwrap()));
    assert!(
        all.chunks(4096).enumerate().all(|(i, c)| c.iter().all(|b| u64::from(*b) == i as u64 % threads + 1))
    );
}

#[test]
fn new_images_of_both_kinds_are_read_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, path) = (dir.path().join("source.raw"), dir.path().join("b\"ö.vmdk"));
    let vmdk = by_name("vmdk").unwrap();
    // One grain, not a whole one, whole tables, more than one sector of grain directory.
    for size in [1536u64, 65536, 100 << 20, (5 << 30) + 512] {
        let places = [size / 3 * 2];
        if size > 200_000 {
            source(&raw, size, &places, &mut Rng::new(size));
        } else {
            std::fs::write(&raw, vec![5; size as usize]).unwrap();
        }
        for typed in [
            &[("subformat", "monolithicSparse")][..],
            &[("subformat", "streamOptimized"), ("adapter_type", "lsilogic"), ("hwversion", "14")],
        ] {
            let options = Values::parse("vmdk", vmdk.options(), typed.iter().copied()).unwrap();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let plan = Plan { size, name, options, ..Plan::default() };
            let out = std::fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&path)
                .unwrap();
            let out = Disk::new(racker_formats::block::FileDevice::new(out, true).unwrap());
            let sink = vmdk.sink(out, &plan).unwrap();
            convert(&file(&raw), sink, Options::default(), &mut |_| ()).unwrap();
            identical(&path, &raw);
            let (status, said) = qemu::img_status(&["check", "-f", "vmdk", &text(&path)]);
            assert_eq!(status, 0, "{said}");
            let image = open(&path, false).unwrap();
            same(&disk(&image), &file(&raw));
            sound(&image);
            assert_eq!(image.facts().subformat.as_deref(), Some(typed[0].1));
            if typed[0].1 == "streamOptimized" {
                assert_eq!(open(&path, true).unwrap_err().kind(), Kind::ReadOnly);
                let said = std::fs::read(&path).unwrap();
                assert!(said.len().is_multiple_of(512) && said[said.len() - 512..].iter().all(|b| *b == 0));
            }
        }
    }
}
