//! The list of image formats.

mod qcow2;
mod raw;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use crate::registry::Format;

pub use vdi::VdiFault;
pub use vhd::VhdFault;
pub use vhdx::VhdxFault;
pub use vmdk::VmdkFault;

/// All formats, in probing order. `raw` says yes to anything and stays last.
pub static FORMATS: &[&dyn Format] =
    &[&qcow2::FORMAT, &vmdk::FORMAT, &vhd::FORMAT, &vdi::FORMAT, &vhdx::FORMAT, &raw::FORMAT];

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
        let list: BTreeSet<String> = super::FORMATS.iter().map(|f| f.name().to_string()).collect();
        assert_eq!(files, list);
    }
}
