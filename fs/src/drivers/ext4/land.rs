//! An edit that lands by the filesystem's own journal: whoever opens the disk after a crash, racker, the kernel or
//! `e2fsck`, replays it.
//!
//! In this order, with a flush behind each line:
//!
//! 1. all changed blocks as one transaction in the empty log, which nobody looks at; the superblock says that the
//!    journal has to be replayed, which means nothing as long as the log is empty
//! 2. the journal's superblock says where the log begins: **one sector, which decides**
//! 3. the blocks go where they belong
//! 4. the journal's superblock says that the log is empty
//! 5. the superblock says that nothing has to be replayed
//!
//! Each of 2, 4 and 5 and the second half of 1 is the write of one sector, as a disk writes no more at once. The
//! superblock has two, and its checksum is in the second. So the second stays as it is, checksum included, and the last
//! four bytes of the first one's `s_last_mounted`, behind the end of that text, are chosen such that the checksum
//! [holds](balance).
//!
//! What cannot land in this way is left to the redo file: journals that are too small, external, or have to be
//! replayed, and changes to what the kernel reads before it replays.

use racker_formats::block::{Change, Disk};
use racker_formats::error::{Kind, Result};
use racker_formats::transaction::Journal as Lander;
use racker_formats::wire::{index, part, part_mut, take};
use zerocopy::IntoBytes;

use super::commit::Log;
use super::csum::crc32c;
use super::features::Incompat;
use super::journal::Journal;
use super::layout::{RawSuperblock, SUPERBLOCK_AT, SUPERBLOCK_BYTES};
use super::superblock::Superblock;
use super::volume::Ext4;

/// Bytes that a disk writes whole.
const SECTOR: usize = 512;
/// Where the superblock's checksum is in its second sector.
const SUM_AT: usize = 508;
/// The end of `s_last_mounted`, which is text and ends with a zero.
const BALANCE_AT: usize = 196;
/// Where that text begins.
const LAST_MOUNTED_AT: usize = 136;

/// Lands edits by jbd2.
#[derive(Debug)]
pub(super) struct Land;

impl Lander for Land {
    fn land(
        &self,
        volume: &Disk,
        edited: &Disk,
        changes: &[Change],
        decide: &mut dyn FnMut(),
    ) -> Result<bool> {
        let sb = Superblock::read(volume)?;
        if !sb.features.compat.contains(super::features::Compat::HAS_JOURNAL)
            || sb.features.incompat.intersects(Incompat::RECOVER | Incompat::JOURNAL_DEV)
        {
            return Ok(false);
        }
        let fs = Ext4::new(volume.clone(), sb);
        let journal = match Journal::open(&fs) {
            Ok(journal) => journal,
            // An external one, or one that needs a look by e2fsck.
            Err(e) if e.kind() != Kind::Io => return Ok(false),
            Err(e) => return Err(e),
        };
        let Some(heads) = Heads::of(volume, edited, fs.sb.features.has_metadata_csum())? else {
            return Ok(false);
        };
        if journal.start != 0 || journal.errno != 0 {
            return Ok(false);
        }
        let log = Log::new(&fs, &journal)?;
        let edit = Edit { fs: &fs, volume, edited, heads };
        let Some(blocks) = edit.blocks(&log, changes, journal.wide)? else { return Ok(false) };
        edit.land(&journal, &log, &blocks, decide)?;
        Ok(true)
    }
}

/// The first sector of the superblock, as it is in turn.
#[derive(Debug)]
struct Heads {
    /// Before the edit, with a journal to be replayed.
    before: [u8; SECTOR],
    /// After the edit, with a journal to be replayed.
    during: [u8; SECTOR],
    /// After the edit.
    after: [u8; SECTOR],
    /// The second sector, which stays.
    second: [u8; SECTOR],
}

impl Heads {
    /// None where more than the first sector changes, or something that the kernel reads before it replays.
    fn of(volume: &Disk, edited: &Disk, has_sum: bool) -> Result<Option<Self>> {
        let (mut old, mut new) = ([0; SUPERBLOCK_BYTES], [0; SUPERBLOCK_BYTES]);
        volume.read_at(SUPERBLOCK_AT, &mut old)?;
        edited.read_at(SUPERBLOCK_AT, &mut new)?;
        let (was, is) =
            (take::<RawSuperblock>(&old, 0, "superblock")?, take::<RawSuperblock>(&new, 0, "superblock")?);
        if !is_same_but_for_counts(&was, &is) {
            return Ok(None);
        }
        let half = |bytes: &[u8], at| part(bytes, at, SECTOR, "superblock").map(first_sector);
        let second = half(&old, SECTOR)?;
        let head = |bytes: &[u8], recover: bool| -> Result<Option<[u8; SECTOR]>> {
            let mut raw = take::<RawSuperblock>(bytes, 0, "superblock")?;
            if recover {
                raw.feature_incompat = (raw.feature_incompat.get() | Incompat::RECOVER.bits()).into();
            }
            let mut head = half(raw.as_bytes(), 0)?;
            Ok((!has_sum || balance(&mut head, &second)?).then_some(head))
        };
        let heads = (head(&old, true)?, head(&new, true)?, head(&new, false)?);
        Ok(match heads {
            (Some(before), Some(during), Some(after)) => Some(Self { before, during, after, second }),
            _ => None,
        })
    }
}

fn first_sector(bytes: &[u8]) -> [u8; SECTOR] {
    bytes.first_chunk::<SECTOR>().copied().unwrap_or([0; SECTOR])
}

/// Whether two superblocks differ in nothing but counts, times and names.
fn is_same_but_for_counts(was: &RawSuperblock, is: &RawSuperblock) -> bool {
    let mut same = *is;
    same.free_blocks_count_lo = was.free_blocks_count_lo;
    same.free_blocks_count_hi = was.free_blocks_count_hi;
    same.free_inodes_count = was.free_inodes_count;
    (same.mtime, same.wtime, same.lastcheck) = (was.mtime, was.wtime, was.lastcheck);
    (same.mnt_count, same.state) = (was.mnt_count, was.state);
    (same.volume_name, same.last_mounted) = (was.volume_name, was.last_mounted);
    (same.last_orphan, same.kbytes_written) = (was.last_orphan, was.kbytes_written);
    same.checksum = was.checksum;
    same.as_bytes() == was.as_bytes()
}

/// Chooses the four bytes at the end of `s_last_mounted` such that the checksum in `second` holds; `false` where that
/// text leaves no room.
fn balance(head: &mut [u8; SECTOR], second: &[u8; SECTOR]) -> Result<bool> {
    let text = part(head, LAST_MOUNTED_AT, BALANCE_AT.saturating_sub(LAST_MOUNTED_AT), "superblock")?;
    if !text.contains(&0) {
        return Ok(false);
    }
    let wanted = u32::from_le_bytes(take::<[u8; 4]>(second, SUM_AT, "superblock")?);
    let body = part(second, 0, SUM_AT, "superblock")?;
    let mut sum = |bytes: u32| -> Result<u32> {
        part_mut(head, BALANCE_AT, 4, "superblock")?.copy_from_slice(&bytes.to_le_bytes());
        Ok(crc32c(crc32c(!0, head.as_slice()), body))
    };
    // A checksum of this kind is linear: each bit of the four bytes changes it in its own way, whatever the others are.
    let zero = sum(0)?;
    let mut rows = Vec::with_capacity(32);
    for bit in 0..32u32 {
        let choice = 1u32.wrapping_shl(bit);
        rows.push((sum(choice)? ^ zero, choice));
    }
    let choice = solve(rows, wanted ^ zero);
    let found = sum(choice)?;
    Ok(found == wanted)
}

/// The choices whose effects add up to `wanted`, each given as (effect, choice).
fn solve(mut rows: Vec<(u32, u32)>, mut wanted: u32) -> u32 {
    let mut chosen = 0;
    for bit in 0..32u32 {
        let mask = 1u32.wrapping_shl(bit);
        let Some(at) = rows.iter().position(|(effect, _)| effect & mask != 0) else { continue };
        let (effect, choice) = rows.swap_remove(at);
        for row in rows.iter_mut().filter(|row| row.0 & mask != 0) {
            *row = (row.0 ^ effect, row.1 ^ choice);
        }
        if wanted & mask != 0 {
            (wanted, chosen) = (wanted ^ effect, chosen ^ choice);
        }
    }
    chosen
}

/// Changes on their way to a volume.
struct Edit<'a> {
    fs: &'a Ext4,
    volume: &'a Disk,
    edited: &'a Disk,
    heads: Heads,
}

impl Edit<'_> {
    /// The block that holds the superblock, and where in it.
    fn superblock(&self) -> Result<(u64, usize)> {
        let (block, within) = self.fs.sb.block_size.split(SUPERBLOCK_AT);
        Ok((block, index(within)?))
    }

    /// The blocks that differ, if the log takes them all.
    fn blocks(&self, log: &Log<'_>, changes: &[Change], wide: bool) -> Result<Option<Vec<u64>>> {
        let size = self.fs.sb.block_size;
        let (mut old, mut new) = (vec![0; index(size.bytes())?], vec![0; index(size.bytes())?]);
        let (superblock, _) = self.superblock()?;
        let room = log.room();
        let mut blocks: Vec<u64> = vec![superblock];
        let mut behind = 0;
        for change in changes {
            let (first, _) = size.split(change.span.start());
            let (last, _) = size.split(change.span.end().saturating_sub(1));
            for block in first.max(behind)..=last {
                behind = block.saturating_add(1);
                let at = self.fs.byte_of(block)?;
                if block >= self.fs.sb.blocks {
                    // Beyond the filesystem: nothing of it, unless the end of the volume shares a page with it.
                    if is_changed(self.volume, self.edited, change)? {
                        return Ok(None);
                    }
                    break;
                }
                self.volume.read_at(at, &mut old)?;
                self.edited.read_at(at, &mut new)?;
                if block == superblock || old == new {
                    continue;
                }
                if blocks.len() >= room || log.holds(block) || (!wide && block > u64::from(u32::MAX)) {
                    return Ok(None);
                }
                blocks.push(block);
            }
        }
        Ok((blocks.len() <= room).then_some(blocks))
    }

    /// A block as it is after the edit; the superblock still says that the journal is to be replayed, as that is
    /// written while it is.
    fn read(&self, block: u64, data: &mut [u8]) -> Result<()> {
        self.edited.read_at(self.fs.byte_of(block)?, data)?;
        let (superblock, within) = self.superblock()?;
        if block == superblock {
            part_mut(data, within, SECTOR, "superblock")?.copy_from_slice(&self.heads.during);
            part_mut(data, within.saturating_add(SECTOR), SECTOR, "superblock")?
                .copy_from_slice(&self.heads.second);
        }
        Ok(())
    }

    fn land(
        &self,
        journal: &Journal<'_>,
        log: &Log<'_>,
        blocks: &[u64],
        decide: &mut dyn FnMut(),
    ) -> Result<()> {
        let volume = self.volume;
        let read = |block: u64, data: &mut [u8]| self.read(block, data);
        let mut original = [0; SECTOR];
        volume.read_at(SUPERBLOCK_AT, &mut original)?;
        let begun = log
            .write(volume, blocks, &read)
            .and_then(|()| volume.write_at(SUPERBLOCK_AT, &self.heads.before))
            .and_then(|()| volume.flush());
        if let Err(e) = begun {
            // Nothing is decided, and a flag that asks for an empty log means nothing; best it is not there.
            volume.write_at(SUPERBLOCK_AT, &original).and_then(|()| volume.flush()).ok();
            return Err(e);
        }
        decide();
        self.log_begins(journal, journal.sequence, journal.first)?;
        let mut data = vec![0; index(self.fs.sb.block_size.bytes())?];
        for block in blocks {
            self.read(*block, &mut data)?;
            volume.write_at(self.fs.byte_of(*block)?, &data)?;
        }
        volume.flush()?;
        self.log_begins(journal, journal.sequence.wrapping_add(1), 0)?;
        volume.write_at(SUPERBLOCK_AT, &self.heads.after)?;
        volume.flush()
    }

    /// Says in the journal's superblock where the log begins: one sector, its checksum included.
    fn log_begins(&self, journal: &Journal<'_>, sequence: u32, start: u32) -> Result<()> {
        let (block, head) = journal.started(sequence, start)?;
        self.volume.write_at(self.fs.byte_of(block)?, part(&head, 0, SECTOR, "journal superblock")?)?;
        self.volume.flush()
    }
}

/// Whether a change is one.
fn is_changed(volume: &Disk, edited: &Disk, change: &Change) -> Result<bool> {
    const PIECE: u64 = 64 << 10;
    let mut rest = change.span;
    while !rest.is_empty() {
        let piece = rest.truncate(PIECE);
        let (mut old, mut new) = (vec![0; index(piece.len())?], vec![0; index(piece.len())?]);
        volume.read_at(piece.start(), &mut old)?;
        edited.read_at(piece.start(), &mut new)?;
        if old != new {
            return Ok(true);
        }
        rest = rest.skip(piece.len());
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bytes_make_any_checksum_hold() {
        for seed in 0..20u8 {
            let mut head = [seed; SECTOR];
            head[LAST_MOUNTED_AT] = 0;
            let mut second = [seed ^ 0x5a; SECTOR];
            second[SUM_AT..].copy_from_slice(&u32::from(seed).wrapping_mul(0x9e37_79b9).to_le_bytes());
            let before = head;
            assert!(balance(&mut head, &second).unwrap());
            let sum = crc32c(crc32c(!0, &head), &second[..SUM_AT]);
            assert_eq!(sum.to_le_bytes(), second[SUM_AT..]);
            assert_eq!(
                (&head[..BALANCE_AT], &head[BALANCE_AT + 4..]),
                (&before[..BALANCE_AT], &before[BALANCE_AT + 4..])
            );
        }
    }

    #[test]
    fn a_full_text_leaves_no_room() {
        let mut head = [b'x'; SECTOR];
        assert!(!balance(&mut head, &[0; SECTOR]).unwrap());
    }
}
