//! Inodes: the checked form, kept beside the bytes it came from.

use core::mem::offset_of;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, part, take};
use zerocopy::big_endian::U32;

use crate::filesystem::{Flags, NodeKind, Stat, Time};

use super::crc;
use super::fault::Fault;
use super::layout::{DINODE_MAGIC, RawBmbtRec, RawBmdrBlock, RawDinode};
use super::superblock::{Features2, Incompat, Superblock};
use super::units::InodeNo;
use super::volume::Volume;

bitflags::bitflags! {
    /// `di_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct DiFlags: u16 {
        const REALTIME = 1 << 0;
        const PREALLOC = 1 << 1;
        const NEWRTBM = 1 << 2;
        const IMMUTABLE = 1 << 3;
        const APPEND = 1 << 4;
        const SYNC = 1 << 5;
        const NOATIME = 1 << 6;
        const NODUMP = 1 << 7;
        const RTINHERIT = 1 << 8;
        const PROJINHERIT = 1 << 9;
        const NOSYMLINKS = 1 << 10;
        const EXTSIZE = 1 << 11;
        const EXTSZINHERIT = 1 << 12;
        const NODEFRAG = 1 << 13;
        const FILESTREAM = 1 << 14;
    }

    /// `di_flags2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct DiFlags2: u64 {
        const DAX = 1 << 0;
        const REFLINK = 1 << 1;
        const COWEXTSIZE = 1 << 2;
        const BIGTIME = 1 << 3;
        const NREXT64 = 1 << 4;
        const METADATA = 1 << 5;
    }
}

/// Flags that `chattr` has a name for.
pub(super) const CHATTR: [(DiFlags, Flags); 6] = [
    (DiFlags::SYNC, Flags::SYNC),
    (DiFlags::IMMUTABLE, Flags::IMMUTABLE),
    (DiFlags::APPEND, Flags::APPEND),
    (DiFlags::NODUMP, Flags::NODUMP),
    (DiFlags::NOATIME, Flags::NOATIME),
    (DiFlags::PROJINHERIT, Flags::PROJINHERIT),
];

/// Where the checksum of an inode is.
pub(super) const CRC_AT: usize = offset_of!(RawDinode, di_crc);
/// Bytes of an inode before its forks, without checksums.
const CORE4_BYTES: usize = CRC_AT;
/// The same with checksums.
pub(super) const CORE_BYTES: usize = size_of::<RawDinode>();
/// `di_forkoff` counts in units of this many bytes.
const FORKOFF_SHIFT: u32 = 3;
/// Seconds from the beginning of bigtime, December 1901, to 1970.
const BIGTIME_EPOCH: i64 = 1 << 31;
/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// Which of an inode's two forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ForkKind {
    /// Content: of a file, of a directory, the target of a link.
    Data,
    /// Extended attributes.
    Attr,
}

impl ForkKind {
    /// Its name in errors.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Attr => "attribute",
        }
    }
}

/// How a fork is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForkFormat {
    /// A device number.
    Dev,
    /// In the inode.
    Local,
    /// A list of extents in the inode.
    Extents,
    /// A tree of extents, its root in the inode.
    Btree,
}

/// One fork: where it is in the inode, and how it is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fork {
    pub(super) format: ForkFormat,
    /// Offset in the inode.
    pub(super) at: usize,
    /// Bytes it has in the inode.
    pub(super) room: usize,
    /// Extents it says it has.
    pub(super) extents: u64,
}

/// An inode in use.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) ino: InodeNo,
    /// All of it as it lies on disk.
    pub(super) bytes: Vec<u8>,
    /// The fixed part; without checksums the fields from `di_crc` on are not the inode's.
    pub(super) raw: RawDinode,
    pub(super) kind: NodeKind,
    /// Size of the content in bytes.
    pub(super) size: u64,
    pub(super) flags: DiFlags,
    /// None set in inodes without checksums.
    pub(super) flags2: DiFlags2,
    pub(super) data: Fork,
    pub(super) attr: Option<Fork>,
}

impl Volume {
    /// Reads an inode that is in use.
    pub(super) fn inode(&self, ino: InodeNo) -> Result<Inode> {
        let size = self.sb.inode_size.bytes();
        let bytes = wire::bytes(&self.disk, self.sb.inode_offset(ino)?, size, 2048, "inode")?;
        self.parse_inode(ino, bytes).within(|| format!("inode {}", ino.0))
    }

    /// Checks the bytes of inode `ino`.
    pub(super) fn parse_inode(&self, ino: InodeNo, bytes: Vec<u8>) -> Result<Inode> {
        let raw: RawDinode = take(&bytes, 0, "inode")?;
        let found = raw.di_magic.get();
        if found != DINODE_MAGIC {
            let (found, expected) = (found.into(), DINODE_MAGIC.into());
            return Err(Fault::Magic { what: "inode", found, expected }.into());
        }
        if self.sb.v5 {
            crc::check(&bytes, CRC_AT, "inode")?;
            self.check_uuid(&raw.di_uuid, "inode")?;
            if raw.di_ino.get() != ino.0 {
                return Err(Fault::Owner { what: "inode", found: raw.di_ino.get(), expected: ino.0 }.into());
            }
        }
        let versions = if self.sb.v5 { 3..=3 } else { 1..=2 };
        if !versions.contains(&raw.di_version) {
            let why = "not a version that goes with the filesystem's";
            return Err(Fault::Field { what: "di_version", found: raw.di_version.into(), why }.into());
        }
        if raw.di_mode.get() == 0 {
            return Err(Fault::InodeFree { ino: ino.0 }.into());
        }
        let kind = NodeKind::from_mode(raw.di_mode.get().into()).ok_or(Fault::Field {
            what: "di_mode",
            found: raw.di_mode.get().into(),
            why: "no such kind of node",
        })?;
        let size = raw.di_size.get();
        if size > u64::MAX >> 1 {
            return Err(Fault::Field { what: "di_size", found: size, why: "beyond 2^63" }.into());
        }
        let flags = DiFlags::from_bits_retain(raw.di_flags.get());
        let flags2 =
            if self.sb.v5 { DiFlags2::from_bits_retain(raw.di_flags2.get()) } else { DiFlags2::empty() };
        check_flags2(&self.sb, flags2)?;
        let (data, attr) = forks(&self.sb, ino, &bytes, &raw, kind, flags2)?;
        Ok(Inode { ino, bytes, raw, kind, size, flags, flags2, data, attr })
    }
}

fn check_flags2(sb: &Superblock, flags2: DiFlags2) -> Result<()> {
    let needs = [(DiFlags2::BIGTIME, Incompat::BIGTIME), (DiFlags2::NREXT64, Incompat::NREXT64)];
    for (flag, feature) in needs {
        if flags2.contains(flag) && !sb.incompat.contains(feature) {
            let why = "asks for a feature that the filesystem does not have";
            return Err(Fault::Field { what: "di_flags2", found: flags2.bits(), why }.into());
        }
    }
    if flags2.contains(DiFlags2::METADATA) {
        return Err(Fault::Unsupported { what: "an inode of the metadata directory" }.into());
    }
    Ok(())
}

fn forks(
    sb: &Superblock,
    ino: InodeNo,
    bytes: &[u8],
    raw: &RawDinode,
    kind: NodeKind,
    flags2: DiFlags2,
) -> Result<(Fork, Option<Fork>)> {
    let core = if sb.v5 { CORE_BYTES } else { CORE4_BYTES };
    let room = bytes.len().saturating_sub(core);
    let offset = usize::from(raw.di_forkoff) << FORKOFF_SHIFT;
    if offset >= room {
        let why = "the attribute fork begins outside of the inode";
        return Err(Fault::Fork { ino: ino.0, fork: "attribute", why }.into());
    }
    let (data_extents, attr_extents) = extent_counts(raw, flags2);
    let data_room = if offset == 0 { room } else { offset };
    let data = Fork {
        format: fork_format(ino, ForkKind::Data, raw.di_format)?,
        at: core,
        room: data_room,
        extents: data_extents,
    };
    check_data_format(ino, kind, raw, &data)?;
    check_fork(sb, ino, ForkKind::Data, bytes, &data)?;
    if offset == 0 {
        return Ok((data, None));
    }
    let attr = Fork {
        format: fork_format(ino, ForkKind::Attr, raw.di_aformat)?,
        at: core.saturating_add(offset),
        room: room.saturating_sub(offset),
        extents: attr_extents,
    };
    if attr.format == ForkFormat::Dev {
        let why = "holds a device number";
        return Err(Fault::Fork { ino: ino.0, fork: "attribute", why }.into());
    }
    check_fork(sb, ino, ForkKind::Attr, bytes, &attr)?;
    Ok((data, Some(attr)))
}

/// Extents of the data and of the attribute fork, which `NREXT64` keeps in other places.
fn extent_counts(raw: &RawDinode, flags2: DiFlags2) -> (u64, u64) {
    if flags2.contains(DiFlags2::NREXT64) {
        (raw.di_big_nextents.get(), raw.di_nextents.get().into())
    } else {
        (raw.di_nextents.get().into(), raw.di_anextents.get().into())
    }
}

fn fork_format(ino: InodeNo, kind: ForkKind, format: u8) -> Result<ForkFormat> {
    Ok(match format {
        0 => ForkFormat::Dev,
        1 => ForkFormat::Local,
        2 => ForkFormat::Extents,
        3 => ForkFormat::Btree,
        _ => {
            let why = "no such form";
            return Err(Fault::Fork { ino: ino.0, fork: kind.name(), why }.into());
        }
    })
}

fn check_data_format(ino: InodeNo, kind: NodeKind, raw: &RawDinode, data: &Fork) -> Result<()> {
    use ForkFormat::{Btree, Dev, Extents, Local};
    let good = match kind {
        NodeKind::File => matches!(data.format, Extents | Btree),
        NodeKind::Dir | NodeKind::Link => matches!(data.format, Local | Extents | Btree),
        NodeKind::Char | NodeKind::Block | NodeKind::Fifo | NodeKind::Socket => data.format == Dev,
    };
    if !good {
        let why = "not a form for this kind of node";
        return Err(Fault::Fork { ino: ino.0, fork: "data", why }.into());
    }
    let local = usize::try_from(raw.di_size.get()).unwrap_or(usize::MAX);
    if data.format == Local && local > data.room {
        let why = "longer than the room it has in the inode";
        return Err(Fault::Fork { ino: ino.0, fork: "data", why }.into());
    }
    Ok(())
}

fn check_fork(sb: &Superblock, ino: InodeNo, kind: ForkKind, bytes: &[u8], fork: &Fork) -> Result<()> {
    let fault = |why| Fault::Fork { ino: ino.0, fork: kind.name(), why };
    match fork.format {
        ForkFormat::Extents => {
            let most = fork.room.checked_div(size_of::<RawBmbtRec>()).unwrap_or(0);
            if fork.extents > wire::len64(most) {
                return Err(fault("more extents than fit into the inode").into());
            }
        }
        ForkFormat::Btree => {
            let root: RawBmdrBlock = take(bytes, fork.at, "root of the extent tree")?;
            let entries = usize::from(root.bb_numrecs.get());
            if root.bb_level.get() == 0 || entries == 0 {
                return Err(fault("an extent tree without inner blocks").into());
            }
            if entries > bmdr_entries(fork.room) {
                return Err(fault("more pointers than fit into the inode").into());
            }
            if u32::from(root.bb_level.get()) > bmbt_levels_max(sb) {
                return Err(fault("the extent tree is too deep").into());
            }
        }
        ForkFormat::Local | ForkFormat::Dev => {}
    }
    Ok(())
}

/// Keys, and as many pointers, that the root of an extent tree holds in `room` bytes.
pub(super) fn bmdr_entries(room: usize) -> usize {
    room.saturating_sub(size_of::<RawBmdrBlock>()).checked_div(16).unwrap_or(0)
}

/// The deepest extent tree there can be: each level at least halves 2^48 extents in leaves of half a block.
pub(super) fn bmbt_levels_max(sb: &Superblock) -> u32 {
    let entries = sb.block_size.bytes().saturating_sub(72).checked_div(32).unwrap_or(1);
    48u32.checked_div(entries.checked_ilog2().unwrap_or(1).max(1)).unwrap_or(48).saturating_add(2)
}

impl Inode {
    /// The fork, if the inode has it.
    pub(super) fn fork(&self, kind: ForkKind) -> Option<&Fork> {
        match kind {
            ForkKind::Data => Some(&self.data),
            ForkKind::Attr => self.attr.as_ref(),
        }
    }

    /// The bytes of a fork in the inode.
    pub(super) fn fork_bytes(&self, fork: &Fork) -> Result<&[u8]> {
        part(&self.bytes, fork.at, fork.room, "fork")
    }

    /// The content that lies in the inode itself.
    pub(super) fn local(&self) -> Result<&[u8]> {
        let len = wire::index(self.size)?;
        part(self.fork_bytes(&self.data)?, 0, len, "content in the inode")
    }

    /// Directory entries that name it; the first version of inodes had 16 bits for it.
    pub(super) fn links(&self) -> u32 {
        if self.raw.di_version == 1 { self.raw.di_onlink.get().into() } else { self.raw.di_nlink.get() }
    }

    /// The project id; its upper half is there only with the feature.
    pub(super) fn project(&self, sb: &Superblock) -> u32 {
        let high = if sb.v5 || sb.features2.contains(Features2::PROJID32) {
            u32::from(self.raw.di_projid_hi.get())
        } else {
            0
        };
        let low = u32::from(self.raw.di_projid_lo.get());
        if self.raw.di_version == 1 { 0 } else { high << 16 | low }
    }

    /// Everything users ask about it.
    pub(super) fn stat(&self, sb: &Superblock) -> Result<Stat> {
        let bigtime = self.flags2.contains(DiFlags2::BIGTIME);
        let raw = &self.raw;
        let device = matches!(self.kind, NodeKind::Char | NodeKind::Block);
        Ok(Stat {
            kind: self.kind,
            mode: u32::from(raw.di_mode.get()) & 0o7777,
            uid: raw.di_uid.get(),
            gid: raw.di_gid.get(),
            size: self.size,
            allocated: raw.di_nblocks.get().saturating_mul(sb.block_size.bytes()),
            links: self.links().into(),
            atime: time(raw.di_atime.get(), bigtime),
            mtime: time(raw.di_mtime.get(), bigtime),
            ctime: time(raw.di_ctime.get(), bigtime),
            crtime: sb.v5.then(|| time(raw.di_crtime.get(), bigtime)),
            rdev: if device { self.rdev()? } else { (0, 0) },
            flags: self.chattr_flags(),
            project: self.project(sb),
            generation: raw.di_gen.get(),
        })
    }

    /// Major and minor number, as the kernel packs them: 14 bits and 18.
    fn rdev(&self) -> Result<(u32, u32)> {
        let dev = take::<U32>(&self.bytes, self.data.at, "device number")?.get();
        Ok((dev >> 18 & 0x3fff, dev & 0x3_ffff))
    }

    fn chattr_flags(&self) -> Flags {
        let set = CHATTR.iter().filter(|(own, _)| self.flags.contains(*own));
        set.fold(Flags::empty(), |all, (_, flag)| all | *flag)
    }
}

/// A time from its encoding: two signed halves, or one count of nanoseconds since December 1901.
pub(super) fn time(raw: u64, bigtime: bool) -> Time {
    if bigtime {
        let sec = i64::try_from(raw.checked_div(NANOS).unwrap_or(0)).unwrap_or(0);
        let nsec = u32::try_from(raw.checked_rem(NANOS).unwrap_or(0)).unwrap_or(0);
        return Time { sec: sec.saturating_sub(BIGTIME_EPOCH), nsec };
    }
    let [a, b, c, d, nsec @ ..] = raw.to_be_bytes();
    let nsec = u32::from_be_bytes(nsec);
    // A kernel never writes more; a bad value would make later arithmetic wrong.
    Time { sec: i32::from_be_bytes([a, b, c, d]).into(), nsec: nsec.min(999_999_999) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_of_time() {
        assert_eq!(time(0xffff_ffff_0000_0005, false), Time { sec: -1, nsec: 5 });
        assert_eq!(time(0, true), Time { sec: -(1 << 31), nsec: 0 });
        let now = (1_700_000_000 + (1u64 << 31)) * NANOS + 42;
        assert_eq!(time(now, true), Time { sec: 1_700_000_000, nsec: 42 });
    }
}
