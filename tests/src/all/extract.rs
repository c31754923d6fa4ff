//! Whole trees out of boxes and boot images: what GNU tar unpacks, and what `extract` writes, is what the kernel shows.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use racker_fixtures::{Case, case};
use racker_tests::manifest::Manifest;
use racker_tests::mount::require_root;
use racker_tests::tool::{binary, racker, tool};

fn unpacked(case: &Case) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    case.unpack(dir.path());
    let path = dir.path().join(&case.images()[0]);
    (dir, path)
}

/// What a copy of a tree can keep: not the times that copying sets, nor flags, nor a folder's own size.
fn kept(manifest: &Manifest) -> Manifest {
    let mut m = manifest.clone().drop_fields(&["atime", "ctime", "flags"]);
    let dirs: Vec<String> = m.paths().filter(|p| m.field(p, "type") == "dir").cloned().collect();
    m = dirs.iter().fold(m, |m, d| m.drop_fields_of(d, &["size", "nlink"]));
    m
}

/// Fails unless a folder holds the tree that the fixture recorded.
fn is_tree(case: &Case, tree: &str, folder: &Path, without: &[&str]) {
    let expected = kept(&Manifest::parse(&case.text(tree).unwrap())).without(without);
    expected.assert_same(&kept(&Manifest::of_folder(folder)), &format!("{}: kernel / copy", case.name));
}

/// The sparse file of the boxes takes no more space than what is in it.
fn has_holes(folder: &Path) {
    let sparse = folder.join("extents/sparse").metadata().unwrap();
    assert!(sparse.len() > 40 << 20 && sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
}

const BOXES: [&str; 4] = ["vagrant/virtualbox", "vagrant/bsdtar", "vagrant/plain", "vagrant/libvirt"];

#[test]
fn gnu_tar_unpacks_what_was_there() {
    require_root();
    for name in BOXES {
        let case = case(name);
        let (dir, image) = unpacked(&case);
        let tar = dir.path().join("tree.tar");
        racker().args(["disk", "tar-out", "-o"]).args([&tar, &image]).ok();
        let folder = dir.path().join("tree");
        std::fs::create_dir(&folder).unwrap();
        let unpack = tool("tar").args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-S", "-C"]);
        unpack.arg(&folder).arg("-xpf").arg(&tar).ok();
        // tar knows no sockets.
        is_tree(&case, "tree-p1.json", &folder, &["special/socket"]);
        has_holes(&folder);
        // Holes are holes in the stream as well.
        assert!(tar.metadata().unwrap().len() < 20 << 20);
    }
}

#[test]
fn bsdtar_reads_the_same_names() {
    let case = case(BOXES[0]);
    let (_dir, image) = unpacked(&case);
    let stream = racker().args(["disk", "tar-out"]).arg(&image).run();
    assert_eq!(stream.status, 0, "{stream}");
    let count =
        |program: &str| tool(program).args(["-tf", "-"]).input(stream.out.clone()).ok().lines().count();
    let paths = Manifest::parse(&case.text("tree-p1.json").unwrap()).without(&["special/socket"]).len();
    assert_eq!((count("tar"), count("bsdtar")), (paths, paths));
}

#[test]
fn extract_as_root_keeps_everything() {
    require_root();
    for name in BOXES {
        let case = case(name);
        let (dir, image) = unpacked(&case);
        let folder = dir.path().join("tree");
        racker().args(["disk", "extract"]).args([&image, &folder]).ok();
        is_tree(&case, "tree-p1.json", &folder, &[]);
        has_holes(&folder);
    }
}

#[test]
fn locking_flags_are_set_when_asked_for() {
    require_root();
    let (dir, image) = unpacked(&case(BOXES[0]));
    let folder = dir.path().join("tree");
    let told = racker().args(["disk", "extract"]).args([&image, &folder]).run();
    assert!(told.to_string().contains("--flags sets them"), "{told}");
    let letters = |folder: &Path| tool("lsattr").arg(folder.join("files/59")).ok();
    let free = letters(&folder);
    assert!(!free.split(' ').next().unwrap().contains('i'), "{free}");
    let folder = dir.path().join("locked");
    racker().args(["disk", "extract", "--flags"]).args([&image, &folder]).ok();
    let locked = letters(&folder);
    tool("chattr").args(["-R", "-f", "-i", "-a"]).arg(&folder).run();
    assert!(locked.split(' ').next().unwrap().contains('i'), "{locked}");
}

#[test]
fn extract_of_one_partition() {
    require_root();
    let case = case("ock/boot");
    let (dir, image) = unpacked(&case);
    for number in ["2", "3"] {
        let folder = dir.path().join(number);
        racker().args(["disk", "extract", "-p", number]).args([&image, &folder]).ok();
        is_tree(&case, &format!("tree-p{number}.json"), &folder, &[]);
    }
}

#[test]
fn the_operating_systems_mounts_are_part_of_the_tree() {
    let (_dir, image) = unpacked(&case("ock/boot"));
    let stream = racker().args(["disk", "tar-out"]).arg(&image).run();
    assert_eq!(stream.status, 0, "{stream}");
    let names = tool("tar").args(["-tf", "-"]).input(stream.out).ok();
    let has = |end: &str| names.lines().any(|n| n.trim_start_matches("./") == end);
    for path in [
        "etc/fstab",
        "usr/bin/true",
        "boot/loader.1/entries/ostree-1-ock.conf",
        "boot/efi/EFI/BOOT/BOOTX64.EFI",
    ] {
        assert!(has(path), "{path} is not in the tree");
    }
}

#[test]
fn extract_as_a_plain_user_says_what_it_could_not_keep() {
    require_root();
    let case = case(BOXES[0]);
    let (dir, image) = unpacked(&case);
    let copy = dir.path().join("racker");
    std::fs::copy(binary(), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    tool("chown").args(["-R", "65534:65534"]).arg(dir.path()).ok();
    let folder = dir.path().join("tree");
    let nobody = tool("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    nobody.arg(&copy).args(["disk", "extract"]).args([&image, &folder]).ok();
    let told = std::fs::read_to_string(dir.path().join("tree.racker-manifest.jsonl")).unwrap();
    assert!(told.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{told}");
    for path in ["special/null", "xattr/capable", "files/owner1"] {
        assert!(told.contains(path), "{path} is not in the manifest");
    }
    // What the kernel allows is there.
    let expected = Manifest::parse(&case.text("tree-p1.json").unwrap());
    let found = Manifest::of_folder(&folder);
    for path in ["files/1M", "links/hard1", "extents/sparse", "names/größe", "dirs/d60/entry-00007-xxxxxxx"]
    {
        let path: String = path.bytes().map(char::from).collect();
        for field in ["sha256", "mtime", "mode", "type"] {
            assert_eq!(expected.field(&path, field), found.field(&path, field), "{path} {field}");
        }
    }
}

#[test]
fn copy_out_keeps_what_cp_keeps() {
    require_root();
    let case = case(BOXES[0]);
    let (dir, image) = unpacked(&case);
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    racker().args(["disk", "copy-out"]).arg(&image).args(["/xattr", "/links", "/files/1M"]).arg(&out).ok();
    let found = kept(&Manifest::of_folder(&out));
    let expected = kept(&Manifest::parse(&case.text("tree-p1.json").unwrap()));
    for path in found.paths().filter(|p| *p != "." && *p != "1M") {
        assert_eq!(expected.get(path), found.get(path), "{path}");
    }
    assert_eq!(expected.field("files/1M", "sha256"), found.field("1M", "sha256"));
    assert_eq!(
        found.len(),
        2 + expected.paths().filter(|p| p.starts_with("xattr") || p.starts_with("links")).count()
    );
}
