//! Damaged filesystems: an edit is refused, fails, or goes on; it never panics, hangs or takes much memory.

use std::io::Read;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use racker_formats::block::{Disk, MemDevice, Span};
use racker_formats::check::{Report, Severity};
use racker_formats::transaction::Transaction;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Content, Name, New, NewKind, NodeId, NodeKind, Time};
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use super::{Patient, driver, number};

const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

/// A small filesystem with something of everything.
fn populated(options: &str) -> Vec<u8> {
    let patient = Patient::make("6M", options);
    {
        let mounted = Mounted::writable(&patient.path, WHOLE);
        for i in 0..60 {
            std::fs::write(mounted.join(&format!("a-longer-file-name-{i}")), vec![i; 100 * usize::from(i)])
                .unwrap();
        }
        std::fs::create_dir(mounted.join("d")).unwrap();
        let sparse = std::fs::File::create(mounted.join("d/sparse")).unwrap();
        for i in 0..200 {
            std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", i * 5000).unwrap();
        }
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 900 << 20).unwrap();
        std::os::unix::fs::symlink("x".repeat(200), mounted.join("d/link")).unwrap();
        std::fs::hard_link(mounted.join("d/sparse"), mounted.join("d/again")).unwrap();
        for text in ["d", "a-longer-file-name-1"] {
            let set = tool("setfattr").args(["-n", "user.k", "-v", &"v".repeat(300)]);
            set.arg(mounted.join(text)).ok();
        }
    }
    let mut bytes = Vec::new();
    std::fs::File::open(&patient.path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// All that an editor can do, with nodes as they come.
fn edit(fs: &mut Writer<'_>, rng: &mut Rng) {
    let root = fs.filesystem().root();
    let mut all: Vec<(NodeId, Name, NodeId, NodeKind)> = Vec::new();
    let mut dirs = vec![root];
    let mut at = 0;
    while at < dirs.len().min(20) {
        let dir = dirs[at];
        let mut list = Vec::new();
        let _ = fs.filesystem().read_dir(dir, &mut |entry| {
            list.push((entry.name, entry.node));
            Ok(if list.len() < 300 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        for (name, node) in list {
            let Ok(stat) = fs.filesystem().stat(node) else { continue };
            if stat.kind == NodeKind::Dir {
                dirs.push(node);
            }
            all.push((dir, name, node, stat.kind));
        }
        at += 1;
    }
    if all.is_empty() {
        return;
    }
    let files: Vec<_> = all.iter().filter(|(.., kind)| *kind == NodeKind::File).cloned().collect();
    for step in 0..60 {
        let dir = dirs[rng.below(dirs.len() as u64) as usize];
        let new = Name::new(format!("new-{step}-{}", rng.number()).as_bytes()).unwrap();
        let action = rng.below(10);
        let among = if (3..7).contains(&action) && !files.is_empty() { &files } else { &all };
        let (from, name, node, _) = among[rng.below(among.len() as u64) as usize].clone();
        let kind = if step % 3 == 0 { NewKind::Dir } else { NewKind::Link(&[b'l'; 100]) };
        let new_node = New { kind, mode: 0, uid: 0, gid: 0 };
        // Many name what is gone or is something else: that is refused, and no harm.
        let _ = match action {
            0 => fs.create(dir, &new, &new_node, NOW).map(drop),
            1 => fs.unlink(from, &name, NOW),
            2 => fs.rename((from, &name), (dir, &new), NOW),
            3 => fs.write(node, rng.below(1 << 22), &[1; 9000], NOW),
            4 => fs.truncate(node, rng.below(1 << 20), NOW),
            5 => fs.punch(node, Span::new(rng.below(1 << 20), 50_000).unwrap(), NOW),
            6 => {
                let data = [3; 70_000];
                fs.replace(node, Content { reader: &mut &data[..], size: 70_000 }, NOW)
            }
            7 => fs.set_xattr(node, b"user.new", Some(&[1; 400]), NOW),
            8 => fs.link(node, dir, &new, NOW),
            _ => fs.separate(from, &name, NOW).map(drop),
        };
    }
}

/// Bytes that are not all zero are where metadata is; what is changed there is one to eight of them.
fn damage(bytes: &mut [u8], places: &[usize], rng: &mut Rng) {
    for _ in 0..=rng.below(8) {
        // Tables come first, directories and trees lie among the files.
        let early = places.partition_point(|at| *at < 200 << 10);
        let end = if rng.below(4) > 0 { early } else { places.len() };
        let block = places[rng.below(end as u64) as usize];
        let at = block + rng.below(512) as usize;
        let odd = [0, 1, 0xff, 0x7f, 0x80, rng.number() as u8][rng.below(6) as usize];
        for i in 0..1 + rng.below(4) as usize {
            bytes[(at + i).min(block + 511)] = odd;
        }
    }
}

fn attack(options: &str, rounds: u64, seed: u64) {
    let base = populated(options);
    // File content is no attack: the blocks of metadata come early, and are not full of one byte.
    let is_meta = |s: &[u8]| s.iter().any(|b| *b != 0) && s.iter().any(|b| *b != s[0]);
    let places: Vec<usize> =
        (2..base.len() / 512).map(|n| n * 512).filter(|at| is_meta(&base[*at..at + 512])).collect();
    let mut rng = Rng::new(seed);
    let (mut refused, mut failed, mut went) = (0, 0, 0);
    for round in 0..rounds {
        let mut bytes = base.clone();
        damage(&mut bytes, &places, &mut rng);
        let start = Instant::now();
        let transaction = Transaction::overlay(Disk::new(MemDevice::from_bytes(bytes)));
        let disk = transaction.disk();
        match Writer::open(driver(), &disk) {
            Err(_) => refused += 1,
            Ok(mut fs) => {
                edit(&mut fs, &mut rng);
                if fs.close().is_ok() {
                    went += 1;
                    let mut report = Report::default();
                    driver().check(transaction.finish().unwrap(), &mut report).unwrap();
                    let worst = report.worst();
                    assert_ne!(worst, Some(Severity::Corruption), "{options}: {round}: {report:?}");
                } else {
                    failed += 1;
                }
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{options}: round {round} takes long");
    }
    println!("{options}: {refused} refused, {failed} failed, {went} went through");
}

const FORMS: [&str; 5] = [
    "-t ext4 -b 1024 -O ^metadata_csum,^64bit",
    "-t ext2 -b 1024",
    "-t ext4 -b 1024 -N 512",
    "-t ext4 -b 1024 -O bigalloc,^metadata_csum -C 4096 -N 256",
    "-t ext4 -b 1024 -O inline_data,^metadata_csum",
];

#[test]
fn damage_never_makes_an_edit_panic_or_hang() {
    for options in FORMS {
        attack(options, 80, 1);
    }
}

/// `ROUNDS=5000 SEED=1 cargo test -p racker-tests ext4::hostile::long -- --ignored --nocapture`
#[test]
#[ignore = "minutes"]
fn long_damage() {
    for options in FORMS {
        attack(options, number("ROUNDS", 5000), number("SEED", 1));
    }
}

/// e2fsck's own test images, damaged on purpose: none makes an edit panic or hang.
/// `E2FSPROGS=…/e2fsprogs/tests cargo test -p racker-tests ext4::hostile::images -- --ignored --nocapture`
#[test]
#[ignore = "needs the source of e2fsprogs"]
fn images_of_e2fsck() {
    let folder = std::path::PathBuf::from(std::env::var_os("E2FSPROGS").unwrap());
    let mut rng = Rng::new(1);
    let mut all: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path().join("image.gz")).collect();
    all.retain(|path| path.is_file());
    all.sort();
    for path in all {
        let bytes = tool("gzip").arg("-dc").arg(&path).run().out;
        let name = path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let start = Instant::now();
        let transaction = Transaction::overlay(Disk::new(MemDevice::from_bytes(bytes)));
        let disk = transaction.disk();
        match Writer::open(driver(), &disk) {
            Err(e) => println!("{name}: {e}"),
            Ok(mut fs) => {
                edit(&mut fs, &mut rng);
                match fs.close() {
                    Ok(()) => println!("{name}: went through"),
                    Err(e) => println!("{name}: an operation failed: {e}"),
                }
            }
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{name} takes long");
    }
}
