//! Replay in two passes: the first finds the buffers that were freed later, whose older changes must not be
//! replayed (their blocks may hold a user's data by now); the second replays the rest in the order of the log.

use std::collections::{BTreeMap, BTreeSet};

use racker_formats::error::Result;

use super::super::fault::Fault;
use super::super::units::{Daddr, Lsn};
use super::super::volume::Volume;
use super::buf_item::{self, BufFlags, BufItem};
use super::buffers::Buffers;
use super::dquot;
use super::head::{State, walk};
use super::icreate::Chunk;
use super::inode_item::{self, InodeItem, NewOwner};
use super::intent::{Intent, Promises};
use super::owner;
use super::pieces::Pieces;
use super::ring::Ring;
use super::transaction::{Assembler, Item, Transaction};

/// Log items.
const INODE: u16 = 0x123b;
const BUFFER: u16 = 0x123c;
const DQUOT: u16 = 0x123d;
const QUOTAOFF: u16 = 0x123e;
const ICREATE: u16 = 0x123f;
/// `sb_qflags` while space is counted by user, project or group.
const QUOTA_COUNTED: u16 = 0x0001 | 0x0008 | 0x0040;
/// Buffers that can be freed in what a log holds: each takes a log item of 36 bytes or more.
const FREED_MAX: usize = 1 << 21;

/// Buffers that are freed somewhere in the log, and how often still.
#[derive(Debug, Default)]
struct Freed(BTreeMap<(Daddr, u64), u32>);

impl Freed {
    fn add(&mut self, at: Daddr, count: u64) -> Result<()> {
        if self.0.len() >= FREED_MAX {
            return Err(Fault::Structure { what: "log", why: "frees too many buffers" }.into());
        }
        let times = self.0.entry((at, count)).or_insert(0);
        *times = times.saturating_add(1);
        Ok(())
    }

    fn contains(&self, at: Daddr, count: u64) -> bool {
        self.0.contains_key(&(at, count))
    }

    /// The buffer's being freed was met in the second pass.
    fn take(&mut self, at: Daddr, count: u64) {
        if let Some(times) = self.0.get_mut(&(at, count)) {
            *times = times.saturating_sub(1);
            if *times == 0 {
                self.0.remove(&(at, count));
            }
        }
    }
}

/// Replays what lies between tail and head; returns what was promised and not done.
pub(super) fn replay(volume: &Volume, ring: &Ring, state: &State) -> Result<Vec<Intent>> {
    let freed = freed(ring, state)?;
    let mut second = Second {
        volume,
        freed,
        buffers: Buffers::new(volume),
        owners: BTreeSet::new(),
        promises: Promises::default(),
        pieces: Pieces::default(),
    };
    pass(ring, state, &mut |transaction| second.transaction(transaction))?;
    second.buffers.write_all()?;
    owner::change_all(volume, &second.owners)?;
    second.pieces.join(volume)?;
    Ok(second.promises.left())
}

fn pass(ring: &Ring, state: &State, commit: &mut dyn FnMut(&Transaction) -> Result<()>) -> Result<()> {
    let mut all = Assembler::default();
    walk(ring, state.tail, state.head.block(), &mut |record| all.add(ring, record, commit))
        .map_err(|(_, e)| e)
}

fn freed(ring: &Ring, state: &State) -> Result<Freed> {
    let mut freed = Freed::default();
    pass(ring, state, &mut |transaction| {
        for item in transaction.items() {
            if item.kind()? == BUFFER && BufItem::flags(&item)?.contains(BufFlags::CANCEL) {
                let buf = BufItem::parse(&item)?;
                freed.add(buf.at, buf.count)?;
            }
        }
        Ok(())
    })?;
    Ok(freed)
}

struct Second<'v> {
    volume: &'v Volume,
    freed: Freed,
    buffers: Buffers<'v>,
    owners: BTreeSet<NewOwner>,
    promises: Promises,
    pieces: Pieces,
}

/// Items of a transaction in the order in which they are replayed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// Buffers and new inodes, which other items may need.
    Buffers,
    Others,
    /// The list of unlinked inodes, behind the inodes themselves.
    Unlinked,
    /// What was freed, last: other items ask for it.
    Freed,
}

impl Second<'_> {
    fn transaction(&mut self, transaction: &Transaction) -> Result<()> {
        self.buffers.advance(transaction.lsn)?;
        for turn in [Turn::Buffers, Turn::Others, Turn::Unlinked, Turn::Freed] {
            for item in transaction.items() {
                if turn_of(&item)? == turn {
                    self.item(&item, transaction.lsn)?;
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, item: &Item<'_>, lsn: Lsn) -> Result<()> {
        match item.kind()? {
            BUFFER => self.buffer(item, lsn),
            INODE => {
                let change = InodeItem::parse(item)?;
                if self.freed.contains(change.at, change.count) {
                    return Ok(());
                }
                if inode_item::is_dir(item)? {
                    self.pieces.note_dir(change.ino());
                }
                let owners = inode_item::replay(self.volume, &mut self.buffers, item, &change, lsn)?;
                self.owners.extend(owners);
                Ok(())
            }
            ICREATE => {
                let chunk = Chunk::parse(&self.volume.sb, item)?;
                let buffers = chunk.buffers(&self.volume.sb)?;
                if buffers.iter().any(|(at, count)| self.freed.contains(*at, *count)) {
                    return Ok(());
                }
                chunk.replay(self.volume, &mut self.buffers)
            }
            DQUOT if self.volume.sb.raw.sb_qflags.get() & QUOTA_COUNTED != 0 => {
                dquot::replay(self.volume, &mut self.buffers, item, lsn)
            }
            DQUOT | QUOTAOFF => Ok(()),
            kind => {
                if self.promises.note(&self.volume.sb, item, lsn)? {
                    return Ok(());
                }
                Err(Fault::UnknownLogItem { kind }.into())
            }
        }
    }

    fn buffer(&mut self, item: &Item<'_>, lsn: Lsn) -> Result<()> {
        let buf = BufItem::parse(item)?;
        if buf.flags.contains(BufFlags::CANCEL) {
            self.freed.take(buf.at, buf.count);
            return Ok(());
        }
        if self.freed.contains(buf.at, buf.count) {
            return Ok(());
        }
        let part = self.pieces.note(self.volume, &buf);
        buf_item::replay(self.volume, &mut self.buffers, item, &buf, lsn, part)
    }
}

fn turn_of(item: &Item<'_>) -> Result<Turn> {
    Ok(match item.kind()? {
        BUFFER => {
            let flags = BufItem::flags(item)?;
            if flags.contains(BufFlags::CANCEL) {
                Turn::Freed
            } else if flags.contains(BufFlags::INODES) {
                Turn::Unlinked
            } else {
                Turn::Buffers
            }
        }
        ICREATE => Turn::Buffers,
        _ => Turn::Others,
    })
}
