//! OVA, boxes, and what platforms import: judged by tar, `qemu-img`, Python's XML parser and `sha256sum`.

use std::path::PathBuf;

use racker_tests::qemu;
use racker_tests::tool::{Ran, racker, racker_at_terminal, tool};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a raw disk of an odd number of sectors, data here and there.
struct Bench(TempDir);

const SIZE: u64 = (20 << 20) + 512;

impl Bench {
    fn new() -> Self {
        let dir = racker_tests::image::scratch();
        let file = std::fs::File::create(dir.path().join("disk.raw")).unwrap();
        file.set_len(SIZE).unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for at in [1024, (7 << 20) + 100, SIZE - 400_000] {
            std::os::unix::fs::FileExt::write_all_at(&file, &data, at).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn convert(&self, args: &[&str], out: &str) -> Ran {
        let base = ["disk", "convert", "--verify"];
        racker().args(base).args(args).args(["disk.raw", out]).dir(self.0.path()).run()
    }

    /// Unpacks an archive into a folder; says what is in it, in order.
    fn unpack(&self, archive: &str) -> Vec<String> {
        let folder = self.path("out");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        tool("tar").arg("-C").arg(&folder).arg("-xf").arg(self.path(archive)).ok();
        let list = tool("tar").arg("-tf").arg(self.path(archive)).ok();
        // Whoever reads the archive with racker gets the disk as well.
        racker().args(["disk", "compare", "disk.raw", archive]).dir(self.0.path()).ok();
        list.lines().map(String::from).collect()
    }

    fn same(&self, format: &str, image: &str) {
        qemu::img_in(self.0.path(), &["compare", "-f", "raw", "-F", format, "disk.raw", image]);
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// What an XML parser finds in a file of `out`: each element with its attributes and text, one a line.
    fn xml(&self, name: &str) -> Vec<String> {
        let script = "import sys, xml.etree.ElementTree as E\n\
            cut = lambda n: n.split('}')[-1]\n\
            for e in E.parse(sys.argv[1]).iter():\n\
            \x20 a = ' '.join(f'{cut(k)}={v}' for k, v in sorted(e.attrib.items()))\n\
            \x20 print(cut(e.tag), a, (e.text or '').strip(), sep='|')";
        let told = tool("python3").args(["-c", script]).arg(self.path("out").join(name)).ok();
        told.lines().map(String::from).collect()
    }
}

#[test]
fn an_ova_has_a_descriptor_digests_and_a_disk() {
    let bench = Bench::new();
    for (profile, machine, stem, disk, format) in [
        ("vmware", "vmx-13", "my_vm", "my_vm-disk1.vmdk", "vmdk"),
        ("virtualbox", "virtualbox-2.2", "my_vm", "my_vm-disk1.vmdk", "vmdk"),
        ("ovirt", "ENGINE", "vm", "a8a4bb3f-7f8c-4b0e-8f4e-0d1c5a4be001", "qcow2"),
    ] {
        let options = format!("profile={profile},name=my&vm,memory=3G,cpus=4");
        bench.convert(&["-O", "ova", "-o", &options], "x.ova").ok();
        let members = bench.unpack("x.ova");
        assert_eq!(members, [format!("{stem}.ovf"), format!("{stem}.mf"), disk.into()]);
        bench.same(format, &format!("out/{disk}"));
        // The manifest, by another program.
        for line in bench.text(&format!("out/{stem}.mf")).lines() {
            let (name, sum) = line.strip_prefix("SHA256(").unwrap().split_once(")= ").unwrap();
            let theirs = tool("sha256sum").arg(bench.path("out").join(name)).ok();
            assert_eq!(theirs.split_whitespace().next().unwrap(), sum);
        }
        let size = bench.path("out").join(disk).metadata().unwrap().len();
        let found = bench.xml(&format!("{stem}.ovf"));
        let has =
            |text: &str| assert!(found.iter().any(|l| l.contains(text)), "{profile}: {text}: {found:#?}");
        has(&format!("href={disk}"));
        has(&format!("size={size}|"));
        has(&format!("VirtualSystemType||{machine}"));
        has("Name||my&vm");
        has("VirtualQuantity||4");
        has("VirtualQuantity||3072");
        if profile == "ovirt" {
            has("capacity=1 capacityAllocationUnits=byte * 2^30");
            has("volume-format=COW");
        } else {
            has(&format!("capacity={SIZE} capacityAllocationUnits=byte"));
            has("#streamOptimized");
        }
        // The schema wants the elements of a device in the order of the alphabet.
        let items: Vec<&str> = found.iter().map(|l| l.split('|').next().unwrap()).collect();
        let devices: Vec<_> = items.split(|e| *e == "Item").skip(1).collect();
        assert_eq!(devices.len(), 5);
        assert!(devices.iter().all(|d| d.is_sorted()), "{devices:?}");
        assert!(std::fs::read(bench.path("x.ova")).unwrap().len().is_multiple_of(10_240));
    }
}

#[test]
fn an_ova_goes_down_a_pipe() {
    let bench = Bench::new();
    let run = racker().args(["disk", "convert", "-O", "ova", "disk.raw", "-"]).dir(bench.0.path()).run();
    assert_eq!(run.status, 0, "{run}");
    std::fs::write(bench.path("x.ova"), &run.out).unwrap();
    assert_eq!(bench.unpack("x.ova").len(), 3);
    let left: Vec<_> = std::fs::read_dir(bench.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_box_has_what_its_provider_reads() {
    let bench = Bench::new();
    for (provider, disk, format, others) in [
        ("virtualbox", "box-disk001.vmdk", "vmdk", &["box.ovf"][..]),
        ("libvirt", "box.img", "qcow2", &[]),
        ("vmware_desktop", "disk.vmdk", "vmdk", &["box.vmx"]),
        ("hyperv", "Virtual Hard Disks/disk.vhdx", "vhdx", &["Virtual Machines/box.xml"]),
    ] {
        bench.convert(&["-O", "box", "-o", &format!("provider={provider}")], "x.box").ok();
        let members = bench.unpack("x.box");
        let want = [&["metadata.json", "Vagrantfile"], others, &[disk]].concat();
        assert_eq!(members, want);
        bench.same(format, &format!("out/{disk}"));
        let metadata: Value = serde_json::from_str(&bench.text("out/metadata.json")).unwrap();
        assert_eq!(metadata["provider"], provider);
        assert!(bench.text("out/Vagrantfile").starts_with("Vagrant.configure(\"2\") do |config|\n"));
        match provider {
            "libvirt" => {
                assert_eq!((&metadata["format"], &metadata["virtual_size"]), (&"qcow2".into(), &1.into()))
            }
            "vmware_desktop" => assert!(bench.text("out/box.vmx").contains("fileName = \"disk.vmdk\"")),
            "virtualbox" => assert!(bench.xml("box.ovf").iter().any(|l| l.contains("href=box-disk001.vmdk"))),
            _ => assert!(bench.xml("Virtual Machines/box.xml").iter().any(|l| l.starts_with("controller0"))),
        }
        tool("gzip").arg("-t").input(std::fs::read(bench.path("x.box")).unwrap()).ok();
    }
}

#[test]
fn a_failed_package_leaves_what_was_there() {
    let bench = Bench::new();
    std::fs::write(bench.path("x.ova"), "precious").unwrap();
    for args in
        [&["-O", "ova", "-o", "profile=xen"][..], &["-O", "ova", "-n"], &["-O", "box", "-B", "disk.raw"]]
    {
        bench.convert(args, "x.ova").failed();
    }
    let args = ["disk", "convert", "-O", "ova", "-r", "100k", "disk.raw", "x.ova"];
    let mut child = racker_at_terminal().args(args).dir(bench.0.path()).spawn();
    std::thread::sleep(std::time::Duration::from_millis(500));
    tool("kill").args(["-INT", &child.id().to_string()]).ok();
    assert!(!child.wait().unwrap().success());
    assert_eq!(bench.text("x.ova"), "precious");
    assert_eq!(std::fs::read_dir(bench.0.path()).unwrap().count(), 2);
}

#[test]
fn platforms_get_what_they_import() {
    let bench = Bench::new();
    bench.convert(&["--for", "azure"], "a.vhd").ok();
    bench.same("vpc", "a.vhd");
    // Whole MiB, and the footer behind them.
    assert_eq!(bench.path("a.vhd").metadata().unwrap().len(), (21 << 20) + 512);

    for (platform, out, format, subformat) in [
        ("vsphere", "v.vmdk", "vmdk", Some("streamOptimized")),
        ("virtualbox", "v.vdi", "vdi", None),
        ("oci", "o.qcow2", "qcow2", None),
        ("hyperv", "h.vhdx", "vhdx", None),
        ("nspawn", "n.raw", "raw", None),
    ] {
        bench.convert(&["--for", platform], out).ok();
        bench.same(format, out);
        let info = qemu::img_in(bench.0.path(), &["info", "-f", format, "--output=json", out]);
        let info: Value = serde_json::from_str(&info).unwrap();
        let found = info["format-specific"]["data"]["create-type"].as_str();
        assert_eq!(found, subformat, "{platform}");
    }
    let descriptor = std::fs::read(bench.path("v.vmdk")).unwrap();
    assert!(String::from_utf8_lossy(&descriptor[..4096]).contains("ddb.adapterType = \"lsilogic\""));

    bench.convert(&["--for", "virtualbox"], "v.ova").ok();
    bench.unpack("v.ova");
    let members = bench.convert(&["--for", "gce"], "g.tar.gz");
    assert_eq!(members.status, 0, "{members}");
    assert_eq!(bench.unpack("g.tar.gz"), ["disk.raw"]);
    bench.same("raw", "out/disk.raw");
    assert_eq!(bench.path("out/disk.raw").metadata().unwrap().len(), 1 << 30);
    let gz = std::fs::read(bench.path("g.tar.gz")).unwrap();
    let head = tool("gzip").arg("-dc").input(gz).run().out;
    // Old GNU: its magic, and a sparse file.
    assert_eq!((&head[257..265], head[156]), (&b"ustar  \0"[..], b'S'));
}

/// The disk grows, and its partition table with it.
#[test]
fn a_rounded_disk_has_its_backup_table_at_the_end() {
    let bench = Bench::new();
    let script = "label: gpt\nstart=2048, size=4096\n";
    tool("sfdisk").arg("-q").arg(bench.path("disk.raw")).input(script).ok();
    bench.convert(&["--for", "azure"], "a.vhd").ok();
    let to_raw = ["convert", "-f", "vpc", "-O", "raw", "a.vhd", "a.raw"];
    qemu::img_in(bench.0.path(), &to_raw);
    let said = tool("sfdisk").arg("--verify").arg(bench.path("a.raw")).run();
    assert!(said.status == 0 && !said.err.contains("backup"), "{said} {}", said.err);
}
