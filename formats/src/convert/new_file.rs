//! A new file that appears only when it is complete, and the further files of an image that has several.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

use crate::block::{Disk, FileDevice, LockMode, lock};
use crate::error::{Common, Result};
use crate::opening::{Opening, Policy};
use crate::registry::{Format, Image};

/// Names that are to go when the program ends early; whoever holds the lock is giving files their names.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what new files have by way of temporary names, for good: for a program that is told to end. Files that are
/// being put in place are waited for; nothing can be put in place afterwards.
pub fn abandon() {
    let names = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
    for name in names.iter() {
        // It may be gone already.
        let _ = std::fs::remove_file(name);
    }
    std::mem::forget(names);
}

/// A file without a name, or with a temporary one, until [`publish`](Self::publish).
///
/// A program that dies leaves nothing behind where the filesystem knows files without names (`O_TMPFILE`).
#[derive(Debug)]
pub struct NewFile {
    disk: Disk,
    /// Where it will be.
    /// Where it lies; nowhere if that is on another machine.
    path: Option<PathBuf>,
    state: State,
    beside: Option<Beside>,
    /// It is on stable storage before it has its name.
    durable: bool,
}

/// Makes the further files of an image in the folder of its first one. They appear with it, and before it: where the
/// first is, all are.
#[derive(Clone, Debug)]
pub struct Beside {
    folder: PathBuf,
    durable: bool,
    made: Arc<Mutex<Vec<NewFile>>>,
}

impl Beside {
    /// For the files of an image in `folder`.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, durable: true, made: Arc::default() }
    }

    /// An empty, writable file that will be called `name`.
    pub fn create(&self, name: &str) -> Result<Disk> {
        let new = NewFile::prepare_for(&self.path(name)?, self.durable)?;
        let disk = new.disk.clone();
        self.made.lock().map_err(|_| Common::Poisoned)?.push(new);
        Ok(disk)
    }

    /// A file that was made with [`create`](Self::create) and has no name yet.
    pub(crate) fn made(&self, name: &str) -> Result<Disk> {
        let path = self.path(name)?;
        let made = self.made.lock().map_err(|_| Common::Poisoned)?;
        let is_it = |new: &&NewFile| match &new.state {
            State::Nameless { target, .. } | State::Named(_, target) => {
                target.file_name() == path.file_name()
            }
            State::InPlace => false,
        };
        let found = made.iter().rev().find(is_it).map(|new| new.disk.clone());
        found.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound).into())
    }

    /// Makes a file whose image is there already, and whole, appear. `name` must be free.
    pub(crate) fn publish(&self) -> Result<()> {
        for new in std::mem::take(&mut *self.made.lock().map_err(|_| Common::Poisoned)?) {
            if new.exists() {
                return Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists).into());
            }
            new.publish()?;
        }
        Ok(())
    }

    /// Removes a file that the image no longer names.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.path(name)?)?)
    }

    /// The path of a file with this plain name.
    fn path(&self, name: &str) -> Result<PathBuf> {
        if Path::new(name).file_name().is_none_or(|n| n != name) {
            return Err(std::io::Error::other(format!("{name:?} is no plain name of a file")).into());
        }
        Ok(self.folder.join(name))
    }
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
        Self::prepare_for(target, true)
    }

    /// The same; a file that is not `durable` appears without being on stable storage: after a power cut it may be
    /// there and have lost its content.
    pub fn prepare_for(target: &Path, durable: bool) -> Result<Self> {
        let device = |file| FileDevice::new(file, true).map(|d| Disk::new(d.durable(durable)));
        // A link is written through: the file that it leads to is replaced.
        let target = std::fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        if let Ok(meta) = target.metadata() {
            if meta.file_type().is_block_device() {
                let file = File::options().read(true).write(true).open(&target)?;
                lock(&file, LockMode::Write)?;
                let disk = device(file)?;
                return Ok(Self { disk, path: Some(target), state: State::InPlace, beside: None, durable });
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
        let path = target.clone();
        let (file, state) = match open(&folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(fd) => {
                let file = File::from(fd);
                (file.try_clone()?, State::Nameless { file, target })
            }
            Err(_) => {
                let temp = tempfile::Builder::new().prefix(".racker-").tempfile_in(&folder)?;
                let (file, path) = temp.into_parts();
                TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_path_buf());
                (file, State::Named(path, target))
            }
        };
        lock(&file, LockMode::Write)?;
        let beside = Some(Beside { durable, ..Beside::new(folder) });
        Ok(Self { disk: device(file)?, path: Some(path), state, beside, durable })
    }

    /// A disk on another machine, written in place as a block device is.
    pub fn over(disk: Disk) -> Self {
        Self { disk, path: None, state: State::InPlace, beside: None, durable: true }
    }

    /// The file, empty and writable.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Whether the file is a device: what it holds now is still there, and its size stays.
    pub fn is_device(&self) -> bool {
        matches!(self.state, State::InPlace)
    }

    /// Where further files of the same image are made; none beside a block device.
    pub fn beside(&self) -> Option<Beside> {
        self.beside.clone()
    }

    /// Puts all that was written so far on stable storage, the files beside this one included.
    pub fn settle(&self) -> Result<()> {
        let mut disks = vec![self.disk.clone()];
        if let Some(beside) = &self.beside {
            let made = beside.made.lock().map_err(|_| Common::Poisoned)?;
            disks.extend(made.iter().map(|new| new.disk.clone()));
        }
        disks.iter().try_for_each(Disk::flush)
    }

    /// Opens the image that was written into the file, with what it names, to read it back.
    pub fn open(&self, format: &dyn Format, policy: Policy) -> Result<Arc<dyn Image>> {
        format.open(self.disk.read_only(), &mut self.opening(policy, false))
    }

    /// The same for writing.
    pub fn open_to_write(&self, format: &dyn Format, policy: Policy) -> Result<Arc<dyn Image>> {
        format.open(self.disk.clone(), &mut self.opening(policy, true))
    }

    fn opening(&self, policy: Policy, write: bool) -> Opening {
        let opening = Opening::new(self.path.as_deref(), policy, write);
        match &self.beside {
            Some(beside) => opening.with_made(beside.clone()),
            None => opening,
        }
    }

    /// Puts the file, and those made beside it, on stable storage and under their names, in place of what was there.
    pub fn publish(self) -> Result<()> {
        let others = match &self.beside {
            Some(beside) => std::mem::take(&mut *beside.made.lock().map_err(|_| Common::Poisoned)?),
            None => Vec::new(),
        };
        // All are complete before any of them has its name.
        for file in others.iter().chain([&self]) {
            file.disk.flush()?;
        }
        // Told to end, the program does so before this or after it.
        let mut temporary = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
        temporary.clear();
        if others.iter().any(Self::exists)
            && let State::Nameless { target, .. } | State::Named(_, target) = &self.state
            && target.exists()
        {
            // The old image must not be seen with pieces of the new one.
            std::fs::remove_file(target)?;
        }
        let mut named = Vec::new();
        for file in others {
            let is_new = !file.exists();
            match file.link() {
                Ok(Some(path)) if is_new => named.push(path),
                Ok(_) => {}
                Err(e) => {
                    named.iter().for_each(|path| drop(std::fs::remove_file(path)));
                    return Err(e);
                }
            }
        }
        let linked = self.link();
        if linked.is_err() {
            named.iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        linked.map(|_| ())
    }

    /// Whether something has the name already.
    fn exists(&self) -> bool {
        match &self.state {
            State::Nameless { target, .. } | State::Named(_, target) => target.exists(),
            State::InPlace => false,
        }
    }

    /// Puts the file under its name; says what that is.
    fn link(self) -> Result<Option<PathBuf>> {
        let target = match self.state {
            State::InPlace => return Ok(None),
            State::Nameless { file, target } => {
                if self.durable {
                    file.sync_all()?;
                }
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
        if self.durable {
            File::open(folder)?.sync_all()?;
        }
        Ok(Some(target))
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
    fn several_files_appear_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let make = || {
            let new = NewFile::prepare(&path).unwrap();
            let beside = new.beside().unwrap();
            beside.create("new-1").unwrap().resize(5).unwrap();
            beside.create("new-2").unwrap().resize(6).unwrap();
            assert!(beside.create("../x").is_err() && beside.create("").is_err());
            new
        };
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        drop(make());
        assert_eq!(count(), 0);
        // The last one cannot have its name: none of them has.
        let new = make();
        std::fs::create_dir(&path).unwrap();
        assert!(new.publish().is_err());
        assert_eq!(count(), 1);
        std::fs::remove_dir(&path).unwrap();
        make().publish().unwrap();
        make().publish().unwrap();
        assert_eq!(count(), 3);
        assert_eq!(std::fs::metadata(dir.path().join("new-2")).unwrap().len(), 6);
    }

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
