//! `racker disk rebase` of formats that record the identity of their parent.

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, Span};
use racker_formats::commit::commit;
use racker_formats::convert::Pace;
use racker_formats::opening::{Opening, Policy, Reference, Role};
use racker_formats::rebase::rebase;
use racker_formats::registry::{Backing, Image, by_name};
use racker_tests::image::{content, create, disk, findings, open, read, read_by_7zip, read_by_qemu, scratch};
use racker_tests::rng::Rng;
use racker_tests::sim::CrashDisk;
use racker_tests::tool::{Ran, racker};

const MIB: u64 = 1 << 20;

fn run(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

/// Data and zeroes here and there.
fn scribble(image: &Arc<dyn Image>, rng: &mut Rng) {
    let disk = disk(image);
    for _ in 0..12 {
        let at = rng.below(disk.size() / 512 - 200) * 512;
        let mut bytes = vec![0; 512 * (1 + rng.below(199) as usize)];
        rng.fill(&mut bytes);
        disk.write_at(at, &bytes).unwrap();
        let at = rng.below(disk.size() / 512 - 200) * 512;
        disk.write_zeroes(Span::new(at, 60_000 / 512 * 512).unwrap()).unwrap();
    }
    disk.flush().unwrap();
}

/// What another program reads.
fn foreign(format: &str, path: &Path, len: usize) -> Vec<u8> {
    let mut bytes = if format == "vmdk" { read_by_qemu(format, path) } else { read_by_7zip(path) };
    bytes.truncate(len);
    bytes
}

#[test]
fn rebase_keeps_the_content() {
    for (format, options) in [
        ("vmdk", ""),
        ("vmdk", "zeroed_grain=on"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vhd", ""),
        ("vhdx", "block_size=1M"),
    ] {
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(11);
        let name = |name: &str| format!("{name}.{format}");
        let path = |name: &str| at.join(format!("{name}.{format}"));
        let make = |file: &str, parent: Option<&str>| {
            let mut args = vec!["create", "-q", "-f", format];
            args.extend(["-o", options].into_iter().filter(|_| !options.is_empty()));
            let (file, parent) = (name(file), parent.map(name));
            match &parent {
                Some(parent) => args.extend(["-b", parent, "-F", format, &file]),
                None => args.extend([&file[..], "5M"]),
            }
            run(at, &args).ok();
            open(format, &at.join(&file), true).unwrap()
        };
        let long = "another parent with a name that is a good deal longer than that of the first";
        for parent in ["a", long] {
            scribble(&make(parent, None), rng);
        }
        scribble(&make("c", Some("a")), rng);
        scribble(&make("top", Some("c")), rng);
        drop(make("child", Some("top")));
        let want = read(format, &path("top"));
        for new in ["a", long, "c", ""] {
            let file = if new.is_empty() { String::new() } else { name(new) };
            run(at, &["rebase", "-b", &file, &name("top")]).ok();
            assert!(read(format, &path("top")) == want, "{format} {options} on {new:?}");
            let seen = foreign(format, &path("top"), want.len());
            assert!(seen == want, "{format} {options} on {new:?}: another program reads something else");
            assert_eq!(findings(format, &path("top"), false), Vec::<String>::new(), "{format} on {new:?}");
            let facts = open(format, &path("top"), false).unwrap().facts();
            let named = facts.backing.map(|b| b.path.trim_start_matches("./").to_string());
            assert_eq!(named.unwrap_or_default(), file);
            // The content is the same: a child does not notice.
            assert!(read(format, &path("child")) == want, "{format} on {new:?}");
            // And it can be written.
            disk(&open(format, &path("top"), true).unwrap()).flush().unwrap();
        }
        // It is a disk of its own now.
        for gone in ["a", "c", long] {
            std::fs::remove_file(path(gone)).unwrap();
        }
        scribble(&open(format, &path("top"), true).unwrap(), rng);
        let want = read(format, &path("top"));
        assert!(foreign(format, &path("top"), want.len()) == want, "{format}");
        if format == "vhd" {
            assert!(read_by_qemu("vpc", &path("top"))[..want.len()] == want[..]);
        }
        if format == "vhdx" {
            assert!(read_by_qemu("vhdx", &path("top")) == want);
        }
        assert!(run(at, &["rebase", "-b", "gone", &name("top")]).failed().contains("gone"));
        assert!(run(at, &["rebase", "-b", "", &name("top")]).failed().contains("parent"));
    }
}

#[test]
fn an_unsafe_rebase_looks_at_nothing() {
    for format in ["vmdk", "vhd", "vhdx"] {
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(12);
        let name = |name: &str| format!("{name}.{format}");
        let path = |name: &str| at.join(format!("{name}.{format}"));
        let base = create(format, &path("a"), 5 * MIB, "", None).unwrap();
        let size = disk(&base).size();
        scribble(&base, rng);
        drop(base);
        scribble(&create(format, &path("top"), size, "", Some(&path("a"))).unwrap(), rng);
        let want = read(format, &path("top"));
        // Named before it is there: the identity stays.
        let (moved, copy, top) = (name("moved"), name("copy"), name("top"));
        run(at, &["rebase", "-u", "-b", &moved, "-F", format, &top]).ok();
        assert!(open(format, &path("top"), false).is_err());
        std::fs::rename(path("a"), path("moved")).unwrap();
        assert!(read(format, &path("top")) == want && foreign(format, &path("top"), want.len()) == want);
        // A copy has the same content under another identity.
        let bytes = read(format, &path("moved"));
        let other = create(format, &path("copy"), size, "", None).unwrap();
        disk(&other).write_at(0, &bytes).unwrap();
        disk(&other).flush().unwrap();
        drop(other);
        std::fs::remove_file(path("moved")).unwrap();
        run(at, &["rebase", "-u", "-b", &copy, "-F", format, &top]).ok();
        assert!(read(format, &path("top")) == want && foreign(format, &path("top"), want.len()) == want);
        assert!(content(&disk(&open(format, &path("copy"), false).unwrap())) == bytes);
        assert!(run(at, &["rebase", "-b", &top, "-F", "raw", &top]).failed().contains("rac"));
        // What shows through is zeroes from now on, where it can be said without a look.
        if format != "vhdx" {
            run(at, &["rebase", "-u", "-b", "", &top]).ok();
            assert!(read(format, &path("top")) != want);
            assert!(open(format, &path("top"), false).unwrap().parent().is_none());
        } else {
            run(at, &["rebase", "-u", "-b", "", &top]).failed();
            assert!(read(format, &path("top")) == want);
        }
    }
}

/// Opens an image whose parents lie in `dir`.
fn open_in(dir: &Path, format: &str, disk: Disk) -> Arc<dyn Image> {
    let opening = &mut Opening::new(Some(&dir.join("no-such-file")), Policy::SameFolder, true);
    by_name(format).unwrap().open(disk, opening).unwrap()
}

fn crashable(path: &Path) -> (Arc<CrashDisk>, Disk) {
    let crash = Arc::new(CrashDisk::new(std::fs::read(path).unwrap()));
    let disk = Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>);
    (crash, disk)
}

/// A base, another one, and a child of the first.
fn family(format: &str, options: &str, dir: &Path, rng: &mut Rng) -> Vec<u8> {
    let path = |name: &str| dir.join(format!("{name}.{format}"));
    let size = disk(&create(format, &path("a"), MIB, options, None).unwrap()).size();
    scribble(&open(format, &path("a"), true).unwrap(), rng);
    scribble(&create(format, &path("b"), size, options, None).unwrap(), rng);
    scribble(&create(format, &path("top"), size, options, Some(&path("a"))).unwrap(), rng);
    read(format, &path("top"))
}

const KINDS: [(&str, &str); 4] =
    [("vmdk", ""), ("vmdk", "zeroed_grain=on"), ("vhd", ""), ("vhdx", "block_size=1M")];

#[test]
fn a_power_cut_never_changes_what_a_rebased_image_shows() {
    for (format, options) in KINDS {
        let dir = scratch();
        let at = dir.path();
        let want = family(format, options, at, &mut Rng::new(21));
        let (b, top) = (at.join(format!("b.{format}")), at.join(format!("top.{format}")));
        // Longer than a sector of a descriptor takes.
        let long = format!("{}.{format}", "b".repeat(200));
        std::fs::copy(&b, at.join(&long)).unwrap();
        for name in [long.as_str(), &format!("b.{format}"), ""] {
            let (crash, file) = crashable(&top);
            let image = open_in(at, format, file);
            let path = name.to_string();
            let reference = Reference { path, format: Some(format.into()), role: Role::Backing };
            let parent = open(format, &b, false).unwrap();
            let target = Backing { reference, image: parent, modified: 1_000_000_000 };
            rebase(&image, (!name.is_empty()).then_some(&target), false, &mut |_| ()).unwrap();
            let mut count = 0;
            crash.cuts(&mut Rng::new(3), 2, |cut, bytes| {
                std::fs::write(&top, bytes).unwrap();
                count += 1;
                assert!(read(format, &top) == want, "{format} on {name:?}, cut at {cut}");
                if count % 25 == 0 {
                    let seen = foreign_after_replay(format, &top, want.len());
                    assert!(seen == want, "{format} on {name:?}: another program, cut at {cut}");
                }
            });
            assert!(count > 10, "{format} on {name:?}: {count} cuts");
            std::fs::write(&top, crash.bytes()).unwrap();
            assert!(foreign(format, &top, want.len()) == want);
        }
    }
}

/// What another program reads once a log was replayed and both footers of a VHD were written: 7-Zip does neither.
fn foreign_after_replay(format: &str, path: &Path, len: usize) -> Vec<u8> {
    if format == "vhdx" {
        drop(open(format, path, true).unwrap());
    }
    if format == "vhd" {
        findings(format, path, true);
    }
    foreign(format, path, len)
}

/// Between the parent's new identity and the child's word of it, the child does not open; at all other times it shows
/// the same.
#[test]
fn a_power_cut_never_changes_what_a_committed_image_shows() {
    for (format, options) in KINDS {
        let dir = scratch();
        let at = dir.path();
        let want = family(format, options, at, &mut Rng::new(22));
        let (base, top) = (at.join(format!("a.{format}")), at.join(format!("top.{format}")));
        let before = std::fs::read(&top).unwrap();
        let (crash, file) = crashable(&base);
        commit(&[open(format, &top, true).unwrap()], &open_in(at, format, file), Pace::new(0), &mut |_| ())
            .unwrap();
        let after = std::fs::read(&top).unwrap();
        let mut count = 0;
        crash.cuts(&mut Rng::new(3), 2, |cut, bytes| {
            std::fs::write(&base, bytes).unwrap();
            let mut shown = 0;
            for child in [&before, &after] {
                std::fs::write(&top, child).unwrap();
                if let Ok(image) = open(format, &top, false) {
                    assert!(content(&disk(&image)) == want, "{format} {options}, cut at {cut}");
                    shown += 1;
                }
            }
            assert!(shown > 0, "{format} {options}: no child opens, cut at {cut}");
            count += 1;
        });
        assert!(count > 10, "{format} {options}: {count} cuts");
        std::fs::write(&base, crash.bytes()).unwrap();
        assert!(foreign(format, &top, want.len()) == want && foreign(format, &base, want.len()) == want);
    }
}
