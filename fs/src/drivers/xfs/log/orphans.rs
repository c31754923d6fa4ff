//! Inodes that no directory names any more, whose owners still had them open when the system died. Each group
//! keeps them in 64 lists; they are freed after a replay.

use racker_formats::error::{Result, Within};

use super::super::fault::Fault;
use super::super::layout::RawAgi;
use super::super::units::{AgNo, InodeNo, NULL_AG_BLOCK};
use super::super::volume::Volume;
use super::counters::{AGI, header};

/// All such inodes, in the order of the lists.
pub(in super::super) fn unlinked(volume: &Volume) -> Result<Vec<InodeNo>> {
    let mut all = Vec::new();
    for number in 0..volume.sb.ag_count {
        group(volume, AgNo(number), &mut all).within(|| format!("allocation group {number}"))?;
    }
    Ok(all)
}

fn group(volume: &Volume, ag: AgNo, all: &mut Vec<InodeNo>) -> Result<()> {
    let agi: RawAgi = header(volume, &AGI, ag, 2)?;
    // No list is longer than the group has inodes.
    let mut budget = agi.agi_count.get();
    for first in agi.agi_unlinked {
        let mut next = first.get();
        while next != NULL_AG_BLOCK {
            budget = budget.checked_sub(1).ok_or(Fault::Circle { what: "the list of unlinked inodes" })?;
            let ino = volume.sb.inode(ag, next)?;
            let inode = volume.inode(ino)?;
            if inode.links() != 0 {
                let why = "holds an inode that has a name";
                return Err(Fault::Structure { what: "the list of unlinked inodes", why }.into());
            }
            all.push(ino);
            next = inode.raw.di_next_unlinked.get();
        }
    }
    Ok(())
}
