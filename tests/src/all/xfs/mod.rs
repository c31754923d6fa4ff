//! XFS written: random operations against a model, judged by `xfs_repair` and by the kernel.

mod model;
mod play;

use std::path::{Path, PathBuf};

use racker_formats::open::{OpenOptions, open};
use racker_fs::drivers::DRIVERS;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Driver, Filesystem};
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::tool::{Tool, tool};
use tempfile::TempDir;

use model::Model;
use play::{Player, Style};

/// What is played unless a test says otherwise.
const STYLE: Style = Style { nodes: 700, write: 200_000, reach: 1 << 33 };

fn driver() -> &'static dyn Driver {
    *DRIVERS.iter().find(|d| d.name() == "xfs").unwrap()
}

/// A new filesystem in a folder of its own.
struct Image {
    _dir: TempDir,
    path: PathBuf,
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
        Self { _dir: dir, path }
    }

    /// An edit that lands.
    fn edit<T>(&self, work: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        let options = OpenOptions { write: true, format: Some("raw"), ..OpenOptions::default() };
        let opened = open(&self.path, &options).unwrap();
        let transaction = opened.begin().unwrap();
        let disk = transaction.disk();
        let mut writer = Writer::open(driver(), &disk).unwrap();
        let done = work(&mut writer);
        writer.close().unwrap();
        transaction.commit().unwrap();
        done
    }

    fn read<T>(&self, look: impl FnOnce(&dyn Filesystem) -> T) -> T {
        let options = OpenOptions { format: Some("raw"), ..OpenOptions::default() };
        let opened = open(&self.path, &options).unwrap();
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
                player.model.assert_is(&**fs, &mut player.rng);
            });
            self.read(|fs| player.model.assert_is(fs, &mut player.rng));
            is_clean(&self.path);
        }
    }

    /// The kernel sees what racker sees, changes it, and racker sees that.
    fn pass_on(&self) {
        let ours = self.read(Manifest::of_filesystem);
        {
            let mounted = Mounted::writable(&self.path, WHOLE);
            let theirs = Manifest::of_folder(mounted.path());
            theirs.assert_same(&ours, "kernel / racker");
            let script = "mkdir -p kernel && for i in $(seq 300); do echo $i > kernel/file-$i; done; \
                          for d in */; do touch \"$d/by-the-kernel\"; done; \
                          find . -type f | head -n 20 | while read -r f; do echo more >> \"$f\"; done; \
                          find . -depth -name '*a*' | tail -n 30 | while read -r f; do rm -rf \"$f\"; done";
            tool("bash").args(["-c", script]).dir(mounted.path()).run();
        }
        let mounted = Mounted::read_only(&self.path, WHOLE);
        let theirs = Manifest::of_folder(mounted.path());
        drop(mounted);
        theirs.assert_same(&self.read(Manifest::of_filesystem), "kernel / racker, after the kernel's changes");
        is_clean(&self.path);
    }
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
    image.play(&mut player, 2, 150);
    image.pass_on();
}

#[test]
fn default() {
    plays("400M", "", 1);
}
