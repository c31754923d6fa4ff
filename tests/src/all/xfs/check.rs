//! XFS checked: racker's verdict beside that of `xfs_repair -n`.

use std::path::Path;

use racker_formats::block::{Disk, MemDevice, Span};
use racker_formats::check::{Report, Severity};
use racker_formats::open::OpenOptions;

use racker_tests::rng::Rng;

use super::{Image, driver, open_when_free};

/// What racker finds in an image that is not changed.
pub(super) fn findings(path: &Path) -> Vec<(Severity, String)> {
    findings_in(path, None)
}

/// The same for a part of it.
fn findings_in(path: &Path, span: Option<Span>) -> Vec<(Severity, String)> {
    let options = OpenOptions { ..OpenOptions::default() };
    let opened = open_when_free(path, &options);
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

/// Version 4 has no checksums: nothing stands between random damage and the check, which ends, with findings or
/// without.
#[test]
fn damage_at_random_ends_in_findings() {
    let image = Image::of_case("xfs/v4");
    let sound = std::fs::read(&image.path).unwrap();
    // Headers, trees and inodes stand at the beginning of each group.
    let number = |at: usize| u32::from_be_bytes(sound[at..at + 4].try_into().unwrap()) as usize;
    let group = number(84) * number(4) / 512;
    let near = (0..number(88)).flat_map(|ag| ag * group..ag * group + 256);
    let sectors: Vec<usize> = near.filter(|i| sound[i * 512..][..512].iter().any(|b| *b != 0)).collect();
    let mut rng = Rng::new(4);
    let mut found = 0;
    for _ in 0..120 {
        let mut bytes = sound.clone();
        for _ in 0..1 + rng.below(6) {
            let sector = sectors[rng.below(sectors.len() as u64) as usize];
            for _ in 0..1 + rng.below(4) {
                let at = sector * 512 + rng.below(512) as usize;
                bytes[at] = [0, 0xff, 1, 0x80, bytes[at].wrapping_add(1)][rng.below(5) as usize];
            }
        }
        let disk = Disk::new(MemDevice::from_bytes(bytes));
        let mut report = Report::default();
        let good = driver().check(disk, &mut report).is_ok();
        found += usize::from(!good || !report.findings.is_empty());
    }
    assert!(found > 10, "{found} of 120 found in {} sectors", sectors.len());
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
