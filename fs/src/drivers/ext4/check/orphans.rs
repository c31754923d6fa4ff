//! Orphans: inodes that are in use without a name, or are to be cut off, since the filesystem was last in use.

use racker_formats::error::{Result, Within};
use racker_formats::wire::part;

use super::super::csum::crc32c;
use super::super::edit::bytes::get32;
use super::super::fault::Ext4Fault;
use super::super::features::{Compat, RoCompat};
use super::super::map::Mapping;
use super::Checker;

/// The number in front of the checksum of a block of the orphan file, and bytes of both.
const BLOCK_MAGIC: u32 = 0x0b10_ca04;
const TAIL: usize = 8;

impl Checker<'_> {
    /// Collects the orphans of the list and of the file.
    pub(super) fn find_orphans(&mut self) -> Result<()> {
        let listed = self.orphan_list();
        self.finds.sound(|| "list of orphans".into(), listed)?;
        let filed = self.orphan_file();
        self.finds.sound(|| "orphan file".into(), filed)?;
        Ok(())
    }

    fn orphan(&mut self, number: u32) -> Result<u32> {
        let (first, last) = (self.fs.sb.first_inode, self.fs.sb.inodes);
        if number < first || number > last {
            return Err(Ext4Fault::InodeNumber { number: number.into(), first, last }.into());
        }
        if !self.orphans.insert(number) {
            return Err(Ext4Fault::Directory("an orphan is there twice").into());
        }
        Ok(self.fs.any_inode(number)?.raw.dtime.get())
    }

    fn orphan_list(&mut self) -> Result<()> {
        let mut next = self.fs.sb.raw.last_orphan.get();
        // No orphan comes twice, so this ends.
        while next != 0 {
            next = self.orphan(next)?;
        }
        Ok(())
    }

    fn orphan_file(&mut self) -> Result<()> {
        let features = &self.fs.sb.features;
        if !features.compat.contains(Compat::ORPHAN_FILE) {
            return Ok(());
        }
        let present = features.ro_compat.contains(RoCompat::ORPHAN_PRESENT);
        let file = self.fs.any_inode(self.fs.sb.raw.orphan_file_inum.get())?;
        let blocks = self.fs.sb.block_size.count(file.size).min(self.fs.sb.blocks);
        // tune2fs (1.47.4) leaves that behind when it takes the journal away.
        if !features.compat.contains(Compat::HAS_JOURNAL) {
            self.finds.needless("there is an orphan file without a journal (e2fsck removes it)");
        }
        for number in 0..blocks {
            let Mapping::Data(at) = self.fs.map(&file, number)?.to else {
                return Err(Ext4Fault::DirHole(number).into());
            };
            self.orphan_block(file.csum_seed, at, present).within(|| format!("block {number}"))?;
        }
        Ok(())
    }

    fn orphan_block(&mut self, seed: u32, at: u64, present: bool) -> Result<()> {
        let block = self.fs.block("the orphan file", at)?;
        let tail = block.len().saturating_sub(TAIL);
        if get32(&block, tail)? != BLOCK_MAGIC {
            return Err(Ext4Fault::Directory("a block of the orphan file has the wrong magic").into());
        }
        let entries = part(&block, 0, tail, "orphans")?;
        if self.fs.sb.features.has_metadata_csum() {
            let computed = crc32c(crc32c(seed, &at.to_le_bytes()), entries);
            let found = get32(&block, tail.saturating_add(4))?;
            if !racker_formats::wire::sum_holds(found, computed) {
                return Err(Ext4Fault::Checksum { what: "the block of orphans", found, computed }.into());
            }
        }
        for word in entries.as_chunks::<4>().0 {
            match u32::from_le_bytes(*word) {
                0 => {}
                _ if !present => {
                    return Err(
                        Ext4Fault::Directory("there are orphans, and the superblock says none").into()
                    );
                }
                number => {
                    self.orphan(number)?;
                }
            }
        }
        Ok(())
    }
}
