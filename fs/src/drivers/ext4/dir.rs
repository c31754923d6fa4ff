//! Directories: blocks of entries, read in order. The blocks of an index (htree) look like blocks of one unused
//! entry, so reading all blocks in order finds every entry of an indexed directory too.

use std::ops::ControlFlow;

use racker_formats::error::{Result, Within};
use racker_formats::wire::{part, sum_holds, take};

use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::features::Incompat;
use super::inode::Inode;
use super::layout::{DIR_TAIL_BYTES, DIR_TAIL_TYPE, RawDirEntry, inode_flags};
use super::map::Mapping;
use super::volume::Ext4;
use crate::filesystem::NodeKind;

/// Bytes of the shortest entry: a head of 8 and a name of up to 4.
const ENTRY_BYTES_MIN: usize = 12;

/// An entry that is in use.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) name: &'a [u8],
    pub(super) kind: Option<NodeKind>,
}

/// Called for each entry; answers whether to go on.
pub(super) type VisitEntry<'a> = dyn FnMut(Entry<'_>) -> Result<ControlFlow<()>> + 'a;

impl Ext4 {
    /// Visits the entries of a directory as stored, `.` and `..` left out.
    pub(super) fn stored_entries(&self, dir: &Inode, visit: &mut VisitEntry<'_>) -> Result<()> {
        if dir.has(inode_flags::INLINE_DATA) {
            for (number, stretch) in (0u64..).zip(self.inline_dir(dir)?) {
                if self.entries(number, &stretch, visit)?.is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let is_long = dir.size > self.sb.block_size.bytes();
        self.runs(dir, &mut |first, run| {
            let Mapping::Data(start) = run.to else { return Err(Ext4Fault::DirHole(first).into()) };
            for step in 0..run.len {
                let (number, at) = (first.saturating_add(step), start.saturating_add(step));
                if is_long {
                    self.claims.claim(at, dir.number.into(), number)?;
                }
                let block = self.block("a directory", at)?;
                self.check_dir_block(dir, number, &block).within(|| format!("block {number}"))?;
                if self.entries(number, &block, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Visits the entries of one block.
    fn entries(&self, number: u64, block: &[u8], visit: &mut VisitEntry<'_>) -> Result<ControlFlow<()>> {
        let has_kinds = self.sb.features.incompat.contains(Incompat::FILETYPE);
        let mut at = 0usize;
        while at < block.len() {
            let raw = take::<RawDirEntry>(block, at, "directory entry")?;
            let wrong = |what, found: u64| Ext4Fault::DirEntry { block: number, at, what, found };
            let len = self.entry_len(raw.rec_len.get());
            let need = (usize::from(raw.name_len).saturating_add(11) & !3).max(ENTRY_BYTES_MIN);
            let end = at.saturating_add(len);
            if len < need || !len.is_multiple_of(4) || end > block.len() {
                return Err(wrong("length", raw.rec_len.get().into()).into());
            }
            let inode = raw.inode.get();
            if inode > self.sb.inodes {
                return Err(wrong("inode", inode.into()).into());
            }
            let name = part(block, at.saturating_add(8), raw.name_len.into(), "directory entry")?;
            if inode != 0 && name != b"." && name != b".." {
                let kind = if has_kinds { NodeKind::from_entry_type(raw.file_type) } else { None };
                if visit(Entry { inode, name, kind })?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            at = end;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The length of an entry: blocks of 64 KiB do not fit into 16 bits and have two ways to say so.
    pub(super) fn entry_len(&self, rec_len: u16) -> usize {
        let len = usize::from(rec_len);
        match usize::try_from(self.sb.block_size.bytes()) {
            Ok(block) if block >= 65536 => match len {
                0 | 65535 => block,
                _ => (len & 65532) | ((len & 3) << 16),
            },
            _ => len,
        }
    }

    /// Verifies the checksum of a directory block, in the last entry or, in an index, behind its table.
    pub(super) fn check_dir_block(&self, dir: &Inode, number: u64, block: &[u8]) -> Result<()> {
        if !self.sb.features.has_metadata_csum() {
            return Ok(());
        }
        if let Some(table) = self.index_table(dir, number, block)? {
            return check_index(dir, block, table);
        }
        let tail = block.len().saturating_sub(DIR_TAIL_BYTES);
        let last = take::<RawDirEntry>(block, tail, "directory entry")?;
        let is_tail = last.inode.get() == 0
            && usize::from(last.rec_len.get()) == DIR_TAIL_BYTES
            && last.name_len == 0
            && last.file_type == DIR_TAIL_TYPE;
        if !is_tail {
            let found = last.rec_len.get().into();
            return Err(Ext4Fault::DirEntry { block: number, at: tail, what: "checksum entry", found }.into());
        }
        let found = u32::from_le_bytes(take(block, tail.saturating_add(8), "directory checksum")?);
        compare(found, crc32c(dir.csum_seed, part(block, 0, tail, "directory block")?))
    }

    /// Where the table of an index block starts; `None` for a block of entries.
    pub(super) fn index_table(&self, dir: &Inode, number: u64, block: &[u8]) -> Result<Option<usize>> {
        if !dir.has(inode_flags::INDEX) {
            return Ok(None);
        }
        let first = take::<RawDirEntry>(block, 0, "directory entry")?;
        if number == 0 {
            // Behind `.`, `..` and the eight bytes of the root's description.
            return Ok(Some(32));
        }
        let whole = self.entry_len(first.rec_len.get()) == block.len();
        Ok((first.inode.get() == 0 && whole).then_some(8))
    }
}

/// Verifies an index block whose table starts at byte `table`.
fn check_index(dir: &Inode, block: &[u8], table: usize) -> Result<()> {
    let word = |at: usize| take::<[u8; 2]>(block, at, "directory index").map(u16::from_le_bytes);
    let (limit, count) = (word(table)?, word(table.saturating_add(2))?);
    let end = |entries: u16| table.saturating_add(usize::from(entries).saturating_mul(8));
    if count > limit {
        return Err(
            Ext4Fault::DirEntry { block: 0, at: table, what: "index count", found: count.into() }.into()
        );
    }
    let used = part(block, 0, end(count), "directory index")?;
    let tail = part(block, end(limit), 8, "checksum of a directory index")?;
    let (reserved, stored) = tail.split_at(4);
    let computed = crc32c(crc32c(crc32c(dir.csum_seed, used), reserved), &[0; 4]);
    compare(u32::from_le_bytes(take(stored, 0, "directory checksum")?), computed)
}

fn compare(found: u32, computed: u32) -> Result<()> {
    if sum_holds(found, computed) {
        return Ok(());
    }
    Err(Ext4Fault::Checksum { what: "the directory block", found, computed }.into())
}
