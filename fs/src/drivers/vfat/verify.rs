//! Whether a filesystem is sound enough to be written: no cluster has two owners, and no directory more than it shows.
//!
//! The table is gone through once, and every directory. What is only lost (chains that no entry names) or only wrong
//! on paper (labels, hints) does no harm, and stays as it is.

use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::{Common, Result};
use racker_formats::wire::{index, len64, take};

use super::alloc::Space;
use super::boot_sector::Root;
use super::dir::Dir;
use super::fault::FatFault;
use super::layout::{DELETED, DOT, DOT_DOT, END, ENTRY_BYTES, RawEntry, attr};
use super::table::Link;
use super::volume::Fat;
use crate::filesystem::NodeId;
use crate::fresh::Fresh;

/// Directories that wait for their turn: a quarter of a gigabyte.
const WAITING_MAX: usize = 1 << 23;

/// A bit for each cluster: 32 MiB for the largest filesystem.
struct Bits(Vec<u64>);

impl Bits {
    fn new(last: u32) -> Result<Self> {
        Ok(Self(vec![0; index(u64::from(last >> 6).saturating_add(1))?]))
    }

    fn get(&self, number: u32) -> bool {
        let word = usize::try_from(number >> 6).ok().and_then(|w| self.0.get(w)).copied().unwrap_or(0);
        word & 1u64.wrapping_shl(number & 63) != 0
    }

    /// Sets a bit; says whether it was clear.
    fn set(&mut self, number: u32) -> bool {
        let word = usize::try_from(number >> 6).ok().and_then(|w| self.0.get_mut(w));
        let bit = 1u64.wrapping_shl(number & 63);
        word.is_some_and(|word| {
            let clear = *word & bit == 0;
            *word |= bit;
            clear
        })
    }
}

/// What is known of clusters.
struct Clusters {
    /// Another one leads here.
    linked: Bits,
    /// Part of a chain.
    used: Bits,
    /// The first of a file or directory.
    begun: Bits,
}

fn unsound<T>(what: String) -> Result<T> {
    Err(FatFault::Unsound(what).into())
}

impl Fat {
    /// Makes sure that it can be written, and counts what is free.
    pub(super) fn verify(&self) -> Result<Space> {
        let (size, volume) = (self.boot.size, self.disk.size());
        if size > volume {
            return Err(FatFault::CutShort { size, volume }.into());
        }
        if !self.table.copies_agree()? {
            return unsound("the tables differ from one another".into());
        }
        let (mut clusters, mut space) = self.chains()?;
        self.tree(&mut clusters)?;
        if self.boot.is_dirty || !self.table.is_clean()? {
            space.fresh = Fresh::default();
        }
        Ok(space)
    }

    /// No two clusters lead to the same one, and none to one that is free.
    fn chains(&self) -> Result<(Clusters, Space)> {
        let last = self.table.last();
        let mut clusters =
            Clusters { linked: Bits::new(last)?, used: Bits::new(last)?, begun: Bits::new(last)? };
        let mut space = Space::new(last)?;
        space.fresh = Fresh::of(self.boot.size);
        let mut visit = |cluster, entry| {
            match self.table.meaning(entry) {
                Some(Link::Bad) => return Ok(()),
                Some(Link::Next(next)) => {
                    self.table.check("the table", next)?;
                    if !clusters.linked.set(next) {
                        return unsound(format!("cluster {next:#x} is in two chains"));
                    }
                }
                None => {}
            }
            clusters.used.set(cluster);
            Ok(())
        };
        self.table.each(&mut visit, &mut |first, count| {
            space.fresh.add(Span::new(self.byte_of(first)?, u64::from(count) << self.boot.cluster.shift())?);
            space.add_run(first, count)
        })?;
        let pairs = clusters.linked.0.iter().zip(&clusters.used.0);
        if let Some((word, _)) = pairs.enumerate().find(|(_, (linked, used))| **linked & !**used != 0) {
            return unsound(format!("a chain leads to a free cluster near {:#x}", word.saturating_mul(64)));
        }
        Ok((clusters, space))
    }

    /// Every file and directory has a chain of its own.
    fn tree(&self, clusters: &mut Clusters) -> Result<()> {
        if let Root::Chain(first) = self.boot.root {
            self.begin(clusters, first, "the root directory")?;
        }
        let mut waiting = vec![(self.root_dir(), 0u32)];
        while let Some((dir, parent)) = waiting.pop() {
            let own = match dir.root {
                Root::Chain(first) if dir.node != super::volume::ROOT => first,
                _ => 0,
            };
            let mut number = 0u64;
            let mut ended = false;
            self.stretches(dir, &mut |start, block| {
                for (i, entry) in (0u64..).zip(block.chunks_exact(ENTRY_BYTES)) {
                    let raw = take::<RawEntry>(entry, 0, "directory entry")?;
                    let place = (start >> 5).saturating_add(i);
                    let first = number == 0;
                    number = number.saturating_add(1);
                    match raw.name[0] {
                        _ if own != 0 && number <= 2 => {
                            let (name, to) = if first { (DOT, own) } else { (DOT_DOT, parent) };
                            self.check_dot(&raw, place, name, to)?;
                        }
                        END => ended = true,
                        DELETED => {}
                        _ if ended => {
                            return unsound(format!("directory entry {place} is behind its directory's end"));
                        }
                        _ => {
                            if let Some(dir) = self.check_entry(&raw, place, clusters)? {
                                waiting.push((dir, own));
                            }
                        }
                    }
                }
                if waiting.len() > WAITING_MAX {
                    let (need, max) = (len64(waiting.len()), len64(WAITING_MAX));
                    return Err(Common::TooLarge { what: "the tree of directories", need, max }.into());
                }
                Ok(ControlFlow::Continue(()))
            })?;
            if own != 0 && number < 2 {
                return unsound(format!("the directory at cluster {own:#x} is too short"));
            }
        }
        Ok(())
    }

    /// `.` and `..` lead where they must.
    fn check_dot(&self, raw: &RawEntry, place: u64, name: [u8; 11], to: u32) -> Result<()> {
        let found = self.first_cluster(raw);
        // For the root FAT32 has two words.
        let is_root = matches!(self.boot.root, Root::Chain(root) if to == 0 && found == root);
        let is_dir = raw.attr & attr::MEANING & (attr::DIRECTORY | attr::VOLUME_ID) == attr::DIRECTORY;
        if raw.name != name || !is_dir || found != to && !is_root {
            let name = String::from_utf8_lossy(&name).trim_end().to_string();
            return unsound(format!("directory entry {place} is not {name:?} of its directory"));
        }
        Ok(())
    }

    /// An entry has clusters of its own; says which directory it is, if it is one.
    fn check_entry(&self, raw: &RawEntry, place: u64, clusters: &mut Clusters) -> Result<Option<Dir>> {
        if raw.attr & attr::VOLUME_ID != 0 {
            return Ok(None);
        }
        if [DOT, DOT_DOT].contains(&raw.name) {
            return unsound(format!("directory entry {place} is \".\" or \"..\" in the wrong place"));
        }
        let is_dir = raw.attr & attr::DIRECTORY != 0;
        let first = self.first_cluster(raw);
        if first == 0 {
            return if is_dir || raw.file_size.get() != 0 {
                unsound(format!("directory entry {place} has no clusters"))
            } else {
                Ok(None)
            };
        }
        self.begin(clusters, first, &format!("directory entry {place}"))?;
        Ok(is_dir.then_some(Dir { node: NodeId(place), root: Root::Chain(first) }))
    }

    /// A chain begins here, and belongs to nobody else.
    fn begin(&self, clusters: &mut Clusters, first: u32, what: &str) -> Result<()> {
        self.table.check("a directory entry", first)?;
        if !clusters.used.get(first) {
            return unsound(format!("{what} leads to cluster {first:#x}, which is free or bad"));
        }
        if clusters.linked.get(first) {
            return unsound(format!("{what} leads to cluster {first:#x}, the middle of a chain"));
        }
        if !clusters.begun.set(first) {
            return unsound(format!("{what} has cluster {first:#x} in common with another"));
        }
        Ok(())
    }
}
