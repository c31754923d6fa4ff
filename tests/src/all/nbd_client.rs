//! Disks of other people's NBD servers as images: qemu-nbd, nbdkit with its filters, nbd-server.

use std::path::{Path, PathBuf};
use std::process::Child;

use racker_fixtures::case;
use racker_formats::block::Span;
use racker_nbd::client::address::Address;
use racker_nbd::client::connect;
use racker_nbd::client::limits::Patience;
use racker_tests::listener::await_listener;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker, tool};
use tempfile::TempDir;

use super::nbd::{Served, certificates, make};

/// Somebody else's server, until it is dropped.
pub(crate) struct Other {
    child: Child,
    pub(crate) uri: String,
    _dir: TempDir,
}

impl Other {
    /// Starts `command`, a line of the shell that finds the path of its socket in `$socket`.
    pub(crate) fn start(at: &Path, command: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let command = format!("exec {command}");
        let child = tool("sh").args(["-c", &command]).env("socket", &socket).dir(at).spawn();
        await_listener(&socket);
        Self { child, uri: format!("nbd+unix:///?socket={}", socket.display()), _dir: dir }
    }

    /// nbdkit with `arguments`.
    pub(crate) fn kit(at: &Path, arguments: &str) -> Self {
        Self::start(at, &format!("nbdkit -f -U $socket {arguments}"))
    }

    fn qemu(at: &Path, format: &str, name: &str) -> Self {
        Self::start(at, &format!("qemu-nbd -t -k $socket -e 4 -f {format} {name}"))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = tool("kill").args([self.child.id().to_string()]).run();
        let _ = self.child.wait();
    }
}

pub(crate) fn disk(at: &Path, args: &[&str]) -> Ran {
    racker().arg("disk").args(args).dir(at).run()
}

/// From them, to them, and side by side with them.
fn there_and_back(at: &Path, server: &Other) {
    let uri = server.uri.as_str();
    disk(at, &["compare", "-f", "raw", "a.raw", uri]).ok();
    disk(at, &["convert", "-f", "raw", "-O", "qcow2", uri, "copy.qcow2"]).ok();
    tool("qemu-img").args(["compare", "-q", "-F", "raw", "copy.qcow2", "a.raw"]).dir(at).ok();
    disk(at, &["convert", "-f", "raw", "b.raw", uri]).ok();
    disk(at, &["compare", "-f", "raw", "b.raw", uri]).ok();
}

#[test]
fn disks_of_other_servers_are_copied_from_and_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    let script = "qemu-img create -q -f raw b.raw 40M; qemu-io -f raw -c 'write -P 9 5M 1M' -c 'write -P 8 41942016 1024' b.raw";
    tool("sh").args(["-c", script]).dir(at).ok();
    let fresh = || tool("cp").args(["--sparse=always", "a.raw", "w.raw"]).dir(at).ok();
    for server in [
        "file w.raw",
        "--no-sr file w.raw",
        "--mask-handshake=1 file w.raw",
        "--filter=noextents --filter=nozero file w.raw",
        "--filter=multi-conn file w.raw multi-conn-mode=disable",
        "--filter=blocksize-policy file w.raw blocksize-minimum=4096 blocksize-preferred=64K blocksize-maximum=64K \
         blocksize-error-policy=error",
    ] {
        fresh();
        there_and_back(at, &Other::kit(at, server));
    }
    fresh();
    there_and_back(at, &Other::qemu(at, "raw", "w.raw"));
    fresh();
    std::fs::write(
        at.join("conf"),
        "[generic]\n[a]\nexportname = w.raw\nflush = true\nfua = true\ntrim = true\n",
    )
    .unwrap();
    // It goes to the background by itself, and would serve one client only if it did not.
    let script = "sed -i \"s|w.raw|$PWD/w.raw|;s|.generic.|&\\nunixsock = $socket|\" conf
        nbd-server -C $PWD/conf -p $PWD/pid; trap 'kill $(cat pid) $!' TERM; sleep 600 & wait";
    std::fs::write(at.join("serve"), script).unwrap();
    let mut server = Other::start(at, "sh serve");
    server.uri = server.uri.replace("///?", "///a?");
    there_and_back(at, &server);
    // A name that there is not.
    let wrong = server.uri.replace("///a?", "///z?");
    let failed = disk(at, &["info", &wrong]);
    assert!(failed.failed().contains("no export \"z\""), "{failed}");
}

#[test]
fn files_are_read_and_edited_on_other_servers() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    case("ock/boot").unpack(at);
    disk(at, &["convert", "boot.qcow2", "boot.raw"]).ok();
    let entry = "/loader/entries/ostree-1-ock.conf";
    // A server's disk does not grow: there is room behind the image.
    tool("truncate").args(["-s", "16M", "boot.qcow2"]).dir(at).ok();
    // The guest's disk, a file that holds it, and the disk once more.
    let servers = [
        Other::qemu(at, "raw", "boot.raw"),
        Other::kit(at, "file boot.qcow2"),
        Other::kit(
            at,
            "--filter=blocksize-policy --filter=truncate file boot.raw round-up=4096 blocksize-minimum=4096 \
             blocksize-error-policy=error",
        ),
    ];
    for server in &servers[..2] {
        let uri = server.uri.as_str();
        assert!(disk(at, &["info", uri]).ok().contains("Oracle Linux"));
        assert!(disk(at, &["ls", uri, "/loader/entries"]).ok().contains("ostree-1-ock.conf"));
        disk(at, &["edit", uri, entry, "--replace", "crashkernel=auto", "crashkernel=no"]).ok();
        assert!(disk(at, &["cat", uri, entry]).ok().contains("crashkernel=no"));
        racker().args(["disk", "write", uri, "/etc/hostname"]).dir(at).input("node1\n").run().ok();
        assert_eq!(disk(at, &["cat", uri, "/etc/hostname"]).ok(), "node1\n");
    }
    // The third one has the disk that the first one changed.
    assert_eq!(disk(at, &["cat", &servers[2].uri, "/etc/hostname"]).ok(), "node1\n");
    disk(at, &["rm", &servers[2].uri, "/etc/hostname"]).ok();
    assert!(disk(at, &["diff", &servers[1].uri, &servers[2].uri]).text().contains("hostname"));
    drop(servers);
    tool("qemu-img").args(["check", "-q", "boot.qcow2"]).dir(at).ok();
    let volume = "dd if=boot.raw of=root.xfs bs=1M skip=341 count=680 status=none; xfs_repair -n root.xfs";
    let ran = tool("sh").args(["-c", volume]).dir(at).run();
    assert!(ran.status == 0 || !ran.text().contains("would"), "{ran}");
}

#[test]
fn an_edit_that_the_server_refuses_leaves_the_image_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    case("ock/boot").unpack(at);
    let before = std::fs::read(at.join("boot.qcow2")).unwrap();
    let server = Other::kit(
        at,
        "--filter=error --filter=truncate file boot.qcow2 round-up=16M error-pwrite=ENOSPC error-pwrite-rate=100%",
    );
    let write = |uri: &str| racker().args(["disk", "write", uri, "/etc/hostname"]).dir(at).input("x").run();
    let failed = write(&server.uri);
    assert!(failed.failed().contains("no space is left"), "{failed}");
    drop(server);
    assert!(std::fs::read(at.join("boot.qcow2")).unwrap() == before);
    let server = Other::kit(at, "-r file boot.qcow2");
    let failed = write(&server.uri);
    assert!(failed.failed().contains("lets nobody write"), "{failed}");
    drop(server);
    // Flushes that fail count as well.
    let eval = "--filter=truncate eval round-up=16M get_size='stat -Lc %s boot.qcow2' flush='echo EIO no luck >&2; exit 1' \
        pread='dd if=boot.qcow2 skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none' can_write='exit 0' \
        can_flush='exit 0' pwrite='dd of=/dev/null status=none' can_extents='exit 3'";
    let server = Other::kit(at, &eval.replace("boot.qcow2", &at.join("boot.qcow2").display().to_string()));
    let failed = write(&server.uri);
    assert!(failed.failed().contains("stable storage"), "{failed}");
}

#[test]
fn what_remote_images_name_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    tool("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "o.qcow2"])
        .dir(at)
        .ok();
    let server = Other::kit(at, "-r file o.qcow2");
    for args in [&["info"][..], &["info", "--allow-external"], &["map"]] {
        let failed = disk(at, &[args, &[server.uri.as_str()]].concat());
        assert!(failed.failed().contains("on another machine"), "{failed}");
        assert!(!failed.err.contains("--allow-external"), "{failed}");
    }
    for args in
        [&["create", "-f", "qcow2", "-b", "a.raw", "-F", "raw"][..], &["convert", "-B", "a.raw", "a.raw"]]
    {
        let failed = disk(at, &[args, &[server.uri.as_str()]].concat());
        assert_ne!(failed.status, 0, "{failed}");
    }
    let failed = disk(at, &["info", "nbd+unix:///?socket=nowhere"]);
    assert!(failed.failed().contains("No such file"), "{failed}");
    let failed = disk(at, &["info", "nbd://127.0.0.1:1/x"]);
    assert!(failed.failed().contains("refused"), "{failed}");
    let failed = disk(at, &["info", "nbd://127.0.0.1/?colour=red"]);
    assert!(failed.failed().contains("colour"), "{failed}");
}

#[test]
fn maps_are_what_the_server_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "qcow2", "a.qcow2");
    let server = Other::qemu(at, "qcow2", "a.qcow2");
    let map = |who: Ran| -> Vec<(u64, u64, bool, bool)> {
        let all: serde_json::Value = serde_json::from_str(&who.ok()).unwrap();
        let field = |e: &serde_json::Value, name: &str| e[name].as_u64().unwrap();
        let flag = |e: &serde_json::Value, name: &str| e[name].as_bool().unwrap();
        let all = all.as_array().unwrap().iter();
        all.map(|e| (field(e, "start"), field(e, "length"), flag(e, "zero"), flag(e, "data"))).collect()
    };
    let theirs = tool("qemu-img").args(["map", "--output=json", "-f", "raw", &server.uri]).run();
    assert_eq!(map(disk(at, &["map", "--json", "-f", "raw", &server.uri])), map(theirs));
}

#[test]
fn requests_fit_the_servers_blocks() {
    let dir = tempfile::tempdir().unwrap();
    for (block, most) in [(512u64, "64K"), (65536, "1M"), (4096, "4096")] {
        let server = Other::kit(
            dir.path(),
            &format!(
                "--filter=blocksize-policy memory 2M blocksize-minimum={block} blocksize-preferred={block} \
                 blocksize-maximum={most} blocksize-error-policy=error"
            ),
        );
        let disk = connect(&Address::parse(&server.uri).unwrap(), Patience::default()).unwrap();
        let mut model = vec![0u8; 2 << 20];
        let mut rng = Rng::new(block);
        for _ in 0..400 {
            let at = rng.below(model.len() as u64);
            let longest = 1 << (1 + rng.below(19));
            let len = (1 + rng.below(longest)).min(model.len() as u64 - at);
            let part = &mut model[at as usize..][..len as usize];
            match rng.below(5) {
                0 | 1 => {
                    rng.fill(part);
                    disk.write_at(at, part).unwrap();
                }
                2 => {
                    part.fill(0);
                    disk.write_zeroes(Span::new(at, len).unwrap()).unwrap();
                }
                3 => {
                    let mut from = at;
                    for run in disk.runs(Span::new(at, len).unwrap()) {
                        let (run, kind) = run.unwrap();
                        let there = &part[(run.start() - at) as usize..][..run.len() as usize];
                        assert_eq!(run.start(), from);
                        assert!(!kind.is_zero() || there.iter().all(|b| *b == 0), "{run:?}");
                        from = run.end();
                    }
                    assert_eq!(from, at + len);
                }
                _ => {
                    let mut buf = vec![1; len as usize];
                    disk.read_at(at, &mut buf).unwrap();
                    assert!(buf == part, "{len} bytes at {at}, in blocks of {block}");
                }
            }
        }
        disk.flush().unwrap();
    }
}

#[test]
fn tls_proves_who_the_server_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    certificates(at);
    let creds = "--object tls-creds-x509,id=t,endpoint=server,dir=all,verify-peer=";
    let qemu = |verify| {
        Other::start(at, &format!("qemu-nbd -t -r -k $socket -f raw {creds}{verify} --tls-creds t a.raw"))
    };
    let kit = |verify| {
        Other::kit(
            at,
            &format!("-r --tls=require --tls-certificates={}/all {verify} file a.raw", at.display()),
        )
    };
    let ours = |verify: &[&str]| {
        Served::start(at, &[&["-r", "-f", "raw", "a.raw", "--tls-certificates", "all"], verify].concat(), 1)
    };
    let check = |uri: &str, verify: bool| {
        let uri = uri.replace("nbd+unix:", "nbds+unix:");
        let with = |how: &str| disk(at, &["compare", "-f", "raw", "a.raw", &format!("{uri}&{how}")]);
        with("tls-certificates=all").ok();
        with("tls-certificates=all&tls-hostname=127.0.0.1").ok();
        // An impostor: another authority's, another name's.
        for how in ["tls-certificates=stranger", "tls-certificates=all&tls-hostname=example.com", "x-none"] {
            let failed = with(how);
            assert!(failed.status == 2 && failed.err.starts_with("racker: "), "{failed}");
        }
        let failed = disk(at, &["info", &uri]);
        assert!(failed.failed().contains("TLS"), "{failed}");
        assert_eq!(with("tls-certificates=bare").status == 0, !verify);
        assert_eq!(with("tls-verify-peer=0&tls-certificates=all").status, 0);
        let failed = disk(at, &["info", &uri.replace("nbds+unix:", "nbd+unix:")]);
        assert!(failed.failed().contains("wants TLS"), "{failed}");
    };
    check(&qemu("off").uri, false);
    check(&qemu("on").uri, true);
    check(&kit("").uri, false);
    check(&kit("--tls-verify-peer").uri, true);
    check(&ours(&[]).uris[0], false);
    check(&ours(&["--tls-verify-peer"]).uris[0], true);
    // One without TLS is not spoken to.
    let plain = Other::kit(at, "-r file a.raw");
    let failed = disk(at, &["info", &format!("{}&tls-certificates=all", plain.uri.replace("nbd+", "nbds+"))]);
    assert!(failed.failed().contains("no TLS"), "{failed}");
}

#[test]
fn servers_are_served_and_found_by_port() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let served = racker().args(["disk", "serve", "-r", "-f", "raw", "a.raw", "--listen"]);
    let script = format!("{:?} disk compare -f raw a.raw \"$uri\"", racker_tests::tool::binary());
    served.arg(format!("127.0.0.1:{port}")).args(["--run", &script]).dir(at).ok();
    // What a server has is served on.
    let server = Other::qemu(at, "raw", "a.raw");
    let socket: PathBuf = at.join("again");
    let served = racker().args(["disk", "serve", "-f", "raw", &server.uri, "--socket"]).arg(&socket);
    let script =
        "qemu-io -f raw -c 'write -P 7 1M 64k' \"$uri\" && qemu-img compare -f raw -F raw a.raw \"$uri\" -U";
    served.args(["--run", script]).dir(at).ok();
}

#[test]
fn disks_of_servers_grow_where_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    tool("truncate").args(["-s", "1M", "a.raw"]).dir(at).ok();
    let served = Served::start(at, &["-f", "raw", "--allow-resize", "a.raw"], 1);
    let uri = served.uris[0].as_str();
    disk(at, &["part", "-f", "raw", uri, "init", "gpt"]).ok();
    disk(at, &["resize", "-f", "raw", uri, "+2M"]).ok();
    assert_eq!(std::fs::metadata(at.join("a.raw")).unwrap().len(), 3 << 20);
    let ran = disk(at, &["resize", "-f", "raw", "--shrink", uri, "2M"]);
    assert!(ran.status == 1 && ran.to_string().contains("never smaller"), "{ran}");
    served.end();
    // The backup table lies at the new end.
    let told = tool("sgdisk").args(["-v", "a.raw"]).dir(at).ok();
    assert!(told.contains("No problems found"), "{told}");
    let served = Served::start(at, &["-f", "raw", "a.raw"], 1);
    let ran = disk(at, &["resize", "-f", "raw", &served.uris[0], "5M"]);
    assert!(ran.status == 1 && ran.to_string().contains("is not supported"), "{ran}");
    served.end();
    assert_eq!(std::fs::metadata(at.join("a.raw")).unwrap().len(), 3 << 20);
}
