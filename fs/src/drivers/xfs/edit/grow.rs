//! A larger filesystem: the last group gets what it lacks, and new ones follow (as `xfs_growfs` does it).
//!
//! A new group begins with its four header sectors, and behind them lie the roots of its trees, a block each; all else
//! of it is free. Its list of spare blocks is empty until something changes there, as after `mkfs.xfs`. The log stays
//! where it is, and as large as it is.

use std::sync::Arc;

use racker_formats::error::{Result, Within};
use racker_formats::wire::bytes;
use zerocopy::FromZeros;

use super::super::described::SB_SELF;
use super::super::fault::Fault;
use super::super::layout::{AGF_MAGIC, AGFL_MAGIC, AGI_MAGIC, RawAgf, RawAgfl, RawAgi};
use super::super::superblock::RoCompat;
use super::super::units::{AgNo, Lsn};
use super::Edit;
use super::btree::{Shape, empty};
use super::ground::Ground;
use super::header::Header;
use super::owner::Owner;
use super::records::{ByLength, ByPlace, Counts, FreeInodes, Inodes, Owners, Run};

/// Blocks of the smallest group that is made: what is left over behind the others is not used.
const AG_BLOCKS_MIN: u64 = 64;
/// `agf_versionnum` and `agi_versionnum`.
const VERSION: u32 = 1;
/// An inode that there is not, in `agi_newino` and the lists of unlinked ones.
const NULL_INODE: u32 = u32::MAX;

/// The blocks that the roots of a new group's trees have.
#[derive(Clone, Copy, Debug)]
struct Roots {
    by_place: u32,
    by_length: u32,
    inodes: u32,
    free_inodes: Option<u32>,
    owners: Option<u32>,
    counts: Option<u32>,
    /// The first block behind them.
    end: u32,
}

impl Roots {
    fn of(ground: &Ground) -> Self {
        let has = |feature| ground.volume.sb.ro_compat.contains(feature);
        let mut next = ground.header_blocks();
        let mut take = || {
            let block = next;
            next = block.saturating_add(1);
            block
        };
        let (by_place, by_length, inodes) = (take(), take(), take());
        let free_inodes = has(RoCompat::FINOBT).then(&mut take);
        let owners = has(RoCompat::RMAPBT).then(&mut take);
        let counts = has(RoCompat::REFLINK).then(&mut take);
        Self { by_place, by_length, inodes, free_inodes, owners, counts, end: next }
    }
}

impl Edit {
    /// Makes the filesystem as large as `size` bytes allow.
    pub(super) fn grow_filesystem(&mut self, size: u64) -> Result<()> {
        let sb = &self.volume.sb;
        let have = self.volume.disk.size();
        if size > have {
            return Err(Fault::Truncated { need: size, have }.into());
        }
        let group = u64::from(sb.ag_blocks);
        let all = size >> sb.block_size.shift();
        let rest = all.checked_rem(group).unwrap_or(0);
        let blocks = if rest < AG_BLOCKS_MIN { all.saturating_sub(rest) } else { all };
        // What is left over is no group of its own, but the last group may end there already.
        let blocks = if blocks < sb.blocks && all >= sb.blocks { sb.blocks } else { blocks };
        if blocks < sb.blocks {
            return Err(Fault::Unsupported { what: "making an XFS filesystem smaller" }.into());
        }
        let count = blocks.div_ceil(group);
        let (Ok(count), true) = (u32::try_from(count), blocks < 1 << 52) else {
            return Err(Fault::Unsupported { what: "an XFS filesystem of that size" }.into());
        };
        if blocks == sb.blocks {
            return Ok(());
        }
        self.run(|edit| edit.grow_to(blocks, count))
    }

    fn grow_to(&mut self, blocks: u64, count: u32) -> Result<()> {
        let old = self.volume.sb.clone();
        self.change_copies(&|raw| {
            raw.sb_dblocks = blocks.into();
            raw.sb_agcount = count.into();
        })?;
        // The count of free blocks is still to be written.
        self.changed = true;
        let last = AgNo(old.ag_count.saturating_sub(1));
        let (before, now) = (old.ag_length(last)?, self.volume.sb.ag_length(last)?);
        if now > before {
            self.extend(last, before, now).within(|| format!("allocation group {}", last.0))?;
        }
        for ag in (old.ag_count..count).map(AgNo) {
            self.found(ag).within(|| format!("allocation group {}", ag.0))?;
            self.shed()?;
            self.changed = true;
        }
        Ok(())
    }

    /// Gives a group the blocks from `before` to `now`.
    fn extend(&mut self, ag: AgNo, before: u32, now: u32) -> Result<()> {
        let ground = Ground::new(Arc::clone(&self.volume), ag)?;
        let wrong =
            |what, found: u32| Fault::Field { what, found: found.into(), why: "not the group's length" };
        let mut agf: Header<RawAgf> = Header::read(&ground)?;
        let mut agi: Header<RawAgi> = Header::read(&ground)?;
        for (what, found) in [("agf_length", agf.raw.agf_length), ("agi_length", agi.raw.agi_length)] {
            if found.get() != before {
                return Err(wrong(what, found.get()).into());
            }
        }
        agf.raw.agf_length = now.into();
        agi.raw.agi_length = now.into();
        agf.write(&ground)?;
        agi.write(&ground)?;
        self.group(ag)?.space.free(Run { start: before, len: now.saturating_sub(before) })
    }

    /// Makes a new group.
    fn found(&mut self, ag: AgNo) -> Result<()> {
        let ground = Ground::new(Arc::clone(&self.volume), ag)?;
        let roots = Roots::of(&ground);
        if roots.end >= ground.blocks {
            return Err(
                Fault::Structure { what: "a new allocation group", why: "too small for its trees" }.into()
            );
        }
        self.copy_superblock(&ground)?;
        agf(&ground, &roots)?.write(&ground)?;
        agi(&ground, &roots)?.write(&ground)?;
        let list = RawAgfl {
            agfl_magicnum: AGFL_MAGIC.into(),
            agfl_seqno: ag.0.into(),
            agfl_uuid: ground.volume.sb.meta_uuid,
            ..RawAgfl::new_zeroed()
        };
        Header::new(&ground, list, 0xff)?.write(&ground)?;
        root::<ByPlace>(&ground, Some(roots.by_place))?;
        root::<ByLength>(&ground, Some(roots.by_length))?;
        root::<Inodes>(&ground, Some(roots.inodes))?;
        root::<FreeInodes>(&ground, roots.free_inodes)?;
        root::<Owners>(&ground, roots.owners)?;
        root::<Counts>(&ground, roots.counts)?;

        let headers = ground.header_blocks();
        let inode_trees = 1u32.saturating_add(roots.free_inodes.is_some().into());
        let own = [
            (Some(0), headers, Owner::HEADERS),
            (Some(roots.by_place), 2, Owner::GROUP),
            (Some(roots.inodes), inode_trees, Owner::INODE_TREE),
            (roots.owners, 1, Owner::GROUP),
            (roots.counts, 1, Owner::COUNT_TREE),
        ];
        let space = &mut self.group(ag)?.space;
        if space.has_owners() {
            for (start, len, owner) in own {
                if let Some(start) = start {
                    space.map(Run { start, len }, owner)?;
                }
            }
        }
        space.free(Run { start: roots.end, len: ground.blocks.saturating_sub(roots.end) })
    }

    /// Copies the first superblock to a new group.
    fn copy_superblock(&self, ground: &Ground) -> Result<()> {
        let sb = &self.volume.sb;
        let len = sb.sector_size.bytes();
        let mut sector = bytes(&self.volume.disk, 0, len, len, "superblock")?;
        SB_SELF.stamp(&mut sector, Lsn(0))?;
        self.volume.disk.write_at(sb.ag_header(ground.ag, 0)?, &sector)
    }
}

fn root<S: Shape>(ground: &Ground, block: Option<u32>) -> Result<()> {
    let Some(block) = block else { return Ok(()) };
    ground.volume.disk.write_at(ground.span(block)?.start(), &empty::<S>(ground, block)?)
}

fn agf(ground: &Ground, roots: &Roots) -> Result<Header<RawAgf>> {
    let level = |root: Option<u32>| u32::from(root.is_some()).into();
    let raw = RawAgf {
        agf_magicnum: AGF_MAGIC.into(),
        agf_versionnum: VERSION.into(),
        agf_seqno: ground.ag.0.into(),
        agf_length: ground.blocks.into(),
        agf_bno_root: roots.by_place.into(),
        agf_cnt_root: roots.by_length.into(),
        agf_rmap_root: roots.owners.unwrap_or(0).into(),
        agf_bno_level: 1.into(),
        agf_cnt_level: 1.into(),
        agf_rmap_level: level(roots.owners),
        // A ring without spare blocks: the next one goes behind its end.
        agf_flfirst: 1.into(),
        agf_uuid: ground.volume.sb.meta_uuid,
        agf_rmap_blocks: level(roots.owners),
        agf_refcount_blocks: level(roots.counts),
        agf_refcount_root: roots.counts.unwrap_or(0).into(),
        agf_refcount_level: level(roots.counts),
        ..RawAgf::new_zeroed()
    };
    Header::new(ground, raw, 0)
}

fn agi(ground: &Ground, roots: &Roots) -> Result<Header<RawAgi>> {
    let counted = ground.volume.sb.ro_compat.contains(RoCompat::INOBTCNT);
    let free = u32::from(roots.free_inodes.is_some());
    let count = |blocks: u32| if counted { blocks.into() } else { 0.into() };
    let raw = RawAgi {
        agi_magicnum: AGI_MAGIC.into(),
        agi_versionnum: VERSION.into(),
        agi_seqno: ground.ag.0.into(),
        agi_length: ground.blocks.into(),
        agi_root: roots.inodes.into(),
        agi_level: 1.into(),
        agi_newino: NULL_INODE.into(),
        agi_dirino: NULL_INODE.into(),
        agi_unlinked: [NULL_INODE.into(); 64],
        agi_uuid: ground.volume.sb.meta_uuid,
        agi_free_root: roots.free_inodes.unwrap_or(0).into(),
        agi_free_level: free.into(),
        agi_iblocks: count(1),
        agi_fblocks: count(free),
        ..RawAgi::new_zeroed()
    };
    Header::new(ground, raw, 0)
}
