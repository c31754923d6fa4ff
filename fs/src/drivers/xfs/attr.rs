//! Extended attributes: inside the inode, one leaf, or a tree of leaves; large values in blocks of their own.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{self, index, len64, part, take};
use zerocopy::big_endian::{U16, U32};

use crate::filesystem::VisitXattr;

use super::da::{DaBlock, DaFork, da_kind};
use super::described::REMOTE_SELF;
use super::fault::Fault;
use super::inode::{Fork, ForkFormat, ForkKind, Inode};
use super::layout::{
    ATTR_LEAF_MAGIC, ATTR_REMOTE_MAGIC, RawAttrLeafEntry, RawAttrLeafTail, RawAttrLocal, RawAttrRemote,
    RawAttrRemoteName, RawAttrShort, RawAttrShortEntry, RawDaInfo, RawDaInfo4,
};
use super::units::FileBlock;
use super::volume::{BlockKind, Volume};

bitflags::bitflags! {
    /// Flags of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct AttrFlags: u8 {
        /// The value is beside the name.
        const LOCAL = 1 << 0;
        /// `trusted.`
        const ROOT = 1 << 1;
        /// `security.`
        const SECURE = 1 << 2;
        /// Who names this node: the filesystem's own, hidden from users.
        const PARENT = 1 << 3;
        /// Was being written when the system died.
        const INCOMPLETE = 1 << 7;
    }
}

/// An attribute as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    /// Which space of names it is in.
    pub(super) flags: AttrFlags,
    /// Without a prefix.
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Called for each attribute with its flags, name and value.
type VisitStored<'a> = dyn FnMut(AttrFlags, &[u8], &[u8]) -> Result<ControlFlow<()>> + 'a;

/// The kinds of leaves.
pub(super) const LEAF: [BlockKind; 1] = [da_kind("attribute leaf", ATTR_LEAF_MAGIC)];
/// A block of a value outside the tree.
pub(super) const REMOTE: BlockKind =
    BlockKind::new("attribute value block", [0, ATTR_REMOTE_MAGIC], REMOTE_SELF);
const SHORT: &str = "attributes in the inode";
/// Bytes of the largest value.
const VALUE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of all attributes of one inode that are held at a time: millions of hard links have less.
const HELD_BYTES_MAX: u64 = 256 << 20;
/// Names under which access control lists are stored among those of `trusted.`, and the kernel's names for them.
pub(super) const ACLS: [(&[u8], &[u8]); 2] =
    [(b"SGI_ACL_FILE", b"system.posix_acl_access"), (b"SGI_ACL_DEFAULT", b"system.posix_acl_default")];

impl Volume {
    /// Calls `visit` for all extended attributes under the kernel's names. Access control lists come under those
    /// of POSIX only, not under `trusted.SGI_ACL_…` a second time.
    pub(super) fn read_xattrs(&self, inode: &Inode, visit: &mut VisitXattr<'_>) -> Result<()> {
        self.visit_attrs(inode, &mut |flags, name, value| {
            if flags.contains(AttrFlags::PARENT) {
                return Ok(ControlFlow::Continue(()));
            }
            show(flags, name, value, visit)
        })
    }

    /// All attributes as they are stored.
    pub(super) fn stored_attrs(&self, inode: &Inode) -> Result<Vec<Attr>> {
        let (mut all, mut held) = (Vec::new(), 0u64);
        self.visit_attrs(inode, &mut |flags, name, value| {
            held = held.saturating_add(len64(size_of::<Attr>()));
            held = held.saturating_add(len64(name.len())).saturating_add(len64(value.len()));
            if held > HELD_BYTES_MAX {
                return Err(Fault::Unsupported { what: "copying so many attributes" }.into());
            }
            if name.is_empty() || name.contains(&0) {
                return Err(Fault::Structure { what: "attribute", why: "a name that cannot be" }.into());
            }
            let flags = flags.difference(AttrFlags::LOCAL);
            if flags != AttrFlags::from_bits_truncate(flags.bits()) || flags.bits().count_ones() > 1 {
                let (found, why) = (flags.bits().into(), "not one space of names");
                return Err(Fault::Field { what: "an attribute's flags", found, why }.into());
            }
            all.push(Attr { flags, name: name.to_vec(), value: value.to_vec() });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    fn visit_attrs(&self, inode: &Inode, visit: &mut VisitStored<'_>) -> Result<()> {
        let Some(fork) = inode.attr else { return Ok(()) };
        let result = match fork.format {
            ForkFormat::Local => short_attrs(inode, &fork, visit),
            // A fork that never got an attribute has no leaf either.
            ForkFormat::Extents if fork.extents == 0 => Ok(()),
            _ => self.leaf_attrs(inode, visit),
        };
        result.within(|| format!("attributes of inode {}", inode.ino.0))
    }

    fn leaf_attrs(&self, inode: &Inode, visit: &mut VisitStored<'_>) -> Result<()> {
        let block_bytes = self.sb.block_size.bytes();
        let fork = DaFork { inode, kind: ForkKind::Attr, block_bytes };
        let mut budget = self.da_budget(&fork)?;
        let mut leaf = self.da_leaf(&fork, FileBlock(0), &LEAF, 0)?;
        loop {
            budget = budget.checked_sub(1).ok_or(Fault::Circle { what: "an attribute fork's leaves" })?;
            if self.leaf_entries(inode, &leaf, visit)?.is_break() {
                return Ok(());
            }
            match self.da_next(&fork, &leaf, &LEAF)? {
                Some(next) => leaf = next,
                None => return Ok(()),
            }
        }
    }

    fn leaf_entries(
        &self,
        inode: &Inode,
        leaf: &DaBlock,
        visit: &mut VisitStored<'_>,
    ) -> Result<ControlFlow<()>> {
        let bytes = leaf.bytes.as_slice();
        let head = if self.sb.v5 { size_of::<RawDaInfo>() } else { size_of::<RawDaInfo4>() };
        let tail: RawAttrLeafTail = take(bytes, head, "attribute leaf")?;
        let pad = if self.sb.v5 { 4 } else { 0 };
        let first = head.saturating_add(size_of::<RawAttrLeafTail>()).saturating_add(pad);
        for i in 0..usize::from(tail.count.get()) {
            let at = first.saturating_add(i.saturating_mul(size_of::<RawAttrLeafEntry>()));
            let entry: RawAttrLeafEntry = take(bytes, at, "attribute leaf")?;
            let flags = AttrFlags::from_bits_retain(entry.flags);
            if flags.contains(AttrFlags::INCOMPLETE) {
                continue;
            }
            let at = usize::from(entry.nameidx.get());
            let flow = if flags.contains(AttrFlags::LOCAL) {
                let raw: RawAttrLocal = take(bytes, at, "attribute")?;
                let at = at.saturating_add(size_of::<RawAttrLocal>());
                let name = part(bytes, at, raw.namelen.into(), "attribute name")?;
                let at = at.saturating_add(name.len());
                let value = part(bytes, at, raw.valuelen.get().into(), "attribute value")?;
                visit(flags, name, value)?
            } else {
                let raw: RawAttrRemoteName = take(bytes, at, "attribute")?;
                let at = at.saturating_add(size_of::<RawAttrRemoteName>());
                let name = part(bytes, at, raw.namelen.into(), "attribute name")?;
                let value = self
                    .remote_value(inode, raw.valueblk.get(), raw.valuelen.get().into())
                    .within(|| format!("attribute {:?}", String::from_utf8_lossy(name)))?;
                visit(flags, name, &value)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A value of `len` bytes in blocks of its own from `block` of the fork on.
    pub(super) fn remote_value(&self, inode: &Inode, block: u32, len: u64) -> Result<Vec<u8>> {
        if len > VALUE_BYTES_MAX {
            let why = "a value has at most 64 KiB";
            return Err(Fault::Field { what: "valuelen", found: len, why }.into());
        }
        let mut value = Vec::with_capacity(index(len)?);
        let block_bytes = self.sb.block_size.bytes();
        let mut next = FileBlock(block.into());
        for mapping in self.mappings(inode, ForkKind::Attr, next)? {
            let mapping = mapping?;
            let Some(skip) = next.0.checked_sub(mapping.at.0) else { break };
            let mut rest = self.sb.span(mapping.start, mapping.len)?;
            rest = rest.skip(skip.saturating_mul(block_bytes));
            while !rest.is_empty() && len64(value.len()) < len {
                let span = rest.truncate(block_bytes);
                let left = len.saturating_sub(len64(value.len()));
                let piece = self.value_piece(inode, span, len64(value.len()))?;
                value
                    .extend_from_slice(piece.get(..index(left.min(len64(piece.len())))?).unwrap_or_default());
                rest = rest.skip(block_bytes);
                next = FileBlock(next.0.saturating_add(1));
            }
            if len64(value.len()) >= len {
                return Ok(value);
            }
        }
        Err(Fault::Structure { what: "attribute value", why: "shorter than its name says" }.into())
    }

    /// The part of a value in one block, which begins at `offset` of the value.
    fn value_piece(&self, inode: &Inode, span: racker_formats::block::Span, offset: u64) -> Result<Vec<u8>> {
        if !self.sb.v5 {
            return wire::bytes(&self.disk, span.start(), span.len(), VALUE_BYTES_MAX, REMOTE.what);
        }
        let block = self.block(&REMOTE, span, inode.ino.0)?;
        let head: RawAttrRemote = take(&block, 0, REMOTE.what)?;
        let len = index(head.rm_bytes.get().into())?;
        if u64::from(head.rm_offset.get()) != offset || len == 0 {
            let found = head.rm_offset.get().into();
            return Err(Fault::Field { what: "rm_offset", found, why: "not where the value goes on" }.into());
        }
        Ok(part(&block, size_of::<RawAttrRemote>(), len, REMOTE.what)?.to_vec())
    }
}

fn short_attrs(inode: &Inode, fork: &Fork, visit: &mut VisitStored<'_>) -> Result<()> {
    let bytes = inode.fork_bytes(fork)?;
    let head: RawAttrShort = take(bytes, 0, SHORT)?;
    let bytes = part(bytes, 0, head.totsize.get().into(), SHORT)?;
    let mut at = size_of::<RawAttrShort>();
    for _ in 0..head.count {
        let raw: RawAttrShortEntry = take(bytes, at, SHORT)?;
        at = at.saturating_add(size_of::<RawAttrShortEntry>());
        let name = part(bytes, at, raw.namelen.into(), SHORT)?;
        at = at.saturating_add(name.len());
        let value = part(bytes, at, raw.valuelen.into(), SHORT)?;
        at = at.saturating_add(value.len());
        let flags = AttrFlags::from_bits_retain(raw.flags);
        if flags.contains(AttrFlags::INCOMPLETE) {
            continue;
        }
        if visit(flags, name, value)?.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// Passes an attribute on under the name that the kernel shows.
fn show(flags: AttrFlags, name: &[u8], value: &[u8], visit: &mut VisitXattr<'_>) -> Result<ControlFlow<()>> {
    if name.is_empty() || name.contains(&0) {
        let why = "a name is empty or holds a zero byte";
        return Err(Fault::Structure { what: "attribute", why }.into());
    }
    let prefix: &[u8] = if flags.contains(AttrFlags::ROOT) {
        if let Some((_, shown)) = ACLS.iter().find(|(stored, _)| *stored == name) {
            let value = posix_acl(value).within(|| String::from_utf8_lossy(shown).into_owned())?;
            return visit((shown, &value));
        }
        b"trusted."
    } else if flags.contains(AttrFlags::SECURE) {
        b"security."
    } else {
        b"user."
    };
    visit((&[prefix, name].concat(), value))
}

/// An access control list as the kernel shows it: version 2, then tag, permissions and id of each entry, all
/// little-endian.
fn posix_acl(stored: &[u8]) -> Result<Vec<u8>> {
    const ENTRY: usize = 12;
    const WHAT: &str = "access control list";
    let count = index(take::<U32>(stored, 0, WHAT)?.get().into())?;
    let entries = stored.get(4..).unwrap_or_default();
    if count.checked_mul(ENTRY).is_none_or(|need| need > entries.len()) {
        return Err(Fault::Structure { what: WHAT, why: "more entries than there are bytes" }.into());
    }
    let mut shown = 2u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(ENTRY).take(count) {
        let tag = take::<U32>(entry, 0, WHAT)?.get();
        let id = take::<U32>(entry, 4, WHAT)?.get();
        let perm = take::<U16>(entry, 8, WHAT)?.get();
        let tag = u16::try_from(tag).map_err(|_| Fault::Structure { what: WHAT, why: "an unknown tag" })?;
        // Only named users and groups have an id.
        let id = if matches!(tag, 0x02 | 0x08) { id } else { u32::MAX };
        shown.extend_from_slice(&tag.to_le_bytes());
        shown.extend_from_slice(&perm.to_le_bytes());
        shown.extend_from_slice(&id.to_le_bytes());
    }
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shown_as_the_kernel_does() {
        let mut stored = 2u32.to_be_bytes().to_vec();
        for (tag, id, perm) in [(1u32, 0u32, 6u16), (2, 1000, 4)] {
            stored.extend_from_slice(&tag.to_be_bytes());
            stored.extend_from_slice(&id.to_be_bytes());
            stored.extend_from_slice(&perm.to_be_bytes());
            stored.extend_from_slice(&[0, 0]);
        }
        let shown = posix_acl(&stored).unwrap();
        assert_eq!(shown, [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0]);
        stored[3] = 3;
        assert!(posix_acl(&stored).is_err());
    }
}
