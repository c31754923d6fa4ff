//! Changes a filesystem as an editor does: every operation, on nodes as they come.

use std::ops::ControlFlow;

use racker_formats::block::{Disk, Span};
use racker_formats::transaction::Transaction;
use racker_fs::drivers::{DRIVERS, probe};
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Driver, Name, New, NewKind, NodeId, NodeKind, Time};

use crate::Clock;
use crate::base::Base;

/// Operations on one filesystem.
const STEPS: u32 = 80;
/// Directories whose entries are used, and entries of one.
const DIRS_MAX: usize = 24;
const ENTRIES_MAX: usize = 200;
/// The time of all operations.
const NOW: Time = Time { sec: 1_700_000_000, nsec: 0 };

/// The driver of a volume: that of the undamaged image, or what the volume looks like.
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

/// Opens a volume for writing and changes what it can.
pub fn filesystem(volume: Disk, base: Option<&Base>, clock: Clock) {
    let Some(driver) = driver(&volume, base) else { return };
    let transaction = Transaction::overlay(volume);
    let disk = transaction.disk();
    let Ok(mut fs) = Writer::open(driver, &disk) else { return };
    let (dirs, entries) = tree(&fs);
    let mut number = 0u32;
    for step in 0..STEPS {
        if clock.is_up() {
            return;
        }
        // The same row of operations each time: what the fuzzer finds depends on the damage alone.
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let pick = (number >> 8) as usize;
        let dir = dirs[pick % dirs.len()];
        let Ok(new) = Name::new(format!("new {step}").as_bytes()) else { return };
        if entries.is_empty() || step % 12 == 0 {
            let kind = [NewKind::File, NewKind::Dir, NewKind::Link(&[b'x'; 90]), NewKind::Fifo][pick % 4];
            let _ = fs.create(dir, &new, &New { kind, mode: 0o644, uid: 1, gid: 2 }, NOW);
            continue;
        }
        let (from, name, node) = &entries[pick % entries.len()];
        let other = &entries[(pick / 7) % entries.len()];
        let at = u64::from(number >> 12);
        let _ = match step % 12 {
            1 => fs.write(*node, at, &[1; 9000], NOW),
            2 => fs.unlink(*from, name, NOW),
            3 => fs.rename((*from, name), (dir, &new), NOW),
            4 => fs.truncate(*node, at, NOW),
            5 => Span::new(at, 100_000).and_then(|span| fs.punch(*node, span, NOW)),
            6 => fs.replace(*node, Content { reader: &mut &[2; 50_000][..], size: 50_000 }, NOW),
            7 => fs.set_xattr(*node, b"user.new", (step > 30).then_some(&[3; 300]), NOW),
            8 => fs.link(*node, dir, &new, NOW),
            9 => fs.separate(*from, name, NOW).map(drop),
            10 => fs.exchange((*from, name), (other.0, &other.1), NOW),
            _ => {
                let change = Change { mode: Some(0o600), uid: Some(7), mtime: Some(NOW), ..Change::default() };
                fs.set_attributes(*node, &change, NOW)
            }
        };
    }
    let _ = fs.close();
}

/// Some directories and some entries: directory, name, node.
type Some = (Vec<NodeId>, Vec<(NodeId, Name, NodeId)>);

fn tree(fs: &Writer<'_>) -> Some {
    let fs = fs.filesystem();
    let (mut dirs, mut entries) = (vec![fs.root()], Vec::new());
    let mut at = 0;
    while at < dirs.len() && dirs.len() < DIRS_MAX {
        let dir = dirs[at];
        let mut count = 0;
        let _ = fs.read_dir(dir, &mut |entry| {
            entries.push((dir, entry.name, entry.node));
            count += 1;
            Ok(if count < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        for (_, _, node) in entries.iter().rev().take(count) {
            if fs.stat(*node).is_ok_and(|stat| stat.kind == NodeKind::Dir) {
                dirs.push(*node);
            }
        }
        at += 1;
    }
    (dirs, entries)
}
