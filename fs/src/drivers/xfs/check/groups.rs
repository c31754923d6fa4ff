//! Allocation groups: headers, and the trees that they name.

use std::sync::Arc;

use racker_formats::check::Severity;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, take};
use zerocopy::big_endian::U32;

use super::super::edit::ground::Ground;
use super::super::edit::header::{GroupHeader, Header};
use super::super::edit::records::{ByLength, ByPlace, Chunk, Counts, FreeInodes, Inodes, Owners, Run};
use super::super::edit::spare::Ring;
use super::super::layout::{RawAgf, RawAgfl, RawAgi};
use super::super::superblock::{Features2, RoCompat};
use super::super::units::{AgNo, Lsn, NULL_AG_BLOCK};
use super::Checker;
use super::holder::Holder;
use super::notes::Mend;
use super::tree::Walked;
use super::usage::{Claim, State};

/// `agf_versionnum` and `agi_versionnum`.
const HEADER_VERSION: u32 = 1;
/// What the groups add up to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    free_blocks: u64,
    inodes: u64,
    free_inodes: u64,
    /// A group could not be counted.
    pub(super) unknown: bool,
}

impl Totals {
    /// `sb_icount`, `sb_ifree`, `sb_fdblocks`.
    pub(super) fn numbers(&self) -> [u64; 3] {
        [self.inodes, self.free_inodes, self.free_blocks]
    }
}

/// Free blocks as a tree lists them.
#[derive(Clone, Copy, Debug, Default)]
struct Free {
    blocks: u64,
    longest: u32,
    /// Runs that the other tree does not have.
    strange: u64,
}

/// The block of `Checker::groups` of one group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GroupState {
    /// Some of its trees could not be read: what nobody spoke of may be theirs.
    pub(super) blind: bool,
    /// Root and levels of the tree of counts.
    pub(super) counts: Option<(u32, u32)>,
    /// Free blocks and the longest run of them, as counted.
    pub(super) free: Option<(u32, u32)>,
    /// Inodes and free ones, as counted.
    pub(super) inodes: Option<(u32, u32)>,
}

impl Checker<'_> {
    /// Goes through the headers and trees of all groups; in later rounds of those that are at hand then.
    pub(super) fn groups(&mut self) -> Result<()> {
        let counted = self.totals;
        let groups =
            if self.notes.muted { self.usage.first()..self.usage.end() } else { 0..self.volume.sb.ag_count };
        for ag in groups.map(AgNo) {
            let ground = Ground::new(Arc::clone(&self.volume), ag)?;
            self.queue = self.volume.sb.ro_compat.contains(RoCompat::RMAPBT).then(Vec::new);
            let headers = Run { start: 0, len: ground.header_blocks() };
            self.claim(ag, headers, Holder::Headers)?;
            self.log_blocks(&ground)?;
            if ag.0 > 0 && !self.notes.muted {
                self.copy(&ground)?;
            }
            self.space(&ground)?;
            self.inode_trees(&ground)?;
            for (run, holder) in self.queue.take().unwrap_or_default() {
                self.owned(&ground, run, holder)?;
            }
        }
        if self.notes.muted {
            self.totals = counted;
        }
        Ok(())
    }

    fn log_blocks(&mut self, ground: &Ground) -> Result<()> {
        let log = self.volume.sb.log;
        let (ag, start) = self.volume.sb.split(log.start)?;
        if ag == ground.ag {
            self.claim(ag, Run { start: start.0, len: log.blocks }, Holder::Log)?;
        }
        Ok(())
    }

    fn header<T: GroupHeader>(&mut self, ground: &Ground, lsn: impl Fn(&T) -> u64) -> Result<Option<T>> {
        let header = Header::<T>::read(ground);
        let Some(header) = self.notes.look(header)? else { return Ok(None) };
        if self.volume.sb.v5 {
            self.stamp(Lsn(lsn(&header.raw)))?;
        }
        Ok(Some(header.raw))
    }

    fn blind(&mut self, ground: &Ground) {
        self.totals.unknown = true;
        self.group_state(ground.ag).blind = true;
    }

    /// Free space, spare blocks, owners, counts of shared blocks.
    fn space(&mut self, ground: &Ground) -> Result<()> {
        let Some(agf) = self.header::<RawAgf>(ground, |h| h.agf_lsn.get())? else {
            self.blind(ground);
            return Ok(());
        };
        let ag = ground.ag.0;
        let place = format!("AGF of group {ag}");
        self.exactly(&place, "agf_versionnum", agf.agf_versionnum.get(), HEADER_VERSION)?;
        self.exactly(&place, "agf_length", agf.agf_length.get(), ground.blocks)?;
        let (free, by_place) = self.free_by_place(ground, &agf)?;
        let spare = self.spare(ground, &agf)?;
        let features = self.volume.sb.ro_compat;
        let owners = if features.contains(RoCompat::RMAPBT) { self.owners_of(ground, &agf)? } else { None };
        if features.contains(RoCompat::REFLINK) {
            let root = (agf.agf_refcount_root.get(), agf.agf_refcount_level.get());
            let walked = self.counts_of(ground, root)?;
            self.known(ground, walked);
            if walked.whole {
                self.group_state(ground.ag).counts = Some(root);
                self.exactly(&place, "agf_refcount_blocks", agf.agf_refcount_blocks.get(), walked.blocks)?;
            }
        }
        let by_length = self.free_by_length(ground, &agf, by_place)?;
        if by_place.whole {
            let narrow = u32::try_from(free.blocks).unwrap_or(u32::MAX);
            self.group_state(ground.ag).free = Some((narrow, free.longest));
            let notes = &mut self.notes;
            notes.count_of(
                Mend::GroupCount,
                &format!("{place}: agf_freeblks"),
                agf.agf_freeblks.get().into(),
                free.blocks,
            )?;
            let name = format!("{place}: agf_longest");
            notes.count_of(Mend::GroupCount, &name, agf.agf_longest.get().into(), free.longest.into())?;
        }
        let trees = [Some(by_place), Some(by_length), owners].into_iter().flatten();
        let tree_blocks = trees.map(|w| w.blocks.saturating_sub(1)).fold(0, u32::saturating_add);
        let lazy = self.volume.sb.features2.contains(Features2::LAZYSBCOUNT);
        let whole = by_place.whole && by_length.whole && owners.is_none_or(|w| w.whole);
        if whole && lazy {
            self.exactly(&place, "agf_btreeblks", agf.agf_btreeblks.get(), tree_blocks)?;
        }
        if let Some(owners) = owners.filter(|w| w.whole) {
            self.exactly(&place, "agf_rmap_blocks", agf.agf_rmap_blocks.get(), owners.blocks)?;
        }
        // Blocks of the free space trees and of the list of spare blocks count as free.
        let held = if lazy { u64::from(tree_blocks) } else { 0 };
        let all = free.blocks.saturating_add(spare.into()).saturating_add(held);
        self.totals.free_blocks = self.totals.free_blocks.saturating_add(all);
        Ok(())
    }

    fn known(&mut self, ground: &Ground, walked: Walked) {
        if !walked.whole {
            self.blind(ground);
        }
    }

    fn free_by_place(&mut self, ground: &Ground, agf: &RawAgf) -> Result<(Free, Walked)> {
        let mut free = Free::default();
        let ag = ground.ag;
        let root = (agf.agf_bno_root.get(), agf.agf_bno_level.get());
        let walked = self.tree::<ByPlace>(ground, root, Holder::Tree("bnobt"), &mut |check, run| {
            free.blocks = free.blocks.saturating_add(run.len.into());
            free.longest = free.longest.max(run.len);
            let clashes = check.usage.claim(ag.0, run, Claim::Free);
            check.clashes(ag, &clashes, "free by the bnobt")
        })?;
        self.known(ground, walked);
        Ok((free, walked))
    }

    fn free_by_length(&mut self, ground: &Ground, agf: &RawAgf, by_place: Walked) -> Result<Walked> {
        let mut free = Free::default();
        let ag = ground.ag.0;
        let root = (agf.agf_cnt_root.get(), agf.agf_cnt_level.get());
        let walked = self.tree::<ByLength>(ground, root, Holder::Tree("cntbt"), &mut |check, run| {
            if by_place.whole && check.usage.is_whole_free(ag, run) == Some(false) {
                free.strange = free.strange.saturating_add(1);
            }
            Ok(())
        })?;
        self.known(ground, walked);
        if by_place.whole && walked.whole {
            let strange = free.strange;
            if strange > 0 {
                let what = format!("group {ag}: {strange} free runs of the cntbt are not in the bnobt");
                self.notes.always(Severity::Corruption, what, strange)?;
            }
            if by_place.records != walked.records {
                let what = format!(
                    "group {ag}: the bnobt has {} free runs, the cntbt {}",
                    by_place.records, walked.records
                );
                self.notes.corrupt(what)?;
            }
        }
        Ok(walked)
    }

    /// The list of spare blocks. Returns how many there are.
    fn spare(&mut self, ground: &Ground, agf: &RawAgf) -> Result<u32> {
        let sb = &self.volume.sb;
        let (ag, len) = (ground.ag, sb.sector_size.bytes());
        let at = sb.ag_header(ag, RawAgfl::SECTOR)?;
        let mut bytes = wire::bytes(&self.volume.disk, at, len, 32 << 10, "AGFL")?;
        if sb.v5 {
            if self.header::<RawAgfl>(ground, |h| h.agfl_lsn.get())?.is_none() {
                self.blind(ground);
                return Ok(agf.agf_flcount.get());
            }
            bytes.drain(..size_of::<RawAgfl>());
        }
        let slots: Vec<u32> =
            bytes.chunks_exact(4).map(|c| take::<U32>(c, 0, "AGFL").map_or(0, |b| b.get())).collect();
        let ring = Ring::of(agf, slots.len()).within(|| format!("group {}", ag.0));
        let Some(ring) = self.notes.look(ring)? else {
            self.blind(ground);
            return Ok(agf.agf_flcount.get());
        };
        for slot in ring.slots() {
            let block = slots.get(usize::try_from(slot).unwrap_or(0)).copied().unwrap_or(0);
            let place = || format!("AGFL of group {}, slot {slot}", ag.0);
            if self.notes.look(ground.check(block, 1).within(place))?.is_some() {
                self.claim(ag, Run { start: block, len: 1 }, Holder::Spare)?;
            }
        }
        Ok(agf.agf_flcount.get())
    }

    fn owners_of(&mut self, ground: &Ground, agf: &RawAgf) -> Result<Option<Walked>> {
        let root = (agf.agf_rmap_root.get(), agf.agf_rmap_level.get());
        let mut mapped = 0u64;
        let walked = self.tree::<Owners>(ground, root, Holder::Tree("rmapbt"), &mut |_, map| {
            mapped = mapped.saturating_add(map.run.len.into());
            Ok(())
        })?;
        self.known(ground, walked);
        if walked.whole && !self.notes.muted {
            self.maps.set(ground.ag.0, root, mapped);
        }
        Ok(Some(walked))
    }

    fn counts_of(&mut self, ground: &Ground, root: (u32, u32)) -> Result<Walked> {
        let ag = ground.ag;
        let mut leftovers = 0u64;
        let walked = self.tree::<Counts>(ground, root, Holder::CountTree, &mut |check, counted| {
            if counted.staging {
                leftovers = leftovers.saturating_add(counted.run.len.into());
                return check.claim(ag, counted.run, Holder::Staging).map(drop);
            }
            let clashes = check.usage.claim(ag.0, counted.run, Claim::Counted);
            check.clashes(ag, &clashes, "shared by the refcountbt")
        })?;
        if leftovers > 0 {
            let what = format!("group {}: {leftovers} blocks of copies that nobody finished", ag.0);
            self.notes.mendable(Mend::Leftover, Severity::Leak, what)?;
        }
        Ok(walked)
    }

    /// The trees of inodes.
    fn inode_trees(&mut self, ground: &Ground) -> Result<()> {
        let Some(agi) = self.header::<RawAgi>(ground, |h| h.agi_lsn.get())? else {
            self.blind(ground);
            self.table.incomplete = true;
            return Ok(());
        };
        let ag = ground.ag;
        let place = format!("AGI of group {}", ag.0);
        self.exactly(&place, "agi_versionnum", agi.agi_versionnum.get(), HEADER_VERSION)?;
        self.exactly(&place, "agi_length", agi.agi_length.get(), ground.blocks)?;
        let (mut inodes, mut free, mut chunks) = (0u64, 0u64, 0u64);
        let root = (agi.agi_root.get(), agi.agi_level.get());
        let walked = self.tree::<Inodes>(ground, root, Holder::InodeTree("inobt"), &mut |check, chunk| {
            inodes = inodes.saturating_add(chunk.count.into());
            free = free.saturating_add(chunk.free_count.into());
            chunks = chunks.saturating_add(u64::from(chunk.free_count > 0));
            check.chunk(ground, &chunk)
        })?;
        self.known(ground, walked);
        self.table.incomplete |= !walked.whole;
        if walked.whole {
            let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            self.group_state(ag).inodes = Some((narrow(inodes), narrow(free)));
            let notes = &mut self.notes;
            notes.count_of(
                Mend::GroupCount,
                &format!("{place}: agi_count"),
                agi.agi_count.get().into(),
                inodes,
            )?;
            let name = format!("{place}: agi_freecount");
            notes.count_of(Mend::GroupCount, &name, agi.agi_freecount.get().into(), free)?;
        }
        let features = self.volume.sb.ro_compat;
        let counted = features.contains(RoCompat::INOBTCNT);
        if counted && walked.whole {
            self.exactly(&place, "agi_iblocks", agi.agi_iblocks.get(), walked.blocks)?;
        }
        if features.contains(RoCompat::FINOBT) {
            let root = (agi.agi_free_root.get(), agi.agi_free_level.get());
            let whole = walked.whole;
            let tree =
                self.tree::<FreeInodes>(ground, root, Holder::InodeTree("finobt"), &mut |check, chunk| {
                    if whole { check.free_chunk(ground, &chunk) } else { Ok(()) }
                })?;
            self.known(ground, tree);
            if tree.whole && whole && tree.records != chunks {
                self.notes.corrupt(format!(
                    "group {}: {chunks} chunks of the inobt have free inodes, the finobt has {}",
                    ag.0, tree.records
                ))?;
            }
            if counted && tree.whole {
                self.exactly(&place, "agi_fblocks", agi.agi_fblocks.get(), tree.blocks)?;
            }
        }
        self.totals.inodes = self.totals.inodes.saturating_add(inodes);
        self.totals.free_inodes = self.totals.free_inodes.saturating_add(free);
        if self.notes.muted { Ok(()) } else { self.unlinked(ag, &agi) }
    }

    /// The lists of inodes that were deleted while somebody had them open.
    fn unlinked(&mut self, ag: AgNo, agi: &RawAgi) -> Result<()> {
        let mut budget = agi.agi_count.get();
        for (bucket, first) in (0u32..).zip(agi.agi_unlinked) {
            let mut next = first.get();
            while next != NULL_AG_BLOCK {
                let place = || format!("group {}, list {bucket} of unlinked inodes", ag.0);
                if budget == 0 {
                    return self.notes.corrupt(format!("{}: longer than there are inodes", place()));
                }
                budget = budget.saturating_sub(1);
                let inode = self.volume.sb.inode(ag, next).and_then(|ino| self.volume.inode(ino));
                let Some(inode) = self.notes.look(inode.within(place))? else { break };
                if inode.links() != 0 || next.checked_rem(64) != Some(bucket) {
                    let what = format!("{}: inode {} does not belong there", place(), inode.ino.0);
                    self.notes.corrupt(what)?;
                    break;
                }
                self.unlinked.insert(inode.ino.0);
                let what = format!("{}: inode {} was deleted and not freed", place(), inode.ino.0);
                self.notes.mendable(Mend::Unlinked, Severity::Leak, what)?;
                next = inode.raw.di_next_unlinked.get();
            }
        }
        Ok(())
    }

    /// A number that has to be exactly this.
    fn exactly(&mut self, place: &str, what: &str, found: u32, right: u32) -> Result<()> {
        if found == right {
            Ok(())
        } else {
            self.notes.corrupt(format!("{place}: {what} is {found}, not {right}"))
        }
    }

    /// A chunk that the finobt has has to be the one that the inobt has.
    fn free_chunk(&mut self, ground: &Ground, chunk: &Chunk) -> Result<()> {
        let ino = self.volume.sb.inode(ground.ag, chunk.first);
        let same = ino.is_ok_and(|ino| self.table.has(ino, chunk));
        if same && chunk.free_count > 0 {
            return Ok(());
        }
        let (ag, first) = (ground.ag.0, chunk.first);
        self.notes
            .corrupt(format!("group {ag}: the finobt's chunk at inode {first} is not as the inobt has it"))
    }

    /// Blocks that nobody spoke of, and counts of shared blocks, of the groups at hand.
    pub(super) fn groups_end(&mut self) -> Result<()> {
        for ag in (self.usage.first()..self.usage.end()).map(AgNo) {
            let state = *self.group_state(ag);
            if let Some(root) = state.counts {
                self.sharing(ag, root)?;
            }
            if state.blind || self.table.incomplete || self.damaged {
                continue;
            }
            for run in self.usage.unknown(ag.0) {
                let (start, last) = (run.start, run.last());
                let what = format!("group {}: blocks {start} to {last} are neither free nor in use", ag.0);
                self.notes.always(Severity::Leak, what, run.len.into())?;
            }
        }
        Ok(())
    }

    /// Compares the tree of counts with what was met.
    fn sharing(&mut self, ag: AgNo, root: (u32, u32)) -> Result<()> {
        let met = self.usage.counts(ag.0);
        let ground = Ground::new(Arc::clone(&self.volume), ag)?;
        let mut tree = super::super::edit::btree::Tree::<Counts>::new(&ground, root.0, root.1)?;
        let mut wrong = Vec::new();
        let scanned = tree.scan(0, u32::MAX, &mut |counted| {
            if !counted.staging {
                // Counts that were too high once stay so.
                let right = |(run, count): &(Run, u32)| {
                    let part = run.intersect(counted.run);
                    part.map_or(0, |p| {
                        if *count == counted.count || counted.count == u32::MAX { p.len } else { 0 }
                    })
                };
                let from = met.partition_point(|(run, _)| run.end() <= counted.run.start);
                let here = met.iter().skip(from).take_while(|(run, _)| run.start < counted.run.end());
                if here.map(right).fold(0, u32::saturating_add) != counted.run.len {
                    wrong.push(counted);
                }
            }
            let enough = wrong.len() > 100;
            Ok(if enough { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) })
        });
        self.notes.look(scanned.within(|| format!("group {}", ag.0)))?;
        if self.damaged {
            // What damaged inodes share is not known.
            return Ok(());
        }
        for counted in wrong {
            let (start, last, count) = (counted.run.start, counted.run.last(), counted.count);
            let what = format!(
                "group {}: the refcountbt counts {count} uses of blocks {start} to {last}, which have others",
                ag.0
            );
            self.notes.always(Severity::Corruption, what, 1)?;
        }
        Ok(())
    }

    /// Notes blocks that are spoken of in two ways.
    pub(super) fn clashes(&mut self, ag: AgNo, all: &[(Run, State)], how: &str) -> Result<()> {
        for (run, state) in all {
            let (start, last, state) = (run.start, run.last(), state.name());
            let what = format!("group {}: blocks {start} to {last} are {how}, and {state}", ag.0);
            self.notes.always(Severity::Corruption, what, run.len.into())?;
        }
        Ok(())
    }
}
