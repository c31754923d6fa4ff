//! Feature bits and the names that `dumpe2fs` has for them.

use bitflags::bitflags;

bitflags! {
    /// Features that an old driver may ignore.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Compat: u32 {
        const HAS_JOURNAL = 0x4;
        const EXT_ATTR = 0x8;
        const RESIZE_INODE = 0x10;
        const DIR_INDEX = 0x20;
        const SPARSE_SUPER2 = 0x200;
        const FAST_COMMIT = 0x400;
        const STABLE_INODES = 0x800;
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }

    /// Features that an old driver must refuse.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Incompat: u32 {
        const FILETYPE = 0x2;
        const RECOVER = 0x4;
        const JOURNAL_DEV = 0x8;
        const META_BG = 0x10;
        const EXTENTS = 0x40;
        const BIT64 = 0x80;
        const MMP = 0x100;
        const FLEX_BG = 0x200;
        const EA_INODE = 0x400;
        const CSUM_SEED = 0x2000;
        const LARGEDIR = 0x4000;
        const INLINE_DATA = 0x8000;
        const ENCRYPT = 0x1_0000;
        const CASEFOLD = 0x2_0000;
        const _ = !0;
    }

    /// Features that an old driver may read and must not write.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct RoCompat: u32 {
        const SPARSE_SUPER = 0x1;
        const LARGE_FILE = 0x2;
        const HUGE_FILE = 0x8;
        const BTREE_DIR = 0x4;
        const GDT_CSUM = 0x10;
        const DIR_NLINK = 0x20;
        const EXTRA_ISIZE = 0x40;
        const QUOTA = 0x100;
        const BIGALLOC = 0x200;
        const METADATA_CSUM = 0x400;
        const PROJECT = 0x2000;
        const VERITY = 0x8000;
        const ORPHAN_PRESENT = 0x1_0000;
        const _ = !0;
    }
}

impl Incompat {
    /// What is understood when reading.
    pub(super) const READ: Self = Self::FILETYPE
        .union(Self::RECOVER)
        .union(Self::META_BG)
        .union(Self::EXTENTS)
        .union(Self::BIT64)
        .union(Self::MMP)
        .union(Self::FLEX_BG)
        .union(Self::EA_INODE)
        .union(Self::CSUM_SEED)
        .union(Self::LARGEDIR)
        .union(Self::INLINE_DATA)
        .union(Self::ENCRYPT)
        .union(Self::CASEFOLD);
}

impl RoCompat {
    /// What is understood when writing.
    pub(super) const WRITE: Self = Self::SPARSE_SUPER
        .union(Self::LARGE_FILE)
        .union(Self::BTREE_DIR)
        .union(Self::HUGE_FILE)
        .union(Self::GDT_CSUM)
        .union(Self::DIR_NLINK)
        .union(Self::EXTRA_ISIZE)
        .union(Self::QUOTA)
        .union(Self::BIGALLOC)
        .union(Self::METADATA_CSUM)
        .union(Self::PROJECT)
        .union(Self::VERITY)
        .union(Self::ORPHAN_PRESENT);
}

const COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "dir_prealloc"),
    (0x2, "imagic_inodes"),
    (0x4, "has_journal"),
    (0x8, "ext_attr"),
    (0x10, "resize_inode"),
    (0x20, "dir_index"),
    (0x40, "lazy_bg"),
    (0x100, "snapshot_bitmap"),
    (0x200, "sparse_super2"),
    (0x400, "fast_commit"),
    (0x800, "stable_inodes"),
    (0x1000, "orphan_file"),
];

const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extent"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x1_0000, "encrypt"),
    (0x2_0000, "casefold"),
];

const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "sparse_super"),
    (0x2, "large_file"),
    (0x8, "huge_file"),
    (0x10, "uninit_bg"),
    (0x20, "dir_nlink"),
    (0x40, "extra_isize"),
    (0x80, "snapshot"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x400, "metadata_csum"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (0x8000, "verity"),
    (0x1_0000, "orphan_present"),
];

/// The names of all bits, an unknown one as `FEATURE_I17` for bit 17 of the group `I`.
fn names(bits: u32, table: &[(u32, &str)], group: char) -> Vec<String> {
    (0u32..32)
        .map(|shift| (shift, 1u32.wrapping_shl(shift)))
        .filter(|(_, bit)| bits & bit != 0)
        .map(|(shift, bit)| match table.iter().find(|(b, _)| *b == bit) {
            Some((_, name)) => (*name).to_string(),
            None => format!("FEATURE_{group}{shift}"),
        })
        .collect()
}

/// All three sets of a superblock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    pub(super) compat: Compat,
    pub(super) incompat: Incompat,
    pub(super) ro_compat: RoCompat,
}

impl Features {
    pub(super) fn new(compat: u32, incompat: u32, ro_compat: u32) -> Self {
        Self {
            compat: Compat::from_bits_retain(compat),
            incompat: Incompat::from_bits_retain(incompat),
            ro_compat: RoCompat::from_bits_retain(ro_compat),
        }
    }

    /// The names in `dumpe2fs`'s order.
    pub(super) fn names(&self) -> Vec<String> {
        let mut all = names(self.compat.bits(), COMPAT_NAMES, 'C');
        all.extend(names(self.incompat.bits(), INCOMPAT_NAMES, 'I'));
        all.extend(names(self.ro_compat.bits(), RO_COMPAT_NAMES, 'R'));
        all
    }

    /// The names of what keeps the filesystem from being read, if anything does.
    pub(super) fn unreadable(&self) -> Option<String> {
        let bits = self.incompat.bits() & !Incompat::READ.bits();
        (bits != 0).then(|| names(bits, INCOMPAT_NAMES, 'I').join(", "))
    }

    /// The names of what keeps the filesystem from being written, if anything does.
    pub(super) fn unwritable(&self) -> Option<String> {
        let bits = self.ro_compat.bits() & !RoCompat::WRITE.bits();
        (bits != 0).then(|| names(bits, RO_COMPAT_NAMES, 'R').join(", "))
    }

    /// Whether group descriptors have checksums, and with them flags.
    pub(super) fn has_group_csum(&self) -> bool {
        self.has_metadata_csum() || self.ro_compat.contains(RoCompat::GDT_CSUM)
    }

    pub(super) fn has_metadata_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// `ext2`, `ext3` or `ext4`, as `blkid` tells them apart: by what the older drivers could not read.
    pub(super) fn kind(&self) -> &'static str {
        // sparse_super, large_file and the never used btree_dir.
        let old_ro_compat = self.ro_compat.bits() & !0x7 == 0;
        let old_incompat = Incompat::FILETYPE | Incompat::RECOVER | Incompat::META_BG;
        if !old_ro_compat || self.incompat.bits() & !old_incompat.bits() != 0 {
            "ext4"
        } else if self.compat.contains(Compat::HAS_JOURNAL) {
            "ext3"
        } else {
            "ext2"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_kinds_are_those_of_the_other_tools() {
        let default = Features::new(0x3c, 0x2c2, 0x46b);
        let names = "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super \
                     large_file huge_file dir_nlink extra_isize metadata_csum";
        assert_eq!(default.names().join(" "), names);
        assert_eq!(default.kind(), "ext4");
        assert_eq!(Features::new(0x38, 0x2, 0x3).kind(), "ext2");
        assert_eq!(Features::new(0x3c, 0x6, 0x3).kind(), "ext3");
        assert_eq!(Features::new(0, 0x2000_0003, 0).unreadable().unwrap(), "compression, FEATURE_I29");
        assert_eq!(default.unreadable(), None);
    }
}
