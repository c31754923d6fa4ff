//! Extended attributes set and removed: the fork is built anew from all of them, and gets the room in the inode that
//! it needs.

use std::sync::Arc;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{index, len64, part_mut};

use crate::filesystem::{NodeKind, Time};

use super::super::attr::{ACLS, Attr, AttrFlags};
use super::super::bmap::Mapping;
use super::super::fault::Fault;
use super::super::inode::{CORE_BYTES, ForkFormat, ForkKind, Inode};
use super::super::layout::{RawBmbtRec, RawBmdrBlock};
use super::super::units::{FileBlock, InodeNo};
use super::Edit;
use super::attrs::{big_counts, short};
use super::bmbt::Bmbt;
use super::fork::Site;
use super::shortdir::ShortDir;

/// Longest name, without its prefix.
const NAME_MAX: usize = 255;
/// Entries of the longest access control list.
const ACL_ENTRIES_MAX: usize = ((64 << 10) - 4) / 12;
/// `di_forkoff` counts in units of so many bytes.
const UNIT: usize = 8;
/// Bytes that the kernel leaves to the root of a data fork's extent tree at least, and to that of an attribute fork.
const DATA_MIN: usize = 56;
const ATTR_MIN: usize = 40;
/// Bytes of the data fork beside attributes that lie elsewhere.
const DATA_DEFAULT: usize = 200;
/// Blocks for the trees over the attributes, and for a target or extents that have to leave the inode.
const MORE_BLOCKS: u64 = 24;

fn refuse<T>(what: &'static str) -> Result<T> {
    Err(Fault::Unsupported { what }.into())
}

/// How an attribute of the kernel's name `name` is stored: its flags and name.
fn stored_name(name: &[u8]) -> Result<(AttrFlags, Vec<u8>)> {
    if let Some((own, _)) = ACLS.iter().find(|(_, shown)| *shown == name) {
        return Ok((AttrFlags::ROOT, own.to_vec()));
    }
    let prefixes: [(&[u8], AttrFlags); 3] =
        [(b"user.", AttrFlags::empty()), (b"trusted.", AttrFlags::ROOT), (b"security.", AttrFlags::SECURE)];
    for (prefix, flags) in prefixes {
        let Some(rest) = name.strip_prefix(prefix) else { continue };
        if flags == AttrFlags::ROOT && ACLS.iter().any(|(own, _)| *own == rest) {
            return refuse("an access control list under the name that it is stored under");
        }
        if rest.is_empty() || rest.len() > NAME_MAX {
            return refuse("so long a name of an attribute");
        }
        return Ok((flags, rest.to_vec()));
    }
    refuse("an attribute of this name")
}

/// An access control list as it is stored: a count, then tag, id and permissions of each entry, big-endian.
fn stored_acl(shown: &[u8]) -> Result<Vec<u8>> {
    let (entries, _) = shown.get(4..).unwrap_or_default().as_chunks::<8>();
    if entries.len() > ACL_ENTRIES_MAX {
        return refuse("so long an access control list");
    }
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let mut stored = count.to_be_bytes().to_vec();
    for [t0, t1, p0, p1, i0, i1, i2, i3] in entries {
        stored.extend(u32::from(u16::from_le_bytes([*t0, *t1])).to_be_bytes());
        stored.extend(u32::from_le_bytes([*i0, *i1, *i2, *i3]).to_be_bytes());
        stored.extend(u16::from_le_bytes([*p0, *p1]).to_be_bytes());
        stored.extend([0, 0]);
    }
    Ok(stored)
}

impl Edit {
    /// Sets, or with `None` removes, an extended attribute.
    pub(in super::super) fn set_xattr(
        &mut self,
        ino: InodeNo,
        name: &[u8],
        value: Option<&[u8]>,
        now: Time,
    ) -> Result<()> {
        let (flags, own) = stored_name(name)?;
        let is_list = ACLS.iter().any(|(_, shown)| *shown == name);
        let value = match value {
            Some(value) if is_list => Some(stored_acl(value)?),
            other => other.map(<[u8]>::to_vec),
        };
        let node = self.inode(ino)?;
        let mut attrs = self.volume.stored_attrs(&node)?;
        let found = attrs.iter().position(|attr| attr.flags == flags && attr.name == own);
        match (found, value) {
            (None, None) => return Ok(()),
            (Some(at), None) => drop(attrs.remove(at)),
            (Some(at), Some(value)) => {
                if let Some(attr) = attrs.get_mut(at) {
                    attr.value = value;
                }
            }
            (None, Some(value)) => attrs.push(Attr { flags, name: own, value }),
        }
        let dir = self.volume.sb.block_size.count(self.volume.sb.dir_block_size.bytes());
        self.reserve(self.attr_blocks(&attrs).saturating_add(dir).saturating_add(MORE_BLOCKS))?;
        self.run(|edit| {
            let mut node = node;
            edit.rewrite_attrs(&mut node, &attrs)?;
            node.touch(&edit.volume, false, now)?;
            node.store(&edit.volume).map(drop)
        })
        .within(|| format!("changing attributes of inode {}", ino.0))
    }

    /// Blocks that attributes may take at most, inner blocks of their tree aside.
    pub(super) fn attr_blocks(&self, attrs: &[Attr]) -> u64 {
        let bytes = self.volume.sb.block_size.bytes();
        let need = attrs.iter().map(|a| len64(a.name.len()).saturating_add(len64(a.value.len())));
        let need = need.map(|n| n.saturating_add(80).saturating_mul(2)).fold(bytes, u64::saturating_add);
        need.div_ceil(bytes)
    }

    /// Gives an inode these attributes and no others. It is not yet written.
    pub(super) fn rewrite_attrs(&mut self, node: &mut Inode, attrs: &[Attr]) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        if let Some(fork) = node.attr {
            let freed = match fork.format {
                ForkFormat::Local => 0,
                _ => self.release_fork(node, ForkKind::Attr)?,
            };
            node.count_blocks(0, freed)?;
        }
        if attrs.is_empty() && node.data.format != ForkFormat::Btree {
            return self.refit(node, 0);
        }
        let need = short(attrs).map(|bytes| bytes.len());
        let fits = |room: usize| need.is_none_or(|need| need <= room);
        if !node.attr.is_some_and(|fork| fits(fork.room)) {
            let room = self.data_room(node, need);
            match room {
                Some(room) => self.refit(node, room)?,
                None if node.attr.is_some() => {}
                None => {
                    self.evict(node)?;
                }
            }
        }
        let Some(fork) = node.attr else {
            return Err(Fault::Structure { what: "attributes", why: "no fork for them" }.into());
        };
        let site = Site { ino: node.ino, kind: ForkKind::Attr, room: fork.room, big: big_counts(node) };
        let (built, more) = self.build_attrs(site, attrs)?;
        node.set_fork(ForkKind::Attr, &built)?;
        node.count_blocks(more, 0)?;
        self.attr_bit = true;
        node.reparse(&volume)
    }

    /// How much room in the inode the data fork gets beside attributes that take `need` bytes there, or lie
    /// elsewhere. Nothing if the data has to go first, or if what is there can stay.
    fn data_room(&self, node: &Inode, need: Option<usize>) -> Option<usize> {
        let all = node.bytes.len().saturating_sub(CORE_BYTES);
        let used = node.used_room().next_multiple_of(UNIT);
        let dev = node.data.format == ForkFormat::Dev;
        let least = if dev { UNIT } else { used.max(DATA_MIN) };
        let most = all.saturating_sub(ATTR_MIN);
        // The kernel's rule: as much as the attributes leave.
        if let Some(room) = need.and_then(|need| all.checked_sub(need)) {
            let room = room.saturating_sub(room.checked_rem(UNIT).unwrap_or(0)).min(most);
            if dev && room >= UNIT {
                return Some(UNIT);
            }
            let grows = node.attr.is_some() && room > node.data.room;
            if room >= least && !grows {
                return Some(room);
            }
        }
        if node.attr.is_some() {
            return None;
        }
        if dev {
            return Some(UNIT);
        }
        Some(least.max(DATA_DEFAULT.min(most))).filter(|room| *room <= most)
    }

    /// Moves what the data fork has in the inode elsewhere, as far as it can, to make room for attributes.
    fn evict(&mut self, node: &mut Inode) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        match (node.data.format, node.kind) {
            (ForkFormat::Local, NodeKind::Dir) => {
                let short = ShortDir::parse(node, &volume.sb)?;
                self.short_to_block(node, &short)?;
                self.refit(node, DATA_DEFAULT)
            }
            (ForkFormat::Local, _) => {
                let target = node.local()?.to_vec();
                self.put_target(node, &target)?;
                self.refit(node, DATA_DEFAULT)
            }
            _ => self.refit(node, DATA_DEFAULT),
        }
    }

    /// Gives the data fork another room in the inode: 0 is all of it. What attributes were there are gone.
    fn refit(&mut self, node: &mut Inode, room: usize) -> Result<()> {
        let volume = Arc::clone(&self.volume);
        let all = node.bytes.len().saturating_sub(CORE_BYTES);
        let data = if room == 0 { all } else { room };
        let mut extents = None;
        match node.data.format {
            ForkFormat::Btree => {
                let at = node.data.at;
                let (bytes, gained) = Bmbt::open(self, node, ForkKind::Data)?.refit(data)?;
                part_mut(&mut node.bytes, at, data, "fork")?.copy_from_slice(&bytes);
                node.count_blocks(gained, 0)?;
            }
            ForkFormat::Extents if node.used_room() > data => {
                let list = volume.mappings(node, ForkKind::Data, FileBlock(0))?;
                extents = Some(list.collect::<Result<Vec<Mapping>>>()?);
                node.put_nothing()?;
            }
            ForkFormat::Extents | ForkFormat::Local | ForkFormat::Dev => {}
        }
        let behind = CORE_BYTES.saturating_add(data);
        node.bytes.get_mut(behind..).unwrap_or_default().fill(0);
        node.count_extents(ForkKind::Attr, 0)?;
        let core = node.core()?;
        core.di_aformat = super::node::FORMAT_EXTENTS;
        core.di_forkoff = u8::try_from(room.checked_div(UNIT).unwrap_or(0)).unwrap_or(u8::MAX);
        node.reparse(&volume)?;
        match extents {
            Some(list) => self.put_extents(node, ForkKind::Data, &list, 0),
            None => Ok(()),
        }
    }
}

impl Inode {
    /// Bytes of the inode that the data fork needs.
    fn used_room(&self) -> usize {
        let extents = usize::try_from(self.data.extents).unwrap_or(usize::MAX);
        match self.data.format {
            ForkFormat::Dev => UNIT,
            ForkFormat::Local => index(self.size).unwrap_or(usize::MAX),
            ForkFormat::Extents => extents.saturating_mul(size_of::<RawBmbtRec>()),
            ForkFormat::Btree => {
                let root = self.fork_bytes(&self.data).and_then(|b| racker_formats::wire::take(b, 0, "root"));
                let count = root.map_or(0, |root: RawBmdrBlock| usize::from(root.bb_numrecs.get()));
                count.saturating_mul(16).saturating_add(size_of::<RawBmdrBlock>())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_spaces() {
        assert_eq!(stored_name(b"user.a").unwrap(), (AttrFlags::empty(), b"a".to_vec()));
        assert_eq!(stored_name(b"security.x").unwrap(), (AttrFlags::SECURE, b"x".to_vec()));
        let list = stored_name(b"system.posix_acl_access").unwrap();
        assert_eq!(list, (AttrFlags::ROOT, b"SGI_ACL_FILE".to_vec()));
        assert!(stored_name(b"trusted.SGI_ACL_FILE").is_err() && stored_name(b"system.x").is_err());
    }

    #[test]
    fn lists_are_stored_as_the_kernel_does() {
        let shown = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xe8, 3, 0, 0];
        let stored = stored_acl(&shown).unwrap();
        assert_eq!(stored[..16], [0, 0, 0, 2, 0, 0, 0, 1, 255, 255, 255, 255, 0, 6, 0, 0]);
        assert_eq!(stored[16..], [0, 0, 0, 2, 0, 0, 3, 0xe8, 0, 4, 0, 0]);
    }
}
