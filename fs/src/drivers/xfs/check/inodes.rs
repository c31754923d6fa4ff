//! Inodes: each chunk, each inode in it, used or free.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, index, len64, take};

use super::super::crc;
use super::super::edit::ground::Ground;
use super::super::edit::records::{CHUNK_INODES, Chunk, Run};
use super::super::fault::Fault;
use super::super::inode::{CRC_AT, DiFlags, ForkKind, Inode};
use super::super::layout::{DINODE_MAGIC, RawDinode};
use super::super::sound;
use super::super::superblock::{Incompat, VersionBits};
use super::super::units::{InodeNo, Lsn};
use super::Checker;
use super::holder::Holder;
use super::table::Known;
use crate::filesystem::NodeKind;

fn bit(place: u32) -> u64 {
    1u64.checked_shl(place).unwrap_or(0)
}

impl Checker<'_> {
    /// A chunk that the inobt has.
    pub(super) fn chunk(&mut self, ground: &Ground, chunk: &Chunk) -> Result<()> {
        let sb = &self.volume.sb;
        let per_block = 1u32.checked_shl(sb.inopblog).unwrap_or(u32::MAX);
        let step = per_block.min(CHUNK_INODES.into());
        let block = chunk.first.checked_shr(sb.inopblog).unwrap_or(0);
        let aligned = sb.version_bits.contains(VersionBits::ALIGN) && sb.inode_align > 1;
        let good = chunk.first.is_multiple_of(step) && (!aligned || block.is_multiple_of(sb.inode_align));
        let place = || format!("group {}: inobt: chunk at inode {}", ground.ag.0, chunk.first);
        if !good {
            self.notes.corrupt(format!("{}: does not begin where chunks can", place()))?;
        }
        let first = self.volume.sb.inode(ground.ag, chunk.first).within(place);
        let Some(first) = self.notes.look(first)? else { return Ok(()) };
        if !self.notes.muted {
            let inodes = len64(self.table.len()).saturating_mul(CHUNK_INODES.into());
            if inodes >= self.inodes_max {
                return Err(Fault::TooManyInodes { most: self.inodes_max }.into());
            }
            self.table.push(first, *chunk);
        }
        // Where a block has inodes of several chunks, the first one speaks of it.
        let (mut at, mut place) = (block, 0u32);
        while place < u32::from(CHUNK_INODES) && chunk.first.is_multiple_of(per_block) {
            if chunk.present() & bit(place) != 0 {
                self.claim(ground.ag, Run { start: at, len: 1 }, Holder::Inodes)?;
            }
            at = at.saturating_add(1);
            place = place.saturating_add(per_block);
        }
        Ok(())
    }

    /// Goes through all inodes.
    pub(super) fn inodes(&mut self) -> Result<()> {
        let size = self.volume.sb.inode_size.bytes();
        for at in 0..self.table.len() {
            let Some((first, chunk)) = self.table.row(at) else { continue };
            let whole = chunk.holes == 0;
            let bytes = if whole {
                let from = self.volume.sb.inode_offset(first)?;
                let all = size.saturating_mul(CHUNK_INODES.into());
                let read = wire::bytes(&self.volume.disk, from, all, all, "inodes");
                let Some(bytes) = self.notes.look(read)? else { continue };
                bytes
            } else {
                Vec::new()
            };
            for place in (0..u32::from(CHUNK_INODES)).filter(|p| chunk.present() & bit(*p) != 0) {
                let ino = InodeNo(first.0.saturating_add(place.into()));
                let one = if whole {
                    let at = index(size.saturating_mul(place.into()))?;
                    wire::part(&bytes, at, index(size)?, "inode")?.to_vec()
                } else {
                    let at = self.volume.sb.inode_offset(ino).within(|| format!("inode {}", ino.0));
                    let Some(at) = self.notes.look(at)? else { continue };
                    wire::bytes(&self.volume.disk, at, size, size, "inode")?
                };
                if chunk.free & bit(place) == 0 {
                    self.used_inode(ino, one)?;
                } else if self.looks_closer() {
                    let good = self.free_inode(ino, &one).within(|| format!("inode {}", ino.0));
                    self.notes.look(good)?;
                }
            }
        }
        Ok(())
    }

    fn free_inode(&mut self, ino: InodeNo, bytes: &[u8]) -> Result<()> {
        let raw: RawDinode = take(bytes, 0, "inode")?;
        if raw.di_magic.get() != DINODE_MAGIC {
            let (found, expected) = (raw.di_magic.get().into(), DINODE_MAGIC.into());
            return Err(Fault::Magic { what: "inode", found, expected }.into());
        }
        if self.volume.sb.v5 {
            crc::check(bytes, CRC_AT, "inode")?;
            self.volume.check_uuid(&raw.di_uuid, "inode")?;
            if raw.di_ino.get() != ino.0 {
                return Err(Fault::Owner { what: "inode", found: raw.di_ino.get(), expected: ino.0 }.into());
            }
            self.stamp(Lsn(raw.di_lsn.get()))?;
        }
        let why = "the inobt says that it is free";
        if raw.di_mode.get() != 0 {
            return Err(Fault::Field { what: "di_mode", found: raw.di_mode.get().into(), why }.into());
        }
        if raw.di_nblocks.get() != 0 {
            return Err(Fault::Field { what: "di_nblocks", found: raw.di_nblocks.get(), why }.into());
        }
        Ok(())
    }

    fn used_inode(&mut self, ino: InodeNo, bytes: Vec<u8>) -> Result<()> {
        let read = self.volume.parse_inode(ino, bytes);
        let Some(inode) = self.notes.look(read)? else {
            self.damaged = true;
            return Ok(());
        };
        if self.volume.sb.v5 {
            self.stamp(Lsn(inode.raw.di_lsn.get()))?;
        }
        if self.looks_closer() {
            let before = self.notes.count();
            self.core(&inode)?;
            self.table.set(ino, inode.kind, inode.links());
            if self.notes.count() > before {
                tracing::debug!(inode = ino.0, "damaged");
            }
        }
        let before = self.notes.count();
        let mut blocks = 0u64;
        for kind in [ForkKind::Data, ForkKind::Attr] {
            blocks = blocks.saturating_add(self.fork(&inode, kind)?);
        }
        let realtime = inode.flags.contains(DiFlags::REALTIME) && inode.kind == NodeKind::File;
        if !realtime && self.notes.count() == before {
            let place = format!("inode {}", ino.0);
            self.same(&place, "di_nblocks", inode.raw.di_nblocks.get(), blocks)?;
        }
        if self.looks_closer() && self.notes.count() == before {
            self.attributes(&inode)?;
            if inode.kind == NodeKind::Link {
                let target = self.volume.link_target(&inode).within(|| format!("inode {}", ino.0));
                self.notes.look(target)?;
            }
        }
        Ok(())
    }

    /// A number that an inode has, and what was counted.
    pub(super) fn same(&mut self, place: &str, what: &str, found: u64, right: u64) -> Result<()> {
        if found == right {
            Ok(())
        } else {
            self.notes.corrupt(format!("{place}: {what} is {found}, counted {right}"))
        }
    }

    /// The fixed part of an inode.
    fn core(&mut self, inode: &Inode) -> Result<()> {
        let place = format!("inode {}", inode.ino.0);
        let listed = self.unlinked.contains(&inode.ino.0);
        for fault in sound::faults(&self.volume.sb, inode, listed) {
            self.notes.corrupt(format!("{place}: {fault}"))?;
        }
        let metadata = self.is_metadata(inode.ino);
        if metadata && inode.kind != NodeKind::File {
            self.notes.corrupt(format!("{place}: of quotas or of the realtime device, and no file"))?;
        }
        Ok(())
    }

    /// Whether the superblock names the inode: no directory does.
    pub(super) fn is_metadata(&self, ino: InodeNo) -> bool {
        let sb = &self.volume.sb;
        let raw = &sb.raw;
        let mut all = vec![raw.sb_rbmino.get(), raw.sb_rsumino.get()];
        if sb.version_bits.contains(VersionBits::QUOTA) {
            all.extend([raw.sb_uquotino.get(), raw.sb_gquotino.get(), raw.sb_pquotino.get()]);
        }
        ino.0 != 0 && ino.0 != u64::MAX && all.contains(&ino.0)
    }

    /// The inodes that the superblock names: a link each that is in no directory.
    pub(super) fn named_by_superblock(&mut self) -> Result<()> {
        let sb = &self.volume.sb;
        let raw = &sb.raw;
        let mut all = vec![("sb_rbmino", raw.sb_rbmino.get()), ("sb_rsumino", raw.sb_rsumino.get())];
        if sb.version_bits.contains(VersionBits::QUOTA) {
            let projects = if sb.v5 { raw.sb_pquotino.get() } else { 0 };
            all.extend([("sb_uquotino", raw.sb_uquotino.get()), ("sb_gquotino", raw.sb_gquotino.get())]);
            all.push(("sb_pquotino", projects));
        }
        let mut seen = std::collections::BTreeSet::new();
        for (name, ino) in all {
            if matches!(ino, 0 | u64::MAX) || !seen.insert(ino) {
                continue;
            }
            match self.table.known(ino) {
                Known::Absent if !self.table.incomplete => {
                    self.notes.corrupt(format!("superblock: {name} is inode {ino}, which is not in use"))?;
                }
                Known::Absent | Known::Damaged => {}
                Known::Kind(_) => self.table.found_link(ino),
            }
        }
        if raw.sb_rblocks.get() != 0 {
            self.notes.leave_out("what is on the realtime device, and which of its space is free");
        }
        if sb.version_bits.contains(VersionBits::QUOTA) {
            self.notes.leave_out("what quotas count");
        }
        let needs = self.volume.sb.incompat.contains(Incompat::NEEDSREPAIR);
        if needs { self.notes.corrupt("the filesystem is marked as in need of repair") } else { Ok(()) }
    }
}
