//! Forks: their extents, and the trees of them.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{len64, take};

use super::super::bmap::BMBT;
use super::super::edit::ground::Ground;
use super::super::edit::records::Run;
use super::super::fault::Fault;
use super::super::inode::{DiFlags, DiFlags2, Fork, ForkFormat, ForkKind, Inode};
use super::super::layout::{RawBtreeHead, RawLongBlock, RawLongBlock4};
use super::super::units::{AgNo, FileBlock, FsBlock, NULL_FS_BLOCK};
use super::Checker;
use super::holder::Holder;
use super::usage::{Claim, State};
use crate::filesystem::NodeKind;

impl Checker<'_> {
    /// Goes through the extents of a fork. Returns the blocks that it has.
    pub(super) fn fork(&mut self, inode: &Inode, kind: ForkKind) -> Result<u64> {
        let Some(fork) = inode.fork(kind).copied() else { return Ok(0) };
        let realtime = inode.flags.contains(DiFlags::REALTIME) && inode.kind == NodeKind::File;
        let mut blocks = 0u64;
        if fork.format == ForkFormat::Btree {
            let walked = self.fork_tree(inode, kind, &fork).within(|| format!("inode {}", inode.ino.0));
            match self.notes.look(walked)?.flatten() {
                Some(count) => blocks = count,
                None => {
                    self.damaged = true;
                    return Ok(0);
                }
            }
        }
        if realtime && kind == ForkKind::Data {
            return Ok(blocks);
        }
        let (volume, mut extents) = (std::sync::Arc::clone(&self.volume), 0u64);
        for mapping in volume.mappings(inode, kind, FileBlock(0))? {
            let Some(mapping) = self.notes.look(mapping)? else {
                self.damaged = true;
                return Ok(blocks);
            };
            extents = extents.saturating_add(1);
            blocks = blocks.saturating_add(mapping.len);
            let (ag, start) = volume.sb.split(mapping.start)?;
            let run = Run { start: start.0, len: u32::try_from(mapping.len).unwrap_or(u32::MAX) };
            let holder = Holder::Fork(inode.ino, kind, mapping.at.0, mapping.unwritten);
            let content = kind == ForkKind::Data && inode.kind == NodeKind::File;
            if content && inode.flags2.contains(DiFlags2::REFLINK) {
                self.claim_as(ag, run, holder, Claim::Content)?;
            } else {
                self.claim_as(ag, run, holder, Claim::Own)?;
            }
        }
        if matches!(fork.format, ForkFormat::Local | ForkFormat::Dev)
            && fork.extents != 0
            && !self.notes.muted
        {
            let place = format!("inode {}: {} fork", inode.ino.0, kind.name());
            self.same(&place, "count of extents", fork.extents, 0)?;
        } else if extents != fork.extents {
            let place = format!("inode {}: {} fork", inode.ino.0, kind.name());
            self.same(&place, "count of extents", fork.extents, extents)?;
        }
        Ok(blocks)
    }

    /// Goes through the tree of a fork, level by level. Returns how many blocks it has, if it is whole.
    fn fork_tree(&mut self, inode: &Inode, kind: ForkKind, fork: &Fork) -> Result<Option<u64>> {
        let volume = std::sync::Arc::clone(&self.volume);
        let sb = &volume.sb;
        let (mut level, mut row) = volume.tree_root(inode, fork)?;
        row.reverse();
        let (mut count, mut top) = (0u64, true);
        loop {
            let (mut next, mut left) = (Vec::new(), NULL_FS_BLOCK);
            let mut expected = row.first().copied();
            for block in std::mem::take(&mut row) {
                let (ag, within) = sb.split(FsBlock(block))?;
                count = count.saturating_add(1);
                if count > sb.blocks {
                    return Err(Fault::Circle { what: BMBT.what }.into());
                }
                let holder = Holder::ForkTree(inode.ino, kind);
                if !self.claim(ag, Run { start: within.0, len: 1 }, holder)? {
                    return Ok(None);
                }
                let bytes = volume.block(&BMBT, sb.span(FsBlock(block), 1)?, inode.ino.0)?;
                self.stamped(&BMBT, &bytes)?;
                let raw: RawLongBlock4 = take(&bytes, 0, BMBT.what)?;
                let head: RawBtreeHead = raw.head;
                if u32::from(head.bb_level.get()) != level {
                    let (found, expected) = (head.bb_level.get().into(), level.into());
                    return Err(Fault::TreeLevel { what: BMBT.what, found, expected }.into());
                }
                let size = if sb.v5 { size_of::<RawLongBlock>() } else { size_of::<RawLongBlock4>() };
                let most = len64(bytes.len().saturating_sub(size)) >> 4;
                let records = u64::from(head.bb_numrecs.get());
                if records > most || !top && records < most >> 1 {
                    let why = "more than fit, or less than half of that";
                    return Err(Fault::Field { what: "bb_numrecs", found: records, why }.into());
                }
                if raw.bb_leftsib.get() != left || expected != Some(block) {
                    let why = "siblings do not name each other";
                    return Err(Fault::Structure { what: BMBT.what, why }.into());
                }
                (left, expected) = (block, Some(raw.bb_rightsib.get()));
                if level > 0 {
                    let mut children = volume.tree_children(&bytes, level)?;
                    children.reverse();
                    next.extend(children);
                }
            }
            if expected != Some(NULL_FS_BLOCK) {
                let why = "the last block of a level has a right sibling";
                return Err(Fault::Structure { what: BMBT.what, why }.into());
            }
            let Some(below) = level.checked_sub(1) else { return Ok(Some(count)) };
            (level, row, top) = (below, next, false);
        }
    }

    /// Speaks of blocks as `holder`'s, and of nobody else's. Returns whether nobody contradicts.
    pub(super) fn claim(&mut self, ag: AgNo, run: Run, holder: Holder) -> Result<bool> {
        self.claim_as(ag, run, holder, Claim::Own)
    }

    fn claim_as(&mut self, ag: AgNo, run: Run, holder: Holder, claim: Claim) -> Result<bool> {
        let mut good = true;
        for (clash, state) in self.usage.claim(ag.0, run, claim) {
            good = false;
            let (start, last) = (clash.start, clash.last());
            let state = if state == State::Counted { "shared with others" } else { state.name() };
            let what =
                format!("group {}: blocks {start} to {last} belong to {holder}, and are {state}", ag.0);
            self.notes.always(racker_formats::check::Severity::Corruption, what, clash.len.into())?;
        }
        if self.notes.muted {
            return Ok(good);
        }
        if let Some(queue) = self.queue.as_mut() {
            queue.push((run, holder));
        } else if !self.maps.is_empty() {
            let ground = Ground::new(std::sync::Arc::clone(&self.volume), ag)?;
            self.owned(&ground, run, holder)?;
        }
        Ok(good)
    }
}
