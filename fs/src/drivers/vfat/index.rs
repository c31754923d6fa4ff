//! What a directory holds, kept in memory while it is being changed: names, and which of its slots are in use.
//!
//! A slot is a place for one entry of 32 bytes; they are counted from the directory's beginning.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use racker_formats::error::{Common, Result};
use racker_formats::wire::{index, len64, take};

use super::boot_sector::Root;
use super::dir::{DIR_BYTES_MAX, Dir};
use super::fault::FatFault;
use super::layout::{DELETED, DOT, DOT_DOT, END, ENTRY_BYTES, RawEntry, RawLong, attr};
use super::name::{LAST, LongName, fold, short};
use super::volume::Fat;

/// A slot that nothing is in.
const FREE: u8 = 0xff;
/// A slot that belongs to another one, or to nobody racker knows.
const OTHER: u8 = 0xfe;
/// The most slots of a directory.
const SLOTS_MAX: u64 = DIR_BYTES_MAX / 32;

/// The names of one entry.
#[derive(Clone, Debug)]
struct Names {
    long: Option<Arc<str>>,
    short: Arc<str>,
    raw: [u8; 11],
}

/// A directory in memory.
#[derive(Debug)]
pub(super) struct Index {
    /// Where its stretches lie, in bytes.
    pieces: Vec<u64>,
    /// Slots of each stretch; only the last one of a fixed directory may have fewer.
    per: usize,
    fixed: bool,
    /// For each slot that it is free, or how many slots before it hold the long name of the entry in it.
    slots: Vec<u8>,
    /// No slot before this one is free.
    low: usize,
    /// By what all names have in common that are one.
    slot_of: HashMap<Arc<str>, usize>,
    names: HashMap<usize, Names>,
    /// Short names that are taken, and by how many.
    shorts: HashMap<[u8; 11], u32>,
    /// Directories in it.
    pub(super) dirs: u64,
    /// Two entries have one name: which is meant is told by the disk.
    pub(super) doubles: bool,
}

impl Index {
    /// Reads a directory.
    pub(super) fn read(fat: &Fat, dir: Dir) -> Result<Self> {
        let fixed = matches!(dir.root, Root::Fixed(..));
        let mut index = Self {
            pieces: Vec::new(),
            per: 0,
            fixed,
            slots: Vec::new(),
            low: 0,
            slot_of: HashMap::new(),
            names: HashMap::new(),
            shorts: HashMap::new(),
            dirs: 0,
            doubles: false,
        };
        let (mut long, mut run, mut ended) = (LongName::default(), 0u8, false);
        fat.stretches(dir, &mut |at, block| {
            index.pieces.push(at);
            let slots = block.len() / ENTRY_BYTES;
            index.per = index.per.max(slots);
            for entry in block.chunks_exact(ENTRY_BYTES) {
                let raw = take::<RawEntry>(entry, 0, "directory entry")?;
                ended |= raw.name[0] == END;
                if ended || raw.name[0] == DELETED {
                    long = LongName::default();
                    index.slots.push(FREE);
                } else if raw.attr & attr::MEANING == attr::LONG_NAME {
                    let piece = take::<RawLong>(entry, 0, "directory entry")?;
                    run = if piece.ord & LAST != 0 { 1 } else { run.saturating_add(1) };
                    long.push(&piece);
                    index.slots.push(OTHER);
                } else {
                    index.slots.push(OTHER);
                    let name = long.finish(&raw);
                    let run = if name.is_some() { run } else { 0 };
                    index.take_in(&raw, name.as_deref(), run);
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(index)
    }

    /// Takes in the entry of the last slot.
    fn take_in(&mut self, raw: &RawEntry, long: Option<&str>, run: u8) {
        if raw.attr & attr::VOLUME_ID != 0 {
            self.take_short(raw.name);
        } else if raw.name != DOT && raw.name != DOT_DOT {
            let slot = self.slots.len().saturating_sub(1);
            self.enter(slot, run, raw, long);
        }
    }

    /// Enters the entry whose short name is in `slot`, with `run` slots of a long one before it.
    pub(super) fn enter(&mut self, slot: usize, run: u8, raw: &RawEntry, long: Option<&str>) {
        for number in slot.saturating_sub(run.into())..slot {
            self.slots.get_mut(number).into_iter().for_each(|s| *s = OTHER);
        }
        self.slots.get_mut(slot).into_iter().for_each(|s| *s = run);
        let fold = |name: &str| Arc::<str>::from(fold(name));
        let names = Names { long: long.map(fold), short: fold(&short(raw)), raw: raw.name };
        for key in names.long.iter().chain([&names.short]) {
            match self.slot_of.get(key) {
                Some(other) if *other != slot => self.doubles = true,
                Some(_) => {}
                None => {
                    self.slot_of.insert(Arc::clone(key), slot);
                }
            }
        }
        self.take_short(raw.name);
        self.dirs = self.dirs.saturating_add(u64::from(raw.attr & attr::DIRECTORY != 0));
        self.names.insert(slot, names);
    }

    fn take_short(&mut self, raw: [u8; 11]) {
        let count = self.shorts.entry(raw).or_default();
        *count = count.saturating_add(1);
    }

    /// Forgets the entry in `slot`.
    pub(super) fn forget(&mut self, slot: usize, is_dir: bool) {
        let all = self.slots_of(slot);
        self.low = self.low.min(all.start);
        for number in all {
            self.slots.get_mut(number).into_iter().for_each(|s| *s = FREE);
        }
        if let Some(names) = self.names.remove(&slot) {
            for key in names.long.iter().chain([&names.short]) {
                if self.slot_of.get(key) == Some(&slot) {
                    self.slot_of.remove(key);
                }
            }
            if let Entry::Occupied(mut taken) = self.shorts.entry(names.raw) {
                *taken.get_mut() = taken.get().saturating_sub(1);
                if *taken.get() == 0 {
                    taken.remove();
                }
            }
        }
        self.dirs = self.dirs.saturating_sub(u64::from(is_dir));
    }

    /// The slot of the entry with this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.slot_of.get(fold(name).as_str()).copied()
    }

    /// Whether a new entry can have this short name, once those in the slots `but` are gone.
    pub(super) fn is_free(&self, raw: &[u8; 11], text: &str, but: &[usize]) -> bool {
        let gone = |slot: &usize| but.contains(slot);
        let theirs = |slot: &usize| self.names.get(slot).is_some_and(|n| n.raw == *raw);
        let taken = self.shorts.get(raw).copied().unwrap_or(0);
        let going = but.iter().filter(|slot| theirs(slot)).count();
        u64::from(taken) <= len64(going) && self.slot_of.get(fold(text).as_str()).is_none_or(gone)
    }

    /// All slots of the entry in `slot`.
    pub(super) fn slots_of(&self, slot: usize) -> Range<usize> {
        let run = self.slots.get(slot).copied().filter(|run| *run < OTHER).unwrap_or(0);
        slot.saturating_sub(run.into())..slot.saturating_add(1)
    }

    /// The first of `need` free slots in a row, once those in `freed` are free too. They may reach past the end of
    /// the directory: the second value is how many slots have to be added.
    pub(super) fn room(&self, need: usize, freed: &[Range<usize>]) -> Result<(usize, usize)> {
        let is_free = |number: usize, slot: u8| slot == FREE || freed.iter().any(|r| r.contains(&number));
        let low = freed.iter().map(|r| r.start).fold(self.low, usize::min);
        let mut start = low;
        for (number, slot) in self.slots.iter().enumerate().skip(low) {
            if !is_free(number, *slot) {
                start = number.saturating_add(1);
            } else if number.saturating_add(1).saturating_sub(start) == need {
                return Ok((start, 0));
            }
        }
        let missing = start.saturating_add(need).saturating_sub(self.slots.len());
        let total = len64(start.saturating_add(need));
        if self.fixed || total > SLOTS_MAX { Err(FatFault::DirFull.into()) } else { Ok((start, missing)) }
    }

    /// Remembers that the first free slot lies no earlier than this.
    pub(super) fn settle(&mut self) {
        while self.slots.get(self.low).is_some_and(|slot| *slot != FREE) {
            self.low = self.low.saturating_add(1);
        }
    }

    /// The place on the volume of a slot, in units of 32 bytes.
    pub(super) fn place(&self, slot: usize) -> Result<u64> {
        let (piece, within) = (slot.checked_div(self.per), slot.checked_rem(self.per));
        let start = piece.and_then(|piece| self.pieces.get(piece)).ok_or(Common::Index(len64(slot)))?;
        Ok((start >> 5).saturating_add(len64(within.unwrap_or(0))))
    }

    /// The slot at a place on the volume.
    pub(super) fn slot_at(&self, place: u64) -> Option<usize> {
        let within = |start: &u64| place.checked_sub(start >> 5).filter(|slot| *slot < len64(self.per));
        let (piece, slot) =
            self.pieces.iter().enumerate().find_map(|(i, start)| Some((i, within(start)?)))?;
        piece.checked_mul(self.per)?.checked_add(usize::try_from(slot).ok()?)
    }

    /// Adds a stretch of free slots at the end.
    pub(super) fn grow(&mut self, at: u64, bytes: u64) -> Result<()> {
        let slots = index(bytes)? / ENTRY_BYTES;
        self.pieces.push(at);
        self.per = self.per.max(slots);
        self.slots.resize(self.slots.len().saturating_add(slots), FREE);
        Ok(())
    }

    /// Bytes of the directory.
    pub(super) fn bytes(&self) -> u64 {
        len64(self.slots.len()).saturating_mul(len64(ENTRY_BYTES))
    }
}
