//! The power fails while a file inside an image is edited: the whole way from the file to the host's disk.
//!
//! Whatever a cut leaves, the guest's disk is byte for byte the one before the edit or the one after it. So there are
//! two disks only for the foreign programs to judge.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use racker_fixtures::case;
use racker_formats::block::{BlockDevice, Disk, Span, Staged, redo};
use racker_formats::transaction::{EditDisk, Transaction, recover, redo_path};
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Content, Time};
use racker_fs::guest::{Guest, locate};
use racker_fs::inspect::Inspection;
use racker_fs::path::{Place, read_all};
use racker_tests::early::{Before, Sealed, Watched};
use racker_tests::image::{disk, open, open_disk, scratch};
use racker_tests::mount::{partitions, xfs_is_clean};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::sim::{CrashDisk, Medium, Sparse};

/// `qemu-img` looks at so many of the files that cuts leave.
const CHECKS: usize = 20;
const NOW: Time = Time { sec: 1_800_000_000, nsec: 5 };

/// An edit of a file.
#[derive(Clone, Copy, Debug)]
struct Edit {
    path: &'static str,
    size: usize,
}

/// What racker is for, on the boot partition.
const ENTRY: Edit = Edit { path: "/boot/loader/entries/ostree-1-ock.conf", size: 300 };
/// On the root: a hard link gets an inode of its own, its directory changes, blocks are allocated.
const LINK: Edit = Edit { path: "/usr/lib/os-release", size: 150_000 };

impl Edit {
    fn content(self) -> Vec<u8> {
        let mut data = vec![0; self.size];
        Rng::new(self.size as u64).fill(&mut data);
        data
    }

    fn place(self, disk: &Inspection) -> Place {
        locate(disk, Guest::find(disk).as_ref(), self.path.as_bytes(), true).unwrap().0
    }

    fn read(self, disk: &Disk) -> Vec<u8> {
        let place = self.place(&Inspection::of(disk).unwrap());
        read_all(place.fs.as_ref(), place.node, 1 << 20).unwrap()
    }

    /// Makes it.
    fn make(self, edit: &EditDisk<'_>) {
        let inspection = Inspection::of(edit.disk()).unwrap();
        let place = self.place(&inspection);
        let mut writer = inspection.volumes[place.volume].edit(edit).unwrap();
        self.change(&mut writer, &place);
        writer.close().unwrap();
    }

    fn change(self, fs: &mut Writer<'_>, place: &Place) {
        let shared = place.fs.stat(place.node).unwrap().links > 1;
        let node = match &place.entry {
            Some((folder, name)) if shared => fs.separate(*folder, name, NOW).unwrap(),
            _ => place.node,
        };
        let content = self.content();
        let content = Content { reader: &mut content.as_slice(), size: content.len() as u64 };
        fs.replace(node, content, NOW).unwrap();
    }
}

/// The guest's disk before and after an edit.
struct Guests {
    old: Sparse,
    new: Sparse,
}

impl Guests {
    /// Which of the two it is.
    fn is_new(&self, found: &Sparse, when: &str) -> bool {
        assert!(*found == self.old || *found == self.new, "neither the disk before nor after {when}");
        *found == self.new
    }

    /// Both are sound, and hold the content that they are to hold.
    fn judge(&self, edit: Edit, dir: &Path) {
        let read = |guest: &Sparse| edit.read(&Disk::new(CrashDisk::new(guest.clone())));
        assert!(read(&self.new) == edit.content());
        assert!(read(&self.old) != edit.content());
        for (guest, name) in [(&self.old, "old.raw"), (&self.new, "new.raw")] {
            let raw = dir.join(name);
            write(guest, &raw);
            let filesystems = partitions(&raw).into_iter().filter(|(number, _)| *number != 1);
            filesystems.for_each(|(_, part)| xfs_is_clean(&raw, part));
        }
    }
}

/// Writes a file with holes.
fn write(bytes: &Sparse, path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    bytes.each(|at, data| {
        let data = &data[..data.len().min(bytes.len() - at)];
        file.write_all_at(data, at as u64).unwrap();
    });
}

fn boot_qcow2(dir: &Path) -> std::path::PathBuf {
    case("ock/boot").unpack(dir);
    dir.join("boot.qcow2")
}

fn guest_of(host: &Sparse) -> Sparse {
    let image = open_disk("qcow2", Disk::new(CrashDisk::new(host.clone())), false).unwrap();
    Sparse::of(&disk(&image)).unwrap()
}

/// Edits the image in a qcow2 file, with cuts at each of the file's operations.
fn qcow2(edit: Edit) {
    let dir = scratch();
    let path = boot_qcow2(dir.path());
    let mut start = Sparse::default();
    start.put(0, &std::fs::read(&path).unwrap());
    let crash = Arc::new(CrashDisk::new(start.clone()));
    let file = Disk::from_arc(crash.clone() as Arc<dyn BlockDevice>);
    let image = open_disk("qcow2", file.clone(), true).unwrap();
    let transaction = Transaction::begin(image, &file, Some(&path), |_| panic!("qcow2 can switch")).unwrap();
    edit.make(&transaction.disk());
    transaction.commit().unwrap();
    let guests = Guests { old: guest_of(&start), new: guest_of(&crash.bytes()) };
    guests.judge(edit, dir.path());

    // Every different file: after how many operations, what it is, whether it holds the edit.
    let (mut seen, mut left) = (HashSet::new(), Vec::new());
    crash.cuts(&mut Rng::new(7), 12, |cut, host| {
        let mut hash = DefaultHasher::new();
        host.each(|at, data| (at, data).hash(&mut hash));
        if seen.insert((host.len(), hash.finish())) {
            let new = guests.is_new(&guest_of(host), &format!("after {cut} of {} operations", crash.len()));
            left.push((host.clone(), new));
        }
    });
    assert!(!left[0].1 && left[left.len() - 1].1);
    println!("{edit:?}: {} operations leave {} different files", crash.len(), left.len());

    // The others see the same: around the switch, and here and there.
    let switch = left.iter().position(|(_, new)| *new).unwrap();
    let near = |n: usize| n + CHECKS / 4 >= switch && n < switch + CHECKS / 4;
    let step = left.len().div_ceil(CHECKS / 2);
    for (_, (host, new)) in left.iter().enumerate().filter(|(n, _)| near(*n) || n % step == 0) {
        write(host, &path);
        qemu::check_leaks_only(&path);
        let guest = dir.path().join(if *new { "new.raw" } else { "old.raw" });
        let (path, guest) = (path.display().to_string(), guest.display().to_string());
        qemu::img(&["compare", "-q", "-f", "qcow2", "-F", "raw", &path, &guest]);
    }
}

/// What racker makes of `image` when it opens it for writing next to a redo file with these bytes.
fn recovered(image: &Sparse, redo: &[u8], path: &Path) -> Sparse {
    std::fs::write(redo_path(path), redo).unwrap();
    let read_only = Disk::new(CrashDisk::new(image.clone())).read_only();
    let shown = recover(path, read_only).unwrap();
    let found = Arc::new(CrashDisk::new(image.clone()));
    recover(path, Disk::from_arc(found.clone() as Arc<dyn BlockDevice>)).unwrap();
    assert!(!redo_path(path).exists());
    let found = found.bytes();
    // Who may only read is shown the same.
    found.each(|at, page| {
        let mut same = vec![0; page.len()];
        shown.read_at(at as u64, &mut same).unwrap();
        assert!(same == page);
    });
    found
}

/// The same edit of a raw disk, where the redo file is what makes it whole, and new content is stored before.
fn raw(edit: Edit) {
    let dir = scratch();
    let qcow2 = open("qcow2", &boot_qcow2(dir.path()), false).unwrap();
    let before = Before::of(Sparse::of(&disk(&qcow2)).unwrap());
    let path = dir.path().join("boot.raw");
    let image = Arc::new(CrashDisk::new(before.guest.clone()));
    let watched = Arc::new(Watched::new(image.clone(), &path));
    let file = Disk::from_arc(watched.clone() as Arc<dyn BlockDevice>);
    let reopen = |disk: Disk| open_disk("raw", disk, true);
    let transaction = Transaction::begin(reopen(file.clone()).unwrap(), &file, Some(&path), reopen).unwrap();
    edit.make(&transaction.disk());
    transaction.commit().unwrap();
    let sealed = watched.sealed().unwrap();
    assert!(before.differs(&sealed.image, "before the edit is decided"));
    let guests = Guests { old: sealed.image.clone(), new: image.bytes() };
    guests.judge(edit, dir.path());

    // While the redo file is written the image stays as it is.
    let journal = journal(edit, &before, &sealed);
    let (mut seen, mut decided) = (HashSet::new(), HashSet::new());
    journal.cuts(&mut Rng::new(8), 6, |cut, redo| {
        if seen.insert(redo.clone()) {
            let found = recovered(&guests.old, redo, &path);
            decided.insert(guests.is_new(&found, &format!("with {cut} operations of the redo file")));
        }
    });
    assert_eq!(decided.len(), 2);
    // Before, only free space changes. While it is applied the redo file is whole: the new disk it is in any case.
    let (mut last, mut count) = (None, 0);
    image.cuts(&mut Rng::new(9), 6, |cut, bytes| {
        if last.as_ref() == Some(bytes) {
            return;
        }
        let when = format!("after {cut} operations");
        if cut <= sealed.operations {
            before.differs(bytes, &when);
        } else {
            assert!(guests.is_new(&recovered(bytes, &sealed.bytes, &path), &when));
        }
        last = Some(bytes.clone());
        count += 1;
    });
    println!("{edit:?}: {} redo files, {count} disks", seen.len());
}

/// The operations that made the redo file `sealed`: it is made once more, on a disk that remembers.
fn journal(edit: Edit, before: &Before, sealed: &Sealed) -> CrashDisk {
    let old = Disk::new(CrashDisk::new(before.guest.clone()));
    let staged = Arc::new(Staged::through(old.clone()));
    let top = Disk::from_arc(staged.clone() as Arc<dyn BlockDevice>);
    let inspection = Inspection::of(&top).unwrap();
    let place = edit.place(&inspection);
    let volume = &inspection.volumes[place.volume];
    let span = volume.span().unwrap();
    // Both are XFS, whose superblock comes first.
    let gate = Span::new(span.start(), 512).unwrap();
    let part = top.slice(span).unwrap();
    assert!(part.claim(Span::first(part.size())).unwrap());
    let transaction = Transaction::overlay(old.clone());
    let part = transaction.disk().map(|_| Ok(part)).unwrap();
    let mut writer = Writer::open(volume.driver().unwrap(), &part).unwrap();
    edit.change(&mut writer, &place);
    writer.close().unwrap();
    let journal = Arc::new(CrashDisk::new(Vec::new()));
    let journal_disk = Disk::from_arc(journal.clone() as Arc<dyn BlockDevice>);
    redo::seal(&journal_disk, (&old, redo::Scope::File), &top, &staged.changes().unwrap(), &[gate]).unwrap();
    drop(journal_disk);
    assert!(journal.bytes() == sealed.bytes);
    Arc::into_inner(journal).unwrap()
}

#[test]
fn boot_entry_in_qcow2() {
    qcow2(ENTRY);
}

#[test]
fn hard_link_in_qcow2() {
    qcow2(LINK);
}

#[test]
fn boot_entry_in_raw() {
    raw(ENTRY);
}

#[test]
fn hard_link_in_raw() {
    raw(LINK);
}
