//! Whether a filesystem is sound enough to be written: no cluster has two owners, and no directory more than it shows.
//!
//! The table is gone through once, and every directory. What is only lost (chains that no entry names) or only wrong
//! on paper (labels, hints) does no harm, and stays as it is; [`check`](super::check) looks at that too, and tells all
//! that is found instead of the first.

use std::collections::HashSet;
use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::check::{Finding, Severity};
use racker_formats::error::{Common, Kind, Result};
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
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn new(last: u32) -> Result<Self> {
        Ok(Self(vec![0; index(u64::from(last >> 6).saturating_add(1))?]))
    }

    pub(super) fn get(&self, number: u32) -> bool {
        let word = usize::try_from(number >> 6).ok().and_then(|w| self.0.get(w)).copied().unwrap_or(0);
        word & 1u64.wrapping_shl(number & 63) != 0
    }

    /// Those that are set here and not there.
    pub(super) fn without(&self, others: &Self) -> Self {
        Self(self.0.iter().zip(&others.0).map(|(mine, theirs)| mine & !theirs).collect())
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Sets a bit; says whether it was clear.
    pub(super) fn set(&mut self, number: u32) -> bool {
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
pub(super) struct Clusters {
    /// Another one leads here.
    linked: Bits,
    /// Part of a chain.
    pub(super) used: Bits,
    /// The first of a file or directory.
    pub(super) begun: Bits,
}

/// Findings that are told one by one; the others are counted.
const TOLD_MAX: usize = 10_000;

/// Where findings go.
#[derive(Debug, Default)]
pub(super) struct Sink {
    /// The first one that makes writing a danger ends everything, as an error.
    pub(super) strict: bool,
    pub(super) found: Vec<Finding>,
    /// Findings that are not told.
    pub(super) more: u64,
    /// Something was found that only a guess could mend.
    pub(super) doubtful: bool,
    /// So was something harmless that is not mended.
    pub(super) left: bool,
}

impl Sink {
    /// Something that makes writing a danger to other files.
    pub(super) fn unsound(&mut self, what: String) -> Result<()> {
        if self.strict {
            return Err(FatFault::Unsound(what).into());
        }
        self.doubtful = true;
        self.note(Severity::Corruption, 1, what);
        Ok(())
    }

    /// Something else.
    pub(super) fn note(&mut self, severity: Severity, count: u64, what: String) {
        if self.found.len() < TOLD_MAX {
            self.found.push(Finding { what, severity, repaired: false, count });
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// What a step has come to, or nothing if it met damage.
    fn sound<T>(&mut self, place: &str, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(e) if !self.strict && e.kind() == Kind::Corrupt => {
                self.unsound(format!("{place}: {e}"))?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

impl Fat {
    /// Makes sure that it can be written, and counts what is free.
    pub(super) fn verify(&self) -> Result<Space> {
        let (size, volume) = (self.boot.size, self.disk.size());
        if size > volume {
            return Err(FatFault::CutShort { size, volume }.into());
        }
        let mut sink = Sink { strict: true, ..Sink::default() };
        let (_, mut space) = self.examine(&mut sink)?;
        if self.boot.is_dirty || !self.table.is_clean()? {
            space.fresh = Fresh::default();
        }
        Ok(space)
    }

    /// Goes through the tables and all directories.
    pub(super) fn examine(&self, sink: &mut Sink) -> Result<(Clusters, Space)> {
        if !self.table.copies_agree()? {
            sink.unsound("the tables differ from one another".into())?;
        }
        let (mut clusters, space) = self.chains(sink)?;
        self.tree(&mut clusters, sink)?;
        Ok((clusters, space))
    }

    /// No two clusters lead to the same one, and none to one that is free.
    fn chains(&self, sink: &mut Sink) -> Result<(Clusters, Space)> {
        let last = self.table.last();
        let mut clusters =
            Clusters { linked: Bits::new(last)?, used: Bits::new(last)?, begun: Bits::new(last)? };
        let mut space = Space::new(last)?;
        space.fresh = Fresh::of(self.boot.size);
        let mut visit = |cluster, entry| {
            match self.table.meaning(entry) {
                Some(Link::Bad) => return Ok(()),
                Some(Link::Next(next)) => {
                    let checked = self.table.check("the table", next);
                    if sink.sound(&format!("cluster {cluster:#x}"), checked)?.is_some()
                        && !clusters.linked.set(next)
                    {
                        sink.unsound(format!("cluster {next:#x} is in two chains"))?;
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
            sink.unsound(format!("a chain leads to a free cluster near {:#x}", word.saturating_mul(64)))?;
        }
        Ok((clusters, space))
    }

    /// Every file and directory has a chain of its own.
    fn tree(&self, clusters: &mut Clusters, sink: &mut Sink) -> Result<()> {
        if let Root::Chain(first) = self.boot.root
            && !self.begin(clusters, first, "the root directory", sink)?
        {
            return Ok(());
        }
        let mut waiting = vec![(self.root_dir(), 0u32)];
        while let Some((dir, parent)) = waiting.pop() {
            let own = match dir.root {
                Root::Chain(first) if dir.node != super::volume::ROOT => first,
                _ => 0,
            };
            let read = self.check_dir(dir, (own, parent), clusters, sink, &mut waiting);
            sink.sound(&format!("the directory at cluster {own:#x}"), read)?;
        }
        Ok(())
    }

    /// Goes through one directory, whose first cluster is `own`; those in it wait for their turn.
    fn check_dir(
        &self,
        dir: Dir,
        (own, parent): (u32, u32),
        clusters: &mut Clusters,
        sink: &mut Sink,
        waiting: &mut Vec<(Dir, u32)>,
    ) -> Result<()> {
        let mut number = 0u64;
        let mut ended = false;
        let mut names = HashSet::new();
        self.stretches(dir, &mut |start, block| {
            for (i, entry) in (0u64..).zip(block.chunks_exact(ENTRY_BYTES)) {
                let raw = take::<RawEntry>(entry, 0, "directory entry")?;
                let place = (start >> 5).saturating_add(i);
                let first = number == 0;
                number = number.saturating_add(1);
                match raw.name[0] {
                    _ if own != 0 && number <= 2 => {
                        let (name, to) = if first { (DOT, own) } else { (DOT_DOT, parent) };
                        self.check_dot(&raw, place, name, to, sink)?;
                    }
                    END => ended = true,
                    DELETED => {}
                    _ if ended => {
                        sink.unsound(format!("directory entry {place} is behind its directory's end"))?;
                    }
                    _ => {
                        if raw.attr & attr::VOLUME_ID == 0 && !names.insert(raw.name) {
                            sink.unsound(format!("directory entry {place} has the name of another"))?;
                        }
                        if let Some(dir) = self.check_entry(&raw, place, clusters, sink)? {
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
            sink.unsound(format!("the directory at cluster {own:#x} is too short"))?;
        }
        Ok(())
    }

    /// `.` and `..` lead where they must.
    fn check_dot(&self, raw: &RawEntry, place: u64, name: [u8; 11], to: u32, sink: &mut Sink) -> Result<()> {
        let found = self.first_cluster(raw);
        // For the root FAT32 has two words.
        let is_root = matches!(self.boot.root, Root::Chain(root) if to == 0 && found == root);
        let is_dir = raw.attr & attr::MEANING & (attr::DIRECTORY | attr::VOLUME_ID) == attr::DIRECTORY;
        if raw.name != name || !is_dir || found != to && !is_root {
            let name = String::from_utf8_lossy(&name).trim_end().to_string();
            sink.unsound(format!("directory entry {place} is not {name:?} of its directory"))?;
        }
        Ok(())
    }

    /// An entry has clusters of its own; says which directory it is, if it is one.
    fn check_entry(
        &self,
        raw: &RawEntry,
        place: u64,
        clusters: &mut Clusters,
        sink: &mut Sink,
    ) -> Result<Option<Dir>> {
        if raw.attr & attr::VOLUME_ID != 0 {
            let is_long = raw.attr & attr::MEANING == attr::LONG_NAME;
            if !is_long && !sink.strict && self.first_cluster(raw) != 0 {
                // Nobody's to free: this may be a file whose attributes are damaged.
                sink.left = true;
                sink.note(
                    Severity::Corruption,
                    1,
                    format!("directory entry {place} is a label with clusters"),
                );
            }
            return Ok(None);
        }
        if [DOT, DOT_DOT].contains(&raw.name) {
            sink.unsound(format!("directory entry {place} is \".\" or \"..\" in the wrong place"))?;
            return Ok(None);
        }
        let is_dir = raw.attr & attr::DIRECTORY != 0;
        let first = self.first_cluster(raw);
        if first == 0 {
            if is_dir || raw.file_size.get() != 0 {
                sink.unsound(format!("directory entry {place} has no clusters"))?;
            }
            return Ok(None);
        }
        let begun = self.begin(clusters, first, &format!("directory entry {place}"), sink)?;
        // Only where no two chains meet are all of them together no longer than the table.
        if begun && !is_dir && !sink.doubtful {
            self.check_length(raw, place, first, sink)?;
        }
        Ok((begun && is_dir).then_some(Dir { node: NodeId(place), root: Root::Chain(first) }))
    }

    /// A file's chain holds all of its bytes. A longer one does no harm.
    fn check_length(&self, raw: &RawEntry, place: u64, first: u32, sink: &mut Sink) -> Result<()> {
        let need = self.boot.cluster.count(raw.file_size.get().into());
        let length = self.table.end(first);
        let Some((clusters, _)) = sink.sound(&format!("directory entry {place}"), length)? else {
            return Ok(());
        };
        if clusters < need {
            let size = raw.file_size.get();
            sink.unsound(format!(
                "directory entry {place} has {size} bytes, and its chain {clusters} clusters"
            ))?;
        } else if clusters > need && !sink.strict {
            let count = clusters.saturating_sub(need);
            sink.left = true;
            sink.note(
                Severity::Leak,
                count,
                format!("directory entry {place}: {count} clusters behind the file's end"),
            );
        }
        Ok(())
    }

    /// A chain begins here, and belongs to nobody else; says whether that is so.
    fn begin(&self, clusters: &mut Clusters, first: u32, what: &str, sink: &mut Sink) -> Result<bool> {
        if sink.sound(what, self.table.check("a directory entry", first))?.is_none() {
            return Ok(false);
        }
        let wrong = if !clusters.used.get(first) {
            "which is free or bad"
        } else if clusters.linked.get(first) {
            "the middle of a chain"
        } else if !clusters.begun.set(first) {
            "as another does"
        } else {
            return Ok(true);
        };
        sink.unsound(format!("{what} leads to cluster {first:#x}, {wrong}"))?;
        Ok(false)
    }
}
