//! VMDK against `qemu-img` and `qemu-io`.

mod crash;
mod hostile;
mod live;
mod new;
mod read;
mod size;
mod spread;
mod write;

use std::path::Path;
use std::sync::Arc;

use racker_formats::block::{BlockDevice, Disk, FileDevice, Span};
use racker_formats::check::{Report, Severity};
use racker_formats::convert::NewFile;
use racker_formats::opening::{Opening, Policy, Reference, Role};
use racker_formats::options::Values;
use racker_formats::registry::{Backing, Image, Plan, by_name};
use racker_tests::rng::Rng;

/// What `qemu-img` makes, the first three written to by racker in place.
const SUBFORMATS: [&str; 6] = [
    "monolithicSparse",
    "twoGbMaxExtentSparse",
    "monolithicFlat",
    "twoGbMaxExtentFlat",
    "monolithicSparse,zeroed_grain=on",
    "streamOptimized",
];

/// Opens the image at `path`, for writing if asked.
fn open(path: &Path, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    racker_tests::image::open("vmdk", path, write)
}

/// Opens an image that names no other file.
fn open_disk(disk: Disk, write: bool) -> racker_formats::Result<Arc<dyn Image>> {
    by_name("vmdk").unwrap().open(disk, &mut Opening::new(None, Policy::Deny, write))
}

/// An opened image as a disk.
fn disk(image: &Arc<dyn Image>) -> Disk {
    Disk::from_arc(Arc::clone(image) as Arc<dyn BlockDevice>)
}

/// A path as an argument.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A host file as a disk.
fn file(path: &Path) -> Disk {
    Disk::new(FileDevice::new(std::fs::File::open(path).unwrap(), false).unwrap())
}

/// All bytes of a disk, read in one piece.
fn content(disk: &Disk) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read_at(0, &mut all).unwrap();
    all
}

/// Both disks read the same, and what either calls zero is zero in the other.
fn same(a: &Disk, b: &Disk) {
    assert_eq!(a.size(), b.size());
    let mut at = 0;
    while at < a.size() {
        let rest = Span::new(at, (a.size() - at).min(1 << 20)).unwrap();
        let (x, y) = (a.first_run(rest).unwrap(), b.first_run(rest).unwrap());
        let len = x.len.min(y.len);
        if !(x.kind.is_zero() && y.kind.is_zero()) {
            let (mut p, mut q) = (vec![1; len as usize], vec![2; len as usize]);
            a.read_at(at, &mut p).unwrap();
            b.read_at(at, &mut q).unwrap();
            assert!(p == q, "{len} bytes at {at}");
            assert!(!x.kind.is_zero() && !y.kind.is_zero() || p.iter().all(|b| *b == 0), "zero at {at}");
        }
        at += len;
    }
}

/// Makes an image with its further files, whole and visible, with options as `K=V,…`; `parent` lies beside it.
fn make(path: &Path, size: u64, options: &str, parent: Option<&Path>) -> racker_formats::Result<()> {
    let vmdk = by_name("vmdk")?;
    let options =
        Values::parse("vmdk", vmdk.options(), options.split(',').filter_map(|o| o.split_once('=')))?;
    let file = NewFile::prepare(path)?;
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let backing = parent.map(|parent| Backing {
        reference: Reference { path: name(parent), format: Some("vmdk".into()), role: Role::Backing },
        image: open(parent, false).unwrap(),
        modified: 0,
    });
    let plan =
        Plan { size, options, backing, name: Some(name(path)), beside: file.beside(), ..Plan::default() };
    drop(vmdk.create(file.disk().clone(), &plan)?);
    file.publish()
}

/// `check` finds nothing but lost space.
fn no_corruption(image: &Arc<dyn Image>) {
    let mut report = Report::default();
    image.check(&mut report).unwrap();
    assert!(report.findings.iter().all(|f| f.severity == Severity::Leak), "{:?}", report.findings);
}

/// `check` finds nothing.
fn sound(image: &Arc<dyn Image>) {
    let mut report = Report::default();
    image.check(&mut report).unwrap();
    assert_eq!(report.findings, []);
}

/// A raw disk of `size` bytes with data of all sorts, some of it around each of `places`.
fn source(path: &Path, size: u64, places: &[u64], rng: &mut Rng) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let ends = places.iter().copied().chain([0, size]);
    let random: Vec<u64> = (0..12).map(|_| rng.below(size)).collect();
    for place in ends.chain(random) {
        let len = 512 + rng.below(200_000);
        let at = (place.saturating_sub(len / 2) & !511).min(size - len);
        let mut bytes = vec![0; len as usize];
        if rng.below(2) == 0 {
            rng.fill(&mut bytes);
        } else {
            bytes.fill(rng.below(255) as u8 + 1);
        }
        file.write_all_at(&bytes, at).unwrap();
    }
}
