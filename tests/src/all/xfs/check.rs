//! XFS checked: racker's verdict beside that of `xfs_repair -n`.

use std::path::Path;

use racker_formats::block::Span;
use racker_formats::check::{Report, Severity};
use racker_formats::open::{OpenOptions, open};

use super::{Image, driver};

/// What racker finds in an image that is not changed.
pub(super) fn findings(path: &Path) -> Vec<(Severity, String)> {
    findings_in(path, None)
}

/// The same for a part of it.
fn findings_in(path: &Path, span: Option<Span>) -> Vec<(Severity, String)> {
    let options = OpenOptions { ..OpenOptions::default() };
    let opened = open(path, &options).unwrap();
    let mut report = Report::default();
    let disk = span.map_or_else(|| opened.disk.clone(), |span| opened.disk.slice(span).unwrap());
    match driver().check(disk, &mut report) {
        Ok(()) => report.findings.into_iter().map(|f| (f.severity, f.what)).collect(),
        Err(e) => vec![(Severity::Corruption, format!("error: {e}"))],
    }
}

/// Every fixture is clean, whatever mkfs and the kernel made of it; a log that is not is replayed.
#[test]
fn sound_filesystems_are_clean() {
    for case in racker_fixtures::group("xfs") {
        let image = Image::of_case(&case.name);
        assert_eq!(findings(&image.path), [], "{}", case.name);
    }
}

/// Prints what is found in the images that `XFS_IMAGES` names, each as PATH or PATH@OFFSET+LENGTH in bytes.
#[test]
#[ignore = "needs images in XFS_IMAGES"]
fn of_images() {
    for image in std::env::var("XFS_IMAGES").unwrap().split_whitespace() {
        let start = std::time::Instant::now();
        let (path, part) = image.split_once('@').map_or((image, None), |(p, part)| (p, part.split_once('+')));
        let span = part.map(|(at, len)| Span::new(at.parse().unwrap(), len.parse().unwrap()).unwrap());
        let found = findings_in(Path::new(path), span);
        println!("{image}: {} findings, {:?}", found.len(), start.elapsed());
        for (severity, what) in found.iter().take(20) {
            println!("    {severity:?}: {what}");
        }
    }
}
