//! Writing ext2, ext3 and ext4: random operations, judged by a model in memory, by e2fsck and by the kernel.

mod model;
mod ops;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::{Disk, FileDevice};
use racker_formats::transaction::Transaction;
use racker_fs::drivers::DRIVERS;
use racker_fs::edit::Writer;
use racker_fs::filesystem::Filesystem;
use racker_tests::image::{open_disk, scratch};
use racker_tests::manifest::Manifest;
use racker_tests::mount::{Mounted, WHOLE};
use racker_tests::rng::Rng;
use racker_tests::tool::tool;

use self::model::Model;
use self::ops::{Play, Player};

const PLAY: Play = Play { reach: 3 << 30, write: 200_000, nodes: 300, value: 900, devices: true, fine: true };

/// Ways to make a filesystem: a name, its size, and the options of mke2fs.
const VARIANTS: &[(&str, &str, &str)] = &[
    ("ext4", "64M", "-t ext4"),
    ("ext4-1k", "48M", "-t ext4 -b 1024 -I 128"),
    ("ext4-2k", "64M", "-t ext4 -b 2048 -I 1024"),
    ("ext2", "32M", "-t ext2"),
    ("ext2-1k", "24M", "-t ext2 -b 1024"),
    ("ext3", "64M", "-t ext3 -b 4096 -I 128"),
    ("nocsum", "64M", "-t ext4 -O ^metadata_csum,^64bit,uninit_bg"),
    ("nocsum-noflags", "40M", "-t ext4 -O ^metadata_csum,^64bit,^uninit_bg,^flex_bg"),
    ("noextent", "48M", "-t ext4 -O ^extents,^64bit"),
    ("bigalloc", "128M", "-t ext4 -O bigalloc -C 16384 -N 4096"),
    ("bigalloc-1k", "64M", "-t ext4 -b 1024 -O bigalloc -C 4096 -N 4096"),
    ("inline_data", "64M", "-t ext4 -O inline_data"),
    ("meta_bg", "96M", "-t ext4 -b 1024 -O meta_bg,^resize_inode"),
    ("noflex", "64M", "-t ext4 -b 1024 -O ^flex_bg,^dir_index"),
    ("ea_inode", "64M", "-t ext4 -O ea_inode"),
    ("large_dir", "64M", "-t ext4 -b 1024 -O large_dir"),
    ("sparse_super2", "64M", "-t ext4 -b 1024 -O sparse_super2"),
    ("orphan_file", "64M", "-t ext4 -O orphan_file,metadata_csum_seed"),
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
        let file = std::fs::File::options().read(true).write(write).open(&self.path).unwrap();
        Disk::new(FileDevice::new(file, write).unwrap())
    }

    /// One edit: all of it lands.
    fn edit<T>(&self, edit: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        let file = self.disk(true);
        let reopen = |disk: Disk| open_disk("raw", disk, true);
        let image = reopen(file.clone()).unwrap();
        let transaction = Transaction::begin(image, &file, &self.path, reopen).unwrap();
        let mut writer = Writer::open(driver(), &transaction.disk()).unwrap();
        let done = edit(&mut writer);
        writer.close().unwrap();
        transaction.commit().unwrap();
        done
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
    let (mut rng, mut clock) = (Rng::new(seed), 1_800_000_000);
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

#[test]
fn random_operations_on_every_form() {
    for variant in VARIANTS {
        let value = if variant.0 == "ea_inode" { 40_000 } else { PLAY.value };
        play(variant, 3, 250, 1, Play { value, ..PLAY });
    }
}

#[test]
fn the_kernel_sees_what_the_model_has() {
    for variant in &VARIANTS[..1] {
        let patient = play(variant, 1, 400, 2, Play { reach: 8 << 20, ..PLAY });
        let ours = Manifest::of_filesystem(patient.read().as_ref());
        let theirs = Manifest::of_folder(Mounted::read_only(&patient.path, WHOLE).path());
        theirs.assert_same(&ours, variant.0);
    }
}
