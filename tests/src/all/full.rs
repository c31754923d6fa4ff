//! No room, no inodes, no memory: a command says so in one line, and the image is as it was, byte for byte.

use std::path::{Path, PathBuf};

use racker_tests::image::scratch;
use racker_tests::rng::Rng;
use racker_tests::tool::{Ran, binary, racker, tool};
use tempfile::TempDir;

/// A filesystem: what makes it, its size, what makes one with few inodes (or with a root directory of few entries).
struct Form {
    kind: &'static str,
    make: &'static str,
    size: &'static str,
    few: Option<&'static str>,
}

const FORMS: &[Form] = &[
    Form {
        kind: "xfs",
        make: "mkfs.xfs -q -l size=16m -d agcount=2 -m rmapbt=1",
        size: "48M",
        few: Some("mkfs.xfs -q -l size=16m -d agcount=2 -i maxpct=1"),
    },
    Form {
        kind: "ext4",
        make: "mke2fs -q -F -t ext4 -b 1024 -N 400 -m 0",
        size: "4M",
        few: Some("mke2fs -q -F -t ext4 -b 1024 -N 16"),
    },
    Form {
        kind: "ext2",
        make: "mke2fs -q -F -t ext2 -b 1024 -N 400 -m 0",
        size: "2M",
        few: Some("mke2fs -q -F -t ext2 -b 1024 -N 16"),
    },
    Form {
        kind: "fat12",
        make: "mkfs.vfat -F 12 -s 1",
        size: "720K",
        few: Some("mkfs.vfat -F 12 -s 1 -r 16"),
    },
    Form { kind: "fat16", make: "mkfs.vfat -F 16 -s 1", size: "4M", few: Some("mkfs.vfat -F 16 -s 1 -r 16") },
    // Its root directory grows.
    Form { kind: "fat32", make: "mkfs.vfat -F 32 -s 1", size: "34M", few: None },
];

struct Bench {
    dir: TempDir,
    kind: &'static str,
}

impl Bench {
    fn new(kind: &'static str, make: &str, size: &str) -> Self {
        let bench = Self { dir: scratch(), kind };
        let mut words = make.split(' ');
        tool("truncate").args(["-s", size]).arg(bench.image()).ok();
        let program = tool(words.next().unwrap());
        let program = program.env("TEST_DIR", "1").env("TEST_DEV", "1").env("QA_CHECK_FS", "1");
        program.args(words).arg(bench.image()).ok();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("disk.img")
    }

    /// A file of the host.
    fn host(&self, name: &str, len: u64) -> &Self {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        Rng::new(len).fill(&mut bytes);
        std::fs::write(self.path(name), bytes).unwrap();
        self
    }

    fn run(&self, args: &[&str]) -> Ran {
        let words = args.iter().map(|word| if *word == "IMG" { "disk.img" } else { word });
        racker().arg("disk").args(words).dir(self.dir.path()).input("0123456789".repeat(100_000)).run()
    }

    fn is_sound(&self) {
        let image = self.image();
        match self.kind {
            "xfs" => tool("xfs_repair").args(["-n", "-f"]).arg(image).ok(),
            "ext4" | "ext2" => tool("e2fsck").args(["-fn"]).arg(image).ok(),
            _ => tool("fsck.vfat").arg("-n").arg(image).ok(),
        };
    }

    /// It fails for want of room, and nothing has changed: neither the image nor what lies beside it.
    fn refused(&self, args: &[&str]) {
        let (before, beside) = (std::fs::read(self.image()).unwrap(), beside(self.dir.path()));
        let ran = self.run(args);
        let said = ran.failed();
        let plain = ["no room", "no space", "full", "no free", "no inode", "not enough"];
        assert!(plain.iter().any(|word| said.to_lowercase().contains(word)), "{}: {ran}", self.kind);
        assert!(before == std::fs::read(self.image()).unwrap(), "{}: {args:?} changed the image", self.kind);
        assert_eq!(beside, self::beside(self.dir.path()), "{}: {args:?}", self.kind);
    }

    /// An archive of files, in a folder of the host.
    fn archive(&self, name: &str, files: u32, len: usize) {
        let folder = self.path("many");
        std::fs::create_dir_all(&folder).unwrap();
        for n in 0..files {
            std::fs::write(folder.join(format!("file-{n}")), vec![b'x'; len]).unwrap();
        }
        tool("tar").args(["-cf", name, "-C", "many", "."]).dir(self.dir.path()).ok();
    }

    /// Files until not even the smallest fits.
    fn fill(&self) {
        for (n, len) in [1 << 20, 1 << 16, 1 << 13, 1 << 10, 1].into_iter().enumerate() {
            self.host("piece", len);
            for i in 0.. {
                let to = format!("/{n}-{i}");
                let args = ["write", "-q", "IMG", &to, "--from", "piece"];
                if self.run(&args).status != 0 {
                    self.refused(&args);
                    break;
                }
            }
        }
    }
}

fn beside(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_full_filesystem_refuses_plainly() {
    for form in FORMS {
        let bench = Bench::new(form.kind, form.make, form.size);
        let unix = !form.kind.starts_with("fat");
        bench.run(&["mkdir", "IMG", "/folder"]).ok();
        bench.run(&["write", "IMG", "/folder/file", "--text", "some text"]).ok();
        bench.host("large", 60 << 20);
        bench.archive("large.tar", 30, 2 << 20);
        bench.refused(&["copy-in", "IMG", "large", "/"]);
        bench.refused(&["tar-in", "IMG", "large.tar", "/"]);
        bench.fill();
        bench.is_sound();
        bench.host("large", 200_000).archive("small.tar", 100, 9000);
        bench.refused(&["copy-in", "IMG", "large", "/folder"]);
        bench.refused(&["write", "IMG", "/folder/file", "--from", "large"]);
        // From standard input.
        bench.refused(&["write", "IMG", "/folder/other"]);
        bench.refused(&["tar-in", "IMG", "small.tar", "/folder"]);
        bench.refused(&["edit", "IMG", "/folder/file", "--from", "large"]);
        let tree = bench.path("tree/a/b/c/d/e/f/g/h");
        std::fs::create_dir_all(&tree).unwrap();
        bench.host("tree/a/b/large", 200_000);
        bench.refused(&["copy-in", "IMG", "tree", "/"]);
        bench.refused(&["shell", "IMG", "-c", "rm /folder/file; write --from large /folder/new; commit"]);
        // A block may be left that was not enough for a file and its entry; XFS keeps some for what must not fail.
        let count = if form.kind == "xfs" { 3000 } else { 60 };
        let many: String = (0..count).map(|n| format!("mkdir /folder/{n};")).collect();
        bench.refused(&["shell", "IMG", "-c", &many]);
        if unix {
            let long = "x".repeat(1000);
            let names: String =
                (0..40).map(|n| format!("ln /folder/file /folder/{long:.200}-{n};")).collect();
            // XFS keeps blocks for what must not fail: small changes find room there.
            if form.kind != "xfs" {
                let links: String = (0..40).map(|n| format!("ln -s {long} /folder/link-{n};")).collect();
                bench.refused(&["shell", "IMG", "-c", &links]);
                bench.refused(&["setfattr", "IMG", "/folder/file", "-n", "user.a", "-v", &long]);
                bench.refused(&["shell", "IMG", "-c", &names]);
            }
        } else {
            // Only a hole would need no room, and FAT has none.
            bench.refused(&["truncate", "IMG", "-s", "300000", "/folder/file"]);
        }
        bench.is_sound();
        assert_eq!(bench.run(&["cat", "IMG", "/folder/file"]).ok().trim(), "some text");
        // What goes makes room.
        for piece in ["/0-0", "/1-0", "/1-1", "/1-2", "/1-3"] {
            // Not each is there on each.
            bench.run(&["rm", "IMG", piece]);
        }
        bench.run(&["copy-in", "IMG", "large", "/folder"]).ok();
        bench.is_sound();
    }
}

#[test]
fn without_inodes_files_are_refused_plainly() {
    for form in FORMS {
        let Some(make) = form.few else { continue };
        let bench = Bench::new(form.kind, make, form.size);
        bench.archive("many.tar", if form.kind == "xfs" { 3000 } else { 40 }, 0);
        bench.refused(&["tar-in", "IMG", "many.tar", "/"]);
        if !form.kind.starts_with("fat") {
            // There only the root directory is of a fixed size.
            bench.refused(&["copy-in", "IMG", "many", "/"]);
        }
        for n in 0..40 {
            let name = format!("/file-{n}");
            if form.kind != "xfs" && bench.run(&["touch", "IMG", &name]).status != 0 {
                bench.refused(&["touch", "IMG", &name]);
                bench.refused(&["mkdir", "IMG", &name]);
                bench.refused(&["write", "IMG", &name, "--text", "text"]);
                bench.run(&["rm", "IMG", "/file-1"]).ok();
                bench.run(&["touch", "IMG", "/file-1"]).ok();
                break;
            }
            assert!(n < 39 || form.kind == "xfs", "{}", form.kind);
        }
        bench.is_sound();
    }
}

/// An archive of a file of `mib` MiB and of so many files in one folder.
fn tree(path: &Path, mib: u32, files: u32) {
    let script = "import io, sys, tarfile\n\
        piece = bytes(range(256)) * 4096\n\
        class Pieces(io.RawIOBase):\n\
        \x20   def read(self, n=-1): return piece[:n]\n\
        with tarfile.open(sys.argv[1], 'w', format=tarfile.GNU_FORMAT) as t:\n\
        \x20   i = tarfile.TarInfo('large'); i.size = int(sys.argv[2]) << 20; t.addfile(i, Pieces())\n\
        \x20   i = tarfile.TarInfo('d'); i.type = tarfile.DIRTYPE; i.mode = 0o755; t.addfile(i)\n\
        \x20   for n in range(int(sys.argv[3])):\n\
        \x20       i = tarfile.TarInfo('d/file-%06d' % n); i.size = n % 7 // 6 * 100\n\
        \x20       t.addfile(i, io.BytesIO(bytes(i.size)))\n";
    tool("python3").args(["-c", script]).arg(path).args([mib.to_string(), files.to_string()]).ok();
}

/// The tree goes in below `limit` MiB of address space; below less and less, it goes in, or racker dies or says so,
/// and the files of the image are as before.
fn in_memory(kind: &'static str, make: &str, size: &str, tar: &Path, limit: u64) {
    let bench = Bench::new(kind, make, size);
    bench.run(&["write", "IMG", "/before", "--text", "before"]).ok();
    let listing = |bench: &Bench| bench.run(&["ls", "-lR", "IMG", "/"]).ok();
    let before = listing(&bench);
    let copy = bench.path("copy.img");
    tool("cp").args(["--sparse=always"]).args([&bench.image(), &copy]).ok();
    let limited = |mib: u64| {
        let limited = tool("prlimit").arg(format!("--as={}", mib << 20)).arg(binary());
        limited.args(["disk", "tar-in", "-q", "-f", "raw"]).arg(bench.image()).arg(tar).arg("/").run()
    };
    for mib in [limit / 2, limit / 4, 40, 32] {
        let ran = limited(mib);
        if ran.status != 0 {
            assert_eq!(listing(&bench), before, "{kind}: {mib} MiB: {ran}");
            bench.is_sound();
        }
        println!("{kind}: {mib} MiB: status {}", ran.status);
        tool("cp").args(["--sparse=always"]).args([&copy, &bench.image()]).ok();
    }
    let ran = limited(limit);
    assert_eq!(ran.status, 0, "{kind}: {limit} MiB: {ran}");
    bench.is_sound();
    let now = listing(&bench);
    assert!(now.contains("file-000001") && now.contains("large"), "{kind}");
}

#[test]
fn little_memory_is_enough_or_nothing_happens() {
    let dir = scratch();
    let tar = dir.path().join("tree.tar");
    tree(&tar, 40, 2000);
    in_memory("ext4", "mke2fs -q -F -t ext4 -N 4000", "100M", &tar, 256);
    in_memory("xfs", "mkfs.xfs -q -l size=16m", "128M", &tar, 256);
    in_memory("fat32", "mkfs.vfat -F 32 -s 1", "80M", &tar, 256);
}

/// 1 GiB in one file, and 100,000 files in one folder (65,000 on FAT):
/// `cargo test --release -p racker-tests --test all -- --ignored --nocapture full::large_trees_in_little_memory`
#[test]
#[ignore = "minutes"]
fn large_trees_in_little_memory() {
    let dir = scratch();
    let tar = dir.path().join("tree.tar");
    tree(&tar, 1024, 30_000);
    in_memory("fat32", "mkfs.vfat -F 32 -s 8", "1500M", &tar, 256);
    tree(&tar, 1024, 100_000);
    for (kind, make) in [
        ("ext4", "mke2fs -q -F -t ext4 -N 120000"),
        ("ext2", "mke2fs -q -F -t ext2 -b 4096 -N 120000"),
        ("xfs", "mkfs.xfs -q"),
    ] {
        in_memory(kind, make, "1800M", &tar, 256);
    }
}
