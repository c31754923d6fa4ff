//! New content of raw disks is stored before the edit is decided: only where that is safe, and without a trace if the
//! edit never lands.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use racker_fixtures::case;
use racker_formats::block::{BlockDevice, Disk, FileDevice};
use racker_formats::transaction::Transaction;
use racker_fs::edit::Session;
use racker_fs::filesystem::{Name, New, NewKind, Time};
use racker_fs::inspect::Inspection;
use racker_tests::early::Before;
use racker_tests::image::{disk, open, open_disk, scratch};
use racker_tests::sim::{CrashDisk, Sparse};
use racker_tests::tool::{racker, racker_at_terminal, tool};

const NOW: Time = Time { sec: 1_800_000_000, nsec: 0 };

/// Puts 3,000,000 bytes into a new file of a volume, and gives the edit up. Returns how often the file of the image was
/// written.
fn writes(guest: &Sparse, volume: impl FnOnce(&Inspection) -> usize) -> usize {
    let crash = Arc::new(CrashDisk::new(guest.clone()));
    let file = Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>);
    let reopen = |disk: Disk| open_disk("raw", disk, true);
    let image = reopen(file.clone()).unwrap();
    let transaction = Transaction::begin(image, &file, Some(Path::new("none")), reopen).unwrap();
    let edit = transaction.disk();
    let inspection = Inspection::of(edit.disk()).unwrap();
    let mut session = Session::new(&inspection, edit.clone());
    let writer = session.writer(volume(&inspection)).unwrap();
    let new = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
    let node = writer.create(writer.root(), &Name::new(b"early").unwrap(), &new, NOW).unwrap();
    writer.write(node, 0, &vec![5; 3_000_000], NOW).unwrap();
    session.close().unwrap();
    drop(edit);
    drop(transaction);
    crash.len()
}

fn sparse(path: &Path) -> Sparse {
    let file = std::fs::File::open(path).unwrap();
    Sparse::of(&Disk::new(FileDevice::new(file, false).unwrap())).unwrap()
}

#[test]
fn a_log_to_replay_holds_everything_back() {
    for (name, replays) in [("ock/boot", false), ("ock/dirty", true)] {
        let dir = scratch();
        let case = case(name);
        case.unpack(dir.path());
        let image = open("qcow2", &dir.path().join(&case.images()[0]), false).unwrap();
        let last = |inspection: &Inspection| {
            let found = inspection.volumes.iter().rposition(|v| v.driver().is_some()).unwrap();
            assert_eq!(inspection.volumes[found].facts().unwrap().replayed, replays, "{name}");
            found
        };
        assert_eq!(writes(&Sparse::of(&disk(&image)).unwrap(), last) == 0, replays, "{name}");
    }
    let dir = scratch();
    case("ext4/dirty").unpack(dir.path());
    let dirty = dir.path().join(&case("ext4/dirty").images()[0]);
    assert_eq!(writes(&sparse(&dirty), |_| 0), 0);
    tool("e2fsck").args(["-f", "-y", "-E", "journal_only"]).arg(&dirty).run();
    tool("e2fsck").args(["-f", "-y"]).arg(&dirty).run();
    assert!(writes(&sparse(&dirty), |_| 0) > 0);
}

/// A disk with a table of two partitions, the first with ext4, the second with zeroes; both begin and end so many
/// megabytes from the beginning.
fn parted(path: &Path, second: (u32, u32)) {
    tool("truncate").args(["-s", "64M"]).arg(path).ok();
    let offset = "offset=1048576,nodiscard".to_string();
    tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-E", &offset]).arg(path).arg("32M").ok();
    let mut table = vec![0u8; 512];
    for (place, (start, len)) in [(446, (1, 32)), (462, second)] {
        table[place + 4] = 0x83;
        table[place + 8..place + 12].copy_from_slice(&(start * 2048u32).to_le_bytes());
        table[place + 12..place + 16].copy_from_slice(&(len * 2048u32).to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &table, 0).unwrap();
}

#[test]
fn volumes_that_overlap_hold_everything_back() {
    let dir = scratch();
    let path = dir.path().join("parted.raw");
    for (second, alone) in [((34, 10), true), ((33, 31), true), ((30, 10), false), ((5, 2), false)] {
        parted(&path, second);
        assert_eq!(writes(&sparse(&path), |_| 0) > 0, alone, "the second at {second:?}");
    }
}

/// Bytes that a file takes on the host.
fn stored(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

/// A new image with holes, and the beginning of an archive with one large file.
fn image_and_archive(dir: &Path) -> Vec<u8> {
    tool("truncate").args(["-s", "120M"]).arg(dir.join("fs.raw")).ok();
    // One group: what is free in groups without a bitmap is not told.
    tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-b", "4096"]).arg(dir.join("fs.raw")).ok();
    std::fs::write(dir.join("large"), vec![3; 40 << 20]).unwrap();
    tool("tar").args(["-cf", "all.tar", "large"]).dir(dir).ok();
    let all = std::fs::read(dir.join("all.tar")).unwrap();
    all[..30 << 20].to_vec()
}

#[test]
fn an_archive_that_ends_too_early_leaves_no_trace() {
    let dir = scratch();
    std::fs::write(dir.path().join("cut.tar"), image_and_archive(dir.path())).unwrap();
    let path = dir.path().join("fs.raw");
    let (before, space) = (Before::of(sparse(&path)), stored(&path));
    racker().args(["disk", "tar-in", "fs.raw", "cut.tar"]).dir(dir.path()).run().failed();
    assert_eq!(stored(&path), space);
    before.differs(&sparse(&path), "behind an archive that ends too early");
    assert!(!dir.path().join("fs.raw.racker-redo").exists());
}

#[test]
fn an_interrupt_gives_the_space_back() {
    let dir = scratch();
    let archive = image_and_archive(dir.path());
    let path = dir.path().join("fs.raw");
    let (before, space) = (Before::of(sparse(&path)), stored(&path));
    let mut child =
        racker_at_terminal().args(["disk", "tar-in", "-q", "fs.raw", "-"]).dir(dir.path()).spawn();
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(&archive).unwrap();
    let begun = Instant::now();
    while stored(&path) < space + (10 << 20) {
        assert!(begun.elapsed() < Duration::from_secs(60), "content is stored as it comes");
        std::thread::sleep(Duration::from_millis(20));
    }
    tool("kill").args(["-INT", &child.id().to_string()]).ok();
    assert_eq!(child.wait().unwrap().signal(), Some(2));
    drop(pipe);
    assert_eq!(stored(&path), space);
    before.differs(&sparse(&path), "behind an interrupt");
}
