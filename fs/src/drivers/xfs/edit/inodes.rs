//! The inodes of an allocation group: a tree of all chunks of 64 inodes, and with `finobt` one of those chunks
//! that have a free inode.

use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::layout::RawAgi;
use super::super::superblock::RoCompat;
use super::btree::Tree;
use super::ground::Ground;
use super::header::Header;
use super::records::{FreeInodes, Inodes};

/// `agi_versionnum` of every AGI.
const AGI_VERSION: u32 = 1;

/// The inodes of a group.
#[derive(Debug)]
pub(super) struct InodeMap {
    pub(super) ground: Ground,
    pub(super) agi: Header<RawAgi>,
    pub(super) all: Tree<Inodes>,
    /// Chunks with free inodes, with the feature.
    pub(super) free: Option<Tree<FreeInodes>>,
    /// Blocks of the tree of free inodes, once they are known.
    free_blocks: Option<u32>,
    /// First inode of the chunk that changed last.
    pub(super) recent: u32,
    /// Changed since it was read.
    pub(super) dirty: bool,
}

impl InodeMap {
    /// Reads what group `ground` says of its inodes.
    pub(super) fn read(ground: &Ground) -> Result<Self> {
        let agi: Header<RawAgi> = Header::read(ground)?;
        let raw = &agi.raw;
        let place = || format!("AGI of group {}", ground.ag.0);
        check(raw, ground).within(place)?;
        let features = ground.volume.sb.ro_compat;
        let free = if features.contains(RoCompat::FINOBT) {
            Some(Tree::new(ground, raw.agi_free_root.get(), raw.agi_free_level.get()).within(place)?)
        } else {
            None
        };
        let counted = features.contains(RoCompat::INOBTCNT).then(|| raw.agi_fblocks.get());
        let free_blocks = if free.is_some() { counted } else { Some(0) };
        let all = Tree::new(ground, raw.agi_root.get(), raw.agi_level.get()).within(place)?;
        let recent = agi.raw.agi_newino.get();
        Ok(Self { ground: ground.clone(), all, free, free_blocks, recent, dirty: false, agi })
    }

    /// Blocks of the tree of free inodes.
    pub(super) fn free_tree_blocks(&mut self) -> Result<u32> {
        if let Some(known) = self.free_blocks {
            return Ok(known);
        }
        let count = self.free.as_mut().map_or(Ok(0), Tree::count_blocks)?;
        self.free_blocks = Some(count);
        Ok(count)
    }

    /// Sets the count of blocks of the tree of free inodes.
    pub(super) fn set_free_tree_blocks(&mut self, blocks: u32) {
        self.free_blocks = Some(blocks);
    }

    /// The roots of the trees.
    pub(super) fn roots(&self) -> Vec<u32> {
        let free = self.free.as_ref().map(Tree::root);
        [Some(self.all.root()), free].into_iter().flatten().collect()
    }

    /// Writes all that changed.
    pub(super) fn write_back(&mut self) -> Result<()> {
        self.all.write_back()?;
        if let Some(free) = self.free.as_mut() {
            free.write_back()?;
        }
        if self.dirty {
            let raw = &mut self.agi.raw;
            raw.agi_root = self.all.root().into();
            raw.agi_level = self.all.levels().into();
            if let Some(free) = &self.free {
                raw.agi_free_root = free.root().into();
                raw.agi_free_level = free.levels().into();
            }
            self.agi.write(&self.ground)?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Tree blocks in memory.
    pub(super) fn held(&self) -> usize {
        self.all.held().saturating_add(self.free.as_ref().map_or(0, Tree::held))
    }
}

/// Checks the numbers of an AGI.
fn check(raw: &RawAgi, ground: &Ground) -> Result<()> {
    let rules = [
        ("agi_versionnum", raw.agi_versionnum.get(), raw.agi_versionnum.get() == AGI_VERSION, "not 1"),
        ("agi_length", raw.agi_length.get(), raw.agi_length.get() == ground.blocks, "not the group's length"),
        (
            "agi_freecount",
            raw.agi_freecount.get(),
            raw.agi_freecount.get() <= raw.agi_count.get(),
            "more than there are",
        ),
    ];
    for (what, found, good, why) in rules {
        if !good {
            return Err(Fault::Field { what, found: found.into(), why }.into());
        }
    }
    Ok(())
}
