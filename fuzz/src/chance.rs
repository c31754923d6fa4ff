//! Changes a filesystem by chance, step after step, where one change meets what another one left. What is changed in
//! the end is a filesystem.

use std::ops::ControlFlow;

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Kind, Result};
use racker_formats::transaction::Transaction;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Change, Content, Driver, Name, New, NewKind, NodeId, NodeKind, Time};

use crate::{Clock, walk};

/// Operations of one edit.
const STEPS: u32 = 24;
/// Entries of a directory that are looked at for one to change.
const ENTRIES_MAX: u64 = 40;

/// Chance that is the same each time.
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// What belongs to an input.
    pub fn of(input: &[u8]) -> Self {
        let hash = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(input.iter().fold(0xcbf2_9ce4_8422_2325, hash) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// Opens a volume for writing, and changes it.
pub fn edit(volume: Disk, driver: &dyn Driver, mut dice: Dice, clock: Clock) {
    let edit = Transaction::overlay(volume);
    let Ok(mut writer) = Writer::open(driver, &edit.disk()) else { return };
    let mut dirs = vec![writer.filesystem().root()];
    for number in 0..STEPS {
        if clock.is_up() {
            return;
        }
        match step(&mut writer, &mut dirs, number, &mut dice) {
            // After any other error nothing of the edit may land.
            Err(e) if !is_harmless(e.kind()) => return,
            _ => {}
        }
    }
    if writer.close().is_ok() {
        judge(driver, &edit.finish().expect("a writer that was closed"), clock);
    }
}

/// What was good enough to be changed is still a filesystem.
fn judge(driver: &dyn Driver, after: &Disk, clock: Clock) {
    let fs = driver.open(after.clone()).expect("a filesystem that was changed");
    walk::filesystem(fs, clock);
    if driver.name() == "vfat" {
        let again = Transaction::overlay(after.clone());
        drop(driver.open_mut(again.disk().disk().clone()).expect("a sound filesystem"));
    }
}

fn is_harmless(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NoSpace
            | Kind::Unsupported
            | Kind::Invalid
            | Kind::Exists
            | Kind::NotFound
            | Kind::NotEmpty
            | Kind::IsDir
            | Kind::NotDir
    )
}

/// Some entry of a directory.
fn entry(writer: &Writer<'_>, dir: NodeId, dice: &mut Dice) -> Result<Option<(Name, NodeId)>> {
    let (mut found, mut seen, stop) = (None, 0, dice.below(ENTRIES_MAX));
    writer.filesystem().read_dir(dir, &mut |entry| {
        found = Some((entry.name, entry.node));
        seen += 1;
        Ok(if seen > stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

fn step(writer: &mut Writer<'_>, dirs: &mut Vec<NodeId>, number: u32, dice: &mut Dice) -> Result<()> {
    let pick = |dirs: &[NodeId], dice: &mut Dice| dirs[dice.below(dirs.len() as u64) as usize];
    let (dir, to) = (pick(dirs, dice), pick(dirs, dice));
    let now = Time { sec: 1_700_000_000 + i64::from(number), nsec: 0 };
    let letters = ["a", "Name of some length ", "X", "ü"][dice.below(4) as usize];
    let fresh = Name::new(format!("{}{number}", letters.repeat(1 + dice.below(9) as usize)).as_bytes())?;
    let bytes = vec![7; 1 + dice.below(20_000) as usize];
    let (name, node) = match entry(writer, dir, dice)? {
        Some(found) if dice.below(5) > 0 => found,
        _ => {
            let kinds = [NewKind::File, NewKind::Dir, NewKind::Link(b"target"), NewKind::Fifo];
            let kind = kinds[dice.below(4) as usize];
            let made = writer.create(dir, &fresh, &New { kind, mode: 0o644, uid: 1, gid: 2 }, now)?;
            if kind == NewKind::Dir {
                dirs.push(made);
            }
            return Ok(());
        }
    };
    if writer.filesystem().stat(node)?.kind == NodeKind::Dir && dirs.len() < 20 && !dirs.contains(&node) {
        dirs.push(node);
    }
    match dice.below(12) {
        0 | 1 => writer.write(node, dice.below(40_000), &bytes, now),
        2 => writer.truncate(node, dice.below(100_000), now),
        3 => writer.punch(node, Span::new(dice.below(9000), 1 + dice.below(9000))?, now),
        4 => {
            let node = writer.separate(dir, &name, now)?;
            writer.replace(node, Content { reader: &mut &bytes[..], size: bytes.len() as u64 }, now)
        }
        5 | 6 => {
            writer.unlink(dir, &name, now)?;
            dirs.retain(|d| *d != node);
            Ok(())
        }
        7 => writer.rename((dir, &name), (to, &fresh), now),
        8 => match entry(writer, to, dice)? {
            Some((other, _)) if dice.below(2) == 0 => writer.exchange((dir, &name), (to, &other), now),
            Some((other, gone)) => {
                writer.rename((dir, &name), (to, &other), now)?;
                dirs.retain(|d| *d != gone || gone == node);
                Ok(())
            }
            None => Ok(()),
        },
        9 => writer.link(node, to, &fresh, now),
        10 => writer.set_xattr(node, b"user.fuzz", Some(&bytes[..bytes.len().min(300)]), now),
        _ => {
            let change = Change { mode: Some(0o400), mtime: Some(now), ..Change::default() };
            writer.set_attributes(node, &change, now)
        }
    }
}
