//! A directory entry that gets an inode of its own, in the place of one that it shares with other entries.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, part_mut};
use zerocopy::{FromZeros, IntoBytes};

use crate::filesystem::{Name, NodeKind, Time};

use super::super::attr::{Attr, AttrFlags};
use super::super::fault::Fault;
use super::super::inode::{DiFlags, DiFlags2, ForkKind, Inode};
use super::super::layout::{DINODE_MAGIC, RawDinode};
use super::super::superblock::Incompat;
use super::super::units::InodeNo;
use super::Edit;
use super::attrs::big_counts;
use super::dir::NewEntry;
use super::fork::Site;
use super::ialloc::NULL_AG_INODE;
use super::node::encode_time;

/// `di_format` and `di_aformat` of a fork of extents.
const FORMAT_EXTENTS: u8 = 2;

/// Blocks for a chunk of inodes and a directory that leaves its inode, beside those for the attributes.
const MORE_BLOCKS: u64 = 40;

impl Edit {
    /// Gives the entry `name` of `dir` an inode of its own, if it is not the only one that names its inode: an
    /// empty file with the same owner, mode, flags and attributes. Returns the inode that `name` names then.
    pub(in super::super) fn separate(&mut self, dir: InodeNo, name: &Name, now: Time) -> Result<InodeNo> {
        let dir = self.inode(dir)?;
        let number = dir.ino.0;
        let entry = self.entry(&dir, name)?;
        let old = self.inode(entry.ino)?;
        if old.kind == NodeKind::Dir {
            return Err(Fault::IsDirectory { ino: old.ino.0 }.into());
        }
        if old.kind != NodeKind::File {
            return Err(Fault::NotA { ino: old.ino.0, what: "a regular file" }.into());
        }
        if old.links() <= 1 {
            return Ok(old.ino);
        }
        if old.flags.contains(DiFlags::REALTIME) {
            return Err(Fault::Realtime { ino: old.ino.0 }.into());
        }
        let parent = self.parent_of(&dir, &entry.name);
        let attrs = self.volume.stored_attrs(&old)?;
        // The attributes are written twice at most: for the new inode, and for the old one without a parent.
        let blocks =
            old.raw.di_nblocks.get().saturating_mul(2).min(self.attr_blocks(&attrs).saturating_mul(2));
        self.reserve(blocks.saturating_add(self.blocks_for_entries(1)).saturating_add(MORE_BLOCKS))?;
        let (new, generation) = self.prepare(|edit| edit.take_inode(dir.ino))?;
        self.run(|edit| {
            edit.twin(&old, &attrs, parent.as_ref(), (new, generation), now)?;
            let mut dir = dir;
            let kind = old.kind;
            edit.point_entry(&mut dir, NewEntry { name: &entry.name, ino: new, kind })?;
            let mut old = edit.drop_parent(old, &dir, &entry.name)?;
            edit.store_dir(dir, now)?;
            let links = old.links().saturating_sub(1);
            old.touch(&edit.volume, false, now)?;
            old.core()?.di_nlink = links.into();
            old.store(&edit.volume)?;
            Ok(new)
        })
        .within(|| format!("separating {name:?} of directory {number}"))
    }

    /// Gives `inode`, which has `blocks` blocks elsewhere, an attribute fork with these attributes.
    fn put_attrs(&mut self, inode: &mut Inode, attrs: &[Attr], blocks: u64) -> Result<()> {
        let Some(fork) = inode.attr else {
            return match attrs {
                [] => Ok(()),
                _ => Err(Fault::Structure { what: "attributes", why: "no fork for them" }.into()),
            };
        };
        let site = Site { ino: inode.ino, kind: ForkKind::Attr, room: fork.room, big: big_counts(inode) };
        let (built, more) = self.build_attrs(site, attrs)?;
        inode.set_fork(ForkKind::Attr, &built)?;
        inode.core()?.di_nblocks = blocks.saturating_add(more).into();
        Ok(())
    }

    /// Makes an empty inode like `old`, which has these attributes.
    fn twin(
        &mut self,
        old: &Inode,
        attrs: &[Attr],
        parent: Option<&Attr>,
        (ino, generation): (InodeNo, u32),
        now: Time,
    ) -> Result<()> {
        let sb = &self.volume.sb;
        let mut bytes = vec![0; index(sb.inode_size.bytes())?];
        let raw = core_like(old, sb, ino, generation, now);
        part_mut(&mut bytes, 0, size_of::<RawDinode>(), "inode")?.copy_from_slice(raw.as_bytes());
        let mut new = self.volume.parse_inode(ino, stamped(bytes)?)?;
        let others = attrs.iter().filter(|attr| !attr.flags.contains(AttrFlags::PARENT));
        let attrs: Vec<Attr> = others.chain(parent).cloned().collect();
        self.put_attrs(&mut new, &attrs, 0)?;
        new.store(&self.volume).map(drop)
    }
}

fn stamped(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    super::super::crc::stamp(&mut bytes, super::super::inode::CRC_AT)?;
    Ok(bytes)
}

/// The fixed part of an empty file with owner, mode, flags and hints of `old`.
fn core_like(
    old: &Inode,
    sb: &super::super::superblock::Superblock,
    ino: InodeNo,
    generation: u32,
    now: Time,
) -> RawDinode {
    let was = &old.raw;
    let mut flags2 = old.flags2.intersection(DiFlags2::DAX.union(DiFlags2::COWEXTSIZE));
    flags2.set(DiFlags2::BIGTIME, sb.incompat.contains(Incompat::BIGTIME));
    flags2.set(DiFlags2::NREXT64, sb.incompat.contains(Incompat::NREXT64));
    let now = encode_time(now, flags2.contains(DiFlags2::BIGTIME)).into();
    let mut raw = RawDinode::new_zeroed();
    raw.di_magic = DINODE_MAGIC.into();
    raw.di_mode = was.di_mode;
    raw.di_version = 3;
    raw.di_format = FORMAT_EXTENTS;
    raw.di_uid = was.di_uid;
    raw.di_gid = was.di_gid;
    raw.di_nlink = 1.into();
    raw.di_projid_lo = was.di_projid_lo;
    raw.di_projid_hi = was.di_projid_hi;
    (raw.di_atime, raw.di_mtime, raw.di_ctime, raw.di_crtime) = (now, now, now, now);
    raw.di_extsize = was.di_extsize;
    raw.di_forkoff = was.di_forkoff;
    raw.di_aformat = FORMAT_EXTENTS;
    raw.di_dmevmask = was.di_dmevmask;
    raw.di_dmstate = was.di_dmstate;
    raw.di_flags = old.flags.difference(DiFlags::PREALLOC).bits().into();
    raw.di_gen = generation.into();
    raw.di_next_unlinked = NULL_AG_INODE.into();
    raw.di_changecount = 1.into();
    raw.di_flags2 = flags2.bits().into();
    raw.di_cowextsize = was.di_cowextsize;
    raw.di_ino = ino.0.into();
    raw.di_uuid = sb.meta_uuid;
    raw
}
