//! All inode tables, read in order.

use std::ops::RangeInclusive;

use racker_formats::error::Result;
use racker_formats::wire::{bytes, index, is_zero, len64};

use super::super::edit::groups::INODE_UNINIT;
use super::super::fault::Ext4Fault;
use super::super::superblock::Superblock;
use super::Checker;
use crate::filesystem::NodeKind;

/// Bytes of a table that are read at once.
const PIECE: u64 = 256 << 10;
/// Inodes of groups with any in use that are kept notes of: 768 MB.
const NOTED_MAX: u64 = 1 << 27;

/// What is known of an inode.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Note {
    /// Names that it counts.
    pub(super) links: u16,
    /// Names that were found, up to 65535.
    pub(super) names: u16,
    state: u8,
}

/// Bits of [`Note::state`]: the lowest three are the kind, as directories have it.
const KIND: u8 = 7;
const USED: u8 = 0x08;
/// Something is wrong with it: what follows from that is not told again.
const BAD: u8 = 0x10;
/// It holds the value of an attribute.
const VALUE: u8 = 0x20;
/// An entry of a directory names it, other than `.` and `..`.
const NAMED: u8 = 0x40;
/// It is encrypted.
const ENCRYPTED: u8 = 0x80;

impl Note {
    pub(super) fn is_used(self) -> bool {
        self.state & USED != 0
    }

    pub(super) fn is_bad(self) -> bool {
        self.state & BAD != 0
    }

    pub(super) fn is_value(self) -> bool {
        self.state & VALUE != 0
    }

    pub(super) fn is_named(self) -> bool {
        self.state & NAMED != 0
    }

    pub(super) fn is_encrypted(self) -> bool {
        self.state & ENCRYPTED != 0
    }

    pub(super) fn kind(self) -> Option<NodeKind> {
        NodeKind::from_entry_type(self.state & KIND)
    }

    pub(super) fn use_as(&mut self, links: u16, kind: Option<NodeKind>) {
        self.links = links;
        self.state |= USED | kind.map_or(0, NodeKind::entry_type);
    }

    pub(super) fn spoil(&mut self) {
        self.state |= BAD;
    }

    pub(super) fn hold_value(&mut self) {
        self.state |= VALUE;
    }

    pub(super) fn encrypt(&mut self) {
        self.state |= ENCRYPTED;
    }

    /// Counts a name; tells whether it is the first one that is neither `.` nor `..`.
    pub(super) fn name(&mut self, is_dot: bool) -> bool {
        self.names = self.names.saturating_add(1);
        let first = self.state & NAMED == 0;
        if !is_dot {
            self.state |= NAMED;
        }
        first && !is_dot
    }
}

/// Notes of all inodes, by groups.
#[derive(Debug)]
pub(super) struct Notes {
    per_group: u32,
    groups: Vec<Option<Box<[Note]>>>,
    noted: u64,
}

impl Notes {
    pub(super) fn new(sb: &Superblock) -> Self {
        Self { per_group: sb.inodes_per_group.max(1), groups: Vec::new(), noted: 0 }
    }

    fn place(&self, number: u32) -> (usize, usize) {
        let slot = number.saturating_sub(1);
        let (group, within) = (slot.checked_div(self.per_group), slot.checked_rem(self.per_group));
        let wide = |n: Option<u32>| n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        (wide(group), wide(within))
    }

    pub(super) fn get(&self, number: u32) -> Note {
        let (group, within) = self.place(number);
        let notes = self.groups.get(group).and_then(Option::as_ref);
        notes.and_then(|notes| notes.get(within)).copied().unwrap_or_default()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Result<&mut Note> {
        let (group, within) = self.place(number);
        if self.groups.len() <= group {
            self.groups.resize_with(group.saturating_add(1), || None);
        }
        let missing = || Ext4Fault::Unsound("has fewer inodes than it needs");
        let slot = self.groups.get_mut(group).ok_or_else(missing)?;
        if slot.is_none() {
            self.noted = self.noted.saturating_add(self.per_group.into());
            if self.noted > NOTED_MAX {
                let (found, max) = (self.noted, NOTED_MAX);
                return Err(Ext4Fault::Limit { what: "inodes in groups that are in use", found, max }.into());
            }
            *slot = Some(vec![Note::default(); index(self.per_group.into())?].into());
        }
        Ok(slot.as_mut().and_then(|notes| notes.get_mut(within)).ok_or_else(missing)?)
    }

    /// Numbers of the inodes of a group that has notes.
    pub(super) fn of_group(&self, group: u64) -> Option<RangeInclusive<u32>> {
        let place = usize::try_from(group).ok()?;
        self.groups.get(place)?.as_ref()?;
        let first = u32::try_from(group).ok()?.saturating_mul(self.per_group);
        Some(first.saturating_add(1)..=first.saturating_add(self.per_group))
    }
}

impl Checker<'_> {
    /// Goes through all inodes that were ever written.
    pub(super) fn check_inodes(&mut self) -> Result<()> {
        let sb = &self.fs.sb;
        let size = len64(sb.inode_bytes);
        for (group, desc) in (0u32..).zip(self.descs.clone()) {
            if desc.flags & INODE_UNINIT != 0 {
                continue;
            }
            let count = u64::from(sb.inodes_per_group.saturating_sub(desc.unused));
            let table = self.fs.byte_of(desc.inode_table)?;
            let mut done = 0u64;
            while done < count {
                let take = PIECE.checked_div(size).unwrap_or(1).max(1).min(count.saturating_sub(done));
                let at = table.saturating_add(done.saturating_mul(size));
                let piece = bytes(&self.fs.disk, at, take.saturating_mul(size), PIECE, "an inode table")?;
                if !is_zero(&piece) {
                    for (slot, raw) in (done..).zip(piece.chunks_exact(sb.inode_bytes)) {
                        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
                        let first = group.saturating_mul(sb.inodes_per_group);
                        let number = first.saturating_add(slot).saturating_add(1);
                        if !is_zero(raw) {
                            self.check_inode(number, raw)?;
                        }
                    }
                }
                done = done.saturating_add(take);
            }
        }
        Ok(())
    }
}
