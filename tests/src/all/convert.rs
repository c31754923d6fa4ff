//! `racker disk convert` from every image of foreign tools, to every format, judged by `qemu-img`.

use std::path::{Path, PathBuf};

use racker_fixtures::{Case, case, group};
use racker_tests::manifest::hex;
use racker_tests::qemu;
use racker_tests::tool::{Ran, racker, tool};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// `racker disk convert ARGS… FROM TO`
fn convert(args: &[&str], from: &Path, to: &Path) -> Ran {
    racker().args(["disk", "convert"]).args(args).arg(from).arg(to).run()
}

fn unpacked(case: &Case) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    case.unpack(dir.path());
    let names = case.images();
    // A case with several files calls the one to open `image`.
    let name = names.iter().find(|n| n.starts_with("image.")).unwrap_or(&names[0]);
    let path = dir.path().join(name);
    (dir, path)
}

/// All cases of a group whose content is known.
fn expected(name: &str) -> Vec<(Case, Value)> {
    let known = |case: Case| Some((case.clone(), serde_json::from_str(&case.text("expect")?).unwrap()));
    let all: Vec<(Case, Value)> = group(name).into_iter().filter_map(known).collect();
    assert!(!all.is_empty());
    all
}

/// `qemu-img compare`, and `check` where the format has it.
fn same(a: &Path, b: &Path, format: &str) {
    qemu::img(&["compare".as_ref(), "-F".as_ref(), format.as_ref(), a.as_os_str(), b.as_os_str()]);
    if format == "qcow2" {
        qemu::check(b);
    }
}

fn to_raw(group: &str) {
    for (case, expect) in expected(group) {
        let (dir, image) = unpacked(&case);
        let raw = dir.path().join("out.raw");
        let ran = convert(&["-O", "raw"], &image, &raw);
        assert_eq!(ran.status, 0, "{}: {ran}", case.name);
        let (size, sum) = sha256(&raw);
        assert_eq!(expect["virtual-size"], size, "{}", case.name);
        assert_eq!(expect["sha256"], sum, "{}", case.name);
    }
}

fn sha256(path: &Path) -> (u64, String) {
    let mut file = std::fs::File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let n = std::io::Read::read(&mut file, &mut buf).unwrap();
        if n == 0 {
            return (size, hex(&hash.finalize()));
        }
        hash.update(&buf[..n]);
        size += n as u64;
    }
}

#[test]
fn qcow2_to_raw() {
    to_raw("qcow2");
}

#[test]
fn vmdk_to_raw() {
    to_raw("vmdk");
}

#[test]
fn vhd_vdi_and_vhdx_to_raw() {
    ["vhd", "vdi", "vhdx", "differencing"].into_iter().for_each(to_raw);
}

#[test]
fn vhdx_to_all() {
    to_all(&case("vhdx/fixed"));
}

#[test]
fn an_encrypted_image_is_not_read_as_data() {
    let (dir, image) = unpacked(&case("qcow2/encrypted"));
    let raw = dir.path().join("out.raw");
    let ran = convert(&["-O", "raw"], &image, &raw);
    assert!(ran.failed().contains("encrypt"), "{ran}");
    assert!(!raw.exists());
}

/// Everything that racker writes.
const TARGETS: [(&str, &str, &[&str]); 12] = [
    ("raw", "raw", &["-O", "raw"]),
    ("qcow2", "qcow2", &["-O", "qcow2"]),
    ("qcow2", "old.qcow2", &["-O", "qcow2", "-o", "compat=0.10"]),
    ("qcow2", "small.qcow2", &["-O", "qcow2", "-o", "cluster_size=4k"]),
    ("qcow2", "zlib.qcow2", &["-c", "-O", "qcow2"]),
    ("qcow2", "zstd.qcow2", &["-c", "-O", "qcow2", "-o", "compression_type=zstd"]),
    ("vmdk", "vmdk", &["-O", "vmdk"]),
    ("vmdk", "stream.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ("vpc", "vhd", &["-O", "vhd", "-o", "force_size=on"]),
    ("vpc", "fixed.vhd", &["-O", "vpc", "-o", "force_size=on,subformat=fixed"]),
    ("vdi", "vdi", &["-O", "vdi"]),
    ("vhdx", "vhdx", &["-O", "vhdx"]),
];

fn to_all(case: &Case) {
    let (dir, image) = unpacked(case);
    // The oracle reads the same image; archives are opened by who made them.
    let oracle = dir.path().join("oracle.raw");
    match image.extension().unwrap().to_str().unwrap() {
        "box" => {
            let list = tool("tar").arg("-tf").arg(&image).ok();
            let member = list.lines().find(|n| n.ends_with(".vmdk") || n.ends_with(".img")).unwrap();
            tool("tar").arg("-C").arg(dir.path()).arg("-xf").arg(&image).arg(member).ok();
            let member = dir.path().join(member);
            qemu::img(&[
                "convert".as_ref(),
                "-O".as_ref(),
                "raw".as_ref(),
                member.as_os_str(),
                oracle.as_os_str(),
            ]);
        }
        _ => drop(qemu::img_in(
            dir.path(),
            &["convert", "-O", "raw", &image.display().to_string(), "oracle.raw"],
        )),
    }
    for (format, suffix, args) in TARGETS {
        let out = dir.path().join(format!("out.{suffix}"));
        let ran = convert(args, &image, &out);
        assert_eq!(ran.status, 0, "{} {args:?}: {ran}", case.name);
        same(&oracle, &out, format);
        // And what racker wrote it reads.
        let back = dir.path().join("back.raw");
        let ran = convert(&["-O", "raw"], &out, &back);
        assert!(ran.status == 0 || format == "raw", "{ran}");
        if format != "raw" {
            same(&oracle, &back, "raw");
            std::fs::remove_file(back).unwrap();
        }
        std::fs::remove_file(out).unwrap();
    }
}

#[test]
fn boot_image_to_all() {
    to_all(&case("ock/boot"));
}

#[test]
fn box_to_all() {
    to_all(&case("vagrant/virtualbox"));
}

#[test]
fn every_box_to_raw() {
    for name in ["virtualbox", "bsdtar", "plain", "libvirt"] {
        let (dir, image) = unpacked(&case(&format!("vagrant/{name}")));
        let raw = dir.path().join("out.raw");
        let ran = convert(&["-O", "raw"], &image, &raw);
        assert_eq!(ran.status, 0, "{name}: {ran}");
        let member = tool("tar").arg("-tf").arg(&image).ok();
        let member =
            member.lines().find(|n| n.ends_with(".vmdk") || n.ends_with(".img")).unwrap().to_string();
        tool("tar").arg("-C").arg(dir.path()).arg("-xf").arg(&image).arg(&member).ok();
        same(&dir.path().join(member), &raw, "raw");
    }
}

#[test]
fn backing_chain_to_all() {
    to_all(&case("qcow2/backing"));
}

#[test]
fn internal_snapshots_to_all() {
    to_all(&case("qcow2/snapshots"));
}

#[test]
fn stream_to_all() {
    to_all(&case("vmdk/stream"));
}

#[test]
fn split_disk_to_qcow2() {
    let (dir, image) = unpacked(&case("vmdk/twoGbMaxExtentSparse"));
    let out = dir.path().join("out.qcow2");
    convert(&["-O", "qcow2"], &image, &out).ok();
    same(&image, &out, "qcow2");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (dir, image) = unpacked(&case("ock/boot"));
    for (suffix, args) in [
        ("qcow2", vec!["-c", "-O", "qcow2"]),
        // The content id is random unless it is given, and the descriptor has the name of the file.
        ("vmdk", vec!["-O", "vmdk", "-o", "subformat=streamOptimized,cid=123"]),
    ] {
        let sums: Vec<String> = ["1", "2", "7"]
            .iter()
            .map(|threads| {
                let out = dir.path().join(format!("out.{suffix}"));
                convert(&[args.as_slice(), &["-m", threads]].concat(), &image, &out).ok();
                sha256(&out).1
            })
            .collect();
        assert!(sums.windows(2).all(|w| w[0] == w[1]), "{suffix}: {sums:?}");
    }
}

#[test]
fn what_stood_at_the_destination_stays_when_it_fails() {
    let (dir, image) = unpacked(&case("attacks/qcow2-cluster-past-end"));
    let out = dir.path().join("out.raw");
    std::fs::write(&out, "precious").unwrap();
    let ran = convert(&["-O", "raw"], &image, &out);
    ran.failed();
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
}
