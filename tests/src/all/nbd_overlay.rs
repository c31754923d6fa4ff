//! `racker disk serve --copy-on-write`: the image stays as it is, and what was written is there the next time.

use std::path::Path;

use racker_fixtures::case;
use racker_tests::tool::{Ran, racker, tool};

use super::nbd::Served;

fn serve(at: &Path, args: &[&str]) -> Ran {
    racker().args(["disk", "serve"]).args(args).args(["--run", "true"]).dir(at).run()
}

fn io(uri: &str, command: &str) {
    let ran = tool("qemu-io").args(["-f", "raw", "-c", command, uri]).run();
    assert!(ran.status == 0 && !ran.text().contains("failed"), "{ran}");
}

#[test]
fn writes_are_kept_beside_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    case("ock/boot").unpack(at);
    let script =
        "mkdir far; qemu-img create -q -f raw ./a:b.raw 10M; qemu-io -f raw -c 'write -P 5 0 1M' ./a:b.raw";
    tool("sh").args(["-c", script]).dir(at).ok();
    let before = ["boot.qcow2", "a:b.raw"].map(|n| std::fs::read(at.join(n)).unwrap());
    let args = ["--copy-on-write", "one", "--copy-on-write", "far/two", "boot.qcow2", "./a:b.raw", "-f"];
    // Two formats cannot be typed; what a raw image is has to be.
    assert!(serve(at, &args[..6]).failed().contains("-f raw"));
    std::fs::remove_file(at.join("one")).unwrap();

    let served = Served::start(at, &["--copy-on-write", "one", "boot.qcow2"], 4);
    io(&served.uris[0], "write -P 0x51 900M 64k");
    served.end();
    let served = Served::start(at, &["--copy-on-write", "one", "boot.qcow2"], 4);
    io(&served.uris[0], "read -P 0x51 900M 64k");
    io(&served.uris[0], "write -P 0x52 901M 64k");
    io(&served.uris[0], "flush");
    served.kill();
    let served = Served::start(at, &["--copy-on-write", "far/two", "-f", "raw", "a:b.raw"], 1);
    io(&served.uris[0], "write -P 0x53 512k 1M");
    io(&served.uris[0], "read -P 5 0 512k");
    served.end();
    assert_eq!(["boot.qcow2", "a:b.raw"].map(|n| std::fs::read(at.join(n)).unwrap()), before);

    // QEMU reads both by themselves.
    let info = tool("qemu-img").args(["info", "one"]).dir(at).ok();
    assert!(
        info.contains("backing file: boot.qcow2") && info.contains("backing file format: qcow2"),
        "{info}"
    );
    let read = |name: &str, command: &str| {
        tool("qemu-io").args(["-r", "-f", "qcow2", "-c", command, name]).dir(at).ok()
    };
    assert!(!read("one", "read -P 0x52 901M 64k").contains("failed"));
    assert!(!read("far/two", "read -P 0x53 512k 1M").contains("failed"));
    assert!(!read("far/two", "read -P 5 0 512k").contains("failed"));
    assert!([0, 3].contains(&tool("qemu-img").args(["check", "-q", "one"]).dir(at).run().status));
    tool("qemu-img").args(["check", "-q", "far/two"]).dir(at).ok();

    // Files of other images, and such as are none.
    for (file, image, why) in [
        ("far/two", "boot.qcow2", "not over boot.qcow2"),
        ("boot.qcow2", "boot.qcow2", "no backing file"),
        ("a:b.raw", "boot.qcow2", "qcow2"),
    ] {
        let failed = serve(at, &["--copy-on-write", file, image]);
        assert!(failed.failed().contains(why), "{failed}");
    }
    assert!(serve(at, &["--copy-on-write", "x", "boot.qcow2", "one"]).failed().contains("2 images"));
    assert_eq!(serve(at, &["-s", "--copy-on-write", "x", "boot.qcow2"]).status, 2);
    assert!(!at.join("x").exists());
    assert_eq!(["boot.qcow2", "a:b.raw"].map(|n| std::fs::read(at.join(n)).unwrap()), before);
}
