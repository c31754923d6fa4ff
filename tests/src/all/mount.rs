//! `racker disk mount` and `umount`: what programs do on a mount, read back by the kernel and judged by e2fsck,
//! xfs_repair and qemu-img.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use racker_tests::image::scratch;
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE, require_root, xfs_is_clean};
use racker_tests::qemu;
use racker_tests::tool::{Ran, Tool, binary, tool};
use tempfile::TempDir;

/// What everybody may do: copies, links, holes, attributes, replaced files, removed ones that are open.
const WORK: &str = r#"
cd "$1"
mkdir -p tree/deep/er; cp -a "$2" tree/rs
ln tree/rs/mount.rs tree/hard; ln -s rs/mount.rs tree/soft; mkfifo -m 640 tree/pipe
setfattr -n user.origin -v "$(head -c 900 /dev/zero | tr '\0' v)" tree/hard
setfacl -m u:7:r,g:8:rw tree/rs; setfacl -d -m u:9:rwx tree/deep
umask 027; echo inherits > tree/deep/file; mkdir tree/deep/dir; umask 022
cat tree/rs/all/*.rs tree/rs/all/*/*.rs > tree/all; truncate -s 20M tree/sparse
dd if=tree/all of=tree/sparse bs=64k seek=90 count=4 conv=notrunc status=none
cp --sparse=always tree/sparse tree/copy; cmp tree/sparse tree/copy
[ "$(du -k tree/copy | cut -f1)" -lt 2000 ]
fallocate -p -o 4096 -l 8192 tree/all; fallocate -z -n -o 20000 -l 999 tree/all
mv tree/rs/tool.rs tree/deep/moved; mv -f tree/rs/sim.rs tree/rs/rng.rs; rm tree/rs/qemu.rs
chmod 4711 tree/deep/moved; touch -d @1000000000.25 tree/deep/moved; echo more >> tree/hard
truncate -s 100 tree/rs/lib.rs; rm -r tree/rs/all/matrix; mv tree/deep/er tree/elsewhere
python3 - <<'PYTHON'
import ctypes, os
f = open('tree/open', 'wb+'); f.write(b'a' * 300000); f.flush()
os.unlink('tree/open')
assert os.fstat(f.fileno()).st_nlink == 0
g = open('tree/new', 'w'); g.write('new'); g.close()
h = open('tree/target', 'wb+'); h.write(b'old'); h.flush()
os.replace('tree/new', 'tree/target')
assert open('tree/target').read() == 'new'
for file, content in ((f, b'a' * 300000), (h, b'old')):
    file.write(b'!'); file.flush(); file.seek(0)
    assert file.read() == content + b'!'
assert not [name for name in os.listdir('.') if 'racker' in name]
assert not [name for name in os.listxattr('.') if 'racker' in name]
libc = ctypes.CDLL(None, use_errno=True)
rename = lambda a, b, flags: libc.renameat2(-100, a, -100, b, flags)
assert rename(b'tree/target', b'tree/all', 1) == -1 and ctypes.get_errno() == 17
assert rename(b'tree/target', b'tree/elsewhere', 2) == 0
assert os.path.isdir('tree/target') and open('tree/elsewhere').read() == 'new'
s = os.open('tree/sparse', os.O_RDONLY)
assert os.lseek(s, 0, os.SEEK_DATA) == 90 * 65536
assert os.lseek(s, 90 * 65536, os.SEEK_HOLE) == 94 * 65536
def refused(number, what, *args):
    try: what(*args)
    except OSError as e: assert e.errno == number, e
    else: assert False, what
refused(39, os.rmdir, 'tree'); refused(17, os.mkdir, 'tree'); refused(2, os.stat, 'tree/none')
refused(61, os.getxattr, 'tree/all', 'user.none'); refused(36, os.stat, 'n' * 256)
many = ['tree/many/%d' % i for i in range(700)]
os.mkdir('tree/many')
for name in many: open(name, 'w').close()
assert len(os.listdir('tree/many')) == 700
for name in many[::2]: os.unlink(name)
PYTHON
"#;
/// What only root does.
const MORE: &str = r#"
cd "$1"
chown 5:6 tree/hard; chown -h 7:8 tree/soft; mknod tree/null c 1 3; mknod tree/disk b 8 300
setfattr -n trusted.origin -v t tree/hard; setfattr -n security.origin -v s tree/hard
install -d -m 2775 -g 50 tree/shared; mkdir tree/shared/sub; touch tree/shared/file
"#;

/// A folder that everybody reaches, and a racker in it.
struct Bench {
    dir: TempDir,
    racker: PathBuf,
    /// Somebody who is not root.
    other: bool,
}

impl Bench {
    fn new(other: bool) -> Self {
        require_root();
        assert!(Path::new("/dev/fuse").exists(), "this test mounts by FUSE: it needs /dev/fuse");
        let dir = scratch();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let racker = dir.path().join("racker");
        std::fs::copy(binary(), &racker).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let bench = Self { dir, racker, other };
        bench.own("mnt");
        bench
    }

    fn at(&self) -> &Path {
        self.dir.path()
    }

    fn join(&self, name: &str) -> PathBuf {
        self.at().join(name)
    }

    fn own(&self, name: &str) {
        if self.other {
            tool("chown").args(["65534:65534", name]).dir(self.at()).ok();
        }
    }

    /// A program as who mounts.
    fn run(&self, program: &Path) -> Tool {
        let tool = if self.other {
            tool("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program)
        } else {
            tool(program)
        };
        tool.dir(self.at()).env("XDG_RUNTIME_DIR", "")
    }

    fn disk(&self, args: &[&str]) -> Ran {
        self.run(&self.racker).arg("disk").args(args).run()
    }

    fn script(&self, script: &str) {
        let bash = self.run(Path::new("bash")).args(["-euo", "pipefail", "-c", script, "bash", "mnt"]);
        bash.arg(self.sources()).ok();
    }

    /// Files to copy, which everybody may read.
    fn sources(&self) -> PathBuf {
        let copy = self.join("sources");
        if !copy.exists() {
            tool("cp").args(["-r", concat!(env!("CARGO_MANIFEST_DIR"), "/src")]).arg(&copy).ok();
            tool("chmod").args(["-R", "a+rX"]).arg(&copy).ok();
        }
        copy
    }

    fn umount(&self) -> String {
        let ran = self.disk(&["umount", "mnt"]);
        assert_eq!(ran.status, 0, "{ran}");
        ran.err
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A test that failed leaves it.
        tool("umount").arg("-l").arg(self.join("mnt")).run();
    }
}

/// A filesystem that others have made, on a disk of its own.
fn make(bench: &Bench, kind: &str, format: &str) -> String {
    let size = if kind == "xfs" { "300M" } else { "80M" };
    tool("truncate").args(["-s", size, "made.raw"]).dir(bench.at()).ok();
    match kind {
        "xfs" => tool("mkfs.xfs").args(["-q", "-f", "made.raw"]).dir(bench.at()).ok(),
        _ => tool("mkfs.ext4")
            .args(["-q", "-F", "-E", "root_owner=65534:65534", "made.raw"])
            .dir(bench.at())
            .ok(),
    };
    let name = format!("disk.{format}");
    tool("qemu-img").args(["convert", "-O", format, "made.raw", &name]).dir(bench.at()).ok();
    bench.own(&name);
    name
}

/// The same filesystem as a raw file, after its judges have found nothing.
fn judged(bench: &Bench, kind: &str, image: &str, format: &str) -> PathBuf {
    let raw = bench.join("judged.raw");
    if format != "raw" {
        qemu::check_as(format, &bench.join(image));
    }
    tool("qemu-img").args(["convert", "-f", format, "-O", "raw", image, "judged.raw"]).dir(bench.at()).ok();
    match kind {
        "xfs" => xfs_is_clean(&raw, WHOLE),
        _ => drop(tool("e2fsck").arg("-fn").arg(&raw).ok()),
    }
    raw
}

/// What root does on a mount is what the kernel's own driver then shows.
fn round(kind: &str, format: &str) {
    let bench = Bench::new(false);
    let image = make(&bench, kind, format);
    bench.disk(&["mount", &image, "mnt"]).ok();
    bench.script(WORK);
    bench.script(MORE);
    // Reading changes these in the kernel only.
    let of = |folder: &Path| Manifest::of_folder(folder).drop_fields(&["atime"]);
    let shown = of(&bench.join("mnt"));
    assert!(bench.umount().contains("on stable storage"));
    let raw = judged(&bench, kind, &image, format);
    of(Mounted::read_only(&raw, WHOLE).path()).assert_same(&shown, "after the mount");
    // The same is read by a mount that only reads.
    bench.disk(&["mount", "--read-only", &image, "mnt"]).ok();
    of(&bench.join("mnt")).assert_same(&shown, "read again");
    let refused = tool("touch").arg(bench.join("mnt/new")).run();
    assert!(refused.err.contains("Read-only file system"), "{refused}");
    bench.umount();
}

#[test]
fn what_programs_do_on_ext4_is_what_the_kernel_reads() {
    round("ext4", "raw");
}

#[test]
fn what_programs_do_on_xfs_is_what_the_kernel_reads() {
    round("xfs", "qcow2");
}

/// What the system on the disk says of files.
const CONTEXTS: &str = r"/.*	system_u:object_r:default_t:s0
/etc/.*	system_u:object_r:etc_t:s0
/etc/ssh(/.*)?	system_u:object_r:ssh_t:s0
/srv/[a-z]+	-d	system_u:object_r:srv_t:s0
";

#[test]
fn what_is_made_gets_the_label_of_the_policy() {
    let bench = Bench::new(false);
    let image = make(&bench, "xfs", "qcow2");
    std::fs::write(bench.join("contexts"), CONTEXTS).unwrap();
    let files = "/etc/selinux/targeted/contexts/files";
    let policy = format!(
        "mkdir -p {files}; write --text SELINUX=enforcing /etc/selinux/config; write --text ID=x /etc/os-release; \
         copy-in contexts {files}/file_contexts; mkdir /etc/sub /srv"
    );
    bench.disk(&["shell", "--no-selinux", "-c", &policy, &image]).ok();
    bench.disk(&["mount", &image, "mnt"]).ok();
    bench.script(
        "cd mnt; touch motd etc/motd etc/sub/x; mkdir etc/ssh srv/a srv/b; echo x > etc/ssh/keys; mkfifo srv/pipe; \
         ln -s x srv/link; mv etc/sub etc/ssh/sub; touch etc/ssh/sub/y; rmdir srv/b; mkdir etc/c; touch etc/c/z",
    );
    bench.umount();
    bench.disk(&["mount", "--no-selinux", &image, "mnt"]).ok();
    bench.script("touch mnt/bare");
    bench.umount();
    let raw = judged(&bench, "xfs", &image, "qcow2");
    let there = Mounted::read_only(&raw, WHOLE);
    let label = |path: &str| {
        let ours = tool("getfattr").args(["-h", "-n", "security.selinux", "--only-values"]);
        ours.arg(there.join(path)).run().text().trim_end_matches('\0').to_string()
    };
    let contexts = bench.join("contexts").display().to_string();
    for (kind, paths) in [
        ("file", "/motd /etc/motd /etc/ssh/keys /etc/ssh/sub/y /etc/c/z"),
        ("dir", "/etc/ssh /srv/a /etc/c"),
        ("pipe", "/srv/pipe"),
        ("link", "/srv/link"),
    ] {
        for path in paths.split(' ') {
            let said = tool("matchpathcon").args(["-n", "-f", &contexts, "-m", kind, path]).ok();
            assert_eq!(label(path), said.trim(), "{path}");
        }
    }
    // What moves keeps its label, and what nobody labels has none.
    assert_eq!(
        (label("/etc/ssh/sub/x").as_str(), label("/bare").as_str()),
        ("system_u:object_r:etc_t:s0", "")
    );
}

#[test]
fn without_root() {
    let bench = Bench::new(true);
    let image = make(&bench, "ext4", "qcow2");
    bench.disk(&["mount", &image, "mnt", "--owner", "me"]).ok();
    bench.script(WORK);
    bench.umount();
    // With the owners of the image everything may be done as well, and owners be given.
    bench.disk(&["mount", &image, "mnt"]).ok();
    bench.script("cd mnt; chown 5:6 tree/all; chmod 0 tree/all; cmp -n 9 tree/all tree/rs/mount.rs || cat tree/all | wc -c");
    bench.umount();
    let raw = judged(&bench, "ext4", &image, "qcow2");
    let there = Mounted::read_only(&raw, WHOLE);
    let all = Manifest::of_folder(there.path());
    assert_eq!((all.field("tree/all", "uid"), all.field("tree/all", "mode")), (&5.into(), &"0000".into()));
    assert_eq!(all.field("tree/hard", "uid"), 65534);
    assert_eq!(std::fs::read(there.join("tree/elsewhere")).unwrap(), b"new");
}

#[test]
fn others_are_let_in_as_far_as_modes_allow() {
    let bench = Bench::new(false);
    let image = make(&bench, "ext4", "raw");
    let other = |script: &str| {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script];
        tool("setpriv").args(nobody).dir(bench.at()).run()
    };
    bench.disk(&["mount", &image, "mnt"]).ok();
    bench.script("echo open > mnt/open; echo closed > mnt/closed; chmod 600 mnt/closed");
    assert_ne!(other("cat mnt/open").status, 0);
    bench.umount();
    bench.disk(&["mount", "--allow-other", &image, "mnt"]).ok();
    assert_eq!(other("cat mnt/open").ok(), "open\n");
    assert_ne!(other("cat mnt/closed").status, 0);
    assert_ne!(other("echo x >> mnt/open").status, 0);
    assert_ne!(other("chmod 777 mnt/closed").status, 0);
    // The root directory is theirs.
    other("echo own > mnt/own; rm -f mnt/closed").ok();
    bench.umount();
    let all = Manifest::of_folder(Mounted::read_only(&judged(&bench, "ext4", &image, "raw"), WHOLE).path());
    assert_eq!((all.field("own", "uid"), all.field("open", "size")), (&65534.into(), &5.into()));
    assert!(!all.paths().any(|path| path == "closed"));
}

#[test]
fn a_mount_that_is_killed_has_changed_nothing() {
    let bench = Bench::new(false);
    for format in ["qcow2", "raw"] {
        let image = make(&bench, "ext4", format);
        let before = std::fs::read(bench.join(&image)).unwrap();
        let mut mount = foreground(&bench, &[&image, "mnt"]);
        bench.script("cp -r $2 mnt/; sync mnt");
        mount.kill().unwrap();
        mount.wait().unwrap();
        let ran = bench.disk(&["umount", "mnt"]);
        assert!(ran.failed().contains("was gone"), "{ran}");
        if format == "qcow2" {
            assert!(std::fs::read(bench.join(&image)).unwrap() == before);
        }
        // On a raw disk content may lie in space that is free.
        let raw = judged(&bench, "ext4", &image, format);
        assert_eq!(std::fs::read_dir(Mounted::read_only(&raw, WHOLE).path()).unwrap().count(), 1);
    }
}

#[test]
fn live_changes_are_there_after_fsync() {
    let bench = Bench::new(false);
    for (kind, format) in [("ext4", "raw"), ("xfs", "qcow2")] {
        let image = make(&bench, kind, format);
        let mut mount = foreground(&bench, &["--live", &image, "mnt"]);
        bench.script("cp -r $2 mnt/one; sync mnt/one/mount.rs; echo x >> mnt/one/lib.rs; cp -r $2 mnt/two");
        bench.script(
            "sync mnt/two; cmp mnt/two/mount.rs mnt/one/mount.rs; ! cmp -s mnt/two/lib.rs mnt/one/lib.rs",
        );
        mount.kill().unwrap();
        mount.wait().unwrap();
        bench.disk(&["umount", "mnt"]).failed();
        // A log that has to be replayed may be left, as by every crash.
        bench.disk(&["mount", &image, "mnt"]).ok();
        bench.script("diff -r $2 mnt/two; touch mnt/three");
        bench.umount();
        judged(&bench, kind, &image, format);
    }
}

/// A mount that stays in the foreground, once it answers.
fn foreground(bench: &Bench, args: &[&str]) -> std::process::Child {
    use std::io::BufRead;
    let env = ["--default-signal=HUP,INT,TERM"];
    let tool = tool("env").args(env).arg(&bench.racker).args(["disk", "mount", "--foreground"]).args(args);
    let mut child = tool.dir(bench.at()).spawn();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("mnt: mounted\n"), "{line}");
    child
}

#[test]
fn a_mount_in_use_stays_and_a_signal_ends_it() {
    let bench = Bench::new(false);
    let image = make(&bench, "ext4", "qcow2");
    let mut mount = foreground(&bench, &[&image, "mnt"]);
    std::fs::create_dir(bench.join("second")).unwrap();
    let again = bench.disk(&["mount", &image, "mnt"]);
    assert!(again.failed().contains("is mounted there"), "{again}");
    let second = bench.disk(&["mount", &image, "second"]);
    assert!(second.failed().contains("another program is using this image"), "{second}");
    let open = std::fs::File::create(bench.join("mnt/open")).unwrap();
    let busy = bench.disk(&["umount", "mnt"]);
    assert!(busy.failed().contains("in use"), "{busy}");
    std::fs::write(bench.join("mnt/file"), "written").unwrap();
    tool("kill").arg(mount.id().to_string()).ok();
    assert_eq!(mount.wait().unwrap().code(), Some(0));
    drop(open);
    let raw = judged(&bench, "ext4", &image, "qcow2");
    assert_eq!(std::fs::read(Mounted::read_only(&raw, WHOLE).join("file")).unwrap(), b"written");
    let none = bench.disk(&["umount", "mnt"]);
    assert!(none.failed().contains("has mounted nothing"), "{none}");
}

#[test]
fn what_does_not_land_is_said() {
    let bench = Bench::new(true);
    let image = make(&bench, "xfs", "raw");
    // Where no redo file can be made nothing can land.
    std::fs::create_dir(bench.join("shut")).unwrap();
    std::fs::rename(bench.join(&image), bench.join("shut/disk.raw")).unwrap();
    let before = std::fs::read(bench.join("shut/disk.raw")).unwrap();
    // Users mount at their own folders only.
    let ran = bench.disk(&["mount", "shut/disk.raw", "shut"]);
    assert!(ran.failed().contains("below the folder"), "{ran}");
    std::fs::create_dir(bench.join("foreign")).unwrap();
    let ran = bench.disk(&["mount", "shut/disk.raw", "foreign"]);
    assert!(ran.failed().contains("write access"), "{ran}");
    bench.disk(&["mount", "shut/disk.raw", "mnt"]).ok();
    bench.script("mkdir mnt/new");
    let ran = bench.disk(&["umount", "mnt"]);
    assert!(ran.failed().contains("redo file"), "{ran}");
    assert!(!bench.join("mnt/new").exists());
    assert!(std::fs::read(bench.join("shut/disk.raw")).unwrap() == before);
}

#[test]
fn compressed_images_are_mounted_for_reading() {
    let bench = Bench::new(true);
    let image = make(&bench, "ext4", "raw");
    tool("gzip").arg(bench.join(&image)).ok();
    let ran = bench.disk(&["mount", "disk.raw.gz", "mnt"]);
    assert!(ran.status == 0 && ran.err.contains("read-only"), "{ran}");
    let refused = bench.run(Path::new("touch")).arg("mnt/new").run();
    assert!(refused.err.contains("Read-only file system"), "{refused}");
    assert!(bench.umount().contains("nothing could be changed"));
}
