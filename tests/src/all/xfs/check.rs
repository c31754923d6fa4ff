//! XFS checked: racker's verdict beside that of `xfs_repair -n`.

use std::path::Path;

use racker_formats::block::{Disk, Staged};
use racker_formats::check::{Report, Severity};
use racker_formats::open::{OpenOptions, open};

use super::driver;

/// What racker finds in an image that is not changed.
fn findings(path: &Path) -> Vec<(Severity, String)> {
    let options = OpenOptions { format: Some("raw"), ..OpenOptions::default() };
    let opened = open(path, &options).unwrap();
    let mut report = Report::default();
    match driver().check(opened.disk.clone(), &mut report) {
        Ok(()) => report.findings.into_iter().map(|f| (f.severity, f.what)).collect(),
        Err(e) => vec![(Severity::Corruption, format!("error: {e}"))],
    }
}

/// Prints what is found in the images that `XFS_IMAGES` names.
#[test]
#[ignore = "needs images in XFS_IMAGES"]
fn of_images() {
    for path in std::env::var("XFS_IMAGES").unwrap().split_whitespace() {
        let start = std::time::Instant::now();
        let found = findings(Path::new(path));
        println!("{path}: {} findings, {:?}", found.len(), start.elapsed());
        for (severity, what) in found.iter().take(20) {
            println!("    {severity:?}: {what}");
        }
    }
    let _ = |disk: Disk| Disk::new(Staged::new(disk));
}
