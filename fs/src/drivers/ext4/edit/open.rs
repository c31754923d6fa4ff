//! A filesystem opened for writing: judged, its journal replayed for good, its orphans dealt with.

use racker_formats::block::Disk;
use racker_formats::error::{Result, Within};
use racker_formats::wire::{part, sum_holds};

use super::super::check;
use super::super::csum::crc32c;
use super::super::fast_commit;
use super::super::fault::Ext4Fault;
use super::super::features::Incompat;
use super::super::journal::Journal;
use super::super::recover;
use super::super::superblock::Superblock;
use super::super::volume::Ext4;
use super::Edit;
use super::bytes::get32;

/// `s_state`: closed cleanly; errors were seen.
const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;
/// The sequence number of a multiple mount block that says: nobody has it mounted.
const MMP_CLEAN: u32 = 0xff4d_4d50;
/// First word of that block.
const MMP_MAGIC: u32 = 0x004d_4d50;
/// Where its checksum is.
const MMP_SUM_AT: usize = 1020;

impl Edit {
    /// Opens the filesystem on `volume`.
    pub(super) fn open(volume: Disk) -> Result<(Self, bool)> {
        let sb = Superblock::read(&volume)?;
        check_features(&sb)?;
        let needs = sb.features.incompat.contains(Incompat::RECOVER);
        let below = Ext4::new(volume.clone(), sb);
        let replayed = needs && replay(&below, &volume).within(|| "journal")?;
        let sb = if replayed { Superblock::read(&volume)? } else { below.sb.clone() };
        check_features(&sb)?;
        check_state(&sb)?;
        let mut fs = Ext4::new(volume, sb);
        check_mmp(&fs)?;
        fs.replayed = replayed;
        check::refuse_unsound(&fs)?;
        let mut edit = Self::new(fs)?;
        edit.finish_orphans()?;
        edit.fs.sb.features.incompat.remove(Incompat::RECOVER);
        Ok((edit, replayed))
    }
}

/// The filesystem on `volume` with its journal replayed for good, and nothing else changed.
pub(in super::super) fn replayed(volume: Disk) -> Result<Ext4> {
    let sb = Superblock::read(&volume)?;
    check_features(&sb)?;
    let needs = sb.features.incompat.contains(Incompat::RECOVER);
    let below = Ext4::new(volume.clone(), sb);
    let replayed = needs && replay(&below, &volume).within(|| "journal")?;
    let mut fs = Ext4::new(volume.clone(), Superblock::read(&volume)?);
    fs.replayed = replayed;
    Ok(fs)
}

/// Replays the journal onto the volume and makes it an empty one; tells whether there was anything.
fn replay(below: &Ext4, volume: &Disk) -> Result<bool> {
    if !below.has_journal() {
        return Err(Ext4Fault::Unsound("has a journal to replay, and no journal").into());
    }
    let journal = Journal::open(below)?;
    if journal.start == 0 {
        return Ok(false);
    }
    let next = recover::replay(&journal, below, volume)?;
    let mut after = Ext4::new(volume.clone(), Superblock::read(volume)?);
    fast_commit::recover(&journal, next, &mut after)?;
    if !after.fast.is_empty() {
        let what = "its journal holds fast commits; mount it once, or run e2fsck";
        return Err(Ext4Fault::Unwritable(what.into()).into());
    }
    let (block, head) = journal.emptied(next.wrapping_add(1))?;
    volume.write_at(below.byte_of(block)?, &head)?;
    Ok(true)
}

fn check_features(sb: &Superblock) -> Result<()> {
    if let Some(names) = sb.features.unwritable() {
        return Err(Ext4Fault::Unwritable(format!("it has the features {names}")).into());
    }
    if !sb.folding_is_known() {
        let what = format!("names in it that ignore case (casefold) have encoding {}", sb.raw.encoding.get());
        return Err(Ext4Fault::Unwritable(what).into());
    }
    if !sb.is_linux() {
        return Err(Ext4Fault::Unwritable("it is not one of Linux".into()).into());
    }
    Ok(())
}

/// Why a filesystem is not written to, as far as its superblock says.
pub(in super::super) fn unwritable(sb: &Superblock) -> Option<String> {
    check_features(sb).and_then(|()| check_state(sb)).err().map(|e| e.to_string())
}

fn check_state(sb: &Superblock) -> Result<()> {
    let state = sb.raw.state.get();
    if state & STATE_ERRORS != 0 {
        return Err(Ext4Fault::Unsound("has errors, as the kernel noted").into());
    }
    if state & STATE_VALID == 0 {
        return Err(Ext4Fault::Unsound("was not closed, and has no journal to make up for it").into());
    }
    Ok(())
}

/// Refuses a filesystem that some host has mounted.
pub(in super::super) fn check_mmp(fs: &Ext4) -> Result<()> {
    if !fs.sb.features.incompat.contains(Incompat::MMP) {
        return Ok(());
    }
    let block = fs.block("multiple mount protection", fs.sb.raw.mmp_block.get())?;
    if get32(&block, 0)? != MMP_MAGIC {
        return Err(Ext4Fault::Unsound("has a multiple mount block without its magic number").into());
    }
    if fs.sb.features.has_metadata_csum() {
        let computed = crc32c(fs.sb.csum_seed, part(&block, 0, MMP_SUM_AT, "multiple mount block")?);
        let found = get32(&block, MMP_SUM_AT)?;
        if !sum_holds(found, computed) {
            return Err(Ext4Fault::Checksum { what: "the multiple mount block", found, computed }.into());
        }
    }
    if get32(&block, 4)? != MMP_CLEAN {
        let what = "multiple mount protection says that it is mounted somewhere";
        return Err(Ext4Fault::Unwritable(what.into()).into());
    }
    Ok(())
}
