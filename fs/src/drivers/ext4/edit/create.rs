//! Nodes made, and linked.

use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;
use zerocopy::FromZeros;

use super::super::csum::crc32c;
use super::super::fault::Ext4Fault;
use super::super::features::RoCompat;
use super::super::layout::{OLD_INODE_BYTES, RawInode, inode_flags};
use super::Edit;
use super::bytes::{low16, put32};
use super::node::{LINKS_MAX, Node};
use crate::filesystem::{Name, New, NewKind, NodeKind, Time};

/// Bytes of fixed fields beyond the old ones, unless the superblock wants more.
const EXTRA: usize = 32;
/// Flags that a new node takes from its directory.
const INHERITED: u32 = 0x6201_c4cf;
/// Those of them that only directories have.
const OF_DIRS: u32 = 0x6003_0000;
/// Those that nodes without content have.
const OF_OTHERS: u32 = 0xc0;
/// `P`: children have the same project id.
const PROJINHERIT: u32 = 0x2000_0000;
/// Bytes of the longest target that an inode holds.
const FAST_LINK_MAX: usize = 59;
/// Where the project id ends in an inode.
pub(super) const PROJECT_END: usize = 160;
/// Bits of a major and a minor number.
const MAJOR_MAX: u32 = 0xfff;
const MINOR_MAX: u32 = 0xf_ffff;

impl Edit {
    /// An inode with nothing in it but its times, for a number that was just taken.
    pub(super) fn blank(&mut self, number: u32, kind: NodeKind, now: Time) -> Result<Node> {
        let sb = &self.fs.sb;
        let mut raw = RawInode::new_zeroed();
        let mut fixed = OLD_INODE_BYTES;
        if sb.inode_bytes > OLD_INODE_BYTES {
            let mut extra = EXTRA;
            if sb.features.ro_compat.contains(RoCompat::EXTRA_ISIZE) {
                let want = sb.raw.want_extra_isize.get().max(sb.raw.min_extra_isize.get());
                extra = extra.max(want.into());
            }
            let room = sb.inode_bytes.saturating_sub(OLD_INODE_BYTES);
            if extra > room || !extra.is_multiple_of(4) {
                extra = EXTRA;
            }
            fixed = fixed.saturating_add(extra);
            raw.extra_isize = u16::try_from(extra).unwrap_or(32).into();
        }
        self.made = self.made.wrapping_add(1);
        let seeds = [number.to_le_bytes(), self.made.to_le_bytes(), now.nsec.to_le_bytes()];
        let seed = crc32c(sb.csum_seed, &now.sec.to_le_bytes());
        raw.generation = seeds.iter().fold(seed, |seed, bytes| crc32c(seed, bytes)).into();
        let bytes = vec![0; sb.inode_bytes];
        let mut node = Node { number, raw, kind, size: 0, fixed, bytes };
        node.touch(now);
        node.set_atime(now);
        node.set_crtime(now);
        Ok(node)
    }

    /// Gives a node its owner and its mode.
    pub(super) fn set_owner(node: &mut Node, uid: Option<u32>, gid: Option<u32>, mode: Option<u32>) {
        if let Some(uid) = uid {
            node.raw.uid = low16(uid.into()).into();
            node.raw.uid_hi = low16(u64::from(uid) >> 16).into();
        }
        if let Some(gid) = gid {
            node.raw.gid = low16(gid.into()).into();
            node.raw.gid_hi = low16(u64::from(gid) >> 16).into();
        }
        if let Some(mode) = mode {
            node.raw.mode = low16(u64::from(node.kind.mode_bits() | mode & 0o7777)).into();
        }
    }

    /// Gives a new node the flags and the project id that its directory passes on.
    fn inherit(&self, dir: &Node, node: &mut Node) {
        let flags = dir.raw.flags.get() & INHERITED;
        let mask = match node.kind {
            NodeKind::Dir => u32::MAX,
            NodeKind::File => !OF_DIRS,
            _ => OF_OTHERS,
        };
        node.set_flag(flags & mask, true);
        let has_project = self.fs.sb.features.ro_compat.contains(RoCompat::PROJECT);
        if has_project && dir.has(PROJINHERIT) && node.fixed >= PROJECT_END {
            node.raw.projid = dir.raw.projid;
        }
    }

    /// Makes a node and its entry.
    pub(super) fn create(&mut self, dir: u64, name: &Name, new: &New<'_>, now: Time) -> Result<u32> {
        let mut dir = self.node(dir)?;
        let kind = new.kind.kind();
        let number = self.allocate_inode(dir.number, kind == NodeKind::Dir)?;
        let mut node = self.blank(number, kind, now)?;
        let mode = if kind == NodeKind::Link { 0o777 } else { new.mode };
        Self::set_owner(&mut node, Some(new.uid), Some(new.gid), Some(mode));
        self.inherit(&dir, &mut node);
        node.set_links(1);
        self.start(&mut node, &mut dir, new.kind).within(|| format!("inode {number}"))?;
        self.add_entry(&mut dir, name.as_bytes(), number, kind)?;
        dir.touch(now);
        self.save(&mut dir)?;
        self.save(&mut node)?;
        Ok(number)
    }

    /// Gives a new node its first content.
    fn start(&mut self, node: &mut Node, dir: &mut Node, kind: NewKind<'_>) -> Result<()> {
        match kind {
            NewKind::File => self.start_map(node),
            NewKind::Dir => {
                self.add_link(dir)?;
                node.set_links(2);
                self.start_map(node)?;
                self.start_dir(node, dir.number)
            }
            NewKind::Link(target) if target.len() <= FAST_LINK_MAX => {
                for (to, from) in node.raw.block.iter_mut().zip(target) {
                    *to = *from;
                }
                node.size = len64(target.len());
                Ok(())
            }
            NewKind::Link(target) => {
                self.start_map(node)?;
                node.size = len64(target.len());
                let blocks = self.fs.sb.block_size.count(node.size);
                if blocks > 1 {
                    // The kernel reads a target out of one block.
                    return Err(Ext4Fault::Cannot(format!(
                        "a target of {} bytes is longer than a block",
                        target.len()
                    ))
                    .into());
                }
                let mut content = target.to_vec();
                content.resize(self.fs.block_len()?, 0);
                self.fill(node, 0, 1)?;
                self.write_mapped(node, 0, &content)
            }
            NewKind::Char(major, minor) | NewKind::Block(major, minor) => put_device(node, major, minor),
            NewKind::Fifo | NewKind::Socket => Ok(()),
        }
    }

    /// One link more to a node. Directories with more than can be counted have a count of 1.
    pub(super) fn add_link(&self, node: &mut Node) -> Result<()> {
        let links = node.links();
        if node.kind != NodeKind::Dir {
            if links >= LINKS_MAX {
                return Err(Ext4Fault::Cannot(format!("a file has {LINKS_MAX} links at most")).into());
            }
            node.set_links(links.saturating_add(1));
            return Ok(());
        }
        if links == 1 {
            return Ok(());
        }
        if links < LINKS_MAX {
            node.set_links(links.saturating_add(1));
            return Ok(());
        }
        let uncounted = self.fs.sb.features.ro_compat.contains(RoCompat::DIR_NLINK);
        if !uncounted || !node.has(inode_flags::INDEX) {
            let what = format!("a directory has {LINKS_MAX} links at most, one of each directory in it");
            return Err(Ext4Fault::Cannot(what).into());
        }
        node.set_links(1);
        Ok(())
    }

    /// One link less to a directory.
    pub(super) fn drop_dir_link(node: &mut Node) {
        if node.links() > 2 {
            node.set_links(node.links().saturating_sub(1));
        }
    }

    /// Makes one more entry for a node.
    pub(super) fn link(&mut self, number: u64, dir: u64, name: &Name, now: Time) -> Result<()> {
        let (mut node, mut dir) = (self.node(number)?, self.node(dir)?);
        self.add_link(&mut node)?;
        node.set_ctime(now);
        self.add_entry(&mut dir, name.as_bytes(), node.number, node.kind)?;
        dir.touch(now);
        self.save(&mut dir)?;
        self.save(&mut node)
    }

    /// Gives an entry a node of its own, an empty one like that which it has now.
    pub(super) fn separate(&mut self, dir: u64, name: &Name, now: Time) -> Result<u32> {
        /// Flags about how content is stored, or sealed.
        const STORED: u32 = 0x107c_0000 | inode_flags::INDEX;
        let mut dir = self.node(dir)?;
        let found = self.find_entry(&dir, name.as_bytes())?;
        let old = found.ok_or(Ext4Fault::Directory("an entry is gone"))?;
        let mut old = self.node(old.into())?;
        let number = self.allocate_inode(old.number, false)?;
        let mut node = self.blank(number, old.kind, now)?;
        // The attributes find the room that they have there.
        (node.fixed, node.raw.extra_isize) = (old.fixed, old.raw.extra_isize);
        node.raw.mode = old.raw.mode;
        (node.raw.uid, node.raw.uid_hi) = (old.raw.uid, old.raw.uid_hi);
        (node.raw.gid, node.raw.gid_hi) = (old.raw.gid, old.raw.gid_hi);
        node.set_flag(old.raw.flags.get() & !STORED & !inode_flags::EA_INODE, true);
        if node.fixed >= PROJECT_END {
            node.raw.projid = old.raw.projid;
        }
        node.set_links(1);
        self.start_map(&mut node)?;
        self.copy_attrs(&old, &mut node)?;
        self.point_entry(&mut dir, name.as_bytes(), number, node.kind)?;
        dir.touch(now);
        old.set_links(old.links().saturating_sub(1));
        old.set_ctime(now);
        self.save(&mut dir)?;
        self.save(&mut old)?;
        self.save(&mut node)?;
        Ok(number)
    }
}

/// Puts the numbers of a device in place of the block map: in the old form if they fit.
fn put_device(node: &mut Node, major: u32, minor: u32) -> Result<()> {
    if major > MAJOR_MAX || minor > MINOR_MAX {
        return Err(Ext4Fault::Cannot(format!("no device can have the numbers {major}:{minor}")).into());
    }
    if major < 256 && minor < 256 {
        return put32(&mut node.raw.block, 0, major << 8 | minor);
    }
    put32(&mut node.raw.block, 4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}
