//! A raw disk into a raw disk on a filesystem where files can share space.

use std::os::unix::fs::FileExt;
use std::path::Path;

use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::qemu;
use racker_tests::tool::{racker, tool};

const MIB: u64 = 1 << 20;
const DATA: u64 = 8 * MIB;

/// Bytes in use on the filesystem that holds `path`.
fn in_use(path: &Path) -> u64 {
    tool("sync").args(["-f"]).arg(path).ok();
    let said = tool("df").args(["--output=used", "-B1"]).arg(path).ok();
    said.lines().nth(1).unwrap().trim().parse().unwrap()
}

#[test]
fn a_copy_shares_space_where_the_filesystem_can() {
    let scratch = racker_tests::image::scratch();
    let image = scratch.path().join("host.xfs");
    std::fs::File::create(&image).unwrap().set_len(400 * MIB).unwrap();
    tool("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).ok();
    let host = Mounted::writable(&image, WHOLE);
    let (source, copy) = (host.join("source.raw"), host.join("copy.raw"));
    // Data between holes.
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(10 * DATA).unwrap();
    for at in (0..DATA).step_by(MIB as usize) {
        let bytes: Vec<u8> = (0..MIB).map(|i| ((at + i * i) >> 7) as u8 | 1).collect();
        file.write_all_at(&bytes, DATA + 2 * at).unwrap();
    }
    file.sync_all().unwrap();
    let convert = |more: &[&str]| {
        racker().args(["disk", "convert", "-f", "raw", "-O", "raw"]).args(more).args([&source, &copy]).ok();
        qemu::img_in(host.path(), &["compare", "-f", "raw", "-F", "raw", "source.raw", "copy.raw"]);
    };
    let before = in_use(host.path());
    convert(&[]);
    assert!(in_use(host.path()) < before + DATA / 2, "the copy takes space of its own");
    // Writing to the copy leaves the source alone.
    let written = std::fs::OpenOptions::new().write(true).open(&copy).unwrap();
    written.write_all_at(b"other", DATA).unwrap();
    let mut first = [0; 5];
    file_at(&source, &mut first);
    assert_ne!(&first, b"other");
    // Who asks for zeroes to be looked for, or for space to be set aside, gets what was asked for.
    for more in [&["-S", "64k"][..], &["-o", "preallocation=falloc"]] {
        convert(more);
        assert!(in_use(host.path()) >= before + DATA, "{more:?}");
    }
}

fn file_at(path: &Path, out: &mut [u8]) {
    std::fs::File::open(path).unwrap().read_exact_at(out, DATA).unwrap();
}
