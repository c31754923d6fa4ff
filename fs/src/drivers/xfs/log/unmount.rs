//! Ends a replayed log as the kernel does at an unmount: one record that says so, and nothing behind it that
//! could be taken for a part of this round.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part, part_mut};
use zerocopy::{FromZeros, IntoBytes};

use super::super::fault::Fault;
use super::super::units::{BASIC_BLOCK, BASIC_BLOCK_SHIFT, Lsn};
use super::head::{OP_UNMOUNT, State, blocks_in_flight};
use super::layout::{LOG_MAGIC, RawLogExtHeader, RawLogOp, RawLogRecord};
use super::record::{CRC_AT, DATA_PER_HEADER, FORMAT_LE, RECORD_BYTES_MAX, checksum, cycle_data_at};
use super::ring::{Ring, cycle_of};

/// What the unmount operation says: `Un`, in host order, padded.
const UNMOUNT: [u8; 8] = [0x6e, 0x55, 0, 0, 0, 0, 0, 0];
/// The log itself as the writer of an operation.
const CLIENT_LOG: u8 = 0xaa;
/// The number of the transaction; any will do.
const TRANSACTION: u32 = 0xb0c0_d0d0;
const WHAT: &str = "unmount record";

/// Which blocks behind the record are made to look written in the round before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Those that look newer.
    Newer,
    /// Those that look newer or older: `xfs_db` leaves a gap in a log that it clears, which moves the head in front of
    /// the last record.
    Other,
}

/// Writes the record at the head. Returns its sequence number: the highest that a block may carry from now on.
pub(super) fn write(ring: &Ring, state: &State, which: Behind) -> Result<Lsn> {
    let record = build(ring, state)?;
    let blocks = u32::try_from(len64(record.len()) >> BASIC_BLOCK_SHIFT).unwrap_or(u32::MAX);
    // Behind the record first: once it is there, nothing after it may look written in its round.
    let end = state.head.block().saturating_add(blocks);
    let cycle = state.head.cycle().saturating_add((end >= ring.blocks).into());
    let behind = Lsn::new(cycle, ring.after(state.head.block(), blocks));
    clear_stale(ring, behind, state.head, ring.blocks.saturating_sub(blocks), which)?;
    ring.write(state.head.block(), &record)?;
    Ok(state.head)
}

/// The record, its blocks marked with the round they are written in.
fn build(ring: &Ring, state: &State) -> Result<Vec<u8>> {
    let sunit = ring.place.sunit;
    let size = if ring.place.v2 { DATA_PER_HEADER.max(sunit) } else { DATA_PER_HEADER };
    let heads = size.div_ceil(DATA_PER_HEADER);
    let head_bytes = heads << BASIC_BLOCK_SHIFT;
    let used = head_bytes.saturating_add(1 << BASIC_BLOCK_SHIFT);
    let total = used.checked_next_multiple_of(sunit).filter(|total| *total <= RECORD_BYTES_MAX);
    let total = total.ok_or(Fault::Structure { what: "log", why: "its stripe unit is too large" })?;
    let len = total.saturating_sub(head_bytes);
    if total >> BASIC_BLOCK_SHIFT >= ring.blocks {
        return Err(Fault::Structure { what: "log", why: "too short" }.into());
    }
    let bytes_of = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let mut record = vec![0; bytes_of(total)];
    let op = RawLogOp {
        oh_tid: TRANSACTION.into(),
        oh_len: 8.into(),
        oh_clientid: CLIENT_LOG,
        oh_flags: OP_UNMOUNT,
        oh_res2: 0.into(),
    };
    let data_at = bytes_of(head_bytes);
    part_mut(&mut record, data_at, size_of::<RawLogOp>(), WHAT)?.copy_from_slice(op.as_bytes());
    let at = data_at.saturating_add(size_of::<RawLogOp>());
    part_mut(&mut record, at, UNMOUNT.len(), WHAT)?.copy_from_slice(&UNMOUNT);

    let mut header = RawLogRecord::new_zeroed();
    header.h_magicno = LOG_MAGIC.into();
    header.h_cycle = state.head.cycle().into();
    header.h_version = if ring.place.v2 { 2 } else { 1 }.into();
    header.h_len = len.into();
    header.h_lsn = state.head.0.into();
    header.h_tail_lsn = state.head.0.into();
    header.h_prev_block = state.last_block.into();
    header.h_num_logops = 1.into();
    header.h_fmt = FORMAT_LE.into();
    header.h_fs_uuid = ring.uuid;
    header.h_size = if ring.place.v2 { size } else { 0 }.into();
    part_mut(&mut record, 0, size_of::<RawLogRecord>(), WHAT)?.copy_from_slice(header.as_bytes());
    mark(ring, state.head, bytes_of(heads), &mut record)?;
    if ring.v5 {
        let heads = part(&record, 0, data_at, WHAT)?;
        let data = part(&record, data_at, bytes_of(len), WHAT)?;
        let crc = checksum(heads, size_of::<RawLogRecord>(), data, ring.place.v2)?;
        part_mut(&mut record, CRC_AT, 4, WHAT)?.copy_from_slice(&crc.to_le_bytes());
    }
    Ok(record)
}

/// Moves the first word of each data block into the headers, and the round into its place. Blocks behind the end
/// of the log are written in the next round.
fn mark(ring: &Ring, head: Lsn, heads: usize, record: &mut [u8]) -> Result<()> {
    let blocks = record.len().checked_div(BASIC_BLOCK).unwrap_or(0);
    for i in 1..blocks {
        let at = i.saturating_mul(BASIC_BLOCK);
        let place = u64::from(head.block()).saturating_add(len64(i));
        let round = head.cycle().saturating_add((place >= ring.blocks.into()).into());
        if let Some(data) = i.checked_sub(heads) {
            let word: [u8; 4] = *part(record, at, 4, WHAT)?.first_chunk().unwrap_or(&[0; 4]);
            part_mut(record, cycle_data_at(data), 4, WHAT)?.copy_from_slice(&word);
        }
        part_mut(record, at, 4, WHAT)?.copy_from_slice(&round.to_be_bytes());
    }
    const { assert!(size_of::<RawLogExtHeader>() <= BASIC_BLOCK) };
    Ok(())
}

/// Makes blocks from `from` on, which were under way when the system died, look written in the round before: as
/// the kernel does, with empty records, but only up to the last one that needs it.
fn clear_stale(ring: &Ring, from: Lsn, tail: Lsn, reach: u32, which: Behind) -> Result<()> {
    let reach = blocks_in_flight(ring).min(reach);
    if reach == 0 {
        return Ok(());
    }
    let bytes = ring.read(from.block(), reach)?;
    let round = |i: u32| {
        let over = from.block().saturating_add(i) >= ring.blocks;
        from.cycle().saturating_sub(1).saturating_add(over.into())
    };
    let mut stale = 0u32;
    for (i, block) in (0u32..).zip(bytes.chunks_exact(BASIC_BLOCK)) {
        let (found, expected) = (cycle_of(block)?, round(i));
        if found > expected || which == Behind::Other && found != expected {
            stale = i.saturating_add(1);
        }
    }
    let mut cleared = Vec::new();
    for i in 0..stale {
        let mut header = RawLogRecord::new_zeroed();
        header.h_magicno = LOG_MAGIC.into();
        header.h_cycle = round(i).into();
        header.h_version = if ring.place.v2 { 2 } else { 1 }.into();
        header.h_lsn = Lsn::new(round(i), ring.after(from.block(), i)).0.into();
        header.h_tail_lsn = tail.0.into();
        header.h_fmt = FORMAT_LE.into();
        header.h_fs_uuid = ring.uuid;
        let mut block = [0; BASIC_BLOCK];
        part_mut(&mut block, 0, size_of::<RawLogRecord>(), WHAT)?.copy_from_slice(header.as_bytes());
        cleared.extend_from_slice(&block);
    }
    if cleared.is_empty() { Ok(()) } else { ring.write(from.block(), &cleared) }
}
