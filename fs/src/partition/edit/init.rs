//! A new, empty table.

use racker_formats::block::{Disk, Span};
use racker_formats::error::{Error, Result};
use racker_formats::limits::MIB;
use racker_formats::wire::{bytes, part_mut};

use super::super::mbr::Record;
use super::super::{BOOT_SECTOR, gpt, mbr};
use super::{Edited, TableEdit, TableFault};
use crate::{drivers, recognised};

/// Bytes at either end of a disk in which filesystems and tables have the signatures that they are known by.
const SIGNATURES: u64 = MIB;
/// Where the code of a boot sector ends.
const BOOT_CODE: usize = 440;

/// A table that is to be made.
#[derive(Clone, Debug)]
pub struct NewTable {
    /// GPT or MBR.
    pub gpt: bool,
    /// Bytes of a sector: 512 or, for a GPT, 4096.
    pub sector_size: u32,
    /// The disk's identifier: a GUID, eight hexadecimal digits for an MBR, or nothing for a random one.
    pub id: Option<String>,
    /// Whatever is there may be lost.
    pub force: bool,
}

/// Makes an empty table on a disk and gives it to be filled; it lands with [`TableEdit::write`].
///
/// # Errors
/// Unless it is forced, a disk that has a table or a filesystem is [`TableFault::InUse`].
pub fn init(disk: &Disk, new: &NewTable) -> Result<TableEdit> {
    let scheme = if new.gpt { "gpt" } else { "dos" };
    if !(new.sector_size == 512 || new.gpt && new.sector_size == 4096) {
        return Err(TableFault::Sector { scheme, sector: new.sector_size }.into());
    }
    if disk.size() < 2 * BOOT_SECTOR {
        return Err(TableFault::Small { size: disk.size() }.into());
    }
    let found = in_use(disk)?;
    if let Some(what) = &found
        && !new.force
    {
        return Err(TableFault::InUse { what: what.clone() }.into());
    }
    let boot = bytes(disk, 0, BOOT_SECTOR, BOOT_SECTOR, "boot sector")?;
    let mut first = vec![0; boot.len()];
    if Record::parse(&boot).is_some() {
        // The code of a boot loader outlives the table, as with sgdisk and sfdisk.
        let code = boot.get(..BOOT_CODE).unwrap_or_default();
        part_mut(&mut first, 0, BOOT_CODE, "boot sector")?.copy_from_slice(code);
    }
    let table: Box<dyn Edited> = if new.gpt {
        let table = gpt::Edit::new(disk, new)?;
        gpt::protect(&mut first, disk.size(), u64::from(new.sector_size))?;
        Box::new(table)
    } else {
        Box::new(mbr::Edit::new(disk, &first, new)?)
    };
    if found.is_some() {
        // What was there would be found beside the new table, or instead of it.
        let end = disk.size().saturating_sub(SIGNATURES).max(BOOT_SECTOR);
        let len = SIGNATURES.min(disk.size()).saturating_sub(BOOT_SECTOR);
        disk.write_zeroes(Span::new(BOOT_SECTOR, len)?)?;
        disk.write_zeroes(Span::new(end, disk.size().saturating_sub(end))?)?;
    }
    disk.write_at(0, &first)?;
    Ok(TableEdit { table })
}

/// What a disk has that a new table would hide.
fn in_use(disk: &Disk) -> Result<Option<String>> {
    let boot = bytes(disk, 0, BOOT_SECTOR, BOOT_SECTOR, "boot sector")?;
    match Record::parse(&boot) {
        Some(record) if record.is_protective() => return Ok(Some("a GPT".into())),
        Some(_) => return Ok(Some("an MBR partition table".into())),
        None if gpt::has_signature(disk) => return Ok(Some("a GPT without its protective MBR".into())),
        None => {}
    }
    // A filesystem that is too damaged to be opened is one all the same.
    let damaged = |e: Error| format!("something that cannot be told ({e})");
    Ok(match drivers::probe(disk) {
        Ok(Some(driver)) => Some(format!("a filesystem ({})", driver.name())),
        Ok(None) => match recognised::recognise(disk) {
            Ok(found) => found.map(|r| format!("content ({})", r.name)),
            Err(e) => Some(damaged(e)),
        },
        Err(e) => Some(damaged(e)),
    })
}
