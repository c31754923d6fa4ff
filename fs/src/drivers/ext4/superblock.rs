//! The superblock, checked: the only way to the numbers that everything else trusts.

use racker_formats::block::{BlockSize, Disk};
use racker_formats::error::Result;
use racker_formats::wire::{bytes, index, len64, part, sum_holds, view};

use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::features::{Compat, Features, Incompat, RoCompat};
use super::layout::{MAGIC, OLD_INODE_BYTES, RawSuperblock, SUPERBLOCK_AT, SUPERBLOCK_BYTES};

/// Creator codes of Linux, FreeBSD and Lites. The last two are written where e2fsprogs was built for them, and change
/// nothing; the others, of the Hurd and of Masix, use some inode fields differently.
const OS_LIKE_LINUX: [u32; 3] = [0, 3, 4];

/// A superblock whose fields make sense together.
#[derive(Clone)]
pub(super) struct Superblock {
    pub(super) raw: RawSuperblock,
    pub(super) features: Features,
    pub(super) block_size: BlockSize,
    /// Number of blocks.
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) cluster_shift: u32,
    pub(super) groups: u64,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    /// First inode number that is not reserved.
    pub(super) first_inode: u32,
    /// Bytes of an inode on disk.
    pub(super) inode_bytes: usize,
    /// Bytes of a group descriptor on disk.
    pub(super) group_bytes: usize,
    /// Where all crc32c checksums but the superblock's own start from.
    pub(super) csum_seed: u32,
}

impl std::fmt::Debug for Superblock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} blocks of {:?}", self.blocks, self.block_size)
    }
}

fn require(ok: bool, field: &'static str, found: u64, expected: impl Into<String>) -> Result<()> {
    if ok { Ok(()) } else { Err(Ext4Fault::Superblock { field, found, expected: expected.into() }.into()) }
}

fn join(hi: u32, lo: u32) -> u64 {
    u64::from(hi) << 32 | u64::from(lo)
}

impl Superblock {
    /// Reads and checks the primary superblock.
    pub(super) fn read(disk: &Disk) -> Result<Self> {
        let len = len64(SUPERBLOCK_BYTES);
        let bytes = bytes(disk, SUPERBLOCK_AT, len, len, "superblock")?;
        let sb = Self::parse(&bytes)?;
        let (blocks, block_size, size) = (sb.blocks, sb.block_size.bytes(), disk.size());
        if blocks.checked_mul(block_size).is_none_or(|need| need > size) {
            return Err(Ext4Fault::LargerThanVolume { blocks, block_size, size }.into());
        }
        Ok(sb)
    }

    /// Checks the 1024 bytes of a superblock.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let raw = *view::<RawSuperblock>(bytes, "superblock")?;
        if raw.magic.get() != MAGIC {
            return Err(Ext4Fault::Magic { found: raw.magic.get() }.into());
        }
        let revision = raw.rev_level.get();
        require(revision <= 1, "s_rev_level", revision.into(), "0 or 1")?;
        let features = match revision {
            0 => Features::new(0, 0, 0),
            _ => Features::new(
                raw.feature_compat.get(),
                raw.feature_incompat.get(),
                raw.feature_ro_compat.get(),
            ),
        };
        if let Some(names) = features.unreadable() {
            return Err(Ext4Fault::Features(names).into());
        }
        if features.has_metadata_csum() {
            require(raw.checksum_type == 1, "s_checksum_type", raw.checksum_type.into(), "1 (crc32c)")?;
            let (found, computed) = (raw.checksum.get(), crc32c(!0, part(bytes, 0, 1020, "superblock")?));
            if !sum_holds(found, computed) {
                return Err(Ext4Fault::Checksum { what: "the superblock", found, computed }.into());
            }
        }
        Self::sizes(raw, features)
    }

    /// Judges the sizes and counts.
    pub(super) fn sizes(raw: RawSuperblock, features: Features) -> Result<Self> {
        let log = raw.log_block_size.get();
        require(log <= 6, "s_log_block_size", log.into(), "0 to 6")?;
        let block_size = BlockSize::from_shift(log.saturating_add(10)).ok_or(Ext4Fault::Limit {
            what: "block size",
            found: log.into(),
            max: 6,
        })?;
        let bits_per_block = block_size.bytes().saturating_mul(8);

        let hi = |n: u32| if features.incompat.contains(Incompat::BIT64) { n } else { 0 };
        let blocks = join(hi(raw.blocks_count_hi.get()), raw.blocks_count_lo.get());
        let first_data_block = u64::from(raw.first_data_block.get());
        let largest_first = u64::from(block_size.bytes() == 1024);
        require(first_data_block <= largest_first, "s_first_data_block", first_data_block, "0 or 1")?;
        require(blocks > first_data_block && blocks < 1 << 48, "s_blocks_count", blocks, "less than 2^48")?;

        let cluster_shift = Self::cluster_shift(&raw, features, log)?;
        let clusters = u64::from(raw.clusters_per_group.get());
        let blocks_per_group = u64::from(raw.blocks_per_group.get());
        if features.ro_compat.contains(RoCompat::BIGALLOC) {
            let expected = format!("1 to {bits_per_block}");
            require((1..=bits_per_block).contains(&clusters), "s_clusters_per_group", clusters, expected)?;
            let expected = clusters.checked_shl(cluster_shift).unwrap_or(0);
            require(
                blocks_per_group == expected,
                "s_blocks_per_group",
                blocks_per_group,
                expected.to_string(),
            )?;
        } else {
            let expected = format!("1 to {bits_per_block}");
            let fits = (1..=bits_per_block).contains(&blocks_per_group);
            require(fits, "s_blocks_per_group", blocks_per_group, expected)?;
        }
        let groups = blocks.saturating_sub(first_data_block).div_ceil(blocks_per_group.max(1));

        let (first_inode, inode_bytes) = match raw.rev_level.get() {
            0 => (11, OLD_INODE_BYTES),
            _ => (raw.first_ino.get(), usize::from(raw.inode_size.get())),
        };
        let fits = inode_bytes >= OLD_INODE_BYTES
            && len64(inode_bytes) <= block_size.bytes()
            && inode_bytes.is_power_of_two();
        require(fits, "s_inode_size", len64(inode_bytes), "a power of two from 128 to the block size")?;
        require(first_inode >= 11, "s_first_ino", first_inode.into(), "11 or more")?;
        let inodes_per_group = raw.inodes_per_group.get();
        let fits = (1..=bits_per_block).contains(&u64::from(inodes_per_group));
        require(fits, "s_inodes_per_group", inodes_per_group.into(), format!("1 to {bits_per_block}"))?;
        let inodes = raw.inodes_count.get();
        let expected = groups.saturating_mul(inodes_per_group.into());
        require(expected == u64::from(inodes), "s_inodes_count", inodes.into(), expected.to_string())?;

        let csum_seed = if features.incompat.contains(Incompat::CSUM_SEED) {
            raw.checksum_seed.get()
        } else {
            crc32c(!0, &raw.uuid)
        };
        let group_bytes = Self::group_bytes(&raw, features)?;
        Ok(Self {
            raw,
            features,
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            cluster_shift,
            groups,
            inodes,
            inodes_per_group,
            first_inode,
            inode_bytes,
            group_bytes,
            csum_seed,
        })
    }

    /// The logarithm of blocks in a cluster.
    fn cluster_shift(raw: &RawSuperblock, features: Features, log_block: u32) -> Result<u32> {
        if !features.ro_compat.contains(RoCompat::BIGALLOC) {
            return Ok(0);
        }
        let log = raw.log_cluster_size.get();
        let shift = log.checked_sub(log_block).filter(|_| log <= 20);
        shift.ok_or_else(|| {
            let expected = format!("{log_block} to 20");
            Ext4Fault::Superblock { field: "s_log_cluster_size", found: log.into(), expected }.into()
        })
    }

    fn group_bytes(raw: &RawSuperblock, features: Features) -> Result<usize> {
        if !features.incompat.contains(Incompat::BIT64) {
            return Ok(32);
        }
        let size = raw.desc_size.get();
        let fits = (64..=1024).contains(&size) && size.is_power_of_two();
        require(fits, "s_desc_size", size.into(), "a power of two from 64 to 1024")?;
        index(size.into())
    }

    /// Whether group number `group` begins with a copy of the superblock.
    pub(super) fn has_superblock(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.compat.contains(Compat::SPARSE_SUPER2) {
            return self.raw.backup_bgs.iter().any(|g| u64::from(g.get()) == group);
        }
        if !self.features.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        group == 1 || [3, 5, 7].into_iter().any(is_power_of)
    }

    /// The block that holds the `number`-th block of group descriptors.
    pub(super) fn descriptor_block(&self, number: u64) -> u64 {
        let superblock = u64::from(self.block_size.bytes() == 1024);
        let meta_bg = self.features.incompat.contains(Incompat::META_BG);
        if !meta_bg || number < u64::from(self.raw.first_meta_bg.get()) {
            return superblock.saturating_add(1).saturating_add(number);
        }
        let per_block = self.block_size.bytes().checked_div(len64(self.group_bytes)).unwrap_or_default();
        let group = number.saturating_mul(per_block);
        let mut before = u64::from(self.has_superblock(group));
        // With 1024-byte blocks and none left out, block 0 is the boot block.
        if superblock == 1 && number == 0 && self.first_data_block == 0 {
            before = before.saturating_add(1);
        }
        self.first_block(group).saturating_add(before)
    }

    /// The first block of group number `group`.
    pub(super) fn first_block(&self, group: u64) -> u64 {
        self.first_data_block.saturating_add(group.saturating_mul(self.blocks_per_group))
    }

    /// Whether the inode fields that Linux has added are used as Linux does.
    pub(super) fn is_linux(&self) -> bool {
        OS_LIKE_LINUX.contains(&self.raw.creator_os.get())
    }

    /// Free blocks as the superblock has them; only a clean unmount brings them up to date.
    pub(super) fn free_blocks(&self) -> u64 {
        let hi = if self.features.incompat.contains(Incompat::BIT64) {
            self.raw.free_blocks_count_hi.get()
        } else {
            0
        };
        join(hi, self.raw.free_blocks_count_lo.get()).min(self.blocks)
    }

    /// Checks that `count` blocks at `block` lie behind the superblock and inside the filesystem.
    pub(super) fn check_blocks(&self, what: &'static str, block: u64, count: u64) -> Result<()> {
        let end = block.checked_add(count);
        if block <= self.first_data_block || end.is_none_or(|end| end > self.blocks) {
            return Err(Ext4Fault::BlockPastEnd { what, block, blocks: self.blocks }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A superblock as `mke2fs -t ext2 -b 1024` of 4 MiB has it, cut to what is checked.
    fn bytes() -> Vec<u8> {
        let mut b = vec![0u8; 1024];
        for (at, value) in [
            (0, 1024u32),
            (4, 4096),
            (20, 1),
            (24, 0),
            (28, 0),
            (32, 8192),
            (36, 8192),
            (40, 1024),
            (76, 1),
            (84, 11),
        ] {
            b[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        b[56..58].copy_from_slice(&MAGIC.to_le_bytes());
        b[88..90].copy_from_slice(&128u16.to_le_bytes());
        b[96] = 2;
        b[100] = 1;
        b
    }

    #[test]
    fn copies_lie_in_the_usual_groups() {
        let sb = Superblock::parse(&bytes()).unwrap();
        let with: Vec<u64> = (0..130).filter(|g| sb.has_superblock(*g)).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        assert_eq!(sb.descriptor_block(0), 2);
        assert_eq!(sb.groups, 1);
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let changes: [(usize, &[u8]); 9] = [
            (0, &[1, 4]),
            (4, &[0, 0, 0, 0]),
            (24, &[7]),
            (32, &[0, 0]),
            (32, &[1, 0x20, 0]),
            (40, &[0, 0]),
            (76, &[2]),
            (84, &[3]),
            (88, &[100]),
        ];
        for (at, change) in changes {
            let mut b = bytes();
            b[at..at + change.len()].copy_from_slice(change);
            let e = Superblock::parse(&b).unwrap_err();
            assert!(matches!(e.fault(), Some(Ext4Fault::Superblock { .. })), "{at}: {e}");
        }
        let mut b = bytes();
        b[97] = 0x10;
        let e = Superblock::parse(&b).unwrap_err();
        assert!(matches!(e.fault(), Some(Ext4Fault::Features(n)) if n == "dirdata"), "{e}");
    }
}
