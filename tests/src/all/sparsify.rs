//! Space that nobody needs goes back to the host, and nothing else changes.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use racker_fixtures::case;
use racker_tests::image::scratch;
use racker_tests::mount::{Mounted, WHOLE, xfs_is_clean};
use racker_tests::qemu;
use racker_tests::tool::{Ran, racker, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// What was written and deleted.
const JUNK: u64 = 3 * MIB;

fn run(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

/// Everything that the filesystem in an image holds.
fn tree(dir: &Path, image: &str) -> Vec<u8> {
    let ran = run(dir, &["tar-out", "-p", "0", image]);
    assert_eq!(ran.status, 0, "{ran}");
    assert!(ran.out.len() > 1000);
    ran.out
}

/// Writes a file and deletes it, so that free space holds bytes.
fn litter(image: &Path, kind: &str) {
    let junk = vec![0x5a; JUNK as usize];
    if kind == "fat" {
        let dir = image.parent().unwrap();
        std::fs::write(dir.join("junk"), junk).unwrap();
        let mtool = |name: &str, args: &[&str]| {
            tool(name)
                .env("MTOOLS_SKIP_CHECK", "1")
                .args(["-i".as_ref(), image.as_os_str()])
                .args(args)
                .dir(dir)
                .ok();
        };
        mtool("mcopy", &["junk", "::junk"]);
        mtool("mdel", &["::junk"]);
        return;
    }
    let mounted = Mounted::writable(image, WHOLE);
    let sync = || tool("sync").arg("-f").arg(mounted.path()).ok();
    std::fs::write(mounted.join("junk"), junk).unwrap();
    sync();
    std::fs::remove_file(mounted.join("junk")).unwrap();
    sync();
}

/// The filesystem's own checker finds nothing.
fn check(image: &Path, kind: &str) {
    match kind {
        "xfs" => xfs_is_clean(image, WHOLE),
        "fat" => drop(tool("fsck.vfat").arg("-n").arg(image).ok()),
        _ => drop(tool("e2fsck").args(["-f", "-n"]).arg(image).ok()),
    }
}

fn stored(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn free_space_goes_and_files_stay() {
    for name in [
        "xfs/default",
        "xfs/rmapbt",
        "xfs/small-blocks",
        "xfs/large-sectors",
        "ext4/default",
        "ext4/bigalloc",
        "ext4/no-csum",
        "ext4/small-blocks",
        "ext2/default",
        "fat/fat16",
        "fat/fat32",
        "fat/fat32-large-sectors",
    ] {
        println!("{name}");
        let kind = name.split('/').next().unwrap();
        let dir = scratch();
        let at = dir.path();
        case(name).unpack(at);
        let raw = at.join("image.raw");
        litter(&raw, kind);
        check(&raw, kind);
        let before = tree(at, "image.raw");
        qemu::img_in(at, &["convert", "-f", "raw", "-O", "qcow2", "image.raw", "image.qcow2"]);
        // By clusters of 64 KiB fewer bytes are whole.
        for (image, lost) in [("image.raw", MIB / 4), ("image.qcow2", JUNK / 3)] {
            let path = at.join(image);
            let (was, size) = (stored(&path), path.metadata().unwrap().len());
            let said: Value = serde_json::from_str(&run(at, &["sparsify", "--json", image]).ok()).unwrap();
            assert_eq!(said["left"], serde_json::json!([]), "{said}");
            let now = stored(&path);
            assert!(was - now >= JUNK - lost, "{image}: {was} bytes before, {now} after: {said}");
            assert_eq!(said["given-back"], was - now);
            assert!(image != "image.raw" || path.metadata().unwrap().len() == size);
            assert!(tree(at, image) == before, "{image}");
        }
        qemu::check(&at.join("image.qcow2"));
        check(&raw, kind);
        qemu::img_in(at, &["convert", "-O", "raw", "image.qcow2", "back.raw"]);
        check(&at.join("back.raw"), kind);
        // There is nothing left to do.
        let said: Value =
            serde_json::from_str(&run(at, &["sparsify", "--json", "image.qcow2"]).ok()).unwrap();
        assert_eq!((&said["free"], &said["zero"]), (&Value::from(0), &Value::from(0)));
    }
}

#[test]
fn a_partitioned_disk_and_one_on_a_backing_file() {
    let dir = scratch();
    let at = dir.path();
    case("ock/boot").unpack(at);
    let content = |image: &str| {
        ["2", "3"].map(|part| run(at, &["tar-out", "-p", part, image])).map(|ran| (ran.status, ran.out))
    };
    let before = content("boot.qcow2");
    qemu::img_in(at, &["create", "-q", "-f", "qcow2", "-b", "boot.qcow2", "-F", "qcow2", "top.qcow2"]);
    // All of it is stored once more.
    qemu::img_in(at, &["convert", "-O", "raw", "boot.qcow2", "all.raw"]);
    qemu::img_in(at, &["convert", "-S", "0", "-O", "qcow2", "all.raw", "full.qcow2"]);
    let size = at.join("all.raw").metadata().unwrap().len();
    qemu::io("qcow2", &at.join("top.qcow2"), &[format!("write -q -s all.raw 0 {size}")]);
    for image in ["full.qcow2", "top.qcow2"] {
        let was = stored(&at.join(image));
        run(at, &["sparsify", image]).ok();
        assert!(stored(&at.join(image)) < was / 2, "{was} {}", stored(&at.join(image)));
        qemu::check(&at.join(image));
        assert!(content(image) == before, "{image}");
        assert_eq!(run(at, &["check", image]).status, 0);
    }
}

#[test]
fn filesystems_that_cannot_be_trusted_are_left_alone() {
    for (name, harm) in [
        ("ext4/dirty", Harm::None),
        ("xfs/dirty", Harm::None),
        ("ext2/default", Harm::Bitmap),
        ("ext4/default", Harm::Bitmap),
        ("fat/fat16", Harm::Chain),
    ] {
        println!("{name}");
        let dir = scratch();
        let at = dir.path();
        case(name).unpack(at);
        let path = at.join("image.raw");
        match harm {
            Harm::None => {}
            Harm::Bitmap => free_in_bitmap(&path),
            Harm::Chain => free_in_table(&path),
        }
        let before = std::fs::read(&path).unwrap();
        let said: Value = serde_json::from_str(&run(at, &["sparsify", "--json", "image.raw"]).ok()).unwrap();
        assert_eq!(said["left"].as_array().unwrap().len(), 1, "{said}");
        // Zeroes may go, which are read as zeroes.
        assert!(std::fs::read(&path).unwrap() == before);
    }
}

/// What is wrong with an image.
enum Harm {
    None,
    Bitmap,
    Chain,
}

/// Calls blocks free in the first bitmap of an ext2 or ext4 filesystem that are in use.
fn free_in_bitmap(path: &Path) {
    let said = tool("dumpe2fs").arg(path).ok();
    let after = |text: &str, key: &str| -> u64 {
        let rest = &text[text.find(key).unwrap() + key.len()..];
        rest.trim_start().chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let at = after(&said, "Block bitmap at") * after(&said, "Block size:");
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at + 100).unwrap();
    assert_ne!(byte, [0]);
    file.write_all_at(&[0], at + 100).unwrap();
}

/// Frees the first cluster of every file in both tables of a FAT16 filesystem: their chains begin with nothing.
fn free_in_table(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut boot = [0; 512];
    file.read_exact_at(&mut boot, 0).unwrap();
    let short = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
    let (sector, start, each) = (short(11), short(14), short(22));
    for copy in 0..2 {
        let at = (start + copy * each) * sector;
        file.write_all_at(&[0; 64], at + 20).unwrap();
    }
}
