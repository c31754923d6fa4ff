//! `racker disk commit` of formats that record what their parent is like.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use racker_tests::image::{self, read, read_by_7zip, read_by_qemu, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker};

const MIB: u64 = 1 << 20;

fn run(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

#[test]
fn a_vmdk_stays_the_child_of_the_parent_that_it_is_committed_to() {
    for subformat in ["monolithicSparse", "twoGbMaxExtentSparse"] {
        let dir = scratch();
        let at = dir.path();
        let rng = &mut Rng::new(4);
        let options = format!("subformat={subformat}");
        let make = |name: &str, parent: &str, rng: &mut Rng| {
            let mut args = vec!["create", "-q", "-f", "vmdk", "-o", &options];
            if parent.is_empty() {
                args.extend([name, "5M"]);
            } else {
                args.extend(["-b", parent, "-F", "vmdk", name]);
            }
            qemu::img_in(at, &args);
            qemu::io("vmdk", &at.join(name), &qemu::random_writes(rng, 5 * MIB, 12));
            // QEMU names the parent of the next one without the zeroes before its content ID.
            let raw = std::fs::read(at.join(name)).unwrap();
            let cid = raw.windows(5).position(|w| w == b"\nCID=").unwrap() as u64 + 5;
            std::fs::File::options()
                .write(true)
                .open(at.join(name))
                .unwrap()
                .write_all_at(b"000", cid)
                .unwrap();
        };
        make("root.vmdk", "", rng);
        make("base.vmdk", "root.vmdk", rng);
        make("top.vmdk", "base.vmdk", rng);
        let want = read_by_qemu("vmdk", &at.join("top.vmdk"));
        let said = run(at, &["commit", "top.vmdk"]);
        assert!(said.err.contains("keeps what was committed"), "{said}");
        said.ok();
        for name in ["base.vmdk", "top.vmdk"] {
            assert!(read_by_qemu("vmdk", &at.join(name)) == want && read("vmdk", &at.join(name)) == want);
        }
        qemu::io("vmdk", &at.join("top.vmdk"), &qemu::random_writes(rng, 5 * MIB, 12));
        let want = read_by_qemu("vmdk", &at.join("top.vmdk"));
        run(at, &["commit", "-b", "root.vmdk", "top.vmdk"]).ok();
        for name in ["root.vmdk", "top.vmdk"] {
            assert!(read_by_qemu("vmdk", &at.join(name)) == want && read("vmdk", &at.join(name)) == want);
        }
    }
}

#[test]
fn a_vhd_is_committed_to_its_parent() {
    let dir = scratch();
    let at = dir.path();
    let (base, top) = (at.join("base.vhd"), at.join("top.vhd"));
    let write = |image: &std::sync::Arc<dyn racker_formats::registry::Image>, byte: u8| {
        let disk = image::disk(image);
        disk.write_at(u64::from(byte) * 100_000, &[byte; 300_000]).unwrap();
        disk.flush().unwrap();
    };
    let parent = image::create("vhd", &base, 5 * MIB, "", None).unwrap();
    // A size that cylinders, heads and sectors can say.
    let size = parent.size();
    write(&parent, 1);
    drop(parent);
    write(&image::create("vhd", &top, size, "", Some(&base)).unwrap(), 3);
    let want = read("vhd", &top);
    run(at, &["commit", "top.vhd"]).ok();
    assert!(read_by_7zip(&base)[..want.len()] == want[..] && read_by_7zip(&top)[..want.len()] == want[..]);
    assert!(read_by_qemu("vpc", &base)[..want.len()] == want[..]);
}

/// A chain of three, written by hand; its last image is committed.
#[test]
fn children_of_vhdx_and_vdi_keep_their_parents() {
    for (format, block) in [("vhdx", MIB), ("vdi", MIB), ("vhd", 4096)] {
        let dir = scratch();
        let at = dir.path();
        image::chain(format, at, 4 * MIB, block, 5);
        let path = |name: &str| at.join(format!("{name}.{format}"));
        let top = image::open(format, &path("image"), true).unwrap();
        image::disk(&top).write_at(100_000, &[9; 70_000]).unwrap();
        image::disk(&top).flush().unwrap();
        drop(top);
        let want = read(format, &path("image"));
        assert!(read(format, &path("middle")) != want);
        let said = run(at, &["commit", &format!("image.{format}")]);
        assert!(said.err.contains("keeps what was committed"), "{said}");
        said.ok();
        for name in ["middle", "image"] {
            assert!(read(format, &path(name)) == want, "{format}: {name}");
            assert_eq!(image::findings(format, &path(name), false), Vec::<String>::new());
            if format != "vdi" {
                assert!(read_by_7zip(&path(name)) == want, "{format}: 7-Zip reads {name} in another way");
            }
        }
        // And on to the base, past the one in between, which stays what it is to those above it.
        let base = format!("base.{format}");
        run(at, &["commit", "-b", &base, &format!("image.{format}")]).ok();
        for name in ["base", "middle", "image"] {
            assert!(read(format, &path(name)) == want, "{format}: {name}");
        }
    }
}

#[test]
fn a_rate_is_kept() {
    let dir = scratch();
    let at = dir.path();
    for format in ["qcow2", "vmdk"] {
        let (base, top) = (format!("base.{format}"), format!("top.{format}"));
        qemu::img_in(at, &["create", "-q", "-f", format, &base, "8M"]);
        qemu::img_in(at, &["create", "-q", "-f", format, "-b", &base, "-F", format, &top]);
        qemu::io(format, &at.join(&top), &["write -P 7 1M 6M".into()]);
        let want = read_by_qemu(format, &at.join(&top));
        let started = Instant::now();
        run(at, &["commit", "-r", "2M", &top]).ok();
        // Six MiB, of which the last piece need not be waited for.
        assert!(started.elapsed() > Duration::from_millis(1900), "{format}");
        assert!(read_by_qemu(format, &at.join(&base)) == want, "{format}");
        assert_eq!(run(at, &["commit", "-r", "fast", &top]).status, 2);
    }
}

#[test]
fn what_has_no_parent_is_not_committed() {
    let dir = scratch();
    let at = dir.path();
    for format in ["vdi", "vhdx", "vhd", "vmdk"] {
        drop(image::create(format, &at.join("alone"), 8 * MIB, "", None).unwrap());
        assert!(run(at, &["commit", "alone"]).failed().contains("has no backing file"));
        assert!(run(at, &["rebase", "-b", "", "alone"]).failed().contains("parent"));
    }
}
