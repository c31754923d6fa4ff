//! An inode being changed: its bytes, written back with a new checksum.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part_mut};
use zerocopy::FromBytes;

use crate::filesystem::Time;

use super::super::crc;
use super::super::fault::Fault;
use super::super::inode::{CRC_AT, DiFlags2, ForkKind, Inode, time};
use super::super::layout::RawDinode;
use super::super::superblock::Incompat;
use super::super::volume::Volume;

/// `di_format` of content in the inode, and of a fork of extents.
pub(super) const FORMAT_LOCAL: u8 = 1;
pub(super) const FORMAT_EXTENTS: u8 = 2;
/// Seconds from the beginning of bigtime, December 1901, to 1970.
const BIGTIME_EPOCH: i64 = 1 << 31;
/// The last second of bigtime, from its beginning.
const BIGTIME_MAX: u64 = u64::MAX / NANOS - 1;
/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// Whether an inode can hold a time.
pub(super) fn holds_time(at: Time, bigtime: bool) -> bool {
    time(encode_time(at, bigtime), bigtime) == at
}

/// A time in the encoding of the inode; one that it cannot hold becomes the nearest that it can.
pub(super) fn encode_time(time: Time, bigtime: bool) -> u64 {
    let nsec = time.nsec.min(999_999_999);
    if bigtime {
        let sec = u64::try_from(time.sec.saturating_add(BIGTIME_EPOCH)).unwrap_or(0).min(BIGTIME_MAX);
        return sec.saturating_mul(NANOS).saturating_add(nsec.into());
    }
    let sec = i32::try_from(time.sec.clamp(i32::MIN.into(), i32::MAX.into())).unwrap_or(0);
    let ([a, b, c, d], [e, f, g, h]) = (sec.to_be_bytes(), nsec.to_be_bytes());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Inode {
    /// The fixed part, to be changed; [`Inode::store`] writes it.
    pub(super) fn core(&mut self) -> Result<&mut RawDinode> {
        let what = "inode";
        match RawDinode::mut_from_prefix(&mut self.bytes) {
            Ok((raw, _)) => Ok(raw),
            Err(_) => Err(Fault::Structure { what, why: "cut short" }.into()),
        }
    }

    /// Sets the times of the content and of the node as far as asked, and counts the change. On a filesystem with
    /// bigtime all times of the inode change to it, as the kernel has it.
    pub(super) fn touch(&mut self, volume: &Volume, content: bool, now: Time) -> Result<()> {
        let was = self.flags2.contains(DiFlags2::BIGTIME);
        let bigtime = was || volume.sb.incompat.contains(Incompat::BIGTIME);
        let (atime, mtime) = (self.raw.di_atime.get(), self.raw.di_mtime.get());
        let crtime = self.raw.di_crtime.get();
        let convert = |raw: u64| if was == bigtime { raw } else { encode_time(time(raw, was), bigtime) };
        let core = self.core()?;
        core.di_atime = convert(atime).into();
        core.di_crtime = convert(crtime).into();
        core.di_mtime = if content { encode_time(now, bigtime) } else { convert(mtime) }.into();
        core.di_ctime = encode_time(now, bigtime).into();
        core.di_changecount = core.di_changecount.get().wrapping_add(1).into();
        if bigtime {
            core.di_flags2 = (core.di_flags2.get() | DiFlags2::BIGTIME.bits()).into();
        }
        Ok(())
    }

    /// Puts content into the inode itself, where no extents are left.
    pub(super) fn put_local(&mut self, bytes: &[u8]) -> Result<()> {
        self.put_nothing()?;
        let (at, room) = (self.data.at, self.data.room);
        let fork = part_mut(&mut self.bytes, at, room, "data fork")?;
        part_mut(fork, 0, bytes.len(), "data fork")?.copy_from_slice(bytes);
        let core = self.core()?;
        core.di_format = FORMAT_LOCAL;
        core.di_size = len64(bytes.len()).into();
        Ok(())
    }

    /// Makes the data fork one of no extents.
    pub(super) fn put_nothing(&mut self) -> Result<()> {
        let (at, room) = (self.data.at, self.data.room);
        part_mut(&mut self.bytes, at, room, "data fork")?.fill(0);
        self.count_extents(ForkKind::Data, 0)?;
        self.core()?.di_format = FORMAT_EXTENTS;
        Ok(())
    }

    /// Writes an inode that is no longer in use.
    pub(super) fn store_free(mut self, volume: &Volume) -> Result<()> {
        crc::stamp(&mut self.bytes, CRC_AT)?;
        volume.disk.write_at(volume.sb.inode_offset(self.ino)?, &self.bytes)
    }

    /// Writes the inode and sees it anew as it is on the volume.
    pub(super) fn store(mut self, volume: &Volume) -> Result<Self> {
        crc::stamp(&mut self.bytes, CRC_AT)?;
        volume.disk.write_at(volume.sb.inode_offset(self.ino)?, &self.bytes)?;
        volume.parse_inode(self.ino, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_their_encoding() {
        for (sec, nsec) in
            [(0, 0), (-1, 999_999_999), (1_700_000_000, 42), (-(1 << 31), 0), (i32::MAX.into(), 7)]
        {
            let at = Time { sec, nsec };
            assert_eq!(time(encode_time(at, true), true), at);
            assert_eq!(time(encode_time(at, false), false), at);
        }
        let late = Time { sec: 1 << 33, nsec: 1 };
        assert_eq!(time(encode_time(late, true), true), late);
        assert_eq!(time(encode_time(late, false), false).sec, i64::from(i32::MAX));
    }
}
