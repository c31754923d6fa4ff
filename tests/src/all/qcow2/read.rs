//! What others wrote reads as they read it.

use std::path::Path;

use racker_formats::block::{Disk, Span};
use racker_formats::error::Kind;
use racker_tests::qemu;
use racker_tests::rng::Rng;
use serde_json::Value;

use super::make::Recipe;
use super::{content, disk, open, runs_agree};

const MIB: u64 = 1 << 20;

/// The bytes that `qemu-img` sees in an image.
pub(super) fn as_qemu_reads(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("as-raw");
    let (from, to) = (path.display().to_string(), raw.display().to_string());
    qemu::img_in(path.parent().unwrap(), &["convert", "-q", "-O", "raw", &from, &to]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

fn reads_the_same(recipe: &Recipe) {
    let dir = tempfile::tempdir().unwrap();
    let path = recipe.make(dir.path());
    let image = open(&path, false).unwrap_or_else(|e| panic!("{recipe:?}: {e}"));
    let disk = disk(&image);
    let expected = as_qemu_reads(&path);
    let found = content(&disk);
    assert!(found == expected, "{recipe:?}");
    runs_agree(&disk, &expected);
    in_pieces(&disk, &expected);
    let facts = image.facts();
    let said: Value =
        serde_json::from_str(&qemu::img(&["info", "--output=json", &path.display().to_string()])).unwrap();
    let specific = serde_json::to_value(&facts.specific).unwrap();
    assert_eq!(specific, said["format-specific"]["data"], "{recipe:?}");
    assert_eq!(Value::from(facts.cluster_size.unwrap()), said["cluster-size"]);
    assert_eq!(facts.snapshots.len(), recipe.snapshots as usize);
}

fn in_pieces(disk: &Disk, expected: &[u8]) {
    let mut rng = Rng::new(7);
    for _ in 0..200 {
        let most = [17, 4096, 100_000][rng.below(3) as usize];
        let len = 1 + rng.below(most);
        let at = rng.below(disk.size() - len);
        let mut buf = vec![0xee; len as usize];
        disk.read_at(at, &mut buf).unwrap();
        assert!(buf == expected[at as usize..(at + len) as usize]);
    }
}

#[test]
fn every_cluster_size_and_shape() {
    for cluster_bits in 9..=21 {
        // Not a multiple of the cluster.
        let base = Recipe { cluster_bits, refcount_bits: 16, size: 5 * MIB + 512, ..Recipe::default() };
        let refcount_bits = 1 << (cluster_bits % 7);
        reads_the_same(&Recipe { refcount_bits, ..base.clone() });
        reads_the_same(&Recipe { version2: true, ..base.clone() });
        reads_the_same(&Recipe { packed: Some("zlib"), ..base.clone() });
        reads_the_same(&Recipe { packed: Some("zstd"), ..base.clone() });
        reads_the_same(&Recipe { packed: Some("zlib"), version2: true, ..base.clone() });
        reads_the_same(&Recipe { backing: true, ..base.clone() });
        reads_the_same(&Recipe { backing: true, version2: true, snapshots: 2, ..base.clone() });
        if cluster_bits >= 14 {
            reads_the_same(&Recipe { extended: true, lazy: true, ..base.clone() });
            reads_the_same(&Recipe { extended: true, backing: true, snapshots: 1, ..base.clone() });
            reads_the_same(&Recipe { extended: true, packed: Some("zstd"), ..base });
        }
    }
}

#[test]
fn an_external_data_file_is_read_from_the_same_folder_only() {
    for raw in ["on", "off"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.qcow2");
        let make = |data: &str| {
            let options = format!("data_file={data},data_file_raw={raw}");
            let full = path.display().to_string();
            qemu::img_in(dir.path(), &["create", "-q", "-f", "qcow2", "-o", &options, &full, "1M"]);
        };
        make("data");
        qemu::io(
            "qcow2",
            &path,
            &["write -P 5 0 64k".into(), "write -P 9 300k 3k".into(), "write -z 1k 2k".into()],
        );
        let image = open(&path, false).unwrap();
        assert!(content(&disk(&image)) == as_qemu_reads(&path));
        assert_eq!(image.facts().data_files, ["data"]);
        drop(image);
        make(&dir.path().join("data").display().to_string());
        assert_eq!(open(&path, false).unwrap_err().kind(), Kind::Denied);
    }
}

#[test]
fn a_backing_file_without_a_format_is_followed_only_if_it_is_raw() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let (base, full) = (dir.path().join("base"), path.display().to_string());
    std::fs::write(&base, vec![7; 100_000]).unwrap();
    // No format is recorded with `-u` in version 2 when it is taken out again.
    let create = |format| {
        qemu::img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "compat=0.10",
            "-u",
            "-b",
            "base",
            "-F",
            format,
            &full,
            "1M",
        ]);
        // Drops the backing format extension: its kind becomes one that nobody knows.
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(4).position(|w| w == 0xe279_2acau32.to_be_bytes()).unwrap();
        bytes[at] = 0x11;
        std::fs::write(&path, bytes).unwrap();
    };
    create("raw");
    let image = open(&path, false).unwrap();
    assert!(image.facts().backing.unwrap().format.is_none());
    let found = content(&disk(&image));
    assert!(found[..100_000].iter().all(|b| *b == 7) && found[100_000..].iter().all(|b| *b == 0));
    drop(image);
    qemu::img(&["create", "-q", "-f", "qcow2", &base.display().to_string(), "1M"]);
    create("qcow2");
    let e = open(&path, false).unwrap_err();
    assert_eq!(e.kind(), Kind::Denied, "{e}");
}

#[test]
fn what_cannot_be_understood_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let full = path.display().to_string();
    let secret = "secret,id=s,data=geheim";
    for (format, word) in [("aes", "AES"), ("luks", "LUKS")] {
        let options = format!("encrypt.format={format},encrypt.key-secret=s");
        let args = ["create", "-q", "--object", secret, "-f", "qcow2", "-o", &options, &full, "1M"];
        // QEMU measures how fast it derives keys, and older ones give up on a busy machine.
        let mut tries = (0..20).map(|_| qemu::img_status(&args));
        let (status, said) = tries.find(|(_, said)| !said.contains("accurate CPU usage")).unwrap();
        assert_eq!(status, 0, "{said}");
        let e = open(&path, false).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.to_string().contains(word), "{e}");
    }
    qemu::img(&["create", "-q", "-f", "qcow2", &full, "1M"]);
    let good = std::fs::read(&path).unwrap();
    let mut bytes = good.clone();
    bytes[72] = 0x80; // bit 63, without a name
    bytes[79] |= 0x10; // bit 4 is known: not to be mentioned
    let at = bytes.windows(11).position(|w| w == b"corrupt bit").unwrap();
    bytes[at - 1] = 40; // "corrupt bit" becomes the name of bit 40
    bytes[74] = 1;
    std::fs::write(&path, &bytes).unwrap();
    let e = open(&path, false).unwrap_err();
    assert_eq!(e.kind(), Kind::Unsupported);
    assert!(e.to_string().contains("\"corrupt bit\" (incompatible bit 40), incompatible bit 63"), "{e}");
    bytes = good;
    bytes[7] = 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(open(&path, false).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn a_walk_over_a_large_empty_disk_takes_few_steps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    qemu::img(&["create", "-q", "-f", "qcow2", &path.display().to_string(), "15G"]);
    qemu::io("qcow2", &path, &["write -P 1 7G 1M".into()]);
    let disk = disk(&open(&path, false).unwrap());
    let runs: Vec<_> = disk.runs(Span::first(disk.size())).map(Result::unwrap).collect();
    assert!(runs.len() < 10, "{runs:?}");
}

/// Run with `RACKER_IMAGE=boot.qcow2 RACKER_RAW=boot.raw cargo test … -- --ignored real_image`.
#[test]
#[ignore = "needs an image and its raw copy from outside"]
fn real_image_equals_its_raw_copy() {
    let path = |name| std::path::PathBuf::from(std::env::var(name).unwrap());
    let started = std::time::Instant::now();
    let disk = disk(&open(&path("RACKER_IMAGE"), false).unwrap());
    println!("open {:?}", started.elapsed());
    let runs = disk.runs(Span::first(disk.size())).map(Result::unwrap).count();
    println!("{runs} runs after {:?}", started.elapsed());
    let raw = std::fs::File::open(path("RACKER_RAW")).unwrap();
    let raw = Disk::new(racker_formats::block::FileDevice::new(raw, false).unwrap());
    assert_eq!(raw.size(), disk.size());
    let mut rest = Span::first(disk.size());
    let (mut a, mut b) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    while !rest.is_empty() {
        let piece = rest.truncate(MIB);
        let len = piece.len() as usize;
        disk.read_at(piece.start(), &mut a[..len]).unwrap();
        raw.read_at(piece.start(), &mut b[..len]).unwrap();
        assert!(a[..len] == b[..len], "{piece:?}");
        rest = rest.skip(len as u64);
    }
    println!("same after {:?}", started.elapsed());
}
