//! Reads here and there in compressed files, and from end to end: what they cost, and that they are right.

use std::os::unix::fs::FileExt;
use std::path::Path;

use racker_formats::Kind;
use racker_formats::block::Disk;
use racker_tests::rng::Rng;
use racker_tests::tool::{racker, tool};

use super::{open_at, pack};

/// Text, noise and holes in turn, as `disk.raw`.
fn dense(dir: &Path, size: u64) -> Vec<u8> {
    let mut rng = Rng::new(size);
    let mut all = Vec::new();
    while (all.len() as u64) < size {
        let len = 1 + rng.below(300_000) as usize;
        match rng.below(5) {
            0 => all.resize(all.len() + len, 0),
            1 => {
                let at = all.len();
                all.resize(at + len / 8, 0);
                rng.fill(&mut all[at..]);
            }
            _ => {
                // Words of a few letters, again and again.
                let mut words = [0; 4096];
                rng.fill(&mut words);
                let end = all.len() + len;
                while all.len() < end {
                    let at = rng.below(4000) as usize;
                    all.extend(&words[at..at + 40]);
                }
            }
        }
    }
    all.truncate(size as usize);
    all[..4096].fill(0x20);
    std::fs::write(dir.join("disk.raw"), &all).unwrap();
    all
}

/// Three threads read here and there, forwards, and at both ends.
fn reads_agree(disk: &Disk, want: &[u8], seed: u64) {
    assert_eq!(disk.size(), want.len() as u64);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                let mut rng = Rng::new(seed * 3 + thread);
                let mut at = 0;
                for turn in 0..30 {
                    let len = 1 + rng.below(200_000);
                    at = match turn % 5 {
                        0 => 0,
                        1 => want.len() as u64,
                        2 => rng.below(want.len() as u64),
                        _ => at + len,
                    };
                    at = at.min(want.len() as u64 - len);
                    let mut buf = vec![0xaa; len as usize];
                    disk.read_at(at, &mut buf).unwrap();
                    assert!(buf == want[at as usize..(at + len) as usize], "{len} bytes at {at}");
                }
            });
        }
    });
}

/// Copies `disk.raw.z` with the program, where no temporary file can be made: exactly, and in little memory.
fn copy_agrees(dir: &Path, want: &[u8]) {
    let watch = concat!(env!("CARGO_MANIFEST_DIR"), "/src/limits.py");
    let ran = tool("python3")
        .dir(dir)
        .env("TMPDIR", "/nonexistent")
        .args([watch, "60"])
        .arg(racker_tests::tool::binary())
        .args(["disk", "convert", "-O", "raw", "disk.raw.z", "copy.raw"])
        .run();
    let last = ran.err.lines().last().unwrap_or_default().to_string();
    let words: Vec<&str> = last.split_whitespace().collect();
    assert_eq!(words[1], "0", "{ran}");
    assert!(words[3].parse::<u64>().unwrap() < 128 << 10, "{last}");
    assert!(std::fs::read(dir.join("copy.raw")).unwrap() == want);
    std::fs::remove_file(dir.join("copy.raw")).unwrap();
}

#[test]
fn reads_anywhere_agree_with_the_plain_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let want = dense(at, 12_000_003);
    for (i, command) in [
        "xz -0 -T2 --block-size=2MiB -c disk.raw",
        "gzip -c disk.raw",
        "gzip -1c disk.raw",
        "pigz -p 2 -9c disk.raw",
        "python3 bgzip.py < disk.raw",
        "zstd -qc disk.raw",
        "zstd -q --long=27 -c < disk.raw",
        "pzstd -q -p 4 -c disk.raw",
        "split -b 300000 --filter='zstd -qc' disk.raw",
    ]
    .iter()
    .enumerate()
    {
        pack(at, command);
        let opened = open_at(&at.join("disk.raw.z"), None).unwrap();
        reads_agree(&opened.disk, &want, i as u64);
        copy_agrees(at, &want);
    }
    let want = dense(at, 3_000_001);
    for command in
        ["bzip2 -c disk.raw", "lbzip2 -n2 -c disk.raw", "split -b 300000 --filter='bzip2 -c' disk.raw"]
    {
        pack(at, command);
        let opened = open_at(&at.join("disk.raw.z"), None).unwrap();
        reads_agree(&opened.disk, &want, 77);
        copy_agrees(at, &want);
    }
}

/// Hints from within the file must not be needed to look at an image in it.
#[test]
fn an_image_in_a_stream_is_looked_at_without_a_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    dense(at, 10 << 20);
    tool("qemu-img").dir(at).args(["convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"]).ok();
    tool("tar").dir(at).args(["-cf", "disk.tar", "disk.qcow2"]).ok();
    for command in ["gzip -k", "zstd -qk", "bzip2 -k", "pzstd -qk"] {
        for file in ["disk.qcow2", "disk.tar"] {
            let end = match command {
                "gzip -k" => "gz",
                "bzip2 -k" => "bz2",
                _ => "zst",
            };
            let packed = format!("{file}.{end}");
            let _ = std::fs::remove_file(at.join(&packed));
            tool("bash").dir(at).args(["-c", &format!("{command} {file}")]).ok();
            let args = ["disk", "info", &packed];
            let said = racker().dir(at).env("TMPDIR", "/nonexistent").args(args).run().ok();
            assert!(said.contains("qcow2"), "{said}");
        }
    }
}

/// Frames whose headers do not say how long they are, and the table of the seekable format behind them.
const SEEKABLE: &str = r"
import struct, subprocess, sys
entries = b''
while True:
    piece = sys.stdin.buffer.read(1500000)
    if not piece:
        break
    packed = subprocess.run(['zstd', '-q', '-c'], input=piece, stdout=subprocess.PIPE, check=True).stdout
    sys.stdout.buffer.write(packed)
    entries += struct.pack('<II', len(packed), len(piece))
sys.stdout.buffer.write(struct.pack('<II', 0x184d2a5e, len(entries) + 9) + entries)
sys.stdout.buffer.write(struct.pack('<IBI', len(entries) // 8, 0, 0x8f92eab1))
";

#[test]
fn a_table_of_frames_is_used_if_it_is_true() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let want = dense(at, 9_000_000);
    std::fs::write(at.join("seekable.py"), SEEKABLE).unwrap();
    pack(at, "python3 seekable.py < disk.raw");
    let packed = at.join("disk.raw.z");
    let good = std::fs::read(&packed).unwrap();
    reads_agree(&open_at(&packed, None).unwrap().disk, &want, 5);
    copy_agrees(at, &want);
    let table = good.len() - 9 - 6 * 8;
    let word = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
    let first = word(table) as usize;
    let changed = |at: usize, to: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
        std::fs::write(&packed, bytes).unwrap();
        open_at(&packed, None).map(|opened| opened.disk)
    };
    // What is damaged in one frame is not looked at before it is read.
    let disk = changed(first + 200, word(first + 200) ^ 0x0100_1000).unwrap();
    let mut buf = vec![0; 1_500_000];
    disk.read_at(0, &mut buf).unwrap();
    assert!(buf == want[..1_500_000]);
    for place in [1_500_000, 1_500_000, 2_999_990, 2_000_000] {
        assert_eq!(disk.read_at(place, &mut [0; 10]).unwrap_err().kind(), Kind::Corrupt);
    }
    disk.read_at(3_000_000, &mut buf).unwrap();
    assert!(buf == want[3_000_000..4_500_000]);
    // A table that lies about the file is not used; one that lies about the content is found out.
    reads_agree(&changed(table, word(table) + 1).unwrap(), &want, 6);
    for by in [-1, 1] {
        let e = changed(table + 4, word(table + 4).saturating_add_signed(by)).unwrap_err();
        assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    }
}

/// A file that changes after it was opened is found out, where nothing but a look at all of it tells.
#[test]
fn a_file_that_changes_meanwhile_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let want = dense(at, 6_000_000);
    pack(at, "pigz -0 -c disk.raw");
    let disk = open_at(&at.join("disk.raw.z"), None).unwrap().disk;
    let file = std::fs::File::options().write(true).open(at.join("disk.raw.z")).unwrap();
    file.write_all_at(b"changed", 5_000_000).unwrap();
    let mut all = vec![0; want.len()];
    assert_eq!(disk.read_at(0, &mut all).unwrap_err().kind(), Kind::Corrupt);
}

/// A blank disk of 250 GiB in gzip: opening takes time, but neither room nor memory.
#[test]
#[ignore = "minutes: cargo test -p racker-tests --test all a_blank_disk_of_250 -- --ignored"]
fn a_blank_disk_of_250_gib_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    pack(at, "truncate -s 250G z; pigz -1c z");
    let watch = concat!(env!("CARGO_MANIFEST_DIR"), "/src/limits.py");
    let info =
        [watch, "3000", &racker_tests::tool::binary().display().to_string(), "disk", "info", "disk.raw.z"];
    let ran = tool("python3").dir(at).env("TMPDIR", "/nonexistent").args(info).run();
    let last = ran.err.lines().last().unwrap_or_default().to_string();
    let words: Vec<&str> = last.split_whitespace().collect();
    assert!(words[1] == "0" && words[3].parse::<u64>().unwrap() < 96 << 10, "{ran}");
}
