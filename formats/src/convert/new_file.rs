//! A new file that appears only when it is complete.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

use crate::block::{Disk, FileDevice, LockMode, lock};
use crate::error::Result;

/// A file without a name, or with a temporary one, until [`publish`](Self::publish).
///
/// A program that dies leaves nothing behind where the filesystem knows files without names (`O_TMPFILE`).
#[derive(Debug)]
pub struct NewFile {
    disk: Disk,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Without a name; kept open through `disk` and this second handle.
    Nameless {
        file: File,
        target: PathBuf,
    },
    Named(tempfile::TempPath, PathBuf),
    /// A block device, written in place.
    InPlace,
}

impl NewFile {
    /// Prepares a new file for `target`; what is there now stays until [`publish`](Self::publish).
    pub fn prepare(target: &Path) -> Result<Self> {
        // A link is written through: the file that it leads to is replaced.
        let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        if let Ok(meta) = target.metadata() {
            if meta.file_type().is_block_device() {
                let file = File::options().read(true).write(true).open(&target)?;
                lock(&file, LockMode::Write)?;
                return Ok(Self { disk: Disk::new(FileDevice::new(file, true)?), state: State::InPlace });
            }
            if !meta.is_file() {
                return Err(std::io::Error::other("is neither a regular file nor a block device").into());
            }
            // Somebody else may be using what would be replaced.
            lock(&File::open(&target)?, LockMode::Write)?;
        }
        let folder = match target.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let mode = Mode::from_raw_mode(0o666);
        let (file, state) = match open(&folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(fd) => {
                let file = File::from(fd);
                (file.try_clone()?, State::Nameless { file, target })
            }
            Err(_) => {
                let temp = tempfile::Builder::new().prefix(".racker-").tempfile_in(&folder)?;
                let (file, path) = temp.into_parts();
                (file, State::Named(path, target))
            }
        };
        lock(&file, LockMode::Write)?;
        Ok(Self { disk: Disk::new(FileDevice::new(file, true)?), state })
    }

    /// The file, empty and writable.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Puts the file on stable storage and under its name, in place of what was there.
    pub fn publish(self) -> Result<()> {
        self.disk.flush()?;
        let target = match self.state {
            State::InPlace => return Ok(()),
            State::Nameless { file, target } => {
                file.sync_all()?;
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                match linkat(CWD, &own, CWD, &target, AtFlags::SYMLINK_FOLLOW) {
                    Ok(()) => {}
                    Err(rustix::io::Errno::EXIST) => replace(&own, &target)?,
                    Err(e) => return Err(std::io::Error::from(e).into()),
                }
                target
            }
            State::Named(path, target) => {
                path.persist(&target).map_err(|e| e.error)?;
                target
            }
        };
        let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(())
    }
}

/// Links a nameless file under a passing name and renames it over the target.
fn replace(own: &str, target: &Path) -> Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let pid = std::process::id();
    for attempt in 0..1000u32 {
        let passing = target.with_file_name(format!(".{name}.{pid}.{attempt}"));
        match linkat(CWD, own, CWD, &passing, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {
                if let Err(e) = std::fs::rename(&passing, target) {
                    // The error that matters is the first one.
                    let _ = std::fs::remove_file(&passing);
                    return Err(e.into());
                }
                return Ok(());
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(std::io::Error::from(e).into()),
        }
    }
    Err(std::io::Error::other("no free temporary name").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_changes_only_when_published() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let make = |text: &[u8]| {
            let new = NewFile::prepare(&path).unwrap();
            new.disk().resize(text.len() as u64).unwrap();
            new.disk().write_at(0, text).unwrap();
            new
        };
        drop(make(b"lost"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        make(b"first").publish().unwrap();
        let second = make(b"second");
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        second.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
