//! The journal (jbd2): its superblock, its log as a ring of blocks, and what its control blocks say.
//!
//! A transaction is a row of descriptor blocks, each followed by the blocks it describes, and revoke blocks, closed
//! by a commit block. All of them carry the transaction's number, and numbers ascend by one; the log ends where the
//! next number is not found.

use std::ops::ControlFlow;

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{bytes, index, sum_holds, take};
use zerocopy::IntoBytes;

use super::csum::crc32c;
use super::fault::Ext4Fault;
use super::inode::Inode;
use super::layout::{
    JOURNAL_CHECKSUM_AT, JOURNAL_MAGIC, RawJournalHeader, RawJournalSuperblock, RawTag, RawTag3,
    journal_block, tag_flags,
};
use super::map::Mapping;
use super::volume::Ext4;
use crate::filesystem::NodeKind;

/// Journal features. All are understood; every other bit is refused.
const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3f;
const COMPAT_CHECKSUM: u32 = 0x1;
/// The only kind of checksum that versions 2 and 3 have: crc32c.
const CHECKSUM_CRC32C: u8 = 4;
/// Blocks of the fast commit area if the superblock does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// Bytes of a superblock of version 1.
const V1_BYTES: usize = 36;
/// Blocks that the area must leave to the log.
const LOG_BLOCKS_MIN: u32 = 1024;

/// How a log is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checksums {
    None,
    /// One over a whole transaction, in its commit block.
    V1,
    /// One for each block, 16 bits of it in the tags.
    V2,
    /// One for each block.
    V3,
}

/// An opened journal.
#[derive(Debug)]
pub(super) struct Journal<'a> {
    fs: &'a Ext4,
    inode: Inode,
    pub(super) checksums: Checksums,
    /// Block numbers have 64 bits.
    pub(super) wide: bool,
    /// Transactions may have been written without waiting for their blocks before the commit block.
    pub(super) is_async: bool,
    /// The ring: first block and the one behind the last.
    pub(super) first: u32,
    pub(super) end: u32,
    /// Blocks of the fast commit area; empty without the feature.
    pub(super) fast: std::ops::Range<u32>,
    /// Number of the first transaction.
    pub(super) sequence: u32,
    /// Its first block; 0 for an empty log.
    pub(super) start: u32,
    /// Why the kernel gave it up; 0 if it did not.
    pub(super) errno: u32,
    /// Fields are not zero that a superblock of this version does not have.
    pub(super) has_remnants: bool,
    /// Filesystems that it says to be of.
    pub(super) users: u32,
    pub(super) seed: u32,
}

/// A block that a descriptor announces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    /// Its place in the filesystem.
    pub(super) block: u64,
    pub(super) is_escaped: bool,
    pub(super) checksum: u32,
}

/// A place in the ring. It may pass over each block once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    at: u32,
    budget: u32,
}

fn wrong(what: &'static str, found: u64, expected: impl Into<String>) -> racker_formats::Error {
    Ext4Fault::Journal { what, found, expected: expected.into() }.into()
}

impl<'a> Journal<'a> {
    /// Opens the journal in the inode that the superblock names.
    pub(super) fn open(fs: &'a Ext4) -> Result<Self> {
        let number = fs.sb.raw.journal_inum.get();
        if number == 0 {
            let uuid = uuid::Uuid::from_bytes(fs.sb.raw.journal_uuid);
            return Err(Ext4Fault::ExternalJournal(uuid.to_string()).into());
        }
        let inode = fs.any_inode(number)?;
        if inode.links == 0 || inode.kind != Some(NodeKind::File) {
            return Err(wrong("mode of the inode", inode.raw.mode.get().into(), "a regular file"));
        }
        let blocks = inode.size >> fs.sb.block_size.shift();
        let total = u32::try_from(blocks).unwrap_or(u32::MAX);
        let head = read_block(fs, &inode, 0)?;
        Self::parse(fs, inode, total, &head)
    }

    /// Checks the journal's superblock.
    fn parse(fs: &'a Ext4, inode: Inode, total: u32, head: &[u8]) -> Result<Self> {
        let raw = take::<RawJournalSuperblock>(head, 0, "journal superblock")?;
        if raw.header.magic.get() != JOURNAL_MAGIC {
            return Err(wrong("magic", raw.header.magic.get().into(), format!("{JOURNAL_MAGIC}")));
        }
        if u64::from(raw.blocksize.get()) != fs.sb.block_size.bytes() {
            let expected = fs.sb.block_size.bytes().to_string();
            return Err(wrong("block size", raw.blocksize.get().into(), expected));
        }
        let version = raw.header.blocktype.get();
        let is_new = version == journal_block::SUPERBLOCK_V2;
        if !is_new && version != journal_block::SUPERBLOCK_V1 {
            return Err(wrong("superblock version", version.into(), "3 or 4"));
        }
        let (compat, incompat, ro_compat) = match is_new {
            true => (raw.feature_compat.get(), raw.feature_incompat.get(), raw.feature_ro_compat.get()),
            false => (0, 0, 0),
        };
        if incompat & !INCOMPAT_KNOWN != 0 || ro_compat != 0 {
            return Err(Ext4Fault::JournalFeatures(incompat & !INCOMPAT_KNOWN | ro_compat).into());
        }
        let checksums = checksums(compat, incompat)?;
        let seed = crc32c(!0, &raw.uuid);
        if matches!(checksums, Checksums::V2 | Checksums::V3) {
            check_superblock(&raw, head)?;
        }
        let len = raw.maxlen.get();
        if len > total {
            return Err(wrong("length", len.into(), format!("{total} blocks or less")));
        }
        let mut end = len;
        let mut fast = 0..0;
        if incompat & INCOMPAT_FAST_COMMIT != 0 {
            let blocks = match raw.num_fc_blks.get() {
                0 => FAST_COMMIT_BLOCKS,
                n => n,
            };
            end = len.checked_sub(blocks).filter(|log| *log >= LOG_BLOCKS_MIN).unwrap_or(len);
            fast = end.saturating_add(1)..len;
        }
        let later = [raw.feature_compat, raw.feature_incompat, raw.feature_ro_compat, raw.nr_users];
        let (first, start) = (raw.first.get(), raw.start.get());
        if first == 0 || first >= end {
            return Err(wrong("first block", first.into(), format!("1 to {end}")));
        }
        if start != 0 && !(first..end).contains(&start) {
            return Err(wrong("start", start.into(), format!("{first} to {end}")));
        }
        Ok(Self {
            fs,
            inode,
            checksums,
            wide: incompat & INCOMPAT_64BIT != 0,
            is_async: incompat & INCOMPAT_ASYNC_COMMIT != 0,
            first,
            end,
            fast,
            sequence: raw.sequence.get(),
            start,
            errno: raw.errno.get(),
            has_remnants: !is_new && later.iter().any(|field| field.get() != 0),
            users: if is_new { raw.nr_users.get() } else { 0 },
            seed,
        })
    }

    /// The journal's superblock as that of an empty log whose next transaction is `sequence`, and its block.
    pub(super) fn emptied(&self, sequence: u32) -> Result<(u64, Vec<u8>)> {
        self.started(sequence, 0)
    }

    /// The same of a log whose first transaction is `sequence`, at block `start`.
    pub(super) fn started(&self, sequence: u32, start: u32) -> Result<(u64, Vec<u8>)> {
        let Mapping::Data(at) = self.fs.map(&self.inode, 0)?.to else {
            return Err(wrong("a hole at block", 0, "stored blocks"));
        };
        let mut head = self.block(0)?;
        let mut raw = take::<RawJournalSuperblock>(&head, 0, "journal superblock")?;
        (raw.sequence, raw.start, raw.head) = (sequence.into(), start.into(), 0.into());
        if self.has_block_checksums() {
            raw.checksum = 0.into();
            raw.checksum = crc32c(!0, raw.as_bytes()).into();
        }
        for (to, from) in head.iter_mut().zip(raw.as_bytes()) {
            *to = *from;
        }
        Ok((at, head))
    }

    /// The journal's superblock with nothing but the fields that version 1 has, and its block. Who mounts it sets the
    /// features that he wants of an empty log.
    pub(super) fn reduced(&self) -> Result<(u64, Vec<u8>)> {
        let (at, mut head) = self.started(self.sequence, self.start)?;
        head.get_mut(V1_BYTES..).unwrap_or_default().fill(0);
        Ok((at, head))
    }

    /// Where all blocks of the journal lie: stretches of blocks of the filesystem, in the journal's order.
    pub(super) fn stretches(&self) -> Result<Vec<Span>> {
        let mut stretches = Vec::new();
        self.fs.runs(&self.inode, &mut |first, run| match run.to {
            Mapping::Data(block) => {
                stretches.push(Span::new(block, run.len)?);
                Ok(ControlFlow::Continue(()))
            }
            _ => Err(wrong("a hole at block", first, "stored blocks")),
        })?;
        Ok(stretches)
    }

    /// Bytes of one tag in a descriptor block.
    pub(super) fn tag_bytes(&self) -> usize {
        match (self.checksums, self.wide) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        }
    }

    /// A cursor at the first transaction.
    pub(super) fn cursor(&self) -> Cursor {
        Cursor { at: self.start, budget: self.end.saturating_sub(self.first) }
    }

    /// Reads the block at the cursor and moves on. A log in which the cursor comes round is none.
    pub(super) fn next(&self, cursor: &mut Cursor) -> Result<Vec<u8>> {
        let at = cursor.at;
        self.skip(cursor, 1)?;
        self.block(at)
    }

    /// Moves on over `count` blocks.
    pub(super) fn skip(&self, cursor: &mut Cursor, count: u32) -> Result<()> {
        cursor.budget = cursor
            .budget
            .checked_sub(count)
            .ok_or_else(|| wrong("the log", self.end.into(), "an end before it comes round"))?;
        let ahead = cursor.at.saturating_add(count);
        // `count` is no more than the ring, so going back once is enough.
        cursor.at = match ahead.checked_sub(self.end) {
            Some(over) => self.first.saturating_add(over),
            None => ahead,
        };
        Ok(())
    }

    /// Reads block `number` of the journal.
    pub(super) fn block(&self, number: u32) -> Result<Vec<u8>> {
        read_block(self.fs, &self.inode, number).within(|| format!("block {number}"))
    }

    /// The head of a control block, unless it is none.
    pub(super) fn header(block: &[u8]) -> Option<(u32, u32)> {
        let head = take::<RawJournalHeader>(block, 0, "journal block").ok()?;
        (head.magic.get() == JOURNAL_MAGIC).then(|| (head.blocktype.get(), head.sequence.get()))
    }

    /// Whether block checksums are kept.
    pub(super) fn has_block_checksums(&self) -> bool {
        matches!(self.checksums, Checksums::V2 | Checksums::V3)
    }

    /// Bytes of a descriptor or revoke block without the checksum at its end.
    fn usable(&self, block: &[u8]) -> usize {
        if self.has_block_checksums() { block.len().saturating_sub(4) } else { block.len() }
    }

    /// Whether the checksum in the last four bytes of a descriptor or revoke block is right.
    pub(super) fn tail_is_right(&self, block: &[u8]) -> bool {
        if !self.has_block_checksums() {
            return true;
        }
        let Some((body, tail)) = block.split_last_chunk::<4>() else { return false };
        sum_holds(u32::from_be_bytes(*tail), crc32c(crc32c(self.seed, body), &[0; 4]))
    }

    /// The blocks that a descriptor announces, in the order in which they follow it.
    pub(super) fn tags(&self, descriptor: &[u8]) -> Result<Vec<Tag>> {
        let bytes = self.tag_bytes();
        let usable = self.usable(descriptor);
        let mut tags = Vec::new();
        let mut at = size_of::<RawJournalHeader>();
        while at.saturating_add(bytes) <= usable {
            let (tag, flags) = self.tag(descriptor, at)?;
            tags.push(tag);
            if flags & tag_flags::LAST != 0 {
                break;
            }
            let uuid = if flags & tag_flags::SAME_UUID == 0 { 16 } else { 0 };
            at = at.saturating_add(bytes).saturating_add(uuid);
        }
        Ok(tags)
    }

    fn tag(&self, descriptor: &[u8], at: usize) -> Result<(Tag, u32)> {
        // The shortest tag may be the last thing in the block.
        let mut raw = [0u8; 16];
        let have = descriptor.get(at..).unwrap_or_default();
        for (to, from) in raw.iter_mut().zip(have) {
            *to = *from;
        }
        let (lo, hi, flags, checksum) = if self.checksums == Checksums::V3 {
            let t = take::<RawTag3>(&raw, 0, "journal tag")?;
            (t.blocknr.get(), t.blocknr_high.get(), t.flags.get(), t.checksum.get())
        } else {
            let t = take::<RawTag>(&raw, 0, "journal tag")?;
            (t.blocknr.get(), t.blocknr_high.get(), t.flags.get().into(), t.checksum.get().into())
        };
        let hi = if self.wide { u64::from(hi) << 32 } else { 0 };
        let is_escaped = flags & tag_flags::ESCAPE != 0;
        Ok((Tag { block: hi | u64::from(lo), is_escaped, checksum }, flags))
    }

    /// Whether a block of transaction `sequence` has the checksum in its tag.
    pub(super) fn data_is_right(&self, tag: &Tag, sequence: u32, block: &[u8]) -> bool {
        let computed = || crc32c(crc32c(self.seed, &sequence.to_be_bytes()), block);
        match self.checksums {
            Checksums::None | Checksums::V1 => true,
            Checksums::V2 => sum_holds(tag.checksum, computed() & 0xffff),
            Checksums::V3 => sum_holds(tag.checksum, computed()),
        }
    }

    /// The blocks that a revoke block of `count` bytes names.
    pub(super) fn revoked(&self, block: &[u8], count: u32) -> Result<impl Iterator<Item = u64>> {
        let (head, usable) = (size_of::<super::layout::RawRevoke>(), self.usable(block));
        let count = index(count.into())?;
        if count > usable || count < head {
            let expected = format!("{head} to {usable}");
            return Err(wrong("bytes of a revoke block", u64::try_from(count).unwrap_or(0), expected));
        }
        let each = if self.wide { 8 } else { 4 };
        let records = block.get(head..count).unwrap_or_default();
        Ok(records.chunks_exact(each).map(|r| r.iter().fold(0u64, |n, b| n << 8 | u64::from(*b))))
    }
}

fn checksums(compat: u32, incompat: u32) -> Result<Checksums> {
    let v1 = compat & COMPAT_CHECKSUM != 0;
    Ok(match (v1, incompat & INCOMPAT_CSUM_V2 != 0, incompat & INCOMPAT_CSUM_V3 != 0) {
        (false, false, false) => Checksums::None,
        (true, false, false) => Checksums::V1,
        (false, true, false) => Checksums::V2,
        (false, false, true) => Checksums::V3,
        _ => return Err(wrong("checksum versions", 2, "one of them")),
    })
}

/// Verifies the checksum of the journal's superblock.
fn check_superblock(raw: &RawJournalSuperblock, head: &[u8]) -> Result<()> {
    if raw.checksum_type != CHECKSUM_CRC32C {
        return Err(wrong("checksum type", raw.checksum_type.into(), CHECKSUM_CRC32C.to_string()));
    }
    let before = head.get(..JOURNAL_CHECKSUM_AT).unwrap_or_default();
    let behind = head.get(JOURNAL_CHECKSUM_AT.saturating_add(4)..1024).unwrap_or_default();
    let computed = [before, &[0; 4], behind].iter().fold(!0, |c, b| crc32c(c, b));
    let found = raw.checksum.get();
    if !sum_holds(found, computed) {
        return Err(Ext4Fault::Checksum { what: "the journal's superblock", found, computed }.into());
    }
    Ok(())
}

/// Reads one block of the journal's file, past any cache.
fn read_block(fs: &Ext4, inode: &Inode, number: u32) -> Result<Vec<u8>> {
    match fs.map(inode, number.into())?.to {
        Mapping::Data(block) => {
            let len = fs.sb.block_size.bytes();
            bytes(&fs.disk, fs.byte_of(block)?, len, len, "a journal block")
        }
        _ => Err(wrong("a hole at block", number.into(), "stored blocks")),
    }
}
