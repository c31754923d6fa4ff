//! Clusters that have their places in the file before anything is written to them.
//!
//! What the disk shows stays as it is: only what reads as zeroes is given a place, and there are zeroes.

use super::fault::Fault;
use super::image::Qcow2;
use super::live::Work;
use crate::block::Span;
use crate::error::Result;
use crate::mapped::{self, BlockMap};
use crate::wire::index;

/// Clusters that are given their places at a time.
const BATCH: u64 = 1024;

impl Qcow2 {
    /// Gives every cluster of `span` that reads as zeroes a place in the file.
    pub(super) fn place_ahead(&self, span: Span) -> Result<()> {
        let cluster = self.rules.geometry.cluster;
        let size = self.state()?.tables.size;
        let mut rest = span;
        while !rest.is_empty() {
            let (run, done) = {
                let _moving = self.moving()?;
                let run = mapped::first_run(self, rest)?;
                let piece = rest.truncate(run.len);
                let whole = if piece.end() == size { piece.end() } else { cluster.floor(piece.end()) };
                let whole = piece.truncate(whole.saturating_sub(piece.start()));
                let is_whole = run.kind.is_zero() && cluster.aligned(whole.start()) && !whole.is_empty();
                (run, if is_whole { self.place_some(whole)? } else { 0 })
            };
            let done = if done > 0 {
                done
            } else {
                let (_, within) = cluster.split(rest.start());
                let part = rest.truncate(run.len.min(cluster.bytes().saturating_sub(within)));
                if run.kind.is_zero() {
                    // Something else shows in the same cluster.
                    self.write_live(part.start(), &vec![0; index(part.len())?])?;
                }
                part.len()
            };
            rest = rest.skip(done.max(1));
            self.limit_waiting()?;
        }
        Ok(())
    }

    /// Gives the first clusters of `span`, all of which is whole clusters of zeroes, their places; says how many bytes.
    fn place_some(&self, span: Span) -> Result<u64> {
        let cluster = self.rules.geometry.cluster;
        let (span, _claims) = self.claim(span, BATCH)?;
        let mut works = Vec::new();
        let mut rest = span;
        while !rest.is_empty() {
            let piece = rest.truncate(cluster.bytes());
            // Somebody may have written meanwhile.
            let run = mapped::first_run(self, piece)?;
            if run.kind.is_zero() && run.len >= piece.len() {
                works.push(self.work(piece.start(), piece)?);
            }
            rest = rest.skip(piece.len());
        }
        works.retain(|work| work.changed);
        let taken = self.find_room(&mut works)?;
        match self.blank_out(&works).and_then(|()| self.publish(&works)) {
            Ok(()) => Ok(span.len()),
            Err(e) => {
                // Nothing names them.
                self.with_allocator(|alloc| alloc.release(&taken))?;
                Err(e)
            }
        }
    }

    /// Sees to it that the host clusters read as zeroes.
    fn blank_out(&self, works: &[Work]) -> Result<()> {
        for work in works {
            let host = work.host.ok_or(Fault::NoCluster)?;
            // A data file ends with the disk.
            let len =
                if self.rules.data_file { work.piece.len() } else { self.rules.geometry.cluster.bytes() };
            self.reach(host.saturating_add(len))?;
            if !work.blank {
                self.data().write_zeroes(Span::new(host, len)?)?;
            }
        }
        Ok(())
    }
}
