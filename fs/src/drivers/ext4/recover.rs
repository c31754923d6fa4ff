//! Replaying the journal: find its end, collect what was revoked, write the rest to where it belongs.
//!
//! Nothing is written below: the blocks go into a layer that lies over the volume in memory. The end of the log is
//! judged as the kernel does it: what does not carry the next number is the end, a checksum that fails in front of
//! a commit block is damage (or, by its older time stamp, a remnant of an earlier round), and damage is an error,
//! because a journal that was replayed half way leaves a filesystem nobody has ever seen.

use std::collections::HashMap;

use racker_formats::block::{Disk, Staged};
use racker_formats::error::{Result, Within};
use racker_formats::wire::{len64, sum_holds, take};

use super::csum::crc32c;
use super::fast_commit;
use super::fault::Ext4Fault;
use super::features::Incompat;
use super::journal::{Checksums, Cursor, Journal};
use super::layout::{COMMIT_CHECKSUM_AT, JOURNAL_MAGIC, RawCommit, RawRevoke, journal_block};
use super::superblock::Superblock;
use super::volume::Ext4;

/// Revoked blocks in one log: a transaction that removes a directory tree of a million blocks revokes as many.
const REVOKED_MAX: usize = 4 << 20;

/// crc32 kind and size in a commit block of checksum version 1.
const CRC32: (u8, u8) = (1, 4);

/// Opens a filesystem as it is after its journal was replayed, into memory.
pub(super) fn open(volume: Disk) -> Result<Ext4> {
    let sb = Superblock::read(&volume)?;
    let needs = sb.features.incompat.contains(Incompat::RECOVER);
    let below = Ext4::new(volume.clone(), sb);
    if !needs || !below.has_journal() {
        return Ok(below);
    }
    let journal = Journal::open(&below).within(|| "journal")?;
    if journal.start == 0 {
        return Ok(below);
    }
    let top = Disk::new(Staged::new(volume.read_only()));
    let next = replay(&journal, &below, &top).within(|| "journal")?;
    let top = top.read_only();
    // The superblock is a block like any other and may have been in the log.
    let sb = Superblock::read(&top).within(|| "after the journal's replay")?;
    let mut fs = Ext4::new(top, sb);
    fs.replayed = true;
    fast_commit::recover(&journal, next, &mut fs).within(|| "journal")?;
    Ok(fs)
}

/// Replays the log onto `top`; returns the number of the transaction that would come next.
pub(super) fn replay(journal: &Journal<'_>, below: &Ext4, top: &Disk) -> Result<u32> {
    let end = find_end(journal)?;
    let mut revoked = HashMap::new();
    walk(journal, end, &mut |_, kind, sequence, block| {
        if kind == journal_block::REVOKE {
            collect(journal, below, sequence, block, &mut revoked)?;
        }
        Ok(())
    })?;
    walk(journal, end, &mut |cursor, kind, sequence, block| {
        if kind != journal_block::DESCRIPTOR {
            return Ok(());
        }
        for tag in journal.tags(block)? {
            let mut data = journal.next(cursor)?;
            // What was revoked later, or in this transaction, is not to be written.
            if revoked.get(&tag.block).is_some_and(|by| is_before(sequence, *by) || sequence == *by) {
                continue;
            }
            if !journal.data_is_right(&tag, sequence, &data) {
                return Err(Ext4Fault::JournalChecksum { transaction: sequence, what: "a block" }.into());
            }
            if let Some(head) = data.first_chunk_mut::<4>().filter(|_| tag.is_escaped) {
                *head = JOURNAL_MAGIC.to_be_bytes();
            }
            if tag.block >= below.sb.blocks {
                let (block, blocks) = (tag.block, below.sb.blocks);
                return Err(Ext4Fault::BlockPastEnd { what: "a journal tag", block, blocks }.into());
            }
            top.write_at(below.byte_of(tag.block)?, &data)?;
        }
        Ok(())
    })?;
    Ok(end)
}

/// Whether transaction `a` is older than `b`; numbers wrap.
fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

/// Called with a cursor behind a control block, its kind, its transaction and its bytes.
type VisitControl<'a> = dyn FnMut(&mut Cursor, u32, u32, &[u8]) -> Result<()> + 'a;

/// Goes through the control blocks of all transactions before `end`, past the blocks of descriptors that `visit`
/// did not read.
fn walk(journal: &Journal<'_>, end: u32, visit: &mut VisitControl<'_>) -> Result<()> {
    let mut cursor = journal.cursor();
    let mut sequence = journal.sequence;
    while is_before(sequence, end) {
        let block = journal.next(&mut cursor)?;
        let Some((kind, found)) = Journal::header(&block).filter(|(_, found)| *found == sequence) else {
            let expected = sequence.to_string();
            return Err(Ext4Fault::Journal { what: "a transaction", found: 0, expected }.into());
        };
        let mut read = cursor;
        visit(&mut read, kind, found, &block).within(|| format!("transaction {sequence}"))?;
        match kind {
            journal_block::DESCRIPTOR => journal.skip(&mut cursor, tag_count(journal, &block)?)?,
            journal_block::COMMIT => sequence = sequence.wrapping_add(1),
            _ => {}
        }
    }
    Ok(())
}

fn tag_count(journal: &Journal<'_>, descriptor: &[u8]) -> Result<u32> {
    Ok(u32::try_from(journal.tags(descriptor)?.len()).unwrap_or(u32::MAX))
}

/// Notes the blocks that a revoke block of transaction `sequence` takes back.
fn collect(
    journal: &Journal<'_>,
    below: &Ext4,
    sequence: u32,
    block: &[u8],
    revoked: &mut HashMap<u64, u32>,
) -> Result<()> {
    let count = take::<RawRevoke>(block, 0, "revoke block")?.count.get();
    for number in journal.revoked(block, count)? {
        // One that is no block can not come up in the log either.
        if number >= below.sb.blocks {
            continue;
        }
        let by = revoked.entry(number).or_insert(sequence);
        if is_before(*by, sequence) {
            *by = sequence;
        }
        if revoked.len() > REVOKED_MAX {
            let (found, max) = (len64(revoked.len()), len64(REVOKED_MAX));
            return Err(Ext4Fault::Limit { what: "revoked blocks in the journal", found, max }.into());
        }
    }
    Ok(())
}

/// Goes through the log up to the first transaction that was not completed, and returns its number.
fn find_end(journal: &Journal<'_>) -> Result<u32> {
    let mut cursor = journal.cursor();
    let mut sequence = journal.sequence;
    let mut last_time = 0u64;
    // A descriptor or revoke block with a wrong checksum, which may be a remnant of an earlier round.
    let mut doubtful = false;
    let mut crc32 = !0u32;
    loop {
        let block = journal.next(&mut cursor)?;
        let Some((kind, _)) = Journal::header(&block).filter(|(_, found)| *found == sequence) else {
            return Ok(sequence);
        };
        match kind {
            journal_block::DESCRIPTOR => {
                doubtful |= !journal.tail_is_right(&block);
                let count = tag_count(journal, &block)?;
                if journal.checksums == Checksums::V1 {
                    crc32 = crc32_be(crc32, &block);
                    for _ in 0..count {
                        crc32 = crc32_be(crc32, &journal.next(&mut cursor)?);
                    }
                } else {
                    journal.skip(&mut cursor, count)?;
                }
            }
            journal_block::REVOKE => doubtful |= !journal.tail_is_right(&block),
            journal_block::COMMIT => {
                let commit = take::<RawCommit>(&block, 0, "commit block")?;
                let time = commit.commit_sec.get();
                let right = commit_is_right(journal, &commit, &block, crc32);
                if (doubtful || !right) && time < last_time {
                    return Ok(sequence);
                }
                if doubtful {
                    let what = "a descriptor or revoke block";
                    return Err(Ext4Fault::JournalChecksum { transaction: sequence, what }.into());
                }
                if !right {
                    // Without waiting for the blocks, the commit block may be all that reached the disk.
                    if journal.is_async {
                        return Ok(sequence);
                    }
                    let what = "the commit block";
                    return Err(Ext4Fault::JournalChecksum { transaction: sequence, what }.into());
                }
                (last_time, crc32) = (time, !0);
                sequence = sequence.wrapping_add(1);
            }
            _ => return Ok(sequence),
        }
    }
}

/// Whether a commit block's checksum is right. `crc32` is the transaction's, for version 1.
fn commit_is_right(journal: &Journal<'_>, commit: &RawCommit, block: &[u8], crc32: u32) -> bool {
    let found = commit.chksum.first().map_or(0, |c| c.get());
    match journal.checksums {
        Checksums::None => true,
        Checksums::V1 => {
            let kind = (commit.chksum_type, commit.chksum_size);
            (sum_holds(found, crc32) && kind == CRC32) || (found == 0 && kind == (0, 0))
        }
        Checksums::V2 | Checksums::V3 => {
            let before = block.get(..COMMIT_CHECKSUM_AT).unwrap_or_default();
            let behind = block.get(COMMIT_CHECKSUM_AT.saturating_add(4)..).unwrap_or_default();
            sum_holds(found, [before, &[0; 4], behind].iter().fold(journal.seed, |c, b| crc32c(c, b)))
        }
    }
}

/// Goes on with the crc32 register `crc` (polynomial 0x04c11db7, most significant bit first).
fn crc32_be(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| {
            (crc << 1) ^ if crc & 0x8000_0000 != 0 { 0x04c1_1db7 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_of_commit_blocks_is_the_one_of_mpeg() {
        assert_eq!(crc32_be(!0, b"123456789"), 0x0376_e6e7);
    }

    #[test]
    fn transaction_numbers_wrap() {
        assert!(is_before(u32::MAX, 0) && !is_before(0, u32::MAX) && !is_before(5, 5));
    }
}
