//! What the fixed part of an inode has to be beyond what reading it needs: asked by the check, and by a writer of
//! every inode that an operation changes.

use super::fault::Fault;
use super::inode::{DiFlags, DiFlags2, ForkFormat, Inode};
use super::superblock::{RoCompat, Superblock};
use super::units::NULL_AG_BLOCK;
use crate::filesystem::NodeKind;

/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;
/// `di_aformat` where there is no attribute fork.
const FORMAT_EXTENTS: u8 = 2;
/// `di_forkoff` of a device, in units of eight bytes.
const DEV_FORKOFF: u8 = 1;
/// Bytes of the longest target of a symbolic link.
const TARGET_MAX: u64 = 1024;
/// Flags of directories only.
const OF_DIRS: DiFlags =
    DiFlags::EXTSZINHERIT.union(DiFlags::PROJINHERIT).union(DiFlags::NOSYMLINKS).union(DiFlags::RTINHERIT);

/// A field, what it is, whether that can be, and why not.
type Rule = (&'static str, u64, bool, &'static str);

/// What is wrong with an inode; `listed` if it is on a list of deleted ones.
pub(super) fn faults(sb: &Superblock, inode: &Inode, listed: bool) -> Vec<Fault> {
    let rules = [flags(sb, inode), forks(sb, inode), content(sb, inode, listed)].concat();
    let broken = rules.into_iter().filter(|(_, _, good, _)| !good);
    broken.map(|(what, found, _, why)| Fault::Field { what, found, why }).collect()
}

fn flags(sb: &Superblock, inode: &Inode) -> Vec<Rule> {
    let raw = &inode.raw;
    let (word, word2) = (u64::from(raw.di_flags.get()), raw.di_flags2.get());
    let known = DiFlags::from_bits(raw.di_flags.get()).is_some();
    let known2 = !sb.v5 || DiFlags2::from_bits(word2).is_some();
    let (flags, flags2, file) = (inode.flags, inode.flags2, inode.kind == NodeKind::File);
    let sharing = sb.ro_compat.contains(RoCompat::REFLINK);
    let reflink = flags2.contains(DiFlags2::REFLINK);
    let copies = !flags2.contains(DiFlags2::COWEXTSIZE) || sharing;
    let realtime = flags.contains(DiFlags::REALTIME);
    let device = !realtime || file && sb.raw.sb_rblocks.get() != 0;
    let hint = flags.intersects(DiFlags::EXTSIZE | DiFlags::EXTSZINHERIT);
    let size = raw.di_extsize.get();
    vec![
        ("di_flags", word, known, "unknown flags"),
        ("di_flags2", word2, known2, "unknown flags"),
        ("di_flags", word, !flags.contains(DiFlags::EXTSIZE) || file, "a file's flags on something else"),
        (
            "di_flags",
            word,
            !flags.intersects(OF_DIRS) || inode.kind == NodeKind::Dir,
            "a directory's flags on something else",
        ),
        ("di_flags", word, device, "on a realtime device that is not there"),
        ("di_flags2", word2, !reflink || file && sharing, "shared blocks where there can be none"),
        ("di_flags2", word2, !reflink || !realtime, "shared blocks on a realtime device"),
        ("di_flags2", word2, copies, "a hint for copies where nothing is shared"),
        ("di_extsize", size.into(), hint || size == 0, "a hint without its flag"),
    ]
}

fn forks(sb: &Superblock, inode: &Inode) -> Vec<Rule> {
    let raw = &inode.raw;
    let big = inode.flags2.contains(DiFlags2::NREXT64);
    let (own, less) = (u64::from(raw.di_anextents.get()), raw.di_big_nextents.get());
    let aformat = raw.di_forkoff != 0 || matches!(raw.di_aformat, 0 | FORMAT_EXTENTS);
    let behind_dev = inode.data.format != ForkFormat::Dev || matches!(raw.di_forkoff, 0 | DEV_FORKOFF);
    let inside =
        inode.data.format != ForkFormat::Local || matches!(inode.kind, NodeKind::Dir | NodeKind::Link);
    let elsewhere = "not zero, where the count is elsewhere";
    vec![
        ("di_forkoff", raw.di_forkoff.into(), behind_dev, "not behind the device number"),
        ("di_aformat", raw.di_aformat.into(), aformat, "a form without a fork"),
        ("di_anextents", own, big || raw.di_forkoff != 0 || own == 0, "extents without a fork"),
        ("di_anextents", own, !big || own == 0, elsewhere),
        ("di_big_nextents", less, !sb.v5 || big || less == 0, elsewhere),
        ("di_format", raw.di_format.into(), inside, "content inside the inode"),
    ]
}

fn content(sb: &Superblock, inode: &Inode, listed: bool) -> Vec<Rule> {
    let raw = &inode.raw;
    let (size, kind) = (inode.size, inode.kind);
    let special = !matches!(kind, NodeKind::File | NodeKind::Dir | NodeKind::Link);
    let next = raw.di_next_unlinked.get();
    let bigtime = inode.flags2.contains(DiFlags2::BIGTIME);
    let times = [raw.di_atime, raw.di_mtime, raw.di_ctime].map(|t| t.get() & u64::from(u32::MAX));
    let latest = times.into_iter().max().unwrap_or(0);
    let root = inode.ino != sb.root || kind == NodeKind::Dir;
    vec![
        ("di_size", size, !special || size == 0, "a size, of something without content"),
        (
            "di_nextents",
            inode.data.extents,
            !special || inode.data.extents == 0,
            "extents, of something without content",
        ),
        ("di_size", size, kind == NodeKind::File || special || size != 0, "nothing in it"),
        ("di_size", size, kind != NodeKind::Link || size <= TARGET_MAX, "a target has at most 1024 bytes"),
        (
            "di_nlink",
            inode.links().into(),
            inode.links() != 0 || listed,
            "no entry names it, nor is it a deleted one",
        ),
        (
            "di_next_unlinked",
            next.into(),
            !sb.v5 || listed || next == NULL_AG_BLOCK,
            "on a list that does not have it",
        ),
        ("di_mode", raw.di_mode.get().into(), root, "the root is no directory"),
        ("nanoseconds", latest, bigtime || latest < NANOS, "more than a second has"),
    ]
}
