//! Holes of files that `tar-in` puts into an image: where they were, as the kernel shows them.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use racker_tests::image::scratch;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::tool::{racker, tool};
use rustix::fs::{SeekFrom, seek};

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// A stretch: where it begins, and its length.
type Stretch = (u64, u64);

/// Files: their names, sizes, and the stretches with data, which lie on borders of the largest blocks.
const FILES: &[(&str, u64, &[Stretch])] = &[
    ("dense", 256 * KIB, &[(0, 256 * KIB)]),
    ("hole-inside", 1024 * KIB, &[(0, 64 * KIB), (960 * KIB, 64 * KIB)]),
    ("hole-at-the-start", 512 * KIB, &[(448 * KIB, 64 * KIB)]),
    ("hole-at-the-end", 3 * GIB, &[(0, 64 * KIB), (GIB, 128 * KIB)]),
    ("all-hole", 5 * GIB, &[]),
    ("many", 4096 * KIB, &[(0, 4 * KIB), (64 * KIB, 4 * KIB), (512 * KIB, 8 * KIB), (4092 * KIB, 4 * KIB)]),
];

/// Stretches with data.
fn map(path: &Path) -> Vec<Stretch> {
    let file = File::open(path).unwrap();
    let (mut all, mut at) = (Vec::new(), 0);
    while let Ok(from) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(from)).unwrap();
        all.push((from, at - from));
    }
    all
}

#[test]
fn tar_in_keeps_holes() {
    let dir = scratch();
    let host = dir.path().join("host");
    std::fs::create_dir(&host).unwrap();
    for (name, size, data) in FILES {
        let file = File::create(host.join(name)).unwrap();
        file.set_len(*size).unwrap();
        for (at, len) in *data {
            file.write_all_at(&vec![b'x'; usize::try_from(*len).unwrap()], *at).unwrap();
        }
    }
    let archives: &[(&str, &[&str])] = &[
        ("gnu.tar", &["tar", "-S", "--format=gnu"]),
        ("0.0.tar", &["tar", "-S", "--format=pax", "--sparse-version=0.0"]),
        ("0.1.tar", &["tar", "-S", "--format=pax", "--sparse-version=0.1"]),
        ("1.0.tar", &["tar", "-S", "--format=pax", "--sparse-version=1.0"]),
        ("bsd.tar", &["bsdtar", "--format=pax"]),
    ];
    let kinds: &[&[&str]] = &[
        &["mkfs.xfs", "-q"],
        &["mkfs.xfs", "-q", "-b", "size=1024"],
        &["mke2fs", "-q", "-t", "ext4", "-b", "4096"],
        &["mke2fs", "-q", "-t", "ext3", "-b", "1024"],
    ];
    for (number, mkfs) in kinds.iter().enumerate() {
        let image = dir.path().join("disk.img");
        let _ = std::fs::remove_file(&image);
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        tool(mkfs[0]).args(&mkfs[1..]).arg(&image).ok();
        // Not every archive for every filesystem: each of both comes with others.
        for (archive, words) in archives.iter().skip(number % 2).step_by(2) {
            let tar = dir.path().join(archive);
            tool(words[0]).args(&words[1..]).arg("-cf").arg(&tar).arg("-C").arg(&host).arg(".").ok();
            let folder = format!("/{archive}");
            racker().args(["disk", "mkdir", "-f", "raw"]).arg(&image).arg(&folder).ok();
            racker().args(["disk", "tar-in", "-f", "raw"]).arg(&image).arg(&tar).arg(&folder).ok();
        }
        let mounted = Mounted::read_only(&image, WHOLE);
        for (archive, _) in archives.iter().skip(number % 2).step_by(2) {
            for (name, size, data) in FILES {
                let path = mounted.join(&format!("{archive}/{name}"));
                let what = format!("{mkfs:?}, {archive}: {name}");
                assert_eq!(map(&path), *data, "{what}");
                let meta = path.metadata().unwrap();
                let stored: u64 = data.iter().map(|(_, len)| len).sum();
                // A few blocks say where the others are.
                assert_eq!(meta.size(), *size, "{what}");
                assert!(meta.blocks() * 512 <= stored + 64 * KIB, "{what}: {} blocks", meta.blocks());
            }
        }
    }
}
