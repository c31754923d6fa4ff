//! The check: everything is gone through once, and each thing is compared with all others that speak of it.
//!
//! What is looked at: the log; the superblock and its copies; each group's headers, spare blocks and trees; every
//! inode, its forks and extent trees; attributes; directories; names, kinds, links and parents; the counters. Of
//! each block its checksum, UUID, place and owner, and that it was not changed in a time that the log has not
//! reached. What is on a realtime device, and what quotas count, is not looked at, and the report says so.
//!
//! A log that is not clean is replayed, and its promises are kept, as a mount would do: in memory if nothing is to be
//! mended.
//!
//! # Memory
//!
//! Two bits a block of the groups at hand, 256 MiB at most: 4 TiB with blocks of 4 KiB; more is gone through in
//! rounds, which look at inodes and extents only. Five bytes an inode, of which there are 2^28 at most, and thirty a
//! directory. Eight bytes for each place where shared blocks begin to have more or fewer uses, 128 MiB at most, and
//! as much again while a group's are compared: with more the groups at hand become fewer, down to one. Two bytes for
//! each block of the directory at hand in its index, and thirty in the list of those found. A thousand findings end
//! the check.
//!
//! # Mending
//!
//! Counters that can be counted, copies of the superblock, and what a crash left to do: deleted inodes, copies in the
//! making. It is done only if nothing else is wrong: what cannot be trusted is not built upon. The rest is for
//! `xfs_repair`.
//!
//! - `notes.rs`: findings; `usage.rs`, `holder.rs`: who has which block; `table.rs`: what is known of inodes
//! - `superblocks.rs`, `groups.rs`, `tree.rs`: the superblock, groups and their trees; `owners.rs`: the reverse map
//! - `inodes.rs`, `fork.rs`: inodes and forks; `attrs.rs`, `datree.rs`: attributes
//! - `dirs.rs`, `dirblock.rs`, `hashes.rs`, `names.rs`: directories, and what they name
//! - `mend.rs`: what is mended; `before.rs`: what is asked before an edit

mod attrs;
mod before;
mod datree;
mod dirblock;
mod dirs;
mod fork;
mod groups;
mod hashes;
mod holder;
mod inodes;
mod mend;
mod names;
mod notes;
mod owners;
mod superblocks;
mod table;
mod tree;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use racker_formats::block::{Disk, Staged};
use racker_formats::check::{Report, Severity};
use racker_formats::error::{Kind, Result, Within};

use super::edit::Writer;
use super::edit::records::Run;
use super::fault::Fault;
use super::log::Log;
use super::superblock::Incompat;
use super::units::{AgNo, Lsn};
use super::volume::{BlockKind, Volume};
use crate::filesystem::FilesystemMut;
pub(super) use before::{refuse_unsound, refuse_wrong_space};
use groups::{GroupState, Totals};
use holder::Holder;
use notes::Notes;
use owners::Maps;
use table::Table;
use usage::Usage;

/// Inodes of the largest filesystem that is checked: their table takes 1.3 GB.
const INODES_MAX: u64 = 1 << 28;

/// Checks the filesystem on `disk`, and mends it if the report says so.
pub(super) fn check(disk: Disk, report: &mut Report) -> Result<()> {
    let mut notes = Notes::new(report);
    let Some(volume) = open(&disk, &mut notes)? else { return Ok(()) };
    let mut checker = Checker::new(volume, notes, INODES_MAX);
    match checker.all() {
        Err(e) if e.fault::<Fault>().is_some_and(|f| matches!(f, Fault::TooMuch)) => {
            checker.notes.last(Fault::TooMuch.to_string());
            return Ok(());
        }
        done => done?,
    }
    if checker.notes.repair() && checker.notes.count() > 0 && checker.notes.all_mendable() {
        mend::mend(&disk, checker)?;
    }
    Ok(())
}

/// Opens the volume, its log replayed. What can never be racker's is an error, what is damaged a finding.
fn open(disk: &Disk, notes: &mut Notes<'_>) -> Result<Option<Volume>> {
    let target = if notes.repair() { disk.clone() } else { disk.read_only() };
    let Some(volume) = damage(Volume::open(target), notes)? else { return Ok(None) };
    if volume.sb.incompat.contains(Incompat::METADIR) {
        return Err(Fault::Unsupported { what: "a check of the metadata directory" }.into());
    }
    let log = Log::open(&volume);
    // If nobody knows what the log holds, the rest can be looked at.
    let clean = damage(log.map(|log| log.is_clean()), notes)?;
    if clean.unwrap_or(true) {
        return Ok(Some(volume));
    }
    if !volume.sb.v5 {
        return replayed(volume, notes);
    }
    // As a writer begins: the log is replayed, its promises are kept, deleted inodes are freed.
    let staged =
        if notes.repair() { volume.disk.clone() } else { Disk::new(Staged::new(volume.disk.clone())) };
    let opened = Writer::open(staged.clone()).and_then(|writer| Box::new(writer).close());
    let opened = opened.within(|| "replay of the log");
    if notes.repair() {
        // What is half-done must not land.
        opened?;
        return damage(Volume::open(staged), notes);
    }
    match damage(opened, notes)? {
        Some(()) => damage(Volume::open(staged), notes),
        None => Ok(None),
    }
}

/// Replays the log of a filesystem that is only read.
fn replayed(mut volume: Volume, notes: &mut Notes<'_>) -> Result<Option<Volume>> {
    volume.disk = Disk::new(Staged::new(volume.disk.read_only()));
    let replay = Log::open(&volume).and_then(|log| log.replay(&mut volume));
    let Some(recovery) = damage(replay.within(|| "replay of the log"), notes)? else { return Ok(None) };
    volume.pending = Arc::new(super::pending::Pending::new(recovery.intents)?);
    Ok(Some(volume))
}

fn damage<T>(read: Result<T>, notes: &mut Notes<'_>) -> Result<Option<T>> {
    match read {
        Err(e) if e.kind() == Kind::Unsupported => Err(e),
        read => notes.look(read),
    }
}

/// A check on its way.
#[derive(Debug)]
struct Checker<'r> {
    volume: Arc<Volume>,
    notes: Notes<'r>,
    usage: Usage,
    table: Table,
    maps: Maps,
    totals: Totals,
    groups: BTreeMap<u32, GroupState>,
    /// Inodes on the lists of deleted ones.
    unlinked: BTreeSet<u64>,
    /// Where the log's next record goes, if that is known.
    head: Option<Lsn>,
    /// Blocks that were changed in a time that the log has not reached, and the latest of them.
    ahead: (u64, Lsn),
    /// An inode or a fork is damaged: what it has is not known.
    damaged: bool,
    /// Only who has which block is looked at.
    blocks_only: bool,
    /// Inodes that there may be.
    inodes_max: u64,
    /// Blocks of a group that were spoken of before its reverse map could be.
    queue: Option<Vec<(Run, Holder)>>,
}

impl<'r> Checker<'r> {
    fn new(volume: Volume, notes: Notes<'r>, inodes_max: u64) -> Self {
        let head = Log::open(&volume).ok().map(|log| log.head());
        Self {
            volume: Arc::new(volume),
            notes,
            usage: Usage::new(0, 0, |_| 0),
            table: Table::default(),
            maps: Maps::default(),
            totals: Totals::default(),
            groups: BTreeMap::new(),
            unlinked: BTreeSet::new(),
            head,
            ahead: (0, Lsn(0)),
            damaged: false,
            blocks_only: false,
            inodes_max,
            queue: None,
        }
    }

    fn all(&mut self) -> Result<()> {
        self.blocks()?;
        if !self.damaged {
            self.owners_end()?;
        }
        self.named_by_superblock()?;
        self.directories()?;
        if !self.table.incomplete {
            self.links()?;
        }
        self.parents()?;
        self.times()
    }

    /// Who has which block, as many groups at a time as there is memory for.
    fn blocks(&mut self) -> Result<()> {
        let count = self.volume.sb.ag_count;
        let mut from = 0;
        while from < count {
            let sb = self.volume.sb.clone();
            self.usage = Usage::new(from, count, |ag| sb.ag_length(AgNo(ag)).unwrap_or(0));
            self.notes.muted = from > 0;
            self.groups()?;
            if from == 0 {
                self.counters()?;
            }
            self.inodes()?;
            self.groups_end()?;
            from = self.usage.end().max(from.saturating_add(1));
        }
        self.notes.muted = false;
        self.usage = Usage::new(0, 0, |_| 0);
        Ok(())
    }

    /// Whether more is looked at than who has which block: not in later rounds over the same inodes.
    fn looks_closer(&self) -> bool {
        !self.notes.muted && !self.blocks_only
    }

    fn group_state(&mut self, ag: AgNo) -> &mut GroupState {
        self.groups.entry(ag.0).or_default()
    }

    /// A block was last changed at `lsn`.
    fn stamp(&mut self, lsn: Lsn) -> Result<()> {
        // What is never logged says so with all bits.
        if lsn.0 != u64::MAX && self.head.is_some_and(|head| lsn > head) && !self.notes.muted {
            self.ahead = (self.ahead.0.saturating_add(1), self.ahead.1.max(lsn));
        }
        Ok(())
    }

    /// The same of a block of this kind.
    fn stamped(&mut self, kind: &BlockKind, bytes: &[u8]) -> Result<()> {
        if self.volume.sb.v5 { self.stamp(kind.itself.lsn(bytes)?) } else { Ok(()) }
    }

    fn times(&mut self) -> Result<()> {
        let ((count, latest), Some(head)) = (self.ahead, self.head) else { return Ok(()) };
        if count == 0 {
            return Ok(());
        }
        let what = format!(
            "{count} blocks and inodes were changed at {latest} or before, and the log ends at {head}"
        );
        self.notes.always(Severity::Corruption, what, count)
    }
}
