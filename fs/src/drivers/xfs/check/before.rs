//! What is asked of a filesystem before it is written: as much of the check as an edit can wait for.
//!
//! Checksums are right where a program wrote nonsense, and to allocate what is somebody's is to overwrite it. The
//! kernel does not ask; `xfs_repair` reads everything. Here
//!
//! - a filesystem of up to 65,536 inodes is gone through whole when it is opened;
//! - of a larger one without a reverse map, all inodes and extent trees are read before the first edit that takes or
//!   frees space, in one pass, if there are at most 512 MiB of inodes: is what anybody has free, or another one's?
//! - of every one, the writer compares the trees of each group that it uses with each other, and if there is a
//!   reverse map, looks up what it takes and frees (`edit/verify.rs`).
//!
//! So of a filesystem without a reverse map and with more inodes, one lie is believed, as the kernel believes it: both
//! trees of a group and its counts calling free what a file has.

use racker_formats::block::Disk;
use racker_formats::check::{Report, Severity};
use racker_formats::error::{Kind, Result};

use super::super::fault::Fault;
use super::super::superblock::{RoCompat, Superblock};
use super::super::volume::Volume;
use super::notes::Notes;
use super::{Checker, open};

/// Inodes up to which all of a filesystem is gone through: a third of a second.
const ALL_INODES_MAX: u64 = 1 << 16;
/// Bytes of inodes up to which all of them are read: a second, and less than what their files take to be copied.
const INODE_BYTES_MAX: u64 = 512 << 20;

/// Whether there are more inodes than to be gone through whole.
fn is_large(sb: &Superblock) -> bool {
    sb.raw.sb_icount.get() > ALL_INODES_MAX
}

/// Refuses to write to a filesystem that is not large and in which anything contradicts anything; counters and
/// copies, which writing mends or does not need, aside.
pub(in super::super) fn refuse_unsound(disk: &Disk) -> Result<()> {
    let volume = Volume::open(disk.read_only())?;
    if volume.sb.unwritable().is_some() || is_large(&volume.sb) {
        return Ok(());
    }
    let mut report = Report::default();
    let mut notes = Notes::new(&mut report);
    let Some(volume) = open(&disk.read_only(), &mut notes)? else { return refusal(&report) };
    walk(volume, &mut report, |checker| checker.all())
}

/// Refuses to take or free space of a large filesystem if what is somebody's is free, or another one's too, as far as
/// that can be told in time. Its log is clean.
pub(in super::super) fn refuse_wrong_space(disk: &Disk) -> Result<()> {
    let volume = Volume::open(disk.read_only())?;
    let sb = &volume.sb;
    let bytes = sb.inode_size.start_of(sb.raw.sb_icount.get()).unwrap_or(u64::MAX);
    if !is_large(sb) || bytes > INODE_BYTES_MAX || sb.ro_compat.contains(RoCompat::RMAPBT) {
        return Ok(());
    }
    walk(volume, &mut Report::default(), |checker| {
        checker.blocks_only = true;
        checker.blocks()
    })
}

/// Goes through a volume as `how` says. What is found that cannot be mended is the error.
fn walk(volume: Volume, report: &mut Report, how: impl FnOnce(&mut Checker<'_>) -> Result<()>) -> Result<()> {
    // The count may be wrong, but not by so much that the walk takes longer than was thought.
    let inodes_max = volume.sb.raw.sb_icount.get().saturating_add(ALL_INODES_MAX);
    let mut checker = Checker::new(volume, Notes::new(report), inodes_max);
    let walked = how(&mut checker);
    let all_mendable = checker.notes.all_mendable();
    if let Err(e) = walked {
        match e.fault::<Fault>() {
            Some(Fault::TooMuch) => {}
            Some(Fault::TooManyInodes { .. }) => {
                let what = "the trees of inodes have far more of them than the superblock counts";
                return Err(Fault::Damaged(what.into()).into());
            }
            // What the check does not know is for the writer to judge.
            _ if e.kind() == Kind::Unsupported => return Ok(()),
            _ => return Err(e),
        }
    }
    if all_mendable { Ok(()) } else { refusal(report) }
}

/// The first thing that is wrong; lost space is nothing of the kind.
fn refusal(report: &Report) -> Result<()> {
    match report.findings.iter().find(|f| f.severity == Severity::Corruption) {
        Some(finding) => Err(Fault::Damaged(finding.what.clone()).into()),
        None => Ok(()),
    }
}
