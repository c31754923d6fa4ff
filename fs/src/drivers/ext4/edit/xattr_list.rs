//! Lists of extended attributes: taken apart, put together, with their hashes.

use racker_formats::error::Result;
use racker_formats::wire::{index, len64, part, take};
use zerocopy::IntoBytes;

use super::super::fault::Ext4Fault;
use super::super::layout::{RawXattr, RawXattrHeader, XATTR_MAGIC};
use super::Edit;
use super::bytes::put;
use super::node::Node;

/// The name index of what the filesystem keeps for itself.
pub(super) const SYSTEM: u8 = 7;
/// Bytes of the fixed part of an entry.
const ENTRY: usize = size_of::<RawXattr>();
/// Bytes of the four zeroes that end a list.
const END: usize = 4;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Here(Vec<u8>),
    /// In an inode of its own: number, bytes, and the entry's hash.
    Inode {
        number: u32,
        size: u32,
        hash: u32,
    },
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub(super) index: u8,
    pub(super) name: Vec<u8>,
    pub(super) value: Value,
}

fn padded(len: usize) -> usize {
    len.saturating_add(3) & !3
}

impl Attr {
    /// Bytes that it takes: entry and value.
    fn bytes(&self) -> usize {
        let value = match &self.value {
            Value::Here(value) => padded(value.len()),
            Value::Inode { .. } => 0,
        };
        ENTRY.saturating_add(padded(self.name.len())).saturating_add(value)
    }

    fn hash(&self) -> u32 {
        match &self.value {
            Value::Inode { hash, .. } => *hash,
            Value::Here(value) => {
                let words = value.chunks(4).map(|bytes| {
                    let mut word = [0; 4];
                    for (to, from) in word.iter_mut().zip(bytes) {
                        *to = *from;
                    }
                    u32::from_le_bytes(word)
                });
                entry_hash(&self.name, words)
            }
        }
    }
}

/// The hash of an entry: of its name, then of the words of its value.
pub(super) fn entry_hash(name: &[u8], words: impl Iterator<Item = u32>) -> u32 {
    let of_name = name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    words.fold(of_name, |hash, word| hash.rotate_left(16) ^ word)
}

/// Takes a list apart. Values lie at `base` and up.
fn parse(room: &[u8], first: usize, base: usize) -> Result<Vec<Attr>> {
    let mut list = Vec::new();
    let mut at = first;
    // Each entry takes 16 bytes or more, so this ends with the room.
    while room.get(at..).and_then(|r| r.first_chunk::<4>()).is_some_and(|word| *word != [0; 4]) {
        let raw = take::<RawXattr>(room, at, "attribute entry")?;
        let name_at = at.saturating_add(ENTRY);
        let name = part(room, name_at, raw.name_len.into(), "attribute name")?.to_vec();
        let size = raw.value_size.get();
        let value = if raw.value_inum.get() != 0 {
            Value::Inode { number: raw.value_inum.get(), size, hash: raw.hash.get() }
        } else {
            let value_at = base.saturating_add(usize::from(raw.value_offs.get()));
            let len = index(size.into())?;
            Value::Here(if len == 0 { Vec::new() } else { part(room, value_at, len, "value")?.to_vec() })
        };
        list.push(Attr { index: raw.name_index, name, value });
        at = name_at.saturating_add(padded(raw.name_len.into()));
    }
    Ok(list)
}

/// Whether a list fits into so many bytes.
fn fits(list: &[Attr], room: usize) -> bool {
    let need = list.iter().map(Attr::bytes).fold(END, usize::saturating_add);
    need <= room
}

/// Puts a list together, entries from `first` on, values from the end down; `hashed` if entries have hashes.
fn build(room: &mut [u8], list: &[Attr], first: usize, base: usize, hashed: bool) -> Result<()> {
    let (mut at, mut end) = (first, room.len());
    for attr in list {
        let (inum, size, offs) = match &attr.value {
            Value::Inode { number, size, .. } => (*number, *size, 0),
            Value::Here(value) if value.is_empty() => (0, 0, 0),
            Value::Here(value) => {
                end = end.saturating_sub(padded(value.len()));
                put(room, end, value)?;
                (0, u32::try_from(value.len()).unwrap_or(u32::MAX), end.saturating_sub(base))
            }
        };
        let raw = RawXattr {
            name_len: u8::try_from(attr.name.len()).unwrap_or(u8::MAX),
            name_index: attr.index,
            value_offs: u16::try_from(offs).unwrap_or(u16::MAX).into(),
            value_inum: inum.into(),
            value_size: size.into(),
            hash: if hashed || inum != 0 { attr.hash() } else { 0 }.into(),
        };
        put(room, at, raw.as_bytes())?;
        put(room, at.saturating_add(ENTRY), &attr.name)?;
        at = at.saturating_add(ENTRY).saturating_add(padded(attr.name.len()));
    }
    if at.saturating_add(END) > end {
        return Err(Ext4Fault::NoRoom("the extended attributes").into());
    }
    Ok(())
}

/// The attributes of a block.
pub(super) fn parse_block(block: &[u8]) -> Result<Vec<Attr>> {
    parse(block, size_of::<RawXattrHeader>(), 0)
}

/// Whether a list fits into a block.
pub(super) fn fits_block(list: &[Attr], size: u64) -> bool {
    index(size).is_ok_and(|size| fits(list, size.saturating_sub(size_of::<RawXattrHeader>())))
}

/// A block of attributes that one node refers to, without its checksum.
pub(super) fn build_block(list: &[Attr], size: u64) -> Result<Vec<u8>> {
    let mut sorted = list.to_vec();
    sorted.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    let mut block = vec![0; index(size)?];
    build(&mut block, &sorted, size_of::<RawXattrHeader>(), 0, true)?;
    let hashes: Vec<u32> = sorted.iter().map(Attr::hash).collect();
    let all = hashes.iter().fold(0u32, |all, hash| all.rotate_left(16) ^ hash);
    let head = RawXattrHeader {
        magic: XATTR_MAGIC.into(),
        refcount: 1.into(),
        blocks: 1.into(),
        // One without a hash makes the block one that is not shared.
        hash: if hashes.contains(&0) { 0 } else { all }.into(),
        checksum: 0.into(),
        reserved: [0.into(); 3],
    };
    put(&mut block, 0, head.as_bytes())?;
    Ok(block)
}

impl Edit {
    /// Bytes for attributes in an inode, their magic number left out.
    fn inode_room(node: &Node) -> usize {
        if node.fixed <= super::super::layout::OLD_INODE_BYTES {
            return 0;
        }
        node.bytes.len().saturating_sub(node.fixed).saturating_sub(4)
    }

    /// Whether a list fits into an inode.
    pub(super) fn fits_inode(node: &Node, list: &[Attr]) -> bool {
        list.is_empty() || fits(list, Self::inode_room(node))
    }

    /// The attributes in an inode.
    pub(super) fn inode_attrs(&self, node: &Node) -> Result<Vec<Attr>> {
        if Self::inode_room(node) == 0 {
            return Ok(Vec::new());
        }
        let room = node.bytes.get(node.fixed..).unwrap_or_default();
        match room.first_chunk::<4>() {
            Some(magic) if u32::from_le_bytes(*magic) == XATTR_MAGIC => parse(room, 4, 4),
            _ => Ok(Vec::new()),
        }
    }

    /// Puts attributes into an inode.
    pub(super) fn put_inode_attrs(&self, node: &mut Node, list: &[Attr]) -> Result<()> {
        let fixed = node.fixed;
        let room = node.bytes.get_mut(fixed..).unwrap_or_default();
        if list.is_empty() {
            room.fill(0);
            return Ok(());
        }
        let mut new = vec![0; room.len()];
        put(&mut new, 0, &XATTR_MAGIC.to_le_bytes())?;
        build(&mut new, list, 4, 4, false)?;
        debug_assert_eq!(len64(new.len()), len64(room.len()));
        room.copy_from_slice(&new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_and_are_sorted() {
        let here = |index, name: &[u8], value: &[u8]| Attr {
            index,
            name: name.to_vec(),
            value: Value::Here(value.to_vec()),
        };
        let held = Attr {
            index: 1,
            name: b"big".to_vec(),
            value: Value::Inode { number: 12, size: 70_000, hash: 5 },
        };
        let list = [here(6, b"selinux", b"a:b:c\0"), here(1, b"zz", b""), held.clone(), here(1, b"a", b"1")];
        let block = build_block(&list, 1024).unwrap();
        let back = parse_block(&block).unwrap();
        assert_eq!(back, [list[3].clone(), list[1].clone(), held, list[0].clone()]);
        assert!(fits_block(&list, 1024));
        assert!(!fits_block(&[here(1, b"a", &[1; 970])], 1024));
        assert!(fits_block(&[here(1, b"a", &[1; 968])], 1024));
        build_block(&[here(1, b"a", &[1; 968])], 1024).unwrap();
    }
}
