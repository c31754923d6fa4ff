//! What `racker disk convert` can be asked for besides a format, beside `qemu-img convert` with the same words.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use racker_fixtures::case;
use racker_tests::qemu;
use racker_tests::tool::{Ran, racker, racker_at_terminal, tool};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a qcow2 image and a chain of two over it.
struct Bench(TempDir);

const SIZE: u64 = 8 << 20;

impl Bench {
    fn new() -> Self {
        let bench = Self(racker_tests::image::scratch());
        bench.qemu(&["create", "-q", "-f", "qcow2", "base.qcow2", "8M"]);
        bench.io("base.qcow2", &["write -P 1 0 1M", "write -P 2 3M 1M", "write -P 9 7M 64k"]);
        bench.qemu(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
        bench.io("top.qcow2", &["write -P 3 64k 100k", "write -z 3M 128k", "write -P 4 5M 1000"]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn qemu(&self, args: &[&str]) -> String {
        qemu::img_in(self.0.path(), args)
    }

    fn io(&self, image: &str, commands: &[&str]) {
        let commands: Vec<String> = commands.iter().map(|c| (*c).to_string()).collect();
        qemu::io("qcow2", &self.path(image), &commands);
    }

    fn convert(&self, args: &[&str]) -> Ran {
        racker().args(["disk", "convert"]).args(args).dir(self.0.path()).run()
    }

    /// The two read the same, as QEMU sees them, and the second is sound.
    fn same(&self, a: &str, b: &str) {
        self.qemu(&["compare", a, b]);
        if b.ends_with("qcow2") {
            qemu::check(&self.path(b));
        }
    }

    fn count(&self) -> usize {
        std::fs::read_dir(self.0.path()).unwrap().count()
    }
}

/// Bytes that the image itself holds.
fn own_data(map: &str) -> u64 {
    let map: Value = serde_json::from_str(map).unwrap();
    let own = |e: &&Value| e["depth"] == 0 && e["data"] == true;
    map.as_array().unwrap().iter().filter(own).map(|e| e["length"].as_u64().unwrap()).sum()
}

#[test]
fn an_overlay_holds_what_differs_and_no_more() {
    let bench = Bench::new();
    bench.qemu(&["convert", "-O", "raw", "base.qcow2", "base.raw"]);
    bench.qemu(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "foreign.qcow2"]);
    for (i, (source, base, format, options)) in [
        // The same backing file, another with the same content, one with other content.
        ("top.qcow2", "base.qcow2", "qcow2", "cluster_size=64k"),
        ("top.qcow2", "base.raw", "raw", "cluster_size=4k"),
        ("top.qcow2", "base.raw", "raw", "compat=0.10"),
        ("top.qcow2", "base.raw", "raw", "extended_l2=on"),
        ("top.qcow2", "foreign.qcow2", "qcow2", "cluster_size=2M"),
    ]
    .into_iter()
    .enumerate()
    {
        for extra in [&["-S", "4k"][..], &["-S", "0"], &["-c"], &["--verify"]] {
            let out = format!("out{i}.qcow2");
            let args = ["-O", "qcow2", "-o", options, "-B", base, "-F", format, source, &out];
            let ran = bench.convert(&[extra, &args].concat());
            assert_eq!(ran.status, 0, "{ran}");
            bench.same(source, &out);
            let info = bench.qemu(&["info", "--output=json", &out]);
            let info: Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["backing-filename"], base);
            let own = own_data(&bench.qemu(&["map", "--output=json", &out]));
            let most = if options.ends_with("2M") { 6 << 20 } else { 600 << 10 };
            assert!(own <= most, "{options} {extra:?} {own}");
        }
    }
    // A base that lacks something: qemu-img trusts the user, racker looks.
    bench.qemu(&["create", "-q", "-f", "qcow2", "empty.qcow2", "2M"]);
    bench.convert(&["-O", "qcow2", "-B", "empty.qcow2", "top.qcow2", "over.qcow2"]).ok();
    bench.same("top.qcow2", "over.qcow2");
    bench.convert(&["-O", "qcow2", "-o", "backing_file=empty.qcow2", "top.qcow2", "by-o.qcow2"]).ok();
    bench.same("top.qcow2", "by-o.qcow2");
}

#[test]
fn a_backing_file_is_refused_where_it_makes_no_sense() {
    let bench = Bench::new();
    let before = bench.count();
    for (args, said) in [
        (&["-O", "raw", "-B", "base.qcow2", "top.qcow2", "x"][..], "raw images have no backing file"),
        (&["-O", "qcow2", "-F", "qcow2", "top.qcow2", "x"], "name that with -B"),
        (&["-O", "qcow2", "-B", "base.qcow2", "top.qcow2", "base.qcow2", "x"], "several disks in a row"),
        (&["-O", "qcow2", "-B", "missing", "top.qcow2", "x"], "missing"),
        (&["-O", "qcow2", "-B", "base.qcow2", "top.qcow2", "base.qcow2"], "using this image"),
        (&["-O", "qcow2", "top.qcow2", "base.qcow2"], "using this image"),
        (&["-O", "qcow2", "-c", "-o", "preallocation=full", "top.qcow2", "x"], "rule each other out"),
        (&["-O", "raw", "-c", "top.qcow2", "x"], "compression"),
        (&["-O", "vmdk", "-B", "base.qcow2", "top.qcow2", "x"], "must be a VMDK"),
        (&["-O", "qcow2", "top.qcow2", "top.qcow2"], "is the source as well"),
    ] {
        let ran = bench.convert(args);
        assert!(ran.failed().contains(said), "{args:?}: {ran}");
    }
    assert_eq!(bench.count(), before);
    bench.same("top.qcow2", "top.qcow2");
}

#[test]
fn wrong_usage_is_told_apart() {
    let bench = Bench::new();
    for args in [
        &["-S", "100", "top.qcow2", "x"][..],
        &["-S", "32M", "top.qcow2", "x"],
        &["-r", "fast", "top.qcow2", "x"],
        &["-m", "0", "top.qcow2", "x"],
        &["--target-is-zero", "top.qcow2", "x"],
        &["top.qcow2"],
    ] {
        assert_eq!(bench.convert(args).status, 2, "{args:?}");
    }
}

#[test]
fn several_sources_follow_each_other() {
    let bench = Bench::new();
    std::fs::write(bench.path("odd.raw"), vec![7u8; 100_001]).unwrap();
    let args = ["top.qcow2", "odd.raw", "base.qcow2"];
    bench.qemu(&[&["convert", "-O", "raw"], &args[..], &["theirs.raw"]].concat());
    for format in ["raw", "qcow2", "vmdk"] {
        let out = format!("ours.{format}");
        bench.convert(&[&["--verify", "-O", format], &args[..], &[&out]].concat()).ok();
        bench.same("theirs.raw", &out);
    }
    let len = |name: &str| bench.path(name).metadata().unwrap().len();
    assert_eq!(len("ours.raw"), len("theirs.raw"));
}

#[test]
fn an_image_that_is_there_is_written_into() {
    let bench = Bench::new();
    for (format, size) in [("raw", "8M"), ("qcow2", "8M"), ("qcow2", "9M"), ("vmdk", "8M"), ("vhdx", "8M")] {
        let out = format!("out-{size}.{format}");
        bench.qemu(&["create", "-q", "-f", format, &out, size]);
        tool("qemu-io").args(["-f", format, "-c", "write -P 99 0 8M"]).arg(bench.path(&out)).ok();
        bench.convert(&["-n", "--verify", "-O", format, "top.qcow2", &out]).ok();
        bench.same("top.qcow2", &out);
    }
    // Told that it is zero, racker does not write zeroes.
    bench.qemu(&["create", "-q", "-f", "qcow2", "zero.qcow2", "8M"]);
    bench.convert(&["-n", "--target-is-zero", "-O", "qcow2", "top.qcow2", "zero.qcow2"]).ok();
    bench.same("top.qcow2", "zero.qcow2");
    let map: Value = serde_json::from_str(&bench.qemu(&["map", "--output=json", "zero.qcow2"])).unwrap();
    assert!(map.as_array().unwrap().iter().any(|e| e["present"] == false));
    // Without -O the content says what it is; qemu-img would write over the image's own header.
    bench.convert(&["-n", "base.qcow2", "zero.qcow2"]).ok();
    bench.same("base.qcow2", "zero.qcow2");

    bench.qemu(&["create", "-q", "-f", "qcow2", "small.qcow2", "7M"]);
    let ran = bench.convert(&["-n", "-O", "qcow2", "top.qcow2", "small.qcow2"]);
    assert!(ran.failed().contains("too small"), "{ran}");
    let ran = bench.convert(&["-n", "-O", "qcow2", "top.qcow2", "missing.qcow2"]);
    assert!(ran.failed().contains("No such file"), "{ran}");
    bench.qemu(&["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "child.qcow2"]);
    let ran = bench.convert(&["-n", "--target-is-zero", "-O", "qcow2", "top.qcow2", "child.qcow2"]);
    assert!(ran.failed().contains("backing file"), "{ran}");
    bench.convert(&["-n", "-O", "qcow2", "top.qcow2", "child.qcow2"]).ok();
    bench.same("top.qcow2", "child.qcow2");
}

#[test]
fn what_cannot_be_read_fails_the_copy_or_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = case("attacks/qcow2-cluster-past-end");
    damaged.unpack(dir.path());
    let image = dir.path().join(&damaged.images()[0]);
    let out = dir.path().join("out.raw");
    let convert = |args: &[&str]| racker().args(["disk", "convert"]).args(args).arg(&image).arg(&out).run();
    convert(&[]).failed();
    assert!(!out.exists());
    let ran = convert(&["--salvage", "--verify"]);
    assert!(ran.status == 0 && ran.err.contains("could not be read"), "{ran}");
    let quiet = convert(&["--salvage", "-q"]);
    assert!(quiet.status == 0 && quiet.err.is_empty(), "{quiet}");
}

#[test]
fn a_rate_is_kept() {
    let bench = Bench::new();
    let started = Instant::now();
    bench.convert(&["-O", "qcow2", "-r", "2M", "base.qcow2", "out.qcow2"]).ok();
    // 2.06 MiB of data; the last piece need not be waited for.
    assert!(started.elapsed() > Duration::from_millis(900));
    bench.same("base.qcow2", "out.qcow2");
}

#[test]
fn a_copy_that_need_not_last_waits_for_nothing() {
    // Where the kernel lets nobody look at another program, only the copies are compared.
    let can_look = tool("strace").args(["-o", "/dev/null", "true"]).run().status == 0;
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "data_file=out.data"),
        ("vmdk", ""),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vhdx", ""),
    ] {
        for durable in [true, false] {
            let bench = Bench::new();
            let out = format!("out.{format}");
            let mut args =
                vec!["disk", "convert", "-O", format, "-t", if durable { "writeback" } else { "unsafe" }];
            args.extend(["-o", options].into_iter().filter(|_| !options.is_empty()));
            args.extend(["base.qcow2", &out]);
            let program = if can_look { tool("strace") } else { tool(racker_tests::tool::binary()) };
            let look = ["-f", "-qq", "-o", "calls", "-e", "trace=fsync,fdatasync,syncfs,sync_file_range"];
            let program =
                if can_look { program.args(look).arg(racker_tests::tool::binary()) } else { program };
            program.dir(bench.0.path()).args(args).run().ok();
            if can_look {
                let calls = std::fs::read_to_string(bench.path("calls")).unwrap();
                assert_eq!(calls.lines().count() > 0, durable, "{format} {options}:\n{calls}");
                std::fs::remove_file(bench.path("calls")).unwrap();
            }
            bench.qemu(&["compare", "base.qcow2", &out]);
            if !options.contains("data_file") && format != "raw" {
                let found = racker_tests::image::findings(format, &bench.path(&out), false);
                assert_eq!(found, Vec::<String>::new(), "{format} {options}");
            }
        }
    }
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    for signal in ["INT", "TERM", "HUP"] {
        let dir = racker_tests::image::scratch();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("in.raw"), vec![5u8; SIZE as usize]).unwrap();
        std::fs::write(path("out.vmdk"), "precious").unwrap();
        let args = ["disk", "convert", "-r", "1M", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"];
        let mut child = racker_at_terminal().args(args).arg(path("in.raw")).arg(path("out.vmdk")).spawn();
        std::thread::sleep(Duration::from_millis(700));
        tool("kill").args([&format!("-{signal}"), &child.id().to_string()]).ok();
        let status = child.wait().unwrap();
        let number = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!(
            number,
            Some(match signal {
                "INT" => 2,
                "TERM" => 15,
                _ => 1,
            })
        );
        assert_eq!(std::fs::read(path("out.vmdk")).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn a_copy_is_read_back_in_every_format() {
    let bench = Bench::new();
    for args in [
        &["-O", "raw"][..],
        &["-O", "qcow2"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        &["-O", "qcow2", "-o", "data_file=out.data"],
        &["-O", "vmdk"],
        &["-O", "vmdk", "-o", "subformat=streamOptimized"],
        &["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
        &["-O", "vmdk", "-o", "subformat=monolithicFlat"],
        &["-O", "vpc", "-o", "force_size=on"],
        &["-O", "vdi"],
        &["-O", "vhdx"],
    ] {
        bench.convert(&[args, &["--verify", "-W", "-C", "-m", "3", "top.qcow2", "out"]].concat()).ok();
        bench.same("top.qcow2", "out");
    }
}

#[test]
fn commas_in_values_are_typed_twice() {
    let bench = Bench::new();
    std::fs::copy(bench.path("base.qcow2"), bench.path("a,b.qcow2")).unwrap();
    let option = "backing_file=a,,b.qcow2,backing_fmt=qcow2";
    bench.convert(&["-O", "qcow2", "-o", option, "top.qcow2", "out.qcow2"]).ok();
    bench.same("top.qcow2", "out.qcow2");
}

#[test]
fn a_snapshot_is_copied_by_number_or_name() {
    let bench = Bench::new();
    // The second snapshot is called as the first one is numbered.
    for (name, pattern) in [("first", "0x21"), ("1", "0x22"), ("third one", "0x23")] {
        bench.io("top.qcow2", &[&format!("write -P {pattern} 2M 100k")]);
        bench.qemu(&["snapshot", "-c", name, "top.qcow2"]);
    }
    bench.io("top.qcow2", &["write -P 0x24 2M 100k"]);
    for which in
        ["first", "1", "third one", "snapshot.id=2", "snapshot.name=1", "snapshot.name=first,snapshot.id=1"]
    {
        bench.qemu(&["convert", "-l", which, "-O", "raw", "top.qcow2", "theirs.raw"]);
        bench.convert(&["--verify", "-l", which, "-O", "qcow2", "top.qcow2", "ours.qcow2"]).ok();
        bench.same("theirs.raw", "ours.qcow2");
        let over = ["-l", which, "-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2", "top.qcow2", "over.qcow2"];
        bench.convert(&over).ok();
        bench.same("theirs.raw", "over.qcow2");
    }
    for (args, said) in [
        (&["-l", "none", "top.qcow2", "x"][..], "no snapshot"),
        (&["-l", "snapshot.id=9", "top.qcow2", "x"], "no snapshot"),
        (&["-l", "snapshot.uuid=9", "top.qcow2", "x"], "snapshot.id"),
        (&["-l", "1", "-f", "raw", "top.qcow2", "x"], "raw images have no snapshots"),
        (&["-l", "1", "top.qcow2", "base.qcow2", "x"], "several"),
    ] {
        let ran = bench.convert(args);
        assert!(ran.failed().contains(said), "{args:?}: {ran}");
    }
}

#[test]
fn levels_trade_time_for_size() {
    let bench = Bench::new();
    let text: Vec<u8> =
        (0..400_000u32).flat_map(|i| format!("{} ", i.wrapping_mul(7919) % 100_003).into_bytes()).collect();
    std::fs::write(bench.path("in.raw"), &text[..2 << 20]).unwrap();
    let size = |format: &str, options: &str| {
        bench.convert(&["-c", "-f", "raw", "-O", format, "-o", options, "in.raw", "out"]).ok();
        bench.qemu(&["compare", "-f", "raw", "-F", format, "in.raw", "out"]);
        bench.path("out").metadata().unwrap().len()
    };
    let stream = "subformat=streamOptimized,compression_level=";
    assert!(size("vmdk", &format!("{stream}12")) < size("vmdk", &format!("{stream}1")));
    let zstd = "compression_type=zstd,compression_level=";
    assert!(size("qcow2", &format!("{zstd}19")) < size("qcow2", &format!("{zstd}1")));
    for (format, options) in
        [("qcow2", "compression_level=3"), ("vmdk", "compression_level=3"), ("raw", "compression_level=3")]
    {
        bench.convert(&["-O", format, "-o", options, "in.raw", "x"]).failed();
    }
}
