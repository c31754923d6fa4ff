//! The FAT writer against `mkfs.vfat`, `fsck.vfat` and mtools.

mod cases;
mod limits;
mod model;
mod random;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use racker_formats::block::{Disk, FileDevice, MemDevice};
use racker_formats::error::Result;
use racker_formats::transaction::Transaction;
use racker_fs::drivers::DRIVERS;
use racker_fs::edit::Writer;
use racker_fs::filesystem::{Driver, Filesystem, Name, Time};
use racker_tests::tool::tool;

/// Filesystems to make: their options, and their size in KiB.
const VARIANTS: &[(&str, u64)] = &[
    ("-F 12", 1440),
    ("-F 12 -S 4096 -s 1 -r 128", 6000),
    ("-F 16 -S 512 -s 1", 3000),
    ("-F 16 -S 2048 -s 2 -f 1 -r 64", 20_000),
    ("-F 32 -S 512 -s 1", 34_000),
    ("-F 32 -S 512 -s 8 -f 1", 20_000),
    ("-F 32 -S 4096 -s 1", 20_000),
];

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn at(sec: i64) -> Time {
    Time { sec, nsec: 0 }
}

fn driver() -> &'static dyn Driver {
    *DRIVERS.iter().find(|d| d.name() == "vfat").unwrap()
}

/// A volume in a file.
struct Volume(PathBuf);

impl Volume {
    fn make(dir: &Path, options: &str, kib: u64) -> Self {
        let path = dir.join("volume.img");
        let file = path.display().to_string();
        let _ = std::fs::remove_file(&path);
        let mut args: Vec<&str> = options.split_whitespace().collect();
        args.extend(["-n", "LABEL", "-C", &file]);
        tool("mkfs.vfat").args(args).arg(kib.to_string()).ok();
        Self(path)
    }

    fn disk(&self, write: bool) -> Disk {
        let file = std::fs::File::options().read(true).write(write).open(&self.0).unwrap();
        Disk::new(FileDevice::new(file, write).unwrap())
    }

    /// Changes it; the changes go to the file at once.
    fn change<T>(&self, change: impl FnOnce(&mut Writer<'_>) -> T) -> T {
        let nothing = Transaction::overlay(Disk::new(MemDevice::new(0)));
        let part = nothing.disk().map(|_| Ok(self.disk(true))).unwrap();
        let mut writer = Writer::open(driver(), &part).unwrap();
        let done = change(&mut writer);
        writer.close().unwrap();
        done
    }

    fn open(&self) -> Arc<dyn Filesystem> {
        driver().open(self.disk(false)).unwrap()
    }

    /// Why it is not opened for writing, if so.
    fn refused(&self) -> Option<String> {
        let opened: Result<_> = driver().open_mut(self.disk(true));
        opened.err().map(|e| e.to_string())
    }

    /// `fsck.vfat` has nothing to say.
    fn is_clean(&self, when: &str) {
        let ran = tool("fsck.vfat").arg("-n").arg(&self.0).run();
        let said = ran.text();
        // Its name and version, and the count of files.
        let quiet = said.lines().filter(|l| !l.trim().is_empty()).count() <= 2;
        assert!(ran.status == 0 && quiet, "{when}: {ran}");
    }
}
