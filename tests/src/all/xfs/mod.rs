//! XFS written: random operations against a model, judged by `xfs_repair` and by the kernel.

mod case;
mod check;
mod damage;
mod devices;
mod edges;
mod model;
mod play;

use std::path::{Path, PathBuf};
use std::time::Duration;

use racker_fixtures::case;
use racker_formats::block::Span;
use racker_formats::error::Kind;
use racker_formats::open::{OpenOptions, Opened, open};
use racker_fs::drivers::DRIVERS;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Driver, Filesystem, Name, New, NewKind, Time};
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::tool::{Tool, tool};
use tempfile::TempDir;

use model::Model;
use play::{Player, Style};

/// What is played unless a test says otherwise.
const STYLE: Style = Style { nodes: 700, write: 200_000, reach: 1 << 24 };

fn driver() -> &'static dyn Driver {
    *DRIVERS.iter().find(|d| d.name() == "xfs").unwrap()
}

/// A new filesystem in a folder of its own.
struct Image {
    _dir: TempDir,
    path: PathBuf,
    /// This machine's `xfs_repair` knows it.
    repairable: bool,
}

/// mkfs.xfs: smaller filesystems than it makes by itself are for those who test.
fn mkfs() -> Tool {
    tool("mkfs.xfs").env("TEST_DIR", "1").env("TEST_DEV", "1").env("QA_CHECK_FS", "1").arg("-q")
}

impl Image {
    fn new(size: &str, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("xfs.raw");
        tool("truncate").args(["-s", size]).arg(&path).ok();
        mkfs().args(options.split_whitespace()).arg(&path).ok();
        Self { _dir: dir, path, repairable: true }
    }

    /// A copy of a filesystem that the kernel filled.
    fn of_case(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let case = case(name);
        case.unpack(dir.path());
        let path = dir.path().join(&case.images()[0]);
        Self { _dir: dir, path, repairable: name != "xfs/today" || repair_version() >= 7 }
    }

    fn open(&self, options: &OpenOptions<'_>) -> Opened {
        open_when_free(&self.path, options)
    }

    /// An edit that lands.
    fn edit<T>(&self, work: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        let options = OpenOptions { write: true, format: Some("raw"), ..OpenOptions::default() };
        let opened = self.open(&options);
        let transaction = opened.begin().unwrap();
        let disk = transaction.disk();
        assert!(disk.disk().claim(Span::first(disk.disk().size())).unwrap());
        let mut writer = Writer::open(driver(), &disk).unwrap();
        let done = work(&mut writer);
        writer.close().unwrap();
        transaction.commit().unwrap();
        done
    }

    fn read<T>(&self, look: impl FnOnce(&dyn Filesystem) -> T) -> T {
        let options = OpenOptions { format: Some("raw"), ..OpenOptions::default() };
        let opened = self.open(&options);
        look(driver().open(opened.disk.clone()).unwrap().as_ref())
    }

    fn player(&self, seed: u64, style: Style) -> Player {
        Player::new(seed, self.read(Model::new), style)
    }

    /// Plays so many operations, and so many times; each time all is compared and `xfs_repair` asked.
    fn play(&self, player: &mut Player, times: usize, operations: usize) {
        for _ in 0..times {
            self.edit(|fs| {
                for _ in 0..operations {
                    player.step(fs);
                }
                player.model.assert_is(fs.filesystem().as_ref(), &mut player.rng);
            });
            self.read(|fs| player.model.assert_is(fs, &mut player.rng));
            if self.repairable {
                is_clean(&self.path);
            }
        }
    }

    /// The kernel sees what racker sees, changes it, and racker sees that.
    fn pass_on(&self) {
        let ours = self.read(Manifest::of_filesystem);
        {
            let mounted = Mounted::writable(&self.path, WHOLE);
            let theirs = Manifest::of_folder(mounted.path());
            theirs.assert_same(&ours, "kernel / racker");
            let script = "rm -rf kernel; mkdir -p kernel && for i in $(seq 300); do echo $i > kernel/file-$i; done; \
                          for d in */; do touch \"$d/by-the-kernel\"; done; \
                          find . -type f | head -n 20 | while read -r f; do echo more >> \"$f\"; done; \
                          find . -depth -name '*a*' | tail -n 30 | while read -r f; do rm -rf \"$f\"; done";
            tool("bash").args(["-c", script]).dir(mounted.path()).run();
        }
        let mounted = Mounted::read_only(&self.path, WHOLE);
        let theirs = Manifest::of_folder(mounted.path());
        drop(mounted);
        theirs
            .assert_same(&self.read(Manifest::of_filesystem), "kernel / racker, after the kernel's changes");
        is_clean(&self.path);
    }
}

/// Programs that other tests are starting have an image's lock, too, until they have begun.
fn open_when_free(path: &Path, options: &OpenOptions<'_>) -> Opened {
    for _ in 0..200 {
        match open(path, options) {
            Err(e) if e.kind() == Kind::Busy => std::thread::sleep(Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays locked", path.display());
}

fn repair_version() -> u32 {
    let version = tool("xfs_repair").arg("-V").ok();
    version.split(' ').next_back().unwrap().split('.').next().unwrap().parse().unwrap()
}

fn is_clean(path: &Path) {
    let ran = tool("xfs_repair").args(["-n", "-f"]).arg(path).run();
    if ran.status != 0 {
        if let Ok(keep) = std::env::var("KEEP_IMAGE") {
            tool("cp").args(["--sparse=always"]).arg(path).arg(keep).ok();
        }
        panic!("{ran}");
    }
}

/// A filesystem of some kind: random operations, the kernel's look at it, and more of them.
fn plays(size: &str, options: &str, seed: u64) {
    let image = Image::new(size, options);
    let mut player = image.player(seed, STYLE);
    image.play(&mut player, 3, 120);
    image.pass_on();
    player.model = image.read(Model::load);
    image.play(&mut player, 1, 120);
}

/// `cargo test -p racker-tests --release -- --ignored --nocapture a_hundred_thousand_operations`
#[test]
#[ignore = "takes half an hour"]
fn a_hundred_thousand_operations() {
    let kinds = [
        "-m rmapbt=1 -i nrext64=1",
        "-b size=1024 -m rmapbt=1",
        "-m finobt=0,inobtcount=0,reflink=0 -n size=16384",
        "-i size=1024 -d agcount=20",
    ];
    for (seed, options) in (100..).zip(kinds) {
        let image = Image::new("600M", options);
        let mut player = image.player(seed, Style { nodes: 3000, ..STYLE });
        for round in 1..=25 {
            image.play(&mut player, 4, 250);
            image.pass_on();
            player.model = image.read(Model::load);
            println!("{options}: {round},000 operations, {} nodes", player.model.nodes.len());
        }
    }
}

/// Every node says which entries name it: the kernel finds all of that when it removes them.
#[test]
fn parent_pointers() {
    let image = Image::of_case("xfs/today");
    let mut player = Player::new(77, image.read(Model::load), STYLE);
    image.play(&mut player, 3, 150);
    let ours = image.read(Manifest::of_filesystem);
    {
        let mounted = Mounted::writable(&image.path, WHOLE);
        let theirs = Manifest::of_folder(mounted.path());
        theirs.assert_same(&ours, "kernel / racker");
        tool("bash").args(["-c", "chattr -R -f -ia . ; true"]).dir(mounted.path()).ok();
        tool("bash")
            .args(["-c", "mkdir new; ls | while read -r f; do mv \"$f\" new/; done"])
            .dir(mounted.path())
            .run();
        tool("bash").args(["-c", "find . -mindepth 1 -delete"]).dir(mounted.path()).ok();
    }
    image.read(|fs| assert_eq!(Model::load(fs).nodes.len(), 1));
}

/// Names of several namespaces have one hash, and share a block where they can: `xfs_repair` counts on it.
#[test]
fn names_of_one_hash_stay_together() {
    let image = Image::new("400M", "-b size=1024");
    let now = Time { sec: 1_700_000_000, nsec: 0 };
    image.edit(|fs| {
        let root = fs.root();
        for len in 1..300 {
            let new = New { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0 };
            let file = fs.create(root, &Name::new(len.to_string().as_bytes()).unwrap(), &new, now).unwrap();
            fs.set_xattr(file, b"user.first", Some(&vec![1; 2 * len]), now).unwrap();
            for prefix in ["user", "trusted", "security"] {
                let name = format!("{prefix}.one and the same name");
                fs.set_xattr(file, name.as_bytes(), Some(&vec![2; len]), now).unwrap();
            }
        }
    });
    is_clean(&image.path);
}

/// Filesystems that others filled, in every form.
#[test]
fn what_the_kernel_filled() {
    for (seed, name) in
        (50..).zip(["xfs/default", "xfs/small-blocks", "xfs/large-dir-blocks", "xfs/old", "xfs/dirty"])
    {
        let image = Image::of_case(name);
        let mut player = Player::new(seed, image.read(Model::load), Style { nodes: 9000, ..STYLE });
        image.play(&mut player, 1, 150);
    }
}

macro_rules! kinds {
    ($($name:ident: $size:literal, $options:literal, $seed:literal;)*) => {
        $(
            #[test]
            fn $name() {
                plays($size, $options, $seed);
            }
        )*
    };
}

kinds! {
    default: "400M", "", 1;
    reverse_map: "400M", "-m rmapbt=1", 2;
    no_reflink: "400M", "-m reflink=0", 3;
    no_free_inode_tree: "400M", "-m finobt=0,inobtcount=0", 4;
    no_big_times: "400M", "-m bigtime=0,inobtcount=0", 5;
    many_extents: "400M", "-i nrext64=1 -m rmapbt=1", 6;
    large_inodes: "400M", "-i size=1024", 7;
    largest_inodes: "400M", "-i size=2048 -n size=8192", 8;
    whole_chunks: "400M", "-i sparse=0", 9;
    small_blocks: "400M", "-b size=1024 -m rmapbt=1", 10;
    half_blocks: "400M", "-b size=2048 -i size=1024", 11;
    large_directory_blocks: "400M", "-n size=16384", 12;
    largest_directory_blocks: "400M", "-b size=1024 -n size=65536", 13;
    large_sectors: "400M", "-s size=4096 -m rmapbt=1", 14;
    many_groups: "640M", "-d agcount=40 -m rmapbt=1", 15;
    tiny: "48M", "-l size=16m -d agcount=2 -m rmapbt=1", 16;
    tiny_blocks: "32M", "-b size=1024 -l size=4m -d agcount=2", 17;
    stripes: "600M", "-d su=64k,sw=4", 18;
}
