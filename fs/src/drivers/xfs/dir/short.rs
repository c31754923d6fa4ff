//! A directory inside its inode: the parent, then entries one behind the other, neither sorted nor hashed.

use std::ops::ControlFlow;

use racker_formats::error::Result;
use racker_formats::wire::{part, take};
use zerocopy::big_endian::{U32, U64};

use super::super::fault::Fault;
use super::super::inode::Inode;
use super::super::layout::{RawDirShort, RawDirShortEntry};
use super::super::units::InodeNo;
use super::super::volume::Volume;
use super::{Entry, Place, VisitEntry};
use crate::filesystem::NodeKind;

const WHAT: &str = "directory in the inode";

impl Volume {
    /// Calls `visit` for all entries of a directory inside its inode.
    pub(super) fn short_entries(&self, dir: &Inode, visit: &mut VisitEntry<'_>) -> Result<ControlFlow<()>> {
        let bytes = dir.local()?;
        let head: RawDirShort = take(bytes, 0, WHAT)?;
        // One inode number that needs 8 bytes widens all of them.
        let width = if head.i8count == 0 { 4 } else { 8 };
        let mut at = size_of::<RawDirShort>().saturating_add(width);
        part(bytes, 0, at, WHAT)?;
        for _ in 0..head.count {
            let raw: RawDirShortEntry = take(bytes, at, WHAT)?;
            let name_at = at.saturating_add(size_of::<RawDirShortEntry>());
            let name = part(bytes, name_at, raw.namelen.into(), WHAT)?;
            let mut next = name_at.saturating_add(name.len());
            let mut kind = None;
            if self.sb.ftype() {
                kind = NodeKind::from_entry_type(take::<u8>(bytes, next, WHAT)?);
                next = next.saturating_add(1);
            }
            let ino = if width == 4 {
                take::<U32>(bytes, next, WHAT)?.get().into()
            } else {
                take::<U64>(bytes, next, WHAT)?.get()
            };
            let ino = InodeNo(ino);
            self.sb.inode_offset(ino)?;
            if name.is_empty() {
                return Err(Fault::Structure { what: WHAT, why: "an entry has no name" }.into());
            }
            let place = Place::Inode { at: dir.data.at.saturating_add(next), width };
            if visit(Entry { name: name.to_vec(), ino, kind, place })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = next.saturating_add(width);
        }
        if at != bytes.len() {
            return Err(Fault::Structure { what: WHAT, why: "bytes are left behind its entries" }.into());
        }
        Ok(ControlFlow::Continue(()))
    }
}
