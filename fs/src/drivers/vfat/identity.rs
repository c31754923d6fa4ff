//! The label, in the root directory and the boot sector, and the serial number.
//!
//! The boot sector has room for both if its signature says so, and FAT32 has a copy of it. Labels are upper case, as
//! Windows and mtools write them, and ASCII: which other letters a byte means depends on who reads it.

use std::ops::ControlFlow;

use racker_formats::error::Result;
use racker_formats::wire::{bytes, len64, part, part_mut};
use zerocopy::FromZeros;

use super::boot_sector::{BOOT_BYTES, Width};
use super::fault::FatFault;
use super::layout::{DELETED, END, ENTRY_BYTES, EXTENDED16_AT, RawBoot, RawEntry, RawExtended, attr};
use super::volume::ROOT;
use super::writer::{FatMut, set_times};
use crate::filesystem::{BadIdentity, Filesystem, NewUuid, Time};

/// Bytes of a label.
const LABEL: usize = 11;
/// What the boot sector says of a volume without a label.
const NO_NAME: [u8; LABEL] = *b"NO NAME    ";
/// Characters that no short name has, and no label.
const NOT_IN_LABELS: &str = "\"*+,./:;<=>?[\\]|";
/// Where the number of the boot sector's copy stands (FAT32).
const COPY_AT: usize = core::mem::offset_of!(RawBoot, bk_boot_sec);

/// A boot sector to be changed, and where the fields in question are.
pub(super) struct Boot {
    pub(super) at: u64,
    pub(super) sector: Vec<u8>,
}

impl FatMut {
    /// Gives the volume another label, or none.
    pub(super) fn rename_volume(&mut self, label: &str, now: Time) -> Result<()> {
        let stored = stored(label)?;
        let found = self.label_place()?;
        let room = match (found, stored) {
            (None, Some(_)) => {
                let (start, missing) = self.index(ROOT)?.get()?.room(1, &[])?;
                let more = len64(missing).saturating_mul(len64(ENTRY_BYTES));
                let grow = self.fat.boot.cluster.count(more);
                self.need(grow)?;
                Some((start, grow))
            }
            _ => None,
        };
        let boots = self.boots()?;
        self.begin()?;
        match (found, stored) {
            (None, None) => {}
            (Some(place), None) => {
                let at = place.saturating_mul(len64(ENTRY_BYTES));
                self.fat.disk.write_at(at, &[DELETED])?;
            }
            (found, Some(name)) => {
                let mut raw = match found {
                    Some(place) => self.raw(place)?,
                    None => RawEntry { attr: attr::VOLUME_ID, ..RawEntry::new_zeroed() },
                };
                set_times(&mut raw, now);
                raw.attr = attr::VOLUME_ID;
                raw.name = name;
                let place = match (found, room) {
                    (Some(place), _) => place,
                    (None, Some((start, grow))) => {
                        if grow > 0 {
                            self.grow_dir(ROOT, grow)?;
                        }
                        self.index(ROOT)?.get()?.place(start)?
                    }
                    (None, None) => return Err(FatFault::DirFull.into()),
                };
                self.put_raw(place, &raw)?;
            }
        }
        self.drop_index(ROOT)?;
        for boot in boots {
            self.put_field(
                boot,
                0x29,
                core::mem::offset_of!(RawExtended, vol_lab),
                &stored.unwrap_or(NO_NAME),
            )?;
        }
        self.end();
        Ok(())
    }

    /// Gives the volume another serial number.
    pub(super) fn renumber_volume(&mut self, new: &NewUuid) -> Result<()> {
        let number = match &new.value {
            Some(typed) => serial(typed).ok_or_else(|| {
                BadIdentity(format!("{typed:?} is no serial number of FAT: those are like 1234-ABCD"))
            })?,
            None => uuid::Uuid::new_v4().as_fields().0.max(1),
        };
        let boots = self.boots()?;
        let signature = |boot: &Boot| self.signature(&boot.sector);
        if boots.first().is_none_or(|boot| !matches!(signature(boot), 0x28 | 0x29)) {
            return Err(BadIdentity("the boot sector has no room for a serial number".into()).into());
        }
        self.begin()?;
        for boot in boots {
            let at = core::mem::offset_of!(RawExtended, vol_id);
            self.put_field(boot, 0x28, at, &number.to_le_bytes())?;
        }
        self.fat.boot.volume_id = number;
        self.end();
        Ok(())
    }

    /// The place of the label in the root directory.
    fn label_place(&self) -> Result<Option<u64>> {
        let mut found = None;
        self.fat.stretches(self.fat.dir(self.fat.root())?, &mut |at, block| {
            for (number, entry) in (0u64..).zip(block.chunks_exact(ENTRY_BYTES)) {
                let (first, kind) = (entry.first().copied().unwrap_or(END), entry.get(LABEL).copied());
                let kind = kind.unwrap_or(0) & attr::MEANING;
                if first == END {
                    return Ok(ControlFlow::Break(()));
                }
                if first != DELETED && kind & attr::VOLUME_ID != 0 && kind != attr::LONG_NAME {
                    found = Some((at >> 5).saturating_add(number));
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The boot sector, and its copy if there is one that is one.
    pub(super) fn boots(&self) -> Result<Vec<Boot>> {
        let read = |at: u64| -> Result<Boot> {
            Ok(Boot { at, sector: bytes(&self.fat.disk, at, BOOT_BYTES, BOOT_BYTES, "boot sector")? })
        };
        let first = read(0)?;
        let copy = match self.fat.boot.width {
            Width::Fat32 => {
                let [low, high] =
                    *part(&first.sector, COPY_AT, 2, "boot sector")?.first_chunk().unwrap_or(&[0; 2]);
                u64::from(u16::from_le_bytes([low, high])).saturating_mul(self.fat.boot.sector)
            }
            _ => 0,
        };
        // A number of the root directory's, or of nothing at all, is no copy.
        let copy = (copy > 0 && copy < self.fat.boot.fat_start).then(|| read(copy)).transpose()?;
        let same = |a: &Boot, b: &Boot| {
            // The parameters of the volume.
            a.sector.get(11..EXTENDED16_AT) == b.sector.get(11..EXTENDED16_AT)
                && b.sector.ends_with(&[0x55, 0xaa])
        };
        let copy = copy.filter(|copy| same(&first, copy));
        Ok(std::iter::once(first).chain(copy).collect())
    }

    /// Where what follows the parameters begins.
    fn extended_at(&self) -> usize {
        match self.fat.boot.width {
            Width::Fat32 => core::mem::offset_of!(RawBoot, extended),
            _ => EXTENDED16_AT,
        }
    }

    fn signature(&self, sector: &[u8]) -> u8 {
        let at = self.extended_at().saturating_add(core::mem::offset_of!(RawExtended, boot_sig));
        sector.get(at).copied().unwrap_or(0)
    }

    /// Writes a field of the boot sector, if its signature is `least` or more: else it has none.
    fn put_field(&self, boot: Boot, least: u8, at: usize, value: &[u8]) -> Result<()> {
        let Boot { at: place, mut sector } = boot;
        if !(least..=0x29).contains(&self.signature(&sector)) {
            return Ok(());
        }
        let at = self.extended_at().saturating_add(at);
        part_mut(&mut sector, at, value.len(), "boot sector")?.copy_from_slice(value);
        self.fat.disk.write_at(place, &sector)
    }
}

/// A label as an entry has it; none if it is empty.
fn stored(label: &str) -> Result<Option<[u8; LABEL]>> {
    let bad = |why: &str| BadIdentity(format!("{label:?} is no label for FAT: {why}")).into();
    let trimmed = label.trim_end_matches(' ');
    if trimmed.is_empty() {
        return Ok(None);
    }
    if trimmed.starts_with(' ') {
        return Err(bad("it begins with a space"));
    }
    if trimmed.len() > LABEL {
        return Err(bad("it has more than 11 characters"));
    }
    if !trimmed.is_ascii() {
        return Err(bad("it has letters that are not ASCII"));
    }
    if trimmed.chars().any(|c| c.is_ascii_control() || NOT_IN_LABELS.contains(c)) {
        return Err(bad("it has a character that FAT does not take"));
    }
    let mut name = [b' '; LABEL];
    for (place, byte) in name.iter_mut().zip(trimmed.bytes()) {
        *place = byte.to_ascii_uppercase();
    }
    Ok(Some(name))
}

/// `1234-ABCD`, or without the dash.
fn serial(typed: &str) -> Option<u32> {
    let digits = match typed.split_once('-') {
        Some((high, low)) if high.len() == 4 && low.len() == 4 => format!("{high}{low}"),
        Some(_) => return None,
        None => typed.to_string(),
    };
    let sound = digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit());
    u32::from_str_radix(&digits, 16).ok().filter(|_| sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_serial_numbers() {
        assert_eq!(stored("boot").unwrap(), Some(*b"BOOT       "));
        assert_eq!(stored("MY DISK 1").unwrap(), Some(*b"MY DISK 1  "));
        assert_eq!(stored("").unwrap(), None);
        for wrong in ["twelve bytes", "a.b", "é", " x", "a\nb", "a/b"] {
            assert!(stored(wrong).is_err(), "{wrong}");
        }
        assert_eq!(serial("1234-abCD"), Some(0x1234_abcd));
        assert_eq!(serial("1234abcd"), Some(0x1234_abcd));
        for wrong in ["", "1234", "123-4abcd", "1234-abc", "+234-abcd", "1234-abcg"] {
            assert_eq!(serial(wrong), None, "{wrong}");
        }
    }
}
