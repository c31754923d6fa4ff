//! A FAT filesystem that is open for writing.
//!
//! Entries of directories are written at once, the table and the hints when the writer is closed. The marks of a
//! volume that was not closed stay as they are: it was sound when it was opened ([`verify`](super::verify)), and what
//! else the mark is for (a bad sector, a copy of the boot sector) is for `fsck.vfat` to look at. They are not set
//! either: changes land whole or not at all.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use racker_formats::block::Disk;
use racker_formats::error::{Common, Result};
use racker_formats::wire::{bytes, len64, take};
use zerocopy::IntoBytes;

use super::alloc::Space;
use super::boot_sector::{BOOT_BYTES, Width};
use super::fault::FatFault;
use super::index::Index;
use super::layout::{ENTRY_BYTES, RawEntry, RawInfo, attr};
use super::time::stored;
use super::volume::{Fat, INFO_SIGNATURES, ROOT};
use crate::filesystem::{NodeId, Time};

/// Directories that are kept in memory.
const INDEXES_MAX: usize = 8;

/// The filesystem, and what writing needs to know.
#[derive(Debug)]
pub(super) struct FatMut {
    pub(super) fat: Fat,
    pub(super) space: Space,
    indexes: Mutex<VecDeque<(NodeId, Index)>>,
    /// Something has changed.
    changed: bool,
    /// A change has begun and not ended.
    half_done: bool,
}

/// Directories in memory, that of the caller in front.
pub(super) struct Front<'a>(MutexGuard<'a, VecDeque<(NodeId, Index)>>);

impl Front<'_> {
    pub(super) fn get(&mut self) -> Result<&mut Index> {
        let (_, index) = self.0.front_mut().ok_or(Common::Poisoned)?;
        Ok(index)
    }
}

impl FatMut {
    /// Opens a volume, if it is sound.
    pub(super) fn open(disk: Disk) -> Result<Self> {
        let mut fat = Fat::open(disk)?;
        let mut space = fat.verify()?;
        fat.claims = None;
        if let Some(info) = hints(&fat)? {
            let next = info.nxt_free.get();
            space.next = if fat.table.check("FSInfo", next).is_ok() { next } else { 2 };
        }
        Ok(Self { fat, space, indexes: Mutex::default(), changed: false, half_done: false })
    }

    /// A directory in memory.
    pub(super) fn index(&self, dir: NodeId) -> Result<Front<'_>> {
        let mut all = self.indexes.lock().map_err(|_| Common::Poisoned)?;
        match all.iter().position(|(node, _)| *node == dir) {
            Some(0) => {}
            Some(at) => {
                let found = all.remove(at);
                found.into_iter().for_each(|found| all.push_front(found));
            }
            None => {
                let index = Index::read(&self.fat, self.fat.dir(dir)?)?;
                all.truncate(INDEXES_MAX.saturating_sub(1));
                all.push_front((dir, index));
            }
        }
        Ok(Front(all))
    }

    /// Forgets a directory: it is gone, or has to be read anew.
    pub(super) fn drop_index(&self, dir: NodeId) -> Result<()> {
        self.indexes.lock().map_err(|_| Common::Poisoned)?.retain(|(node, _)| *node != dir);
        Ok(())
    }

    /// Forgets all directories.
    pub(super) fn drop_indexes(&self) -> Result<()> {
        self.indexes.lock().map_err(|_| Common::Poisoned)?.clear();
        Ok(())
    }

    /// Says that changes begin. Those before must have ended.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.half_done {
            return Err(FatFault::HalfDone.into());
        }
        (self.changed, self.half_done) = (true, true);
        Ok(())
    }

    /// Says that all changes are made.
    pub(super) fn end(&mut self) {
        self.half_done = false;
    }

    /// The entry at a place.
    pub(super) fn raw(&self, place: u64) -> Result<RawEntry> {
        let (at, len) = (place.saturating_mul(len64(ENTRY_BYTES)), len64(ENTRY_BYTES));
        take(&bytes(&self.fat.disk, at, len, len, "directory entry")?, 0, "directory entry")
    }

    /// Writes the entry at a place.
    pub(super) fn put_raw(&self, place: u64, raw: &impl IntoBytes32) -> Result<()> {
        self.fat.disk.write_at(place.saturating_mul(len64(ENTRY_BYTES)), raw.bytes32())
    }

    /// The entry of a node that has one, and its place.
    pub(super) fn own_entry(&self, node: NodeId) -> Result<(u64, RawEntry)> {
        let raw = self.fat.entry(node)?.ok_or(FatFault::Node(node.0))?;
        Ok((self.fat.places.place(node)?, raw))
    }

    /// Says in an entry where the chain begins.
    pub(super) fn set_first(&self, raw: &mut RawEntry, first: u32) {
        let [a, b, c, d] = first.to_le_bytes();
        raw.fst_clus_lo = u16::from_le_bytes([a, b]).into();
        // Elsewhere others keep something there.
        if self.fat.boot.width == Width::Fat32 {
            raw.fst_clus_hi = u16::from_le_bytes([c, d]).into();
        }
    }

    /// What `..` of a directory in `dir` says: its first cluster, or 0 for the root.
    pub(super) fn up(&self, dir: NodeId) -> Result<u32> {
        Ok(if dir == ROOT { 0 } else { self.fat.first_cluster(&self.own_entry(dir)?.1) })
    }

    /// Notes that a directory has changed.
    pub(super) fn touch(&self, dir: NodeId, now: Time) -> Result<()> {
        if dir == ROOT {
            return Ok(());
        }
        let (place, mut raw) = self.own_entry(dir)?;
        set_times(&mut raw, now);
        self.put_raw(place, &raw)
    }

    /// Writes what is still in memory.
    pub(super) fn finish(&self) -> Result<()> {
        if self.half_done {
            return Err(FatFault::HalfDone.into());
        }
        if !self.changed {
            return Ok(());
        }
        self.fat.table.flush()?;
        let Some(mut info) = hints(&self.fat)? else { return Ok(()) };
        info.free_count = u32::try_from(self.space.free).unwrap_or(u32::MAX).into();
        info.nxt_free = self.space.next.into();
        let at = self.fat.boot.info_sector.unwrap_or(0).saturating_mul(self.fat.boot.sector);
        self.fat.disk.write_at(at, info.as_bytes())
    }
}

/// The sector with hints, if it is one.
pub(super) fn hints(fat: &Fat) -> Result<Option<RawInfo>> {
    let Some(sector) = fat.boot.info_sector else { return Ok(None) };
    let at = sector.saturating_mul(fat.boot.sector);
    let info: RawInfo = take(&bytes(&fat.disk, at, BOOT_BYTES, BOOT_BYTES, "FSInfo")?, 0, "FSInfo")?;
    Ok(Some(info).filter(|i| [i.lead_sig.get(), i.struc_sig.get()] == INFO_SIGNATURES))
}

/// The last change and the last access are now; whoever makes backups is to look.
pub(super) fn set_times(raw: &mut RawEntry, now: Time) {
    let (date, time, _) = stored(now);
    (raw.wrt_date, raw.wrt_time, raw.lst_acc_date) = (date.into(), time.into(), date.into());
    if raw.attr & attr::DIRECTORY == 0 {
        raw.attr |= attr::ARCHIVE;
    }
}

/// An entry of either kind.
pub(super) trait IntoBytes32 {
    fn bytes32(&self) -> &[u8];
}

impl IntoBytes32 for RawEntry {
    fn bytes32(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl IntoBytes32 for super::layout::RawLong {
    fn bytes32(&self) -> &[u8] {
        self.as_bytes()
    }
}
