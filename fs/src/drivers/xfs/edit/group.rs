//! An allocation group with all its trees, and how much of its space may be given to files.

use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::superblock::RoCompat;
use super::btree::{Shape, fewest_entries};
use super::ground::Ground;
use super::inodes::InodeMap;
use super::owner::Owner;
use super::records::{Counts, FreeInodes, Owners, Run};
use super::refcount::Sharing;
use super::space::Space;

/// An allocation group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) space: Space,
    /// Counts of shared blocks, with the feature.
    pub(super) sharing: Option<Sharing>,
    pub(super) inodes: InodeMap,
}

impl Group {
    /// Reads the group's headers.
    pub(super) fn read(ground: &Ground) -> Result<Self> {
        let space = Space::read(ground)?;
        let shared = ground.volume.sb.ro_compat.contains(RoCompat::REFLINK);
        let sharing = if shared {
            Some(Sharing::read(&space).within(|| format!("AGF of group {}", ground.ag.0))?)
        } else {
            None
        };
        Ok(Self { space, sharing, inodes: InodeMap::read(ground)? })
    }

    /// Blocks that files may still get: trees that have to be able to grow keep theirs, as in the kernel.
    pub(super) fn available(&mut self) -> Result<u32> {
        let kept = self.reserve()?;
        Ok(self.space.allocatable().saturating_sub(kept.tree_growth))
    }

    /// What the group keeps for its trees.
    pub(super) fn reserve(&mut self) -> Result<Reserve> {
        let ground = &self.space.ground;
        let asked = Asked::of(ground)?;
        let shared = self.sharing.as_ref().map_or(0, Sharing::blocks);
        let used = shared.saturating_add(self.inodes.free_tree_blocks()?);
        let tables = asked.tables.saturating_sub(used);
        let map = asked.map.saturating_sub(self.space.map_blocks());
        Ok(Reserve { tree_growth: tables.saturating_add(map), hidden: tables.saturating_add(asked.map) })
    }

    /// Frees blocks of a file that may share them with others: only those go that nobody else uses.
    pub(super) fn release_shared(&mut self, run: Run, owner: Owner) -> Result<()> {
        let Some(sharing) = self.sharing.as_mut() else { return self.space.release(run, owner) };
        self.space.top_up()?;
        self.space.unmap(run, owner)?;
        for unused in sharing.decrease(run, &mut self.space)? {
            self.space.check_unowned(unused)?;
            self.space.free(unused)?;
        }
        Ok(())
    }

    /// Frees blocks of a file that says it shares none.
    pub(super) fn release_own(&mut self, run: Run, owner: Owner) -> Result<()> {
        self.check_own(run)?;
        self.space.release(run, owner)
    }

    /// Checks that blocks of a file that says it shares none are not shared.
    pub(super) fn check_own(&mut self, run: Run) -> Result<()> {
        if let Some(sharing) = self.sharing.as_mut()
            && sharing.knows(run)?
        {
            let why = "blocks of a file that shares none are shared";
            return Err(Fault::Structure { what: Counts::NAME, why }.into());
        }
        Ok(())
    }

    /// Frees blocks whose owner, if they still have one, is unknown.
    pub(super) fn release_anybodys(&mut self, run: Run) -> Result<()> {
        self.space.top_up()?;
        self.space.unmap_anybodys(run)?;
        self.space.free(run)
    }

    /// Frees a copy in the making.
    pub(super) fn drop_copy(&mut self, run: Run) -> Result<()> {
        self.space.top_up()?;
        if let Some(sharing) = self.sharing.as_mut() {
            sharing.unstage(run, &mut self.space)?;
        }
        self.space.release(run, Owner::STAGING)
    }

    /// Writes all that changed.
    pub(super) fn write_back(&mut self) -> Result<()> {
        if let Some(sharing) = self.sharing.as_mut() {
            sharing.write_back(&mut self.space)?;
        }
        self.inodes.write_back()?;
        self.space.write_back()
    }

    /// Tree blocks in memory.
    pub(super) fn held(&self) -> usize {
        let sharing = self.sharing.as_ref().map_or(0, Sharing::held);
        self.space.held().saturating_add(sharing).saturating_add(self.inodes.held())
    }
}

/// What a group keeps for its trees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserve {
    /// Blocks that its trees may still grow by: not for files.
    pub(super) tree_growth: u32,
    /// What the kernel takes off the count of free blocks for it.
    pub(super) hidden: u32,
}

/// Blocks that the trees of a group have if they are as large as they can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The tree of counts and the tree of free inodes, whose blocks are not free space.
    pub(super) tables: u32,
    /// The reverse map, whose blocks count as free.
    pub(super) map: u32,
}

impl Asked {
    /// For a group.
    pub(super) fn of(ground: &Ground) -> Result<Self> {
        let sb = &ground.volume.sb;
        let bytes = ground.block_bytes()?;
        let (log_group, _) = sb.split(sb.log.start)?;
        let log = if log_group == ground.ag { sb.log.blocks } else { 0 };
        let blocks = u64::from(ground.blocks.saturating_sub(log));
        let inodes = blocks.checked_shl(sb.inopblog).unwrap_or(u64::MAX) >> 6;
        let has = |feature, size: u64| if sb.ro_compat.contains(feature) { size } else { 0 };
        let counts = has(RoCompat::REFLINK, tree_blocks::<Counts>(bytes, blocks));
        let free = has(RoCompat::FINOBT, tree_blocks::<FreeInodes>(bytes, inodes));
        let map = tree_blocks::<Owners>(bytes, blocks).max(blocks.checked_div(100).unwrap_or(0));
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self { tables: narrow(counts.saturating_add(free)), map: narrow(has(RoCompat::RMAPBT, map)) })
    }
}

/// Blocks of tree `S` with `records` records if all of its blocks are half full.
fn tree_blocks<S: Shape>(block_bytes: usize, records: u64) -> u64 {
    let (leaf, inner) = fewest_entries::<S>(block_bytes);
    let mut row = records.div_ceil(leaf.max(1));
    let mut all = row;
    while row > 1 {
        row = row.div_ceil(inner.max(2));
        all = all.saturating_add(row);
    }
    all
}
