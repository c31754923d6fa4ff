//! Nodes made: a new inode and the entry that names it.

use std::sync::Arc;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part_mut};
use zerocopy::{FromZeros, IntoBytes};

use crate::filesystem::{Name, New, NewKind, Time};

use super::super::bmap::Mapping;
use super::super::crc;
use super::super::described::REMOTE_SELF;
use super::super::fault::Fault;
use super::super::inode::{CRC_AT, DiFlags, DiFlags2, ForkKind, Inode};
use super::super::layout::{DINODE_MAGIC, RawDinode, RawSymlink, SYMLINK_MAGIC};
use super::super::superblock::Incompat;
use super::super::units::{BASIC_BLOCK_SHIFT, FileBlock, InodeNo, Lsn};
use super::Edit;
use super::alloc::Want;
use super::dir::NewEntry;
use super::ialloc::NULL_AG_INODE;
use super::node::{FORMAT_EXTENTS, FORMAT_LOCAL, encode_time};
use super::owner::Owner;
use super::shortdir::ShortDir;

/// Bytes of the longest target of a symbolic link.
const TARGET_MAX: usize = 1024;
/// The most entries that can name an inode.
pub(super) const LINKS_MAX: u32 = (1 << 31) - 1;
/// Highest major and minor number of a device: Linux takes only nine bits of the major one.
const MAJOR_MAX: u32 = (1 << 9) - 1;
const MINOR_MAX: u32 = (1 << 18) - 1;
/// Blocks for a chunk of inodes, its trees, a link's target and attributes that name the parent.
const MORE_BLOCKS: u64 = 40;

/// `di_format` of a device number.
const FORMAT_DEV: u8 = 0;
/// Flags that directories hand down to what is made in them, as the kernel has it.
const INHERITED: DiFlags = DiFlags::SYNC
    .union(DiFlags::NOATIME)
    .union(DiFlags::NODUMP)
    .union(DiFlags::NODEFRAG)
    .union(DiFlags::FILESTREAM);

fn refuse<T>(what: &'static str) -> Result<T> {
    Err(Fault::Unsupported { what }.into())
}

/// Checks what a new node is to be.
fn check(new: &New<'_>) -> Result<()> {
    match new.kind {
        NewKind::Link(target) if target.len() > TARGET_MAX => {
            refuse("a symbolic link whose target has more than 1024 bytes")
        }
        NewKind::Char(major, minor) | NewKind::Block(major, minor)
            if major > MAJOR_MAX || minor > MINOR_MAX =>
        {
            refuse("a device number beyond 9 and 18 bits")
        }
        _ => Ok(()),
    }
}

impl Edit {
    /// Makes a node and the entry `name` of `dir` for it.
    pub(in super::super) fn create(
        &mut self,
        dir: InodeNo,
        name: &Name,
        new: &New<'_>,
        now: Time,
    ) -> Result<InodeNo> {
        check(new)?;
        let dir = self.inode(dir)?;
        let is_dir = matches!(new.kind, NewKind::Dir);
        if is_dir && dir.links() >= LINKS_MAX {
            return refuse("so many directories in one");
        }
        let chunk = u64::from(self.volume.sb.inode_align).max(64 >> self.volume.sb.inopblog.min(6));
        self.reserve(self.blocks_for_entries(1).saturating_add(chunk).saturating_add(MORE_BLOCKS))?;
        let (ino, generation) = self.prepare(|edit| edit.take_inode(dir.ino))?;
        let number = dir.ino.0;
        self.run(|edit| {
            let node = edit.make(&dir, (ino, generation), new, now)?;
            let node = edit.add_parent(node, &dir, name.as_bytes())?;
            let kind = node.kind;
            node.store(&edit.volume)?;
            let mut dir = dir;
            if is_dir {
                dir.add_link()?;
            }
            edit.add_entry(&mut dir, NewEntry { name: name.as_bytes(), ino, kind })?;
            edit.store_dir(dir, now)?;
            Ok(ino)
        })
        .within(|| format!("making {name:?} in directory {number}"))
    }

    /// The new inode, not yet written.
    fn make(
        &mut self,
        dir: &Inode,
        (ino, generation): (InodeNo, u32),
        new: &New<'_>,
        now: Time,
    ) -> Result<Inode> {
        let volume = Arc::clone(&self.volume);
        let sb = &volume.sb;
        let raw = self.new_core(dir, ino, generation, new, now)?;
        let mut bytes = vec![0; index(sb.inode_size.bytes())?];
        part_mut(&mut bytes, 0, size_of::<RawDinode>(), "inode")?.copy_from_slice(raw.as_bytes());
        crc::stamp(&mut bytes, CRC_AT)?;
        let mut node = volume.parse_inode(ino, bytes)?;
        match new.kind {
            NewKind::Dir => {
                let short = ShortDir { parent: dir.ino, entries: Vec::new() };
                node.put_local(&short.pack()?)?;
            }
            NewKind::Link(target) if target.len() <= node.data.room => node.put_local(target)?,
            NewKind::Link(target) => self.put_target(&mut node, target)?,
            NewKind::Char(major, minor) | NewKind::Block(major, minor) => {
                let at = node.data.at;
                let number = major << 18 | minor;
                part_mut(&mut node.bytes, at, 4, "device number")?.copy_from_slice(&number.to_be_bytes());
            }
            NewKind::File | NewKind::Fifo | NewKind::Socket => {}
        }
        node.reparse(&volume)?;
        Ok(node)
    }

    fn new_core(
        &self,
        dir: &Inode,
        ino: InodeNo,
        generation: u32,
        new: &New<'_>,
        now: Time,
    ) -> Result<RawDinode> {
        let sb = &self.volume.sb;
        let mut flags2 = dir.flags2.intersection(DiFlags2::DAX);
        flags2.set(DiFlags2::BIGTIME, sb.incompat.contains(Incompat::BIGTIME));
        flags2.set(DiFlags2::NREXT64, sb.incompat.contains(Incompat::NREXT64));
        let mode = if matches!(new.kind, NewKind::Link(_)) { 0o777 } else { new.mode };
        let mode = u16::try_from(new.kind.kind().mode_bits() | mode & 0o7777).unwrap_or(0);
        let now = encode_time(now, flags2.contains(DiFlags2::BIGTIME)).into();
        let (is_dir, is_file) = (matches!(new.kind, NewKind::Dir), matches!(new.kind, NewKind::File));
        let mut raw = RawDinode::new_zeroed();
        let mut flags = DiFlags::empty();
        if is_dir || is_file {
            flags = dir.flags.intersection(INHERITED);
            if dir.flags.contains(DiFlags::EXTSZINHERIT) {
                flags |= if is_dir { DiFlags::EXTSZINHERIT } else { DiFlags::EXTSIZE };
                raw.di_extsize = dir.raw.di_extsize;
            }
            if is_dir {
                // Not to files: their content goes where racker can write it.
                flags |= dir.flags.intersection(DiFlags::RTINHERIT);
            }
            if dir.flags2.contains(DiFlags2::COWEXTSIZE) {
                flags2 |= DiFlags2::COWEXTSIZE;
                raw.di_cowextsize = dir.raw.di_cowextsize;
            }
        }
        if dir.flags.contains(DiFlags::PROJINHERIT) {
            (raw.di_projid_lo, raw.di_projid_hi) = (dir.raw.di_projid_lo, dir.raw.di_projid_hi);
            if is_dir {
                flags |= DiFlags::PROJINHERIT;
            }
        }
        raw.di_magic = DINODE_MAGIC.into();
        raw.di_mode = mode.into();
        raw.di_version = 3;
        raw.di_format = match new.kind {
            NewKind::File => FORMAT_EXTENTS,
            NewKind::Dir | NewKind::Link(_) => FORMAT_LOCAL,
            NewKind::Char(..) | NewKind::Block(..) | NewKind::Fifo | NewKind::Socket => FORMAT_DEV,
        };
        (raw.di_uid, raw.di_gid) = (new.uid.into(), new.gid.into());
        raw.di_nlink = if is_dir { 2 } else { 1 }.into();
        (raw.di_atime, raw.di_mtime, raw.di_ctime, raw.di_crtime) = (now, now, now, now);
        raw.di_aformat = FORMAT_EXTENTS;
        raw.di_flags = flags.bits().into();
        raw.di_gen = generation.into();
        raw.di_next_unlinked = NULL_AG_INODE.into();
        raw.di_changecount = 1.into();
        raw.di_flags2 = flags2.bits().into();
        raw.di_ino = ino.0.into();
        raw.di_uuid = sb.meta_uuid;
        Ok(raw)
    }

    /// Writes the target of a symbolic link to blocks of its own.
    pub(super) fn put_target(&mut self, node: &mut Inode, target: &[u8]) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let sb = &volume.sb;
        node.put_nothing()?;
        node.core()?.di_size = len64(target.len()).into();
        node.reparse(&volume)?;
        let (near, _, _) = sb.split_inode(node.ino)?;
        let room = sb.block_size.bytes().saturating_sub(len64(size_of::<RawSymlink>())).max(1);
        let (mut rest, mut next) = (target, 0u64);
        while !rest.is_empty() {
            let whole = len64(rest.len()).div_ceil(room);
            let take = u32::try_from(whole).unwrap_or(u32::MAX);
            let owner = Owner::content(node.ino, ForkKind::Data, next, false);
            let found = self.allocate(Want { whole, take, near, behind: None }, owner)?;
            let (start, len) = (self.fs_block(found)?, u64::from(found.run.len));
            let span = sb.span(start, len)?;
            let mut bytes = vec![0; index(span.len())?];
            let most = bytes.len().saturating_sub(size_of::<RawSymlink>());
            let (now, later) = rest.split_at_checked(most).unwrap_or((rest, &[]));
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).into();
            let head = RawSymlink {
                sl_magic: SYMLINK_MAGIC.into(),
                sl_offset: number(target.len().saturating_sub(rest.len())),
                sl_bytes: number(now.len()),
                sl_crc: 0.into(),
                sl_uuid: sb.meta_uuid,
                sl_owner: node.ino.0.into(),
                sl_blkno: (span.start() >> BASIC_BLOCK_SHIFT).into(),
                sl_lsn: 0.into(),
            };
            let all = [head.as_bytes(), now].concat();
            part_mut(&mut bytes, 0, all.len(), "symbolic link block")?.copy_from_slice(&all);
            REMOTE_SELF.stamp(&mut bytes, Lsn(0))?;
            volume.disk.write_at(span.start(), &bytes)?;
            let mapping = Mapping { at: FileBlock(next), start, len, unwritten: false };
            self.map_add(node, ForkKind::Data, mapping)?;
            node.count_blocks(len, 0)?;
            node.reparse(&volume)?;
            next = next.saturating_add(len);
            rest = later;
        }
        Ok(())
    }
}

impl Inode {
    /// One more entry names it.
    pub(super) fn add_link(&mut self) -> Result<()> {
        let core = self.core()?;
        core.di_nlink = core.di_nlink.get().saturating_add(1).into();
        Ok(())
    }

    /// One entry fewer names it. Returns how many are left.
    pub(super) fn drop_link(&mut self) -> Result<u32> {
        let ino = self.ino.0;
        let core = self.core()?;
        let why = "more entries name it than it counts";
        let left = core.di_nlink.get().checked_sub(1);
        let left = left.ok_or(Fault::Fork { ino, fork: "data", why })?;
        core.di_nlink = left.into();
        Ok(left)
    }
}
