//! What the log promised and did not do: carried out in its order, as the next mount would.

use racker_formats::error::{Result, Within};

use super::super::bmap::Mapping;
use super::super::fault::Fault;
use super::super::inode::{ForkKind, Inode};
use super::super::log::{Intent, MapChange, Promise, RefcountChange, RefcountOp, RmapChange, RmapOp};
use super::super::units::{AgNo, FileBlock, InodeNo};
use super::super::{log, units};
use super::Edit;
use super::attrs::big_counts;
use super::fork::Site;
use super::owner::Owner;
use super::records::Run;

impl Edit {
    /// Does all that is left to do after the log was replayed.
    pub(in crate::drivers::xfs) fn recover(&mut self, intents: &[Intent]) -> Result<()> {
        self.recover_all(intents).within(|| "finishing what the log began")
    }

    fn recover_all(&mut self, intents: &[Intent]) -> Result<()> {
        self.changed = true;
        // What was promised must be kept, even if the last blocks go to it.
        self.budget = u64::MAX;
        for intent in intents {
            self.keep(&intent.what).within(|| format!("promise of {}", intent.lsn))?;
            self.breathe()?;
        }
        self.free_unlinked()?;
        self.free_leftovers()?;
        self.write_back()
    }

    fn keep(&mut self, promise: &Promise) -> Result<()> {
        match promise {
            Promise::Free(runs) => {
                for run in runs {
                    let (ag, run) = self.within_group(run)?;
                    self.group(ag)?.release_anybodys(run)?;
                }
            }
            Promise::Rmap(changes) => {
                for change in changes {
                    self.keep_rmap(change)?;
                }
            }
            Promise::Refcount(changes) => {
                for change in changes {
                    self.keep_refcount(change)?;
                }
            }
            Promise::Map(changes) => {
                for change in changes {
                    self.keep_map(change)?;
                }
            }
            Promise::Attr { .. } => {
                return Err(Fault::Unsupported {
                    what: "finishing a change of attributes that the log began",
                }
                .into());
            }
            Promise::Exchange { .. } => {
                return Err(
                    Fault::Unsupported { what: "finishing an exchange of files that the log began" }.into()
                );
            }
            Promise::Realtime(_) => {
                return Err(Fault::Unsupported { what: "finishing a change of the realtime device" }.into());
            }
        }
        Ok(())
    }

    fn within_group(&self, run: &log::Run) -> Result<(AgNo, Run)> {
        let (ag, start) = self.volume.sb.split(run.start)?;
        Ok((ag, Run { start: start.0, len: run.len }))
    }

    fn keep_rmap(&mut self, change: &RmapChange) -> Result<()> {
        let (ag, run) = self.within_group(&change.run)?;
        let space = &mut self.group(ag)?.space;
        space.top_up()?;
        let owner = |unwritten| -> Result<Owner> {
            let ino = InodeNo(change.owner);
            Ok(match Owner::special_from(change.owner) {
                Some(owner) => owner,
                None if change.tree => Owner::fork_tree(ino, change.fork),
                None => Owner::content(ino, change.fork, change.at.0, unwritten),
            })
        };
        let now = owner(change.unwritten)?;
        match change.op {
            RmapOp::Map | RmapOp::MapShared | RmapOp::Alloc => space.map(run, now),
            RmapOp::Unmap | RmapOp::UnmapShared | RmapOp::Free => space.unmap(run, now),
            RmapOp::Convert | RmapOp::ConvertShared => {
                space.unmap(run, owner(!change.unwritten)?)?;
                space.map(run, now)
            }
        }
    }

    fn keep_refcount(&mut self, change: &RefcountChange) -> Result<()> {
        let (ag, run) = self.within_group(&change.run)?;
        let group = self.group(ag)?;
        let Some(sharing) = group.sharing.as_mut() else {
            let why = "counts of shared blocks on a filesystem without them";
            return Err(Fault::Structure { what: "log", why }.into());
        };
        group.space.top_up()?;
        match change.op {
            RefcountOp::Increase => sharing.increase(run, &mut group.space),
            RefcountOp::Decrease => {
                for unused in sharing.decrease(run, &mut group.space)? {
                    group.space.free(unused)?;
                }
                Ok(())
            }
            RefcountOp::AllocCow => sharing.stage(run, &mut group.space),
            RefcountOp::FreeCow => sharing.unstage(run, &mut group.space),
        }
    }

    /// Changes one mapping of a file. Counts of shared blocks and frees are promises of their own.
    fn keep_map(&mut self, change: &MapChange) -> Result<()> {
        let volume = std::sync::Arc::clone(&self.volume);
        let mut inode = volume.inode(change.ino)?;
        let mut all =
            volume.mappings(&inode, change.fork, FileBlock(0))?.collect::<Result<Vec<Mapping>>>()?;
        let len = u64::from(change.run.len);
        let new = Mapping { at: change.at, start: change.run.start, len, unwritten: change.unwritten };
        if change.map {
            insert(&mut all, new)?;
        } else {
            remove(&mut all, new)?;
        }
        let (ag, run) = self.within_group(&change.run)?;
        let owner = Owner::content(change.ino, change.fork, change.at.0, change.unwritten);
        let space = &mut self.group(ag)?.space;
        space.top_up()?;
        if change.map {
            space.map(run, owner)?
        } else {
            space.unmap(run, owner)?
        }
        self.rebuild(&mut inode, change.fork, &all)?;
        inode.store(&volume).map(drop)
    }

    /// Writes a fork anew with these extents.
    fn rebuild(&mut self, inode: &mut Inode, kind: ForkKind, all: &[Mapping]) -> Result<()> {
        let Some(room) = inode.fork(kind).map(|f| f.room) else {
            let why = "a promise for a fork that is not there";
            return Err(Fault::Fork { ino: inode.ino.0, fork: kind.name(), why }.into());
        };
        let volume = std::sync::Arc::clone(&self.volume);
        let before = volume.mappings(inode, kind, FileBlock(0))?;
        let before =
            before.collect::<Result<Vec<Mapping>>>()?.iter().map(|m| m.len).fold(0, u64::saturating_add);
        let tree = self.release_tree(inode, kind)?;
        let (near, _, _) = volume.sb.split_inode(inode.ino)?;
        let built =
            self.build_fork(Site { ino: inode.ino, kind, room, big: big_counts(inode) }, all, near)?;
        let after = all.iter().map(|m| m.len).fold(built.tree_blocks, u64::saturating_add);
        inode.set_fork(kind, &built)?;
        let core = inode.core()?;
        let blocks = core.di_nblocks.get().checked_sub(before.saturating_add(tree));
        let why = "the fork has more blocks than the inode says";
        let blocks = blocks.ok_or(Fault::Fork { ino: inode.ino.0, fork: kind.name(), why })?;
        inode.core()?.di_nblocks = blocks.saturating_add(after).into();
        Ok(())
    }
}

fn fault<T>(why: &'static str) -> Result<T> {
    Err(Fault::Structure { what: "promise to change a file's mappings", why }.into())
}

/// Adds a mapping where the file has a hole; joins it with its neighbours.
fn insert(all: &mut Vec<Mapping>, new: Mapping) -> Result<()> {
    let place = all.partition_point(|m| m.at < new.at);
    let left = place.checked_sub(1).and_then(|i| all.get(i)).copied();
    let right = all.get(place).copied();
    if left.is_some_and(|l| l.end() > new.at) || right.is_some_and(|r| new.end() > r.at) {
        return fault("blocks are there already");
    }
    all.insert(place, new);
    join(all, place);
    if let Some(before) = place.checked_sub(1) {
        join(all, before);
    }
    Ok(())
}

/// Joins the mapping at `place` with the next one, if they are one.
fn join(all: &mut Vec<Mapping>, place: usize) {
    let next = place.saturating_add(1);
    let (Some(a), Some(b)) = (all.get(place).copied(), all.get(next).copied()) else { return };
    let follows =
        a.end() == b.at && a.start.0.saturating_add(a.len) == b.start.0 && a.unwritten == b.unwritten;
    let len = a.len.saturating_add(b.len);
    if follows && len <= super::pour::EXTENT_BLOCKS_MAX {
        all.remove(next);
        if let Some(joined) = all.get_mut(place) {
            joined.len = len;
        }
    }
}

/// Takes a mapping out of the one it is a part of.
fn remove(all: &mut Vec<Mapping>, gone: Mapping) -> Result<()> {
    let place = all.partition_point(|m| m.end() <= gone.at);
    let Some(whole) = all.get(place).copied() else { return fault("blocks are not there") };
    let skip = gone.at.0.checked_sub(whole.at.0);
    let same = skip.is_some_and(|s| whole.start.0.saturating_add(s) == gone.start.0);
    if !same || gone.end() > whole.end() || whole.unwritten != gone.unwritten {
        return fault("blocks are not where they should be");
    }
    all.remove(place);
    let behind = whole.end().0.saturating_sub(gone.end().0);
    let start = units::FsBlock(gone.start.0.saturating_add(gone.len));
    let tail = Mapping { at: gone.end(), start, len: behind, unwritten: whole.unwritten };
    let head = Mapping { len: skip.unwrap_or(0), ..whole };
    for part in [tail, head].into_iter().filter(|m| m.len > 0) {
        all.insert(place, part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::xfs::units::FsBlock;

    fn map(at: u64, start: u64, len: u64) -> Mapping {
        Mapping { at: FileBlock(at), start: FsBlock(start), len, unwritten: false }
    }

    #[test]
    fn mappings_come_out_and_go_in() {
        let mut all = vec![map(0, 100, 10), map(20, 200, 5)];
        remove(&mut all, map(3, 103, 4)).unwrap();
        assert_eq!(all, [map(0, 100, 3), map(7, 107, 3), map(20, 200, 5)]);
        assert!(remove(&mut all, map(20, 201, 1)).is_err());
        assert!(insert(&mut all, map(2, 300, 2)).is_err());
        insert(&mut all, map(3, 103, 4)).unwrap();
        assert_eq!(all, [map(0, 100, 10), map(20, 200, 5)]);
        insert(&mut all, map(10, 500, 10)).unwrap();
        assert_eq!(all, [map(0, 100, 10), map(10, 500, 10), map(20, 200, 5)]);
    }
}
