//! What becomes of one cluster when parts of it change.

use super::entry::{Entry, EntryRules, Plain};
use crate::block::{Change, ChangeKind, Disk, Span};
use crate::error::{Common, Result};
use crate::mapped::{Place, parent_run};

/// What decides beside the entry and the changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    pub(super) rules: EntryRules,
    pub(super) parent: Option<&'a Disk>,
    /// Virtual size in bytes.
    pub(super) size: u64,
}

/// What a cluster shall be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Subclusters whose bytes lie in the host cluster.
    pub(super) data: u32,
    /// Subclusters that read as zeroes.
    pub(super) zero: u32,
    /// Bytes change, or come from elsewhere: another host cluster is needed.
    pub(super) fresh: bool,
}

/// One subcluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing changes.
    Same,
    /// Reads as zeroes.
    Zero,
    /// Nothing is there.
    Absent,
    /// New bytes, or old and new ones.
    Data,
}

impl Setting<'_> {
    /// What the cluster at `at` becomes; `pieces` touch it. `None` if the entry stays as it is.
    pub(super) fn outcome(&self, entry: &Entry, at: u64, pieces: &[Change]) -> Result<Option<Outcome>> {
        let geometry = &self.rules.geometry;
        let packed = matches!(entry, Entry::Packed(_));
        let old = match entry {
            Entry::Packed(_) => Plain::default(),
            Entry::Plain(plain) => *plain,
        };
        let mut new = Outcome::default();
        let count = geometry.cluster.bytes() >> geometry.subcluster.shift();
        for number in 0..u32::try_from(count).map_err(|_| Common::Index(count))? {
            let from = at.saturating_add(u64::from(number).wrapping_shl(geometry.subcluster.shift()));
            let len = geometry.subcluster.bytes().min(self.size.saturating_sub(from));
            let span = Span::new(from, len)?;
            let bit = 1u32.wrapping_shl(number);
            match self.part(entry.place(number, geometry), span, pieces)? {
                // What was compressed with the rest has to be stored again.
                Part::Same if packed => new.data |= bit,
                Part::Same => {
                    new.data |= old.allocated & bit;
                    new.zero |= old.zero & bit;
                }
                Part::Zero => new.zero |= bit,
                Part::Absent => {}
                Part::Data => {
                    new.data |= bit;
                    new.fresh = true;
                }
            }
        }
        new.fresh |= packed && new.data != 0;
        let same = !new.fresh && !packed && new.data == old.allocated && new.zero == old.zero;
        Ok((!same).then_some(new))
    }

    fn part(&self, old: Place, span: Span, pieces: &[Change]) -> Result<Part> {
        let mut covered = 0u64;
        let mut data = false;
        for piece in pieces {
            if let Some(common) = piece.span.intersect(span) {
                covered = covered.saturating_add(common.len());
                data |= piece.kind == ChangeKind::Data;
            }
        }
        if covered == 0 {
            return Ok(Part::Same);
        }
        if data {
            return Ok(Part::Data);
        }
        let was_zero = old == Place::Zero || (old == Place::Absent && self.nothing_below(span)?);
        if was_zero {
            return Ok(Part::Same);
        }
        if covered < span.len() {
            return Ok(Part::Data);
        }
        if !self.rules.version2 {
            return Ok(Part::Zero);
        }
        // Version 2 has no word for zero but "nothing is there".
        Ok(if self.nothing_below(span)? { Part::Absent } else { Part::Data })
    }

    /// Whether all of `span` would read as zeroes if nothing were allocated here.
    fn nothing_below(&self, span: Span) -> Result<bool> {
        if span.is_empty() {
            return Ok(true);
        }
        let run = parent_run(self.parent, span)?;
        Ok(run.kind.is_zero() && run.len >= span.len())
    }
}

/// Cuts sorted changes at cluster borders: calls `each` with a cluster's offset and the changes that touch it.
pub(super) fn by_cluster(
    pieces: &[Change],
    cluster: crate::block::BlockSize,
    mut each: impl FnMut(u64, &[Change]) -> Result<()>,
) -> Result<()> {
    let mut rest = pieces;
    let mut from = 0u64;
    while let Some(first) = rest.first() {
        let at = cluster.floor(first.span.start()).max(from);
        let end = at.saturating_add(cluster.bytes());
        let count = rest.iter().take_while(|p| p.span.start() < end).count();
        let (now, _) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        each(at, now)?;
        let done = now.iter().take_while(|p| p.span.end() <= end).count();
        rest = rest.get(done..).unwrap_or_default();
        from = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::entry::RawEntry;
    use super::super::header::Geometry;
    use super::*;
    use crate::block::BlockSize;

    fn change(start: u64, len: u64, kind: ChangeKind) -> Change {
        Change { span: Span::new(start, len).unwrap(), kind }
    }

    #[test]
    fn a_change_over_three_clusters_is_seen_by_each() {
        let pieces = [change(10, 5, ChangeKind::Data), change(1000, 1100, ChangeKind::Zero)];
        let mut seen = Vec::new();
        by_cluster(&pieces, BlockSize::from_bytes(1024).unwrap(), |at, p| {
            seen.push((at, p.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(0, 2), (1024, 1), (2048, 1)]);
    }

    #[test]
    fn zeroing_one_subcluster_keeps_the_host_cluster() {
        let rules =
            EntryRules { geometry: Geometry::new(16, true, 4).unwrap(), version2: false, data_file: false };
        let setting = Setting { rules, parent: None, size: 1 << 20 };
        let entry = rules.decode(RawEntry { word: 0x50000, bitmap: 0b1011 }).unwrap();
        let new = setting.outcome(&entry, 0x10000, &[change(0x10000, 2048, ChangeKind::Zero)]).unwrap();
        assert_eq!(new, Some(Outcome { data: 0b1010, zero: 1, fresh: false }));
        let new = setting.outcome(&entry, 0x10000, &[change(0x11000, 2048, ChangeKind::Zero)]).unwrap();
        assert_eq!(new, None);
        let new = setting.outcome(&entry, 0x10000, &[change(0x10000, 1024, ChangeKind::Zero)]).unwrap();
        assert_eq!(new, Some(Outcome { data: 0b1011, zero: 0, fresh: true }));
    }
}
