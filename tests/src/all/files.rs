//! The files of an image changed by command: what the kernel shows then, and what the checkers say.

use std::path::{Path, PathBuf};

use racker_fixtures::case;
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, Part, require_root};
use racker_tests::tool::{Ran, racker, tool};
use serde_json::Value;

/// Filesystems, and how they are made on a file.
const KINDS: [(&str, &[&str]); 4] = [
    ("xfs", &["mkfs.xfs", "-q", "-m", "rmapbt=1"]),
    ("xfs", &["mkfs.xfs", "-q", "-b", "size=1024", "-n", "size=8192"]),
    ("ext4", &["mke2fs", "-q", "-t", "ext4", "-b", "4096"]),
    ("ext3", &["mke2fs", "-q", "-t", "ext3", "-b", "4096"]),
];

struct Bench {
    dir: tempfile::TempDir,
    kind: &'static str,
}

impl Bench {
    fn new(kind: &'static str, mkfs: &[&str]) -> Self {
        require_root();
        let bench = Self { dir: tempfile::tempdir().unwrap(), kind };
        let image = bench.image();
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        tool(mkfs[0]).args(&mkfs[1..]).arg(&image).ok();
        bench
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn part(&self) -> Part {
        (0, 0)
    }

    /// `racker disk VERB OPTIONS IMAGE ARGUMENTS`.
    fn run(&self, verb: &[&str], args: &[&str]) -> Ran {
        racker().arg("disk").args(verb).args(["-f", "raw", "disk.img"]).args(args).dir(self.dir.path()).run()
    }

    /// The checkers find nothing.
    fn is_sound(&self) {
        match self.kind {
            "xfs" => racker_tests::mount::xfs_is_clean(&self.image(), self.part()),
            _ => drop(tool("e2fsck").args(["-fn"]).arg(self.image()).ok()),
        }
    }

    /// What the kernel shows.
    fn seen(&self) -> Manifest {
        self.is_sound();
        let mounted = Mounted::read_only(&self.image(), self.part());
        Manifest::of_folder(mounted.path())
    }
}

/// What a copy of a tree keeps whatever the filesystem.
fn kept(manifest: &Manifest) -> Manifest {
    let m = manifest.clone().drop_fields(&["atime", "ctime", "flags"]);
    let m = if m.paths().any(|p| p == "lost+found") { m.without(&["lost+found"]) } else { m };
    let dirs: Vec<String> = m.paths().filter(|p| m.field(p, "type") == "dir").cloned().collect();
    dirs.iter().fold(m, |m, d| m.drop_fields_of(d, &["size", "nlink"]))
}

/// A real root filesystem of a box, on the host.
fn tree(dir: &Path) -> (PathBuf, Manifest) {
    let case = case("vagrant/virtualbox");
    case.unpack(dir);
    let folder = dir.join("tree");
    racker().args(["disk", "extract"]).args([&dir.join(&case.images()[0]), &folder]).ok();
    let manifest = Manifest::of_folder(&folder);
    (folder, manifest)
}

#[test]
fn tar_in_puts_what_gnu_tar_packed() {
    let host = tempfile::tempdir().unwrap();
    let (folder, manifest) = tree(host.path());
    let want = kept(&manifest).without(&["special/socket"]);
    for (n, (kind, mkfs)) in KINDS.into_iter().enumerate() {
        let bench = Bench::new(kind, mkfs);
        let tar = bench.path("tree.tar");
        let format = ["pax", "gnu", "pax", "posix"][n];
        let all: &[&str] = if format == "gnu" { &[] } else { &["--xattrs", "--xattrs-include=*", "--acls"] };
        let pack = tool("tar").args(["--numeric-owner", "-S"]).args(all);
        let pack = pack.arg(format!("--format={format}")).arg("-C").arg(&folder).arg("-cf").arg(&tar);
        let ran = pack.arg(".").run();
        assert!(ran.status == 0 || ran.err.contains("socket ignored"), "{ran}");
        let squeezed = match n {
            0 => "tree.tar",
            1 => drop_and(tool("gzip").arg(&tar).ok(), "tree.tar.gz"),
            2 => drop_and(tool("zstd").args(["-q", "--rm"]).arg(&tar).ok(), "tree.tar.zst"),
            _ => drop_and(tool("xz").args(["-0"]).arg(&tar).ok(), "tree.tar.xz"),
        };
        bench.run(&["tar-in"], &[squeezed]).ok();
        // GNU's own format has whole seconds and no attributes; its lists have names that may mean nobody.
        let less = |m: Manifest| match format {
            "gnu" => m.drop_fields(&["mtime", "xattrs"]).drop_fields_of("xattr/acl", &["mode"]),
            _ => m.drop_fields_of("xattr/acl", &["mode", "xattrs"]).drop_fields_of("xattr", &["xattrs"]),
        };
        less(want.clone())
            .assert_same(&less(kept(&bench.seen())), &format!("{kind}, {format}: host / image"));
    }
}

fn drop_and<T>(_: T, name: &'static str) -> &'static str {
    name
}

#[test]
fn tar_in_puts_what_bsdtar_packed_and_what_racker_did() {
    let host = tempfile::tempdir().unwrap();
    let (folder, manifest) = tree(host.path());
    let want = kept(&manifest).without(&["special/socket"]);
    let bench = Bench::new(KINDS[0].0, KINDS[0].1);
    let tar = bench.path("tree.tar");
    tool("bsdtar").args(["--format=pax", "-C"]).arg(&folder).arg("-cf").arg(&tar).arg(".").run();
    bench.run(&["tar-in"], &["tree.tar"]).ok();
    // bsdtar writes times before 1970 otherwise than the standard has it.
    let less = |m: Manifest| m.drop_fields_of("times/before-1970", &["mtime"]);
    less(want.clone()).assert_same(&less(kept(&bench.seen())), "bsdtar: host / image");
    let out = bench.path("again.tar");
    let ran = bench.run(&["tar-out", "-o", "again.tar"], &[]);
    assert_eq!(ran.status, 0, "{ran}");
    let bench = Bench::new(KINDS[2].0, KINDS[2].1);
    std::fs::rename(out, bench.path("again.tar")).unwrap();
    bench.run(&["tar-in"], &["again.tar"]).ok();
    // Once more over what is there: the same.
    bench.run(&["tar-in"], &["again.tar"]).ok();
    less(want).assert_same(&less(kept(&bench.seen())), "racker: host / image");
}

#[test]
fn copy_in_copies_what_is_there() {
    let host = tempfile::tempdir().unwrap();
    let (folder, manifest) = tree(host.path());
    // What the host's SELinux says about the host's files stays there.
    let less = |m: Manifest| m.drop_fields_of("xattr/few", &["xattrs"]);
    let want = less(kept(&manifest));
    for (kind, mkfs) in KINDS {
        let bench = Bench::new(kind, mkfs);
        bench.run(&["copy-in"], &[folder.to_str().unwrap(), "/copy"]).ok();
        let seen = {
            bench.is_sound();
            let mounted = Mounted::read_only(&bench.image(), bench.part());
            Manifest::of_folder(&mounted.join("copy"))
        };
        want.assert_same(&less(kept(&seen)), &format!("{kind}: host / image"));
        bench.run(&["rm", "-r"], &["/copy"]).ok();
        let left: Vec<String> = bench.seen().paths().cloned().collect();
        assert!(left.iter().all(|p| p.is_empty() || p == "." || p.starts_with("lost+found")), "{left:?}");
    }
}

#[test]
fn verbs_do_what_those_of_coreutils_do() {
    for (kind, mkfs) in KINDS {
        let bench = Bench::new(kind, mkfs);
        let other = tempfile::tempdir().unwrap();
        let script = [
            "mkdir -p a/b/c",
            "write --text one a/one",
            "write --append --text two a/one",
            "ln a/one a/b/hard",
            "ln -s ../one a/b/soft",
            "chmod 4750 a/one",
            "chmod g+w,o=r a/b",
            "chown 12:34 a/b/c",
            "setfattr -n user.x -v 0x00ff a/one",
            "setfattr -n trusted.y -v text a/b",
            "setfattr -x trusted.y a/b",
            "touch a/empty",
            "touch -d @1000000000 a/empty",
            "truncate -s 3M a/sparse",
            "truncate -s 4 a/sparse",
            "truncate -s +100 a/sparse",
            "mkdir -m 1777 tmp",
            "mv a/b moved",
            "mv moved/hard tmp",
            "mv --exchange tmp/hard a/empty",
            "mkdir -p gone/with/everything",
            "write --text x gone/with/everything/x",
            "rm -r gone",
        ];
        let commands: String = script.iter().map(|line| line.replace(" a/", " /a/") + "\n").collect();
        let absolute =
            commands.replace(" moved", " /moved").replace(" tmp", " /tmp").replace(" gone", " /gone");
        let ran = racker()
            .args(["disk", "shell", "-f", "raw", "disk.img"])
            .dir(bench.dir.path())
            .input(absolute)
            .run();
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{ran}");
        // The same on the host.
        let host = commands
            .replace("write --text one a/one", "echo one > a/one")
            .replace("write --append --text two /a/one", "echo two >> a/one");
        let host: String = host
            .lines()
            .map(|line| {
                let line = line.replace(" /", " ");
                match line.as_str() {
                    "write --text one a/one" => "echo one > a/one".into(),
                    "write --append --text two a/one" => "echo two >> a/one".into(),
                    "write --text x gone/with/everything/x" => "echo x > gone/with/everything/x".into(),
                    "mv --exchange tmp/hard a/empty" => {
                        "mv tmp/hard tmp/t && mv a/empty tmp/hard && mv tmp/t a/empty".into()
                    }
                    _ => line,
                }
            })
            .collect::<Vec<_>>()
            .join("\n");
        tool("sh").args(["-ec", &host]).dir(other.path()).ok();
        let fields = ["mtime", "blocks", "extents"];
        let want = kept(&Manifest::of_folder(other.path())).drop_fields(&fields);
        let seen = kept(&bench.seen()).drop_fields(&fields);
        let root = |m: Manifest| m.drop_fields_of(".", &["mode"]);
        root(want).assert_same(&root(seen), &format!("{kind}: host / image"));
    }
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    for (kind, mkfs) in KINDS {
        let bench = Bench::new(kind, mkfs);
        bench.run(&["mkdir", "-p"], &["/a/b"]).ok();
        bench.run(&["write", "--text", "x"], &["/a/file"]).ok();
        let written = || bench.image().metadata().unwrap().modified().unwrap();
        let before = written();
        for (verb, args) in [
            (&["rm"][..], &["/a"][..]),
            (&["rm"], &["/none"]),
            (&["rm", "-r"], &["/"]),
            (&["mkdir"], &["/a"]),
            (&["mkdir"], &["/none/below"]),
            (&["mkdir", "-p"], &["/a/file/below"]),
            (&["mv"], &["/a", "/a/b"]),
            (&["mv"], &["/a/b", "/a/file"]),
            (&["mv"], &["/none", "/a"]),
            (&["ln"], &["/a/b", "/hard"]),
            (&["ln"], &["/a/file", "/a/file"]),
            (&["write", "--text", "x"], &["/a/b"]),
            (&["truncate", "-s", "9E"], &["/a/file"]),
            (&["setfattr", "-n", "nonsense", "-v", "x"], &["/a/file"]),
            (&["setfattr", "-x", "user.none"], &["/a/file"]),
            (&["chown"], &["nobody-at-all", "/a/file"]),
            (&["copy-in"], &["/nonexistent-on-the-host", "/a"]),
            (&["copy-in"], &["/etc/hostname", "/etc/hosts", "/none"]),
            (&["tar-in"], &["/bin/sh"]),
            (&["shell", "-c", "mkdir /one; mkdir /one"], &[]),
            (&["shell", "-c", "mkdir /one; rollback"], &[]),
            (&["shell", "-c", "mkdir /one; quit"], &[]),
        ] {
            let ran = bench.run(verb, args);
            if verb.contains(&"shell") && !verb.last().unwrap().ends_with("/one") {
                assert_eq!(ran.status, 0, "{ran}");
            } else {
                ran.told_plainly();
            }
            assert!(written() == before, "{kind}: {verb:?} changed something");
        }
    }
}

#[test]
fn what_is_there_is_found_and_counted() {
    let host = tempfile::tempdir().unwrap();
    let (folder, _) = tree(host.path());
    let bench = Bench::new(KINDS[2].0, KINDS[2].1);
    bench.run(&["copy-in"], &[folder.to_str().unwrap(), "/"]).ok();
    let mounted = Mounted::read_only(&bench.image(), bench.part());
    for args in [
        &["-type", "f", "-name", "*.conf"][..],
        &["-type", "d", "-maxdepth", "2"],
        &["(", "-perm", "-4000", "-o", "-links", "+1", ")", "!", "-type", "d"],
        &["-size", "+100k"],
        &["-type", "f", "-empty"],
        &["-uid", "0", "-type", "l"],
        &["-inum", "11"],
        &["-path", "*/etc/*", "-iname", "*HOST*"],
        &["-mindepth", "3", "-type", "p,s,c,b"],
    ] {
        let ours = bench.run(&["find"], &[&["/"], args].concat()).ok();
        let theirs = tool("find").arg(".").args(args).dir(mounted.path()).ok();
        let sorted = |text: &str| {
            let mut lines: Vec<String> =
                text.lines().map(|l| l.trim_start_matches(['.', '/']).to_string()).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{args:?}");
    }
    let print = "/%P|%y|%s|%m|%U|%G|%TY-%Tm-%Td %TH:%TM:%TS\\0";
    let theirs = tool("find").args([".", "-printf", print]).env("TZ", "UTC").dir(mounted.path()).ok();
    let ours: Vec<Value> = serde_json::from_str(&bench.run(&["find"], &["/", "--json"]).ok()).unwrap();
    let ours = ours.iter().map(|row| {
        let word = |name: &str| row[name].as_str().unwrap();
        let kind = match word("type") {
            "regular file" => 'f',
            "symbolic link" => 'l',
            "fifo" => 'p',
            other => other.chars().next().unwrap(),
        };
        // find(1) has ten digits behind a second.
        let time = word("mtime").replace(" +0000", "0");
        let (path, size, mode) = (word("path"), &row["size"], word("mode").trim_start_matches('0'));
        format!("{path}|{kind}|{size}|{mode}|{}|{}|{time}", row["uid"], row["gid"])
    });
    let (mut ours, mut theirs): (Vec<_>, Vec<_>) = (ours.collect(), theirs.split_terminator('\0').collect());
    ours.sort();
    theirs.sort_unstable();
    assert_eq!(ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs), None);
    assert_eq!(ours.len(), theirs.len());
    let du = |text: String| text.split_whitespace().next().unwrap().to_string();
    for path in ["", "etc", "usr"] {
        if mounted.join(path).is_dir() {
            let ours = du(bench.run(&["du", "-s"], &[&format!("/{path}")]).ok());
            let theirs = du(tool("du").args(["-s", "-k"]).arg(mounted.join(path)).ok());
            assert_eq!(ours, theirs, "/{path}");
        }
    }
    let tree = bench.run(&["tree", "-a"], &["/"]).ok();
    let count =
        tool("find").args([".", "-mindepth", "1", "-printf", "x\n"]).dir(mounted.path()).ok().lines().count();
    let shown = tree.lines().filter(|l| l.contains("── ")).count();
    assert_eq!(shown, count);
    // Of empty folders `tree` says less; it counts links to folders, and the one at the top, as folders.
    let read = |text: &str| serde_json::from_str::<Value>(&text.replace(",\"contents\":[]", "")).unwrap();
    let ours = read(&bench.run(&["tree", "-aJ"], &["/"]).ok());
    let mut theirs = read(&tool("tree").args(["-aJ", "--charset=UTF-8", "."]).dir(mounted.path()).ok());
    theirs[0]["name"] = "/".into();
    theirs[1] = ours[1].clone();
    assert_eq!(ours, theirs);
}

/// A disk without partitions is one filesystem: by its number, too, a shell sees what it has done itself.
#[test]
fn the_whole_disk_by_its_number_shows_an_edit_as_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("whole.img");
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    tool("mke2fs").args(["-q", "-F"]).arg(&image).ok();
    let commands = "mkdir -p /a/b; write --text x /a/b/x; rm -r /a; write --text y /a; cat /a";
    let shell = racker().args(["disk", "shell", "-f", "raw", "-p", "0", "-c", commands]).arg(&image).ok();
    assert_eq!(shell, "y\n");
}

#[test]
fn diff_names_what_differs() {
    let bench = Bench::new(KINDS[0].0, KINDS[0].1);
    bench.run(&["shell", "-c", "mkdir /a; write --text x /a/x; write --text y /a/y; touch /gone"], &[]).ok();
    std::fs::copy(bench.image(), bench.path("old.img")).unwrap();
    let same =
        racker().args(["disk", "diff", "-f", "raw", "old.img", "disk.img"]).dir(bench.dir.path()).run();
    assert_eq!((same.status, same.text().as_str()), (0, ""));
    bench.run(&["shell", "-c", "rm /gone; mkdir -p /new/one; write --text z /a/x; chmod 600 /a/y"], &[]).ok();
    let ran = racker().args(["disk", "diff", "--no-times", "-f", "raw", "old.img", "disk.img"]);
    let ran = ran.dir(bench.dir.path()).run();
    let lines: Vec<String> =
        ran.text().lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        (ran.status, lines),
        (1, ["M /a/x", "m /a/y", "- /gone", "+ /new"].map(String::from).to_vec())
    );
}

/// Lines of every sort that policies have.
const CONTEXTS: &str = r"/.*	system_u:object_r:default_t:s0
/	-d	system_u:object_r:root_t:s0
/etc/.*	system_u:object_r:etc_t:s0
/etc	-d	system_u:object_r:etc_t:s0
/etc/(.*/)?motd	--	system_u:object_r:motd_t:s0
/etc/ssh/ssh_host.*_key(\.pub)?	--	system_u:object_r:sshd_key_t:s0
/etc/localtime	-l	system_u:object_r:locale_t:s0
/usr/(.*/)?bin(/.*)?	system_u:object_r:bin_t:s0
/usr/(.*/)?lib(64)?(/.*)?	system_u:object_r:lib_t:s0
/usr/lib(64)?/.*\.so(\.[^/]*)*	--	system_u:object_r:so_t:s0
/usr/.*	system_u:object_r:usr_t:s0
/opt/(.*/)?x[0-9]+	-d	system_u:object_r:number_t:s0
/tmp/.*	<<none>>
/srv(/a|/b/.+)?	system_u:object_r:srv_t:s0
";

#[test]
fn new_files_get_the_label_that_the_policy_has() {
    let bench = Bench::new(KINDS[0].0, KINDS[0].1);
    let files = "/etc/selinux/targeted/contexts/files";
    std::fs::write(bench.path("contexts"), CONTEXTS).unwrap();
    std::fs::write(bench.path("subs"), "/lib /usr/lib\n").unwrap();
    let make = format!(
        "mkdir -p {files}; write --text SELINUX=enforcing /etc/selinux/config; write --text ID=x /etc/os-release; \
         copy-in contexts {files}/file_contexts; copy-in subs {files}/file_contexts.subs_dist"
    );
    bench.run(&["shell", "--no-selinux", "-c", &make], &[]).ok();
    assert!(!bench.run(&["stat"], &["/etc/os-release"]).ok().contains("selinux"));
    let host = bench.path("tree");
    std::fs::create_dir_all(host.join("lib64/deep")).unwrap();
    std::fs::write(host.join("lib64/deep/x.so.1"), "x").unwrap();
    std::fs::write(host.join("lib64/plain"), "x").unwrap();
    let script = "mkdir -p /usr/bin /usr/local/bin /etc/ssh /opt/y/x12 /opt/y/x1a /srv/b/c /lib/modules /tmp; \
        write --text x /etc/motd; write --text x /etc/ssh/motd; touch /etc/ssh/ssh_host_rsa_key.pub /tmp/file; \
        ln -s /usr /etc/localtime; truncate -s 5 /usr/bin/tool; copy-in tree /usr/tree; copy-in tree /usr";
    bench.run(&["shell", "-c", script], &[]).ok();
    bench.is_sound();
    let mounted = Mounted::read_only(&bench.image(), bench.part());
    let found = bench.run(&["find"], &["/", "-newer", "/etc/os-release"]).ok();
    assert!(found.lines().count() > 20, "{found}");
    for path in found.lines().filter(|path| *path != "/" && *path != "/etc") {
        let ours = tool("getfattr").args(["-h", "-n", "security.selinux", "--only-values"]);
        let ours = ours.arg(mounted.join(path)).run().text().trim_end_matches('\0').to_string();
        let kind = match mounted.join(path).symlink_metadata().unwrap().file_type() {
            kind if kind.is_dir() => "dir",
            kind if kind.is_symlink() => "link",
            _ => "file",
        };
        // matchpathcon is not told of substitutes.
        let real = path.strip_prefix("/lib").map_or(path.to_string(), |rest| format!("/usr/lib{rest}"));
        let theirs = tool("matchpathcon")
            .args(["-n", "-f"])
            .arg(bench.path("contexts"))
            .args(["-m", kind, &real])
            .ok();
        let theirs = if theirs.trim() == "<<none>>" { "" } else { theirs.trim() };
        assert_eq!(ours, theirs, "{path}");
    }
}

#[test]
fn new_files_inherit_the_default_list_of_their_folder() {
    for (kind, mkfs) in KINDS {
        let bench = Bench::new(kind, mkfs);
        {
            let mounted = Mounted::writable(&bench.image(), bench.part());
            std::fs::create_dir(mounted.join("by")).unwrap();
            tool("setfacl")
                .args(["-d", "-m", "u::rwx,u:1234:rwx,g::r-x,g:50:rw,o::r"])
                .arg(mounted.join("by"))
                .ok();
            std::fs::create_dir(mounted.join("by/kernel")).unwrap();
            // The kernel leaves the umask aside where there is a default list.
            tool("sh")
                .args(["-c", "touch \"$1\"; chmod 644 \"$1\"", "sh"])
                .arg(mounted.join("by/kernel-file"))
                .ok();
        }
        bench.run(&["shell", "-c", "mkdir -m 777 /by/racker; touch /by/racker-file"], &[]).ok();
        bench.is_sound();
        let mounted = Mounted::read_only(&bench.image(), bench.part());
        for name in ["", "-file"] {
            let list = |who: &str| {
                let path = mounted.join(&format!("by/{who}{name}"));
                tool("getfacl").args(["-n", "-c", "-p"]).arg(path).ok()
            };
            assert_eq!(list("racker"), list("kernel"), "{kind} {name}");
        }
    }
}

#[test]
fn what_is_mounted_below_a_path_belongs_to_it() {
    let dir = tempfile::tempdir().unwrap();
    case("ock/boot").unpack(dir.path());
    let run = |verb: &str, args: &[&str]| {
        racker().args(["disk", verb, "boot.qcow2"]).args(args).dir(dir.path()).run().ok()
    };
    // The EFI partition is mounted in /boot, which is a partition itself.
    assert!(run("find", &["/boot"]).contains("\n/boot/efi/EFI/redhat/shimx64.efi\n"));
    assert!(run("tree", &["/boot"]).contains("shimx64.efi"));
    // A path of the boot partition alone is put into there, and the system sees it.
    std::fs::write(dir.path().join("more.conf"), "title more\n").unwrap();
    run("copy-in", &["more.conf", "/loader/entries/"]);
    assert_eq!(run("cat", &["/boot/loader/entries/more.conf"]), "title more\n");
    run("copy-out", &["/boot", "."]);
    let efi = std::fs::read_dir(dir.path().join("boot/efi/EFI/redhat")).unwrap().count();
    assert_eq!(
        (efi, std::fs::read_to_string(dir.path().join("boot/loader.1/entries/more.conf")).unwrap()),
        (4, "title more\n".into())
    );
    // The shell shows, and takes out, what is not in the image yet.
    let script = "edit /loader/entries/more.conf --replace more less; copy-out /loader/entries/more.conf .; rollback; \
        edit /loader/entries/more.conf --regex s/more/most/";
    run("shell", &["-c", script]);
    assert_eq!(std::fs::read_to_string(dir.path().join("more.conf")).unwrap(), "title less\n");
    assert_eq!(run("cat", &["/boot/loader/entries/more.conf"]), "title most\n");
    tool("qemu-img").args(["check", "-q", "boot.qcow2"]).dir(dir.path()).ok();
}

#[test]
fn lists_name_those_whom_the_archive_brings() {
    let bench = Bench::new(KINDS[2].0, KINDS[2].1);
    let tree = bench.path("tree");
    std::fs::create_dir_all(tree.join("etc")).unwrap();
    std::fs::create_dir_all(tree.join("a/log")).unwrap();
    // The list of what comes first names a group of what comes later, which has another number there than here.
    std::fs::write(tree.join("etc/group"), "adm:x:777:\n").unwrap();
    std::fs::write(tree.join("etc/os-release"), "ID=x\n").unwrap();
    tool("setfacl").args(["-m", "g:adm:rx,d:g:adm:rx"]).arg(tree.join("a/log")).ok();
    tool("tar").args(["--acls", "-cf", "tree.tar", "-C", "tree", "a", "etc"]).dir(bench.dir.path()).ok();
    let said = bench.run(&["tar-in"], &["tree.tar"]);
    assert!(!format!("{said}").contains("left out"), "{said}");
    said.ok();
    bench.is_sound();
    let mounted = Mounted::read_only(&bench.image(), bench.part());
    let list = tool("getfacl").args(["-n", "-c", "-p"]).arg(mounted.join("a/log")).ok();
    assert!(list.contains("\ngroup:777:r-x") && list.contains("\ndefault:group:777:r-x"), "{list}");
}
