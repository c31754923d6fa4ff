//! Writing ext2, ext3 and ext4: random operations, judged by a model in memory, by e2fsck and by the kernel.

mod cases;
mod foreign;
mod hostile;
mod model;
mod ops;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::Disk;
use racker_fs::drivers::DRIVERS;
use racker_fs::edit::Writer;
use racker_fs::filesystem::Filesystem;
use racker_tests::image::{edit_raw, raw_disk, scratch};
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use self::model::Model;
use self::ops::{Play, Player};

const PLAY: Play = Play { reach: 3 << 30, write: 200_000, nodes: 300, value: 900, devices: true, fine: true };

/// Ways to make a filesystem: a name, its size, and the options of mke2fs.
const VARIANTS: &[(&str, &str, &str)] = &[
    ("ext4", "64M", "-t ext4 -b 4096"),
    ("ext4-1k", "48M", "-t ext4 -b 1024 -I 128"),
    ("ext4-2k", "64M", "-t ext4 -b 2048 -I 1024"),
    ("ext2", "32M", "-t ext2"),
    ("ext2-1k", "24M", "-t ext2 -b 1024"),
    ("ext3", "64M", "-t ext3 -b 4096 -I 128"),
    ("nocsum", "64M", "-t ext4 -b 4096 -O ^metadata_csum,^64bit,uninit_bg"),
    ("nocsum-noflags", "40M", "-t ext4 -O ^metadata_csum,^64bit,^uninit_bg,^flex_bg"),
    ("noextent", "48M", "-t ext4 -b 4096 -O ^extents,^64bit"),
    ("bigalloc", "128M", "-t ext4 -b 4096 -O bigalloc -C 16384 -N 4096"),
    ("bigalloc-1k", "64M", "-t ext4 -b 1024 -O bigalloc -C 4096 -N 4096"),
    ("inline_data", "64M", "-t ext4 -b 4096 -O inline_data"),
    ("meta_bg", "96M", "-t ext4 -b 1024 -O meta_bg,^resize_inode"),
    ("noflex", "64M", "-t ext4 -b 1024 -O ^flex_bg,^dir_index"),
    ("ea_inode", "64M", "-t ext4 -b 4096 -O ea_inode"),
    ("large_dir", "64M", "-t ext4 -b 1024 -O large_dir"),
    ("sparse_super2", "64M", "-t ext4 -b 1024 -O sparse_super2"),
    ("orphan_file", "64M", "-t ext4 -O orphan_file,metadata_csum_seed"),
    ("casefold", "64M", "-t ext4 -O casefold"),
    ("mmp", "64M", "-t ext4 -O mmp -E mmp_update_interval=1"),
    ("64k", "512M", "-t ext4 -b 65536"),
    ("tea", "64M", "-t ext4 -b 1024 -O ^metadata_csum"),
    ("quota", "64M", "-t ext4 -b 4096 -I 256 -O quota,project -E quotatype=usrquota:grpquota:prjquota"),
    (
        "quota-ea_inode",
        "64M",
        "-t ext4 -b 4096 -I 256 -O quota,project,ea_inode -E quotatype=usrquota:grpquota:prjquota",
    ),
    ("project", "64M", "-t ext4 -I 256 -O project -E hash_seed=01234567-89ab-cdef-0123-456789abcdef"),
];

/// A filesystem in a file.
struct Patient {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Patient {
    fn make(size: &str, options: &str) -> Self {
        let dir = scratch();
        let path = dir.path().join("fs.raw");
        let options = options.split(' ').filter(|o| !o.is_empty());
        tool("mke2fs").arg("-q").arg("-F").args(options).arg(&path).arg(size).ok();
        Self { _dir: dir, path }
    }

    fn disk(&self, write: bool) -> Disk {
        raw_disk(&self.path, write)
    }

    /// One edit: all of it lands.
    fn edit<T>(&self, edit: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        edit_raw(&self.path, driver(), edit)
    }

    fn read(&self) -> Arc<dyn Filesystem> {
        driver().open(self.disk(false)).unwrap()
    }

    fn is_clean(&self, when: &str) {
        is_clean(&self.path, when);
    }
}

fn driver() -> &'static dyn racker_fs::filesystem::Driver {
    *DRIVERS.iter().find(|d| d.name() == "ext4").unwrap()
}

/// Fails unless `e2fsck -fn` finds nothing to do.
fn is_clean(path: &Path, when: &str) {
    let ran = tool("e2fsck").args(["-f", "-n"]).arg(path).run();
    if ran.status != 0 {
        let kept = Path::new("/dev/shm/ext4-failed.raw");
        let _ = std::fs::copy(path, kept);
        panic!("{when}: {ran}\nkept as {}", kept.display());
    }
}

/// Plays `rounds` of `steps` operations each, with all judges after each round.
fn play(variant: &(&str, &str, &str), rounds: u64, steps: u64, seed: u64, play: Play) -> Patient {
    let patient = Patient::make(variant.1, variant.2);
    let fs = patient.read();
    let fine = fs.stat(fs.root()).unwrap().crtime.is_some();
    let (mut model, play) = (Model::read(fs.as_ref()), Play { fine, ..play });
    let (mut rng, mut clock) = (Rng::new(seed), 1_700_000_000);
    let mut refused = 0;
    for round in 0..rounds {
        patient.edit(|fs| {
            let mut player =
                Player { fs, model: &mut model, rng: &mut rng, play, clock: &mut clock, refused: 0 };
            (0..steps).for_each(|_| player.step());
            refused += player.refused;
            model.check(fs.filesystem().as_ref());
        });
        patient.is_clean(&format!("{} round {round}", variant.0));
        model.check(patient.read().as_ref());
    }
    println!("{}: {} nodes, {refused} refused", variant.0, model.nodes.len());
    patient
}

/// Numbers from the environment for the long tests.
fn number(key: &str, or: u64) -> u64 {
    std::env::var(key).ok().map_or(or, |n| n.parse().expect("a number"))
}

fn value_of(name: &str) -> u64 {
    if name.ends_with("ea_inode") { 40_000 } else { PLAY.value }
}

#[test]
fn random_operations_on_every_form() {
    for variant in VARIANTS {
        play(variant, 3, 250, 1, Play { value: value_of(variant.0), ..PLAY });
    }
}

/// 100,000 operations and more:
/// `ROUNDS=10 STEPS=600 SEED=1 cargo test -p racker-tests ext4::many_operations -- --ignored --nocapture`
#[test]
#[ignore = "minutes"]
fn many_operations() {
    let (rounds, steps, seed) = (number("ROUNDS", 10), number("STEPS", 600), number("SEED", 1));
    let only = std::env::var("ONLY").unwrap_or_default();
    for variant in VARIANTS.iter().filter(|v| only.is_empty() || v.0 == only) {
        play(variant, rounds, steps, seed, Play { value: value_of(variant.0), nodes: 1500, ..PLAY });
    }
}

/// A change of a mounted filesystem, as a program on it makes it.
fn kernel_step(root: &Path, rng: &mut Rng) -> std::io::Result<()> {
    let mut dirs = vec![root.to_path_buf()];
    let mut files = Vec::new();
    let mut at = 0;
    while at < dirs.len() {
        for entry in std::fs::read_dir(&dirs[at])? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => dirs.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
        at += 1;
    }
    for step in 0..100 {
        let len = if rng.below(2) == 0 { 200 } else { 100_000 };
        let mut data = vec![0; rng.below(len) as usize];
        rng.fill(&mut data);
        let dir = &dirs[rng.below(dirs.len() as u64) as usize];
        let file = files.get(rng.below(files.len().max(1) as u64) as usize);
        match (rng.below(6), file) {
            (0, _) => std::fs::create_dir(dir.join(format!("kernel-dir-{step}-{}", rng.below(1 << 40))))?,
            (1, Some(file)) => std::fs::File::options().append(true).open(file)?.write_all(&data)?,
            (2, Some(file)) => {
                std::fs::File::options().write(true).open(file)?.set_len(rng.below(1 << 20))?
            }
            (3, Some(file)) => {
                let to = dir.join(format!("moved-{step}-{}", rng.below(1 << 40)));
                std::fs::rename(file, &to)?;
                files.retain(|f| f.exists());
                files.push(to);
            }
            (4, Some(file)) => {
                std::fs::remove_file(file)?;
                files.retain(|f| f.exists());
            }
            _ => std::fs::write(dir.join(format!("kernel-{step}-{}", rng.below(1 << 40))), &data)?,
        }
    }
    Ok(())
}

/// racker and the kernel take turns; each time both show the same.
fn take_turns(variant: &(&str, &str, &str), rounds: u64, steps: u64, seed: u64) {
    let patient = Patient::make(variant.1, variant.2);
    let (mut rng, mut clock) = (Rng::new(seed), 1_700_000_000);
    for round in 0..rounds {
        let when = format!("{} round {round}", variant.0);
        let fs = patient.read();
        let fine = fs.stat(fs.root()).unwrap().crtime.is_some();
        let play = Play { fine, reach: 8 << 20, value: value_of(variant.0), ..PLAY };
        let mut model = Model::read(fs.as_ref());
        patient.edit(|fs| {
            let mut player =
                Player { fs, model: &mut model, rng: &mut rng, play, clock: &mut clock, refused: 0 };
            (0..steps).for_each(|_| player.step());
        });
        patient.is_clean(&when);
        let ours = Manifest::of_filesystem(patient.read().as_ref());
        let theirs = Manifest::of_folder(Mounted::read_only(&patient.path, WHOLE).path());
        theirs.assert_same(&ours, &when);
        let mounted = Mounted::writable(&patient.path, WHOLE);
        // What fails for want of room, or for an immutable file, is nothing to us.
        let _ = kernel_step(mounted.path(), &mut rng);
        drop(mounted);
        patient.is_clean(&format!("{when}, after the kernel"));
    }
}

#[test]
fn the_kernel_and_racker_take_turns() {
    for variant in VARIANTS.iter().filter(|v| ["ext4", "ext3", "inline_data", "bigalloc"].contains(&v.0)) {
        take_turns(variant, 2, 150, 3);
    }
}

/// All forms, with the kernel in turn:
/// `ROUNDS=20 STEPS=300 SEED=1 cargo test -p racker-tests ext4::long_turns -- --ignored --nocapture`
#[test]
#[ignore = "minutes"]
fn long_turns() {
    let (rounds, steps, seed) = (number("ROUNDS", 20), number("STEPS", 300), number("SEED", 1));
    let only = std::env::var("ONLY").unwrap_or_default();
    // A kernel may have no Unicode tables and no quotas, and none has larger blocks than its pages.
    let mounts =
        |v: &&(&str, &str, &str)| !["casefold", "64k", "quota", "quota-ea_inode", "project"].contains(&v.0);
    for variant in VARIANTS.iter().filter(mounts).filter(|v| only.is_empty() || v.0 == only) {
        take_turns(variant, rounds, steps, seed);
        println!("{}", variant.0);
    }
}
