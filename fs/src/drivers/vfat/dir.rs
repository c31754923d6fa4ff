//! Directories: rows of entries in a chain of clusters, or in the fixed root directory of FAT12 and FAT16.

use std::ops::ControlFlow;

use racker_formats::block::BlockSize;
use racker_formats::error::Result;
use racker_formats::wire::{bytes, len64, take};

use super::boot_sector::Root;
use super::fault::FatFault;
use super::layout::{DELETED, END, ENTRY_BYTES, RawEntry, RawLong, attr};
use super::name::{LongName, short};
use super::volume::Fat;
use crate::filesystem::NodeId;

/// Bytes of a directory: entries are counted in 16 bits by everyone who writes them.
pub(super) const DIR_BYTES_MAX: u64 = 65536 * 32;
/// Bytes of the fixed root directory that are read at once.
const PIECE: u64 = 64 << 10;

/// A directory: which node it is and where its entries are.
#[derive(Clone, Copy)]
pub(super) struct Dir {
    pub(super) node: NodeId,
    pub(super) root: Root,
}

/// An entry in use: a file or a directory.
pub(super) struct Entry {
    /// Byte offset of its short entry on the volume.
    pub(super) at: u64,
    pub(super) raw: RawEntry,
    /// What it is called: the long name if it has one.
    pub(super) name: String,
    pub(super) short: String,
}

/// Something in a directory.
pub(super) enum Item {
    Entry(Entry),
    /// The volume's label, in the root directory.
    Label(RawEntry),
}

/// Called with the place on the volume and the bytes of a stretch of a directory.
pub(super) type VisitStretch<'a> = dyn FnMut(u64, &[u8]) -> Result<ControlFlow<()>> + 'a;

impl Fat {
    /// Visits the stretches of a directory in order.
    pub(super) fn stretches(&self, dir: Dir, visit: &mut VisitStretch<'_>) -> Result<()> {
        let first = match dir.root {
            Root::Chain(first) => first,
            Root::Fixed(start, len) => {
                let mut done = 0;
                while done < len {
                    let (at, take) = (start.saturating_add(done), PIECE.min(len.saturating_sub(done)));
                    if visit(at, &bytes(&self.disk, at, take, PIECE, "root directory")?)?.is_break() {
                        break;
                    }
                    done = done.saturating_add(take);
                }
                return Ok(());
            }
        };
        let size: BlockSize = self.boot.cluster;
        let mut budget = DIR_BYTES_MAX.div_ceil(size.bytes()).min(self.boot.clusters.into());
        let mut next = Some(self.table.check("a directory entry", first)?);
        let mut place = 0u64;
        while let Some(cluster) = next {
            if let Some(claims) = &self.claims {
                claims.claim(cluster.into(), dir.node.0, place)?;
            }
            place = place.saturating_add(1);
            budget = budget.checked_sub(1).ok_or(FatFault::DirSize(DIR_BYTES_MAX))?;
            let at = self.byte_of(cluster)?;
            let block = bytes(&self.disk, at, size.bytes(), size.bytes(), "directory")?;
            if visit(at, &block)?.is_break() {
                break;
            }
            next = self.table.next(cluster)?;
        }
        Ok(())
    }

    /// How many bytes a directory has, to the end of its last cluster.
    pub(super) fn dir_bytes(&self, dir: Dir) -> Result<u64> {
        let mut total = 0u64;
        self.stretches(dir, &mut |_, block| {
            total = total.saturating_add(len64(block.len()));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(total)
    }

    /// Visits what is in a directory, `.` and `..` left out.
    pub(super) fn items(
        &self,
        dir: Dir,
        visit: &mut dyn FnMut(Item) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut long = LongName::default();
        self.stretches(dir, &mut |start, block| {
            for (number, entry) in (0u64..).zip(block.chunks_exact(ENTRY_BYTES)) {
                let raw = take::<RawEntry>(entry, 0, "directory entry")?;
                let at = start.saturating_add(number.saturating_mul(len64(ENTRY_BYTES)));
                match raw.name[0] {
                    END => return Ok(ControlFlow::Break(())),
                    DELETED => long = LongName::default(),
                    _ if raw.attr & attr::MEANING == attr::LONG_NAME => {
                        long.push(&take::<RawLong>(entry, 0, "directory entry")?);
                    }
                    _ => {
                        let Some(item) = item(at, raw, &mut long) else { continue };
                        if visit(item)?.is_break() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}

/// What a short entry is, if anything to show.
fn item(at: u64, raw: RawEntry, long: &mut LongName) -> Option<Item> {
    let long = long.finish(&raw);
    if raw.attr & attr::VOLUME_ID != 0 {
        return Some(Item::Label(raw));
    }
    if matches!(&raw.name, b".          " | b"..         ") {
        return None;
    }
    let short = short(&raw);
    let name = long.unwrap_or_else(|| short.clone());
    // A name of spaces only is none; the kernel does not show it either.
    (!name.is_empty()).then_some(Item::Entry(Entry { at, raw, name, short }))
}
