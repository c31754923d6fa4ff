//! Goes through images, tables and filesystems as the commands do, and looks at everything.

use std::ops::ControlFlow;
use std::sync::Arc;

use racker_formats::block::{Disk, Span, Staged};
use racker_formats::error::Result;
use racker_formats::limits::MIB;
use racker_formats::open::{OpenOptions, Opened, open_disk};
use racker_formats::opening::Policy;
use racker_formats::registry::{BitmapChange, Image, Moment};
use racker_fs::drivers::{DRIVERS, probe};
use racker_fs::filesystem::{Driver, Filesystem, Name, NodeKind};
use racker_fs::recognised::recognise;
use racker_fs::tree::tar_out::{TarOptions, tar_out};
use racker_fs::tree::{Entry, Go, Limits, Step, Tree, walk};

use crate::base::Base;
use crate::{Clock, Sink};

/// Runs of one disk that are looked at.
const RUNS_MAX: usize = 4096;
/// Bitmaps of one image that are looked at.
const BITMAPS_MAX: usize = 8;
/// Extents of one file that are looked at.
const EXTENTS_MAX: usize = 256;
/// Bytes that compressed containers may expand to.
const EXPAND_MAX: u64 = 32 * MIB;
/// Bytes of one read.
const PIECE: usize = 16 << 10;

/// What a walk may take here: far less than the product's own limits, which are made for real disks.
const LIMITS: Limits = Limits { depth: 256, path: 16 << 10, nodes: 50_000, listings: 64 << 20 };

/// Opens whatever it is, and looks at its facts, its runs and its bytes.
pub fn image(file: Disk, clock: Clock) {
    let options =
        OpenOptions { policy: Policy::Deny, expand_max: Some(EXPAND_MAX), ..OpenOptions::default() };
    let Ok(opened) = open_disk(file, None, &options) else { return };
    let _ = opened.image.facts();
    let disk = &opened.disk;
    let mut buf = vec![0; PIECE];
    for run in disk.runs(Span::first(disk.size())).take(RUNS_MAX) {
        let Ok((span, kind)) = run else { break };
        assert!(!span.is_empty() && span.end() <= disk.size(), "{span:?} of {}", disk.size());
        if !kind.is_zero() {
            let len = usize::try_from(span.len()).unwrap_or(PIECE).min(PIECE);
            let _ = disk.read_at(span.start(), &mut buf[..len]);
        }
        if clock.is_up() {
            return;
        }
    }
    for at in [0, disk.size() / 3, disk.size().saturating_sub(PIECE as u64)] {
        let len = usize::try_from(disk.size() - at).unwrap_or(PIECE).min(PIECE);
        let _ = disk.read_at(at, &mut buf[..len]);
    }
    if let Some(bitmaps) = opened.image.bitmaps() {
        for bitmap in bitmaps.list().into_iter().flatten().take(BITMAPS_MAX) {
            let Ok(bits) = bitmaps.bits(&bitmap.name) else { continue };
            for run in bits.runs(Span::first(bits.size())).take(RUNS_MAX) {
                let Ok((span, _)) = run else { break };
                let len = usize::try_from(span.len()).unwrap_or(PIECE).min(PIECE);
                let _ = bits.read_at(span.start(), &mut buf[..len]);
            }
        }
    }
    let mut report = racker_formats::check::Report::default();
    let _ = opened.image.check(&mut report);
}

/// Opens whatever it is for writing, without its parent, in memory; writes here and there, mends it, changes its size.
pub fn changed(file: Disk, clock: Clock) {
    let options = OpenOptions {
        policy: Policy::Deny,
        expand_max: Some(EXPAND_MAX),
        write: true,
        alone: true,
        ..OpenOptions::default()
    };
    let Ok(opened) = open_disk(Disk::new(Staged::new(file)), None, &options) else { return };
    let disk = &opened.disk;
    let size = disk.size();
    let mut buf = vec![0; PIECE];
    for at in [0, size / 3 & !511, size / 2, size.saturating_sub(PIECE as u64)] {
        let Ok(rest) = Span::new(at, size - at) else { continue };
        let piece = rest.truncate(5000);
        let _ = disk.write_at(piece.start(), &vec![0x5a; piece.len() as usize]);
        let _ = disk.write_zeroes(rest.skip(3000).truncate(1 << 20));
        let _ = disk.discard(rest.skip(600 << 10).truncate(1 << 20));
        let _ = disk.read_at(piece.start(), &mut buf[..piece.len() as usize]);
        if clock.is_up() {
            return;
        }
    }
    let _ = disk.flush();
    let mut report = racker_formats::check::Report { repair: true, ..Default::default() };
    let _ = opened.image.check(&mut report);
    if clock.is_up() {
        return;
    }
    let _ = disk.resize((size & !511).saturating_add(3 << 20)).and_then(|()| disk.write_at(size, &[1; 512]));
    let _ = disk.resize(size / 2 & !511);
    let _ = disk.flush();
    let _ = disk.runs(Span::first(disk.size())).take(RUNS_MAX).count();
    if clock.is_up() {
        return;
    }
    let _ = edited(&opened);
    let _ = history(opened.image.as_ref(), disk);
    let image = &opened.image;
    let _ = image.renew_identity();
    let _ =
        image.leave_parent(None).and_then(|()| image.flush()).and_then(|()| image.name_parent(None, None));
    let _ = image.empty();
}

/// Writes in one transaction, where the format needs no file beside it for that.
fn edited(opened: &Opened) -> Result<()> {
    if !opened.image.applies() {
        return Ok(());
    }
    let edit = opened.begin()?;
    let guest = edit.disk();
    let size = guest.disk().size();
    for at in [0, size / 2 & !511] {
        let span = Span::new(at, (size - at).min(70_000))?;
        guest.disk().write_at(at, &vec![0xa5; span.truncate(3000).len() as usize])?;
        guest.disk().write_zeroes(span.skip(9000))?;
    }
    drop(guest);
    edit.commit()
}

/// Makes, takes back and removes a snapshot; makes a bitmap and changes it.
fn history(image: &dyn Image, disk: &Disk) -> Result<()> {
    if let Some(bitmaps) = image.bitmaps() {
        for change in [
            BitmapChange::Add { granularity: None, enabled: true },
            BitmapChange::Enable(false),
            BitmapChange::Enable(true),
            BitmapChange::Clear,
            BitmapChange::Remove,
        ] {
            bitmaps.change("fuzz", change)?;
        }
    }
    if let Some(snapshots) = image.snapshots() {
        let moment = Moment { date_sec: 1_700_000_000, date_nsec: 0, vm_clock_nsec: 0 };
        let snapshot = snapshots.create("fuzz", moment)?;
        disk.write_at(0, &[3; 512])?;
        snapshots.apply(&snapshot.id)?;
        snapshots.delete(&snapshot.id)?;
        disk.flush()?;
    }
    Ok(())
}

/// Reads the table; whatever it says lies inside the disk.
pub fn partitions(disk: &Disk) {
    let Ok(table) = racker_fs::partition::read(disk) else { return };
    for partition in &table.partitions {
        assert!(partition.span.end() <= disk.size(), "{partition:?} of {}", disk.size());
        let _ = disk.slice(partition.span).map(|volume| (probe(&volume), recognise(&volume)));
    }
}

/// Opens a filesystem as `base` is one, whatever the damage did to its magic number.
pub fn open(volume: Disk, base: Option<&Base>) -> Option<Arc<dyn Filesystem>> {
    driver(&volume, base)?.open(volume).ok()
}

/// The driver for a filesystem as `base` is one.
pub fn driver(volume: &Disk, base: Option<&Base>) -> Option<&'static dyn Driver> {
    let group = base.and_then(|b| b.name.split('/').next()).unwrap_or_default();
    let name = match group {
        "ext2" | "ext3" => "ext4",
        "fat" => "vfat",
        other => other,
    };
    let by_group = DRIVERS.iter().find(|d| d.name() == name).copied();
    by_group.or_else(|| probe(volume).ok().flatten())
}

/// Checks a filesystem, and mends it in memory.
pub fn check(volume: &Disk, base: Option<&Base>) {
    let Some(driver) = driver(volume, base) else { return };
    let mut report = racker_formats::check::Report::default();
    let _ = driver.check(volume.clone(), &mut report);
    if report.findings.is_empty() {
        return;
    }
    let mut report = racker_formats::check::Report { repair: true, ..Default::default() };
    let _ = driver.check(Disk::new(Staged::new(volume.clone())), &mut report);
}

/// Looks at everything in a filesystem.
pub fn filesystem(fs: Arc<dyn Filesystem>, clock: Clock) {
    let _ = fs.facts();
    let tree = Tree::new(Arc::clone(&fs));
    let mut buf = vec![0; PIECE];
    let mut names = Vec::new();
    let _ = walk(&tree, &LIMITS, &mut |step| {
        if let Step::Node(entry) = step {
            let _ = node(&entry, &mut buf, clock);
            if entry.stat.kind != NodeKind::Dir && names.len() < 64 {
                names.extend(Name::new(entry.name()));
            }
        }
        Ok(if clock.is_up() { Go::Stop } else { Go::On })
    });
    for name in &names {
        let _ = fs.lookup(fs.root(), name);
    }
}

/// Makes a tar stream of a filesystem.
pub fn tar(fs: Arc<dyn Filesystem>, clock: Clock) {
    let stop =
        Box::new(move |_| if clock.is_up() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    let options = TarOptions { limits: LIMITS, progress: Some(stop), ..TarOptions::default() };
    let _ = tar_out(&Tree::new(fs), &mut Sink(4 << 20), options);
}

fn node(entry: &Entry<'_>, buf: &mut [u8], clock: Clock) -> Result<()> {
    let Entry { fs, node, stat, .. } = *entry;
    let mut bytes = 0usize;
    let _ = fs.xattrs(node, &mut |(name, value): (&[u8], &[u8])| {
        bytes += name.len() + value.len();
        Ok(if clock.is_up() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    match stat.kind {
        NodeKind::Link => {
            let _ = fs.read_link(node)?;
        }
        NodeKind::File => {
            extents(fs, entry)?;
            let _ = fs.read(node, 0, buf)?;
            let _ = fs.read(node, stat.size.saturating_sub(1000), buf)?;
            let got = fs.read(node, stat.size, buf)?;
            assert_eq!(got, 0, "read behind the end");
        }
        NodeKind::Dir => {
            let absent = Name::new(b"no such name").expect("a good name");
            let _ = fs.lookup(node, &absent)?;
        }
        _ => {}
    }
    Ok(())
}

fn extents(fs: &dyn Filesystem, entry: &Entry<'_>) -> Result<()> {
    let (mut count, mut end) = (0, 0u64);
    fs.extents(entry.node, &mut |extent| {
        assert_eq!(extent.at, end, "extents in order, without gaps");
        end = extent.at.checked_add(extent.len).expect("an extent that ends");
        count += 1;
        Ok(if count < EXTENTS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })
}
