//! The power fails at every operation of many edits, for each filesystem in each kind of image.
//!
//! Every edit is recorded, from the image's file to what lands on it, and cut off behind each operation: what came
//! since the last flush is there, is not there, or is there in part. Whatever a cut leaves, racker finds the disk of
//! before the edit or the one of after it. In raw images the content of new files is stored early: there the disk of
//! before may differ in what its filesystem calls free, and nowhere else.
//!
//! Programs that know nothing of racker find one of the two as well, or a disk that they do not take for one: that is
//! judged without the redo file.
//!
//! * [`edits`]: what is done to a filesystem; [`landing`]: how it lands, and where it is cut; [`journal`]: how it
//!   lands by ext4's journal

mod edits;
mod journal;
mod landing;

use std::path::Path;

use racker_formats::block::Disk;
use racker_fs::drivers::DRIVERS;
use racker_fs::filesystem::Driver;
use racker_tests::early::Before;
use racker_tests::image::scratch;
use racker_tests::manifest::Manifest;
use racker_tests::mount::{WHOLE, xfs_is_clean};
use racker_tests::rng::Rng;
use racker_tests::sim::{CrashDisk, Sparse};
use racker_tests::tool::tool;

use edits::Edits;
use journal::Journal;
use landing::Image;

/// A way to make a filesystem: the driver, bytes, the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    driver: &'static str,
    size: &'static str,
    mkfs: &'static str,
    /// The size that the program is told, if it is not to take all.
    part: &'static str,
}

const XFS: Kind = Kind::new("xfs", "64M", "mkfs.xfs -q -b size=4096", "");
const EXT4: Kind = Kind::new("ext4", "40M", "mke2fs -q -F -t ext4 -b 4096", "");
const FAT: Kind = Kind::new("vfat", "40M", "mkfs.vfat -F 32 -s 4 -n LABEL", "");

/// Filesystems that do not take all of their volume at first.
const ROOMY: &[Kind] = &[
    Kind::new("xfs", "96M", "mkfs.xfs -q -b size=4096 -d size=64m,agcount=4", ""),
    // Groups of 8 MiB: they come and go.
    Kind::new("ext4", "64M", "mke2fs -q -F -t ext4 -b 4096 -g 2048 -N 1024", "30M"),
    Kind::new("vfat", "64M", "mkfs.vfat -F 32 -s 1", "40960"),
];

/// More of them: `matrix::resizes_in_many_forms`.
const MORE_ROOMY: &[Kind] = &[
    Kind::new("xfs", "96M", "mkfs.xfs -q -b size=4096 -d size=64m -m rmapbt=1,reflink=1", ""),
    Kind::new("ext4", "64M", "mke2fs -q -F -t ext4 -b 4096", "24M"),
    Kind::new("ext4", "64M", "mke2fs -q -F -t ext4 -b 1024 -J size=2", "30M"),
    Kind::new("ext4", "64M", "mke2fs -q -F -t ext4 -b 1024 -O meta_bg,^resize_inode", "30M"),
    Kind::new("ext4", "64M", "mke2fs -q -F -t ext3 -b 1024", "30M"),
    Kind::new("ext4", "64M", "mke2fs -q -F -t ext2 -b 1024", "30M"),
    Kind::new("ext4", "96M", "mke2fs -q -F -t ext4 -b 1024 -O bigalloc -C 4096 -N 4096", "48M"),
    Kind::new("vfat", "64M", "mkfs.vfat -F 16 -s 4", "24576"),
];

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Edits of each filesystem in each kind of image.
    edits: u32,
    /// Torn states tried behind each operation.
    torn: u32,
    /// One of so many edits is looked at by other programs.
    judge: u32,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    edits: u64,
    /// States that a power cut may leave.
    cuts: u64,
    /// Of these, states of a raw image where content was stored before the edit was decided.
    early: u64,
    /// Of these, states in which ext4's journal has the edit.
    to_replay: u64,
    /// Of these, states that other programs do not take for a disk.
    shut: u64,
    /// States shown to the filesystem's own checker, or to `qemu-img check`.
    judged: u64,
    /// Edits that were given up.
    dropped: u64,
}

impl Kind {
    const fn new(driver: &'static str, size: &'static str, mkfs: &'static str, part: &'static str) -> Self {
        Self { driver, size, mkfs, part }
    }

    fn driver(self) -> &'static dyn Driver {
        *DRIVERS.iter().find(|d| d.name() == self.driver).unwrap()
    }

    /// A new filesystem, in a file.
    fn make(self, path: &Path) {
        tool("truncate").args(["-s", self.size]).arg(path).ok();
        let mut words = self.mkfs.split(' ');
        let mkfs = tool(words.next().unwrap()).args(words);
        // Smaller ones than mkfs.xfs makes by itself are for those who test.
        mkfs.env("TEST_DIR", "1")
            .env("TEST_DEV", "1")
            .env("QA_CHECK_FS", "1")
            .arg(path)
            .args(self.told())
            .ok();
    }

    fn told(self) -> Option<&'static str> {
        Some(self.part).filter(|part| !part.is_empty())
    }

    /// The filesystem's own checker has nothing to say.
    fn is_clean(self, path: &Path, when: &str) {
        match self.driver {
            "xfs" => xfs_is_clean(path, WHOLE),
            "ext4" => {
                let ran = tool("e2fsck").args(["-f", "-n"]).arg(path).run();
                assert!(ran.status == 0, "{when}: {ran}");
            }
            _ => {
                let ran = tool("fsck.vfat").arg("-n").arg(path).run();
                let quiet = ran.text().lines().filter(|l| !l.trim().is_empty()).count() <= 2;
                assert!(ran.status == 0 && quiet, "{when}: {ran}");
            }
        }
    }

    fn manifest(self, guest: &Sparse) -> Manifest {
        let disk = Disk::new(CrashDisk::new(guest.clone())).read_only();
        Manifest::of_filesystem(self.driver().open(disk).unwrap().as_ref())
    }
}

/// A guest's disk of before an edit.
pub(super) struct Old {
    kind: Kind,
    before: Before,
}

impl Old {
    fn of(kind: Kind, guest: Sparse, journal: Option<&Journal>) -> Self {
        let mut before = Before::of(guest);
        if let Some(journal) = journal {
            journal.is_spare(&mut before);
        }
        Self { kind, before }
    }

    pub(super) fn guest(&self) -> &Sparse {
        &self.before.guest
    }

    /// Whether `found` differs from it, which it may only in what is free.
    pub(super) fn differs(&self, found: &Sparse, when: &str) -> bool {
        self.before.differs(found, when)
    }

    /// Another program finds it sound, and all files are as they were.
    pub(super) fn judge(&self, found: &Sparse, dir: &Path, when: &str) {
        let path = dir.join("judged.raw");
        landing::write(found, &path);
        self.kind.is_clean(&path, when);
        self.kind.manifest(found).assert_same(&self.kind.manifest(self.guest()), when);
    }
}

/// Makes edits of one filesystem in one kind of image, and cuts each of them off.
fn play(kind: Kind, format: &'static str, plan: Plan) -> Count {
    play_with(kind, format, plan, Edits::new(Rng::new(1)))
}

fn play_with(kind: Kind, format: &'static str, plan: Plan, mut edits: Edits) -> Count {
    let dir = scratch();
    let raw = dir.path().join("new.raw");
    kind.make(&raw);
    let mut image = Image::of(kind, format, &raw, dir.path());
    let mut count = Count::default();
    for number in 0..plan.edits {
        let before = image.old(kind);
        let foreign = number % plan.judge == plan.judge - 1;
        let when = format!("{} in {format}, edit {number}", kind.driver);
        count.edits += 1;
        if number % 8 == 5 {
            image.give_up(&before, &mut edits, &when);
            count.dropped += 1;
            continue;
        }
        let rng = &mut Rng::new(u64::from(number) + 100);
        image.edit(&before, &mut edits, (plan.torn, foreign), rng, &mut count, &when);
        if foreign {
            let path = dir.path().join("judged.raw");
            landing::write(&image.guest(), &path);
            kind.is_clean(&path, &when);
            count.judged += 1;
        }
    }
    println!("{} in {format}: {count:?}", kind.driver);
    count
}

const FAST: Plan = Plan { edits: 8, torn: 1, judge: 4 };

#[test]
fn xfs_outlives_power_cuts() {
    let counts = ["raw", "qcow2", "vhdx"].map(|format| play(XFS, format, FAST));
    assert!(counts[0].early > 0 && counts[0].shut > 0 && counts.iter().all(|c| c.cuts > 50));
}

#[test]
fn ext4_outlives_power_cuts() {
    let counts = ["raw", "qcow2", "vhdx"].map(|format| play(EXT4, format, FAST));
    assert!(counts[0].early > 0 && counts[0].to_replay > 0 && counts.iter().all(|c| c.cuts > 50));
}

#[test]
fn fat_outlives_power_cuts() {
    let counts = ["raw", "qcow2", "vhdx"].map(|format| play(FAT, format, FAST));
    assert!(counts[0].early > 0 && counts[0].shut > 0 && counts.iter().all(|c| c.cuts > 50));
}

#[test]
fn other_sizes_outlive_power_cuts() {
    for kind in ROOMY {
        for format in ["raw", "qcow2", "vhdx"] {
            // Larger, and what can be made smaller also that.
            let edits = if kind.driver == "ext4" { 4 } else { 2 };
            let plan = Plan { edits, torn: 0, judge: 2 };
            let count = play_with(*kind, format, plan, Edits::resizing(Rng::new(1)));
            assert!(count.cuts > 20 && count.judged > 0, "{count:?}");
        }
    }
}

/// `EDITS=24 cargo test --release -p racker-tests --test all matrix::resizes_in_many_forms -- --ignored --nocapture`
#[test]
#[ignore = "minutes"]
fn resizes_in_many_forms() {
    let edits = std::env::var("EDITS").map_or(24, |n| n.parse().expect("a number"));
    let mut cuts = 0;
    for kind in ROOMY.iter().chain(MORE_ROOMY) {
        for format in ["raw", "qcow2", "vhdx"] {
            let plan = Plan { edits, torn: 3, judge: 2 };
            cuts += play_with(*kind, format, plan, Edits::resizing(Rng::new(2))).cuts;
        }
    }
    println!("{cuts} cuts");
}

/// Formats that cannot switch, and whose file is not the disk itself.
#[test]
fn tables_of_blocks_outlive_power_cuts() {
    for (kind, format) in [(XFS, "vmdk"), (EXT4, "vdi"), (FAT, "vpc")] {
        let count = play(kind, format, FAST);
        assert!(count.shut > 0 && count.cuts > 50, "{count:?}");
    }
}

#[test]
fn a_host_that_fails_leaves_a_raw_disk_as_it_was() {
    for kind in [XFS, EXT4, FAT] {
        let dir = scratch();
        let raw = dir.path().join("new.raw");
        kind.make(&raw);
        let mut image = Image::of(kind, "raw", &raw, dir.path());
        let mut edits = Edits::new(Rng::new(2));
        for number in 0..3 {
            let (before, when) = (image.old(kind), format!("{}, edit {number}", kind.driver));
            assert!(image.fail(&before, &edits, 15, &when) >= 8);
            let (rng, mut count) = (&mut Rng::new(number), Count::default());
            image.edit(&before, &mut edits, (0, false), rng, &mut count, &when);
        }
    }
}

/// 200 edits of a filesystem in each kind of image, ten minutes each:
/// `cargo test --release -p racker-tests --test all matrix::whole -- --ignored --nocapture`
fn whole(kind: Kind) {
    let plan = Plan { edits: 200, torn: 3, judge: 2 };
    let mut all = Count::default();
    for format in ["raw", "qcow2", "vhdx"] {
        let count = play(kind, format, plan);
        all.edits += count.edits;
        all.cuts += count.cuts;
        all.early += count.early;
        all.to_replay += count.to_replay;
        all.shut += count.shut;
        all.judged += count.judged;
        all.dropped += count.dropped;
    }
    println!("{} in all of them: {all:?}", kind.driver);
}

#[test]
#[ignore = "ten minutes: see whole()"]
fn whole_xfs() {
    whole(XFS);
}

#[test]
#[ignore = "ten minutes: see whole()"]
fn whole_ext4() {
    whole(EXT4);
}

#[test]
#[ignore = "ten minutes: see whole()"]
fn whole_fat() {
    whole(FAT);
}
