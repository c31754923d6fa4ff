//! Images through the library, for the tests of every format.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::Kind;
use racker_formats::block::{BlockDevice, Disk, FileDevice, Span};
use racker_formats::check::Report;
use racker_formats::opening::{Opening, Policy, Reference, Role};
use racker_formats::options::Values;
use racker_formats::registry::{Backing, Image, Plan, by_name};
use racker_formats::transaction::Transaction;
use racker_fs::edit::Writer;
use racker_fs::filesystem::Driver;

use tempfile::TempDir;

use crate::qemu;
use crate::tool::tool;

/// A folder for images, in memory where there is room: thousands of flushes to a real disk take minutes.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.or_else(|_| tempfile::tempdir()).expect("a folder for temporary files")
}

/// Opens the image at `path`, for writing if asked. A lock that somebody holds is waited for: what another thread
/// starts holds copies of our descriptors, locks included, until it has become another program.
pub fn open(format: &str, path: &Path, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    for _ in 0..20 {
        match open_once(format, path, write) {
            Err(e) if e.kind() == Kind::Busy => std::thread::sleep(std::time::Duration::from_millis(50)),
            done => return done,
        }
    }
    open_once(format, path, write)
}

fn open_once(format: &str, path: &Path, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    let file = std::fs::File::options().read(true).write(write).open(path).expect("an image to open");
    let disk = Disk::new(FileDevice::new(file, write).expect("a regular file"));
    by_name(format)?.open(disk, &mut Opening::new(Some(path), Policy::SameFolder, write))
}

/// Opens an image that names no other file.
pub fn open_disk(format: &str, disk: Disk, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    by_name(format)?.open(disk, &mut Opening::new(None, Policy::Deny, write))
}

/// A raw disk at `path`.
pub fn raw_disk(path: &Path, write: bool) -> Disk {
    let file = std::fs::File::options().read(true).write(write).open(path).expect("a disk to open");
    Disk::new(FileDevice::new(file, write).expect("a regular file"))
}

/// One edit of the filesystem that is all of the raw disk at `path`: all of it lands.
pub fn edit_raw<T>(path: &Path, driver: &'static dyn Driver, edit: impl FnOnce(&mut Writer<'_>) -> T) -> T {
    let file = raw_disk(path, true);
    let reopen = |disk: Disk| open_disk("raw", disk, true);
    let image = reopen(file.clone()).expect("a raw disk");
    let transaction = Transaction::begin(image, &file, Some(path), reopen).expect("an edit that begins");
    let disk = transaction.disk();
    assert!(disk.disk().claim(Span::first(disk.disk().size())).expect("a disk that nobody has"));
    let mut writer = Writer::open(driver, &disk).expect("a filesystem that can be written");
    let done = edit(&mut writer);
    writer.close().expect("an edit that ends");
    transaction.commit().expect("an edit that lands");
    done
}

/// Makes an image at `path`, with options as `K=V,…`; `parent` lies in the same folder.
pub fn create(
    format: &str,
    path: &Path,
    size: u64,
    options: &str,
    parent: Option<&Path>,
) -> racker_formats::Result<Arc<dyn Image>> {
    let format = by_name(format)?;
    let pairs = options.split(',').filter_map(|o| o.split_once('='));
    let options = Values::parse(format.name(), format.options(), pairs)?;
    let backing = match parent {
        None => None,
        Some(parent) => Some(Backing {
            reference: Reference {
                path: parent.file_name().expect("a file").to_string_lossy().into_owned(),
                format: Some(format.name().into()),
                role: Role::Backing,
            },
            image: open(format.name(), parent, false)?,
            modified: 1_000_000_000,
        }),
    };
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(path);
    let disk = Disk::new(FileDevice::new(file.expect("a new file"), true).expect("a regular file"));
    format.create(disk, &Plan { size, options, backing, ..Plan::default() })
}

/// An opened image as a disk.
pub fn disk(image: &Arc<dyn Image>) -> Disk {
    Disk::from_arc(Arc::clone(image) as Arc<dyn BlockDevice>)
}

/// All bytes of a disk, read in one piece.
pub fn content(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(disk.size()).expect("a small disk")];
    disk.read_at(0, &mut all).expect("a disk that can be read");
    all
}

/// All bytes of the disk in the image at `path`.
pub fn read(format: &str, path: &Path) -> Vec<u8> {
    content(&disk(&open(format, path, false).expect("an image that can be opened")))
}

/// Every run that says zero must read as zeroes, and the runs cover the disk.
pub fn runs_agree(disk: &Disk, content: &[u8]) {
    let mut at = 0;
    for run in disk.runs(Span::first(disk.size())) {
        let (span, kind) = run.expect("runs of a sound disk");
        assert_eq!(span.start(), at);
        at = span.end();
        let part = &content[span.start() as usize..span.end() as usize];
        assert!(!kind.is_zero() || part.iter().all(|b| *b == 0), "{span:?} {kind:?}");
    }
    assert_eq!(at, disk.size());
}

/// What racker's own check finds, in words.
pub fn findings(format: &str, path: &Path, repair: bool) -> Vec<String> {
    let image = open(format, path, repair).expect("an image that can be opened");
    let mut report = Report { repair, ..Report::default() };
    image.check(&mut report).expect("a check that ends");
    report.findings.into_iter().map(|f| f.what).collect()
}

/// What `qemu-img` reads from an image.
pub fn read_by_qemu(format: &str, path: &Path) -> Vec<u8> {
    let raw = PathBuf::from(format!("{}.qemu-raw", path.display()));
    let (from, to) = (path.display().to_string(), raw.display().to_string());
    qemu::img(&["convert", "-q", "-f", format, "-O", "raw", &from, &to]);
    let bytes = std::fs::read(&raw).expect("what qemu-img wrote");
    std::fs::remove_file(&raw).expect("a file of ours");
    bytes
}

/// What 7-Zip reads from an image, parents in the same folder included.
pub fn read_by_7zip(path: &Path) -> Vec<u8> {
    let ran = tool("7zz").args(["e", "-so", "-bd"]).arg(path).run();
    assert_eq!(ran.status, 0, "{}", ran.err);
    ran.out
}

/// A chain of three images in `dir`, written by hand; returns what the last one, `image.FORMAT`, holds.
pub fn chain(format: &str, dir: &Path, size: u64, block: u64, seed: u64) -> Vec<u8> {
    chain_of_sectors(format, dir, size, block, seed, 512)
}

/// The same with sectors of `sector` bytes.
pub fn chain_of_sectors(format: &str, dir: &Path, size: u64, block: u64, seed: u64, sector: u64) -> Vec<u8> {
    let script = racker_fixtures::root().join("mk/differencing.py");
    let numbers = [size, block, seed, sector].map(|n| n.to_string());
    tool("python3").arg(script).arg(format).arg(dir).args(numbers).ok();
    std::fs::read(dir.join("want.raw")).expect("what the script wrote")
}
