//! New images of every kind, one file or several.

use racker_formats::Kind;
use racker_formats::convert::{NewFile, Options, convert};
use racker_formats::drivers::VmdkFault;
use racker_formats::options::Values;
use racker_formats::registry::{Plan, by_name};
use racker_tests::image::{read_by_7zip, read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::racker;

use super::{disk, file, make, open, same, sound, source, text};

/// What `qemu-img` and racker call the files, and what stands in the descriptor, is the same.
#[test]
fn new_images_are_those_of_qemu() {
    let (ours, theirs) = (scratch(), scratch());
    for subformat in ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        for more in
            ["", "adapter_type=lsilogic", "compat6=on", "hwversion=13,toolsversion=77", "zeroed_grain=on"]
        {
            if subformat.ends_with("Flat") && more.starts_with("zeroed") {
                continue;
            }
            let options = format!("subformat={subformat},{more}");
            let options = options.trim_end_matches(',');
            let (a, b) = (ours.path().join("a b.vmdk"), theirs.path().join("a b.vmdk"));
            make(&a, 5 << 30, options, None).unwrap();
            qemu::img(&["create", "-q", "-f", "vmdk", "-o", options, &text(&b), "5G"]);
            let list = |dir: &std::path::Path| {
                let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
                let mut all: Vec<_> = files.map(|f| (f.file_name(), f.metadata().unwrap().len())).collect();
                all.sort();
                // Content IDs of QEMU have no zeroes in front.
                all.retain(|(name, _)| name != "a b.vmdk");
                all
            };
            assert_eq!(list(ours.path()), list(theirs.path()), "{options}");
            let told = |path: &std::path::Path| {
                let image = open(path, false).unwrap();
                sound(&image);
                let mut facts = image.facts().specific;
                facts.remove("cid");
                facts
            };
            assert_eq!(told(&a), told(&b), "{options}");
            let geometry = |path: &std::path::Path| {
                let head = std::fs::read(path).unwrap();
                let head = String::from_utf8_lossy(&head[..head.len().min(2048)]).into_owned();
                let lines = head.lines().filter(|l| l.starts_with("ddb.") || l.starts_with("RW "));
                lines.map(|l| l.trim_end_matches('\0').to_string()).collect::<Vec<_>>()
            };
            assert_eq!(geometry(&a), geometry(&b), "{options}");
            for dir in [&ours, &theirs] {
                std::fs::read_dir(dir.path())
                    .unwrap()
                    .for_each(|f| std::fs::remove_file(f.unwrap().path()).unwrap());
            }
        }
    }
    let path = ours.path().join("x.vmdk");
    let e = make(&path, 1 << 20, "compat6=on,hwversion=4", None).unwrap_err();
    assert_eq!(e.fault(), Some(&VmdkFault::TwoVersions));
    let e = make(&path, 1 << 20, "subformat=monolithicFlat,zeroed_grain=on", None).unwrap_err();
    assert_eq!(e.fault(), Some(&VmdkFault::FlatZeroed));
    let e = make(&path, 63 << 40, "", None).unwrap_err();
    assert_eq!(e.kind(), Kind::NoSpace, "{e}");
    assert_eq!(std::fs::read_dir(ours.path()).unwrap().count(), 0, "nothing is left behind");
    // Larger than what one file can hold, as long as no more is written.
    make(&path, 5 << 40, "", None).unwrap();
    qemu::io("vmdk", &path, &["write -P 1 4T 64k".into(), "read -P 0 1T 64k".into()]);
    let image = open(&path, false).unwrap();
    let mut byte = [0];
    disk(&image).read_at(4 << 40, &mut byte).unwrap();
    assert_eq!((image.size(), byte), (5 << 40, [1]));
}

#[test]
fn a_copy_into_several_files_is_read_by_qemu() {
    let dir = scratch();
    let (raw, path) = (dir.path().join("source.raw"), dir.path().join("b\"ö.vmdk"));
    let size = (4 << 30) + 3 * 512;
    source(&raw, size, &[2 << 30, 4 << 30], &mut Rng::new(5));
    let vmdk = by_name("vmdk").unwrap();
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let options = Values::parse("vmdk", vmdk.options(), [("subformat", subformat)]).unwrap();
        let new = NewFile::prepare(&path).unwrap();
        let name = Some("b\"ö.vmdk".to_string());
        let plan = Plan { size, name, options, beside: new.beside(), ..Plan::default() };
        let sink = vmdk.sink(new.disk().clone(), &plan).unwrap();
        let before = std::fs::read_dir(dir.path()).unwrap().count();
        convert(&file(&raw), sink, Options::default(), &mut |_| ()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "nothing appears before its time");
        new.publish().unwrap();
        let said = qemu::img(&["compare", "-f", "vmdk", "-F", "raw", &text(&path), &text(&raw)]);
        assert!(said.contains("identical"), "{said}");
        let image = open(&path, false).unwrap();
        same(&disk(&image), &file(&raw));
        sound(&image);
        assert_eq!(image.facts().subformat.as_deref(), Some(subformat));
    }
}

#[test]
fn a_child_names_its_parent() {
    let dir = scratch();
    let (base, top) = (dir.path().join("base.vmdk"), dir.path().join("top.vmdk"));
    make(&base, 5 << 20, "", None).unwrap();
    qemu::io("vmdk", &base, &["write -q -P 1 100k 1M".into()]);
    for options in ["", "subformat=twoGbMaxExtentSparse"] {
        make(&top, 5 << 20, options, Some(&base)).unwrap();
        let said = qemu::img(&["compare", &text(&top), &text(&base)]);
        assert!(said.contains("identical"), "{said}");
        let told = qemu::img(&["info", "--output=json", &text(&top)]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["backing-filename"], "base.vmdk");
        let image = open(&top, true).unwrap();
        disk(&image).write_at(0, &[3; 70_000]).unwrap();
        disk(&image).flush().unwrap();
        drop(image);
        assert_eq!(qemu::img_status(&["compare", &text(&top), &text(&base)]).0, 1);
    }
    assert_eq!(
        make(&top, 5 << 20, "subformat=monolithicFlat", Some(&base)).unwrap_err().fault(),
        Some(&VmdkFault::FlatChild)
    );
    // Whoever writes to the parent makes the child's view of it wrong.
    let image = open(&base, true).unwrap();
    disk(&image).write_at(0, &[3; 512]).unwrap();
    drop(image);
    let e = open(&top, false).unwrap_err();
    assert!(matches!(e.fault(), Some(VmdkFault::ParentCid { .. })), "{e}");
}

/// A stream goes down a pipe, and what comes up one is a source.
#[test]
fn standard_input_and_output_are_source_and_target() {
    let dir = scratch();
    let (raw, path) = (dir.path().join("source.raw"), dir.path().join("a.vmdk"));
    source(&raw, (9 << 20) + 512, &[5 << 20], &mut Rng::new(6));
    let bytes = std::fs::read(&raw).unwrap();
    let stream = ["disk", "convert", "-q", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    let ran = racker().args(stream).args(["-f", "raw", &text(&raw), "-"]).run();
    assert_eq!(ran.status, 0, "{ran}");
    // As the specification has it: "the directory is at the end", and the last three sectors are the footer's
    // marker, the footer and the end of the stream.
    let number = |at: usize| u64::from_le_bytes(ran.out[at..at + 8].try_into().unwrap());
    let end = ran.out.len();
    assert_eq!((&ran.out[..4], number(56), end % 512), (&b"KDMV"[..], u64::MAX, 0));
    assert_eq!((number(end - 1536), ran.out[end - 1536 + 12]), (1, 3), "a footer of one sector follows");
    assert_eq!(&ran.out[end - 1024..end - 1020], b"KDMV");
    assert!(ran.out[end - 512..].iter().all(|b| *b == 0));
    std::fs::write(&path, &ran.out).unwrap();
    let said = qemu::img(&["compare", "-f", "vmdk", "-F", "raw", &text(&path), &text(&raw)]);
    assert!(said.contains("identical"), "{said}");
    assert!(read_by_7zip(&path) == bytes);
    // Any format comes up a pipe.
    let back = racker().args(["disk", "convert", "-q", "-", "-"]).input(ran.out.clone()).run();
    assert!(back.status == 0 && back.out == bytes, "{back}");
    let made = dir.path().join("b.qcow2");
    let to = text(&made);
    racker().args(["disk", "convert", "-q", "-f", "raw", "-O", "qcow2", "-", &to]).input(bytes.clone()).ok();
    assert!(read_by_qemu("qcow2", &made) == bytes);
    // What needs to go back is refused before anything is written, and a failed source is a failure.
    let ran = racker().args(["disk", "convert", "-q", "-O", "qcow2", &text(&path), "-"]).run();
    assert!(ran.status == 1 && ran.out.is_empty() && ran.err.contains("beginning to end"), "{ran}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
}
