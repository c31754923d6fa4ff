//! Archives and compressed streams made by the programs that people use.

mod random;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use racker_formats::Kind;
use racker_formats::block::{Disk, FileDevice, Span};
use racker_formats::open::{MemberFault, OpenOptions, Opened, open};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

/// Larger than what eight octal digits and three can say, so that sizes come in base 256 or extended headers.
const SIZE: u64 = 9 << 30;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A raw disk of 9 GiB with some data, here and there and at both ends, as `disk.raw`.
fn source(dir: &Path, size: u64, islands: u64) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = dir.join("disk.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(size).unwrap();
    let mut rng = Rng::new(islands);
    for i in 0..=islands {
        let mut bytes = vec![0; 4096 + (rng.below(3) * 4096) as usize];
        let at = ((size - bytes.len() as u64) / islands * i) & !4095;
        rng.fill(&mut bytes);
        // Not the mark of a boot sector, nor any other.
        bytes[..512].fill(0x20);
        file.write_all_at(&bytes, at.min(size - bytes.len() as u64)).unwrap();
    }
    path
}

fn open_at(path: &Path, member: Option<&str>) -> racker_formats::Result<Opened> {
    open(path, &OpenOptions { member, ..OpenOptions::default() })
}

/// The disk in the container reads as the raw one, and most of its holes are holes.
fn same(container: &Path, member: Option<&str>, raw: &Path) {
    let opened = open_at(container, member).unwrap_or_else(|e| panic!("{}: {e}", container.display()));
    assert!(opened.in_container());
    let want = Disk::new(FileDevice::new(std::fs::File::open(raw).unwrap(), false).unwrap());
    assert_eq!(opened.disk.size(), want.size());
    let (mut holes, mut at) = (0, 0);
    while at < want.size() {
        let rest = Span::new(at, (want.size() - at).min(1 << 20)).unwrap();
        let (a, b) = (want.first_run(rest).unwrap(), opened.disk.first_run(rest).unwrap());
        let len = a.len.min(b.len);
        if b.kind.is_zero() {
            holes += len;
        }
        if !(a.kind.is_zero() && b.kind.is_zero()) {
            let (mut p, mut q) = (vec![1; len as usize], vec![2; len as usize]);
            want.read_at(at, &mut p).unwrap();
            opened.disk.read_at(at, &mut q).unwrap();
            assert!(p == q, "{}: {len} bytes at {at}", container.display());
        }
        at += len;
    }
    // What an index of short blocks says is not gone through when it is opened: nobody knows of holes there.
    if opened.layers[0].kinds[0] != "xz" {
        assert!(holes > want.size() / 2, "{}: {holes} bytes of holes", opened.stack());
    }
}

#[test]
fn tars_with_sparse_members_of_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let raw = source(dir.path(), SIZE, 200);
    let gnu =
        |args: &[&str]| tool("tar").dir(dir.path()).args(args).args(["-cf", "disk.tar", "disk.raw"]).ok();
    let archive = dir.path().join("disk.tar");
    for args in [
        &["-S", "--format=gnu"][..],
        &["-S", "--format=oldgnu"],
        &["-S", "--format=pax", "--sparse-version=0.0"],
        &["-S", "--format=pax", "--sparse-version=0.1"],
        &["-S", "--format=pax", "--sparse-version=1.0"],
    ] {
        gnu(args);
        same(&archive, None, &raw);
    }
    tool("bsdtar").dir(dir.path()).args(["-cf", "disk.tar", "./disk.raw"]).ok();
    same(&archive, None, &raw);
    // Few regions fit into a header, more into blocks behind it, none at all in a blank disk.
    for islands in [1, 3, 4, 24, 26] {
        let raw = source(dir.path(), 64 << 20, islands);
        gnu(&["-S", "--format=gnu"]);
        same(&archive, None, &raw);
    }
    std::fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
    for form in ["--format=gnu", "--format=pax"] {
        gnu(&["-S", form]);
        same(&archive, None, &raw);
    }
}

#[test]
fn long_names_other_members_and_compressed_ones() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "folder-with-a-long-name/".repeat(8), "d".repeat(120));
    let deep = dir.path().join(&long);
    std::fs::create_dir_all(&deep).unwrap();
    let raw = source(dir.path(), 4 << 20, 3);
    std::fs::rename(&raw, deep.join("disk.raw")).unwrap();
    std::fs::write(dir.path().join("metadata.json"), "{}").unwrap();
    std::fs::write(dir.path().join("box.ovf"), "<?xml version=\"1.0\"?>").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link.raw")).unwrap();
    let archive = dir.path().join("x.tar");
    for format in ["--format=gnu", "--format=pax"] {
        let args =
            [format, "-S", "-cf", "x.tar", "metadata.json", "box.ovf", "link.raw", "folder-with-a-long-name"];
        tool("tar").dir(dir.path()).args(args).ok();
        same(&archive, None, &deep.join("disk.raw"));
        same(&archive, Some(&format!("./{long}/disk.raw")), &deep.join("disk.raw"));
        same(&archive, Some("disk.raw"), &deep.join("disk.raw"));
        let e = open_at(&archive, Some("nobody")).unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound, "{e}");
    }
    tool("gzip").arg("-k").arg(deep.join("disk.raw")).ok();
    let folder = text(&deep);
    tool("tar").args(["-cf", &text(&archive), "-C", &folder, "disk.raw.gz"]).ok();
    same(&archive, None, &deep.join("disk.raw"));
    tool("tar").args(["-cf", &text(&archive), "-C", &folder, "disk.raw.gz", "disk.raw"]).ok();
    let e = open_at(&archive, None).unwrap_err();
    assert!(matches!(e.fault(), Some(MemberFault::Several(names)) if names.len() == 2), "{e}");
    same(&archive, Some("disk.raw.gz"), &deep.join("disk.raw"));
    let e = open(&archive, &OpenOptions { write: true, member: Some("disk.raw"), ..OpenOptions::default() })
        .unwrap_err();
    assert_eq!(e.kind(), Kind::ReadOnly, "{e}");
}

/// How each program packs `disk.raw` into `disk.raw.z`.
const PACKERS: [(&str, &str); 17] = [
    ("gzip", "gzip -c disk.raw"),
    (
        "gzip, members",
        "head -c 5000000 disk.raw | gzip -c; tail -c +5000001 disk.raw | gzip -9c; head -c 700 /dev/zero",
    ),
    ("xz", "xz -c disk.raw"),
    ("xz, blocks", "xz -T2 --block-size=1MiB --check=sha256 -c disk.raw"),
    (
        "xz, streams",
        "head -c 5000000 disk.raw | xz -c; head -c 12 /dev/zero; tail -c +5000001 disk.raw | xz -0 --check=crc32 -c",
    ),
    ("zstd", "zstd -qc disk.raw"),
    (
        "zstd, frames",
        "head -c 5000000 disk.raw | zstd -19 -qc; tail -c +5000001 disk.raw | zstd -1 --no-check -qc",
    ),
    ("bzip2", "bzip2 -c disk.raw"),
    ("bzip2, streams", "head -c 5000000 disk.raw | bzip2 -c; tail -c +5000001 disk.raw | bzip2 -1c"),
    ("pigz", "pigz -p 2 -b 128 -c disk.raw"),
    (
        "pigz, members",
        "for i in 0 1 2 3; do tail -c +$((i*3145728+1)) disk.raw | head -c 3145728 | pigz -c; done",
    ),
    // As bgzip does it: members of 64 KiB with an extra field, and an empty one behind them.
    ("gzip, blocks", "python3 bgzip.py < disk.raw"),
    // As with 'rsyncable': a block that ends every now and then.
    ("pigz, stored", "pigz -0 -c disk.raw"),
    ("zstd, long", "zstd -q --long=27 -12 -c disk.raw"),
    ("pzstd", "pzstd -q -p 4 -1 -c disk.raw"),
    ("pbzip2", "pbzip2 -p2 -b1 -c disk.raw"),
    ("lbzip2", "lbzip2 -n2 -c disk.raw"),
];

/// What bgzip makes of its input, by a library of somebody else.
const BGZIP: &str = r"
import sys, zlib, struct
while True:
    piece = sys.stdin.buffer.read(0xff00)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(piece) + packer.flush()
    head = b'\x1f\x8b\x08\x04' + bytes(5) + b'\xff\x06\x00BC\x02\x00' + struct.pack('<H', len(body) + 25)
    sys.stdout.buffer.write(head + body + struct.pack('<II', zlib.crc32(piece), len(piece)))
    if not piece:
        break
";

fn read_all(disk: &Disk) -> racker_formats::Result<Vec<u8>> {
    let mut all = vec![0; disk.size() as usize];
    for (i, part) in all.chunks_mut(64 << 10).enumerate() {
        disk.read_at((i << 16) as u64, part)?;
    }
    Ok(all)
}

/// A file with an index of its blocks is expanded where it is read: what is damaged elsewhere does not matter.
#[test]
fn blocks_of_xz_are_expanded_when_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let raw = source(dir.path(), 8 << 20, 300);
    let pack = "xz -0 --block-size=1MiB disk.raw -c > disk.raw.xz";
    tool("bash").dir(dir.path()).args(["-c", pack]).ok();
    let packed = dir.path().join("disk.raw.xz");
    let list = tool("xz").args(["--robot", "-lvv"]).arg(&packed).ok();
    let blocks: Vec<Vec<&str>> =
        list.lines().filter(|l| l.starts_with("block")).map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(blocks.len(), 8);
    // Block, stream, number in the stream, in the file, offset in the file, offset in the content.
    let hurt: usize = blocks[4][4].parse().unwrap();
    let mut bytes = std::fs::read(&packed).unwrap();
    bytes[hurt + 100] ^= 0x10;
    std::fs::write(&packed, bytes).unwrap();
    let disk = open_at(&packed, None).unwrap().disk;
    let good = std::fs::read(raw).unwrap();
    let mut buf = vec![0; 1 << 20];
    for number in [7, 0, 5, 3, 3] {
        disk.read_at(number << 20, &mut buf).unwrap();
        assert!(buf == good[(number as usize) << 20..(number as usize + 1) << 20]);
    }
    for at in [4 << 20, (4 << 20) - 1, (5 << 20) - 4096] {
        assert_eq!(disk.read_at(at, &mut buf[..4096]).unwrap_err().kind(), Kind::Corrupt);
    }
}

/// Runs a packer in `dir`.
fn pack(dir: &Path, command: &str) {
    std::fs::write(dir.join("bgzip.py"), BGZIP).unwrap();
    tool("bash").dir(dir).args(["-c", &format!("({command}) > disk.raw.z")]).ok();
}

#[test]
fn streams_of_every_packer() {
    let dir = tempfile::tempdir().unwrap();
    let raw = source(dir.path(), 12 << 20, 100);
    let packed = dir.path().join("disk.raw.z");
    let good = std::fs::read(&raw).unwrap();
    for (name, command) in PACKERS {
        pack(dir.path(), command);
        same(&packed, None, &raw);
        let whole = std::fs::read(&packed).unwrap();
        // A stream that is cut is an error wherever it is cut, except between two streams.
        for part in 1..12 {
            let cut = whole.len() / 12 * part;
            std::fs::write(&packed, &whole[..cut]).unwrap();
            let e = open_at(&packed, None).map(|o| o.stack()).unwrap_err();
            assert_eq!(e.kind(), Kind::Corrupt, "{name} cut at {cut}: {e}");
        }
        // A byte that changed is found by the checksum.
        let mut rng = Rng::new(9);
        for _ in 0..12 {
            let mut bad = whole.clone();
            let at = 64 + rng.below(bad.len() as u64 - 128) as usize;
            bad[at] ^= 1 << rng.below(8);
            std::fs::write(&packed, &bad).unwrap();
            // Where nothing depends on the byte, such as the time in a header, or where there is no checksum.
            let read = open_at(&packed, None).and_then(|o| read_all(&o.disk));
            let unsure = name == "zstd, frames";
            assert!(unsure || read.is_err() || read.is_ok_and(|all| all == good), "{name}: byte {at}");
        }
    }
}

#[test]
fn damaged_tars_end_in_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    source(dir.path(), 1 << 20, 30);
    let archive = dir.path().join("disk.tar");
    let mut rng = Rng::new(4);
    for form in [
        "--format=gnu",
        "--format=pax --sparse-version=0.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax",
    ] {
        let args = form.split(' ').chain(["-S", "-cf", "disk.tar", "disk.raw"]);
        tool("tar").dir(dir.path()).args(args).ok();
        let good = std::fs::read(&archive).unwrap();
        for _ in 0..700 {
            let mut bad = good.clone();
            // Digits are where numbers are; a new checksum lets the rest of a header be looked at.
            for _ in 0..=rng.below(6) {
                let at = rng.below(4096) as usize;
                bad[at] = match rng.below(4) {
                    0 => b'0' + rng.below(10) as u8,
                    1 => 0xff,
                    2 => 0,
                    _ => rng.number() as u8,
                };
            }
            for header in [0, 1024, 1536, 2048] {
                if &bad[header + 257..header + 262] == b"ustar" {
                    bad[header + 148..header + 156].fill(b' ');
                    let sum: u32 = bad[header..header + 512].iter().map(|b| u32::from(*b)).sum();
                    bad[header + 148..header + 154].copy_from_slice(format!("{sum:06o}").as_bytes());
                }
            }
            std::fs::write(&archive, &bad).unwrap();
            let began = Instant::now();
            if let Ok(opened) = open_at(&archive, None) {
                let mut buf = [0; 4096];
                let _ = opened.disk.runs(Span::first(opened.disk.size())).take(1000).count();
                let _ = opened.disk.read_at(opened.disk.size().saturating_sub(4096), &mut buf);
            }
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        for cut in (0..good.len()).step_by(419) {
            std::fs::write(&archive, &good[..cut]).unwrap();
            let _ = open_at(&archive, None);
        }
    }
}

/// A blank disk of any size is a small stream; it must stay small when it is expanded.
#[test]
fn a_blank_disk_takes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("disk.raw.zst");
    tool("bash").args(["-c", &format!("head -c 4294967296 /dev/zero | zstd -qc > {}", text(&packed))]).ok();
    let opened = open_at(&packed, None).unwrap();
    assert_eq!(opened.disk.size(), 4 << 30);
    assert!(opened.disk.first_run(Span::first(4 << 30)).unwrap().kind.is_zero());
    let limited = OpenOptions { expand_max: Some(1 << 30), ..OpenOptions::default() };
    assert_eq!(open(&packed, &limited).unwrap_err().kind(), Kind::Unsupported);
}
