//! The list of filesystems.

mod ext4;
mod vfat;
mod xfs;

use racker_formats::block::Disk;
use racker_formats::error::Result;
use racker_formats::registry::{Guess, with_head};

pub(crate) use vfat::is_boot_sector as is_fat_boot_sector;

use crate::filesystem::Driver;

/// All filesystems, in probing order.
pub static DRIVERS: &[&dyn Driver] = &[&ext4::FORMAT, &vfat::FORMAT, &xfs::FORMAT];

/// Finds the filesystem of a volume by its content; none is no error.
pub fn probe(volume: &Disk) -> Result<Option<&'static dyn Driver>> {
    with_head(volume, |head| {
        let mut best: Option<(Guess, &'static dyn Driver)> = None;
        for driver in DRIVERS {
            let guess = driver.probe(head);
            if guess != Guess::No && best.is_none_or(|(found, _)| guess > found) {
                best = Some((guess, *driver));
            }
        }
        best.map(|(_, d)| d)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// A driver that is in the folder but not in the list, or the other way round, is a mistake.
    #[test]
    fn the_folder_and_the_list_agree() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/drivers");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_string())
            .filter(|n| n != "mod")
            .collect();
        let list: BTreeSet<String> = super::DRIVERS.iter().map(|d| d.name().to_string()).collect();
        assert_eq!(files, list);
    }
}
