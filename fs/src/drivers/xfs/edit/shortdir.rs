//! A directory inside its inode, taken apart and put together: one inode number beyond 32 bits widens all of them.

use std::collections::BTreeSet;

use racker_formats::error::Result;
use racker_formats::wire::{len64, part, take};
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U32, U64};

use super::super::fault::Fault;
use super::super::inode::Inode;
use super::super::layout::{
    RawDirBlockTail, RawDirData, RawDirData4, RawDirLeafEntry, RawDirShort, RawDirShortEntry,
};
use super::super::superblock::Superblock;
use super::super::units::InodeNo;
use super::dir::entry_bytes;

const WHAT: &str = "directory in the inode";
/// The largest inode number that takes four bytes.
const NARROW_MAX: u64 = (1 << 32) - 1;

/// A directory inside its inode.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct ShortDir {
    pub(in crate::drivers::xfs) parent: InodeNo,
    pub(in crate::drivers::xfs) entries: Vec<ShortEntry>,
}

/// One of its entries.
#[derive(Debug)]
pub(in crate::drivers::xfs) struct ShortEntry {
    pub(in crate::drivers::xfs) name: Vec<u8>,
    /// Where it would be in a block of its own; a cursor of a program that lists the directory.
    pub(in crate::drivers::xfs) offset: u16,
    /// Kind of node, if directories tell it.
    pub(in crate::drivers::xfs) ftype: Option<u8>,
    pub(in crate::drivers::xfs) ino: InodeNo,
}

/// Where the first entry behind `.` and `..` stands in a block.
fn first_place(sb: &Superblock) -> usize {
    let head = if sb.v5 { size_of::<RawDirData>() } else { size_of::<RawDirData4>() };
    head.saturating_add(entry_bytes(sb, 1)).saturating_add(entry_bytes(sb, 2))
}

impl ShortDir {
    /// Takes apart what the inode holds.
    pub(in crate::drivers::xfs) fn parse(dir: &Inode, sb: &Superblock) -> Result<Self> {
        let bytes = dir.local()?;
        let head: RawDirShort = take(bytes, 0, WHAT)?;
        let width = if head.i8count == 0 { size_of::<U32>() } else { size_of::<U64>() };
        let number = |at: usize| -> Result<InodeNo> {
            let ino = if width == size_of::<U32>() {
                take::<U32>(bytes, at, WHAT)?.get().into()
            } else {
                take::<U64>(bytes, at, WHAT)?.get()
            };
            sb.inode_offset(InodeNo(ino))?;
            Ok(InodeNo(ino))
        };
        let mut at = size_of::<RawDirShort>();
        let parent = number(at)?;
        at = at.saturating_add(width);
        let mut entries = Vec::new();
        for _ in 0..head.count {
            let raw: RawDirShortEntry = take(bytes, at, WHAT)?;
            at = at.saturating_add(size_of::<RawDirShortEntry>());
            let name = part(bytes, at, raw.namelen.into(), WHAT)?.to_vec();
            at = at.saturating_add(name.len());
            let mut ftype = None;
            if sb.ftype() {
                ftype = Some(take::<u8>(bytes, at, WHAT)?);
                at = at.saturating_add(1);
            }
            entries.push(ShortEntry { name, offset: raw.offset.get(), ftype, ino: number(at)? });
            at = at.saturating_add(width);
        }
        let short = Self { parent, entries };
        short.check(usize::from(head.i8count), sb)?;
        Ok(short)
    }

    /// Checks widths, places and names.
    fn check(&self, wide: usize, sb: &Superblock) -> Result<()> {
        let damaged = |why| Err(Fault::Structure { what: WHAT, why }.into());
        let all = self.entries.iter().map(|e| e.ino).chain([self.parent]);
        if all.filter(|ino| ino.0 > NARROW_MAX).count() != wide {
            let why = "not as many inode numbers need eight bytes";
            return Err(Fault::Field { what: "i8count", found: len64(wide), why }.into());
        }
        let (mut next, mut names) = (first_place(sb), BTreeSet::new());
        for entry in &self.entries {
            if usize::from(entry.offset) < next {
                return damaged("places of entries overlap");
            }
            next = usize::from(entry.offset).saturating_add(entry_bytes(sb, entry.name.len()));
            if !names.insert(entry.name.as_slice()) {
                return damaged("two entries have the same name");
            }
        }
        let leaves = self.entries.len().saturating_add(2).saturating_mul(size_of::<RawDirLeafEntry>());
        let need = next.saturating_add(leaves).saturating_add(size_of::<RawDirBlockTail>());
        if len64(need) > sb.dir_block_size.bytes() {
            return damaged("places of entries are beyond a block's end");
        }
        Ok(())
    }

    /// Adds an entry behind the others, if all of them would also fit into a block of their own.
    pub(super) fn add(&mut self, mut entry: ShortEntry, sb: &Superblock) -> bool {
        let first = first_place(sb);
        let behind = |e: &ShortEntry| usize::from(e.offset).saturating_add(entry_bytes(sb, e.name.len()));
        // A leaf entry for each, `.` and `..`, and their count.
        let leaves = self.entries.len().saturating_add(4).saturating_mul(size_of::<RawDirLeafEntry>());
        let end = racker_formats::wire::index(sb.dir_block_size.bytes()).unwrap_or(0).saturating_sub(leaves);
        let need = entry_bytes(sb, entry.name.len());
        let mut at = self.entries.iter().map(behind).max().unwrap_or(first);
        if at.saturating_add(need) > end {
            at = first;
            for old in &mut self.entries {
                old.offset = u16::try_from(at).unwrap_or(u16::MAX);
                at = at.saturating_add(entry_bytes(sb, old.name.len()));
            }
        }
        let Ok(offset) = u16::try_from(at) else { return false };
        entry.offset = offset;
        let fits = at.saturating_add(need) <= end && self.entries.len() < usize::from(u8::MAX);
        self.entries.push(entry);
        fits
    }

    /// Makes the entry `name` name `ino`, a node of another kind perhaps.
    pub(super) fn set(&mut self, name: &[u8], ino: InodeNo, ftype: u8) -> Result<()> {
        let Some(entry) = self.entries.iter_mut().find(|e| e.name == name) else {
            return Err(Fault::Structure { what: WHAT, why: "an entry is there and is not" }.into());
        };
        entry.ino = ino;
        entry.ftype = entry.ftype.map(|_| ftype);
        Ok(())
    }

    /// The bytes as they lie in an inode.
    pub(super) fn pack(&self) -> Result<Vec<u8>> {
        let all = || self.entries.iter().map(|e| e.ino).chain([self.parent]);
        let wide = all().filter(|ino| ino.0 > NARROW_MAX).count();
        let too_many = |_| Fault::Structure { what: WHAT, why: "too many entries" };
        let mut bytes = Vec::new();
        let head = RawDirShort {
            count: u8::try_from(self.entries.len()).map_err(too_many)?,
            i8count: u8::try_from(wide).map_err(too_many)?,
        };
        bytes.extend_from_slice(head.as_bytes());
        let put = |bytes: &mut Vec<u8>, ino: InodeNo| match u32::try_from(ino.0) {
            Ok(narrow) if wide == 0 => bytes.extend_from_slice(&narrow.to_be_bytes()),
            _ => bytes.extend_from_slice(&ino.0.to_be_bytes()),
        };
        put(&mut bytes, self.parent);
        for entry in &self.entries {
            let namelen = u8::try_from(entry.name.len()).map_err(too_many)?;
            let raw = RawDirShortEntry { namelen, offset: entry.offset.into() };
            bytes.extend_from_slice(raw.as_bytes());
            bytes.extend_from_slice(&entry.name);
            bytes.extend(entry.ftype);
            put(&mut bytes, entry.ino);
        }
        Ok(bytes)
    }
}
