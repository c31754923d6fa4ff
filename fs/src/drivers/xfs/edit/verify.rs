//! What is asked of a group before anything in it is changed: whether its structures contradict each other.
//!
//! Checksums are right where a program wrote nonsense. Allocating from a free space tree that is wrong would overwrite
//! somebody's data, so both trees, the spare blocks, the inodes and the counts of the headers are compared, and what
//! is allocated or freed later is held against inodes, the log and, if there is one, the reverse map. It takes a
//! walk over the free runs and the chunks of inodes of the groups that an edit uses; files are not looked at.

use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::Result;

use super::super::fault::Fault;
use super::group::Group;
use super::records::{CHUNK_INODES, Chunk, Run};

fn contradiction<T>(what: &'static str, why: &'static str) -> Result<T> {
    Err(Fault::Structure { what, why }.into())
}

impl Group {
    /// Learns where inodes and the log are; the `first` time all is compared. Returns what is free then.
    pub(super) fn verify(&mut self, first: bool) -> Result<Vec<Span>> {
        let chunks = self.chunks()?;
        let log = self.space.ground.volume.sb.log;
        let (ag, start) = self.space.ground.volume.sb.split(log.start)?;
        if ag == self.space.ground.ag {
            self.space.take_up(Run { start: start.0, len: log.blocks });
        }
        if !first {
            return Ok(Vec::new());
        }
        let free = self.space.free_spans()?;
        self.verify_inodes(&chunks)?;
        let mut used = self.space.roots();
        used.extend(self.sharing.as_ref().map(super::refcount::Sharing::root));
        used.extend(self.inodes.roots());
        for block in self.space.spares()? {
            if used.contains(&block) {
                return contradiction("AGFL", "a spare block is in use");
            }
            used.push(block);
        }
        for block in used {
            let run = Run { start: block, len: 1 };
            self.space.check_taken(run)?;
            if self.space.free_within(run)? {
                return contradiction("free space", "a block of a tree, or a spare one, is free");
            }
        }
        Ok(free)
    }

    /// All chunks of inodes; their blocks are known to be taken from then on.
    fn chunks(&mut self) -> Result<Vec<Chunk>> {
        let mut all = Vec::new();
        self.inodes.all.scan(0, u32::MAX, &mut |chunk| {
            all.push(chunk);
            Ok(ControlFlow::Continue(()))
        })?;
        let inopblog = self.space.ground.volume.sb.inopblog;
        let per_block = 1u32.checked_shl(inopblog).unwrap_or(u32::MAX);
        for chunk in &all {
            let mut place = 0u32;
            while place < u32::from(CHUNK_INODES) {
                if chunk.present().checked_shr(place).unwrap_or(0) & 1 == 1 {
                    let start = chunk.first.saturating_add(place).checked_shr(inopblog).unwrap_or(0);
                    self.space.take_up(Run { start, len: 1 });
                }
                place = place.saturating_add(per_block);
            }
        }
        Ok(all)
    }

    /// Compares the trees of inodes with each other, with the counts and with the free space.
    fn verify_inodes(&mut self, chunks: &[Chunk]) -> Result<()> {
        let sum = |of: fn(&Chunk) -> u8| chunks.iter().map(|c| u64::from(of(c))).fold(0, u64::saturating_add);
        let (count, free) = (sum(|c| c.count), sum(|c| c.free_count));
        let raw = &self.inodes.agi.raw;
        if (u64::from(raw.agi_count.get()), u64::from(raw.agi_freecount.get())) != (count, free) {
            return contradiction("AGI", "counts other inodes than the inobt has");
        }
        if let Some(tree) = self.inodes.free.as_mut() {
            let mut with_free = chunks.iter().filter(|c| c.free_count > 0);
            let mut same = true;
            tree.scan(0, u32::MAX, &mut |chunk| {
                same &= with_free.next() == Some(&chunk);
                Ok(ControlFlow::Continue(()))
            })?;
            if !same || with_free.next().is_some() {
                return contradiction("finobt", "has other free inodes than the inobt");
            }
        }
        for run in self.space.taken() {
            if self.space.free_within(run)? {
                return contradiction("free space", "blocks of inodes or of the log are free");
            }
        }
        Ok(())
    }
}
