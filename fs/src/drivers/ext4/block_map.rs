//! Block maps of ext2 and ext3: twelve direct blocks, then one tree each of one, two and three levels.

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, take};

use super::fault::Ext4Fault;
use super::inode::Inode;
use super::map::{Mapping, Run};
use super::volume::Ext4;

/// Direct blocks in the inode.
const DIRECT: u64 = 12;

/// Where block `at` of a file with a block map is, and how many blocks go on in the same way.
pub(super) fn lookup(fs: &Ext4, inode: &Inode, at: u64) -> Result<Run> {
    if at < DIRECT {
        return run(fs, inode.block(), at, DIRECT, 0);
    }
    let shift = fs.sb.block_size.shift().saturating_sub(2);
    let mut rest = at.saturating_sub(DIRECT);
    for levels in 1u32..=3 {
        let covered = 1u64.checked_shl(shift.saturating_mul(levels)).unwrap_or(u64::MAX);
        if rest < covered {
            let slot = DIRECT.saturating_add(u64::from(levels)).saturating_sub(1);
            return descend(fs, pointer(inode.block(), slot)?, levels, shift, rest);
        }
        rest = rest.saturating_sub(covered);
    }
    Err(Ext4Fault::Inode { field: "a block behind the block map", found: at }.into())
}

/// Follows `levels` levels of pointers from `block`, which answers for 2^(shift * levels) blocks, to block `at`.
fn descend(fs: &Ext4, block: u64, levels: u32, shift: u32, at: u64) -> Result<Run> {
    let mut block = block;
    // Each round goes one level down, so there are three at most.
    for level in (1..=levels).rev() {
        let covered = 1u64.checked_shl(shift.saturating_mul(level)).unwrap_or(u64::MAX);
        let within = at & covered.saturating_sub(1);
        if block == 0 {
            return Ok(Run::new(covered.saturating_sub(within), Mapping::Hole));
        }
        let place = || format!("indirect block {block}");
        fs.sb.check_blocks("a block map", block, 1)?;
        let bytes = fs.block("a block map", block).within(place)?;
        let below = shift.saturating_mul(level.saturating_sub(1));
        let slot = within.checked_shr(below).unwrap_or(0);
        if level == 1 {
            return run(fs, &bytes, slot, 1 << shift.min(32), block).within(place);
        }
        block = pointer(&bytes, slot)?;
    }
    Err(Ext4Fault::Inode { field: "a block map without levels", found: at }.into())
}

fn pointer(bytes: &[u8], slot: u64) -> Result<u64> {
    let at = index(slot)?.saturating_mul(4);
    Ok(u32::from_le_bytes(take::<[u8; 4]>(bytes, at, "block map")?).into())
}

/// The run of data or holes that starts at pointer `slot` of `count`, which stand in block `via`.
fn run(fs: &Ext4, bytes: &[u8], slot: u64, count: u64, via: u64) -> Result<Run> {
    let first = pointer(bytes, slot)?;
    let mut len = 1u64;
    for next in slot.saturating_add(1)..count {
        let expected = if first == 0 { 0 } else { first.saturating_add(len) };
        if pointer(bytes, next)? != expected {
            break;
        }
        len = len.saturating_add(1);
    }
    if first == 0 {
        return Ok(Run { len, to: Mapping::Hole, via });
    }
    fs.sb.check_blocks("a block map", first, len)?;
    Ok(Run { len, to: Mapping::Data(first), via })
}
