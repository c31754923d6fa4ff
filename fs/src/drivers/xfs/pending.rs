//! Mappings that the log promised and nobody made: a filesystem that is only read sees them as if they were there.

use std::collections::BTreeMap;

use racker_formats::error::Result;

use super::bmap::Mapping;
use super::fault::Fault;
use super::inode::ForkKind;
use super::log::{Intent, MapChange, Promise};
use super::units::{FileBlock, FsBlock, InodeNo};

/// Changes of mappings that are not on the volume, in the order of the log.
#[derive(Debug, Default)]
pub(super) struct Pending(BTreeMap<(InodeNo, ForkKind), Vec<MapChange>>);

impl Pending {
    /// What the intents that are left mean to a reader. Those that only account for space mean nothing.
    pub(super) fn new(intents: Vec<Intent>) -> Result<Self> {
        let mut all = Self::default();
        for intent in intents {
            match intent.what {
                Promise::Map(changes) => {
                    for change in changes {
                        all.0.entry((change.ino, change.fork)).or_default().push(change);
                    }
                }
                Promise::Exchange { .. } => {
                    return Err(Fault::Unsupported { what: "an exchange of contents cut short" }.into());
                }
                Promise::Attr { ino, parent: false } => {
                    tracing::warn!(inode = ino.0, "the change of an extended attribute was cut short");
                }
                Promise::Attr { .. }
                | Promise::Free(_)
                | Promise::Rmap(_)
                | Promise::Refcount(_)
                | Promise::Realtime(_) => {}
            }
        }
        Ok(all)
    }

    /// Whether the fork has changes.
    pub(super) fn concerns(&self, ino: InodeNo, fork: ForkKind) -> bool {
        self.0.contains_key(&(ino, fork))
    }

    /// The fork's mappings with its changes.
    pub(super) fn apply(&self, ino: InodeNo, fork: ForkKind, mut all: Vec<Mapping>) -> Vec<Mapping> {
        for change in self.0.get(&(ino, fork)).into_iter().flatten() {
            let new = Mapping {
                at: change.at,
                start: change.run.start,
                len: change.run.len.into(),
                unwritten: change.unwritten,
            };
            all = all.into_iter().flat_map(|old| outside(old, &new)).flatten().collect();
            if change.map {
                let place = all.partition_point(|old| old.at < new.at);
                all.insert(place, new);
            }
        }
        all
    }
}

/// The parts of `old` before and behind the place of `new`.
fn outside(old: Mapping, new: &Mapping) -> [Option<Mapping>; 2] {
    let before = new.at.0.min(old.end().0).saturating_sub(old.at.0);
    let before = (before > 0).then_some(Mapping { len: before, ..old });
    let skip = new.end().0.max(old.at.0).saturating_sub(old.at.0);
    let behind = old.len.checked_sub(skip).filter(|len| *len > 0).map(|len| Mapping {
        at: FileBlock(old.at.0.saturating_add(skip)),
        start: FsBlock(old.start.0.saturating_add(skip)),
        len,
        ..old
    });
    [before, behind]
}

#[cfg(test)]
mod tests {
    use super::super::log::Run;
    use super::super::units::Lsn;
    use super::*;

    fn mapping(at: u64, start: u64, len: u64) -> Mapping {
        Mapping { at: FileBlock(at), start: FsBlock(start), len, unwritten: false }
    }

    fn change(map: bool, at: u64, start: u64, len: u32) -> MapChange {
        let run = Run { start: FsBlock(start), len };
        MapChange { map, ino: InodeNo(5), fork: ForkKind::Data, at: FileBlock(at), run, unwritten: false }
    }

    #[test]
    fn promised_mappings_are_seen() {
        let changes = vec![change(false, 12, 0, 3), change(true, 13, 900, 1), change(true, 30, 950, 2)];
        let pending = Pending::new(vec![Intent { lsn: Lsn(1), what: Promise::Map(changes) }]).unwrap();
        assert!(!pending.concerns(InodeNo(5), ForkKind::Attr));
        let seen = pending.apply(InodeNo(5), ForkKind::Data, vec![mapping(0, 100, 5), mapping(10, 200, 10)]);
        let expected = [
            mapping(0, 100, 5),
            mapping(10, 200, 2),
            mapping(13, 900, 1),
            mapping(15, 205, 5),
            mapping(30, 950, 2),
        ];
        assert_eq!(seen, expected);
    }
}
