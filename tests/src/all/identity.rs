//! A commit changes who the parent of a VMDK, VHDX or VDI says it is, and then what the child knows of it. Cut in
//! between, the child knows a parent that is no more: it must not be read as if nothing had happened, and there must be a way back.

use std::path::Path;

use racker_tests::image::{chain, create, disk, findings, open, read, read_by_7zip, scratch};
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker, tool};

const MIB: u64 = 1 << 20;

fn run(dir: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(dir).run()
}

/// `base.FORMAT` and `top.FORMAT` in a folder; what the latter holds.
fn family(format: &str, subformat: &str, at: &Path) -> Vec<u8> {
    let file = |name: &str| format!("{name}.{format}");
    let rng = &mut Rng::new(31);
    match format {
        "vmdk" => {
            let options = format!("subformat={subformat}");
            qemu::img_in(at, &["create", "-q", "-f", "vmdk", "-o", &options, &file("base"), "5M"]);
            qemu::io("vmdk", &at.join(file("base")), &qemu::random_writes(rng, 5 * MIB, 12));
            let args = ["create", "-q", "-f", "vmdk", "-o", &options, "-b", &file("base"), "-F", "vmdk"];
            qemu::img_in(at, &[&args[..], &[&file("top")]].concat());
            qemu::io("vmdk", &at.join(file("top")), &qemu::random_writes(rng, 5 * MIB, 12));
        }
        "vdi" => {
            chain("vdi", at, 4 * MIB, MIB, 5);
            std::fs::rename(at.join("image.vdi"), at.join("top.vdi")).unwrap();
            std::fs::rename(at.join("middle.vdi"), at.join("between.vdi")).unwrap();
            std::fs::rename(at.join("base.vdi"), at.join("root.vdi")).unwrap();
            std::fs::rename(at.join("between.vdi"), at.join("base.vdi")).unwrap();
        }
        _ => {
            let base = create(format, &at.join(file("base")), 5 * MIB, "", None).unwrap();
            disk(&base).write_at(70_000, &[1; 400_000]).unwrap();
            disk(&base).flush().unwrap();
            let size = disk(&base).size();
            drop(base);
            let top = create(format, &at.join(file("top")), size, "", Some(&at.join(file("base")))).unwrap();
            disk(&top).write_at(300_000, &[2; 900_000]).unwrap();
            disk(&top).flush().unwrap();
        }
    }
    read(format, &at.join(file("top")))
}

/// What another program reads, if one reads differences of the format.
fn foreign(format: &str, path: &Path) -> Option<Vec<u8>> {
    match format {
        "vmdk" => {
            let out = path.with_extension("foreign");
            let ran = tool("qemu-img").args(["convert", "-f", "vmdk", "-O", "raw"]).arg(path).arg(&out).run();
            (ran.status == 0).then(|| std::fs::read(out).unwrap())
        }
        "vdi" => None,
        _ => Some(read_by_7zip(path)),
    }
}

#[test]
fn a_child_whose_parent_has_become_another_is_refused_and_mended() {
    for (format, subformat) in
        [("vmdk", "monolithicSparse"), ("vmdk", "twoGbMaxExtentSparse"), ("vhdx", ""), ("vdi", "")]
    {
        let dir = scratch();
        let at = dir.path();
        let want = family(format, subformat, at);
        let (base, top) = (format!("base.{format}"), format!("top.{format}"));
        // The commit comes as far as the parent's new identity.
        open(format, &at.join(&base), true).unwrap().renew_identity().unwrap();
        let before = [&base, &top].map(|file| std::fs::read(at.join(file)).unwrap());
        for args in
            [&["convert", "-O", "raw", &top, "out.raw"][..], &["commit", &top], &["rebase", "-b", "", &top]]
        {
            let said = run(at, args);
            assert!(said.failed().contains("rebase -u"), "{format}: {said}");
        }
        assert!(before == [&base, &top].map(|file| std::fs::read(at.join(file)).unwrap()), "{format}");
        if format == "vmdk" {
            assert_eq!(foreign(format, &at.join(&top)), None, "QEMU reads it all the same");
        }
        run(at, &["rebase", "-u", "-b", &base, "-F", format, &top]).ok();
        assert!(read(format, &at.join(&top)) == want, "{format} {subformat}");
        assert_eq!(findings(format, &at.join(&top), false), Vec::<String>::new());
        if let Some(seen) = foreign(format, &at.join(&top)) {
            assert!(seen[..want.len()] == want[..], "{format} {subformat}");
        }
        // And the commit can be done again.
        run(at, &["commit", &top]).ok();
        assert!(read(format, &at.join(&base)) == want, "{format} {subformat}");
        if let Some(seen) = foreign(format, &at.join(&base)) {
            assert!(seen[..want.len()] == want[..], "{format} {subformat}");
        }
    }
}
