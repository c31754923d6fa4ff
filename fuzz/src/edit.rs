//! Changes a filesystem in every way that its writer has. Nothing lands.

use std::ops::ControlFlow;
use std::sync::Arc;

use racker_formats::block::{Disk, Span};
use racker_formats::error::Result;
use racker_formats::transaction::Transaction;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{
    Change, Content, Driver, Filesystem, Name, New, NewKind, NodeId, NodeKind, Time,
};

use crate::Clock;

/// Directories that are changed, and entries of each.
const DIRS_MAX: usize = 12;
const ENTRIES_MAX: usize = 24;
/// Nodes made in each directory: enough for some to change their form.
const MADE: u32 = 12;

const NOW: Time = Time { sec: 1_700_000_000, nsec: 5 };

/// Opens the filesystem for writing and goes through its directories, changing what is in them.
pub fn edit(disk: Disk, driver: &dyn Driver, clock: Clock) {
    let transaction = Transaction::overlay(disk);
    let volume = transaction.disk();
    let Ok(mut fs) = Writer::open(driver, &volume) else { return };
    let mut todo = vec![fs.filesystem().root()];
    let mut seen = 0;
    while let Some(dir) = todo.get(seen).copied() {
        seen += 1;
        if seen > DIRS_MAX || clock.is_up() {
            break;
        }
        let entries = entries(fs.filesystem().as_ref(), dir);
        for (i, (name, node)) in entries.iter().enumerate() {
            if clock.is_up() {
                break;
            }
            if fs.filesystem().stat(*node).is_ok_and(|stat| stat.kind == NodeKind::Dir) {
                todo.push(*node);
            }
            let _ = entry(&mut fs, dir, name, *node, i);
        }
        make(&mut fs, dir, seen);
    }
    if fs.close().is_ok() {
        let Ok(edited) = transaction.finish() else { return };
        if let Ok(fs) = driver.open(edited) {
            crate::walk::filesystem(Arc::clone(&fs), clock);
        }
    }
}

fn entries(fs: &dyn Filesystem, dir: NodeId) -> Vec<(Name, NodeId)> {
    let mut all = Vec::new();
    let _ = fs.read_dir(dir, &mut |entry| {
        all.push((entry.name, entry.node));
        Ok(if all.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    all
}

/// Changes a node, and last its entry.
fn entry(fs: &mut Writer<'_>, dir: NodeId, name: &Name, node: NodeId, turn: usize) -> Result<()> {
    let stat = fs.filesystem().stat(node)?;
    let data = vec![0x5a; 9000];
    if stat.kind == NodeKind::File {
        match turn % 6 {
            0 => fs.write(node, stat.size, &data, NOW)?,
            1 => fs.write(node, stat.size / 2, &data, NOW)?,
            2 => fs.truncate(node, stat.size / 3, NOW)?,
            3 => fs.punch(node, Span::new(stat.size / 4, 1 << 20)?, NOW)?,
            4 => {
                let content = Content { reader: &mut data.as_slice(), size: 9000 };
                fs.replace(node, content, NOW)?;
            }
            _ => drop(fs.separate(dir, name, NOW)?),
        }
    }
    let change = Change { mode: Some(0o600), uid: Some(7), mtime: Some(NOW), ..Change::default() };
    fs.set_attributes(node, &change, NOW)?;
    let value = &data[..[10, 300, 5000][turn % 3]];
    fs.set_xattr(node, b"trusted.fuzz", Some(value), NOW)?;
    let other = Name::new(format!("renamed-{turn}").as_bytes())?;
    match turn % 5 {
        0 => fs.unlink(dir, name, NOW),
        1 => fs.rename((dir, name), (dir, &other), NOW),
        2 => fs.rename((dir, name), (fs.filesystem().root(), &other), NOW),
        3 => fs.link(node, dir, &other, NOW),
        _ => fs.set_xattr(node, b"trusted.fuzz", None, NOW),
    }
}

fn make(fs: &mut Writer<'_>, dir: NodeId, turn: usize) {
    let target = vec![b't'; 700];
    let kinds = [
        NewKind::File,
        NewKind::Dir,
        NewKind::Link(&target),
        NewKind::Link(b"short"),
        NewKind::Char(1, 3),
        NewKind::Fifo,
    ];
    let mut last = None;
    for i in 0..MADE {
        let text = format!("made-{i}-{}", "n".repeat(turn * 17 % 200));
        let Ok(name) = Name::new(text.as_bytes()) else { return };
        let kind = kinds[i as usize % kinds.len()];
        let new = New { kind, mode: 0o755, uid: i, gid: i };
        if fs.create(dir, &name, &new, NOW).is_ok() {
            if let Some(before) = last.replace(name.clone()) {
                let _ = fs.exchange((dir, &before), (dir, &name), NOW);
            }
        }
    }
}
