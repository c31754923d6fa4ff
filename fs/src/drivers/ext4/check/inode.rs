//! One inode: what its fields say, against each other and against its blocks.

use racker_formats::error::Result;
use racker_formats::wire::is_zero;

use super::super::edit::bytes::{get16, get32};
use super::super::extent::END;
use super::super::features::{Compat, Incompat, RoCompat};
use super::super::inode::Inode;
use super::super::layout::{EXTENT_MAGIC, inode_flags};
use super::super::volume::ROOT_INODE;
use super::blocks::Walk;
use super::xattrs::Attributes;
use super::{Checker, Dir, resize};
use crate::filesystem::NodeKind;

/// The list of bad blocks, and the boot loader.
const BAD_BLOCKS: u32 = 1;
const BOOT_LOADER: u32 = 5;
/// The journal's inode, where it is not somewhere else, and those of quotas.
const JOURNAL: u32 = 8;
const QUOTAS: [u32; 2] = [3, 4];
/// Where fields are in an inode, as bytes.
const MODE_AT: usize = 0;
const DTIME_AT: usize = 20;
const LINKS_AT: usize = 26;
/// `i_flags`: the inode is one of AFS.
const IMAGIC: u32 = 0x2000;
const IMAGIC_FEATURE: u32 = 2;
/// `i_flags`: immutable, only appended to.
const FIXED: u32 = 0x30;
/// `i_flags`: what lies behind the end is a hash tree.
const VERITY: u32 = 0x10_0000;

/// What an inode is for, beside files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    File,
    BadBlocks,
    Resize,
    /// The journal, quotas, orphans: a file that no directory names; whether the filesystem has it.
    Hidden(bool),
    /// Kept for something else.
    Reserved,
}

impl Checker<'_> {
    fn role(&self, number: u32) -> Role {
        let (raw, features) = (&self.fs.sb.raw, &self.fs.sb.features);
        let quotas = [raw.usr_quota_inum.get(), raw.grp_quota_inum.get(), raw.prj_quota_inum.get()];
        match number {
            BAD_BLOCKS => Role::BadBlocks,
            ROOT_INODE => Role::File,
            resize::NUMBER => Role::Resize,
            _ if number == raw.journal_inum.get() && number != 0 => {
                Role::Hidden(features.compat.contains(Compat::HAS_JOURNAL))
            }
            JOURNAL => Role::Hidden(false),
            _ if quotas.contains(&number) => Role::Hidden(features.ro_compat.contains(RoCompat::QUOTA)),
            _ if QUOTAS.contains(&number) => Role::Hidden(false),
            _ if number == raw.orphan_file_inum.get() => {
                Role::Hidden(features.compat.contains(Compat::ORPHAN_FILE))
            }
            _ if number < self.fs.sb.first_inode => Role::Reserved,
            _ => Role::File,
        }
    }

    /// Whether no directory names an inode.
    pub(super) fn is_nameless(&self, number: u32) -> bool {
        self.role(number) != Role::File
    }

    fn wrong(&mut self, inode: &Inode, what: impl AsRef<str>) -> Result<()> {
        self.notes.get_mut(inode.number)?.spoil();
        self.finds.corrupt(format!("inode {}: {}", inode.number, what.as_ref()))
    }

    /// Checks an inode that is not all zero.
    pub(super) fn check_inode(&mut self, number: u32, raw: &[u8]) -> Result<()> {
        let role = self.role(number);
        let (links, mode) = (get16(raw, LINKS_AT)?, get16(raw, MODE_AT)?);
        let dtime = get32(raw, DTIME_AT)?;
        let is_orphan = self.orphans.contains(&number);
        if dtime != 0 && dtime < self.fs.sb.inodes && !is_orphan && self.has_true_times() {
            self.finds
                .corrupt(format!("inode {number} was in a list of orphans that does not lead to it"))?;
        }
        let in_use = links != 0 || is_orphan || role != Role::File;
        if !in_use && dtime == 0 && mode != 0 {
            self.finds.corrupt(format!("inode {number} was deleted, and has no time for it"))?;
        }
        let parsed = Inode::parse(&self.fs.sb, number, raw.to_vec());
        let Some(inode) = self.finds.sound(|| format!("inode {number}"), parsed)? else {
            if in_use {
                self.all_known = false;
                let note = self.notes.get_mut(number)?;
                note.use_as(links, crate::filesystem::NodeKind::from_mode(mode.into()));
                note.spoil();
            }
            return Ok(());
        };
        match role {
            _ if !in_use => Ok(()),
            Role::File => self.check_file(&inode, is_orphan),
            Role::BadBlocks => {
                let clear = mode == 0 && links == 0 && inode.xattr_block == 0 && get16(raw, 2)? == 0;
                if !clear || inode.has(inode_flags::INLINE_DATA) {
                    self.wrong(&inode, "the list of bad blocks has fields that it must not have")?;
                }
                self.walk_blocks(&inode).map(|_| ())
            }
            Role::Resize => self.check_resize_blocks(&inode),
            Role::Hidden(true) => {
                self.notes.get_mut(number)?.use_as(links, inode.kind);
                if inode.kind != Some(NodeKind::File) || links == 0 {
                    self.wrong(&inode, "it belongs to the filesystem, and is no regular file")?;
                }
                if inode.has(inode_flags::ENCRYPT) {
                    self.wrong(&inode, "it belongs to the filesystem, and is encrypted")?;
                }
                self.check_blocks(&inode, Attributes::default(), false)
            }
            Role::Hidden(false) => {
                if links != 0
                    || inode.allocated(&self.fs.sb) != 0
                    || !is_zero(inode.block().get(..4).unwrap_or_default())
                {
                    self.wrong(&inode, "it is in use, and the superblock does not say for what")?;
                }
                Ok(())
            }
            Role::Reserved => {
                let is_dir = inode.kind == Some(NodeKind::Dir);
                if (number == BOOT_LOADER && is_dir) || (number != BOOT_LOADER && mode != 0) {
                    self.wrong(&inode, "it is reserved, and has a mode")?;
                }
                self.check_blocks(&inode, Attributes::default(), false)
            }
        }
    }

    /// Times of deletion can be told from numbers of inodes.
    fn has_true_times(&self) -> bool {
        let raw = &self.fs.sb.raw;
        let low = |time: u32| time != 0 && time < self.fs.sb.inodes;
        !low(raw.wtime.get()) && !low(raw.mtime.get()) && !low(raw.mkfs_time.get())
    }

    /// The blocks of the resize inode are those of the tables, but for the one that names them.
    fn check_resize_blocks(&mut self, inode: &Inode) -> Result<()> {
        if !self.fs.has_resize_inode() {
            return Ok(());
        }
        if inode.kind.is_some_and(|kind| kind != NodeKind::File) {
            self.wrong(inode, "it is reserved, and no regular file")?;
        }
        let double = u64::from(get32(inode.block(), 52)?);
        let (cluster, _) = self.clusters(double, 1);
        if self.fs.sb.check_blocks("the resize inode", double, 1).is_ok() && !self.used.set(cluster) {
            self.taken(inode, double)?;
        }
        Ok(())
    }

    /// Checks an inode that directories may name.
    fn check_file(&mut self, inode: &Inode, is_orphan: bool) -> Result<()> {
        let note = self.notes.get_mut(inode.number)?;
        note.use_as(inode.links, inode.kind);
        if inode.is_ea_inode() {
            note.hold_value();
        }
        self.check_flags(inode, is_orphan)?;
        let attributes = self.check_attributes(inode)?;
        self.check_encryption(inode, attributes.policy)?;
        match inode.kind {
            None => self.wrong(inode, format!("its mode is {:#o}", inode.raw.mode.get()))?,
            Some(NodeKind::Dir) => {
                self.dirs.push(Dir { number: inode.number, parent: 0, up: 0 });
            }
            Some(NodeKind::File) => {}
            Some(NodeKind::Link) => self.check_link(inode)?,
            Some(NodeKind::Char | NodeKind::Block | NodeKind::Fifo | NodeKind::Socket) => {
                if inode.size != 0 {
                    self.wrong(inode, format!("it is a special file of {} bytes", inode.size))?;
                }
                if inode.has(inode_flags::INDEX | inode_flags::EXTENTS | inode_flags::INLINE_DATA | FIXED) {
                    self.wrong(inode, "it is a special file with flags of another")?;
                }
            }
        }
        if inode.number == ROOT_INODE && inode.kind != Some(NodeKind::Dir) {
            self.wrong(inode, "the root is no directory")?;
        }
        if !inode.has(inode_flags::INLINE_DATA) {
            return self.check_blocks(inode, attributes, is_orphan);
        }
        self.check_inline(inode)?;
        self.compare_blocks(inode, attributes.clusters, attributes)
    }

    fn check_flags(&mut self, inode: &Inode, is_orphan: bool) -> Result<()> {
        let features = self.fs.sb.features;
        let raw = &inode.raw;
        let is_dir = inode.kind == Some(NodeKind::Dir);
        let has = |flag| inode.has(flag);
        let (incompat, ro) = (features.incompat, features.ro_compat);
        let imagic = self.fs.sb.raw.feature_compat.get() & IMAGIC_FEATURE != 0;
        let looks_mapped = get16(inode.block(), 0)? == EXTENT_MAGIC && get16(inode.block(), 4)? == 4;
        let stored = matches!(inode.kind, Some(NodeKind::Dir | NodeKind::File));
        for (is_wrong, what) in [
            (raw.dtime.get() != 0 && !is_orphan, "it is in use, and has a time of deletion"),
            (has(inode_flags::CASEFOLD) && !is_dir, "it ignores case in names, and is no directory"),
            (
                has(inode_flags::CASEFOLD) && !incompat.contains(Incompat::CASEFOLD),
                "it ignores case, and the superblock has no casefold",
            ),
            (
                has(inode_flags::INLINE_DATA) && has(inode_flags::EXTENTS),
                "its data are inline and in extents",
            ),
            (
                has(inode_flags::INLINE_DATA) && !incompat.contains(Incompat::INLINE_DATA),
                "its data are inline, and the superblock has no inline_data",
            ),
            (
                has(inode_flags::EXTENTS) && !incompat.contains(Incompat::EXTENTS),
                "it has extents, and the superblock has none",
            ),
            (
                has(inode_flags::EA_INODE) && !incompat.contains(Incompat::EA_INODE),
                "it holds a value, and the superblock has no ea_inode",
            ),
            (
                stored
                    && looks_mapped
                    && !has(inode_flags::EXTENTS | inode_flags::INLINE_DATA)
                    && incompat.contains(Incompat::EXTENTS),
                "it has an extent tree, and does not say so",
            ),
            (raw.obso_faddr.get() != 0, "it has a fragment"),
            (
                is_dir && raw.size_hi.get() != 0 && !incompat.contains(Incompat::LARGEDIR),
                "it is a directory of 4 GiB or more",
            ),
            (
                raw.file_acl_hi.get() != 0 && self.fs.sb.is_linux() && !incompat.contains(Incompat::BIT64),
                "its attribute block lies beyond 32 bits",
            ),
            (
                raw.blocks_hi.get() != 0 && self.fs.sb.is_linux() && !ro.contains(RoCompat::HUGE_FILE),
                "it takes more blocks than 32 bits can say",
            ),
            (has(IMAGIC) && !imagic, "it has the imagic flag, and the superblock does not"),
            (
                has(inode_flags::INDEX) && is_dir && !features.compat.contains(Compat::DIR_INDEX),
                "it has an index, and the superblock no dir_index",
            ),
            (has(inode_flags::INDEX) && inode.kind == Some(NodeKind::Link), "it is a link with an index"),
            (inode.fixed > 128 && inode.fixed < 132, "its extra fields are too short"),
        ] {
            if is_wrong {
                self.wrong(inode, what)?;
            }
        }
        Ok(())
    }

    fn check_link(&mut self, inode: &Inode) -> Result<()> {
        let sound = inode.raw.size_hi.get() == 0
            && inode.size != 0
            && !inode.has(FIXED)
            && if inode.has(inode_flags::INLINE_DATA) {
                true
            } else if inode.is_fast_link(&self.fs.sb) {
                Self::ends_at_size(inode, inode.block())
            } else {
                let run = self.fs.map(inode, 0);
                match run.map(|run| run.to) {
                    Ok(super::super::map::Mapping::Data(block)) => {
                        let held = self.fs.block("a link", block)?;
                        Self::ends_at_size(inode, &held)
                    }
                    _ => false,
                }
            };
        if !sound {
            self.wrong(inode, format!("it is a symbolic link whose target is not {} bytes", inode.size))?;
        }
        Ok(())
    }

    /// Whether inline data are there, as far as the size says.
    fn check_inline(&mut self, inode: &Inode) -> Result<()> {
        let room = self.inline_room(inode);
        let place = || format!("inode {}", inode.number);
        let Some(room) = self.finds.sound(place, room)? else { return Ok(()) };
        let Some(room) = room else {
            return self.wrong(inode, "its data are inline, and it has no attribute for them");
        };
        let fits = match inode.kind {
            Some(NodeKind::Dir | NodeKind::Link) => inode.size == room || (inode.size < 60 && room == 60),
            _ => inode.size <= room,
        };
        if !fits {
            self.wrong(inode, format!("it has {} bytes, and room for {room}", inode.size))?;
        }
        Ok(())
    }

    /// Checks blocks, size and count of an inode.
    fn check_blocks(&mut self, inode: &Inode, attributes: Attributes, is_orphan: bool) -> Result<()> {
        let special =
            matches!(inode.kind, Some(NodeKind::Char | NodeKind::Block | NodeKind::Fifo | NodeKind::Socket));
        let fast = inode.kind == Some(NodeKind::Link) && inode.is_fast_link(&self.fs.sb);
        if special || fast {
            return self.compare_blocks(inode, attributes.clusters, attributes);
        }
        let walk = self.walk_blocks(inode)?;
        if walk.is_cut {
            self.notes.get_mut(inode.number)?.spoil();
            return Ok(());
        }
        if !is_orphan {
            self.check_size(inode, &walk)?;
        }
        self.compare_blocks(inode, walk.clusters.saturating_add(attributes.clusters), attributes)
    }

    fn check_size(&mut self, inode: &Inode, walk: &Walk) -> Result<()> {
        let block = self.fs.sb.block_size;
        let size = inode.size;
        let is_dir = inode.kind == Some(NodeKind::Dir);
        let fits = if is_dir {
            let ahead = u64::from(self.fs.sb.raw.prealloc_dir_blocks);
            let there = size >> block.shift();
            let whole = block.split(size).1 == 0;
            whole && size != 0 && there <= walk.end && walk.end.saturating_sub(there) <= ahead
        } else if inode.kind == Some(NodeKind::File) && !inode.has(VERITY) {
            // One block behind the end is no damage to e2fsck, as old journals have it.
            size >> block.shift() >= walk.written_end.saturating_sub(1)
        } else {
            true
        };
        if !fits {
            let blocks = if is_dir { walk.end } else { walk.written_end };
            self.wrong(inode, format!("its size is {size}, and it has blocks up to {blocks}"))?;
        }
        let addresses = block.bytes() >> 2;
        let square = addresses.saturating_mul(addresses);
        let mapped = square.saturating_mul(addresses).saturating_add(square).saturating_add(addresses);
        let max = if inode.has(inode_flags::EXTENTS) { END } else { mapped.saturating_add(12) };
        if block.count(size) > max {
            self.wrong(inode, format!("its size is {size}, more than its blocks can be named"))?;
        }
        let is_large = inode.kind == Some(NodeKind::File) && size > 0x7fff_ffff;
        if is_large && !self.fs.sb.features.ro_compat.contains(RoCompat::LARGE_FILE) {
            self.wrong(inode, format!("its size is {size}, and the superblock has no large_file"))?;
        }
        Ok(())
    }

    /// Compares the blocks that an inode counts with those that it has.
    fn compare_blocks(&mut self, inode: &Inode, clusters: u64, attributes: Attributes) -> Result<()> {
        let sb = &self.fs.sb;
        let all = clusters.saturating_add(attributes.values.clusters);
        let found = all.checked_shl(sb.cluster_shift).and_then(|b| b.checked_shl(sb.block_size.shift()));
        let counted = inode.allocated(sb);
        if found != Some(counted) {
            let found = found.unwrap_or(u64::MAX) >> 9;
            return self.wrong(inode, format!("it counts {} sectors, and has {found}", counted >> 9));
        }
        let number = inode.number;
        let is_hidden = self.role(number) != Role::File || inode.is_ea_inode() || inode.links == 0;
        if !is_hidden {
            self.owners.charge(inode, counted, attributes.values.inodes.saturating_add(1));
        }
        Ok(())
    }
}
