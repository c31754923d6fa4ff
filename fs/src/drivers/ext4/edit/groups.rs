//! Group descriptors and bitmaps, held in memory while they change.
//!
//! All descriptors are read when the filesystem is opened, which is also where its free blocks and inodes are
//! counted: the superblock's own numbers are only as new as the last clean unmount. A bitmap is read when its group
//! is first searched, compared with its checksum and its descriptor's count, and written back with a new checksum.

use std::collections::HashMap;
use std::sync::Arc;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{bytes, index, len64, part, sum_holds};
use zerocopy::little_endian::U32;

use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::group;
use super::super::superblock::Superblock;
use super::super::volume::Ext4;
use super::Edit;
use super::bits;
use super::bytes::{low16, low32, put16};

/// Groups of the largest filesystem that is changed: 128 TiB with blocks of 4 KiB.
pub(super) const GROUPS_MAX: u64 = 1 << 20;

/// `bg_flags`.
pub(in super::super) const INODE_UNINIT: u16 = 1;
pub(in super::super) const BLOCK_UNINIT: u16 = 2;
pub(in super::super) const INODE_ZEROED: u16 = 4;

/// What a bitmap is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum Which {
    Blocks,
    Inodes,
}

/// A group descriptor, and what is known of its free space.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Desc {
    pub(in super::super) block_bitmap: u64,
    pub(in super::super) inode_bitmap: u64,
    pub(in super::super) inode_table: u64,
    /// Free clusters.
    pub(in super::super) free: u32,
    pub(in super::super) free_inodes: u32,
    pub(in super::super) dirs: u32,
    /// Inodes at the table's end that were never used.
    pub(in super::super) unused: u32,
    pub(in super::super) flags: u16,
    pub(in super::super) block_csum: u32,
    pub(in super::super) inode_csum: u32,
    pub(super) dirty: bool,
    /// No run of free clusters is longer.
    pub(in super::super) longest: u32,
    /// All clusters before are in use.
    pub(in super::super) first_free: u32,
    /// All inodes before are in use.
    pub(in super::super) first_inode: u32,
}

impl Desc {
    /// That of a new group: still to be written.
    pub(super) fn new() -> Self {
        Self {
            block_bitmap: 0,
            inode_bitmap: 0,
            inode_table: 0,
            free: 0,
            free_inodes: 0,
            dirs: 0,
            unused: 0,
            flags: 0,
            block_csum: 0,
            inode_csum: 0,
            dirty: true,
            longest: 0,
            first_free: 0,
            first_inode: 0,
        }
    }

    pub(in super::super) fn parse(sb: &Superblock, number: u64, raw: &[u8]) -> Result<Self> {
        let checked = group::Group::parse(sb, number, raw)?;
        let g = group::long(raw)?;
        let wide = |hi: u16, lo: u16| u32::from(hi) << 16 | u32::from(lo);
        let inode_bitmap = u64::from(g.inode_bitmap_hi.get()) << 32 | u64::from(g.inode_bitmap_lo.get());
        sb.check_blocks("the descriptor", inode_bitmap, 1)?;
        sb.check_blocks("the descriptor", checked.block_bitmap, 1)?;
        let clusters = sb.clusters_of(number);
        let free = wide(g.free_blocks_count_hi.get(), g.free_blocks_count_lo.get());
        let free_inodes = wide(g.free_inodes_count_hi.get(), g.free_inodes_count_lo.get());
        if u64::from(free) > clusters || free_inodes > sb.inodes_per_group {
            let (found, counted) = (clusters, free.max(free_inodes).into());
            return Err(Ext4Fault::FreeCount { found, counted }.into());
        }
        let has_flags = sb.features.has_group_csum();
        let unused = wide(g.itable_unused_hi.get(), g.itable_unused_lo.get());
        Ok(Self {
            block_bitmap: checked.block_bitmap,
            inode_bitmap,
            inode_table: checked.inode_table,
            free,
            free_inodes,
            dirs: wide(g.used_dirs_count_hi.get(), g.used_dirs_count_lo.get()),
            unused: if has_flags { unused.min(sb.inodes_per_group) } else { 0 },
            flags: if has_flags { g.flags.get() } else { INODE_ZEROED },
            block_csum: wide(g.block_bitmap_csum_hi.get(), g.block_bitmap_csum_lo.get()),
            inode_csum: wide(g.inode_bitmap_csum_hi.get(), g.inode_bitmap_csum_lo.get()),
            dirty: false,
            longest: free,
            first_free: 0,
            first_inode: 0,
        })
    }

    pub(in super::super) fn store(&self, sb: &Superblock, number: u64, raw: &mut [u8]) -> Result<()> {
        let has_flags = sb.features.has_group_csum();
        let hi = |n: u32| low16(u64::from(n) >> 16);
        let mut long = group::long(raw)?;
        let g = &mut long;
        (g.block_bitmap_lo, g.block_bitmap_hi) = halves(self.block_bitmap);
        (g.inode_bitmap_lo, g.inode_bitmap_hi) = halves(self.inode_bitmap);
        (g.inode_table_lo, g.inode_table_hi) = halves(self.inode_table);
        g.free_blocks_count_lo = low16(self.free.into()).into();
        g.free_blocks_count_hi = hi(self.free).into();
        g.free_inodes_count_lo = low16(self.free_inodes.into()).into();
        g.free_inodes_count_hi = hi(self.free_inodes).into();
        g.used_dirs_count_lo = low16(self.dirs.into()).into();
        g.used_dirs_count_hi = hi(self.dirs).into();
        g.block_bitmap_csum_lo = low16(self.block_csum.into()).into();
        g.block_bitmap_csum_hi = hi(self.block_csum).into();
        g.inode_bitmap_csum_lo = low16(self.inode_csum.into()).into();
        g.inode_bitmap_csum_hi = hi(self.inode_csum).into();
        if has_flags {
            g.flags = self.flags.into();
            g.itable_unused_lo = low16(self.unused.into()).into();
            g.itable_unused_hi = hi(self.unused).into();
        }
        group::put_long(raw, &long);
        if let Some(sum) = group::checksum(sb, number, raw)? {
            put16(raw, super::super::layout::GROUP_CHECKSUM_AT, sum)?;
        }
        Ok(())
    }
}

/// A block number as a descriptor has it: low and high half.
fn halves(block: u64) -> (U32, U32) {
    (low32(block).into(), low32(block >> 32).into())
}

/// A bitmap in memory.
#[derive(Clone, Debug)]
pub(in super::super) struct Bitmap {
    pub(in super::super) bits: Arc<[u8]>,
    dirty: bool,
}

/// All groups.
#[derive(Debug, Default)]
pub(in super::super) struct Groups {
    pub(in super::super) list: Vec<Desc>,
    pub(in super::super) maps: HashMap<(u32, Which), Bitmap>,
}

impl Groups {
    /// Reads all descriptors.
    pub(in super::super) fn read(fs: &Ext4) -> Result<Self> {
        let sb = &fs.sb;
        if sb.groups > GROUPS_MAX {
            return Err(Ext4Fault::Limit { what: "block groups", found: sb.groups, max: GROUPS_MAX }.into());
        }
        let per_block = sb.block_size.bytes().checked_div(len64(sb.group_bytes)).unwrap_or(1);
        let mut list = Vec::new();
        for number in 0..sb.groups {
            let (at, within) = (number.checked_div(per_block), number.checked_rem(per_block));
            let block = fs.block("a group descriptor", sb.descriptor_block(at.unwrap_or(0)))?;
            let start = index(within.unwrap_or(0))?.saturating_mul(sb.group_bytes);
            let raw = part(&block, start, sb.group_bytes, "group descriptor")?;
            list.push(Desc::parse(sb, number, raw).within(|| format!("group {number}"))?);
        }
        Ok(Self { list, maps: HashMap::new() })
    }

    /// Puts a bitmap in place of whatever is there.
    pub(super) fn put_map(&mut self, group: u32, which: Which, bits: Vec<u8>) {
        self.maps.insert((group, which), Bitmap { bits: bits.into(), dirty: true });
    }

    /// Bytes of bitmaps in memory.
    pub(in super::super) fn held(&self, block: u64) -> u64 {
        len64(self.maps.len()).saturating_mul(block)
    }
}

impl Superblock {
    /// Blocks of a group: the last one may be short.
    pub(in super::super) fn blocks_of(&self, group: u64) -> u64 {
        self.blocks.saturating_sub(self.first_block(group)).min(self.blocks_per_group)
    }

    /// Clusters of a group.
    pub(in super::super) fn clusters_of(&self, group: u64) -> u64 {
        let cluster = 1u64.checked_shl(self.cluster_shift).unwrap_or(1);
        self.blocks_of(group).div_ceil(cluster)
    }

    /// The checksum of a bitmap.
    pub(in super::super) fn bitmap_sum(&self, which: Which, map: &[u8]) -> Result<u32> {
        self.bitmap_sum_from(self.csum_seed, which, map)
    }

    /// The same from another seed: 16 bits of it with short descriptors.
    pub(in super::super) fn bitmap_sum_from(&self, seed: u32, which: Which, map: &[u8]) -> Result<u32> {
        let count = match which {
            Which::Blocks => self.blocks_per_group >> self.cluster_shift,
            Which::Inodes => u64::from(self.inodes_per_group),
        };
        let sum = crc32c(seed, part(map, 0, index(count >> 3)?, "bitmap")?);
        Ok(if self.group_bytes < 64 { sum & 0xffff } else { sum })
    }

    /// Marks what a group holds of itself, which is all that is in use of a group without a bitmap.
    pub(in super::super) fn own_blocks(&self, group: u64, desc: &Desc, map: &mut [u8]) -> Result<()> {
        let first = self.first_block(group);
        let end = first.saturating_add(self.blocks_of(group));
        let (base, len) = self.base_blocks(group);
        let table = self.table_blocks();
        for (start, len) in
            [(base, len), (desc.block_bitmap, 1), (desc.inode_bitmap, 1), (desc.inode_table, table)]
        {
            let (from, to) = (start.max(first), start.saturating_add(len).min(end));
            if from < to {
                let bit = |block: u64| index(block.saturating_sub(first) >> self.cluster_shift);
                bits::fill(map, bit(from)?, bit(to.saturating_sub(1))?.saturating_add(1), true);
            }
        }
        Ok(())
    }
}

impl Edit {
    /// A descriptor.
    pub(in super::super) fn desc(&self, group: u32) -> Result<&Desc> {
        let found = usize::try_from(group).ok().and_then(|g| self.groups.list.get(g));
        found.ok_or_else(|| Ext4Fault::Unsound("has fewer groups than it needs").into())
    }

    /// A descriptor, to be changed.
    pub(in super::super) fn desc_mut(&mut self, group: u32) -> Result<&mut Desc> {
        let desc = *self.desc(group)?;
        if let Some(undo) = &mut self.undo {
            undo.descs.entry(group).or_insert(desc);
        }
        let found = usize::try_from(group).ok().and_then(|g| self.groups.list.get_mut(g));
        let desc = found.ok_or(Ext4Fault::Unsound("has fewer groups than it needs"))?;
        desc.dirty = true;
        Ok(desc)
    }

    /// Keeps what a search in vain has found of a group: the longest run, and the first free cluster.
    pub(in super::super) fn learn(&mut self, group: u32, longest: u32, first_free: u32) {
        if let Some(desc) = usize::try_from(group).ok().and_then(|g| self.groups.list.get_mut(g)) {
            desc.longest = longest;
            desc.first_free = desc.first_free.max(first_free);
        }
    }

    /// A group's bitmap, read on first use.
    pub(in super::super) fn bits(&mut self, group: u32, which: Which) -> Result<Arc<[u8]>> {
        if let Some(map) = self.groups.maps.get(&(group, which)) {
            return Ok(Arc::clone(&map.bits));
        }
        let bits: Arc<[u8]> = self.load(group, which).within(|| format!("group {group}"))?.into();
        self.groups.maps.insert((group, which), Bitmap { bits: Arc::clone(&bits), dirty: false });
        if which == Which::Blocks && self.fresh.first_look(group.into()) {
            self.note_free(group, &bits)?;
        }
        Ok(bits)
    }

    /// Remembers what is free in a group that was not changed yet.
    fn note_free(&mut self, group: u32, bits: &[u8]) -> Result<()> {
        let sb = &self.fs.sb;
        let (first, behind) = (sb.first_block(group.into()), sb.blocks_of(group.into()));
        let count = index(sb.clusters_of(group.into()))?;
        let shift = sb.cluster_shift;
        let block = |bit: usize| first.saturating_add((len64(bit) << shift).min(behind));
        let mut at = 0;
        loop {
            let start = bits::next_clear(bits, at, count);
            if start >= count {
                return Ok(());
            }
            at = bits::next_set(bits, start, count);
            let from = self.fs.byte_of(block(start))?;
            self.fresh.add(Span::new(from, self.fs.byte_of(block(at))?.saturating_sub(from))?);
        }
    }

    /// Sets or clears bits of a bitmap, all of which are the other way so far.
    pub(in super::super) fn mark(
        &mut self,
        group: u32,
        which: Which,
        run: (usize, usize),
        set: bool,
    ) -> Result<()> {
        let bits = self.bits(group, which)?;
        let odd =
            if set { bits::next_set(&bits, run.0, run.1) } else { bits::next_clear(&bits, run.0, run.1) };
        if odd < run.1 {
            return Err(Ext4Fault::Bitmap {
                what: if set { "taking space" } else { "giving back space" },
                bitmap: if which == Which::Blocks { "cluster" } else { "inode" },
                number: len64(odd),
                found: if set { "used already" } else { "free already" },
            }
            .into())
            .within(|| format!("group {group}"));
        }
        drop(bits);
        let Some(map) = self.groups.maps.get_mut(&(group, which)) else {
            return Err(Ext4Fault::Unsound("has lost a bitmap").into());
        };
        if let Some(undo) = &mut self.undo {
            undo.maps.entry((group, which)).or_insert_with(|| map.clone());
        }
        map.dirty = true;
        bits::fill(Arc::make_mut(&mut map.bits), run.0, run.1, set);
        let flag = if which == Which::Blocks { BLOCK_UNINIT } else { INODE_UNINIT };
        self.desc_mut(group)?.flags &= !flag;
        Ok(())
    }

    /// Makes the block bitmap of a group that has none yet, as every group with inodes in use has one.
    pub(in super::super) fn materialise(&mut self, group: u32) -> Result<()> {
        if self.desc(group)?.flags & BLOCK_UNINIT != 0 {
            self.mark(group, Which::Blocks, (0, 0), true)?;
        }
        Ok(())
    }

    fn load(&self, group: u32, which: Which) -> Result<Vec<u8>> {
        let sb = &self.fs.sb;
        let desc = *self.desc(group)?;
        let size = sb.block_size.bytes();
        let (block, count, counted, flag, found) = match which {
            Which::Blocks => {
                let count = sb.clusters_of(group.into());
                (desc.block_bitmap, count, desc.free, BLOCK_UNINIT, desc.block_csum)
            }
            Which::Inodes => {
                let count = sb.inodes_per_group.into();
                (desc.inode_bitmap, count, desc.free_inodes, INODE_UNINIT, desc.inode_csum)
            }
        };
        let (count, all) = (index(count)?, index(size.saturating_mul(8))?);
        let map = if desc.flags & flag != 0 {
            let mut map = vec![0; index(size)?];
            if which == Which::Blocks {
                sb.own_blocks(group.into(), &desc, &mut map)?;
            }
            bits::fill(&mut map, count, all, true);
            map
        } else {
            let map = bytes(&self.fs.disk, self.fs.byte_of(block)?, size, size, "a bitmap")?;
            let computed = sb.bitmap_sum(which, &map)?;
            if sb.features.has_metadata_csum() && !sum_holds(found, computed) {
                let what = if which == Which::Blocks { "the block bitmap" } else { "the inode bitmap" };
                return Err(Ext4Fault::Checksum { what, found, computed }.into());
            }
            map
        };
        let free = len64(bits::count_clear(&map, count));
        if free != u64::from(counted) {
            return Err(Ext4Fault::FreeCount { found: free, counted: counted.into() }.into());
        }
        Ok(map)
    }

    /// Writes back bitmaps and descriptors that changed; forgets the bitmaps if `shed`.
    pub(in super::super) fn write_groups(&mut self, shed: bool) -> Result<()> {
        let mut dirty: Vec<(u32, Which)> =
            self.groups.maps.iter().filter(|(_, m)| m.dirty).map(|(key, _)| *key).collect();
        dirty.sort_unstable_by_key(|(group, which)| (*group, *which == Which::Inodes));
        for (group, which) in dirty {
            let Some(map) = self.groups.maps.get_mut(&(group, which)) else { continue };
            map.dirty = false;
            let bits = Arc::clone(&map.bits);
            let sum = self.fs.sb.bitmap_sum(which, &bits)?;
            let has_sums = self.fs.sb.features.has_metadata_csum();
            let desc = self.desc_mut(group)?;
            let block = match which {
                Which::Blocks => desc.block_bitmap,
                Which::Inodes => desc.inode_bitmap,
            };
            if has_sums {
                match which {
                    Which::Blocks => desc.block_csum = sum,
                    Which::Inodes => desc.inode_csum = sum,
                }
            }
            self.fs.disk.write_at(self.fs.byte_of(block)?, &bits)?;
        }
        if shed {
            self.groups.maps.clear();
        }
        let per_block = self.fs.sb.block_size.bytes().checked_div(len64(self.fs.sb.group_bytes)).unwrap_or(1);
        for number in 0..self.fs.sb.groups {
            let short = low32(number);
            let desc = *self.desc(short)?;
            if !desc.dirty {
                continue;
            }
            let block = self.fs.sb.descriptor_block(number.checked_div(per_block).unwrap_or(0));
            let within = index(number.checked_rem(per_block).unwrap_or(0))?;
            let sb = self.fs.sb.clone();
            self.change_system("a group descriptor", block, |bytes| {
                let start = within.saturating_mul(sb.group_bytes);
                let end = start.saturating_add(sb.group_bytes);
                let raw = bytes.get_mut(start..end).ok_or(Ext4Fault::Unsound("has a short descriptor"))?;
                desc.store(&sb, number, raw)
            })?;
            if let Some(desc) = self.groups.list.get_mut(index(number)?) {
                desc.dirty = false;
            }
        }
        Ok(())
    }
}
