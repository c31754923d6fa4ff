//! Extended attributes: behind the fixed fields of the inode, in one block of their own, large values in inodes.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, part, sum_holds, take};

use super::acl;
use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::inode::Inode;
use super::layout::{RawXattr, RawXattrHeader, XATTR_CHECKSUM_AT, XATTR_MAGIC};
use super::volume::Ext4;
use crate::filesystem::VisitXattr;

/// Bytes of one value: the kernel hands out no larger ones.
const VALUE_BYTES_MAX: u32 = 64 << 10;

/// Name indexes: what stands in place of a name's first part.
const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
/// `system.`, whose only use is the inline data, and no attribute to show.
const SYSTEM: u8 = 7;

/// The part of the name that an index stands for; `None` for what the kernel does not show either.
fn prefix(name_index: u8) -> Option<&'static [u8]> {
    Some(match name_index {
        1 => b"user.",
        POSIX_ACL_ACCESS => b"system.posix_acl_access",
        POSIX_ACL_DEFAULT => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        10 => b"gnu.",
        _ => return None,
    })
}

/// One attribute as stored.
pub(super) struct Stored<'a> {
    pub(super) name_index: u8,
    pub(super) name: &'a [u8],
    pub(super) value: Value<'a>,
}

pub(super) enum Value<'a> {
    Here(&'a [u8]),
    /// In this inode, of that size.
    Inode(u32, u32),
}

fn wrong(what: &'static str, found: u64) -> racker_formats::Error {
    Ext4Fault::Xattr { what, found }.into()
}

impl Ext4 {
    /// All attributes that the kernel shows, under the names it shows.
    pub(super) fn visit_xattrs(&self, inode: &Inode, visit: &mut VisitXattr<'_>) -> Result<()> {
        let mut show = |stored: Stored<'_>| -> Result<ControlFlow<()>> {
            let Some(prefix) = prefix(stored.name_index) else { return Ok(ControlFlow::Continue(())) };
            let mut name = prefix.to_vec();
            // An access control list's name is all in its index.
            if prefix.ends_with(b".") {
                name.extend_from_slice(stored.name);
            }
            let held;
            let value = match stored.value {
                Value::Here(value) => value,
                Value::Inode(number, size) => {
                    held = self.ea_inode(inode, number, size)?;
                    &held
                }
            };
            match stored.name_index {
                POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT => visit((&name, &acl::to_kernel(value)?)),
                _ => visit((&name, value)),
            }
        };
        if in_inode(inode, &mut show).within(|| "attributes in the inode")?.is_break() {
            return Ok(());
        }
        if inode.xattr_block != 0 {
            let number = inode.xattr_block;
            let place = || format!("attribute block {number}");
            self.sb.check_blocks("the inode", number, 1)?;
            let block = self.block("extended attributes", number).within(place)?;
            self.check_xattr_block(number, &block).within(place)?;
            let _ = entries(&block, size_of::<RawXattrHeader>(), 0, &mut show).within(place)?;
        }
        Ok(())
    }

    /// The part of inline data that does not fit into the inode's 60 bytes; `None` if there is none.
    pub(super) fn inline_rest(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        let _ = in_inode(inode, &mut |stored| {
            if stored.name_index == SYSTEM && stored.name == b"data" {
                let Value::Here(value) = stored.value else {
                    return Err(wrong("an inode for the value of system.data", 0));
                };
                found = Some(value.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    pub(super) fn check_xattr_block(&self, number: u64, block: &[u8]) -> Result<()> {
        let head = take::<RawXattrHeader>(block, 0, "extended attributes")?;
        if head.magic.get() != XATTR_MAGIC {
            return Err(wrong("magic", head.magic.get().into()));
        }
        if head.blocks.get() != 1 {
            return Err(wrong("number of blocks", head.blocks.get().into()));
        }
        if !self.sb.features.has_metadata_csum() {
            return Ok(());
        }
        let before = part(block, 0, XATTR_CHECKSUM_AT, "extended attributes")?;
        let behind = block.get(XATTR_CHECKSUM_AT.saturating_add(4)..).unwrap_or_default();
        let pieces = [&number.to_le_bytes()[..], before, &[0; 4], behind];
        let computed = pieces.iter().fold(self.sb.csum_seed, |c, b| crc32c(c, b));
        let found = head.checksum.get();
        if !sum_holds(found, computed) {
            return Err(Ext4Fault::Checksum { what: "the attribute block", found, computed }.into());
        }
        Ok(())
    }

    /// The value that inode `number` holds for an attribute of `owner`.
    pub(super) fn ea_inode(&self, owner: &Inode, number: u32, size: u32) -> Result<Vec<u8>> {
        let place = || format!("attribute inode {number}");
        if number < self.sb.first_inode || size > VALUE_BYTES_MAX {
            return Err(wrong("inode or size of a value", u64::from(number)).within(place()));
        }
        let inode = self.any_inode(number)?;
        if !inode.is_ea_inode() || inode.size != u64::from(size) {
            return Err(wrong("flags or size of the inode of a value", inode.size).within(place()));
        }
        let mut value = vec![0; index(size.into())?];
        self.read_blocks(&inode, 0, &mut value).within(place)?;
        // The checksum is kept in place of the access time. Lustre, which came first, points back at the owner.
        let (found, computed) = (inode.raw.atime.get(), crc32c(self.sb.csum_seed, &value));
        let points_back =
            inode.raw.mtime.get() == owner.number && inode.raw.generation.get() == owner.raw.generation.get();
        if !sum_holds(found, computed) && !points_back {
            return Err(Ext4Fault::Checksum { what: "the value", found, computed }.into()).within(place);
        }
        Ok(value)
    }
}

/// Visits the attributes behind the inode's fixed fields.
fn in_inode(
    inode: &Inode,
    visit: &mut dyn FnMut(Stored<'_>) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    // Without fixed fields beyond the first 128 bytes nothing says where attributes would start.
    if inode.fixed <= super::layout::OLD_INODE_BYTES {
        return Ok(ControlFlow::Continue(()));
    }
    let room = inode.bytes.get(inode.fixed..).unwrap_or_default();
    let Some(magic) = room.first_chunk::<4>() else { return Ok(ControlFlow::Continue(())) };
    if u32::from_le_bytes(*magic) != XATTR_MAGIC {
        return Ok(ControlFlow::Continue(()));
    }
    // Values count from the first entry here, from the start of the block there.
    entries(room, 4, 4, visit)
}

/// Visits the entries from `first` on, with values at `base` and up.
fn entries(
    room: &[u8],
    first: usize,
    base: usize,
    visit: &mut dyn FnMut(Stored<'_>) -> Result<ControlFlow<()>>,
) -> Result<ControlFlow<()>> {
    let mut at = first;
    // Each entry takes 16 bytes or more, so this ends with the room. Four zero bytes end it before.
    while room.get(at..).and_then(|r| r.first_chunk::<4>()).is_some_and(|word| *word != [0; 4]) {
        let raw = take::<RawXattr>(room, at, "attribute entry")?;
        let name_at = at.saturating_add(size_of::<RawXattr>());
        let name = part(room, name_at, raw.name_len.into(), "attribute name")?;
        let size = raw.value_size.get();
        let value = if raw.value_inum.get() != 0 {
            Value::Inode(raw.value_inum.get(), size)
        } else if size == 0 {
            Value::Here(&[])
        } else {
            let value_at = base.saturating_add(usize::from(raw.value_offs.get()));
            Value::Here(part(room, value_at, index(size.into())?, "attribute value")?)
        };
        if visit(Stored { name_index: raw.name_index, name, value })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let padded = usize::from(raw.name_len).saturating_add(3) & !3;
        at = name_at.saturating_add(padded);
    }
    Ok(ControlFlow::Continue(()))
}
