//! The entries of a block of a directory, and what they name.

use racker_formats::error::Result;
use racker_formats::wire::{len64, part, take};

use super::super::fault::Ext4Fault;
use super::super::features::Incompat;
use super::super::layout::{RawDirEntry, inode_flags};
use super::super::volume::ROOT_INODE;
use super::Checker;
use super::dirs::Reading;
use super::htree::Leaves;
use crate::filesystem::NodeKind;

/// Bytes of the shortest entry.
const ENTRY_MIN: usize = 12;
/// Bytes of the shortest name that is encrypted.
const ENCRYPTED_MIN: usize = 16;

/// An entry in use.
#[derive(Clone, Copy)]
struct Entry<'a> {
    inode: u32,
    name: &'a [u8],
    file_type: u8,
}

impl Checker<'_> {
    /// Goes through the entries of one block, or stretch. `range` is that of the hashes that its names may have.
    pub(super) fn check_entries(
        &mut self,
        dir: &mut Reading<'_>,
        block: u64,
        bytes: &[u8],
        range: Option<((u32, u32), &Leaves)>,
    ) -> Result<()> {
        let mut at = 0usize;
        // Each entry takes 12 bytes or more, so this ends.
        while at < bytes.len() {
            let raw = take::<RawDirEntry>(bytes, at, "directory entry")?;
            let wrong = |what, found: u64| Ext4Fault::DirEntry { block, at, what, found };
            let len = self.fs.entry_len(raw.rec_len.get());
            let has_types = self.fs.sb.features.incompat.contains(Incompat::FILETYPE);
            let end = at.saturating_add(len);
            let name_len = usize::from(raw.name_len);
            if len < ENTRY_MIN
                || !len.is_multiple_of(4)
                || end > bytes.len()
                || name_len.saturating_add(8) > len
            {
                return Err(wrong("length", len64(len)).into());
            }
            if !has_types && raw.file_type != 0 && raw.inode.get() != 0 {
                return Err(
                    wrong("length of the name", u64::from(raw.file_type) << 8 | len64(name_len)).into()
                );
            }
            let name = part(bytes, at.saturating_add(8), name_len, "directory entry")?;
            let entry = Entry { inode: raw.inode.get(), name, file_type: raw.file_type };
            if block == 0 && dir.dots > 0 {
                self.check_dot(dir, entry, len)?;
            } else if entry.inode != 0 {
                self.check_entry(dir, entry)?;
                if let Some(((low, high), leaves)) = range {
                    let hash = leaves.hash(name);
                    if hash.is_some_and(|hash| hash < low || hash > high) {
                        let what =
                            format!("{:?} is not where its hash belongs", String::from_utf8_lossy(name));
                        self.tell(dir, what)?;
                    }
                }
            }
            at = end;
        }
        if block == 0 && dir.dots > 0 {
            self.tell(dir, "it has no \"..\"".into())?;
        }
        Ok(())
    }

    fn tell(&mut self, dir: &Reading<'_>, what: String) -> Result<()> {
        self.finds.corrupt(format!("directory inode {}: {what}", dir.inode.number))
    }

    /// The first entry is `.`, the second `..`.
    fn check_dot(&mut self, dir: &mut Reading<'_>, entry: Entry<'_>, len: usize) -> Result<()> {
        let own = dir.inode.number;
        let is_first = dir.dots == 2;
        dir.dots = dir.dots.saturating_sub(1);
        let has_types = self.fs.sb.features.incompat.contains(Incompat::FILETYPE);
        let is_dir = !has_types || entry.file_type == NodeKind::Dir.entry_type();
        if is_first {
            if entry.inode != own || entry.name != b"." || !is_dir || len != ENTRY_MIN {
                self.tell(dir, "its first entry is not \".\"".into())?;
            }
            self.notes.get_mut(own)?.name(true);
            return Ok(());
        }
        if entry.name != b".." || !is_dir {
            return self.tell(dir, "its second entry is not \"..\"".into());
        }
        dir.up = entry.inode;
        self.count_up(own, entry.inode)
    }

    /// Counts what a directory's `..` names.
    pub(super) fn count_up(&mut self, number: u32, up: u32) -> Result<()> {
        if up == 0 || up > self.fs.sb.inodes || !self.notes.get(up).is_used() {
            return self.finds.corrupt(format!("directory inode {number}: its \"..\" names inode {up}"));
        }
        self.notes.get_mut(up)?.name(true);
        Ok(())
    }

    fn check_entry(&mut self, dir: &mut Reading<'_>, entry: Entry<'_>) -> Result<()> {
        let shown = String::from_utf8_lossy(entry.name).into_owned();
        let number = entry.inode;
        let encrypted = dir.inode.has(inode_flags::ENCRYPT);
        let is_bad = entry.name.is_empty()
            || entry.name == b"."
            || entry.name == b".."
            || (!encrypted && entry.name.iter().any(|b| *b == 0 || *b == b'/'))
            || (encrypted && entry.name.len() < ENCRYPTED_MIN);
        if is_bad {
            self.tell(dir, format!("{shown:?} is no name"))?;
        }
        if !encrypted && !self.fs.sb.takes(dir.inode.raw.flags.get(), entry.name) {
            self.tell(dir, format!("{shown:?} is not in UTF-8, as all names in it"))?;
        }
        if !dir.names.insert(entry.name) {
            self.tell(dir, format!("the name {shown:?} is there twice"))?;
        }
        if number > self.fs.sb.inodes || number < self.fs.sb.first_inode {
            let what = if number == ROOT_INODE { "the root" } else { "an inode that is none for files" };
            return self.tell(dir, format!("{shown:?} names {what}, inode {number}"));
        }
        let note = self.notes.get(number);
        if !note.is_used() || note.links == 0 {
            return self.tell(dir, format!("{shown:?} names inode {number}, which is not in use"));
        }
        if note.is_value() {
            return self.tell(dir, format!("{shown:?} names inode {number}, which holds an attribute"));
        }
        if note.is_bad() {
            self.notes.get_mut(number)?.name(false);
        } else {
            self.check_target(dir, entry, &shown)?;
        }
        Ok(())
    }

    /// What an entry names is of the kind that it says, and has it as its only name if it is a directory.
    fn check_target(&mut self, dir: &Reading<'_>, entry: Entry<'_>, shown: &str) -> Result<()> {
        let number = entry.inode;
        let note = self.notes.get(number);
        let kind = note.kind();
        let has_types = self.fs.sb.features.incompat.contains(Incompat::FILETYPE);
        if has_types && entry.file_type & 7 != kind.map_or(0, NodeKind::entry_type) || entry.file_type > 7 {
            self.tell(dir, format!("{shown:?} has type {}, its inode {number} another", entry.file_type))?;
        }
        if dir.inode.has(inode_flags::ENCRYPT) {
            let can = matches!(kind, Some(NodeKind::File | NodeKind::Dir | NodeKind::Link));
            let of = |inode: u32| self.policy_of.get(&inode);
            if can && !note.is_encrypted() {
                self.tell(dir, format!("{shown:?} is not encrypted, as its directory is"))?;
            } else if can && of(number) != of(dir.inode.number) {
                self.tell(dir, format!("{shown:?} is encrypted in another way than its directory"))?;
            }
        }
        let is_first = self.notes.get_mut(number)?.name(false);
        if kind != Some(NodeKind::Dir) {
            return Ok(());
        }
        if !is_first {
            return self.tell(dir, format!("{shown:?} is directory inode {number}, which has another name"));
        }
        let found = self.dirs.binary_search_by_key(&number, |dir| dir.number);
        if let Some(target) = found.ok().and_then(|at| self.dirs.get_mut(at)) {
            target.parent = dir.inode.number;
        }
        Ok(())
    }
}
