//! A transaction as it is put into an empty log: descriptor blocks, each followed by the blocks it describes, and the
//! commit block that closes them (jbd2; the reading half is [`journal`](super::journal)).

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Common, Result};
use racker_formats::wire::{index, len64, part_mut};
use zerocopy::IntoBytes;

use super::csum::crc32c;
use super::journal::{Checksums, Journal};
use super::layout::{COMMIT_CHECKSUM_AT, JOURNAL_MAGIC, RawJournalHeader, journal_block, tag_flags};
use super::volume::Ext4;

/// Bytes of a UUID, which follows the first tag of each descriptor.
const UUID: usize = 16;

/// The log of a journal that has nothing to replay.
#[derive(Debug)]
pub(super) struct Log<'a> {
    fs: &'a Ext4,
    journal: &'a Journal<'a>,
    /// Where the journal's blocks lie, in blocks.
    stretches: Vec<Span>,
}

impl<'a> Log<'a> {
    pub(super) fn new(fs: &'a Ext4, journal: &'a Journal<'a>) -> Result<Self> {
        Ok(Self { fs, journal, stretches: journal.stretches()? })
    }

    /// Whether a block belongs to the journal.
    pub(super) fn holds(&self, block: u64) -> bool {
        self.stretches.iter().any(|stretch| (stretch.start()..stretch.end()).contains(&block))
    }

    /// Tags in one descriptor block.
    fn tags_each(&self) -> usize {
        let head = size_of::<RawJournalHeader>().saturating_add(UUID).saturating_add(self.tail());
        let bytes = index(self.fs.sb.block_size.bytes()).unwrap_or(0).saturating_sub(head);
        bytes.checked_div(self.journal.tag_bytes()).unwrap_or(0)
    }

    /// Bytes of the checksum at the end of a descriptor block.
    fn tail(&self) -> usize {
        if self.journal.has_block_checksums() { 4 } else { 0 }
    }

    /// How many blocks one transaction takes, so that the log keeps a block behind it.
    pub(super) fn room(&self) -> usize {
        let ring = index(self.journal.end.saturating_sub(self.journal.first).into()).unwrap_or(0);
        // The commit block, and one that ends the log.
        let left = ring.saturating_sub(2);
        let each = self.tags_each();
        let turn = each.saturating_add(1);
        let whole = left.checked_div(turn).unwrap_or(0).saturating_mul(each);
        whole.saturating_add(left.checked_rem(turn).unwrap_or(0).saturating_sub(1))
    }

    /// Writes a transaction of `blocks`, whose content `read` gives, to the log's beginning. Nobody looks at it
    /// before the journal's superblock says so.
    pub(super) fn write(
        &self,
        volume: &Disk,
        blocks: &[u64],
        read: &dyn Fn(u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let size = index(self.fs.sb.block_size.bytes())?;
        let mut at = self.journal.first;
        for row in blocks.chunks(self.tags_each().max(1)) {
            let home = at;
            let mut descriptor = self.head(journal_block::DESCRIPTOR, size);
            let mut tag_at = size_of::<RawJournalHeader>();
            let mut data = vec![0; size];
            for (number, block) in row.iter().enumerate() {
                at = at.saturating_add(1);
                read(*block, &mut data)?;
                let magic = JOURNAL_MAGIC.to_be_bytes();
                let is_escaped = data.starts_with(&magic);
                if let Some(head) = data.first_chunk_mut::<4>().filter(|_| is_escaped) {
                    *head = [0; 4];
                }
                self.put(volume, at, &data)?;
                let is_last = number.saturating_add(1) == row.len();
                let flags = [
                    (is_escaped, tag_flags::ESCAPE),
                    (number > 0, tag_flags::SAME_UUID),
                    (is_last, tag_flags::LAST),
                ];
                let flags = flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
                let tag = self.tag(*block, flags, &data);
                part_mut(&mut descriptor, tag_at, tag.len(), "journal tag")?.copy_from_slice(&tag);
                let uuid = if number == 0 { UUID } else { 0 };
                tag_at = tag_at.saturating_add(tag.len()).saturating_add(uuid);
            }
            if self.journal.has_block_checksums() {
                let sum = crc32c(self.journal.seed, &descriptor);
                let tail = part_mut(&mut descriptor, size.saturating_sub(4), 4, "descriptor block")?;
                tail.copy_from_slice(&sum.to_be_bytes());
            }
            self.put(volume, home, &descriptor)?;
            at = at.saturating_add(1);
        }
        self.put(volume, at, &self.commit_block(size)?)?;
        // Whatever an older log has left there, it is not the next transaction.
        self.put(volume, at.saturating_add(1), &vec![0; size])
    }

    /// A control block of this transaction.
    fn head(&self, kind: u32, size: usize) -> Vec<u8> {
        let head = RawJournalHeader {
            magic: JOURNAL_MAGIC.into(),
            blocktype: kind.into(),
            sequence: self.journal.sequence.into(),
        };
        let mut block = head.as_bytes().to_vec();
        block.resize(size, 0);
        block
    }

    /// What a descriptor says of a block that the log holds as `data`.
    fn tag(&self, block: u64, flags: u32, data: &[u8]) -> Vec<u8> {
        let low = u32::try_from(block & u64::from(u32::MAX)).unwrap_or(0).to_be_bytes();
        let high = u32::try_from(block >> 32).unwrap_or(0).to_be_bytes();
        let sum = match self.journal.has_block_checksums() {
            true => crc32c(crc32c(self.journal.seed, &self.journal.sequence.to_be_bytes()), data),
            false => 0,
        };
        let mut tag = Vec::with_capacity(16);
        if self.journal.checksums == Checksums::V3 {
            for word in [low, flags.to_be_bytes(), high, sum.to_be_bytes()] {
                tag.extend(word);
            }
        } else {
            let half = |word: u32| u16::try_from(word & 0xffff).unwrap_or(0).to_be_bytes();
            tag.extend(low);
            tag.extend(half(sum));
            tag.extend(half(flags));
            tag.extend(high);
        }
        tag.resize(self.journal.tag_bytes(), 0);
        tag
    }

    /// Closes the transaction. It has no time: nothing compares it with another.
    fn commit_block(&self, size: usize) -> Result<Vec<u8>> {
        let mut block = self.head(journal_block::COMMIT, size);
        if self.journal.has_block_checksums() {
            let sum = crc32c(self.journal.seed, &block);
            part_mut(&mut block, COMMIT_CHECKSUM_AT, 4, "commit block")?.copy_from_slice(&sum.to_be_bytes());
        }
        Ok(block)
    }

    /// Writes block `number` of the journal.
    fn put(&self, volume: &Disk, number: u32, data: &[u8]) -> Result<()> {
        let mut left = u64::from(number);
        for stretch in &self.stretches {
            if left < stretch.len() {
                return volume.write_at(self.fs.byte_of(stretch.start().saturating_add(left))?, data);
            }
            left = left.saturating_sub(stretch.len());
        }
        Err(Common::Index(len64(data.len())).into())
    }
}
