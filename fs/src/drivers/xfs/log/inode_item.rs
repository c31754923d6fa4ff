//! Replay of changed inodes: the fixed part in the byte order of the host, then what changed of either fork.

use core::mem::offset_of;

use racker_formats::error::Result;
use racker_formats::wire::{index, part, part_mut, take};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::filesystem::NodeKind;

use super::super::crc;
use super::super::fault::Fault;
use super::super::inode::{CRC_AT, DiFlags2, ForkKind, bmdr_entries};
use super::super::layout::{DINODE_MAGIC, RawBmdrBlock, RawDinode, RawLongBlock, RawLongBlock4};
use super::super::units::{Daddr, InodeNo, Lsn};
use super::super::volume::Volume;
use super::buffers::Buffers;
use super::layout::{RawInodeItem, RawInodeItem32, RawLogDinode};
use super::transaction::Item;

bitflags::bitflags! {
    /// `ilf_fields`: what is logged of an inode.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Fields: u32 {
        const CORE = 0x001;
        const DATA_LOCAL = 0x002;
        const DATA_EXTENTS = 0x004;
        const DATA_ROOT = 0x008;
        const DEVICE = 0x010;
        const ATTR_LOCAL = 0x040;
        const ATTR_EXTENTS = 0x080;
        const ATTR_ROOT = 0x100;
        /// The blocks of the data fork's tree belong to this inode from now on.
        const DATA_OWNER = 0x200;
        /// The same of the attribute fork's tree.
        const ATTR_OWNER = 0x400;
    }
}

const DATA: Fields = Fields::DATA_LOCAL.union(Fields::DATA_EXTENTS).union(Fields::DATA_ROOT);
const ATTR: Fields = Fields::ATTR_LOCAL.union(Fields::ATTR_EXTENTS).union(Fields::ATTR_ROOT);
const WHAT: &str = "changed inode in the log";

/// What an inode item says.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeItem {
    raw: RawInodeItem,
    fields: Fields,
    /// The buffer that holds the inode.
    pub(super) at: Daddr,
    /// In 512-byte units.
    pub(super) count: u64,
}

/// A tree whose blocks get a new owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NewOwner {
    pub(super) ino: InodeNo,
    pub(super) fork: ForkKind,
}

impl InodeItem {
    pub(super) fn parse(item: &Item<'_>) -> Result<Self> {
        let region = item.region(0)?;
        let raw = if region.len() == size_of::<RawInodeItem32>() {
            widen(&take(region, 0, WHAT)?)
        } else {
            take(region, 0, WHAT)?
        };
        let fields = Fields::from_bits_truncate(raw.ilf_fields.get());
        Ok(Self { raw, fields, at: Daddr(raw.ilf_blkno.get()), count: raw.ilf_len.get().into() })
    }

    pub(super) fn ino(&self) -> InodeNo {
        InodeNo(self.raw.ilf_ino.get())
    }
}

fn widen(raw: &RawInodeItem32) -> RawInodeItem {
    RawInodeItem {
        ilf_type: raw.ilf_type,
        ilf_size: raw.ilf_size,
        ilf_fields: raw.ilf_fields,
        ilf_asize: raw.ilf_asize,
        ilf_dsize: raw.ilf_dsize,
        ilf_pad: 0.into(),
        ilf_ino: raw.ilf_ino,
        ilf_u: raw.ilf_u,
        ilf_blkno: raw.ilf_blkno,
        ilf_len: raw.ilf_len,
        ilf_boffset: raw.ilf_boffset,
    }
}

/// Replays an inode unless it is newer than the transaction; tells which trees get a new owner.
pub(super) fn replay(
    volume: &Volume,
    buffers: &mut Buffers<'_>,
    item: &Item<'_>,
    change: &InodeItem,
    lsn: Lsn,
) -> Result<Vec<NewOwner>> {
    let size = index(volume.sb.inode_size.bytes())?;
    let at = index(change.raw.ilf_boffset.get().into())?;
    let buffer = buffers.get(change.at, change.count)?;
    let inode = part_mut(&mut buffer.bytes, at, size, WHAT)?;
    let old: RawDinode = take(inode, 0, WHAT)?;
    check_magic(old.di_magic.get())?;
    let mut owners = Vec::new();
    let ino = change.ino();
    let logged = log_dinode(item)?;
    check_magic(logged.di_magic.get())?;
    let on_disk = Lsn(old.di_lsn.get());
    // Checkpoints can have the same number, so an equal one is replayed.
    let newer = volume.sb.v5 && on_disk != Lsn(0) && on_disk != Lsn(u64::MAX) && on_disk > lsn;
    if !newer && (volume.sb.v5 || !flushed_later(&old, &logged)) {
        let raw = to_disk(volume, &old, &logged, lsn);
        let core = if volume.sb.v5 { size_of::<RawDinode>() } else { CRC_AT };
        let bytes = part(raw.as_bytes(), 0, core, WHAT)?;
        part_mut(inode, 0, core, WHAT)?.copy_from_slice(bytes);
        let room = part_mut(inode, core, size.saturating_sub(core), WHAT)?;
        forks(volume, item, change, &raw, room)?;
    }
    // Also of a newer inode: the blocks of its tree may be older.
    if take::<RawDinode>(inode, 0, WHAT)?.di_mode.get() != 0 {
        for (flag, fork) in [(Fields::DATA_OWNER, ForkKind::Data), (Fields::ATTR_OWNER, ForkKind::Attr)] {
            if change.fields.contains(flag) {
                owners.push(NewOwner { ino, fork });
            }
        }
    }
    if volume.sb.v5 {
        crc::stamp(inode, CRC_AT)?;
    }
    buffer.change();
    Ok(owners)
}

fn check_magic(found: u16) -> Result<()> {
    if found != DINODE_MAGIC {
        let (found, expected) = (found.into(), DINODE_MAGIC.into());
        return Err(Fault::Magic { what: WHAT, found, expected }.into());
    }
    Ok(())
}

/// Whether the logged inode is a directory.
pub(super) fn is_dir(item: &Item<'_>) -> Result<bool> {
    Ok(NodeKind::from_mode(log_dinode(item)?.di_mode.get().into()) == Some(NodeKind::Dir))
}

/// The logged fixed part; without checksums it is shorter.
fn log_dinode(item: &Item<'_>) -> Result<RawLogDinode> {
    let region = item.region(1)?;
    let mut bytes = [0; size_of::<RawLogDinode>()];
    let len = region.len().min(bytes.len());
    if len < offset_of!(RawLogDinode, di_next_unlinked) {
        return Err(Fault::Structure { what: WHAT, why: "shorter than an inode" }.into());
    }
    part_mut(&mut bytes, 0, len, WHAT)?.copy_from_slice(part(region, 0, len, WHAT)?);
    Ok(RawLogDinode::read_from_bytes(&bytes).unwrap_or_else(|_| RawLogDinode::new_zeroed()))
}

/// Without checksums, inodes count how often they were written, in the last two bytes of a field.
fn flushed_later(old: &RawDinode, logged: &RawLogDinode) -> bool {
    const WRAP: u16 = u16::MAX;
    let disk = u16::try_from(old.di_big_nextents.get() & 0xffff).unwrap_or(0);
    let log = u16::try_from(logged.di_big_nextents.get() >> 48).unwrap_or(0);
    log < disk && !(disk == WRAP && log < WRAP >> 1)
}

/// The inode's fixed part as it goes to disk. What is not logged stays: the link of the list of unlinked inodes.
fn to_disk(volume: &Volume, old: &RawDinode, log: &RawLogDinode, lsn: Lsn) -> RawDinode {
    let flags2 = DiFlags2::from_bits_retain(if volume.sb.v5 { log.di_flags2.get() } else { 0 });
    // The two halves of an old time are in host order each.
    let time = |raw: u64| if flags2.contains(DiFlags2::BIGTIME) { raw } else { raw.rotate_left(32) };
    let large = flags2.contains(DiFlags2::NREXT64);
    let mut raw = RawDinode {
        di_magic: log.di_magic.get().into(),
        di_mode: log.di_mode.get().into(),
        di_version: log.di_version,
        di_format: log.di_format,
        di_onlink: 0.into(),
        di_uid: log.di_uid.get().into(),
        di_gid: log.di_gid.get().into(),
        di_nlink: log.di_nlink.get().into(),
        di_projid_lo: log.di_projid_lo.get().into(),
        di_projid_hi: log.di_projid_hi.get().into(),
        di_big_nextents: if large { log.di_big_nextents.get() } else { 0 }.into(),
        di_atime: time(log.di_atime.get()).into(),
        di_mtime: time(log.di_mtime.get()).into(),
        di_ctime: time(log.di_ctime.get()).into(),
        di_size: log.di_size.get().into(),
        di_nblocks: log.di_nblocks.get().into(),
        di_extsize: log.di_extsize.get().into(),
        di_nextents: log.di_nextents.get().into(),
        di_anextents: log.di_anextents.get().into(),
        di_forkoff: log.di_forkoff,
        di_aformat: log.di_aformat,
        di_dmevmask: log.di_dmevmask.get().into(),
        di_dmstate: log.di_dmstate.get().into(),
        di_flags: log.di_flags.get().into(),
        di_gen: log.di_gen.get().into(),
        ..*old
    };
    if volume.sb.v5 {
        raw.di_changecount = log.di_changecount.get().into();
        raw.di_crtime = time(log.di_crtime.get()).into();
        raw.di_flags2 = flags2.bits().into();
        raw.di_cowextsize = log.di_cowextsize.get().into();
        raw.di_ino = log.di_ino.get().into();
        raw.di_lsn = lsn.0.into();
        raw.di_pad2 = [0; 12];
        raw.di_uuid = log.di_uuid;
    }
    raw
}

/// Puts the logged forks into the inode's `room` behind its fixed part.
fn forks(
    volume: &Volume,
    item: &Item<'_>,
    change: &InodeItem,
    raw: &RawDinode,
    room: &mut [u8],
) -> Result<()> {
    if change.fields.contains(Fields::DEVICE) {
        let [a, b, c, d, ..] = change.raw.ilf_u;
        part_mut(room, 0, 4, WHAT)?.copy_from_slice(&[d, c, b, a]);
    }
    let split = usize::from(raw.di_forkoff) << 3;
    let split = if split == 0 { room.len() } else { split.min(room.len()) };
    let (data, attr) = room.split_at_mut(split);
    let mut region = 2usize;
    if change.fields.intersects(DATA) {
        let from = item.region(region)?;
        fork(volume, from, data, change.fields.contains(Fields::DATA_ROOT))?;
        region = region.saturating_add(1);
    }
    if change.fields.intersects(ATTR) {
        let from = item.region(region)?;
        fork(volume, from, attr, change.fields.contains(Fields::ATTR_ROOT))?;
    }
    Ok(())
}

fn fork(volume: &Volume, from: &[u8], to: &mut [u8], root: bool) -> Result<()> {
    if root {
        return tree_root(volume, from, to);
    }
    // Regions are padded to four bytes, which may be more than the fork has.
    let len = from.len().min(to.len());
    if from.len().saturating_sub(len) >= 4 {
        return Err(Fault::Structure { what: WHAT, why: "a fork is longer than its room" }.into());
    }
    part_mut(to, 0, len, WHAT)?.copy_from_slice(part(from, 0, len, WHAT)?);
    Ok(())
}

/// The root of an extent tree is logged as it is in memory: a whole block's header, pointers behind as many keys
/// as fit there.
fn tree_root(volume: &Volume, from: &[u8], to: &mut [u8]) -> Result<()> {
    const KEY: usize = 8;
    let head = if volume.sb.v5 { size_of::<RawLongBlock>() } else { size_of::<RawLongBlock4>() };
    let in_memory = from.len().saturating_sub(head).checked_div(KEY.saturating_mul(2)).unwrap_or(0);
    let in_inode = bmdr_entries(to.len());
    let small: RawBmdrBlock = take(from, 4, WHAT)?;
    let count = usize::from(small.bb_numrecs.get());
    if count > in_memory || count > in_inode {
        let why = "more pointers than fit into the inode";
        return Err(Fault::Field { what: "bb_numrecs", found: small.bb_numrecs.get().into(), why }.into());
    }
    part_mut(to, 0, size_of::<RawBmdrBlock>(), WHAT)?.copy_from_slice(small.as_bytes());
    let len = count.saturating_mul(KEY);
    let places = [
        (head, size_of::<RawBmdrBlock>()),
        (
            head.saturating_add(in_memory.saturating_mul(KEY)),
            size_of::<RawBmdrBlock>().saturating_add(in_inode.saturating_mul(KEY)),
        ),
    ];
    for (source, target) in places {
        part_mut(to, target, len, WHAT)?.copy_from_slice(part(from, source, len, WHAT)?);
    }
    Ok(())
}
