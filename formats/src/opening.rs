//! Which other files an image may name, and how they are opened.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::block::redo::RedoFault;
use crate::block::{BlockDevice, Disk, FileDevice, LockMode, lock};
use crate::convert::Beside;
use crate::drivers::FORMATS;
use crate::error::{Error, Fault, Kind, Result, Within};
use crate::limits::{CHAIN_DEPTH_MAX, REFERENCES_MAX};
use crate::recognised::recognise;
use crate::registry::{Image, by_name, probe, with_head};
use crate::transaction::{recover, redo_path};
use crate::unopened::Unopened;

/// A file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// As it stands in the image.
    pub path: String,
    /// The format that the image gives for it.
    pub format: Option<String>,
    /// What it is for.
    pub role: Role,
}

/// What a referenced file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds what the image does not.
    Backing,
    /// Holds the data of an image that keeps only tables.
    DataFile,
    /// One piece of a split disk.
    Extent,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backing => "backing file",
            Self::DataFile => "data file",
            Self::Extent => "extent file",
        })
    }
}

/// Which referenced files are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None.
    Deny,
    /// Those below the image's own folder: no absolute path, no `..`, no symbolic link out.
    #[default]
    SameFolder,
    /// Any.
    Any,
}

/// Why a reference is not followed, or a format not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenFault {
    /// Policy forbids it.
    #[error("the image names {role} {path:?}, which is {why}: not opened")]
    External {
        /// What it is for.
        role: Role,
        /// As it stands in the image.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image does not lie in a folder.
    #[error("the image names {role} {path:?}, and lies in a container or on another machine: not opened")]
    Apart {
        /// What it is for.
        role: Role,
        /// As it stands in the image.
        path: String,
    },
    /// The chain comes back to itself.
    #[error("{role} {path:?} is already part of the chain: the chain is a loop")]
    Loop {
        /// What it is for.
        role: Role,
        /// As it stands in the image.
        path: String,
    },
    /// The chain is too long.
    #[error("the chain of images is longer than {0}")]
    Deep(usize),
    /// Too many files are named.
    #[error("the image names more than {0} files")]
    Many(usize),
    /// Two formats are equally sure.
    #[error("the content looks like {0} and like {1}")]
    Ambiguous(&'static str, &'static str),
    /// A format nobody has heard of.
    #[error("there is no format {0:?}")]
    UnknownFormat(String),
    /// The backing file's format is not recorded and the content looks like something else than raw.
    #[error("backing file {path:?} looks like {found}, but the image does not record its format")]
    BackingFormat {
        /// As it stands in the image.
        path: String,
        /// What the content looks like.
        found: &'static str,
    },
}

/// Advice for a child of `format` whose parent is not the one it knows.
pub(crate) fn changed_parent(format: &str) -> String {
    format!(
        "if it holds the same as before (a commit that was interrupted leaves that), accept it with: \
         racker disk rebase -u -b PARENT -F {format} IMAGE"
    )
}

impl Fault for OpenFault {
    fn kind(&self) -> Kind {
        match self {
            Self::External { .. } | Self::Apart { .. } | Self::BackingFormat { .. } => Kind::Denied,
            Self::Loop { .. } | Self::Deep(_) | Self::Many(_) => Kind::Corrupt,
            Self::Ambiguous(..) | Self::UnknownFormat(_) => Kind::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::External { .. } => {
                Some("--allow-external opens it all the same, if you trust the image".into())
            }
            Self::Ambiguous(..) => Some("say which one it is with -f FORMAT".into()),
            Self::UnknownFormat(_) => {
                let names: Vec<_> = FORMATS.iter().map(|f| f.name()).collect();
                Some(format!("racker knows {}", names.join(", ")))
            }
            Self::BackingFormat { found, .. } => {
                Some(format!("record it with: racker disk rebase -u -F {found} -b BACKING IMAGE"))
            }
            _ => None,
        }
    }
}

/// What accompanies the opening of one image and of everything it names.
#[derive(Debug)]
pub struct Opening {
    /// The folder that relative references start from; none inside containers and on other machines.
    folder: Option<PathBuf>,
    policy: Policy,
    /// Whether files are opened for writing; only the top image and its own extents are.
    write: bool,
    /// Parents are left alone.
    alone: bool,
    /// Device and inode of each image from the top down to this one.
    chain: Vec<(u64, u64)>,
    /// Files opened so far.
    count: usize,
    /// Files of a new image that have no names yet.
    made: Option<Beside>,
}

impl Opening {
    /// For the image in the file at `path`.
    pub fn new(path: Option<&Path>, policy: Policy, write: bool) -> Self {
        let folder = path.map(|p| match p.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_path_buf(),
            None => PathBuf::from("/"),
        });
        let chain = path.and_then(|p| p.metadata().ok()).map(|m| (m.dev(), m.ino())).into_iter().collect();
        Self { folder, policy, write, alone: false, chain, count: 0, made: None }
    }

    /// For an image whose further files were made just now, and have no names yet.
    pub(crate) fn with_made(self, made: Beside) -> Self {
        Self { made: Some(made), ..self }
    }

    /// Leaves the image's parent alone: it need not be there, and what shows through from it cannot be read.
    #[must_use]
    pub fn without_parent(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Whether the image's parent is not to be opened.
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// Where a file that the image names lies, if policy allows to open it.
    pub fn resolve(&mut self, reference: &Reference) -> Result<PathBuf> {
        Ok(self.open_reference(reference, false)?.1)
    }

    /// Whether the image shall be writable.
    pub fn write(&self) -> bool {
        self.write
    }

    /// Where the image's further files are made and removed, if it may be written.
    pub(crate) fn place_beside(&self) -> Option<Beside> {
        let may = self.write && self.policy != Policy::Deny;
        self.folder.clone().filter(|_| may).map(Beside::new)
    }

    /// Opens a file that holds part of this image's own bytes (an extent, a data file).
    pub fn follow_file(&mut self, reference: &Reference) -> Result<Disk> {
        if let Some(disk) = self.made.as_ref().and_then(|made| made.made(&reference.path).ok()) {
            return Ok(disk.read_only());
        }
        let (file, _) = self.open_reference(reference, self.write)?;
        lock(&file, if self.write { LockMode::Write } else { LockMode::Read })?;
        Ok(Disk::new(FileDevice::new(file, self.write)?))
    }

    /// Opens a parent image, read-only, with everything that it names in turn.
    pub fn follow_image(&mut self, reference: &Reference) -> Result<(Disk, Arc<dyn Image>)> {
        if self.alone {
            // Parents of any size there is are served by one that has no bytes.
            let image: Arc<dyn Image> = Arc::new(Unopened { size: u64::MAX >> 1 });
            let device: Arc<dyn BlockDevice> = image.clone();
            return Ok((Disk::from_arc(device), image));
        }
        let place = || format!("{} {}", reference.role, reference.path);
        let (file, path) = self.open_reference(reference, false).within(place)?;
        if self.chain.len() >= CHAIN_DEPTH_MAX {
            return Err(OpenFault::Deep(CHAIN_DEPTH_MAX).into());
        }
        lock(&file, LockMode::Read)?;
        let meta = file.metadata()?;
        // An edit of the parent that was interrupted while it landed is shown as landed.
        let disk = recover(&path, Disk::new(FileDevice::new(file, false)?)).within(place)?;
        let format = match &reference.format {
            Some(name) => by_name(name).within(place)?,
            None => {
                let found = probe(&disk).within(place)?;
                if found.name() != "raw" {
                    let path = reference.path.clone();
                    return Err(OpenFault::BackingFormat { path, found: found.name() }.into());
                }
                if let Some(known) = with_head(&disk, recognise)? {
                    return Err(Error::from(known).within(place()));
                }
                found
            }
        };
        let mut inner = Self {
            folder: path.parent().map(Path::to_path_buf),
            policy: self.policy,
            write: false,
            alone: false,
            chain: self.chain.clone(),
            count: self.count,
            made: None,
        };
        inner.chain.push((meta.dev(), meta.ino()));
        let image = format.open(disk, &mut inner).within(place)?;
        self.count = inner.count;
        if image.is_spread() && redo_path(&path).exists() {
            return Err(Error::from(RedoFault::Pending).within(place()));
        }
        let device: Arc<dyn BlockDevice> = image.clone();
        Ok((Disk::from_arc(device).read_only(), image))
    }

    /// The names of the regular files in the image's own folder, in order, without the image and those above it: for
    /// formats that know `what` they want, but not its name.
    pub fn beside(&self, role: Role, what: &str) -> Result<Vec<String>> {
        let refuse = |why| OpenFault::External { role, path: what.into(), why };
        let Some(folder) = &self.folder else {
            return Err(OpenFault::Apart { role, path: what.into() }.into());
        };
        if self.policy == Policy::Deny {
            return Err(refuse("another file").into());
        }
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // Links are left out: what they lead to is not beside the image.
            let Some(meta) = entry.metadata().ok().filter(std::fs::Metadata::is_file) else { continue };
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !self.chain.contains(&(meta.dev(), meta.ino())) {
                names.push(name);
            }
            if names.len() > REFERENCES_MAX {
                return Err(OpenFault::Many(REFERENCES_MAX).into());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens one of the files [`beside`](Self::beside) the image for a look.
    pub fn peek(&self, name: &str) -> Result<Disk> {
        let folder = self.folder.as_deref().unwrap_or(Path::new("."));
        let refuse = |why| OpenFault::External { role: Role::Backing, path: name.into(), why };
        Ok(Disk::new(FileDevice::new(open_beneath(folder, Path::new(name), false, refuse)?, false)?))
    }

    /// Opens the host file of a reference, if policy allows it, and says where it is.
    fn open_reference(&mut self, reference: &Reference, write: bool) -> Result<(File, PathBuf)> {
        let Reference { path, role, .. } = reference;
        let refuse = |why| OpenFault::External { role: *role, path: path.clone(), why };
        self.count = self.count.saturating_add(1);
        if self.count > REFERENCES_MAX {
            return Err(OpenFault::Many(REFERENCES_MAX).into());
        }
        let Some(folder) = &self.folder else {
            return Err(OpenFault::Apart { role: *role, path: path.clone() }.into());
        };
        if self.policy == Policy::Deny {
            return Err(refuse("another file").into());
        }
        let name = path.strip_prefix("file:").unwrap_or(path);
        if path.starts_with("json:") {
            return Err(refuse("a json: description").into());
        }
        if has_protocol(name) {
            return Err(refuse("a protocol address").into());
        }
        let full = folder.join(name);
        let file = match self.policy {
            Policy::Any => File::options().read(true).write(write).open(&full)?,
            _ => open_beneath(folder, Path::new(name), write, refuse)?,
        };
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        if self.chain.contains(&id) {
            return Err(OpenFault::Loop { role: *role, path: path.clone() }.into());
        }
        Ok((file, full))
    }
}

/// Whether a name is what QEMU takes for an address: letters, digits, `+-.` and a colon before any slash.
fn has_protocol(name: &str) -> bool {
    let head = name.split('/').next().unwrap_or(name);
    match head.split_once(':') {
        Some((scheme, _)) => {
            !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        }
        None => false,
    }
}

fn open_beneath(
    folder: &Path,
    name: &Path,
    write: bool,
    refuse: impl Fn(&'static str) -> OpenFault,
) -> Result<File> {
    if name.is_absolute() {
        return Err(refuse("an absolute path").into());
    }
    if name.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(refuse("outside the image's folder").into());
    }
    let dir = File::open(folder)?;
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // NONBLOCK keeps a fifo from holding us forever; the file's type is checked by its device.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // The kernel itself keeps the walk below the folder, whatever happens to the links meanwhile.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(&dir, name, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(File::from(fd)),
        Err(rustix::io::Errno::XDEV) => Err(refuse("a symbolic link out of the image's folder").into()),
        Err(e) => Err(std::io::Error::from(e).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(path: &str) -> Reference {
        Reference { path: path.into(), format: Some("raw".into()), role: Role::Backing }
    }

    #[test]
    fn references_out_of_the_folder_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::write(&top, b"x").unwrap();
        std::fs::write(dir.path().join("inside"), b"hello").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("inside", dir.path().join("in")).unwrap();
        for bad in ["/etc/passwd", "../x", "out", "json:{}", "http://a/b", "nbd:host:1"] {
            let mut opening = Opening::new(Some(&top), Policy::SameFolder, false);
            let e = opening.follow_image(&reference(bad)).unwrap_err();
            assert_eq!(e.kind(), Kind::Denied, "{bad}: {e}");
        }
        for good in ["inside", "in", "./inside", "file:inside"] {
            let mut opening = Opening::new(Some(&top), Policy::SameFolder, false);
            assert_eq!(opening.follow_image(&reference(good)).unwrap().0.size(), 5, "{good}");
        }
        let mut opening = Opening::new(Some(&top), Policy::SameFolder, false);
        let e = opening.follow_image(&reference("top")).unwrap_err();
        assert!(matches!(e.fault(), Some(OpenFault::Loop { .. })), "{e}");
    }
}
