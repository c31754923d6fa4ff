//! `fs check`: damage of many kinds is found, named, and never written to; what is safe is mended.

use std::path::{Path, PathBuf};

use racker_tests::image::scratch;
use racker_tests::tool::{Ran, racker, tool};

struct Bench {
    _dir: tempfile::TempDir,
    image: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = scratch();
        let image = dir.path().join("fs.raw");
        Self { _dir: dir, image }
    }

    fn racker(&self, verb: &str, more: &[&str]) -> Ran {
        racker().args(["disk", verb, "-f", "raw", "--partition", "0"]).arg(&self.image).args(more).run()
    }

    fn check(&self, more: &[&str]) -> Ran {
        self.racker("fs", &[&["check"], more].concat())
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.image).unwrap()
    }

    /// A file is not written, in one line, and the image stays as it is.
    fn is_refused(&self, what: &str) {
        let before = self.bytes();
        let ran = self.racker("write", &["--text", "x", "/racker"]);
        ran.told_plainly();
        assert!(
            ran.failed().contains("before changing anything") || ran.failed().contains("not closed"),
            "{what}: {ran}"
        );
        assert!(self.bytes() == before, "{what}: the image has changed");
    }

    fn debugfs(&self, commands: &[&str]) {
        let script: String = commands.iter().map(|c| format!("{c}\n")).collect();
        tool("debugfs").args(["-w", "-f", "/dev/stdin"]).arg(&self.image).input(script).ok();
    }
}

/// An ext filesystem with a few files: `/a` of nine blocks, `/b`, a directory `/d` with `/d/c`, a link.
fn ext(options: &str) -> Bench {
    let bench = Bench::new();
    let options = options.split(' ').filter(|o| !o.is_empty());
    tool("mke2fs").args(["-q", "-F", "-b", "1024"]).args(options).arg(&bench.image).arg("4M").ok();
    let content = bench.image.with_file_name("content");
    std::fs::write(&content, vec![7u8; 9000]).unwrap();
    let from = content.display();
    let files =
        [format!("write {from} a"), format!("write {from} b"), "mkdir d".into(), format!("write {from} d/c")];
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    bench.debugfs(&files);
    bench.debugfs(&["symlink l a"]);
    bench
}

fn e2fsck_is_clean(image: &Path) -> bool {
    let ran = tool("e2fsck").args(["-fn"]).arg(image).env("E2FSCK_CONFIG", "/dev/null").run();
    // Some questions that it asks have no bearing on its status.
    ran.status == 0 && !ran.text().contains("? no")
}

/// What debugfs does to a filesystem, and what is found.
const DAMAGE: &[(&str, &[&str], &str)] = &[
    ("-t ext4", &["sif a links_count 7"], "counts 7 names, and has 1"),
    ("-t ext4", &["sif a size 1"], "its size is 1"),
    ("-t ext4", &["sif a blocks 2"], "it counts 2 sectors"),
    ("-t ext4", &["sif a mode 0"], "its mode is 0"),
    ("-t ext4", &["sif a dtime 1700000000"], "a time of deletion"),
    ("-t ext4", &["sif a flags 0x10080000"], "inline"),
    ("-t ext4", &["sif a block[0] 0"], "extent tree"),
    ("-t ext4", &["sif l size 30"], "symbolic link"),
    ("-t ext4", &["clri d"], "not in use"),
    ("-t ext4", &["unlink a"], "has no name"),
    ("-t ext4", &["unlink d"], "not reached from the root"),
    ("-t ext4", &["ln d e"], "has another name"),
    ("-t ext4", &["sif <8> mode 0"], "journal"),
    ("-t ext4 -O ^resize_inode", &["sif <7> block[DIND] 40"], "resize inode"),
    ("-t ext4", &["sif d flags 0x81000"], "index"),
    ("-t ext4 -O ^metadata_csum", &["zap -f d 0"], "directory"),
    ("-t ext2", &["sif a block[0] 5"], "own tables"),
    ("-t ext2", &["sif a block[0] 900000"], "names block 900000"),
    ("-t ext2 -O ^resize_inode", &["sif a block[1] 0", "sif a block[12] 0"], "sectors"),
    ("-t ext2", &["ssv reserved_gdt_blocks 3000"], "s_reserved_gdt_blocks"),
];

#[test]
fn damage_of_ext_is_found_and_not_written_to() {
    for (options, commands, expected) in DAMAGE {
        let what = format!("{options}: {commands:?}");
        let bench = ext(options);
        assert_eq!(bench.check(&[]).status, 0, "{what}");
        bench.debugfs(commands);
        let found = bench.check(&[]);
        assert_eq!(found.status, 2, "{what}: {found}");
        assert!(found.text().contains(expected), "{what}: {found}");
        assert!(!e2fsck_is_clean(&bench.image), "{what}: e2fsck finds nothing");
        bench.is_refused(&what);
        let before = bench.bytes();
        assert_eq!(bench.check(&["--repair"]).status, 2, "{what}");
        assert!(bench.bytes() == before, "{what}: --repair has guessed");
    }
}

/// What follows from everything else: how bad it is, and whether an edit is refused until it is mended.
const MENDABLE: &[(&str, &[&str], i32)] = &[
    ("-t ext4", &["setb 3000 5"], 3),
    ("-t ext2", &["setb 3000 5"], 3),
    ("-t ext4", &["freei a"], 2),
    ("-t ext2", &["freeb 100 2000"], 2),
    ("-t ext4", &["ssv free_blocks_count 5"], 2),
    ("-t ext4", &["ssv free_inodes_count 5"], 2),
    ("-t ext4", &["set_bg 0 free_blocks_count 1", "set_bg 0 checksum calc"], 2),
    ("-t ext2", &["set_bg 0 used_dirs_count 9"], 2),
    ("-t ext2", &["ssv state 0"], 2),
];

#[test]
fn what_is_safe_is_mended() {
    for (options, commands, status) in MENDABLE {
        let what = format!("{options}: {commands:?}");
        let bench = ext(options);
        bench.debugfs(commands);
        let found = bench.check(&[]);
        assert_eq!(found.status, *status, "{what}: {found}");
        if *status == 2 {
            bench.is_refused(&what);
        }
        let mended = bench.check(&["--repair"]);
        assert_eq!(mended.status, 0, "{what}: {mended}");
        assert!(mended.text().contains("repaired: "), "{what}: {mended}");
        assert!(e2fsck_is_clean(&bench.image), "{what}: not clean to e2fsck");
        bench.racker("write", &["--text", "x", "/racker"]).ok();
        assert!(e2fsck_is_clean(&bench.image), "{what}: not clean after an edit");
        assert_eq!(bench.check(&[]).status, 0, "{what}");
    }
}

#[test]
fn what_is_of_no_use_is_in_nobodys_way() {
    let bench = ext("-t ext4 -O orphan_file");
    tool("tune2fs").args(["-O", "^has_journal"]).arg(&bench.image).ok();
    assert!(!e2fsck_is_clean(&bench.image));
    let found = bench.check(&["--repair"]);
    assert_eq!(found.status, 2, "{found}");
    assert!(found.text().contains("an orphan file without a journal"), "{found}");
    bench.racker("write", &["--text", "x", "/racker"]).ok();
    // It leaves the inode's bit to a second run.
    for _ in 0..2 {
        tool("e2fsck").args(["-fy"]).arg(&bench.image).run();
    }
    assert!(e2fsck_is_clean(&bench.image));
    assert_eq!(bench.check(&[]).status, 0);
    assert_eq!(bench.racker("cat", &["/racker"]).ok(), "x\n");
}

#[test]
fn findings_come_as_json() {
    let bench = ext("-t ext4");
    bench.debugfs(&["sif a links_count 7"]);
    let ran = bench.check(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!((&json["filesystem"], &json["corruptions"]), (&"ext4".into(), &1.into()));
    assert_eq!(json["findings"][0]["severity"], "corruption");
    assert!(bench.racker("fs", &["check", "--repair", "--json"]).text().contains("findings"));
}

/// A FAT16 filesystem with a file of 10 clusters, which begins with cluster 3 or 4, and another; its tables and root.
fn fat() -> (Bench, Vec<u8>, [usize; 3]) {
    let bench = Bench::new();
    tool("mkfs.vfat").args(["-F", "16", "-s", "4", "-C"]).arg(&bench.image).arg("40000").ok();
    for name in ["/a", "/b"] {
        bench.racker("write", &["--text", &"x".repeat(20_000), name]).ok();
    }
    let bytes = bench.bytes();
    let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (first, len) = (word(14) * 512, word(22) * 512);
    (bench, bytes, [first, first + len, first + 2 * len])
}

#[test]
fn damage_of_fat_is_found() {
    let (bench, sound, [first, second, root]) = fat();
    assert_eq!(bench.check(&[]).status, 0);
    let both = |bytes: &mut [u8], cluster: usize, value: u16| {
        for table in [first, second] {
            bytes[table + 2 * cluster..][..2].copy_from_slice(&value.to_le_bytes());
        }
    };
    let start = usize::from(u16::from_le_bytes([sound[root + 26], sound[root + 27]]));
    let tables = (first, second);
    let set = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        std::fs::write(&bench.image, bytes).unwrap();
    };
    let clean = || tool("fsck.vfat").arg("-n").arg(&bench.image).run().status == 0;
    type Case<'a> = (&'a str, &'a dyn Fn(&mut [u8]), i32, i32, &'a str);
    let cases: &[Case<'_>] = &[
        ("lost", &|b| (both(b, 1000, 1001), both(b, 1001, 0xffff)).0, 3, 0, "2 clusters belong to no file"),
        ("cross-linked", &|b| both(b, start + 2, start as u16 + 14), 2, 2, "is in two chains"),
        ("loop", &|b| both(b, start + 2, start as u16 + 1), 2, 2, "is in two chains"),
        ("short", &|b| both(b, start + 2, 0xffff), 2, 2, "and its chain 3 clusters"),
        (
            "long",
            &|b| b[root + 28..][..4].copy_from_slice(&10u32.to_le_bytes()),
            3,
            3,
            "behind the file's end",
        ),
        ("free", &|b| both(b, start + 2, 0), 2, 2, "free cluster"),
        ("dirty", &|b| b[37] |= 1, 2, 0, "was not closed"),
        ("differs", &|b| b[tables.1 + 2 * start] ^= 1, 2, 0, "the tables differ"),
        ("twice", &|b| b.copy_within(root..root + 11, root + 32), 2, 2, "the name of another"),
    ];
    for (what, change, status, mended, expected) in cases {
        set(change);
        let found = bench.check(&[]);
        assert_eq!(found.status, *status, "{what}: {found}");
        assert!(found.text().contains(expected), "{what}: {found}");
        assert!(!clean(), "{what}: fsck.vfat finds nothing");
        if *status == 2 && *what != "dirty" {
            bench.is_refused(what);
        }
        let ran = bench.check(&["--repair"]);
        assert_eq!(ran.status, *mended, "{what}: {ran}");
        assert_eq!(clean(), *mended == 0, "{what}: {ran}");
    }
}
