//! `racker disk serve` and the clients of others: libnbd's tools and bindings, qemu-img, qemu-io.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;

use racker_fixtures::case;
use racker_tests::listener::await_listener;
use racker_tests::qemu;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, racker, racker_at_terminal, tool};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A server that runs until it is dropped.
pub(crate) struct Served {
    child: Child,
    /// Addresses of its exports.
    pub(crate) uris: Vec<String>,
    pub(crate) socket: PathBuf,
    _dir: TempDir,
}

impl Served {
    /// Serves with `args` in the folder `at`, which has `count` exports to tell of.
    pub(crate) fn start(at: &Path, args: &[&str], count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let serve = racker_at_terminal().args(["disk", "serve", "--socket"]).arg(&socket).args(args).dir(at);
        let mut child = serve.spawn();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let uris = (0..count).map(|_| lines.next().expect("an address").unwrap()).collect();
        Self { child, uris, socket, _dir: dir }
    }

    /// Ends it as a signal does, and sees that it ends well.
    pub(crate) fn end(mut self) {
        self.signal("TERM");
        self.wait();
    }

    /// Sees that it ends well, as somebody else has asked it to.
    pub(crate) fn ended(mut self) {
        self.wait();
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn wait(&mut self) {
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        assert!(!self.socket.exists());
    }

    /// Kills it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        tool("kill").args(["-s", name, &self.id().to_string()]).ok();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A script for libnbd's Python bindings; `h` is a handle that is not connected yet, `uri` the address.
pub(crate) fn nbdsh(uri: &str, script: &str) -> Ran {
    let script = format!("import nbd\nh = nbd.NBD()\nuri = {uri:?}\n{script}");
    // Debian's: another interpreter in the path does not have the bindings.
    tool("/usr/bin/python3").args(["-c", &script]).run()
}

/// A disk with some data, some zeroes, as `NAME`.
pub(crate) fn make(at: &Path, format: &str, name: &str) {
    tool("qemu-img").args(["create", "-q", "-f", format, name, "40M"]).dir(at).ok();
    let commands = ["write -P 1 1M 300k", "write -z 8M 2M", "write -P 3 20M 64k", "write -P 5 41942528 512"];
    let commands = commands.iter().flat_map(|c| ["-c", c]);
    tool("qemu-io").args(["-f", format]).args(commands).arg(name).dir(at).ok();
}

#[test]
fn disks_are_what_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (format, name) in [
        ("raw", "a.raw"),
        ("qcow2", "a.qcow2"),
        ("vmdk", "a.vmdk"),
        ("vdi", "a.vdi"),
        ("vpc", "a.vhd"),
        ("vhdx", "a.vhdx"),
    ] {
        make(at, format, name);
        let served = Served::start(at, &["--read-only", name], 1);
        let uri = served.uris[0].as_str();
        tool("nbdcopy").args([uri, "copy"]).dir(at).ok();
        let same = |a: &str, b: &str| {
            tool("qemu-img").args(["compare", "-f", format, "-F", "raw", a, b]).dir(at).ok();
        };
        same(name, "copy");
        std::fs::remove_file(at.join("copy")).unwrap();
        tool("qemu-img").args(["convert", "-f", "raw", "-O", "raw", uri, "copy"]).dir(at).ok();
        same(name, "copy");
        std::fs::remove_file(at.join("copy")).unwrap();
        same(name, uri);
        served.end();
    }
}

#[test]
fn info_and_maps_agree_with_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "qcow2", "a.qcow2");
    let served = Served::start(at, &["--read-only", "a.qcow2"], 1);
    let uri = served.uris[0].as_str();
    let info: Value = serde_json::from_str(&tool("nbdinfo").args(["--json", uri]).ok()).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 40 * MIB);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["can_df"], true);
    assert_eq!(export["block_size_preferred"], 65536);
    assert_eq!(info["structured"], true);
    // QEMU serves the same image: what it says of data and holes is the same.
    let theirs = tool("nbdinfo").args(["--map", "--json", "--"]);
    let theirs = theirs.args(["[", "qemu-nbd", "-r", "-f", "qcow2", "a.qcow2", "]"]).dir(at).ok();
    let ours = tool("nbdinfo").args(["--map", "--json", uri]).ok();
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(parse(&ours), parse(&theirs));
    assert_eq!(tool("nbdinfo").args(["--size", &uri.replace("/a.qcow2", "/")]).ok().trim(), "41943040");
    assert!(tool("nbdinfo").arg(uri.replace("/a.qcow2", "/other")).run().status != 0);
    served.end();
}

#[test]
fn volumes_and_snapshots_are_exports() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    case("ock/boot").unpack(at);
    case("qcow2/snapshots").unpack(at);
    let served = Served::start(at, &["--snapshot", "boot.qcow2", "image.qcow2", "-n", "disk"], 5);
    let list = tool("nbdinfo").args(["--list", "--json", &served.uris[0]]).ok();
    let list: Value = serde_json::from_str(&list).unwrap();
    let names: Vec<&str> =
        list["exports"].as_array().unwrap().iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    for name in ["disk", "disk/p1", "disk/p2", "disk/p3", "image.qcow2"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(names.iter().any(|n| n.starts_with("image.qcow2@")), "{names:?}");
    // A partition written through its own export is seen through the disk's, and by nobody afterwards.
    let before = std::fs::read(at.join("boot.qcow2")).unwrap();
    let script = "
h.connect_uri(uri); h.pwrite(b'racker' * 100, 4096, nbd.CMD_FLAG_FUA)
g = nbd.NBD(); g.connect_uri(uri.replace('/disk/p2', '/disk'))
found = False
for start in range(0, 600 << 20, 1 << 20):
    if bytes(g.pread(600, start + 4096)) == b'racker' * 100: found = True
print(found)";
    let uri = served.uris[0].replace("/disk", "/disk/p2");
    assert_eq!(nbdsh(&uri, script).ok().trim(), "True");
    served.end();
    assert!(std::fs::read(at.join("boot.qcow2")).unwrap() == before);
}

/// Every command, with every flag, in every way of replying.
#[test]
fn commands_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (format, name) in [("raw", "a.raw"), ("qcow2", "a.qcow2")] {
        make(at, format, name);
        let served = Served::start(at, &["-f", format, name], 1);
        for structured in ["True", "False"] {
            let script = format!(
                "
h.set_request_structured_replies({structured})
h.add_meta_context('base:allocation'); h.add_meta_context('qemu:allocation-depth')
h.connect_uri(uri)
S = {structured}
assert h.get_structured_replies_negotiated() == S and h.can_df() == S
assert h.can_trim() and h.can_zero() and h.can_fast_zero() and h.can_cache() and h.can_fua()
assert h.can_multi_conn() and not h.is_read_only()
h.pwrite(b'a' * 1000, 5); h.pwrite(b'b' * 700000, 100000, nbd.CMD_FLAG_FUA); h.flush()
assert bytes(h.pread(1000, 5)) == b'a' * 1000
assert bytes(h.pread(700000, 100000)) == b'b' * 700000
if S:
    def check(buf, offset, status, error): pass
    got = h.pread_structured(8 << 20, 0, check, nbd.CMD_FLAG_DF)
    assert bytes(got[100000:800000]) == b'b' * 700000
    seen = []
    h.pread_structured(8 << 20, 4 << 20, lambda b, o, s, e: seen.append((o, s)))
    assert any(s == nbd.READ_HOLE for _, s in seen), seen
    extents = {{}}
    def note(context, offset, entries, error): extents[context] = entries
    h.block_status(40 << 20, 0, note)
    assert set(extents) == {{'base:allocation', 'qemu:allocation-depth'}}, extents
    for e in extents.values(): assert sum(e[::2]) == 40 << 20
    h.block_status(20 << 20, 4096, note, nbd.CMD_FLAG_REQ_ONE)
    for e in extents.values(): assert len(e) == 2
h.zero(4096, 100000); assert bytes(h.pread(4096, 100000)) == bytes(4096)
h.zero(8192, 200000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA); assert bytes(h.pread(8192, 200000)) == bytes(8192)
h.zero(65536, 262144, nbd.CMD_FLAG_FAST_ZERO); assert bytes(h.pread(65536, 262144)) == bytes(65536)
h.trim(65536, 524288, nbd.CMD_FLAG_FUA); h.cache(4 << 20, 0)
size = h.get_size()
h.set_strict_mode(0)
def fails(what, number):
    try: what()
    except nbd.Error as e: assert e.errnum == number, (e, number); return
    assert False
from errno import *
fails(lambda: h.pread(10, size - 5), EINVAL)
fails(lambda: h.pwrite(b'x' * 10, size - 5), ENOSPC)
fails(lambda: h.zero(10, size - 5), ENOSPC)
fails(lambda: h.trim(10, size - 5), EINVAL)
fails(lambda: h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO), ENOTSUP)
h.pread(512, 0)
h.shutdown()"
            );
            nbdsh(&served.uris[0], &script).ok();
        }
        served.end();
        if format == "qcow2" {
            qemu::check(&at.join(name));
        }
    }
}

/// Requests side by side on several connections, against a mirror.
#[test]
fn many_requests_at_a_time() {
    let dir = racker_tests::image::scratch();
    let at = dir.path();
    let mut rng = Rng::new(5);
    let mut noise = vec![0; 48 << 20];
    rng.fill(&mut noise);
    noise[10 << 20..20 << 20].fill(0);
    std::fs::write(at.join("noise"), &noise).unwrap();
    for (format, name) in [
        ("raw", "a.raw"),
        ("qcow2", "a.qcow2"),
        ("vmdk", "a.vmdk"),
        ("vdi", "a.vdi"),
        ("vpc", "a.vhd"),
        ("vhdx", "a.vhdx"),
    ] {
        // VHD rounds its size to cylinders unless it is told not to.
        let exact = ["-o", "force_size=on"];
        let options = if format == "vpc" { exact.as_slice() } else { &[] };
        let create = tool("qemu-img").args(["create", "-q", "-f", format]).args(options);
        create.args([name, "48M"]).dir(at).ok();
        let served = Served::start(at, &["-f", format, name], 1);
        let uri = served.uris[0].as_str();
        let copy = ["--connections=4", "--requests=64", "--threads=4", "--request-size=65536"];
        tool("nbdcopy").args(copy).args(["noise", uri]).dir(at).ok();
        tool("nbdcopy").args(copy).args([uri, "back"]).dir(at).ok();
        assert!(std::fs::read(at.join("back")).unwrap() == noise);
        served.end();
        tool("qemu-img").args(["compare", "-f", format, "-F", "raw", name, "noise"]).dir(at).ok();
        if !matches!(format, "raw" | "vpc") {
            qemu::check_as(format, &at.join(name));
        }
        std::fs::remove_file(at.join("back")).unwrap();
    }
}

#[test]
fn qemu_writes_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "qcow2", "a.qcow2");
    let served = Served::start(at, &["a.qcow2"], 1);
    let commands = qemu::random_writes(&mut Rng::new(9), 40 * MIB, 40);
    let commands: Vec<&str> = commands.iter().flat_map(|c| ["-c", c.as_str()]).collect();
    tool("qemu-img").args(["convert", "-O", "raw", "-f", "raw", &served.uris[0], "b.raw"]).dir(at).ok();
    let more = ["-c", "write -z 3M 1M", "-c", "discard 5M 1M", "-c", "write -z 5M 1M", "-c", "flush"];
    for target in [served.uris[0].as_str(), "b.raw"] {
        tool("qemu-io").args(["-f", "raw"]).args(&commands).args(more).arg(target).dir(at).ok();
    }
    tool("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &served.uris[0], "b.raw"]).dir(at).ok();
    served.end();
    qemu::check(&at.join("a.qcow2"));
    tool("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "b.raw"]).dir(at).ok();
}

/// A refcount table that moves at the last flush is not counted any more either.
#[test]
fn nothing_stays_of_a_table_that_moved() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    tool("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a", "40M"]).dir(at).ok();
    let served = Served::start(at, &["a"], 1);
    tool("qemu-io").args(["-f", "raw", "-c", "write -q 0 16M", &served.uris[0]]).dir(at).ok();
    served.end();
    qemu::check(&at.join("a"));
}

/// Long writes are done in pieces while they arrive, whatever the clusters' size.
#[test]
fn long_writes_and_clusters_of_all_sizes() {
    let dir = racker_tests::image::scratch();
    let at = dir.path();
    let mut rng = Rng::new(21);
    make(at, "raw", "base.raw");
    for (number, options) in
        ["cluster_size=512", "cluster_size=4k", "extended_l2=on", "cluster_size=2M"].into_iter().enumerate()
    {
        for backed in [false, true] {
            let name = format!("{number}-{backed}.qcow2");
            let backing = if backed { ["-b", "base.raw", "-F", "raw"].as_slice() } else { &[] };
            let create = tool("qemu-img").args(["create", "-q", "-f", "qcow2", "-o", options]).args(backing);
            create.args([&name, "40M"]).dir(at).ok();
            let commands = (0..40).map(|_| {
                let len = 1 + rng.below(4 * MIB);
                format!("write -q -P {} {} {len}", 1 + rng.below(255), rng.below(40 * MIB - len + 1))
            });
            let commands: Vec<String> = commands.flat_map(|command| ["-c".to_owned(), command]).collect();
            tool("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw", &name, "twin"]).dir(at).ok();
            let served = Served::start(at, &[&name], 1);
            for target in [served.uris[0].as_str(), "twin"] {
                tool("qemu-io").args(["-f", "raw"]).args(&commands).arg(target).dir(at).ok();
            }
            served.end();
            qemu::check(&at.join(&name));
            tool("qemu-img").args(["compare", "-f", "qcow2", "-F", "raw", &name, "twin"]).dir(at).ok();
        }
    }
}

/// What was answered after a flush, or with FUA, is there when the server was killed.
#[test]
fn a_killed_server_keeps_its_word() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for round in 0..3u64 {
        tool("qemu-img").args(["create", "-q", "-f", "qcow2", "a.qcow2", "64M"]).dir(at).ok();
        let served = Served::start(at, &["a.qcow2"], 1);
        // Each block holds its own number once it is said to be stable; the list of these is printed.
        let begun = at.join(format!("begun {round}"));
        let script = format!(
            "
import os, random, sys
random.seed({round})
h.connect_uri(uri)
n = 0
try:
    while True:
        batch = [random.randrange(16384) for _ in range(random.randrange(1, 20))]
        n += 1
        fua = random.random() < 0.5
        for b in batch: h.pwrite(b.to_bytes(4, 'big') * 1024, b * 4096, nbd.CMD_FLAG_FUA if fua else 0)
        if not fua: h.flush()
        print(*batch, flush=True)
        if n == 10: open({begun:?}, 'w').close()
except nbd.Error: pass"
        );
        let (uri, text) = (
            served.uris[0].clone(),
            std::thread::spawn({
                let uri = served.uris[0].clone();
                move || nbdsh(&uri, &script).ok()
            }),
        );
        while !begun.exists() && !text.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::thread::sleep(std::time::Duration::from_millis(250 * round));
        served.kill();
        let stable = text.join().unwrap();
        qemu::check_leaks_only(&at.join("a.qcow2"));
        tool("qemu-img").args(["convert", "-O", "raw", "a.qcow2", "a.raw"]).dir(at).ok();
        let content = std::fs::read(at.join("a.raw")).unwrap();
        // The last line may be cut off.
        let lines = &stable[..stable.rfind('\n').map_or(0, |i| i + 1)];
        let blocks: Vec<u32> = lines.split_whitespace().map(|b| b.parse().unwrap()).collect();
        assert!(blocks.len() >= 10, "{uri}: {} blocks", blocks.len());
        for block in blocks {
            let bytes = &content[block as usize * 4096..][..4096];
            assert!(bytes.chunks(4).all(|c| c == block.to_be_bytes()), "block {block} is lost");
        }
    }
}

#[test]
fn bitmaps_are_contexts() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "qcow2", "a.qcow2");
    tool("qemu-img").args(["bitmap", "--add", "-g", "64k", "a.qcow2", "monday"]).dir(at).ok();
    tool("qemu-io").args(["-c", "write 4M 100k", "-c", "write 39M 1M", "a.qcow2"]).dir(at).ok();
    let map = |uri: &str| {
        let said = tool("nbdinfo").args(["--map=qemu:dirty-bitmap:monday", "--json", uri]).ok();
        serde_json::from_str::<Value>(&said).unwrap()
    };
    let served = Served::start(at, &["-r", "a.qcow2"], 1);
    let ours = map(&served.uris[0]);
    served.end();
    let socket = at.join("theirs.sock");
    let theirs =
        tool("qemu-nbd").args(["-r", "-B", "monday", "-f", "qcow2", "-k"]).arg(&socket).arg("a.qcow2");
    let mut theirs = theirs.dir(at).spawn();
    await_listener(&socket);
    assert_eq!(ours, map(&format!("nbd+unix:///?socket={}", socket.display())));
    theirs.wait().unwrap();
    assert!(ours.as_array().unwrap().len() >= 4, "{ours}");
}

#[test]
fn ways_to_listen() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "qcow2", "a.qcow2");
    let binary = racker_tests::tool::binary();
    // Socket activation, by libnbd.
    let script = "
import sys
h.connect_systemd_socket_activation([uri, 'disk', 'serve', 'a.qcow2'])
print(h.get_size())
g = nbd.NBD(); g.connect_command([uri, 'disk', 'serve', '--stdio', '-r', 'a.qcow2'])
print(g.get_size()); assert len(g.pread(1 << 20, 1 << 20)) == 1 << 20";
    let script = format!("import os; os.chdir({:?})\n{script}", at.display().to_string());
    assert_eq!(nbdsh(&binary.display().to_string(), &script).text(), "41943040\n");
    let serve = |args: &[&str]| racker_at_terminal().args(["disk", "serve"]).args(args).dir(at).run();
    let said = serve(&["-r", "a.qcow2", "--listen", "127.0.0.1:0", "--run", "nbdinfo --size \"$uri\""]).ok();
    assert_eq!(said.trim(), "41943040");
    assert!(serve(&["-r", "a.qcow2", "--listen", "0.0.0.0:0"]).failed().contains("--public"));
    // A raw disk that is only taken for one is not written.
    make(at, "raw", "a.raw");
    assert!(serve(&["a.raw"]).failed().contains("-f raw"));
    // Twice the same image: the lock holds.
    let served = Served::start(at, &["a.qcow2"], 1);
    serve(&["a.qcow2"]).failed();
    let mode = std::os::unix::fs::PermissionsExt::mode(&served.socket.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    served.end();
    assert_eq!(serve(&["-r", "a.qcow2", "--run", "exit 3"]).status, 1);
}

#[test]
fn disks_grow_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "qcow2", "a.qcow2");
    let info = |uri: &str| tool("nbdinfo").args(["--size", uri]).ok();
    let served = Served::start(at, &["--allow-resize", "a.qcow2"], 1);
    let mut client = super::nbd_abuse::Client::go(&served.socket, b"a.qcow2", &[]);
    assert_eq!(client.request(8, 0, 50 * MIB, 0, &[]), 0);
    assert_eq!(client.request(8, 0, 10 * MIB, 0, &[]), 1);
    assert_eq!(info(&served.uris[0]).trim(), (50 * MIB).to_string());
    served.end();
    qemu::check(&at.join("a.qcow2"));
}

/// Folders of certificates below `at`: `all` and `stranger`, by two authorities, and `bare`, which only trusts that of
/// `all`.
pub(crate) fn certificates(at: &Path) {
    for name in ["all", "stranger", "bare"] {
        std::fs::create_dir(at.join(name)).unwrap();
    }
    authority(&at.join("all"));
    authority(&at.join("stranger"));
    std::fs::copy(at.join("all/ca-cert.pem"), at.join("bare/ca-cert.pem")).unwrap();
}

/// An authority, a server's certificate for this machine, and a client's, as QEMU and libnbd name their files.
fn authority(at: &Path) {
    let script = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=authority \\
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
for who in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $who-key.pem -out $who.csr -subj /CN=$who
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\nextendedKeyUsage=%sAuth\\n' $who > $who.ext
  openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -out $who-cert.pem -days 2 -extfile $who.ext
done";
    tool("bash").args(["-euc", script]).dir(at).ok();
}

#[test]
fn tls() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    make(at, "raw", "a.raw");
    certificates(at);
    // Who has a certificate of another authority, and trusts ours.
    std::fs::copy(at.join("all/ca-cert.pem"), at.join("stranger/ca-cert.pem")).unwrap();
    for verify in [false, true] {
        let mut args = vec!["-f", "raw", "a.raw", "--tls-certificates", "all"];
        if verify {
            args.push("--tls-verify-peer");
        }
        let served = Served::start(at, &args, 1);
        let uri = served.uris[0].as_str();
        assert!(uri.starts_with("nbds+unix://"), "{uri}");
        let uri = uri.replace("nbds+unix://", "nbds+unix://localhost");
        let with = |folder: &str| format!("{uri}&tls-certificates={}", at.join(folder).display());
        tool("nbdcopy").args([with("all").as_str(), "copy"]).dir(at).ok();
        assert!(std::fs::read(at.join("copy")).unwrap() == std::fs::read(at.join("a.raw")).unwrap());
        tool("nbdcopy").args(["--connections=4", "--requests=64", "copy", with("all").as_str()]).dir(at).ok();
        assert_eq!(tool("nbdinfo").args(["--size", &with("bare")]).run().status != 0, verify);
        assert_eq!(tool("nbdinfo").args(["--size", &with("stranger")]).run().status != 0, verify);
        // Without TLS there is nothing to be had.
        let plain = uri.replace("nbds+unix://localhost", "nbd+unix://");
        let ran = tool("nbdinfo").arg(&plain).run();
        assert!(ran.status != 0 && !ran.text().contains("41943040"), "{ran}");
        // QEMU's TLS is GnuTLS as well, with another way to the certificates.
        let creds = format!("tls-creds-x509,id=t,endpoint=client,dir={}", at.join("all").display());
        let image = format!(
            "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={},file.export=a.raw,file.tls-creds=t,file.tls-hostname=localhost",
            served.socket.display()
        );
        let info = tool("qemu-img").args(["info", "--object", &creds, "--image-opts", &image]).dir(at).ok();
        assert!(info.contains("40 MiB"), "{info}");
        super::nbd_abuse::before_tls(&served.socket);
        served.end();
    }
    // Both ways, where that is asked for.
    let served = Served::start(at, &["-f", "raw", "a.raw", "--tls-certificates", "all", "--tls", "on"], 1);
    let uri = served.uris[0].replace("nbds+unix://", "nbds+unix://localhost");
    let safe = format!("{uri}&tls-certificates={}", at.join("bare").display());
    assert!(tool("nbdinfo").arg(&safe).ok().contains("with TLS"));
    let plain = uri.replace("nbds+unix://localhost", "nbd+unix://");
    assert!(tool("nbdinfo").arg(&plain).ok().contains("without TLS"));
    served.end();
    let both = ["disk", "serve", "a.raw", "--tls-certificates", "all", "--tls", "on", "--tls-verify-peer"];
    assert_eq!(racker().args(both).dir(at).run().status, 1);
}
