//! The same random operations through racker on one filesystem and through the kernel on another: both show the same
//! tree all the time, the checkers find nothing, and the kernel goes on where racker stopped, and racker after it.

mod forms;
mod kernel;
mod op;
mod ours;
mod plan;
mod tree;

use std::path::{Path, PathBuf};
use std::time::Instant;

use racker_formats::block::Disk;
use racker_fs::drivers::DRIVERS;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Driver, Filesystem};
use racker_tests::image::{edit_raw, raw_disk, scratch};
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::tool::tool;
use tempfile::TempDir;

use self::kernel::Folder;
use self::op::{Op, Outcome};
use self::plan::{Plan, Style, Theme};
use self::tree::Tree;

/// Bytes that have to be free for the kernel to write files: an operation that it gives up half-way is no operation.
const ROOM: u64 = 96 << 20;
/// Inodes that have to be free for it to make some.
const INODES: u64 = 3000;

/// A way to make a filesystem.
#[derive(Clone, Copy, Debug)]
struct Form {
    driver: &'static str,
    /// What makes it, and its size.
    make: &'static str,
    size: &'static str,
    /// What makes the other one, which is never full.
    twin: &'static str,
    /// Entries of the largest directory.
    crowd: usize,
    style: Style,
}

const FULL: Style = Style { full: true, nodes: 2500, write: 200_000, reach: 8 << 30, value: 900, fine: true };

const XFS: Form = Form {
    driver: "xfs",
    make: "mkfs.xfs -q -i maxpct=2 -m rmapbt=1 -i nrext64=1",
    size: "512M",
    twin: "mkfs.xfs -q",
    crowd: 100_000,
    style: Style { value: 60_000, ..FULL },
};

const EXT4: Form = Form {
    driver: "ext4",
    make: "mke2fs -q -F -t ext4 -b 4096 -N 12000",
    size: "512M",
    twin: "mke2fs -q -F -t ext4 -b 4096 -I 256",
    crowd: 100_000,
    style: FULL,
};

const FAT: Form = Form {
    driver: "vfat",
    make: "mkfs.vfat -F 32 -s 1",
    size: "80M",
    twin: "",
    // More than 65,536 no directory has. fsck.vfat takes its time for them: one filesystem is enough.
    crowd: 66_000,
    style: Style { full: false, nodes: 700, write: 100_000, reach: 200_000, value: 0, fine: false },
};

/// Filesystems of 25,000 operations each.
const FORMS_OF_XFS: &[Form] = &[
    XFS,
    Form { make: "mkfs.xfs -q -i maxpct=2 -b size=1024 -m rmapbt=1", ..XFS },
    Form { make: "mkfs.xfs -q -i maxpct=2 -m finobt=0,inobtcount=0,reflink=0 -n size=16384", ..XFS },
    Form { make: "mkfs.xfs -q -i size=1024,maxpct=3 -d agcount=20 -l size=16m", ..XFS },
];

const FORMS_OF_EXT4: &[Form] = &[
    EXT4,
    Form {
        make: "mke2fs -q -F -t ext4 -b 1024 -O inline_data,large_dir,orphan_file -I 512 -N 12000",
        // No inline data: the kernel forgets to tell of some that it has not written back.
        style: Style { reach: 64 << 20, ..FULL },
        ..EXT4
    },
    Form {
        make: "mke2fs -q -F -t ext3 -b 4096 -I 128 -N 12000",
        twin: "mke2fs -q -F -t ext3 -b 4096 -I 128",
        style: Style { fine: false, ..FULL },
        ..EXT4
    },
    Form {
        make: "mke2fs -q -F -t ext4 -b 4096 -O bigalloc,ea_inode,^metadata_csum -C 16384 -N 12000",
        twin: "mke2fs -q -F -t ext4 -b 4096 -O ea_inode",
        style: Style { value: 40_000, ..FULL },
        ..EXT4
    },
];

const FORMS_OF_FAT: &[Form] = &[
    FAT,
    Form { make: "mkfs.vfat -F 16 -s 4 -r 512", size: "64M", crowd: 5000, ..FAT },
    Form { make: "mkfs.vfat -F 12 -S 4096 -s 1 -r 128", size: "6000K", crowd: 5000, ..FAT },
    Form { make: "mkfs.vfat -F 32 -S 4096 -s 1 -f 1", size: "300M", crowd: 5000, ..FAT },
];

/// The filesystem under test.
struct Subject {
    _dir: TempDir,
    path: PathBuf,
    driver: &'static dyn Driver,
    full: bool,
}

fn make(command: &str, path: &Path, size: &str) {
    let mut words = command.split(' ');
    tool("truncate").args(["-s", size]).arg(path).ok();
    let program = tool(words.next().unwrap());
    // mkfs.xfs makes small filesystems, and logs, for those who test.
    let program = program.env("TEST_DIR", "1").env("TEST_DEV", "1").env("QA_CHECK_FS", "1");
    program.args(words).arg(path).ok();
}

impl Subject {
    fn new(form: &Form) -> Self {
        let dir = scratch();
        let path = dir.path().join("fs.raw");
        make(form.make, &path, form.size);
        let driver = *DRIVERS.iter().find(|d| d.name() == form.driver).unwrap();
        Self { _dir: dir, path, driver, full: form.style.full }
    }

    fn disk(&self, write: bool) -> Disk {
        raw_disk(&self.path, write)
    }

    /// One edit: all of it lands.
    fn edit<T>(&self, edit: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        edit_raw(&self.path, self.driver, edit)
    }

    fn read<T>(&self, look: impl FnOnce(&dyn Filesystem) -> T) -> T {
        look(self.driver.open(self.disk(false)).unwrap().as_ref())
    }

    fn tree(&self) -> Tree {
        self.read(|fs| Tree::ours(fs, self.full))
    }

    /// Fails unless the checkers of others find nothing to do.
    fn is_clean(&self, when: &str) {
        let ran = match self.driver.name() {
            "xfs" => tool("xfs_repair").args(["-n", "-f", "-o", "force_geometry"]),
            "ext4" => tool("e2fsck").args(["-f", "-n"]),
            _ => tool("fsck.vfat").arg("-n"),
        };
        let ran = ran.arg(&self.path).run();
        // fsck.vfat says nothing but its version and the count of files.
        let quiet = self.full || ran.text().lines().filter(|l| !l.trim().is_empty()).count() <= 2;
        if ran.status != 0 || !quiet {
            let kept = Path::new("/dev/shm/mirror-failed.raw");
            tool("cp").args(["--sparse=always"]).arg(&self.path).arg(kept).ok();
            panic!("{when}: {ran}\nkept as {}", kept.display());
        }
    }
}

/// Where the kernel does the same.
enum Twin {
    Mounted(Mounted),
    /// A folder in memory, where the kernel does not know the filesystem.
    Folder(TempDir),
}

impl Twin {
    fn new(form: &Form, dir: &Path) -> Self {
        if form.twin.is_empty() {
            return Self::Folder(scratch());
        }
        let path = dir.join("twin.raw");
        make(form.twin, &path, "3G");
        Self::Mounted(Mounted::writable(&path, WHOLE))
    }

    fn folder(&self) -> Folder<'_> {
        match self {
            Self::Mounted(mounted) => Folder { root: mounted.path(), full: true },
            Self::Folder(folder) => Folder { root: folder.path(), full: false },
        }
    }

    fn tree(&self) -> Tree {
        let folder = self.folder();
        Tree::of_folder(folder.root, folder.full)
    }
}

/// What the operations of a round lead to.
fn theme(form: &Form, round: u64) -> Theme {
    match round % 25 {
        5..10 => Theme::Crowd(form.crowd),
        10 => Theme::Crowd(form.crowd / 5),
        13..16 => Theme::Full,
        18..21 => Theme::Files,
        24 => Theme::Crowd(0),
        _ => Theme::Mixed,
    }
}

/// What a run came by.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    operations: u64,
    refused: u64,
    by_the_kernel: u64,
    comparisons: u64,
    nodes: usize,
    entries: usize,
    largest: u64,
}

/// A run: both filesystems, and what comes next.
struct Run {
    subject: Subject,
    twin: Twin,
    plan: Plan,
    seen: Seen,
    /// Files can be in their inodes.
    inline: bool,
    _dir: TempDir,
}

impl Run {
    fn new(form: &Form, seed: u64) -> Self {
        let (subject, dir) = (Subject::new(form), scratch());
        let twin = Twin::new(form, dir.path());
        let mut plan = Plan::new(seed, form.style);
        let (now, root) = (plan.now(), Vec::new());
        let begin = Op::Times { node: root, atime: now, mtime: now };
        if form.style.full {
            subject.edit(|fs| ours::apply(fs, &begin, now));
        }
        twin.folder().apply(&begin, now);
        let inline = form.make.contains("inline_data");
        Self { subject, twin, plan, seen: Seen::default(), inline, _dir: dir }
    }

    /// Operations of racker.
    fn ours(&mut self, count: u64) {
        let Self { subject, twin, plan, seen, .. } = self;
        let folder = twin.folder();
        subject.edit(|fs| {
            plan.free = fs.facts().unwrap().free;
            for _ in 0..count {
                let (op, now) = (plan.next(), plan.now());
                let outcome = ours::apply(fs, &op, now);
                plan.done(&op, outcome);
                seen.operations += 1;
                let op = match (op, outcome) {
                    (_, Outcome::Refused) => {
                        seen.refused += 1;
                        continue;
                    }
                    (Op::Many { dir, mut names, node }, Outcome::Part(count)) => {
                        seen.refused += 1;
                        names.truncate(count);
                        Op::Many { dir, names, node }
                    }
                    (op, _) => op,
                };
                if let Op::Write { at, .. } = op {
                    seen.largest = seen.largest.max(at);
                }
                assert_eq!(folder.apply(&op, now), Outcome::Done, "{op:?}");
            }
        });
    }

    /// Operations of the kernel on what racker wrote.
    fn theirs(&mut self, count: u64) {
        let mounted = Mounted::writable(&self.subject.path, WHOLE);
        let theirs = Folder { root: mounted.path(), full: true };
        let folder = self.twin.folder();
        let theme = self.plan.theme;
        for _ in 0..count {
            let free = rustix::fs::statvfs(mounted.path()).unwrap();
            let room = free.f_bavail * free.f_frsize > ROOM && free.f_favail > INODES;
            self.plan.theme = if room { Theme::Mixed } else { Theme::Light };
            let (op, now) = (self.plan.next(), self.plan.now());
            if self.inline && theirs.forgets(&op) {
                continue;
            }
            let outcome = theirs.apply(&op, now);
            self.plan.done(&op, outcome);
            if outcome == Outcome::Done {
                assert_eq!(folder.apply(&op, now), Outcome::Done, "{op:?}");
                self.seen.by_the_kernel += 1;
            }
        }
        self.plan.theme = theme;
    }

    /// All show the same, and the checkers nothing.
    fn compare(&mut self, when: &str, by_kernel: bool) {
        let (ours, twin) = (self.subject.tree(), self.twin.tree());
        ours.assert_same(&twin, when);
        self.subject.is_clean(when);
        if by_kernel {
            let mounted = Mounted::read_only(&self.subject.path, WHOLE);
            Tree::of_folder(mounted.path(), true)
                .assert_same(&twin, &format!("{when}, as the kernel reads it"));
        }
        let (nodes, entries) = twin.extent();
        self.seen.nodes = self.seen.nodes.max(nodes);
        self.seen.entries = self.seen.entries.max(entries);
        self.seen.comparisons += 1;
    }

    fn round(&mut self, when: &str, theme: Theme, operations: u64) {
        self.plan.theme = theme;
        self.ours(operations);
        let kernel = self.subject.full;
        self.compare(when, kernel);
        if kernel {
            self.theirs(operations / 10);
            self.compare(&format!("{when}, after the kernel's operations"), false);
        }
    }
}

fn long(forms: &[Form], rounds: u64) {
    let began = Instant::now();
    let mut total = Seen::default();
    // One of them alone, by its number.
    let only = std::env::var("ONLY").ok().map(|n| n.parse::<u64>().unwrap());
    for (number, form) in (1u64..).zip(forms).filter(|(number, _)| only.is_none_or(|only| only == *number)) {
        let mut run = Run::new(form, number);
        for round in 0..rounds {
            let theme = theme(form, round);
            let when = format!("{}: round {round}, {theme:?}", form.make);
            run.round(&when, theme, 1000);
            if std::env::var_os("VERBOSE").is_some() {
                println!("{when}: {} s, {:?}", began.elapsed().as_secs(), run.seen);
            }
        }
        let seen = run.seen;
        println!("{}: {seen:?}", form.make);
        total.operations += seen.operations;
        total.refused += seen.refused;
        total.by_the_kernel += seen.by_the_kernel;
        total.comparisons += seen.comparisons;
        total.nodes = total.nodes.max(seen.nodes);
        total.entries = total.entries.max(seen.entries);
        total.largest = total.largest.max(seen.largest);
    }
    println!(
        "{}: {} operations of racker ({} without room), {} of the kernel after them, {} comparisons without a \
         difference; up to {} nodes, {} entries in a directory, {} MiB in a file; {} s",
        forms[0].driver,
        total.operations,
        total.refused,
        total.by_the_kernel,
        total.comparisons,
        total.nodes,
        total.entries,
        total.largest >> 20,
        began.elapsed().as_secs()
    );
}

/// `cargo test --release -p racker-tests --test all -- --ignored --nocapture mirror::xfs_100_000`
#[test]
#[ignore = "minutes"]
fn xfs_100_000() {
    long(FORMS_OF_XFS, 25);
}

/// `cargo test --release -p racker-tests --test all -- --ignored --nocapture mirror::ext4_100_000`
#[test]
#[ignore = "minutes"]
fn ext4_100_000() {
    long(FORMS_OF_EXT4, 25);
}

/// `cargo test --release -p racker-tests --test all -- --ignored --nocapture mirror::fat_100_000`
#[test]
#[ignore = "minutes"]
fn fat_100_000() {
    long(FORMS_OF_FAT, 25);
}

/// A few rounds of each, small.
#[test]
fn racker_and_the_kernel_do_the_same() {
    for form in [XFS, EXT4, FAT] {
        let size = if form.driver == "vfat" { "40M" } else { "320M" };
        let mut run = Run::new(&Form { size, ..form }, 11);
        for theme in [Theme::Mixed, Theme::Crowd(3000), Theme::Mixed] {
            run.round(&format!("{}: {theme:?}", form.make), theme, 150);
        }
        assert!(run.plan.crowd() > 1000, "{}", run.plan.crowd());
    }
}
