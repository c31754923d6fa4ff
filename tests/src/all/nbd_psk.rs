//! TLS by keys that both sides know (PSK), with GnuTLS at the other side: libnbd and QEMU as clients, nbdkit and QEMU as
//! servers.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use racker_tests::tool::{Ran, racker, tool};

use super::nbd::{Served, certificates, make, nbdsh};
use super::nbd_client::{Other, disk};

/// Files of keys below `at`: `keys.psk` with alice and bob, `other.psk` with another alice and carol.
fn keys(at: &Path) {
    for (file, names) in [("keys.psk", ["alice", "bob"]), ("other.psk", ["alice", "carol"])] {
        for name in names {
            tool("psktool").args(["-u", name, "-p", file]).dir(at).ok();
        }
    }
}

/// What QEMU needs to know for a disk at a socket.
fn qemu(at: &Path, socket: &Path, name: &str) -> [String; 4] {
    let creds = format!("tls-creds-psk,id=t,endpoint=client,dir={},username={name}", at.display());
    let image = format!(
        "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=a.raw,file.tls-creds=t",
        socket.display()
    );
    ["--object".into(), creds, "--image-opts".into(), image]
}

fn info(uri: &str) -> Ran {
    tool("nbdinfo").args(["--size", uri]).run()
}

#[test]
fn who_has_a_key_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    keys(at);
    certificates(at);
    let served = Served::start(at, &["-f", "raw", "a.raw", "--tls-psk", "keys.psk"], 1);
    let with = |name: &str, file: &str| {
        let uri = served.uris[0].replace("nbds+unix://", &format!("nbds+unix://{name}@"));
        format!("{uri}&tls-psk-file={}", at.join(file).display())
    };
    for name in ["alice", "bob"] {
        tool("nbdcopy").args([&with(name, "keys.psk"), "copy"]).dir(at).ok();
        assert!(std::fs::read(at.join("copy")).unwrap() == std::fs::read(at.join("a.raw")).unwrap());
        tool("nbdcopy")
            .args(["--connections=4", "--requests=64", "copy", &with(name, "keys.psk")])
            .dir(at)
            .ok();
        let info = tool("qemu-img").arg("info").args(qemu(at, &served.socket, name)).dir(at).ok();
        assert!(info.contains("40 MiB"), "{info}");
    }
    let commands = ["write -P 7 1M 3M", "read -P 7 1M 3M", "flush", "read -P 3 20M 64k"];
    let commands = commands.iter().flat_map(|c| ["-c", c]);
    let ran = tool("qemu-io").args(commands).args(qemu(at, &served.socket, "bob")).dir(at).ok();
    assert!(!ran.contains("failed"), "{ran}");
    // Another key, nobody's key, none, a certificate, and no TLS.
    let uri = served.uris[0].as_str();
    let certificate = format!("{uri}&tls-certificates={}", at.join("all").display());
    for uri in [&with("alice", "other.psk"), &with("carol", "other.psk"), &certificate, uri] {
        assert_ne!(info(uri).status, 0, "{uri}");
        // Whether a good-bye arrives is a matter of luck.
        let failed = disk(at, &["info", uri]);
        assert!(failed.failed().contains("TLS") || failed.err.contains("ended the"), "{failed}");
    }
    let failed = disk(at, &["info", &with("alice", "other.psk")]);
    assert!(failed.failed().contains("has another key"), "{failed}");
    let failed = disk(at, &["info", &with("dave", "keys.psk")]);
    assert!(failed.failed().contains("no key of \"dave\""), "{failed}");
    let plain = uri.replace("nbds+unix:", "nbd+unix:");
    assert_ne!(info(&plain).status, 0);
    assert!(disk(at, &["info", &plain]).failed().contains("wants TLS"));
    super::nbd_abuse::before_tls(&served.socket);
    // Who goes without a word does not keep the server from ending, and neither does who stays.
    let uri = with("alice", "keys.psk");
    let gone = format!("h.set_uri_allow_local_file(True); h.connect_uri({uri:?}); import os; os._exit(0)");
    assert_eq!(nbdsh(&uri, &gone).status, 0);
    let script = format!(
        "h.set_uri_allow_local_file(True); h.connect_uri({uri:?}); import os; os.kill({}, 15)\n\
         try:\n  while True: h.pread(4096, 0)\nexcept nbd.Error: pass",
        served.id()
    );
    assert_eq!(nbdsh(&uri, &script).status, 0);
    served.ended();
}

#[test]
fn clients_may_be_let_in_without() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    keys(at);
    let served = Served::start(at, &["-r", "-f", "raw", "a.raw", "--tls-psk", "keys.psk", "--tls", "on"], 1);
    let uri = served.uris[0].as_str();
    let safe = format!("{uri}&tls-psk-file={}", at.join("keys.psk").display());
    let ran = tool("nbdinfo").env("LOGNAME", "bob").arg(&safe).ok();
    assert!(ran.contains("with TLS"), "{ran}");
    let ran =
        racker().args(["disk", "compare", "-f", "raw", "a.raw", &safe]).env("LOGNAME", "bob").dir(at).run();
    assert_eq!(ran.status, 0, "{ran}");
    let plain = uri.replace("nbds+unix:", "nbd+unix:");
    assert!(tool("nbdinfo").arg(&plain).ok().contains("without TLS"));
    served.end();
}

#[test]
fn servers_know_the_key_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    keys(at);
    certificates(at);
    let check = |uri: &str| {
        let with = |name: &str, how: &str| {
            let uri = uri.replace("nbd+unix://", &format!("nbds+unix://{name}@"));
            disk(at, &["compare", "-f", "raw", "a.raw", &format!("{uri}&{how}")])
        };
        with("alice", "tls-psk-file=keys.psk").ok();
        with("bob", "tls-psk-file=keys.psk&tls-type=psk").ok();
        for (name, how) in [("alice", "tls-psk-file=other.psk"), ("carol", "tls-psk-file=other.psk")] {
            let failed = with(name, how);
            assert!(failed.status == 2 && failed.err.contains("TLS: "), "{failed}");
        }
        for how in ["tls-certificates=all", "tls-psk-file=none", "tls-psk-file=all/ca-cert.pem"] {
            let failed = with("alice", how);
            assert!(failed.status == 2 && failed.err.starts_with("racker: "), "{failed}");
        }
        let copy = uri.replace("nbd+unix://", "nbds+unix://alice@");
        disk(at, &["convert", "-f", "raw", "b.raw", &format!("{copy}&tls-psk-file=keys.psk")]).ok();
        assert_eq!(with("bob", "tls-psk-file=keys.psk").status, 1);
        disk(at, &["compare", "-f", "raw", "b.raw", &format!("{copy}&tls-psk-file=keys.psk")]).ok();
    };
    let here = at.display();
    let creds = format!("--object tls-creds-psk,id=t,endpoint=server,dir={here} --tls-creds t");
    for command in [
        format!("qemu-nbd -t -e 8 -k $socket -f raw {creds} c.raw"),
        format!("nbdkit -f -U $socket --tls=require --tls-psk={here}/keys.psk file c.raw"),
    ] {
        std::fs::copy(at.join("a.raw"), at.join("c.raw")).unwrap();
        std::fs::copy(at.join("a.raw"), at.join("b.raw")).unwrap();
        tool("qemu-io").args(["-f", "raw", "-c", "write -P 9 2M 9M", "b.raw"]).dir(at).ok();
        let server = Other::start(at, &command);
        check(&server.uri);
    }
    // A key is of no use where the server has a certificate.
    let certified = Served::start(at, &["-f", "raw", "a.raw", "--tls-certificates", "all"], 1);
    let uri = certified.uris[0].replace("nbds+unix://", "nbds+unix://alice@");
    let failed = disk(at, &["info", &format!("{uri}&tls-psk-file=keys.psk")]);
    assert!(failed.failed().contains("TLS: "), "{failed}");
    let kit = Other::kit(at, &format!("--tls=require --tls-certificates={here}/all file a.raw"));
    let uri = kit.uri.replace("nbd+unix://", "nbds+unix://alice@");
    let failed = disk(at, &["info", &format!("{uri}&tls-psk-file=keys.psk")]);
    assert!(failed.failed().contains("TLS: "), "{failed}");
    let plain = Other::kit(at, "-r file a.raw");
    let uri = plain.uri.replace("nbd+unix://", "nbds+unix://alice@");
    let failed = disk(at, &["info", &format!("{uri}&tls-psk-file=keys.psk")]);
    assert!(failed.failed().contains("no TLS"), "{failed}");
}

#[test]
fn files_of_keys_are_said_to_be_bad() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    keys(at);
    let key = "0123456789abcdef0123456789abcdef";
    std::fs::write(at.join("bad.psk"), format!("# ours\nalice:{key}\nbob:{key}x\n")).unwrap();
    std::fs::write(at.join("empty.psk"), "").unwrap();
    let serve =
        |args: &[&str]| disk(at, &[&["serve", "-r", "-f", "raw", "a.raw", "--run", "true"], args].concat());
    for (file, said) in
        [("bad.psk", "line 3"), ("empty.psk", "no key"), ("none.psk", "No such file"), (".", "directory")]
    {
        let failed = serve(&["--tls-psk", file]);
        assert!(failed.failed().contains(said) && !failed.err.contains(&key[..8]), "{failed}");
        let failed = disk(at, &["info", &format!("nbds://alice@localhost:1/?tls-psk-file={file}")]);
        assert!(failed.failed().contains(said) && !failed.err.contains(&key[..8]), "{failed}");
    }
    assert_eq!(serve(&["--tls-psk", "keys.psk", "--tls-certificates", "."]).status, 2);
    assert_eq!(serve(&["--tls", "require"]).status, 2);
    assert!(!serve(&["--tls-psk", "keys.psk"]).err.contains("others"));
    std::fs::set_permissions(at.join("keys.psk"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = serve(&["--tls-psk", "keys.psk"]);
    assert!(ran.status == 0 && ran.err.contains("others can read the keys"), "{ran}");
}
